//! Sealing of secrets: AES-256-GCM under a key that is kept in a file outside the store.
//!
//! # Invariants
//! * A nonce is random (96 bits) and new for each sealing; 2^32 sealings stay far from a collision.
//! * The name of a secret is authenticated with it: one entry cannot be put in another's place.
//!
//! # After a crash
//! The key file is written whole or not at all, and never overwritten.
//!
//! # Not here
//! Where the key file comes from on platforms with a key service.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use zeroize::Zeroizing;

/// First line of a key file.
const MAGIC: &str = "windlass-seal-key-1";
/// Length of the key, in bytes.
const KEY_BYTES: usize = 32;

/// Seals and opens secrets with one key.
pub struct Sealer {
    key: RandomizedNonceKey,
}

/// Why sealing, opening or the key file failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// Another key, another name, or changed bytes.
    #[error(
        "cannot be opened with this key file; use the one that `windlass director init` wrote for this data directory"
    )]
    Open,
    /// The cipher refused; it does so only for impossible sizes.
    #[error("cannot be sealed")]
    Seal,
    /// The key file cannot be used.
    #[error("key file {path}: {problem}")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: &'static str,
    },
    /// The key file cannot be read or written.
    #[error("cannot {doing} the key file {path}")]
    Io {
        /// `read` or `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer")
    }
}

impl Sealer {
    /// A sealer with this key.
    pub fn new(key: &[u8; KEY_BYTES]) -> Result<Self, SealError> {
        RandomizedNonceKey::new(&AES_256_GCM, key)
            .map(|key| Self { key })
            .map_err(|_| SealError::Seal)
    }

    /// Makes a key and writes it to `path` (mode 0600, synced); refuses to overwrite.
    pub fn create(path: &Path) -> Result<Self, SealError> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        aws_lc_rs::rand::fill(&mut key[..]).map_err(|_| SealError::Seal)?;
        let hex = key
            .iter()
            .fold(Zeroizing::new(String::new()), |mut text, byte| {
                use fmt::Write;
                let _ = write!(text, "{byte:02x}");
                text
            });
        let fail = |source| SealError::Io {
            doing: "write",
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(fail)?;
        writeln!(file, "{MAGIC}\n{}", hex.as_str()).map_err(fail)?;
        file.sync_all().map_err(fail)?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))
            .and_then(|dir| dir.sync_all())
            .map_err(fail)?;
        Self::new(&key)
    }

    /// Reads the key file; refuses one that others may read.
    pub fn load(path: &Path) -> Result<Self, SealError> {
        let fail = |source| SealError::Io {
            doing: "read",
            path: path.to_owned(),
            source,
        };
        let bad = |problem| SealError::KeyFile {
            path: path.to_owned(),
            problem,
        };
        let file = File::open(path).map_err(fail)?;
        if file.metadata().map_err(fail)?.mode() & 0o077 != 0 {
            return Err(bad("others may read it; `chmod 600` it"));
        }
        let mut text = Zeroizing::new(String::with_capacity(256));
        file.take(256).read_to_string(&mut text).map_err(fail)?;
        let hex = text
            .strip_prefix(MAGIC)
            .map(str::trim)
            .filter(|hex| hex.len() == 2 * KEY_BYTES && hex.bytes().all(|b| b.is_ascii_hexdigit()))
            .ok_or_else(|| bad("this is no key file; restore it from its backup"))?;
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        for (i, byte) in key.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16)
                .map_err(|_| bad("this is no key file; restore it from its backup"))?;
        }
        Self::new(&key)
    }

    /// Seals `plain` under `name`: nonce, then ciphertext and tag.
    pub fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut sealed = plain.to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(name), &mut sealed)
            .map_err(|_| SealError::Seal)?;
        let mut out = nonce.as_ref().to_vec();
        out.append(&mut sealed);
        Ok(out)
    }

    /// Opens what was sealed under `name`.
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or(SealError::Open)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Open)?;
        let mut body = Zeroizing::new(body.to_vec());
        let length = self
            .key
            .open_in_place(nonce, Aad::from(name), &mut body)
            .map_err(|_| SealError::Open)?
            .len();
        body.truncate(length);
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn opens_only_with_the_same_key_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let one = Sealer::create(&dir.path().join("one")).unwrap();
        let two = Sealer::create(&dir.path().join("two")).unwrap();
        let sealed = one.seal("a", b"swordfish").unwrap();
        assert!(!sealed.windows(4).any(|w| w == b"swor"));
        assert_eq!(&one.open("a", &sealed).unwrap()[..], b"swordfish");
        assert!(one.open("b", &sealed).is_err());
        assert!(two.open("a", &sealed).is_err());
        for cut in 0..sealed.len() {
            assert!(one.open("a", &sealed[..cut]).is_err());
        }
        let mut changed = sealed;
        changed[NONCE_LEN] ^= 1;
        assert!(one.open("a", &changed).is_err());
    }

    #[test]
    fn the_key_file_is_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let sealed = Sealer::create(&path).unwrap().seal("a", b"x").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(Sealer::create(&path).is_err());
        assert_eq!(
            &Sealer::load(&path).unwrap().open("a", &sealed).unwrap()[..],
            b"x"
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(
            Sealer::load(&path)
                .unwrap_err()
                .to_string()
                .contains("chmod 600")
        );
    }
}
