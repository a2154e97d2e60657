//! Replacements: the next incarnation of machines, by a task that touches nothing else, or by the one that works
//! on their cluster already.

use std::collections::BTreeSet;

use windlass_common::id::{ClusterName, Incarnation, MachineName};

use super::now_ms;
use super::sight::serves;
use crate::model::{Caller, ClusterPhase, Machine, Task, TaskKind};
use crate::planner::{self, again};
use crate::resurrector::{ACTOR, CaseRecord, Rung};
use crate::service::clusters::{ChangeOrder, make_plan};
use crate::service::kept::KeepWish;
use crate::service::{Inner, ServiceError, ServiceResult};
use crate::store::{Commit, StoreError};

/// How machines are replaced.
pub(super) struct ReplaceOrder {
    /// The API of a cluster with one control-plane machine may be down meanwhile.
    pub(super) accept_downtime: bool,
    /// Whether what there is of them is kept.
    pub(super) keep: KeepWish,
}

impl Inner {
    /// Orders the next incarnation of `names`, which are machines of one cluster. Those that serve nobody
    /// are not drained; nothing else of the cluster is touched.
    pub(super) async fn replace(
        &self,
        cluster: &ClusterName,
        names: &BTreeSet<MachineName>,
        replace: &ReplaceOrder,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let _order = self.orders.lock().await;
        loop {
            match self.replace_as_seen(cluster, names, replace, caller).await {
                // The next verdict was faster.
                Err(error) if error.is_outdated() => {}
                outcome => return outcome,
            }
        }
    }

    /// The same for what the records say now; fails as outdated when they say something else meanwhile.
    async fn replace_as_seen(
        &self,
        cluster: &ClusterName,
        names: &BTreeSet<MachineName>,
        replace: &ReplaceOrder,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let cluster = self.cluster(cluster).await?;
        if let Some(task) = self.unfinished(&cluster).await? {
            return self.take_in(task, names, &replace.keep, caller).await;
        }
        if !serves(cluster.phase) {
            return Err(ServiceError::Conflict {
                message: format!(
                    "cluster {} is {} and was not in service; create it again, or delete it",
                    cluster.spec.name, cluster.phase
                ),
            });
        }
        let records: Vec<CaseRecord> = self.records.list().await?;
        let mut machines = self.records.machines_of(cluster.spec.name.as_str()).await?;
        let is_down = |machine: &Machine| {
            let mut of_machine = records.iter().filter(|r| r.machine == machine.name);
            of_machine.any(|record| record.is_down(machine.incarnation))
        };
        let down: BTreeSet<MachineName> = machines
            .iter()
            .filter(|machine| is_down(machine))
            .map(|machine| machine.name.clone())
            .collect();
        let before = machines.clone();
        let mut keeps = self.keeps(names, &machines, &replace.keep, caller).await?;
        for machine in machines.iter_mut().filter(|m| names.contains(&m.name)) {
            machine.condemn(down.contains(&machine.name));
            machine.keep = keeps.remove(&machine.name);
        }
        let (mut desired, mut observed) = self.state(&cluster, &machines).await?;
        planner::narrow(&mut desired, &mut observed, names, &down);
        let plan = make_plan(&desired, &observed)?;
        let order = ChangeOrder {
            accept_downtime: replace.accept_downtime,
            ..ChangeOrder::default()
        };
        self.held(&plan, &desired, &order)?;
        let task = self.new_task(TaskKind::RepairCluster, plan, caller).await?;
        let mut commit = Commit::default();
        for (machine, before) in machines.iter().zip(&before) {
            if machine != before {
                commit.put(machine)?;
            }
        }
        for name in names {
            let machine = machines.iter().find(|machine| machine.name == *name);
            let incarnation = machine.map_or(Incarnation::FIRST, |machine| machine.incarnation);
            self.note_replacement(&mut commit, &records, (name, incarnation), &task, caller)?;
        }
        self.order_existing(&mut commit, cluster, &task, ClusterPhase::Updating)?;
        self.place_order(commit, task, "cluster.repair", caller)
            .await
    }

    /// Has the task that works on a cluster replace those of `names` that serve nobody, next and without asking
    /// them to leave. The others wait for its end.
    async fn take_in(
        &self,
        task: Task,
        names: &BTreeSet<MachineName>,
        keep: &KeepWish,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        loop {
            let records: Vec<CaseRecord> = self.records.list().await?;
            let machines = self.records.machines_of(task.cluster.as_str()).await?;
            let dead = |machine: &&Machine| {
                let mut of_machine = records.iter().filter(|r| r.machine == machine.name);
                names.contains(&machine.name)
                    && of_machine.any(|record| record.is_down(machine.incarnation))
            };
            let dead: Vec<&Machine> = machines.iter().filter(dead).collect();
            if dead.is_empty() || !again::takes_repairs(&task) {
                return Err(ServiceError::Conflict {
                    message: format!(
                        "{} works on cluster {}; wait for it, or cancel it",
                        task.id, task.cluster
                    ),
                });
            }
            let taken: BTreeSet<_> = dead.iter().map(|machine| machine.name.clone()).collect();
            let mut keeps = self.keeps(&taken, &machines, keep, caller).await?;
            let mut commit = Commit::default();
            for machine in dead {
                let mut condemned = machine.clone();
                again::condemn_within(&mut condemned, &machines);
                if let Some(keep) = keeps.remove(&machine.name) {
                    condemned.keep = Some(keep);
                }
                if condemned != *machine {
                    commit.put(&condemned)?;
                }
                let about = (&machine.name, machine.incarnation);
                self.note_replacement(&mut commit, &records, about, &task, caller)?;
            }
            match self.records.commit(commit).await {
                Ok(_) => break,
                // The task was faster, or the next verdict.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // One that has ended meanwhile is followed by a repair, after the pause between two replacements.
        self.rollouts.look_again(&task.id);
        Ok(task)
    }

    /// Writes down that a machine is replaced by a task, and for whom.
    fn note_replacement(
        &self,
        commit: &mut Commit,
        records: &[CaseRecord],
        (name, incarnation): (&MachineName, Incarnation),
        task: &Task,
        caller: &Caller,
    ) -> ServiceResult<()> {
        let now = now_ms();
        let found = records.iter().find(|record| record.machine == *name);
        let mut record = match found {
            Some(record) => record.clone(),
            None => CaseRecord::new(name.clone(), incarnation, now),
        };
        let verdict = record.case.verdict;
        record.case.tried(Rung::Replace, now);
        (record.begun, record.failure) = (None, None);
        commit.put(&record)?;
        let subject = format!("machine/{name}");
        let said = match caller.operator.as_str() {
            ACTOR => format!("{verdict}: {} by {}", Rung::Replace, task.id),
            operator => format!("{operator} ordered: {} by {}", Rung::Replace, task.id),
        };
        self.records
            .audit(commit, ACTOR, "node.repair", &subject, &said);
        Ok(())
    }
}
