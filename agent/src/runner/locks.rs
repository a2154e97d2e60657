//! What a step touches, held by one step at a time.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use windlass_common::step::Step;

/// A thing on the machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Thing {
    /// A file, link, device or mount point, by path.
    Path(String),
    /// A systemd unit.
    Unit(String),
    /// The table of routes.
    Routes,
    /// A kernel parameter.
    Sysctl(String),
}

/// What a step touches; looking is not touching.
pub(super) fn of(step: &Step) -> BTreeSet<Thing> {
    let path = |path: &String| Thing::Path(path.clone());
    match step {
        Step::Fetch(fetch) => [Thing::Path(crate::host::Host::artifact_path(&fetch.digest))].into(),
        Step::Keys(keys) => keys.keys.iter().map(|key| path(&key.path)).collect(),
        Step::Configure(configure) => {
            let files = configure.files.iter().map(|file| path(&file.path));
            let routes = configure.routes.as_ref().map(|_| Thing::Routes);
            let sysctls = configure.sysctls.keys().cloned().map(Thing::Sysctl);
            files
                .chain(configure.links.keys().map(path))
                .chain(configure.absent.iter().map(path))
                .chain(routes)
                .chain(sysctls)
                .collect()
        }
        Step::Disk(disk) => [path(&disk.device), path(&disk.mount_path)].into(),
        Step::Service(service) => {
            let units = service.units.iter();
            units.map(|goal| Thing::Unit(goal.unit.clone())).collect()
        }
        Step::AgentUpgrade(_) => [Thing::Path(crate::steps::upgrade::PROGRAM.to_owned())].into(),
        // One at a time: each looks first, and acts on what it saw.
        Step::Etcd(_) | Step::EtcdData(_) => [Thing::Unit("etcd.service".to_owned())].into(),
        Step::Hold(hold) => [Thing::Unit(hold.unit.clone())].into(),
        // What it changes is the API's, not the machine's.
        Step::Gate(_) | Step::Collect(_) | Step::Exec(_) | Step::Evict(_) => BTreeSet::new(),
    }
}

/// Which things are held. Clones are the same locks.
#[derive(Debug, Clone, Default)]
pub(super) struct Locks(Arc<State>);

#[derive(Debug, Default)]
struct State {
    held: Mutex<BTreeSet<Thing>>,
    freed: Notify,
}

/// Things held; freed when dropped.
#[derive(Debug)]
pub(super) struct Held {
    locks: Locks,
    things: BTreeSet<Thing>,
}

impl Locks {
    /// Waits until none of the things is held and takes all of them at once, so that two steps never
    /// wait for one another.
    pub(super) async fn acquire(&self, things: BTreeSet<Thing>) -> Held {
        loop {
            // Registered before looking, so that a release in between is not missed.
            let freed = self.0.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            {
                let mut held = self.held();
                if held.is_disjoint(&things) {
                    held.extend(things.iter().cloned());
                    return Held {
                        locks: self.clone(),
                        things,
                    };
                }
            }
            freed.await;
        }
    }

    fn held(&self) -> MutexGuard<'_, BTreeSet<Thing>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = self.locks.held();
        held.retain(|thing| !self.things.contains(thing));
        drop(held);
        self.locks.0.freed.notify_waiters();
    }
}
