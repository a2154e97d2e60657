//! Hellos by the thousand: each is the first flight of a real handshake, which is said once, and once more with the
//! proof of its address where it is asked for. Who has said it is forgotten at once, so that it costs next to nothing,
//! repeats nothing and hears nothing: its handshake is the director's alone.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use quinn_proto::{Connection, ConnectionHandle, DatagramEvent, Endpoint, EndpointConfig};

use windlass_common::limits::FAILURES_PER_SOURCE;
use windlass_common::pki::gateway_name;
use windlass_common::{tls, transport};

use crate::half_open::is_retry;
use crate::world::{Director, PATIENCE};

/// Hellos from one address: fewer than it may fail with before it is refused unseen.
const EACH: usize = FAILURES_PER_SOURCE.burst as usize / 2;
/// Hellos without a sound of the director: four packets each at most, so that all fit into the buffer of a socket that
/// nobody has widened.
const UNHEARD_MAX: usize = 16;

/// Who says them.
pub(crate) struct Hellos {
    config: quinn::ClientConfig,
    name: String,
    director: SocketAddr,
    /// Open to the end: a host answers for a port that is closed, which would tell the director who has gone.
    addresses: Vec<Address>,
    said: usize,
}

impl Hellos {
    pub(crate) fn new(director: &Director) -> Hellos {
        let tls = tls::enroll_client(director.ca.root_digest()).unwrap();
        Hellos {
            config: transport::client_config(tls).unwrap(),
            name: gateway_name(director.ca.director()),
            director: director.address,
            addresses: Vec::new(),
            said: 0,
        }
    }

    /// Says so many more, and returns once the director has heard each. Blocks its thread.
    pub(crate) fn say(&mut self, count: usize) {
        let end = self.said + count;
        while self.said < end {
            if self.said.is_multiple_of(EACH) {
                let address = Address::open(self.addresses.len(), self.director);
                self.addresses.push(address);
            }
            let address = self.addresses.last_mut().unwrap();
            address.say(&self.config, self.director, &self.name);
            self.said += 1;
            let unheard_max = match self.said.is_multiple_of(EACH) || self.said == end {
                true => 0,
                false => UNHEARD_MAX,
            };
            while address.unheard.len() > unheard_max {
                address.hear(self.director);
            }
        }
    }
}

struct Address {
    socket: UdpSocket,
    endpoint: Endpoint,
    unheard: HashMap<ConnectionHandle, Connection>,
}

impl Address {
    /// All of 127.0.0.0/8 is this host.
    fn open(number: usize, director: SocketAddr) -> Address {
        let address = Ipv4Addr::from(0x7f02_0001 + u32::try_from(number).unwrap());
        let socket = UdpSocket::bind((address, 0)).unwrap();
        socket.connect(director).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Address {
            socket,
            endpoint: Endpoint::new(Arc::new(EndpointConfig::default()), None, false, None),
            unheard: HashMap::new(),
        }
    }

    fn say(&mut self, config: &quinn::ClientConfig, director: SocketAddr, name: &str) {
        let (config, now) = (config.clone(), Instant::now());
        let connection = self.endpoint.connect(now, config, director, name);
        let (handle, mut connection) = connection.unwrap();
        self.flight(&mut connection);
        self.unheard.insert(handle, connection);
    }

    /// Sends what a connection has to say now.
    fn flight(&self, connection: &mut Connection) {
        let mut datagram = Vec::new();
        while connection
            .poll_transmit(Instant::now(), 1, &mut datagram)
            .is_some()
        {
            self.socket.send(&datagram).unwrap();
            datagram.clear();
        }
    }

    /// Waits for one datagram. Whose address is asked for proves it; who is answered has said enough.
    fn hear(&mut self, director: SocketAddr) {
        let mut datagram = [0; 2_048];
        let bytes = match self.socket.recv(&mut datagram) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => panic!("{} hellos were not heard: {error}", self.unheard.len()),
        };
        let (now, heard) = (Instant::now(), BytesMut::from(&datagram[..bytes]));
        let retry = is_retry(&heard);
        let event = self
            .endpoint
            .handle(now, director, None, None, heard, &mut Vec::new());
        // Others are answers to hellos of before.
        if let Some(DatagramEvent::ConnectionEvent(handle, event)) = event
            && let Some(mut connection) = self.unheard.remove(&handle)
            && retry
        {
            connection.handle_event(event);
            self.flight(&mut connection);
        }
    }
}
