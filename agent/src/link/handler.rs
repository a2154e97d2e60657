//! What the link needs of the rest of the agent.

use std::fs::File;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use windlass_common::condition::Conditions;
use windlass_common::id::Epoch;
use windlass_common::report::{FileSystems, Heartbeat, Report, Vitals};
use windlass_common::step::{Progress, StepId, StepRequest, StepResult};
use windlass_common::wire::message::Tune2;

/// What the link needs of the rest of the agent.
pub trait Handler: Send + Sync + 'static {
    /// Carries out a step, or answers from the journal. Runs on a task of its own, whatever becomes
    /// of the connection; never runs twice at once for one id. Refuses a lower epoch than the highest
    /// seen, keeps the step's deadline, and stops it when it is cancelled.
    fn step(
        &self,
        request: StepRequest,
        progress: ProgressSink,
        cancel: CancelToken,
    ) -> StepFuture<'_>;

    /// A director of this epoch asks for a step that runs, or waits for its turn, already: it may begin in that.
    fn asked_again(&self, id: &StepId, epoch: Epoch) {
        let _ = (id, epoch);
    }

    /// What to say on connecting.
    fn hello(&self) -> HelloFacts;

    /// The newest report; each change is sent.
    fn reports(&self) -> watch::Receiver<Arc<Report>>;

    /// The newest conditions, if somebody looks at them; each change is sent.
    fn conditions(&self) -> Option<watch::Receiver<Arc<Conditions>>> {
        None
    }

    /// What is used of each file system, if somebody looks at them; each change is sent.
    fn file_systems(&self) -> Option<watch::Receiver<Arc<FileSystems>>> {
        None
    }

    /// The next heartbeat; the link sets its sequence number. Quick: it is called on the loop.
    fn heartbeat(&self) -> Heartbeat;

    /// Usage now, for somebody who watches; the last report's by default. May read files.
    fn vitals(&self) -> Vitals {
        self.reports().borrow().vitals.clone()
    }

    /// Opens a snapshot of etcd on the data disk; gives its size in bytes. May read files.
    fn open_snapshot(&self, name: &str) -> io::Result<(File, u64)> {
        let said = format!("this machine keeps no snapshots, not {name:?} either");
        Err(io::Error::new(io::ErrorKind::NotFound, said))
    }

    /// The director said its epoch. Called before any of its steps.
    fn epoch_seen(&self, epoch: Epoch);

    /// The director has refused this machine several times in a row because a later incarnation of it is there.
    fn replaced(&self) {}

    /// The director said how to report, in the ranges there are.
    fn tuned(&self, tune: Tune2);
}

/// Says when a step is cancelled.
#[derive(Debug, Clone)]
pub struct CancelToken(watch::Receiver<bool>);

impl CancelToken {
    /// A token, and what cancels it by turning true.
    pub fn channel() -> (watch::Sender<bool>, CancelToken) {
        let (cancel, cancelled) = watch::channel(false);
        (cancel, CancelToken(cancelled))
    }

    /// For a step that nobody cancels.
    pub fn never() -> CancelToken {
        CancelToken::channel().1
    }

    /// Whether it is cancelled.
    pub fn is_cancelled(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once it is cancelled. Cancellation safe.
    pub async fn cancelled(&mut self) {
        if self.0.wait_for(|cancelled| *cancelled).await.is_err() {
            // Nobody is left who could.
            std::future::pending::<()>().await;
        }
    }
}

/// A step under way.
pub type StepFuture<'a> = Pin<Box<dyn Future<Output = StepResult> + Send + 'a>>;

/// What an agent says of itself on connecting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelloFacts {
    /// Agent version.
    pub agent_version: String,
    /// What the agent can do beyond the base: names, sorted.
    pub capabilities: Vec<String>,
    /// See [`Report::boot_id`].
    pub boot_id: String,
    /// Highest epoch seen.
    pub epoch: Epoch,
    /// Steps in the journal that are not reported to be over.
    pub unfinished: Vec<StepId>,
}

/// Where a step's progress goes: to whichever stream the director listens on at the moment.
#[derive(Debug, Clone)]
pub struct ProgressSink(mpsc::Sender<Progress>);

impl ProgressSink {
    /// A sink, and the end that receives what is put in; for tests of steps.
    pub fn channel(capacity: usize) -> (ProgressSink, mpsc::Receiver<Progress>) {
        let (sender, receiver) = mpsc::channel(capacity);
        (ProgressSink(sender), receiver)
    }

    /// Says what is being done. Dropped when the queue is full: it is a hint.
    pub fn stage(&self, text: impl Into<String>) {
        let _ = self.0.try_send(Progress::Stage(text.into()));
    }

    /// Sends output, waiting for room. Output that nobody listens to is dropped.
    pub async fn send(&self, progress: Progress) {
        let _ = self.0.send(progress).await;
    }
}
