//! HTTP/1.1 by hand, so that nothing is tried again behind the test's back.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

/// Largest answer.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Stands for a number that was not used before, in the body of a request.
pub const NUMBER: &str = "{number}";

/// The next number.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Target {
    /// Where to connect.
    pub address: SocketAddr,
    /// Path and query.
    pub path: String,
    /// TLS, if any.
    pub secure: Option<Secure>,
    /// What is asked.
    pub method: Method,
}

/// What is asked of a target.
#[derive(Debug, Clone, Default)]
pub enum Method {
    /// `GET`.
    #[default]
    Get,
    /// `PATCH` with a merge patch (RFC 7386), in which [`NUMBER`] is another number each time.
    MergePatch(String),
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

    /// One request; whether the connection can be used again, and the answer's body.
    pub(super) fn exchange(
        &mut self,
        target: &Target,
        keep: bool,
        deadline: Instant,
    ) -> Result<(bool, Vec<u8>)> {
        let (head, mut answer) = self.open_answer(target, keep, deadline)?;
        if head.field("transfer-encoding") == Some("chunked") {
            while find(&answer, b"0\r\n\r\n").is_none() {
                self.more(&mut answer, deadline)?;
            }
            answer = joined(&answer)?;
        } else {
            let length: usize = head
                .field("content-length")
                .context("an answer without a length")?
                .parse()?;
            while answer.len() < length {
                self.more(&mut answer, deadline)?;
            }
        }
        Ok((head.field("connection") != Some("close"), answer))
    }

    /// Sends a request and reads the head of its answer, which has to be a `200`; returns what came of the
    /// body as well.
    pub(super) fn open_answer(
        &mut self,
        target: &Target,
        keep: bool,
        deadline: Instant,
    ) -> Result<(Head, Vec<u8>)> {
        self.limit(deadline)?;
        self.stream
            .write_all(request(target, keep).as_bytes())
            .context("the request cannot be sent")?;
        let mut answer = Vec::new();
        let end = loop {
            if let Some(end) = find(&answer, b"\r\n\r\n") {
                break end;
            }
            self.more(&mut answer, deadline)?;
        };
        let head = Head(String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase());
        let status = head.0.split_whitespace().nth(1).unwrap_or_default();
        let body = String::from_utf8_lossy(&answer[end + 4..]);
        ensure!(status == "200", "the answer is {:?} {body:?}", head.0);
        Ok((head, answer.split_off(end + 4)))
    }

    /// Reads what comes within `patience`; nothing when nothing came, an error when the stream is over.
    pub(super) fn read_some(&mut self, patience: Duration) -> Result<Option<Vec<u8>>> {
        self.tcp().set_read_timeout(Some(patience))?;
        let mut piece = [0; 4096];
        match self.stream.read(&mut piece) {
            Ok(0) => bail!("the stream ended"),
            Ok(read) => Ok(Some(piece[..read].to_vec())),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Ok(None)
            }
            Err(error) => Err(error).context("the stream broke"),
        }
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

/// The first lines of an answer, in lower case.
pub(super) struct Head(String);

impl Head {
    fn field(&self, name: &str) -> Option<&str> {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    }
}

fn request(target: &Target, keep: bool) -> String {
    let mode = if keep { "keep-alive" } else { "close" };
    let Target { path, address, .. } = target;
    let common = format!("Host: {address}\r\nAccept: */*\r\nConnection: {mode}\r\n");
    match &target.method {
        Method::Get => format!("GET {path} HTTP/1.1\r\n{common}\r\n"),
        Method::MergePatch(body) => {
            let number = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
            let body = body.replace(NUMBER, &number);
            let length = body.len();
            format!(
                "PATCH {path} HTTP/1.1\r\n{common}Content-Type: application/merge-patch+json\r\n\
                 Content-Length: {length}\r\n\r\n{body}"
            )
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

/// The body of a chunked answer that is all there.
fn joined(mut chunks: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = find(chunks, b"\r\n").context("a chunk without a length")?;
        let length = std::str::from_utf8(&chunks[..line])?;
        let length = usize::from_str_radix(length.trim(), 16).context("a chunk's length")?;
        if length == 0 {
            return Ok(body);
        }
        let chunk = chunks.get(line + 2..line + 2 + length);
        body.extend_from_slice(chunk.context("a chunk that is cut short")?);
        chunks = chunks.get(line + length + 4..).unwrap_or_default();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined() {
        let body = joined(b"4\r\nabcd\r\n2\r\nef\r\n0\r\n\r\n").unwrap();
        assert_eq!(body, b"abcdef");
        joined(b"4\r\nab").unwrap_err();
    }
}
