//! Orders: clusters are created, changed and deleted by tasks.

use std::collections::BTreeSet;

use windlass_common::cluster::ClusterSpec;
use windlass_common::id::{ClusterName, Digest, DiskName, MachineName};

use super::certificates::CertificateOrder;
use super::change::StemcellChoice;
use super::draft::{Draft, Numbers, random_u32};
use super::hazards;
use super::legs::PlannedChange;
use super::rotate::RotationOrder;
use super::shown::Planned;
use super::tasks::reason_given;
use super::{Inner, PlanRequest, ServiceError, ServiceResult};
use crate::drain::Hazard;
use crate::kubernetes::pki::ClusterPki;
use crate::maintenance;
use crate::model::{
    Action, Caller, CampaignId, Cluster, ClusterPhase, Disruption, DrainForecast, Goal, Machine,
    MachinePhase, Plan, PlanStep, Revision, Task, TaskId, TaskKind, TaskState, Timestamp,
};
use crate::plan;
use crate::planner::{self, Desired, Observed, inputs};
use crate::resurrector::CaseRecord;
use crate::rollout::{Stop, cluster_pki_name, world};
use crate::store::{Act, Commit, Expect, Kind, Record};

/// Pods that are named when an order is refused because of them.
const BLOCKED_NAMED: usize = 5;

/// How a change is ordered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeOrder {
    /// Which stemcell machines are made from.
    pub stemcell: StemcellChoice,
    /// The plan that was shown: another one is not carried out.
    pub plan: Option<Digest>,
    /// The operator knows that the cluster's API will be down meanwhile.
    pub accept_downtime: bool,
    /// The operator will see to what keeps nodes from being drained.
    pub accept_blocked: bool,
    /// The revision of the cluster that the change was made from: a later one is not overwritten.
    pub revision: Option<Revision>,
    /// Why it does not wait for the cluster's maintenance window.
    pub ignore_window: Option<String>,
    /// The campaign that the change is part of.
    pub campaign: Option<CampaignId>,
}

/// A change of a cluster, not ordered yet.
pub(super) struct Change {
    pub(super) draft: Draft,
    pub(super) desired: Desired,
    pub(super) observed: Observed,
}

impl Inner {
    pub(super) async fn create_cluster(
        &self,
        spec: ClusterSpec,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let found: Option<Cluster> = self.records.get(spec.name.as_str()).await?;
        if let Some(cluster) = &found {
            same_spec(cluster, &spec)?;
        }
        self.apply_cluster(spec, &ChangeOrder::default(), caller)
            .await
    }

    /// Orders a new cluster, or a change of one that is there.
    pub(super) async fn apply_cluster(
        &self,
        spec: ClusterSpec,
        order: &ChangeOrder,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let ignore_window = order
            .ignore_window
            .clone()
            .map(|reason| reason_given("ignore_window", reason))
            .transpose()?;
        if !order.accept_blocked {
            self.rehearse(&spec, order).await?;
        }
        let _order = self.orders.lock().await;
        let found: Option<Cluster> = self.records.get(spec.name.as_str()).await?;
        let Some(cluster) = found else {
            if order.plan.is_some() {
                return Err(ServiceError::Conflict {
                    message: format!(
                        "cluster {} does not exist; only the plan of a change can be held to",
                        spec.name
                    ),
                });
            }
            let draft = self.world.drafter().draft(&spec, &Numbers::new()).await?;
            let pki = ClusterPki::generate(&spec.name, jiff::Timestamp::now())
                .map_err(|error| ServiceError::of(error.class(), "the cluster's PKI", error))?;
            let task = self.create_task(&draft, caller).await?;
            return self
                .order_new(draft, task, &pki, "cluster.create", caller)
                .await;
        };
        if let Some(task) = self.unfinished(&cluster).await? {
            return running(task, &cluster, &spec, order);
        }
        if order.revision.is_some_and(|seen| seen != cluster.revision) {
            return Err(ServiceError::Conflict {
                message: format!(
                    "cluster {} was changed in the meantime; look at it again, then repeat the change",
                    spec.name
                ),
            });
        }
        let before = self.records.machines_of(spec.name.as_str()).await?;
        let change = self.drafted(&cluster, &spec, &order.stemcell).await?;
        let plan = self.plan_change(&change).await?.plan;
        self.held(&plan, &change.desired, order)?;
        let ever_ready = before.iter().any(has_joined);
        let kind = if ever_ready {
            TaskKind::UpdateCluster
        } else {
            same_spec(&cluster, &spec)?;
            TaskKind::CreateCluster
        };
        let mut task = self.new_task(kind, plan, caller).await?;
        task.ignore_window = ignore_window;
        task.campaign.clone_from(&order.campaign);
        self.order_change(change, task, &before, caller).await
    }

    /// Refuses a change whose drains would wait in vain. That takes the cluster's API, for which no order of
    /// another cluster waits: what is found is a forecast, and the change is planned again when it is ordered.
    async fn rehearse(&self, spec: &ClusterSpec, order: &ChangeOrder) -> ServiceResult<()> {
        let found: Option<Cluster> = self.records.get(spec.name.as_str()).await?;
        let Some(cluster) = found else {
            return Ok(());
        };
        let another = order.revision.is_some_and(|seen| seen != cluster.revision);
        if another || self.unfinished(&cluster).await?.is_some() {
            return Ok(()); // the order says what that means
        }
        let change = self.drafted(&cluster, spec, &order.stemcell).await?;
        let PlannedChange { plan, later } = self.plan_change(&change).await?;
        self.held(&plan, &change.desired, order)?;
        self.drains(&plan, &change.desired).await?;
        for (plan, desired) in &later {
            self.drains(plan, desired).await?;
        }
        Ok(())
    }

    /// The cluster as `spec` wants it, and what there is of it.
    async fn drafted(
        &self,
        cluster: &Cluster,
        spec: &ClusterSpec,
        stemcell: &StemcellChoice,
    ) -> ServiceResult<Change> {
        let mut observed = self.world.observe(&spec.name).await?;
        let cases: Vec<CaseRecord> = self.records.list().await?;
        // A machine that hangs is powered on, and serves nobody: it goes first, and cannot be drained.
        let down = |name: &MachineName, incarnation| {
            let mut of_machine = cases.iter().filter(|case| case.machine == *name);
            of_machine.any(|case| case.is_down(incarnation))
        };
        for (name, found) in &mut observed.machines {
            found.running &= !down(name, found.incarnation);
        }
        let drafter = self.world.drafter();
        let mut draft = drafter.change(cluster, spec, stemcell, &observed).await?;
        for machine in &mut draft.machines {
            let condemned = machine.condemned || down(&machine.name, machine.incarnation);
            // One that stays as it is, is not: a repair of it that failed is over, and the next is ordered anew.
            machine.condemned = machine.wanted.is_some() && condemned;
        }
        let (desired, observed) = self.state(&draft.cluster, &draft.machines).await?;
        Ok(Change {
            draft,
            desired,
            observed,
        })
    }

    /// Refuses a plan that is another one than was shown.
    pub(super) fn same_plan(
        &self,
        plan: &Plan,
        desired: &Desired,
        shown: Option<Digest>,
    ) -> ServiceResult<()> {
        match shown.filter(|shown| *shown != plan.hash) {
            None => Ok(()),
            Some(shown) => Err(ServiceError::Conflict {
                message: self.plans.difference(&shown, plan, desired),
            }),
        }
    }

    /// Refuses a plan that is another one than was shown, or that takes the API down without consent.
    pub(super) fn held(
        &self,
        plan: &Plan,
        desired: &Desired,
        order: &ChangeOrder,
    ) -> ServiceResult<()> {
        self.same_plan(plan, desired, order.plan)?;
        if order.accept_downtime || !plan.takes_api_down() {
            return Ok(());
        }
        let down = plan.steps.iter().find(|s| s.disrupts == Disruption::Api);
        let when = match down {
            Some(step) => step.key.to_string(),
            None => "a later leg".to_owned(),
        };
        Err(ServiceError::Conflict {
            message: format!(
                "the API of cluster {} will be down during {when}: its control plane is one machine; order it with \
                 --accept-downtime",
                plan.cluster
            ),
        })
    }

    /// Refuses a plan with a drain that would wait in vain, before anything is touched. A cluster whose API
    /// does not answer is not held up: it may be what is to be mended.
    async fn drains(&self, plan: &Plan, desired: &Desired) -> ServiceResult<()> {
        let rehearsal = match self.world.forecast(plan, desired).await {
            Some(DrainForecast::Rehearsed { rehearsal }) => rehearsal,
            Some(DrainForecast::Unknown { why }) => {
                tracing::warn!(cluster = %plan.cluster, error = why, "drains cannot be rehearsed");
                return Ok(());
            }
            None => return Ok(()),
        };
        let lines: Vec<String> = rehearsal
            .blocked()
            .take(BLOCKED_NAMED)
            .map(|f| {
                format!(
                    "node {}, pod {}: {}; to let it go: {}",
                    f.node, f.pod, f.why, f.unblock
                )
            })
            .collect();
        if lines.is_empty() {
            return clear_of(&rehearsal.hazards);
        }
        let more = rehearsal.blocked().count().saturating_sub(lines.len());
        let rest = if more > 0 {
            format!("; and {more} more pods, which `--dry-run` shows")
        } else {
            String::new()
        };
        Err(ServiceError::Conflict {
            message: format!(
                "pods would keep nodes from being drained: {}{rest}. Let them go, have the spec's \
                 drain.onTimeout delete them, or order it with --accept-blocked and see to them meanwhile",
                lines.join("; ")
            ),
        })
    }

    async fn order_change(
        &self,
        change: Change,
        task: Task,
        before: &[Machine],
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let Draft { cluster, machines } = change.draft;
        let mut commit = Commit::default();
        for machine in &machines {
            if before.contains(machine) {
                continue;
            }
            if machine.revision == Revision(0) {
                let address = machine.address.to_string();
                let owner = serde_json::json!({ "owner": machine.name });
                commit.value(Kind::Address, &address, Expect::Absent, &owner);
            }
            commit.put(machine)?;
        }
        let (phase, action) = match task.kind {
            TaskKind::UpdateCluster => (ClusterPhase::Updating, "cluster.update"),
            TaskKind::RepairCluster => (ClusterPhase::Updating, "cluster.repair"),
            TaskKind::CreateCluster
            | TaskKind::DeleteCluster
            | TaskKind::RestoreCluster
            | TaskKind::RenewCertificates
            | TaskKind::RotateSecrets
            | TaskKind::UpgradeAgents => (ClusterPhase::Creating, "cluster.create"),
        };
        self.order_existing(&mut commit, cluster, &task, phase)?;
        self.place_order(commit, task, action, caller).await
    }

    /// The task that makes a cluster that is drafted.
    pub(super) async fn create_task(&self, draft: &Draft, caller: &Caller) -> ServiceResult<Task> {
        let plan = self.create_plan(draft).await?.plan;
        self.new_task(TaskKind::CreateCluster, plan, caller).await
    }

    /// What making a cluster that is drafted takes.
    pub(super) async fn create_plan(&self, draft: &Draft) -> ServiceResult<Planned> {
        let (desired, mut observed) = self.state(&draft.cluster, &draft.machines).await?;
        observed.records = true;
        Planned::new(desired, observed)
    }

    /// Orders a new cluster that proves itself with these authorities and keys.
    pub(super) async fn order_new(
        &self,
        draft: Draft,
        task: Task,
        pki: &ClusterPki,
        action: &'static str,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let Draft {
            mut cluster,
            machines,
        } = draft;
        let name = cluster.spec.name.clone();
        cluster.task = Some(task.id.clone());
        let mut commit = Commit::default();
        let document = pki.to_bytes();
        self.records
            .put_secret(&mut commit, &cluster_pki_name(&name), document.expose())?;
        let owner = |who: &str| serde_json::json!({ "owner": who });
        let endpoint = cluster.endpoint.address.to_string();
        commit.value(
            Kind::Address,
            &endpoint,
            Expect::Absent,
            &owner(name.as_str()),
        );
        for machine in &machines {
            let address = machine.address.to_string();
            commit.value(
                Kind::Address,
                &address,
                Expect::Absent,
                &owner(machine.name.as_str()),
            );
            commit.put(machine)?;
        }
        commit.put(&cluster)?;
        self.place_order(commit, task, action, caller).await
    }

    pub(super) async fn delete_cluster(
        &self,
        name: &ClusterName,
        disks: Option<Vec<DiskName>>,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let _order = self.orders.lock().await;
        let mut cluster = self.cluster(name).await?;
        if let Some(task) = self.unfinished(&cluster).await? {
            if task.plan.goal == Goal::Absent || task.state == TaskState::Cancelling {
                return Ok(task);
            }
            self.rollouts.stop(&task.id, Stop::Leave);
            self.rollouts.wait(&task.id).await;
            cluster = self.cluster(name).await?;
        }
        let observed = self.world.observe(name).await?;
        let disks: BTreeSet<DiskName> = match disks {
            Some(named) => named.into_iter().collect(),
            None => observed.disks.keys().cloned().collect(),
        };
        let desired = inputs::absent(name, disks.clone());
        let plan = make_plan(&desired, &observed)?;
        let task = self.new_task(TaskKind::DeleteCluster, plan, caller).await?;
        let mut commit = Commit::default();
        self.order_existing(&mut commit, cluster, &task, ClusterPhase::Deleting)?;
        self.place_order(commit, task, "cluster.delete", caller)
            .await
    }

    /// Orders what a failed task did not get done, planned anew.
    pub(super) async fn retry_task(&self, id: &TaskId, caller: &Caller) -> ServiceResult<Task> {
        let task = self.task(id).await?;
        if task.state != TaskState::Failed {
            return Err(ServiceError::Conflict {
                message: format!("{id} is {}; only a task that failed is retried", task.state),
            });
        }
        let cluster = self.cluster(&task.cluster).await?;
        let tasks: Vec<Task> = self.records.list().await?;
        let mut after = tasks.into_iter();
        let later = after.find(|t| t.cluster == task.cluster && t.created_at > task.created_at);
        if let Some(later) = later {
            return Err(ServiceError::Conflict {
                message: format!(
                    "{} was ordered for cluster {} after {id}; retry that one if it failed",
                    later.id, task.cluster
                ),
            });
        }
        match task.kind {
            TaskKind::CreateCluster | TaskKind::UpdateCluster => {
                // What was consented to for the task is for what is left of it.
                let order = ChangeOrder {
                    accept_downtime: task.plan.takes_api_down(),
                    ignore_window: task.ignore_window.clone(),
                    ..ChangeOrder::default()
                };
                self.apply_cluster(cluster.ordered(), &order, caller).await
            }
            // What has failed since is judged anew.
            TaskKind::RepairCluster => Err(ServiceError::Conflict {
                message: format!(
                    "{id} is a repair: the director tries again by itself, as `windlass node why NODE` says; \
                     `windlass node recreate NODE` does it now"
                ),
            }),
            // Which machines and which stemcell were meant is the order's, and its plan knows what is left.
            TaskKind::UpgradeAgents => Err(ServiceError::Conflict {
                message: format!(
                    "{id} upgrades agents: `windlass cluster upgrade-agents {}` goes on with those that are left",
                    task.cluster
                ),
            }),
            // Members are looked at anew, and what is lost is accepted anew.
            TaskKind::RestoreCluster => Err(ServiceError::Conflict {
                message: format!(
                    "{id} is a restore: `windlass cluster restore {}` orders it again; what it had replaced on \
                     machines is kept there",
                    task.cluster
                ),
            }),
            TaskKind::RenewCertificates => {
                let of = |step: &PlanStep| match &step.action {
                    Action::RenewCertificates { machine } => Some(machine.clone()),
                    _ => None,
                };
                let order = CertificateOrder {
                    machines: task.plan.steps.iter().filter_map(of).collect(),
                    plan: None,
                };
                self.renew_certificates(&task.cluster, &order, caller).await
            }
            TaskKind::RotateSecrets => {
                let Some(rotation) = &cluster.rotation else {
                    let message = format!("the rotation of {id} is over");
                    return Err(ServiceError::Conflict { message });
                };
                let order = RotationOrder {
                    kind: rotation.stage.kind(),
                    prepare: rotation.prepare,
                    plan: None,
                    // What was consented to for the task is for what is left of it.
                    accept_downtime: true,
                };
                self.rotate(&task.cluster, &order, caller).await
            }
            TaskKind::DeleteCluster => {
                let disk = |step: &PlanStep| match &step.action {
                    Action::DeleteDisk { disk } => Some(disk.clone()),
                    _ => None,
                };
                let disks = task.plan.steps.iter().filter_map(disk).collect();
                self.delete_cluster(&task.cluster, Some(disks), caller)
                    .await
            }
        }
    }

    pub(super) async fn plan_cluster(&self, request: PlanRequest) -> ServiceResult<Plan> {
        let windows = match &request {
            PlanRequest::Apply(spec, _) => Some(self.windows_of(spec)),
            PlanRequest::Create(_) | PlanRequest::Delete(_) => None,
        };
        let (planned, later) = match request {
            PlanRequest::Create(spec) => {
                let found: Option<Cluster> = self.records.get(spec.name.as_str()).await?;
                if let Some(cluster) = &found {
                    same_spec(cluster, &spec)?;
                }
                self.planned(found, &spec, &StemcellChoice::Keep).await?
            }
            PlanRequest::Apply(spec, stemcell) => {
                let found: Option<Cluster> = self.records.get(spec.name.as_str()).await?;
                self.planned(found, &spec, &stemcell).await?
            }
            PlanRequest::Delete(name) => {
                self.cluster(&name).await?;
                let observed = self.world.observe(&name).await?;
                let desired = inputs::absent(&name, observed.disks.keys().cloned().collect());
                (Planned::new(desired, observed)?, Vec::new())
            }
        };
        let drains = self.world.forecast(&planned.plan, &planned.desired).await;
        let mut plan = self.shown(planned).await?;
        plan.window = windows
            .filter(|windows| !windows.is_empty() && !plan.steps.is_empty())
            .map(|windows| maintenance::outlook(&windows, jiff::Timestamp::now()).into());
        plan.drains = drains;
        self.forecast_drains(&mut plan, &later).await;
        Ok(plan)
    }

    /// A plan as it is shown: it says what it comes to, and an order may hold to it from then on.
    pub(super) async fn shown(&self, planned: Planned) -> ServiceResult<Plan> {
        let Planned {
            mut plan,
            desired,
            observed,
        } = planned;
        self.plans.remember(&plan, &desired);
        if plan.steps.is_empty() {
            return Ok(plan);
        }
        let measured = self.measured().await?;
        let changes = plan::forecast(&plan, &desired, &observed, &measured);
        if plan.goal == Goal::Present {
            let machines = self.records.machines_of(plan.cluster.as_str()).await?;
            let sessions = self.gateway.connected();
            let look = |machine: &Machine| hazards::Look::of(machine, sessions.get(&machine.name));
            let looks: Vec<_> = machines.iter().map(look).collect();
            plan.hazards = hazards::hazards(&looks, &changes, Timestamp::now());
        }
        plan.changes = Some(changes);
        Ok(plan)
    }

    /// The plan of an order, and the legs that come after it.
    async fn planned(
        &self,
        found: Option<Cluster>,
        spec: &ClusterSpec,
        stemcell: &StemcellChoice,
    ) -> ServiceResult<(Planned, Vec<(Plan, Desired)>)> {
        let Some(cluster) = found else {
            let draft = self.world.drafter().draft(spec, &Numbers::new()).await?;
            let (desired, observed) = self.state(&draft.cluster, &draft.machines).await?;
            return Ok((Planned::new(desired, observed)?, Vec::new()));
        };
        let change = self.drafted(&cluster, spec, stemcell).await?;
        let PlannedChange { plan, later } = self.plan_change(&change).await?;
        let planned = Planned {
            plan,
            desired: change.desired,
            observed: change.observed,
        };
        Ok((planned, later))
    }

    /// What a cluster should be, and what there is of it, as these records say.
    pub(super) async fn state(
        &self,
        cluster: &Cluster,
        machines: &[Machine],
    ) -> ServiceResult<(Desired, Observed)> {
        let desired = self.world.desired(cluster, machines)?;
        let observed = self.world.observe_as(cluster, machines).await?;
        Ok((desired, observed))
    }

    pub(super) async fn cluster(&self, name: &ClusterName) -> ServiceResult<Cluster> {
        let found = self.records.get(name.as_str()).await?;
        found.ok_or_else(|| ServiceError::NotFound {
            kind: "cluster",
            name: name.to_string(),
        })
    }

    /// The task that works on a cluster, if it is not over.
    pub(super) async fn unfinished(&self, cluster: &Cluster) -> ServiceResult<Option<Task>> {
        let Some(id) = &cluster.task else {
            return Ok(None);
        };
        let task = self.records.task(id).await?;
        Ok(task.filter(|task| !task.state.is_over()))
    }

    pub(super) async fn new_task(
        &self,
        kind: TaskKind,
        plan: Plan,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let number = self.records.next_task_number().await?;
        let [a, b, c, _] = random_u32()?.to_be_bytes();
        Ok(Task::ordered(
            TaskId::new(number, [a, b, c]),
            kind,
            plan,
            caller.operator.clone(),
            Timestamp::now(),
        ))
    }

    pub(super) fn order_existing(
        &self,
        commit: &mut Commit,
        mut cluster: Cluster,
        task: &Task,
        phase: ClusterPhase,
    ) -> ServiceResult<()> {
        cluster.phase = phase;
        cluster.message = None;
        cluster.task = Some(task.id.clone());
        commit.put(&cluster)?;
        Ok(())
    }

    /// Writes an order with its audit line, and has its task begin.
    pub(super) async fn place_order(
        &self,
        mut commit: Commit,
        mut task: Task,
        action: &str,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        commit.put(&task)?;
        let outside = match &task.ignore_window {
            Some(reason) => format!(", outside of maintenance windows: {reason}"),
            None => String::new(),
        };
        let act = Act {
            action,
            subject: &format!("cluster/{}", task.cluster),
            detail: &format!("{} plan {}{outside}", task.id, task.plan.hash),
            outcome: "",
        };
        self.records.audit_caller(&mut commit, caller, act);
        let revision = self.records.commit(commit).await?;
        task.set_revision(revision);
        self.rollouts.start(task.id.clone());
        Ok(task)
    }
}

impl Planned {
    fn new(desired: Desired, observed: Observed) -> ServiceResult<Self> {
        let plan = make_plan(&desired, &observed)?;
        Ok(Self {
            plan,
            desired,
            observed,
        })
    }
}

pub(super) fn make_plan(desired: &Desired, observed: &Observed) -> ServiceResult<Plan> {
    let plan = planner::plan(desired, observed)
        .map_err(|error| ServiceError::of(error.class(), "there is no plan", error))?;
    world::check(&plan, desired, observed)?;
    Ok(plan)
}

/// Refuses a change that would meet something on its way.
fn clear_of(hazards: &[Hazard]) -> ServiceResult<()> {
    let Some(first) = hazards.first() else {
        return Ok(());
    };
    let rest = match hazards.len() - 1 {
        0 => String::new(),
        more => format!("; and {more} more, which `--dry-run` shows"),
    };
    Err(ServiceError::Conflict {
        message: format!(
            "{}: {}. What to do: {}{rest}. Or order it with --accept-blocked and see to it meanwhile",
            first.at, first.why, first.remedy
        ),
    })
}

/// What an order for a cluster that a task works on means.
fn running(
    task: Task,
    cluster: &Cluster,
    spec: &ClusterSpec,
    order: &ChangeOrder,
) -> ServiceResult<Task> {
    let same = cluster.ordered() == *spec && order.stemcell == StemcellChoice::Keep;
    let leads_there = match task.kind {
        TaskKind::CreateCluster | TaskKind::UpdateCluster => {
            let goes_back = matches!(task.state, TaskState::Cancelling | TaskState::RollingBack);
            !goes_back && same && order.plan.is_none()
        }
        TaskKind::RepairCluster
        | TaskKind::DeleteCluster
        | TaskKind::RestoreCluster
        | TaskKind::RenewCertificates
        | TaskKind::RotateSecrets
        | TaskKind::UpgradeAgents => false,
    };
    if leads_there {
        return Ok(task);
    }
    let doing = match (task.kind, task.state) {
        (TaskKind::DeleteCluster, _) => "is being deleted",
        (TaskKind::RepairCluster, _) => "is being repaired",
        (TaskKind::UpgradeAgents, _) => "has its agents upgraded",
        (TaskKind::RestoreCluster, _) => "is being restored",
        (TaskKind::RenewCertificates, _) => "has its certificates renewed",
        (TaskKind::RotateSecrets, _) => "has its keys or authorities rotated",
        (_, TaskState::Cancelling) => "is being brought back by a cancel",
        (_, TaskState::RollingBack) => "gets back what it had before a change failed",
        (_, TaskState::Waiting) => "has a change that waits for its maintenance window,",
        (_, TaskState::Pausing | TaskState::Paused) => "has a paused change, carried out",
        _ => "is being changed",
    };
    Err(ServiceError::Conflict {
        message: format!(
            "cluster {} {doing} by {}; wait for it, or cancel it",
            spec.name, task.id
        ),
    })
}

/// Whether a machine has ever been in service.
fn has_joined(machine: &Machine) -> bool {
    let reborn = machine.incarnation != windlass_common::id::Incarnation::FIRST;
    reborn || machine.labelled.is_some() || machine.phase == MachinePhase::Ready
}

fn same_spec(cluster: &Cluster, spec: &ClusterSpec) -> ServiceResult<()> {
    if cluster.spec == *spec {
        return Ok(());
    }
    Err(ServiceError::Conflict {
        message: format!(
            "cluster {} exists with another spec; `windlass cluster apply` changes a cluster that is in \
             service, one that never was is deleted or finished first",
            spec.name
        ),
    })
}
