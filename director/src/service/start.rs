//! Wires a director: store, provider, gateway, rollouts.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use windlass_common::error::ErrorClass;
use windlass_common::stemcell::KeyError;

use super::backups::{self, Backups};
use super::care;
use super::enrollment::Tokens;
use super::kubernetes::Identities;
use super::repair::{self, Repairs};
use super::tickets::tickets;
use super::{Director, Inner, campaigns, certificates, freezes, kept, operators, restore, upkeep};
use crate::artifacts::Artifacts;
use crate::backup;
use crate::backup::envelope::{self, EnvelopeError};
use crate::backup::hold::{HeldProvider, Hold};
use crate::backup::periodic::OwnBackups;
use crate::backup::repository;
use crate::config::{Config, DataDir, Identity};
use crate::epoch::CurrentEpoch;
use crate::gateway::{self, Gateway, GatewayConfig};
use crate::model::{Machine, Timestamp};
use crate::provider::{PreflightFault, Provider, Severity};
use crate::resurrector::witness::{Circle, Witnesses};
use crate::rollout::Rollouts;
use crate::rollout::world::{Agents, Birth, KubeApi, KubeClient, Registry, World};
use crate::rotation::Rotations;
use crate::stemcell::Catalogue;
use crate::store::StoreError;

/// How long agents are told that the director goes.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// Why a director does not start. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The store cannot be used.
    #[error("the store cannot be used")]
    Store(#[from] StoreError),
    /// The trusted keys cannot be read.
    #[error("the trusted keys of stemcells cannot be read")]
    Keys(#[from] KeyError),
    /// The provider cannot work here.
    #[error("machines cannot be made here: {}", .0.join("; "))]
    Provider(Vec<String>),
    /// The key of backups cannot be used.
    #[error("the key of the director's backups cannot be used")]
    BackupKey(#[from] EnvelopeError),
    /// The gateway does not start.
    #[error("the gateway does not start")]
    Gateway(#[from] gateway::StartError),
    /// The gateway's address cannot be told.
    #[error("the gateway's address cannot be told")]
    Address(#[source] io::Error),
}

impl StartError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Keys(_) | Self::Provider(_) | Self::BackupKey(_) => ErrorClass::Operator,
            Self::Store(source) => source.class(),
            Self::Gateway(source) => source.class(),
            Self::Address(_) => ErrorClass::Bug,
        }
    }
}

/// See [`Director::start`].
pub(super) async fn start(
    data: &DataDir,
    config: &Config,
    identity: Identity,
    provider: Arc<dyn Provider>,
) -> Result<Director, StartError> {
    let doors = |gateway: &Gateway| {
        let agents: Arc<dyn Agents> = Arc::new(gateway.clone());
        let kubernetes: Arc<dyn KubeApi> = Arc::new(KubeClient::new(agents.clone()));
        Doors {
            agents,
            kubernetes,
            witnesses: None,
        }
    };
    start_through(data, config, identity, provider, doors).await
}

/// How a director reaches what is not its own.
pub(super) struct Doors {
    /// Machines.
    pub(super) agents: Arc<dyn Agents>,
    /// Their clusters' APIs.
    pub(super) kubernetes: Arc<dyn KubeApi>,
    /// Whoever says whether machines live; those that there are when absent.
    pub(super) witnesses: Option<Arc<dyn Witnesses>>,
}

/// Starts a director that reaches machines and their clusters' APIs through these, made of its gateway.
pub(super) async fn start_through(
    data: &DataDir,
    config: &Config,
    identity: Identity,
    provider: Arc<dyn Provider>,
    doors: impl FnOnce(&Gateway) -> Doors,
) -> Result<Director, StartError> {
    let Identity { id, ca, records } = identity;
    let stemcells = Catalogue::new(
        config.stemcells.directory.clone(),
        config.stemcells.trusted_keys.clone(),
    );
    stemcells.trusted()?;
    let faults = preflight(provider.as_ref()).await?;
    let repository = repository::open(&config.backup, &id);
    let backups = Arc::new(Backups::open(data, &config.backup, repository.clone())?);
    operators::adopt_first(&records, &id, &data.operator()).await?;
    let epoch = CurrentEpoch::from(records.next_epoch().await?);
    let hold = Hold::load(&records).await?;
    let provider: Arc<dyn Provider> = Arc::new(HeldProvider::new(provider, hold.clone()));
    let backup_key = envelope::Identity::load_or_create(&data.backup_key())?;
    backup::director::sweep(data);
    let own_backups = OwnBackups::new(
        data.clone(),
        &backup_key,
        &config.backup,
        repository,
        records.clone(),
        hold.clone(),
    )
    .await?;
    let machines: Vec<Machine> = records.list().await?;
    let registry = Arc::new(Registry::new(id.clone(), &machines));
    if hold.is_on() {
        registry.remember_strangers();
    }
    let tokens = Arc::new(Tokens::load(records.clone()).await?);
    let mut settings = GatewayConfig::new(config.gateway.listen);
    settings.artifacts = config.gateway.artifacts;
    settings.heartbeat_budget = Some(gateway::host_budget());
    settings.lapsed_grace = config.gateway.lapsed_grace;
    settings.tickets = Some(tickets(&records, settings.clock.clone()).await);
    let artifacts = Arc::new(Artifacts::new(data.artifacts()));
    let gateway = Gateway::start(
        settings,
        ca.clone(),
        tokens,
        registry.clone(),
        artifacts.clone(),
        epoch.clone(),
    )
    .await?;
    let gateway_address = gateway.local_address().map_err(StartError::Address)?;
    let mut directors = config.advertised();
    for address in &mut directors {
        if address.port() == 0 {
            address.set_port(gateway_address.port());
        }
    }
    let Doors {
        agents,
        kubernetes,
        witnesses,
    } = doors(&gateway);
    let world = Arc::new(World {
        records: records.clone(),
        provider: provider.clone(),
        kubernetes,
        agents,
        registry,
        stemcells: stemcells.clone(),
        artifacts,
        birth: Birth {
            director: id.clone(),
            directors,
            ca: ca.clone(),
            epoch: epoch.clone(),
        },
        host: provider.host_traits(),
        etcd_turns: Default::default(),
        closings: Default::default(),
    });
    let witnesses =
        witnesses.unwrap_or_else(|| Arc::new(Circle::new(gateway.clone(), world.clone())));
    let repairs = Repairs::new(config.resurrector, witnesses.clone());
    let rollouts = Rollouts::new(records.clone(), world.clone());
    freezes::tell(&records, &rollouts).await?;
    let links = Arc::new(gateway.clone());
    let rotations = Rotations::start(records.clone(), ca.clone(), links, &hold);
    let resumed = match hold.record() {
        None => rollouts.resume().await?.len(),
        Some(held) => {
            tracing::warn!(
                backup = %held.backup_at, restored = %held.since,
                "the director was restored and is on hold; `windlass director adopt` ends that"
            );
            0
        }
    };
    tracing::info!(director = %id, epoch = %epoch.get(), %gateway_address, resumed, "director started");
    let inner = Arc::new(Inner {
        id,
        epoch,
        hold,
        own_backups,
        data_dir: data.path().to_owned(),
        started_at: Timestamp::now(),
        gateway_address,
        provider_faults: faults,
        records,
        provider,
        gateway,
        world,
        witnesses,
        rollouts,
        rotations,
        stemcells,
        ca,
        identities: Identities::default(),
        orders: tokio::sync::Mutex::new(()),
        plans: Default::default(),
        repairs,
        backups,
        care: Default::default(),
    });
    backups::start(&inner).await;
    care::start(Arc::downgrade(&inner));
    upkeep::start(Arc::downgrade(&inner));
    inner.own_backups.start();
    certificates::start(Arc::downgrade(&inner));
    restore::start(Arc::downgrade(&inner));
    repair::start(Arc::downgrade(&inner));
    campaigns::start(Arc::downgrade(&inner));
    kept::start(Arc::downgrade(&inner));
    Ok(Director { inner })
}

async fn preflight(provider: &dyn Provider) -> Result<Vec<String>, StartError> {
    let faults = provider.preflight().await;
    let text = |faults: Vec<&PreflightFault>| faults.iter().map(ToString::to_string).collect();
    let fatal: Vec<_> = faults
        .iter()
        .filter(|f| f.severity == Severity::Fatal)
        .collect();
    if fatal.is_empty() {
        Ok(text(faults.iter().collect()))
    } else {
        Err(StartError::Provider(text(fatal)))
    }
}

impl Director {
    /// Stops: no new steps, agents are told to reconnect soon. What was running is resumed at the next start.
    pub async fn shutdown(&self) {
        // The links first: a step whose caller goes while its link is up is cancelled.
        self.inner.gateway.close();
        self.inner.rollouts.abandon();
        self.inner.gateway.shutdown(SHUTDOWN).await;
    }
}
