//! Renews the certificates of a machine in place.
//!
//! Keys stay where they are: each component reads its certificate again by itself, so nothing is restarted, and
//! no file ever belongs to another key than the one beside it.

use windlass_common::id::MachineName;
use windlass_common::step::Step;

use super::context::ClusterContext;
use super::node::{certified, keeps};
use super::{Done, EffectError, StepOrder, World};
use crate::kubernetes::pki::{Certificates, Validity};
use crate::kubernetes::render;
use crate::model::{Certified, Machine};

/// Whether certificates were signed for a machine that it is not known to have.
fn unconfirmed(machine: &Machine, issued: &Certificates) -> bool {
    let issued = Validity::of(issued).map(Certified::from);
    machine.certified.is_some() && machine.certified != issued
}

impl World {
    /// Signs certificates for the keys that a machine has, writes them, and has the machine show with them that
    /// they are accepted. What an attempt that was cut off has signed already is written, and nothing else: sent again,
    /// a step of one name says the same.
    pub(super) async fn renew(
        &self,
        context: &ClusterContext,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        let certificates = match self.issued(machine).await? {
            Some(issued) if unconfirmed(machine, &issued) && keeps(&context.pki, &issued) => issued,
            _ => self.issue(context, machine, order).await?,
        };
        let facts = context.machine_facts(name)?;
        let step = Step::Configure(render::certificates_step(facts, &certificates));
        let result = self.send(machine, order, "/configure", step).await?;
        let gate = Step::Gate(render::identity_gate(&context.facts, facts));
        self.send(machine, order, "/serves", gate).await?;
        Ok(Done {
            changes: result.changes,
            records: certified(name, &certificates).into_iter().collect(),
        })
    }
}
