//! The hold of a restored director: shows what has changed, adopts it once that is approved.
//!
//! # Invariants
//! * What is adopted is written in one commit with the end of the hold; the adopted may connect after it.
//! * An approval names the differences that it is for; others in the meantime are shown again.
//!
//! # After a crash
//! Before the commit the hold is on; after it, it is over, and the next start reads what was adopted.
//!
//! # Not here
//! What differs and what follows from it ([`adopt`]).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::{Digest, Epoch, Incarnation, MachineName};
use windlass_common::pki::MachineIdentity;

use super::{Inner, ServiceError, ServiceResult};
use crate::backup::adopt::{self, Adoption, Approval, Differences, Found};
use crate::backup::hold::{self, HoldRecord};
use crate::model::{Caller, Cluster, Machine, Revision, Task, Timestamp};
use crate::provider::{DiskView, MachineView};
use crate::store::{Act, Commit, Expect, Kind};

/// Whether a director is on hold, and what has changed since its backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HoldView {
    /// Why it is on hold; absent when it is not.
    pub hold: Option<HoldRecord>,
    /// How the world differs from the records; empty when it is not on hold.
    pub differences: Differences,
    /// Names the differences in an approval.
    #[schema(value_type = String)]
    pub digest: Digest,
}

/// An approval of what was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdoptOrder {
    /// The differences that were shown.
    pub digest: Digest,
    /// What an operator says about some of them.
    pub approval: Approval,
}

/// What is known at one moment, owned.
struct Seen {
    clusters: Vec<Cluster>,
    machines: Vec<Machine>,
    tasks: Vec<Task>,
    views: Vec<MachineView>,
    disks: Vec<DiskView>,
    strangers: BTreeSet<MachineIdentity>,
    connected: BTreeMap<MachineName, (Incarnation, Epoch)>,
    epoch: Epoch,
    now: Timestamp,
}

impl Seen {
    fn found(&self) -> Found<'_> {
        Found {
            clusters: &self.clusters,
            machines: &self.machines,
            tasks: &self.tasks,
            views: &self.views,
            disks: &self.disks,
            strangers: &self.strangers,
            connected: &self.connected,
            epoch: self.epoch,
            now: self.now,
        }
    }
}

impl Inner {
    /// Refuses what a director on hold does not do.
    pub(super) fn not_on_hold(&self, action: &'static str) -> ServiceResult<()> {
        match self.hold.is_on() {
            true => Err(ServiceError::OnHold { action }),
            false => Ok(()),
        }
    }

    async fn seen(&self) -> ServiceResult<Seen> {
        let provider = |error: crate::provider::ProviderError| {
            ServiceError::of(
                error.class(),
                "the provider does not say what exists",
                error,
            )
        };
        let mut tasks: Vec<Task> = self.records.list().await?;
        tasks.retain(|task| !task.state.is_over());
        let connected = self.gateway.connected().into_iter().map(|(name, session)| {
            let beat = session.last_heartbeat.map(|(_, beat)| beat.epoch);
            let epoch = beat.unwrap_or_default().max(session.hello.epoch);
            (name, (session.identity.incarnation, epoch))
        });
        Ok(Seen {
            clusters: self.records.list().await?,
            machines: self.records.list().await?,
            tasks,
            views: self.provider.machines().await.map_err(provider)?,
            disks: self.provider.disks().await.map_err(provider)?,
            strangers: self.world.registry.strangers(),
            connected: connected.collect(),
            epoch: self.epoch.get(),
            now: Timestamp::now(),
        })
    }

    pub(super) async fn hold_view(&self) -> ServiceResult<HoldView> {
        let hold = self.hold.record();
        let differences = match hold {
            Some(_) => adopt::compare(&self.seen().await?.found()),
            None => Differences::default(),
        };
        Ok(HoldView {
            hold,
            digest: differences.digest(),
            differences,
        })
    }

    pub(super) async fn adopt(
        &self,
        order: &AdoptOrder,
        caller: &Caller,
    ) -> ServiceResult<HoldView> {
        let _no_order_meanwhile = self.orders.lock().await;
        if !self.hold.is_on() {
            return Err(ServiceError::Conflict {
                message: "the director is not on hold; there is nothing to adopt".to_owned(),
            });
        }
        let seen = self.seen().await?;
        let found = seen.found();
        let differences = adopt::compare(&found);
        if differences.digest() != order.digest {
            return Err(ServiceError::Conflict {
                message: "what differs has changed since it was shown; look again with \
                          `windlass director adopt`"
                    .to_owned(),
            });
        }
        let adoption =
            adopt::approve(&found, &differences, &order.approval).map_err(|refused| {
                ServiceError::Conflict {
                    message: refused.to_string(),
                }
            })?;
        let epoch = self.write_adoption(&adoption, &differences, caller).await?;
        self.epoch.raise(epoch);
        for machine in &adoption.forgotten {
            if let Some(expelled) = self.world.registry.expel(&machine.name) {
                self.gateway.revoke(&expelled);
            }
        }
        for machine in adoption.machines.iter().filter(|m| !m.fenced) {
            self.world.registry.admit(machine);
        }
        self.world.registry.forget_strangers();
        self.hold.lift();
        tracing::info!(
            adopted = adoption.machines.len(), forgotten = adoption.forgotten.len(),
            tasks = adoption.tasks.len(), %epoch, operator = %caller.operator, "the hold is over"
        );
        Ok(HoldView {
            hold: None,
            digest: differences.digest(),
            differences,
        })
    }

    async fn write_adoption(
        &self,
        adoption: &Adoption,
        differences: &Differences,
        caller: &Caller,
    ) -> ServiceResult<Epoch> {
        let mut commit = Commit::default();
        let owner = |name: &MachineName| serde_json::json!({ "owner": name });
        for machine in &adoption.machines {
            if machine.revision == Revision(0) {
                let address = machine.address.to_string();
                commit.value(Kind::Address, &address, Expect::Any, &owner(&machine.name));
            }
            commit.put(machine)?;
        }
        for machine in &adoption.forgotten {
            commit.delete(machine);
            commit.delete_value(Kind::Address, &machine.address.to_string());
            commit.delete_value(Kind::Certificates, machine.name.as_str());
            commit.delete_value(Kind::Case, machine.name.as_str());
        }
        for (address, name) in &adoption.reserved {
            commit.value(
                Kind::Address,
                &address.to_string(),
                Expect::Any,
                &owner(name),
            );
        }
        for cluster in &adoption.clusters {
            commit.put(cluster)?;
        }
        for task in &adoption.tasks {
            commit.put(task)?;
        }
        let epoch = self
            .records
            .raise_epoch(&mut commit, adoption.epoch)
            .await?;
        hold::end(&mut commit);
        let detail = format!(
            "{} adopted, {} forgotten, {} tasks ended, of {}",
            adoption.machines.len(),
            adoption.forgotten.len(),
            adoption.tasks.len(),
            differences.digest()
        );
        let act = Act {
            action: "director.adopt",
            subject: "director",
            detail: &detail,
            ..Act::default()
        };
        self.records.audit_caller(&mut commit, caller, act);
        self.records.commit(commit).await?;
        Ok(epoch)
    }
}

#[cfg(test)]
mod tests {
    use windlass_common::id::ClusterName;

    use super::super::tests::{Rig, VERSION, ann, data, made, spec};
    use super::*;
    use crate::backup::director as archive;
    use crate::backup::envelope::Identity as Key;
    use crate::backup::restore::{RestoreRequest, restore};
    use crate::gateway::IncarnationRegistry;
    use crate::model::TaskState;
    use crate::provider::{ProviderError, SetAside};
    use crate::service::Director;
    use crate::store::DirectoryLock;

    fn name(text: &str) -> MachineName {
        MachineName::new(text).unwrap()
    }

    fn identity(director: &Director, machine: &str, incarnation: u32) -> MachineIdentity {
        MachineIdentity {
            director: director.id().clone(),
            cluster: ClusterName::new("demo").unwrap(),
            machine: name(machine),
            incarnation: Incarnation(incarnation),
        }
    }

    /// A director with a task under way that is backed up; then a machine is replaced, one added and one removed,
    /// and the backup is restored elsewhere.
    async fn restored() -> Rig {
        let old = Rig::new().await;
        let dir = data(old.dir.path());
        std::fs::write(dir.config(), "").unwrap();
        let director = old.director().await;
        let task = director.create_cluster(spec("demo"), &ann()).await.unwrap();
        made(&director, &task.id).await;
        let key = Key::load(&dir.backup_key()).unwrap();
        let file = old.dir.path().join("backup.age");
        archive::write_file(&dir, &[key.recipient()], Timestamp::now(), &file).unwrap();
        director.shutdown().await;
        drop(director);
        {
            let mut state = old.sim.state.lock().unwrap();
            let mut added = state.machines[&name("demo-w-1")].clone();
            added.view.name = name("demo-w-2");
            added.view.address = "10.0.0.77".parse().unwrap();
            state.machines.insert(name("demo-w-2"), added);
            state.machines.remove(&name("demo-w-1"));
            let replaced = state.machines.get_mut(&name("demo-w-0")).unwrap();
            replaced.view.incarnation = Incarnation(2);
        }
        let new = tempfile::tempdir().unwrap();
        crate::stemcell::tests::install(&new.path().join("stemcells"), VERSION);
        let request = RestoreRequest {
            archive: file,
            above: None,
            now: Timestamp::now(),
        };
        restore(&data(new.path()), &key, &request).await.unwrap();
        let lock = DirectoryLock::acquire(new.path()).unwrap();
        Rig {
            dir: new,
            sim: old.sim.clone(),
            lock,
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_restored_director_looks_and_does_nothing() {
        let rig = restored().await;
        let births = rig.sim.state.lock().unwrap().births.clone();
        let director = rig.director().await;
        let refused = director.create_cluster(spec("other"), &ann()).await;
        assert!(
            matches!(refused, Err(ServiceError::OnHold { .. })),
            "{refused:?}"
        );
        let demo = ClusterName::new("demo").unwrap();
        let refused = director.delete_cluster(&demo, None, &ann()).await;
        assert!(
            matches!(refused, Err(ServiceError::OnHold { .. })),
            "{refused:?}"
        );
        let machine = name("demo-w-0");
        let refused = director
            .recreate_node(&machine, crate::service::RecreateOrder::default(), &ann())
            .await;
        assert!(
            matches!(refused, Err(ServiceError::OnHold { .. })),
            "{refused:?}"
        );
        // Whoever asks: the way to the platform is shut.
        let refused = director.inner.provider.delete_machine(&machine).await;
        assert!(
            matches!(refused, Err(ProviderError::OnHold { .. })),
            "{refused:?}"
        );
        let through_steps = director.inner.world.provider.delete_machine(&machine).await;
        assert!(through_steps.is_err());
        let aside = SetAside {
            machine: machine.clone(),
            incarnation: Incarnation::FIRST,
            kept: name("demo-w-0-i1-000000"),
            notes: Default::default(),
        };
        for refused in [
            director.inner.provider.set_aside(aside).await.map(drop),
            director.inner.provider.delete_kept(&machine).await,
        ] {
            assert!(
                matches!(refused, Err(ProviderError::OnHold { .. })),
                "{refused:?}"
            );
        }
        let view = director.hold().await.unwrap();
        let changes: Vec<_> = view.differences.machines.iter().map(|d| d.change).collect();
        use adopt::Change::{Added, Gone, Replaced};
        assert_eq!(changes, [Replaced, Gone, Added], "{view:?}");
        assert_eq!(view.differences.tasks.len(), 1);
        assert!(director.status().await.unwrap().hold.is_some());
        assert_eq!(rig.sim.state.lock().unwrap().births, births);
        // A restart holds as well.
        director.shutdown().await;
        drop(director);
        assert!(rig.director().await.is_on_hold());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_approved_is_adopted_and_the_director_acts_again() {
        let rig = restored().await;
        let director = rig.director().await;
        let before = director.status().await.unwrap().epoch;
        let registry = director.inner.world.registry.clone();
        let order = |view: &HoldView| AdoptOrder {
            digest: view.digest,
            approval: Approval::default(),
        };
        let view = director.hold().await.unwrap();
        let refused = director.adopt(&order(&view), &ann()).await;
        assert!(
            matches!(refused, Err(ServiceError::Conflict { .. })),
            "no certificate yet"
        );
        // The gateway asks so about certificates whose chain it has verified.
        assert!(!registry.is_current(&identity(&director, "demo-w-0", 2)));
        assert!(!registry.is_current(&identity(&director, "demo-w-2", 1)));
        let stale = director.adopt(&order(&view), &ann()).await;
        assert!(
            matches!(stale, Err(ServiceError::Conflict { .. })),
            "another digest"
        );
        let view = director.hold().await.unwrap();
        assert_eq!(
            view.differences
                .machines
                .iter()
                .filter(|d| d.certificate)
                .count(),
            2
        );
        let mut approval = order(&view);
        approval.approval.forget.insert(name("demo-w-1"));
        director.adopt(&approval, &ann()).await.unwrap();
        assert!(!director.is_on_hold());
        assert!(
            director.adopt(&approval, &ann()).await.is_err(),
            "it is over"
        );
        assert!(registry.is_current(&identity(&director, "demo-w-0", 2)));
        assert!(registry.is_replaced(&identity(&director, "demo-w-0", 1)));
        assert!(registry.is_current(&identity(&director, "demo-w-2", 1)));
        assert!(!registry.is_current(&identity(&director, "demo-w-1", 1)));
        let demo = ClusterName::new("demo").unwrap();
        let cluster = director.cluster(&demo).await.unwrap();
        assert_eq!(cluster.task, None);
        let pool = cluster.spec.pools.values().next().unwrap();
        assert_eq!(pool.count, 2, "one was added, and one was forgotten");
        let tasks = director.tasks().await.unwrap();
        assert!(tasks.iter().all(|task| task.state == TaskState::Failed));
        let log = director.audit(10, &Default::default()).await.unwrap();
        assert_eq!(log[0].action, "director.adopt");
        // It acts, also after a restart, and its epoch goes on from where it was.
        director.shutdown().await;
        drop(director);
        let director = rig.director().await;
        assert!(!director.is_on_hold());
        assert_eq!(director.status().await.unwrap().epoch.0, before.0 + 1);
        let task = director.delete_cluster(&demo, None, &ann()).await.unwrap();
        let ended = tokio::time::timeout(std::time::Duration::from_secs(60), async {
            use futures_util::StreamExt;
            let events = director.watch_task(&task.id).await.unwrap();
            events.collect::<Vec<_>>().await;
            director.task(&task.id).await.unwrap().state
        });
        assert_eq!(ended.await.unwrap(), TaskState::Succeeded);
        assert!(rig.sim.state.lock().unwrap().machines.is_empty());
    }
}
