//! Machines that are set aside: seen through the trait, and what the local provider does when it is cut off.

use std::time::Duration;

use anyhow::{Context, ensure};
use windlass_common::id::{DiskName, Incarnation, MachineName};
use windlass_director::provider::{
    KeptView, MachineView, Power, ProviderError, ProviderFuture, SetAside,
};

use crate::rig::Rig;

/// All of them.
#[rustfmt::skip] // one case per line, so that a missing one shows
pub(crate) const CASES: &[crate::Case] = &[
    ("a_machine_is_set_aside_and_counts_for_nothing", set_aside),
    ("a_machine_that_cannot_be_set_aside_stays", refused),
    ("setting_aside_goes_on_after_it_was_cut_off", cut_off),
];

fn request(machine: &MachineView, kept: &str) -> anyhow::Result<SetAside> {
    Ok(SetAside {
        machine: machine.name.clone(),
        incarnation: machine.incarnation,
        kept: MachineName::new(kept)?,
        notes: [("reason".to_owned(), "it hangs".to_owned())].into(),
    })
}

fn is_conflict(answer: &Result<Option<KeptView>, ProviderError>) -> bool {
    matches!(answer, Err(ProviderError::Conflict { .. }))
}

fn kept(rig: &Rig) -> anyhow::Result<Vec<KeptView>> {
    Ok(rig.wait(rig.provider().kept_machines())?)
}

/// Its disk, its address and its name are free, and what it had on its root is as it was.
fn set_aside(rig: &Rig) -> anyhow::Result<()> {
    let provider = rig.provider();
    let (disk, machine) = (DiskName::new("d1")?, rig.booted(10)?);
    rig.wait(provider.create_disk(&disk, 64 << 20))?;
    let attached = rig.wait(provider.attach_disk(&machine.name, &disk))?;
    let device = attached.device.display();
    rig.says(
        &machine.name,
        &format!("mkfs.ext4 -q {device} && mount {device} /mnt && echo proof > /root/file && sync"),
    )?;
    rig.wait(provider.stop_machine(&machine.name, Duration::ZERO))?;
    let order = request(&machine, "kept-1")?;
    let Some(view) = rig.wait(provider.set_aside(order.clone()))? else {
        // A platform that cannot do it has changed nothing.
        ensure!(rig.wait(provider.machine(&machine.name))?.is_some());
        return Ok(());
    };
    ensure!(
        view.name == order.kept && view.machine == machine.name && view.notes == order.notes,
        "{view:?}"
    );
    ensure!(view.incarnation == machine.incarnation && view.created_at == machine.created_at);
    ensure!(rig.wait(provider.machine(&machine.name))?.is_none());
    ensure!(rig.wait(provider.machines())?.is_empty());
    let power = rig.wait(provider.power(&machine.name, machine.incarnation))?;
    ensure!(power.power.is_none(), "{power:?}");
    let disks = rig.wait(provider.disks())?;
    ensure!(disks.iter().all(|d| d.attached_to.is_none()), "{disks:?}");
    // Neither of its names starts it.
    for name in [&machine.name, &order.kept] {
        let started = rig.wait(provider.start_machine(name));
        ensure!(
            matches!(started, Err(ProviderError::NotFound { .. })),
            "{started:?}"
        );
    }

    let mut successor = rig.request(10)?;
    successor.incarnation = Incarnation(2);
    let born = rig.wait(provider.create_machine(successor.clone()))?;
    rig.wait(provider.attach_disk(&born.name, &disk))?;
    rig.until_up(&born.name)?;
    ensure!(rig.says(&born.name, "cat /root/file 2>&1 || true")? != "proof");
    // Asked again, since the answer was lost: its successor is not touched.
    let again = rig.wait(provider.set_aside(order.clone()))?;
    ensure!(again.as_ref() == Some(&view), "{again:?}");
    let seen = rig.wait(provider.machine(&born.name))?;
    ensure!(seen.is_some_and(|seen| seen.power == Power::Running));
    ensure!(kept(rig)?.iter().eq([&view]));
    // Its name is not given to another.
    rig.wait(provider.stop_machine(&born.name, Duration::ZERO))?;
    let clash = rig.wait(provider.set_aside(request(&born, "kept-1")?));
    ensure!(is_conflict(&clash), "{clash:?}");

    for _ in 0..2 {
        rig.wait(provider.delete_kept(&order.kept))?;
        ensure!(kept(rig)?.is_empty());
    }
    ensure!(rig.wait(provider.machine(&born.name))?.is_some());
    Ok(())
}

fn refused(rig: &Rig) -> anyhow::Result<()> {
    let provider = rig.provider();
    let machine = rig.booted(10)?;
    let order = request(&machine, "kept-1")?;
    let running = rig.wait(provider.set_aside(order.clone()));
    if let Ok(None) = running {
        return Ok(());
    }
    ensure!(is_conflict(&running), "{running:?}");
    let seen = rig.wait(provider.machine(&machine.name))?;
    ensure!(seen.is_some_and(|seen| seen.power == Power::Running));
    rig.wait(provider.stop_machine(&machine.name, Duration::ZERO))?;
    let mut other = order.clone();
    other.incarnation = Incarnation(7);
    let other = rig.wait(provider.set_aside(other));
    ensure!(is_conflict(&other), "{other:?}");
    let mut missing = order;
    missing.machine = MachineName::new("missing")?;
    let call: ProviderFuture<'_, _> = provider.set_aside(missing);
    let missing = rig.wait(call);
    ensure!(
        matches!(missing, Err(ProviderError::NotFound { .. })),
        "{missing:?}"
    );
    ensure!(kept(rig)?.is_empty());
    rig.wait(provider.start_machine(&machine.name))?;
    rig.until_up(&machine.name)
}

/// The mark is written, and the machine is not moved yet: that is what a crash leaves. Another provider goes on.
fn cut_off(rig: &Rig) -> anyhow::Result<()> {
    let machine = rig.booted(10)?;
    rig.says(&machine.name, "echo proof > /root/file; sync")?;
    rig.wait(rig.provider().stop_machine(&machine.name, Duration::ZERO))?;
    let order = request(&machine, "kept-1")?;
    let view = rig.wait(rig.provider().set_aside(order.clone()))?;
    let place = std::path::PathBuf::from(view.context("the local one keeps machines")?.place);
    std::fs::rename(&place, rig.machine_dir(&machine.name))?;
    ensure!(kept(rig)?.is_empty());

    let after = rig.restarted()?;
    let seen = after.wait(after.provider().machine(&machine.name))?;
    ensure!(seen.is_some_and(|seen| seen.power == Power::Stopped && seen.complete));
    let view = after.wait(after.provider().set_aside(order.clone()))?;
    let view = view.context("the local one keeps machines")?;
    let found = std::fs::read_to_string(place.join("upper/root/file"))?;
    ensure!(found == "proof\n", "{found}");
    ensure!(kept(&after)? == [view]);
    // A removal that was cut off is seen, and goes on.
    std::fs::remove_dir_all(place.join("upper"))?;
    std::fs::remove_file(place.join("kept.json"))?;
    let left = kept(&after)?;
    ensure!(left.len() == 1 && left[0].name == order.kept, "{left:?}");
    after.wait(after.provider().delete_kept(&order.kept))?;
    ensure!(kept(rig)?.is_empty() && !place.exists());
    Ok(())
}
