//! What the gateway asks of the director: enrollment tokens.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use windlass_common::id::{Digest, Incarnation, MachineName};
use windlass_common::pki::MachineIdentity;

use crate::gateway::{EnrollmentStore, RedeemError};
use crate::health::{from_jiff, to_jiff};
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
        public_key: &[u8],
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
            let machine: Option<Machine> = self
                .records
                .get(claim.machine.as_str())
                .await
                .map_err(store)?;
            let current = machine.map(|machine| machine.incarnation);
            let fresh = token.bind(claim, public_key, current, now)?;
            // Known before it is durable: a session that comes at once finds it.
            self.note_bound(&token, &name);
            if !fresh {
                return Ok(());
            }
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
}

impl Token {
    /// Binds it to the key that shows it as `claim`, if it counts; returns whether that key is the first.
    /// `current` is the incarnation of the claimed machine on record, if there is one.
    ///
    /// # Errors
    /// Why it does not count; it stays what it was.
    pub fn bind(
        &mut self,
        claim: &MachineIdentity,
        public_key: &[u8],
        current: Option<Incarnation>,
        now: jiff::Timestamp,
    ) -> Result<bool, RedeemError> {
        if self.cluster != claim.cluster
            || self.machine != claim.machine
            || self.incarnation != claim.incarnation
        {
            let issued = format!("{} incarnation {}", self.machine, self.incarnation);
            return Err(RedeemError::OtherMachine(issued));
        }
        if from_jiff(now) >= self.expires_at {
            return Err(RedeemError::Expired(to_jiff(self.expires_at)));
        }
        let key = public_key.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}"); // writing to a string cannot fail
            text
        });
        let first = self.public_key.as_deref();
        if first.is_some_and(|first| first != key) {
            return Err(RedeemError::OtherKey);
        }
        if self.spent {
            return Err(RedeemError::Spent);
        }
        if current != Some(claim.incarnation) {
            return Err(RedeemError::NotCurrent);
        }
        let fresh = first.is_none();
        self.public_key = Some(key);
        Ok(fresh)
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
        self.runtime
            .block_on(self.bind(token_hash, claim, public_key, now))
    }

    fn is_bound(&self, machine: &MachineIdentity) -> bool {
        let key = (machine.machine.clone(), machine.incarnation);
        self.bound().contains_key(&key)
    }

    fn spend(&self, machine: &MachineIdentity) -> Result<(), RedeemError> {
        self.runtime.block_on(self.spend_all(machine))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;
    use windlass_common::clock::later;
    use windlass_common::id::NodeName;

    use super::*;
    use crate::model::{MachineDraft, MachinePhase, MachineRole, Timestamp};
    use crate::store::Sealer;
    use crate::store::memory::Memory;

    /// What may happen, in any order. Small numbers, so that they meet.
    #[derive(Debug, Clone)]
    enum Event {
        /// A token is issued for a machine, for so many seconds.
        Issue { machine: u8, life_s: u64 },
        /// Somebody shows the n-th token as a machine, with a key.
        Show { token: usize, machine: u8, key: u8 },
        /// A machine has a session.
        Session { machine: u8 },
        /// A machine gets its next incarnation.
        Reborn { machine: u8 },
        /// The director starts again.
        Restart,
        /// So many seconds pass.
        Wait(u64),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let (machine, token, key) = (|| 0u8..2, 0usize..4, 0u8..3);
        let event = prop_oneof![
            2 => (machine(), 1u64..100).prop_map(|(machine, life_s)| Event::Issue { machine, life_s }),
            8 => (token, machine(), key).prop_map(|(token, machine, key)| Event::Show { token, machine, key }),
            1 => machine().prop_map(|machine| Event::Session { machine }),
            1 => machine().prop_map(|machine| Event::Reborn { machine }),
            1 => Just(Event::Restart),
            1 => (1u64..60).prop_map(Event::Wait),
        ];
        prop::collection::vec(event, 1..60)
    }

    fn record(machine: u8) -> Machine {
        let name = MachineName::new(format!("demo-w-{machine}")).unwrap();
        Machine {
            phase: MachinePhase::Ready,
            ..Machine::planned(
                MachineDraft {
                    node_name: NodeName::new(name.as_str()).unwrap(),
                    name,
                    cluster: "demo".parse().unwrap(),
                    role: MachineRole::ControlPlane,
                    incarnation: Incarnation::FIRST,
                    address: [10, 0, 0, machine].into(),
                    pod_cidr: "10.244.0.0/24".parse().unwrap(),
                    stemcell: String::new(),
                    kubernetes_version: String::new(),
                    size: windlass_common::cluster::MachineSize {
                        cpu_millis: 1000,
                        memory_mib: 1024,
                        disk_mib: 1024,
                    },
                    data_disk: None,
                },
                Timestamp::from_unix_ms(0),
            )
        }
    }

    /// A token as it should be kept.
    struct Model {
        hash: Digest,
        machine: u8,
        incarnation: Incarnation,
        until: jiff::Timestamp,
        key: Option<u8>,
        spent: bool,
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever happens in whatever order: a token lets in one key of the one incarnation it was issued
        /// for, while it counts, until that has had its session; and a restart forgets nothing of it.
        #[test]
        fn a_token_counts_for_whom_it_was_issued_and_once(events in events()) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let sealer = Sealer::new(&[7; 32]).unwrap();
            let store = Arc::new(Memory::default());
            let records = runtime.block_on(Records::new(store, sealer)).unwrap();
            let load = || runtime.block_on(Tokens::load(records.clone())).unwrap();
            let mut tokens = load();
            let mut now = jiff::Timestamp::UNIX_EPOCH;
            let mut issued: Vec<Model> = Vec::new();
            let mut current = [Incarnation::FIRST; 2];
            for machine in 0..2 {
                let mut commit = Commit::default();
                commit.put(&record(machine)).unwrap();
                runtime.block_on(records.commit(commit)).unwrap();
            }
            let identity = |machine: u8, incarnation| MachineIdentity {
                director: "d1".parse().unwrap(),
                cluster: "demo".parse().unwrap(),
                machine: record(machine).name,
                incarnation,
            };
            for event in events {
                match event {
                    Event::Issue { machine, life_s } => {
                        let model = Model {
                            hash: Digest::of(&issued.len().to_be_bytes()),
                            machine,
                            incarnation: current[usize::from(machine)],
                            until: later(now, Duration::from_secs(life_s)),
                            key: None,
                            spent: false,
                        };
                        let token = Token {
                            cluster: "demo".parse().unwrap(),
                            machine: record(machine).name,
                            incarnation: model.incarnation,
                            expires_at: from_jiff(model.until),
                            public_key: None,
                            spent: false,
                        };
                        let mut commit = Commit::default();
                        let name = model.hash.to_string();
                        commit.value(Kind::Token, &name, Expect::Absent, &token);
                        runtime.block_on(records.commit(commit)).unwrap();
                        issued.push(model);
                    }
                    Event::Show { token, machine, key } => {
                        let incarnation = current[usize::from(machine)];
                        let claim = identity(machine, incarnation);
                        let hash = issued.get(token).map_or(Digest::of(b"none"), |t| t.hash);
                        let counts = issued.get_mut(token).filter(|token| {
                            token.machine == machine
                                && token.incarnation == incarnation
                                && now < token.until
                                && token.key.is_none_or(|first| first == key)
                                && !token.spent
                        });
                        let shown = tokens.redeem(hash, &claim, &[4, key], now);
                        prop_assert_eq!(shown.is_ok(), counts.is_some(), "{:?}", shown);
                        if let Some(token) = counts {
                            token.key = Some(key);
                        }
                    }
                    Event::Session { machine } => {
                        let incarnation = current[usize::from(machine)];
                        let mine = |token: &&mut Model| {
                            (token.machine, token.incarnation) == (machine, incarnation)
                        };
                        let mut open = 0;
                        for token in issued.iter_mut().filter(mine) {
                            open += usize::from(token.key.is_some() && !token.spent);
                            token.spent |= token.key.is_some();
                        }
                        let identity = identity(machine, incarnation);
                        prop_assert_eq!(tokens.is_bound(&identity), open > 0);
                        tokens.spend(&identity).unwrap();
                        prop_assert!(!tokens.is_bound(&identity));
                    }
                    Event::Reborn { machine } => {
                        let name = record(machine).name;
                        let mut record: Machine =
                            runtime.block_on(records.get(name.as_str())).unwrap().unwrap();
                        record.incarnation = Incarnation(record.incarnation.0 + 1);
                        current[usize::from(machine)] = record.incarnation;
                        let mut commit = Commit::default();
                        commit.put(&record).unwrap();
                        runtime.block_on(records.commit(commit)).unwrap();
                    }
                    Event::Restart => tokens = load(),
                    Event::Wait(seconds) => now = later(now, Duration::from_secs(seconds)),
                }
            }
        }
    }
}
