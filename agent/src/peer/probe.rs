//! Probing: whether another machine answers, asked by the director.
//!
//! Two looks at once, until the deadline. The other machine's agent is asked through its peer endpoint and
//! has to sign the director's number; that ends the probe at once. Its kubelet is only greeted: a TLS
//! handshake that comes to its end shows that the machine's user space runs, and says no more. A kernel that
//! answers for frozen processes passes neither.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_rustls::TlsConnector;
use windlass_common::error::ErrorChain;
use windlass_common::limits::{
    ENROLL_FRAME_BYTES_MAX, PROBE_AGAIN, PROBE_LIMIT, PROBES_IN_FLIGHT_MAX,
};
use windlass_common::tls::liveness_client;
use windlass_common::wire::frame::{self, FrameError};
use windlass_common::wire::message::PeerOffer;
use windlass_common::wire::probe::{Echo, EchoAnswer, ProbeAnswer, ProbeAsk, ProbeFound};

use super::client::{PeerError, Peers};

/// The probes of one connection with the director; they end with it.
#[derive(Debug)]
pub(crate) struct Probes {
    peers: Peers,
    answers: mpsc::Sender<ProbeAnswer>,
    under_way: JoinSet<()>,
}

impl Probes {
    /// None yet, and where their answers come out.
    pub(crate) fn new(peers: Peers) -> (Probes, mpsc::Receiver<ProbeAnswer>) {
        let (answers, receiver) = mpsc::channel(PROBES_IN_FLIGHT_MAX);
        let probes = Probes {
            peers,
            answers,
            under_way: JoinSet::new(),
        };
        (probes, receiver)
    }

    /// Begins a probe. Never waits: one too many is answered as not tried, and without an answer if those
    /// wait to be sent already.
    pub(crate) fn begin(&mut self, ask: ProbeAsk) {
        while self.under_way.try_join_next().is_some() {}
        if self.under_way.len() >= PROBES_IN_FLIGHT_MAX {
            let why = format!("{PROBES_IN_FLIGHT_MAX} probes are under way here");
            tracing::info!(machine = %ask.machine, why, "probe not made");
            let found = ProbeFound::NotTried(why);
            let answer = ProbeAnswer {
                nonce: ask.nonce,
                found,
            };
            // Full: the director hears nothing, which means the same.
            let _ = self.answers.try_send(answer);
            return;
        }
        let (peers, answers) = (self.peers.clone(), self.answers.clone());
        self.under_way.spawn(async move {
            let found = probe(&peers, &ask).await;
            tracing::info!(machine = %ask.machine, found = name(&found), "probe made");
            let nonce = ask.nonce;
            // Fails only if the connection has ended, and with it the question.
            let _ = answers.send(ProbeAnswer { nonce, found }).await;
        });
    }
}

fn name(found: &ProbeFound) -> &'static str {
    match found {
        ProbeFound::Agent(_) => "agent",
        ProbeFound::Kubelet => "kubelet",
        ProbeFound::Nobody => "nobody",
        ProbeFound::NotTried(_) => "not tried",
    }
}

async fn probe(peers: &Peers, ask: &ProbeAsk) -> ProbeFound {
    let limit = Duration::from_millis(ask.deadline_ms.into()).min(PROBE_LIMIT);
    let deadline = Instant::now() + limit;
    let mut kubelet = false;
    let both = async {
        tokio::select! {
            answer = agent(peers, ask) => answer,
            never = async {
                greet(ask.kubelet).await;
                kubelet = true;
                std::future::pending::<Infallible>().await
            } => match never {},
        }
    };
    let ended = timeout_at(deadline, both).await;
    match ended {
        Ok(Ok(answer)) => ProbeFound::Agent(answer),
        Ok(Err(Hopeless::Itself(why))) => ProbeFound::NotTried(why),
        // Whatever answers at this address is not the machine that is meant.
        Ok(Err(Hopeless::OtherMachine)) => ProbeFound::Nobody,
        Err(_) if kubelet => ProbeFound::Kubelet,
        Err(_) => ProbeFound::Nobody,
    }
}

/// What trying again does not mend.
enum Hopeless {
    /// This machine cannot ask.
    Itself(String),
    OtherMachine,
}

/// Asks the agent until it answers.
async fn agent(peers: &Peers, ask: &ProbeAsk) -> Result<EchoAnswer, Hopeless> {
    let offer = PeerOffer {
        machine: ask.machine.clone(),
        incarnation: ask.incarnation,
        address: ask.agent,
    };
    loop {
        let error = match echo(peers, &offer, ask).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        tracing::debug!(machine = %ask.machine, error = %ErrorChain(&error), "no answer to a probe yet");
        match error {
            PeerError::OtherMachine(_) => return Err(Hopeless::OtherMachine),
            PeerError::Identity(_)
            | PeerError::NoIdentity
            | PeerError::Random
            | PeerError::Tls(_)
            | PeerError::Socket(_)
            | PeerError::Address(..) => {
                return Err(Hopeless::Itself(ErrorChain(&error).to_string()));
            }
            PeerError::Handshake(..)
            | PeerError::TooSlow(_)
            | PeerError::Frame(_)
            | PeerError::Refused(_)
            | PeerError::Length { .. } => sleep(PROBE_AGAIN).await,
        }
    }
}

async fn echo(peers: &Peers, offer: &PeerOffer, ask: &ProbeAsk) -> Result<EchoAnswer, PeerError> {
    let (_endpoint, connection) = peers.connect(offer).await?;
    let io = |error: quinn::ConnectionError| PeerError::Frame(FrameError::Io(error.into()));
    let (mut send, mut recv) = connection.open_bi().await.map_err(io)?;
    frame::write(&mut send, &Echo { nonce: ask.nonce })
        .await
        .map_err(PeerError::Frame)?;
    // Fails only if the connection is gone, which the read reports.
    let _ = send.finish();
    frame::expect(&mut recv, ENROLL_FRAME_BYTES_MAX)
        .await
        .map_err(PeerError::Frame)
}

/// Returns once somebody at the address has finished a TLS handshake, however often that takes.
pub(crate) async fn greet(address: SocketAddr) {
    let tls = match liveness_client() {
        Ok(tls) => TlsConnector::from(Arc::new(tls)),
        Err(error) => {
            tracing::error!(error = %ErrorChain(&error), "kubelets cannot be probed");
            return std::future::pending().await;
        }
    };
    loop {
        let name = ServerName::IpAddress(address.ip().into());
        let greeted = async { tls.connect(name, TcpStream::connect(address).await?).await };
        match greeted.await {
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(%address, %error, "no kubelet answers yet");
                sleep(PROBE_AGAIN).await;
            }
        }
    }
}
