//! A plan: an explained, acyclic graph of steps, each with its reason and its guard.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};
use utoipa::ToSchema;
use windlass_common::id::{ClusterName, Digest, DiskName, MachineName, NodeName, PoolName};

use super::{LegsForecast, RestoreForecast, RestoreSource};
use crate::drain::{Hazard, Rehearsal};
use crate::maintenance::WindowView;

/// What has to be done to bring a cluster where it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
    /// What the plan leads to.
    pub goal: Goal,
    /// Digest over the decisions: machines, versions, order; not over explanations.
    #[schema(value_type = String)]
    pub hash: Digest,
    /// The steps, in an order that satisfies [`PlanStep::after`].
    pub steps: Vec<PlanStep>,
    /// What its drains are expected to do, in a plan that is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drains: Option<DrainForecast>,
    /// What becomes of machines, etcd and versions in the course of it, in a plan that is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<ChangeForecast>,
    /// What its machines would meet in the course of it, in a plan that is shown; see its drains for what the cluster
    /// would.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hazards: Vec<Hazard>,
    /// When its machines may be changed, in a plan that is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<WindowView>,
    /// What it is expected to lose, in the plan of a restore.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<RestoreForecast>,
    /// All legs of the upgrade over several minors that it is one leg of. Its hash covers all of them, and its steps
    /// are those of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<LegsForecast>,
}

/// What the drains of a plan are expected to do: a forecast, which its hash does not cover.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum DrainForecast {
    /// Played through with the pods and the budgets that there are now.
    Rehearsed {
        /// What was found.
        rehearsal: Rehearsal,
    },
    /// The cluster's API does not say.
    Unknown {
        /// Why.
        why: String,
    },
}

/// What becomes of machines, etcd and versions in the course of a plan, its steps taken in the order in which they
/// are listed: a forecast, which its hash does not cover.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChangeForecast {
    /// Machines that are new, in the order of the plan.
    #[schema(value_type = Vec<String>)]
    pub created: Vec<MachineName>,
    /// Machines that are made anew as their next incarnation.
    #[schema(value_type = Vec<String>)]
    pub replaced: Vec<MachineName>,
    /// Machines that go on, and whose components are started anew.
    #[schema(value_type = Vec<String>)]
    pub restarted: Vec<MachineName>,
    /// Machines that go for good.
    #[schema(value_type = Vec<String>)]
    pub deleted: Vec<MachineName>,
    /// Machines of `created` that a pool has beyond its number while others of it are there that go, by pool.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, Vec<String>>)]
    pub surge: BTreeMap<PoolName, Vec<MachineName>>,
    /// How etcd and versions are at first, and from each step on that changes something of it.
    pub moments: Vec<Moment>,
    /// How long it takes, in seconds, by what steps of this director have taken before. Absent while nothing is known
    /// to go by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

/// How etcd and versions are from one step on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// The step; absent for what there is before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepKey>,
    /// Members of etcd that have a vote.
    pub members: usize,
    /// Of them those that run.
    pub running: usize,
    /// Minors that API servers are to their clients, oldest and newest; absent where none runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_servers: Option<(u32, u32)>,
    /// Minors of the kubelets, oldest and newest; absent where none runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubelets: Option<(u32, u32)>,
}

impl Plan {
    /// One that leads to `goal` by these steps, without a forecast.
    pub fn of(cluster: ClusterName, goal: Goal, hash: Digest, steps: Vec<PlanStep>) -> Plan {
        Plan {
            cluster,
            goal,
            hash,
            steps,
            drains: None,
            changes: None,
            hazards: Vec::new(),
            window: None,
            restore: None,
            upgrade: None,
        }
    }

    /// Whether the cluster's API is down in the course of it, or of any leg of the upgrade that it is one leg of.
    pub fn takes_api_down(&self) -> bool {
        let mut legs = self.upgrade.iter().flat_map(|upgrade| &upgrade.legs);
        let mut steps = self.steps.iter();
        steps.any(|step| step.disrupts == Disruption::Api) || legs.any(|leg| leg.api_down)
    }

    /// Nodes in the order in which they are drained; those of one batch may be drained at the same time.
    pub fn drain_order(&self) -> Vec<Vec<NodeName>> {
        let mut level: BTreeMap<&StepKey, usize> = BTreeMap::new();
        let mut batches: Vec<Vec<NodeName>> = Vec::new();
        for step in &self.steps {
            let before = step.after.iter().filter_map(|key| level.get(key));
            let mut at = before.max().copied().unwrap_or(0);
            if let Action::Drain { node, .. } = &step.action {
                if batches.len() == at {
                    batches.push(Vec::new());
                }
                batches[at].push(node.clone());
                at += 1;
            }
            level.insert(&step.key, at);
        }
        batches
    }
}

/// What a plan leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Goal {
    /// The cluster exists as its spec says.
    Present,
    /// Nothing of the cluster exists.
    Absent,
}

// Clones share the text: a step is named by all that wait for it.
/// Names one step of a plan, for example `machine/demo-cp-0/create`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, ToSchema)]
#[serde(from = "String")]
#[schema(value_type = String)]
pub struct StepKey(pub Arc<str>);

impl From<String> for StepKey {
    fn from(name: String) -> Self {
        Self(name.into())
    }
}

impl Serialize for StepKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl fmt::Display for StepKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlanStep {
    /// Unique in the plan.
    pub key: StepKey,
    /// What to do.
    pub action: Action,
    /// Why it is there.
    #[schema(value_type = String)]
    pub why: Cow<'static, str>,
    /// The invariant that guards it.
    pub guard: Invariant,
    /// What it disturbs.
    pub disrupts: Disruption,
    /// Steps that have to have succeeded before.
    pub after: Vec<StepKey>,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Action {
    /// Have the provider serve the cluster's endpoint.
    EnsureEndpoint,
    /// Make a persistent disk.
    CreateDisk {
        /// The disk.
        #[schema(value_type = String)]
        disk: DiskName,
        /// The machine it is for.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Make a machine and start it.
    CreateMachine {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Give a disk to its machine.
    AttachDisk {
        /// The disk.
        #[schema(value_type = String)]
        disk: DiskName,
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Wait until the machine's agent is connected.
    AwaitAgent {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Format and mount the data disk.
    MountDisk {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Make the data disk as large as is wanted, and the file system on it.
    GrowDisk {
        /// The disk.
        #[schema(value_type = String)]
        disk: DiskName,
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Make keys on the machine, sign their certificates, write all configuration.
    Configure {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Bring the components of another stemcell onto the machine, beside those that run.
    StageComponents {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
        /// Version of the stemcell.
        stemcell: String,
    },
    /// Start the components.
    StartComponents {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Wait until the machine's API server is ready.
    AwaitControlPlane {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Apply roles, DNS and the other add-ons.
    ApplyAddons,
    /// Set the node's labels and wait until it is Ready.
    AwaitNode {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
        /// Its node.
        #[schema(value_type = String)]
        node: NodeName,
    },
    /// Remove the Node object of a machine that is no more.
    DropNode {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
        /// Its node.
        #[schema(value_type = String)]
        node: NodeName,
    },
    /// Stop and remove a machine.
    DeleteMachine {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Delete a persistent disk and its data.
    DeleteDisk {
        /// The disk, named by the operator's order.
        #[schema(value_type = String)]
        disk: DiskName,
    },
    /// Have the provider stop serving the endpoint.
    DeleteEndpoint,
    /// Forget the cluster's records and secrets.
    ForgetCluster,
    /// Wait until the cluster's API answers.
    AwaitApi,
    /// Take the machine's API server out of the endpoint: no new connections go to it.
    LeaveEndpoint {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Put the machine's API server back into the endpoint.
    JoinEndpoint {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Cordon the node and have its pods leave it.
    Drain {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
        /// Its node.
        #[schema(value_type = String)]
        node: NodeName,
    },
    /// Open the node again, if it was us who closed it.
    Uncordon {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
        /// Its node.
        #[schema(value_type = String)]
        node: NodeName,
    },
    /// Stop API server, controllers and etcd in this order, each in peace.
    StopComponents {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Shut out what there is of the machine: refuse it at the link, and have the provider prove that it is off.
    Fence {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Tell a machine of machines that are new: routes to their pods.
    AddRoutes {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Tell a machine that others are gone.
    PruneRoutes {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Forget a machine that is gone, and give up its address.
    ForgetMachine {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Wait until the gates of the cluster's spec are open.
    AwaitGates {
        /// The machine that has changed.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Put a stemcell's agent into the place of the machine's own.
    UpgradeAgent {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
        /// Version of the stemcell.
        stemcell: String,
    },
    /// Sign certificates anew for the keys that the machine has, and see that they are accepted.
    RenewCertificates {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Add the machine to etcd as a learner, without a vote.
    AddMember {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Start the machine's member of etcd, and nothing else.
    StartMember {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Give the machine's member its vote, once it has caught up.
    PromoteMember {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Have another member lead etcd, if the machine's does.
    MoveLeader {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Save a snapshot of etcd on the machine's data disk, which outlives it.
    SaveSnapshot {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Remove the machine's member from etcd.
    RemoveMember {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Wait until the pods have been given the new authority of the cluster.
    SpreadTrust,
    /// Have every Secret written again, with the encryption key that writes now.
    RewriteSecrets,
    /// Wait until cluster DNS runs as it was applied last.
    AwaitDns,
    /// Nothing but a place where steps meet.
    Checkpoint {
        /// What is so from here on.
        of: String,
    },
    /// Stop the machine's API server and controllers, also for its next boot: nobody reads or writes etcd.
    StopApi {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Stop the machine's member of etcd, also for its next boot.
    StopMember {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Make the data of the machine's member of etcd anew; what it had is kept beside.
    RestoreMember {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
        /// From what.
        source: RestoreSource,
        /// The machines whose members etcd begins with, this one included.
        #[schema(value_type = Vec<String>)]
        members: Vec<MachineName>,
    },
    /// Set the data of the machine's member of etcd aside: it joins without any.
    SetMemberAside {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Start the machine's kubelet again: it registers its node, and forgets what it has seen. Pods go on.
    RestartKubelet {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
    },
    /// Delete Node objects of machines that there are no more, and have API servers refuse them.
    SettleNodes,
    /// Have the provider restart the machine, unless it was started since.
    RebootMachine {
        /// The machine.
        #[schema(value_type = String)]
        machine: MachineName,
        /// How often it had been started when this was ordered.
        boots: u64,
    },
}

impl Action {
    /// The machine it acts on, if it is one's.
    pub fn machine(&self) -> Option<&MachineName> {
        match self {
            Self::CreateDisk { machine, .. }
            | Self::CreateMachine { machine }
            | Self::AttachDisk { machine, .. }
            | Self::AwaitAgent { machine }
            | Self::MountDisk { machine }
            | Self::GrowDisk { machine, .. }
            | Self::Configure { machine }
            | Self::StageComponents { machine, .. }
            | Self::StartComponents { machine }
            | Self::AwaitControlPlane { machine }
            | Self::AwaitNode { machine, .. }
            | Self::DropNode { machine, .. }
            | Self::DeleteMachine { machine }
            | Self::LeaveEndpoint { machine }
            | Self::JoinEndpoint { machine }
            | Self::Drain { machine, .. }
            | Self::Uncordon { machine, .. }
            | Self::StopComponents { machine }
            | Self::Fence { machine }
            | Self::AddRoutes { machine }
            | Self::PruneRoutes { machine }
            | Self::AwaitGates { machine }
            | Self::ForgetMachine { machine }
            | Self::AddMember { machine }
            | Self::StartMember { machine }
            | Self::PromoteMember { machine }
            | Self::MoveLeader { machine }
            | Self::SaveSnapshot { machine }
            | Self::RemoveMember { machine }
            | Self::StopApi { machine }
            | Self::StopMember { machine }
            | Self::RestoreMember { machine, .. }
            | Self::SetMemberAside { machine }
            | Self::RestartKubelet { machine }
            | Self::RebootMachine { machine, .. }
            | Self::RenewCertificates { machine }
            | Self::UpgradeAgent { machine, .. } => Some(machine),
            Self::EnsureEndpoint
            | Self::AwaitApi
            | Self::Checkpoint { .. }
            | Self::ApplyAddons
            | Self::SettleNodes
            | Self::SpreadTrust
            | Self::RewriteSecrets
            | Self::AwaitDns
            | Self::DeleteDisk { .. }
            | Self::DeleteEndpoint
            | Self::ForgetCluster => None,
        }
    }

    /// The kind's name, as in keys, logs and tables.
    pub fn name(&self) -> &'static str {
        match self {
            Self::EnsureEndpoint => "ensure-endpoint",
            Self::CreateDisk { .. } => "create-disk",
            Self::CreateMachine { .. } => "create-machine",
            Self::AttachDisk { .. } => "attach-disk",
            Self::AwaitAgent { .. } => "await-agent",
            Self::MountDisk { .. } => "mount-disk",
            Self::GrowDisk { .. } => "grow-disk",
            Self::Configure { .. } => "configure",
            Self::StageComponents { .. } => "stage-components",
            Self::StartComponents { .. } => "start-components",
            Self::AwaitControlPlane { .. } => "await-control-plane",
            Self::ApplyAddons => "apply-addons",
            Self::AwaitNode { .. } => "await-node",
            Self::DropNode { .. } => "drop-node",
            Self::DeleteMachine { .. } => "delete-machine",
            Self::DeleteDisk { .. } => "delete-disk",
            Self::DeleteEndpoint => "delete-endpoint",
            Self::ForgetCluster => "forget-cluster",
            Self::AwaitApi => "await-api",
            Self::LeaveEndpoint { .. } => "leave-endpoint",
            Self::JoinEndpoint { .. } => "join-endpoint",
            Self::Drain { .. } => "drain",
            Self::Uncordon { .. } => "uncordon",
            Self::StopComponents { .. } => "stop-components",
            Self::Fence { .. } => "fence",
            Self::AddRoutes { .. } => "add-routes",
            Self::PruneRoutes { .. } => "prune-routes",
            Self::ForgetMachine { .. } => "forget-machine",
            Self::AwaitGates { .. } => "await-gates",
            Self::UpgradeAgent { .. } => "upgrade-agent",
            Self::RenewCertificates { .. } => "renew-certificates",
            Self::AddMember { .. } => "add-member",
            Self::StartMember { .. } => "start-member",
            Self::PromoteMember { .. } => "promote-member",
            Self::MoveLeader { .. } => "move-leader",
            Self::SaveSnapshot { .. } => "save-snapshot",
            Self::RemoveMember { .. } => "remove-member",
            Self::SpreadTrust => "spread-trust",
            Self::RewriteSecrets => "rewrite-secrets",
            Self::AwaitDns => "await-dns",
            Self::Checkpoint { .. } => "checkpoint",
            Self::StopApi { .. } => "stop-api",
            Self::StopMember { .. } => "stop-member",
            Self::RestoreMember { .. } => "restore-member",
            Self::SetMemberAside { .. } => "set-member-aside",
            Self::RestartKubelet { .. } => "restart-kubelet",
            Self::RebootMachine { .. } => "reboot-machine",
            Self::SettleNodes => "settle-nodes",
        }
    }
}

/// The invariant that guards a step; the numbers are those of `docs/architecture.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Invariant {
    /// 1: etcd keeps its quorum; one member changes at a time.
    EtcdQuorum,
    /// 2: at most one incarnation of a machine can write.
    OneIncarnation,
    /// 3: no more machines of a pool are out of service because of us than its budget says.
    Budget,
    /// 4: PodDisruptionBudgets are honoured.
    PodBudgets,
    /// 5: versions stay inside Kubernetes' skew policy.
    VersionSkew,
    /// 6: every step ends as stated or as a reported fault.
    StepEnds,
    /// 7: persistent data is deleted only by an order that names it.
    NamedDeletion,
}

/// What a step disturbs.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum Disruption {
    /// Nothing that runs.
    Nothing,
    /// Pods of one machine.
    Pods,
    /// The cluster's API.
    Api,
    /// Data is destroyed.
    Data,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(key: &str, drains: Option<&str>, after: &[&str]) -> PlanStep {
        let machine = MachineName::new("m").unwrap();
        PlanStep {
            key: StepKey(key.into()),
            action: match drains {
                Some(node) => Action::Drain {
                    machine,
                    node: NodeName::new(node).unwrap(),
                },
                None => Action::AwaitAgent { machine },
            },
            why: "".into(),
            guard: Invariant::Budget,
            disrupts: Disruption::Nothing,
            after: after.iter().map(|key| StepKey((*key).into())).collect(),
        }
    }

    #[test]
    fn nodes_are_drained_together_when_nothing_keeps_them_apart() {
        let steps = vec![
            step("a", Some("a"), &[]),
            step("back", None, &["a"]),
            step("b", Some("b"), &["back"]),
            step("c", Some("c"), &["back"]),
            step("d", Some("d"), &["b"]),
            step("other", None, &[]),
        ];
        let cluster = ClusterName::new("demo").unwrap();
        let plan = Plan::of(cluster, Goal::Present, Digest::of(b""), steps);
        let order: Vec<Vec<String>> = plan
            .drain_order()
            .iter()
            .map(|batch| batch.iter().map(ToString::to_string).collect())
            .collect();
        assert_eq!(order, [vec!["a"], vec!["b", "c"], vec!["d"]]);
    }
}
