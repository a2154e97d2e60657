//! How a machine whose certificate lapsed comes back: the rule, and the proof that it asks for.
//!
//! A machine that was cut off from its director, or whose director was away, may find its certificate
//! over. It comes back unaided, over `windlass-enroll/1`, if all of this holds by the director's clock:
//!
//! 1. it shows its last certificate, and an issuer of agents that the director trusts *now* signed it;
//! 2. the certificate names this director, and an incarnation that is current: not replaced, not deleted;
//! 3. the certificate is over for no longer than the grace window ([`crate::limits::LAPSED_GRACE`] by
//!    default, the director's configuration sets it);
//! 4. it proves that it holds the certificate's key *and* the new key the next certificate is for: each
//!    signs the [`statement`], which names this very TLS connection, both keys and nothing else.
//!
//! The statement of another connection does not count, so nobody who reads or relays one gains anything.
//! The answer is a certificate as from any enrollment. In every other case a fresh token is needed, or a
//! new incarnation.
//!
//! # Not here
//! Who decides (the director's gateway), and when a machine asks (the agent's link).

use crate::error::ErrorClass;
use crate::id::Digest;

/// Exporter label of TLS (RFC 8446, section 7.5) for this proof alone.
const LABEL: &[u8] = b"EXPORTER-windlass-lapsed";
/// First bytes of a statement: a signature for anything else is not one of these.
const PURPOSE: &[u8] = b"windlass lapsed certificate 1\0";

/// What both ends of one TLS connection know, and nobody else.
pub type Channel = [u8; 32];

/// The connection has no keys to derive from: its handshake is not over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the connection cannot say what only its two ends know")]
pub struct ChannelError;

impl ChannelError {
    /// Who acts: connections are asked after their handshake.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Bug
    }
}

/// The secret of this connection that a statement is bound to.
pub fn channel(connection: &quinn::Connection) -> Result<Channel, ChannelError> {
    let mut channel = [0; 32];
    connection
        .export_keying_material(&mut channel, LABEL, b"")
        .map_err(|_| ChannelError)?;
    Ok(channel)
}

/// What both keys sign.
pub fn statement(channel: &Channel, certificate_der: &[u8], request_der: &[u8]) -> Vec<u8> {
    [
        PURPOSE,
        channel,
        Digest::of(certificate_der).as_bytes(),
        Digest::of(request_der).as_bytes(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::PrivateKey;

    #[test]
    fn a_signature_is_for_one_connection_one_certificate_and_one_request() {
        let (key, other) = (
            PrivateKey::generate().unwrap(),
            PrivateKey::generate().unwrap(),
        );
        let said = statement(&[1; 32], b"certificate", b"request");
        let signature = key.sign(&said).unwrap();
        assert!(key.public_key().has_signed(&said, &signature));
        assert!(!other.public_key().has_signed(&said, &signature));
        assert!(!key.public_key().has_signed(&said, b""));
        for changed in [
            statement(&[2; 32], b"certificate", b"request"),
            statement(&[1; 32], b"certificat", b"erequest"),
            statement(&[1; 32], b"request", b"certificate"),
        ] {
            assert!(!key.public_key().has_signed(&changed, &signature));
        }
    }
}
