//! Gates that users put between one machine and the next: a URL that has to answer, a query of Prometheus that
//! has to come out as expected, a Job of the cluster that has to succeed.
//!
//! # After a crash
//! All gates are looked at from the beginning. A Job goes by the name of its task and machine, so that one that
//! runs is gone on with and not made twice.

mod http;
mod job;
mod promql;

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use windlass_common::error::ErrorClass;
use windlass_common::gate::{GateCheck, GateSpec, HttpGate, PromqlGate, PromqlServer};
use windlass_common::id::MachineName;

use super::asked::KubeApi;
use super::context::ClusterContext;
use crate::rollout::{Done, EffectError, ProgressSink, StepOrder};

pub use job::JobOrder;
pub(super) use job::prune;

/// Pause between two looks at a URL; what its `successThreshold` counts is as far apart.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long one look may take.
const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// How long a query may take: Prometheus gives up on its own after two minutes.
const QUERY_LIMIT: Duration = Duration::from_secs(15);

/// Who looks at gates, and on whose behalf.
pub(super) struct Keeper<'a> {
    pub(super) context: &'a ClusterContext,
    pub(super) kubernetes: &'a dyn KubeApi,
    pub(super) order: &'a StepOrder,
}

impl Keeper<'_> {
    /// Waits until all gates of the cluster are open, one after the other.
    ///
    /// # Errors
    /// Of class operator, when one is not open in its time: the change stops there.
    pub(super) async fn open(&self, machine: &MachineName) -> Result<Done, EffectError> {
        let gates = &self.context.cluster.spec.gates;
        let mut changes = Vec::with_capacity(gates.len());
        for gate in gates {
            let passed = self.pass(gate, machine).await;
            changes.push(passed.map_err(|why| shut(gate, machine, &why))?);
        }
        Ok(Done {
            changes,
            records: Vec::new(),
        })
    }

    /// Waits for one gate; what came of it, or why it is shut.
    async fn pass(&self, gate: &GateSpec, machine: &MachineName) -> Result<String, String> {
        let name = &gate.name;
        let progress = &self.order.progress;
        match &gate.check {
            GateCheck::Http(http) => polled(name, &Http(http), progress).await,
            GateCheck::Promql(promql) => {
                let delay = Duration::from_secs(u64::from(promql.initial_delay_seconds));
                if !delay.is_zero() {
                    progress.stage(format!("gate {name}: is looked at in {delay:?}"));
                    sleep(delay).await;
                }
                let keeper = self;
                polled(name, &Query { keeper, promql }, progress).await
            }
            GateCheck::Job(job) => {
                let job = JobOrder::new(name, job, &self.order.task, machine);
                self.kubernetes
                    .run_job(self.context, &job, progress)
                    .await?;
                Ok(format!("gate {name} is open: Job {job} succeeded"))
            }
        }
    }
}

fn shut(gate: &GateSpec, machine: &MachineName, why: &str) -> EffectError {
    let (seconds, looks_at) = match &gate.check {
        GateCheck::Http(http) => (http.timeout_seconds, http.url.clone()),
        GateCheck::Promql(promql) => {
            let query: String = promql.query.chars().take(200).collect();
            (promql.timeout_seconds, format!("query {query:?}"))
        }
        GateCheck::Job(job) => {
            let from = format!("the Job of CronJob {}/{}", job.namespace, job.cron_job);
            (job.timeout_seconds, from)
        }
    };
    EffectError::new(
        ErrorClass::Operator,
        format!(
            "gate {} is not open {seconds} s after machine {machine} changed: {looks_at} {why}; mend what it \
             looks at or change the gate, then retry the task",
            gate.name
        ),
    )
}

/// What is looked at again and again.
trait Look {
    /// How long it may take until it is as it should be.
    fn limit(&self) -> Duration;
    /// Time between two looks.
    fn interval(&self) -> Duration;
    /// How often in a row it has to be so.
    fn successes(&self) -> u32;
    /// One look; what is not as it should be.
    fn once(&self) -> impl Future<Output = Result<(), String>> + Send;
}

struct Http<'a>(&'a HttpGate);

impl Look for Http<'_> {
    fn limit(&self) -> Duration {
        Duration::from_secs(u64::from(self.0.timeout_seconds))
    }

    fn interval(&self) -> Duration {
        LOOK_INTERVAL
    }

    fn successes(&self) -> u32 {
        self.0.success_threshold
    }

    async fn once(&self) -> Result<(), String> {
        let look = timeout(LOOK_LIMIT, http::look(&self.0.url)).await;
        look.unwrap_or_else(|_| Err(format!("gives no answer in {LOOK_LIMIT:?}")))
    }
}

struct Query<'a> {
    keeper: &'a Keeper<'a>,
    promql: &'a PromqlGate,
}

impl Look for Query<'_> {
    fn limit(&self) -> Duration {
        Duration::from_secs(u64::from(self.promql.timeout_seconds))
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(u64::from(self.promql.interval_seconds))
    }

    fn successes(&self) -> u32 {
        self.promql.success_threshold
    }

    async fn once(&self) -> Result<(), String> {
        let path = promql::path(&self.promql.query);
        let asked = async {
            match &self.promql.server {
                PromqlServer::Url(url) => promql::ask(url, &path).await,
                PromqlServer::Service(service) => {
                    let Keeper {
                        context,
                        kubernetes,
                        ..
                    } = self.keeper;
                    let answer = kubernetes.ask_service(context, service, &path).await;
                    answer.map_err(|why| format!("cannot be asked: {why}"))
                }
            }
        };
        let answer = timeout(QUERY_LIMIT, asked).await;
        let answer = answer.unwrap_or_else(|_| Err(format!("has no answer in {QUERY_LIMIT:?}")))?;
        promql::judge(&answer, self.promql.expect)
    }
}

/// Looks until all is as it should be; says after how many looks, or what the last one said.
async fn polled(name: &str, gate: &impl Look, progress: &ProgressSink) -> Result<String, String> {
    let deadline = Instant::now() + gate.limit();
    let (mut looks, mut successes) = (0, 0);
    loop {
        looks += 1;
        let last = match gate.once().await {
            Ok(()) => {
                successes += 1;
                if successes >= gate.successes() {
                    return Ok(format!("gate {name} is open after {looks} looks"));
                }
                format!("was as it should be {successes} times in a row")
            }
            Err(why) => {
                successes = 0;
                why
            }
        };
        if Instant::now() + gate.interval() > deadline {
            return Err(last);
        }
        progress.stage(format!("gate {name}: {last}"));
        sleep(gate.interval()).await;
    }
}

#[cfg(test)]
mod tests;
