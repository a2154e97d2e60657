//! `keys`: makes private keys on the machine and returns certificate requests for them.
//!
//! # Invariants
//! * A private key never leaves the machine and is never replaced: a key that is there is used.
//! * Key files are ECDSA P-256, PKCS#8 PEM, mode 0600, owned by root.

use std::collections::BTreeMap;
use std::io::Read;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use windlass_common::error::ErrorClass;
use windlass_common::step::{KeySpec, Keys, Payload};

use super::{Context, Failure, Run};
use crate::host::tree::{Attributes, Found, Tree, TreeError};

/// Longest key file that is read, in bytes; a P-256 key takes 241.
const KEY_FILE_BYTES_MAX: u64 = 16 << 10;

const PRIVATE: Attributes = Attributes {
    mode: 0o600,
    uid: 0,
    gid: 0,
};

/// Why a key could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The file cannot be read or written.
    #[error("key {name} cannot be kept")]
    File {
        /// Which key.
        name: String,
        /// Cause.
        #[source]
        source: TreeError,
    },
    /// What is there is no key.
    #[error("{path} does not hold a P-256 private key in PKCS#8 PEM; remove it to have one made")]
    NoKey {
        /// Which file.
        path: String,
        /// Cause.
        #[source]
        source: rcgen::Error,
    },
    /// The cryptography failed.
    #[error("cannot make key {name} or its request")]
    Crypto {
        /// Which key.
        name: String,
        /// Cause.
        #[source]
        source: rcgen::Error,
    },
}

impl KeysError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::File { source, .. } => source.class(),
            Self::NoKey { .. } => ErrorClass::Operator,
            Self::Crypto { .. } => ErrorClass::Bug,
        }
    }
}

pub(super) async fn run(context: &Context, run: &Run, keys: &Keys) -> Result<Payload, Failure> {
    let (tree, noted, keys) = (context.host.tree().clone(), run.clone(), keys.clone());
    run.blocking(move || {
        let mut requests = BTreeMap::new();
        for spec in &keys.keys {
            let key = match existing(&tree, &noted, spec)? {
                Some(key) => key,
                None => {
                    let key = make(&tree, spec)?;
                    noted.changed(format!("+ {} (private key)", spec.path));
                    key
                }
            };
            requests.insert(spec.name.clone(), request(spec, &key)?);
        }
        Ok(Payload::Requests(requests))
    })
    .await
}

fn existing(tree: &Tree, run: &Run, spec: &KeySpec) -> Result<Option<KeyPair>, KeysError> {
    let file_error = |source| KeysError::File {
        name: spec.name.clone(),
        source,
    };
    let (file, mode, uid, gid) = match tree.find(&spec.path).map_err(file_error)? {
        Found::Nothing => return Ok(None),
        Found::File {
            file,
            mode,
            uid,
            gid,
            ..
        } => (file, mode, uid, gid),
        Found::Link(_) | Found::Directory | Found::Other => {
            return Err(file_error(TreeError::Occupied {
                path: spec.path.clone(),
                want: "file",
            }));
        }
    };
    let mut pem = zeroize::Zeroizing::new(String::new());
    file.take(KEY_FILE_BYTES_MAX)
        .read_to_string(&mut pem)
        .map_err(|source| {
            file_error(TreeError::Io {
                action: "read",
                path: spec.path.clone(),
                source,
            })
        })?;
    let no_key = |source| KeysError::NoKey {
        path: spec.path.clone(),
        source,
    };
    let key = KeyPair::from_pem_and_sign_algo(&pem, &PKCS_ECDSA_P256_SHA256).map_err(no_key)?;
    let found = Attributes { mode, uid, gid };
    if found != PRIVATE {
        tree.set_attributes(&spec.path, PRIVATE)
            .map_err(file_error)?;
        run.changed(format!("{}: made private again", spec.path));
    }
    Ok(Some(key))
}

fn make(tree: &Tree, spec: &KeySpec) -> Result<KeyPair, KeysError> {
    let crypto = |source| KeysError::Crypto {
        name: spec.name.clone(),
        source,
    };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)?;
    let pem = zeroize::Zeroizing::new(key.serialize_pem());
    tree.write(&spec.path, PRIVATE, pem.as_bytes())
        .map_err(|source| KeysError::File {
            name: spec.name.clone(),
            source,
        })?;
    Ok(key)
}

/// A request whose subject says only which key it is for: the director decides every name.
fn request(spec: &KeySpec, key: &KeyPair) -> Result<Vec<u8>, KeysError> {
    let crypto = |source| KeysError::Crypto {
        name: spec.name.clone(),
        source,
    };
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, spec.name.as_str());
    let request = params.serialize_request(key).map_err(crypto)?;
    Ok(request.der().to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn quiet() -> Run {
        Run::new(crate::steps::Reporter::quiet())
    }

    fn spec() -> KeySpec {
        KeySpec {
            name: "kubelet".to_owned(),
            path: "/etc/kubernetes/kubelet.key".to_owned(),
        }
    }

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        let path = dir.path().join("etc/kubernetes/kubelet.key");
        assert!(existing(&tree, &quiet(), &spec()).unwrap().is_none());
        let made = make(&tree, &spec()).unwrap();
        assert_eq!(
            path.metadata().unwrap().permissions().mode() & 0o7777,
            0o600
        );
        // A wider mode is taken back, the key stays.
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let found = existing(&tree, &quiet(), &spec()).unwrap().unwrap();
        assert_eq!(found.serialize_der(), made.serialize_der());
        assert_eq!(
            path.metadata().unwrap().permissions().mode() & 0o7777,
            0o600
        );
        let der = request(&spec(), &found).unwrap();
        let request = rcgen::CertificateSigningRequestParams::from_der(&der.into()).unwrap();
        assert_eq!(
            rcgen::PublicKeyData::der_bytes(&request.public_key),
            rcgen::PublicKeyData::der_bytes(&made)
        );
    }

    #[test]
    fn what_is_no_key_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let tree = Tree::open(dir.path()).unwrap();
        tree.write(&spec().path, PRIVATE, b"precious").unwrap();
        assert!(matches!(
            existing(&tree, &quiet(), &spec()),
            Err(KeysError::NoKey { .. })
        ));
        let path = dir.path().join("etc/kubernetes/kubelet.key");
        assert_eq!(std::fs::read(path).unwrap(), b"precious");
    }
}
