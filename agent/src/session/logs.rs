//! Following the journal.

use std::process::Stdio;

use quinn::{RecvStream, SendStream};
use tokio::io::AsyncReadExt;

use windlass_common::limits::CHUNK_BYTES;
use windlass_common::step::OutputStream;
use windlass_common::wire::frame::FrameError;
use windlass_common::wire::session::{FollowLogs, SessionEnd};

use super::{Ended, left, open, output};
use crate::host::command::{Running, exit_code};

pub(super) async fn serve(
    logs: &FollowLogs,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<Ended, FrameError> {
    let argv = command(logs);
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let mut running = match Running::start(&argv, Stdio::null()) {
        Ok(running) => running,
        Err(error) => return Ok(Ended::NotBegun(format!("cannot run journalctl: {error}"))),
    };
    let Some((mut stdout, mut stderr)) = running.take_output() else {
        return Ok(Ended::NotBegun("journalctl has no output".to_owned()));
    };
    open(send).await?;
    let left = left(recv);
    tokio::pin!(left);
    let (mut out, mut err) = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
    let mut open = (true, true);
    // An error on a pipe is its end. Dropping what runs kills it.
    while open != (false, false) {
        tokio::select! {
            () = &mut left => return Ok(Ended::Left),
            read = stdout.read(&mut out), if open.0 => match read {
                Ok(read @ 1..) => output(send, OutputStream::Stdout, &out[..read]).await?,
                Ok(0) | Err(_) => open.0 = false,
            },
            read = stderr.read(&mut err), if open.1 => match read {
                Ok(read @ 1..) => output(send, OutputStream::Stderr, &err[..read]).await?,
                Ok(0) | Err(_) => open.1 = false,
            },
        }
    }
    Ok(Ended::Over(match running.wait().await {
        Ok(status) => SessionEnd::Exit(exit_code(status)),
        Err(error) => SessionEnd::Failed(format!("cannot tell how journalctl ended: {error}")),
    }))
}

fn command(logs: &FollowLogs) -> Vec<String> {
    let mut argv: Vec<String> = [
        "journalctl",
        "--no-pager",
        "-q",
        "-o",
        "short-iso",
        "-f",
        "-n",
    ]
    .map(str::to_owned)
    .into();
    argv.push(logs.lines.to_string());
    for unit in &logs.units {
        argv.extend(["-u".to_owned(), unit.clone()]);
    }
    argv
}
