//! The kernel's watchdog device: [`DEVICE`], hardware of a physical or virtual machine.
//!
//! It is open while it counts, and restarts the machine when nobody has spoken to it for its time-out, also after whoever
//! opened it has died. Only a close after the letter `V` stops it (Linux, `Documentation/watchdog/watchdog-api.rst`).
//!
//! # Invariants
//! * A device that could not be stopped again is never started: one whose driver says `nowayout`, or does not say.
//! * It is never given less time than asked for: one that cannot count so far stays off.
//!
//! # Not here
//! A device that systemd holds (`RuntimeWatchdogSec=`): it is busy, and stays systemd's.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::c_int;

use crate::host::Host;

/// The first device, as its users open it.
pub(super) const DEVICE: &str = "/dev/watchdog";
/// What the kernel says of it (`Documentation/ABI/testing/sysfs-class-watchdog`).
const SAYS: &str = "/sys/class/watchdog/watchdog0";

nix::ioctl_readwrite!(
    /// Sets the time-out in whole seconds (`WDIOC_SETTIMEOUT`).
    set_timeout,
    b'W',
    6,
    c_int
);

/// A device that counts.
#[derive(Debug)]
pub(in crate::fence) struct Device(File);

impl Device {
    /// Starts it; it counts with a time-out of its own until it is told another.
    pub(super) fn start(host: &Host) -> io::Result<Device> {
        if !can_be_stopped(host)? {
            return Err(io::Error::other(format!(
                "{DEVICE} cannot be stopped once it counts (nowayout), so that it is left alone"
            )));
        }
        let device = OpenOptions::new().write(true).open(host.path(DEVICE))?;
        Ok(Device(device))
    }

    /// Begins to count anew, to so many seconds; `false` if it cannot count so far.
    pub(super) fn count(&mut self, after: Duration) -> io::Result<bool> {
        let up = u64::from(after.subsec_nanos() > 0);
        let Ok(mut seconds) = c_int::try_from(after.as_secs().saturating_add(up)) else {
            return Ok(false);
        };
        #[expect(unsafe_code, reason = "the device has no other interface for it")]
        // SAFETY: the descriptor is open for as long as `self` is, and the kernel reads and writes one int.
        let set = unsafe { set_timeout(self.0.as_raw_fd(), &raw mut seconds) };
        match set {
            // Drivers round, up or down.
            Ok(_) if Duration::from_secs(u64::try_from(seconds).unwrap_or(0)) < after => Ok(false),
            Ok(_) => {
                // Whatever is written begins the count anew, but for that letter.
                self.0.write_all(b"\0")?;
                Ok(true)
            }
            Err(Errno::EINVAL) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Stops it.
    pub(super) fn stop(mut self) -> io::Result<()> {
        self.0.write_all(b"V")
    }
}

/// Stops what an agent before this one may have left counting.
pub(super) fn stop_another(host: &Host) -> io::Result<()> {
    // Whose driver does not say that it can be stopped, no agent has started.
    if !can_be_stopped(host).unwrap_or(false) || says(host, "state")? != "active" {
        return Ok(());
    }
    match Device::start(host) {
        Ok(device) => device.stop(),
        // Of systemd.
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(()),
        Err(error) => Err(error),
    }
}

fn can_be_stopped(host: &Host) -> io::Result<bool> {
    Ok(says(host, "nowayout")? == "0")
}

fn says(host: &Host, what: &str) -> io::Result<String> {
    let path = host.path(SAYS).join(what);
    let said = std::fs::read_to_string(&path);
    let said = said.map_err(|error| {
        io::Error::new(
            io::ErrorKind::Unsupported,
            format!(
                "the kernel does not say {what} of {DEVICE} ({}): {error}",
                path.display()
            ),
        )
    })?;
    Ok(said.trim().to_owned())
}
