//! What the gateway asks of the director: tokens and artifacts.

use std::fmt::Write;
use std::path::PathBuf;

use tokio::runtime::Handle;
use windlass_common::id::Digest;
use windlass_common::pki::MachineIdentity;

use crate::gateway::{ArtifactSource, EnrollmentStore, RedeemError};
use crate::health::from_jiff;
use crate::model::{Machine, Revision};
use crate::store::{Commit, Expect, Kind, Records, StoreError, Token};

/// Tokens in the store.
#[derive(Debug)]
pub struct Tokens {
    records: Records,
    runtime: Handle,
}

impl Tokens {
    /// Tokens of this store; must be made on the runtime.
    pub fn new(records: Records) -> Self {
        Self {
            records,
            runtime: Handle::current(),
        }
    }

    async fn spend(
        &self,
        token_hash: Digest,
        claim: &MachineIdentity,
        public_key: &str,
        now: jiff::Timestamp,
    ) -> Result<(), RedeemError> {
        let store = |error: StoreError| RedeemError::Store(Box::new(error));
        let name = token_hash.to_string();
        loop {
            let found: Option<(Revision, Token)> = self
                .records
                .value(Kind::Token, &name)
                .await
                .map_err(store)?;
            let (revision, mut token) = found.ok_or(RedeemError::Unknown)?;
            self.check(&token, claim, public_key, now).await?;
            if token.public_key.is_some() {
                return Ok(());
            }
            token.public_key = Some(public_key.to_owned());
            let mut commit = Commit::default();
            commit.value(Kind::Token, &name, Expect::At(revision), &token);
            match self.records.commit(commit).await {
                Ok(_) => return Ok(()),
                // Somebody else was faster: look again whose key it is now.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(store(error)),
            }
        }
    }

    async fn check(
        &self,
        token: &Token,
        claim: &MachineIdentity,
        public_key: &str,
        now: jiff::Timestamp,
    ) -> Result<(), RedeemError> {
        if token.cluster != claim.cluster
            || token.machine != claim.machine
            || token.incarnation != claim.incarnation
        {
            let issued = format!("{} incarnation {}", token.machine, token.incarnation);
            return Err(RedeemError::OtherMachine(issued));
        }
        if from_jiff(now) >= token.expires_at {
            return Err(RedeemError::Expired(now));
        }
        if token
            .public_key
            .as_deref()
            .is_some_and(|key| key != public_key)
        {
            return Err(RedeemError::OtherKey);
        }
        let record: Option<Machine> = self
            .records
            .get(claim.machine.as_str())
            .await
            .map_err(|error| RedeemError::Store(Box::new(error)))?;
        if record.is_none_or(|record| record.incarnation != claim.incarnation) {
            return Err(RedeemError::NotCurrent);
        }
        Ok(())
    }
}

impl EnrollmentStore for Tokens {
    fn redeem(
        &self,
        token_hash: Digest,
        claim: &MachineIdentity,
        public_key: &[u8],
        now: jiff::Timestamp,
    ) -> Result<(), RedeemError> {
        let key = public_key.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}"); // writing to a string cannot fail
            text
        });
        self.runtime
            .block_on(self.spend(token_hash, claim, &key, now))
    }
}

/// Artifacts in a directory, by digest: `sha256/<hex>`.
#[derive(Debug)]
pub struct Artifacts {
    directory: PathBuf,
}

impl Artifacts {
    /// Artifacts under `directory`.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }
}

impl ArtifactSource for Artifacts {
    fn locate(&self, digest: &Digest, _machine: &MachineIdentity) -> Option<PathBuf> {
        let path = self.directory.join("sha256").join(digest.hex());
        path.is_file().then_some(path)
    }
}
