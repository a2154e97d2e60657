//! Trust on first connection: the director whose root CA has a known digest.
//!
//! The director sends its root along with its chain. Once the root is found by its digest the chain
//! is verified against it, and against nothing else, in the ordinary way: the pin replaces the list
//! of roots and no part of the verification.

use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, PeerIncompatible, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{provider, root_store};
use crate::id::Digest;

/// The peer's chain has no root with the pinned digest.
#[derive(thiserror::Error)]
#[error(
    "the director shows no root CA with the digest {0} of the settings; is it another director?"
)]
pub struct PinMismatch(Digest);

// TLS prints causes by `Debug`, and this one is for people.
impl fmt::Debug for PinMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Verifies a server against the root that has the pinned digest.
#[derive(Debug)]
pub struct PinnedRoot {
    pin: Digest,
    provider: Arc<CryptoProvider>,
}

impl PinnedRoot {
    /// Pins the root whose DER has this SHA-256.
    pub fn new(pin: Digest) -> PinnedRoot {
        PinnedRoot {
            pin,
            provider: provider(),
        }
    }
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = intermediates
            .iter()
            .find(|certificate| Digest::of(certificate) == self.pin)
            .ok_or_else(|| other(PinMismatch(self.pin)))?;
        let roots = root_store(std::slice::from_ref(root)).map_err(other)?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(other)?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13,
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn other(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}
