//! Clusters of a provider that has zones: where machines are put, which leave, and where they are made anew.

use std::collections::BTreeMap;

use super::repair::tests::{demo, impatient, serves, worker};
use super::tests::{Rig, ann, spec};
use super::{ChangeOrder, Director};
use crate::config::Forensics;
use crate::model::{ClusterPhase, MachineFilter};
use crate::service::RecreateOrder;

/// The zones of the machines, by the ends of their names.
async fn zones(director: &Director) -> BTreeMap<String, String> {
    let machines = director.machines(&MachineFilter::default()).await.unwrap();
    let zoned = machines.iter().map(|view| &view.machine);
    let text =
        |zone: Option<&windlass_common::id::ZoneName>| zone.map_or("", |z| z.as_str()).to_owned();
    zoned
        .map(|m| (m.name.as_str().replace("demo-", ""), text(m.zone.as_ref())))
        .collect()
}

/// Has the pool have so many machines.
async fn resize(director: &Director, count: u32) {
    let mut wanted = spec("demo");
    for pool in wanted.pools.values_mut() {
        pool.count = count;
    }
    director
        .apply_cluster(wanted, &ChangeOrder::default(), &ann())
        .await
        .unwrap();
    let ready = async {
        while director.cluster(&demo()).await.unwrap().phase != ClusterPhase::Ready {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let limit = std::time::Duration::from_secs(120);
    tokio::time::timeout(limit, ready).await.expect("in time");
}

fn places<const N: usize>(of: [(&str, &str); N]) -> BTreeMap<String, String> {
    of.map(|(name, zone)| (name.to_owned(), zone.to_owned()))
        .into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_are_spread_over_zones_and_stay_where_they_are() {
    let rig = Rig::new().await;
    let all = ["b", "a"].map(|zone| zone.parse().unwrap());
    rig.sim.state.lock().unwrap().zones = all.to_vec();
    let director = impatient(&rig, Forensics::default()).await;
    let first = places([("cp-0", "b"), ("w-0", "b"), ("w-1", "a")]);
    assert_eq!(zones(&director).await, first);

    resize(&director, 5).await;
    let mut five = first.clone();
    five.extend(places([("w-2", "b"), ("w-3", "a"), ("w-4", "b")]));
    assert_eq!(zones(&director).await, five);
    let seen = rig.sim.state.lock().unwrap().machines[&"demo-w-3".parse().unwrap()]
        .view
        .tags
        .clone();
    assert_eq!(seen["windlass.zone"], "a");

    // Made anew, a machine is where it was.
    director
        .recreate_node(&worker(), RecreateOrder::default(), &ann())
        .await
        .unwrap();
    serves(&director, 2).await;
    assert_eq!(zones(&director).await["w-0"], "b");

    // Those that stay are spread as well.
    resize(&director, 3).await;
    let mut three = first.clone();
    three.extend(places([("w-2", "b")]));
    assert_eq!(zones(&director).await, three);

    // A zone that is new is where the next ones go.
    rig.sim
        .state
        .lock()
        .unwrap()
        .zones
        .push("c".parse().unwrap());
    resize(&director, 5).await;
    let now = zones(&director).await;
    assert_eq!((now["w-3"].as_str(), now["w-4"].as_str()), ("c", "a"));
    director.shutdown().await;
}
