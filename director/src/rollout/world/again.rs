//! Planning a task anew in the middle of it, inside what was approved: see [`crate::planner::again`].

use std::collections::BTreeSet;

use windlass_common::cluster::UpdateStrategy;
use windlass_common::error::ErrorClass;
use windlass_common::id::MachineName;

use super::cancel::renamed;
use super::{Done, EffectError, RecordChange, World, agreed, check};
use crate::model::{Cluster, Machine, MachinePhase, Plan, Task, TaskKind};
use crate::planner;
use crate::planner::again::{self, Aim};
use crate::planner::{inputs, refit};
use crate::provider::Power;
use crate::resurrector::{ACTOR, CaseRecord};
use crate::rollout::{AGAIN, split_leg};
use crate::store::Commit;

/// How often one task is planned anew: each time a machine has died, and the pauses between replacements grow.
const ROUNDS_MAX: u32 = 64;

impl World {
    /// Whether a task's plan still fits what the records say.
    pub(super) async fn still_fits(&self, task: &Task) -> Result<bool, EffectError> {
        let Some(cluster) = self.records.get::<Cluster>(task.cluster.as_str()).await? else {
            return Ok(true); // it is being deleted
        };
        let machines = self.records.machines_of(task.cluster.as_str()).await?;
        let held = self.held().await?;
        Ok(again::fits(task, Aim::of(&cluster), &machines, &held))
    }

    pub(super) async fn held(&self) -> Result<BTreeSet<MachineName>, EffectError> {
        let cases = self.records.list_shared::<CaseRecord>().await?;
        let held = cases.iter().filter(|case| case.held());
        Ok(held.map(|case| case.machine.clone()).collect())
    }

    /// Plans what is left of a task, those first that serve nobody.
    pub(super) async fn plan_on(&self, task: &Task) -> Result<Plan, EffectError> {
        if task.rounds >= ROUNDS_MAX {
            let message = format!(
                "{} was planned anew {ROUNDS_MAX} times since machines died on the way; find what they have in \
                 common, then order it again",
                task.id
            );
            return Err(EffectError::new(ErrorClass::Operator, message));
        }
        let name = &task.cluster;
        let cluster = self.changing(name).await?;
        let mut machines = self.records.machines_of(name.as_str()).await?;
        // What an operator ordered stands, dead or not.
        let ordered = task.kind == TaskKind::RepairCluster && task.operator != ACTOR;
        let spared = again::spared(task, &machines);
        let found = self.observe(name).await?.machines;
        let there = |machine: &Machine| {
            let found = found.get(&machine.name);
            found.is_some_and(|found| found.incarnation == machine.incarnation && found.complete)
        };
        let mut commit = Commit::default();
        for machine in &mut machines {
            let before = machine.clone();
            // What is not there is made, or made anew, and not restarted.
            machine.reboot = machine.reboot.filter(|_| there(machine));
            if spared.contains(&machine.name) && !ordered {
                again::spare(machine);
            }
            self.aim(task, &cluster, machine)?;
            if *machine != before {
                commit.put(machine)?;
            }
        }
        self.records.commit(commit).await?;
        let mut machines = self.records.machines_of(name.as_str()).await?;
        if task.kind == TaskKind::RepairCluster {
            machines = again::as_they_are(&machines);
        }
        let (mut desired, mut observed) = (
            self.desired(&cluster, &machines)?,
            self.observe(name).await?,
        );
        // Gates that were planned stay planned.
        observed.unasked.extend(again::unasked(task));
        if task.kind == TaskKind::RepairCluster {
            let held = self.held().await?;
            let dead = machines
                .iter()
                .filter(|m| m.condemned && !held.contains(&m.name));
            let mut names = again::replaced(task);
            names.extend(dead.map(|m| m.name.clone()));
            let reboots = machines
                .iter()
                .filter(|m| m.reboot.is_some() && !held.contains(&m.name));
            names.extend(reboots.map(|m| m.name.clone()));
            let down = self.down(&machines).await?;
            planner::narrow(&mut desired, &mut observed, &names, &down);
        }
        let plan = planner::plan(&desired, &observed)
            .map_err(|error| EffectError::of(error.class(), &error))?;
        check(&plan, &desired, &observed)?;
        agreed(task, &plan)?;
        let first = task.plan.steps.first();
        let leg = first.map_or("", |step| split_leg(&step.key.0).0);
        Ok(renamed(plan, &format!("{leg}{AGAIN}{}/", task.rounds + 1)))
    }

    /// Brings what is wanted of a machine up to what has become of it.
    fn aim(
        &self,
        task: &Task,
        cluster: &Cluster,
        machine: &mut Machine,
    ) -> Result<(), EffectError> {
        if task.kind != TaskKind::UpdateCluster || !Aim::of(cluster).leaves_behind(machine) {
            return Ok(());
        }
        let stemcell = self
            .stemcells
            .get(&cluster.stemcell)
            .map_err(|error| EffectError::of(error.class(), &error))?;
        let (size, strategy) = inputs::update(&cluster.spec, &machine.role)
            .unwrap_or((machine.size, UpdateStrategy::Replace));
        let from = self.stemcells.get(machine.runs()).ok();
        let becomes = refit::becomes(machine, size, strategy, from.as_ref(), &stemcell);
        machine.wanted = Some(becomes);
        Ok(())
    }

    /// Machines of a cluster that serve nobody, by verdict.
    pub(crate) async fn down(
        &self,
        machines: &[Machine],
    ) -> Result<BTreeSet<MachineName>, EffectError> {
        let cases: Vec<CaseRecord> = self.records.list().await?;
        let down = |machine: &&Machine| {
            let mut of_machine = cases.iter().filter(|case| case.machine == machine.name);
            of_machine.any(|case| case.is_down(machine.incarnation))
        };
        let down = machines.iter().filter(down);
        Ok(down.map(|machine| machine.name.clone()).collect())
    }

    /// Another look at a machine that is about to be shut out: one that was down when that was decided, and that
    /// is heard of now, is spared, and the task planned anew. What was shut out before is not heard of any more.
    pub(super) async fn came_back(&self, name: &MachineName) -> Result<Option<Done>, EffectError> {
        let record: Option<Machine> = self.records.get(name.as_str()).await?;
        let Some(record) = record else {
            return Ok(None);
        };
        let served = record.phase == MachinePhase::Ready && record.started.is_some();
        if !served || !self.agents.is_heard(name, record.incarnation) {
            return Ok(None);
        }
        let view = self.provider.machine(name).await?;
        let runs = |power, complete| power == Power::Running && complete;
        if !view.is_some_and(|view| runs(view.power, view.complete)) {
            return Ok(None);
        }
        Ok(Some(Done {
            changes: vec![format!("{name} is back, and is not shut out")],
            records: vec![RecordChange::Returned(name.clone())],
        }))
    }
}
