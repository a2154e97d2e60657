//! Runs steps on this machine without a director: `step [--root DIR] < steps.json`, then with `--watch`
//! prints a line of JSON for each report, until it is interrupted.
//!
//! Standard input holds one JSON object after the other, each a step as in
//! [`windlass_common::step::Step`] with an id: `{"id": "a", "deadline_ms": 1000, "step": {…}}`.
//! Progress goes to standard error, each result as JSON to standard output. For trying steps out by
//! hand on a real machine; the agent must not run at the same time.

use std::collections::BTreeMap;
use std::io::{Write, stderr, stdin};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde::Deserialize;
use tokio::sync::watch;
use windlass_agent::history::History;
use windlass_agent::host::Host;
use windlass_agent::link::{CancelToken, ProgressSink};
use windlass_agent::report::Observer;
use windlass_agent::runner::Runner;
use windlass_agent::steps::fetch::{ArtifactSource, Opening, SourceError, Wanted};
use windlass_agent::steps::{Context, Reporter};
use windlass_agent::units::{Units, watch as unit_watch};
use windlass_common::id::Epoch;
use windlass_common::journal::DirStorage;
use windlass_common::step::{Progress, Step, StepId, StepRequest};
use windlass_common::wire::message::Tune2;

#[derive(Deserialize)]
struct Order {
    id: String,
    deadline_ms: u64,
    step: Step,
}

#[derive(Debug)]
struct NoDirector;

impl ArtifactSource for NoDirector {
    fn open(&self, _: Wanted) -> Opening<'_> {
        Box::pin(async { Err(SourceError::NotFound("there is no director".to_owned())) })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut root, mut watching) = (PathBuf::from("/"), false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--root" => root = arguments.next().ok_or("--root needs a value")?.into(),
            "--watch" => watching = true,
            other => return Err(format!("unknown argument {other:?}").into()),
        }
    }
    let host = Host::open(&root)?;
    let storage = DirStorage::open(&host.path("/var/lib/windlass/journal"))?;
    let history = History::open(storage)?;
    let runner = Runner::new(Context {
        host,
        units: Arc::new(Units::default()),
        artifacts: Arc::new(NoDirector),
        watched: watch::channel(history.units()).0,
        history: Arc::new(Mutex::new(history)),
        leave: watch::channel(false).0,
        director: None,
    });
    for order in serde_json::Deserializer::from_reader(stdin()).into_iter::<Order>() {
        let order = order?;
        let request = StepRequest {
            labels: Default::default(),
            id: StepId(order.id),
            epoch: Epoch(1),
            deadline_ms: order.deadline_ms,
            step: order.step,
        };
        let (sink, mut progress) = ProgressSink::channel(16);
        let show = async {
            while let Some(progress) = progress.recv().await {
                match progress {
                    Progress::Stage(stage) => {
                        let _ = writeln!(stderr(), "# {stage}");
                    }
                    Progress::Output { bytes, .. } => {
                        let _ = stderr().write_all(&bytes);
                    }
                }
            }
        };
        let step = async {
            runner
                .step(request, Reporter::new(sink), CancelToken::never())
                .await
        };
        let (result, ()) = tokio::join!(step, show);
        serde_json::to_writer_pretty(std::io::stdout(), &result)?;
        writeln!(std::io::stdout())?;
    }
    if watching {
        watch_reports(&runner).await?;
    }
    Ok(())
}

async fn watch_reports(runner: &Runner) -> Result<(), Box<dyn std::error::Error>> {
    let (observer, mut reports) = Observer::new(&runner.context().host);
    let (states, seen) = watch::channel(BTreeMap::new());
    let (_tune, every) = watch::channel(Tune2::default());
    let show = async {
        while reports.changed().await.is_ok() {
            let report = reports.borrow_and_update().clone();
            writeln!(std::io::stdout(), "{}", serde_json::to_string(&*report)?)?;
        }
        Ok(())
    };
    tokio::select! {
        () = unit_watch::run(runner.context().watched.subscribe(), states) => Ok(()),
        () = observer.run(seen, every, runner.changed()) => Ok(()),
        shown = show => shown,
    }
}
