//! Persistent disks: those of machines, and orphans, which only an order that names them deletes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::{ClusterName, DiskName, MachineName};

use super::{Inner, ServiceError, ServiceResult};
use crate::model::{Caller, Machine};
use crate::provider::DiskView;
use crate::store::{Act, Commit};

/// A persistent disk and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Its name.
    #[schema(value_type = String)]
    pub name: DiskName,
    /// Its size, bytes.
    pub bytes: u64,
    /// The machine whose data it holds, through all its incarnations. Without one the disk is an orphan: its
    /// machine is gone for good, and its data is kept until somebody deletes it by name.
    #[schema(value_type = Option<String>)]
    pub machine: Option<MachineName>,
    /// The cluster of that machine.
    #[schema(value_type = Option<String>)]
    pub cluster: Option<ClusterName>,
    /// The machine that has it now, as the provider says.
    #[schema(value_type = Option<String>)]
    pub attached_to: Option<MachineName>,
}

/// Joins what the provider has with what the director knows. Sorted by name.
fn disks(mut views: Vec<DiskView>, machines: &[Machine]) -> Vec<Disk> {
    let owners: BTreeMap<&DiskName, &Machine> = machines
        .iter()
        .filter_map(|machine| Some((machine.data_disk.as_ref()?, machine)))
        .collect();
    views.sort_by(|a, b| a.name.cmp(&b.name));
    let disk = |view: DiskView| {
        let owner = owners.get(&view.name);
        Disk {
            machine: owner.map(|machine| machine.name.clone()),
            cluster: owner.map(|machine| machine.cluster.clone()),
            name: view.name,
            bytes: view.bytes,
            attached_to: view.attached_to,
        }
    };
    views.into_iter().map(disk).collect()
}

impl Inner {
    pub(super) async fn disks(&self) -> ServiceResult<Vec<Disk>> {
        // Disks first: one made in between has its machine's record already.
        let views = self.world.provider.disks().await.map_err(unasked)?;
        let machines: Vec<Machine> = self.records.list().await?;
        Ok(disks(views, &machines))
    }

    /// Deletes an orphan and its data. Refused for a disk that is a machine's, or attached.
    pub(super) async fn delete_disk(
        &self,
        name: &DiskName,
        caller: &Caller,
    ) -> ServiceResult<Disk> {
        // No order makes a machine with this disk meanwhile.
        let _order = self.orders.lock().await;
        let all = self.disks().await?;
        let Some(disk) = all.into_iter().find(|disk| disk.name == *name) else {
            return Err(ServiceError::NotFound {
                kind: "disk",
                name: name.to_string(),
            });
        };
        if let Some(why) = in_use(&disk) {
            return Err(ServiceError::Conflict { message: why });
        }
        let mut commit = Commit::default();
        let act = Act {
            action: "disk.delete",
            subject: &format!("disk/{name}"),
            detail: &format!("{} bytes that no machine has", disk.bytes),
            outcome: "",
        };
        self.records.audit_caller(&mut commit, caller, act);
        self.records.commit(commit).await?;
        self.world
            .provider
            .delete_disk(name)
            .await
            .map_err(|error| {
                let what = format!("disk {name} was not deleted");
                ServiceError::of(error.class(), &what, error)
            })?;
        Ok(disk)
    }
}

/// Why a disk may not be deleted.
fn in_use(disk: &Disk) -> Option<String> {
    let name = &disk.name;
    match (&disk.machine, &disk.cluster, &disk.attached_to) {
        (Some(machine), Some(cluster), _) => Some(format!(
            "disk {name} holds the data of machine {machine}; `windlass cluster delete {cluster}` deletes \
             it with its cluster"
        )),
        (_, _, Some(machine)) => Some(format!(
            "disk {name} is attached to machine {machine}, which the director does not know; remove that \
             machine at the provider first"
        )),
        _ => None,
    }
}

fn unasked(error: crate::provider::ProviderError) -> ServiceError {
    ServiceError::of(error.class(), "the provider did not list its disks", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(machine: Option<&str>, attached_to: Option<&str>) -> Disk {
        let name = |text: &str| MachineName::new(text).unwrap();
        Disk {
            name: DiskName::new("demo-cp-0-data").unwrap(),
            bytes: 1 << 30,
            machine: machine.map(name),
            cluster: machine.map(|_| ClusterName::new("demo").unwrap()),
            attached_to: attached_to.map(name),
        }
    }

    #[test]
    fn only_what_nobody_has_may_be_deleted() {
        let (one, two) = (Some("demo-cp-0"), Some("demo-cp-1"));
        #[rustfmt::skip] // one case per line
        let cases = [
            (None, None, None),
            (one,  None, Some("holds the data of machine demo-cp-0")),
            (one,  one,  Some("holds the data of machine demo-cp-0")),
            (one,  two,  Some("holds the data of machine demo-cp-0")),
            (None, two,  Some("is attached to machine demo-cp-1")),
        ];
        for (machine, attached_to, wanted) in cases {
            let why = in_use(&disk(machine, attached_to));
            match wanted {
                None => assert_eq!(why, None),
                Some(wanted) => {
                    let why = why.unwrap_or_default();
                    assert!(why.contains(wanted), "{machine:?} {attached_to:?}: {why}");
                }
            }
        }
    }
}
