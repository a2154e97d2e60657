//! `windlass cluster apply`, `scale` and `upgrade`: changes of a cluster.

use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use windlass_director::client::Client;
use windlass_director::model::Plan;
use windlass_director::spec::from_text;

use crate::Session;
use crate::args::ChangeArgs;
use crate::cluster::{ordered, read, segment};
use crate::failure::{CONFLICT, Failure, USAGE};
use crate::plan::explain;

/// A cluster as it is to be, and how it gets there.
struct Order {
    name: String,
    body: String,
    newest_stemcell: bool,
    /// What the change was made from, as it was read.
    base: Option<Value>,
}

/// Numbers of machines.
pub(crate) struct Sizes<'a> {
    /// Of pools, by name.
    pub(crate) pools: &'a [(String, u32)],
    /// Of the control plane.
    pub(crate) control_plane: Option<u32>,
}

pub(crate) async fn apply(
    session: &Session,
    client: &Client,
    file: &Path,
    stemcell: bool,
    change: &ChangeArgs,
) -> Result<ExitCode, Failure> {
    let body = read(file)?;
    let order = Order {
        name: name_in(&body)?,
        body,
        newest_stemcell: stemcell,
        base: None,
    };
    place(session, client, order, change).await
}

pub(crate) async fn scale(
    session: &Session,
    client: &Client,
    name: &str,
    sizes: Sizes<'_>,
    change: &ChangeArgs,
) -> Result<ExitCode, Failure> {
    let base = show(client, name).await?;
    let mut cluster = base.clone();
    if let Some(count) = sizes.control_plane {
        cluster["spec"]["controlPlane"]["count"] = json!(count);
    }
    let known = &mut cluster["spec"]["pools"];
    for (pool, count) in sizes.pools {
        if known.get(pool).is_none() {
            let there: Vec<_> = known
                .as_object()
                .into_iter()
                .flatten()
                .map(|(k, _)| k.clone())
                .collect();
            return Err(Failure::new(
                USAGE,
                format!(
                    "cluster {name} has no pool {pool}; it has: {}. `windlass cluster apply` adds pools",
                    there.join(", ")
                ),
            ));
        }
        known[pool]["count"] = json!(count);
    }
    place(session, client, from(base, &cluster, name, false), change).await
}

pub(crate) async fn upgrade(
    session: &Session,
    client: &Client,
    name: &str,
    to: Option<&str>,
    stemcell: bool,
    change: &ChangeArgs,
) -> Result<ExitCode, Failure> {
    let base = show(client, name).await?;
    let mut cluster = base.clone();
    if let Some(version) = to {
        cluster["spec"]["kubernetesVersion"] = json!(version);
    }
    place(
        session,
        client,
        from(base, &cluster, name, stemcell),
        change,
    )
    .await
}

async fn show(client: &Client, name: &str) -> Result<Value, Failure> {
    let path = format!("/v1/clusters/{}", segment(name));
    Ok(client.get(&path).await?)
}

/// The order for a cluster that was read and changed.
fn from(base: Value, changed: &Value, name: &str, newest_stemcell: bool) -> Order {
    Order {
        name: name.to_owned(),
        body: changed["spec"].to_string(),
        newest_stemcell,
        base: Some(base),
    }
}

/// The name of the cluster that a text describes.
pub(crate) fn name_in(text: &str) -> Result<String, Failure> {
    let document = from_text(text).map_err(|faults| Failure::new(USAGE, faults.to_string()))?;
    match document["name"].as_str() {
        Some(name) => Ok(name.to_owned()),
        None => Err(Failure::new(
            USAGE,
            "the cluster that is described has no name",
        )),
    }
}

/// What would be done.
pub(crate) async fn dry_run(client: &Client, name: &str, body: String) -> Result<Value, Failure> {
    let path = format!("/v1/clusters/{}?dry_run=true", segment(name));
    Ok(client.put(&path, body).await?)
}

/// Orders a change, unless somebody else has changed the cluster since it was read. A record whose spec is what it was
/// differs in what the director keeps about the cluster alone, which no order overwrites.
async fn put(client: &Client, path: &str, order: Order) -> Result<Value, Failure> {
    let Some(mut base) = order.base else {
        return Ok(client.put(path, order.body).await?);
    };
    loop {
        let Some(revision) = base["revision"].as_u64() else {
            let said = "the director did not say at which revision the cluster is";
            return Err(Failure::failed(said));
        };
        let path = format!("{path}&revision={revision}");
        let failure = match client.put(&path, order.body.clone()).await {
            Ok(answer) => return Ok(answer),
            Err(error) => Failure::from(error),
        };
        if failure.code != CONFLICT {
            return Err(failure);
        }
        let now = show(client, &order.name).await?;
        if now["revision"] == base["revision"] || now["spec"] != base["spec"] {
            return Err(failure);
        }
        base = now;
    }
}

async fn place(
    session: &Session,
    client: &Client,
    order: Order,
    change: &ChangeArgs,
) -> Result<ExitCode, Failure> {
    let mut path = format!(
        "/v1/clusters/{}?dry_run={}&accept_downtime={}&accept_blocked={}",
        segment(&order.name),
        change.dry_run,
        change.accept_downtime,
        change.accept_blocked
    );
    if order.newest_stemcell {
        path.push_str("&stemcell=newest");
    }
    if let Some(plan) = &change.plan {
        path.push_str(&format!("&plan={}", segment(plan)));
    }
    if let Some(reason) = &change.ignore_window {
        path.push_str(&format!("&ignore_window={}", segment(reason)));
    }
    let answer = put(client, &path, order).await?;
    if change.dry_run {
        let plan: Plan = client.typed(&answer)?;
        session.output.answer(&answer, || explain(&plan));
        return Ok(ExitCode::SUCCESS);
    }
    ordered(session, client, &answer, change.wait).await
}
