//! Who may come in by certificate: the clients of whichever generations are trusted at the moment.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};

use windlass_common::tls::{self, TlsError};

use super::ca::{Held, stage_of};
use super::generation::Generation;
use super::issuer::Issuer;

/// Verifies clients against one kind of issuer of every trusted generation.
pub(super) struct Verifier {
    held: Held,
    issuer: fn(&Generation) -> &Issuer,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier")
    }
}

impl Verifier {
    pub(super) fn new(held: &Held, issuer: fn(&Generation) -> &Issuer) -> Verifier {
        Verifier {
            held: Arc::clone(held),
            issuer,
        }
    }

    /// The issuers themselves are the anchors: what their siblings sign does not count here.
    fn chains(&self) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let stage = stage_of(&self.held);
        let anchors: Vec<CertificateDer<'static>> = stage
            .trusted()
            .map(|held| (self.issuer)(held).certificate.clone())
            .collect();
        let roots = Arc::new(tls::root_store(&anchors)?);
        WebPkiClientVerifier::builder_with_provider(roots, tls::provider())
            .allow_unauthenticated()
            .build()
            .map(|verifier| verifier as Arc<dyn ClientCertVerifier>)
            .map_err(TlsError::Verifier)
    }
}

impl ClientCertVerifier for Verifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// None: a client has one certificate and shows it.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let other = |error| Error::Other(OtherError(Arc::new(error)));
        self.chains()
            .map_err(other)?
            .verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(
            rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13,
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = tls::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = tls::provider().signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}
