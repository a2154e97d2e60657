//! Upgrades over several minors. API servers go one minor at a time, so such an upgrade is a chain of legs, each of
//! which is a plan like any other. Pure.
//!
//! # Invariants
//! * A leg leads at most one minor further than the one before it, and each leads to a stemcell that is known.
//! * Workers stay until the last leg, so that their pods move once, but never beyond what kubelets may be older.
//! * The plan of an upgrade has a hash that covers the decisions of all of its legs.
//!
//! # Not here
//! Which machines join and go in a leg (the drafts of the service), and whether the plan of a leg keeps the
//! invariants ([`crate::plan`] checks each of them, when it is ordered and when it begins).

use std::net::SocketAddr;

use windlass_common::id::Digest;

use super::{Desired, DesiredState, Observed, inputs};
use crate::kubernetes::KUBELET_OLDER_MAX;
use crate::kubernetes::facts::minor_of;
use crate::model::{
    Action, Cluster, Leg, LegForecast, Machine, MachinePhase, Plan, PlanStep, StemcellRecord,
};
use crate::provider::{DiskView, EndpointView, MachineView, Power};

/// Why there is no way from one minor to another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no stemcell of Kubernetes {} is known, and API servers take every minor on the way from {from} to {to}: \
     add one of each (`windlass stemcell build --kubernetes 1.{}.N`), then order it again",
    minors(.missing), .missing.first().copied().unwrap_or_default()
)]
pub struct MissingMinors {
    /// What runs.
    pub from: String,
    /// What was asked for.
    pub to: String,
    /// Minors without a stemcell, in order.
    pub missing: Vec<u32>,
}

fn minors(missing: &[u32]) -> String {
    let named: Vec<String> = missing.iter().map(|m| format!("1.{m}.x")).collect();
    named.join(" and ")
}

/// What of a cluster an upgrade begins with.
#[derive(Debug, Clone, Copy)]
pub struct Start<'a> {
    /// The oldest version of its API servers.
    pub servers: &'a str,
    /// The minor of its oldest kubelet; the same as that of its API servers when it has no workers.
    pub kubelets: u32,
    /// What its machines are made from now, which a leg to that minor keeps to: an upgrade that was cut off goes on.
    pub stemcell: Option<&'a StemcellRecord>,
}

/// The legs to `target`: one for each minor, through the newest stemcell that is known of each in between.
pub fn legs(
    start: Start<'_>,
    target: &StemcellRecord,
    known: &[StemcellRecord],
) -> Result<Vec<Leg>, MissingMinors> {
    let to = &target.kubernetes_version;
    let between = match (minor_of(start.servers), minor_of(to)) {
        (Some(from), Some(to)) => (from + 1)..to,
        _ => 0..0, // whoever validates versions says so
    };
    let mut stemcells: Vec<&StemcellRecord> = Vec::new();
    let mut missing = Vec::new();
    for minor in between {
        let of = |stemcell: &&StemcellRecord| minor_of(&stemcell.kubernetes_version) == Some(minor);
        let newest = known
            .iter()
            .filter(of)
            .max_by_key(|stemcell| newer(stemcell));
        match start.stemcell.filter(of).or(newest) {
            Some(stemcell) => stemcells.push(stemcell),
            None => missing.push(minor),
        }
    }
    if !missing.is_empty() {
        return Err(MissingMinors {
            from: start.servers.to_owned(),
            to: to.clone(),
            missing,
        });
    }
    stemcells.push(target);
    let mut kubelets = start.kubelets;
    let after = stemcells.iter().skip(1).map(Some).chain([None]);
    let legs = stemcells.iter().zip(after).map(|(stemcell, next)| {
        let next = next.and_then(|next| minor_of(&next.kubernetes_version));
        let workers = next.is_none_or(|next| next.saturating_sub(kubelets) > KUBELET_OLDER_MAX);
        if workers {
            kubelets = minor_of(&stemcell.kubernetes_version).unwrap_or(kubelets);
        }
        Leg {
            kubernetes_version: stemcell.kubernetes_version.clone(),
            stemcell: stemcell.version.clone(),
            workers,
        }
    });
    Ok(legs.collect())
}

/// Orders stemcells of one minor: by patch, then by when they were built.
fn newer(stemcell: &StemcellRecord) -> (u32, &str, &str) {
    let patch = stemcell.kubernetes_version.rsplit('.').next();
    let patch = patch.and_then(|patch| patch.parse().ok()).unwrap_or(0);
    (patch, &stemcell.built_at, &stemcell.version)
}

/// The records of a cluster's machines once all that is desired of them is so.
pub fn arrived(machines: &[Machine], desired: &Desired) -> Vec<Machine> {
    let DesiredState::Present {
        machines: wanted, ..
    } = &desired.state
    else {
        return Vec::new();
    };
    let stay = machines.iter().filter_map(|machine| {
        let told = wanted
            .get(&machine.name)
            .filter(|_| !machine.is_surplus())?;
        let mut machine = machine.as_wanted();
        machine.phase = MachinePhase::Ready;
        machine.mounted = machine.data_disk.is_some();
        machine.configured = Some(told.configuration);
        machine.started = Some(told.components);
        machine.labelled = Some(told.labels);
        machine.serving = true;
        (machine.cordoned, machine.condemned, machine.fenced) = (false, false, false);
        machine.departed.clear();
        if let Some(joined) = &mut machine.joined {
            (joined.voting, joined.alone) = (true, false);
        }
        Some(machine)
    });
    stay.collect()
}

/// What is seen of a cluster whose machines have `arrived`, through the records of what is wanted `next`: those of
/// the same machines, and of more.
pub fn observe_arrived(cluster: &Cluster, arrived: &[Machine], next: &[Machine]) -> Observed {
    let views: Vec<MachineView> = arrived
        .iter()
        .map(|machine| MachineView {
            name: machine.name.clone(),
            incarnation: machine.incarnation,
            power: Power::Running,
            address: machine.address,
            tags: Default::default(),
            created_at: 0,
            boots: 1,
            complete: true,
        })
        .collect();
    let disks: Vec<DiskView> = arrived
        .iter()
        .filter_map(|machine| {
            Some(DiskView {
                name: machine.data_disk.clone()?,
                bytes: 0,
                attached_to: Some(machine.name.clone()),
            })
        })
        .collect();
    let backends: Vec<SocketAddr> = inputs::backends(next);
    let endpoint = EndpointView {
        cluster: cluster.spec.name.clone(),
        address: cluster.endpoint.address,
        port: cluster.endpoint.port,
        backends,
        running: true,
    };
    let name = &cluster.spec.name;
    inputs::observe(Some(cluster), name, next, &views, &disks, &[endpoint])
}

/// What a leg comes to, out of its plan.
pub fn forecast(leg: &Leg, plan: &Plan, desired: &Desired, observed: &Observed) -> LegForecast {
    let comes = |step: &PlanStep| match &step.action {
        Action::AwaitNode { machine, .. } => Some(machine.clone()),
        _ => None,
    };
    let creates = |step: &PlanStep| match &step.action {
        Action::CreateMachine { machine } => Some(machine.clone()),
        _ => None,
    };
    let made: Vec<_> = plan.steps.iter().filter_map(creates).collect();
    let mut machines: Vec<_> = plan.steps.iter().filter_map(comes).collect();
    machines.retain(|machine| made.contains(machine));
    LegForecast {
        kubernetes_version: leg.kubernetes_version.clone(),
        stemcell: leg.stemcell.clone(),
        hash: plan.hash,
        steps: plan.steps.len(),
        machines,
        api_servers: meanwhile(desired, observed, true),
        kubelets: meanwhile(desired, observed, false),
        seconds: None,
        drains: None,
    }
}

/// The oldest and the newest minor that there is from the first step to the last: of API servers, or of all
/// kubelets.
fn meanwhile(desired: &Desired, observed: &Observed, servers: bool) -> (u32, u32) {
    let DesiredState::Present { machines, .. } = &desired.state else {
        return (0, 0);
    };
    let wanted = machines.values().map(|m| (&m.pool, &m.kubernetes_version));
    let found = observed.machines.values();
    let found = found.map(|m| (&m.pool, &m.kubernetes_version));
    let all: Vec<u32> = wanted
        .chain(found)
        .filter(|(pool, _)| !servers || pool.is_none())
        .filter_map(|(_, version)| minor_of(version))
        .collect();
    let oldest = all.iter().min().copied().unwrap_or(0);
    (oldest, all.iter().max().copied().unwrap_or(oldest))
}

/// Digest over the decisions of all legs.
pub fn hash(legs: &[LegForecast]) -> Digest {
    let decisions: Vec<_> = legs
        .iter()
        .map(|leg| (&leg.kubernetes_version, &leg.stemcell, &leg.hash))
        .collect();
    Digest::of(serde_json::json!(decisions).to_string().as_bytes())
}
