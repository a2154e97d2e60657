//! Which documents are known to be whole, by their digests: checking one costs milliseconds of arithmetic on its
//! keys, and a director reads the same one for every step.
//!
//! # Invariants
//! * A digest is here only after the document of exactly these bytes was found whole; nothing of it is kept.
//! * [`KNOWN_MAX`] digests at most, of 32 bytes each; the oldest goes first.
//!
//! # After a crash
//! Nothing is known: each document is checked again.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use windlass_common::id::Digest;

/// Documents that are remembered: one of each cluster, and some that were just replaced.
const KNOWN_MAX: usize = 256;

static KNOWN: Mutex<VecDeque<Digest>> = Mutex::new(VecDeque::new());

/// Checks a document, unless these bytes were found whole before.
pub(super) fn known_or<E>(document: &[u8], check: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
    let digest = Digest::of(document);
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if known().contains(&digest) {
        return Ok(());
    }
    check()?;
    let mut known = known();
    if known.len() == KNOWN_MAX {
        known.pop_front();
    }
    known.push_back(digest);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_whole_is_not_checked_again_and_what_was_not_is() {
        let document = b"a document of this test alone";
        let mut checks = 0;
        let mut look = |outcome: Result<(), ()>| {
            known_or(document, || {
                checks += 1;
                outcome
            })
        };
        assert_eq!(look(Err(())), Err(()));
        assert_eq!(look(Err(())), Err(()));
        assert_eq!(look(Ok(())), Ok(()));
        assert_eq!(look(Err(())), Ok(()), "these bytes are known");
        assert_eq!(checks, 3);
        assert_eq!(known_or(b"others of this test", || Err(1)), Err(1));
    }
}
