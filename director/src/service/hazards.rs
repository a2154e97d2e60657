//! What a change would meet on its machines, by what the director knows of them. Pure.
//!
//! # Not here
//! What it would meet in the cluster: [`crate::drain`].

use windlass_common::condition::DISK_SPACE;
use windlass_common::id::MachineName;

use crate::drain::{Hazard, HazardKind};
use crate::gateway::SessionView;
use crate::health;
use crate::model::{Certified, ChangeForecast, Machine, Timestamp};

/// How far is looked ahead at least, milliseconds: a plan that nothing was measured for may take so long, and drains wait
/// for as long as their policy says.
const AHEAD_MIN_MS: u64 = 3600 * 1000;

/// What is known of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Look {
    machine: MachineName,
    certified: Option<Certified>,
    /// What its agent says of file systems that are too full.
    full: Vec<String>,
}

impl Look {
    pub(super) fn of(machine: &Machine, session: Option<&SessionView>) -> Self {
        let conditions = session
            .map(|session| health::of_session(session, Timestamp::now()))
            .unwrap_or_default();
        let full = health::counting(&conditions).filter(|one| one.name == DISK_SPACE);
        Self {
            machine: machine.name.clone(),
            certified: machine.certified,
            full: full.map(|one| one.told()).collect(),
        }
    }
}

/// Certificates that expire before a change is over, and file systems too full on machines that go on.
pub(super) fn hazards(looks: &[Look], changes: &ChangeForecast, now: Timestamp) -> Vec<Hazard> {
    let mut hazards = Vec::new();
    let ahead_ms = changes
        .seconds
        .map_or(0, |seconds| seconds.saturating_mul(1000));
    let until = now.unix_ms().saturating_add(ahead_ms.max(AHEAD_MIN_MS));
    for look in looks {
        let at = format!("machine {}", look.machine);
        if let Some(certified) = look.certified.filter(|of| of.expires_at.unix_ms() <= until) {
            hazards.push(Hazard {
                kind: HazardKind::Certificate,
                at: at.clone(),
                why: format!(
                    "a certificate of it expires at {}, and is not renewed while a change is under way",
                    certified.expires_at
                ),
                remedy: "windlass cluster renew-certificates, before this change".to_owned(),
            });
        }
        // What is made anew, or goes, begins with an empty disk or needs none.
        let goes =
            changes.replaced.contains(&look.machine) || changes.deleted.contains(&look.machine);
        for full in look.full.iter().filter(|_| !goes) {
            hazards.push(Hazard {
                kind: HazardKind::Disk,
                at: at.clone(),
                why: format!("{full}; components and pods that come to it may find no room"),
                remedy: "make room on it, or have it made anew with a larger disk".to_owned(),
            });
        }
    }
    hazards
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3600 * 1000;

    fn look(name: &str, expires_ms: Option<u64>, full: &[&str]) -> Look {
        Look {
            machine: MachineName::new(name).unwrap(),
            certified: expires_ms.map(|expires| Certified {
                issued_at: Timestamp::from_unix_ms(0),
                renew_at: Timestamp::from_unix_ms(0),
                expires_at: Timestamp::from_unix_ms(expires),
            }),
            full: full.iter().map(|of| (*of).to_owned()).collect(),
        }
    }

    fn found(looks: &[Look], changes: &ChangeForecast) -> Vec<(HazardKind, String)> {
        let hazards = hazards(looks, changes, Timestamp::from_unix_ms(0));
        hazards.into_iter().map(|of| (of.kind, of.at)).collect()
    }

    #[test]
    fn certificates_that_expire_before_it_is_over_are_found() {
        let certificate = |name: &str| (HazardKind::Certificate, format!("machine {name}"));
        let looks = [
            look("a", Some(HOUR_MS), &[]),
            look("b", Some(HOUR_MS + 1), &[]),
            look("c", Some(3 * HOUR_MS), &[]),
            look("d", None, &[]),
        ];
        let taking = |seconds: Option<u64>| ChangeForecast {
            seconds,
            ..ChangeForecast::default()
        };
        assert_eq!(found(&looks, &taking(None)), [certificate("a")]);
        assert_eq!(found(&looks, &taking(Some(60))), [certificate("a")]);
        let all = ["a", "b"].map(certificate);
        assert_eq!(found(&looks, &taking(Some(2 * 3600))), all);
    }

    #[test]
    fn a_full_disk_counts_on_machines_that_go_on() {
        let full = ["disk-space /: 97 % used"];
        let looks = ["a", "b", "c"].map(|name| look(name, None, &full));
        let changes = ChangeForecast {
            replaced: vec![looks[0].machine.clone()],
            deleted: vec![looks[1].machine.clone()],
            ..ChangeForecast::default()
        };
        let disk = (HazardKind::Disk, "machine c".to_owned());
        assert_eq!(found(&looks, &changes), [disk]);
        let said = hazards(&looks, &changes, Timestamp::from_unix_ms(0));
        assert!(
            said[0].why.starts_with("disk-space /: 97 % used; "),
            "{said:?}"
        );
    }
}
