//! Who this director is: its id and its CA, in the sealed store from `director init` on.

use std::sync::Arc;

use windlass_common::error::ErrorClass;
use windlass_common::id::DirectorId;

use super::DataDir;
use crate::pki::{CaError, DirectorCa};
use crate::rotation::{self, CaStoreError};
use crate::store::{Commit, Expect, Kind, Records, SealError, Sealer, Sqlite, StoreError};

/// Name of the entry that holds the id.
const ID: &str = "director-id";
/// Name of the secret that holds the CA's first generation.
const CA: &str = "director-ca";

/// A director's identity and the store it is kept in.
#[derive(Debug)]
pub struct Identity {
    /// Part of every certificate it issues.
    pub id: DirectorId,
    /// Signs those certificates.
    pub ca: Arc<DirectorCa>,
    /// The store.
    pub records: Records,
}

/// Why a director's identity cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The store does not open or answer.
    #[error("cannot use the director's store")]
    Store(#[from] StoreError),
    /// The key of the store's secrets is not usable.
    #[error("cannot use the key that seals the director's secrets")]
    Seal(#[from] SealError),
    /// The CA is not usable.
    #[error("cannot use the director's CA")]
    Ca(#[from] CaError),
    /// The store's CA is not usable.
    #[error("cannot read the director's CA")]
    CaStore(#[from] CaStoreError),
    /// The store holds no identity.
    #[error(
        "{0} was not initialised to its end; move it away and run `windlass director init` again"
    )]
    Missing(std::path::PathBuf),
    /// The system's random source failed.
    #[error("the system's random source failed")]
    Random,
}

impl IdentityError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Store(error) => error.class(),
            Self::Ca(error) => error.class(),
            Self::CaStore(error) => error.class(),
            Self::Seal(_) | Self::Missing(_) | Self::Random => ErrorClass::Operator,
        }
    }
}

impl Identity {
    /// Makes the store, its key and a new identity in it.
    ///
    /// # Errors
    /// See [`IdentityError`]; also when the key is there already.
    pub async fn create(dir: &DataDir, now: jiff::Timestamp) -> Result<Identity, IdentityError> {
        let sealer = Sealer::create(&dir.seal_key())?;
        let records = Records::new(Arc::new(Sqlite::open(&dir.store())?), sealer).await?;
        let id = random_id()?;
        let ca = DirectorCa::create(id.clone(), now)?;
        let mut commit = Commit::default();
        commit.value(Kind::Meta, ID, Expect::Absent, &id);
        records.put_secret(&mut commit, CA, ca.to_pem().expose())?;
        records.commit(commit).await?;
        Ok(Identity {
            id,
            ca: Arc::new(ca),
            records,
        })
    }

    /// Reads the identity of a data directory that was initialised.
    ///
    /// # Errors
    /// See [`IdentityError`].
    pub async fn load(dir: &DataDir, now: jiff::Timestamp) -> Result<Identity, IdentityError> {
        let missing = || IdentityError::Missing(dir.path().to_owned());
        let sealer = Sealer::load(&dir.seal_key())?;
        let records = Records::new(Arc::new(Sqlite::open(&dir.store())?), sealer).await?;
        let id = records.value::<DirectorId>(Kind::Meta, ID).await?;
        let (_, id) = id.ok_or_else(missing)?;
        let ca = rotation::load(&records, &id, now).await?;
        let ca = ca.ok_or_else(missing)?;
        Ok(Identity {
            id,
            ca: Arc::new(ca),
            records,
        })
    }
}

fn random_id() -> Result<DirectorId, IdentityError> {
    use std::fmt::Write;
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| IdentityError::Random)?;
    let mut text = String::from("d");
    for byte in bytes {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    // `d` and 16 hex digits are a DNS label of 17 characters.
    DirectorId::new(text).map_err(|_| IdentityError::Random)
}
