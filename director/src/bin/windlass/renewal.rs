//! `windlass cluster renew-certificates`, `rotate-ca` and `rotate-encryption-key`.

use std::process::ExitCode;

use windlass_director::api::{RenewCertificates, RotateSecrets};
use windlass_director::client::Client;
use windlass_director::model::Plan;

use crate::Session;
use crate::args::RenewalArgs;
use crate::cluster::{ordered, segment};
use crate::failure::Failure;
use crate::plan::explain;

/// Orders it for machines of a cluster; for all of them when none is named.
pub(crate) async fn certificates(
    session: &Session,
    client: &Client,
    cluster: &str,
    machines: Vec<String>,
    args: RenewalArgs,
) -> Result<ExitCode, Failure> {
    let body = serde_json::to_string(&RenewCertificates { machines });
    let body = body.map_err(|error| Failure::of(&error))?;
    order(session, client, cluster, "certificates", body, args).await
}

/// Orders a rotation, or goes on with one.
pub(crate) async fn rotate(
    session: &Session,
    client: &Client,
    cluster: &str,
    what: RotateSecrets,
    args: RenewalArgs,
) -> Result<ExitCode, Failure> {
    let body = serde_json::to_string(&what);
    let body = body.map_err(|error| Failure::of(&error))?;
    order(session, client, cluster, "rotation", body, args).await
}

/// Shows what an order would do, or places it.
async fn order(
    session: &Session,
    client: &Client,
    cluster: &str,
    what: &str,
    body: String,
    args: RenewalArgs,
) -> Result<ExitCode, Failure> {
    let dry_run = args.dry_run;
    let mut path = format!("/v1/clusters/{}/{what}?dry_run={dry_run}", segment(cluster));
    if let Some(plan) = &args.plan {
        path.push_str(&format!("&plan={}", segment(plan)));
    }
    let answer = client.post(&path, body).await?;
    if dry_run {
        let plan: Plan = client.typed(&answer)?;
        session.output.answer(&answer, || explain(&plan));
        return Ok(ExitCode::SUCCESS);
    }
    ordered(session, client, &answer, args.wait).await
}
