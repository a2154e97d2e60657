//! The watchdog of a machine, as the agent uses it: what restarts the machine from outside unless it is told otherwise.
//!
//! A provider that plays the hypervisor gives machines a pipe to it ([`WATCHDOG`]); other machines have the device of their
//! kernel, if they have one ([`kernel`]).
//!
//! # Invariants
//! * Telling it never waits. What cannot be told is logged, and told again with the next look.
//! * Whatever an agent before this one has told it is taken back, or told anew, by the first look.
//!
//! # Not here
//! Machines without one do without: self-fencing ends with their agent then.

mod kernel;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::fcntl::OFlag;
use windlass_common::error::ErrorChain;
use windlass_common::fence::{WATCHDOG, WatchdogOrder};

use self::kernel::Device;
use crate::host::Host;

/// What the watchdog was told last.
#[derive(Debug, Default)]
pub(super) enum Watchdog {
    /// What an agent before this one told it, or nothing.
    #[default]
    Unknown,
    /// To restart the machine. A kernel's device counts while it is open.
    Armed(Option<Device>),
    /// To do nothing.
    Off,
}

impl Watchdog {
    /// Has the machine restarted after so long, unless it is told otherwise before.
    pub(super) fn restart_in(&mut self, host: &Host, after: Duration) {
        let told = match where_is(host) {
            Where::Pipe => {
                tell(host, WatchdogOrder::RestartIn(after)).map(|()| *self = Self::Armed(None))
            }
            Where::Kernel => self.count(host, after),
            Where::Nowhere => Ok(()),
        };
        log(told);
    }

    /// Takes it back, where there may be something to take back.
    pub(super) fn off(&mut self, host: &Host) {
        let told = match (std::mem::take(self), where_is(host)) {
            (Self::Off, _) | (_, Where::Nowhere) => Ok(()),
            (_, Where::Pipe) => tell(host, WatchdogOrder::Off),
            (Self::Armed(Some(device)), Where::Kernel) => device.stop(),
            (Self::Armed(None) | Self::Unknown, Where::Kernel) => kernel::stop_another(host),
        };
        if told.is_ok() {
            *self = Self::Off;
        }
        log(told);
    }

    fn count(&mut self, host: &Host, after: Duration) -> io::Result<()> {
        let mut device = match std::mem::take(self) {
            Self::Armed(Some(device)) => device,
            Self::Armed(None) | Self::Unknown | Self::Off => Device::start(host)?,
        };
        if device.count(after)? {
            *self = Self::Armed(Some(device));
            return Ok(());
        }
        // In time, it is told less.
        tracing::debug!(
            after_s = after.as_secs(),
            "the kernel's watchdog cannot count so far"
        );
        device.stop()
    }
}

/// Which watchdog a machine has.
enum Where {
    Pipe,
    Kernel,
    Nowhere,
}

fn where_is(host: &Host) -> Where {
    if host.path(WATCHDOG).exists() {
        Where::Pipe
    } else if !host.is_container() && host.path(kernel::DEVICE).exists() {
        Where::Kernel
    } else {
        Where::Nowhere
    }
}

fn tell(host: &Host, order: WatchdogOrder) -> io::Result<()> {
    let mut pipe = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(host.path(WATCHDOG))?;
    // One line in one write: shorter than what a pipe takes whole or not at all.
    pipe.write_all(format!("{order}\n").as_bytes())
}

fn log(told: io::Result<()>) {
    if let Err(error) = told {
        tracing::warn!(error = %ErrorChain(&error), "cannot tell the machine's watchdog");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::path::Path;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    /// A machine's root with a watchdog, and where the watchdog hears.
    fn machine(root: &Path) -> (Host, File) {
        let pipe = root.join(WATCHDOG.trim_start_matches('/'));
        std::fs::create_dir(root.join("dev")).unwrap();
        mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let heard = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(&pipe)
            .unwrap();
        (Host::open(root).unwrap(), heard)
    }

    fn said(heard: &mut File) -> String {
        let mut bytes = [0; 256];
        match heard.read(&mut bytes) {
            Ok(length) => String::from_utf8_lossy(&bytes[..length]).into_owned(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => String::new(),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn each_look_tells_it_anew_and_off_is_told_once() {
        let root = tempfile::tempdir().unwrap();
        let (host, mut heard) = machine(root.path());
        let mut watchdog = Watchdog::default();
        watchdog.off(&host);
        // An agent before this one may have told it something.
        assert_eq!(said(&mut heard), "off\n");
        watchdog.off(&host);
        assert_eq!(said(&mut heard), "");
        watchdog.restart_in(&host, Duration::from_secs(60));
        watchdog.restart_in(&host, Duration::from_secs(55));
        assert_eq!(said(&mut heard), "restart-in 60\nrestart-in 55\n");
        watchdog.off(&host);
        watchdog.off(&host);
        assert_eq!(said(&mut heard), "off\n");
    }

    #[test]
    fn what_nobody_heard_is_told_again() {
        let root = tempfile::tempdir().unwrap();
        let (host, heard) = machine(root.path());
        drop(heard);
        let mut watchdog = Watchdog::default();
        watchdog.off(&host);
        assert!(matches!(watchdog, Watchdog::Unknown));
        watchdog.restart_in(&host, Duration::from_secs(60));
        assert!(matches!(watchdog, Watchdog::Unknown));
    }

    #[test]
    fn a_machine_without_one_does_without() {
        let root = tempfile::tempdir().unwrap();
        let host = Host::open(root.path()).unwrap();
        let mut watchdog = Watchdog::default();
        watchdog.restart_in(&host, Duration::from_secs(60));
        watchdog.off(&host);
        assert!(matches!(watchdog, Watchdog::Off));
    }

    /// One that restarts this machine: for a virtual machine of its own (`cargo xtask test vm`), whose console says how
    /// far this came.
    #[test]
    #[ignore = "restarts the machine it runs on"]
    fn a_kernels_watchdog_restarts_the_machine() {
        let host = Host::open(Path::new("/")).unwrap();
        let state = || std::fs::read_to_string("/sys/class/watchdog/watchdog0/state").unwrap();
        let s = Duration::from_secs;
        assert_eq!(state().trim(), "inactive");
        let mut watchdog = Watchdog::default();
        watchdog.off(&host);
        assert!(matches!(watchdog, Watchdog::Off));
        // Further than this one can count.
        watchdog.restart_in(&host, s(1_000_000));
        assert_eq!(state().trim(), "inactive");
        watchdog.restart_in(&host, s(3));
        assert_eq!(state().trim(), "active");
        watchdog.off(&host);
        assert_eq!(state().trim(), "inactive");
        // An agent that dies leaves it counting, and the next one takes it back.
        watchdog.restart_in(&host, s(3));
        drop(watchdog);
        assert_eq!(state().trim(), "active");
        let mut next = Watchdog::default();
        next.off(&host);
        assert_eq!(state().trim(), "inactive");
        let began = std::time::Instant::now();
        println!("WATCHDOG: stopped");
        while began.elapsed() < s(6) {
            std::thread::park_timeout(s(1));
        }
        println!("WATCHDOG: nothing restarted what was taken back");
        next.restart_in(&host, s(3));
        drop(next);
        println!("WATCHDOG: counts");
        while began.elapsed() < s(60) {
            std::thread::park_timeout(s(1));
        }
        println!("WATCHDOG: nothing restarted what was not taken back");
    }
}
