//! The director itself: its CA, its hold, its backups, its audit log.

use std::sync::Arc;

use futures_util::stream::BoxStream;
use windlass_common::id::{DirectorId, FreezeName, MachineName};

use crate::backup::director;
use crate::config::{Config, DataDir, Identity};
use crate::gateway::CounterView;
use crate::model::{
    AuditEntry, AuditFilter, CaStatus, Caller, Freeze, Role, StemcellRecord, Timestamp,
};
use crate::pki::DirectorCa;
use crate::provider::Provider;
use crate::service::error::ServiceError;
use crate::service::freezes::FreezeOrder;
use crate::service::hold::{AdoptOrder, HoldView};
use crate::service::start::StartError;
use crate::service::{Director, DirectorStatus, ServiceResult, allow, start};
use crate::store::{Act, DirectoryLock};

impl Director {
    /// Starts a director, and goes on with every task that was not over. The lock shows that no other
    /// director uses the directory; hold it until this one is shut down.
    pub async fn start(
        _lock: &DirectoryLock,
        data: &DataDir,
        config: &Config,
        identity: Identity,
        provider: Arc<dyn Provider>,
    ) -> Result<Director, StartError> {
        start::start(data, config, identity, provider).await
    }

    /// Its id.
    pub fn id(&self) -> &DirectorId {
        &self.inner.id
    }

    /// What the gateway refused and what went through it, since the start.
    pub fn counters(&self) -> CounterView {
        self.inner.gateway.counters()
    }

    /// Its CA: issues the API's certificate and verifies operators.
    pub fn ca(&self) -> &Arc<DirectorCa> {
        &self.inner.ca
    }

    /// The CA, and its rotation if one is under way.
    pub async fn ca_status(&self) -> ServiceResult<CaStatus> {
        Ok(self.inner.rotations.status().await?)
    }

    /// Begins to rotate the CA, or joins the rotation under way, without waiting for the machines
    /// `abandon`. Returns at once; see [`Director::ca_status`].
    pub async fn rotate_ca(
        &self,
        abandon: &[MachineName],
        caller: &Caller,
    ) -> ServiceResult<CaStatus> {
        allow(caller, Role::Admin, "rotate the CA")?;
        self.inner.not_on_hold("rotate the CA")?;
        Ok(self.inner.rotations.order(abandon, caller).await?)
    }

    /// The times in which no cluster is changed, the first ones first.
    pub async fn freezes(&self) -> ServiceResult<Vec<Freeze>> {
        self.inner.freezes().await
    }

    /// Orders that no cluster is changed for some time, or changes the order of this name.
    pub async fn freeze(
        &self,
        name: &FreezeName,
        order: FreezeOrder,
        caller: &Caller,
    ) -> ServiceResult<Freeze> {
        allow(caller, Role::Admin, "freeze all clusters")?;
        self.inner.order_freeze(name, order, caller).await
    }

    /// Takes such an order back.
    pub async fn thaw(&self, name: &FreezeName, caller: &Caller) -> ServiceResult<Freeze> {
        allow(caller, Role::Admin, "end a freeze of all clusters")?;
        self.inner.end_freeze(name, caller).await
    }

    /// Stemcells whose signature was verified.
    pub async fn stemcells(&self) -> ServiceResult<Vec<StemcellRecord>> {
        let (usable, faults) = self
            .inner
            .stemcells
            .list()
            .map_err(|error| ServiceError::of(error.class(), "stemcells", error))?;
        for fault in faults {
            tracing::warn!(fault, "a stemcell cannot be used");
        }
        Ok(usable)
    }

    /// Whether the director was restored, and nobody has approved yet of what it found.
    pub fn is_on_hold(&self) -> bool {
        self.inner.hold.is_on()
    }

    /// Whether the director is on hold, and how the world differs from its records then.
    pub async fn hold(&self) -> ServiceResult<HoldView> {
        self.inner.hold_view().await
    }

    /// Adopts what has changed since the backup that the director was restored from, and ends its hold.
    pub async fn adopt(&self, order: &AdoptOrder, caller: &Caller) -> ServiceResult<HoldView> {
        allow(caller, Role::Admin, "end the director's hold")?;
        self.inner.adopt(order, caller).await
    }

    /// A backup of the director, sealed, piece by piece; the last piece is an error if it is not whole.
    pub async fn own_backup(
        &self,
        caller: &Caller,
    ) -> ServiceResult<BoxStream<'static, Result<Vec<u8>, director::BackupError>>> {
        allow(caller, Role::Admin, "back the director up")?;
        let act = Act {
            action: "director.backup",
            subject: "director",
            ..Act::default()
        };
        self.inner.note(caller, act).await?;
        Ok(self.inner.own_backups.stream())
    }

    /// When the last backup was taken that is whole, as far as this director knows; and how many of its
    /// scheduled ones failed since it started.
    pub fn own_backups(&self) -> (Option<Timestamp>, u64) {
        self.inner.own_backups.last()
    }

    /// What the director says about itself.
    pub async fn status(&self) -> ServiceResult<DirectorStatus> {
        self.inner.status().await
    }

    /// The newest `limit` lines of the audit log that match (at most 1000), newest first.
    pub async fn audit(&self, limit: u32, filter: &AuditFilter) -> ServiceResult<Vec<AuditEntry>> {
        Ok(self.inner.records.audit_log(limit, filter).await?)
    }

    /// Adds a line to the audit log: what a caller asked for, or what came of it.
    pub async fn note(&self, caller: &Caller, act: Act<'_>) -> ServiceResult<()> {
        self.inner.note(caller, act).await
    }
}
