//! Runs one step until it succeeds, fails for good, or is stopped.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use windlass_common::error::ErrorClass;

use super::{Done, EffectError, Effects, StepOrder, Stop, machine_of, may_be_dropped};
use crate::model::{Fault, StepRecord, TaskEvent};
use crate::store::{Commit, Records};

/// First pause before trying again; doubles up to [`RETRY_CAP`].
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest pause before trying again.
const RETRY_CAP: Duration = Duration::from_secs(5);

/// How a step ended.
#[derive(Debug)]
pub(super) enum End {
    Succeeded(Done),
    Failed(EffectError),
    Stopped,
}

pub(super) struct Runner {
    pub(super) records: Records,
    pub(super) effects: Arc<dyn Effects>,
    pub(super) events: broadcast::Sender<TaskEvent>,
    pub(super) stop: watch::Receiver<Stop>,
}

impl Runner {
    /// Runs the step; returns its record as last written, and how it ended.
    pub(super) async fn run(
        mut self,
        mut order: StepOrder,
        mut record: StepRecord,
    ) -> (StepOrder, StepRecord, End) {
        let deadline = Instant::now() + order.limit;
        let mut pause = RETRY_FIRST;
        loop {
            order.attempt = record.attempts;
            let error = match self.attempt(&order, deadline).await {
                None => return (order, record, End::Stopped),
                Some(Ok(done)) => return (order, record, End::Succeeded(done)),
                Some(Err(error)) => error,
            };
            let last = error.class != ErrorClass::Retry || Instant::now() + pause >= deadline;
            if last {
                return (order, record, End::Failed(error));
            }
            tracing::warn!(
                task = %order.task, step = %order.key, machine = machine_of(&order),
                attempt = order.attempt, error = %error, "step is tried again"
            );
            if !error.resend {
                record.attempts += 1;
            }
            record.error = Some(Fault::from(error));
            self.write(&order, &record).await;
            tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return (order, record, End::Stopped),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(RETRY_CAP);
        }
    }

    /// One attempt; `None` when it was stopped.
    async fn attempt(
        &mut self,
        order: &StepOrder,
        deadline: Instant,
    ) -> Option<Result<Done, EffectError>> {
        let effects = self.effects.clone();
        let mut limited = order.clone();
        limited.limit = deadline.saturating_duration_since(Instant::now());
        // An effect keeps its own deadline; this one is there for an effect that does not.
        let grace = Duration::from_secs(30);
        let work = tokio::time::timeout_at(deadline + grace, effects.perform(limited));
        let result = if may_be_dropped(&order.action) {
            tokio::select! {
                biased;
                () = stopped(&mut self.stop) => return None,
                result = work => result,
            }
        } else {
            work.await
        };
        Some(result.unwrap_or_else(|_| {
            Err(EffectError::new(
                ErrorClass::Retry,
                format!("not done within {} s", order.limit.as_secs()),
            ))
        }))
    }

    async fn write(&self, order: &StepOrder, record: &StepRecord) {
        let mut commit = Commit::default();
        commit.put_step(&order.task, &order.key, record);
        super::drive::insist(&self.records, || commit.clone()).await;
        let event = TaskEvent::Step {
            key: order.key.clone(),
            record: record.clone(),
        };
        let _ = self.events.send(event); // nobody watches: nothing to tell
    }
}

/// Returns when the task is to stop; never when it is not.
pub(super) async fn stopped(stop: &mut watch::Receiver<Stop>) {
    if stop.wait_for(|how| *how != Stop::No).await.is_err() {
        // Nobody is left who could stop it.
        std::future::pending::<()>().await;
    }
}
