//! Peers: machines of one cluster hand artifacts to one another, and say whether one of them lives.
//!
//! The agent listens on a UDP port of its machine ([`PEER_PORT`](windlass_common::limits::PEER_PORT)),
//! ALPN `windlass-peer/1`. It tells its director what it has; the director tells it who may have what
//! (a grant), and tells the others where to ask. The first frame of a stream says what is asked for;
//! nothing but artifacts and probes is answered.
//!
//! # Invariants
//! * Both ends show their machine's certificate, verified against the roots that the link keeps.
//! * No byte of an artifact is sent but to a machine of the same director and cluster that holds a current
//!   grant for it. Probes are answered to any machine of them, from memory alone.
//! * Connections, streams, rate and silence are bounded ([`windlass_common::limits`]).
//! * What a peer sends counts for nothing until its digest is right.
//!
//! # After a crash
//! Grants are forgotten: who held one is refused and goes to the director.
//!
//! # Not here
//! Which peer is asked (the director decides), and what is done with the bytes
//! ([`crate::steps::fetch`]).

mod client;
mod grants;
mod probe;
mod server;

use std::net::SocketAddr;

use tokio::sync::watch;
use windlass_common::pki::{Leaf, MachineIdentity};
use windlass_common::wire::message::{ArtifactGrant, ArtifactsHeld};

use crate::artifacts::ArtifactStore;
use grants::Grants;

pub(crate) use client::{PeerError, Peers, Served};
pub(crate) use probe::{Probes, greet};
pub(crate) use server::serve;

/// What a machine shares with its peers, and with whom.
#[derive(Debug)]
pub(crate) struct Sharing {
    store: ArtifactStore,
    listen: SocketAddr,
    /// To all peers together.
    bytes_per_s: u64,
    grants: watch::Sender<Grants>,
    announcement: watch::Sender<Option<ArtifactsHeld>>,
}

impl Sharing {
    pub(crate) fn new(store: ArtifactStore, listen: SocketAddr, bytes_per_s: u64) -> Sharing {
        Sharing {
            store,
            listen,
            bytes_per_s,
            grants: watch::channel(Grants::default()).0,
            announcement: watch::channel(None).0,
        }
    }

    /// What to tell the director, once the port is open, and whenever it changes.
    pub(crate) fn announcement(&self) -> watch::Receiver<Option<ArtifactsHeld>> {
        self.announcement.subscribe()
    }

    /// The director lets a machine have an artifact.
    pub(crate) fn grant(&self, grant: ArtifactGrant) {
        self.grants
            .send_modify(|grants| grants.add(grant, tokio::time::Instant::now()));
    }
}

/// Whose certificate the other end showed.
fn other_end(connection: &quinn::Connection) -> Option<MachineIdentity> {
    let chain = connection
        .peer_identity()?
        .downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
        .ok()?;
    Leaf::parse(chain.first()?).ok()?.machine().ok()
}
