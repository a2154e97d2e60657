//! The director is lost, and restored from a backup that was taken before its machines changed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use windlass_tests::load::{Connections, Load};
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::lifecycle::{healthy, items};
use crate::repair::incarnation;
use crate::rotation::{pods, service};

const CLUSTER: &str = "kept";
/// Longest wait for agents that were refused to come again.
const PATIENCE: Duration = Duration::from_secs(120);
/// Requests a second of the load.
const RATE: u32 = 10;

/// A worker was replaced and another one added since the backup. The restored director holds, shows both, adopts
/// them, and grows the pool; no request to a Service fails meanwhile and no pod restarts.
pub(crate) fn while_machines_have_changed() -> Result<()> {
    let safe = tempfile::Builder::new()
        .prefix("windlass-e2e-safe-")
        .tempdir_in("/var/tmp")?;
    let mut world = World::start_apart("kept", &safe.path().join("platform"))?;
    world.run(&["cluster", "create", CLUSTER, "--workers", "1", "--wait"])?;
    let (archive, key) = (safe.path().join("yesterday.age"), safe.path().join("key"));
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    world.run(&["director", "backup-key", "--write", &text(&key)])?;
    world.run(&["director", "backup", "--to", &text(&archive)])?;
    let sealed = std::fs::read(&archive)?;
    ensure!(sealed.starts_with(b"age-encryption.org/v1\n"), "not sealed");

    let listed = world.json(&["node", "list", "--cluster", CLUSTER])?;
    let worker = items(&listed)?
        .iter()
        .filter_map(|machine| machine["name"].as_str())
        .find(|name| !name.contains("-cp-"))
        .context("there is a worker")?
        .to_owned();
    let pool = pool_of(&worker)?;
    world.run(&["node", "recreate", &worker, "--yes", "--wait"])?;
    grow(&world, &pool, 2)?;
    let before = world.json(&["director", "status"])?;
    let kubectl = world.kubectl(CLUSTER)?;
    healthy(&kubectl, 3)?;
    let (target, running) = (service(&world, &kubectl, CLUSTER)?, pods(&kubectl)?);
    let load = Load::start("new connections", &target, Connections::New, RATE, 2);

    let restored = world.restore_elsewhere(&archive, &key)?;
    world.run(&["director", "start"])?;
    let status = world.json(&["director", "status"])?;
    ensure!(!status["hold"].is_null(), "it does not hold: {status:#}");
    ensure!(
        status["id"] == before["id"] && status["id"] == restored["id"],
        "another director"
    );
    ensure!(
        status["epoch"].as_u64() > before["epoch"].as_u64(),
        "the epoch went back: {status:#}"
    );
    for order in [
        &["node", "recreate", &worker, "--yes"][..],
        &["cluster", "scale", CLUSTER, "--pool", &format!("{pool}=3")],
        &["cluster", "delete", CLUSTER, "--yes"],
    ] {
        let refused = world.output(order)?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(
            !refused.status.success() && said.contains("on hold"),
            "{order:?} was not refused: {said}"
        );
    }
    let view = until(
        "both workers have shown their certificates",
        PATIENCE,
        || {
            let view = world.json(&["director", "adopt"])?;
            let found = items(&view["differences"]["machines"])?.clone();
            let proven = found
                .iter()
                .filter(|one| one["certificate"] == true)
                .count();
            Ok((proven == 2).then_some(view))
        },
    )?;
    let kind = |name: &str| {
        let all = items(&view["differences"]["machines"]).ok()?;
        all.iter().find(|one| one["machine"] == name)?["change"].as_str()
    };
    ensure!(kind(&worker) == Some("replaced"), "{view:#}");
    ensure!(
        items(&view["differences"]["machines"])?.len() == 2,
        "{view:#}"
    );
    ensure!(incarnation(&world, &worker)? == 1, "adopted unasked");
    let digest = view["digest"].as_str().context("a digest")?;
    let other = format!("sha256:{}", "0".repeat(64));
    let stale = world.output(&["director", "adopt", "--approve", &other])?;
    ensure!(!stale.status.success(), "an approval of nothing counts");
    eprint!("{}", world.run(&["director", "adopt"])?);
    world.run(&["director", "adopt", "--approve", digest])?;

    let status = world.json(&["director", "status"])?;
    ensure!(status["hold"].is_null(), "still on hold: {status:#}");
    ensure!(incarnation(&world, &worker)? == 2, "not adopted");
    until("all agents are connected", PATIENCE, || {
        let nodes = world.json(&["node", "list", "--cluster", CLUSTER])?;
        let all = items(&nodes)?;
        let back = all.iter().all(|one| one["agent"]["connected"] == true);
        Ok((all.len() == 3 && back).then_some(()))
    })?;
    grow(&world, &pool, 3)?;
    // The former credentials went with the data directory.
    let kubectl = world.kubectl(CLUSTER)?;
    healthy(&kubectl, 4)?;
    let now = pods(&kubectl)?;
    for (pod, restarts) in &running {
        ensure!(now.get(pod) == Some(restarts), "{pod} was touched: {now:?}");
    }
    load.stop()?.flawless()?;
    let audit = world.json(&["audit", "--action", "director."])?;
    let did =
        |action: &str| items(&audit).is_ok_and(|all| all.iter().any(|e| e["action"] == action));
    ensure!(
        did("director.restore") && did("director.adopt"),
        "{audit:#}"
    );
    let plan: Value = world.json(&["cluster", "plan", CLUSTER])?;
    ensure!(
        plan["steps"].as_array().is_some_and(Vec::is_empty),
        "left to do: {plan:#}"
    );
    // Its machines first: they are outside of what is removed with the world.
    drop(world);
    Ok(())
}

/// The pool in the name of a worker of the cluster.
fn pool_of(worker: &str) -> Result<String> {
    let rest = worker
        .strip_prefix(CLUSTER)
        .and_then(|rest| rest.strip_prefix('-'));
    let pool = rest.and_then(|rest| rest.rsplit_once('-'));
    Ok(pool
        .context("a worker is named after its pool")?
        .0
        .to_owned())
}

fn grow(world: &World, pool: &str, count: u32) -> Result<()> {
    let pool = format!("{pool}={count}");
    world.run(&["cluster", "scale", CLUSTER, "--pool", &pool, "--wait"])?;
    Ok(())
}
