//! Upkeep: what has to stay true of a cluster that nobody works on.
//!
//! A reconciler without input: each round looks at everything anew, so that a restart of the director
//! and a normal round are the same code. Endpoint processes and machine monitors that died come back
//! here; both live outside the director, and nothing else watches them.
//!
//! # Invariants
//! * A cluster that does not serve, or that a task makes or deletes, is left alone. The look and the act are
//!   one under the lock that every order takes, so that upkeep never revives what a delete has removed.
//! * While a task changes a cluster its endpoint is kept as the records say, which are written before an API
//!   server leaves it; its machines are the task's.
//! * A director that is on hold after a restore keeps nothing up.
//! * Nothing is created or deleted here: only what a finished task made is put back in service.
//!
//! # After a crash
//! The next round is the first one.
//!
//! # Not here
//! Machines that hang or are gone: that takes a verdict.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::timeout;
use windlass_common::error::ErrorChain;

use super::{Inner, rounds};
use crate::model::{Cluster, ClusterPhase};
use crate::planner::inputs;

/// Between two rounds. A lost endpoint is a lost API for people outside, so it is seconds; a round costs
/// one look at each process of the provider.
const PERIOD: Duration = Duration::from_secs(3);
/// Longest that one cluster may keep orders waiting.
const LIMIT: Duration = Duration::from_secs(5);

/// Starts the rounds; they end with the director.
pub(super) fn start(director: Weak<Inner>) {
    tokio::spawn(rounds::every(director, PERIOD, round));
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
    let serves = match cluster.phase {
        ClusterPhase::Ready | ClusterPhase::Updating | ClusterPhase::Degraded => true,
        ClusterPhase::Creating | ClusterPhase::Failed | ClusterPhase::Deleting => false,
    };
    if !serves {
        return;
    }
    let Ok(mut machines) = director.records.machines_of(name).await else {
        return;
    };
    loop {
        if let Err(error) = director.world.keep_endpoint(&cluster, &machines).await {
            tracing::warn!(cluster = %name, error = %error, "the endpoint cannot be kept");
        }
        // A task may have taken an API server out of the endpoint meanwhile: it stays out.
        let Ok(now) = director.records.machines_of(name).await else {
            return;
        };
        if inputs::backends(&now) == inputs::backends(&machines) {
            break;
        }
        machines = now;
    }
    if cluster.task.is_some() {
        return;
    }
    for machine in &machines {
        if let Err(error) = director.provider.machine(&machine.name).await {
            tracing::warn!(machine = %machine.name, error = %ErrorChain(&error), "the machine cannot be looked at");
        }
    }
}
