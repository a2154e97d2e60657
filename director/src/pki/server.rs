//! A server's certificate that is never out of date.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use windlass_common::clock::{Clock, later};

use super::ca::DirectorCa;
use super::issuer::IssueError;

/// What a server shows: a certificate that is made anew at half of its life and when the CA changes its
/// stage. Its key is only ever in memory.
pub struct ServerDoor {
    ca: Arc<DirectorCa>,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    life: Duration,
    clock: Clock,
    held: Mutex<Held>,
}

struct Held {
    key: Arc<CertifiedKey>,
    renew_at: Timestamp,
    stages: watch::Receiver<u64>,
}

impl fmt::Debug for ServerDoor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerDoor")
            .field("names", &self.names)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl ServerDoor {
    /// A door under these names and addresses.
    pub fn new(
        ca: Arc<DirectorCa>,
        names: Vec<String>,
        addresses: Vec<IpAddr>,
        life: Duration,
        clock: Clock,
    ) -> Result<ServerDoor, IssueError> {
        let now = clock.now();
        // Before the certificate is made: a change in between makes it again.
        let stages = ca.changed();
        let key = issue(&ca, &names, &addresses, life, now)?;
        Ok(ServerDoor {
            ca,
            names,
            addresses,
            life,
            clock,
            held: Mutex::new(Held {
                key,
                renew_at: half_of(life, now),
                stages,
            }),
        })
    }

    /// What to show at `now`.
    pub fn certificate(&self, now: Timestamp) -> Arc<CertifiedKey> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        // The sender is in the CA, which this holds.
        let changed = held.stages.has_changed().unwrap_or(false);
        if changed || now >= held.renew_at {
            let seen = *held.stages.borrow_and_update();
            match issue(&self.ca, &self.names, &self.addresses, self.life, now) {
                Ok(key) => {
                    held.key = key;
                    held.renew_at = half_of(self.life, now);
                }
                // The one at hand is good for as long again, and the next client tries again.
                Err(error) => {
                    held.stages.mark_changed();
                    tracing::warn!(%error, stage = seen, "cannot renew a server's certificate");
                }
            }
        }
        Arc::clone(&held.key)
    }
}

impl ResolvesServerCert for ServerDoor {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certificate(self.clock.now()))
    }
}

fn issue(
    ca: &DirectorCa,
    names: &[String],
    addresses: &[IpAddr],
    life: Duration,
    now: Timestamp,
) -> Result<Arc<CertifiedKey>, IssueError> {
    ca.issue_server(names, addresses, life, now)?
        .certified_key()
}

fn half_of(life: Duration, now: Timestamp) -> Timestamp {
    later(now, life / 2)
}
