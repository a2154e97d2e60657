//! TLS for QUIC: version 1.3 only, one provider (aws-lc-rs) that is named wherever it is used.
//!
//! No 0-RTT, neither offered nor accepted. Resumption is off unless a caller turns it on: the gateway
//! with sealed tickets, and then it authorises every connection after its handshake, for a resumed one
//! passes no verifier; an enrolled agent with sessions of its own.
//!
//! # Not here
//! Which client is let in: the director's verifier.

mod liveness;
mod peer;
mod pinned;

use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, danger::ClientCertVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

pub use liveness::liveness_client;
pub use peer::{PEER_NAME, peer_client, peer_server};
pub use pinned::{PinMismatch, PinnedRoot};

use crate::error::ErrorClass;
use crate::id::Digest;
use crate::wire::{ALPN, ALPN_ENROLL};

/// Why a TLS configuration cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A root CA is malformed.
    #[error("a root CA certificate is malformed")]
    Root(#[source] rustls::Error),
    /// No root CA at all.
    #[error("there is no root CA to verify the peer with")]
    Verifier(#[source] rustls::client::VerifierBuilderError),
    /// Key and certificate do not belong together.
    #[error("the certificate and its key do not belong together")]
    Identity(#[source] rustls::Error),
    /// The provider lacks what QUIC needs.
    #[error("the crypto provider does not support TLS 1.3 for QUIC")]
    Provider,
}

impl TlsError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            TlsError::Root(_) | TlsError::Verifier(_) | TlsError::Identity(_) => {
                ErrorClass::Operator
            }
            TlsError::Provider => ErrorClass::Bug,
        }
    }
}

/// The one provider of the link, cut down to what it uses: AES-GCM and ChaCha20 suites of TLS 1.3,
/// X25519 and P-256. Nothing relies on a process-wide default.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1],
        ..aws_lc_rs::default_provider()
    })
}

/// Trust in these roots, DER.
pub fn root_store(roots: &[CertificateDer<'_>]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(TlsError::Root)?;
    }
    Ok(store)
}

/// An enrolled agent's side: trusts `roots`, shows `chain`.
pub fn agent_client(
    roots: &[CertificateDer<'_>],
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, TlsError> {
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(root_store(roots)?), provider())
            .build()
            .map_err(TlsError::Verifier)?;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|_| TlsError::Provider)?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(chain, key)
        .map_err(TlsError::Identity)?;
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

/// The side of a machine that has no certificate: trusts the root whose DER has this digest.
pub fn enroll_client(pin: Digest) -> Result<ClientConfig, TlsError> {
    enrolling(Arc::new(PinnedRoot::new(pin)))
}

/// The side of a machine whose certificate counts no more: trusts the roots it was handed with it.
pub fn enroll_client_trusting(roots: &[CertificateDer<'_>]) -> Result<ClientConfig, TlsError> {
    let roots = Arc::new(root_store(roots)?);
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(TlsError::Verifier)?;
    enrolling(verifier)
}

fn enrolling(verifier: Arc<dyn ServerCertVerifier>) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|_| TlsError::Provider)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![ALPN_ENROLL.to_vec()];
    Ok(config)
}

/// The gateway's side.
pub fn gateway_server(
    clients: Arc<dyn ClientCertVerifier>,
    certificate: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|_| TlsError::Provider)?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(certificate);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![ALPN.to_vec(), ALPN_ENROLL.to_vec()];
    Ok(config)
}
