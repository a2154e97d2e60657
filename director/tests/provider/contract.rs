//! What every provider has to do, seen through the trait and in its machines. What it answers is in the cases that
//! others are run against, too (`shared.rs`).

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use windlass_common::id::{DiskName, Incarnation, MachineName};
use windlass_director::provider::{AttachedDisk, MachineView, Power, ProviderError, Severity};

use crate::rig::{BOOT_LIMIT, Rig, until};

/// All of them.
#[rustfmt::skip] // one case per line, so that a missing one shows
pub(crate) const CASES: &[crate::Case] = &[
    ("preflight_finds_nothing_fatal", preflight),
    ("create_and_delete_converge", create_and_delete),
    ("bad_requests_change_nothing", bad_requests),
    ("stop_start_reboot_converge", power),
    ("a_reboot_from_inside_comes_back", reboot_from_inside),
    ("a_power_off_from_inside_stays_off", power_off_from_inside),
    ("settings_are_replaced_in_a_machine_that_runs", new_settings),
    ("machines_talk_over_the_network", talk),
    ("many_machines_are_made_at_once", many_at_once),
    ("a_disk_has_one_holder_and_keeps_its_data", disks),
];

fn missing() -> anyhow::Result<MachineName> {
    Ok(MachineName::new("missing")?)
}

fn preflight(rig: &Rig) -> anyhow::Result<()> {
    let faults = rig.wait(rig.provider().preflight());
    let fatal: Vec<String> = faults
        .iter()
        .filter(|f| f.severity == Severity::Fatal)
        .map(|f| f.to_string())
        .collect();
    ensure!(fatal.is_empty(), "{fatal:#?}");
    Ok(())
}

fn create_and_delete(rig: &Rig) -> anyhow::Result<()> {
    let provider = rig.provider();
    let request = rig.request(10)?;
    ensure!(rig.wait(provider.machine(&request.name))?.is_none());
    rig.wait(provider.delete_machine(&request.name))
        .context("deleting what is not there")?;
    let view = rig.wait(provider.create_machine(request.clone()))?;
    ensure!(
        view.power == Power::Running && view.complete && view.boots == 1,
        "{view:?}"
    );
    ensure!(
        view.address == request.address && view.tags == request.tags,
        "{view:?}"
    );
    let again = rig.wait(provider.create_machine(request.clone()))?;
    ensure!(
        again == view,
        "a second create gives {again:?} instead of {view:?}"
    );
    ensure!(rig.wait(provider.machine(&request.name))? == Some(view.clone()));
    ensure!(rig.wait(provider.machines())? == [view]);
    let mut reborn = request.clone();
    reborn.incarnation = Incarnation(2);
    let refused = rig.wait(provider.create_machine(reborn.clone()));
    ensure!(
        matches!(refused, Err(ProviderError::Conflict { .. })),
        "{refused:?}"
    );
    let mut taken = rig.request(11)?;
    taken.address = request.address;
    let refused = rig.wait(provider.create_machine(taken));
    ensure!(
        matches!(refused, Err(ProviderError::Conflict { .. })),
        "{refused:?}"
    );

    let settings = rig.says(
        &request.name,
        "stat -c %a /etc/windlass/settings.json; cat /etc/windlass/settings.json",
    )?;
    ensure!(settings == "600\nsettings of 10", "{settings}");
    ensure!(rig.says(&request.name, "cat /proc/sys/kernel/hostname")? == request.hostname.as_str());

    rig.wait(provider.delete_machine(&request.name))?;
    rig.wait(provider.delete_machine(&request.name))?;
    ensure!(rig.wait(provider.machine(&request.name))?.is_none());
    ensure!(rig.wait(provider.machines())?.is_empty());
    let view = rig
        .wait(provider.create_machine(reborn.clone()))
        .context("rebirth")?;
    ensure!(view.incarnation == Incarnation(2));
    rig.wait(provider.delete_machine(&reborn.name))?;
    Ok(())
}

fn bad_requests(rig: &Rig) -> anyhow::Result<()> {
    let provider = rig.provider();
    let network = provider.network();
    let mut cases = Vec::new();
    for reserved in network.reserved {
        let mut request = rig.request(10)?;
        request.address = reserved;
        cases.push(request);
    }
    let mut request = rig.request(10)?;
    request.address = [192, 0, 2, 1].into();
    cases.push(request);
    let mut request = rig.request(10)?;
    request.size.memory_bytes = 1;
    cases.push(request);
    let mut request = rig.request(10)?;
    request.size.disk_bytes = u64::MAX;
    cases.push(request);
    let mut request = rig.request(10)?;
    request.stemcell = "/no/such/stemcell".into();
    cases.push(request);
    for request in cases {
        let shown = format!("{request:?}");
        let refused = rig.wait(provider.create_machine(request));
        ensure!(
            matches!(refused, Err(ProviderError::Invalid { .. })),
            "{shown} gives {refused:?}"
        );
        ensure!(
            rig.wait(provider.machines())?.is_empty(),
            "{shown} left a machine"
        );
    }
    let gone = missing()?;
    let second = Duration::from_secs(1);
    for refused in [
        rig.wait(provider.stop_machine(&gone, second)).err(),
        rig.wait(provider.start_machine(&gone)).err(),
        rig.wait(provider.reboot_machine(&gone, second)).err(),
    ] {
        ensure!(
            matches!(refused, Some(ProviderError::NotFound { .. })),
            "{refused:?}"
        );
    }
    Ok(())
}

fn power(rig: &Rig) -> anyhow::Result<()> {
    let provider = rig.provider();
    let machine = rig.booted(10)?;
    rig.says(&machine.name, "echo kept > /root/file; sync")?;
    let before = rig.says(&machine.name, "cat /etc/machine-id")?;
    for grace in [Duration::from_secs(60), Duration::ZERO] {
        let began = Instant::now();
        let view = rig.wait(provider.stop_machine(&machine.name, grace))?;
        ensure!(view.power == Power::Stopped, "{view:?}");
        ensure!(
            began.elapsed() < Duration::from_secs(50),
            "a stop took the whole grace"
        );
        let again = rig.wait(provider.stop_machine(&machine.name, grace))?;
        ensure!(again == view, "{again:?}");
        ensure!(rig.wait(provider.machine(&machine.name))? == Some(view.clone()));
        let up = rig.wait(provider.start_machine(&machine.name))?;
        ensure!(
            up.power == Power::Running && up.boots == view.boots + 1,
            "{up:?}"
        );
        let again = rig.wait(provider.start_machine(&machine.name))?;
        ensure!(again == up, "{again:?}");
        rig.until_up(&machine.name)?;
    }
    for grace in [Duration::from_secs(60), Duration::ZERO] {
        let before = rig
            .wait(provider.machine(&machine.name))?
            .context("it is gone")?;
        let view = rig.wait(provider.reboot_machine(&machine.name, grace))?;
        ensure!(
            view.power == Power::Running && view.boots == before.boots + 1,
            "{view:?}"
        );
        rig.until_up(&machine.name)?;
    }
    ensure!(rig.says(&machine.name, "cat /root/file")? == "kept");
    ensure!(rig.says(&machine.name, "cat /etc/machine-id")? == before);
    rig.wait(provider.stop_machine(&machine.name, Duration::ZERO))?;
    let view = rig.wait(provider.reboot_machine(&machine.name, Duration::ZERO))?;
    ensure!(
        view.power == Power::Running,
        "the reboot of a stopped machine gives {view:?}"
    );
    Ok(())
}

fn reboot_from_inside(rig: &Rig) -> anyhow::Result<()> {
    let machine = rig.booted(10)?;
    rig.says(&machine.name, "echo kept > /root/file")?;
    let first = rig.init(&machine.name)?;
    // The connection may be cut before the command returns.
    let _ = rig.inside(&machine.name, "systemctl reboot");
    until(BOOT_LIMIT, "a second boot", || {
        let view = rig.wait(rig.provider().machine(&machine.name)).ok()??;
        (view.boots == 2 && view.power == Power::Running).then_some(())
    })?;
    until(BOOT_LIMIT, "another init process", || {
        rig.init(&machine.name).ok().filter(|p| *p != first)
    })?;
    rig.until_up(&machine.name)?;
    ensure!(rig.says(&machine.name, "cat /root/file")? == "kept");
    Ok(())
}

fn power_off_from_inside(rig: &Rig) -> anyhow::Result<()> {
    let machine = rig.booted(10)?;
    let _ = rig.inside(&machine.name, "systemctl poweroff");
    let look = || {
        rig.wait(rig.provider().machine(&machine.name))
            .ok()
            .flatten()
    };
    until(BOOT_LIMIT, "the machine to be off", || {
        look().filter(|v| v.power == Power::Stopped)
    })?;
    // Each look would also start a machine that ought to run: none of these may.
    for _ in 0..5 {
        let view = look().context("it is gone")?;
        ensure!(view.power == Power::Stopped && view.boots == 1, "{view:?}");
    }
    let view = rig.wait(rig.provider().start_machine(&machine.name))?;
    ensure!(view.power == Power::Running && view.boots == 2, "{view:?}");
    rig.until_up(&machine.name)
}

fn new_settings(rig: &Rig) -> anyhow::Result<()> {
    let provider = rig.provider();
    let machine = rig.booted(10)?;
    let place = |incarnation, text: &[u8]| {
        rig.wait(provider.place_settings(&machine.name, incarnation, text.to_vec()))
    };
    // A provider that cannot says so, and changes nothing.
    let can = place(Incarnation::FIRST, b"new settings")?;
    let held = |script: &str| rig.says(&machine.name, script);
    let text = held("cat /etc/windlass/settings.json")?;
    ensure!(
        text == if can {
            "new settings"
        } else {
            "settings of 10"
        }
    );
    ensure!(held("stat -c '%a %U' /etc/windlass/settings.json")? == "600 root");
    if !can {
        return Ok(());
    }
    let other = place(Incarnation(2), b"of another");
    ensure!(
        matches!(other, Err(ProviderError::Conflict { .. })),
        "{other:?}"
    );
    let absent = rig.wait(provider.place_settings(&missing()?, Incarnation::FIRST, Vec::new()));
    ensure!(
        matches!(absent, Err(ProviderError::NotFound { .. })),
        "{absent:?}"
    );
    ensure!(held("cat /etc/windlass/settings.json")? == "new settings");
    // They are the machine's from then on, and nothing is written to one that is off.
    rig.wait(provider.stop_machine(&machine.name, Duration::ZERO))?;
    let off = place(Incarnation::FIRST, b"while off");
    ensure!(
        matches!(off, Err(ProviderError::Conflict { .. })),
        "{off:?}"
    );
    rig.wait(provider.start_machine(&machine.name))?;
    rig.until_up(&machine.name)?;
    ensure!(held("cat /etc/windlass/settings.json")? == "new settings");
    Ok(())
}

fn talk(rig: &Rig) -> anyhow::Result<()> {
    let (one, two) = (rig.booted(10)?, rig.booted(11)?);
    rig.says(&two.name, SERVER)?;
    let gateway = rig.provider().network().gateway;
    let script = format!("exec 3<>/dev/tcp/{}/7000; head -n1 <&3", two.address);
    let said = until(Duration::from_secs(20), "an answer", || {
        rig.says(&one.name, &script).ok()
    })?;
    ensure!(
        said == two.name.node_name(Incarnation::FIRST)?.as_str(),
        "{said}"
    );
    let routes = rig.says(&one.name, "ip route")?;
    ensure!(
        routes.contains(&format!("default via {gateway}")),
        "{routes}"
    );
    ensure!(routes.contains("prohibit 169.254.169.254"), "{routes}");
    ensure!(rig.says(&one.name, "cat /proc/sys/net/ipv4/ip_forward")? == "1");
    Ok(())
}

/// Answers each connection to port 7000 with the machine's name, in the background.
pub(crate) const SERVER: &str = r#"cat > /root/server <<'EOF'
use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalPort => 7000, Listen => 16, ReuseAddr => 1) or die $!;
open my $file, '<', '/proc/sys/kernel/hostname'; my $name = <$file>;
while (my $client = $server->accept) { print $client $name; close $client; }
EOF
systemd-run --quiet --unit=server perl /root/server"#;

fn many_at_once(rig: &Rig) -> anyhow::Result<()> {
    let provider = rig.provider();
    let requests = (10..16)
        .map(|n| rig.request(n))
        .collect::<Result<Vec<_>, _>>()?;
    let began = Instant::now();
    let made = rig.wait(futures_util::future::join_all(
        requests.iter().map(|r| provider.create_machine(r.clone())),
    ));
    let elapsed = began.elapsed();
    let made: Vec<_> = made.into_iter().collect::<Result<_, _>>()?;
    eprintln!("6 machines made at once in {} ms", elapsed.as_millis());
    ensure!(made.iter().all(|m| m.power == Power::Running));
    let mut listed = rig.wait(provider.machines())?;
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    ensure!(listed == made, "{listed:#?}");
    for result in rig.wait(futures_util::future::join_all(
        requests.iter().map(|r| provider.delete_machine(&r.name)),
    )) {
        result?;
    }
    ensure!(rig.wait(provider.machines())?.is_empty());
    Ok(())
}

fn disks(rig: &Rig) -> anyhow::Result<()> {
    let provider = rig.provider();
    let (disk, bytes) = (DiskName::new("d1")?, 64 * 1024 * 1024);
    let (one, two) = (rig.booted(10)?, rig.booted(11)?);
    rig.wait(provider.create_disk(&disk, bytes))?;
    let attached = rig.wait(provider.attach_disk(&one.name, &disk))?;
    let device = attached.device.display().to_string();
    let size = rig.says(&one.name, &format!("blockdev --getsize64 {device}"))?;
    ensure!(size == bytes.to_string(), "{size}");
    rig.says(
        &one.name,
        &format!("mkfs.ext4 -q {device} && mount {device} /mnt && echo data > /mnt/file && sync"),
    )?;
    disk_grows(rig, &one, &attached, bytes)?;
    let busy = rig.wait(provider.detach_disk(&one.name, &disk));
    ensure!(
        matches!(busy, Err(ProviderError::DiskBusy { .. })),
        "{busy:?}"
    );

    disk_moves(rig, &one, &two, &attached)
}

/// A machine that has it mounted sees the new size at once, and the data is as it was.
fn disk_grows(
    rig: &Rig,
    one: &MachineView,
    attached: &AttachedDisk,
    bytes: u64,
) -> anyhow::Result<()> {
    let (provider, disk) = (rig.provider(), DiskName::new("d1")?);
    let device = attached.device.display();
    for _ in 0..2 {
        let grown = rig.wait(provider.grow_disk(&disk, 2 * bytes))?;
        ensure!(grown.bytes == 2 * bytes && grown.attached_to.as_ref() == Some(&one.name));
        ensure!(rig.wait(provider.disks())? == [grown]);
        let size = rig.says(&one.name, &format!("blockdev --getsize64 {device}"))?;
        ensure!(size == (2 * bytes).to_string(), "{size}");
    }
    ensure!(rig.says(&one.name, "cat /mnt/file")? == "data");
    for wrong in [bytes, 2 * bytes - 4096, 2 * bytes + 1, u64::MAX] {
        let refused = rig.wait(provider.grow_disk(&disk, wrong));
        ensure!(
            matches!(refused, Err(ProviderError::Invalid { .. })),
            "{wrong}: {refused:?}"
        );
    }
    let absent = rig.wait(provider.grow_disk(&DiskName::new("d2")?, bytes));
    ensure!(
        matches!(absent, Err(ProviderError::NotFound { .. })),
        "{absent:?}"
    );
    // What is on it grows when it is told to.
    let grow = format!(
        "umount /mnt && e2fsck -f -p {device} >/dev/null; resize2fs {device} && mount {device} /mnt"
    );
    rig.says(&one.name, &grow)?;
    let larger = "test $(stat -f -c %b /mnt) -gt $((100 * 1024 * 1024 / $(stat -f -c %S /mnt))) && cat /mnt/file";
    ensure!(rig.says(&one.name, larger)? == "data");
    Ok(())
}

/// The data is there after a reboot, on another machine, after the death of its holder.
fn disk_moves(
    rig: &Rig,
    one: &MachineView,
    two: &MachineView,
    attached: &AttachedDisk,
) -> anyhow::Result<()> {
    let (provider, disk) = (rig.provider(), DiskName::new("d1")?);
    let device = attached.device.display();
    rig.wait(provider.reboot_machine(&one.name, Duration::from_secs(60)))?;
    rig.until_up(&one.name)?;
    let read = format!("mount {device} /mnt && cat /mnt/file && umount /mnt");
    ensure!(rig.says(&one.name, &read).context("after a reboot")? == "data");
    rig.wait(provider.detach_disk(&one.name, &disk))?;
    rig.wait(provider.detach_disk(&one.name, &disk))
        .context("detaching twice")?;
    ensure!(rig.says(&one.name, &format!("test -e {device} || echo none"))? == "none");

    rig.wait(provider.attach_disk(&two.name, &disk))?;
    ensure!(rig.says(&two.name, &read).context("on another machine")? == "data");
    rig.says(&two.name, &format!("mount {device} /mnt"))?;
    rig.wait(provider.delete_machine(&two.name))
        .context("with the disk mounted")?;
    let disks = rig.wait(provider.disks())?;
    ensure!(
        disks.len() == 1 && disks[0].attached_to.is_none(),
        "{disks:?}"
    );

    // A machine that is off gets its disk with the power.
    rig.wait(provider.stop_machine(&one.name, Duration::ZERO))?;
    rig.wait(provider.attach_disk(&one.name, &disk))?;
    rig.wait(provider.start_machine(&one.name))?;
    rig.until_up(&one.name)?;
    ensure!(rig.says(&one.name, &read).context("attached while off")? == "data");
    rig.wait(provider.detach_disk(&one.name, &disk))?;
    rig.wait(provider.delete_disk(&disk))?;
    ensure!(rig.wait(provider.disks())?.is_empty());
    Ok(())
}
