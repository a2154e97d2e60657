//! What the etcd of a cluster needs, from how its members are. Pure.
//!
//! # Invariants
//! * A member is touched while every member has a vote, answers, follows the same leader and has caught up, and one
//!   at a time: what is decided is one act, and the next is decided from another report.
//! * The leader comes last.
//! * A corrupt member is an operator's: nothing is done to any of them.
//!
//! # Not here
//! Compaction, which is the API servers'; who acts and when ([`crate::service`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use windlass_common::step::{EtcdMemberReport, EtcdReport, EtcdStatus};

/// A database is rewritten from this size on, bytes: below it there is nothing to be won.
const DB_BYTES_MIN: u64 = 100 << 20;
/// Share of it that has to be unused, percent.
const UNUSED_PERCENT: u64 = 45;
/// Share of the quota from which on less is enough, percent.
const FULL_PERCENT: u64 = 80;
/// Share that has to be unused then, percent.
const UNUSED_PERCENT_FULL: u64 = 20;
/// Share that has to be unused while an alarm says that there is no space, percent.
const UNUSED_PERCENT_ALARM: u64 = 5;
/// Share of the quota below which all members have to be before the alarm is put out, percent: it would go off again.
const DISARM_PERCENT: u64 = 95;
/// How long a member that was rewritten is let be: one that is half empty again is no matter of minutes.
pub const REST: Duration = Duration::from_secs(3600);
/// The same while an alarm says that there is no space.
const REST_ALARM: Duration = Duration::from_secs(60);
/// Entries that a member may be behind the furthest and count as caught up: seconds of a busy cluster.
const LAG_MAX: u64 = 5000;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Care {
    /// All is well.
    Nothing,
    /// Something is, and not now.
    Wait {
        /// What is in the way.
        why: String,
    },
    /// Rewrite the database of one member.
    Defragment {
        /// The member's name: its machine's.
        member: String,
        /// Whether it leads others, and another one is to lead first.
        leads: bool,
        /// Why.
        why: String,
    },
    /// Put the alarm out.
    Disarm {
        /// Why.
        why: String,
    },
    /// A person has to act.
    Operator {
        /// What is wrong, and what to do.
        problem: String,
    },
}

/// What the members of this report need. `quota_bytes`: at which etcd takes no more writes. `rewritten`: how long ago
/// members were rewritten, by name.
pub fn decide(
    report: &EtcdReport,
    quota_bytes: u64,
    rewritten: &BTreeMap<String, Duration>,
) -> Care {
    let alarms = || report.members.iter().flat_map(|m| &m.alarms);
    let serious: BTreeSet<&str> = alarms()
        .map(String::as_str)
        .filter(|alarm| *alarm != NOSPACE)
        .collect();
    if !serious.is_empty() {
        let alarms = serious.into_iter().collect::<Vec<_>>().join(", ");
        let on = |member: &&EtcdMemberReport| member.alarms.iter().any(|alarm| alarm != NOSPACE);
        let members: Vec<&str> = report
            .members
            .iter()
            .filter(on)
            .map(|m| m.name.as_str())
            .collect();
        return Care::Operator {
            problem: format!(
                "etcd says {alarms} of {}: its data differs from the others'; replace that machine's data, or \
                 restore a backup",
                members.join(", ")
            ),
        };
    }
    let alarmed = alarms().next().is_some();
    let members = match healthy(report) {
        Ok(members) => members,
        Err(why) => return Care::Wait { why },
    };
    let mut worth: Vec<(bool, &str, &EtcdStatus)> = members
        .iter()
        .filter(|(_, status)| is_worth_it(status, quota_bytes, alarmed))
        .map(|(name, status)| (status.leader, *name, *status))
        .collect();
    worth.sort_by_key(|(leads, name, _)| (*leads, *name));
    let rest = if alarmed { REST_ALARM } else { REST };
    let rests = |name: &str| rewritten.get(name).is_some_and(|ago| *ago < rest);
    let first = worth.iter().find(|(_, name, _)| !rests(name));
    // The leader's turn is when no other is left, one that rests included.
    let first = first.filter(|(leader, _, _)| !leader || worth.len() == 1);
    if let Some((leader, name, status)) = first {
        return Care::Defragment {
            member: (*name).to_owned(),
            // Without space no write is taken that an election could keep waiting.
            leads: *leader && members.len() > 1 && !alarmed,
            why: format!(
                "{} of the {} bytes of its database are unused",
                unused(status),
                status.db_bytes
            ),
        };
    }
    if let Some((_, name, _)) = worth.first() {
        return Care::Wait {
            why: format!("{name} was rewritten a short while ago"),
        };
    }
    if !alarmed {
        return Care::Nothing;
    }
    let largest = members.iter().map(|(_, status)| status.db_bytes).max();
    let largest = largest.unwrap_or(0);
    if share(largest, quota_bytes) < DISARM_PERCENT {
        return Care::Disarm {
            why: format!(
                "its databases have {largest} bytes at most, of {quota_bytes} that they may have"
            ),
        };
    }
    Care::Operator {
        problem: format!(
            "etcd takes no writes: what it holds is {largest} of {quota_bytes} bytes; delete what is not needed and \
             compact (`etcdctl compact` on a control-plane machine), or give the control plane larger disks"
        ),
    }
}

const NOSPACE: &str = "NOSPACE";

/// The members, if all of them are well.
fn healthy(report: &EtcdReport) -> Result<Vec<(&str, &EtcdStatus)>, String> {
    let mut members = Vec::new();
    for member in &report.members {
        let name = member.name.as_str();
        if member.learner {
            return Err(format!("{name} has no vote yet"));
        }
        let status = member.status.as_ref();
        let status = status.ok_or_else(|| format!("{name} does not answer"))?;
        // While there is no space, each member says so here too.
        let other = status.errors.iter().find(|error| !error.contains(NOSPACE));
        if let Some(error) = other {
            return Err(format!("{name} says {error}"));
        }
        members.push((name, status));
    }
    let leaders = members.iter().filter(|(_, status)| status.leader).count();
    let terms: BTreeSet<u64> = members.iter().map(|(_, s)| s.raft_term).collect();
    if leaders != 1 || terms.len() != 1 {
        return Err(format!("{leaders} members lead in {} terms", terms.len()));
    }
    let furthest = members.iter().map(|(_, s)| s.raft_applied).max();
    let behind = |s: &EtcdStatus| furthest.unwrap_or(0).saturating_sub(s.raft_applied) > LAG_MAX;
    match members.iter().find(|(_, status)| behind(status)) {
        Some((name, _)) => Err(format!("{name} has not caught up")),
        None => Ok(members),
    }
}

fn unused(status: &EtcdStatus) -> u64 {
    status.db_bytes.saturating_sub(status.db_used_bytes)
}

/// Percent, rounded down; all of nothing.
fn share(part: u64, whole: u64) -> u64 {
    let percent = u128::from(part) * 100 / u128::from(whole.max(1));
    u64::try_from(percent).unwrap_or(u64::MAX)
}

fn is_worth_it(status: &EtcdStatus, quota_bytes: u64, alarmed: bool) -> bool {
    let unused = share(unused(status), status.db_bytes);
    let full = share(status.db_bytes, quota_bytes) >= FULL_PERCENT;
    (status.db_bytes >= DB_BYTES_MIN && unused >= UNUSED_PERCENT)
        || (full && unused >= UNUSED_PERCENT_FULL)
        || (alarmed && unused >= UNUSED_PERCENT_ALARM)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const QUOTA: u64 = 2000 * MIB;

    /// A member with a database of so many MiB, of which so many are used.
    fn member(name: &str, db: u64, used: u64) -> EtcdMemberReport {
        EtcdMemberReport {
            id: name.to_owned(),
            name: name.to_owned(),
            peer_urls: Vec::new(),
            learner: false,
            alarms: Vec::new(),
            status: Some(EtcdStatus {
                version: "3.6.16".to_owned(),
                leader: name == "a",
                db_bytes: db * MIB,
                db_used_bytes: used * MIB,
                raft_term: 2,
                raft_index: 90_000,
                raft_applied: 90_000,
                errors: Vec::new(),
            }),
        }
    }

    fn report(members: Vec<EtcdMemberReport>) -> EtcdReport {
        EtcdReport {
            cluster_id: "1".to_owned(),
            member_id: "a".to_owned(),
            members,
        }
    }

    /// Short, for a table: what, and of whom.
    /// `rewritten`: these members, so many seconds ago.
    fn decided(members: Vec<EtcdMemberReport>, rewritten: (&str, u64)) -> String {
        let (names, ago) = rewritten;
        let names = names.chars().map(|name| name.to_string());
        let rewritten = names.map(|name| (name, Duration::from_secs(ago))).collect();
        match decide(&report(members), QUOTA, &rewritten) {
            Care::Nothing => "nothing".to_owned(),
            Care::Wait { why } => format!("wait: {why}"),
            Care::Defragment { member, leads, .. } if leads => {
                format!("defragment leader {member}")
            }
            Care::Defragment { member, .. } => format!("defragment {member}"),
            Care::Disarm { .. } => "disarm".to_owned(),
            Care::Operator { problem } => {
                let what = problem.split([':', ';']).next().unwrap_or_default();
                format!("operator: {what}")
            }
        }
    }

    fn with(
        mut member: EtcdMemberReport,
        change: impl FnOnce(&mut EtcdMemberReport),
    ) -> EtcdMemberReport {
        change(&mut member);
        member
    }

    fn status(member: EtcdMemberReport, change: impl FnOnce(&mut EtcdStatus)) -> EtcdMemberReport {
        with(member, |member| change(member.status.as_mut().unwrap()))
    }

    /// As etcd says it while there is no space.
    fn full(name: &str, db: u64, used: u64) -> EtcdMemberReport {
        let member = with(member(name, db, used), |m| {
            m.alarms = vec![NOSPACE.to_owned()]
        });
        status(member, |s| {
            s.errors = vec!["memberID:1 alarm:NOSPACE".to_owned()];
        })
    }

    fn three(db: u64, used: u64) -> Vec<EtcdMemberReport> {
        ["a", "b", "c"].map(|name| member(name, db, used)).into()
    }

    #[test]
    fn one_act_at_a_time_and_the_leader_last() {
        let silent = || with(member("b", 1, 1), |m| m.status = None);
        let learns = || with(member("b", 1, 1), |m| m.learner = true);
        let ill = || {
            status(member("b", 1, 1), |s| {
                s.errors = vec!["etcdserver: no leader".to_owned()];
            })
        };
        let behind = |db, by| status(member("b", db, 1), |s| s.raft_applied -= by);
        let second = || status(member("b", 1, 1), |s| (s.leader, s.raft_term) = (true, 3));
        let corrupt = |member| {
            with(member, |m: &mut EtcdMemberReport| {
                m.alarms.push("CORRUPT".to_owned())
            })
        };
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("small",                     three(90, 1),                                              ("", 0),     "nothing"),
            ("used",                      three(1000, 600),                                          ("", 0),     "nothing"),
            ("just not unused enough",    three(1000, 551),                                          ("", 0),     "nothing"),
            ("unused",                    three(1000, 550),                                          ("", 0),     "defragment b"),
            ("one was rewritten",         three(1000, 550),                                          ("b", 60),   "defragment c"),
            ("the leader is left",        vec![member("a", 1000, 550), member("b", 550, 550)],       ("b", 60),   "defragment leader a"),
            ("the leader waits for one that rests", three(1000, 550),                                ("bc", 60),  "wait: b was rewritten a short while ago"),
            ("all were",                  three(1000, 550),                                          ("abc", 60), "wait: b was rewritten a short while ago"),
            ("all were, an hour ago",     three(1000, 550),                                          ("abc", 3600), "defragment b"),
            ("near the quota",            three(1600, 1280),                                         ("", 0),     "defragment b"),
            ("near the quota, and used",  three(1600, 1281),                                         ("", 0),     "nothing"),
            ("alone",                     vec![member("a", 200, 20)],                                ("", 0),     "defragment a"),
            ("alone and small",           vec![member("a", 99, 1)],                                  ("", 0),     "nothing"),
            ("one is silent",             vec![member("a", 1000, 1), silent()],                      ("", 0),     "wait: b does not answer"),
            ("one learns",                vec![member("a", 1000, 1), learns()],                      ("", 0),     "wait: b has no vote yet"),
            ("one is ill",                vec![member("a", 1000, 1), ill()],                         ("", 0),     "wait: b says etcdserver: no leader"),
            ("one is behind",             vec![member("a", 1000, 1), behind(1, 5001)],               ("", 0),     "wait: b has not caught up"),
            ("one is a little behind",    vec![member("a", 10, 1), behind(1000, 5000)],              ("", 0),     "defragment b"),
            ("nobody leads",              vec![status(member("a", 1000, 1), |s| s.leader = false)],  ("", 0),     "wait: 0 members lead in 1 terms"),
            ("two lead",                  vec![member("a", 1000, 1), second()],                      ("", 0),     "wait: 2 members lead in 2 terms"),
            ("no space, much unused",     vec![full("a", 2000, 100), full("b", 2000, 100)],          ("", 0),     "defragment b"),
            ("no space, the leader left", vec![full("a", 2000, 100), full("b", 100, 98)],            ("b", 0),    "defragment a"),
            ("no space, some unused",     vec![full("a", 2000, 1900)],                               ("", 0),     "defragment a"),
            ("no space, none unused",     vec![full("a", 2000, 1901)],                               ("", 0),     "operator: etcd takes no writes"),
            ("no space, just rewritten",  vec![full("a", 80, 10)],                                   ("a", 59),   "wait: a was rewritten a short while ago"),
            ("no space, rewritten before", vec![full("a", 80, 10)],                                  ("a", 60),   "defragment a"),
            ("no space, and room again",  vec![full("a", 100, 98), member("b", 100, 98)],            ("ab", 0),   "disarm"),
            ("room, but not enough",      vec![full("a", 1900, 1890)],                               ("", 0),     "operator: etcd takes no writes"),
            ("corrupt",                   vec![member("a", 1000, 1), corrupt(member("b", 1000, 1))], ("", 0),     "operator: etcd says CORRUPT of b"),
            ("corrupt, and no space",     vec![full("a", 2000, 1), corrupt(full("b", 2000, 1))],     ("", 0),     "operator: etcd says CORRUPT of b"),
        ];
        for (name, members, rewritten, want) in cases {
            assert_eq!(decided(members, rewritten), want, "{name}");
        }
    }
}
