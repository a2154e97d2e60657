//! Machines that are kept after another incarnation followed them, for people to look into: bounded in number and age,
//! and deleted before that by an order that names them.
//!
//! # Invariants
//! * What is kept is off, refused at the link, and has no disk and no network: it is no second incarnation.
//! * At most so many are kept, those that an order is about to set aside included, under the lock of orders.
//! * Nobody deletes one but an operator by its name, or the director once it is too old; each is audited before.
//!
//! # After a crash
//! The provider's list is the only truth; the next look is the first one.
//!
//! # Not here
//! Setting a machine aside (rollout), which is the end of the incarnation in the plan that replaces it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::error::ErrorChain;
use windlass_common::id::{ClusterName, Incarnation, MachineName};

use super::draft::random_u32;
use super::{Inner, ServiceError, ServiceResult, rounds};
use crate::config::Forensics;
use crate::model::{Caller, Keep, Machine, MachinePhase, Timestamp};
use crate::provider::{KeptView, ProviderError};
use crate::rollout::world::note;
use crate::store::{Act, Commit};

/// Between two looks for machines that are too old: their age is bounded in hours.
const PERIOD: Duration = Duration::from_secs(300);
/// Whose acts these are.
const DIRECTOR: &str = "director";
/// Longest reason an operator gives, bytes: the provider keeps it with the machine.
pub(super) const REASON_MAX: usize = 500;

/// A machine that is kept, off, for people to look into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeptMachine {
    /// The name under which it is kept; nothing else has it.
    #[schema(value_type = String)]
    pub name: MachineName,
    /// What it was called.
    #[schema(value_type = String)]
    pub machine: MachineName,
    /// Which rebirth of that name it was.
    #[schema(value_type = u32)]
    pub incarnation: Incarnation,
    /// Its cluster, which may be no more.
    #[schema(value_type = Option<String>)]
    pub cluster: Option<ClusterName>,
    /// The stemcell that it was made from.
    pub stemcell: Option<String>,
    /// When it was set aside.
    pub kept_at: Timestamp,
    /// When the director deletes it by itself.
    pub delete_at: Timestamp,
    /// Who wanted it kept.
    pub operator: String,
    /// Why; may be empty.
    pub reason: String,
    /// Where the provider has it: with the local one a directory on the director's host.
    pub place: String,
}

/// Whether machines are kept that an order replaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeepWish {
    /// They are deleted.
    No,
    /// An operator wants it, for this reason: refused when there is no room.
    Asked(String),
    /// The director's configuration wants it: left out when there is no room.
    Policy,
}

impl KeptMachine {
    fn of(view: KeptView, rules: &Forensics) -> KeptMachine {
        let said = |key: &str| view.notes.get(key).cloned();
        let at = |seconds: u64| Timestamp::from_unix_ms(seconds.saturating_mul(1000));
        KeptMachine {
            cluster: said(note::CLUSTER).and_then(|name| ClusterName::new(name).ok()),
            stemcell: said(note::STEMCELL),
            kept_at: at(view.kept_at),
            delete_at: at(view.kept_at.saturating_add(rules.max_age.as_secs())),
            operator: said(note::OPERATOR).unwrap_or_else(|| "nobody known".to_owned()),
            reason: said(note::REASON).unwrap_or_else(String::new),
            name: view.name,
            machine: view.machine,
            incarnation: view.incarnation,
            place: view.place,
        }
    }
}

/// Starts to look for machines that are too old; ends with the director.
pub(super) fn start(director: Weak<Inner>) {
    tokio::spawn(rounds::every(director, PERIOD, async |director| {
        if let Err(error) = director.delete_old_kept(Timestamp::now()).await {
            tracing::warn!(error = %ErrorChain(&error), "machines that are kept cannot be looked after");
        }
    }));
}

impl Inner {
    /// The machines that are kept, by name.
    pub(super) async fn kept(&self) -> ServiceResult<Vec<KeptMachine>> {
        let mut views = self.provider.kept_machines().await.map_err(unasked)?;
        views.sort_by(|a, b| a.name.cmp(&b.name));
        let rules = &self.repairs.forensics();
        let kept = views.into_iter().map(|view| KeptMachine::of(view, rules));
        Ok(kept.collect())
    }

    /// Deletes a machine that is kept.
    pub(super) async fn delete_kept(
        &self,
        name: &MachineName,
        caller: &Caller,
    ) -> ServiceResult<KeptMachine> {
        let all = self.kept().await?;
        let Some(kept) = all.into_iter().find(|kept| kept.name == *name) else {
            return Err(ServiceError::NotFound {
                kind: "kept machine",
                name: name.to_string(),
            });
        };
        let act = Act {
            action: "machine.kept.delete",
            subject: &format!("machine/{}", kept.machine),
            detail: &format!("incarnation {}, kept as {name}", kept.incarnation),
            outcome: "",
        };
        let mut commit = Commit::default();
        self.records.audit_caller(&mut commit, caller, act);
        self.records.commit(commit).await?;
        self.provider.delete_kept(name).await.map_err(|error| {
            let what = format!("machine {name}, which is kept, was not deleted");
            ServiceError::of(error.class(), &what, error)
        })?;
        Ok(kept)
    }

    /// Deletes those that are kept longer than they may be. One that cannot be deleted keeps no other.
    pub(super) async fn delete_old_kept(self: &Arc<Self>, now: Timestamp) -> ServiceResult<()> {
        let old = self.kept().await?.into_iter();
        for kept in old.filter(|kept| kept.delete_at <= now) {
            let mut commit = Commit::default();
            let subject = format!("machine/{}", kept.machine);
            let said = format!(
                "incarnation {}, kept as {} since {}",
                kept.incarnation, kept.name, kept.kept_at
            );
            let action = "machine.kept.delete";
            self.records
                .audit(&mut commit, DIRECTOR, action, &subject, &said);
            self.records.commit(commit).await?;
            if let Err(error) = self.provider.delete_kept(&kept.name).await {
                tracing::warn!(machine = %kept.name, error = %ErrorChain(&error), "a kept machine is too old, and cannot be deleted");
            }
        }
        Ok(())
    }

    /// How the machines of `names` are kept that an order replaces; those that are not in the answer are deleted. The
    /// lock of orders is held.
    ///
    /// # Errors
    /// [`ServiceError::Conflict`] when an operator asks for it, and it cannot be done.
    pub(super) async fn keeps(
        &self,
        names: &BTreeSet<MachineName>,
        machines: &[Machine],
        wish: &KeepWish,
        caller: &Caller,
    ) -> ServiceResult<BTreeMap<MachineName, Keep>> {
        let reason = match wish {
            KeepWish::No => return Ok(BTreeMap::new()),
            KeepWish::Asked(reason) => reason.clone(),
            KeepWish::Policy => "keep_for_forensics".to_owned(),
        };
        let rules = self.repairs.forensics();
        let all: Vec<Machine> = self.records.list().await?;
        let kept = match self.kept().await {
            Ok(kept) => kept,
            // A wish is no reason not to heal.
            Err(error) if *wish == KeepWish::Policy => {
                tracing::warn!(error = %ErrorChain(&error), "machines are replaced and not kept");
                return Ok(BTreeMap::new());
            }
            Err(error) => return Err(error),
        };
        let pending = all.iter().filter(|m| m.keep.is_some()).count();
        let most = usize::try_from(rules.max_kept).unwrap_or(usize::MAX);
        let mut room = most.saturating_sub(kept.len() + pending);
        let mut keeps = BTreeMap::new();
        for machine in machines.iter().filter(|m| names.contains(&m.name)) {
            let kept_as = match &machine.keep {
                Some(before) => Ok(before.name.clone()),
                None if machine.phase == MachinePhase::Planned => {
                    Err("there is nothing of it yet; order it without --keep".to_owned())
                }
                None if room == 0 => Err(no_room(&kept, pending, most)),
                None => {
                    room -= 1;
                    kept_name(machine)?
                }
            };
            let name = machine.name.clone();
            match (kept_as, wish) {
                (Ok(kept_as), _) => {
                    let keep = Keep {
                        name: kept_as,
                        operator: caller.operator.clone(),
                        reason: reason.clone(),
                    };
                    keeps.insert(name, keep);
                }
                (Err(why), KeepWish::Asked(_)) => {
                    let message = format!("machine {name} cannot be kept: {why}");
                    return Err(ServiceError::Conflict { message });
                }
                (Err(why), KeepWish::Policy | KeepWish::No) => {
                    tracing::info!(machine = %name, why, "a machine is replaced and not kept");
                }
            }
        }
        Ok(keeps)
    }
}

/// Node names tell incarnations apart, and the number those of a cluster that was made again under its name.
fn kept_name(machine: &Machine) -> ServiceResult<Result<MachineName, String>> {
    let random = random_u32()? & 0x00ff_ffff;
    let name = format!("{}-{random:06x}", machine.node_name);
    Ok(MachineName::new(name).map_err(|error| error.to_string()))
}

fn no_room(kept: &[KeptMachine], pending: usize, most: usize) -> String {
    if most == 0 {
        return "the director keeps none (kept_max in [resurrector] of director.toml)".to_owned();
    }
    let names: Vec<_> = kept.iter().map(|kept| kept.name.to_string()).collect();
    format!(
        "{} are kept ({}) and {pending} are about to be, of {most} at most (kept_max in [resurrector] of \
         director.toml); `windlass node kept delete` makes room",
        kept.len(),
        names.join(", ")
    )
}

fn unasked(error: ProviderError) -> ServiceError {
    let what = "the provider did not list the machines that it keeps";
    ServiceError::of(error.class(), what, error)
}
