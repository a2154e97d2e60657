//! What a step makes the records say, in the same commit as its end.

use std::collections::BTreeMap;

use windlass_common::cluster::KubeletSettings;
use windlass_common::id::{ClusterName, Digest, MachineName, NodeName};

use crate::model::{Action, Certified, Cluster, Joined, Machine, MachinePhase, Stage, Timestamp};
use crate::resurrector::{CaseRecord, Rung};
use crate::store::{Commit, Kind, Record, Records, StoreError};

/// A change of the records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordChange {
    /// The machine was made anew: nothing is known of it any more but that.
    MachineCreated(MachineName),
    /// Its data disk is at this device.
    DiskAttached(MachineName, String),
    /// Its agent connected.
    AgentConnected(MachineName),
    /// Its data disk is mounted.
    DiskMounted(MachineName),
    /// Its data disk is as large as is wanted.
    DiskGrown(MachineName),
    /// Its configuration was written.
    Configured(MachineName, Digest),
    /// These certificates were written on it.
    Certified(MachineName, Certified),
    /// This is what its kubelet has said last before it is restarted.
    Heartbeat(MachineName, Option<String>),
    /// Its components were started with this configuration.
    Started(MachineName, Digest),
    /// Its API server was started to emulate this minor, or nothing.
    Emulates(MachineName, Option<u32>),
    /// Its kube-proxy was started again.
    ProxyRestarted(MachineName),
    /// Its node is Ready, and was given these labels; load balancers outside had time to see it.
    NodeReady(MachineName, Digest),
    /// It was in service with these kubelet settings, and with what it was to become in place.
    Proven(MachineName, KubeletSettings),
    /// The components of this stemcell are about to be brought to it.
    Staging(MachineName, String),
    /// Of the components that were brought to it, those of these stemcells may be on it.
    Staged(MachineName, Vec<String>),
    /// It was in service with these versions of its components.
    Runs(MachineName, BTreeMap<String, String>),
    /// It is gone, and what was wanted instead may come.
    MachineDeleted(MachineName),
    /// Its node is about to be cordoned.
    Cordoning(MachineName),
    /// Its node is open.
    Uncordoned(MachineName),
    /// The endpoint is about to send it nobody.
    Leaving(MachineName),
    /// The endpoint sends connections to it.
    Serving(MachineName),
    /// etcd was told of it: the members that its data begins with.
    MemberAdded(MachineName, String),
    /// Its member has a vote.
    MemberPromoted(MachineName),
    /// etcd does not know it any more.
    MemberRemoved(MachineName),
    /// Its components are about to be stopped.
    Stopping(MachineName),
    /// Its API server and controllers are about to be stopped; its member of etcd goes on.
    StoppingApi(MachineName),
    /// Its provider is about to restart it.
    Rebooting(MachineName),
    /// Its provider has restarted it, or it needs that no more: what was done gets time to show from now on.
    Rebooted(MachineName),
    /// It is about to be shut out.
    Fencing(MachineName),
    /// It came back before it was shut out, and stays for now.
    Returned(MachineName),
    /// The Node object of an earlier incarnation is gone.
    NodeDropped(MachineName, NodeName),
    /// Nothing of it is left; its record and its address go.
    MachineForgotten(MachineName),
    /// The one step of this stage of a rotation is done.
    StageDone(Stage),
    /// These add-ons were applied.
    Addons(Digest),
    /// The cluster is no more; its records, addresses and secrets go.
    Forget,
}

/// What the records have to say before a step begins. A step that looks again before it acts says so itself, once
/// it has looked (`World::note`): what was only about to be done has not changed a machine.
pub(super) fn intent(action: &Action) -> Option<RecordChange> {
    if let Action::LeaveEndpoint { machine } = action {
        Some(RecordChange::Leaving(machine.clone()))
    } else if let Action::StopApi { machine } = action {
        Some(RecordChange::StoppingApi(machine.clone()))
    } else if let Action::StopMember { machine } = action {
        Some(RecordChange::Stopping(machine.clone()))
    } else {
        None
    }
}

/// Adds what `changes` do to the records of `cluster` to a commit.
pub(super) async fn apply(
    records: &Records,
    cluster: &ClusterName,
    changes: &[RecordChange],
    commit: &mut Commit,
) -> Result<(), StoreError> {
    if changes.contains(&RecordChange::Forget) {
        return forget(records, cluster, commit).await;
    }
    let mut machines: BTreeMap<&MachineName, Machine> = BTreeMap::new();
    let mut owner: Option<Cluster> = None;
    for change in changes {
        match change {
            RecordChange::Addons(digest) => {
                if owner.is_none() {
                    owner = records.get(cluster.as_str()).await?;
                }
                if let Some(record) = &mut owner {
                    record.addons = Some(*digest);
                }
            }
            RecordChange::StageDone(stage) => {
                if owner.is_none() {
                    owner = records.get(cluster.as_str()).await?;
                }
                let rotation = owner.as_mut().and_then(|record| record.rotation.as_mut());
                if let Some(rotation) = rotation.filter(|rotation| rotation.stage == *stage) {
                    rotation.done = true;
                }
            }
            RecordChange::MachineCreated(name)
            | RecordChange::DiskAttached(name, _)
            | RecordChange::AgentConnected(name)
            | RecordChange::DiskMounted(name)
            | RecordChange::DiskGrown(name)
            | RecordChange::Configured(name, _)
            | RecordChange::Certified(name, _)
            | RecordChange::Heartbeat(name, _)
            | RecordChange::Started(name, _)
            | RecordChange::ProxyRestarted(name)
            | RecordChange::Emulates(name, _)
            | RecordChange::NodeReady(name, _)
            | RecordChange::Proven(name, _)
            | RecordChange::Staging(name, _)
            | RecordChange::Staged(name, _)
            | RecordChange::Runs(name, _)
            | RecordChange::MachineDeleted(name)
            | RecordChange::Cordoning(name)
            | RecordChange::Uncordoned(name)
            | RecordChange::Leaving(name)
            | RecordChange::Serving(name)
            | RecordChange::MemberAdded(name, _)
            | RecordChange::MemberPromoted(name)
            | RecordChange::MemberRemoved(name)
            | RecordChange::Stopping(name)
            | RecordChange::StoppingApi(name)
            | RecordChange::Rebooting(name)
            | RecordChange::Rebooted(name)
            | RecordChange::Fencing(name)
            | RecordChange::Returned(name)
            | RecordChange::NodeDropped(name, _)
            | RecordChange::MachineForgotten(name) => {
                if !machines.contains_key(name)
                    && let Some(record) = records.get(name.as_str()).await?
                {
                    machines.insert(name, record);
                }
                if let Some(record) = machines.get_mut(name) {
                    change_machine(record, change);
                }
            }
            RecordChange::Forget => {}
        }
    }
    for change in changes {
        if let RecordChange::Rebooted(name) = change
            && let Some(mut case) = records.get::<CaseRecord>(name.as_str()).await?
        {
            let now = Timestamp::now().unix_ms();
            if case.case.carried_out(Rung::Reboot, now) {
                commit.put(&case)?;
            }
        }
        // A machine that is made anew makes new keys.
        if let RecordChange::MachineCreated(name) | RecordChange::MachineDeleted(name) = change {
            commit.delete_value(Kind::Certificates, name.as_str());
        }
    }
    for (name, machine) in machines {
        if changes.contains(&RecordChange::MachineForgotten(name.clone())) {
            commit.delete_value(Kind::Address, &machine.address.to_string());
            commit.delete_value(Kind::Certificates, name.as_str());
            commit.delete_value(Kind::Case, name.as_str());
            commit.delete(&machine);
        } else {
            commit.put(&machine)?;
        }
    }
    if let Some(owner) = &owner {
        commit.put(owner)?;
    }
    Ok(())
}

fn change_machine(record: &mut Machine, change: &RecordChange) {
    match change {
        RecordChange::MachineCreated(_) => {
            reset(record);
            // Made again under its old name, its node is no relic.
            let node = record.node_name.clone();
            record.departed.retain(|gone| *gone != node);
            record.phase = MachinePhase::Creating;
        }
        RecordChange::MachineDeleted(_) => {
            if !record.fenced {
                depart(record);
            }
            record.remember();
            reset(record);
            record.take_over();
            record.phase = MachinePhase::Planned;
        }
        RecordChange::DiskAttached(_, device) => {
            record.data_device = Some(device.clone());
            record.mounted = false;
        }
        RecordChange::AgentConnected(_) => {
            record.phase = record.phase.max(MachinePhase::Enrolled);
        }
        RecordChange::DiskMounted(_) => record.mounted = true,
        RecordChange::DiskGrown(_) => record.grows_from_mib = None,
        RecordChange::Configured(_, digest) => record.configured = Some(*digest),
        RecordChange::Certified(_, certified) => record.certified = Some(*certified),
        RecordChange::Heartbeat(_, heartbeat) => record.heartbeat.clone_from(heartbeat),
        RecordChange::Started(_, digest) => {
            not_ready(record);
            not_alone(record);
            record.started = Some(*digest);
            record.phase = MachinePhase::Configured;
        }
        RecordChange::Rebooting(_) => {
            not_ready(record);
            record.phase = record.phase.min(MachinePhase::Configured);
        }
        RecordChange::Rebooted(_) => record.reboot = None,
        RecordChange::ProxyRestarted(_) => record.proxy_restarted = true,
        RecordChange::Emulates(_, minor) => record.emulates = *minor,
        RecordChange::NodeReady(_, digest) => {
            record.phase = MachinePhase::Ready;
            record.labelled = Some(*digest);
            record.heartbeat = None;
            record.proxy_restarted = false;
        }
        RecordChange::Proven(_, settings) => {
            record.proven = Some(settings.clone());
            record.former = None;
            record.additional = false;
            if record.is_refitted() {
                record.take_over();
            }
        }
        RecordChange::Staging(_, stemcell) => {
            record.staged.retain(|staged| staged != stemcell);
            record.staged.push(stemcell.clone());
        }
        RecordChange::Staged(_, stemcells) => record.staged.clone_from(stemcells),
        RecordChange::Runs(_, components) => record.components.clone_from(components),
        RecordChange::Cordoning(_) => record.cordoned = true,
        RecordChange::Uncordoned(_) => record.cordoned = false,
        RecordChange::Leaving(_) => record.serving = false,
        RecordChange::Serving(_) => record.serving = true,
        RecordChange::MemberAdded(_, members) => {
            record.joined = Some(Joined {
                initial_cluster: Some(members.clone()),
                voting: false,
                alone: false,
            });
        }
        RecordChange::MemberPromoted(_) => {
            if let Some(joined) = &mut record.joined {
                (joined.voting, joined.alone) = (true, true);
            }
        }
        RecordChange::MemberRemoved(_) => record.joined = Some(Joined::default()),
        RecordChange::Stopping(_) => {
            not_alone(record);
            record.started = None;
        }
        RecordChange::StoppingApi(_) => {
            if record.votes() {
                let joined = record.joined.get_or_insert_default();
                (joined.voting, joined.alone) = (true, true);
            }
            record.started = None;
        }
        RecordChange::Fencing(_) => {
            if !record.fenced {
                depart(record);
            }
            record.fenced = true;
        }
        RecordChange::Returned(_) => {
            let node = record.node_name.clone();
            record.departed.retain(|gone| *gone != node);
            (record.condemned, record.fenced) = (false, false);
        }
        RecordChange::NodeDropped(_, node) => record.departed.retain(|gone| gone != node),
        RecordChange::Addons(_)
        | RecordChange::StageDone(_)
        | RecordChange::MachineForgotten(_)
        | RecordChange::Forget => {}
    }
}

/// Its Node object, if there may be one, is to go.
fn depart(record: &mut Machine) {
    if record.may_have_joined() && !record.departed.contains(&record.node_name) {
        record.departed.push(record.node_name.clone());
    }
}

/// One that was in service has joined, whatever its Node was told.
fn not_ready(record: &mut Machine) {
    if record.phase == MachinePhase::Ready {
        record.labelled.get_or_insert(Digest::of(b"not known"));
    }
}

/// Its member goes on with all else of it, or ends with it.
fn not_alone(record: &mut Machine) {
    if let Some(joined) = &mut record.joined {
        joined.alone = false;
    }
}

fn reset(record: &mut Machine) {
    not_alone(record);
    record.data_device = None;
    record.mounted = false;
    record.configured = None;
    record.certified = None;
    record.started = None;
    record.emulates = None;
    record.fitted = None;
    record.staged.clear();
    record.components.clear();
    record.labelled = None;
    record.heartbeat = None;
    record.proxy_restarted = false;
    record.cordoned = false;
    record.condemned = false;
    record.fenced = false;
    (record.keep, record.reboot) = (None, None);
}

/// Deletes everything kept about a cluster except its tasks and the audit log.
async fn forget(
    records: &Records,
    cluster: &ClusterName,
    commit: &mut Commit,
) -> Result<(), StoreError> {
    let Some(owner) = records.get::<Cluster>(cluster.as_str()).await? else {
        return Ok(());
    };
    for machine in records.machines_of(cluster.as_str()).await? {
        commit.delete_value(Kind::Address, &machine.address.to_string());
        commit.delete_value(Kind::Certificates, machine.name.as_str());
        commit.delete_value(Kind::Case, machine.name.as_str());
        commit.delete(&machine);
    }
    let tokens: Vec<(String, crate::store::Token)> = records.values(Kind::Token, "").await?;
    for (name, token) in tokens {
        if token.cluster == *cluster {
            commit.delete_value(Kind::Token, &name);
        }
    }
    commit.delete_value(Kind::Address, &owner.endpoint.address.to_string());
    commit.delete_value(Kind::Secret, &cluster_pki_name(cluster));
    commit.delete_value(Kind::Revocations, cluster.as_str());
    commit.delete(&owner);
    debug_assert_eq!(owner.name(), cluster.as_str());
    Ok(())
}

/// Name of the secret that holds a cluster's PKI.
pub(crate) fn cluster_pki_name(cluster: &ClusterName) -> String {
    format!("cluster/{cluster}/pki")
}
