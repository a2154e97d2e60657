//! What a step makes the records say, in the same commit as its end.

use std::collections::BTreeMap;

use windlass_common::id::{ClusterName, Digest, MachineName};

use crate::model::{Cluster, Machine, MachinePhase};
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
    /// Its configuration was written.
    Configured(MachineName, Digest),
    /// Its components were started with this configuration.
    Started(MachineName, Digest),
    /// Its node is Ready.
    NodeReady(MachineName),
    /// It is gone.
    MachineDeleted(MachineName),
    /// These add-ons were applied.
    Addons(Digest),
    /// The cluster is no more; its records, addresses and secrets go.
    Forget,
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
            RecordChange::MachineCreated(name)
            | RecordChange::DiskAttached(name, _)
            | RecordChange::AgentConnected(name)
            | RecordChange::DiskMounted(name)
            | RecordChange::Configured(name, _)
            | RecordChange::Started(name, _)
            | RecordChange::NodeReady(name)
            | RecordChange::MachineDeleted(name) => {
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
        // A machine that is made anew makes new keys.
        if let RecordChange::MachineCreated(name) | RecordChange::MachineDeleted(name) = change {
            commit.delete_value(Kind::Certificates, name.as_str());
        }
    }
    for machine in machines.values() {
        commit.put(machine)?;
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
            record.phase = MachinePhase::Creating;
        }
        RecordChange::MachineDeleted(_) => {
            reset(record);
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
        RecordChange::Configured(_, digest) => record.configured = Some(*digest),
        RecordChange::Started(_, digest) => {
            record.started = Some(*digest);
            record.phase = MachinePhase::Configured;
        }
        RecordChange::NodeReady(_) => record.phase = MachinePhase::Ready,
        RecordChange::Addons(_) | RecordChange::Forget => {}
    }
}

fn reset(record: &mut Machine) {
    record.data_device = None;
    record.mounted = false;
    record.configured = None;
    record.started = None;
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
    commit.delete(&owner);
    debug_assert_eq!(owner.name(), cluster.as_str());
    Ok(())
}

/// Name of the secret that holds a cluster's PKI.
pub(crate) fn cluster_pki_name(cluster: &ClusterName) -> String {
    format!("cluster/{cluster}/pki")
}
