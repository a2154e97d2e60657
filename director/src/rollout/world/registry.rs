//! Which incarnation of each machine may connect: in memory, since the gateway asks in the handshake.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError, RwLock};

use windlass_common::id::{ClusterName, DirectorId, Incarnation, MachineName};
use windlass_common::pki::MachineIdentity;

use crate::gateway::IncarnationRegistry;
use crate::model::Machine;

/// Strangers that are remembered at most: as many as machines of a large fleet. Each was given a certificate by
/// this director's CA.
const STRANGERS_MAX: usize = 20_000;

/// The incarnations that may connect. Filled from the machines' records when the director starts.
#[derive(Debug)]
pub struct Registry {
    director: DirectorId,
    current: RwLock<BTreeMap<MachineName, (ClusterName, Incarnation)>>,
    /// Who has shown a certificate of ours and is not current; remembered while somebody wants to know.
    strangers: Mutex<Option<BTreeSet<MachineIdentity>>>,
}

impl Registry {
    /// A registry that knows these machines, those that are fenced excepted.
    pub fn new<'a>(director: DirectorId, machines: impl IntoIterator<Item = &'a Machine>) -> Self {
        let current = machines
            .into_iter()
            .filter(|m| !m.fenced)
            .map(|m| (m.name.clone(), (m.cluster.clone(), m.incarnation)))
            .collect();
        Self {
            director,
            current: RwLock::new(current),
            strangers: Mutex::new(None),
        }
    }

    /// Remembers from now on who shows a certificate of this director's CA and is not current: machines
    /// that are newer than the records of a director that was restored.
    pub fn remember_strangers(&self) {
        let mut strangers = self
            .strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        strangers.get_or_insert_default();
    }

    /// Who was remembered.
    pub fn strangers(&self) -> BTreeSet<MachineIdentity> {
        let strangers = self
            .strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        strangers.clone().unwrap_or_default()
    }

    /// Remembers nobody any more.
    pub fn forget_strangers(&self) {
        *self
            .strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A chain up to this director's CA was verified for it, and it is not current.
    fn note_stranger(&self, identity: &MachineIdentity) {
        let mut strangers = self
            .strangers
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = strangers.as_mut()
            && known.len() < STRANGERS_MAX
        {
            known.insert(identity.clone());
        }
    }

    /// Lets this incarnation connect, and no other of its machine.
    pub fn admit(&self, machine: &Machine) {
        self.current
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(
                machine.name.clone(),
                (machine.cluster.clone(), machine.incarnation),
            );
    }

    /// Lets no incarnation of this machine connect; returns the one that could.
    pub fn expel(&self, machine: &MachineName) -> Option<MachineIdentity> {
        let (cluster, incarnation) = self
            .current
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(machine)?;
        Some(MachineIdentity {
            director: self.director.clone(),
            cluster,
            machine: machine.clone(),
            incarnation,
        })
    }
}

impl IncarnationRegistry for Registry {
    fn is_current(&self, identity: &MachineIdentity) -> bool {
        if identity.director != self.director {
            return false;
        }
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let is_current = current
            .get(&identity.machine)
            .is_some_and(|(cluster, incarnation)| {
                *cluster == identity.cluster && *incarnation == identity.incarnation
            });
        drop(current);
        // The gateway asks about identities of certificates that it has verified alone.
        if !is_current {
            self.note_stranger(identity);
        }
        is_current
    }

    fn is_replaced(&self, identity: &MachineIdentity) -> bool {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        identity.director == self.director
            && current
                .get(&identity.machine)
                .is_some_and(|(cluster, incarnation)| {
                    *cluster == identity.cluster && *incarnation > identity.incarnation
                })
    }
}
