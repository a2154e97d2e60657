//! The planner: desired state + observed state → plan. Pure and synchronous.
//!
//! # Invariants
//! * Same input, same plan, byte for byte: no clock, no randomness, no I/O, and what is gone through is in order.
//! * Only what is missing is planned, so a half-made cluster converges by planning it again, and the plan
//!   of a cluster that is as it should be is empty.
//! * Edges say what correctness needs and no more. Everything of a new cluster starts at once; components
//!   that wait for each other by themselves (kubelet for the API server, etcd members for their quorum) are
//!   not made to wait by the plan.
//! * Of a cluster that serves, machines are taken out of service in an order that keeps quorum, budgets and
//!   version skew: what is down already first, the control plane one at a time, then the workers.
//! * A control-plane machine keeps its data disk through all its incarnations, so its member of etcd goes
//!   on where it was. Persistent disks are deleted only when the order names them.
//! * Members of etcd join and leave one at a time: a new one as a learner that catches up before it has a
//!   vote, and before anything else of its machine starts; one that goes after those that stay do not count on
//!   it any more. One whose disk is gone leaves, and joins again.
//!
//! # Cost
//! Near-linear in machines: each gets a constant number of steps, and each step waits for a bounded number
//! of others; checkpoints stand between groups instead of an edge for each pair. A step that is waited for or looked
//! up is a `steps::Key`, which shares the name of its machine; its text is made once, when it is added.
//!
//! # After a crash
//! Nothing is kept; plan again.
//!
//! # Not here
//! Whether a plan keeps the invariants is checked by [`crate::plan`], whoever made it. The time is no input
//! yet, since nothing decided here depends on it.

mod absent;
mod address;
pub mod again;
pub mod agents;
mod bring_up;
pub mod inputs;
pub mod legs;
mod members;
mod present;
pub mod refit;
pub mod renewal;
pub mod restore;
mod steps;
mod takedown;
#[cfg(test)]
mod tests;
pub mod zones;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::Ipv4Addr;

use serde::Serialize;
use windlass_common::cluster::DrainSpec;
use windlass_common::error::ErrorClass;
use windlass_common::gate::GateSpec;
use windlass_common::id::{
    ClusterName, Digest, DiskName, Incarnation, MachineName, NodeName, PoolName, ZoneName,
};

use crate::kubernetes::facts::minor_of;
use crate::model::{Goal, Plan, PlanStep, Reboot};
use steps::Steps;

pub(crate) use steps::{Verb, machine_key};

pub use address::{AddressError, free_addresses, free_pod_cidrs};

/// What a cluster should be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Desired {
    /// The cluster.
    pub cluster: ClusterName,
    /// What is wanted of it.
    pub state: DesiredState,
}

/// What is wanted of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub enum DesiredState {
    /// All of this.
    Present {
        /// Address and port of the endpoint.
        endpoint: (Ipv4Addr, u16),
        /// Machines, by name.
        machines: BTreeMap<MachineName, DesiredMachine>,
        /// Budgets of the pools; one without an entry has the default.
        budgets: BTreeMap<PoolName, Budget>,
        /// Digest of the add-ons.
        addons: Digest,
        /// What is allowed in order to get a node empty.
        drain: DrainSpec,
        /// What has to be so before a change goes on from one machine to the next.
        gates: Vec<GateSpec>,
    },
    /// Nothing.
    Absent {
        /// Persistent disks that the order names; others are kept.
        disks: BTreeSet<DiskName>,
    },
}

/// How many machines of a pool may be out of service because of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize)]
pub struct Budget {
    /// Machines below the number that is wanted.
    pub max_unavailable: u32,
    /// So many are changed first, and the others once these are in service again.
    pub canaries: u32,
}

/// What a machine should be.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct DesiredMachine {
    /// The pool it is one of; none for the control plane.
    pub pool: Option<PoolName>,
    /// Which rebirth of it is wanted.
    pub incarnation: Incarnation,
    /// Its node.
    pub node: NodeName,
    /// Its stemcell.
    pub stemcell: String,
    /// Version of its kubelet and, on a control plane, of its API server.
    pub kubernetes_version: String,
    /// Minor that its API server emulates; none where it is what it is, and of a worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emulates: Option<u32>,
    /// Its persistent disk.
    pub disk: Option<DiskName>,
    /// Digest of everything its configuration depends on, routes included.
    pub configuration: Digest,
    /// Digest of what its components are started with: the configuration without routes.
    pub components: Digest,
    /// Digest of what its Node is told.
    pub labels: Digest,
    /// What it gets in place, without being made anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refit: Option<Refit>,
    /// Why it is made anew although it was to be changed in place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// That it is restarted by its provider, as the repair of a machine that serves; never in its records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reboot: Option<Reboot>,
}

/// What a machine gets in place.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct Refit {
    /// The stemcell whose components it gets.
    pub stemcell: String,
    /// What changes, for people.
    pub changes: String,
}

impl DesiredMachine {
    /// Whether it is of the control plane.
    pub fn control_plane(&self) -> bool {
        self.pool.is_none()
    }

    /// The minor that its API server is to its clients.
    pub fn api_minor(&self) -> Option<u32> {
        api_minor(&self.kubernetes_version, self.emulates)
    }
}

/// What there is of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// Whether the provider has its endpoint.
    pub endpoint: bool,
    /// Whether that endpoint runs as wanted.
    pub endpoint_current: bool,
    /// Its machines, by name.
    pub machines: BTreeMap<MachineName, ObservedMachine>,
    /// Its persistent disks, by name.
    pub disks: BTreeMap<DiskName, ObservedDisk>,
    /// Digest of the add-ons that were applied last.
    pub addons: Option<Digest>,
    /// Whether the director has records of it.
    pub records: bool,
    /// Machines that the director has records of and that nothing is wanted of, whether or not they exist.
    pub surplus: BTreeSet<MachineName>,
    /// Control-plane machines that the endpoint sends nobody to.
    pub out_of_endpoint: BTreeSet<MachineName>,
    /// Control-plane machines that have no vote in etcd: they are joining, or have left.
    pub outside: BTreeSet<MachineName>,
    /// Machines that nothing is wanted of and that etcd may know.
    pub leaving: BTreeSet<MachineName>,
    /// Control-plane machines whose member of etcd has joined, and of which nothing else was started yet.
    pub promoted: BTreeSet<MachineName>,
    /// Machines whose data disk, or the file system on it, is smaller than is wanted.
    pub short_of_disk: BTreeSet<MachineName>,
    /// Nodes of earlier incarnations whose objects may still be there.
    pub departed: BTreeMap<MachineName, BTreeSet<NodeName>>,
    /// Machines that have come or changed, and for which the spec's gates were not open since.
    pub unasked: BTreeSet<MachineName>,
    /// Zones of the machines that are in one, also of those that are to be made.
    pub zones: BTreeMap<MachineName, ZoneName>,
}

/// What there is of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedMachine {
    /// The pool it is one of; none for the control plane.
    pub pool: Option<PoolName>,
    /// Which rebirth of it this is.
    pub incarnation: Incarnation,
    /// Its node.
    pub node: NodeName,
    /// Version of its components.
    pub kubernetes_version: String,
    /// Minor that its API server was started to emulate.
    pub emulates: Option<u32>,
    /// False when its creation was cut off.
    pub complete: bool,
    /// Whether it runs: the provider says so, and no verdict says that it serves nobody.
    pub running: bool,
    /// Whether its data disk is mounted.
    pub mounted: bool,
    /// Digest of the configuration that was written.
    pub configured: Option<Digest>,
    /// Digest of the configuration that its components were started with.
    pub started: Option<Digest>,
    /// Whether its components were about to be stopped, or to be told something else, when that was given up: they
    /// may run as they were.
    pub stopping: bool,
    /// Whether its node was seen Ready.
    pub ready: bool,
    /// Digest of what its Node was told.
    pub labelled: Option<Digest>,
    /// Whether its node may be cordoned by us.
    pub cordoned: bool,
    /// Whether it is being shut out or was; its node is among the departed then.
    pub fenced: bool,
    /// The name under which it is kept when it goes, if somebody wants to look into it.
    pub kept_as: Option<MachineName>,
}

impl ObservedMachine {
    /// Whether taking it away costs anything: it runs, came into service and was not stopped by us. A silent
    /// agent does not count as down: it proves nothing about the machine.
    pub fn available(&self) -> bool {
        self.complete && self.running && self.ready && self.started.is_some() && !self.fenced
    }

    /// The minor that its API server is to its clients.
    pub fn api_minor(&self) -> Option<u32> {
        api_minor(&self.kubernetes_version, self.emulates)
    }

    /// Whether its member of etcd may run although it does not count as one that serves.
    pub(crate) fn may_be_stopped(&self) -> bool {
        self.pool.is_none() && self.complete && self.running && self.stopping && !self.fenced
    }

    /// Whether pods may run on it although it is not in service, as far as is known: it was told to start, or is
    /// started again, and nothing says that it serves nobody.
    pub(crate) fn may_have_pods(&self) -> bool {
        let worker = self.pool.is_some() && self.complete && self.running;
        worker && self.configured.is_some() && !self.fenced
    }

    /// Whether a Node object of it may exist that nobody has begun to remove. That a worker's components were started
    /// may not have been written down; that it was configured before was.
    pub(crate) fn registered(&self) -> bool {
        let told = self.pool.is_some() && self.configured.is_some();
        (self.ready || self.started.is_some() || told) && !self.fenced
    }
}

impl Observed {
    /// Whether a machine's member of etcd runs, as far as is known.
    pub fn member_runs(&self, name: &MachineName) -> bool {
        self.machines.get(name).is_some_and(|found| {
            let promoted = self.promoted.contains(name) && found.complete && found.running;
            found.available() || (promoted && !found.fenced)
        })
    }

    /// Members of etcd with a vote that are to go.
    pub fn leaving_voters(&self) -> impl Iterator<Item = &MachineName> + Clone {
        let voting = |name: &&MachineName| !self.outside.contains(*name);
        self.leaving.iter().filter(voting)
    }
}

/// A persistent disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedDisk {
    /// The machine that has it.
    pub attached_to: Option<MachineName>,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A machine without a record would have to go while its cluster stays.
    #[error(
        "machine {machine} would have to go, may be of the control plane, and has no record; delete the \
         cluster, or the machine by hand"
    )]
    ControlPlaneMachine {
        /// The machine.
        machine: MachineName,
    },
    /// There is a later incarnation than the records know.
    #[error(
        "machine {machine} exists as incarnation {found}, the records say {wanted}: the store is older than \
         the machine; restore a later one, or delete the machine by hand"
    )]
    LaterIncarnation {
        /// The machine.
        machine: MachineName,
        /// What there is.
        found: Incarnation,
        /// What is wanted.
        wanted: Incarnation,
    },
    /// A wanted disk belongs to a machine that stays.
    #[error("disk {disk} is attached to machine {holder}; detach it there first")]
    DiskHeld {
        /// The disk.
        disk: DiskName,
        /// The machine that has it.
        holder: MachineName,
    },
    /// A member of etcd has lost its data.
    #[error(
        "data disk {disk} of control-plane machine {machine} is gone, and {others} of the other {members} \
         members of etcd are in service: too few to make the member anew; bring them back, or restore the disk. If a \
         majority is gone for good, `windlass cluster restore NAME --from-member --dry-run` shows what is left of \
         etcd"
    )]
    DiskLost {
        /// The disk.
        disk: DiskName,
        /// Its machine.
        machine: MachineName,
        /// Other members in service.
        others: usize,
        /// Other members.
        members: usize,
    },
    /// Taking a control-plane machine would cost etcd its quorum.
    #[error(
        "{available} of {members} control-plane machines are in service; taking {machine} would leave \
         {left}, and etcd needs {quorum}: bring the others back first"
    )]
    Quorum {
        /// The machine that is to be changed.
        machine: MachineName,
        /// Members of etcd.
        members: usize,
        /// Of them in service.
        available: usize,
        /// Of them left in service.
        left: usize,
        /// Of them needed.
        quorum: usize,
    },
    /// A pool has no machine to spare.
    #[error(
        "pool {pool}: {available} machines are in service or coming, {floor} must be at any moment, and \
         {changing} are to be taken down; bring others back, or raise maxUnavailable or maxSurge"
    )]
    Spare {
        /// The pool.
        pool: PoolName,
        /// Machines in service, with those that the plan makes first.
        available: usize,
        /// The least number in service.
        floor: usize,
        /// Machines in service that would have to be taken down.
        changing: usize,
    },
    /// A cluster without a control plane.
    #[error("cluster {0} has no control-plane machine")]
    NoControlPlane(ClusterName),
}

impl PlanError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::ControlPlaneMachine { .. }
            | Self::LaterIncarnation { .. }
            | Self::DiskHeld { .. }
            | Self::DiskLost { .. }
            | Self::Quorum { .. }
            | Self::Spare { .. } => ErrorClass::Operator,
            Self::NoControlPlane(_) => ErrorClass::Bug,
        }
    }
}

/// Plans what has to be done so that what is observed becomes what is desired.
pub fn plan(desired: &Desired, observed: &Observed) -> Result<Plan, PlanError> {
    let (goal, steps) = steps(desired, observed)?;
    Ok(made(desired, goal, steps.list))
}

fn steps(desired: &Desired, observed: &Observed) -> Result<(Goal, Steps), PlanError> {
    let mut steps = Steps::default();
    let goal = match &desired.state {
        DesiredState::Present {
            machines,
            budgets,
            addons,
            gates,
            ..
        } => {
            let mut site =
                present::Site::new(&desired.cluster, machines, budgets, *addons, observed)?;
            site.gated = !gates.is_empty();
            present::plan(&site, &mut steps)?;
            Goal::Present
        }
        DesiredState::Absent { disks } => {
            absent::plan(disks, observed, &mut steps);
            Goal::Absent
        }
    };
    Ok((goal, steps))
}

/// The plan that has these steps, and no forecast yet.
fn made(desired: &Desired, goal: Goal, steps: Vec<PlanStep>) -> Plan {
    let hash = hash(desired, goal, &steps);
    Plan::of(desired.cluster.clone(), goal, hash, steps)
}

/// Leaves of a cluster only what `machines` need: everything else is taken for as it should be, whatever is
/// wanted of it, and for as it is. `down` are those that serve nobody, whatever the provider says.
///
/// For repairs, which may not go on with changes that nobody has approved now. A pool has one machine to spare
/// for them, whatever its budget says of changes: a machine that is to be replaced works badly, or an operator
/// named it. PodDisruptionBudgets hold all the same.
pub fn narrow(
    desired: &mut Desired,
    observed: &mut Observed,
    machines: &BTreeSet<MachineName>,
    down: &BTreeSet<MachineName>,
) {
    let DesiredState::Present {
        machines: wanted,
        budgets,
        addons,
        ..
    } = &mut desired.state
    else {
        return;
    };
    for name in machines {
        if let Some(pool) = wanted.get(name).and_then(|machine| machine.pool.clone()) {
            let budget = budgets.entry(pool).or_default();
            budget.max_unavailable = budget.max_unavailable.max(1);
        }
    }
    let joined = |name: &MachineName, observed: &Observed| {
        observed.machines.contains_key(name) || observed.departed.contains_key(name)
    };
    // Members of etcd stay in sight: their number is what a majority is counted from.
    let votes = |name: &MachineName, machine: &DesiredMachine| {
        machine.control_plane() && !observed.outside.contains(name)
    };
    wanted.retain(|name, machine| {
        machines.contains(name)
            || votes(name, machine)
            || (!machine.control_plane() && joined(name, observed))
    });
    // Members on their way out vote until they are gone, and are counted as they are. What else waits to go, and
    // what waits to join, is not counted on.
    let leaving: Vec<(MachineName, DesiredMachine)> = observed
        .leaving_voters()
        .filter_map(|name| Some((name.clone(), as_found(observed.machines.get(name)?))))
        .collect();
    wanted.extend(leaving);
    observed.surplus.clear();
    observed.leaving.clear();
    observed
        .machines
        .retain(|name, _| wanted.contains_key(name));
    observed.addons = Some(*addons);
    observed
        .out_of_endpoint
        .retain(|name| machines.contains(name));
    observed.departed.retain(|name, _| machines.contains(name));
    observed.unasked.retain(|name| machines.contains(name));
    for (name, machine) in wanted {
        if machines.contains(name) {
            continue;
        }
        (machine.refit, machine.because, machine.reboot) = (None, None, None);
        let found = observed.machines.get(name);
        let up = found.is_some_and(ObservedMachine::available) && !down.contains(name);
        if let Some(found) = found {
            machine.incarnation = found.incarnation;
            machine.node = found.node.clone();
            machine
                .kubernetes_version
                .clone_from(&found.kubernetes_version);
            machine.emulates = found.emulates;
        }
        let as_it_is = ObservedMachine {
            pool: machine.pool.clone(),
            incarnation: machine.incarnation,
            node: machine.node.clone(),
            kubernetes_version: machine.kubernetes_version.clone(),
            emulates: machine.emulates,
            complete: true,
            running: up,
            mounted: true,
            configured: Some(machine.configuration),
            started: Some(machine.components),
            stopping: false,
            ready: true,
            labelled: Some(machine.labels),
            cordoned: false,
            fenced: false,
            kept_as: None,
        };
        observed.machines.insert(name.clone(), as_it_is);
    }
}

/// The minor that an API server of a version is to its clients, where it emulates this one.
fn api_minor(version: &str, emulates: Option<u32>) -> Option<u32> {
    let own = minor_of(version)?;
    Some(emulates.map_or(own, |emulated| emulated.min(own)))
}

/// A machine of which nothing is wanted, taken for as it should be.
fn as_found(found: &ObservedMachine) -> DesiredMachine {
    let unknown = Digest::of(b"not known");
    DesiredMachine {
        pool: found.pool.clone(),
        incarnation: found.incarnation,
        node: found.node.clone(),
        stemcell: String::new(),
        kubernetes_version: found.kubernetes_version.clone(),
        emulates: found.emulates,
        disk: None,
        configuration: found.configured.unwrap_or(unknown),
        components: found.started.unwrap_or(unknown),
        labels: found.labelled.unwrap_or(unknown),
        refit: None,
        because: None,
        reboot: None,
    }
}

/// Digest over the decisions of a plan: what is wanted, and what is done in which order. They are taken as they are
/// in memory and not as text, which would cost more than the rest of a plan: two directors of one version agree on it.
pub fn hash(desired: &Desired, goal: Goal, steps: &[PlanStep]) -> Digest {
    let mut decisions = Decisions::default();
    (desired, goal, steps.len()).hash(&mut decisions);
    for step in steps {
        let what = (&step.key, &step.action);
        (what, step.guard, step.disrupts, &step.after).hash(&mut decisions);
    }
    Digest::of(&decisions.0)
}

/// Everything that is hashed, one after the other. Values of the standard library and derived ones say how long they
/// are, so that no two plans come to the same.
#[derive(Default)]
struct Decisions(Vec<u8>);

impl Hasher for Decisions {
    fn write(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// How much there is: the digest is not asked for here.
    fn finish(&self) -> u64 {
        self.0.len() as u64
    }
}
