//! What witnesses say of machines that are killed, frozen, cut off, or lose their agent. Times are printed;
//! what is asserted is what they say.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use windlass_tests::host::{self, Blocked, Frozen};
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::lifecycle::{healthy, with_world};

const CLUSTER: &str = "health";
/// The machine that things happen to; three others can tell about it.
const VICTIM: &str = "health-workers-0";
const LIMIT: Duration = Duration::from_secs(30);

/// Asks all witnesses.
fn evidence(world: &World) -> Result<Value> {
    world.json(&["node", "evidence", VICTIM])
}

/// Waits until all is well with the victim.
fn well(world: &World) -> Result<()> {
    until("the victim is healthy", Duration::from_secs(90), || {
        let seen = evidence(world)?;
        Ok((seen["verdict"] == "healthy").then_some(()))
    })
}

/// Waits until the victim is suspect, then asks once; prints the times since `began` and returns what was
/// said.
fn suspected(world: &World, what: &str, began: Instant) -> Result<Value> {
    until("the victim is suspect", LIMIT, || {
        let list = world.json(&["node", "show", VICTIM])?;
        Ok((list["agent"]["suspect"] == true || list["agent"]["connected"] == false).then_some(()))
    })?;
    let suspect = began.elapsed();
    let seen = evidence(world)?;
    let judged = began.elapsed();
    println!(
        "{what}: suspected after {} ms, evidence complete after {} ms ({} ms of it asking): {} {}",
        suspect.as_millis(),
        judged.as_millis(),
        seen["tookMs"],
        seen["verdict"],
        seen["evidence"]
    );
    Ok(seen)
}

fn expect(seen: &Value, verdict: &str, wanted: &[(&str, &str)]) -> Result<()> {
    for (witness, said) in wanted {
        ensure!(
            seen["evidence"][witness] == *said,
            "{witness} is not {said}: {seen:#}"
        );
    }
    ensure!(seen["verdict"] == verdict, "not {verdict}: {seen:#}");
    Ok(())
}

pub(crate) fn witnesses_agree() -> Result<()> {
    with_world(|world| {
        world.run(&["cluster", "create", CLUSTER, "--workers", "3", "--wait"])?;
        let kubectl = world.kubectl(CLUSTER)?;
        healthy(&kubectl, 4)?;
        well(world)?;
        // What happens to it is looked at here, and not put right.
        world.run(&["node", "hold", VICTIM])?;
        let seen = evidence(world)?;
        let beating = [("link", "beating"), ("power", "running"), ("work", "well")];
        expect(&seen, "healthy", &beating)?;
        ensure!(
            seen["probes"] == serde_json::json!([]),
            "nobody is asked about a machine that is heard of: {seen:#}"
        );
        frozen(world)?;
        agent_hangs(world)?;
        cut_off(world)?;
        switched_off(world)?;
        world.run(&["cluster", "delete", CLUSTER, "--yes", "--wait"])?;
        Ok(())
    })
}

fn frozen(world: &World) -> Result<()> {
    let began = Instant::now();
    let frozen = Frozen::machine("e2e", VICTIM)?;
    let seen = suspected(world, "frozen", began)?;
    expect(
        &seen,
        "nodeHung",
        &[
            ("link", "silent"),
            ("peers", "nobody"),
            ("lease", "unknown"),
            ("power", "running"),
        ],
    )?;
    let provider = statement(&seen, "provider")?;
    ensure!(provider.contains("frozen"), "{seen:#}");
    drop(frozen);
    well(world)
}

fn agent_hangs(world: &World) -> Result<()> {
    let agents = host::machine_processes(VICTIM, "windlass-agent")?;
    let [agent] = agents[..] else {
        anyhow::bail!("agents of {VICTIM}: {agents:?}");
    };
    let began = Instant::now();
    let stopped = host::Stopped::process(agent)?;
    let seen = suspected(world, "agent hangs", began)?;
    expect(
        &seen,
        "agentLost",
        &[
            ("link", "silent"),
            ("peers", "kubelet"),
            ("power", "running"),
        ],
    )?;
    drop(stopped);
    well(world)
}

fn cut_off(world: &World) -> Result<()> {
    let shown = world.json(&["node", "show", VICTIM])?;
    let address = shown["address"].as_str().context("an address")?.to_owned();
    let status = world.json(&["director", "status"])?;
    let gateway = status["gatewayAddress"].as_str().context("a gateway")?;
    let (_, port) = gateway.rsplit_once(':').context("a port")?;
    let began = Instant::now();
    let blocked = Blocked::udp(&address, port.parse()?)?;
    suspected(world, "cut off from the director", began)?;
    // While its connection stands, lost packets explain as much.
    let seen = until("its connection is gone", LIMIT, || {
        let seen = evidence(world)?;
        Ok((seen["evidence"]["link"] == "silent").then_some(seen))
    })?;
    expect(
        &seen,
        "partitioned",
        &[("peers", "agent"), ("power", "running")],
    )?;
    // Its kubelet goes on to renew the Lease, as two readings in this silence show.
    let renewed = until("the Lease is seen to be renewed", LIMIT, || {
        let seen = evidence(world)?;
        Ok((seen["evidence"]["lease"] == "renewed").then_some(seen))
    })?;
    println!(
        "cut off from the director: Lease seen to be renewed after {} ms",
        began.elapsed().as_millis()
    );
    expect(&renewed, "partitioned", &[("peers", "agent")])?;
    drop(blocked);
    well(world)
}

fn switched_off(world: &World) -> Result<()> {
    let began = Instant::now();
    // The link goes with the machine, so how the command ends says nothing.
    world.output(&[
        "node",
        "exec",
        VICTIM,
        "--",
        "systemctl",
        "poweroff",
        "--force",
        "--force",
    ])?;
    let seen = suspected(world, "switched off", began)?;
    expect(
        &seen,
        "machineGone",
        &[
            ("link", "silent"),
            ("peers", "nobody"),
            ("power", "stopped"),
        ],
    )
}

fn statement(seen: &Value, witness: &str) -> Result<String> {
    let said = seen["statements"].as_array().context("statements")?;
    let said = said.iter().find(|said| said["witness"] == witness);
    let said = said.with_context(|| format!("{witness} said nothing: {seen:#}"))?;
    Ok(said["says"].as_str().unwrap_or_default().to_owned())
}
