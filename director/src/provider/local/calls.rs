//! The trait's calls: each runs on a thread that may block, and ends by the deadlines of its steps.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use windlass_common::id::{ClusterName, DiskName, Incarnation, MachineName, ZoneName};

use super::{Inner, LocalProvider, preflight, traits};
use crate::kubernetes::facts::HostTraits;
use crate::provider::{
    AttachedDisk, DiskView, EndpointRequest, EndpointView, KeptView, MachineRequest, MachineView,
    NetworkView, PowerView, PreflightFault, Provider, ProviderError, ProviderFuture, SetAside,
    Severity,
};

impl LocalProvider {
    /// Runs `work` on a thread that may block. It is not cut off when the future is dropped.
    fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, ProviderError> + Send + 'static,
    ) -> ProviderFuture<'static, T> {
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            match tokio::task::spawn_blocking(move || work(&inner)).await {
                Ok(result) => result,
                Err(error) => Err(ProviderError::Bug(format!(
                    "a call did not finish: {error}"
                ))),
            }
        })
    }
}

impl Provider for LocalProvider {
    fn preflight(&self) -> BoxFuture<'_, Vec<PreflightFault>> {
        let faults = self.blocking(|inner| Ok(preflight::faults(inner)));
        Box::pin(async move {
            faults.await.unwrap_or_else(|error| {
                vec![PreflightFault {
                    subject: "preflight".to_owned(),
                    message: error.to_string(),
                    remedy: "report this".to_owned(),
                    severity: Severity::Fatal,
                }]
            })
        })
    }

    fn network(&self) -> NetworkView {
        self.inner.network()
    }

    fn zones(&self) -> Vec<ZoneName> {
        self.inner.zones.clone()
    }

    fn host_traits(&self) -> HostTraits {
        traits::detect()
    }

    fn create_machine(&self, request: MachineRequest) -> ProviderFuture<'_, MachineView> {
        self.blocking(move |inner| inner.create(&request))
    }

    fn delete_machine<'a>(&'a self, name: &'a MachineName) -> ProviderFuture<'a, ()> {
        let name = name.clone();
        self.blocking(move |inner| inner.delete(&name))
    }

    fn machine<'a>(&'a self, name: &'a MachineName) -> ProviderFuture<'a, Option<MachineView>> {
        let name = name.clone();
        self.blocking(move |inner| inner.machine(&name))
    }

    fn power<'a>(
        &'a self,
        name: &'a MachineName,
        incarnation: Incarnation,
    ) -> ProviderFuture<'a, PowerView> {
        let name = name.clone();
        self.blocking(move |inner| inner.power(&name, incarnation))
    }

    fn machines(&self) -> ProviderFuture<'_, Vec<MachineView>> {
        self.blocking(Inner::machines)
    }

    fn stop_machine<'a>(
        &'a self,
        name: &'a MachineName,
        grace: Duration,
    ) -> ProviderFuture<'a, MachineView> {
        let name = name.clone();
        self.blocking(move |inner| inner.stop(&name, grace))
    }

    fn start_machine<'a>(&'a self, name: &'a MachineName) -> ProviderFuture<'a, MachineView> {
        let name = name.clone();
        self.blocking(move |inner| inner.start(&name))
    }

    fn reboot_machine<'a>(
        &'a self,
        name: &'a MachineName,
        grace: Duration,
    ) -> ProviderFuture<'a, MachineView> {
        let name = name.clone();
        self.blocking(move |inner| inner.reboot(&name, grace))
    }

    fn place_settings<'a>(
        &'a self,
        name: &'a MachineName,
        incarnation: Incarnation,
        settings: Vec<u8>,
    ) -> ProviderFuture<'a, bool> {
        let name = name.clone();
        self.blocking(move |inner| {
            inner.place_settings(&name, incarnation, &settings)?;
            Ok(true)
        })
    }

    fn set_aside(&self, request: SetAside) -> ProviderFuture<'_, Option<KeptView>> {
        self.blocking(move |inner| inner.set_aside(&request).map(Some))
    }

    fn kept_machines(&self) -> ProviderFuture<'_, Vec<KeptView>> {
        self.blocking(Inner::kept_machines)
    }

    fn delete_kept<'a>(&'a self, kept: &'a MachineName) -> ProviderFuture<'a, ()> {
        let kept = kept.clone();
        self.blocking(move |inner| inner.delete_kept(&kept))
    }

    fn create_disk<'a>(&'a self, name: &'a DiskName, bytes: u64) -> ProviderFuture<'a, DiskView> {
        let name = name.clone();
        self.blocking(move |inner| inner.create_disk(&name, bytes))
    }

    fn grow_disk<'a>(&'a self, name: &'a DiskName, bytes: u64) -> ProviderFuture<'a, DiskView> {
        let name = name.clone();
        self.blocking(move |inner| inner.grow_disk(&name, bytes))
    }

    fn delete_disk<'a>(&'a self, name: &'a DiskName) -> ProviderFuture<'a, ()> {
        let name = name.clone();
        self.blocking(move |inner| inner.delete_disk(&name))
    }

    fn attach_disk<'a>(
        &'a self,
        machine: &'a MachineName,
        disk: &'a DiskName,
    ) -> ProviderFuture<'a, AttachedDisk> {
        let (machine, disk) = (machine.clone(), disk.clone());
        self.blocking(move |inner| inner.attach_disk(&machine, &disk))
    }

    fn detach_disk<'a>(
        &'a self,
        machine: &'a MachineName,
        disk: &'a DiskName,
    ) -> ProviderFuture<'a, ()> {
        let (machine, disk) = (machine.clone(), disk.clone());
        self.blocking(move |inner| inner.detach_disk(&machine, &disk))
    }

    fn disks(&self) -> ProviderFuture<'_, Vec<DiskView>> {
        self.blocking(Inner::disks)
    }

    fn ensure_endpoint(&self, request: EndpointRequest) -> ProviderFuture<'_, EndpointView> {
        self.blocking(move |inner| inner.ensure_endpoint(&request))
    }

    fn delete_endpoint<'a>(&'a self, cluster: &'a ClusterName) -> ProviderFuture<'a, ()> {
        let cluster = cluster.clone();
        self.blocking(move |inner| inner.delete_endpoint(&cluster))
    }

    fn endpoints(&self) -> ProviderFuture<'_, Vec<EndpointView>> {
        self.blocking(Inner::endpoints)
    }

    fn reset(&self) -> ProviderFuture<'_, ()> {
        self.blocking(Inner::reset)
    }
}
