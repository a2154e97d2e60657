//! Why a machine's init process ended.
//!
//! Inside a process namespace reboot(2) does not reboot the host: the kernel ends the namespace's init with
//! SIGHUP for a restart and SIGINT for a halt or power-off, and its parent sees that.

use std::fmt;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::provider::local::sys::PidFd;

/// How long the kernel may take to tell the status of an adopted process that was reaped just now.
const REAP_LIMIT: Duration = Duration::from_millis(100);
/// Pause between two looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// Why it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ending {
    /// The machine restarted itself.
    Reboot,
    /// The machine switched itself off.
    PowerOff,
    /// Anything else.
    Crash(String),
    /// It was not our child and the kernel does not tell.
    Unknown,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Reboot => f.write_str("reboot"),
            Ending::PowerOff => f.write_str("power-off"),
            Ending::Crash(how) => write!(f, "crash ({how})"),
            Ending::Unknown => f.write_str("for an unknown reason"),
        }
    }
}

/// Reaps an init process that has ended and says why it did.
pub(super) fn of(pid: i32, pidfd: &PidFd) -> Ending {
    match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::empty())) {
        Ok(status) => from_status(status),
        Err(Errno::ECHILD) => adopted(pid, pidfd),
        Err(e) => Ending::Crash(format!("cannot wait for it: {e}")),
    }
}

fn adopted(pid: i32, pidfd: &PidFd) -> Ending {
    let deadline = Instant::now() + REAP_LIMIT;
    loop {
        if let Some(raw) = pidfd.exit_status() {
            return match WaitStatus::from_raw(Pid::from_raw(pid), raw) {
                Ok(status) => from_status(status),
                Err(_) => Ending::Unknown,
            };
        }
        if Instant::now() >= deadline {
            return Ending::Unknown;
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn from_status(status: WaitStatus) -> Ending {
    match status {
        WaitStatus::Signaled(_, Signal::SIGHUP, _) => Ending::Reboot,
        WaitStatus::Signaled(_, Signal::SIGINT, _) => Ending::PowerOff,
        WaitStatus::Signaled(_, signal, _) => Ending::Crash(format!("killed by {signal}")),
        WaitStatus::Exited(_, code) => Ending::Crash(format!("exit code {code}")),
        other => Ending::Crash(format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Starts a shell script and says why its process ended. The child is reaped by [`of`]. Its signals end it,
    /// also where whoever started the tests ignores them, as `nohup` does.
    #[expect(clippy::zombie_processes, reason = "what is tested reaps it")]
    fn ending(script: &str) -> Ending {
        let child = Command::new("env")
            .args(["--default-signal=HUP,INT", "sh", "-c", script])
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let pidfd = PidFd::open(pid).unwrap();
        of(pid, &pidfd)
    }

    #[test]
    fn the_signal_tells_the_reason() {
        assert_eq!(ending("kill -HUP $$"), Ending::Reboot);
        assert_eq!(ending("kill -INT $$"), Ending::PowerOff);
        assert_eq!(ending("exit 7"), Ending::Crash("exit code 7".into()));
        assert!(matches!(ending("kill -KILL $$"), Ending::Crash(_)));
    }
}
