//! The director's CA: its generations, which of them issue and which are trusted.
//!
//! There is one generation, but for a rotation, when the next one stands beside it:
//!
//! | stage | agents' certificates from | servers and operators from | trusted |
//! | --- | --- | --- | --- |
//! | [`Stage::Alone`] | it | it | it |
//! | [`Stage::Overlap`] | the older | the newer | both |
//! | [`Stage::Reissue`] | the newer | the newer | both |
//!
//! A server's chain while there are two verifies by either root: the newer servers' issuer has a second
//! certificate by the older root, its *bridge*.
//!
//! The CA is shared by the gateway, the API and the operations; what changes here is true for each of
//! them at its next look. Deciding when it changes is the rotation's ([`crate::rotation`]).

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::hmac;
use jiff::Timestamp;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;

use windlass_common::id::{Digest, DirectorId, OperatorName};
use windlass_common::pki::profile;
use windlass_common::pki::{MachineIdentity, OperatorIdentity, PrivateKey, PublicKey, pem};
use windlass_common::secret::SecretBytes;
use windlass_common::tls;

use super::generation::Generation;
use super::issuer::{CaError, IssueError, Issuer};
use super::verifier::Verifier;
use crate::rotation::Phase;

/// A leaf and the certificates above it, without the root; DER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain(pub Vec<CertificateDer<'static>>);

impl Chain {
    /// As PEM, leaf first.
    pub fn to_pem(&self) -> String {
        pem::bundle(&self.0)
    }

    /// As the wire carries it.
    pub fn to_der(&self) -> Vec<Vec<u8>> {
        self.0.iter().map(|der| der.to_vec()).collect()
    }
}

/// What an operator needs to log in.
#[derive(Debug)]
pub struct OperatorCredentials {
    /// Certificate chain, PEM.
    pub certificate_pem: String,
    /// Private key, PKCS#8 PEM.
    pub key_pem: SecretBytes,
}

/// A server's certificate with its key.
#[derive(Debug)]
pub struct ServerCertificate {
    /// Leaf, issuer (twice during a rotation) and the trusted roots, which are there for clients that
    /// know one by its digest alone.
    pub chain: Chain,
    /// Private key.
    pub key: PrivateKeyDer<'static>,
}

impl ServerCertificate {
    /// For rustls.
    pub fn certified_key(&self) -> Result<Arc<CertifiedKey>, IssueError> {
        CertifiedKey::from_der(self.chain.0.clone(), self.key.clone_key(), &tls::provider())
            .map(Arc::new)
            .map_err(IssueError::Unusable)
    }
}

/// How far the generations are; see the table of the module.
#[derive(Debug, Clone)]
pub enum Stage {
    /// One generation.
    Alone(Arc<Generation>),
    /// The newer one is handed out to be trusted.
    Overlap {
        /// Issues agents' certificates.
        older: Arc<Generation>,
        /// Issues the rest.
        newer: Arc<Generation>,
    },
    /// Certificates are issued anew.
    Reissue {
        /// Still trusted.
        older: Arc<Generation>,
        /// Issues everything.
        newer: Arc<Generation>,
    },
}

impl Stage {
    /// The newest generation.
    pub fn newest(&self) -> &Arc<Generation> {
        match self {
            Stage::Alone(newest) => newest,
            Stage::Overlap { newer, .. } | Stage::Reissue { newer, .. } => newer,
        }
    }

    /// The one that is on its way out.
    pub fn older(&self) -> Option<&Arc<Generation>> {
        match self {
            Stage::Alone(_) => None,
            Stage::Overlap { older, .. } | Stage::Reissue { older, .. } => Some(older),
        }
    }

    /// The number of the newest generation, and of the older one with the phase, if there is one.
    pub(crate) fn numbers(&self) -> (u32, Option<(u32, Phase)>) {
        match self {
            Stage::Alone(newest) => (newest.number, None),
            Stage::Overlap { older, newer } => (newer.number, Some((older.number, Phase::Overlap))),
            Stage::Reissue { older, newer } => (newer.number, Some((older.number, Phase::Reissue))),
        }
    }

    /// Every generation that is trusted, newest first.
    pub(super) fn trusted(&self) -> impl Iterator<Item = &Arc<Generation>> {
        std::iter::once(self.newest()).chain(self.older())
    }

    fn for_agents(&self) -> &Arc<Generation> {
        match self {
            Stage::Overlap { older, .. } => older,
            Stage::Alone(_) | Stage::Reissue { .. } => self.newest(),
        }
    }
}

/// The stage of the moment, as everybody sees it.
pub(super) type Held = Arc<RwLock<Stage>>;

pub(super) fn stage_of(held: &Held) -> Stage {
    held.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The director's CA.
pub struct DirectorCa {
    director: DirectorId,
    seed: SecretBytes,
    held: Held,
    changed: watch::Sender<u64>,
}

impl fmt::Debug for DirectorCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectorCa")
            .field("director", &self.director)
            .field("stage", &self.stage())
            .finish_non_exhaustive()
    }
}

impl DirectorCa {
    /// Makes a CA with new keys.
    pub fn create(director: DirectorId, now: Timestamp) -> Result<DirectorCa, CaError> {
        let first = Arc::new(Generation::first(&director, now)?);
        Ok(DirectorCa::first(director, Stage::Alone(first)))
    }

    /// A CA at a stage that a store has kept. `seed` is what [`DirectorCa::seed`] said.
    pub fn new(director: DirectorId, seed: SecretBytes, stage: Stage) -> DirectorCa {
        DirectorCa {
            director,
            seed,
            held: Arc::new(RwLock::new(stage)),
            changed: watch::Sender::new(0),
        }
    }

    /// The newest generation with its keys, as one PEM text for the caller to seal.
    pub fn to_pem(&self) -> SecretBytes {
        self.stage().newest().to_pem()
    }

    /// The CA of a director that never rotated, from what [`DirectorCa::to_pem`] wrote.
    pub fn from_pem(
        director: DirectorId,
        text: &SecretBytes,
        now: Timestamp,
    ) -> Result<DirectorCa, CaError> {
        let first = Arc::new(Generation::from_pem(&director, 1, text, now)?);
        Ok(DirectorCa::first(director, Stage::Alone(first)))
    }

    /// A CA whose seed was never kept, since it was never rotated: it is that of its generation.
    pub fn first(director: DirectorId, stage: Stage) -> DirectorCa {
        let seed = seed_of(stage.newest());
        DirectorCa::new(director, seed, stage)
    }

    /// Whose CA this is.
    pub fn director(&self) -> &DirectorId {
        &self.director
    }

    /// What [`DirectorCa::derive`] derives from, for the caller to seal: it outlives every generation.
    pub fn seed(&self) -> &SecretBytes {
        &self.seed
    }

    /// How far the generations are now.
    pub fn stage(&self) -> Stage {
        stage_of(&self.held)
    }

    /// Moves to another stage. What was issued before stays what it is; see [`DirectorCa::changed`].
    pub fn enter(&self, stage: Stage) {
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = stage;
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// Counts the changes of stage.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// A generation after the newest one, with new keys; nothing trusts it yet.
    pub fn next_generation(&self, now: Timestamp) -> Result<Generation, CaError> {
        Generation::after(self.stage().newest(), &self.director, now)
    }

    /// SHA-256 of the newest root's DER: the pin in a new machine's settings.
    pub fn root_digest(&self) -> Digest {
        self.stage().newest().root_digest()
    }

    /// The newest root, DER.
    pub fn root_der(&self) -> CertificateDer<'static> {
        self.stage().newest().root.certificate.clone()
    }

    /// Every trusted root, newest first; DER.
    pub fn roots(&self) -> Vec<CertificateDer<'static>> {
        let stage = self.stage();
        let roots = stage.trusted().map(|held| held.root.certificate.clone());
        roots.collect()
    }

    /// SHA-256 of the DER of every trusted root, sorted.
    pub fn root_digests(&self) -> Vec<Digest> {
        let stage = self.stage();
        let mut digests: Vec<Digest> = stage.trusted().map(|held| held.root_digest()).collect();
        digests.sort_unstable();
        digests
    }

    /// The generation that issues agents' certificates now.
    pub fn agents_from(&self) -> u32 {
        self.stage().for_agents().number
    }

    /// Whether certificates of this generation still count.
    pub fn trusts(&self, generation: u32) -> bool {
        self.stage().trusted().any(|held| held.number == generation)
    }

    /// Every trusted root as the wire carries it.
    pub fn roots_der(&self) -> Vec<Vec<u8>> {
        self.roots().iter().map(|der| der.to_vec()).collect()
    }

    /// Every trusted root, PEM: what an operator's client trusts.
    pub fn root_pem(&self) -> String {
        pem::bundle(&self.roots())
    }

    /// A machine's certificate for the key in its request.
    pub fn issue_agent(
        &self,
        request_der: &[u8],
        identity: &MachineIdentity,
        life: Duration,
        now: Timestamp,
    ) -> Result<Chain, IssueError> {
        let key = PublicKey::from_request(request_der).map_err(IssueError::Request)?;
        self.own(&identity.director, identity)?;
        let params = profile::client(identity.machine.as_str(), &identity.to_string(), life, now)
            .map_err(IssueError::Profile)?;
        let agents = &self.stage().for_agents().clone().agents;
        let leaf = agents.issue(&params, &key)?;
        Ok(Chain(vec![leaf, agents.certificate.clone()]))
    }

    /// An operator's certificate with a new key.
    pub fn issue_operator(
        &self,
        name: OperatorName,
        life: Duration,
        now: Timestamp,
    ) -> Result<OperatorCredentials, IssueError> {
        let key = PrivateKey::generate().map_err(IssueError::Request)?;
        let chain = self.issue_operator_key(name, &key.public_key(), life, now)?;
        Ok(OperatorCredentials {
            certificate_pem: chain.to_pem(),
            key_pem: key.to_pem(),
        })
    }

    /// An operator's certificate for the key in a request.
    pub fn issue_operator_request(
        &self,
        name: OperatorName,
        request_der: &[u8],
        life: Duration,
        now: Timestamp,
    ) -> Result<Chain, IssueError> {
        let key = PublicKey::from_request(request_der).map_err(IssueError::Request)?;
        self.issue_operator_key(name, &key, life, now)
    }

    fn issue_operator_key(
        &self,
        name: OperatorName,
        key: &PublicKey,
        life: Duration,
        now: Timestamp,
    ) -> Result<Chain, IssueError> {
        let identity = OperatorIdentity {
            director: self.director.clone(),
            name,
        };
        let params = profile::client(identity.name.as_str(), &identity.to_string(), life, now)
            .map_err(IssueError::Profile)?;
        let operators = &self.stage().newest().clone().operators;
        let leaf = operators.issue(&params, key)?;
        Ok(Chain(vec![leaf, operators.certificate.clone()]))
    }

    /// A server's certificate with a new key, which every client of a trusted root verifies.
    pub fn issue_server(
        &self,
        names: &[String],
        addresses: &[IpAddr],
        life: Duration,
        now: Timestamp,
    ) -> Result<ServerCertificate, IssueError> {
        let key = PrivateKey::generate().map_err(IssueError::Request)?;
        let params = profile::server(names, addresses, life, now).map_err(IssueError::Profile)?;
        let stage = self.stage();
        let newest = stage.newest();
        let leaf = newest.servers.issue(&params, &key.public_key())?;
        let mut chain = vec![leaf, newest.servers.certificate.clone()];
        if let (Some(_), Some(bridge)) = (stage.older(), &newest.bridge) {
            chain.push(bridge.clone());
        }
        chain.extend(stage.trusted().map(|held| held.root.certificate.clone()));
        Ok(ServerCertificate {
            chain: Chain(chain),
            key: key.to_der(),
        })
    }

    /// A secret for `purpose` that stays the same, also when the CA is rotated, and tells nothing about
    /// what it is derived from.
    pub fn derive(&self, purpose: &[u8]) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.seed.expose());
        let tag = hmac::sign(&key, purpose);
        let mut secret = [0; 32];
        secret.copy_from_slice(tag.as_ref());
        secret
    }

    /// Verifies that a client's certificate is of a trusted generation's issuer of agents, at each
    /// handshake anew; one without is let through.
    pub fn agent_verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, tls::TlsError> {
        Ok(Arc::new(Verifier::new(&self.held, |held| &held.agents)))
    }

    /// The same for operators; one without a certificate is let through, for the API to answer with 401.
    pub fn operator_verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, tls::TlsError> {
        Ok(Arc::new(Verifier::new(&self.held, |held| &held.operators)))
    }

    /// Which trusted generation issued an agent's certificate; `None` when it was dropped.
    ///
    /// Only for a certificate that was verified before: it reads the issuer's key identifier and no
    /// signature. It is for whatever comes later than the handshake, or without one.
    pub fn agent_generation(&self, leaf: &[u8]) -> Option<u32> {
        self.generation(leaf, |held| &held.agents)
    }

    /// The same for an operator's certificate.
    pub fn operator_generation(&self, leaf: &[u8]) -> Option<u32> {
        self.generation(leaf, |held| &held.operators)
    }

    fn generation(&self, leaf: &[u8], issuer: fn(&Generation) -> &Issuer) -> Option<u32> {
        let stage = self.stage();
        let mut trusted = stage.trusted();
        let issued = trusted.find(|held| issuer(held).has_issued(leaf))?;
        Some(issued.number)
    }

    fn own(&self, director: &DirectorId, identity: &impl ToString) -> Result<(), IssueError> {
        if *director == self.director {
            return Ok(());
        }
        Err(IssueError::OtherDirector(identity.to_string()))
    }
}

/// The seed of a director whose store has none yet.
fn seed_of(first: &Generation) -> SecretBytes {
    SecretBytes::new(first.servers.derive(b"seed of the director").to_vec())
}
