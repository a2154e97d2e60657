//! Clusters: what changes them, and access to them.

use windlass_common::cluster::ClusterSpec;
use windlass_common::id::{ClusterName, DiskName};

use crate::model::{Caller, Cluster, Plan, Role, Task};
use crate::service::agents::AgentOrder;
use crate::service::certificates::{CertificateOrder, Expiries};
use crate::service::clusters::ChangeOrder;
use crate::service::kubernetes::ApiServer;
use crate::service::rotate::RotationOrder;
use crate::service::{Credentials, Director, PlanRequest, ServiceResult, allow};

impl Director {
    /// Orders a cluster, or goes on with one of the same spec whose task failed. Returns the task at once.
    pub async fn create_cluster(&self, spec: ClusterSpec, caller: &Caller) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "create clusters")?;
        self.inner.not_on_hold("create clusters")?;
        self.inner.create_cluster(spec, caller).await
    }

    /// Orders a cluster, or a change of one that is there. Returns the task at once.
    pub async fn apply_cluster(
        &self,
        spec: ClusterSpec,
        order: &ChangeOrder,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "change clusters")?;
        self.inner.not_on_hold("change clusters")?;
        self.inner.apply_cluster(spec, order, caller).await
    }

    /// How many clusters there are whose etcd needs a person.
    pub fn etcd_needs_operator(&self) -> u64 {
        self.inner.care.needs_operator()
    }

    /// What renewing certificates would do, without doing it.
    pub async fn plan_certificates(
        &self,
        name: &ClusterName,
        order: &CertificateOrder,
    ) -> ServiceResult<Plan> {
        self.inner.plan_certificates(name, order).await
    }

    /// Orders the renewal of machines' certificates now. Returns the task at once.
    pub async fn renew_certificates(
        &self,
        name: &ClusterName,
        order: &CertificateOrder,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "renew certificates")?;
        self.inner.renew_certificates(name, order, caller).await
    }

    /// What rotating a cluster's keys or authorities would do first, without doing it.
    pub async fn plan_rotation(
        &self,
        name: &ClusterName,
        order: &RotationOrder,
        caller: &Caller,
    ) -> ServiceResult<Plan> {
        self.inner.plan_rotation(name, order, caller).await
    }

    /// Orders the rotation of a cluster's encryption key or authorities, or goes on with one. Returns the task at
    /// once.
    pub async fn rotate(
        &self,
        name: &ClusterName,
        order: &RotationOrder,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        allow(caller, Role::Admin, "rotate keys and authorities")?;
        self.inner.rotate(name, order, caller).await
    }

    /// When the first certificates of all clusters expire.
    pub async fn expiries(&self) -> ServiceResult<Expiries> {
        self.inner.expiries().await
    }

    /// What upgrading agents would do, without doing it.
    pub async fn plan_agents(&self, name: &ClusterName, order: &AgentOrder) -> ServiceResult<Plan> {
        self.inner.plan_agents(name, order).await
    }

    /// Orders the upgrade of agents in place. Returns the task at once.
    pub async fn upgrade_agents(
        &self,
        name: &ClusterName,
        order: &AgentOrder,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "upgrade agents")?;
        self.inner.not_on_hold("upgrade agents")?;
        self.inner.upgrade_agents(name, order, caller).await
    }

    /// What creating, changing or deleting would do, without doing it.
    pub async fn plan_cluster(&self, request: PlanRequest) -> ServiceResult<Plan> {
        self.inner.plan_cluster(request).await
    }

    /// All clusters, by name.
    pub async fn clusters(&self) -> ServiceResult<Vec<Cluster>> {
        Ok(self.inner.records.list().await?)
    }

    /// One cluster.
    pub async fn cluster(&self, name: &ClusterName) -> ServiceResult<Cluster> {
        self.inner.cluster(name).await
    }

    /// Orders the deletion of a cluster with its disks, `disks` being the names the operator saw in the
    /// plan; `None` stands for all it has now. A create task of it that runs is stopped first.
    pub async fn delete_cluster(
        &self,
        name: &ClusterName,
        disks: Option<Vec<DiskName>>,
        caller: &Caller,
    ) -> ServiceResult<Task> {
        allow(caller, Role::Operator, "delete clusters")?;
        self.inner.not_on_hold("delete clusters")?;
        self.inner.delete_cluster(name, disks, caller).await
    }

    /// A kubeconfig for the caller, in the group of cluster administrators.
    pub async fn credentials(
        &self,
        cluster: &ClusterName,
        caller: &Caller,
    ) -> ServiceResult<Credentials> {
        allow(caller, Role::Admin, "get a cluster's credentials")?;
        self.inner.credentials(cluster, caller).await
    }

    /// Connects with an API server of the cluster, through one of its machines, as the caller.
    pub(crate) async fn api_server(
        &self,
        cluster: &ClusterName,
        caller: &Caller,
    ) -> ServiceResult<ApiServer> {
        self.inner.api_server(cluster, caller).await
    }
}
