//! Checks against a real TLS server on loopback.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Mutex;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use windlass_common::journal::sim::SimDisk;

use super::super::fetch::{ArtifactSource, Opening, SourceError, Wanted};
use super::*;
use crate::history::History;
use crate::units::Units;

#[derive(Debug)]
struct NoArtifacts;

impl ArtifactSource for NoArtifacts {
    fn open(&self, _: Wanted) -> Opening<'_> {
        Box::pin(async { Err(SourceError::NotFound("none here".to_owned())) })
    }
}

fn context(root: &Path) -> Context {
    Context {
        host: Host::open(root).unwrap(),
        units: Arc::new(Units::default()),
        artifacts: Arc::new(NoArtifacts),
        history: Arc::new(Mutex::new(History::open(SimDisk::default()).unwrap())),
        watched: watch::channel(BTreeMap::new()).0,
        leave: watch::channel(false).0,
    }
}

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(ca: &Ca, usage: ExtendedKeyUsagePurpose) -> (rcgen::Certificate, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["kube-apiserver".to_owned()]).unwrap();
    params.extended_key_usages = vec![usage];
    (params.signed_by(&key, ca).unwrap(), key)
}

/// Answers every request on every connection with this response; asks for client certificates.
async fn serve(ca: &Ca, response: &'static str) -> SocketAddr {
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
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /readyz?verbose HTTP/1.1\r\n"));
            stream.write_all(response.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    address
}

/// Writes CA and client certificate beneath the root and makes the check.
fn check(root: &Path, trusted: &Ca, client_of: Option<&Ca>, address: SocketAddr) -> Check {
    std::fs::write(root.join("ca.pem"), trusted.pem()).unwrap();
    if let Some(ca) = client_of {
        let (certificate, key) = leaf(ca, ExtendedKeyUsagePurpose::ClientAuth);
        std::fs::write(root.join("client.pem"), certificate.pem()).unwrap();
        std::fs::write(root.join("client.key"), key.serialize_pem()).unwrap();
    }
    Check::Https {
        address,
        server_name: "kube-apiserver".to_owned(),
        path: "/readyz?verbose".to_owned(),
        ca_path: "/ca.pem".to_owned(),
        client: client_of.map(|_| ClientFiles {
            certificate_path: "/client.pem".to_owned(),
            key_path: "/client.key".to_owned(),
        }),
    }
}

#[tokio::test]
async fn https_checks_verify_both_sides_and_the_answer() {
    let (ours, other) = (ca(), ca());
    let ok = serve(&ours, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let ill = serve(
        &ours,
        "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 37\r\n\r\n[+]ping ok\n[-]etcd failed: no\nhealthz",
    )
    .await;
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        (ok, &ours, Some(&ours), None),
        (ill, &ours, Some(&ours), Some("answers 500 Internal Server Error: [-]etcd failed: no")),
        (ok, &other, Some(&ours), Some("TLS: invalid peer certificate")),
        (ok, &ours, None, Some("HTTP:")),
        (ok, &ours, Some(&other), Some("HTTP:")),
    ];
    for (address, trusted, client_of, want) in cases {
        let root = tempfile::tempdir().unwrap();
        let check = check(root.path(), trusted, client_of, address);
        let looked = look(&context(root.path()), &check).await;
        match (looked, want) {
            (Ok(()), None) => {}
            (Err(reason), Some(want)) => assert!(reason.contains(want), "{reason} / {want}"),
            (looked, want) => panic!("{looked:?}, wanted {want:?}"),
        }
    }
}

#[tokio::test]
async fn a_missing_ca_file_is_named() {
    let root = tempfile::tempdir().unwrap();
    let ours = ca();
    let address = serve(&ours, "HTTP/1.1 200 OK\r\n\r\n").await;
    let check = check(root.path(), &ours, None, address);
    std::fs::remove_file(root.path().join("ca.pem")).unwrap();
    let reason = look(&context(root.path()), &check).await.unwrap_err();
    assert!(reason.starts_with("/ca.pem: "), "{reason}");
}
