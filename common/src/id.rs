//! Typed names and numbers: what a thing is called decides where it may be used.
//!
//! Names are parsed once, at the edge; a value of these types is always valid, and its clones share the text.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest name of a cluster, in bytes. Machine names add a pool and a number, node names add the
/// incarnation, and the result has to stay a DNS label (63 bytes): 24 + 1 + 24 + 1 + 4 + 2 + 7 = 63.
pub const CLUSTER_NAME_MAX: usize = 24;
/// Longest id of a director, in bytes: with it, the names in certificates stay under 200 bytes.
pub const DIRECTOR_ID_MAX: usize = 32;
/// Longest name of a pool, in bytes; see [`CLUSTER_NAME_MAX`].
pub const POOL_NAME_MAX: usize = 24;
/// Longest DNS label, in bytes (RFC 1035, section 2.3.4).
pub const DNS_LABEL_MAX: usize = 63;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} {value:?} must be a DNS label of 1 to {max} characters: lower-case letters, digits and \
     '-', starting with a letter and not ending with '-'"
)]
pub struct NameError {
    what: &'static str,
    value: String,
    max: usize,
}

fn check_label(what: &'static str, value: &str, max: usize) -> Result<(), NameError> {
    let ok = !value.is_empty()
        && value.len() <= max
        && value
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && value.as_bytes()[0].is_ascii_lowercase()
        && !value.ends_with('-');
    if ok {
        Ok(())
    } else {
        Err(NameError {
            what,
            value: value.chars().take(80).collect(),
            max,
        })
    }
}

macro_rules! dns_label {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Parses a name; see [`NameError`] for what is allowed.
            pub fn new(value: impl Into<String>) -> Result<Self, NameError> {
                let value = value.into();
                check_label($what, &value, $max)?;
                Ok(Self(value.into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(value: &str) -> Result<Self, NameError> {
                Self::new(value)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(value: String) -> Result<Self, NameError> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0.as_ref().to_owned()
            }
        }
    };
}

dns_label!(
    /// A director: chosen when it is initialised, part of every certificate it issues.
    DirectorId, "director id", DIRECTOR_ID_MAX
);
dns_label!(
    /// A person or program that operates a director, named in its certificate.
    OperatorName, "operator name", DNS_LABEL_MAX
);
dns_label!(
    /// A cluster, unique within a director.
    ClusterName, "cluster name", CLUSTER_NAME_MAX
);
dns_label!(
    /// A worker pool, unique within its cluster.
    PoolName, "pool name", POOL_NAME_MAX
);
dns_label!(
    /// A time in which no cluster of a director is changed.
    FreezeName, "freeze name", DNS_LABEL_MAX
);
dns_label!(
    /// A zone of a provider: machines of two zones do not fail together.
    ZoneName, "zone name", DNS_LABEL_MAX
);
dns_label!(
    /// A machine, unique within a director: `<cluster>-<pool>-<number>`, stable across incarnations.
    MachineName, "machine name", DNS_LABEL_MAX
);
dns_label!(
    /// A persistent disk, unique within a director.
    DiskName, "disk name", DNS_LABEL_MAX
);
dns_label!(
    /// A Kubernetes node: a machine's name and incarnation, so that a reborn machine is a new node.
    NodeName, "node name", DNS_LABEL_MAX
);

/// Which rebirth of a machine this is; the first is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u32);

impl Incarnation {
    /// The incarnation a machine is created with.
    pub const FIRST: Incarnation = Incarnation(1);

    /// The one after this.
    #[must_use]
    pub fn next(self) -> Incarnation {
        Incarnation(self.0 + 1)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl MachineName {
    /// The node name of this machine's given incarnation, `<machine>-i<incarnation>`.
    pub fn node_name(&self, incarnation: Incarnation) -> Result<NodeName, NameError> {
        NodeName::new(format!("{}-i{incarnation}", self.0))
    }
}

/// Number that grows each time a director takes over or is restored; agents refuse a lower one than
/// they have seen.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A SHA-256 digest, written `sha256:<64 lower-case hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("digest {0:?} must be `sha256:` and 64 lower-case hex digits")]
pub struct DigestError(String);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The digest whose raw bytes these are.
    pub fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hex digits without the algorithm.
    pub fn hex(&self) -> String {
        use fmt::Write;
        self.0
            .iter()
            .fold(String::with_capacity(64), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;
    fn from_str(value: &str) -> Result<Self, DigestError> {
        let bad = || DigestError(value.chars().take(80).collect());
        let hex = value.strip_prefix("sha256:").ok_or_else(bad)?;
        if hex.len() != 64 || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
        }
        Ok(Digest(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(value: String) -> Result<Self, DigestError> {
        value.parse()
    }
}

impl From<Digest> for String {
    fn from(value: Digest) -> String {
        value.to_string()
    }
}

/// Computes a [`Digest`] over data that arrives in pieces.
pub struct Hasher(aws_lc_rs::digest::Context);

impl Default for Hasher {
    fn default() -> Self {
        Self(aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256))
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

impl Hasher {
    /// Adds the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all pieces.
    pub fn finish(self) -> Digest {
        let digest = self.0.finish();
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Digest(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("demo", true), ("a", true), ("a-1", true),
            ("", false), ("1a", false), ("-a", false), ("a-", false), ("A", false),
            ("a.b", false), ("a_b", false), ("ä", false),
            ("aaaaaaaaaaaaaaaaaaaaaaaa", true), ("aaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ];
        for (name, ok) in cases {
            assert_eq!(ClusterName::new(name).is_ok(), ok, "{name}");
        }
    }

    #[test]
    fn digest_round_trips_through_text() {
        let digest = Digest::of(b"windlass");
        assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        assert!("sha256:00".parse::<Digest>().is_err());
        assert!(digest.to_string().to_uppercase().parse::<Digest>().is_err());
    }

    #[test]
    fn the_longest_names_still_make_a_node_name() {
        let machine = MachineName::new(format!("{}-{}-9999", "c".repeat(24), "p".repeat(24)));
        let node = machine.and_then(|m| m.node_name(Incarnation(9_999_999)));
        assert!(node.is_ok_and(|n| n.as_str().len() == DNS_LABEL_MAX));
    }
}
