//! `windlass node exec --stdin`: a command on a machine that reads what this program is given.

use std::io::{Read, Write};
use std::process::ExitCode;

use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, split};
use tokio::sync::mpsc;
use windlass_common::error::ErrorChain;
use windlass_common::limits::{CHUNK_BYTES, FRAME_BYTES_MAX};
use windlass_common::step::OutputStream;
use windlass_common::wire::frame::{self, FrameError};
use windlass_common::wire::message::Body;
use windlass_common::wire::session::{SessionEnd, SessionInput, SessionOutput};
use windlass_director::api::SESSION_PROTOCOL;
use windlass_director::client::Client;

use crate::cluster::segment;
use crate::failure::{Failure, UNREACHABLE};

/// Pieces of input that wait to be sent.
const INPUT_QUEUE: usize = 4;

/// Runs the command; Ctrl-C ends this program, and with the connection the command.
pub(crate) async fn run(
    client: &Client,
    name: &str,
    command: &[String],
) -> Result<ExitCode, Failure> {
    let path = format!(
        "/v1/machines/{}/command?argv={}",
        segment(name),
        segment(&json!(command).to_string())
    );
    let stream = client.upgrade(&path, SESSION_PROTOCOL).await?;
    let (from, mut to) = split(TokioIo::new(stream));
    let feeding = async {
        // A command that is over takes no more: the other half says how it ended.
        let _ = feed(&mut to, input()).await;
        std::future::pending().await
    };
    let end = tokio::select! {
        end = show(from) => end,
        never = feeding => never,
    };
    match end {
        Ok(SessionEnd::Exit(code)) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        Ok(SessionEnd::Failed(message)) => Err(Failure::new(UNREACHABLE, message)),
        Err(error) => {
            let message = format!(
                "the connection broke, and the command was ended with it: {}",
                ErrorChain(&error)
            );
            Err(Failure::new(UNREACHABLE, message))
        }
    }
}

/// Prints what the command says, until it is over.
async fn show(mut from: impl AsyncRead + Unpin) -> Result<SessionEnd, FrameError> {
    loop {
        let frame = frame::read(&mut from, FRAME_BYTES_MAX).await?;
        let frame = frame.ok_or(FrameError::Closed)?;
        if frame.kind != SessionOutput::KIND {
            return frame.body();
        }
        let SessionOutput { stream, bytes } = frame.body()?;
        match stream {
            OutputStream::Stdout => {
                let mut out = std::io::stdout().lock();
                out.write_all(&bytes).and_then(|()| out.flush())
            }
            OutputStream::Stderr => std::io::stderr().lock().write_all(&bytes),
        }
        .map_err(FrameError::Io)?;
    }
}

/// Sends what there is to read, then its end. The stream stays open: closing it ends the command.
async fn feed(
    to: &mut (impl AsyncWrite + Unpin),
    mut input: mpsc::Receiver<Vec<u8>>,
) -> Result<(), FrameError> {
    while let Some(bytes) = input.recv().await {
        frame::write(to, &SessionInput { bytes }).await?;
        to.flush().await.map_err(FrameError::Io)?;
    }
    let end = SessionInput { bytes: Vec::new() };
    frame::write(to, &end).await?;
    to.flush().await.map_err(FrameError::Io)
}

/// Standard input, on a thread of its own: a read of it cannot be given up, and ends with the process.
fn input() -> mpsc::Receiver<Vec<u8>> {
    let (read, input) = mpsc::channel(INPUT_QUEUE);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK_BYTES];
        let mut stdin = std::io::stdin().lock();
        // An input that fails has ended.
        while let Ok(bytes @ 1..) = stdin.read(&mut buffer) {
            if read.blocking_send(buffer[..bytes].to_vec()).is_err() {
                return;
            }
        }
    });
    input
}
