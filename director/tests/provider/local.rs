//! What the local provider has to do besides: monitors, leftovers, limits, seeds.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use windlass_common::fence::WATCHDOG;
use windlass_common::id::{ClusterName, DiskName, MachineName};
use windlass_director::provider::{EndpointRequest, MachineView, Power, ProviderError};

use crate::contract::SERVER;
use crate::rig::{BOOT_LIMIT, COPIED_FILE, Rig, SHARED_PART, tool, until};

/// All of them.
#[rustfmt::skip] // one case per line, so that a missing one shows
pub(crate) const CASES: &[crate::Case] = &[
    ("a_machine_survives_its_monitor", monitor_killed),
    ("an_adopted_machine_powers_off", adopted_power_off),
    ("a_monitor_that_hangs_does_not_keep_a_machine", monitor_hangs),
    ("a_killed_init_is_started_again", init_killed),
    ("a_watchdog_restarts_what_does_not_take_it_back", watchdog),
    ("a_frozen_machine_is_deleted", frozen),
    ("a_restarted_provider_finds_everything", restarted),
    ("a_create_cut_off_anywhere_converges", create_cut_off),
    ("a_reset_finds_what_has_lost_its_files", lost_files),
    ("a_machine_has_its_limits", limits),
    ("seeds_are_copied_or_shared_read_only", seeds),
    ("preflight_names_every_fault", preflight_faults),
    ("under_systemd_a_machine_outlives_the_service_that_made_it", systemd_scope),
    ("an_endpoint_passes_over_dead_machines", endpoint),
    ("an_endpoint_outlives_its_director_and_is_started_again", endpoint_restarts),
];

fn signal(pid: i32, signal: Signal) -> anyhow::Result<()> {
    Ok(kill(Pid::from_raw(pid), signal)?)
}

fn monitor(rig: &Rig, name: &MachineName) -> anyhow::Result<i32> {
    let text = std::fs::read_to_string(rig.machine_dir(name).join("monitor.lock"))?;
    Ok(text.trim().parse()?)
}

fn look(rig: &Rig, name: &MachineName) -> anyhow::Result<MachineView> {
    rig.wait(rig.provider().machine(name))?
        .context("the machine is gone")
}

/// Kills a machine's monitor and lets the provider find out.
fn replace_monitor(rig: &Rig, machine: &MachineView) -> anyhow::Result<()> {
    let (old, init) = (monitor(rig, &machine.name)?, rig.init(&machine.name)?);
    signal(old, Signal::SIGKILL)?;
    until(Duration::from_secs(10), "the monitor to end", || {
        // A zombie until its parent looks; it holds no lock any more.
        let stat = std::fs::read_to_string(format!("/proc/{old}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    })?;
    ensure!(
        rig.says(&machine.name, "echo alive")? == "alive",
        "the machine died with its monitor"
    );
    let view = look(rig, &machine.name)?;
    ensure!(view == *machine, "{view:?} instead of {machine:?}");
    ensure!(
        rig.init(&machine.name)? == init,
        "the machine was started again"
    );
    let new = monitor(rig, &machine.name)?;
    ensure!(new != old, "no new monitor");
    Ok(())
}

fn monitor_killed(rig: &Rig) -> anyhow::Result<()> {
    let machine = rig.booted(10)?;
    replace_monitor(rig, &machine)?;
    let first = rig.init(&machine.name)?;
    let _ = rig.inside(&machine.name, "systemctl reboot");
    until(BOOT_LIMIT, "another init process", || {
        rig.init(&machine.name).ok().filter(|pid| *pid != first)
    })?;
    rig.until_up(&machine.name)?;
    ensure!(look(rig, &machine.name)?.boots == 2);
    // Nor does a graceful stop need the first monitor.
    replace_monitor(rig, &look(rig, &machine.name)?)?;
    let view = rig.wait(rig.provider().stop_machine(&machine.name, BOOT_LIMIT))?;
    ensure!(view.power == Power::Stopped, "{view:?}");
    Ok(())
}

fn adopted_power_off(rig: &Rig) -> anyhow::Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let machine = rig.booted(10)?;
    replace_monitor(rig, &machine)?;
    let _ = rig.inside(&machine.name, "systemctl poweroff");
    if version < (6, 15) {
        // The kernel does not tell why: documented as a reboot.
        return until(BOOT_LIMIT, "a second boot", || {
            look(rig, &machine.name)
                .ok()
                .filter(|v| v.boots == 2)
                .map(|_| ())
        });
    }
    until(BOOT_LIMIT, "the machine to be off", || {
        look(rig, &machine.name)
            .ok()
            .filter(|v| v.power == Power::Stopped)
    })?;
    ensure!(look(rig, &machine.name)?.boots == 1);
    Ok(())
}

fn monitor_hangs(rig: &Rig) -> anyhow::Result<()> {
    let machine = rig.booted(10)?;
    signal(monitor(rig, &machine.name)?, Signal::SIGSTOP)?;
    rig.wait(rig.provider().delete_machine(&machine.name))?;
    ensure!(rig.wait(rig.provider().machines())?.is_empty());
    Ok(())
}

fn init_killed(rig: &Rig) -> anyhow::Result<()> {
    let machine = rig.booted(10)?;
    let first = rig.init(&machine.name)?;
    signal(first, Signal::SIGKILL)?;
    until(BOOT_LIMIT, "another init process", || {
        rig.init(&machine.name).ok().filter(|pid| *pid != first)
    })?;
    rig.until_up(&machine.name)?;
    ensure!(look(rig, &machine.name)?.boots == 2);
    Ok(())
}

fn watchdog(rig: &Rig) -> anyhow::Result<()> {
    let machine = rig.booted(10)?;
    let name = &machine.name;
    let tell = |lines: &str| rig.says(name, &format!("printf '{lines}' > {WATCHDOG}"));
    let boots = || Ok::<_, anyhow::Error>(look(rig, name)?.boots);
    // Whatever it says besides, what is taken back in time restarts nothing.
    tell("restart-in 1\\nhello\\noff\\n")?;
    let told = Instant::now();
    until(BOOT_LIMIT, "its time to be over", || {
        (told.elapsed() > Duration::from_secs(2)).then_some(())
    })?;
    ensure!(boots()? == 1, "it was taken back");
    let init = rig.init(name)?;
    tell("restart-in 1\\n")?;
    until(BOOT_LIMIT, "another init process", || {
        rig.init(name).ok().filter(|pid| *pid != init)
    })?;
    rig.until_up(name)?;
    ensure!(boots()? == 2);
    // A monitor that takes over hears the machine as the first did; an init that stands still says nothing more.
    replace_monitor(rig, &look(rig, name)?)?;
    let init = rig.init(name)?;
    tell("restart-in 1\\n")?;
    signal(init, Signal::SIGSTOP)?;
    until(BOOT_LIMIT, "another init process", || {
        rig.init(name).ok().filter(|pid| *pid != init)
    })?;
    rig.until_up(name)?;
    ensure!(boots()? == 3);
    let log = std::fs::read_to_string(rig.machine_dir(name).join("monitor.log"))?;
    let restarted = log.matches("did not take back").count();
    ensure!(restarted == 2, "restarted by it {restarted} times:\n{log}");
    Ok(())
}

fn frozen(rig: &Rig) -> anyhow::Result<()> {
    let machine = rig.booted(10)?;
    let group = format!("windlass-{}/{}", rig.config.name, machine.name);
    let v1 = format!("/sys/fs/cgroup/freezer/{group}/freezer.state");
    let v2 = format!("/sys/fs/cgroup/{group}/cgroup.freeze");
    let frozen = std::fs::write(&v1, "FROZEN").or_else(|_| std::fs::write(&v2, "1"));
    frozen.context("cannot freeze the machine")?;
    let init = rig.init(&machine.name)?;
    until(Duration::from_secs(10), "the machine to freeze", || {
        let state = std::fs::read_to_string(&v1).unwrap_or_default();
        let events = std::fs::read_to_string(format!("/sys/fs/cgroup/{group}/cgroup.events"));
        (state.trim() == "FROZEN" || events.unwrap_or_default().contains("frozen 1")).then_some(())
    })?;
    // Its init does not hear a graceful stop; the grace has to end, and the power be cut.
    let view = rig.wait(
        rig.provider()
            .stop_machine(&machine.name, Duration::from_millis(300)),
    )?;
    ensure!(view.power == Power::Stopped, "{view:?}");
    ensure!(!std::path::Path::new(&format!("/proc/{init}")).exists());
    rig.wait(rig.provider().delete_machine(&machine.name))?;
    Ok(())
}

fn restarted(rig: &Rig) -> anyhow::Result<()> {
    let (provider, disk) = (rig.provider(), DiskName::new("data")?);
    let (one, two) = (rig.booted(10)?, rig.booted(11)?);
    rig.wait(provider.create_disk(&disk, 64 << 20))?;
    rig.wait(provider.attach_disk(&one.name, &disk))?;
    let off = rig.wait(provider.stop_machine(&two.name, Duration::ZERO))?;
    let again = rig.restarted()?;
    let provider = again.provider();
    let found = again.wait(provider.machines())?;
    ensure!(found == [one.clone(), off], "{found:#?}");
    ensure!(again.wait(provider.disks())?[0].attached_to.as_ref() == Some(&one.name));
    ensure!(again.wait(provider.machine(&one.name))?.as_ref() == Some(&one));
    again.wait(provider.reboot_machine(&one.name, Duration::ZERO))?;
    again.until_up(&one.name)?;
    ensure!(again.says(&one.name, "test -b /dev/windlass/data && echo there")? == "there");
    again.wait(provider.delete_machine(&one.name))?;
    again.wait(provider.delete_machine(&two.name))?;
    Ok(())
}

/// A process like a director makes a machine and is killed in the middle, a little later each time.
fn create_cut_off(rig: &Rig) -> anyhow::Result<()> {
    let request = rig.request(10)?;
    let mut seen_half_made = false;
    for round in 0..24u64 {
        let mut maker = Command::new(&rig.config.director_exe)
            .arg("make-machine")
            .args([rig.config.dir.as_os_str(), rig.root.stemcell().as_os_str()])
            .args([&rig.config.name, &rig.config.cidr.to_string(), "10"])
            .stdin(Stdio::null())
            .spawn()?;
        // Not to wait for anything: to cut it off somewhere else each time.
        std::thread::sleep(Duration::from_millis(4 * round));
        maker.kill()?;
        maker.wait()?;
        let again = rig.restarted()?;
        let found = again.wait(again.provider().machines())?;
        ensure!(
            found.len() <= 1 && found.iter().all(|m| m.name == request.name),
            "{found:#?}"
        );
        seen_half_made |= found
            .iter()
            .any(|m| !m.complete || m.power == Power::Stopped);
        if round % 2 == 0 {
            let view = again.wait(again.provider().create_machine(request.clone()))?;
            ensure!(
                view.power == Power::Running && view.complete,
                "round {round}: {view:?}"
            );
            again
                .says(&request.name, "cat /etc/machine-id")
                .with_context(|| format!("{round}"))?;
        }
        again.wait(again.provider().delete_machine(&request.name))?;
        let left: Vec<String> = again.leftovers()?;
        let left: Vec<&String> = left
            .iter()
            .filter(|l| !l.starts_with("directory"))
            .collect();
        ensure!(left.is_empty(), "round {round} left {left:#?}");
    }
    ensure!(
        seen_half_made,
        "no round cut a create off in the middle: make the pauses finer"
    );
    Ok(())
}

fn lost_files(rig: &Rig) -> anyhow::Result<()> {
    let (machine, disk) = (rig.booted(10)?, DiskName::new("data")?);
    rig.wait(rig.provider().create_disk(&disk, 64 << 20))?;
    rig.wait(rig.provider().attach_disk(&machine.name, &disk))?;
    rig.says(
        &machine.name,
        "mkfs.ext4 -q /dev/windlass/data && mount /dev/windlass/data /mnt",
    )?;
    std::fs::remove_dir_all(&rig.config.dir)?;
    ensure!(
        !rig.leftovers()?.is_empty(),
        "nothing was there to be found"
    );
    let found = rig.wait(rig.provider().machines())?;
    ensure!(found.len() == 1 && !found[0].complete, "{found:?}");
    rig.wait(rig.restarted()?.provider().reset())?;
    Ok(())
}

fn limits(rig: &Rig) -> anyhow::Result<()> {
    let machine = rig.booted(10)?;
    let size = rig.request(10)?.size;
    let total = rig.says(&machine.name, "awk '/MemTotal/ {print $2}' /proc/meminfo")?;
    ensure!(total == (size.memory_bytes / 1024).to_string(), "{total}");
    let group = "/sys/fs/cgroup";
    let memory = rig.says(
        &machine.name,
        &format!("cat {group}/memory/memory.limit_in_bytes {group}/memory.max 2>/dev/null; true"),
    )?;
    ensure!(memory == size.memory_bytes.to_string(), "{memory}");
    let cpu = rig.says(
        &machine.name,
        &format!("cat {group}/cpu/cpu.cfs_quota_us {group}/cpu.max 2>/dev/null; true"),
    )?;
    let quota = (u64::from(size.cpu_millis) * 100).to_string();
    ensure!(
        cpu.split_whitespace().next() == Some(quota.as_str()),
        "{cpu}"
    );
    ensure!(
        rig.says(&machine.name, "tail -n +2 /proc/swaps")?
            .is_empty(),
        "swap shows"
    );
    let own = rig.says(&machine.name, "cat /proc/1/cgroup")?;
    ensure!(
        !own.contains("windlass"),
        "the machine sees the host's groups: {own}"
    );
    // More than its memory is not to be had, in a unit of its own: what comes from outside is not in
    // the machine's groups.
    let grab = |bytes: &str| {
        let script = format!("head -c {bytes} /dev/zero | tail -c {bytes} > /dev/null");
        let unit = "systemd-run --quiet --wait --property=TimeoutStopSec=5";
        rig.inside(
            &machine.name,
            &format!("{unit} bash -o pipefail -c '{script}' || exit 1"),
        )
    };
    let little = grab("20M")?;
    ensure!(little.status.success(), "{little:?}");
    ensure!(
        !grab("400M")?.status.success(),
        "a machine of 256 MiB takes 400"
    );
    Ok(())
}

fn seeds(rig: &Rig) -> anyhow::Result<()> {
    let (one, two) = (rig.booted(10)?, rig.booted(11)?);
    ensure!(rig.says(&one.name, &format!("cat {SHARED_PART}/file"))? == "from the stemcell");
    let refused = rig.inside(&one.name, &format!("echo x > {SHARED_PART}/file"))?;
    ensure!(
        !refused.status.success(),
        "the stemcell can be written through a machine"
    );
    rig.says(
        &one.name,
        &format!("echo mine > {COPIED_FILE} && echo x > /usr/new"),
    )?;
    ensure!(rig.says(&two.name, &format!("cat {COPIED_FILE}"))? == "copied");
    let original = rig.root.stemcell().join("rootfs").join(&COPIED_FILE[1..]);
    ensure!(
        std::fs::read_to_string(original)? == "copied",
        "the stemcell was written to"
    );
    // An overlay can be made there, as containerd does.
    rig.says(
        &one.name,
        "cd /var/lib/containerd && mkdir u w m && \
         mount -t overlay overlay -o lowerdir=shared/layer,upperdir=u,workdir=w m && cat m/file",
    )?;
    let kind = rig.says(&one.name, "stat -f -c %T /var/lib/kubelet")?;
    ensure!(!kind.contains("overlay"), "/var/lib/kubelet is on {kind}");
    Ok(())
}

/// What `preflight` of another process finds, run under `prefix`.
fn faults_of(
    rig: &Rig,
    prefix: &[&str],
    dir: &str,
    name: &str,
    cidr: &str,
) -> anyhow::Result<String> {
    let (program, arguments) = prefix.split_first().context("no program")?;
    tool(
        Command::new(program)
            .args(arguments)
            .arg(&rig.config.director_exe)
            .args(["show-preflight", dir, "/", name, cidr, "0"]),
    )
}

fn preflight_faults(rig: &Rig) -> anyhow::Result<()> {
    let machine = rig.wait(rig.provider().create_machine(rig.request(10)?))?;
    let (name, cidr) = (rig.config.name.clone(), rig.config.cidr.to_string());
    let dir = rig.config.dir.display().to_string();
    let parent = rig
        .config
        .dir
        .parent()
        .context("no parent")?
        .display()
        .to_string();
    let other = format!("{parent}/other");
    let free = "10.214.77.0/24";
    let fresh = format!("x{}", &name[1..]);
    let overlay = format!(
        "cd {parent} && mkdir -p l u w o && mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w o && \
         exec \"$@\""
    );
    let under_overlay = ["unshare", "-m", "sh", "-c", &overlay, "sh"];
    let nobody = ["setpriv", "--reuid=65534", "--clear-groups"];
    struct Case<'a> {
        subject: &'a str,
        message: &'a str,
        under: &'a [&'a str],
        dir: &'a str,
        name: &'a str,
        cidr: &'a str,
    }
    let plain: &[&str] = &["env"];
    let no_runc: &[&str] = &["env", "TEST_RUNC=/no-such-runc"];
    let on_overlay = format!("{parent}/o/data");
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        Case { subject: "",         message: "",             under: plain,          dir: &dir,        name: &name,  cidr: &cidr },
        Case { subject: "",         message: "",             under: plain,          dir: &other,      name: &fresh, cidr: free },
        Case { subject: "name:",    message: "belongs to",   under: plain,          dir: &other,      name: &name,  cidr: &cidr },
        Case { subject: "network:", message: "overlaps",     under: plain,          dir: &other,      name: &fresh, cidr: &cidr },
        Case { subject: "overlay:", message: "cannot mount", under: &under_overlay, dir: &on_overlay, name: &fresh, cidr: free },
        Case { subject: "user:",    message: "65534",        under: &nobody,        dir: &other,      name: &fresh, cidr: free },
        Case { subject: "runc:",    message: "no-such-runc", under: no_runc,        dir: &other,      name: &fresh, cidr: free },
    ];
    for Case {
        subject,
        message,
        under,
        dir,
        name,
        cidr,
    } in cases
    {
        let found = faults_of(rig, under, dir, name, cidr)?;
        if subject.is_empty() {
            ensure!(found.is_empty(), "{found}");
        } else if !found
            .lines()
            .any(|l| l.starts_with(subject) && l.contains(message))
        {
            bail!("no fault {subject:?} with {message:?} in {found:?}");
        }
    }
    ensure!(
        !std::path::Path::new(&other).exists(),
        "the preflight changed something"
    );
    names_are_kept(rig, &other)?;
    rig.wait(rig.provider().delete_machine(&machine.name))?;
    Ok(())
}

/// A machine of ours is a host that runs systemd: a service in it makes a machine of its own and ends.
fn systemd_scope(rig: &Rig) -> anyhow::Result<()> {
    let host = rig.booted(10)?;
    // On a disk, as the root of the host is an overlay.
    let inside = "/var/lib/kubelet";
    let outside = rig.machine_dir(&host.name).join("data").join(&inside[1..]);
    tool(
        Command::new("cp")
            .arg("-al")
            .arg(rig.root.stemcell())
            .arg(outside.join("stemcell")),
    )?;
    std::fs::copy(&rig.config.director_exe, outside.join("director"))?;
    let runc = tool(Command::new("sh").args(["-c", "command -v runc"]))?;
    std::fs::copy(runc.trim(), outside.join("runc"))?;
    let arguments = format!("{inside}/data {inside}/stemcell nested 10.216.0.0/24 10");
    let unit =
        format!("systemd-run --quiet --wait --pipe -E TEST_RUNC={inside}/runc --unit=director");
    rig.says(
        &host.name,
        &format!("{unit} {inside}/director make-machine {arguments}"),
    )?;
    rig.says(&host.name, "! systemctl is-active director.service")?;
    let machine = format!("{inside}/data/machines/m10");
    let groups = |file: &str| {
        rig.says(
            &host.name,
            &format!("cat /proc/$(cat {machine}/{file})/cgroup"),
        )
    };
    let monitor = groups("monitor.lock").context("the monitor is gone")?;
    ensure!(
        monitor.contains(".scope") && !monitor.contains("director.service"),
        "{monitor}"
    );
    let init = groups("init.pid").context("the machine is gone")?;
    ensure!(init.contains("/windlass-nested/m10"), "{init}");
    rig.says(
        &host.name,
        &format!("TEST_RUNC={inside}/runc {inside}/director remove-all {arguments}"),
    )?;
    until(Duration::from_secs(20), "the scope to end", || {
        let scopes = rig
            .says(&host.name, "systemctl list-units --type=scope --no-legend")
            .ok()?;
        (!scopes.contains("Windlass")).then_some(())
    })?;
    Ok(())
}

/// A provider works on its own name, and on nobody else's.
fn names_are_kept(rig: &Rig, other: &str) -> anyhow::Result<()> {
    let machine = rig.request(10)?.name;
    let mut config = rig.config.clone();
    config.dir = other.into();
    let thief = Rig::new(config, rig.root.clone())?;
    let taken = thief
        .wait(thief.provider().reset())
        .err()
        .context("a reset was not refused")?;
    ensure!(matches!(taken, ProviderError::Conflict { .. }), "{taken:?}");
    let taken = thief
        .wait(thief.provider().create_machine(rig.request(11)?))
        .err();
    ensure!(
        matches!(taken, Some(ProviderError::Conflict { .. })),
        "{taken:?}"
    );
    ensure!(rig.says(&machine, "echo alive")? == "alive");
    std::fs::remove_dir_all(other)?;
    // A bridge whose maker was killed before it marked it is its maker's all the same.
    let alias = format!("/sys/class/net/wl-{}/ifalias", rig.config.name);
    let mark = std::fs::read_to_string(&alias)?;
    std::fs::write(&alias, "\n")?;
    rig.wait(rig.restarted()?.provider().create_machine(rig.request(11)?))?;
    ensure!(
        std::fs::read_to_string(&alias)? == mark,
        "the bridge is still unmarked"
    );
    rig.wait(rig.provider().delete_machine(&rig.request(11)?.name))?;
    Ok(())
}

/// What is answered at an address: a line, or nothing when the connection is closed or refused.
fn ask(address: SocketAddr) -> Option<String> {
    let limit = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address, limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let answer = answer.trim().to_owned();
    (!answer.is_empty()).then_some(answer)
}

fn endpoint_request(rig: &Rig, backends: Vec<SocketAddr>) -> anyhow::Result<EndpointRequest> {
    let cluster = ClusterName::new("demo")?;
    Ok(EndpointRequest {
        cluster,
        address: rig.address(200),
        port: 6443,
        backends,
    })
}

fn endpoint(rig: &Rig) -> anyhow::Result<()> {
    let provider = rig.provider();
    let machines = [rig.booted(10)?, rig.booted(11)?, rig.booted(12)?];
    let mut backends: Vec<SocketAddr> = Vec::new();
    for machine in &machines[..2] {
        rig.says(&machine.name, SERVER)?;
        let address = SocketAddr::from((machine.address, 7000));
        until(Duration::from_secs(20), "a backend to answer", || {
            ask(address)
        })?;
        backends.push(address);
    }
    let mut request = endpoint_request(rig, backends)?;
    let mut taken = request.clone();
    taken.address = machines[0].address;
    let refused = rig.wait(provider.ensure_endpoint(taken));
    ensure!(
        matches!(refused, Err(ProviderError::Conflict { .. })),
        "{refused:?}"
    );

    let view = rig.wait(provider.ensure_endpoint(request.clone()))?;
    ensure!(view.running, "{view:?}");
    let address = SocketAddr::from((request.address, request.port));
    let mut answers: Vec<String> = (0..8).filter_map(|_| ask(address)).collect();
    ensure!(
        answers.len() == 8,
        "it listens, but answers only {answers:?}"
    );
    answers.sort();
    answers.dedup();
    ensure!(
        answers == ["m10-i1", "m11-i1"],
        "connections are not spread: {answers:?}"
    );
    let script = format!(
        "exec 3<>/dev/tcp/{}/{}; head -n1 <&3",
        request.address, request.port
    );
    let inside = rig
        .says(&machines[2].name, &script)
        .context("from a machine")?;
    ensure!(answers.contains(&inside), "{inside}");

    // The power of one is cut: not one connection from now on may fail.
    rig.wait(provider.stop_machine(&machines[0].name, Duration::ZERO))?;
    let until_moment = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until_moment {
        let answer = ask(address).context("a connection failed though one backend lives")?;
        ensure!(answer == "m11-i1", "{answer}");
    }
    request.backends.remove(1);
    rig.wait(provider.ensure_endpoint(request.clone()))?;
    until(
        Duration::from_secs(10),
        "the new backends to be taken over",
        || ask(address).is_none().then_some(()),
    )?;
    rig.wait(provider.start_machine(&machines[0].name))?;
    rig.until_up(&machines[0].name)?;
    rig.says(&machines[0].name, SERVER)?;
    let answer = until(
        Duration::from_secs(20),
        "the machine to be served again",
        || ask(address),
    )?;
    ensure!(answer == "m10-i1", "{answer}");
    Ok(())
}

/// A connection through `address` that ended up at `listener`: both of its ends.
fn connection_to(
    address: SocketAddr,
    listener: &TcpListener,
) -> anyhow::Result<(TcpStream, TcpStream)> {
    let limit = Some(Duration::from_secs(20));
    listener.set_nonblocking(true)?;
    // Different in each attempt of each call: what an earlier one sent may arrive late, at any listener.
    static ATTEMPTS: AtomicU8 = AtomicU8::new(0);
    let (client, mut server) = until(Duration::from_secs(20), "a connection to each", || {
        let attempt = ATTEMPTS.fetch_add(1, Ordering::Relaxed);
        let client = TcpStream::connect(address).ok()?;
        client.set_read_timeout(limit).ok()?;
        (&client).write_all(&[attempt]).ok()?;
        // Health checks connect as well, and say nothing.
        let moment = Instant::now() + Duration::from_millis(200);
        while Instant::now() < moment {
            let Ok((mut server, _)) = listener.accept() else {
                continue;
            };
            server.set_nonblocking(false).ok()?;
            server.set_read_timeout(limit).ok()?;
            let mut said = [0];
            if matches!(server.read(&mut said), Ok(1)) && said == [attempt] {
                return Some((client, server));
            }
        }
        None
    })?;
    server.write_all(b"!")?;
    Ok((client, server))
}

fn endpoint_restarts(rig: &Rig) -> anyhow::Result<()> {
    let provider = rig.provider();
    let (stays, leaves) = (
        TcpListener::bind("127.0.0.1:0")?,
        TcpListener::bind("127.0.0.1:0")?,
    );
    let backends = vec![stays.local_addr()?, leaves.local_addr()?];
    let mut request = endpoint_request(rig, backends.clone())?;
    rig.wait(provider.ensure_endpoint(request.clone()))?;
    let address = SocketAddr::from((request.address, request.port));
    // One open connection to each backend.
    let mut open = Vec::new();
    for listener in [&stays, &leaves] {
        open.push(connection_to(address, listener)?);
    }
    let mut byte = [0];
    for (client, _) in &mut open {
        client.read_exact(&mut byte)?;
    }

    // A restarted director changes the backends: what stays is left alone, what leaves may end its connections.
    let again = rig.restarted()?;
    let found = again.wait(again.provider().endpoints())?;
    ensure!(
        found.len() == 1 && found[0].running && found[0].backends == backends,
        "{found:?}"
    );
    request.backends.pop();
    again.wait(again.provider().ensure_endpoint(request.clone()))?;
    let log = rig.config.dir.join("endpoints/demo.log");
    until(Duration::from_secs(20), "the new backends in use", || {
        let said = std::fs::read_to_string(&log).ok()?;
        said.contains("backends are now").then_some(())
    })?;
    for (which, (client, server)) in ["stayed", "left"].iter().zip(&mut open) {
        server.write_all(b"!")?;
        client
            .read_exact(&mut byte)
            .with_context(|| format!("a connection to what {which} was cut"))?;
    }

    let lock = rig.config.dir.join("endpoints/demo.lock");
    let pid: i32 = std::fs::read_to_string(&lock)?.trim().parse()?;
    signal(pid, Signal::SIGKILL)?;
    // A process that is killed lets go of its connections before its lock, or after it.
    until(Duration::from_secs(20), "its death seen", || {
        let found = again.wait(again.provider().endpoints()).ok()?;
        (!found[0].running).then_some(())
    })?;
    for (client, _) in &mut open {
        let ended = match client.read(&mut byte) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        };
        ensure!(ended, "a connection outlived the endpoint");
    }
    let view = again.wait(again.provider().ensure_endpoint(request.clone()))?;
    ensure!(view.running, "{view:?}");
    TcpStream::connect(address).context("after it was started again")?;

    // Another port: the old one is no longer served.
    request.port = 7443;
    again.wait(again.provider().ensure_endpoint(request.clone()))?;
    ensure!(
        TcpStream::connect(address).is_err(),
        "the old port is still served"
    );
    TcpStream::connect(SocketAddr::from((request.address, request.port)))?;
    again.wait(again.provider().delete_endpoint(&request.cluster))?;
    again.wait(again.provider().delete_endpoint(&request.cluster))?;
    ensure!(again.wait(again.provider().endpoints())?.is_empty());
    Ok(())
}
