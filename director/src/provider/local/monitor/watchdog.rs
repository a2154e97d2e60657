//! The machine's watchdog: what a machine asks its hypervisor to do unless it takes it back in time.
//!
//! A pipe of the host is shown in the machine as [`WATCHDOG`]; it takes [`WatchdogOrder`]s, one a line. The newest counts
//! for the boot in which it was given.
//!
//! # Invariants
//! * Lines that are no orders change nothing, however many or long they are.
//! * An order ends with the boot: the pipe is made anew for each.
//!
//! # After a crash
//! A monitor that takes over a running machine has no order until the machine gives the next one: it restarts later
//! then, never earlier.
//!
//! # Not here
//! Why a machine gives orders: `agent/src/fence`.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use windlass_common::fence::WatchdogOrder;

use crate::provider::ProviderError;
use crate::provider::local::files::{What, remove_file};
use crate::provider::local::layout::MachineDir;

#[cfg(doc)]
use windlass_common::fence::WATCHDOG;

/// Longest line that is looked at, in bytes; orders are a third of it.
const LINE_MAX: usize = 64;
/// Most that is read at once, in bytes: as much as a pipe holds.
const READ_MAX: usize = 64 * 1024;

/// Makes the pipe for the next boot.
pub(crate) fn make(dir: &MachineDir) -> Result<(), ProviderError> {
    let path = dir.watchdog();
    remove_file(&path)?;
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).what(|| format!("cannot make {}", path.display()))
}

/// The watchdog of one boot.
#[derive(Debug)]
pub(super) struct Watchdog {
    pipe: File,
    orders: Orders,
}

impl Watchdog {
    /// That of a running machine; nothing where an earlier release started it.
    pub(super) fn of(dir: &MachineDir) -> io::Result<Option<Watchdog>> {
        match open(&dir.watchdog()) {
            Ok(pipe) => Ok(Some(Watchdog {
                pipe,
                orders: Orders::default(),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// When the machine is to be restarted, by its last order.
    pub(super) fn due(&self) -> Option<Instant> {
        self.orders.due
    }

    /// Takes what the machine has said by now; returns what is worth a line in the log.
    pub(super) fn read(&mut self, now: Instant) -> io::Result<Vec<String>> {
        let mut said = vec![0; READ_MAX];
        match self.pipe.read(&mut said) {
            Ok(length) => Ok(self.orders.take(said.get(..length).unwrap_or(&[]), now)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Watchdog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}

fn open(path: &Path) -> io::Result<File> {
    // For writing, too: a pipe whose last writer has closed it would be at its end at each look.
    let pipe = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    if !pipe.metadata()?.file_type().is_fifo() {
        return Err(io::Error::other("it is not a pipe"));
    }
    Ok(pipe)
}

/// What was ordered so far.
#[derive(Debug, Default)]
struct Orders {
    due: Option<Instant>,
    /// The line that is not ended yet; without what is longer than [`LINE_MAX`].
    begun: Vec<u8>,
    /// Of a machine that says other things one is told.
    told: bool,
}

impl Orders {
    fn take(&mut self, said: &[u8], now: Instant) -> Vec<String> {
        let mut notes = Vec::new();
        for byte in said {
            if *byte != b'\n' {
                if self.begun.len() <= LINE_MAX {
                    self.begun.push(*byte);
                }
                continue;
            }
            let line = std::mem::take(&mut self.begun);
            let order = std::str::from_utf8(&line).map(str::parse);
            match order {
                Ok(Ok(WatchdogOrder::RestartIn(after))) => {
                    if self.due.is_none() {
                        notes.push(format!(
                            "watchdog: restarts the machine in {} s, unless it is told otherwise",
                            after.as_secs()
                        ));
                    }
                    self.due = Some(now + after);
                }
                Ok(Ok(WatchdogOrder::Off)) => {
                    if self.due.take().is_some() {
                        notes.push("watchdog: told not to restart the machine".to_owned());
                    }
                }
                Ok(Err(_)) | Err(_) if self.told => {}
                Ok(Err(_)) | Err(_) => {
                    self.told = true;
                    notes.push(format!(
                        "watchdog: ignores what is no order: {}",
                        line.escape_ascii()
                    ));
                }
            }
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::time::Duration;

    fn due_after(said: &[&[u8]]) -> (Option<Duration>, usize) {
        let (mut orders, now) = (Orders::default(), Instant::now());
        let notes = said.iter().map(|part| orders.take(part, now).len()).sum();
        (orders.due.map(|due| due - now), notes)
    }

    #[test]
    fn the_newest_order_counts_and_nothing_else_does() {
        /// What is said, when the machine is due then, seconds, and how many lines are noted.
        type Case<'a> = (&'a [&'a [u8]], Option<u64>, usize);
        let long = [b'x'; 10 * LINE_MAX];
        #[rustfmt::skip] // one case per line
        let cases: [Case<'_>; 9] = [
            (&[],                                                         None,     0),
            (&[b"restart-in 30\n"],                                       Some(30), 1),
            (&[b"restart-", b"in 30", b"\n"],                             Some(30), 1),
            (&[b"restart-in 30"],                                         None,     0), // not said yet
            (&[b"restart-in 30\nrestart-in 25\n", b"restart-in 20\n"],    Some(20), 1),
            (&[b"restart-in 30\noff\n"],                                  None,     2),
            (&[b"off\n"],                                                 None,     0),
            (&[b"restart-in 30\n", b"restart-in 9999\n\xff\n\n"],         Some(30), 2),
            (&[&long, b"\nrestart-in 30\n", &long, &long],                Some(30), 2),
        ];
        for (said, due, notes) in cases {
            let expected = (due.map(Duration::from_secs), notes);
            assert_eq!(due_after(said), expected, "{said:?}");
        }
    }

    #[test]
    fn a_line_without_end_is_kept_in_part() {
        let mut orders = Orders::default();
        for _ in 0..1000 {
            orders.take(&[b'x'; READ_MAX], Instant::now());
        }
        assert!(orders.begun.len() <= LINE_MAX + 1);
    }

    #[test]
    fn orders_come_through_the_pipe_and_end_with_it() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = MachineDir(temporary.path().to_owned());
        std::fs::create_dir(dir.files()).unwrap();
        assert!(Watchdog::of(&dir).unwrap().is_none(), "none was made");
        make(&dir).unwrap();
        let mut watchdog = Watchdog::of(&dir).unwrap().unwrap();
        let now = Instant::now();
        assert_eq!(watchdog.read(now).unwrap(), Vec::<String>::new());
        let mut machine = OpenOptions::new().write(true).open(dir.watchdog()).unwrap();
        machine.write_all(b"restart-in 7\n").unwrap();
        drop(machine);
        assert_eq!(watchdog.read(now).unwrap().len(), 1);
        assert_eq!(watchdog.due(), Some(now + Duration::from_secs(7)));
        assert_eq!(
            watchdog.read(now).unwrap().len(),
            0,
            "a writer that left is no end"
        );
        make(&dir).unwrap();
        let next = Watchdog::of(&dir).unwrap().unwrap();
        assert_eq!(next.due(), None);
    }

    #[test]
    fn what_is_no_pipe_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = MachineDir(temporary.path().to_owned());
        std::fs::create_dir(dir.files()).unwrap();
        std::fs::write(dir.watchdog(), "restart-in 0\n").unwrap();
        assert!(Watchdog::of(&dir).is_err());
    }
}
