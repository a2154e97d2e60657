//! One HTTP/1.1 connection over TLS over a stream that somebody else opened.
//!
//! The connection is driven by the call that uses it: no task, nothing to leak.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::super::pki::ClientIdentity;
use super::ANSWER_BYTES_MAX;
use super::error::{ApiError, SetupError};

/// What carries bytes in both directions.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Answer of [`Connector::connect`].
pub type ConnectFuture<'a> =
    Pin<Box<dyn Future<Output = io::Result<Box<dyn ByteStream>>> + Send + 'a>>;

/// Opens streams to an API server of one cluster.
pub trait Connector: Send + Sync {
    /// Opens one stream. The client's deadline covers it; dropping the future gives up.
    fn connect(&self) -> ConnectFuture<'_>;
}

type Http = http1::Connection<TokioIo<TlsStream<Box<dyn ByteStream>>>, Full<Bytes>>;

/// An open connection.
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    /// `None` once either side closed it.
    http: Option<Pin<Box<Http>>>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("open", &self.is_open())
            .finish()
    }
}

/// A whole answer.
pub(super) struct Exchange {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Connection {
    /// TLS and HTTP on a fresh stream.
    pub(super) async fn open(
        stream: Box<dyn ByteStream>,
        tls: Arc<ClientConfig>,
        server_name: ServerName<'static>,
    ) -> Result<Self, ApiError> {
        let stream = TlsConnector::from(tls)
            .connect(server_name, stream)
            .await
            .map_err(ApiError::Tls)?;
        let (sender, http) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|source| ApiError::Http { source })?;
        Ok(Self {
            sender,
            http: Some(Box::pin(http)),
        })
    }

    /// Whether another request can go over it, as far as is known.
    pub(super) fn is_open(&self) -> bool {
        self.http.is_some() && !self.sender.is_closed()
    }

    /// One request and its whole answer.
    pub(super) async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Exchange, ApiError> {
        let path = request.uri().path().to_owned();
        let Self { sender, http } = self;
        let failed = |source| ApiError::Http { source };
        let answer = drive(http, async {
            sender.ready().await?;
            sender.send_request(request).await
        })
        .await
        .map_err(failed)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
        let body = drive(http, body.collect()).await.map_err(|error| {
            match error.downcast::<hyper::Error>() {
                Ok(source) => failed(*source),
                Err(other) => {
                    debug_assert!(other.is::<LengthLimitError>());
                    ApiError::TooLarge {
                        path,
                        limit: ANSWER_BYTES_MAX,
                        unit: "bytes",
                    }
                }
            }
        })?;
        Ok(Exchange {
            status,
            body: body.to_bytes(),
        })
    }
}

/// Polls `work` together with the connection it waits for.
async fn drive<T>(http: &mut Option<Pin<Box<Http>>>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|context| {
        if let Some(connection) = http
            && connection.as_mut().poll(context).is_ready()
        {
            // Closed or broken; what it had received is in `work`'s hands already.
            *http = None;
        }
        work.as_mut().poll(context)
    })
    .await
}

/// TLS 1.3 with the identity's certificate; only `authority_pem` is trusted.
pub(crate) fn tls_config(
    authority_pem: &str,
    identity: &ClientIdentity,
) -> Result<ClientConfig, SetupError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority_pem.as_bytes()) {
        let certificate = certificate.map_err(|_| SetupError::Authority)?;
        roots.add(certificate).map_err(|_| SetupError::Authority)?;
    }
    if roots.is_empty() {
        return Err(SetupError::Authority);
    }
    let chain = CertificateDer::pem_slice_iter(identity.certificate_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| SetupError::Identity)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.expose().as_bytes())
        .map_err(|_| SetupError::Identity)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(SetupError::Tls)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(SetupError::Tls)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
