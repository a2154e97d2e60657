//! Tells systemd that the agent is ready, alive and stopping (`sd_notify`).
//!
//! One datagram each; without `NOTIFY_SOCKET` nothing is sent. The agent does nothing about a failed
//! send: systemd then does what its unit says.

use std::env;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to systemd, if it listens.
#[derive(Debug)]
pub struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub fn from_env() -> Self {
        let variable = |name| env::var(name).ok();
        let ours = variable("WATCHDOG_PID").is_none_or(|pid| pid.parse() == Ok(std::process::id()));
        let watchdog = variable("WATCHDOG_USEC")
            .and_then(|usec| usec.parse().ok())
            .filter(|usec| ours && *usec > 0)
            .map(Duration::from_micros);
        Self {
            socket: variable("NOTIFY_SOCKET").and_then(|path| connect(&path)),
            watchdog,
        }
    }

    /// How often systemd wants a sign of life: half of the time after which it acts.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|timeout| timeout / 2)
    }

    /// The agent has started.
    pub fn ready(&self) {
        self.send("READY=1\n");
    }

    /// The agent is alive.
    pub fn alive(&self) {
        self.send("WATCHDOG=1\n");
    }

    /// The agent is about to end.
    pub fn stopping(&self) {
        self.send("STOPPING=1\n");
    }

    fn send(&self, state: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(error) = socket.send_to_addr(state.as_bytes(), address)
        {
            tracing::warn!(%error, "cannot notify systemd");
        }
    }
}

fn connect(path: &str) -> Option<(UnixDatagram, SocketAddr)> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(path),
    };
    let socket = UnixDatagram::unbound().ok()?;
    // The agent's one thread must never wait for systemd.
    socket.set_nonblocking(true).ok()?;
    Some((socket, address.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sorts_of_address_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify").to_str().unwrap().to_owned();
        let name = format!("@windlass-test-{}", std::process::id());
        for address in [path, name] {
            let listener = match address.strip_prefix('@') {
                Some(name) => {
                    UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).unwrap())
                }
                None => UnixDatagram::bind(&address),
            }
            .unwrap();
            let notify = Notify {
                socket: connect(&address),
                watchdog: None,
            };
            notify.ready();
            let mut buffer = [0; 64];
            let length = listener.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"READY=1\n", "{address}");
        }
    }
}
