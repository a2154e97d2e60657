//! The API's client: what the command line uses, and tests.
//!
//! # Invariants
//! * The server is believed only with a certificate of the director's own CA, and the caller shows its
//!   operator certificate; there is no way to switch either off.
//! * One request, one connection; every wait before the first byte of an answer has a deadline.
//!
//! # After a crash
//! Nothing is kept. [`watch::follow`] connects again by itself.
//!
//! # Not here
//! How answers look to people.

mod context;
mod kubeconfig;
pub mod watch;

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use windlass_common::error::ErrorClass;

use crate::api::Problem;
pub use context::{Context, ContextError, ContextFile};
pub use kubeconfig::via_director;

/// Longest wait for a connection with its handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the beginning of an answer: the server gives up after 60 s itself.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(70);
/// Largest answer that is not a stream, bytes: a list of 1000 tasks with 300 steps each is below it.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Longest line of a stream, bytes: a snapshot of a task with a plan for 1000 machines is 8 MiB.
const LINE_BYTES_MAX: usize = 32 << 20;

/// Why a request was not answered as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody answers there.
    #[error(
        "the director at {address} cannot be reached; `windlass director status` says whether it runs, `windlass director start` starts it"
    )]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The director says why not.
    #[error("{}", .0.message)]
    Problem(Problem),
    /// The answer is not one of this API.
    #[error("the director at {address} answered something unexpected: {what}")]
    Unexpected {
        /// Where.
        address: String,
        /// What is wrong with it.
        what: String,
    },
}

impl ClientError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unreachable { .. } => ErrorClass::Retry,
            Self::Problem(problem) => problem.class,
            Self::Unexpected { .. } => ErrorClass::Bug,
        }
    }
}

/// A director's API, seen by one operator.
#[derive(Debug, Clone)]
pub struct Client {
    context: Context,
}

impl Client {
    /// A client for this context; connects with each request.
    pub fn new(context: Context) -> Client {
        Client { context }
    }

    /// `host:port` of the API.
    pub fn address(&self) -> &str {
        &self.context.address
    }

    /// `GET`.
    ///
    /// # Errors
    /// See [`ClientError`]; the same for the calls below.
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.json(Method::GET, path, None).await
    }

    /// `POST` with a body.
    pub async fn post(&self, path: &str, body: String) -> Result<Value, ClientError> {
        self.json(Method::POST, path, Some(body)).await
    }

    /// `PATCH` with a body.
    pub async fn patch(&self, path: &str, body: String) -> Result<Value, ClientError> {
        self.json(Method::PATCH, path, Some(body)).await
    }

    /// `PUT` with a body.
    pub async fn put(&self, path: &str, body: String) -> Result<Value, ClientError> {
        self.json(Method::PUT, path, Some(body)).await
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &str) -> Result<Value, ClientError> {
        self.json(Method::DELETE, path, None).await
    }

    /// Reads a value as a type of the API.
    pub fn typed<T: DeserializeOwned>(&self, value: &Value) -> Result<T, ClientError> {
        T::deserialize(value).map_err(|error| self.unexpected(error.to_string()))
    }

    /// A request whose answer is read line by line.
    pub async fn lines(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
        headers: &[(&str, &str)],
    ) -> Result<Lines, ClientError> {
        let response = self.send(method, path, body, headers).await?;
        Ok(Lines {
            body: response.into_body(),
            buffer: Vec::new(),
            address: self.context.address.clone(),
        })
    }

    /// A `POST` whose answer is read in pieces, as they come.
    pub async fn pieces(&self, path: &str) -> Result<Pieces, ClientError> {
        let response = self.send(Method::POST, path, None, &[]).await?;
        Ok(Pieces {
            body: response.into_body(),
            address: self.context.address.clone(),
        })
    }

    /// A `GET` whose answer is written as it arrives; how many bytes it has.
    ///
    /// # Errors
    /// [`ClientError`], or what the writer says.
    pub async fn download(
        &self,
        path: &str,
        to: &mut impl std::io::Write,
    ) -> Result<std::io::Result<u64>, ClientError> {
        let response = self.send(Method::GET, path, None, &[]).await?;
        let mut pieces = Pieces {
            body: response.into_body(),
            address: self.context.address.clone(),
        };
        let mut bytes = 0;
        while let Some(piece) = pieces.next().await? {
            if let Err(error) = to.write_all(&piece) {
                return Ok(Err(error));
            }
            bytes += piece.len() as u64;
        }
        Ok(Ok(bytes))
    }

    /// A request whose connection becomes a stream of `protocol` both ways.
    pub async fn upgrade(&self, path: &str, protocol: &str) -> Result<Upgraded, ClientError> {
        let headers = [("connection", "Upgrade"), ("upgrade", protocol)];
        let response = self.send(Method::GET, path, None, &headers).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.unexpected(format!("status {} for an upgrade", response.status())));
        }
        hyper::upgrade::on(response)
            .await
            .map_err(|error| self.unreachable(std::io::Error::other(error)))
    }

    async fn json(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> Result<Value, ClientError> {
        let response = self.send(method, path, body, &[]).await?;
        let bytes = self.whole(response).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.unexpected(error.to_string()))
    }

    async fn whole(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
        match tokio::time::timeout(ANSWER_TIMEOUT, body.collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => Err(self.unreachable(std::io::Error::other(error))),
            Err(_) => Err(self.unreachable(std::io::ErrorKind::TimedOut.into())),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
        headers: &[(&str, &str)],
    ) -> Result<Response<Incoming>, ClientError> {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.connect()).await;
        let mut sender = match connected {
            Ok(sender) => sender?,
            Err(_) => return Err(self.unreachable(std::io::ErrorKind::TimedOut.into())),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, self.context.address.as_str())
            .header(
                header::USER_AGENT,
                concat!("windlass/", env!("CARGO_PKG_VERSION")),
            );
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| self.unexpected(error.to_string()))?;
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request)).await;
        let response = match answer {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.unreachable(std::io::Error::other(error))),
            Err(_) => return Err(self.unreachable(std::io::ErrorKind::TimedOut.into())),
        };
        if response.status().is_success() || response.status().is_informational() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = self.whole(response).await?;
        Err(self.problem(status, &bytes))
    }

    async fn connect(&self) -> Result<http1::SendRequest<Full<Bytes>>, ClientError> {
        let tcp = TcpStream::connect(&self.context.address)
            .await
            .map_err(|source| self.unreachable(source))?;
        // A request is one write; nothing is gained by waiting for more.
        let _ = tcp.set_nodelay(true);
        let tls = TlsConnector::from(self.context.tls.clone())
            .connect(self.context.server_name.clone(), tcp)
            .await
            .map_err(|source| self.unreachable(source))?;
        let (sender, connection) = http1::handshake(TokioIo::new(tls))
            .await
            .map_err(|error| self.unreachable(std::io::Error::other(error)))?;
        // Ends when the sender and the answer's body are dropped; its errors reach them.
        tokio::spawn(async move {
            let _ = connection.with_upgrades().await;
        });
        Ok(sender)
    }

    fn problem(&self, status: StatusCode, bytes: &[u8]) -> ClientError {
        match serde_json::from_slice::<Problem>(bytes) {
            Ok(problem) => ClientError::Problem(problem),
            Err(_) => self.unexpected(format!("status {status} without a problem")),
        }
    }

    fn unreachable(&self, source: std::io::Error) -> ClientError {
        ClientError::Unreachable {
            address: self.context.address.clone(),
            source,
        }
    }

    fn unexpected(&self, what: String) -> ClientError {
        ClientError::Unexpected {
            address: self.context.address.clone(),
            what,
        }
    }
}

/// An answer that is read in pieces.
#[derive(Debug)]
pub struct Pieces {
    body: Incoming,
    address: String,
}

impl Pieces {
    /// The next piece; `None` at the end of an answer that is whole.
    ///
    /// # Errors
    /// When the answer breaks off.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|error| ClientError::Unreachable {
                address: self.address.clone(),
                source: std::io::Error::other(error),
            })?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

/// An answer that is read line by line.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    buffer: Vec<u8>,
    address: String,
}

impl Lines {
    /// The next line without its end; `None` at the end of the answer.
    ///
    /// # Errors
    /// When the connection breaks, or a line is too long or no UTF-8.
    pub async fn next(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
                line.pop();
                let line = String::from_utf8(line);
                return line
                    .map(Some)
                    .map_err(|_| self.unexpected("a line that is no UTF-8"));
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(self.unexpected("a line that is too long"));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => {
                    return Err(ClientError::Unreachable {
                        address: self.address.clone(),
                        source: std::io::Error::other(error),
                    });
                }
            }
        }
    }

    fn unexpected(&self, what: &str) -> ClientError {
        ClientError::Unexpected {
            address: self.address.clone(),
            what: what.to_owned(),
        }
    }
}
