//! Durable, append-only journals: what was acknowledged is still there after a crash.
//!
//! A journal is one file in a directory of its own. It opens with a magic text; then follow entries:
//!
//! ```text
//! length: u32 | sequence: u64 | crc32 of length, sequence and payload: u32 | payload     (big endian)
//! ```
//!
//! # Invariants
//! * [`Journal::append`] returns only when the entry is on the disk, so at most one entry is not: the
//!   last one.
//! * An entry is read back whole or not at all. A torn tail is cut when the journal is opened; a
//!   damaged entry that is *followed* by a whole one is no torn tail but corruption, and is an error.
//! * After a failed append the tail is cut, durably, before the next one: the kernel may have thrown
//!   the data away, and a later successful sync of the same bytes would prove nothing. After a rewrite
//!   that failed at the renaming nothing is appended any more: open the journal again.
//! * [`Journal::rewrite`] replaces the content at once or not at all.
//!
//! # After a crash
//! [`Journal::open`] returns every acknowledged entry in order, and perhaps the one that was being
//! appended.
//!
//! # Not here
//! What entries mean. All calls block; callers on a runtime use its blocking pool.

mod disk;
mod frame;
#[cfg(any(test, feature = "testing"))]
pub mod sim;
mod storage;
#[cfg(test)]
mod tests;

use std::io;

pub use disk::DirStorage;
pub use storage::{Storage, StorageFile};

use crate::error::ErrorClass;
use crate::limits::JOURNAL_BYTES_MAX;

/// Name of the journal's file within its directory.
const FILE: &str = "journal";
/// Name of the file that is to become the journal.
const FILE_NEXT: &str = "journal.next";
/// First bytes of a journal; the last digit is the format.
const MAGIC: &[u8; 8] = b"WLJRNL1\n";

/// Largest payload of one entry: a step's result is the largest, and travels in one frame.
pub const ENTRY_BYTES_MAX: usize = crate::limits::FRAME_BYTES_MAX;

/// Why a journal could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The storage failed.
    #[error("cannot {action} the journal in {place}; check the disk and free space")]
    Storage {
        /// What was tried.
        action: &'static str,
        /// Where.
        place: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// Another process holds it.
    #[error("the journal in {place} is in use by another process; only one may run")]
    InUse {
        /// Where.
        place: String,
    },
    /// Not a journal, or of another format.
    #[error("the file {FILE} in {place} is no journal of this format; it was left untouched")]
    Format {
        /// Where.
        place: String,
    },
    /// An entry in the middle is damaged.
    #[error(
        "the journal in {place} is damaged at byte {offset}, with whole entries after it; it was \
         left untouched: restore it, or move it away to start without history"
    )]
    Corrupt {
        /// Where.
        place: String,
        /// First damaged byte.
        offset: u64,
    },
    /// The payload is empty or too long.
    #[error("an entry of {bytes} bytes cannot be appended; 1 to {ENTRY_BYTES_MAX} are allowed")]
    EntryLength {
        /// Length of the payload.
        bytes: usize,
    },
    /// An earlier write failed.
    #[error("the journal in {place} failed earlier; it has to be opened again")]
    Poisoned {
        /// Where.
        place: String,
    },
}

impl JournalError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Storage { .. } | Self::Poisoned { .. } => ErrorClass::Retry,
            Self::InUse { .. } | Self::Format { .. } | Self::Corrupt { .. } => ErrorClass::Operator,
            Self::EntryLength { .. } => ErrorClass::Bug,
        }
    }
}

/// An open journal; it is the only one that writes its files.
#[derive(Debug)]
pub struct Journal<S: Storage> {
    storage: S,
    file: S::File,
    end: u64,
    next_sequence: u64,
    tail_unknown: bool,
    poisoned: bool,
}

impl<S: Storage> Journal<S> {
    /// Opens or makes the journal and returns the payloads of its entries, oldest first.
    pub fn open(storage: S) -> Result<(Self, Vec<Vec<u8>>), JournalError> {
        let fail = |action, source| storage_error(&storage, action, source);
        let Some(mut file) = storage.open(FILE).map_err(|e| fail("open", e))? else {
            let file = write_next(&storage, &[], 1)?;
            name_next(&storage)?;
            let end = MAGIC.len() as u64;
            return Ok((Self::new(storage, file, end, 1), Vec::new()));
        };
        let bytes = file
            .read_all(JOURNAL_BYTES_MAX)
            .map_err(|e| fail("read", e))?;
        let Some(body) = bytes.strip_prefix(MAGIC) else {
            let place = storage.place();
            return Err(JournalError::Format { place });
        };
        let scan = frame::scan(body);
        let end = (MAGIC.len() + scan.whole) as u64;
        if scan.entry_after_damage {
            let place = storage.place();
            return Err(JournalError::Corrupt { place, offset: end });
        }
        if (bytes.len() as u64) > end {
            file.set_len(end).map_err(|e| fail("cut", e))?;
            file.sync().map_err(|e| fail("sync", e))?;
        }
        let next = scan.next_sequence;
        Ok((Self::new(storage, file, end, next), scan.payloads))
    }

    fn new(storage: S, file: S::File, end: u64, next_sequence: u64) -> Self {
        Self {
            storage,
            file,
            end,
            next_sequence,
            tail_unknown: false,
            poisoned: false,
        }
    }

    /// Appends one entry; when this returns, it survives a crash.
    pub fn append(&mut self, payload: &[u8]) -> Result<(), JournalError> {
        self.check(payload)?;
        self.cut_unknown_tail()?;
        let entry = frame::encode(self.next_sequence, payload);
        self.tail_unknown = true;
        self.file
            .write_at(self.end, &entry)
            .map_err(|e| storage_error(&self.storage, "write to", e))?;
        self.file
            .sync()
            .map_err(|e| storage_error(&self.storage, "sync", e))?;
        self.tail_unknown = false;
        self.end += entry.len() as u64;
        self.next_sequence += 1;
        Ok(())
    }

    /// Replaces all entries by these, at once or not at all.
    pub fn rewrite(&mut self, payloads: &[Vec<u8>]) -> Result<(), JournalError> {
        for payload in payloads {
            self.check(payload)?;
        }
        let next = write_next(&self.storage, payloads, self.next_sequence)?;
        // From here on a failure leaves open which of the two files is the journal.
        self.poisoned = true;
        name_next(&self.storage)?;
        self.poisoned = false;
        self.tail_unknown = false;
        self.file = next;
        self.next_sequence += payloads.len() as u64;
        let entries: usize = payloads.iter().map(|p| p.len() + frame::HEADER_BYTES).sum();
        self.end = (MAGIC.len() + entries) as u64;
        Ok(())
    }

    /// Cuts what a failed append may have left; the entries before it are durable.
    fn cut_unknown_tail(&mut self) -> Result<(), JournalError> {
        if self.tail_unknown {
            self.file
                .set_len(self.end)
                .map_err(|e| storage_error(&self.storage, "cut", e))?;
            self.file
                .sync()
                .map_err(|e| storage_error(&self.storage, "sync", e))?;
            self.tail_unknown = false;
        }
        Ok(())
    }

    /// Length in bytes; owners rewrite a journal that has become long.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    fn check(&self, payload: &[u8]) -> Result<(), JournalError> {
        if self.poisoned {
            let place = self.storage.place();
            return Err(JournalError::Poisoned { place });
        }
        if payload.is_empty() || payload.len() > ENTRY_BYTES_MAX {
            let bytes = payload.len();
            return Err(JournalError::EntryLength { bytes });
        }
        Ok(())
    }
}

/// Writes a journal under its temporary name, durably.
fn write_next<S: Storage>(
    storage: &S,
    payloads: &[Vec<u8>],
    first_sequence: u64,
) -> Result<S::File, JournalError> {
    let fail = |action, source| storage_error(storage, action, source);
    let mut bytes = MAGIC.to_vec();
    for (sequence, payload) in (first_sequence..).zip(payloads) {
        bytes.extend(frame::encode(sequence, payload));
    }
    let mut file = storage.create(FILE_NEXT).map_err(|e| fail("create", e))?;
    file.write_at(0, &bytes).map_err(|e| fail("write to", e))?;
    file.sync().map_err(|e| fail("sync", e))?;
    Ok(file)
}

/// Gives the journal written last its name, durably.
fn name_next<S: Storage>(storage: &S) -> Result<(), JournalError> {
    let fail = |action, source| storage_error(storage, action, source);
    storage
        .rename(FILE_NEXT, FILE)
        .map_err(|e| fail("rename", e))?;
    storage
        .sync_dir()
        .map_err(|e| fail("sync the directory of", e))
}

fn storage_error<S: Storage>(storage: &S, action: &'static str, source: io::Error) -> JournalError {
    let place = storage.place();
    if source.kind() == io::ErrorKind::ResourceBusy {
        return JournalError::InUse { place };
    }
    JournalError::Storage {
        action,
        place,
        source,
    }
}
