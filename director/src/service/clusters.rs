//! Orders: clusters are created and deleted by tasks.

use std::collections::BTreeSet;

use windlass_common::cluster::ClusterSpec;
use windlass_common::id::{ClusterName, DiskName};

use super::draft::{Draft, random_u32};
use super::{Inner, PlanRequest, ServiceError, ServiceResult};
use crate::kubernetes::pki::ClusterPki;
use crate::model::{
    Caller, Cluster, ClusterPhase, Goal, Plan, Revision, Task, TaskId, TaskKind, TaskState,
    Timestamp,
};
use crate::planner::{self, Desired, Observed, inputs};
use crate::rollout::{Stop, cluster_pki_name, world};
use crate::store::{Act, Commit, Expect, Kind, Record};

impl Inner {
    pub(super) async fn create_cluster(
        &self,
        spec: ClusterSpec,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        let _order = self.orders.lock().await;
        let found: Option<Cluster> = self.records.get(spec.name.as_str()).await?;
        let Some(cluster) = found else {
            let draft = self.draft(&spec).await?;
            return self.order_new(draft, caller).await;
        };
        same_spec(&cluster, &spec)?;
        if let Some(task) = self.unfinished(&cluster).await? {
            return match task.plan.goal {
                Goal::Present if task.state != TaskState::Cancelling => Ok(task),
                Goal::Present | Goal::Absent => Err(ServiceError::Conflict {
                    message: format!(
                        "cluster {} is being deleted by {}; wait for it",
                        spec.name, task.id
                    ),
                }),
            };
        }
        let machines = self.records.machines_of(spec.name.as_str()).await?;
        let (desired, observed) = self.state(&cluster, &machines).await?;
        let plan = make_plan(&desired, &observed)?;
        let task = self.new_task(TaskKind::CreateCluster, plan, caller).await?;
        let mut commit = Commit::default();
        self.order_existing(&mut commit, cluster, &task, ClusterPhase::Creating)?;
        self.place_order(commit, task, "cluster.create", caller)
            .await
    }

    async fn order_new(&self, draft: Draft, caller: &Caller) -> ServiceResult<Task> {
        let Draft {
            mut cluster,
            machines,
        } = draft;
        let name = cluster.spec.name.clone();
        let (desired, mut observed) = self.state(&cluster, &machines).await?;
        observed.records = true;
        let plan = make_plan(&desired, &observed)?;
        let task = self.new_task(TaskKind::CreateCluster, plan, caller).await?;
        cluster.task = Some(task.id.clone());
        let pki = ClusterPki::generate(&name, jiff::Timestamp::now())
            .map_err(|error| ServiceError::of(error.class(), "the cluster's PKI", error))?;
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
        self.place_order(commit, task, "cluster.create", caller)
            .await
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

    pub(super) async fn plan_cluster(&self, request: PlanRequest) -> ServiceResult<Plan> {
        match request {
            PlanRequest::Create(spec) => {
                let found: Option<Cluster> = self.records.get(spec.name.as_str()).await?;
                let (desired, observed) = match found {
                    Some(cluster) => {
                        same_spec(&cluster, &spec)?;
                        let machines = self.records.machines_of(spec.name.as_str()).await?;
                        self.state(&cluster, &machines).await?
                    }
                    None => {
                        let draft = self.draft(&spec).await?;
                        self.state(&draft.cluster, &draft.machines).await?
                    }
                };
                make_plan(&desired, &observed)
            }
            PlanRequest::Delete(name) => {
                self.cluster(&name).await?;
                let observed = self.world.observe(&name).await?;
                let desired = inputs::absent(&name, observed.disks.keys().cloned().collect());
                make_plan(&desired, &observed)
            }
        }
    }

    /// What a cluster should be, and what there is of it.
    async fn state(
        &self,
        cluster: &Cluster,
        machines: &[crate::model::Machine],
    ) -> ServiceResult<(Desired, Observed)> {
        let stemcell = self
            .stemcells
            .get(&cluster.stemcell)
            .map_err(|error| ServiceError::of(error.class(), "the cluster's stemcell", error))?;
        let facts = inputs::facts(cluster, machines, &stemcell, self.world.host);
        let desired = inputs::present(cluster, machines, &facts);
        let observed = self.world.observe(&cluster.spec.name).await?;
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
    async fn unfinished(&self, cluster: &Cluster) -> ServiceResult<Option<Task>> {
        let Some(id) = &cluster.task else {
            return Ok(None);
        };
        let task = self.records.task(id).await?;
        Ok(task.filter(|task| !task.state.is_over()))
    }

    async fn new_task(&self, kind: TaskKind, plan: Plan, caller: &Caller) -> ServiceResult<Task> {
        let number = self.records.next_task_number().await?;
        let [a, b, c, _] = random_u32()?.to_be_bytes();
        Ok(Task {
            id: TaskId::new(number, [a, b, c]),
            kind,
            cluster: plan.cluster.clone(),
            operator: caller.operator.clone(),
            state: TaskState::Queued,
            plan,
            steps: Default::default(),
            cleanup: None,
            error: None,
            revision: Revision(0),
            created_at: Timestamp::now(),
            started_at: None,
            ended_at: None,
        })
    }

    fn order_existing(
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
    async fn place_order(
        &self,
        mut commit: Commit,
        mut task: Task,
        action: &str,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        commit.put(&task)?;
        let act = Act {
            action,
            subject: &format!("cluster/{}", task.cluster),
            detail: &format!("{} plan {}", task.id, task.plan.hash),
            outcome: "",
        };
        self.records.audit_caller(&mut commit, caller, act);
        let revision = self.records.commit(commit).await?;
        task.set_revision(revision);
        self.rollouts.start(task.id.clone());
        Ok(task)
    }
}

fn make_plan(desired: &Desired, observed: &Observed) -> ServiceResult<Plan> {
    let plan = planner::plan(desired, observed)
        .map_err(|error| ServiceError::of(error.class(), "there is no plan", error))?;
    world::check(&plan, desired, observed)?;
    Ok(plan)
}

fn same_spec(cluster: &Cluster, spec: &ClusterSpec) -> ServiceResult<()> {
    if cluster.spec == *spec {
        return Ok(());
    }
    Err(ServiceError::Conflict {
        message: format!(
            "cluster {} exists with another spec; this release does not change clusters: delete it, \
             or choose another name",
            spec.name
        ),
    })
}
