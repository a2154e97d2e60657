//! The TLS settings of the identity there is, kept from one connection to the next.
//!
//! The director hands out session tickets, with which the next handshake is a short one. TLS resumes a
//! session only under the very settings it was made with, so these live as long as the identity does: a
//! new certificate, or other roots to trust, start with nothing to resume. Tickets are in memory alone; an
//! agent that starts again makes a full handshake.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::Resumption;

use windlass_common::clock::Clock;
use windlass_common::id::{Digest, Hasher};
use windlass_common::limits::TICKETS_PER_CONNECTION;
use windlass_common::tls::TlsError;
use windlass_common::transport;

use super::identity::{Identity, IdentityError};

/// The settings, and of which identity they are.
#[derive(Debug, Default)]
pub(super) struct Resumable(Mutex<Option<(Digest, quinn::ClientConfig)>>);

impl Resumable {
    /// The settings for connecting as `identity`: the same ones as last time, if it is the same.
    pub(super) fn settings(
        &self,
        identity: &Identity,
        clock: &Clock,
    ) -> Result<quinn::ClientConfig, IdentityError> {
        let who = digest(identity);
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, settings)) = &*held
            && *of == who
        {
            return Ok(settings.clone());
        }
        let settings = fresh(identity, clock)?;
        *held = Some((who, settings.clone()));
        Ok(settings)
    }

    /// Forgets all sessions: the director would have nothing of the last one.
    pub(super) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn fresh(identity: &Identity, clock: &Clock) -> Result<quinn::ClientConfig, IdentityError> {
    let mut tls = identity.tls()?;
    tls.time_provider = Arc::new(clock.clone());
    // One server name, and as many tickets as the director sends.
    tls.resumption = Resumption::in_memory_sessions(TICKETS_PER_CONNECTION);
    transport::client_config(tls).map_err(|source: TlsError| IdentityError::Tls(source))
}

/// Certificate and roots; a key has one certificate here.
fn digest(identity: &Identity) -> Digest {
    let mut hasher = Hasher::default();
    for certificate in identity.chain.iter().chain(&identity.roots) {
        hasher.update(&certificate.len().to_be_bytes());
        hasher.update(certificate);
    }
    hasher.finish()
}
