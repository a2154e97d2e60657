//! The few system calls that have no safe wrapper; the only `unsafe` of the provider.
//!
//! A pidfd names a process for good: unlike its number it cannot come to mean another process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A process that cannot be mistaken for another one.
#[derive(Debug)]
pub(crate) struct PidFd {
    fd: OwnedFd,
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl PidFd {
    /// The process that has this number now; `ESRCH` if there is none.
    #[expect(unsafe_code, reason = "pidfd_open has no wrapper in nix")]
    pub(crate) fn open(pid: i32) -> io::Result<PidFd> {
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel just returned this descriptor; nothing else owns it. It is O_CLOEXEC.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(PidFd { fd })
    }

    /// Sends a signal by number (real-time signals included). A process that is gone is fine.
    #[expect(unsafe_code, reason = "pidfd_send_signal has no wrapper in nix")]
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        let info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open for as long as `self` lives; a null siginfo is allowed and
        // makes the call equal to kill(2); no memory of ours is read or written.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.fd.as_raw_fd(),
                signal,
                info,
                0,
            )
        };
        if result == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            e => Err(e),
        }
    }

    /// Waits until the process has ended; false if it still runs at `deadline`.
    pub(crate) fn wait(&self, deadline: Instant) -> io::Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, poll_timeout(left)) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The wait status of an ended process that is not our child, as far as the kernel tells: until its
    /// parent has reaped it (any Linux), and from Linux 6.15 on also afterwards.
    pub(crate) fn exit_status(&self) -> Option<i32> {
        self.zombie_status().or_else(|| self.reaped_status())
    }

    /// Field 52 of the process's `stat`, while it is a zombie.
    fn zombie_status(&self) -> Option<i32> {
        let number = || -> Option<i32> {
            let path = format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd());
            let text = std::fs::read_to_string(path).ok()?;
            text.lines()
                .find_map(|l| l.strip_prefix("Pid:"))?
                .trim()
                .parse()
                .ok()
        };
        let pid = number().filter(|pid| *pid > 0)?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may hold anything, also spaces and brackets; the state follows its last bracket.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let zombie = fields.next()? == "Z";
        let code = fields.nth(48)?.parse().ok()?;
        // Still the same process after the file was read: the number had not passed to another.
        (zombie && number() == Some(pid)).then_some(code)
    }

    #[expect(unsafe_code, reason = "ioctl PIDFD_GET_INFO has no wrapper in nix")]
    fn reaped_status(&self) -> Option<i32> {
        let mut info = PidfdInfo {
            mask: PIDFD_INFO_EXIT,
            ..PidfdInfo::default()
        };
        // SAFETY: the descriptor is open; the request number encodes size_of::<PidfdInfo>() and
        // the kernel writes no more than that into `info`, a plain struct of integers that lives
        // across the call.
        let result = unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                PIDFD_GET_INFO as libc::Ioctl,
                &raw mut info,
            )
        };
        (result == 0 && info.mask & PIDFD_INFO_EXIT != 0).then_some(info.exit_code)
    }
}

/// `struct pidfd_info` of `linux/pidfd.h`, first published size (64 bytes).
#[repr(C)]
#[derive(Debug, Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xFF, 11, struct pidfd_info)`.
const PIDFD_GET_INFO: u32 = (3 << 30) | ((size_of::<PidfdInfo>() as u32) << 16) | (0xFF << 8) | 11;

/// A poll timeout of at most a minute, rounded up to a millisecond so that waiting does not spin.
pub(crate) fn poll_timeout(left: Duration) -> PollTimeout {
    let ms = left.as_micros().div_ceil(1000).min(60_000);
    PollTimeout::from(u16::try_from(ms).unwrap_or(60_000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn a_pidfd_signals_and_sees_the_end() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = PidFd::open(child.id() as i32).unwrap();
        assert!(!pidfd.wait(Instant::now()).unwrap(), "it runs");
        pidfd.signal(libc::SIGINT).unwrap();
        assert!(pidfd.wait(Instant::now() + Duration::from_secs(5)).unwrap());
        assert_eq!(pidfd.exit_status(), Some(libc::SIGINT), "of a zombie");
        let status = child.wait().unwrap();
        assert_eq!(status.into_raw(), libc::SIGINT);
        let kept = pidfd.exit_status();
        assert!(
            kept.is_none() || kept == Some(libc::SIGINT),
            "{kept:?} of a reaped process"
        );
        pidfd.signal(libc::SIGINT).unwrap();
    }
}
