//! What a restore makes of each member, and what it loses. Pure.
//!
//! # Invariants
//! * Members are ranked by how far their data goes: the revision of their keyspace, then the raft index that they
//!   know to be agreed on. All have a part of one history, so that one that goes further has all that another has.
//! * etcd begins again from one member's data only when it has no majority: with one, nothing has to be lost.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use windlass_common::id::MachineName;
use windlass_common::step::EtcdDataReport;

use crate::model::{MemberFate, MemberRank, RestoreForecast, Timestamp};

/// What is known of a member's data, or why nothing is.
pub(super) type Look = Result<EtcdDataReport, String>;

/// What etcd is to be made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum From {
    /// A snapshot, with what is known of it.
    Snapshot {
        name: String,
        revision: Option<u64>,
        taken_at: Option<Timestamp>,
    },
    /// The data of this machine's member, or of the one that goes furthest.
    Member(Option<MachineName>),
}

/// Why there is nothing to restore, or nothing to restore from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error(
        "no machine of the control plane of cluster {cluster} answers ({why}); etcd is made anew on machines that \
         do: start one, and its agent"
    )]
    NobodyAnswers { cluster: String, why: String },
    #[error(
        "etcd has its majority: {machine} sees a leader, and whatever is broken can be mended without losing \
         anything. `windlass node recreate NODE` makes a machine anew"
    )]
    Majority { machine: MachineName },
    #[error(
        "{machine} is no machine of the control plane of this cluster with a vote in etcd; these are: {members}"
    )]
    NoMember {
        machine: MachineName,
        members: String,
    },
    #[error(
        "nothing is known of the data of {machine}: {why}; name another machine, or restore a snapshot"
    )]
    NoData { machine: MachineName, why: String },
    #[error("no member of etcd is left with data ({why}); restore a snapshot")]
    NobodyHasData { why: String },
}

/// What becomes of each member, and what that costs.
pub(super) fn judge(
    cluster: &str,
    from: &From,
    looks: &BTreeMap<MachineName, Look>,
    votes: impl Fn(&MachineName) -> bool,
    now: Timestamp,
) -> Result<(BTreeMap<MachineName, MemberFate>, RestoreForecast), Refusal> {
    let ranked = ranked(looks, &votes);
    let begins: Vec<MachineName> = match from {
        From::Snapshot { .. } => {
            let able = looks
                .iter()
                .filter(|(name, look)| look.is_ok() && votes(name));
            able.map(|(name, _)| name.clone()).collect()
        }
        From::Member(named) => vec![best(named.as_ref(), &ranked, looks, &votes)?],
    };
    if begins.is_empty() {
        return Err(Refusal::NobodyAnswers {
            cluster: cluster.to_owned(),
            why: reasons(looks),
        });
    }
    let fates: BTreeMap<MachineName, MemberFate> = looks
        .iter()
        .map(|(name, look)| {
            let fate = match look {
                Ok(_) if begins.contains(name) => MemberFate::Begins,
                Ok(_) => MemberFate::Joins,
                Err(_) => MemberFate::Replaced,
            };
            (name.clone(), fate)
        })
        .collect();
    let members = ranked
        .iter()
        .map(|name| rank(name, fates[name], &looks[name]));
    let mut forecast = RestoreForecast {
        source: String::new(),
        revision: None,
        taken_at: None,
        losses: Vec::new(),
        members: members.collect(),
    };
    match from {
        From::Snapshot {
            name,
            revision,
            taken_at,
        } => {
            forecast.source = format!("snapshot {name}");
            (forecast.revision, forecast.taken_at) = (*revision, *taken_at);
            forecast
                .losses
                .push(since_snapshot(*revision, *taken_at, &forecast, now));
            forecast.losses.push(
                "what was deleted since comes back, and so does what controllers had replaced; volumes and load \
                 balancers stay as they are now"
                    .to_owned(),
            );
        }
        From::Member(_) => {
            let first = forecast
                .members
                .iter()
                .find(|m| m.fate == MemberFate::Begins);
            let (machine, revision, at) = match first {
                Some(first) => (
                    first.machine.to_string(),
                    first.revision,
                    first.last_write_at,
                ),
                None => {
                    return Err(Refusal::NobodyHasData {
                        why: reasons(looks),
                    });
                }
            };
            forecast.source = format!("the data of {machine}");
            (forecast.revision, forecast.taken_at) = (revision, at);
            forecast
                .losses
                .push(without_majority(&machine, revision, at, &forecast));
        }
    }
    let replaced: Vec<&str> = fates
        .iter()
        .filter(|(_, fate)| **fate == MemberFate::Replaced)
        .map(|(name, _)| name.as_str())
        .collect();
    if !replaced.is_empty() {
        forecast.losses.push(format!(
            "{} cannot be told to stop: shut out, powered off and made anew; the data on their disks is set aside",
            replaced.join(", ")
        ));
    }
    Ok((fates, forecast))
}

/// Members with a vote first, by how far they go.
fn ranked(
    looks: &BTreeMap<MachineName, Look>,
    votes: &impl Fn(&MachineName) -> bool,
) -> Vec<MachineName> {
    let mut names: Vec<&MachineName> = looks.keys().collect();
    names.sort_by_key(|name| {
        let report = looks[*name].as_ref().ok().filter(|_| votes(name));
        let far = report.map(|report| (report.revision, report.raft_index));
        (Reverse(far), *name)
    });
    names.into_iter().cloned().collect()
}

/// The member that etcd begins with again.
fn best(
    named: Option<&MachineName>,
    ranked: &[MachineName],
    looks: &BTreeMap<MachineName, Look>,
    votes: &impl Fn(&MachineName) -> bool,
) -> Result<MachineName, Refusal> {
    let leads = |look: &Look| {
        look.as_ref()
            .is_ok_and(|report| report.leader == Some(true))
    };
    if let Some((machine, _)) = looks.iter().find(|(_, look)| leads(look)) {
        let machine = machine.clone();
        return Err(Refusal::Majority { machine });
    }
    let has_data = |look: &Look| look.as_ref().is_ok_and(|report| report.revision.is_some());
    let Some(machine) = named else {
        let found = ranked
            .iter()
            .find(|name| votes(name) && has_data(&looks[*name]));
        let why = reasons(looks);
        return found.cloned().ok_or(Refusal::NobodyHasData { why });
    };
    let Some(look) = looks.get(machine).filter(|_| votes(machine)) else {
        let members: Vec<&str> = ranked
            .iter()
            .filter(|n| votes(n))
            .map(MachineName::as_str)
            .collect();
        return Err(Refusal::NoMember {
            machine: machine.clone(),
            members: members.join(", "),
        });
    };
    let why = match look {
        Ok(report) if report.revision.is_some() => return Ok(machine.clone()),
        Ok(_) => "its database is not there, or cannot be read".to_owned(),
        Err(why) => why.clone(),
    };
    Err(Refusal::NoData {
        machine: machine.clone(),
        why,
    })
}

fn reasons(looks: &BTreeMap<MachineName, Look>) -> String {
    let why = |(name, look): (&MachineName, &Look)| match look {
        Ok(_) => format!("{name} has no data that can be read"),
        Err(why) => format!("{name}: {why}"),
    };
    looks.iter().map(why).collect::<Vec<_>>().join("; ")
}

fn rank(machine: &MachineName, fate: MemberFate, look: &Look) -> MemberRank {
    let report = look.clone().unwrap_or_default();
    MemberRank {
        machine: machine.clone(),
        fate,
        raft_index: report.raft_index,
        raft_term: report.raft_term,
        revision: report.revision,
        db_bytes: report.db_bytes,
        last_write_at: report.last_write_ms.map(Timestamp::from_unix_ms),
        problem: look.clone().err(),
    }
}

/// What a snapshot does not know.
fn since_snapshot(
    revision: Option<u64>,
    taken_at: Option<Timestamp>,
    forecast: &RestoreForecast,
    now: Timestamp,
) -> String {
    let newest = forecast
        .members
        .iter()
        .filter_map(|member| member.revision)
        .max();
    let mut said = "everything written since the snapshot was taken is lost".to_owned();
    if let Some(at) = taken_at {
        let minutes = now.ms_since(at) / 60_000;
        said.push_str(&format!(", that is since {at}, {minutes} minutes ago"));
    }
    match (revision, newest) {
        (Some(then), Some(newest)) if newest >= then => said.push_str(&format!(
            ": {} revisions, from {then} to {newest}",
            newest - then
        )),
        (Some(then), _) => said.push_str(&format!(": all after revision {then}")),
        (None, Some(newest)) => said.push_str(&format!(
            ": the keyspace is at revision {newest} now, and the snapshot does not say where it was then"
        )),
        (None, None) => {}
    }
    said
}

/// What the members that are gone may have agreed on by themselves.
fn without_majority(
    machine: &str,
    revision: Option<u64>,
    at: Option<Timestamp>,
    forecast: &RestoreForecast,
) -> String {
    let gone: Vec<&str> = forecast
        .members
        .iter()
        .filter(|member| member.revision.is_none())
        .map(|member| member.machine.as_str())
        .collect();
    let upto = revision.map_or(String::new(), |revision| {
        format!(" after revision {revision}")
    });
    let when = at.map_or(String::new(), |at| format!(", its last at {at}"));
    if gone.is_empty() {
        return format!("nothing that any member has; {machine} has all of it{upto}{when}");
    }
    format!(
        "what {} wrote{upto} without {machine}, which nobody can know: {machine} has all that reached it{when}",
        gone.join(" and ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> MachineName {
        MachineName::new(text).unwrap()
    }

    fn data(revision: u64, index: Option<u64>) -> Look {
        Ok(EtcdDataReport {
            running: index.is_some(),
            revision: Some(revision),
            raft_index: index,
            raft_term: index.map(|_| 7),
            leader: index.map(|_| false),
            db_bytes: Some(20_480),
            last_write_ms: Some(1_000),
            restored: None,
        })
    }

    fn gone() -> Look {
        Err("its agent is not connected".to_owned())
    }

    fn looks(of: [Look; 3]) -> BTreeMap<MachineName, Look> {
        let names = ["c-cp-0", "c-cp-1", "c-cp-2"].map(name);
        names.into_iter().zip(of).collect()
    }

    fn snapshot() -> From {
        From::Snapshot {
            name: "s.db".to_owned(),
            revision: Some(100),
            taken_at: Some(Timestamp::from_unix_ms(0)),
        }
    }

    fn fates(from: &From, of: [Look; 3]) -> String {
        let now = Timestamp::from_unix_ms(3_600_000);
        match judge("c", from, &looks(of), |_| true, now) {
            Ok((fates, _)) => fates
                .values()
                .map(|fate| fate.name())
                .collect::<Vec<_>>()
                .join(", "),
            Err(refusal) => refusal.to_string(),
        }
    }

    #[test]
    fn what_becomes_of_each_member() {
        let leader = || {
            data(120, Some(90)).map(|report| EtcdDataReport {
                leader: Some(true),
                ..report
            })
        };
        let empty = || Ok(EtcdDataReport::default());
        let any = From::Member(None);
        let named = |text: &str| From::Member(Some(name(text)));
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("a snapshot on all",              snapshot(),      [leader(), leader(), leader()],                            "begins, begins, begins"),
            ("a snapshot, one is away",        snapshot(),      [leader(), gone(), leader()],                              "begins, is replaced, begins"),
            ("a snapshot on a new disk",       snapshot(),      [empty(), gone(), gone()],                                 "begins, is replaced, is replaced"),
            ("a snapshot, nobody answers",     snapshot(),      [gone(), gone(), gone()],                                  "no machine of the control plane of cluster c answers"),
            ("the last one",                   any.clone(),     [gone(), data(120, Some(90)), gone()],                     "is replaced, begins, is replaced"),
            ("the one that goes further",      any.clone(),     [data(120, Some(90)), data(121, Some(91)), gone()],        "joins again, begins, is replaced"),
            ("stopped, and goes further",      any.clone(),     [data(120, Some(90)), gone(), data(130, None)],            "joins again, is replaced, begins"),
            ("the same keys, a longer log",    any.clone(),     [data(120, Some(90)), data(120, Some(95)), gone()],        "joins again, begins, is replaced"),
            ("all the same",                   any.clone(),     [data(120, None), data(120, None), data(120, None)],       "begins, joins again, joins again"),
            ("one has no data",                any.clone(),     [empty(), data(3, None), gone()],                          "joins again, begins, is replaced"),
            ("nobody has data",                any.clone(),     [empty(), gone(), gone()],                                 "no member of etcd is left with data"),
            ("it has its majority",            any,             [leader(), leader(), gone()],                              "etcd has its majority: c-cp-0 sees a leader"),
            ("one that was named",             named("c-cp-0"), [data(120, Some(90)), data(121, Some(91)), gone()],        "begins, joins again, is replaced"),
            ("one that is away",               named("c-cp-2"), [data(120, Some(90)), data(121, Some(91)), gone()],        "nothing is known of the data of c-cp-2: its agent"),
            ("one without data",               named("c-cp-0"), [empty(), data(121, Some(91)), gone()],                    "nothing is known of the data of c-cp-0: its database"),
            ("none of this cluster",           named("d-cp-0"), [data(120, Some(90)), data(121, Some(91)), gone()],        "these are: c-cp-1, c-cp-0, c-cp-2"),
        ];
        for (what, from, of, want) in cases {
            let got = fates(&from, of);
            assert!(got.contains(want), "{what}: {got}");
        }
    }

    #[test]
    fn a_member_without_a_vote_is_not_begun_with() {
        let of = looks([data(120, Some(90)), data(300, Some(290)), gone()]);
        let now = Timestamp::from_unix_ms(0);
        let votes = |machine: &MachineName| *machine != name("c-cp-1");
        let (fates, forecast) = judge("c", &From::Member(None), &of, votes, now).unwrap();
        assert_eq!(fates[&name("c-cp-0")], MemberFate::Begins);
        assert_eq!(fates[&name("c-cp-1")], MemberFate::Joins);
        assert_eq!(forecast.members[0].machine, name("c-cp-0"));
    }

    #[test]
    fn what_is_lost_is_said_in_time_and_revisions() {
        let now = Timestamp::from_unix_ms(3_600_000);
        let of = looks([data(150, Some(90)), data(149, Some(89)), gone()]);
        let (_, forecast) = judge("c", &snapshot(), &of, |_| true, now).unwrap();
        let said = forecast.losses.join("\n");
        assert!(said.contains("60 minutes ago"), "{said}");
        assert!(said.contains("50 revisions, from 100 to 150"), "{said}");
        assert!(said.contains("c-cp-2 cannot be told to stop"), "{said}");
        let (_, forecast) = judge("c", &From::Member(None), &of, |_| true, now).unwrap();
        let said = forecast.losses.join("\n");
        assert!(
            said.contains("what c-cp-2 wrote after revision 150 without c-cp-0"),
            "{said}"
        );
        assert_eq!(forecast.revision, Some(150));
    }
}
