//! Probes: one machine is asked to look whether another one of its cluster answers.
//!
//! # Invariants
//! * An answer counts once, from the machine that was asked, while its question is open.
//! * That an agent answered counts only with its proof: its certificate is in order and current, and its key
//!   has signed this question ([`windlass_common::probe`]).
//! * Questions that wait are bounded in number and time.
//!
//! # After a crash
//! Questions are forgotten; their answers are to no question that is open.
//!
//! # Not here
//! Whom to ask, and what the answers come to (`resurrector::witness`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::oneshot;
use tokio::time::timeout;
use windlass_common::error::ErrorClass;
use windlass_common::limits::{
    PROBE_CHAIN_MAX, PROBE_LIMIT, PROBE_WHY_CHARS_MAX, PROBES_WAITING_MAX,
};
use windlass_common::pki::{MachineIdentity, PublicKey, RequestError};
use windlass_common::probe::{Nonce, statement};
use windlass_common::wire::probe::{EchoAnswer, ProbeAnswer, ProbeAsk, ProbeFound};

use super::DeliveryError;
use super::authorize::{AgentVerifier, Unauthorized};
use super::counters::Reason;
use super::refuse::Peer;
use super::server::Shared;
use super::session::Session;

/// How long an answer may take beyond the time given for finding it: two ways over the control stream.
const ANSWER_GRACE: Duration = Duration::from_millis(250);

/// Which machine is to be probed, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// Who.
    pub identity: MachineIdentity,
    /// Its agent's peer endpoint, UDP.
    pub agent: SocketAddr,
    /// Its kubelet, TCP.
    pub kubelet: SocketAddr,
}

/// What a machine found of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Its agent answered, which is proven.
    Agent,
    /// Its agent did not, and its kubelet finished a handshake.
    Kubelet,
    /// Neither did.
    Nobody,
}

/// Why nothing was found out.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Machines see only those of their own cluster.
    #[error("{through} is no other machine of the cluster of {about}")]
    OtherCluster {
        /// Who was to be asked.
        through: MachineIdentity,
        /// About whom.
        about: MachineIdentity,
    },
    /// It could not be asked.
    #[error("the peer cannot be asked")]
    Delivery(#[source] DeliveryError),
    /// Too many questions are open.
    #[error("{PROBES_WAITING_MAX} questions are open already")]
    Full,
    /// No answer in time, or the session ended.
    #[error("the peer did not answer in time")]
    Unanswered,
    /// It did not try.
    #[error("the peer did not try: {0}")]
    NotTried(String),
    /// It claims that the other answered, and cannot show it.
    #[error("the peer says that the agent answered, and does not prove it")]
    Unproven(#[source] Unproven),
    /// The director cannot draw a number.
    #[error("the system's random source failed")]
    Random,
}

impl ProbeError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            ProbeError::OtherCluster { .. } => ErrorClass::Bug,
            ProbeError::Delivery(source) => source.class(),
            ProbeError::Full | ProbeError::Unanswered | ProbeError::NotTried(_) => {
                ErrorClass::Retry
            }
            ProbeError::Unproven(_) | ProbeError::Random => ErrorClass::Operator,
        }
    }
}

/// Why a proof is none.
#[derive(Debug, thiserror::Error)]
pub enum Unproven {
    /// The chain's length.
    #[error("it comes with {0} certificates, 1 to {PROBE_CHAIN_MAX} count")]
    Chain(usize),
    /// The certificate does not count.
    #[error("its certificate does not count: {0}")]
    Certificate(String),
    /// The certificate is another machine's.
    #[error("it is of {0}")]
    OtherMachine(MachineIdentity),
    /// The certificate's key cannot be read.
    #[error("its key cannot be read")]
    Key(#[source] RequestError),
    /// The signature.
    #[error("its key has not signed this question")]
    Signature,
}

impl From<Unauthorized> for Unproven {
    fn from(source: Unauthorized) -> Unproven {
        Unproven::Certificate(source.to_string())
    }
}

/// The questions that are open.
#[derive(Debug, Default)]
pub(super) struct Probes(Mutex<BTreeMap<Nonce, Open>>);

#[derive(Debug)]
struct Open {
    /// Who was asked.
    through: MachineIdentity,
    answer: oneshot::Sender<ProbeFound>,
}

impl Probes {
    /// Nothing panics while it holds the lock, and the table is whole at any time.
    fn open(&self) -> MutexGuard<'_, BTreeMap<Nonce, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes a question, answered or not.
struct Question<'a> {
    probes: &'a Probes,
    nonce: Nonce,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.probes.open().remove(&self.nonce);
    }
}

/// See [`super::Gateway::probe`].
pub(super) async fn ask(
    shared: &Shared,
    through: &MachineIdentity,
    about: &About,
    limit: Duration,
) -> Result<Found, ProbeError> {
    let of = &about.identity;
    if through.director != of.director || through.cluster != of.cluster || through == of {
        return Err(ProbeError::OtherCluster {
            through: through.clone(),
            about: of.clone(),
        });
    }
    let session = shared
        .session(&through.machine, through.incarnation)
        .map_err(ProbeError::Delivery)?;
    let limit = limit.min(PROBE_LIMIT);
    let mut nonce = Nonce([0; 16]);
    aws_lc_rs::rand::fill(&mut nonce.0).map_err(|_| ProbeError::Random)?;
    let (answer, answered) = oneshot::channel();
    let question = Question {
        probes: &shared.probes,
        nonce,
    };
    {
        let mut open = shared.probes.open();
        if open.len() >= PROBES_WAITING_MAX {
            return Err(ProbeError::Full);
        }
        let through = through.clone();
        open.insert(nonce, Open { through, answer });
    }
    let ask = ProbeAsk {
        nonce,
        machine: of.machine.clone(),
        incarnation: of.incarnation,
        agent: about.agent,
        kubelet: about.kubelet,
        deadline_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
    };
    session.push(&ask).map_err(ProbeError::Delivery)?;
    let found = match timeout(limit + ANSWER_GRACE, answered).await {
        Ok(Ok(found)) => found,
        // The sender is dropped only with the question itself.
        Ok(Err(_)) | Err(_) => return Err(ProbeError::Unanswered),
    };
    drop(question);
    match found {
        ProbeFound::Kubelet => Ok(Found::Kubelet),
        ProbeFound::Nobody => Ok(Found::Nobody),
        ProbeFound::NotTried(why) => Err(ProbeError::NotTried(
            why.chars().take(PROBE_WHY_CHARS_MAX).collect(),
        )),
        ProbeFound::Agent(proof) => {
            let now = shared.config.clock.unix_seconds();
            let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
            match verify(&shared.agents, &proof, nonce, through, of, now) {
                Ok(()) => Ok(Found::Agent),
                Err(unproven) => {
                    refuse(shared, &session, Reason::ProbeUnproven, &unproven);
                    Err(ProbeError::Unproven(unproven))
                }
            }
        }
    }
}

/// An agent answers a question, or sends what looks like it.
pub(super) fn answered(shared: &Shared, session: &Session, answer: ProbeAnswer) {
    let open = {
        let mut open = shared.probes.open();
        let asked = open.get(&answer.nonce);
        match asked.is_some_and(|question| question.through == session.identity) {
            true => open.remove(&answer.nonce),
            false => None,
        }
    };
    match open {
        // Fails only if whoever asked has just gone.
        Some(open) => drop(open.answer.send(answer.found)),
        None => refuse(shared, session, Reason::ProbeUnasked, &Unasked),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("it answers a probe that is over, or that it was never asked for")]
struct Unasked;

fn refuse(shared: &Shared, session: &Session, reason: Reason, error: &dyn std::error::Error) {
    let machine = session.identity.to_string();
    let peer = Peer {
        address: session.connection.remote_address(),
        machine: Some(&machine),
    };
    shared
        .refusals
        .refuse(reason, peer, ErrorClass::Operator, error);
}

/// Whether the agent of `of` has answered `through`.
fn verify(
    agents: &AgentVerifier,
    proof: &EchoAnswer,
    nonce: Nonce,
    through: &MachineIdentity,
    of: &MachineIdentity,
    now: UnixTime,
) -> Result<(), Unproven> {
    let chain: Vec<CertificateDer<'_>> = proof
        .chain_der
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    let (leaf, intermediates) = chain
        .split_first()
        .filter(|_| chain.len() <= PROBE_CHAIN_MAX)
        .ok_or(Unproven::Chain(chain.len()))?;
    let (identity, _) = agents.authorize(leaf, intermediates, now)?;
    if identity != *of {
        return Err(Unproven::OtherMachine(identity));
    }
    let key = PublicKey::from_certificate(leaf).map_err(Unproven::Key)?;
    if key.has_signed(&statement(nonce, of, through), &proof.signature) {
        Ok(())
    } else {
        Err(Unproven::Signature)
    }
}
