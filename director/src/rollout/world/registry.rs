//! Which incarnation of each machine may connect: in memory, since the gateway asks in the handshake.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use windlass_common::id::{ClusterName, DirectorId, Incarnation, MachineName};
use windlass_common::pki::MachineIdentity;

use crate::gateway::IncarnationRegistry;
use crate::model::Machine;

/// The incarnations that may connect. Filled from the machines' records when the director starts.
#[derive(Debug)]
pub struct Registry {
    director: DirectorId,
    current: RwLock<BTreeMap<MachineName, (ClusterName, Incarnation)>>,
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
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        identity.director == self.director
            && current
                .get(&identity.machine)
                .is_some_and(|(cluster, incarnation)| {
                    *cluster == identity.cluster && *incarnation == identity.incarnation
                })
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
