//! What has changed since the backup that a director was restored from, and what adopting it means.
//!
//! Pure: records, what the provider shows and what agents showed in, differences out; an approval in, changes of
//! records out.
//!
//! # Invariants
//! * The provider says what exists. A certificate of this director's own CA says that an incarnation was given
//!   out by it; neither word alone makes a machine one of ours, unless an operator says so by name.
//! * Nothing is forgotten that an operator did not name, and nothing is adopted that would be taken away again:
//!   desired state follows what is found.
//! * An approval is for the differences that were shown: they have a digest.
//!
//! # Not here
//! Asking provider and agents, and writing it down (service).

mod records;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::error::ErrorClass;
use windlass_common::id::{
    ClusterName, Digest, DiskName, Epoch, Incarnation, MachineName, PoolName,
};
use windlass_common::pki::MachineIdentity;

use crate::model::{Cluster, Machine, MachinePhase, Task, TaskId, Timestamp};
use crate::planner::inputs::CLUSTER_TAG;
use crate::provider::{DiskView, MachineView};

pub use records::tags;
use records::{clusters_after, counts, described, ended, records_after};

/// How far an epoch that an agent names may be ahead of this director's clock: what a clock that was set wrong
/// may have made of it. One that is further ahead is an agent's fault, and no director follows it there.
const EPOCH_AHEAD_MS: u64 = 366 * 24 * 3600 * 1000;

/// What is known at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// All clusters of the records.
    pub clusters: &'a [Cluster],
    /// All machines of the records.
    pub machines: &'a [Machine],
    /// Tasks of the records that are not over.
    pub tasks: &'a [Task],
    /// All machines of the provider.
    pub views: &'a [MachineView],
    /// All disks of the provider.
    pub disks: &'a [DiskView],
    /// Certificates of this director's CA that were shown and are not current by the records.
    pub strangers: &'a BTreeSet<MachineIdentity>,
    /// Machines that are connected, each with the highest epoch that it has seen.
    pub connected: &'a BTreeMap<MachineName, (Incarnation, Epoch)>,
    /// The epoch of this director.
    pub epoch: Epoch,
    /// Now.
    pub now: Timestamp,
}

/// How a machine differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// The provider has a later incarnation than the records: it was replaced since. Adopted.
    Replaced,
    /// The provider has it and the records do not: it was added since. Adopted.
    Added,
    /// The same, and what it carries does not say enough for a record: it is of a cluster that the records have,
    /// so that the next plan of that would take it away. Has to be named to be forgotten.
    Undescribed,
    /// It is of a cluster that the records do not have, whose CA is lost to this director. Left alone.
    Foreign,
    /// The records have it and the provider does not. Kept, and healed later; forgotten when it is named.
    Gone,
    /// The provider has an earlier incarnation than the records. Kept; the next plan sees to it.
    Older,
    /// A certificate was shown of an incarnation that neither the provider nor the records have. Not let in.
    Claimed,
}

/// A machine that is not as the records say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineDifference {
    /// Which.
    #[schema(value_type = String)]
    pub machine: MachineName,
    /// Its cluster, as the records or the provider say.
    #[schema(value_type = Option<String>)]
    pub cluster: Option<ClusterName>,
    /// How it differs.
    pub change: Change,
    /// Its incarnation by the records.
    #[schema(value_type = Option<u32>)]
    pub recorded: Option<Incarnation>,
    /// Its incarnation at the provider; for a claim, that of the certificate.
    #[schema(value_type = Option<u32>)]
    pub found: Option<Incarnation>,
    /// Whether a certificate of this director's CA was shown for what was found.
    pub certificate: bool,
}

/// A count of machines that follows from adopting what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CountDifference {
    /// Which cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
    /// Which pool; none for the control plane.
    #[schema(value_type = Option<String>)]
    pub pool: Option<PoolName>,
    /// How many the spec asks for.
    pub recorded: u32,
    /// How many it will ask for.
    pub found: u32,
}

/// A task that was not over when the backup was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskDifference {
    /// Which.
    pub task: TaskId,
    /// Its cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
}

/// How the world differs from the records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Differences {
    /// Machines, by name.
    pub machines: Vec<MachineDifference>,
    /// Counts of the specs that change with what is adopted.
    pub counts: Vec<CountDifference>,
    /// Tasks that end as failed.
    pub tasks: Vec<TaskDifference>,
    /// Disks that no record names. They are left alone.
    #[schema(value_type = Vec<String>)]
    pub disks: Vec<DiskName>,
    /// Machines that are as the records say, and whose agents have not connected yet.
    #[schema(value_type = Vec<String>)]
    pub silent: Vec<MachineName>,
    /// Machines that say they have seen an epoch that no director can have had. They refuse every step.
    #[schema(value_type = Vec<String>)]
    pub beyond: Vec<MachineName>,
}

impl Differences {
    /// What an approval is for: everything that adopting changes. Who is silent may change meanwhile.
    pub fn digest(&self) -> Digest {
        let decided = (&self.machines, &self.counts, &self.tasks);
        let text = serde_json::to_vec(&decided).unwrap_or_default();
        Digest::of(&text)
    }
}

/// What an operator says about the differences.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Approval {
    /// Machines whose records are to be forgotten although nothing was proven about them.
    pub forget: BTreeSet<MachineName>,
    /// Machines that are adopted although their agents have shown no certificate.
    pub accept: BTreeSet<MachineName>,
}

/// What adopting writes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Adoption {
    /// Records of machines, new or changed.
    pub machines: Vec<Machine>,
    /// Records that go.
    pub forgotten: Vec<Machine>,
    /// Records of clusters that change.
    pub clusters: Vec<Cluster>,
    /// Tasks that end.
    pub tasks: Vec<Task>,
    /// Addresses of machines that stay strangers: not to be handed out.
    pub reserved: Vec<(Ipv4Addr, MachineName)>,
    /// The least epoch of this director from here on.
    pub epoch: Epoch,
}

/// Why an approval is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApprovalError {
    /// Nothing that was named.
    #[error(
        "{0} does not differ so that it could be named; `windlass director adopt` shows what differs"
    )]
    NotNamed(MachineName),
    /// Without a certificate.
    #[error(
        "no certificate was shown yet for {}: wait until the agents have connected, or name each with --accept",
        list(.0)
    )]
    Unproven(Vec<MachineName>),
    /// Without a record.
    #[error(
        "{} cannot be adopted, since what they carry does not describe them: the next plan of their clusters will take them away; name each with --forget to have it so",
        list(.0)
    )]
    Undescribed(Vec<MachineName>),
    /// Nothing is there.
    #[error(
        "the provider has none of the {0} machines of the records: is it the right one (`provider.local.directory` and `name` in director.toml)? If all are gone indeed, name each with --forget"
    )]
    NothingFound(usize),
}

impl ApprovalError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }
}

fn list(names: &[MachineName]) -> String {
    let names: Vec<&str> = names.iter().map(MachineName::as_str).collect();
    names.join(", ")
}

/// How the world differs from the records.
pub fn compare(found: &Found<'_>) -> Differences {
    let machines = machine_differences(found);
    let named: BTreeSet<&DiskName> = found
        .machines
        .iter()
        .filter_map(|machine| machine.data_disk.as_ref())
        .collect();
    let carried: BTreeSet<&str> = found
        .views
        .iter()
        .filter_map(|view| view.tags.get(records::DISK_TAG).map(String::as_str))
        .collect();
    let disks = found
        .disks
        .iter()
        .filter(|disk| !named.contains(&disk.name) && !carried.contains(disk.name.as_str()));
    let differs: BTreeSet<&MachineName> = machines.iter().map(|d| &d.machine).collect();
    let silent = found
        .views
        .iter()
        .filter(|view| !differs.contains(&view.name) && !found.connected.contains_key(&view.name));
    let latest = latest_epoch(found.now);
    let beyond = found
        .connected
        .iter()
        .filter(|(_, (_, seen))| *seen > latest);
    let tasks = found.tasks.iter().map(|task| TaskDifference {
        task: task.id.clone(),
        cluster: task.cluster.clone(),
    });
    let disks = disks.map(|disk| disk.name.clone()).collect();
    let silent = silent.map(|view| view.name.clone()).collect();
    let beyond = beyond.map(|(name, _)| name.clone()).collect();
    let all = records_after(found, &machines, &BTreeSet::new());
    Differences {
        counts: counts(found.clusters, found.machines, &all),
        machines,
        tasks: tasks.collect(),
        disks,
        silent,
        beyond,
    }
}

/// What an approval of these differences writes.
///
/// # Errors
/// [`ApprovalError`]: something has to be named first.
pub fn approve(
    found: &Found<'_>,
    differences: &Differences,
    approval: &Approval,
) -> Result<Adoption, ApprovalError> {
    check(found, differences, approval)?;
    let before: BTreeMap<&MachineName, &Machine> =
        found.machines.iter().map(|m| (&m.name, m)).collect();
    let after = records_after(found, &differences.machines, &approval.forget);
    let machines = after
        .iter()
        .filter(|(name, machine)| before.get(name).is_none_or(|old| old != machine));
    let forgotten = found
        .machines
        .iter()
        .filter(|machine| !after.contains_key(&machine.name));
    let reserved = found
        .views
        .iter()
        .filter(|view| !after.contains_key(&view.name))
        .map(|view| (view.address, view.name.clone()));
    let tasks = found.tasks.iter().map(|task| ended(task, found.now));
    let latest = latest_epoch(found.now);
    let seen = found.connected.values().map(|(_, seen)| *seen);
    let above = seen
        .filter(|seen| *seen > found.epoch && *seen <= latest)
        .max()
        .map_or(found.epoch, |seen| Epoch(seen.0.saturating_add(1)));
    Ok(Adoption {
        machines: machines.map(|(_, machine)| machine.clone()).collect(),
        forgotten: forgotten.cloned().collect(),
        clusters: clusters_after(found, &after),
        tasks: tasks.collect(),
        reserved: reserved.collect(),
        epoch: above,
    })
}

fn latest_epoch(now: Timestamp) -> Epoch {
    Epoch(now.unix_ms().saturating_add(EPOCH_AHEAD_MS))
}

fn check(
    found: &Found<'_>,
    differences: &Differences,
    approval: &Approval,
) -> Result<(), ApprovalError> {
    let of = |change: Change| {
        let all = differences.machines.iter();
        all.filter(move |d| d.change == change).map(|d| &d.machine)
    };
    let forgettable: BTreeSet<_> = of(Change::Gone).chain(of(Change::Undescribed)).collect();
    let adopted = || of(Change::Replaced).chain(of(Change::Added));
    let acceptable: BTreeSet<_> = adopted().collect();
    let stray = approval
        .forget
        .iter()
        .filter(|name| !forgettable.contains(name));
    let stray = stray.chain(
        approval
            .accept
            .iter()
            .filter(|name| !acceptable.contains(name)),
    );
    if let Some(name) = stray.into_iter().next() {
        return Err(ApprovalError::NotNamed(name.clone()));
    }
    let gone: BTreeSet<_> = of(Change::Gone).collect();
    let exist = |machine: &&Machine| machine.phase != MachinePhase::Planned;
    let expected = found.machines.iter().filter(exist).count();
    if expected > 0 && gone.len() == expected && !gone.iter().all(|m| approval.forget.contains(*m))
    {
        return Err(ApprovalError::NothingFound(expected));
    }
    let undescribed: Vec<_> = of(Change::Undescribed)
        .filter(|name| !approval.forget.contains(*name))
        .cloned()
        .collect();
    if !undescribed.is_empty() {
        return Err(ApprovalError::Undescribed(undescribed));
    }
    let unproven: Vec<_> = differences
        .machines
        .iter()
        .filter(|d| acceptable.contains(&d.machine) && !d.certificate)
        .filter(|d| !approval.accept.contains(&d.machine))
        .map(|d| d.machine.clone())
        .collect();
    if !unproven.is_empty() {
        return Err(ApprovalError::Unproven(unproven));
    }
    Ok(())
}

fn machine_differences(found: &Found<'_>) -> Vec<MachineDifference> {
    let records: BTreeMap<_, _> = found.machines.iter().map(|m| (&m.name, m)).collect();
    let views: BTreeMap<_, _> = found.views.iter().map(|v| (&v.name, v)).collect();
    let clusters: BTreeSet<_> = found.clusters.iter().map(|c| &c.spec.name).collect();
    let mut all: BTreeMap<(MachineName, Change), MachineDifference> = BTreeMap::new();
    let mut add = |difference: MachineDifference| {
        all.insert((difference.machine.clone(), difference.change), difference);
    };
    let shown = |name: &MachineName, cluster: Option<&ClusterName>, incarnation: Incarnation| {
        found.strangers.iter().any(|one| {
            one.machine == *name
                && one.incarnation == incarnation
                && cluster.is_none_or(|cluster| *cluster == one.cluster)
        })
    };
    for view in found.views {
        let record = records.get(&view.name).copied();
        let tagged = view
            .tags
            .get(CLUSTER_TAG)
            .and_then(|name| ClusterName::new(name).ok());
        let cluster = record.map(|record| record.cluster.clone()).or(tagged);
        let change = match record {
            Some(record) if view.incarnation > record.incarnation => Change::Replaced,
            Some(record) if view.incarnation < record.incarnation => {
                // One that waits for its next incarnation is as it should be.
                Change::Older
            }
            Some(_) => continue,
            None if cluster.as_ref().is_none_or(|name| !clusters.contains(name)) => Change::Foreign,
            None if described(view).is_some() => Change::Added,
            None => Change::Undescribed,
        };
        add(MachineDifference {
            machine: view.name.clone(),
            certificate: shown(&view.name, cluster.as_ref(), view.incarnation),
            cluster,
            change,
            recorded: record.map(|record| record.incarnation),
            found: Some(view.incarnation),
        });
    }
    for machine in found.machines {
        if !views.contains_key(&machine.name) && machine.phase != MachinePhase::Planned {
            add(MachineDifference {
                machine: machine.name.clone(),
                cluster: Some(machine.cluster.clone()),
                change: Change::Gone,
                recorded: Some(machine.incarnation),
                found: None,
                certificate: false,
            });
        }
    }
    for claim in found.strangers {
        let exists = views
            .get(&claim.machine)
            .is_some_and(|view| view.incarnation >= claim.incarnation);
        let known = records
            .get(&claim.machine)
            .is_some_and(|record| record.incarnation >= claim.incarnation);
        if !exists && !known {
            add(MachineDifference {
                machine: claim.machine.clone(),
                cluster: Some(claim.cluster.clone()),
                change: Change::Claimed,
                recorded: records.get(&claim.machine).map(|r| r.incarnation),
                found: Some(claim.incarnation),
                certificate: true,
            });
        }
    }
    all.into_values().collect()
}
