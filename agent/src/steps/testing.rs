//! What tests of several steps need: a machine in a directory, and a TLS server that proves itself and asks for proof.

use std::path::Path;
use std::sync::{Arc, Mutex};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::pki_types::PrivateKeyDer;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use windlass_common::journal::sim::SimDisk;
use windlass_common::step::ClientFiles;

use super::Context;
use super::fetch::{ArtifactSource, Opening, SourceError, Wanted};
use crate::history::History;
use crate::host::Host;
use crate::units::Units;

#[derive(Debug)]
struct NoArtifacts;

impl ArtifactSource for NoArtifacts {
    fn open(&self, _: Wanted) -> Opening<'_> {
        Box::pin(async { Err(SourceError::NotFound("none here".to_owned())) })
    }
}

/// A machine whose root is this directory.
pub(super) fn context(root: &Path) -> Context {
    Context {
        host: Host::open(root).unwrap(),
        units: Arc::new(Units::default()),
        artifacts: Arc::new(NoArtifacts),
        history: Arc::new(Mutex::new(History::open(SimDisk::default()).unwrap())),
        watched: watch::channel(Default::default()).0,
        leave: watch::channel(false).0,
        director: None,
    }
}

/// An authority.
pub(super) type Ca = CertifiedIssuer<'static, KeyPair>;

/// Makes an authority.
pub(super) fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// The name that certificates carry here.
pub(super) const NAME: &str = "kube-apiserver";

fn leaf(ca: &Ca, usage: ExtendedKeyUsagePurpose) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    params.extended_key_usages = vec![usage];
    (params.signed_by(&key, ca).unwrap(), key)
}

/// Takes connections of clients with certificates of the same authority.
pub(super) fn acceptor(ca: &Ca) -> TlsAcceptor {
    let (certificate, key) = leaf(ca, ExtendedKeyUsagePurpose::ServerAuth);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        provider.clone(),
    )
    .build()
    .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

/// Writes a client certificate of an authority beneath the root.
pub(super) fn client(root: &Path, ca: &Ca) -> ClientFiles {
    let (certificate, key) = leaf(ca, ExtendedKeyUsagePurpose::ClientAuth);
    std::fs::write(root.join("client.pem"), certificate.pem()).unwrap();
    std::fs::write(root.join("client.key"), key.serialize_pem()).unwrap();
    ClientFiles {
        certificate_path: "/client.pem".to_owned(),
        key_path: "/client.key".to_owned(),
    }
}
