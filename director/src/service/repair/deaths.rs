//! How replacements died: what is kept about each, for the cause that they have in common.

use std::collections::BTreeSet;

use super::super::{Inner, ServiceResult};
use crate::health::{counting, failing_units, of_session};
use crate::model::{Action, Machine, StepState, Task, Timestamp};
use crate::resurrector::{CaseRecord, Death, ERROR_MAX, FailedStep};

/// How the replacement that `record` is about has died, from its agent's last word, if it is still connected, and
/// the task that was to bring it into service.
pub(super) async fn of(
    director: &Inner,
    machine: &Machine,
    record: &CaseRecord,
    now: u64,
) -> ServiceResult<Death> {
    let headers: Vec<Task> = director.records.list().await?;
    let made = headers.iter().filter(|task| brings(task, machine));
    let task = match made.max_by_key(|task| task.created_at) {
        Some(header) => director.records.task(&header.id).await?,
        None => None,
    };
    Ok(Death {
        incarnation: machine.incarnation,
        at_ms: now,
        verdict: record.case.verdict,
        stemcell: machine.runs().to_owned(),
        kubernetes_version: machine.kubernetes_version.clone(),
        troubles: troubles(director, machine),
        step: task.and_then(|task| failed_step(&task, machine)),
    })
}

fn troubles(director: &Inner, machine: &Machine) -> BTreeSet<String> {
    let session = director.gateway.session(&machine.name, machine.incarnation);
    let Some(session) = session else {
        return BTreeSet::new();
    };
    let report = session.report.as_ref();
    let units = report
        .into_iter()
        .flat_map(|(_, report)| failing_units(report));
    let mut names: BTreeSet<String> = units.map(|(name, _)| name.clone()).collect();
    let conditions = of_session(&session, Timestamp::now());
    names.extend(counting(&conditions).map(|one| one.name.clone()));
    names
}

/// Whether a task was to bring this incarnation of a machine into service: its plan awaits the node of it.
fn brings(task: &Task, machine: &Machine) -> bool {
    task.current().steps.iter().any(|step| {
        matches!(&step.action, Action::AwaitNode { machine: name, node }
            if *name == machine.name && *node == machine.node_name)
    })
}

/// The first step about a machine that failed for good, or that is tried again.
fn failed_step(task: &Task, machine: &Machine) -> Option<FailedStep> {
    task.current().steps.iter().find_map(|step| {
        let about = step.action.machine() == Some(&machine.name);
        let record = task.steps.get(&step.key).filter(|_| about)?;
        let counts = matches!(record.state, StepState::Failed | StepState::Running);
        let error = record.error.as_ref().filter(|_| counts)?;
        Some(FailedStep {
            name: step.action.name().to_owned(),
            error: error.message.chars().take(ERROR_MAX).collect(),
        })
    })
}
