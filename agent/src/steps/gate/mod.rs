//! `gate`: waits until every check passes at once.
//!
//! Changes nothing. While it waits, it says which check fails and what it answered; the step's
//! deadline ends it, with the same message ([`Run::stage`]).

use std::net::SocketAddr;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use tokio::time::timeout;
use windlass_common::step::{Check, ClientFiles, Gate, Payload};

use super::{Context, Failure, Run, https};
use crate::host::Host;

/// Longest time of one look at one check: a healthy endpoint on the same network answers in
/// milliseconds, one under load in a few seconds.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// Most of an answer that is read, in bytes: `/readyz?verbose` of an API server has 4 KiB.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Most of an answer that is shown, in characters.
const ANSWER_SHOWN: usize = 300;

pub(super) async fn run(context: &Context, run: &Run, gate: &Gate) -> Result<Payload, Failure> {
    let interval = Duration::from_millis(gate.interval_ms.into());
    let mut last = String::new();
    loop {
        let Some(failing) = first_failing(context, gate).await else {
            return Ok(Payload::None);
        };
        if failing != last {
            run.stage(failing.clone());
            last = failing;
        }
        tokio::time::sleep(interval).await;
    }
}

/// The first check that fails and why; `None` when all pass.
async fn first_failing(context: &Context, gate: &Gate) -> Option<String> {
    for check in &gate.checks {
        let looked = timeout(LOOK_TIMEOUT, look(context, check)).await;
        let failed = match looked {
            Ok(Ok(())) => continue,
            Ok(Err(reason)) => reason,
            Err(_) => format!("no answer within {} s", LOOK_TIMEOUT.as_secs()),
        };
        return Some(format!("{}: {failed}", name(check)));
    }
    None
}

fn name(check: &Check) -> String {
    match check {
        Check::UnitActive { unit } => unit.clone(),
        Check::TcpOpen { address } => format!("tcp {address}"),
        Check::Https { address, path, .. } => format!("https {address}{path}"),
    }
}

async fn look(context: &Context, check: &Check) -> Result<(), String> {
    match check {
        Check::UnitActive { unit } => {
            let status = context.units.state(unit).await.map_err(chain)?;
            if status.active_state == "active" {
                return Ok(());
            }
            Err(format!("{} ({})", status.active_state, status.sub_state))
        }
        Check::TcpOpen { address } => https::connect(*address).await.map(drop),
        Check::Https {
            address,
            server_name,
            path,
            ca_path,
            client,
        } => {
            let end = (*address, server_name.as_str(), path.as_str());
            look_https(&context.host, end, ca_path, client.as_ref()).await
        }
    }
}

/// Looks at `path` of what listens at an address under a name; anything but 200 is the reason why not.
pub(crate) async fn look_https(
    host: &Host,
    (address, server_name, path): (SocketAddr, &str, &str),
    ca_path: &str,
    client: Option<&ClientFiles>,
) -> Result<(), String> {
    let (mut sender, connection) =
        https::open(host, (address, server_name), ca_path, client).await?;
    let request = Request::get(path)
        .header(HOST, server_name)
        .header(USER_AGENT, "windlass-agent")
        .body(Full::<Bytes>::default())
        .map_err(|error| format!("HTTP: {error}"))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(https::http)?;
        let status = answer.status();
        if status == StatusCode::OK {
            return Ok(());
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
        let bytes = body.collect().await.map(|body| body.to_bytes());
        let text = bytes.map_or_else(|_| String::new(), |b| String::from_utf8_lossy(&b).into());
        Err(format!("answers {status}: {}", shown(&text)))
    };
    // The connection is driven here, so that nothing outlives the look.
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        // What ended the connection is in the answer's error, if there is no answer.
        _ = &mut connection => exchange.await,
    }
}

/// The lines of an answer that say something failed, else its beginning.
fn shown(answer: &str) -> String {
    // API servers answer one line a check, `[-]` in front of those that fail.
    let failed: Vec<&str> = answer.lines().filter(|l| l.starts_with("[-]")).collect();
    let text = if failed.is_empty() {
        answer.trim().to_owned()
    } else {
        failed.join("; ")
    };
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(ANSWER_SHOWN)
        .collect()
}

fn chain(error: impl std::error::Error + 'static) -> String {
    windlass_common::error::ErrorChain(&error).to_string()
}

#[cfg(test)]
mod tests;
