//! Session tickets: what lets an agent come back with a short handshake, also after the director has
//! been started again.
//!
//! A ticket is the state of a session, sealed (AES-256-GCM) under a key that is this director's alone; the
//! agent keeps it, the director keeps nothing. What is in it is what was true when it was made: TLS looks
//! at neither the certificate's date nor its issuer when it resumes a session, so that is done for every
//! connection after its handshake (see `authorize`).
//!
//! # Invariants
//! * A key seals for [`TICKET_KEY_PERIOD`] and opens for twice as long, by the clock; then it is gone.
//! * No 0-RTT: nothing of a ticket lets a peer send anything before the handshake is over.
//! * Whatever cannot be opened costs a full handshake and nothing else.
//!
//! # After a crash
//! Keys are kept by whoever made the [`Tickets`], who is told of each change; a key that was not kept is
//! one whose tickets are not opened.
//!
//! # Not here
//! Where keys are kept: the sealed store (`service::tickets`).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use jiff::Timestamp;
use rustls::server::ProducesTickets;
use tokio::sync::watch;
use zeroize::Zeroizing;

use windlass_common::clock::{Clock, later};
use windlass_common::limits::TICKET_KEY_PERIOD;
use windlass_common::secret::SecretBytes;

/// Length of a key, bytes.
const KEY_BYTES: usize = 32;
/// A key in a record: when it was made (seconds since 1970, big endian), then the key.
const ENTRY_BYTES: usize = 8 + KEY_BYTES;
/// First byte of a record.
const RECORD_VERSION: u8 = 1;
/// What a ticket is sealed for.
const PURPOSE: &[u8] = b"windlass session ticket 1";

/// How many tickets there were, since the director started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TicketCounts {
    /// Made.
    pub sealed: u64,
    /// Shown and opened: sessions resumed.
    pub opened: u64,
    /// Shown and not opened: changed, or of a key that is gone.
    pub refused: u64,
}

struct Key {
    made_at: Timestamp,
    bytes: Zeroizing<[u8; KEY_BYTES]>,
    cipher: RandomizedNonceKey,
}

impl Key {
    fn new(made_at: Timestamp, bytes: Zeroizing<[u8; KEY_BYTES]>) -> Option<Key> {
        let cipher = RandomizedNonceKey::new(&AES_256_GCM, bytes.as_slice()).ok()?;
        Some(Key {
            made_at,
            bytes,
            cipher,
        })
    }

    fn generate(now: Timestamp) -> Option<Key> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        aws_lc_rs::rand::fill(bytes.as_mut_slice()).ok()?;
        Key::new(now, bytes)
    }

    /// Whether it is younger than this many periods. One that was made in the future is of a clock that
    /// has been set back since, and counts for a period at most.
    fn is_younger(&self, periods: u32, now: Timestamp) -> bool {
        now < later(self.made_at, TICKET_KEY_PERIOD * periods)
            && self.made_at < later(now, TICKET_KEY_PERIOD)
    }

    fn seal(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = plain.to_vec();
        let sealing = self
            .cipher
            .seal_in_place_append_tag(Aad::from(PURPOSE), &mut sealed);
        let mut ticket = sealing.ok()?.as_ref().to_vec();
        ticket.append(&mut sealed);
        Some(ticket)
    }

    fn open(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (nonce, body) = ticket.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut body = body.to_vec();
        let length = self
            .cipher
            .open_in_place(nonce, Aad::from(PURPOSE), &mut body)
            .ok()?
            .len();
        body.truncate(length);
        Some(body)
    }
}

/// The key that seals, and the one before it.
#[derive(Default)]
struct Ring {
    current: Option<Key>,
    previous: Option<Key>,
}

impl Ring {
    /// Reads a record; one that makes no sense is no ring.
    fn read(record: &[u8]) -> Option<Ring> {
        let (version, entries) = record.split_first()?;
        if *version != RECORD_VERSION || entries.len() % ENTRY_BYTES != 0 {
            return None;
        }
        let mut keys = entries.chunks_exact(ENTRY_BYTES).map(|entry| {
            let (made_at, key) = entry.split_first_chunk()?;
            let made_at = Timestamp::from_second(i64::from_be_bytes(*made_at)).ok()?;
            let mut bytes = Zeroizing::new([0; KEY_BYTES]);
            bytes.copy_from_slice(key);
            Key::new(made_at, bytes)
        });
        Some(Ring {
            current: keys.next()?,
            previous: keys.next().flatten(),
        })
    }

    fn record(&self) -> SecretBytes {
        // Allocated once, so that no copy of a key is left behind by growing.
        let mut record = Vec::with_capacity(1 + 2 * ENTRY_BYTES);
        record.push(RECORD_VERSION);
        for key in [&self.current, &self.previous].into_iter().flatten() {
            record.extend_from_slice(&key.made_at.as_second().to_be_bytes());
            record.extend_from_slice(key.bytes.as_slice());
        }
        SecretBytes::new(record)
    }

    /// Drops what is too old, and makes the next key when it is time. Returns whether that changed
    /// anything.
    fn turn(&mut self, now: Timestamp) -> bool {
        if self
            .current
            .as_ref()
            .is_some_and(|key| key.is_younger(1, now))
        {
            let outlived = self
                .previous
                .take_if(|key| !key.is_younger(2, now))
                .is_some();
            return outlived;
        }
        self.previous = self.current.take().filter(|key| key.is_younger(2, now));
        // Without randomness there are no tickets, and hardly any TLS.
        self.current = Key::generate(now);
        true
    }
}

/// Makes and opens the tickets of one director.
pub struct Tickets {
    clock: Clock,
    ring: Mutex<Ring>,
    changes: watch::Sender<u64>,
    sealed: AtomicU64,
    opened: AtomicU64,
    refused: AtomicU64,
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets")
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}

impl Tickets {
    /// With the keys of a record that [`Tickets::record`] made, or with new ones if there is none or it
    /// makes no sense: then no ticket of before is opened.
    pub fn new(clock: Clock, record: Option<&SecretBytes>) -> Tickets {
        let ring = record.and_then(|record| {
            let ring = Ring::read(record.expose());
            if ring.is_none() {
                tracing::warn!(
                    "the kept ticket keys make no sense; every agent proves itself in full"
                );
            }
            ring
        });
        let tickets = Tickets {
            clock,
            ring: Mutex::new(ring.unwrap_or_default()),
            changes: watch::Sender::new(0),
            sealed: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        tickets.with_ring(|_| ());
        tickets
    }

    /// The keys, to be sealed and kept.
    pub fn record(&self) -> SecretBytes {
        self.with_ring(|ring| ring.record())
    }

    /// Counts the changes of the keys, each to be kept.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What became of tickets so far.
    pub fn counts(&self) -> TicketCounts {
        TicketCounts {
            sealed: self.sealed.load(Ordering::Relaxed),
            opened: self.opened.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    /// The keys as they are now.
    fn with_ring<T>(&self, then: impl FnOnce(&Ring) -> T) -> T {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.turn(self.clock.now()) {
            self.changes.send_modify(|changes| *changes += 1);
        }
        then(&ring)
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    /// Seconds until a ticket made now cannot be opened any more.
    fn lifetime(&self) -> u32 {
        let now = self.clock.now();
        let until = self.with_ring(|ring| {
            let key = ring.current.as_ref()?;
            Some(later(key.made_at, TICKET_KEY_PERIOD * 2))
        });
        let left = until.map_or(0, |until| until.as_second() - now.as_second());
        u32::try_from(left).unwrap_or(0)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let ticket = self.with_ring(|ring| ring.current.as_ref()?.seal(plain))?;
        self.sealed.fetch_add(1, Ordering::Relaxed);
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let opened = self.with_ring(|ring| {
            let keys = [&ring.current, &ring.previous].into_iter().flatten();
            keys.into_iter().find_map(|key| key.open(ticket))
        });
        let counter = if opened.is_some() {
            &self.opened
        } else {
            &self.refused
        };
        counter.fetch_add(1, Ordering::Relaxed);
        opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Clock {
        Clock::by_hand(Timestamp::from_second(1_900_000_000).unwrap())
    }

    #[test]
    fn a_key_seals_for_one_period_and_opens_for_two() {
        let clock = start();
        let tickets = Tickets::new(clock.clone(), None);
        let first = tickets.encrypt(b"session").unwrap();
        assert_eq!(tickets.lifetime(), 24 * 3600);
        assert!(!first.windows(7).any(|bytes| bytes == b"session"));
        clock.advance(TICKET_KEY_PERIOD - std::time::Duration::from_secs(1));
        let last = tickets.encrypt(b"session").unwrap();
        assert_eq!(tickets.lifetime(), 12 * 3600 + 1);
        clock.advance(TICKET_KEY_PERIOD);
        for ticket in [&first, &last] {
            assert_eq!(tickets.decrypt(ticket).unwrap(), b"session");
        }
        clock.advance(std::time::Duration::from_secs(1));
        for ticket in [&first, &last] {
            assert_eq!(tickets.decrypt(ticket), None);
        }
        let counts = TicketCounts {
            sealed: 2,
            opened: 2,
            refused: 2,
        };
        assert_eq!(tickets.counts(), counts);
    }

    #[test]
    fn keys_survive_a_record_and_each_change_is_told() {
        let clock = start();
        let before = Tickets::new(clock.clone(), None);
        let mut changes = before.changes();
        let old = before.encrypt(b"old").unwrap();
        assert!(!changes.has_changed().unwrap());
        clock.advance(TICKET_KEY_PERIOD);
        let new = before.encrypt(b"new").unwrap();
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();

        let after = Tickets::new(clock.clone(), Some(&before.record()));
        assert_eq!(after.decrypt(&old).unwrap(), b"old");
        assert_eq!(after.decrypt(&new).unwrap(), b"new");
        // A director that was down for long has nothing left to open.
        clock.advance(TICKET_KEY_PERIOD * 3);
        let late = Tickets::new(clock.clone(), Some(&before.record()));
        assert_eq!(late.decrypt(&new), None);
        assert!(late.encrypt(b"x").is_some());
    }

    #[test]
    fn what_is_no_ticket_and_no_record_is_refused() {
        let clock = start();
        let tickets = Tickets::new(clock.clone(), None);
        let ticket = tickets.encrypt(b"session").unwrap();
        for cut in 0..ticket.len() {
            assert_eq!(tickets.decrypt(&ticket[..cut]), None, "{cut}");
        }
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(tickets.decrypt(&changed), None, "{at}");
        }
        let record = tickets.record();
        let bytes = record.expose();
        for bad in [&bytes[..0], &bytes[..bytes.len() - 1], &[9; 41], &[1]] {
            let other = Tickets::new(clock.clone(), Some(&SecretBytes::new(bad.to_vec())));
            assert_eq!(other.decrypt(&ticket), None);
            assert!(other.encrypt(b"x").is_some());
        }
        // A key of a clock that was years ahead is not kept for years.
        let ahead = Clock::by_hand(later(clock.now(), TICKET_KEY_PERIOD * 1000));
        let future = Tickets::new(ahead, None);
        let ticket = future.encrypt(b"x").unwrap();
        let back = Tickets::new(clock, Some(&future.record()));
        assert_eq!(back.decrypt(&ticket), None);
    }
}
