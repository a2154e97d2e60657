//! The builder's private key, and signatures by it.
//!
//! A key is a PKCS#8 document in PEM, readable by its owner alone; others are refused. It is never
//! printed.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use windlass_common::error::ErrorClass;
use windlass_common::stemcell::{KeyError, PublicKey, TRUSTED, TrustedKeys, signed_message};

use crate::files::{FileError, at, create_dir, write_atomic};

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";
/// Length of a line in PEM.
const PEM_COLUMNS: usize = 64;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The file is there already.
    #[error("{} exists; a signing key is never overwritten", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read the signing key {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others may read it.
    #[error("{} may be read by others (mode {mode:04o}); chmod 600 it, or make another key", path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is not a key.
    #[error("{} is not an ed25519 key in PKCS#8 PEM, as `windlass-stemcell keygen` writes it", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The system has no randomness.
    #[error("cannot make a key: the system gives no random numbers")]
    Random,
    /// The trusted keys beside the stemcells are damaged.
    #[error("the trusted keys are not valid; repair that file or remove it")]
    Trusted(#[source] KeyError),
    /// Writing failed.
    #[error(transparent)]
    File(#[from] FileError),
}

impl KeyFileError {
    /// Who has to act.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }
}

/// A key that signs stemcells.
pub struct SigningKey(Ed25519KeyPair);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public())
    }
}

impl SigningKey {
    /// Makes a key and writes it to a file that must not exist.
    pub fn create(path: &Path) -> Result<SigningKey, KeyFileError> {
        if path.exists() {
            return Err(KeyFileError::Exists {
                path: path.to_owned(),
            });
        }
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyFileError::Random)?;
        let document = pair.to_pkcs8().map_err(|_| KeyFileError::Random)?;
        let text = BASE64.encode(document.as_ref());
        let mut pem = format!("{BEGIN}\n");
        for line in text.as_bytes().chunks(PEM_COLUMNS) {
            pem.extend(line.iter().map(|&byte| char::from(byte)));
            pem.push('\n');
        }
        pem.push_str(END);
        pem.push('\n');
        if let Some(parent) = path.parent() {
            create_dir(parent)?;
        }
        write_atomic(path, pem.as_bytes(), 0o600)?;
        Ok(SigningKey(pair))
    }

    /// Reads a key.
    pub fn load(path: &Path) -> Result<SigningKey, KeyFileError> {
        let read = |source| KeyFileError::Read {
            path: path.to_owned(),
            source,
        };
        let malformed = || KeyFileError::Malformed {
            path: path.to_owned(),
        };
        let mode = fs::metadata(path).map_err(read)?.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(KeyFileError::TooOpen {
                path: path.to_owned(),
                mode,
            });
        }
        let pem = fs::read_to_string(path).map_err(read)?;
        let body = pem
            .trim()
            .strip_prefix(BEGIN)
            .and_then(|rest| rest.strip_suffix(END));
        let text: String = body.ok_or_else(malformed)?.split_whitespace().collect();
        let document = BASE64.decode(text).map_err(|_| malformed())?;
        let pair = Ed25519KeyPair::from_pkcs8(&document).map_err(|_| malformed())?;
        Ok(SigningKey(pair))
    }

    /// Reads a key, or makes one where there is none.
    pub fn load_or_create(path: &Path) -> Result<SigningKey, KeyFileError> {
        match path.exists() {
            true => SigningKey::load(path),
            false => SigningKey::create(path),
        }
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.0.public_key().as_ref());
        PublicKey::from_bytes(bytes)
    }

    /// The content of `manifest.sig` for a manifest.
    pub fn sign(&self, manifest: &[u8]) -> String {
        let signature = self.0.sign(&signed_message(manifest));
        format!("{} {}\n", self.public(), BASE64.encode(signature.as_ref()))
    }

    /// Adds the public half to the trusted keys of an output directory, if it is not among them, and
    /// returns all of them.
    pub fn trust(&self, output: &Path) -> Result<TrustedKeys, KeyFileError> {
        let path = output.join(TRUSTED);
        let old = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                "# Keys whose stemcells may be used, one a line.\n".to_owned()
            }
            Err(error) => return Err(at("read", &path)(error).into()),
        };
        let key = self.public().to_string();
        let known = old
            .lines()
            .any(|line| line.split_whitespace().next() == Some(key.as_str()));
        if !known {
            let end = if old.is_empty() || old.ends_with('\n') {
                ""
            } else {
                "\n"
            };
            write_atomic(&path, format!("{old}{end}{key}\n").as_bytes(), 0o644)?;
        }
        TrustedKeys::load(&path).map_err(KeyFileError::Trusted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_from_its_file_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys/stemcell.key");
        let key = SigningKey::create(&path).unwrap();
        assert_eq!(SigningKey::load(&path).unwrap().public(), key.public());
        assert!(matches!(
            SigningKey::create(&path),
            Err(KeyFileError::Exists { .. })
        ));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(
            SigningKey::load(&path),
            Err(KeyFileError::TooOpen { mode: 0o644, .. })
        ));
        let text = fs::read_to_string(&path).unwrap();
        let secret = text.lines().nth(1).unwrap();
        assert!(!format!("{key:?}").contains(secret));
    }

    #[test]
    fn trusting_keeps_the_keys_that_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let one = SigningKey::create(&dir.path().join("one")).unwrap();
        let two = SigningKey::create(&dir.path().join("two")).unwrap();
        one.trust(dir.path()).unwrap();
        two.trust(dir.path()).unwrap();
        one.trust(dir.path()).unwrap();
        let keys = TrustedKeys::load(&dir.path().join(TRUSTED)).unwrap();
        assert_eq!(keys, TrustedKeys::new([one.public(), two.public()]));
    }
}
