//! `windlass cluster upgrade-agents` and `windlass node upgrade-agent`.

use std::process::ExitCode;

use windlass_director::api::UpgradeAgents;
use windlass_director::client::Client;
use windlass_director::model::{MachineView, Plan};

use crate::Session;
use crate::args::AgentArgs;
use crate::cluster::{ordered, segment};
use crate::failure::Failure;
use crate::plan::explain;

/// Orders it for machines of a cluster; for all of them when none is named.
pub(crate) async fn upgrade(
    session: &Session,
    client: &Client,
    cluster: &str,
    machines: Vec<String>,
    at_a_time: u32,
    args: AgentArgs,
) -> Result<ExitCode, Failure> {
    let mut path = format!(
        "/v1/clusters/{}/agents?dry_run={}",
        segment(cluster),
        args.dry_run
    );
    if let Some(plan) = &args.plan {
        path.push_str(&format!("&plan={}", segment(plan)));
    }
    if let Some(reason) = &args.ignore_window {
        path.push_str(&format!("&ignore_window={}", segment(reason)));
    }
    let body = UpgradeAgents {
        stemcell: args.stemcell,
        machines,
        at_a_time: Some(at_a_time),
    };
    let body = serde_json::to_string(&body).map_err(|error| Failure::of(&error))?;
    let answer = client.post(&path, body).await?;
    if args.dry_run {
        let plan: Plan = client.typed(&answer)?;
        session.output.answer(&answer, || explain(&plan));
        return Ok(ExitCode::SUCCESS);
    }
    ordered(session, client, &answer, args.wait).await
}

/// Orders it for one machine.
pub(crate) async fn upgrade_one(
    session: &Session,
    client: &Client,
    machine: &str,
    args: AgentArgs,
) -> Result<ExitCode, Failure> {
    let path = format!("/v1/machines/{}", segment(machine));
    let view: MachineView = client.typed(&client.get(&path).await?)?;
    let cluster = view.machine.cluster;
    let machines = vec![machine.to_owned()];
    upgrade(session, client, cluster.as_str(), machines, 1, args).await
}
