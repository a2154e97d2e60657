//! The machine's key, certificate and roots on disk.
//!
//! ```text
//! <dir>/identity.pem   private key (PKCS#8), then the chain once there is one; 0600
//! <dir>/roots.pem      root CAs that the director handed out last; 0600
//! ```
//!
//! Once there is a certificate, the roots are whom the machine trusts, and the digest it was born with
//! counts no more.
//!
//! Key and chain are one file, so that they change together: each write is whole or not at all (a new
//! file, synced, renamed over the old one, directory synced). Roots are written before the identity
//! that came with them; old identity and new roots fit, since a director hands out overlapping roots.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use windlass_common::error::ErrorClass;
use windlass_common::limits::ROOTS_MAX;
use windlass_common::pki::{Leaf, MachineIdentity, PrivateKey, RequestError, pem};
use windlass_common::secret::SecretBytes;
use windlass_common::tls::{self, TlsError};
use windlass_common::wire::probe::EchoAnswer;

/// Why the machine's identity cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file or the directory.
    #[error("cannot {action} {path}; the agent needs it to keep its identity")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// No key can be made.
    #[error("cannot make a key for this machine")]
    Key(#[source] RequestError),
    /// What came from the director is no certificate for this machine and key.
    #[error("the director's certificate is of no use: {0}")]
    Unusable(&'static str),
    /// TLS does not take it.
    #[error("the machine's certificate and key are of no use")]
    Tls(#[source] TlsError),
}

impl IdentityError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            IdentityError::Io { .. } => ErrorClass::Operator,
            IdentityError::Key(_) | IdentityError::Unusable(_) => ErrorClass::Bug,
            IdentityError::Tls(source) => source.class(),
        }
    }
}

/// A key with its certificate, and whom to trust.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(super) key: PrivateKey,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) leaf: Leaf,
    pub(super) roots: Vec<CertificateDer<'static>>,
}

impl Identity {
    /// Checks what a director handed out: a certificate for `me` and `key`, and at least one root.
    pub(super) fn accept(
        me: &MachineIdentity,
        key: PrivateKey,
        chain: Vec<Vec<u8>>,
        roots: Vec<Vec<u8>>,
    ) -> Result<Identity, IdentityError> {
        let der = |list: Vec<Vec<u8>>| list.into_iter().map(CertificateDer::from).collect();
        Identity::check(me, key, der(chain), der(roots))
    }

    fn check(
        me: &MachineIdentity,
        key: PrivateKey,
        chain: Vec<CertificateDer<'static>>,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Identity, IdentityError> {
        let leaf = chain
            .first()
            .ok_or(IdentityError::Unusable("there is none"))?;
        let leaf = Leaf::parse(leaf).map_err(|_| IdentityError::Unusable("it is malformed"))?;
        if leaf.machine().ok().as_ref() != Some(me) {
            return Err(IdentityError::Unusable("it is for another machine"));
        }
        let identity = Identity {
            key,
            chain,
            leaf,
            roots,
        };
        // Compares key and certificate, and reads the roots.
        identity.tls()?;
        Ok(identity)
    }

    /// The TLS settings of a connection with this identity.
    pub(super) fn tls(&self) -> Result<rustls::ClientConfig, IdentityError> {
        tls::agent_client(&self.roots, self.chain.clone(), self.key.to_der())
            .map_err(IdentityError::Tls)
    }

    /// Signs with the machine's key, for whoever verifies its certificate.
    pub(crate) fn sign(&self, statement: &[u8]) -> Result<EchoAnswer, RequestError> {
        let signature = self.key.sign(statement)?;
        let chain_der = self.chain.iter().map(|der| der.to_vec()).collect();
        Ok(EchoAnswer {
            chain_der,
            signature,
        })
    }

    /// The TLS settings towards a peer that serves.
    pub(crate) fn peer_client(&self) -> Result<rustls::ClientConfig, IdentityError> {
        tls::peer_client(&self.roots, self.chain.clone(), self.key.to_der())
            .map_err(IdentityError::Tls)
    }

    /// The TLS settings towards peers that fetch.
    pub(crate) fn peer_server(&self) -> Result<rustls::ServerConfig, IdentityError> {
        tls::peer_server(&self.roots, self.chain.clone(), self.key.to_der())
            .map_err(IdentityError::Tls)
    }
}

/// What is on disk.
#[derive(Debug)]
pub(super) enum Saved {
    /// A key, new or of an enrollment that did not end.
    Key(PrivateKey),
    /// All of it.
    Identity(Box<Identity>),
}

/// The directory.
#[derive(Debug, Clone)]
pub(crate) struct IdentityStore {
    dir: PathBuf,
    written: watch::Sender<u64>,
}

impl IdentityStore {
    /// Makes the directory if it is missing.
    pub(crate) fn open(dir: &Path) -> Result<IdentityStore, IdentityError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(fault("create", dir))?;
        Ok(IdentityStore {
            dir: dir.to_owned(),
            written: watch::channel(0).0,
        })
    }

    /// Changes whenever something was written here by way of this store or a clone of it.
    pub(crate) fn written(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    /// The identity that is there, if there is one that can be used. Makes nothing.
    pub(crate) fn saved(&self, me: &MachineIdentity) -> Result<Option<Identity>, IdentityError> {
        let text = self.read("identity.pem")?;
        let Ok(key) = PrivateKey::from_pem(&text) else {
            return Ok(None);
        };
        let chain = certificates("identity.pem", &text);
        let roots = certificates("roots.pem", &self.read("roots.pem")?);
        Ok(Identity::check(me, key, chain, roots).ok())
    }

    /// Reads what is there. Without a key that can be used, or with the certificate of another
    /// machine (a copied disk), a new key is made and saved before this returns.
    pub(super) fn load(&self, me: &MachineIdentity) -> Result<Saved, IdentityError> {
        let text = self.read("identity.pem")?;
        if let Ok(key) = PrivateKey::from_pem(&text) {
            let chain = certificates("identity.pem", &text);
            if chain.is_empty() {
                return Ok(Saved::Key(key));
            }
            let roots = certificates("roots.pem", &self.read("roots.pem")?);
            match Identity::check(me, key, chain, roots) {
                Ok(identity) => return Ok(Saved::Identity(Box::new(identity))),
                Err(error) => {
                    tracing::warn!(%error, "the saved identity is not used; enrolling anew");
                }
            }
        } else if !text.expose().is_empty() {
            tracing::warn!("the saved key is damaged; enrolling anew");
        }
        let key = PrivateKey::generate().map_err(IdentityError::Key)?;
        self.write("identity.pem", key.to_pem().expose())?;
        Ok(Saved::Key(key))
    }

    /// Takes these roots in the place of all others, if they can be trusted at all; once it returns, a
    /// crash brings back these.
    pub(super) fn trust(
        &self,
        roots: Vec<Vec<u8>>,
    ) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
        if roots.is_empty() || roots.len() > ROOTS_MAX {
            return Err(IdentityError::Unusable(
                "it comes with no root, or too many",
            ));
        }
        let roots: Vec<_> = roots.into_iter().map(CertificateDer::from).collect();
        tls::root_store(&roots).map_err(IdentityError::Tls)?;
        self.write("roots.pem", pem::bundle(&roots).as_bytes())?;
        Ok(roots)
    }

    /// Saves an identity; once it returns, a crash brings back this one.
    pub(super) fn save(&self, identity: &Identity) -> Result<(), IdentityError> {
        self.write("roots.pem", pem::bundle(&identity.roots).as_bytes())?;
        let key = identity.key.to_pem();
        let chain = pem::bundle(&identity.chain);
        let mut text = Vec::with_capacity(key.expose().len() + chain.len());
        text.extend_from_slice(key.expose());
        text.extend_from_slice(chain.as_bytes());
        self.write("identity.pem", SecretBytes::new(text).expose())
    }

    fn read(&self, name: &str) -> Result<SecretBytes, IdentityError> {
        let path = self.dir.join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(SecretBytes::new(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(SecretBytes::new(Vec::new()))
            }
            Err(source) => Err(fault("read", &path)(source)),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), IdentityError> {
        let (path, new) = (self.dir.join(name), self.dir.join(format!("{name}.new")));
        // A leftover of a crash may have other permissions.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(fault("remove", &new)(error));
            }
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)
            .map_err(fault("create", &new))?;
        file.write_all(bytes).map_err(fault("write", &new))?;
        file.sync_all().map_err(fault("sync", &new))?;
        fs::rename(&new, &path).map_err(fault("replace", &path))?;
        File::open(&self.dir)
            .and_then(|dir| dir.sync_all())
            .map_err(fault("sync", &self.dir))?;
        self.written.send_modify(|count| *count += 1);
        Ok(())
    }
}

/// What a file of certificates holds; a damaged one holds nothing that can be used, and is spoken of.
fn certificates(name: &str, text: &SecretBytes) -> Vec<CertificateDer<'static>> {
    pem::certificates(text.expose()).unwrap_or_else(|error| {
        tracing::warn!(file = name, %error, "the saved certificates are damaged; going on without");
        Vec::new()
    })
}

fn fault(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn me() -> MachineIdentity {
        "windlass://d1/clusters/demo/machines/demo-cp-0/incarnations/1"
            .parse()
            .unwrap()
    }

    #[test]
    fn a_key_is_on_disk_before_it_is_used_and_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = IdentityStore::open(&dir.path().join("identity")).unwrap();
        let Saved::Key(first) = store.load(&me()).unwrap() else {
            panic!("nothing was saved, yet there is a certificate");
        };
        let file = dir.path().join("identity/identity.pem");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let Saved::Key(again) = store.load(&me()).unwrap() else {
            panic!("only a key was saved");
        };
        assert_eq!(first.public_key(), again.public_key());
    }

    #[test]
    fn a_damaged_key_and_a_leftover_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = IdentityStore::open(dir.path()).unwrap();
        fs::write(dir.path().join("identity.pem"), b"-----BEGIN PRIV").unwrap();
        fs::write(dir.path().join("identity.pem.new"), b"half").unwrap();
        let Saved::Key(first) = store.load(&me()).unwrap() else {
            panic!("there is no certificate");
        };
        let Saved::Key(again) = store.load(&me()).unwrap() else {
            panic!("there is no certificate");
        };
        assert_eq!(first.public_key(), again.public_key());
    }
}
