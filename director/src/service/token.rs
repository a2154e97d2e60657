//! A fresh token for a machine that is there: the way back for one whose certificate lapsed beyond the grace
//! window.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::{Incarnation, MachineName};
use windlass_common::pki::MachineIdentity;
use windlass_common::secret::Secret;

use super::{Inner, ServiceError, ServiceResult};
use crate::gateway::IncarnationRegistry;
use crate::model::{Caller, Timestamp};
use crate::store::{Act, Commit};

/// What became of a fresh token.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FreshToken {
    /// Which machine may show it.
    #[schema(value_type = String)]
    pub machine: MachineName,
    /// And which rebirth of it.
    #[schema(value_type = u32)]
    pub incarnation: Incarnation,
    /// When it stops counting.
    pub expires_at: Timestamp,
    /// Whether the provider has put it into the machine: its agent finds it within seconds.
    pub placed: bool,
    /// Else the settings of the machine with the token in them, JSON, told this once: a file for root alone
    /// in the place of `/etc/windlass/settings.json`.
    #[schema(value_type = Option<String>)]
    pub settings: Option<Secret>,
}

impl Inner {
    /// Issues a token for the current incarnation of a machine that has no session, in the place of those
    /// that nobody has used up. Unless the caller wants to bring it there, the provider does, if it can.
    pub(super) async fn enroll_node(
        &self,
        name: &MachineName,
        place: bool,
        caller: &Caller,
    ) -> ServiceResult<FreshToken> {
        let machine = self.machine_record(name).await?;
        let identity = MachineIdentity {
            director: self.id.clone(),
            cluster: machine.cluster.clone(),
            machine: name.clone(),
            incarnation: machine.incarnation,
        };
        if !self.world.registry.is_current(&identity) {
            return Err(ServiceError::Conflict {
                message: format!(
                    "incarnation {} of {name} may not connect: it is not made yet, shut out or about to \
                     be deleted; `windlass node show {name}` says how far it is",
                    machine.incarnation
                ),
            });
        }
        let sessions = self.gateway.connected();
        if sessions
            .get(name)
            .is_some_and(|view| view.identity == identity)
        {
            return Err(ServiceError::Conflict {
                message: format!("{name} is connected: it renews its certificate by itself"),
            });
        }
        let mut commit = Commit::default();
        let (settings, expires_at) = self.world.fresh_token(&machine, &mut commit).await?;
        let act = Act {
            action: "node.enroll",
            subject: &format!("machine/{name}"),
            detail: &format!("a token for incarnation {}", machine.incarnation),
            outcome: "",
        };
        self.records.audit_caller(&mut commit, caller, act);
        self.records.commit(commit).await?;
        let placed = if place {
            let provider = &self.world.provider;
            let text = settings.expose().as_bytes().to_vec();
            let placing = provider.place_settings(name, machine.incarnation, text);
            placing.await.map_err(|error| {
                let what = "the provider did not put the settings into the machine; \
                            `windlass node enroll --print` gives them to you instead";
                ServiceError::of(error.class(), what, error)
            })?
        } else {
            false
        };
        Ok(FreshToken {
            machine: name.clone(),
            incarnation: machine.incarnation,
            expires_at,
            placed,
            settings: (!placed).then_some(settings),
        })
    }
}
