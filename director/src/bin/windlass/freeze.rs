//! `windlass director freeze`, `freezes` and `thaw`.

use std::process::ExitCode;

use windlass_common::maintenance::FreezeSpec;
use windlass_director::api::FreezeClusters;
use windlass_director::client::Client;
use windlass_director::model::Freeze;

use crate::Session;
use crate::cluster::segment;
use crate::failure::Failure;
use crate::output::table;

pub(crate) async fn order(
    session: &Session,
    name: &str,
    order: &FreezeClusters,
) -> Result<ExitCode, Failure> {
    let client = session.client()?;
    let body = serde_json::to_string(order).map_err(|error| Failure::of(&error))?;
    let answer = client.put(&path(name), body).await?;
    let freeze: Freeze = client.typed(&answer)?;
    session.output.answer(&answer, || {
        format!(
            "no cluster is changed from {} to {}",
            freeze.from, freeze.to
        )
    });
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn list(session: &Session) -> Result<ExitCode, Failure> {
    let client = session.client()?;
    let answer = client.get(ALL).await?;
    let freezes: Vec<Freeze> = client.typed(&answer["items"])?;
    session.output.answer(&answer, || {
        let row = |freeze: &Freeze| {
            vec![
                freeze.name.to_string(),
                freeze.from.to_string(),
                freeze.to.to_string(),
                freeze.operator.clone(),
                freeze.reason.clone(),
            ]
        };
        table(
            &["NAME", "FROM", "UNTIL", "BY", "REASON"],
            freezes.iter().map(row),
        )
    });
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn end(session: &Session, name: &str) -> Result<ExitCode, Failure> {
    let answer = session.client()?.delete(&path(name)).await?;
    session.output.answer(&answer, || {
        format!("clusters may be changed again, as far as {name} goes")
    });
    Ok(ExitCode::SUCCESS)
}

/// The freezes, as a cluster's spec would say them.
pub(crate) async fn specs(client: &Client) -> Result<Vec<FreezeSpec>, Failure> {
    let answer = client.get(ALL).await?;
    let freezes: Vec<Freeze> = client.typed(&answer["items"])?;
    Ok(freezes.iter().map(Freeze::spec).collect())
}

const ALL: &str = "/v1/director/freezes";

fn path(name: &str) -> String {
    format!("{ALL}/{}", segment(name))
}
