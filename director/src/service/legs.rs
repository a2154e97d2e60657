//! Plans changes, those with all of their legs that lead to a later minor.
//!
//! Each leg is drafted and planned out of what the one before it leaves, and checked, before anything is ordered.
//! When its turn comes it is drafted anew, out of what there is then (`rollout::world`).

use super::clusters::{Change, make_plan};
use super::{Inner, ServiceError, ServiceResult};
use crate::model::{DrainForecast, LegsForecast, Plan, Task, TaskKind, TaskState};
use crate::plan::duration::Measured;
use crate::planner::{Desired, DesiredState, legs};

/// Tasks that say how long steps take, of those that make or change clusters and of the others: enough for a middle
/// value, few enough to be read while somebody waits.
const MEASURED_TASKS: usize = 16;

/// The plan of a change.
pub(super) struct PlannedChange {
    /// What is carried out first; its hash covers what comes later.
    pub(super) plan: Plan,
    /// The legs that come later.
    pub(super) later: Vec<(Plan, Desired)>,
}

impl Inner {
    /// Plans a change, with all of its legs.
    pub(super) async fn plan_change(&self, change: &Change) -> ServiceResult<PlannedChange> {
        let first = make_plan(&change.desired, &change.observed)?;
        let mut later = Vec::new();
        if change.draft.cluster.upgrade.is_none() {
            return Ok(PlannedChange { plan: first, later });
        }
        let measured = self.measured().await?;
        let (known, _) = self
            .world
            .stemcells
            .list()
            .map_err(|error| ServiceError::of(error.class(), "stemcells", error))?;
        let mut forecasts = Vec::new();
        let mut cluster = change.draft.cluster.clone();
        let mut machines = change.draft.machines.clone();
        let mut desired = change.desired.clone();
        let mut observed = change.observed.clone();
        let mut plan = first.clone();
        loop {
            let under_way = cluster.upgrade.as_ref();
            if let Some((upgrade, leg)) = under_way.and_then(|of| Some((of, of.leg()?))) {
                let mut forecast = legs::forecast(leg, &plan, &desired, &observed);
                forecast.seconds = measured.seconds(&plan);
                forecast.way_back = legs::way_back(leg, upgrade.before(), &known);
                forecasts.push(forecast);
            }
            let arrived = legs::arrived(&machines, &desired);
            if let DesiredState::Present { addons, .. } = &desired.state {
                cluster.addons = Some(*addons);
            }
            let seen = legs::observe_arrived(&cluster, &arrived, &arrived);
            let drafter = self.world.drafter();
            let Some(next) = drafter.next_leg(&cluster, arrived.clone(), &seen).await? else {
                break;
            };
            (cluster, machines) = (next.cluster, next.machines);
            desired = self.world.desired(&cluster, &machines)?;
            observed = legs::observe_arrived(&cluster, &arrived, &machines);
            plan = make_plan(&desired, &observed)?;
            later.push((plan.clone(), desired.clone()));
        }
        let mut plan = first;
        plan.hash = legs::hash(&forecasts);
        plan.upgrade = Some(LegsForecast {
            at: 0,
            legs: forecasts,
        });
        Ok(PlannedChange { plan, later })
    }

    /// What steps have taken in the last tasks that succeeded.
    pub(super) async fn measured(&self) -> ServiceResult<Measured> {
        let mut tasks: Vec<Task> = self.records.list().await?;
        tasks.retain(|task| task.state == TaskState::Succeeded);
        tasks.sort_by_key(|task| std::cmp::Reverse(task.created_at));
        // Renewals are many, and tell nothing of machines that are made.
        let makes =
            |task: &Task| matches!(task.kind, TaskKind::CreateCluster | TaskKind::UpdateCluster);
        let (making, others): (Vec<_>, Vec<_>) = tasks.into_iter().partition(makes);
        let last = |tasks: Vec<Task>| tasks.into_iter().take(MEASURED_TASKS);
        let mut whole = Vec::new();
        for task in last(making).chain(last(others)) {
            // A list has tasks without their steps.
            whole.extend(self.records.task(&task.id).await?);
        }
        Ok(Measured::of(&whole))
    }

    /// Says in a plan that is shown what the drains of its later legs are expected to do.
    pub(super) async fn forecast_drains(&self, plan: &mut Plan, later: &[(Plan, Desired)]) {
        let mut drains: Vec<Option<DrainForecast>> = vec![plan.drains.clone()];
        for (plan, desired) in later {
            drains.push(self.world.forecast(plan, desired).await);
        }
        let legs = plan
            .upgrade
            .iter_mut()
            .flat_map(|upgrade| &mut upgrade.legs);
        for (leg, drains) in legs.zip(drains) {
            leg.drains = drains;
        }
    }
}
