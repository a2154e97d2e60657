//! Upkeep: what has to stay true of a cluster that nobody works on.
//!
//! A reconciler without input: each round looks at everything anew, so that a restart of the director
//! and a normal round are the same code. Endpoint processes and machine monitors that died come back
//! here; both live outside the director, and nothing else watches them.
//!
//! # Invariants
//! * A cluster that a task works on, or that is not ready, is left alone. The look and the act are one
//!   under the lock that every order takes, so that upkeep never revives what a delete has removed.
//! * Nothing is created or deleted here: only what a finished task made is put back in service.
//!
//! # After a crash
//! The next round is the first one.
//!
//! # Not here
//! Machines that hang or are gone: that takes a verdict.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};
use windlass_common::error::ErrorChain;

use super::Inner;
use crate::model::{Cluster, ClusterPhase};

/// Between two rounds. A lost endpoint is a lost API for people outside, so it is seconds; a round costs
/// one look at each process of the provider.
const PERIOD: Duration = Duration::from_secs(3);
/// Longest that one cluster may keep orders waiting.
const LIMIT: Duration = Duration::from_secs(5);

/// Starts the rounds; they end with the director.
pub(super) fn start(director: Weak<Inner>) {
    tokio::spawn(async move {
        let mut rounds = interval(PERIOD);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            let Some(director) = director.upgrade() else {
                return;
            };
            round(&director).await;
        }
    });
}

async fn round(director: &Arc<Inner>) {
    let clusters: Vec<Cluster> = match director.records.list().await {
        Ok(clusters) => clusters,
        Err(error) => {
            tracing::warn!(error = %ErrorChain(&error), "upkeep cannot read the clusters");
            return;
        }
    };
    for cluster in clusters {
        let name = cluster.spec.name.clone();
        if timeout(LIMIT, keep(director, name.as_str())).await.is_err() {
            tracing::warn!(cluster = %name, limit_ms = LIMIT.as_millis(), "upkeep took too long");
        }
    }
}

async fn keep(director: &Arc<Inner>, name: &str) {
    let _no_order_meanwhile = director.orders.lock().await;
    let Ok(Some(cluster)) = director.records.get::<Cluster>(name).await else {
        return;
    };
    if cluster.task.is_some() || cluster.phase != ClusterPhase::Ready {
        return;
    }
    let Ok(machines) = director.records.machines_of(name).await else {
        return;
    };
    if let Err(error) = director.world.keep_endpoint(&cluster, &machines).await {
        tracing::warn!(cluster = %name, error = %error, "the endpoint cannot be kept");
    }
    for machine in &machines {
        if let Err(error) = director.provider.machine(&machine.name).await {
            tracing::warn!(machine = %machine.name, error = %ErrorChain(&error), "the machine cannot be looked at");
        }
    }
}
