//! The provider's contract, on real machines: runc, systemd, bridges, loop devices. Needs root.
//!
//! `WINDLASS_TEST_ROOTFS` names a Debian root file system with systemd, dbus, iproute2, e2fsprogs and perl,
//! for example one made by
//! `mmdebstrap --variant=minbase --include=systemd,systemd-sysv,dbus,iproute2,e2fsprogs bookworm DIR`.
//!
//! The cases of [`shared`] and [`contract`] see only the trait, those of [`local`] also the host. Each has a provider of
//! its own name, network and directory, and ends with a reset that has to leave nothing. This program
//! also stands in for the director's: started as `machine-monitor` or `endpoint` it is that process.

mod contract;
mod kept;
mod local;
mod rig;
mod shared;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use windlass_director::provider::Severity;
use windlass_director::provider::local::LocalConfig;

use self::rig::{Rig, Root};

/// A test: its name and what it does with a provider of its own.
type Case = (&'static str, fn(&Rig) -> anyhow::Result<()>);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next().unwrap_or_default();
    if first == "machine-monitor" {
        return windlass_director::provider::local::monitor::main(arguments.collect());
    }
    if first == "endpoint" {
        return windlass_director::provider::local::endpoint::main(arguments.collect());
    }
    let verb = first.to_string_lossy().into_owned();
    if matches!(
        verb.as_str(),
        "make-machine" | "show-preflight" | "remove-all"
    ) {
        let rest: Vec<String> = arguments.filter_map(|a| a.into_string().ok()).collect();
        return match helper(&verb, &rest) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:?}");
                ExitCode::FAILURE
            }
        };
    }
    let arguments = Arguments::from_args();
    let cases: Vec<Case> = contract::CASES
        .iter()
        .chain(kept::CASES)
        .chain(local::CASES)
        .copied()
        .collect();
    let shared = windlass_director::provider::contract::CASES.iter();
    let shared = shared.map(|case| trial(case.name, move |rig| shared::run(rig, case)));
    let trials = cases.into_iter().map(|(name, case)| trial(name, case));
    let trials = shared.chain(trials);
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    Root::forget();
    conclusion.exit_code()
}

fn trial(
    name: &'static str,
    case: impl FnOnce(&Rig) -> anyhow::Result<()> + Send + 'static,
) -> Trial {
    Trial::test(name, move || {
        let began = std::time::Instant::now();
        let outcome = Root::shared().and_then(|root| rig::run(name, root, case));
        eprintln!("{name}: {:.1} s", began.elapsed().as_secs_f64());
        outcome.map_err(|error| Failed::from(format!("{error:#}")))
    })
}

/// A process like a director: makes one machine, says what its preflight finds fatal, or resets.
fn helper(verb: &str, arguments: &[String]) -> anyhow::Result<()> {
    let [dir, stemcell, name, cidr, number] = arguments else {
        anyhow::bail!("five arguments")
    };
    let config = LocalConfig {
        zones: Vec::new(),
        dir: dir.into(),
        name: name.clone(),
        cidr: cidr.parse()?,
        director_exe: match std::env::var_os("TEST_DIRECTOR") {
            Some(program) => program.into(),
            None => std::env::current_exe()?,
        },
        runc: std::env::var("TEST_RUNC")
            .unwrap_or("runc".to_owned())
            .into(),
    };
    let rig = Rig::new(config, Root::at(stemcell.into()))?;
    if verb == "make-machine" {
        rig.wait(rig.provider().create_machine(rig.request(number.parse()?)?))?;
        return Ok(());
    }
    if verb == "remove-all" {
        return Ok(rig.wait(rig.provider().reset())?);
    }
    for fault in rig.wait(rig.provider().preflight()) {
        if fault.severity == Severity::Fatal {
            println!("{fault}");
        }
    }
    Ok(())
}
