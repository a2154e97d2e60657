//! The hold of a restored director: it looks and listens, and does nothing to a machine until an operator
//! has seen what has changed since the backup, and approved of it.
//!
//! # Invariants
//! * The hold is a record of the store, written with the restore and removed in the one commit that adopts
//!   what was found. No start is without it in between.
//! * While it lasts, [`HeldProvider`] lets nothing through to the platform but looks, whoever asks.
//!
//! # Not here
//! What has changed ([`super::adopt`]); who asks (service).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;
use windlass_common::id::{ClusterName, DiskName, Incarnation, MachineName, ZoneName};

use crate::kubernetes::facts::HostTraits;
use crate::model::Timestamp;
use crate::provider::{
    AttachedDisk, DiskView, EndpointRequest, EndpointView, KeptView, MachineRequest, MachineView,
    NetworkView, PowerView, PreflightFault, Provider, ProviderError, ProviderFuture, SetAside,
};
use crate::store::{Commit, Expect, Kind, Records, StoreError};

/// Name of the entry.
const HOLD: &str = "hold";

/// Why a director is on hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HoldRecord {
    /// When it was restored.
    pub since: Timestamp,
    /// When the backup was taken that it was restored from.
    pub backup_at: Timestamp,
    /// Version of the director that took the backup.
    pub backup_version: String,
}

/// Adds the hold to a commit.
pub(super) fn put(commit: &mut Commit, record: &HoldRecord) {
    commit.value(Kind::Meta, HOLD, Expect::Any, record);
}

/// Adds its end to a commit.
pub(crate) fn end(commit: &mut Commit) {
    commit.delete_value(Kind::Meta, HOLD);
}

/// The hold in the store.
///
/// # Errors
/// [`StoreError`].
pub async fn get(records: &Records) -> Result<Option<HoldRecord>, StoreError> {
    let found = records.value(Kind::Meta, HOLD).await?;
    Ok(found.map(|(_, record)| record))
}

/// Whether this director is on hold. Clones are one.
#[derive(Debug, Clone)]
pub struct Hold(Arc<watch::Sender<Option<HoldRecord>>>);

impl Hold {
    /// What the store says.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load(records: &Records) -> Result<Hold, StoreError> {
        Ok(Hold(Arc::new(watch::Sender::new(get(records).await?))))
    }

    /// Why it is on hold, if it is.
    pub fn record(&self) -> Option<HoldRecord> {
        self.0.borrow().clone()
    }

    /// Whether it is.
    pub fn is_on(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Waits until it is over, or everybody who could end it is gone.
    pub fn over(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut changes = self.0.subscribe();
        async move {
            // An error says that nobody is left to end it.
            let _ = changes.wait_for(Option::is_none).await;
        }
    }

    /// It is over; the store says so already.
    pub(crate) fn lift(&self) {
        self.0.send_replace(None);
    }
}

/// A provider of which nothing is asked but looks while the director is on hold.
pub struct HeldProvider {
    inner: Arc<dyn Provider>,
    hold: Hold,
}

impl fmt::Debug for HeldProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl HeldProvider {
    /// The provider behind the hold.
    pub fn new(inner: Arc<dyn Provider>, hold: Hold) -> HeldProvider {
        HeldProvider { inner, hold }
    }

    fn act<'a, T: Send + 'a>(
        &'a self,
        what: &str,
        act: impl FnOnce(&'a dyn Provider) -> ProviderFuture<'a, T>,
    ) -> ProviderFuture<'a, T> {
        if self.hold.is_on() {
            let what = what.to_owned();
            return Box::pin(async { Err(ProviderError::OnHold { what }) });
        }
        act(self.inner.as_ref())
    }
}

impl Provider for HeldProvider {
    fn preflight(&self) -> BoxFuture<'_, Vec<PreflightFault>> {
        self.inner.preflight()
    }

    fn network(&self) -> NetworkView {
        self.inner.network()
    }

    fn zones(&self) -> Vec<ZoneName> {
        self.inner.zones()
    }

    fn host_traits(&self) -> HostTraits {
        self.inner.host_traits()
    }

    fn create_machine(&self, request: MachineRequest) -> ProviderFuture<'_, MachineView> {
        let what = format!("create machine {}", request.name);
        self.act(&what, |inner| inner.create_machine(request))
    }

    fn delete_machine<'a>(&'a self, name: &'a MachineName) -> ProviderFuture<'a, ()> {
        let what = format!("delete machine {name}");
        self.act(&what, |inner| inner.delete_machine(name))
    }

    fn machine<'a>(&'a self, name: &'a MachineName) -> ProviderFuture<'a, Option<MachineView>> {
        // A provider may put a machine's monitor back when it is asked about it: the list does not.
        if self.hold.is_on() {
            return Box::pin(async move {
                let all = self.inner.machines().await?;
                Ok(all.into_iter().find(|view| view.name == *name))
            });
        }
        self.inner.machine(name)
    }

    fn power<'a>(
        &'a self,
        name: &'a MachineName,
        incarnation: Incarnation,
    ) -> ProviderFuture<'a, PowerView> {
        self.inner.power(name, incarnation)
    }

    fn machines(&self) -> ProviderFuture<'_, Vec<MachineView>> {
        self.inner.machines()
    }

    fn stop_machine<'a>(
        &'a self,
        name: &'a MachineName,
        grace: Duration,
    ) -> ProviderFuture<'a, MachineView> {
        let what = format!("stop machine {name}");
        self.act(&what, |inner| inner.stop_machine(name, grace))
    }

    fn start_machine<'a>(&'a self, name: &'a MachineName) -> ProviderFuture<'a, MachineView> {
        let what = format!("start machine {name}");
        self.act(&what, |inner| inner.start_machine(name))
    }

    fn reboot_machine<'a>(
        &'a self,
        name: &'a MachineName,
        grace: Duration,
    ) -> ProviderFuture<'a, MachineView> {
        let what = format!("restart machine {name}");
        self.act(&what, |inner| inner.reboot_machine(name, grace))
    }

    fn place_settings<'a>(
        &'a self,
        name: &'a MachineName,
        incarnation: Incarnation,
        settings: Vec<u8>,
    ) -> ProviderFuture<'a, bool> {
        let what = format!("write settings of machine {name}");
        self.act(&what, |inner| {
            inner.place_settings(name, incarnation, settings)
        })
    }

    fn set_aside(&self, request: SetAside) -> ProviderFuture<'_, Option<KeptView>> {
        let what = format!("set machine {} aside", request.machine);
        self.act(&what, |inner| inner.set_aside(request))
    }

    fn kept_machines(&self) -> ProviderFuture<'_, Vec<KeptView>> {
        self.inner.kept_machines()
    }

    fn delete_kept<'a>(&'a self, kept: &'a MachineName) -> ProviderFuture<'a, ()> {
        let what = format!("delete machine {kept}, which is kept");
        self.act(&what, |inner| inner.delete_kept(kept))
    }

    fn create_disk<'a>(&'a self, name: &'a DiskName, bytes: u64) -> ProviderFuture<'a, DiskView> {
        let what = format!("create disk {name}");
        self.act(&what, |inner| inner.create_disk(name, bytes))
    }

    fn grow_disk<'a>(&'a self, name: &'a DiskName, bytes: u64) -> ProviderFuture<'a, DiskView> {
        let what = format!("grow disk {name}");
        self.act(&what, |inner| inner.grow_disk(name, bytes))
    }

    fn delete_disk<'a>(&'a self, name: &'a DiskName) -> ProviderFuture<'a, ()> {
        let what = format!("delete disk {name}");
        self.act(&what, |inner| inner.delete_disk(name))
    }

    fn attach_disk<'a>(
        &'a self,
        machine: &'a MachineName,
        disk: &'a DiskName,
    ) -> ProviderFuture<'a, AttachedDisk> {
        let what = format!("attach disk {disk}");
        self.act(&what, |inner| inner.attach_disk(machine, disk))
    }

    fn detach_disk<'a>(
        &'a self,
        machine: &'a MachineName,
        disk: &'a DiskName,
    ) -> ProviderFuture<'a, ()> {
        let what = format!("detach disk {disk}");
        self.act(&what, |inner| inner.detach_disk(machine, disk))
    }

    fn disks(&self) -> ProviderFuture<'_, Vec<DiskView>> {
        self.inner.disks()
    }

    fn ensure_endpoint(&self, request: EndpointRequest) -> ProviderFuture<'_, EndpointView> {
        let what = format!("change the endpoint of {}", request.cluster);
        self.act(&what, |inner| inner.ensure_endpoint(request))
    }

    fn delete_endpoint<'a>(&'a self, cluster: &'a ClusterName) -> ProviderFuture<'a, ()> {
        let what = format!("delete the endpoint of {cluster}");
        self.act(&what, |inner| inner.delete_endpoint(cluster))
    }

    fn endpoints(&self) -> ProviderFuture<'_, Vec<EndpointView>> {
        self.inner.endpoints()
    }

    fn reset(&self) -> ProviderFuture<'_, ()> {
        self.act("remove everything", |inner| inner.reset())
    }
}
