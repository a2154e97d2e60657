//! What happens to a task besides: machines that do not come back are condemned in the middle of it, it is paused for a
//! while, and it is told not to wait for its window.
//!
//! The verdict is the simulation's: who is down for long is dead. What follows is the product's, from the record
//! of the machine on.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result};
use windlass_common::id::MachineName;
use windlass_director::model::{Keep, Machine, MachinePhase, TaskId};
use windlass_director::planner::again;
use windlass_director::store::{Commit, StoreError};

use super::director::Director;
use super::fixtures::{self, Fixtures};
use super::state::Site;

/// How long a machine is down before it may be given up, milliseconds.
const DEAD_AFTER_MS: u64 = 30_000;

/// Who looks after machines while a task runs.
#[derive(Debug)]
pub struct Repairs<'a> {
    /// The world.
    pub site: &'a Site,
    /// Reads and writes records without anything going wrong.
    pub desk: &'a Director,
    /// The director that carries the task out.
    pub director: &'a Director,
    /// The task.
    pub task: &'a TaskId,
}

impl Repairs<'_> {
    /// Condemns machines that do not come back, as long as this life lasts.
    pub async fn work(&self) -> Result<bool> {
        loop {
            self.site.pause(5_000..=40_000).await;
            let dead = self.dead();
            if !dead.is_empty() && self.condemn(&dead).await? {
                self.director.rollouts.look_again(self.task);
            }
        }
    }

    /// A machine of the cluster dies, whatever the task does with it.
    pub async fn accidents(&self, fixtures: &Arc<Fixtures>) {
        let happens = {
            let mut state = self.site.lock();
            state.faults.on && state.dice.chance(400)
        };
        if happens {
            self.site.pause(500..=120_000).await;
            let struck = {
                let mut state = self.site.lock();
                let now = state.now;
                let vms = state.vms.iter();
                let up: Vec<MachineName> = vms
                    .filter(|(_, vm)| vm.runs(now) && !vm.by_us)
                    .map(|(name, _)| name.clone())
                    .collect();
                state.faults.count += 1;
                state
                    .dice
                    .pick(&(0..up.len()).collect::<Vec<_>>())
                    .map(|at| up[at].clone())
            };
            if let Some(machine) = struck {
                self.site.lock().tell(format!("ACCIDENT {machine}"));
                self.site.kill_machine(fixtures, &machine);
            }
        }
        std::future::pending::<()>().await;
    }

    /// Has the task pause for a while, seldom.
    pub async fn pauses(&self) {
        let pauses = {
            let mut state = self.site.lock();
            state.faults.on && state.dice.chance(150)
        };
        if pauses {
            self.site.pause(1_000..=300_000).await;
            self.site.lock().tell(format!("PAUSE {}", self.task));
            self.director.rollouts.pause(self.task, true);
            self.site.pause(1_000..=900_000).await;
            self.site.lock().tell(format!("RESUME {}", self.task));
            self.director.rollouts.pause(self.task, false);
        }
        std::future::pending::<()>().await;
    }

    /// Has the task go on outside of its window, seldom.
    pub async fn hurries(&self) {
        let hurries = {
            let mut state = self.site.lock();
            state.ordered.windows.is_some() && state.dice.chance(100)
        };
        if hurries {
            self.site.pause(1_000..=3_600_000).await;
            let mut state = self.site.lock();
            state.tell(format!("HURRY {}", self.task));
            state.keeps_to(None);
            drop(state);
            let why = "it has to be today".to_owned();
            self.director.rollouts.ignore_window(self.task, why);
        }
        std::future::pending::<()>().await;
    }

    /// Machines that are given up: some of those that are down come back after all.
    fn dead(&self) -> BTreeSet<MachineName> {
        let mut state = self.site.lock();
        let now = state.now;
        let down: Vec<MachineName> = state
            .vms
            .iter()
            .filter(|(_, vm)| {
                let since = vm.down_since.filter(|_| !vm.runs(now) && !vm.off);
                since.is_some_and(|since| since + DEAD_AFTER_MS <= now)
            })
            .map(|(name, _)| name.clone())
            .collect();
        down.into_iter()
            .filter(|_| state.dice.chance(500))
            .collect()
    }

    /// As the resurrector does when a change runs; whether there was anything to it.
    async fn condemn(&self, dead: &BTreeSet<MachineName>) -> Result<bool> {
        let records = &self.desk.records;
        let task = records.task(self.task).await?;
        if !again::takes_repairs(&task.context("a task is in the store")?) {
            return Ok(false);
        }
        let machines = records.machines_of(fixtures::cluster()?.as_str()).await?;
        let dies = |machine: &&Machine| {
            let serves = machine.phase == MachinePhase::Ready;
            dead.contains(&machine.name) && serves && !machine.condemned && !machine.fenced
        };
        let mut commit = Commit::default();
        let mut names = Vec::new();
        for machine in machines.iter().filter(dies) {
            let mut condemned = machine.clone();
            again::condemn_within(&mut condemned, &machines);
            // Some are kept for people to look into.
            if self.site.lock().dice.chance(300) {
                let name = format!("{}-kept", machine.node_name);
                condemned.keep = Some(Keep {
                    name: MachineName::new(name)?,
                    operator: "resurrector".to_owned(),
                    reason: String::new(),
                });
            }
            commit.put(&condemned)?;
            names.push(machine.name.to_string());
        }
        if names.is_empty() {
            return Ok(false);
        }
        match records.commit(commit).await {
            Ok(_) => {
                self.site
                    .lock()
                    .tell(format!("GIVEN UP {}", names.join(", ")));
                Ok(true)
            }
            // The task was faster.
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}
