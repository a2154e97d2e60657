//! Identities and certificates as both sides see them.
//!
//! Who somebody is stands in one URI name of the certificate ([`identity`]) and nowhere else: not in
//! the subject, not in a host name. Keys are ECDSA P-256, PKCS#8 PEM at rest. A certificate request
//! ([`request`]) is trusted for its public key and its proof of possession alone; every name in a
//! certificate is the choice of whoever issues it.
//!
//! # Invariants
//! * No function reads a clock: time comes in as an argument.
//! * A private key is never in an error or in `Debug`.
//!
//! # Not here
//! Issuing ([`profile`] only builds the parameters; the director holds the CAs), storing, and TLS
//! ([`crate::tls`]).

pub mod identity;
pub mod leaf;
pub mod pem;
pub mod profile;
pub mod request;

pub use identity::{IdentityError, MachineIdentity, OperatorIdentity};
pub use leaf::{Leaf, LeafError};
pub use request::{PrivateKey, PublicKey, RequestError};

use crate::id::DirectorId;

/// The name that a director's gateway carries in its certificate, and agents insist on.
pub fn gateway_name(director: &DirectorId) -> String {
    format!("director.{director}.windlass.internal")
}
