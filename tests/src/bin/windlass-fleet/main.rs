//! `windlass-fleet`: some hundred agents in one process, for `windlass-director bench fleet`.
//!
//! The link is the agents' own ([`windlass_agent::link`]); what the rest of an agent would observe and
//! do is made up here ([`machine`]). One thread: a machine has one agent, which does not get faster
//! with more.

mod agents;
mod half_open;
mod handshakes;
mod identity;
mod machine;
mod nats;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use windlass_common::settings::Settings;
use windlass_director::bench::peer;
use windlass_director::bench::protocol::{FleetAnswer, FleetOrder, now_us};

/// Takes orders on standard input; started by `windlass-director bench fleet`.
#[derive(Debug, Parser)]
#[command(name = "windlass-fleet", version)]
struct Arguments {
    /// Settings of the agents, a JSON object a line
    #[arg(long, value_name = "FILE")]
    settings: PathBuf,
    /// Directory of the agents' identities
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

fn main() -> ExitCode {
    // As the agent itself; without it the receive buffers of thousands of links, 3 MB each, become resident.
    windlass_agent::allocator::keep_small();
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new("warn"))
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            peer::reply::<FleetAnswer>(Err(format!("{error:#}")));
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &Arguments) -> Result<()> {
    let text = fs::read_to_string(&arguments.settings)
        .with_context(|| format!("cannot read {}", arguments.settings.display()))?;
    let settings = text
        .lines()
        .map(serde_json::from_str::<Settings>)
        .collect::<Result<Vec<_>, _>>()
        .context("the settings are no settings")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start a runtime")?;
    runtime.block_on(obey(&settings, &arguments.dir));
    Ok(())
}

/// How often something failed, and the first failure.
type Failed = Option<(usize, String)>;

async fn obey(settings: &[Settings], dir: &std::path::Path) {
    let mut orders = peer::orders();
    let mut running: Option<agents::Fleet> = None;
    let mut clients = None;
    let mut left = None;
    let mut held = handshakes::Held::new();
    while let Some(order) = orders.recv().await {
        let began_us = now_us();
        let failed: Result<Failed> = match order {
            FleetOrder::Run { at_once } => {
                let fleet = running.insert(agents::Fleet::default());
                fleet.run(settings, dir, at_once).await;
                Ok(None)
            }
            FleetOrder::Handshakes { address, at_once } => {
                match handshakes::run(settings, dir, address, at_once).await {
                    Ok((connections, failed)) => {
                        held = connections;
                        Ok(failed)
                    }
                    Err(error) => Err(error),
                }
            }
            FleetOrder::HalfOpen {
                address,
                count,
                at_once,
            } => match half_open::run(&settings[0], dir, address, count, at_once).await {
                Ok(half_open) => {
                    left = Some(half_open);
                    Ok(None)
                }
                Err(error) => Err(error),
            },
            FleetOrder::Publish {
                address,
                interval_ms,
                at_once,
            } => match nats::connect(settings, dir, address, interval_ms, at_once).await {
                Ok((publishing, failed)) => {
                    clients = Some(publishing);
                    Ok(failed)
                }
                Err(error) => Err(error),
            },
            FleetOrder::Attempts => {
                let attempts = running.as_ref().map(agents::Fleet::attempts);
                peer::reply(Ok(FleetAnswer::Attempts(attempts.unwrap_or_default())));
                continue;
            }
            FleetOrder::Stop => {
                if let Some(fleet) = running.take() {
                    fleet.stop().await;
                }
                drop(clients.take());
                drop(left.take());
                held.clear();
                Ok(None)
            }
        };
        peer::reply(
            failed
                .map_err(|error| format!("{error:#}"))
                .map(|failed| FleetAnswer::Done {
                    began_us,
                    ended_us: now_us(),
                    failed,
                }),
        );
    }
}

/// The first failure and their number, of tasks that each did one thing.
fn count_failures(outcomes: impl IntoIterator<Item = Result<()>>) -> Failed {
    let mut failures = outcomes.into_iter().filter_map(Result::err);
    let first = failures.next()?;
    Some((1 + failures.count(), format!("{first:#}")))
}
