//! Replacements: the next incarnation of machines, by a task that touches nothing else.

use std::collections::BTreeSet;

use windlass_common::id::{ClusterName, Incarnation, MachineName};

use super::sight::serves;
use super::{ACTOR, now_ms};
use crate::model::{Caller, ClusterPhase, Machine, Task, TaskKind};
use crate::planner;
use crate::resurrector::{CaseRecord, Rung};
use crate::service::clusters::{ChangeOrder, make_plan};
use crate::service::{Inner, ServiceError, ServiceResult};
use crate::store::Commit;

impl Inner {
    /// Orders the next incarnation of `names`, which are machines of one cluster. Those that serve nobody
    /// are not drained; nothing else of the cluster is touched.
    pub(super) async fn replace(
        &self,
        cluster: &ClusterName,
        names: &BTreeSet<MachineName>,
        accept_downtime: bool,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let _order = self.orders.lock().await;
        let cluster = self.cluster(cluster).await?;
        if let Some(task) = self.unfinished(&cluster).await? {
            return Err(ServiceError::Conflict {
                message: format!(
                    "{} works on cluster {}; wait for it, or cancel it",
                    task.id, cluster.spec.name
                ),
            });
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
        for machine in machines.iter_mut().filter(|m| names.contains(&m.name)) {
            machine.condemn(down.contains(&machine.name));
        }
        let (mut desired, mut observed) = self.state(&cluster, &machines).await?;
        planner::narrow(&mut desired, &mut observed, names, &down);
        let plan = make_plan(&desired, &observed)?;
        let order = ChangeOrder {
            accept_downtime,
            ..ChangeOrder::default()
        };
        self.held(&plan, &order)?;
        let task = self.new_task(TaskKind::RepairCluster, plan, caller).await?;
        let mut commit = Commit::default();
        for (machine, before) in machines.iter().zip(&before) {
            if machine != before {
                commit.put(machine)?;
            }
        }
        let now = now_ms();
        for name in names {
            let found = records.iter().find(|record| record.machine == *name);
            let machine = machines.iter().find(|machine| machine.name == *name);
            let incarnation = machine.map_or(Incarnation::FIRST, |machine| machine.incarnation);
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
                .audit(&mut commit, ACTOR, "node.repair", &subject, &said);
        }
        self.order_existing(&mut commit, cluster, &task, ClusterPhase::Updating)?;
        self.place_order(commit, task, "cluster.repair", caller)
            .await
    }
}
