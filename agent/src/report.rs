//! What the agent says it observes: assembled here, published when it changed.
//!
//! # Invariants
//! * A change of a unit is published at once, usage when it moved noticeably (unless the director asks
//!   for less), and all of it once in 30 s, so that a report's age says something.
//! * A heartbeat costs no system call beyond the clock: it repeats what was last seen.
//!
//! # Not here
//! Sending ([`crate::link`]).

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use windlass_common::id::Epoch;
use windlass_common::report::{Heartbeat, Report, UnitReport, Vitals};
use windlass_common::wire::message::{Detail, Tune2};

use crate::host::Host;
use crate::steps::blocking;
use crate::units::watch::{States, Watched};
use crate::vitals::{Boot, Gauge};

/// A report is published at the latest after this long, changed or not.
const REPORT_AGE_MAX: Duration = Duration::from_secs(30);
/// Usage that moved by less than this, in hundredths of a percent, is no change.
const MOVED_BP: u64 = 200;
/// Load that moved by less than this, in hundredths, is no change.
const MOVED_LOAD_CENTI: u32 = 50;
/// Directory of the component switch: `<name>/current` links to `<version>`.
pub const COMPONENTS_DIR: &str = "/opt/windlass/components";

/// Assembles reports.
#[derive(Debug)]
pub struct Observer {
    host: Host,
    gauge: Gauge,
    boot: Boot,
    reports: watch::Sender<Arc<Report>>,
    seen: watch::Sender<Arc<Report>>,
}

impl Observer {
    /// An observer that has looked once; it publishes to the sender.
    pub fn new(host: &Host) -> (Self, watch::Receiver<Arc<Report>>) {
        let gauge = Gauge::new(host);
        let boot = gauge.boot();
        let report = assemble(&boot, gauge.look(), components(host), States::new());
        let report = Arc::new(report);
        let (seen, _) = watch::channel(Arc::clone(&report));
        let (reports, receiver) = watch::channel(report);
        let observer = Self {
            host: host.clone(),
            gauge,
            boot,
            reports,
            seen,
        };
        (observer, receiver)
    }

    /// Which boot this is.
    pub fn boot(&self) -> &Boot {
        &self.boot
    }

    /// What was seen last, published or not.
    pub fn seen(&self) -> watch::Receiver<Arc<Report>> {
        self.seen.subscribe()
    }

    /// Publishes until `states` closes; looks once in the tuned interval, when a unit changed, and when
    /// `changed` says that a step has changed something.
    pub async fn run(
        self,
        mut states: watch::Receiver<States>,
        mut tuned: watch::Receiver<Tune2>,
        mut changed: watch::Receiver<u64>,
    ) {
        let mut published = Instant::now();
        let mut looked = Instant::now();
        loop {
            let tune = *tuned.borrow_and_update();
            let next = looked + Duration::from_millis(tune.report_interval_ms.into());
            tokio::select! {
                changed = states.changed() => if changed.is_err() { return },
                changed = tuned.changed() => if changed.is_err() { return } else { continue },
                ended = changed.changed() => if ended.is_err() { return },
                () = sleep_until(next) => {}
            }
            looked = Instant::now();
            let units = states.borrow_and_update().clone();
            let Some(report) = self.look(units).await.map(Arc::new) else {
                continue;
            };
            self.seen.send_replace(Arc::clone(&report));
            let old = self.reports.borrow().clone();
            if differs(&old, &report, tune.detail) || published.elapsed() >= REPORT_AGE_MAX {
                published = Instant::now();
                self.reports.send_replace(report);
            }
        }
    }

    async fn look(&self, units: States) -> Option<Report> {
        let (host, gauge) = (self.host.clone(), self.gauge.clone());
        let looked = blocking(move || Ok((gauge.look(), components(&host)))).await;
        match looked {
            Ok((vitals, components)) => Some(assemble(&self.boot, vitals, components, units)),
            Err(failure) => {
                tracing::error!(?failure, "cannot look at the machine");
                None
            }
        }
    }
}

fn assemble(
    boot: &Boot,
    vitals: Vitals,
    components: BTreeMap<String, String>,
    units: States,
) -> Report {
    Report {
        at_unix_ms: now_unix_ms(),
        boot_id: boot.id.clone(),
        uptime_s: boot.uptime_s(),
        agent_version: crate::version(),
        components,
        units,
        vitals,
    }
}

/// The next heartbeat, from what was seen last.
pub fn heartbeat(report: &Report, watched: &Watched, epoch: Epoch) -> Heartbeat {
    let unhealthy = report
        .units
        .iter()
        .filter(|(unit, state)| is_unhealthy(state, watched.get(*unit) == Some(&true)))
        .count();
    let vitals = &report.vitals;
    Heartbeat {
        sequence: 0,
        at_unix_ms: now_unix_ms(),
        units_unhealthy: u16::try_from(unhealthy).unwrap_or(u16::MAX),
        memory_used_bp: share_bp(vitals.memory_used_bytes, vitals.memory_total_bytes),
        disk_used_bp: share_bp(vitals.disk_used_bytes, vitals.disk_total_bytes),
        epoch,
    }
}

fn is_unhealthy(state: &UnitReport, wanted_active: bool) -> bool {
    state.active_state == "failed"
        || state.sub_state == "auto-restart"
        || (wanted_active && state.active_state == "inactive")
}

/// Whether the director should hear of it now.
fn differs(old: &Report, new: &Report, detail: Detail) -> bool {
    if old.units != new.units || old.components != new.components {
        return true;
    }
    match detail {
        Detail::Full => moved(&old.vitals, &new.vitals),
        Detail::Units => false,
    }
}

fn moved(old: &Vitals, new: &Vitals) -> bool {
    let share = |old: (u64, u64), new: (u64, u64)| {
        let (old, new) = (share_bp(old.0, old.1), share_bp(new.0, new.1));
        u64::from(old.abs_diff(new)) >= MOVED_BP
    };
    let memory = |vitals: &Vitals| (vitals.memory_used_bytes, vitals.memory_total_bytes);
    let disk = |vitals: &Vitals| (vitals.disk_used_bytes, vitals.disk_total_bytes);
    share(memory(old), memory(new))
        || share(disk(old), disk(new))
        || old.load1_centi.abs_diff(new.load1_centi) >= MOVED_LOAD_CENTI
}

/// Hundredths of a percent, at most 10 000.
fn share_bp(used: u64, total: u64) -> u16 {
    let share = u128::from(used) * 10_000 / u128::from(total.max(1));
    u16::try_from(share.min(10_000)).unwrap_or(10_000)
}

/// Versions that the component switch points to, by component.
fn components(host: &Host) -> BTreeMap<String, String> {
    let Ok(entries) = fs::read_dir(host.path(COMPONENTS_DIR)) else {
        return BTreeMap::new();
    };
    let version = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path().join("current")).ok()?;
        let version = target.file_name()?.to_str()?.to_owned();
        Some((entry.file_name().into_string().ok()?, version))
    };
    entries.flatten().filter_map(version).collect()
}

/// Wall clock, milliseconds since the Unix epoch; 0 before it.
pub fn now_unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(active_state: &str, sub_state: &str) -> UnitReport {
        UnitReport {
            active_state: active_state.to_owned(),
            sub_state: sub_state.to_owned(),
            restarts: 0,
        }
    }

    fn report() -> Report {
        let dir = tempfile::tempdir().unwrap();
        let components = dir.path().join("opt/windlass/components/kubelet");
        fs::create_dir_all(&components).unwrap();
        std::os::unix::fs::symlink("1.37.2", components.join("current")).unwrap();
        let (_, reports) = Observer::new(&Host::open(dir.path()).unwrap());
        let mut report = (**reports.borrow()).clone();
        report.vitals.memory_used_bytes = 500;
        report.vitals.memory_total_bytes = 1000;
        report
    }

    #[test]
    fn components_are_read_from_the_switch() {
        assert_eq!(
            report().components,
            BTreeMap::from([("kubelet".to_owned(), "1.37.2".to_owned())])
        );
    }

    #[test]
    fn small_movements_are_no_change_and_units_are() {
        let old = report();
        let mut new = old.clone();
        new.at_unix_ms += 5;
        new.uptime_s += 5;
        new.vitals.cpu_used_ms += 5;
        new.vitals.memory_used_bytes += 10;
        assert!(!differs(&old, &new, Detail::Full));
        new.vitals.memory_used_bytes += 20;
        assert!(differs(&old, &new, Detail::Full));
        assert!(!differs(&old, &new, Detail::Units));
        let mut new = old.clone();
        new.units
            .insert("a.service".to_owned(), unit("active", "running"));
        assert!(differs(&old, &new, Detail::Full));
        assert!(differs(&old, &new, Detail::Units));
    }

    #[test]
    fn a_heartbeat_counts_what_is_unhealthy() {
        let mut report = report();
        for (name, state) in [
            ("ok", unit("active", "running")),
            ("failed", unit("failed", "failed")),
            ("restarting", unit("activating", "auto-restart")),
            ("starting", unit("activating", "start")),
            ("stopped-by-us", unit("inactive", "dead")),
            ("stopped-by-itself", unit("inactive", "dead")),
        ] {
            report.units.insert(name.to_owned(), state);
        }
        let active = BTreeMap::from([
            ("stopped-by-itself".to_owned(), true),
            ("ok".to_owned(), true),
        ]);
        let heartbeat = heartbeat(&report, &active, Epoch(3));
        assert_eq!(heartbeat.units_unhealthy, 3);
        assert_eq!(heartbeat.memory_used_bp, 5000);
        assert_eq!(heartbeat.epoch, Epoch(3));
    }
}
