//! Strangers that begin handshakes, prove their address when they are asked to, and hear nothing else: each
//! handshake stands half open for as long as the director bears it.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use windlass_common::limits::FAILURES_PER_SOURCE;
use windlass_common::pki::gateway_name;
use windlass_common::{tls, transport};

use crate::world::{Director, wait_for};

/// Handshakes from one address: fewer than it may fail with before it is refused unseen.
const EACH: usize = FAILURES_PER_SOURCE.burst as usize / 2;

/// Strangers, as many as their handshakes need.
pub(crate) struct HalfOpen {
    config: quinn::ClientConfig,
    name: String,
    director: SocketAddr,
    strangers: Vec<Stranger>,
    begun: usize,
}

impl HalfOpen {
    pub(crate) fn new(director: &Director) -> HalfOpen {
        let tls = tls::enroll_client(director.ca.root_digest()).unwrap();
        HalfOpen {
            config: transport::client_config(tls).unwrap(),
            name: gateway_name(director.ca.director()),
            director: director.address,
            strangers: Vec::new(),
            begun: 0,
        }
    }

    /// Begins one more.
    pub(crate) async fn begin(&mut self) {
        let number = self.begun / EACH;
        self.begun += 1;
        if number == self.strangers.len() {
            self.strangers
                .push(Stranger::start(self.director, number).await);
        }
        let stranger = &mut self.strangers[number];
        let connecting =
            stranger
                .endpoint
                .connect_with(self.config.clone(), stranger.ear, &self.name);
        stranger.connecting.push(connecting.unwrap());
    }

    /// Waits until the director has answered as many handshakes as were begun: they stand half open there.
    pub(crate) async fn answered(&self) {
        let answered = || {
            let each = self.strangers.iter();
            each.map(|stranger| stranger.answered.lock().unwrap().len())
                .sum::<usize>()
        };
        wait_for("the director's answers", || {
            (answered() >= self.begun).then_some(())
        })
        .await;
    }
}

/// Many handshakes of one address, through a relay that brings them nothing but the question for it.
struct Stranger {
    endpoint: quinn::Endpoint,
    ear: SocketAddr,
    connecting: Vec<quinn::Connecting>,
    /// The connection ids of those who were answered.
    answered: Arc<Mutex<HashSet<Vec<u8>>>>,
    _relay: JoinSet<()>,
}

impl Stranger {
    /// All of 127.0.0.0/8 is this host.
    async fn start(director: SocketAddr, number: usize) -> Stranger {
        let ear = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = Ipv4Addr::from(0x7f01_0001 + u32::try_from(number).unwrap());
        let mouth = UdpSocket::bind((address, 0)).await.unwrap();
        mouth.connect(director).await.unwrap();
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let heard_at = ear.local_addr().unwrap();
        let (ear, mouth) = (Arc::new(ear), Arc::new(mouth));
        let from = Arc::new(Mutex::new(None));
        let mut relay = JoinSet::new();
        relay.spawn({
            let (ear, mouth, from) = (Arc::clone(&ear), Arc::clone(&mouth), Arc::clone(&from));
            async move {
                let mut datagram = vec![0; 65_536];
                while let Ok((bytes, peer)) = ear.recv_from(&mut datagram).await {
                    *from.lock().unwrap() = Some(peer);
                    // A director that does not listen any more is one more loss.
                    let _ = mouth.send(&datagram[..bytes]).await;
                }
            }
        });
        let answered = Arc::new(Mutex::new(HashSet::new()));
        let heard = Arc::clone(&answered);
        relay.spawn(async move {
            let mut datagram = vec![0; 65_536];
            loop {
                let Ok(bytes) = mouth.recv(&mut datagram).await else {
                    continue;
                };
                let datagram = &datagram[..bytes];
                let peer = *from.lock().unwrap();
                if let Some(peer) = peer.filter(|_| is_retry(datagram)) {
                    let _ = ear.send_to(datagram, peer).await;
                } else if let Some(id) = destination(datagram) {
                    heard.lock().unwrap().insert(id.to_vec());
                }
            }
        });
        Stranger {
            endpoint,
            ear: heard_at,
            connecting: Vec::new(),
            answered,
            _relay: relay,
        }
    }
}

/// RFC 9000, 17.2.5: a long header of type 3.
pub(crate) fn is_retry(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|first| first & 0xf0 == 0xf0)
}

/// The destination connection id of a long header (RFC 9000, 17.2).
fn destination(datagram: &[u8]) -> Option<&[u8]> {
    let (first, length) = (datagram.first()?, datagram.get(5)?);
    let id = datagram.get(6..6 + usize::from(*length))?;
    (first & 0x80 != 0).then_some(id)
}
