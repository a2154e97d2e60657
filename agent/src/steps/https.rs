//! One HTTPS connection of a step, with the certificates that are on the machine now.
//!
//! Nothing outlives the step: what is returned has to be driven by whoever asked for it.

use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use windlass_common::error::ErrorChain;
use windlass_common::step::ClientFiles;

use crate::host::Host;

/// Sends requests, one after the other.
pub(super) type Sender = http1::SendRequest<Full<Bytes>>;
/// What has to be driven meanwhile.
pub(super) type Connection = http1::Connection<TokioIo<TlsStream<TcpStream>>, Full<Bytes>>;

/// Opens a TCP connection.
pub(super) async fn connect(address: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(address)
        .await
        .map_err(|error| format!("does not connect: {error}"))
}

/// Connects with what listens at an address and proves a name, showing `client` to it.
pub(super) async fn open(
    host: &Host,
    (address, server_name): (SocketAddr, &str),
    ca_path: &str,
    client: Option<&ClientFiles>,
) -> Result<(Sender, Connection), String> {
    let stream = connect(address).await?;
    let config = tls_config(host, ca_path, client)?;
    let name = ServerName::try_from(server_name.to_owned())
        .map_err(|_| format!("{server_name:?} is no server name"))?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| format!("TLS: {error}"))?;
    http1::handshake(TokioIo::new(stream)).await.map_err(http)
}

/// What is said of a failure of HTTP.
pub(super) fn http(error: hyper::Error) -> String {
    format!("HTTP: {}", ErrorChain(&error))
}

/// Reads the certificates anew for each connection: they may be renewed meanwhile.
fn tls_config(
    host: &Host,
    ca_path: &str,
    client: Option<&ClientFiles>,
) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(host, ca_path)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{ca_path}: {error}"))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS: {error}"))?
        .with_root_certificates(roots);
    let Some(client) = client else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(host, &client.certificate_path)?;
    let key = PrivateKeyDer::from_pem_file(host.path(&client.key_path))
        .map_err(|error| format!("{}: {error}", client.key_path))?;
    builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| format!("{}: {error}", client.certificate_path))
}

fn certificates(host: &Host, path: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error| format!("{path}: {error}");
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(host.path(path))
        .map_err(failed)?
        .collect();
    all.map_err(failed)
}
