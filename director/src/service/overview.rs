//! All clusters at a glance.

use std::collections::BTreeMap;

use windlass_common::id::ClusterName;

use super::{Director, Inner, ServiceResult};
use crate::maintenance;
use crate::model::{Cluster, ClusterOverview, MachineFilter, MachineView};

impl Director {
    /// All clusters at a glance, by name: read from the records, so that none waits for another.
    pub async fn overview(&self) -> ServiceResult<Vec<ClusterOverview>> {
        let mut machines: BTreeMap<ClusterName, Vec<MachineView>> = BTreeMap::new();
        for view in self.machines(&MachineFilter::default()).await? {
            let of_cluster = machines.entry(view.machine.cluster.clone()).or_default();
            of_cluster.push(view);
        }
        self.inner.overview(machines).await
    }
}

impl Inner {
    async fn overview(
        &self,
        machines: BTreeMap<ClusterName, Vec<MachineView>>,
    ) -> ServiceResult<Vec<ClusterOverview>> {
        let clusters: Vec<Cluster> = self.records.list().await?;
        let now = jiff::Timestamp::now();
        let mut overview = Vec::with_capacity(clusters.len());
        for cluster in &clusters {
            let task = match &cluster.task {
                Some(id) => self.records.task(id).await?,
                None => None,
            };
            let windows = self.windows_of(&cluster.spec);
            let window = (!windows.is_empty()).then(|| maintenance::outlook(&windows, now).into());
            let machines = machines
                .get(&cluster.spec.name)
                .map_or(&[][..], Vec::as_slice);
            let mut one = ClusterOverview::of(cluster, machines, task.as_ref(), window);
            if let Some(stopped) = self.stopped_pools(&cluster.spec.name).first() {
                one.fault = Some(format!("{}: {}", stopped.role, stopped.why));
            }
            overview.push(one);
        }
        Ok(overview)
    }
}
