//! Upgrades to later minors. API servers go one minor at a time, and do what is new only once all of them are: so an
//! upgrade is a chain of legs, each of which is a plan like any other. Pure.
//!
//! Machines of a later minor run their API server and its controllers with `--emulated-version` of the one before
//! (KEP-4330): nothing that an older one could not read gets into etcd, and the control plane can go back. A leg after
//! it raises them, in place, machine by machine. Kubelets have to be no newer than what API servers emulate, so
//! workers come after that; and a leg without workers is not raised before the next one, which emulates its minor.
//!
//! # Invariants
//! * A leg leads at most one minor further than the one before it, and each leads to a stemcell that is known.
//! * What an API server is to its clients never goes back, and no two of them are more than a minor apart in it.
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
    WayBack,
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
    /// The newest minor of its API servers.
    pub newest: u32,
    /// What they emulate where they are newer.
    pub emulates: Option<u32>,
    /// The minor of its oldest kubelet; the same as that of its API servers when it has no workers.
    pub kubelets: u32,
    /// What the newest of its control-plane machines are made from, which a leg to that minor keeps to: an upgrade
    /// that was cut off goes on.
    pub stemcell: Option<&'a StemcellRecord>,
    /// Whether all of its control-plane machines are.
    pub made: bool,
}

/// The legs to `target`: for each minor one that replaces the control plane by machines that emulate the minor before,
/// through the newest stemcell that is known of each in between, and one that raises it wherever workers follow.
pub fn legs(
    start: Start<'_>,
    target: &StemcellRecord,
    known: &[StemcellRecord],
) -> Result<Vec<Leg>, MissingMinors> {
    let to = &target.kubernetes_version;
    let from = start.emulates.or_else(|| minor_of(start.servers));
    let minors = match (from, minor_of(to)) {
        (Some(from), Some(to)) => (from + 1)..(to + 1),
        _ => 0..0, // whoever validates versions says so
    };
    let mut stemcells: Vec<(u32, &StemcellRecord)> = Vec::new();
    let mut missing = Vec::new();
    for minor in minors.clone() {
        let of = |stemcell: &&StemcellRecord| minor_of(&stemcell.kubernetes_version) == Some(minor);
        let newest = known
            .iter()
            .filter(of)
            .max_by_key(|stemcell| newer(stemcell));
        let last = Some(target).filter(|_| minor + 1 == minors.end);
        match last.or(start.stemcell.filter(of)).or(newest) {
            Some(stemcell) => stemcells.push((minor, stemcell)),
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
    let leg = |stemcell: &StemcellRecord, workers, emulates| Leg {
        kubernetes_version: stemcell.kubernetes_version.clone(),
        stemcell: stemcell.version.clone(),
        workers,
        emulates,
    };
    if stemcells.is_empty() {
        // Another patch, or back to what is emulated: whoever goes back does not stop emulating on the way.
        return Ok(vec![leg(target, true, start.emulates)]);
    }
    let mut kubelets = start.kubelets;
    let mut legs = Vec::new();
    let after = stemcells.iter().skip(1).map(Some).chain([None]);
    for ((minor, stemcell), next) in stemcells.iter().zip(after) {
        let workers =
            next.is_none_or(|(next, _)| next.saturating_sub(kubelets) > KUBELET_OLDER_MAX);
        let before = minor.saturating_sub(1);
        if workers {
            kubelets = *minor;
        }
        // One of them is what it is already, and does not go back to less.
        if start.emulates.is_none() && start.newest >= *minor {
            legs.push(leg(stemcell, workers, None));
            continue;
        }
        let made = start
            .stemcell
            .filter(|_| start.made && start.emulates == Some(before));
        if made.is_none_or(|made| made.version != stemcell.version) {
            legs.push(leg(stemcell, false, Some(before)));
        }
        if workers {
            legs.push(leg(stemcell, true, None));
        }
    }
    Ok(legs)
}

/// Whether a control plane can go back to what it emulates in a leg: to `before`, the version that ran before it, or
/// to another of that minor. None where it emulates nothing, or goes back itself.
pub fn way_back(leg: &Leg, before: &str, known: &[StemcellRecord]) -> Option<WayBack> {
    let minor = leg.emulates?;
    if minor_of(&leg.kubernetes_version) <= Some(minor) {
        return None; // it is the way back
    }
    let of = |stemcell: &&StemcellRecord| minor_of(&stemcell.kubernetes_version) == Some(minor);
    let order = |stemcell: &&StemcellRecord| stemcell.kubernetes_version == before;
    let earlier = known.iter().filter(of);
    let earlier = earlier.max_by_key(|stemcell| (order(stemcell), newer(stemcell)));
    let Some(earlier) = earlier else {
        let why = format!("no stemcell of Kubernetes 1.{minor}.x is known");
        return Some(WayBack::Closed { why });
    };
    let later = known
        .iter()
        .find(|stemcell| stemcell.version == leg.stemcell);
    Some(match later.and_then(|later| etcd_refuses(later, earlier)) {
        Some(why) => WayBack::Closed { why },
        None => WayBack::Open {
            kubernetes_version: earlier.kubernetes_version.clone(),
        },
    })
}

/// Why the etcd of `to` does not take over the data of that of `from`: it is of an earlier minor, which reads it only
/// after a downgrade that nothing here carries out.
pub fn etcd_refuses(from: &StemcellRecord, to: &StemcellRecord) -> Option<String> {
    let version = |of: &StemcellRecord| of.components.get("etcd").cloned();
    let minor = |text: &str| -> Option<(u32, u32)> {
        let mut parts = text.split('.').map(str::parse);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    };
    let (from, to) = (version(from)?, version(to)?);
    (minor(&to)? < minor(&from)?)
        .then(|| format!("etcd {to} does not read what etcd {from} has written"))
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
        machine.emulates = told.emulates;
        machine.labelled = Some(told.labels);
        machine.serving = true;
        (machine.cordoned, machine.condemned, machine.fenced) = (false, false, false);
        machine.departed.clear();
        (machine.former, machine.additional) = (None, false);
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
    let starts = |step: &PlanStep| match &step.action {
        Action::StartComponents { machine } => Some(machine.clone()),
        _ => None,
    };
    let made: Vec<_> = plan.steps.iter().filter_map(creates).collect();
    let mut machines: Vec<_> = plan.steps.iter().filter_map(comes).collect();
    machines.retain(|machine| made.contains(machine));
    let mut restarted: Vec<_> = plan.steps.iter().filter_map(starts).collect();
    restarted.retain(|machine| !made.contains(machine));
    LegForecast {
        kubernetes_version: leg.kubernetes_version.clone(),
        stemcell: leg.stemcell.clone(),
        hash: plan.hash,
        steps: plan.steps.len(),
        api_down: plan.takes_api_down(),
        machines,
        restarted,
        emulates: leg.emulates,
        way_back: None,
        api_servers: meanwhile(desired, observed, true),
        kubelets: meanwhile(desired, observed, false),
        seconds: None,
        drains: None,
    }
}

/// The oldest and the newest minor that there is from the first step to the last: of what API servers are to their
/// clients, or of all kubelets.
fn meanwhile(desired: &Desired, observed: &Observed, servers: bool) -> (u32, u32) {
    let DesiredState::Present { machines, .. } = &desired.state else {
        return (0, 0);
    };
    let of = |pool: &Option<_>, version: &str, acts: Option<u32>| match servers {
        true => acts.filter(|_| pool.is_none()),
        false => minor_of(version),
    };
    let wanted = machines.values();
    let wanted = wanted.filter_map(|m| of(&m.pool, &m.kubernetes_version, m.api_minor()));
    let found = observed.machines.values();
    let found = found.filter_map(|m| of(&m.pool, &m.kubernetes_version, m.api_minor()));
    let all: Vec<u32> = wanted.chain(found).collect();
    let oldest = all.iter().min().copied().unwrap_or(0);
    (oldest, all.iter().max().copied().unwrap_or(oldest))
}

/// Digest over the decisions of all legs.
pub fn hash(legs: &[LegForecast]) -> Digest {
    let decisions: Vec<_> = legs
        .iter()
        .map(|leg| {
            (
                &leg.kubernetes_version,
                &leg.stemcell,
                leg.emulates,
                &leg.hash,
            )
        })
        .collect();
    Digest::of(serde_json::json!(decisions).to_string().as_bytes())
}
