//! Public keys of stemcell builders, and what they sign.
//!
//! A signature is over a fixed prefix and the manifest's bytes, so that it is worth nothing for any
//! other kind of document. Private keys are not here: only builders have them.

use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::error::ErrorClass;

/// Largest file of trusted keys, in bytes: a thousand lines.
pub const KEY_FILE_BYTES_MAX: u64 = 128 << 10;
const SCHEME: &str = "ed25519:";
const PREFIX: &[u8] = b"windlass stemcell manifest 1\0";

/// The bytes that a signature of `manifest` covers.
pub fn signed_message(manifest: &[u8]) -> Vec<u8> {
    [PREFIX, manifest].concat()
}

/// An ed25519 public key, written `ed25519:<base64 of 32 bytes>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

/// Why keys cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A text is not a key.
    #[error("{value:?} is not a public key; write `ed25519:` and the base64 of 32 bytes")]
    Malformed {
        /// What was read, shortened.
        value: String,
    },
    /// The file is missing or unreadable.
    #[error("cannot read the trusted keys in {}; `windlass-stemcell build` writes them", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// One line of the file is not a key.
    #[error("line {line} of {} is not a trusted key", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: Box<KeyError>,
    },
    /// The file is larger than any list of keys.
    #[error("{} is larger than {KEY_FILE_BYTES_MAX} bytes, which no list of keys is", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

impl KeyError {
    /// Who has to act.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }
}

impl PublicKey {
    /// The key whose raw bytes these are.
    pub fn from_bytes(bytes: [u8; 32]) -> PublicKey {
        PublicKey(bytes)
    }

    /// Whether `signature` is this key's signature of `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0)
            .verify(message, signature)
            .is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", BASE64.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(value: &str) -> Result<Self, KeyError> {
        let raw = value
            .strip_prefix(SCHEME)
            .and_then(|text| BASE64.decode(text).ok());
        match raw.map(<[u8; 32]>::try_from) {
            Some(Ok(bytes)) => Ok(PublicKey(bytes)),
            _ => Err(KeyError::Malformed {
                value: value.chars().take(80).collect(),
            }),
        }
    }
}

/// The keys whose signatures count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedKeys(Vec<PublicKey>);

impl TrustedKeys {
    /// Exactly these keys.
    pub fn new(keys: impl IntoIterator<Item = PublicKey>) -> TrustedKeys {
        TrustedKeys(keys.into_iter().collect())
    }

    /// Reads a file of keys: one a line, an optional comment after it; blank lines and lines that
    /// start with `#` are skipped.
    pub fn load(path: &Path) -> Result<TrustedKeys, KeyError> {
        let read = |source| KeyError::Read {
            path: path.to_owned(),
            source,
        };
        let mut text = String::new();
        let file = fs::File::open(path).map_err(read)?;
        file.take(KEY_FILE_BYTES_MAX + 1)
            .read_to_string(&mut text)
            .map_err(read)?;
        if text.len() as u64 > KEY_FILE_BYTES_MAX {
            return Err(KeyError::TooLarge {
                path: path.to_owned(),
            });
        }
        let mut keys = Vec::new();
        for (index, line) in text.lines().enumerate() {
            match line.split_whitespace().next() {
                None => {}
                Some(word) if word.starts_with('#') => {}
                Some(word) => keys.push(word.parse().map_err(|error| KeyError::Line {
                    path: path.to_owned(),
                    line: index + 1,
                    source: Box::new(error),
                })?),
            }
        }
        Ok(TrustedKeys(keys))
    }

    /// Whether `key` is trusted.
    pub fn contains(&self, key: &PublicKey) -> bool {
        self.0.contains(key)
    }

    /// The keys, in the order they were given.
    pub fn iter(&self) -> impl Iterator<Item = &PublicKey> {
        self.0.iter()
    }
}
