//! HTTP/1.1 to an object store, over TLS or, on loopback, without.
//!
//! # Invariants
//! * Every exchange has a time limit, every answer a size limit.
//! * Certificates are verified: against those of the host, or against the file that the settings name alone.
//! * At most [`IDLE_MAX`] connections wait for the next exchange. Each is driven by a task that ends with it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HOST, HeaderMap, USER_AGENT};
use hyper::http::request::Builder;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Url;

use super::error::{Asked, S3Error};

/// Connections that wait for the next exchange: as many as entries are read at a time.
pub(super) const IDLE_MAX: usize = 8;
/// How long a connection may take to be made, TLS included.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Where systems keep the certificates they trust: Debian, Fedora and RHEL, SUSE, Alpine.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A whole answer.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// A header as text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// The way to one store.
pub(super) struct Wire {
    host: String,
    port: u16,
    /// As it is signed: the port only where it is not the scheme's own.
    host_header: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    limit: Duration,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wire({})", self.host_header)
    }
}

impl Wire {
    /// The way to the host of this URL; every exchange may take so long.
    pub(super) fn new(url: &Url, ca_file: Option<&Path>, limit: Duration) -> Result<Wire, S3Error> {
        let host_header = match url.port() {
            None => url.host_str().unwrap_or_default().to_owned(),
            Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
        };
        let host = url.host_str().unwrap_or_default();
        let host = host.trim_matches(['[', ']']).to_owned();
        let tls = match url.scheme() {
            "http" => None,
            _ => {
                let name = ServerName::try_from(host.clone())
                    .map_err(|error| S3Error::Setup(rustls::Error::General(error.to_string())))?;
                Some((TlsConnector::from(Arc::new(tls_config(ca_file)?)), name))
            }
        };
        Ok(Wire {
            host,
            port: url.port_or_known_default().unwrap_or(443),
            host_header,
            tls,
            limit,
            idle: Mutex::default(),
        })
    }

    /// One request and its whole answer, whatever its status. `most`: bytes of the answer's body.
    pub(super) async fn exchange(
        &self,
        asked: &Asked,
        request: Builder,
        body: Bytes,
        most: usize,
    ) -> Result<Answer, S3Error> {
        let request = request
            .header(HOST, &self.host_header)
            .header(USER_AGENT, "windlass-director")
            .body(Full::new(body))
            .map_err(|source| S3Error::Request {
                asked: Box::new(asked.clone()),
                source,
            })?;
        let exchange = self.exchange_now(asked, request, most);
        let slow = |_| S3Error::Slow {
            asked: Box::new(asked.clone()),
            limit: self.limit,
        };
        tokio::time::timeout(self.limit, exchange)
            .await
            .map_err(slow)?
    }

    async fn exchange_now(
        &self,
        asked: &Asked,
        request: Request<Full<Bytes>>,
        most: usize,
    ) -> Result<Answer, S3Error> {
        let broken = |source| S3Error::Broken {
            asked: Box::new(asked.clone()),
            source,
        };
        let mut sender = match self.take_idle().await {
            Some(sender) => sender,
            None => self.connect(asked).await?,
        };
        let answer = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = answer.into_parts();
        let body = match Limited::new(body, most).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => {
                return Err(match error.downcast::<hyper::Error>() {
                    Ok(source) => broken(*source),
                    Err(other) => {
                        debug_assert!(other.is::<LengthLimitError>());
                        S3Error::Answer {
                            asked: Box::new(asked.clone()),
                            problem: format!("it has more than {most} bytes"),
                        }
                    }
                });
            }
        };
        self.keep_idle(sender);
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
        })
    }

    async fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        loop {
            let mut sender = self
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop()?;
            if !sender.is_closed() && sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    fn keep_idle(&self, sender: SendRequest<Full<Bytes>>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !sender.is_closed() && idle.len() < IDLE_MAX {
            idle.push(sender);
        }
    }

    async fn connect(&self, asked: &Asked) -> Result<SendRequest<Full<Bytes>>, S3Error> {
        let connect = |source| S3Error::Connect {
            asked: Box::new(asked.clone()),
            source,
        };
        let late = |_| connect(io::ErrorKind::TimedOut.into());
        let stream = TcpStream::connect((self.host.as_str(), self.port));
        let stream = tokio::time::timeout(CONNECT_LIMIT, stream);
        let stream = stream.await.map_err(late)?.map_err(connect)?;
        // A part goes out as it is; small requests are not held back.
        stream.set_nodelay(true).map_err(connect)?;
        let Some((connector, name)) = &self.tls else {
            return Self::speak(asked, stream).await;
        };
        let stream = connector.connect(name.clone(), stream);
        let stream = tokio::time::timeout(CONNECT_LIMIT, stream);
        let stream = stream.await.map_err(late)?;
        let stream = stream.map_err(|source| S3Error::Tls {
            asked: Box::new(asked.clone()),
            source,
        })?;
        Self::speak(asked, stream).await
    }

    async fn speak<S>(asked: &Asked, stream: S) -> Result<SendRequest<Full<Bytes>>, S3Error>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
    {
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream))
                .await
                .map_err(|source| S3Error::Broken {
                    asked: Box::new(asked.clone()),
                    source,
                })?;
        tokio::spawn(async move {
            // What ends it is in the answer of the exchange, or nobody's concern.
            let _ = connection.await;
        });
        Ok(sender)
    }
}

/// TLS 1.2 or 1.3, without a certificate of ours.
fn tls_config(ca_file: Option<&Path>) -> Result<ClientConfig, S3Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let versions = [&rustls::version::TLS13, &rustls::version::TLS12];
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(S3Error::Setup)?;
    let roots = match ca_file {
        Some(file) => read_authorities(file)?,
        None => system_authorities()?,
    };
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn system_authorities() -> Result<RootCertStore, S3Error> {
    let there = SYSTEM_AUTHORITIES
        .iter()
        .map(Path::new)
        .find(|path| path.is_file());
    let missing = || S3Error::Authorities {
        path: PathBuf::from(SYSTEM_AUTHORITIES[0]),
        problem: "this host has none; install the package ca-certificates".to_owned(),
    };
    read_authorities(there.ok_or_else(missing)?)
}

/// The certificates of a PEM file. Those of a system's that cannot be read are left out, as everybody does.
fn read_authorities(path: &Path) -> Result<RootCertStore, S3Error> {
    let fault = |problem: String| S3Error::Authorities {
        path: path.to_owned(),
        problem,
    };
    let certificates =
        CertificateDer::pem_file_iter(path).map_err(|error| fault(error.to_string()))?;
    let certificates = certificates.collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|error| fault(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() {
        return Err(fault("it has no certificate in PEM".to_owned()));
    }
    Ok(roots)
}
