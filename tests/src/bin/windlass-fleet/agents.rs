//! Running the agents' links.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use windlass_agent::link::{Handler, Link, LinkHandle, LinkPaths};
use windlass_agent::report::now_unix_ms;
use windlass_common::report::Report;
use windlass_common::settings::Settings;
use windlass_director::bench::protocol::Attempts;

use crate::identity;
use crate::machine::{self, Machine};

/// An idle agent reports at the latest after this long.
const REPORT_EVERY: Duration = Duration::from_secs(30);
/// Pause between two looks whether an agent is connected.
const LOOK: Duration = Duration::from_millis(2);

/// Agents that run. Ended by [`Fleet::stop`].
#[derive(Debug)]
pub(crate) struct Fleet {
    stop: watch::Sender<bool>,
    links: JoinSet<()>,
    handles: Vec<LinkHandle>,
    others: JoinSet<()>,
}

impl Default for Fleet {
    fn default() -> Fleet {
        Fleet {
            stop: watch::channel(false).0,
            links: JoinSet::new(),
            handles: Vec::new(),
            others: JoinSet::new(),
        }
    }
}

impl Fleet {
    /// Starts every agent, at most `at_once` on their way at a time, and waits until each was
    /// connected. One that never connects is waited for: who gave the order has the patience.
    pub(crate) async fn run(&mut self, settings: &[Settings], dir: &Path, at_once: usize) {
        let mut pending = Vec::new();
        let mut reports = Vec::new();
        for settings in settings {
            while pending.len() >= at_once {
                sleep(LOOK).await;
                pending.retain(|link: &LinkHandle| !link.is_connected());
            }
            let (publish, report) = watch::channel(Arc::new(machine::report(now_unix_ms())));
            reports.push(publish);
            let paths = LinkPaths {
                identity_dir: identity::dir(dir, settings),
                ..LinkPaths::standard()
            };
            let link = Link::new(settings.clone(), paths);
            pending.push(link.handle());
            self.handles.push(link.handle());
            let handler: Arc<dyn Handler> = Arc::new(Machine::new(report));
            let stopped = self.stop.subscribe();
            self.links.spawn(async move {
                if let Err(error) = link.run(handler, stopped).await {
                    tracing::error!(%error, "an agent gave up");
                }
            });
        }
        while !pending.is_empty() {
            sleep(LOOK).await;
            pending.retain(|link| !link.is_connected());
        }
        self.others.spawn(report_in_turn(reports));
    }

    /// What became of the attempts to connect so far.
    pub(crate) fn attempts(&self) -> Attempts {
        self.handles
            .iter()
            .map(|link| {
                let counts = link.attempts();
                Attempts {
                    welcomed: counts.welcomed,
                    silent: counts.silent,
                    unserved: counts.unserved,
                    failed: counts.failed,
                }
            })
            .fold(Attempts::default(), Attempts::plus)
    }

    /// Stops every agent as its service manager would.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        while self.links.join_next().await.is_some() {}
        self.others.shutdown().await;
    }
}

/// Publishes a report of each agent within [`REPORT_EVERY`], a hundred times in it.
async fn report_in_turn(reports: Vec<watch::Sender<Arc<Report>>>) {
    const TURNS: u32 = 100;
    let mut ticks = interval(REPORT_EVERY / TURNS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for turn in (0..TURNS as usize).cycle() {
        ticks.tick().await;
        let report = Arc::new(machine::report(now_unix_ms()));
        for publish in reports.iter().skip(turn).step_by(TURNS as usize) {
            publish.send_replace(Arc::clone(&report));
        }
    }
}
