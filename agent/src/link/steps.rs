//! Streams from the director: steps, tunnels, and sessions ([`crate::session`]).
//!
//! A step runs on a task of its own. The stream that asked for it only listens; when the connection
//! breaks and the same step is asked for over the next one, that stream listens from then on. Once a
//! step is over it is forgotten here, and its journal answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::{RecvStream, SendStream};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::id::{Digest, Epoch};
use windlass_common::limits::{
    FRAME_BYTES_MAX, HELLO_TIMEOUT, PROGRESS_QUEUE, STEPS_IN_FLIGHT_MAX, TUNNEL_BUFFER_BYTES,
    TUNNEL_OPEN_TIMEOUT,
};
use windlass_common::step::{Outcome, Payload, Progress, StepId, StepRequest, StepResult};
use windlass_common::transport::{Priority, STEP_CANCELLED};
use windlass_common::wire::frame::{self, Frame, FrameError};
use windlass_common::wire::message::{
    Body, Refusal, RefusalCode, StepHeader, TunnelOpen, TunnelRequest, TunnelTarget,
};
use windlass_common::wire::step::from_frames;

use super::handler::{CancelToken, Handler, ProgressSink};
use crate::session::Sessions;

/// The steps that run now.
pub(super) struct Steps {
    handler: Arc<dyn Handler>,
    api_server: SocketAddr,
    running: Mutex<BTreeMap<StepId, Arc<Running>>>,
    places: Semaphore,
    sessions: Sessions,
}

/// One step that runs.
struct Running {
    /// Of the step's body: the same id with another content is another step.
    content: Digest,
    /// The highest epoch in which it was asked for.
    epoch: AtomicU64,
    listener: Mutex<Option<mpsc::Sender<Progress>>>,
    result: watch::Sender<Option<StepResult>>,
    cancel: watch::Sender<bool>,
}

impl Steps {
    pub(super) fn new(handler: Arc<dyn Handler>, api_server: SocketAddr) -> Steps {
        Steps {
            sessions: Sessions::new(Arc::clone(&handler)),
            handler,
            api_server,
            running: Mutex::default(),
            places: Semaphore::new(STEPS_IN_FLIGHT_MAX as usize),
        }
    }

    /// Starts the step or, if it runs already, listens to it. `None`: it runs with other content.
    fn attach(
        self: &Arc<Self>,
        request: StepRequest,
        content: Digest,
        listener: mpsc::Sender<Progress>,
    ) -> Option<watch::Receiver<Option<StepResult>>> {
        let mut table = lock(&self.running);
        if let Some(running) = table.get(&request.id) {
            if running.content != content {
                return None;
            }
            *lock(&running.listener) = Some(listener);
            running.epoch.fetch_max(request.epoch.0, Ordering::Relaxed);
            self.handler.asked_again(&request.id, request.epoch);
            return Some(running.result.subscribe());
        }
        let (result, receiver) = watch::channel(None);
        let (cancel, token) = CancelToken::channel();
        let running = Arc::new(Running {
            content,
            epoch: AtomicU64::new(request.epoch.0),
            listener: Mutex::new(Some(listener)),
            result,
            cancel,
        });
        table.insert(request.id.clone(), Arc::clone(&running));
        let entry = Entry {
            steps: Arc::clone(self),
            id: request.id.clone(),
        };
        tokio::spawn(drive(entry, running, request, token));
        Some(receiver)
    }

    /// Stops a step, if it runs.
    fn cancel(&self, id: &StepId) {
        if let Some(running) = lock(&self.running).get(id) {
            tracing::info!(step = %id, "the director cancels a step");
            running.cancel.send_replace(true);
        }
    }
}

/// Takes a step out of the table, also when its task panics.
struct Entry {
    steps: Arc<Steps>,
    id: StepId,
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.steps.running).remove(&self.id);
    }
}

async fn drive(
    entry: Entry,
    running: Arc<Running>,
    mut request: StepRequest,
    mut cancel: CancelToken,
) {
    let place = tokio::select! {
        place = entry.steps.places.acquire() => place,
        () = cancel.cancelled() => {
            let message = "cancelled before it began".to_owned();
            let refused = result_of(request.id, Outcome::Refused { message });
            running.result.send_replace(Some(refused));
            return;
        }
    };
    // The semaphore is never closed.
    let Ok(_place) = place else { return };
    request.epoch = Epoch(running.epoch.load(Ordering::Relaxed));
    let (sink, progress) = ProgressSink::channel(PROGRESS_QUEUE);
    let (over, is_over) = oneshot::channel();
    let step = async {
        let result = entry.steps.handler.step(request, sink, cancel).await;
        // The other half below is waiting for it.
        let _ = over.send(());
        result
    };
    let (result, ()) = tokio::join!(step, forward(&running, progress, is_over));
    running.result.send_replace(Some(result));
}

/// Hands progress to whoever listens, until the step is over and all of it is handed on.
async fn forward(
    running: &Running,
    mut progress: mpsc::Receiver<Progress>,
    mut over: oneshot::Receiver<()>,
) {
    loop {
        let item = tokio::select! {
            biased;
            item = progress.recv() => item,
            // A sink that outlives its step must not keep it.
            _ = &mut over, if !progress.is_closed() => {
                progress.close();
                continue;
            }
        };
        let Some(item) = item else { return };
        let listener = lock(&running.listener).clone();
        if let Some(listener) = listener {
            // A listener that is gone: the next one, if any, hears what comes after.
            let _ = listener.send(item).await;
        }
    }
}

/// Serves one stream of the director.
pub(super) async fn serve(steps: Arc<Steps>, mut send: SendStream, mut recv: RecvStream) {
    if let Err(error) = stream(&steps, &mut send, &mut recv).await {
        match error.class() {
            ErrorClass::Bug => {
                tracing::warn!(error = %ErrorChain(&error), "stream of the director refused");
            }
            ErrorClass::Retry | ErrorClass::Operator => {
                tracing::debug!(error = %ErrorChain(&error), "stream of the director ended");
            }
        }
        // Not finished, so that the director does not take it for the end of an answer.
        let _ = send.reset(quinn::VarInt::from_u32(1));
    }
}

async fn stream(
    steps: &Arc<Steps>,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<(), FrameError> {
    let first = due(recv).await?;
    match first.kind {
        StepHeader::KIND => {
            Priority::Step.set(send);
            let header: StepHeader = first.body()?;
            let body = due(recv).await?;
            let content = Digest::of(&body.body);
            let request = from_frames(header, &body)?;
            drop(body);
            answer(steps, send, recv, request, content).await
        }
        TunnelRequest::KIND => {
            let request: TunnelRequest = first.body()?;
            tunnel(steps, send, recv, request.target).await
        }
        kind if Sessions::begin_with(kind) => steps.sessions.serve(&first, send, recv).await,
        got => Err(FrameError::Unexpected {
            got,
            want: StepHeader::KIND,
        }),
    }
}

/// The next frame, which the director has sent already.
async fn due(recv: &mut RecvStream) -> Result<Frame, FrameError> {
    timeout(HELLO_TIMEOUT, frame::read(recv, FRAME_BYTES_MAX))
        .await
        .unwrap_or(Ok(None))?
        .ok_or(FrameError::Closed)
}

async fn answer(
    steps: &Arc<Steps>,
    send: &mut SendStream,
    recv: &mut RecvStream,
    request: StepRequest,
    content: Digest,
) -> Result<(), FrameError> {
    let id = request.id.clone();
    let (listener, mut progress) = mpsc::channel(PROGRESS_QUEUE);
    let Some(mut result) = steps.attach(request, content, listener) else {
        let message = "a step with this id and another content is running".to_owned();
        return conclude(send, result_of(id, Outcome::Refused { message })).await;
    };
    let over = async {
        let result = result.wait_for(Option::is_some).await;
        // Gone without a result: the step panicked. The director asks again.
        result.ok().and_then(|result| result.clone())
    };
    tokio::pin!(over);
    let mut cancelling = false;
    loop {
        tokio::select! {
            () = cancelled(recv), if !cancelling => {
                cancelling = true;
                steps.cancel(&id);
            }
            Some(item) = progress.recv() => frame::write(send, &item).await?,
            result = &mut over => {
                while let Ok(item) = progress.try_recv() {
                    frame::write(send, &item).await?;
                }
                return conclude(send, result.ok_or(FrameError::Closed)?).await;
            }
        }
    }
}

/// Returns when the director cancels. A stream or a connection that ends otherwise is no cancel.
async fn cancelled(recv: &mut RecvStream) {
    if recv.received_reset().await != Ok(Some(STEP_CANCELLED)) {
        std::future::pending::<()>().await;
    }
}

async fn conclude(send: &mut SendStream, result: StepResult) -> Result<(), FrameError> {
    let frame = match Frame::of(&result) {
        Ok(frame) => frame,
        Err(error) => {
            let message = format!(
                "the step is over ({:?}), but its result cannot be sent: {}",
                result.outcome,
                ErrorChain(&error)
            );
            let class = ErrorClass::Bug;
            let message = message.chars().take(4096).collect();
            Frame::of(&result_of(result.id, Outcome::Failed { class, message }))?
        }
    };
    frame::send(send, &frame).await?;
    // Fails only if the director has gone.
    let _ = send.finish();
    Ok(())
}

fn result_of(id: StepId, outcome: Outcome) -> StepResult {
    StepResult {
        id,
        outcome,
        payload: Payload::None,
        changes: Vec::new(),
        elapsed_ms: 0,
    }
}

async fn tunnel(
    steps: &Steps,
    send: &mut SendStream,
    recv: &mut RecvStream,
    target: TunnelTarget,
) -> Result<(), FrameError> {
    let address = match target {
        TunnelTarget::ApiServer => steps.api_server,
    };
    let connected = timeout(TUNNEL_OPEN_TIMEOUT / 2, TcpStream::connect(address)).await;
    let mut tcp = match connected {
        Ok(Ok(tcp)) => tcp,
        failed => {
            let why = match failed {
                Ok(Err(error)) => error.to_string(),
                _ => "no answer".to_owned(),
            };
            let refusal = Refusal {
                code: RefusalCode::Unreachable,
                message: format!("cannot connect with {address} on this machine: {why}"),
            };
            frame::write(send, &refusal).await?;
            let _ = send.finish();
            return Ok(());
        }
    };
    // Small requests and answers alternate.
    let _ = tcp.set_nodelay(true);
    frame::write(send, &TunnelOpen {}).await?;
    let mut stream = tokio::io::join(recv, send);
    tokio::io::copy_bidirectional_with_sizes(
        &mut stream,
        &mut tcp,
        TUNNEL_BUFFER_BYTES,
        TUNNEL_BUFFER_BYTES,
    )
    .await
    .map(|_| ())
    .map_err(FrameError::Io)
}

/// Nothing panics while it holds one of these locks, and each value in it is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
