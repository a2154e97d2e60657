//! Keeping a machine that another incarnation follows, for people to look into.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{EffectError, World};
use crate::model::{Keep, Machine};
use crate::provider::{KeptView, ProviderError, SetAside};

/// What is noted with a machine that is kept.
pub(crate) mod note {
    /// Its cluster.
    pub(crate) const CLUSTER: &str = "cluster";
    /// Its node.
    pub(crate) const NODE: &str = "node";
    /// The stemcell it was made from: the part of its root that it had not changed.
    pub(crate) const STEMCELL: &str = "stemcell";
    /// Who wanted it kept.
    pub(crate) const OPERATOR: &str = "operator";
    /// Why.
    pub(crate) const REASON: &str = "reason";
}

impl World {
    /// Cuts a machine's power and sets it aside. Nothing of it counts under its own name any more: it is off, refused
    /// at the link, has no disk and no network. `None` when there is nothing of it that could be kept, or when its
    /// provider cannot keep machines.
    pub(super) async fn keep(
        &self,
        machine: &Machine,
        keep: &Keep,
    ) -> Result<Option<KeptView>, EffectError> {
        match self
            .provider
            .stop_machine(&machine.name, Duration::ZERO)
            .await
        {
            // Of one that is not there any more it may be the first part that was cut off.
            Ok(_) | Err(ProviderError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let notes = [
            (note::CLUSTER, machine.cluster.to_string()),
            (note::NODE, machine.node_name.to_string()),
            (note::STEMCELL, machine.stemcell.clone()),
            (note::OPERATOR, keep.operator.clone()),
            (note::REASON, keep.reason.clone()),
        ];
        let notes: BTreeMap<_, _> = notes.map(|(key, value)| (key.to_owned(), value)).into();
        let request = SetAside {
            machine: machine.name.clone(),
            incarnation: machine.incarnation,
            kept: keep.name.clone(),
            notes,
        };
        match self.provider.set_aside(request).await {
            Ok(kept) => Ok(kept),
            Err(ProviderError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
