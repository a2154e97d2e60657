//! The root CA of a director and its three issuers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use windlass_common::id::{Digest, DirectorId, OperatorName};
use windlass_common::pki::profile::{self, Usage};
use windlass_common::pki::{MachineIdentity, OperatorIdentity, PrivateKey, PublicKey, pem};
use windlass_common::secret::SecretBytes;
use windlass_common::tls;

use super::issuer::{CaError, IssueError, Issuer, is_valid};

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
    /// Leaf, issuer and root; the root is there for clients that know it by its digest alone.
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

/// The director's CA: a root that signs issuers, and issuers that sign the rest.
#[derive(Debug)]
pub struct DirectorCa {
    director: DirectorId,
    root: Issuer,
    agents: Issuer,
    operators: Issuer,
    servers: Issuer,
}

impl DirectorCa {
    /// Makes a CA with new keys.
    pub fn create(director: DirectorId, now: Timestamp) -> Result<DirectorCa, CaError> {
        let name = |what: &str| format!("Windlass {director} {what}");
        let root_params = profile::root(&name("root"), now).map_err(CaError::Profile)?;
        let root = Issuer::root(root_params)?;
        let below = |what: &str, usage| {
            let params = profile::issuer(&name(what), usage, now).map_err(CaError::Profile)?;
            Issuer::below(&root, params)
        };
        Ok(DirectorCa {
            agents: below("agents", Usage::Client)?,
            operators: below("operators", Usage::Client)?,
            servers: below("servers", Usage::Server)?,
            root,
            director,
        })
    }

    /// Everything, keys included, as one PEM text for the caller to seal.
    pub fn to_pem(&self) -> SecretBytes {
        let parts = [&self.root, &self.agents, &self.operators, &self.servers];
        let parts: Vec<SecretBytes> = parts.into_iter().map(Issuer::to_pem).collect();
        // Allocated once, so that no copy of a key is left behind by growing.
        let length = parts.iter().map(|part| part.expose().len()).sum();
        let mut text = Vec::with_capacity(length);
        for part in &parts {
            text.extend_from_slice(part.expose());
        }
        SecretBytes::new(text)
    }

    /// Reads back what [`DirectorCa::to_pem`] wrote.
    pub fn from_pem(
        director: DirectorId,
        pem_text: &SecretBytes,
        now: Timestamp,
    ) -> Result<DirectorCa, CaError> {
        let certificates =
            pem::certificates(pem_text.expose()).map_err(|_| CaError::Damaged("it is no PEM"))?;
        let keys: Vec<PrivatePkcs8KeyDer<'static>> =
            PrivatePkcs8KeyDer::pem_slice_iter(pem_text.expose())
                .collect::<Result<_, _>>()
                .map_err(|_| CaError::Damaged("it is no PEM"))?;
        if certificates.len() != 4 || keys.len() != 4 {
            return Err(CaError::Damaged(
                "it does not hold four CAs with their keys",
            ));
        }
        if !certificates
            .iter()
            .all(|certificate| is_valid(certificate, now))
        {
            return Err(CaError::Damaged("a CA certificate is not valid now"));
        }
        let mut issuers = certificates
            .into_iter()
            .zip(&keys)
            .map(|(certificate, key)| {
                let key = PrivateKey::from_der(key.secret_pkcs8_der()).map_err(CaError::Key)?;
                Issuer::load(certificate, key)
            });
        let mut next = || {
            issuers
                .next()
                .unwrap_or(Err(CaError::Damaged("a CA is missing")))
        };
        let (root, agents, operators, servers) = (next()?, next()?, next()?, next()?);
        let ca = DirectorCa {
            director,
            root,
            agents,
            operators,
            servers,
        };
        let subject = format!("Windlass {} root", ca.director);
        if !ca.root.has_common_name(&subject) {
            return Err(CaError::OtherDirector(ca.director.to_string()));
        }
        Ok(ca)
    }

    /// Whose CA this is.
    pub fn director(&self) -> &DirectorId {
        &self.director
    }

    /// SHA-256 of the root's DER: the pin in every machine's settings.
    pub fn root_digest(&self) -> Digest {
        Digest::of(&self.root.certificate)
    }

    /// The root, DER.
    pub fn root_der(&self) -> &CertificateDer<'static> {
        &self.root.certificate
    }

    /// The root, PEM: what an operator's client trusts.
    pub fn root_pem(&self) -> String {
        pem::certificate(&self.root.certificate)
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
        let leaf = self.agents.issue(&params, &key)?;
        Ok(Chain(vec![leaf, self.agents.certificate.clone()]))
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
        let leaf = self.operators.issue(&params, key)?;
        Ok(Chain(vec![leaf, self.operators.certificate.clone()]))
    }

    /// A server's certificate with a new key.
    pub fn issue_server(
        &self,
        names: &[String],
        addresses: &[IpAddr],
        life: Duration,
        now: Timestamp,
    ) -> Result<ServerCertificate, IssueError> {
        let key = PrivateKey::generate().map_err(IssueError::Request)?;
        let params = profile::server(names, addresses, life, now).map_err(IssueError::Profile)?;
        let leaf = self.servers.issue(&params, &key.public_key())?;
        Ok(ServerCertificate {
            chain: Chain(vec![
                leaf,
                self.servers.certificate.clone(),
                self.root.certificate.clone(),
            ]),
            key: key.to_der(),
        })
    }

    /// A secret for `purpose` that is the same as long as this CA is, and tells nothing about it.
    pub fn derive(&self, purpose: &[u8]) -> [u8; 32] {
        self.servers.derive(purpose)
    }

    /// Verifies that a client's certificate is of the agents' issuer; one without is let through.
    pub fn agent_verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, tls::TlsError> {
        verifier(&self.agents)
    }

    /// Verifies that a client's certificate is of the operators' issuer; one without is let through,
    /// for the API to answer with 401.
    pub fn operator_verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, tls::TlsError> {
        verifier(&self.operators)
    }

    fn own(&self, director: &DirectorId, identity: &impl ToString) -> Result<(), IssueError> {
        if *director == self.director {
            return Ok(());
        }
        Err(IssueError::OtherDirector(identity.to_string()))
    }
}

fn verifier(issuer: &Issuer) -> Result<Arc<dyn ClientCertVerifier>, tls::TlsError> {
    // The issuer itself is the anchor: what its siblings sign does not count here.
    let roots = tls::root_store(std::slice::from_ref(&issuer.certificate))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider())
        .allow_unauthenticated()
        .build()
        .map_err(tls::TlsError::Verifier)?;
    Ok(verifier)
}
