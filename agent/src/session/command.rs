//! A command with the operator's input: no terminal, and its two outputs apart.
//!
//! # Invariants
//! * The command leads a process group, which is killed when it is over, and when the director leaves.
//! * Its input ends where the operator's does; until then the command waits for it, and the operator for the
//!   command where it does not read.

use std::process::Stdio;

use quinn::{RecvStream, SendStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};

use windlass_common::limits::{CHUNK_BYTES, FRAME_BYTES_MAX};
use windlass_common::step::OutputStream;
use windlass_common::wire::frame::{self, FrameError};
use windlass_common::wire::session::{RunCommand, SessionEnd, SessionInput};

use super::{Ended, open, output};
use crate::host::command::{Running, exit_code};

pub(super) async fn serve(
    request: &RunCommand,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<Ended, FrameError> {
    let argv: Vec<&str> = request.argv.iter().map(String::as_str).collect();
    let program = argv.first().copied().unwrap_or_default();
    let mut running = match Running::start(&argv, Stdio::piped()) {
        Ok(running) => running,
        Err(error) => return Ok(Ended::NotBegun(format!("cannot run {program:?}: {error}"))),
    };
    let Some((stdin, (stdout, stderr))) = running.take_input().zip(running.take_output()) else {
        return Ok(Ended::NotBegun("the child has no pipes".to_owned()));
    };
    open(send).await?;
    let work = async {
        let shown = show(stdout, stderr, send);
        tokio::pin!(shown);
        // A grandchild may keep the pipes open after the command has ended; it is killed with the group,
        // and then the pipes end.
        tokio::select! {
            ended = &mut shown => ended.map(|()| None),
            status = running.wait() => {
                shown.await?;
                Ok(Some(status))
            }
        }
    };
    let status = tokio::select! {
        // The director has gone, or sent what is no input.
        fault = feed(stdin, recv) => return fault.map(|()| Ended::Left),
        status = work => status?,
    };
    let status = match status {
        Some(status) => status,
        None => running.wait().await,
    };
    Ok(Ended::Over(match status {
        Ok(status) => SessionEnd::Exit(exit_code(status)),
        Err(error) => SessionEnd::Failed(format!("cannot tell how {program:?} ended: {error}")),
    }))
}

/// Hands on what the operator sends, until the director has closed its side. A piece without bytes is the
/// end of the input.
async fn feed(stdin: ChildStdin, recv: &mut RecvStream) -> Result<(), FrameError> {
    let mut stdin = Some(stdin);
    while let Some(frame) = frame::read(recv, FRAME_BYTES_MAX).await? {
        let SessionInput { bytes } = frame.body()?;
        let Some(open) = &mut stdin else { continue };
        // A command that reads no more has its reasons: what comes is dropped, and its end is told.
        if bytes.is_empty() || open.write_all(&bytes).await.is_err() {
            stdin = None;
        }
    }
    Ok(())
}

/// Hands on both outputs as they come, until nothing has either open any more.
async fn show(
    mut stdout: ChildStdout,
    mut stderr: ChildStderr,
    send: &mut SendStream,
) -> Result<(), FrameError> {
    let (mut out, mut err) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let (mut out_open, mut err_open) = (true, true);
    loop {
        // An error on a pipe is its end.
        tokio::select! {
            read = stdout.read(&mut out), if out_open => match read {
                Ok(read @ 1..) => output(send, OutputStream::Stdout, &out[..read]).await?,
                Ok(0) | Err(_) => out_open = false,
            },
            read = stderr.read(&mut err), if err_open => match read {
                Ok(read @ 1..) => output(send, OutputStream::Stderr, &err[..read]).await?,
                Ok(0) | Err(_) => err_open = false,
            },
            else => return Ok(()),
        }
    }
}
