//! What a condition that is bad means: pure, one row a condition.
//!
//! # Invariants
//! * What is the host's, too old or unknown to this release is shown and counts for nothing.
//! * A condition names the unit whose restart may mend it, or none: then an operator is needed.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::condition::{self, AGE_MAX_MS, CLOCK_MAX_MS, Condition, Conditions, State};
use windlass_common::report::{Heartbeat, Scope};

use super::from_jiff;
use crate::gateway::SessionView;
use crate::model::Timestamp;

/// A condition as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConditionView {
    /// Which kind, for example `kubelet` or `disk-space`.
    pub name: String,
    /// Which one of its kind, such as a mount point; empty where there is one.
    pub subject: String,
    /// `good`, `bad` or `unknown`.
    #[schema(value_type = String)]
    pub state: State,
    /// What was seen.
    pub says: String,
    /// What was asked.
    pub source: String,
    /// `machine`, or `host` for what says nothing about one machine.
    #[schema(value_type = String)]
    pub scope: Scope,
    /// Milliseconds since it was looked at.
    pub age_ms: u64,
    /// Milliseconds for which it is in this state, by the machine's clock.
    pub lasts_ms: u64,
}

impl ConditionView {
    /// Whether it speaks against its machine.
    pub fn counts(&self) -> bool {
        self.is_bad() && self.scope == Scope::Machine
    }

    /// Whether it is bad now, whosever it is.
    pub(crate) fn is_bad(&self) -> bool {
        self.state == State::Bad && self.age_ms <= AGE_MAX_MS
    }

    /// For people: what is wrong.
    pub(crate) fn told(&self) -> String {
        let about = match self.subject.as_str() {
            "" => String::new(),
            subject => format!(" {subject}"),
        };
        format!("{}{about}: {}", self.name, self.says)
    }
}

/// What a bad condition calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mends {
    /// A restart of this unit, then the milder remedies one after the other.
    Unit(&'static str),
    /// A restart of the machine.
    Reboot,
    /// An operator.
    Operator,
    /// Nothing: this release does not know it.
    Nothing,
}

/// The table of conditions.
pub(crate) fn mends(name: &str) -> Mends {
    match name {
        condition::KUBELET => Mends::Unit("kubelet.service"),
        condition::CONTAINERD => Mends::Unit("containerd.service"),
        condition::ETCD => Mends::Unit("etcd.service"),
        condition::KERNEL_LOG => Mends::Reboot,
        condition::CNI
        | condition::ETCD_ALARM
        | condition::PRESSURE
        | condition::DISK_SPACE
        | condition::DISK_INODES
        | condition::CLOCK => Mends::Operator,
        _ => Mends::Nothing,
    }
}

/// All conditions of a connected machine: what its agent said, and what its clock shows.
pub(crate) fn of_session(session: &SessionView, now: Timestamp) -> Vec<ConditionView> {
    let said = session.conditions.as_ref();
    let mut views: Vec<ConditionView> = said
        .into_iter()
        .flat_map(|(at, said)| {
            let arrived_ms = now.ms_since(from_jiff(*at));
            let all = said.conditions.iter();
            all.map(move |one| view(one, said, arrived_ms))
        })
        .collect();
    if let Some((at, beat)) = &session.last_heartbeat {
        let contained = session.report.as_ref();
        let scope = contained.map_or(Scope::Machine, |(_, report)| report.vitals.load_scope);
        views.push(clock(beat, from_jiff(*at), scope, now));
    }
    views
}

/// Ages are counted on one clock each: the machine's until it was said, the director's since it arrived.
fn view(one: &Condition, said: &Conditions, arrived_ms: u64) -> ConditionView {
    let until_said = |at: u64| said.at_unix_ms.saturating_sub(at);
    ConditionView {
        name: one.name.clone(),
        subject: one.subject.clone(),
        state: one.state,
        says: one.says.clone(),
        source: one.source.clone(),
        scope: one.scope,
        age_ms: until_said(one.at_unix_ms).saturating_add(arrived_ms),
        lasts_ms: until_said(one.since_unix_ms).saturating_add(arrived_ms),
    }
}

/// How the machine's clock and the director's differ; what the heartbeat took is part of it.
fn clock(beat: &Heartbeat, arrived: Timestamp, scope: Scope, now: Timestamp) -> ConditionView {
    let (theirs, ours) = (beat.at_unix_ms, arrived.unix_ms());
    let apart_ms = theirs.abs_diff(ours);
    let which = if theirs > ours { "ahead of" } else { "behind" };
    ConditionView {
        name: condition::CLOCK.to_owned(),
        subject: String::new(),
        state: if apart_ms > CLOCK_MAX_MS {
            State::Bad
        } else {
            State::Good
        },
        says: format!("its clock is {apart_ms} ms {which} the director's"),
        source: "time stamps of its heartbeats".to_owned(),
        scope,
        age_ms: now.ms_since(arrived),
        lasts_ms: 0,
    }
}

#[cfg(test)]
mod tests {
    use windlass_common::id::Epoch;

    use super::*;

    fn one(name: &str, state: State, scope: Scope) -> ConditionView {
        let condition = Condition {
            name: name.to_owned(),
            subject: String::new(),
            state,
            says: "what it says".to_owned(),
            source: "where from".to_owned(),
            scope,
            at_unix_ms: 900,
            since_unix_ms: 500,
        };
        let said = Conditions {
            at_unix_ms: 1_000,
            conditions: Vec::new(),
        };
        view(&condition, &said, 50)
    }

    #[test]
    fn only_what_is_bad_young_and_the_machines_own_counts() {
        assert!(one("kubelet", State::Bad, Scope::Machine).counts());
        for (state, scope) in [
            (State::Good, Scope::Machine),
            (State::Unknown, Scope::Machine),
            (State::Bad, Scope::Host),
        ] {
            assert!(
                !one("kubelet", state, scope).counts(),
                "{state:?} {scope:?}"
            );
        }
        let mut old = one("kubelet", State::Bad, Scope::Machine);
        assert_eq!((old.age_ms, old.lasts_ms), (150, 550));
        old.age_ms = AGE_MAX_MS + 1;
        assert!(!old.counts());
    }

    #[test]
    #[rustfmt::skip] // one row a condition
    fn every_condition_has_a_row() {
        let rows = [
            ("kubelet",     Mends::Unit("kubelet.service")),
            ("containerd",  Mends::Unit("containerd.service")),
            ("etcd",        Mends::Unit("etcd.service")),
            ("kernel-log",  Mends::Reboot),
            ("cni",         Mends::Operator),
            ("etcd-alarm",  Mends::Operator),
            ("pressure",    Mends::Operator),
            ("disk-space",  Mends::Operator),
            ("disk-inodes", Mends::Operator),
            ("clock",       Mends::Operator),
        ];
        assert_eq!(rows.len(), condition::NAMES.len());
        for (name, wanted) in rows {
            assert!(condition::NAMES.contains(&name), "{name}");
            assert_eq!(mends(name), wanted, "{name}");
        }
        assert_eq!(mends("of-a-newer-release"), Mends::Nothing);
    }

    #[test]
    fn a_clock_is_wrong_in_either_direction() {
        let now = Timestamp::from_unix_ms(1_000_000);
        let told = |at_unix_ms, scope| {
            let beat = Heartbeat {
                sequence: 1,
                at_unix_ms,
                units_unhealthy: 0,
                memory_used_bp: 0,
                disk_used_bp: 0,
                epoch: Epoch(1),
            };
            clock(&beat, now, scope, now)
        };
        for (at, counts) in [
            (1_000_000, false),
            (1_000_000 + CLOCK_MAX_MS, false),
            (1_000_001 + CLOCK_MAX_MS, true),
            (999_999 - CLOCK_MAX_MS, true),
        ] {
            assert_eq!(told(at, Scope::Machine).counts(), counts, "{at}");
        }
        assert!(
            !told(0, Scope::Host).counts(),
            "the host's clock is everybody's"
        );
    }
}
