//! What is secret of a real cluster is looked for wherever somebody who may not know it could see it.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use windlass_tests::canaries::known::root_of;
use windlass_tests::canaries::places::{Place, Processes, Replies, files, leaks, replies};
use windlass_tests::canaries::{Canaries, Leak};
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::lifecycle::items;
use crate::reach::tar;

/// Secrets that a director and a cluster of two machines have at least: two CAs' and operators' keys, what seals them,
/// tickets, four keys of the cluster and one for encryption, a token and five keys of each machine.
const SECRETS_MIN: usize = 20;
/// Longest wait for a process that was started.
const PATIENCE: Duration = Duration::from_secs(20);

/// Nothing that the director or a machine of the cluster holds is in logs, answers, refusals, bundles, or in arguments
/// and environments of processes as they were seen. Then a key is leaked on purpose, and found by the same search.
pub(crate) fn are_nowhere(world: &World, cluster: &str, processes: &Processes) -> Result<()> {
    let machines = machines(world, cluster)?;
    let mut canaries = Canaries::default();
    canaries.of_director(world.dir())?;
    for machine in &machines {
        canaries.of_machine(machine)?;
    }
    let known = canaries.names().len();
    ensure!(known >= SECRETS_MIN, "few secrets: {:#?}", canaries.names());
    let read = all(world, cluster, &machines)?;
    let seen = processes.places().count();
    let bytes: usize = read
        .iter()
        .chain(processes.places())
        .map(|place| place.content.len())
        .sum();
    let found = leaks(&canaries, read.iter().chain(processes.places()));
    ensure!(found.is_empty(), "secrets are seen:\n{}", told(&found));
    eprintln!(
        "  secrets: {known} in none of {} answers and logs, {seen} processes, {bytes} bytes",
        read.len()
    );
    planted(world, cluster, &machines)
}

fn machines(world: &World, cluster: &str) -> Result<Vec<String>> {
    let listed = world.json(&["node", "list", "--cluster", cluster])?;
    let name = |machine: &serde_json::Value| machine["name"].as_str().map(str::to_owned);
    Ok(items(&listed)?.iter().filter_map(name).collect())
}

fn told<'a>(leaks: impl IntoIterator<Item = &'a Leak>) -> String {
    leaks.into_iter().map(|leak| format!("{leak}\n")).collect()
}

/// All that is written or answered about a cluster.
fn all(world: &World, cluster: &str, machines: &[String]) -> Result<Vec<Place>> {
    let is_log = |path: &Path| match path.is_dir() {
        // Machines are looked into one by one.
        true => !path.ends_with("rootfs") && !path.ends_with("artifacts"),
        false => path.extension().is_some_and(|ending| ending == "log"),
    };
    let mut read = files(world.dir(), is_log);
    ensure!(
        read.iter().any(|log| log.name.ends_with("director.log")),
        "the director's log is not among {:?}",
        read.iter().map(|log| &log.name).collect::<Vec<_>>()
    );
    for machine in machines {
        read.push(journal(world, machine)?);
        // The journal is binary, and was just read as text.
        read.extend(files(&root_of(machine)?.join("var/log"), |path| {
            !path.ends_with("journal")
        }));
    }
    let Replies { answers, refusals } = replies(&world.dir().join("context.toml"))?;
    for (what, replies, wanted) in [
        (
            "answers",
            &answers,
            [
                "GET /v1/audit",
                "GET /v1/machines/",
                "GET /metrics",
                "GET /v1/tasks/",
            ],
        ),
        (
            "refusals",
            &refusals,
            [
                "GET /v1/clusters/",
                "PUT /v1/clusters/",
                "POST /v1/machines/",
                "DELETE /v1/disks/",
            ],
        ),
    ] {
        for wanted in wanted {
            let among = replies
                .iter()
                .any(|reply| reply.name.starts_with(wanted) && !reply.content.is_empty());
            ensure!(among, "{wanted} is not among the {what}");
        }
    }
    read.extend(answers);
    read.extend(refusals);
    let bundle = tempfile::tempdir().context("cannot make a directory")?;
    let bundle = bundle.path().join("bundle.tar.gz");
    world.run(&[
        "node",
        "collect",
        "--cluster",
        cluster,
        "-o",
        &bundle.to_string_lossy(),
        "-n",
        "10000",
    ])?;
    let unpacked = tar(&["-xzOf"], &bundle)?;
    ensure!(
        unpacked.contains("== processes"),
        "nothing is in the bundle"
    );
    read.push(Place {
        name: "the bundle".to_owned(),
        content: unpacked.into_bytes(),
    });
    Ok(read)
}

/// What is in the journal of a machine, with the arguments of who wrote it.
fn journal(world: &World, machine: &str) -> Result<Place> {
    let journal = [
        "node",
        "exec",
        machine,
        "--",
        "journalctl",
        "--no-pager",
        "-a",
        "-o",
        "export",
    ];
    let output = world.output(&journal)?;
    ensure!(
        output.status.success(),
        "journal of {machine}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(Place {
        name: format!("the journal of {machine}"),
        content: output.stdout,
    })
}

/// Leaks a key in the ways in which keys are leaked: as an argument of a command on a machine, which is asked for
/// through the API, and which writes it to the machine's journal. The search finds it there, and does not where it is
/// blotted out.
fn planted(world: &World, cluster: &str, machines: &[String]) -> Result<()> {
    let key = rcgen::KeyPair::generate()
        .context("cannot make a key")?
        .serialize_pem();
    let mut canaries = Canaries::default();
    canaries.pem("the planted key", &key);
    let machine = machines.first().context("a machine")?;
    // It runs until its input ends.
    let script = r#"echo "$0" | systemd-cat -t planted; read -r line || true"#;
    let mut runs = world
        .command(&[
            "node", "exec", "-i", machine, "--", "sh", "-c", script, &key,
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot start windlass")?;
    let seen = until("the planted key is seen among arguments", PATIENCE, || {
        let mut processes = Processes::default();
        processes.look()?;
        let found = leaks(&canaries, processes.places());
        Ok(found
            .iter()
            .any(|leak| leak.place == "arguments of sh")
            .then_some(found))
    });
    drop(runs.stdin.take());
    let ended = runs.wait()?;
    seen?;
    ensure!(ended.success(), "the command that leaks ended with {ended}");
    let found = leaks(&canaries, &all(world, cluster, machines)?);
    for place in [
        &format!("the journal of {machine}"),
        "GET /v1/audit?limit=1000",
    ] {
        ensure!(
            found.iter().any(|leak| leak.place == *place),
            "not found in {place}, but: {}",
            told(&found)
        );
    }
    let blotted = found.iter().all(|leak| leak.place != "the bundle");
    ensure!(blotted, "the bundle has a private key: {}", told(&found));
    Ok(())
}
