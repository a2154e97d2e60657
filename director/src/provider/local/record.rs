//! What is written down about a machine, and what its files say about its life.
//!
//! `machine.json` is written before anything else of a machine exists (`complete: false`), again when
//! its directory is whole, and once more before deletion begins. A machine whose record is not
//! complete is never started. Fields added later need a serde default: records outlive directors.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use windlass_common::id::{Incarnation, MachineName, NodeName};

use super::cgroup::Hierarchies;
use super::files::{What, read_json, read_small, write_atomic, write_json, write_json_quick};
use super::layout::{Layout, MachineDir};
use super::rootfs::Seed;
use super::sys::PidFd;
use crate::provider::{MachineRequest, MachineSize, MachineView, Power, ProviderError};

/// Everything a monitor needs to start a machine again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) layout: Layout,
    pub(crate) runc: PathBuf,
    pub(crate) name: MachineName,
    pub(crate) incarnation: Incarnation,
    pub(crate) stemcell: PathBuf,
    pub(crate) seeds: Vec<Seed>,
    pub(crate) size: MachineSize,
    pub(crate) address: Ipv4Addr,
    pub(crate) hostname: NodeName,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) created_at: u64,
    pub(crate) complete: bool,
}

impl Record {
    /// The record of a machine that is about to be made.
    pub(crate) fn new(
        layout: &Layout,
        runc: &std::path::Path,
        request: &MachineRequest,
        seeds: Vec<Seed>,
    ) -> Record {
        let created_at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        Record {
            layout: layout.clone(),
            runc: runc.to_owned(),
            name: request.name.clone(),
            incarnation: request.incarnation,
            stemcell: request.stemcell.clone(),
            seeds,
            size: request.size,
            address: request.address,
            hostname: request.hostname.clone(),
            tags: request.tags.clone(),
            created_at,
            complete: false,
        }
    }

    /// Reads the record of a machine; `None` if there is none.
    pub(crate) fn load(dir: &MachineDir) -> Result<Option<Record>, ProviderError> {
        read_json(&dir.record())
    }

    /// Writes down that the machine is about to exist. After a power cut there may be an empty directory
    /// instead, which counts as half made just as well.
    pub(crate) fn announce(&self) -> Result<(), ProviderError> {
        write_json_quick(&self.dir().record(), self)
    }

    /// Writes it down.
    pub(crate) fn save(&self) -> Result<(), ProviderError> {
        write_json(&self.dir().record(), self)
    }

    pub(crate) fn dir(&self) -> MachineDir {
        self.layout.machine(&self.name)
    }

    pub(crate) fn cgroup(&self) -> String {
        self.layout.cgroup(&self.name)
    }

    /// The machine as the trait shows it.
    pub(crate) fn view(&self) -> MachineView {
        let dir = self.dir();
        let running =
            self.init().is_some() || (monitor_lives(&dir) && wanted_power(&dir) == Power::Running);
        MachineView {
            name: self.name.clone(),
            incarnation: self.incarnation,
            power: if running {
                Power::Running
            } else {
                Power::Stopped
            },
            address: self.address,
            tags: self.tags.clone(),
            created_at: self.created_at,
            boots: boots(&dir),
            complete: self.complete,
        }
    }

    /// The machine's running init process.
    ///
    /// The number in the file is believed only if that process is alive, is number 1 of its own
    /// process namespace and sits in this machine's control group: none of these survive reuse of the
    /// number, nor a restart of the host.
    pub(crate) fn init(&self) -> Option<(i32, PidFd)> {
        let text = read_small(&self.dir().init_pid()).ok()??;
        let pid: i32 = String::from_utf8(text).ok()?.trim().parse().ok()?;
        let pidfd = PidFd::open(pid).ok()?;
        let is_init = fs::read_to_string(format!("/proc/{pid}/status"))
            .ok()?
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))
            .is_some_and(|ids| {
                let mut ids = ids.split_whitespace();
                ids.next_back() == Some("1") && ids.next().is_some()
            });
        let ours = Hierarchies::contains(&self.cgroup(), pid);
        let ended = pidfd.wait(Instant::now()).ok()?;
        (is_init && ours && !ended).then_some((pid, pidfd))
    }
}

/// The power state somebody asked for last; a machine without one is wanted off.
pub(crate) fn wanted_power(dir: &MachineDir) -> Power {
    match read_small(&dir.power()) {
        Ok(Some(text)) if text.trim_ascii() == b"running" => Power::Running,
        _ => Power::Stopped,
    }
}

/// Writes down which power state is wanted.
pub(crate) fn want_power(dir: &MachineDir, power: Power) -> Result<(), ProviderError> {
    let text: &[u8] = match power {
        Power::Running => b"running\n",
        Power::Stopped => b"stopped\n",
    };
    write_atomic(&dir.power(), text, 0o600)
}

/// How often the machine was started.
pub(crate) fn boots(dir: &MachineDir) -> u64 {
    let text = read_small(&dir.boots()).ok().flatten().unwrap_or_default();
    String::from_utf8(text)
        .ok()
        .and_then(|t| t.trim().parse().ok())
        .unwrap_or(0)
}

/// The right to be a machine's monitor; it ends with the process that holds it.
#[derive(Debug)]
pub(crate) struct MonitorLock(pub(crate) File);

impl MonitorLock {
    /// Takes it; `None` if a monitor lives.
    pub(crate) fn take(dir: &MachineDir) -> Result<Option<MonitorLock>, ProviderError> {
        let path = dir.lock();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .what(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(MonitorLock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(ProviderError::Host {
                what: format!("cannot lock {}", path.display()),
                source,
            }),
        }
    }

    /// Writes the holder's process number into it, for whoever has to end a holder that hangs.
    pub(crate) fn sign(&mut self) -> io::Result<()> {
        self.0.set_len(0)?;
        writeln!(self.0, "{}", std::process::id())
    }
}

/// Whether a monitor holds the machine's lock.
pub(crate) fn monitor_lives(dir: &MachineDir) -> bool {
    // Opened for reading only: asking must not create the file.
    match File::open(dir.lock()) {
        Ok(file) => matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)),
        Err(_) => false,
    }
}

/// The monitor's process, if one holds the lock.
pub(crate) fn monitor_process(dir: &MachineDir) -> Option<PidFd> {
    let text = read_small(&dir.lock()).ok()??;
    let pid = String::from_utf8(text).ok()?.trim().parse().ok()?;
    let pidfd = PidFd::open(pid).ok()?;
    // The lock is looked at after the descriptor is open: if it is held, its signer lives, and the
    // number cannot have passed to another process in between.
    monitor_lives(dir).then_some(pidfd)
}
