//! A machine as the director keeps it, and as the API shows it with its session and report.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::cluster::{KubeletSettings, MachineSize};
use windlass_common::id::{
    ClusterName, Digest, DiskName, Incarnation, MachineName, NodeName, PoolName, ZoneName,
};
use windlass_common::report::Report;

use super::{Certified, Revision, Timestamp};
use crate::health::{ConditionView, VitalView};
use crate::kubernetes::facts::minor_of;
use crate::resurrector::{HoldKind, Verdict};

/// One machine; its addresses are reserved for as long as this record exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// `<cluster>-<pool>-<number>`; `cp` stands for the control plane.
    #[schema(value_type = String)]
    pub name: MachineName,
    /// The cluster it belongs to.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
    /// What it is for.
    pub role: MachineRole,
    /// Which rebirth of it this is.
    #[schema(value_type = u32)]
    pub incarnation: Incarnation,
    /// Its Kubernetes node.
    #[schema(value_type = String)]
    pub node_name: NodeName,
    /// The provider's zone that it is in, in all of its incarnations; absent where the provider had none when it was
    /// drafted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub zone: Option<ZoneName>,
    /// Its address on the provider's network.
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
    /// Addresses of its pods.
    #[schema(value_type = String)]
    pub pod_cidr: Ipv4Net,
    /// Version of the stemcell it is made from.
    pub stemcell: String,
    /// The stemcell whose components it runs since they were brought to it in place; absent where it runs those that it
    /// was made with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fitted: Option<String>,
    /// Stemcells whose components were brought to it and may be on it, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub staged: Vec<String>,
    /// Versions of its components, by name, with which it was in service last; empty until it was.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub components: BTreeMap<String, String>,
    /// Kubernetes version of its components; empty in what an older director wrote, whose machines have
    /// their cluster's.
    #[serde(default)]
    pub kubernetes_version: String,
    /// Its shape.
    #[schema(value_type = crate::spec::RawMachineSize)]
    pub size: MachineSize,
    /// Its persistent data disk (control-plane machines).
    #[schema(value_type = Option<String>)]
    pub data_disk: Option<DiskName>,
    /// Block device of the data disk inside the machine, once attached.
    #[serde(default)]
    pub data_device: Option<String>,
    /// Whether the data disk is mounted.
    #[serde(default)]
    pub mounted: bool,
    /// How large the data disk and the file system on it are known to be, MiB, while they are to grow to what `size`
    /// says; absent once they have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grows_from_mib: Option<u32>,
    /// How far it is.
    pub phase: MachinePhase,
    /// Digest of the configuration that was written.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub configured: Option<Digest>,
    /// Digest of the configuration its components were started with.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub started: Option<Digest>,
    /// Minor of Kubernetes that its API server was started to emulate; absent while it is what it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub emulates: Option<u32>,
    /// The certificates that were written on it; absent when an older director wrote them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certified: Option<Certified>,
    /// Digest of the labels its Node was given.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub labelled: Option<Digest>,
    /// Whether its node may be cordoned by us: written before it is, and cleared after it was opened.
    #[serde(default)]
    pub cordoned: bool,
    /// Whether a verdict says that it serves nobody: then it is not drained before it is taken away. Written
    /// with the order to replace it.
    #[serde(default)]
    pub condemned: bool,
    /// Whether this incarnation is shut out: it may not connect and its power is cut. Written before it is.
    #[serde(default)]
    pub fenced: bool,
    /// Whether connections of the endpoint go to its API server (control-plane machines).
    #[serde(default = "yes")]
    pub serving: bool,
    /// How it became a member of etcd (control-plane machines); absent for those that the cluster began with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub joined: Option<Joined>,
    /// Nodes of its earlier incarnations whose objects may still be there.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub departed: Vec<NodeName>,
    /// When its kubelet last said whether its node is Ready, as it stood before its configuration was written: what
    /// one that is restarted since has to say anew. Absent once it did.
    #[serde(default)]
    pub heartbeat: Option<String>,
    /// Whether its kube-proxy was started again and load balancers outside have not had the time to trust it anew.
    #[serde(default)]
    pub proxy_restarted: bool,
    /// Kubelet settings with which its node was in service last; absent until it was for the first time.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub proven: Option<KubeletSettings>,
    /// Whether it keeps to its proven kubelet settings and components, and to what it was made as, since a change of
    /// them was rolled back. The next change of its cluster tries them again.
    #[serde(default)]
    pub pinned: bool,
    /// What it was when it was through its gates last, from when it is made anew as something else until that is
    /// through them too. Absent when an older director made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<Former>,
    /// Whether it came to a cluster that was there before it, and is not through its gates: it goes again where it fails at
    /// them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub additional: bool,
    /// What it is to become; absent while it is as it should be.
    #[serde(default)]
    pub wanted: Option<Wanted>,
    /// That it is to be restarted by its provider, as the repair of a machine that still serves; absent once it was, or
    /// once nothing is wrong with it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reboot: Option<Reboot>,
    /// How this incarnation is kept when another follows it; absent when nobody wants to look into it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// Revision of this record.
    pub revision: Revision,
    /// When it was ordered.
    pub created_at: Timestamp,
}

fn yes() -> bool {
    true
}

/// How a machine is restarted by its provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reboot {
    /// How often it had been started when that was ordered: one more shows that it was done.
    pub boots: u64,
    /// Whether its pods are asked to leave first. They are not where its kubelet or containerd is known not to work:
    /// nobody would end them, and they would hold up what mends that.
    pub drain: bool,
    /// Whether its agent is lost, so that nothing can be asked of it before.
    pub silent: bool,
}

/// How far a machine is that joins the etcd of a cluster that was there before it, or has left it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Joined {
    /// The members that its data began with, itself included, as etcd writes them: `NAME=URL,…`. None before
    /// it was added and after it was removed.
    #[serde(default)]
    pub initial_cluster: Option<String>,
    /// Whether it has a vote.
    #[serde(default)]
    pub voting: bool,
    /// Whether its member runs and nothing else of its control plane does: it has just joined, or is about to leave.
    #[serde(default)]
    pub alone: bool,
}

/// What a machine was before it was made anew as something else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Former {
    /// The stemcell whose components it ran.
    pub stemcell: String,
    /// Its Kubernetes version.
    pub kubernetes_version: String,
    /// Its shape.
    #[schema(value_type = crate::spec::RawMachineSize)]
    pub size: MachineSize,
}

/// How a machine is kept that another incarnation follows: off, without disks and network, for people to look into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Keep {
    /// The name that it gets.
    #[schema(value_type = String)]
    pub name: MachineName,
    /// Who wants it.
    pub operator: String,
    /// Why, in the operator's words; may be empty.
    #[serde(default)]
    pub reason: String,
}

/// What a machine is to become.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Wanted {
    /// Another incarnation of itself, with the same address, pod network and data disk.
    Reborn {
        /// Which.
        #[schema(value_type = u32)]
        incarnation: Incarnation,
        /// Made from this stemcell.
        stemcell: String,
        /// With this Kubernetes version.
        kubernetes_version: String,
        /// In this shape.
        #[schema(value_type = crate::spec::RawMachineSize)]
        size: MachineSize,
        /// Why it is made anew although it was to be changed in place; absent where it was not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        because: Option<String>,
    },
    /// Itself, with the components of another stemcell.
    Refitted {
        /// Whose.
        stemcell: String,
        /// With this Kubernetes version, of the same minor.
        kubernetes_version: String,
        /// What changes, for people: `containerd 2.2.9 to 2.3.7, …`.
        changes: String,
    },
    /// Nothing.
    Gone,
}

/// What a machine is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum MachineRole {
    /// API server, controllers and a member of etcd; also a tainted node.
    ControlPlane,
    /// Runs pods.
    Worker {
        /// The pool it is one of.
        #[schema(value_type = String)]
        pool: PoolName,
    },
}

impl MachineRole {
    /// Whether it is a control-plane machine.
    pub fn is_control_plane(&self) -> bool {
        match self {
            Self::ControlPlane => true,
            Self::Worker { .. } => false,
        }
    }

    /// The pool it is one of; none for the control plane.
    pub fn pool(&self) -> Option<&PoolName> {
        match self {
            Self::ControlPlane => None,
            Self::Worker { pool } => Some(pool),
        }
    }
}

/// What a machine is from its first day on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "each is a field of a machine, which says what it is"
)]
pub struct MachineDraft {
    pub name: MachineName,
    pub cluster: ClusterName,
    pub role: MachineRole,
    pub incarnation: Incarnation,
    pub node_name: NodeName,
    pub address: Ipv4Addr,
    pub pod_cidr: Ipv4Net,
    pub stemcell: String,
    pub kubernetes_version: String,
    pub size: MachineSize,
    pub data_disk: Option<DiskName>,
}

impl Machine {
    /// One that was just ordered, and of which nothing is there yet.
    pub fn planned(of: MachineDraft, created_at: Timestamp) -> Machine {
        Machine {
            name: of.name,
            cluster: of.cluster,
            role: of.role,
            incarnation: of.incarnation,
            node_name: of.node_name,
            address: of.address,
            pod_cidr: of.pod_cidr,
            stemcell: of.stemcell,
            kubernetes_version: of.kubernetes_version,
            size: of.size,
            data_disk: of.data_disk,
            data_device: None,
            mounted: false,
            phase: MachinePhase::Planned,
            configured: None,
            started: None,
            labelled: None,
            cordoned: false,
            serving: true,
            joined: None,
            condemned: false,
            reboot: None,
            keep: None,
            fenced: false,
            departed: Vec::new(),
            heartbeat: None,
            zone: None,
            proxy_restarted: false,
            grows_from_mib: None,
            proven: None,
            pinned: false,
            former: None,
            additional: false,
            fitted: None,
            staged: Vec::new(),
            components: BTreeMap::new(),
            emulates: None,
            certified: None,
            wanted: None,
            revision: Revision(0),
            created_at,
        }
    }

    /// Whether nothing of it is wanted.
    pub fn is_surplus(&self) -> bool {
        self.wanted == Some(Wanted::Gone)
    }

    /// Whether this incarnation may have a Node: its components were started, or those of a worker may have been
    /// without that being written down, since it was configured.
    pub fn may_have_joined(&self) -> bool {
        let told = !self.role.is_control_plane() && self.configured.is_some();
        self.phase >= MachinePhase::Configured || told
    }

    /// Whether it has a vote in its cluster's etcd, as far as is written down.
    pub fn votes(&self) -> bool {
        self.role.is_control_plane() && self.joined.as_ref().is_none_or(|joined| joined.voting)
    }

    /// Whether etcd may know it, with a vote or as a learner.
    pub fn is_member(&self) -> bool {
        let added = |joined: &Joined| joined.initial_cluster.is_some();
        self.votes() || self.joined.as_ref().is_some_and(added)
    }

    /// The minor that its API server is to its clients: what it was started to emulate, or its own.
    pub fn api_minor(&self) -> Option<u32> {
        let own = minor_of(&self.kubernetes_version)?;
        Some(self.emulates.map_or(own, |emulated| emulated.min(own)))
    }

    /// Wants the next incarnation of it as it is, whatever else was wanted; `down` says that this one serves nobody.
    pub fn condemn(&mut self, down: bool) {
        if self.phase == MachinePhase::Planned {
            return; // its old incarnation is gone already, and this one was never made
        }
        self.condemned = down;
        self.wanted = Some(self.as_it_is());
        (self.keep, self.reboot) = (None, None);
    }

    /// Wants it to stay as it is after all.
    pub fn stay(&mut self) {
        (self.wanted, self.keep) = (None, None);
    }

    /// The next incarnation of it, as it is now; made from the stemcell whose components it runs.
    pub fn as_it_is(&self) -> Wanted {
        Wanted::Reborn {
            incarnation: Incarnation(self.incarnation.0.saturating_add(1)),
            stemcell: self.runs().to_owned(),
            kubernetes_version: self.kubernetes_version.clone(),
            size: self.size,
            because: None,
        }
    }

    /// The next incarnation of it, as it was once; its data disk stays as large as it is.
    pub fn as_it_was(&self, former: &Former) -> Wanted {
        let disk_mib = self.size.disk_mib.max(former.size.disk_mib);
        Wanted::Reborn {
            incarnation: Incarnation(self.incarnation.0.saturating_add(1)),
            stemcell: former.stemcell.clone(),
            kubernetes_version: former.kubernetes_version.clone(),
            size: MachineSize {
                disk_mib,
                ..former.size
            },
            because: None,
        }
    }

    /// Keeps in mind what it is before it becomes what is wanted, if that is something else. What it was before that
    /// stays in mind where it is not through its gates; nothing does of one that was never in service, or that becomes
    /// what it was.
    pub fn remember(&mut self) {
        let Some(Wanted::Reborn {
            stemcell,
            kubernetes_version,
            size,
            ..
        }) = &self.wanted
        else {
            return;
        };
        let becomes = Former {
            stemcell: stemcell.clone(),
            kubernetes_version: kubernetes_version.clone(),
            size: *size,
        };
        let served = self.proven.is_some() || self.phase == MachinePhase::Ready;
        let is = || Former {
            stemcell: self.runs().to_owned(),
            kubernetes_version: self.kubernetes_version.clone(),
            size: self.size,
        };
        let former = self.former.clone().or_else(|| served.then(is));
        self.former = former.filter(|former| *former != becomes);
    }

    /// The stemcell whose components it runs.
    pub fn runs(&self) -> &str {
        self.fitted.as_deref().unwrap_or(&self.stemcell)
    }

    /// The stemcell whose components it is to run for as long as it is not made anew.
    pub fn is_to_run(&self) -> &str {
        match &self.wanted {
            Some(Wanted::Refitted { stemcell, .. }) => stemcell,
            Some(Wanted::Reborn { .. } | Wanted::Gone) | None => self.runs(),
        }
    }

    /// Whether it is to be changed in place.
    pub fn is_refitted(&self) -> bool {
        matches!(self.wanted, Some(Wanted::Refitted { .. }))
    }

    /// The machine as it is to be, with the incarnation it will have.
    pub fn as_wanted(&self) -> Machine {
        let mut machine = self.clone();
        machine.take_over();
        machine
    }

    /// Becomes what was wanted: after its old incarnation is gone, or once it serves with other components.
    pub fn take_over(&mut self) {
        match self.wanted.take() {
            Some(Wanted::Reborn {
                incarnation,
                stemcell,
                kubernetes_version,
                size,
                because: _,
            }) => {
                if let Ok(node_name) = self.name.node_name(incarnation) {
                    self.node_name = node_name;
                }
                self.incarnation = incarnation;
                self.stemcell = stemcell;
                self.kubernetes_version = kubernetes_version;
                self.size = size;
                self.fitted = None;
                self.staged.clear();
                self.components.clear();
                self.reboot = None;
            }
            Some(Wanted::Refitted {
                stemcell,
                kubernetes_version,
                changes: _,
            }) => {
                self.kubernetes_version = kubernetes_version;
                self.fitted = (stemcell != self.stemcell).then_some(stemcell);
            }
            Some(Wanted::Gone) => self.wanted = Some(Wanted::Gone),
            None => {}
        }
    }
}

impl std::fmt::Display for MachineRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ControlPlane => f.pad("control-plane"),
            Self::Worker { pool } => f.pad(pool.as_str()),
        }
    }
}

/// How far a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub enum MachinePhase {
    /// Ordered; nothing of it exists.
    Planned,
    /// The provider was asked for it.
    Creating,
    /// It runs and its agent connected.
    Enrolled,
    /// Its components were configured and started.
    Configured,
    /// Its node is Ready.
    Ready,
}

impl std::fmt::Display for MachinePhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Planned => "Planned",
            Self::Creating => "Creating",
            Self::Enrolled => "Enrolled",
            Self::Configured => "Configured",
            Self::Ready => "Ready",
        })
    }
}

/// Which machines to show; an absent field matches all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MachineFilter {
    /// Only of this cluster.
    #[schema(value_type = Option<String>)]
    pub cluster: Option<ClusterName>,
}

/// A machine with what is known of its agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineView {
    /// The record.
    #[serde(flatten)]
    pub machine: Machine,
    /// Its agent's connection.
    pub agent: AgentView,
    /// What its agent's link and report say alone.
    pub health: MachineHealth,
    /// What all witnesses together come to; absent while it is not judged.
    #[serde(default)]
    pub verdict: Option<Verdict>,
    /// What an operator keeps from it.
    #[serde(default)]
    pub hold: Option<HoldKind>,
    /// The agent's last report.
    #[schema(value_type = Option<Object>)]
    pub report: Option<Report>,
    /// Its figures, each with unit, source, owner and age.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub measured: Vec<VitalView>,
    /// What was looked at beyond its units.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<ConditionView>,
}

/// An agent's connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AgentView {
    /// Whether it is connected now.
    pub connected: bool,
    /// Whether it is connected and its heartbeats have stopped.
    #[serde(default)]
    pub suspect: bool,
    /// Since when.
    pub connected_at: Option<Timestamp>,
    /// Where from.
    #[schema(value_type = Option<String>)]
    pub remote_address: Option<IpAddr>,
    /// Its version.
    pub version: Option<String>,
    /// Milliseconds since its last heartbeat.
    pub last_heartbeat_age_ms: Option<u64>,
    /// Milliseconds since its last report.
    pub last_report_age_ms: Option<u64>,
}

/// What the director makes of a machine's report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "state")]
pub enum MachineHealth {
    /// Connected, and no unit it watches fails.
    Healthy,
    /// Connected, and these units fail or restart, or conditions are bad.
    Degraded {
        /// Units, with systemd's word for each; then conditions, with what they say.
        units: Vec<String>,
    },
    /// Its agent is not connected or silent; the machine may live.
    AgentLost,
    /// It has not connected yet.
    Unknown,
}

impl std::fmt::Display for MachineHealth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Healthy => "Healthy",
            Self::Degraded { .. } => "Degraded",
            Self::AgentLost => "AgentLost",
            Self::Unknown => "Unknown",
        })
    }
}
