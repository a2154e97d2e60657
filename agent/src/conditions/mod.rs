//! Conditions: looks at what units cannot show, and says what is not as it should be.
//!
//! Every five seconds each thing is looked at, all at once, each with a limit. What fails for fifteen seconds in
//! every look is bad. A change is published at once, and all of it every half minute. With it goes how much of each file
//! system is used.
//!
//! # Invariants
//! * Only what the machine is told to run is asked: a kubelet that should not run is not missed.
//! * What is the host's says so ([`Scope`]).
//!
//! # After a crash
//! Nothing is kept: what is bad is found again after fifteen seconds.
//!
//! # Not here
//! What a bad condition means: the director decides.

mod answers;
mod disks;
mod kernel;
mod pressure;
mod track;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use windlass_common::condition::{
    CNI, CONDITIONS_MAX, CONTAINERD, Conditions, ETCD, ETCD_ALARM, KUBELET, LOOK_INTERVAL_MS,
    LOOK_LIMIT_MS,
};
use windlass_common::report::{FileSystem, FileSystems, Scope};

use crate::host::Host;
use crate::report::now_unix_ms;
use crate::steps::blocking;
use crate::units::watch::Watched;

use self::disks::Found;
use self::kernel::KernelLog;
use self::track::{Look, Seen, Tracks};

/// All is said again after this long, changed or not, so that its age says something.
const AGAIN: Duration = Duration::from_secs(30);

/// Looks until the sender of `watched` is gone; publishes to `conditions`, and what is used to `file_systems`.
pub(crate) async fn run(
    host: Host,
    watched: watch::Receiver<Watched>,
    conditions: watch::Sender<Arc<Conditions>>,
    file_systems: watch::Sender<Arc<FileSystems>>,
) {
    let mut tracks = Tracks::default();
    let mut kernel = KernelLog::open(&host);
    let mut said = Instant::now();
    let mut ticks = interval(Duration::from_millis(LOOK_INTERVAL_MS.into()));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if watched.has_changed().is_err() {
            return;
        }
        let wanted = watched.borrow().clone();
        let mut looks = answers(&host, &wanted).await;
        if let Some(log) = &mut kernel {
            looks.push(log.look());
        }
        let files = files(&host).await;
        looks.extend(files.looks);
        looks.truncate(CONDITIONS_MAX);
        let now = Conditions {
            at_unix_ms: now_unix_ms(),
            conditions: tracks.take(looks, now_unix_ms()),
        };
        let used = FileSystems {
            at_unix_ms: now.at_unix_ms,
            file_systems: files.file_systems,
        };
        let known = !used.file_systems.is_empty();
        let others = known && !same(&file_systems.borrow().file_systems, &used.file_systems);
        if others || differs(&conditions.borrow(), &now) || said.elapsed() >= AGAIN {
            said = Instant::now();
            conditions.send_replace(Arc::new(now));
            // The last word on those that cannot be looked at grows old, and its age shows.
            if known {
                file_systems.send_replace(Arc::new(used));
            }
        }
    }
}

/// Whether somebody who acts on states would act otherwise.
fn differs(old: &Conditions, new: &Conditions) -> bool {
    let states = |all: &Conditions| -> Vec<_> {
        let all = all.conditions.iter();
        all.map(|c| (c.name.clone(), c.subject.clone(), c.state))
            .collect()
    };
    states(old) != states(new)
}

/// Whether they are the same file systems of the same owners, however full.
fn same(old: &[FileSystem], new: &[FileSystem]) -> bool {
    let which = |one: &FileSystem| (one.point.clone(), one.scope);
    old.iter().map(which).eq(new.iter().map(which))
}

/// Asks every program that should run for an answer.
async fn answers(host: &Host, wanted: &Watched) -> Vec<Look> {
    let runs = |unit: &str| wanted.get(unit) == Some(&true);
    let kubelet = async {
        if !runs("kubelet.service") {
            return Vec::new();
        }
        let seen = limited(answers::kubelet()).await;
        vec![look(KUBELET, "GET http://127.0.0.1:10248/healthz", seen)]
    };
    let containerd = async {
        if !runs("containerd.service") {
            return Vec::new();
        }
        let network = async {
            match timeout(limit(), answers::network(host)).await {
                Ok(seen) => seen,
                Err(_) => Seen::Unknown(too_slow()),
            }
        };
        let (itself, network) = tokio::join!(limited(answers::containerd(host)), network);
        let source = |call: &str| format!("{call} at /run/containerd/containerd.sock");
        vec![
            look(CONTAINERD, &source("Version"), itself),
            look(CNI, &source("CRI's Status"), network),
        ]
    };
    let etcd = async {
        if !runs("etcd.service") {
            return Vec::new();
        }
        let source = "GET https://127.0.0.1:2379/health?serializable=true";
        let asked = timeout(limit(), answers::etcd(host)).await;
        let (member, alarm) = match asked {
            Ok(health) => answers::of_etcd(health),
            Err(_) => (Seen::Bad(too_slow()), Seen::Unknown(too_slow())),
        };
        vec![look(ETCD, source, member), look(ETCD_ALARM, source, alarm)]
    };
    let (kubelet, containerd, etcd) = tokio::join!(kubelet, containerd, etcd);
    [kubelet, containerd, etcd].concat()
}

fn look(name: &'static str, source: &str, seen: Seen) -> Look {
    Look {
        name,
        subject: String::new(),
        source: source.to_owned(),
        scope: Scope::Machine,
        seen,
    }
}

fn limit() -> Duration {
    Duration::from_millis(LOOK_LIMIT_MS.into())
}

fn too_slow() -> String {
    format!("no answer within {LOOK_LIMIT_MS} ms")
}

async fn limited(asked: impl Future<Output = Result<String, String>>) -> Seen {
    match timeout(limit(), asked).await {
        Ok(Ok(says)) => Seen::Good(says),
        Ok(Err(why)) => Seen::Bad(why),
        Err(_) => Seen::Bad(too_slow()),
    }
}

/// Looks at file systems and at what the kernel counts, off the loop: one whose server hangs would hold up everything.
async fn files(host: &Host) -> Found {
    let of = host.clone();
    let look = move || {
        let mut found = disks::look(&of);
        found.looks = [pressure::look(&of), found.looks].concat();
        Ok(found)
    };
    match timeout(limit(), blocking(look)).await {
        Ok(Ok(found)) => found,
        // The last word on them grows old, and its age shows.
        Ok(Err(_)) | Err(_) => {
            tracing::warn!("file systems cannot be looked at");
            Found::default()
        }
    }
}
