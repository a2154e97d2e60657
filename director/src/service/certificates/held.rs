//! Why certificates that are due are not renewed: the rule's own conditions, in words.

use serde::Serialize;
use windlass_common::id::MachineName;

use super::{AGAIN, rests, serves, stands};
use crate::model::{Cluster, Machine, MachineView, Task, TaskKind, Timestamp, Wanted};

/// Certificates that should have been renewed, and are not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RenewalHeld {
    /// Of which machine.
    pub machine: MachineName,
    /// Since when they are due.
    pub due_since: Timestamp,
    /// When they expire.
    pub expires_at: Timestamp,
    /// What keeps them, and what ends that; for people.
    pub why: String,
}

/// Certificates of a cluster's machines that are due and held back. `task` is the one that works on it.
pub fn held_back(
    cluster: &Cluster,
    machines: &[MachineView],
    task: Option<&Task>,
    now: Timestamp,
) -> Vec<RenewalHeld> {
    let held = |view: &MachineView| {
        let machine = &view.machine;
        let certified = machine.certified.filter(|of| now >= of.renew_at)?;
        Some(RenewalHeld {
            machine: machine.name.clone(),
            due_since: certified.renew_at,
            expires_at: certified.expires_at,
            why: why(cluster, view, task, now)?,
        })
    };
    machines.iter().filter_map(held).collect()
}

/// What keeps certificates that are due; `None` when the next look renews them, or a task does already.
fn why(
    cluster: &Cluster,
    view: &MachineView,
    task: Option<&Task>,
    now: Timestamp,
) -> Option<String> {
    let name = &cluster.spec.name;
    if task.is_some_and(|task| task.kind == TaskKind::RenewCertificates) {
        return None;
    }
    if let Some(task) = &cluster.task {
        return Some(format!(
            "{task} works on the cluster; they are renewed once it has ended"
        ));
    }
    if !serves(cluster.phase) {
        let phase = cluster.phase;
        return Some(format!(
            "the cluster is {phase}; they are renewed once it serves"
        ));
    }
    if !stands(&view.machine) {
        return Some(comes_anew(&view.machine));
    }
    if let Some(tried) = cluster.renewal_tried_at.filter(|tried| rests(*tried, now)) {
        let again = tried
            .unix_ms()
            .saturating_add(u64::try_from(AGAIN.as_millis()).unwrap_or(u64::MAX));
        let again = Timestamp::from_unix_ms(again);
        return Some(format!(
            "a renewal was begun at {tried} (`windlass task list`), the next one is at {again}; `windlass cluster \
             renew-certificates {name}` tries now"
        ));
    }
    (!view.agent.connected)
        .then(|| "its agent is not connected; they are renewed once it is".to_owned())
}

/// Of a machine that is not as it should be.
fn comes_anew(machine: &Machine) -> String {
    let cluster = &machine.cluster;
    match (&machine.wanted, machine.phase) {
        (Some(Wanted::Gone), _) => "it is to go".to_owned(),
        (Some(Wanted::Reborn { .. } | Wanted::Refitted { .. }), _) => format!(
            "a change of it is unfinished, and brings new ones or lets them be renewed: `windlass cluster plan {cluster}`"
        ),
        (None, _) if machine.fenced => "it is shut out and waits to be replaced".to_owned(),
        (None, phase) => format!("it is {phase}"),
    }
}
