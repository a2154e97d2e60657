//! The kernel's log, where it is the machine's own.
//!
//! In a system container `/dev/kmsg` is the host's: it tells about all machines together and is not read.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use windlass_common::condition::KERNEL_LOG;
use windlass_common::report::Scope;

use super::track::{Look, Seen};
use crate::host::Host;

/// Records read in one look; a kernel that says more is read on in the next.
const RECORDS_MAX: usize = 1000;
/// Longest record, bytes (`CONSOLE_EXT_LOG_MAX`).
const RECORD_BYTES_MAX: usize = 8192;

/// The log, read on from where it was left.
#[derive(Debug)]
pub(super) struct KernelLog {
    file: File,
    /// What cannot be mended without a restart, once seen.
    broken: Option<String>,
}

impl KernelLog {
    /// Opens it; `None` where it is not the machine's, or cannot be read.
    pub(super) fn open(host: &Host) -> Option<KernelLog> {
        if host.is_container() {
            return None;
        }
        let opened = File::options()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(host.path("/dev/kmsg"));
        match opened {
            Ok(file) => Some(KernelLog { file, broken: None }),
            Err(error) => {
                tracing::info!(%error, "the kernel's log cannot be read");
                None
            }
        }
    }

    /// Reads what is new.
    pub(super) fn look(&mut self) -> Look {
        let mut record = [0; RECORD_BYTES_MAX];
        for _ in 0..RECORDS_MAX {
            match self.file.read(&mut record) {
                Ok(0) => break,
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]).into_owned();
                    if let Some(says) = broken(&text) {
                        self.broken = Some(says.to_owned());
                    }
                }
                // Overwritten before it was read: the next read goes on with the oldest there is.
                Err(error) if error.raw_os_error() == Some(nix::libc::EPIPE) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    return seen(Seen::Unknown(format!("cannot be read: {error}")));
                }
            }
        }
        seen(match &self.broken {
            Some(says) => Seen::Bad(says.clone()),
            None => Seen::Good("nothing broken since this boot".to_owned()),
        })
    }
}

fn seen(seen: Seen) -> Look {
    Look {
        name: KERNEL_LOG,
        subject: String::new(),
        source: "/dev/kmsg".to_owned(),
        scope: Scope::Machine,
        seen,
    }
}

/// What a record says that only a restart mends. That the kernel killed for want of memory is no such thing:
/// it is how it keeps the rest alive.
fn broken(record: &str) -> Option<&str> {
    const SIGNS: [&str; 4] = [
        "Remounting filesystem read-only",
        "blocked for more than",
        "soft lockup",
        "Kernel panic",
    ];
    let (_, text) = record.split_once(';')?;
    let text = text.lines().next()?;
    SIGNS.iter().any(|sign| text.contains(sign)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaks_a_machine_is_told_from_what_does_not() {
        #[rustfmt::skip] // one record per line
        let records = [
            ("3,1,1,-;EXT4-fs (vda1): Remounting filesystem read-only\n", true),
            ("3,2,1,-;INFO: task kubelet:1 blocked for more than 120 seconds.\n SUBSYSTEM=x\n", true),
            ("6,3,1,-;Out of memory: Killed process 12 (java)\n", false),
            ("6,4,1,-;eth0: link up\n", false),
            ("no record", false),
        ];
        for (record, bad) in records {
            assert_eq!(broken(record).is_some(), bad, "{record}");
        }
    }
}
