//! Clients of NATS, as small as they can be: CONNECT, PUB, and PONG to the server's PING.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use windlass_common::id::Epoch;
use windlass_common::pki::gateway_name;
use windlass_common::report::Heartbeat;
use windlass_common::settings::Settings;
use windlass_common::wire::frame::Frame;

use crate::{Failed, count_failures, identity};

/// Longest line of the server that is read, bytes: its INFO is under 1 KiB.
const LINE_BYTES_MAX: u64 = 16 << 10;

/// Clients that publish until this is dropped.
#[derive(Debug)]
pub(crate) struct Publishing(#[allow(dead_code, reason = "ends them when dropped")] JoinSet<()>);

/// Connects one client with each identity; each publishes from its connection on.
pub(crate) async fn connect(
    settings: &[Settings],
    dir: &Path,
    address: SocketAddr,
    interval_ms: u32,
    at_once: usize,
) -> Result<(Publishing, Failed)> {
    let places = Arc::new(Semaphore::new(at_once));
    let mut connecting = JoinSet::new();
    let mut publishing = JoinSet::new();
    let mut outcomes = Vec::new();
    let every = Duration::from_millis(interval_ms.into());
    for settings in settings {
        let place = Arc::clone(&places).acquire_owned().await?;
        let tls = Arc::new(identity::tls(dir, settings)?);
        let name = gateway_name(&settings.director_id);
        let subject = format!("windlass.heartbeat.{}", settings.machine);
        connecting.spawn(async move {
            let stream = handshake(tls, address, name).await;
            drop(place);
            stream.map(|stream| (stream, subject))
        });
        while let Some(joined) = connecting.try_join_next() {
            outcomes.push(begin(joined?, every, &mut publishing));
        }
    }
    while let Some(joined) = connecting.join_next().await {
        outcomes.push(begin(joined?, every, &mut publishing));
    }
    Ok((Publishing(publishing), count_failures(outcomes)))
}

type Client = BufReader<TlsStream<TcpStream>>;

fn begin(
    connected: Result<(Client, String)>,
    every: Duration,
    publishing: &mut JoinSet<()>,
) -> Result<()> {
    let (stream, subject) = connected?;
    publishing.spawn(async move {
        if let Err(error) = publish(stream, &subject, every).await {
            tracing::warn!(subject, error = format!("{error:#}"), "a client ended");
        }
    });
    Ok(())
}

async fn handshake(
    tls: Arc<rustls::ClientConfig>,
    address: SocketAddr,
    name: String,
) -> Result<Client> {
    let mut plain = TcpStream::connect(address)
        .await
        .context("cannot connect")?;
    plain.set_nodelay(true)?;
    let info = read_line(&mut plain).await.context("no INFO")?;
    if !info.starts_with("INFO ") {
        bail!("the server said {info:?} where INFO was due");
    }
    let name = ServerName::try_from(name).context("the server's name is no name")?;
    let stream = TlsConnector::from(tls)
        .connect(name, plain)
        .await
        .context("the TLS handshake failed")?;
    let mut stream = BufReader::with_capacity(512, stream);
    stream
        .write_all(
            b"CONNECT {\"verbose\":false,\"pedantic\":false,\"tls_required\":true}\r\nPING\r\n",
        )
        .await?;
    stream.flush().await?;
    let mut line = String::new();
    while line.trim_end() != "PONG" {
        line.clear();
        if (&mut stream)
            .take(LINE_BYTES_MAX)
            .read_line(&mut line)
            .await?
            == 0
        {
            bail!("the server closed the connection");
        }
        if line.starts_with("-ERR") {
            bail!("the server refuses: {}", line.trim_end());
        }
    }
    Ok(stream)
}

/// Reads byte by byte: what follows the line belongs to TLS.
async fn read_line(stream: &mut TcpStream) -> Result<String> {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') && (line.len() as u64) < LINE_BYTES_MAX {
        line.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&line).into_owned())
}

async fn publish(mut stream: Client, subject: &str, every: Duration) -> Result<()> {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sequence = 0;
    let mut line = String::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                sequence += 1;
                let message = message(subject, sequence)?;
                stream.write_all(&message).await?;
                stream.flush().await?;
            }
            // A line is read in part when the tick comes first: the rest follows into the same buffer.
            read = stream.read_line(&mut line) => {
                if read? == 0 {
                    bail!("the server closed the connection");
                }
                match line.trim_end() {
                    "PING" => {
                        stream.write_all(b"PONG\r\n").await?;
                        stream.flush().await?;
                    }
                    other if other.starts_with("-ERR") => bail!("the server says {other}"),
                    _ => {}
                }
                line.clear();
            }
        }
    }
}

/// The same bytes that a heartbeat has on the link.
fn message(subject: &str, sequence: u64) -> Result<Vec<u8>> {
    let heartbeat = Heartbeat {
        sequence,
        at_unix_ms: windlass_agent::report::now_unix_ms(),
        units_unhealthy: 0,
        memory_used_bp: 1200,
        disk_used_bp: 3400,
        epoch: Epoch(1),
    };
    let body = Frame::of(&heartbeat)?.to_bytes();
    let mut message = format!("PUB {subject} {}\r\n", body.len()).into_bytes();
    message.extend_from_slice(&body);
    message.extend_from_slice(b"\r\n");
    Ok(message)
}
