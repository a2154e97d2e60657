//! TLS between two agents of one director.
//!
//! Both ends show their machine's certificate, which is a client's, and both verify the other's as the
//! gateway verifies a client's: the chain up to a root of the director, and its use for clients. A
//! certificate of a machine holds no host name, so none is compared: who answers is read from the
//! certificate once the handshake is over, and it is for the caller to insist on a machine.
//!
//! # Not here
//! Which machine may have what: grants, in the agent.

use std::fmt;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::{TlsError, provider, root_store};
use crate::wire::ALPN_PEER;

/// The name that a client sends; nothing is compared with it.
pub const PEER_NAME: &str = "peer.windlass.internal";

/// The end that serves: trusts `roots`, shows `chain`, insists on a certificate.
pub fn peer_server(
    roots: &[CertificateDer<'_>],
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|_| TlsError::Provider)?
        .with_client_cert_verifier(machines(roots)?)
        .with_single_cert(chain, key)
        .map_err(TlsError::Identity)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = vec![ALPN_PEER.to_vec()];
    Ok(config)
}

/// The end that fetches: trusts `roots`, shows `chain`.
pub fn peer_client(
    roots: &[CertificateDer<'_>],
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(|_| TlsError::Provider)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PeerVerifier(machines(roots)?)))
        .with_client_auth_cert(chain, key)
        .map_err(TlsError::Identity)?;
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![ALPN_PEER.to_vec()];
    Ok(config)
}

fn machines(roots: &[CertificateDer<'_>]) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let roots = Arc::new(root_store(roots)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(TlsError::Verifier)?;
    Ok(verifier)
}

/// Verifies the certificate of a machine that answers as a server.
struct PeerVerifier(Arc<dyn ClientCertVerifier>);

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerVerifier")
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0
            .verify_client_cert(end_entity, intermediates, now)
            .map(|_| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
