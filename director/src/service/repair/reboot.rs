//! Restarts of machines that still serve: by a task that has their pods leave first, or by the one that works on their
//! cluster already.
//!
//! # Invariants
//! * How often the machine had been started stands in its record in the same commit that writes the remedy down, so that
//!   it is restarted once, whatever crashes.
//! * Nothing but that machine is touched, unless a task does so anyway.
//!
//! # Not here
//! Machines that are down, and those whose pods nobody could end: they are restarted at once (`remedy`).

use std::collections::BTreeSet;

use windlass_common::id::MachineName;

use super::remedy::fails_to_run_pods;
use super::{now_ms, sight};
use crate::model::{Caller, ClusterPhase, Machine, Reboot, Task, TaskId, TaskKind};
use crate::planner::{self, again};
use crate::resurrector::{ACTOR, CaseRecord, Rung, Verdict};
use crate::service::clusters::{ChangeOrder, make_plan};
use crate::service::{Inner, ServiceError, ServiceResult};
use crate::store::Commit;

impl Inner {
    /// Orders the restart of a machine that serves, after its pods have left it.
    pub(super) async fn restart_in_turn(
        &self,
        name: &MachineName,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let _order = self.orders.lock().await;
        loop {
            match self.restart_as_seen(name, caller).await {
                // The next verdict was faster, or the task that works on the cluster.
                Err(error) if error.is_outdated() => {}
                outcome => return outcome,
            }
        }
    }

    async fn restart_as_seen(&self, name: &MachineName, caller: &Caller) -> ServiceResult<Task> {
        let mut machine = self.machine_record(name).await?;
        let cluster = self.cluster(&machine.cluster).await?;
        let found: Option<CaseRecord> = self.records.get(name.as_str()).await?;
        let case = found.filter(|record| record.incarnation == machine.incarnation);
        let case = case.ok_or_else(|| ServiceError::Conflict {
            message: format!(
                "nothing is known against machine {name} any more; it is judged again"
            ),
        })?;
        let asked = self.provider.machine(name).await;
        let view = asked.map_err(|error| {
            let what = format!("the provider does not say how often machine {name} was started");
            ServiceError::of(error.class(), &what, error)
        })?;
        let view = view.ok_or_else(|| ServiceError::Conflict {
            message: format!(
                "the provider has no machine {name} any more; it is replaced once that is judged"
            ),
        })?;
        machine.reboot = Some(Reboot {
            boots: view.boots,
            drain: !fails_to_run_pods(self, &machine),
            silent: case.case.verdict == Verdict::AgentLost,
        });
        if let Some(task) = self.unfinished(&cluster).await? {
            if !again::takes_repairs(&task) {
                return Err(ServiceError::Conflict {
                    message: format!(
                        "{} works on cluster {}; wait for it, or cancel it",
                        task.id, task.cluster
                    ),
                });
            }
            let mut commit = Commit::default();
            commit.put(&machine)?;
            self.note_restart(&mut commit, case, &task.id)?;
            self.records.commit(commit).await?;
            // One that has ended meanwhile leaves the order to the next round.
            self.rollouts.look_again(&task.id);
            return Ok(task);
        }
        if !sight::serves(cluster.phase) {
            return Err(ServiceError::Conflict {
                message: format!(
                    "cluster {} is {} and was not in service; create it again, or delete it",
                    cluster.spec.name, cluster.phase
                ),
            });
        }
        let machines = self.records.machines_of(cluster.spec.name.as_str()).await?;
        let as_wanted = |found: Machine| match found.name == *name {
            true => machine.clone(),
            false => found,
        };
        let machines: Vec<Machine> = machines.into_iter().map(as_wanted).collect();
        let machines = again::as_they_are(&machines);
        let (mut desired, mut observed) = self.state(&cluster, &machines).await?;
        let down = self.world.down(&machines).await?;
        let names = BTreeSet::from([name.clone()]);
        planner::narrow(&mut desired, &mut observed, &names, &down);
        let plan = make_plan(&desired, &observed)?;
        self.held(&plan, &desired, &ChangeOrder::default())?;
        let task = self.new_task(TaskKind::RepairCluster, plan, caller).await?;
        let mut commit = Commit::default();
        commit.put(&machine)?;
        self.note_restart(&mut commit, case, &task.id)?;
        self.order_existing(&mut commit, cluster, &task, ClusterPhase::Updating)?;
        self.place_order(commit, task, "cluster.repair", caller)
            .await
    }

    /// Writes down that a machine is restarted by a task.
    fn note_restart(
        &self,
        commit: &mut Commit,
        mut case: CaseRecord,
        task: &TaskId,
    ) -> ServiceResult<()> {
        let verdict = case.case.verdict;
        case.case.tried(Rung::Reboot, now_ms());
        (case.begun, case.failure) = (None, None);
        commit.put(&case)?;
        let subject = format!("machine/{}", case.machine);
        let said = format!("{verdict}: {} by {task}", Rung::Reboot);
        self.records
            .audit(commit, ACTOR, "node.repair", &subject, &said);
        Ok(())
    }
}
