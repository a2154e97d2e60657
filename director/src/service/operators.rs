//! Operators: who they are, what they may do, and whether they still may.
//!
//! # Invariants
//! * The store decides: a certificate shows a name and nothing else.
//! * There is always an admin: the last one is neither revoked nor given another role.
//! * A name is given out once. Its certificates may outlive it, so it never comes back to life.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use windlass_common::error::ErrorChain;
use windlass_common::id::{DirectorId, OperatorName};
use windlass_common::pki::{Leaf, pem};

use super::draft::random_u32;
use super::{Inner, ServiceError, ServiceResult};
use crate::model::{Caller, Operator, Role, Timestamp};
use crate::pki::DirectorCa;
use crate::store::{Act, Change, Commit, Kind, Records, StoreError};

/// Life of an operator's certificate: a year.
pub(crate) const CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

impl Inner {
    pub(super) async fn caller(&self, name: &str) -> ServiceResult<Option<Caller>> {
        let found: Option<Operator> = self.records.get(name).await?;
        let Some(role) = found.and_then(|operator| operator.active_role()) else {
            return Ok(None);
        };
        let (high, low) = (random_u32()?, random_u32()?);
        Ok(Some(Caller {
            operator: name.to_owned(),
            role,
            request: format!("r{high:08x}{low:08x}"),
        }))
    }

    pub(super) async fn operator(&self, name: &str) -> ServiceResult<Operator> {
        let found = self.records.get(name).await?;
        found.ok_or_else(|| ServiceError::NotFound {
            kind: "operator",
            name: name.chars().take(80).collect(),
        })
    }

    pub(super) async fn add_operator(
        &self,
        name: OperatorName,
        role: Role,
        request_der: &[u8],
        caller: &Caller,
    ) -> ServiceResult<(Operator, String)> {
        let _order = self.orders.lock().await;
        if let Some(there) = self.records.get::<Operator>(name.as_str()).await? {
            let message = match there.active_role() {
                Some(role) => format!(
                    "operator {name} exists with the role {role}; `windlass operator set-role` changes it"
                ),
                None => format!(
                    "operator {name} was revoked, and its certificates may be valid still; choose another name"
                ),
            };
            return Err(ServiceError::Conflict { message });
        }
        let now = jiff::Timestamp::now();
        let chain = self
            .ca
            .issue_operator_request(name.clone(), request_der, CERTIFICATE_LIFE, now)
            .map_err(|error| {
                ServiceError::of(error.class(), "the operator's certificate", error)
            })?;
        let mut operator = Operator::new(name.as_str(), role, &caller.operator);
        let detail = format!("role {role}");
        self.put(&mut operator, "operator.add", &detail, caller)
            .await?;
        Ok((operator, chain.to_pem()))
    }

    pub(super) async fn renew_operator(
        &self,
        request_der: &[u8],
        caller: &Caller,
    ) -> ServiceResult<String> {
        let name = OperatorName::new(&caller.operator).map_err(|error| {
            ServiceError::of(windlass_common::error::ErrorClass::Bug, "the caller", error)
        })?;
        let now = jiff::Timestamp::now();
        let chain = self
            .ca
            .issue_operator_request(name, request_der, CERTIFICATE_LIFE, now)
            .map_err(|error| {
                ServiceError::of(error.class(), "the operator's certificate", error)
            })?;
        let mut commit = Commit::default();
        let act = Act {
            action: "operator.renew",
            subject: &format!("operator/{}", caller.operator),
            detail: "",
            outcome: "done",
        };
        self.records.audit_caller(&mut commit, caller, act);
        self.records.commit(commit).await?;
        Ok(chain.to_pem())
    }

    pub(super) async fn set_role(
        &self,
        name: &str,
        role: Role,
        caller: &Caller,
    ) -> ServiceResult<Operator> {
        let _order = self.orders.lock().await;
        let mut operator = self.operator(name).await?;
        if operator.revoked_at.is_some() {
            return Err(ServiceError::Conflict {
                message: format!("operator {name} was revoked; add another one"),
            });
        }
        if role < Role::Admin {
            self.another_admin(name).await?;
        }
        let detail = format!("role {} becomes {role}", operator.role);
        operator.role = role;
        self.put(&mut operator, "operator.set-role", &detail, caller)
            .await?;
        Ok(operator)
    }

    pub(super) async fn revoke_operator(
        &self,
        name: &str,
        caller: &Caller,
    ) -> ServiceResult<Operator> {
        let _order = self.orders.lock().await;
        let mut operator = self.operator(name).await?;
        if operator.revoked_at.is_some() {
            return Ok(operator);
        }
        self.another_admin(name).await?;
        operator.revoked_at = Some(Timestamp::now());
        self.put(&mut operator, "operator.revoke", "", caller)
            .await?;
        Ok(operator)
    }

    /// Whether there is an admin besides this operator.
    async fn another_admin(&self, name: &str) -> ServiceResult<()> {
        let operators: Vec<Operator> = self.records.list().await?;
        let other = |operator: &Operator| {
            operator.name != name && operator.active_role() == Some(Role::Admin)
        };
        if operators.iter().any(other) {
            return Ok(());
        }
        Err(ServiceError::Conflict {
            message: format!(
                "{name} is the only admin; give another operator that role first, or nobody could"
            ),
        })
    }

    async fn put(
        &self,
        operator: &mut Operator,
        action: &str,
        detail: &str,
        caller: &Caller,
    ) -> ServiceResult<()> {
        let mut commit = Commit::default();
        commit.put(operator)?;
        let act = Act {
            action,
            subject: &format!("operator/{}", operator.name),
            detail,
            outcome: "done",
        };
        self.records.audit_caller(&mut commit, caller, act);
        operator.revision = self.records.commit(commit).await?;
        Ok(())
    }
}

/// Whether an operator keeps the role that a request needs, and its certificate counts, while what it
/// asked for goes on.
#[derive(Debug)]
pub struct Standing {
    records: Records,
    ca: Arc<DirectorCa>,
    generation: u32,
    /// Of the CA's stage.
    stages: watch::Receiver<u64>,
    operator: String,
    needed: Role,
    changes: broadcast::Receiver<Change>,
}

impl Standing {
    pub(super) fn new(
        records: Records,
        ca: Arc<DirectorCa>,
        operator: &str,
        needed: Role,
        generation: u32,
    ) -> Self {
        Self {
            changes: records.watch(),
            stages: ca.changed(),
            ca,
            generation,
            operator: operator.to_owned(),
            needed,
            records,
        }
    }

    /// Returns when the operator was revoked, lost the role, or its certificate's CA was dropped; not
    /// before.
    pub async fn lost(mut self) {
        loop {
            if !self.ca.trusts(self.generation) {
                tracing::info!(
                    operator = self.operator,
                    "ends what a dropped CA's certificate had begun"
                );
                return;
            }
            // Read after subscribing: a change in between is seen here or there.
            match self.records.get::<Operator>(&self.operator).await {
                Ok(Some(operator)) if operator.active_role() >= Some(self.needed) => {}
                Ok(_) => {
                    tracing::info!(operator = self.operator, "ends what a lost role had begun");
                    return;
                }
                Err(error) => {
                    tracing::warn!(operator = self.operator, error = %ErrorChain(&error),
                        "cannot tell whether a role is kept; ends what it had begun");
                    return;
                }
            }
            loop {
                let change = tokio::select! {
                    change = self.changes.recv() => change,
                    // An error would say that the CA, which is held here, is gone.
                    _ = self.stages.changed() => break,
                };
                match change {
                    Ok(change) if change.kind != Kind::Operator || change.name != self.operator => {
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => break,
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        }
    }
}

/// Writes the record of the operator that `director init` made, in a directory that is older than
/// these records: the one whose certificate `operator` holds, which only root can write. Changes
/// nothing where there is a record.
pub(super) async fn adopt_first(
    records: &Records,
    director: &DirectorId,
    operator_dir: &Path,
) -> Result<(), StoreError> {
    let known: Vec<Operator> = records.list().await?;
    if !known.is_empty() {
        return Ok(());
    }
    let names = certified(director, operator_dir);
    if names.is_empty() {
        tracing::error!(dir = %operator_dir.display(),
            "there is no operator, and no certificate of the first one; nobody can use the API");
        return Ok(());
    }
    let mut commit = Commit::default();
    for name in names {
        tracing::info!(operator = %name, "the first operator becomes an admin");
        let subject = format!("operator/{name}");
        commit.put(&Operator::new(name.as_str(), Role::Admin, "director"))?;
        records.audit(
            &mut commit,
            "director",
            "operator.adopt",
            &subject,
            "role admin",
        );
    }
    records.commit(commit).await?;
    Ok(())
}

/// Operators of this director with a certificate and a key in the directory.
fn certified(director: &DirectorId, dir: &Path) -> Vec<OperatorName> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let operator = |path: &Path| {
        let bytes = std::fs::read(path).ok()?;
        let chain = pem::certificates(&bytes).ok()?;
        let identity = Leaf::parse(chain.first()?).ok()?.operator().ok()?;
        (identity.director == *director && path.with_extension("key").exists())
            .then_some(identity.name)
    };
    let mut names: Vec<OperatorName> = entries
        .flatten()
        .filter_map(|entry| operator(&entry.path()))
        .collect();
    names.sort();
    names.dedup();
    names
}
