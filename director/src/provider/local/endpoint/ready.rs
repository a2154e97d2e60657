//! Whether an API server says that it is ready: `GET /readyz`, as the health check of any load balancer asks.
//!
//! Nothing secret is sent and nothing but the status is believed, so the server's certificate is not compared with
//! an authority: a rotation of those would have to reach this process first. Who answers in an API server's place
//! gets the bytes that it would get anyway, which clients encrypt for the cluster's certificate alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use windlass_common::tls::{TlsError, liveness_client};

/// How long an API server may take to say so; it asks its etcd, which gets two seconds before it is called gone.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);
/// The part of an answer that is read: `HTTP/1.0 200`.
const STATUS_BYTES: usize = 12;

/// Asks API servers.
#[derive(Clone)]
pub(super) struct Look(TlsConnector);

impl std::fmt::Debug for Look {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Look")
    }
}

impl Look {
    /// # Errors
    /// [`TlsError::Provider`].
    pub(super) fn new() -> Result<Look, TlsError> {
        Ok(Look(TlsConnector::from(Arc::new(liveness_client()?))))
    }

    /// Whether the API server at the other end of `stream` is ready; one that does not say so in time is not.
    pub(super) async fn is_ready(&self, stream: TcpStream, address: SocketAddr) -> bool {
        let asked = async {
            let name = ServerName::IpAddress(address.ip().into());
            let mut tls = self.0.connect(name, stream).await?;
            let question = format!("GET /readyz HTTP/1.0\r\nHost: {address}\r\n\r\n");
            tls.write_all(question.as_bytes()).await?;
            let mut status = [0; STATUS_BYTES];
            tls.read_exact(&mut status).await?;
            Ok::<_, std::io::Error>(status)
        };
        let status = timeout(ANSWER_LIMIT, asked).await;
        matches!(status, Ok(Ok(status)) if status.starts_with(b"HTTP/1.") && status.ends_with(b" 200"))
    }
}

#[cfg(test)]
mod tests {
    use rustls::ServerConfig;
    use rustls::version::TLS13;
    use rustls_pki_types::PrivateKeyDer;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// Answers one request like a Go server, with this status line.
    async fn says(status: &'static str) -> bool {
        let issued = rcgen::generate_simple_self_signed(["api".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(issued.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(windlass_common::tls::provider())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![issued.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = TlsAcceptor::from(Arc::new(config));
            let mut tls = acceptor.accept(stream).await.unwrap();
            let mut question = vec![0; 1024];
            let read = tls.read(&mut question).await.unwrap();
            assert!(question[..read].starts_with(b"GET /readyz HTTP/1.0\r\n"));
            let answer = format!("HTTP/1.0 {status}\r\nContent-Length: 0\r\n\r\n");
            tls.write_all(answer.as_bytes()).await.unwrap();
            tls.shutdown().await.unwrap();
        });
        let stream = TcpStream::connect(address).await.unwrap();
        let ready = Look::new().unwrap().is_ready(stream, address).await;
        server.await.unwrap();
        ready
    }

    #[tokio::test]
    async fn only_an_api_server_that_says_so_is_ready() {
        assert!(says("200 OK").await);
        assert!(!says("500 Internal Server Error").await, "its etcd is away");
        assert!(!says("401 Unauthorized").await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_only_accepts_is_not_ready() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        assert!(!Look::new().unwrap().is_ready(stream, address).await);
    }
}
