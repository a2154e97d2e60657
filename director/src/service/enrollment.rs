//! What the gateway asks of the director: enrollment tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use windlass_common::id::{Digest, Incarnation, MachineName};
use windlass_common::pki::MachineIdentity;

use crate::gateway::{EnrollmentStore, RedeemError};
use crate::health::from_jiff;
use crate::model::{Machine, Revision};
use crate::store::{Commit, Expect, Kind, Records, StoreError, Token};

/// Tokens in the store.
#[derive(Debug)]
pub struct Tokens {
    records: Records,
    runtime: Handle,
    /// Tokens that are bound to a key and not spent, by their names in the store. There are as many as
    /// machines that are enrolling.
    bound: Mutex<BTreeMap<(MachineName, Incarnation), BTreeSet<String>>>,
}

impl Tokens {
    /// Tokens of this store; must be called on the runtime.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load(records: Records) -> Result<Self, StoreError> {
        let tokens = Self {
            records,
            runtime: Handle::current(),
            bound: Mutex::default(),
        };
        let all: Vec<(String, Token)> = tokens.records.values(Kind::Token, "").await?;
        for (name, token) in all {
            if token.public_key.is_some() && !token.spent {
                tokens.note_bound(&token, &name);
            }
        }
        Ok(tokens)
    }

    fn note_bound(&self, token: &Token, name: &str) {
        let machine = (token.machine.clone(), token.incarnation);
        self.bound()
            .entry(machine)
            .or_default()
            .insert(name.to_owned());
    }

    fn bound(&self) -> MutexGuard<'_, BTreeMap<(MachineName, Incarnation), BTreeSet<String>>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn bind(
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
            // Known before it is durable: a session that comes at once finds it.
            self.note_bound(&token, &name);
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

    async fn spend_all(&self, machine: &MachineIdentity) -> Result<(), RedeemError> {
        let store = |error: StoreError| RedeemError::Store(Box::new(error));
        let key = (machine.machine.clone(), machine.incarnation);
        let names = self.bound().get(&key).cloned().unwrap_or_default();
        for name in names {
            loop {
                let found: Option<(Revision, Token)> = self
                    .records
                    .value(Kind::Token, &name)
                    .await
                    .map_err(store)?;
                // One that is gone with its cluster counts for nobody.
                let Some((revision, mut token)) = found else {
                    break;
                };
                token.spent = true;
                let mut commit = Commit::default();
                commit.value(Kind::Token, &name, Expect::At(revision), &token);
                match self.records.commit(commit).await {
                    Ok(_) => break,
                    Err(StoreError::Conflict { .. }) => {}
                    Err(error) => return Err(store(error)),
                }
            }
        }
        self.bound().remove(&key);
        Ok(())
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
        if token.spent {
            return Err(RedeemError::Spent);
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
            .block_on(self.bind(token_hash, claim, &key, now))
    }

    fn is_bound(&self, machine: &MachineIdentity) -> bool {
        let key = (machine.machine.clone(), machine.incarnation);
        self.bound().contains_key(&key)
    }

    fn spend(&self, machine: &MachineIdentity) -> Result<(), RedeemError> {
        self.runtime.block_on(self.spend_all(machine))
    }
}
