//! Progress of a running step.

use windlass_common::limits::CHUNK_BYTES;
use windlass_common::step::{OutputStream, Progress};

use crate::link::ProgressSink;

/// Hands progress to whoever listens. Clones are the same reporter.
#[derive(Debug, Clone)]
pub struct Reporter(ProgressSink);

impl Reporter {
    /// A reporter that fills this sink.
    pub fn new(sink: ProgressSink) -> Self {
        Self(sink)
    }

    /// A reporter that nobody listens to.
    pub(crate) fn quiet() -> Self {
        Self::new(ProgressSink::channel(1).0)
    }

    /// Says what is being done. Never waits: when the queue is full, the next stage tells more.
    pub fn stage(&self, stage: impl Into<String>) {
        self.0.stage(stage);
    }

    /// Hands output on in pieces, waiting while the queue is full. Without a listener it is dropped.
    pub async fn output(&self, stream: OutputStream, bytes: &[u8]) {
        for piece in bytes.chunks(CHUNK_BYTES) {
            let bytes = piece.to_vec();
            self.0.send(Progress::Output { stream, bytes }).await;
        }
    }
}
