//! Machines, disks and endpoints, behind one narrow trait: what the director asks of the platform.
//!
//! # Invariants
//! * Every call is idempotent: repeating it after a crash, a timeout or an unknown outcome is safe and
//!   ends in the same state. What exists is found by name; nothing depends on a handle held in memory.
//! * Every call ends within a deadline (a constant of the provider, or the grace a caller gives).
//! * A disk is attached to one machine at most; it is deleted only by the call that names it.
//! * A machine is gone when [`Provider::delete_machine`] says so: it can write nowhere any more.
//!
//! # After a crash
//! [`Provider::machines`], [`Provider::disks`] and [`Provider::endpoints`] show everything that exists under
//! the provider's name, half-made things included ([`MachineView::complete`]); the caller reconciles.
//!
//! # Not here
//! Which machine to make and which address it gets (the planner); what runs in it (the agent).

#[cfg(any(test, feature = "testing"))]
pub mod contract;
pub mod local;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, DiskName, Incarnation, MachineName, NodeName, ZoneName};

use crate::kubernetes::facts::HostTraits;

/// What a call of a provider returns.
pub type ProviderFuture<'a, T> = BoxFuture<'a, Result<T, ProviderError>>;

/// Creates and deletes machines, disks and endpoints on some platform.
pub trait Provider: Send + Sync + fmt::Debug {
    /// Everything that keeps this provider from working here, all at once, before anything is changed.
    fn preflight(&self) -> BoxFuture<'_, Vec<PreflightFault>>;

    /// The network machines are put on; the director hands out its addresses.
    fn network(&self) -> NetworkView;

    /// The zones that machines can be put into, the first ones first; none where everything may fail together.
    fn zones(&self) -> Vec<ZoneName>;

    /// What machines cannot do because of the host they are on. Real VMs have no such limits.
    fn host_traits(&self) -> HostTraits {
        HostTraits::default()
    }

    /// Makes the machine and starts it. Returns when its init process runs; boots on its own from there.
    ///
    /// Asked again for the same name and incarnation, it returns the machine that is there (completed
    /// if it was half made). Another incarnation under the same name is [`ProviderError::Conflict`].
    fn create_machine(&self, request: MachineRequest) -> ProviderFuture<'_, MachineView>;

    /// Kills the machine and removes everything it had except persistent disks, which are detached.
    /// Returns when no process of it is left. Deleting what is not there succeeds.
    fn delete_machine<'a>(&'a self, name: &'a MachineName) -> ProviderFuture<'a, ()>;

    /// The machine of this name, if there is one.
    fn machine<'a>(&'a self, name: &'a MachineName) -> ProviderFuture<'a, Option<MachineView>>;

    /// Whether this incarnation of a machine runs. Looks, and changes nothing: for whoever judges a
    /// machine that is silent. Half-made machines and what is left of deleted ones count as well.
    fn power<'a>(
        &'a self,
        name: &'a MachineName,
        incarnation: Incarnation,
    ) -> ProviderFuture<'a, PowerView>;

    /// All machines under this provider's name, half-made ones included.
    fn machines(&self) -> ProviderFuture<'_, Vec<MachineView>>;

    /// Powers the machine off: asks its init first and cuts the power after `grace` (zero: at once).
    /// Returns when no process of it is left. It stays off until [`Provider::start_machine`].
    fn stop_machine<'a>(
        &'a self,
        name: &'a MachineName,
        grace: Duration,
    ) -> ProviderFuture<'a, MachineView>;

    /// Powers the machine on with the root and disks it had; a running machine is left alone.
    fn start_machine<'a>(&'a self, name: &'a MachineName) -> ProviderFuture<'a, MachineView>;

    /// Restarts the machine: asks its init first and cuts the power after `grace` (zero: at once).
    /// Returns when the new init process runs. A stopped machine is started.
    fn reboot_machine<'a>(
        &'a self,
        name: &'a MachineName,
        grace: Duration,
    ) -> ProviderFuture<'a, MachineView>;

    /// Puts settings in the place of those that a machine was born with, whole or not at all, while it runs.
    /// Its agent looks at them when it needs a token. False where the platform has no way to do it: they
    /// have to be brought there by hand. Another incarnation, or a machine that is off, is
    /// [`ProviderError::Conflict`].
    fn place_settings<'a>(
        &'a self,
        _name: &'a MachineName,
        _incarnation: Incarnation,
        _settings: Vec<u8>,
    ) -> ProviderFuture<'a, bool> {
        Box::pin(async { Ok(false) })
    }

    /// Keeps a machine that is off as it is, under another name, for whoever wants to look into it. From then on there
    /// is no machine of its own name any more: its disks are detached, it has no address and no network, and nothing
    /// starts it. Returns when that is so; `None`, with nothing changed, where the platform has no way to do it.
    ///
    /// Asked again, also after it was cut off, it returns what is kept. One that runs and another incarnation are
    /// [`ProviderError::Conflict`], as is the name of another machine that is kept. Where there is no whole machine
    /// of the name it is [`ProviderError::NotFound`]: there is nothing to keep.
    fn set_aside(&self, request: SetAside) -> ProviderFuture<'_, Option<KeptView>>;

    /// All machines that are kept under this provider's name.
    fn kept_machines(&self) -> ProviderFuture<'_, Vec<KeptView>>;

    /// Removes a machine that is kept, and all it holds; removing what is not there succeeds.
    fn delete_kept<'a>(&'a self, kept: &'a MachineName) -> ProviderFuture<'a, ()>;

    /// Makes an empty disk of `bytes`. A disk of that name and another size is a conflict.
    fn create_disk<'a>(&'a self, name: &'a DiskName, bytes: u64) -> ProviderFuture<'a, DiskView>;

    /// Makes a disk `bytes` large, which is more than it has or as much: its machine sees the new size at once, and what
    /// is on it stays. What is in it, such as a file system, does not grow with it. Less is [`ProviderError::Invalid`]:
    /// a disk does not shrink.
    fn grow_disk<'a>(&'a self, name: &'a DiskName, bytes: u64) -> ProviderFuture<'a, DiskView>;

    /// Destroys a disk and its data. Refused while it is attached; deleting what is not there succeeds.
    fn delete_disk<'a>(&'a self, name: &'a DiskName) -> ProviderFuture<'a, ()>;

    /// Gives the disk to the machine (running or not) as a block device that stays across reboots.
    /// Refused while another machine has it.
    fn attach_disk<'a>(
        &'a self,
        machine: &'a MachineName,
        disk: &'a DiskName,
    ) -> ProviderFuture<'a, AttachedDisk>;

    /// Takes the disk from the machine. Refused as busy while the machine has it mounted.
    /// Detaching what this machine does not have succeeds.
    fn detach_disk<'a>(
        &'a self,
        machine: &'a MachineName,
        disk: &'a DiskName,
    ) -> ProviderFuture<'a, ()>;

    /// All disks under this provider's name.
    fn disks(&self) -> ProviderFuture<'_, Vec<DiskView>>;

    /// Makes the cluster's endpoint answer at `address:port` and spread connections over `backends`.
    /// Returns when it listens. Asked again, it takes over the new backends and restarts the endpoint if it is
    /// gone. Connections to backends that stay are not touched; those to one that leaves may end by themselves,
    /// and no new ones go there.
    fn ensure_endpoint(&self, request: EndpointRequest) -> ProviderFuture<'_, EndpointView>;

    /// Removes the cluster's endpoint; removing what is not there succeeds.
    fn delete_endpoint<'a>(&'a self, cluster: &'a ClusterName) -> ProviderFuture<'a, ()>;

    /// All endpoints under this provider's name.
    fn endpoints(&self) -> ProviderFuture<'_, Vec<EndpointView>>;

    /// Removes everything made under this provider's name, disks and their data included, also what a
    /// crash left half made.
    fn reset(&self) -> ProviderFuture<'_, ()>;
}

/// Something that keeps the provider from working, or from working fully.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreflightFault {
    /// What was looked at: `user`, `runc`, `overlay`, …
    pub subject: String,
    /// What is wrong, with the values seen.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
    /// Whether machines can be made nevertheless.
    pub severity: Severity,
}

/// How much a [`PreflightFault`] matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// No machine can be made.
    Fatal,
    /// Machines can be made; something they offer is missing.
    Degraded,
}

impl fmt::Display for PreflightFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.subject, self.message, self.remedy)
    }
}

/// The network machines are on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkView {
    /// The addresses of the network.
    pub cidr: Ipv4Net,
    /// The host's own address on it, which is also the machines' default route.
    pub gateway: Ipv4Addr,
    /// Addresses that must not be handed out (network, gateway, broadcast).
    pub reserved: Vec<Ipv4Addr>,
}

/// Limits of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSize {
    /// Processor time, in thousandths of a core.
    pub cpu_millis: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Root disk, in bytes. A provider that cannot limit it makes sure that it is free at creation.
    pub disk_bytes: u64,
}

/// A machine to be made.
#[derive(Clone)]
pub struct MachineRequest {
    /// Its name.
    pub name: MachineName,
    /// Which rebirth of the name this is.
    pub incarnation: Incarnation,
    /// Directory of the verified stemcell: `rootfs/` and `manifest.json`.
    pub stemcell: PathBuf,
    /// Its limits.
    pub size: MachineSize,
    /// The zone it is put into, one of [`Provider::zones`]; anywhere when there is none.
    pub zone: Option<ZoneName>,
    /// Its address, out of [`NetworkView::cidr`] and not [`NetworkView::reserved`].
    pub address: Ipv4Addr,
    /// Its host name.
    pub hostname: NodeName,
    /// What its agent reads at first boot (`/etc/windlass/settings.json`, mode 0600). May hold secrets.
    pub settings: Vec<u8>,
    /// What the caller wants to find again in [`MachineView::tags`].
    pub tags: BTreeMap<String, String>,
}

impl fmt::Debug for MachineRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MachineRequest")
            .field("name", &self.name)
            .field("incarnation", &self.incarnation)
            .field("stemcell", &self.stemcell)
            .field("size", &self.size)
            .field("zone", &self.zone)
            .field("address", &self.address)
            .field("hostname", &self.hostname)
            .field("settings", &format_args!("{} bytes", self.settings.len()))
            .field("tags", &self.tags)
            .finish()
    }
}

/// Whether a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Power {
    /// Its init process runs.
    Running,
    /// No process of it exists.
    Stopped,
}

/// What a look at a machine's power found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PowerView {
    /// Whether it runs; `None` when this incarnation does not exist.
    pub power: Option<Power>,
    /// What was seen, for people: which process, frozen or not, who looks after it.
    pub detail: String,
}

/// A machine as the provider sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineView {
    /// Its name.
    pub name: MachineName,
    /// Which rebirth of the name this is.
    pub incarnation: Incarnation,
    /// Whether it runs.
    pub power: Power,
    /// Its address.
    pub address: Ipv4Addr,
    /// What its creator attached to it.
    pub tags: BTreeMap<String, String>,
    /// When it was made, in seconds since 1970-01-01 00:00 UTC.
    pub created_at: u64,
    /// How often it was started: 1 after creation, one more after each reboot.
    pub boots: u64,
    /// False when its creation was cut off: ask for the same machine again, or delete it.
    pub complete: bool,
}

/// A machine to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Its name.
    pub machine: MachineName,
    /// Which rebirth of the name it has to be.
    pub incarnation: Incarnation,
    /// The name under which it is kept.
    pub kept: MachineName,
    /// What the caller wants to find again in [`KeptView::notes`].
    pub notes: BTreeMap<String, String>,
}

/// A machine that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptView {
    /// The name under which it is kept.
    pub name: MachineName,
    /// What it was called.
    pub machine: MachineName,
    /// Which rebirth of that name it was.
    pub incarnation: Incarnation,
    /// When it was made, in seconds since 1970-01-01 00:00 UTC.
    pub created_at: u64,
    /// When it was set aside, likewise.
    pub kept_at: u64,
    /// What the caller said of it.
    pub notes: BTreeMap<String, String>,
    /// Where it is, for people: a path or an id of the platform.
    pub place: String,
}

/// Where a machine finds a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedDisk {
    /// The block device in the machine.
    pub device: PathBuf,
}

/// A persistent disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskView {
    /// Its name.
    pub name: DiskName,
    /// Its size, in bytes.
    pub bytes: u64,
    /// The one machine that has it.
    pub attached_to: Option<MachineName>,
}

/// An endpoint to be made or changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRequest {
    /// The cluster whose API it is.
    pub cluster: ClusterName,
    /// Its address, out of [`NetworkView::cidr`], belonging to no machine.
    pub address: Ipv4Addr,
    /// Its TCP port.
    pub port: u16,
    /// Where connections go. May be empty at first: connections are then closed at once.
    pub backends: Vec<SocketAddr>,
}

/// An endpoint as the provider sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointView {
    /// The cluster whose API it is.
    pub cluster: ClusterName,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its TCP port.
    pub port: u16,
    /// Where connections go.
    pub backends: Vec<SocketAddr>,
    /// Whether it is there to accept connections.
    pub running: bool,
}

/// Why a call of a provider failed. `Display` never repeats the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// The request can never work.
    #[error("{what} {value}: {allowed}")]
    Invalid {
        /// Which part of the request.
        what: &'static str,
        /// The value given.
        value: String,
        /// What is allowed.
        allowed: String,
    },
    /// There is no such thing.
    #[error("{kind} {name} does not exist")]
    NotFound {
        /// `machine`, `disk` or `endpoint`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// It exists, and differs from what is asked.
    #[error("{kind} {name} is {found}, asked for is {wanted}; delete the one or change the other")]
    Conflict {
        /// `machine`, `disk` or `endpoint`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What is there.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// A disk belongs to another machine.
    #[error("disk {disk} is attached to machine {holder}; detach it there first")]
    DiskHeld {
        /// The disk.
        disk: DiskName,
        /// The machine that has it.
        holder: MachineName,
    },
    /// The director was restored, and looks only.
    #[error(
        "will not {what}: the director was restored from a backup and is on hold; `windlass director adopt` shows what has changed since and ends the hold"
    )]
    OnHold {
        /// What was asked for.
        what: String,
    },
    /// A disk is in use in its machine.
    #[error("disk {disk} is in use by machine {machine}; unmount it there, then detach it again")]
    DiskBusy {
        /// The disk.
        disk: DiskName,
        /// The machine that has it.
        machine: MachineName,
    },
    /// It took too long. What was begun is found again by name.
    #[error("{what} was not done within {limit_ms} ms; it is safe to try again")]
    Deadline {
        /// What was waited for.
        what: String,
        /// How long, in milliseconds.
        limit_ms: u64,
    },
    /// The host refused something.
    #[error("{what}")]
    Host {
        /// What was tried, on what, and what to do.
        what: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A tool of the host failed.
    #[error("{tool} failed while {doing}: {output}")]
    Tool {
        /// The program.
        tool: String,
        /// What it was to do.
        doing: String,
        /// The end of what it printed.
        output: String,
    },
    /// A file of ours does not hold what we write into it.
    #[error("{path} is damaged: {detail}; delete the machine, disk or endpoint it belongs to")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The process that keeps a machine did not do what was asked.
    #[error("the monitor of machine {machine} says: {detail}")]
    Monitor {
        /// The machine.
        machine: MachineName,
        /// What it answered.
        detail: String,
    },
    /// A broken invariant of ours.
    #[error("provider bug: {0}")]
    Bug(String),
}

impl ProviderError {
    /// Who acts: the caller's retry loop, an operator, or a developer.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::DiskBusy { .. }
            | Self::Deadline { .. }
            | Self::Host { .. }
            | Self::Tool { .. }
            | Self::Monitor { .. } => ErrorClass::Retry,
            Self::Invalid { .. }
            | Self::NotFound { .. }
            | Self::Conflict { .. }
            | Self::DiskHeld { .. }
            | Self::OnHold { .. }
            | Self::Damaged { .. } => ErrorClass::Operator,
            Self::Bug(_) => ErrorClass::Bug,
        }
    }
}
