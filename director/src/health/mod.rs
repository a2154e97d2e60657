//! What the director makes of sessions, reports and conditions.
//!
//! # Not here
//! Verdicts from independent witnesses, and repair: a silent agent is shown as lost, and nothing is done.

mod conditions;
mod vitals;

use std::time::Duration;

use windlass_common::report::{Report, UnitReport};

use crate::gateway::SessionView;
use crate::model::{AgentView, Machine, MachineHealth, MachineView, Timestamp};

pub use conditions::ConditionView;
pub(crate) use conditions::{Mends, mends, of_session};
pub use vitals::{VitalView, measured};
pub(crate) use vitals::{of_vitals, root_scope};

/// A suspect that is silent for this long is shown as lost.
const SILENT: Duration = Duration::from_secs(5);

/// A machine with what its agent says.
pub fn view(machine: Machine, session: Option<&SessionView>, now: Timestamp) -> MachineView {
    let agent = session.map_or_else(AgentView::default, |session| agent_view(session, now));
    let report = session
        .and_then(|s| s.report.as_ref())
        .map(|(_, report)| (**report).clone());
    let suspect = session.is_some_and(|session| session.suspect);
    let conditions = session.map_or_else(Vec::new, |session| of_session(session, now));
    let measured = session.map_or_else(Vec::new, |session| measured(session, now));
    let health = health(&machine, &agent, suspect, report.as_ref(), &conditions);
    MachineView {
        machine,
        agent,
        health,
        verdict: None,
        hold: None,
        report,
        measured,
        conditions,
    }
}

fn agent_view(session: &SessionView, now: Timestamp) -> AgentView {
    let age = |at: &jiff::Timestamp| now.ms_since(from_jiff(*at));
    AgentView {
        connected: true,
        suspect: session.suspect,
        connected_at: Some(from_jiff(session.since)),
        remote_address: Some(session.address.ip()),
        version: Some(session.hello.agent_version.clone()),
        last_heartbeat_age_ms: session.last_heartbeat.as_ref().map(|(at, _)| age(at)),
        last_report_age_ms: session.report.as_ref().map(|(at, _)| age(at)),
    }
}

fn health(
    machine: &Machine,
    agent: &AgentView,
    suspect: bool,
    report: Option<&Report>,
    conditions: &[ConditionView],
) -> MachineHealth {
    let silent_ms = u64::try_from(SILENT.as_millis()).unwrap_or(u64::MAX);
    // How often it beats is tuned: slow heartbeats are no silence.
    let silent = suspect
        && agent
            .last_heartbeat_age_ms
            .is_some_and(|age| age > silent_ms);
    if !agent.connected || silent {
        return if machine.started.is_some() {
            MachineHealth::AgentLost
        } else {
            MachineHealth::Unknown
        };
    }
    let mut units = report.map(failing).unwrap_or_default();
    units.extend(counting(conditions).map(ConditionView::told));
    if units.is_empty() {
        MachineHealth::Healthy
    } else {
        MachineHealth::Degraded { units }
    }
}

/// The units that fail or restart.
pub(crate) fn failing_units(report: &Report) -> impl Iterator<Item = (&String, &UnitReport)> {
    let units = report.units.iter();
    units.filter(|(_, unit)| unit.active_state == "failed" || unit.sub_state == "auto-restart")
}

/// The conditions that speak against a machine, and that this release knows what to do about.
pub(crate) fn counting(conditions: &[ConditionView]) -> impl Iterator<Item = &ConditionView> {
    bad(conditions).filter(|one| one.counts())
}

/// The same, and those of its host, which speak against no machine.
pub(crate) fn bad(conditions: &[ConditionView]) -> impl Iterator<Item = &ConditionView> {
    let known = |one: &&ConditionView| mends(&one.name) != Mends::Nothing;
    conditions.iter().filter(|one| one.is_bad()).filter(known)
}

/// The same, with systemd's word for each.
pub(crate) fn failing(report: &Report) -> Vec<String> {
    failing_units(report)
        .map(|(name, unit)| format!("{name} {}/{}", unit.active_state, unit.sub_state))
        .collect()
}

/// The same moment as a record writes it.
/// A moment of ours as the calendar counts it; its end when it is beyond that.
pub(crate) fn to_jiff(at: Timestamp) -> jiff::Timestamp {
    let ms = i64::try_from(at.unix_ms()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX)
}

pub(crate) fn from_jiff(at: jiff::Timestamp) -> Timestamp {
    Timestamp::from_unix_ms(u64::try_from(at.as_millisecond()).unwrap_or_default())
}
