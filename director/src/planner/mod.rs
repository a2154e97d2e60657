//! The planner: desired state + observed state → plan. Pure and synchronous.
//!
//! # Invariants
//! * Same input, same plan, byte for byte: no clock, no randomness, no I/O, ordered maps only.
//! * Only what is missing is planned, so a half-made cluster converges by planning it again, and the plan
//!   of a cluster that is as it should be is empty.
//! * Edges say what correctness needs and no more. Everything of a cluster starts at once; components that
//!   wait for each other by themselves (kubelet for the API server, etcd members for their quorum) are not
//!   made to wait by the plan.
//! * Persistent disks are deleted only when the order names them; machines of a control plane are deleted
//!   only with their whole cluster.
//!
//! # After a crash
//! Nothing is kept; plan again.
//!
//! # Not here
//! Whether a plan keeps the invariants is checked by [`crate::plan`], whoever made it. A policy and the
//! time are no inputs yet, since nothing decided here depends on them.

mod address;
pub mod inputs;
mod present;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::Serialize;
use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, Digest, DiskName, Incarnation, MachineName, NodeName};

use crate::model::{Action, Disruption, Goal, Invariant, Plan, PlanStep, StepKey};

pub use address::{AddressError, free_addresses, free_pod_cidrs};

/// What a cluster should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Desired {
    /// The cluster.
    pub cluster: ClusterName,
    /// What is wanted of it.
    pub state: DesiredState,
}

/// What is wanted of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum DesiredState {
    /// All of this.
    Present {
        /// Address and port of the endpoint.
        endpoint: (Ipv4Addr, u16),
        /// Machines, by name.
        machines: BTreeMap<MachineName, DesiredMachine>,
        /// Digest of the add-ons.
        addons: Digest,
    },
    /// Nothing.
    Absent {
        /// Persistent disks that the order names; others are kept.
        disks: BTreeSet<DiskName>,
    },
}

/// What a machine should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DesiredMachine {
    /// Whether it is of the control plane.
    pub control_plane: bool,
    /// Which rebirth of it is wanted.
    pub incarnation: Incarnation,
    /// Its node.
    pub node: NodeName,
    /// Its stemcell.
    pub stemcell: String,
    /// Version of its kubelet and, on a control plane, of its API server.
    pub kubernetes_version: String,
    /// Its persistent disk.
    pub disk: Option<DiskName>,
    /// Digest of everything its configuration depends on.
    pub configuration: Digest,
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
}

/// What there is of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedMachine {
    /// Which rebirth of it this is.
    pub incarnation: Incarnation,
    /// Its node.
    pub node: NodeName,
    /// False when its creation was cut off.
    pub complete: bool,
    /// Whether its data disk is mounted.
    pub mounted: bool,
    /// Digest of the configuration that was written.
    pub configured: Option<Digest>,
    /// Digest of the configuration that its components were started with.
    pub started: Option<Digest>,
    /// Whether its node was seen Ready.
    pub ready: bool,
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
    /// A control-plane machine would have to go while its cluster stays.
    #[error(
        "control-plane machine {machine} is {found}, wanted is {wanted}; this release does not replace \
         members of etcd: delete the cluster, or bring the machine back"
    )]
    ControlPlaneMachine {
        /// The machine.
        machine: MachineName,
        /// What there is.
        found: String,
        /// What is wanted.
        wanted: String,
    },
    /// A wanted disk belongs to a machine that stays.
    #[error("disk {disk} is attached to machine {holder}; detach it there first")]
    DiskHeld {
        /// The disk.
        disk: DiskName,
        /// The machine that has it.
        holder: MachineName,
    },
    /// A cluster without a control plane.
    #[error("cluster {0} has no control-plane machine")]
    NoControlPlane(ClusterName),
}

impl PlanError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::ControlPlaneMachine { .. } | Self::DiskHeld { .. } => ErrorClass::Operator,
            Self::NoControlPlane(_) => ErrorClass::Bug,
        }
    }
}

/// Plans what has to be done so that what is observed becomes what is desired.
pub fn plan(desired: &Desired, observed: &Observed) -> Result<Plan, PlanError> {
    let mut steps = Steps::default();
    let goal = match &desired.state {
        DesiredState::Present {
            machines, addons, ..
        } => {
            present::plan(&desired.cluster, machines, *addons, observed, &mut steps)?;
            Goal::Present
        }
        DesiredState::Absent { disks } => {
            plan_absent(disks, observed, &mut steps);
            Goal::Absent
        }
    };
    let hash = hash(desired, goal, &steps.list);
    Ok(Plan {
        cluster: desired.cluster.clone(),
        goal,
        hash,
        steps: steps.list,
    })
}

/// Digest over the decisions of a plan: what is wanted, and what is done in which order.
pub fn hash(desired: &Desired, goal: Goal, steps: &[PlanStep]) -> Digest {
    let decisions: Vec<_> = steps
        .iter()
        .map(|step| {
            (
                &step.key,
                &step.action,
                step.guard,
                step.disrupts,
                &step.after,
            )
        })
        .collect();
    // Ordered maps with string keys and plain values: serialising cannot fail, and is the same each time.
    Digest::of(&serde_json::to_vec(&(desired, goal, decisions)).unwrap_or_default())
}

fn plan_absent(disks: &BTreeSet<DiskName>, observed: &Observed, steps: &mut Steps) {
    for machine in observed.machines.keys() {
        steps.add(
            machine_key(machine, "delete"),
            Action::DeleteMachine {
                machine: machine.clone(),
            },
            "the cluster is to be deleted",
            Invariant::OneIncarnation,
            Disruption::Api,
            [],
        );
    }
    for (disk, found) in &observed.disks {
        if !disks.contains(disk) {
            continue;
        }
        let holder = found.attached_to.iter().map(|m| machine_key(m, "delete"));
        steps.add(
            StepKey(format!("disk/{disk}/delete")),
            Action::DeleteDisk { disk: disk.clone() },
            "the order to delete the cluster names this disk",
            Invariant::NamedDeletion,
            Disruption::Data,
            holder,
        );
    }
    if observed.endpoint {
        steps.add(
            StepKey("endpoint/delete".to_owned()),
            Action::DeleteEndpoint,
            "the cluster is to be deleted",
            Invariant::StepEnds,
            Disruption::Api,
            [],
        );
    }
    if observed.records {
        let all: Vec<_> = steps.list.iter().map(|step| step.key.clone()).collect();
        steps.add(
            StepKey("cluster/forget".to_owned()),
            Action::ForgetCluster,
            "nothing of the cluster is left; its addresses and keys are given up last",
            Invariant::OneIncarnation,
            Disruption::Nothing,
            all,
        );
    }
}

/// Steps in the order in which they were added; what a step waits for is dropped when it is not planned.
#[derive(Debug, Default)]
struct Steps {
    list: Vec<PlanStep>,
    keys: BTreeSet<StepKey>,
}

impl Steps {
    fn add(
        &mut self,
        key: StepKey,
        action: Action,
        why: &str,
        guard: Invariant,
        disrupts: Disruption,
        after: impl IntoIterator<Item = StepKey>,
    ) {
        let after: BTreeSet<_> = after
            .into_iter()
            .filter(|key| self.keys.contains(key))
            .collect();
        self.keys.insert(key.clone());
        self.list.push(PlanStep {
            key,
            action,
            why: why.to_owned(),
            guard,
            disrupts,
            after: after.into_iter().collect(),
        });
    }

    fn has(&self, key: &StepKey) -> bool {
        self.keys.contains(key)
    }
}

fn machine_key(machine: &MachineName, verb: &str) -> StepKey {
    StepKey(format!("machine/{machine}/{verb}"))
}
