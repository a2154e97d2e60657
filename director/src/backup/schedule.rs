//! When a cluster is backed up, and which backups are kept. Pure.
//!
//! # Invariants
//! * At most one backup of a cluster is under way.
//! * Only what was made by schedule, of the cluster that there is now, is removed by itself, and the newest
//!   never.

use std::time::Duration;

use windlass_common::cluster::BackupSpec;

use super::cluster::{BackupName, BackupReason};
use super::record::BackupRecord;
use super::repository::BackupEntry;
use crate::model::Timestamp;

/// After the first failure in a row; doubled with each further one.
const RETRY_FIRST: Duration = Duration::from_secs(60);
/// Longest pause between two tries.
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// When the next backup of a cluster is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Never: its policy makes none.
    Never,
    /// Not yet, or not while a task works on the cluster.
    At(Timestamp),
    /// Now.
    Now,
}

/// Whether a cluster is to be backed up. While a task works on it (`busy`) one waits that is not overdue by a whole
/// interval.
pub fn due(policy: BackupSpec, record: &BackupRecord, busy: bool, now: Timestamp) -> Due {
    if policy.every_minutes == 0 {
        return Due::Never;
    }
    let every = Duration::from_secs(60) * policy.every_minutes;
    // A clock that went back makes none wait for longer than an interval.
    let last = record.succeeded.as_ref().map(|last| last.taken_at.min(now));
    let regular = last.map_or(now, |last| later(last, every));
    let again = record.failed.as_ref().map(|failed| {
        let doubled = failed.in_a_row.saturating_sub(1).min(10);
        later(
            failed.at.min(now),
            (RETRY_FIRST * (1 << doubled)).min(RETRY_MAX),
        )
    });
    let mut at = again.map_or(regular, |again| again.max(regular));
    if busy && last.is_some() {
        at = at.max(later(regular, every));
    }
    if at <= now { Due::Now } else { Due::At(at) }
}

fn later(from: Timestamp, by: Duration) -> Timestamp {
    let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
    Timestamp::from_unix_ms(from.unix_ms().saturating_add(ms))
}

/// The backups that the policy does not keep, of those listed newest first. `created_at`: of the cluster that there
/// is now.
pub fn surplus(
    policy: BackupSpec,
    listed: &[BackupEntry],
    created_at: Timestamp,
) -> Vec<BackupName> {
    let keep = usize::try_from(policy.keep.max(1)).unwrap_or(usize::MAX);
    listed
        .iter()
        .map(|entry| &entry.manifest)
        .filter(|of| of.reason == BackupReason::Scheduled && of.cluster_created_at == created_at)
        .skip(keep)
        .map(|of| of.name.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use windlass_common::id::{ClusterName, Digest};

    use super::super::fixtures::manifest;
    use super::super::record::BackupSuccess;
    use super::super::repository::ArchiveFacts;
    use super::*;

    const HOURLY: BackupSpec = BackupSpec {
        every_minutes: 60,
        keep: 2,
    };

    fn minute(minute: u64) -> Timestamp {
        Timestamp::from_unix_ms(minute * 60_000)
    }

    /// Of a cluster whose last backup succeeded then, and has failed so often since, the last time then.
    fn record(succeeded: Option<u64>, failed: Option<(u32, u64)>) -> BackupRecord {
        let mut record = BackupRecord::new(ClusterName::new("demo").unwrap());
        let name: BackupName = "20300131-120000-00000001".parse().unwrap();
        if let Some(at) = succeeded {
            record.succeed(BackupSuccess {
                name: name.clone(),
                taken_at: minute(at),
                took_ms: 1000,
            });
        }
        if let Some((times, at)) = failed {
            for _ in 0..times {
                record.fail(name.clone(), minute(at), "no room".to_owned());
            }
        }
        record
    }

    #[test]
    fn a_backup_is_due_when_the_last_is_older_than_the_interval() {
        let off = BackupSpec {
            every_minutes: 0,
            keep: 2,
        };
        let at = |at| Due::At(minute(at));
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("none yet",                         HOURLY, None,      None,           false, 100, Due::Now),
            ("none yet, and a task",             HOURLY, None,      None,           true,  100, Due::Now),
            ("fresh",                            HOURLY, Some(100), None,           false, 159, at(160)),
            ("old",                              HOURLY, Some(100), None,           false, 160, Due::Now),
            ("old, and a task",                  HOURLY, Some(100), None,           true,  160, at(220)),
            ("overdue by an interval, and a task", HOURLY, Some(100), None,         true,  220, Due::Now),
            ("failed a moment ago",              HOURLY, None,      Some((1, 100)), false, 100, at(101)),
            ("failed a minute ago",              HOURLY, None,      Some((1, 100)), false, 101, Due::Now),
            ("failed thrice",                    HOURLY, None,      Some((3, 100)), false, 101, at(104)),
            ("failed for days",                  HOURLY, None,      Some((99, 100)), false, 101, at(160)),
            ("one that was ordered failed, and none is due", HOURLY, Some(100), Some((1, 110)), false, 120, at(160)),
            ("the clock went back",              HOURLY, Some(900), None,           false, 100, at(160)),
            ("switched off",                     off,    None,      None,           false, 100, Due::Never),
        ];
        for (name, policy, succeeded, failed, busy, now, want) in cases {
            let got = due(policy, &record(succeeded, failed), busy, minute(now));
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn what_is_older_than_the_newest_is_removed_if_it_was_scheduled() {
        let entry = |name: &str, reason, created_ms| {
            let mut manifest = manifest(name, b"db");
            manifest.reason = reason;
            manifest.cluster_created_at = Timestamp::from_unix_ms(created_ms);
            BackupEntry {
                manifest,
                archive: ArchiveFacts {
                    bytes: 1,
                    digest: Digest::of(b"x"),
                },
            }
        };
        use BackupReason::{Ordered, Scheduled};
        let listed = [
            entry("20300106-000000-00000000", Scheduled, 5),
            entry("20300105-000000-00000000", Ordered, 5),
            entry("20300104-000000-00000000", Scheduled, 5),
            entry("20300103-000000-00000000", Scheduled, 5),
            entry("20300102-000000-00000000", Ordered, 5),
            // Of a cluster of that name that was deleted.
            entry("20300101-000000-00000000", Scheduled, 4),
        ];
        let created = Timestamp::from_unix_ms(5);
        let removed = |keep| {
            let policy = BackupSpec { keep, ..HOURLY };
            let names = surplus(policy, &listed, created);
            names
                .iter()
                .map(|name| name.as_str()[..8].to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(removed(2), ["20300103"]);
        assert_eq!(removed(1), ["20300104", "20300103"]);
        assert_eq!(removed(0), ["20300104", "20300103"], "the newest stays");
        assert_eq!(removed(9), Vec::<String>::new());
    }
}
