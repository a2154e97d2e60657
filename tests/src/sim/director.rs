//! A director of the simulation: the real records, world, planner and rollouts, in one life.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use windlass_common::id::Epoch;
use windlass_director::kubernetes::facts::HostTraits;
use windlass_director::model::Machine;
use windlass_director::provider::Provider;
use windlass_director::rollout::Rollouts;
use windlass_director::rollout::world::{Birth, Registry, World};
use windlass_director::store::{Records, Sealer, Store};

use super::fixtures::{self, Fixtures};
use super::life::{Life, Watched};
use super::mutation::Mutation;
use super::state::Site;

/// How soon agents connect to a director that has taken over, and come back to it.
const CONNECTS: Duration = Duration::from_secs(15);

/// Pause before a store that refuses is asked again.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// A director.
#[derive(Debug)]
pub struct Director {
    /// What it reaches the world through.
    pub life: Arc<Life>,
    /// Its records.
    pub records: Records,
    /// What its steps act on.
    pub world: Arc<World>,
    /// Its tasks.
    pub rollouts: Rollouts,
}

impl Director {
    /// Starts a director; a faulty one takes over with the next epoch. `None` when it dies at that.
    pub async fn start(
        site: &Site,
        fixtures: &Arc<Fixtures>,
        faulty: bool,
    ) -> Result<Option<Self>> {
        let life = Life::new(site, fixtures, faulty);
        tokio::select! {
            biased;
            () = life.death() => Ok(None),
            started = Self::take_over(&life) => started.map(Some),
        }
    }

    async fn take_over(life: &Arc<Life>) -> Result<Self> {
        let (life, fixtures, faulty) = (Arc::clone(life), &life.fixtures, life.faulty);
        let store: Arc<dyn Store> = life.clone();
        let records = Records::new(store, Sealer::new(&[7; 32])?).await?;
        let mut epoch = Epoch(0);
        while faulty && epoch.0 == 0 {
            match records.next_epoch().await {
                Ok(next) => epoch = next,
                Err(_) => tokio::time::sleep(STORE_PAUSE).await,
            }
        }
        let machines: Vec<Machine> = records.list().await?;
        let director = fixtures::director()?;
        let registry = Arc::new(Registry::new(director.clone(), &machines));
        life.epoch.set(epoch.0).ok().context("one epoch a life")?;
        life.registry
            .set(registry.clone())
            .ok()
            .context("one registry a life")?;
        let world = Arc::new(World {
            records: records.clone(),
            provider: life.clone(),
            agents: life.clone(),
            kubernetes: life.clone(),
            registry,
            stemcells: fixtures.stemcells.clone(),
            artifacts: Arc::clone(&fixtures.artifacts),
            birth: Birth {
                director,
                directors: vec!["10.0.0.1:1".parse()?],
                ca: fixtures.ca.clone(),
                epoch: epoch.into(),
            },
            host: HostTraits::default(),
            etcd_turns: Default::default(),
            closings: Default::default(),
        });
        if faulty {
            Self::receive(&life).await;
        }
        let watched = Arc::new(Watched {
            world: world.clone(),
            life: life.clone(),
        });
        Ok(Self {
            rollouts: Rollouts::with_clock(records.clone(), watched, life.site.clock().clone()),
            life,
            records,
            world,
        })
    }

    /// Lets agents connect, as long as this life lasts.
    async fn receive(life: &Arc<Life>) {
        let tidies = life.site.lock().mutation == Some(Mutation::TidiesUp);
        let found = life.site.lock().vms.keys().next().cloned();
        if let Some(machine) = found.filter(|_| tidies) {
            let _ = life.delete_machine(&machine).await; // it is broken on purpose
        }
        let life = Arc::clone(life);
        tokio::spawn(async move {
            while !life.is_dead() {
                tokio::time::sleep(CONNECTS).await;
                if !life.is_dead() {
                    life.hear();
                }
            }
        });
    }

    /// Ends it as a crash does.
    pub fn crash(&self) {
        self.life.kill();
        self.rollouts.abandon();
    }
}
