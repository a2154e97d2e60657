//! Machines: creation, deletion, power, and what the provider knows about them.

use std::ffi::OsStr;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::statvfs::statvfs;
use windlass_common::error::ErrorChain;
use windlass_common::id::{Incarnation, MachineName, ZoneName};

use super::cgroup::Hierarchies;
use super::disk::{self, Released};
use super::files::{What, list, make_dir, remove_file, remove_tree};
use super::host::Host;
use super::lifecycle::{KILL_LIMIT, clean};
use super::monitor::control::{Command, ask};
use super::network::BridgeOwner;
use super::record::{Record, monitor_lives, monitor_process, want_power, wanted_power};
use super::{Inner, network, relock, rootfs};
use crate::provider::{MachineRequest, MachineView, Power, ProviderError};

/// How long a monitor may take to say that its machine runs: runc's own limit, and a wait for a
/// predecessor's.
const START_LIMIT: Duration = Duration::from_secs(75);
/// How long a monitor may take for a command beyond the grace given.
pub(super) const COMMAND_LIMIT: Duration = Duration::from_secs(75);
/// How long a monitor may take to end after its last answer.
const EXIT_LIMIT: Duration = Duration::from_secs(5);
/// Pause between two looks at something the kernel gives no event for.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Least processor time of a machine: below it systemd does not get up in a minute.
const CPU_MILLIS_MIN: u32 = 50;
/// Least memory of a machine: what systemd, journal and agent need.
const MEMORY_BYTES_MIN: u64 = 64 * 1024 * 1024;
/// Largest settings file, in bytes; they are an address, a token and a few lines.
const SETTINGS_BYTES_MAX: usize = 256 * 1024;
/// Most tags of a machine, and longest key and value in bytes.
const TAGS_MAX: usize = 64;
const TAG_BYTES_MAX: usize = 1024;

/// Refuses settings that are no few lines.
pub(super) fn check_settings(settings: &[u8]) -> Result<(), ProviderError> {
    if settings.len() <= SETTINGS_BYTES_MAX {
        return Ok(());
    }
    Err(ProviderError::Invalid {
        what: "machine settings of",
        value: settings.len().to_string(),
        allowed: format!("at most {SETTINGS_BYTES_MAX} bytes"),
    })
}

impl Inner {
    /// See [`crate::provider::Provider::create_machine`].
    pub(super) fn create(&self, request: &MachineRequest) -> Result<MachineView, ProviderError> {
        self.check(request)?;
        self.alone(&request.name, || {
            let dir = self.layout.machine(&request.name);
            if let Some(found) = Record::load(&dir)? {
                if found.complete {
                    same_machine(&found, request)?;
                    self.power_on(&found)?;
                    return self.bring_up(&found);
                }
                self.remove(&request.name)?;
            }
            self.refuse_taken_address(request)?;
            let seeds = rootfs::seeds(&request.stemcell)?;
            let mut record = Record::new(&self.layout, &self.runc, request, seeds);
            self.ensure_host(|| {
                make_dir(&self.layout.machines(), 0o700)?;
                make_dir(dir.path(), 0o700)?;
                record.announce()
            })?;
            rootfs::prepare(&record, &request.settings)?;
            want_power(&dir, Power::Running)?;
            record.complete = true;
            record.save()?;
            self.start_monitor(&record)?;
            Ok(record.view())
        })
    }

    /// Runs `work` alone for this machine.
    pub(super) fn alone<T>(&self, name: &MachineName, work: impl FnOnce() -> T) -> T {
        self.busy.alone(format!("machine/{name}"), work)
    }

    fn check(&self, request: &MachineRequest) -> Result<(), ProviderError> {
        let invalid = |what, value: String, allowed: String| {
            Err(ProviderError::Invalid {
                what,
                value,
                allowed,
            })
        };
        let (size, layout) = (request.size, &self.layout);
        self.check_address("machine address", request.address)?;
        if size.cpu_millis < CPU_MILLIS_MIN {
            let allowed = format!("at least {CPU_MILLIS_MIN} thousandths of a core");
            return invalid(
                "machine processor time",
                size.cpu_millis.to_string(),
                allowed,
            );
        }
        if size.memory_bytes < MEMORY_BYTES_MIN {
            let allowed = format!("at least {MEMORY_BYTES_MIN} bytes");
            return invalid("machine memory", size.memory_bytes.to_string(), allowed);
        }
        if let Some(zone) = request.zone.as_ref().filter(|of| !self.zones.contains(of)) {
            let names: Vec<&str> = self.zones.iter().map(ZoneName::as_str).collect();
            let names = names.join(", ");
            let allowed = format!(
                "one of provider.local.zones in director.toml, which are [{names}]; add it again, or delete the \
                 machine for good"
            );
            return invalid("machine zone", zone.to_string(), allowed);
        }
        check_settings(&request.settings)?;
        let long = |t: &String| t.len() > TAG_BYTES_MAX;
        if request.tags.len() > TAGS_MAX || request.tags.iter().any(|(k, v)| long(k) || long(v)) {
            let allowed = format!("at most {TAGS_MAX}, of at most {TAG_BYTES_MAX} bytes");
            return invalid("machine tags of", request.name.to_string(), allowed);
        }
        if !request.stemcell.is_absolute() || !request.stemcell.join("rootfs").is_dir() {
            let allowed =
                "an absolute path of a directory with `rootfs/` and `manifest.json`".into();
            return invalid("stemcell", request.stemcell.display().to_string(), allowed);
        }
        make_dir(&layout.dir, 0o700)?;
        let dir = layout.dir.display();
        let stat = statvfs(&layout.dir).what(|| format!("cannot look at the disk of {dir}"))?;
        let free = stat.blocks_available() * stat.fragment_size();
        if free < size.disk_bytes {
            let allowed = format!("at most the {free} bytes that are free in {dir}");
            return invalid("machine root disk", size.disk_bytes.to_string(), allowed);
        }
        Ok(())
    }

    /// Refuses addresses that are not of our network or not for guests.
    pub(super) fn check_address(
        &self,
        what: &'static str,
        address: Ipv4Addr,
    ) -> Result<(), ProviderError> {
        let network = self.network();
        if network.cidr.contains(&address) && !network.reserved.contains(&address) {
            return Ok(());
        }
        let allowed = format!(
            "must lie in {} and be none of {:?}",
            network.cidr, network.reserved
        );
        Err(ProviderError::Invalid {
            what,
            value: address.to_string(),
            allowed,
        })
    }

    /// Links are named after addresses, so two machines must never have one.
    fn refuse_taken_address(&self, request: &MachineRequest) -> Result<(), ProviderError> {
        let holder = self
            .machines()?
            .into_iter()
            .find(|m| m.address == request.address && m.name != request.name);
        let endpoint = self
            .endpoints()?
            .into_iter()
            .find(|e| e.address == request.address);
        let found = match (holder, endpoint) {
            (Some(machine), _) => format!("machine {}", machine.name),
            (None, Some(endpoint)) => format!("the endpoint of cluster {}", endpoint.cluster),
            (None, None) => return Ok(()),
        };
        Err(ProviderError::Conflict {
            kind: "address",
            name: request.address.to_string(),
            found: format!("held by {found}"),
            wanted: format!("machine {}", request.name),
        })
    }

    /// Makes what all machines share, then runs `claim`, which makes it needed.
    pub(super) fn ensure_host(
        &self,
        claim: impl FnOnce() -> Result<(), ProviderError>,
    ) -> Result<(), ProviderError> {
        let mut host = relock(&self.host);
        if !host.ready || network::bridge_owner(&self.layout).is_none() {
            self.refuse_taken_name()?;
            Host::default().register(&self.layout.name)?;
            make_dir(&self.layout.run_dir(), 0o700)?;
            network::ensure_bridge(&self.layout)?;
            // Machines work without the outside; the preflight reports it, and so does this.
            if let Err(error) = network::ensure_nat(&self.layout) {
                let error = ErrorChain(&error).to_string();
                tracing::warn!(error, "machines will not reach the outside: no NAT");
            }
            host.ready = true;
        }
        claim()
    }

    /// Refuses to work under the name of a provider with another data directory.
    pub(super) fn refuse_taken_name(&self) -> Result<(), ProviderError> {
        match network::bridge_owner(&self.layout) {
            None | Some(BridgeOwner::Ours) => Ok(()),
            Some(BridgeOwner::Other(alias)) => Err(ProviderError::Conflict {
                kind: "bridge",
                name: self.layout.bridge(),
                found: format!("in use by {alias:?}"),
                wanted: format!("one for {}", self.layout.dir.display()),
            }),
        }
    }

    /// Removes what all machines share if no machine and no endpoint is left.
    pub(super) fn release_host(&self) -> Result<(), ProviderError> {
        let mut host = relock(&self.host);
        let used = !list(&self.layout.machines())?.is_empty()
            || !list(&self.layout.endpoints())?.is_empty();
        if used {
            return Ok(());
        }
        host.ready = false;
        self.remove_host()
    }

    /// Removes bridge, NAT, control group and run directory, and gives the host its settings back.
    pub(super) fn remove_host(&self) -> Result<(), ProviderError> {
        Hierarchies::detect()?.remove_if_empty(&self.layout.cgroup_parent());
        network::delete_link(&self.layout.bridge())?;
        if let Err(error) = network::remove_nat(&self.layout) {
            // Without nft there is no table either.
            tracing::debug!(
                error = ErrorChain(&error).to_string(),
                "cannot remove the NAT table"
            );
        }
        remove_tree(&self.layout.run_dir())?;
        Host::default().unregister(&self.layout.name)
    }

    fn start_monitor(&self, record: &Record) -> Result<(), ProviderError> {
        let dir = record.dir();
        let args = [
            OsStr::new("machine-monitor"),
            OsStr::new("--dir"),
            dir.path().as_os_str(),
        ];
        let log = dir.log("monitor.log");
        self.children.start(
            &self.director_exe,
            &args,
            &log,
            Instant::now() + START_LIMIT,
        )
    }

    /// Whether the machine is wanted on and nobody sees to it.
    fn needs_monitor(&self, record: &Record) -> bool {
        let dir = record.dir();
        record.complete && wanted_power(&dir) == Power::Running && !monitor_lives(&dir)
    }

    /// Starts or adopts the machine if it is wanted on and has no monitor.
    pub(super) fn bring_up(&self, record: &Record) -> Result<MachineView, ProviderError> {
        if self.needs_monitor(record) {
            // After a restart of the host the shared things are gone, too.
            self.ensure_host(|| Ok(()))?;
            self.start_monitor(record)?;
        }
        Ok(record.view())
    }

    /// [`Self::bring_up`], then waits until the machine's init process runs.
    fn power_on(&self, record: &Record) -> Result<(), ProviderError> {
        let deadline = Instant::now() + START_LIMIT;
        while record.init().is_none() {
            // A monitor that somebody else started may be at it; if it gives up, start one of our own.
            self.bring_up(record)?;
            if wanted_power(&record.dir()) == Power::Stopped {
                break; // it switched itself off in the meantime
            }
            if Instant::now() >= deadline {
                return Err(ProviderError::Deadline {
                    what: format!("the start of machine {}", record.name),
                    limit_ms: START_LIMIT.as_millis() as u64,
                });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// See [`crate::provider::Provider::machine`].
    pub(super) fn machine(&self, name: &MachineName) -> Result<Option<MachineView>, ProviderError> {
        self.children.reap();
        let record = match Record::load(&self.layout.machine(name)) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(self.leftover(name)),
            Err(error) => return self.leftover(name).map(Some).ok_or(error),
        };
        if self.needs_monitor(&record) {
            // Not to wait for a long operation on the machine, only where there is something to do.
            let brought_up = self.alone(name, || match Record::load(&record.dir())? {
                Some(record) => self.bring_up(&record).map(|_| ()),
                None => Ok(()),
            });
            if let Err(error) = brought_up {
                let error = ErrorChain(&error).to_string();
                tracing::warn!(machine = %name, error, "a machine does not come up again");
            }
            return match Record::load(&record.dir())? {
                Some(record) => Ok(Some(record.view())),
                None => Ok(self.leftover(name)),
            };
        }
        Ok(Some(record.view()))
    }

    /// A machine of which there is a directory or a control group but no (readable) record.
    fn leftover(&self, name: &MachineName) -> Option<MachineView> {
        let here = self.layout.machine(name).path().exists();
        let runs = Hierarchies::detect().is_ok_and(|h| h.exists(&self.layout.cgroup(name)));
        (here || runs).then(|| MachineView {
            name: name.clone(),
            incarnation: Incarnation(0),
            power: if runs { Power::Running } else { Power::Stopped },
            address: Ipv4Addr::UNSPECIFIED,
            tags: Default::default(),
            created_at: 0,
            boots: 0,
            complete: false,
        })
    }

    /// The names of all machines of which anything is left.
    pub(super) fn machine_names(&self) -> Result<Vec<MachineName>, ProviderError> {
        let mut names = list(&self.layout.machines())?;
        names.extend(Hierarchies::detect()?.children(&self.layout.cgroup_parent()));
        names.sort();
        names.dedup();
        Ok(names
            .into_iter()
            .filter_map(|n| MachineName::new(n).ok())
            .collect())
    }

    /// See [`crate::provider::Provider::machines`].
    pub(super) fn machines(&self) -> Result<Vec<MachineView>, ProviderError> {
        let mut views = Vec::new();
        for name in self.machine_names()? {
            let view = match Record::load(&self.layout.machine(&name)) {
                Ok(Some(record)) => Some(record.view()),
                Ok(None) | Err(ProviderError::Damaged { .. }) => self.leftover(&name),
                Err(error) => return Err(error),
            };
            views.extend(view);
        }
        Ok(views)
    }

    /// See [`crate::provider::Provider::delete_machine`].
    pub(super) fn delete(&self, name: &MachineName) -> Result<(), ProviderError> {
        self.alone(name, || self.remove(name))?;
        self.children.reap();
        self.release_host()
    }

    /// Ends and removes a machine, whatever state it is in.
    pub(super) fn remove(&self, name: &MachineName) -> Result<(), ProviderError> {
        let dir = self.layout.machine(name);
        match Record::load(&dir) {
            Ok(Some(mut record)) => {
                if record.complete {
                    record.complete = false;
                    record.save()?;
                    want_power(&dir, Power::Stopped)?;
                }
                self.end(&record)?;
                clean(&record)?;
            }
            Ok(None) | Err(ProviderError::Damaged { .. }) => self.end_without_record(name)?,
            Err(error) => return Err(error),
        }
        for disk in disk::of_machine(&self.layout, name)? {
            self.let_go(name, disk)?;
        }
        // The record goes last: a deletion that is cut off is still known as a machine.
        for entry in list(dir.path())? {
            let path = dir.path().join(&entry);
            if path == dir.record() {
                continue;
            }
            if path.is_dir() && !path.is_symlink() {
                remove_tree(&path)?;
            } else {
                remove_file(&path)?;
            }
        }
        remove_tree(dir.path())?;
        remove_file(&self.layout.socket(name))
    }

    /// Ends the machine and its monitor: by the monitor's own hand, else over its head.
    fn end(&self, record: &Record) -> Result<(), ProviderError> {
        let dir = record.dir();
        let deadline = Instant::now() + KILL_LIMIT + EXIT_LIMIT;
        let asked = ask(record, Command::Delete, deadline);
        if matches!(asked, Ok(Some(()))) && self.wait_for_exit(&dir, EXIT_LIMIT).is_ok() {
            return Ok(());
        }
        self.end_monitor(&dir)
    }

    fn end_monitor(&self, dir: &super::layout::MachineDir) -> Result<(), ProviderError> {
        if let Some(monitor) = monitor_process(dir) {
            tracing::warn!(machine = %dir.path().display(), "ending a monitor that does not obey");
            monitor
                .signal(libc::SIGKILL)
                .what(|| "cannot kill a monitor".to_owned())?;
        }
        self.wait_for_exit(dir, KILL_LIMIT)
    }

    fn wait_for_exit(
        &self,
        dir: &super::layout::MachineDir,
        limit: Duration,
    ) -> Result<(), ProviderError> {
        let deadline = Instant::now() + limit;
        while monitor_lives(dir) {
            if Instant::now() >= deadline {
                return Err(ProviderError::Deadline {
                    what: format!("the end of the monitor of {}", dir.path().display()),
                    limit_ms: limit.as_millis() as u64,
                });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        self.children.reap();
        Ok(())
    }

    /// What is left of a machine whose record is gone is found by its name.
    fn end_without_record(&self, name: &MachineName) -> Result<(), ProviderError> {
        self.end_monitor(&self.layout.machine(name))?;
        let deadline = Instant::now() + KILL_LIMIT;
        Hierarchies::detect()?.destroy(&self.layout.cgroup(name), deadline)?;
        // Its port went with its network namespace, which went with its last process.
        remove_tree(&self.layout.runc_root().join(self.layout.container(name)))
    }

    /// Takes a disk from a machine of which no process is left.
    pub(super) fn let_go(
        &self,
        machine: &MachineName,
        disk: disk::Disk,
    ) -> Result<(), ProviderError> {
        self.busy.alone(format!("disk/{}", disk.name), || {
            let deadline = Instant::now() + KILL_LIMIT;
            // The kernel takes the dead machine's mounts down a little later than its processes.
            while disk::release(&self.layout, &disk.name)? == Released::Busy {
                if Instant::now() >= deadline {
                    let (disk, machine) = (disk.name.clone(), machine.clone());
                    return Err(ProviderError::DiskBusy { disk, machine });
                }
                std::thread::sleep(LOOK_AGAIN);
            }
            disk::save(
                &self.layout,
                &disk::Disk {
                    attached_to: None,
                    ..disk
                },
            )
        })
    }

    pub(super) fn record(&self, name: &MachineName) -> Result<Record, ProviderError> {
        match Record::load(&self.layout.machine(name))? {
            Some(record) if record.complete => Ok(record),
            Some(_) | None => Err(ProviderError::NotFound {
                kind: "machine",
                name: name.to_string(),
            }),
        }
    }

    /// See [`crate::provider::Provider::stop_machine`].
    pub(super) fn stop(
        &self,
        name: &MachineName,
        grace: Duration,
    ) -> Result<MachineView, ProviderError> {
        self.alone(name, || {
            let record = self.record(name)?;
            let dir = record.dir();
            if record.init().is_some() {
                // Adopts a machine whose monitor died: a graceful stop needs one.
                want_power(&dir, Power::Running)?;
                self.bring_up(&record)?;
            }
            let command = Command::Stop {
                grace_ms: grace.as_millis() as u64,
            };
            let asked = ask(&record, command, Instant::now() + grace + COMMAND_LIMIT)?;
            if asked.is_none() {
                want_power(&dir, Power::Stopped)?;
            }
            self.wait_for_exit(&dir, EXIT_LIMIT)?;
            if asked.is_none() {
                clean(&record)?;
            }
            Ok(record.view())
        })
    }

    /// See [`crate::provider::Provider::start_machine`].
    pub(super) fn start(&self, name: &MachineName) -> Result<MachineView, ProviderError> {
        self.alone(name, || {
            let record = self.record(name)?;
            let dir = record.dir();
            if wanted_power(&dir) == Power::Stopped {
                // A monitor that is on its way out reads the old wish.
                self.wait_for_exit(&dir, COMMAND_LIMIT)?;
                want_power(&dir, Power::Running)?;
            }
            self.power_on(&record)?;
            // Also gives a machine whose monitor died a new one.
            self.bring_up(&record)
        })
    }

    /// See [`crate::provider::Provider::reboot_machine`].
    pub(super) fn reboot(
        &self,
        name: &MachineName,
        grace: Duration,
    ) -> Result<MachineView, ProviderError> {
        let record = self.record(name)?;
        if record.view().power == Power::Stopped {
            return self.start(name);
        }
        self.alone(name, || {
            self.bring_up(&record)?;
            let command = Command::Reboot {
                grace_ms: grace.as_millis() as u64,
            };
            match ask(&record, command, Instant::now() + grace + COMMAND_LIMIT)? {
                Some(()) => Ok(record.view()),
                None => Err(ProviderError::Monitor {
                    machine: name.clone(),
                    detail: "it ended before it answered".to_owned(),
                }),
            }
        })
    }
}

/// Refuses to take another machine for the one asked for.
fn same_machine(found: &Record, request: &MachineRequest) -> Result<(), ProviderError> {
    let show = |incarnation, address: Ipv4Addr, stemcell: &std::path::Path| {
        format!(
            "incarnation {incarnation} at {address} from {}",
            stemcell.display()
        )
    };
    let found_text = show(found.incarnation, found.address, &found.stemcell);
    let wanted_text = show(request.incarnation, request.address, &request.stemcell);
    if found_text == wanted_text && found.hostname == request.hostname && found.size == request.size
    {
        return Ok(());
    }
    Err(ProviderError::Conflict {
        kind: "machine",
        name: request.name.to_string(),
        found: found_text,
        wanted: wanted_text,
    })
}
