//! `windlass cluster show`: a cluster, its machines, and what comes next for each.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde_json::json;
use windlass_common::id::MachineName;
use windlass_director::client::Client;
use windlass_director::model::{
    Cluster, Machine, MachinePhase, MachineView, StepKey, StepState, Task, TaskState, Timestamp,
    Wanted,
};
use windlass_director::service::{ClusterBackups, RenewalHeld, StoppedPool, held_back};

use crate::cluster::{describe, pairs, segment};
use crate::failure::Failure;
use crate::node::health;
use crate::output::table;
use crate::{Session, cluster_backup};

pub(crate) async fn run(
    session: &Session,
    client: &Client,
    name: &str,
) -> Result<ExitCode, Failure> {
    let mut answer = client
        .get(&format!("/v1/clusters/{}", segment(name)))
        .await?;
    let cluster: Cluster = client.typed(&answer)?;
    let machines = client
        .get(&format!("/v1/machines?cluster={}", segment(name)))
        .await?;
    let machines: Vec<MachineView> = client.typed(&machines["items"])?;
    let task: Option<Task> = match &cluster.task {
        Some(id) => Some(client.typed(&client.get(&format!("/v1/tasks/{id}")).await?)?),
        None => None,
    };
    let backups = client
        .get(&format!("/v1/clusters/{}/backups", segment(name)))
        .await?;
    let backups: ClusterBackups = client.typed(&backups)?;
    let stopped = client
        .get(&format!("/v1/clusters/{}/stopped-pools", segment(name)))
        .await?;
    let stopped: Vec<StoppedPool> = client.typed(&stopped["items"])?;
    let freezes = crate::freeze::specs(client).await?;
    let doing = task.as_ref().map(doing).unwrap_or_default();
    let next = |machine: &Machine| next(machine, task.as_ref(), doing.get(&machine.name));
    let listed = machines.iter().map(|view| {
        let machine = &view.machine;
        json!({
            "name": machine.name,
            "role": machine.role,
            "kubernetesVersion": version(&cluster, machine),
            "stemcell": machine.stemcell,
            "runs": machine.runs(),
            "components": machine.components,
            "zone": machine.zone,
            "phase": machine.phase,
            "health": view.health,
            "certificatesExpireAt": machine.certified.map(|certified| certified.expires_at),
            "next": next(machine),
        })
    });
    answer["machines"] = listed.collect();
    answer["backups"] = json!({
        "state": backups.state,
        "dueAt": backups.due_at,
        "etcdProblem": backups.etcd_problem,
        "count": backups.unlisted.is_none().then_some(backups.items.len()),
        "unlisted": backups.unlisted,
    });
    answer["stoppedPools"] = json!(stopped);
    let held = held_back(&cluster, &machines, task.as_ref(), Timestamp::now());
    answer["renewalsHeldBack"] = json!(held);
    session.output.answer(&answer, || {
        let rows = machines.iter().map(|view| {
            let machine = &view.machine;
            vec![
                machine.name.to_string(),
                machine.role.to_string(),
                version(&cluster, machine),
                machine.phase.to_string(),
                health(&view.health),
                components(machine),
                certificates(machine),
                next(machine).unwrap_or_else(|| "-".to_owned()),
            ]
        });
        let machines = table(
            &[
                "MACHINE",
                "ROLE",
                "KUBERNETES",
                "PHASE",
                "HEALTH",
                "COMPONENTS",
                "CERTIFICATES UNTIL",
                "NEXT",
            ],
            rows,
        );
        let mut rows = vec![("Backups", cluster_backup::describe(&backups))];
        if let Some(problem) = &backups.etcd_problem {
            rows.push(("Etcd", problem.clone()));
        }
        let pools = stopped.iter();
        rows.extend(pools.map(|pool| ("Stopped", format!("{}: {}", pool.role, pool.why))));
        rows.extend(held.iter().map(|held| ("Not renewed", not_renewed(held))));
        format!(
            "{}\n{}\n\n{machines}",
            describe(&cluster, &freezes),
            pairs(rows)
        )
    });
    Ok(ExitCode::SUCCESS)
}

/// Versions of what starts its containers and, on a control plane, of etcd.
fn components(machine: &Machine) -> String {
    let shown = ["containerd", "etcd"]
        .into_iter()
        .filter(|name| *name != "etcd" || machine.role.is_control_plane());
    let shown: Vec<String> = shown
        .filter_map(|name| Some(format!("{name} {}", machine.components.get(name)?)))
        .collect();
    if shown.is_empty() {
        "-".to_owned()
    } else {
        shown.join(", ")
    }
}

/// That certificates are due and held back.
fn not_renewed(held: &RenewalHeld) -> String {
    let RenewalHeld {
        machine,
        due_since,
        expires_at,
        why,
    } = held;
    format!("certificates of {machine}, due since {due_since}, expire at {expires_at}: {why}")
}

/// The day on which the first of its certificates expires; they are renewed months before.
fn certificates(machine: &Machine) -> String {
    let day = |at: String| at.chars().take(10).collect();
    machine.certified.map_or_else(
        || "-".to_owned(),
        |certified| day(certified.expires_at.to_string()),
    )
}

fn version(cluster: &Cluster, machine: &Machine) -> String {
    if machine.kubernetes_version.is_empty() {
        cluster.spec.kubernetes_version.clone()
    } else {
        machine.kubernetes_version.clone()
    }
}

/// The steps that run now, by machine.
fn doing(task: &Task) -> BTreeMap<MachineName, StepKey> {
    let plans = std::iter::once(&task.plan)
        .chain(&task.again)
        .chain(&task.cleanup);
    let steps = plans.flat_map(|plan| &plan.steps);
    let runs = |key| {
        task.steps
            .get(key)
            .is_some_and(|record| record.state == StepState::Running)
    };
    steps
        .filter(|step| runs(&step.key))
        .filter_map(|step| Some((step.action.machine()?.clone(), step.key.clone())))
        .collect()
}

/// What comes next for a machine, for people; nothing when it is as it should be.
fn next(machine: &Machine, task: Option<&Task>, doing: Option<&StepKey>) -> Option<String> {
    if let Some(key) = doing {
        return Some(format!("now: {key}"));
    }
    let becomes = match &machine.wanted {
        Some(Wanted::Reborn {
            kubernetes_version,
            stemcell,
            ..
        }) if *kubernetes_version == machine.kubernetes_version => {
            format!("made anew from {stemcell}")
        }
        Some(Wanted::Reborn {
            kubernetes_version, ..
        }) => format!("made anew with {kubernetes_version}"),
        Some(Wanted::Refitted { changes, .. }) => format!("gets {changes} in place"),
        Some(Wanted::Gone) => "drained and deleted".to_owned(),
        None if machine.phase == MachinePhase::Planned && task.is_none() => "made".to_owned(),
        None if machine.pinned && task.is_none() => {
            return Some(
                "keeps to what it was before a change failed, until the next order".to_owned(),
            );
        }
        None => {
            let planned = task.and_then(|task| waiting(task, machine));
            return planned.map(|key| format!("then: {key}"));
        }
    };
    let when = match task.map(|task| task.state) {
        None => " once it is ordered again",
        Some(TaskState::Waiting) => " when the maintenance window opens",
        Some(TaskState::Pausing | TaskState::Paused) => " after `windlass task resume`",
        Some(_) => "",
    };
    Some(format!("{becomes}{when}"))
}

/// The first step of a machine that was not begun.
fn waiting(task: &Task, machine: &Machine) -> Option<StepKey> {
    let plan = task.current();
    let of = |step: &&windlass_director::model::PlanStep| {
        step.action.machine() == Some(&machine.name) && !task.steps.contains_key(&step.key)
    };
    plan.steps.iter().find(of).map(|step| step.key.clone())
}
