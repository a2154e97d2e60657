//! Shows that the director can be reached now: by a handshake of its own, from a socket of its own, with nothing of an
//! earlier connection. Packets of one that is open prove less: a firewall that tracks connections lets those through.
//!
//! The director has the last word in it: it confirms that the machine's certificate counts. It sees a machine that
//! connects and leaves without a hello; the session there is stays as it is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use windlass_common::clock::Clock;
use windlass_common::error::ErrorChain;
use windlass_common::limits::HELLO_TIMEOUT;
use windlass_common::pki::gateway_name;
use windlass_common::tls::TlsError;
use windlass_common::transport::{self, Close};

use super::connection::{self, ConnectError, To};
use super::identity::{IdentityError, IdentityStore};
use crate::peer::Peers;
use crate::steps::{Reach, Reached};

/// Why there was no handshake.
#[derive(Debug, thiserror::Error)]
enum ProofError {
    #[error("this machine has no certificate yet")]
    NoIdentity,
    #[error("this machine's identity cannot be used")]
    Identity(#[source] IdentityError),
    #[error("cannot set up TLS")]
    Tls(#[source] TlsError),
    #[error("cannot connect")]
    Connect(#[source] ConnectError),
    #[error("the director did not confirm the handshake")]
    Refused(#[source] quinn::ConnectionError),
    #[error("the director did not confirm the handshake within {HELLO_TIMEOUT:?}")]
    Unconfirmed,
}

/// Pause between two looks whether the handshake was confirmed, of which nobody tells.
const LOOK: Duration = Duration::from_millis(5);

/// Makes handshakes with the director.
#[derive(Debug, Clone)]
pub struct LinkProof {
    pub(super) peers: Peers,
    pub(super) directors: Vec<SocketAddr>,
    pub(super) clock: Clock,
}

impl LinkProof {
    async fn handshake(&self, address: SocketAddr) -> Result<(), ProofError> {
        let me = &self.peers.me;
        let identity = IdentityStore::open(&self.peers.identity_dir)
            .and_then(|store| store.saved(me))
            .map_err(ProofError::Identity)?
            .ok_or(ProofError::NoIdentity)?;
        // Never resumed: these settings forget all sessions.
        let mut tls = identity.tls().map_err(ProofError::Identity)?;
        tls.time_provider = Arc::new(self.clock.clone());
        let config = transport::client_config(tls).map_err(ProofError::Tls)?;
        let patience = HELLO_TIMEOUT;
        let dialled = connection::connect(
            config,
            To { address, patience },
            &gateway_name(&me.director),
        )
        .await
        .map_err(ProofError::Connect)?;
        // A close before that would look like a handshake that failed.
        let confirmed = timeout(HELLO_TIMEOUT, confirmed(&dialled.connection));
        let confirmed = dialled.first(confirmed).await;
        Close::Done.close(&dialled.connection);
        connection::linger(&dialled.endpoint).await;
        confirmed
            .map_err(|_| ProofError::Unconfirmed)?
            .map_err(ProofError::Refused)
    }
}

/// Waits until the other end has confirmed the handshake (RFC 9001, section 4.1.2).
async fn confirmed(connection: &quinn::Connection) -> Result<(), quinn::ConnectionError> {
    while connection.stats().frame_rx.handshake_done == 0 {
        if let Some(reason) = connection.close_reason() {
            return Err(reason);
        }
        sleep(LOOK).await;
    }
    Ok(())
}

impl Reach for LinkProof {
    fn director(&self) -> Reached<'_> {
        Box::pin(async move {
            let mut why = "the settings name no director".to_owned();
            for address in &self.directors {
                match self.handshake(*address).await {
                    Ok(()) => return Ok(()),
                    Err(error) => why = ErrorChain(&error).to_string(),
                }
            }
            Err(why)
        })
    }
}
