//! Orders to upgrade agents in place.

use std::collections::BTreeSet;

use windlass_common::id::{ClusterName, Digest, MachineName};
use windlass_common::wire::message::{Body, since};

use super::shown::Planned;
use super::tasks::reason_given;
use super::{Inner, ServiceError, ServiceResult};
use crate::model::{
    Caller, FieldFault, Machine, MachinePhase, Plan, StemcellRecord, Task, TaskKind,
};
use crate::planner::agents::{self, AgentUpgrades};
use crate::rollout::world;
use crate::store::Commit;

/// Most agents that may be on trial at a time.
pub const AT_A_TIME_MAX: u32 = 50;

/// Which agents to upgrade, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentOrder {
    /// Version of the stemcell whose agent is wanted; the newest one's when not given.
    pub stemcell: Option<String>,
    /// Only of these machines; of all when empty.
    pub machines: BTreeSet<MachineName>,
    /// How many at a time once the first has succeeded, 1 to [`AT_A_TIME_MAX`].
    pub at_a_time: u32,
    /// The plan that was shown: another one is not carried out.
    pub plan: Option<Digest>,
    /// Why it does not wait for the cluster's maintenance window.
    pub ignore_window: Option<String>,
}

impl Inner {
    /// What an order would do.
    pub(super) async fn plan_agents(
        &self,
        name: &ClusterName,
        order: &AgentOrder,
    ) -> ServiceResult<Plan> {
        self.shown(self.drafted_agents(name, order).await?).await
    }

    async fn drafted_agents(
        &self,
        name: &ClusterName,
        order: &AgentOrder,
    ) -> ServiceResult<Planned> {
        let cluster = self.cluster(name).await?;
        let stemcell = self.agent_stemcell(order)?;
        let machines = self.records.machines_of(name.as_str()).await?;
        let chosen = chosen(name, &machines, &order.machines)?;
        self.reachable(&chosen)?;
        let (desired, observed) = self.state(&cluster, &machines).await?;
        let names: Vec<MachineName> = chosen.iter().map(|m| m.name.clone()).collect();
        let upgrades = AgentUpgrades {
            stemcell: &stemcell.version,
            machines: &names,
            at_a_time: order.at_a_time as usize,
        };
        let plan = agents::plan(&desired, &observed, upgrades);
        world::check(&plan, &desired, &observed)?;
        Ok(Planned {
            plan,
            desired,
            observed,
        })
    }

    pub(super) async fn upgrade_agents(
        &self,
        name: &ClusterName,
        order: &AgentOrder,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let ignore_window = order.ignore_window.clone();
        let ignore_window = ignore_window.map(|reason| reason_given("ignore_window", reason));
        let _order = self.orders.lock().await;
        let cluster = self.cluster(name).await?;
        if let Some(task) = self.unfinished(&cluster).await? {
            let message = format!(
                "cluster {name} is being worked on by {} ({}); wait for it, or cancel it",
                task.id, task.kind
            );
            return Err(ServiceError::Conflict { message });
        }
        let Planned { plan, desired, .. } = self.drafted_agents(name, order).await?;
        self.same_plan(&plan, &desired, order.plan)?;
        let mut task = self.new_task(TaskKind::UpgradeAgents, plan, caller).await?;
        task.ignore_window = ignore_window.transpose()?;
        let mut commit = Commit::default();
        let phase = cluster.phase;
        self.order_existing(&mut commit, cluster, &task, phase)?;
        self.place_order(commit, task, "cluster.upgrade-agents", caller)
            .await
    }

    fn agent_stemcell(&self, order: &AgentOrder) -> ServiceResult<StemcellRecord> {
        let found = match &order.stemcell {
            Some(version) => self.stemcells.get(version),
            None => self.stemcells.newest_agent(),
        };
        let fault = |given: &str, why: String| ServiceError::Invalid {
            faults: vec![FieldFault::new("stemcell", given, why)],
        };
        let given = order.stemcell.as_deref().unwrap_or("the newest");
        let stemcell = found.map_err(|error| {
            let why = windlass_common::error::ErrorChain(&error).to_string();
            fault(given, format!("a verified stemcell; {why}"))
        })?;
        if stemcell.agent.is_none() {
            return Err(fault(given, "a stemcell with an agent".to_owned()));
        }
        Ok(stemcell)
    }

    /// Refuses to begin when an agent is away or too old to be asked: the first that fails ends the task.
    fn reachable(&self, machines: &[&Machine]) -> ServiceResult<()> {
        let needs = since(<windlass_common::step::AgentUpgrade as Body>::KIND);
        let sessions = self.gateway.connected();
        let mut away = Vec::new();
        let mut old = Vec::new();
        for machine in machines {
            match sessions.get(&machine.name) {
                Some(session) if session.identity.incarnation == machine.incarnation => {
                    if session.protocol < needs {
                        old.push(machine.name.as_str());
                    }
                }
                _ => away.push(machine.name.as_str()),
            }
        }
        let mut problems = Vec::new();
        if !away.is_empty() {
            problems.push(format!(
                "the agents of {} are not connected",
                away.join(", ")
            ));
        }
        if !old.is_empty() {
            problems.push(format!(
                "the agents of {} are older than protocol {needs}, which upgrading in place takes \
                 (`windlass cluster upgrade --stemcell` replaces their machines)",
                old.join(", ")
            ));
        }
        if problems.is_empty() {
            return Ok(());
        }
        Err(ServiceError::Conflict {
            message: format!(
                "{}; name the machines whose agents are to be upgraded, without these",
                problems.join("; ")
            ),
        })
    }
}

/// The machines of an order, all of which have to be in service as they are wanted.
pub(super) fn chosen<'a>(
    cluster: &ClusterName,
    machines: &'a [Machine],
    named: &BTreeSet<MachineName>,
) -> ServiceResult<Vec<&'a Machine>> {
    let unknown: Vec<FieldFault> = named
        .iter()
        .filter(|name| !machines.iter().any(|machine| machine.name == **name))
        .map(|name| {
            let allowed = format!("machines of cluster {cluster}");
            FieldFault::new("machines", name, allowed)
        })
        .collect();
    if !unknown.is_empty() {
        return Err(ServiceError::Invalid { faults: unknown });
    }
    let all = named.is_empty();
    let chosen: Vec<&Machine> = machines
        .iter()
        .filter(|machine| all || named.contains(&machine.name))
        .collect();
    let changing = |machine: &&&Machine| {
        machine.wanted.is_some()
            || matches!(
                machine.phase,
                MachinePhase::Planned | MachinePhase::Creating
            )
    };
    if let Some(machine) = chosen.iter().find(changing) {
        return Err(ServiceError::Conflict {
            message: format!(
                "machine {} is to be made or changed; `windlass cluster plan {cluster}` shows what is \
                 left of that: finish it first",
                machine.name
            ),
        });
    }
    Ok(chosen)
}
