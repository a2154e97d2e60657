//! HTTP/1.1 by hand, so that nothing is tried again behind the test's back.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// Largest answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where to connect.
    pub address: SocketAddr,
    /// Path and query.
    pub path: String,
    /// TLS, if any.
    pub secure: Option<Secure>,
}

/// TLS towards a target.
#[derive(Debug, Clone)]
pub struct Secure {
    /// Roots and the client's identity.
    pub config: Arc<ClientConfig>,
    /// Name that the server has to prove.
    pub name: ServerName<'static>,
}

/// One connection.
pub(super) struct Connection {
    stream: Stream,
    opened: Instant,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Connection {
    pub(super) fn open(target: &Target, deadline: Instant) -> Result<Connection> {
        let tcp = TcpStream::connect_timeout(&target.address, left(deadline)?)
            .with_context(|| format!("cannot connect with {}", target.address))?;
        tcp.set_nodelay(true)?;
        let stream = match &target.secure {
            None => Stream::Plain(tcp),
            Some(secure) => {
                let session =
                    ClientConnection::new(Arc::clone(&secure.config), secure.name.clone())?;
                Stream::Tls(Box::new(StreamOwned::new(session, tcp)))
            }
        };
        Ok(Connection {
            stream,
            opened: Instant::now(),
        })
    }

    pub(super) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// Whether the server has neither closed the connection nor said anything.
    pub(super) fn is_idle(&self) -> bool {
        let tcp = self.tcp();
        let mut byte = [0];
        if tcp.set_nonblocking(true).is_err() {
            return false;
        }
        let silent =
            matches!(tcp.peek(&mut byte), Err(error) if error.kind() == ErrorKind::WouldBlock);
        silent && tcp.set_nonblocking(false).is_ok()
    }

    /// One request; whether the connection can be used again.
    pub(super) fn get(&mut self, target: &Target, keep: bool, deadline: Instant) -> Result<bool> {
        let mode = if keep { "keep-alive" } else { "close" };
        let Target { path, address, .. } = target;
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: */*\r\nConnection: {mode}\r\n\r\n"
        );
        self.limit(deadline)?;
        self.stream
            .write_all(request.as_bytes())
            .context("the request cannot be sent")?;
        let mut answer = Vec::new();
        let (head, body) = loop {
            if let Some(end) = find(&answer, b"\r\n\r\n") {
                break (end, end + 4);
            }
            self.more(&mut answer, deadline)?;
        };
        let head = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
        let status = head.split_whitespace().nth(1).unwrap_or_default();
        ensure!(status == "200", "the answer is {head:?}");
        let header = |name: &str| {
            head.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
        };
        if header("transfer-encoding") == Some("chunked") {
            while find(&answer[body..], b"0\r\n\r\n").is_none() {
                self.more(&mut answer, deadline)?;
            }
        } else {
            let length: usize = header("content-length")
                .context("an answer without a length")?
                .parse()?;
            while answer.len() < body + length {
                self.more(&mut answer, deadline)?;
            }
        }
        Ok(header("connection") != Some("close"))
    }

    fn more(&mut self, answer: &mut Vec<u8>, deadline: Instant) -> Result<()> {
        self.limit(deadline)?;
        let mut piece = [0; 4096];
        let read = self.stream.read(&mut piece).context("no answer")?;
        ensure!(
            read > 0,
            "the connection was closed in the middle of an answer, after {} bytes",
            answer.len()
        );
        answer.extend_from_slice(&piece[..read]);
        ensure!(answer.len() <= ANSWER_BYTES_MAX, "the answer is too long");
        Ok(())
    }

    fn limit(&self, deadline: Instant) -> Result<()> {
        let left = left(deadline)?;
        self.tcp().set_read_timeout(Some(left))?;
        self.tcp().set_write_timeout(Some(left))?;
        Ok(())
    }

    fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => tls.get_ref(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Stream::Plain(tcp) => tcp.read(buffer),
            Stream::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        match self {
            Stream::Plain(tcp) => tcp.write(buffer),
            Stream::Tls(tls) => tls.write(buffer),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Stream::Plain(tcp) => tcp.flush(),
            Stream::Tls(tls) => tls.flush(),
        }
    }
}

fn left(deadline: Instant) -> Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        bail!("not answered within {:?}", super::PATIENCE);
    }
    Ok(left)
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|at| at == wanted)
}
