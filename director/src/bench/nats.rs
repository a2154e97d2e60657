//! The comparison: `nats-server` with mutual TLS and as many clients, as BOSH runs it for its agents.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use windlass_common::pki::gateway_name;

use crate::config::Identity;

use super::error::BenchError;
use super::process;

/// Life of the server's certificate.
const SERVER_LIFE: Duration = Duration::from_secs(24 * 3600);
const PATIENCE: Duration = Duration::from_secs(20);

/// A running server. Killed when dropped.
#[derive(Debug)]
pub(super) struct Nats {
    child: Child,
    pub(super) address: SocketAddr,
    monitor: SocketAddr,
    /// What `nats-server --version` says.
    pub(super) version: String,
}

/// Where the program is, if it is installed.
pub(super) fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // Debian puts it where only root looks.
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|dir| dir.join("nats-server"))
        .find(|program| program.is_file())
}

impl Nats {
    /// Starts the server with a certificate of the same CA that the agents trust.
    pub(super) fn start(
        program: &Path,
        dir: &Path,
        identity: &Identity,
    ) -> Result<Nats, BenchError> {
        let address = free_port().map_err(BenchError::io("find a free port on", "127.0.0.1"))?;
        let monitor = free_port().map_err(BenchError::io("find a free port on", "127.0.0.1"))?;
        let certificate = identity.ca.issue_server(
            &[gateway_name(&identity.id)],
            &[],
            SERVER_LIFE,
            jiff::Timestamp::now(),
        )?;
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.join(name);
            fs::write(&path, bytes).map_err(BenchError::io("write", &path))?;
            Ok::<_, BenchError>(path)
        };
        let chain = file("nats.crt", certificate.chain.to_pem().as_bytes())?;
        let key = file("nats.key", pem_key(certificate.key.secret_der()).as_bytes())?;
        let ca = file("nats-ca.crt", identity.ca.root_pem().as_bytes())?;
        let text = format!(
            "listen: \"{address}\"\nhttp: \"{monitor}\"\nmax_connections: 65536\n\
             tls {{\n  cert_file: {chain:?}\n  key_file: {key:?}\n  ca_file: {ca:?}\n  \
             verify: true\n  timeout: 30\n}}\n"
        );
        let config = file("nats.conf", text.as_bytes())?;
        let log = dir.join("nats.log");
        let output = fs::File::create(&log).map_err(BenchError::io("create", &log))?;
        let child = Command::new(program)
            .arg("-c")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .map_err(BenchError::io("start", program))?;
        let mut nats = Nats {
            child,
            address,
            monitor,
            version: version(program),
        };
        nats.await_ready()?;
        Ok(nats)
    }

    fn await_ready(&mut self) -> Result<(), BenchError> {
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(self.address).is_err() {
            let ended = self.child.try_wait().ok().flatten().is_some();
            if ended || Instant::now() >= deadline {
                return Err(BenchError::Failed {
                    name: "nats-server".to_owned(),
                    message: "it does not listen; see nats.log".to_owned(),
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Resident bytes and CPU time.
    pub(super) fn usage(&self) -> Result<(u64, u64), BenchError> {
        process::of(self.child.id())
    }

    /// Messages that came in so far.
    pub(super) fn messages(&self) -> Result<u64, BenchError> {
        let asked = || -> io::Result<u64> {
            let mut stream = TcpStream::connect(self.monitor)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /varz HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.take(1 << 20).read_to_string(&mut answer)?;
            answer
                .split_once("\r\n\r\n")
                .and_then(|(_, body)| serde_json::from_str::<serde_json::Value>(body).ok())
                .and_then(|body| body["in_msgs"].as_u64())
                .ok_or_else(|| io::Error::other("no in_msgs in the answer"))
        };
        asked().map_err(BenchError::io("read /varz of", "nats-server"))
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn version(program: &Path) -> String {
    let output = Command::new(program).arg("--version").output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

fn pem_key(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
}

fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}
