//! How replacements died: what is kept about each, for the cause that they have in common.

use std::collections::BTreeSet;

use windlass_common::id::MachineName;

use super::super::{Inner, ServiceResult};
use crate::health::{counting, failing_units, of_session};
use crate::model::{Action, Machine, StepState, Task, TaskState, Timestamp};
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
        step: task.and_then(|task| failed_step(&task, &machine.name)),
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

/// The first step about a machine that failed for good or is tried again; else the one that it was in when the failure
/// of another machine ended the task.
fn failed_step(task: &Task, machine: &MachineName) -> Option<FailedStep> {
    let steps = task.current().steps.iter();
    let about = steps.filter(|step| step.action.machine() == Some(machine));
    let records: Vec<_> = about
        .filter_map(|step| Some((step.action.name(), task.steps.get(&step.key)?)))
        .collect();
    let failed = records.iter().find_map(|(name, record)| {
        let counts = matches!(record.state, StepState::Failed | StepState::Running);
        let error = record.error.as_ref().filter(|_| counts)?;
        let error = error.message.chars().take(ERROR_MAX).collect();
        Some((*name, Some(error)))
    });
    let stopped = records
        .iter()
        .find(|(_, record)| task.state == TaskState::Failed && record.state == StepState::Cancelled)
        .map(|(name, _)| (*name, None));
    failed.or(stopped).map(|(name, error)| FailedStep {
        name: name.to_owned(),
        error,
    })
}

#[cfg(test)]
mod tests {

    use windlass_common::error::ErrorClass;
    use windlass_common::id::{ClusterName, Digest};

    use super::*;
    use crate::model::{
        Disruption, Fault, Goal, Invariant, Plan, PlanStep, StepKey, StepRecord, TaskId, TaskKind,
    };

    fn name(text: &str) -> MachineName {
        MachineName::new(text).unwrap()
    }

    /// A task that awaits the agents of three machines.
    fn awaits(records: &[(&str, StepState, Option<&str>)], state: TaskState) -> Task {
        let cluster = ClusterName::new("demo").unwrap();
        let key = |machine: &str| StepKey(format!("machine/{machine}/await-agent").into());
        let step = |(machine, _, _): &(&str, StepState, Option<&str>)| PlanStep {
            key: key(machine),
            action: Action::AwaitAgent {
                machine: name(machine),
            },
            why: "".into(),
            guard: Invariant::StepEnds,
            disrupts: Disruption::Nothing,
            after: Vec::new(),
        };
        let record = |(machine, state, error): &(&str, StepState, Option<&str>)| {
            let error = error.map(|message| Fault {
                class: ErrorClass::Operator,
                message: message.to_owned(),
            });
            let record = StepRecord {
                state: *state,
                attempts: 1,
                started_at: Timestamp::from_unix_ms(1),
                ended_at: None,
                error,
                changes: Vec::new(),
            };
            (key(machine), record)
        };
        let steps = records.iter().map(step).collect();
        let plan = Plan::of(cluster, Goal::Present, Digest::of(b""), steps);
        let (id, at) = (TaskId::new(3, [1, 2, 3]), Timestamp::from_unix_ms(1));
        Task {
            state,
            steps: records.iter().map(record).collect(),
            ..Task::ordered(id, TaskKind::RepairCluster, plan, "ann".into(), at)
        }
    }

    #[test]
    fn what_a_task_was_at_with_a_machine_when_another_one_failed_counts() {
        let records = [
            ("w-0", StepState::Failed, Some("nobody came")),
            ("w-1", StepState::Cancelled, None),
            ("w-2", StepState::Succeeded, None),
        ];
        let seen = |task: &Task, machine: &str| {
            let step = failed_step(task, &name(machine))?;
            assert_eq!(step.name, "await-agent");
            Some(step.error)
        };
        let failed = awaits(&records, TaskState::Failed);
        assert_eq!(seen(&failed, "w-0"), Some(Some("nobody came".to_owned())));
        assert_eq!(seen(&failed, "w-1"), Some(None));
        assert_eq!(seen(&failed, "w-2"), None);
        // An operator has stopped it: that says nothing about the machine.
        let cancelled = awaits(&records, TaskState::Cancelled);
        assert_eq!(seen(&cancelled, "w-1"), None);
    }
}
