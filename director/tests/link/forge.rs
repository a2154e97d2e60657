//! An agent that breaks the rules of QUIC: an honest connection whose next packet says something else than its own
//! library would ever say.

use std::any::Any;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use quinn::ConnectionId;
use quinn::Side;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::crypto::{
    ClientConfig, CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey,
    Session,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, TransportError};

use windlass_common::pki::gateway_name;

use crate::certificates::{Credentials, client};
use crate::world::Director;

/// The frames of the next packet.
#[derive(Debug, Clone, Default)]
pub(crate) struct Forgery(Arc<Mutex<Option<Vec<u8>>>>);

impl Forgery {
    /// Puts these frames in the place of those of the next packet.
    pub(crate) fn say(&self, frames: &[u8]) {
        *self.0.lock().unwrap() = Some(frames.to_vec());
    }
}

/// Connects as an agent whose packets can be forged.
pub(crate) async fn connect(
    director: &Director,
    (chain, key): Credentials,
) -> (quinn::Connection, Forgery) {
    let forgery = Forgery::default();
    let honest = QuicClientConfig::try_from(client(director, chain, key)).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(Forger {
        honest: Arc::new(honest),
        forgery: forgery.clone(),
    }));
    let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let name = gateway_name(director.ca.director());
    let connecting = endpoint.connect_with(config, director.address, &name);
    (connecting.unwrap().await.unwrap(), forgery)
}

struct Forger {
    honest: Arc<QuicClientConfig>,
    forgery: Forgery,
}

impl ClientConfig for Forger {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let honest = Arc::clone(&self.honest).start_session(version, server_name, params)?;
        Ok(Box::new(ForgingSession {
            honest,
            forgery: self.forgery.clone(),
        }))
    }
}

struct ForgingSession {
    honest: Box<dyn Session>,
    forgery: Forgery,
}

impl ForgingSession {
    fn forging(&self, pair: KeyPair<Box<dyn PacketKey>>) -> KeyPair<Box<dyn PacketKey>> {
        KeyPair {
            local: Box::new(ForgingKey {
                honest: pair.local,
                forgery: self.forgery.clone(),
            }),
            remote: pair.remote,
        }
    }
}

impl Session for ForgingSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.honest.initial_keys(dst_cid, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.honest.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.honest.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.honest.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.honest.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.honest.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.honest.read_handshake(buf)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.honest.transport_parameters()
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let Keys { header, packet } = self.honest.write_handshake(buf)?;
        let packet = self.forging(packet);
        Some(Keys { header, packet })
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let pair = self.honest.next_1rtt_keys()?;
        Some(self.forging(pair))
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.honest.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.honest.export_keying_material(output, label, context)
    }
}

struct ForgingKey {
    honest: Box<dyn PacketKey>,
    forgery: Forgery,
}

impl PacketKey for ForgingKey {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        let end = buf.len() - self.honest.tag_len();
        let payload = &mut buf[header_len..end];
        let mut forged = self.forgery.0.lock().unwrap();
        if let Some(frames) = forged.take_if(|frames| frames.len() <= payload.len()) {
            // The rest is padding (RFC 9000, 19.1).
            payload.fill(0);
            payload[..frames.len()].copy_from_slice(&frames);
        }
        drop(forged);
        self.honest.encrypt(packet, buf, header_len);
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        self.honest.decrypt(packet, header, payload)
    }

    fn tag_len(&self) -> usize {
        self.honest.tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.honest.confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.honest.integrity_limit()
    }
}
