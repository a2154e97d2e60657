//! Records that were decoded before. A director reads the same ones for every step that it takes, and decoding a record
//! costs several times what copying it does.
//!
//! # Invariants
//! * Nothing is answered from here: a backend is asked each time, and a record is known only at the revision that the
//!   backend says it has now. Revisions are never used twice, so that a record known at one is the one stored at it.
//! * Records of [`KNOWN_BYTES_MAX`] at most. When there are more all are forgotten, and those in use are soon known again.
//!
//! # After a crash
//! Nothing is known: each record is decoded again.
//!
//! # Not here
//! Secrets, and values without a type of their own: they are decoded each time.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Entry, Kind};
use crate::model::Revision;

/// Bytes that the records which are remembered have in the store; decoded they take two or three times as much. One of
/// a machine has about 2 kB, a task with its plan as much for each machine: a fleet of thousands of machines has room,
/// and a long history of tasks does not fill the memory.
const KNOWN_BYTES_MAX: usize = 32 << 20;

type Decoded = Arc<dyn Any + Send + Sync>;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    kinds: BTreeMap<Kind, HashMap<String, One>>,
    /// Of all of them.
    bytes: usize,
}

#[derive(Debug)]
struct One {
    revision: Revision,
    /// In the store.
    bytes: usize,
    decoded: Decoded,
}

impl Known {
    /// The record that an entry of this kind holds; `decode` is asked unless it is known at this revision.
    pub(super) fn record_or<T: Any + Send + Sync, E>(
        &self,
        kind: Kind,
        entry: &Entry,
        decode: impl FnOnce(&Entry) -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        let kept = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = kept().find(kind, entry) {
            return Ok(known);
        }
        let decoded = Arc::new(decode(entry)?);
        kept().keep(kind, entry, decoded.clone());
        Ok(decoded)
    }
}

impl Kept {
    fn find<T: Any + Send + Sync>(&self, kind: Kind, entry: &Entry) -> Option<Arc<T>> {
        let one = self.kinds.get(&kind)?.get(&entry.name)?;
        // One of another type is not what is asked for, and decoded as it.
        let decoded = (one.revision == entry.revision).then(|| one.decoded.clone())?;
        decoded.downcast().ok()
    }

    fn keep(&mut self, kind: Kind, entry: &Entry, decoded: Decoded) {
        let of_kind = self.kinds.entry(kind).or_default();
        let before = of_kind.remove(&entry.name);
        self.bytes -= before.map_or(0, |before| before.bytes);
        let bytes = entry.body.len();
        if bytes > KNOWN_BYTES_MAX - self.bytes {
            *self = Self::default();
        }
        if bytes > KNOWN_BYTES_MAX {
            return;
        }
        let one = One {
            revision: entry.revision,
            bytes,
            decoded,
        };
        let of_kind = self.kinds.entry(kind).or_default();
        of_kind.insert(entry.name.clone(), one);
        self.bytes += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, revision: u64) -> Entry {
        Entry {
            name: name.to_owned(),
            revision: Revision(revision),
            body: Vec::new(),
        }
    }

    #[test]
    fn a_record_is_decoded_once_at_each_revision_of_each_name_and_kind() {
        let known = Known::default();
        let mut decoded = 0;
        let mut read = |kind, name, revision| {
            let decode = |entry: &Entry| {
                decoded += 1;
                Ok::<_, ()>((entry.name.clone(), entry.revision))
            };
            let record = known.record_or(kind, &entry(name, revision), decode);
            assert_eq!(*record.unwrap(), (name.to_owned(), Revision(revision)));
            decoded
        };
        assert_eq!(read(Kind::Machine, "a", 1), 1);
        assert_eq!(read(Kind::Machine, "a", 1), 1);
        assert_eq!(read(Kind::Machine, "a", 2), 2, "another revision");
        assert_eq!(read(Kind::Machine, "a", 2), 2);
        assert_eq!(read(Kind::Machine, "a", 1), 3, "only the last is known");
        assert_eq!(read(Kind::Machine, "b", 1), 4, "another name");
        assert_eq!(read(Kind::Case, "b", 1), 5, "another kind");
        assert_eq!(read(Kind::Machine, "b", 1), 5);
    }

    #[test]
    fn what_cannot_be_decoded_is_not_known_and_another_type_is_decoded_as_it() {
        let known = Known::default();
        let read = |outcome: Result<u8, u8>| {
            let decode = |_: &Entry| outcome;
            known.record_or(Kind::Task, &entry("t1", 1), decode)
        };
        assert_eq!(read(Err(1)), Err(1));
        assert_eq!(read(Ok(2)), Ok(Arc::new(2)));
        assert_eq!(read(Err(3)), Ok(Arc::new(2)));
        let decode = |_: &Entry| Ok::<_, ()>("text");
        let other = known.record_or(Kind::Task, &entry("t1", 1), decode);
        assert_eq!(other, Ok(Arc::new("text")));
    }

    #[test]
    fn no_more_are_kept_than_may_be() {
        let known = Known::default();
        let mib = 1 << 20;
        let read = |name: &str, revision, bytes| {
            let mut decoded = false;
            let entry = Entry {
                body: vec![0; bytes],
                ..entry(name, revision)
            };
            let decode = |_: &Entry| {
                decoded = true;
                Ok::<_, ()>(())
            };
            known.record_or(Kind::Machine, &entry, decode).unwrap();
            assert!(known.0.lock().unwrap().bytes <= KNOWN_BYTES_MAX);
            decoded
        };
        let room = KNOWN_BYTES_MAX / mib;
        let names: Vec<String> = (0..room).map(|number| format!("m{number}")).collect();
        assert!(names.iter().all(|name| read(name, 1, mib)), "each is new");
        assert!(!names.iter().any(|name| read(name, 1, mib)), "and known");
        assert!(read("m0", 2, mib), "in the place of what it was");
        assert!(!read("m1", 1, mib), "beside all others");
        assert!(read("one more", 1, 1));
        assert!(!read("one more", 1, 1));
        assert!(read("m1", 1, mib), "for the price of all others");
        assert!(read("too large", 1, KNOWN_BYTES_MAX + 1));
        assert!(read("too large", 1, KNOWN_BYTES_MAX + 1), "is never kept");
    }
}
