//! Artifacts: bytes of a file from an offset on, raw after one header; or where else to get them.
//!
//! Agents of protocol 1 ask for bytes and get them. Later ones ask where the bytes are, and
//! [`swarm`] decides: from here, from a machine of their cluster that has them, or later. The machine
//! that is to serve is told first (a grant), then the one that asked; the digest says whether what it
//! got is the artifact.
//!
//! # Invariants
//! * No more bytes leave here than the rates of [`ArtifactRates`] say.
//! * A machine is granted what [`ArtifactSource`](super::ArtifactSource) lets it have, and no more.

mod swarm;

use std::io::SeekFrom;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::{RecvStream, SendStream};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::time::{Instant, timeout};

use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::id::Digest;
use windlass_common::limits::{
    ARTIFACT_CHUNK_TIMEOUT, ARTIFACTS_HELD_MAX, CHUNK_BYTES, ENROLL_FRAME_BYTES_MAX, HELLO_TIMEOUT,
    PEER_FAILURES_MAX, PEER_GRANT_LIFE,
};
use windlass_common::pki::MachineIdentity;
use windlass_common::rate::Pace;
use windlass_common::wire::frame::{self, FrameError};
use windlass_common::wire::message::{
    ArtifactAsk, ArtifactGrant, ArtifactHeader, ArtifactPeers, ArtifactRequest, ArtifactWait,
    ArtifactsHeld, Body, PeerFault, PeerOffer, Refusal, RefusalCode,
};

use super::counters::Reason;
use super::refuse::{Peer, frame_reason};
use super::server::Shared;
use super::session::Session;
use super::{ArtifactRates, DeliveryError};
use swarm::{Ask, Decision, Swarm};

/// What all transfers share.
#[derive(Debug)]
pub(super) struct Artifacts {
    swarm: Mutex<Swarm>,
    since: Instant,
    pace: Pace,
    sent: AtomicU64,
}

impl Artifacts {
    pub(super) fn new(rates: ArtifactRates) -> Artifacts {
        Artifacts {
            swarm: Mutex::default(),
            since: Instant::now(),
            pace: Pace::new(rates.total_bytes_per_s),
            sent: AtomicU64::new(0),
        }
    }

    /// Bytes of artifacts sent so far.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// The machines that have it and are connected.
    pub(super) fn holders(&self, digest: &Digest) -> Vec<MachineIdentity> {
        self.swarm().holders(digest)
    }

    /// Takes what a machine says it has; more than the limit is not looked at.
    pub(super) fn held(&self, session: &Session, held: ArtifactsHeld) {
        let digests = held.digests.into_iter().take(ARTIFACTS_HELD_MAX);
        self.swarm()
            .hold(&session.identity, of(session), held.port, digests);
    }

    /// A session ended.
    pub(super) fn gone(&self, session: &Session) {
        self.swarm().gone(&session.identity, of(session));
    }

    /// Nothing panics while it holds the lock, but a broken invariant, after which the swarm is still
    /// a guess that digests correct.
    fn swarm(&self) -> MutexGuard<'_, Swarm> {
        self.swarm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.since.elapsed()
    }
}

fn of(session: &Session) -> usize {
    session.connection.stable_id()
}

#[derive(Debug, thiserror::Error)]
enum TransferError {
    #[error("the request for an artifact cannot be read, or the answer not be sent")]
    Frame(#[source] FrameError),
    #[error("no request within {HELLO_TIMEOUT:?}")]
    TooSlow,
    #[error("the thread that looked for the artifact is gone")]
    Thread(#[source] tokio::task::JoinError),
    #[error("the system's random source failed")]
    Random,
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the agent took no chunk within {ARTIFACT_CHUNK_TIMEOUT:?}")]
    Stalled,
    #[error("the agent stopped the transfer")]
    Stopped(#[source] quinn::WriteError),
}

impl TransferError {
    fn tell(&self, shared: &Shared, session: &Session) {
        let machine = session.identity.to_string();
        let refused = match self {
            TransferError::Frame(source) => frame_reason(source).is_some(),
            TransferError::TooSlow => true,
            TransferError::Thread(_)
            | TransferError::Random
            | TransferError::Read { .. }
            | TransferError::Stalled
            | TransferError::Stopped(_) => false,
        };
        if refused {
            let peer = Peer {
                address: session.connection.remote_address(),
                machine: Some(&machine),
            };
            let class = ErrorClass::Operator;
            shared
                .refusals
                .refuse(Reason::ArtifactRequest, peer, class, self);
        } else {
            tracing::info!(machine, error = %ErrorChain(self), "artifact not sent");
        }
    }
}

/// Answers one request. `pace` is the agent's own.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    session: &Session,
    pace: &Pace,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    if let Err(error) = answer(shared, session, pace, &mut send, &mut recv).await {
        error.tell(shared, session);
        // Not finished: the agent must not take what it has for the whole.
        let _ = send.reset(quinn::VarInt::from_u32(1));
    }
}

async fn answer(
    shared: &Arc<Shared>,
    session: &Session,
    pace: &Pace,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<(), TransferError> {
    let first = timeout(HELLO_TIMEOUT, frame::read(recv, ENROLL_FRAME_BYTES_MAX))
        .await
        .map_err(|_| TransferError::TooSlow)?
        .and_then(|frame| frame.ok_or(FrameError::Closed))
        .map_err(TransferError::Frame)?;
    let ask: ArtifactAsk = if first.kind == ArtifactAsk::KIND {
        first.body().map_err(TransferError::Frame)?
    } else {
        let ArtifactRequest { digest, offset } = first.body().map_err(TransferError::Frame)?;
        let transfer = Transfer::new(shared, session, pace);
        let Some(file) = transfer.open(send, digest, offset).await? else {
            return Ok(());
        };
        return transfer.send(send, file).await;
    };
    if ask.failed.len() > PEER_FAILURES_MAX {
        let message = format!("{} failures, {PEER_FAILURES_MAX} count", ask.failed.len());
        return refuse(send, RefusalCode::Malformed, message).await;
    }
    let transfer = Transfer::new(shared, session, pace);
    let Some(file) = transfer.open(send, ask.digest, ask.offset).await? else {
        return Ok(());
    };
    transfer.share(send, file, &ask).await
}

/// The file of an artifact, at the byte to go on from.
struct Opened {
    file: tokio::fs::File,
    path: PathBuf,
    bytes: u64,
    offset: u64,
}

/// One answer to one agent.
struct Transfer<'a> {
    shared: &'a Arc<Shared>,
    session: &'a Session,
    pace: &'a Pace,
}

impl<'a> Transfer<'a> {
    fn new(shared: &'a Arc<Shared>, session: &'a Session, pace: &'a Pace) -> Transfer<'a> {
        Transfer {
            shared,
            session,
            pace,
        }
    }

    /// Finds the artifact, or refuses and returns nothing.
    async fn open(
        &self,
        send: &mut SendStream,
        digest: Digest,
        offset: u64,
    ) -> Result<Option<Opened>, TransferError> {
        let (gateway, who) = (Arc::clone(self.shared), self.session.identity.clone());
        let locate = move || gateway.doors.artifacts.locate(&digest, &who);
        let found = tokio::task::spawn_blocking(locate)
            .await
            .map_err(TransferError::Thread)?;
        let Some(path) = found else {
            let message = format!("there is no artifact {digest}");
            refuse(send, RefusalCode::NotFound, message).await?;
            return Ok(None);
        };
        let fault = |source| TransferError::Read {
            path: path.clone(),
            source,
        };
        let mut file = tokio::fs::File::open(&path).await.map_err(fault)?;
        let bytes = file.metadata().await.map_err(fault)?.len();
        if offset > bytes {
            let message = format!("{digest} has {bytes} bytes, none at {offset}");
            refuse(send, RefusalCode::Malformed, message).await?;
            return Ok(None);
        }
        file.seek(SeekFrom::Start(offset)).await.map_err(fault)?;
        Ok(Some(Opened {
            file,
            path,
            bytes,
            offset,
        }))
    }

    /// Sends the artifact, or says where it is to be had.
    async fn share(
        &self,
        send: &mut SendStream,
        file: Opened,
        ask: &ArtifactAsk,
    ) -> Result<(), TransferError> {
        let question = Ask {
            who: &self.session.identity,
            session: of(self.session),
            digest: ask.digest,
            bytes: file.bytes,
            failed: &ask.failed,
        };
        let artifacts = &self.shared.artifacts;
        let seed = seed()?;
        let (decision, shunned) = artifacts.swarm().ask(&question, seed, artifacts.now());
        for (peer, fault) in shunned {
            note(&self.session.identity, &peer, fault, ask.digest);
        }
        match decision {
            Decision::Serve => {}
            Decision::Wait(wait) => {
                let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
                return finish(send, &ArtifactWait { wait_ms }).await;
            }
            Decision::Peer(peer, port) => match self.grant(&peer, port, ask.digest) {
                Ok(offer) => {
                    let bytes = file.bytes;
                    let peers = vec![offer];
                    return finish(send, &ArtifactPeers { bytes, peers }).await;
                }
                Err(error) => {
                    tracing::debug!(%peer, error = %ErrorChain(&error), "peer cannot be told");
                    artifacts.swarm().serve_instead(&question, artifacts.now());
                }
            },
        }
        let sending = Sending {
            artifacts,
            question,
            whole: false,
        };
        sending.run(self.send(send, file)).await
    }

    /// Tells a machine that this one may have the artifact.
    fn grant(
        &self,
        peer: &MachineIdentity,
        port: u16,
        digest: Digest,
    ) -> Result<PeerOffer, DeliveryError> {
        let (machine, incarnation) = (peer.machine.clone(), peer.incarnation);
        let serving = self.shared.session(&machine, incarnation)?;
        serving.push(&ArtifactGrant {
            digest,
            machine: self.session.identity.machine.clone(),
            incarnation: self.session.identity.incarnation,
            life_ms: PEER_GRANT_LIFE.as_millis() as u32,
        })?;
        // Where its packets come from now; an address of version 4 may come in the dress of version 6.
        let ip = serving.connection.remote_address().ip().to_canonical();
        Ok(PeerOffer {
            machine,
            incarnation,
            address: SocketAddr::new(ip, port),
        })
    }

    async fn send(&self, send: &mut SendStream, mut opened: Opened) -> Result<(), TransferError> {
        let bytes = opened.bytes;
        frame::write(send, &ArtifactHeader { bytes })
            .await
            .map_err(TransferError::Frame)?;
        let mut left = opened.bytes - opened.offset;
        let mut chunk = vec![0; CHUNK_BYTES];
        while left > 0 {
            let want = usize::try_from(left)
                .unwrap_or(CHUNK_BYTES)
                .min(CHUNK_BYTES);
            let piece = &mut chunk[..want];
            let read = opened.file.read_exact(piece).await;
            read.map_err(|source| TransferError::Read {
                path: opened.path.clone(),
                source,
            })?;
            // In this order: what the agent's own rate holds back is not taken from the others.
            self.pace.pass(want).await;
            self.shared.artifacts.pace.pass(want).await;
            timeout(ARTIFACT_CHUNK_TIMEOUT, send.write_all(piece))
                .await
                .map_err(|_| TransferError::Stalled)?
                .map_err(TransferError::Stopped)?;
            let sent = &self.shared.artifacts.sent;
            sent.fetch_add(want as u64, Ordering::Relaxed);
            left -= want as u64;
        }
        // Fails only if the agent has gone.
        let _ = send.finish();
        Ok(())
    }
}

/// A transfer that the swarm counts on; however it ends, also by being dropped, the swarm hears of it.
struct Sending<'a> {
    artifacts: &'a Artifacts,
    question: Ask<'a>,
    whole: bool,
}

impl Sending<'_> {
    async fn run(
        mut self,
        transfer: impl Future<Output = Result<(), TransferError>>,
    ) -> Result<(), TransferError> {
        let done = transfer.await;
        self.whole = done.is_ok();
        done
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        let now = self.artifacts.now();
        self.artifacts.swarm().sent(&self.question, self.whole, now);
    }
}

/// What is said about a peer for the first time. Wrong bytes are for a person to look into.
fn note(who: &MachineIdentity, peer: &MachineIdentity, fault: PeerFault, artifact: Digest) {
    if fault == PeerFault::Lied {
        tracing::warn!(
            machine = %who, %peer, %artifact,
            "a machine served wrong bytes; it is not offered as a peer any more"
        );
    } else {
        tracing::info!(machine = %who, %peer, ?fault, %artifact, "a peer failed");
    }
}

fn seed() -> Result<u64, TransferError> {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| TransferError::Random)?;
    Ok(u64::from_le_bytes(bytes))
}

async fn refuse(
    send: &mut SendStream,
    code: RefusalCode,
    message: String,
) -> Result<(), TransferError> {
    finish(send, &Refusal { code, message }).await
}

async fn finish(send: &mut SendStream, last: &impl Body) -> Result<(), TransferError> {
    frame::write(send, last)
        .await
        .map_err(TransferError::Frame)?;
    // Fails only if the agent has gone.
    let _ = send.finish();
    Ok(())
}
