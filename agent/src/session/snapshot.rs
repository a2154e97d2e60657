//! Sending a snapshot of etcd that lies on the data disk.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use quinn::{RecvStream, SendStream};

use windlass_common::limits::CHUNK_BYTES;
use windlass_common::step::OutputStream;
use windlass_common::wire::frame::FrameError;
use windlass_common::wire::session::{SendSnapshot, SessionEnd};

use super::{Ended, left, open, output};
use crate::link::Handler;

pub(super) async fn serve(
    request: &SendSnapshot,
    handler: &Arc<dyn Handler>,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<Ended, FrameError> {
    let (handler, name) = (handler.clone(), request.name.clone());
    let opened = blocking(move || handler.open_snapshot(&name)).await;
    let (file, bytes) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let name = &request.name;
            return Ok(Ended::NotBegun(format!(
                "cannot read snapshot {name}: {error}"
            )));
        }
    };
    open(send).await?;
    let left = left(recv);
    tokio::pin!(left);
    tokio::select! {
        () = &mut left => Ok(Ended::Left),
        sent = all(file, bytes, send) => Ok(Ended::Over(sent?)),
    }
}

/// Sends as many bytes as there were when it was opened: a file that has its name does not grow.
async fn all(mut file: File, bytes: u64, send: &mut SendStream) -> Result<SessionEnd, FrameError> {
    let mut due = bytes;
    while due > 0 {
        let most = due.min(CHUNK_BYTES as u64);
        let read = blocking(move || {
            let mut piece = Vec::with_capacity(CHUNK_BYTES);
            (&mut file).take(most).read_to_end(&mut piece)?;
            Ok((file, piece))
        });
        let piece = match read.await {
            Ok((back, piece)) => {
                file = back;
                piece
            }
            Err(error) => return Ok(SessionEnd::Failed(format!("cannot read on: {error}"))),
        };
        if piece.is_empty() {
            return Ok(SessionEnd::Failed(format!("it ends {due} bytes early")));
        }
        due -= piece.len() as u64;
        output(send, OutputStream::Stdout, &piece).await?;
    }
    Ok(SessionEnd::Exit(0))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}
