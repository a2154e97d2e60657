//! `exec`: a command as root for an operator.
//!
//! The runner sees to it that one runs at most once. It has a process group of its own and is killed
//! with the whole group when the step is over, also at its deadline.

use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncRead, AsyncReadExt};
use windlass_common::error::ErrorClass;
use windlass_common::limits::CHUNK_BYTES;
use windlass_common::step::{Exec, OutputStream, Payload};

use super::{Failure, Run};
use crate::host::command::{Running, exit_code};

pub(super) async fn run(run: &Run, exec: &Exec) -> Result<Payload, Failure> {
    let argv: Vec<&str> = exec.argv.iter().map(String::as_str).collect();
    let status = stream(run, &argv).await?;
    run.changed(format!("ran {}", argv.first().unwrap_or(&"")));
    Ok(Payload::Exit(exit_code(status)))
}

/// Runs a program and hands its output on as it comes.
pub(super) async fn stream(run: &Run, argv: &[&str]) -> Result<ExitStatus, Failure> {
    let program = argv.first().copied().unwrap_or_default();
    let cannot = |error: std::io::Error| {
        Failure::new(
            ErrorClass::Operator,
            format!("cannot run {program:?}: {error}"),
        )
    };
    let mut running = Running::start(argv, Stdio::null()).map_err(cannot)?;
    let Some((stdout, stderr)) = running.take_output() else {
        return Err(Failure::new(
            ErrorClass::Bug,
            "the child has no output pipes",
        ));
    };
    let pumps = async {
        tokio::join!(
            pump(run, OutputStream::Stdout, stdout),
            pump(run, OutputStream::Stderr, stderr),
        )
    };
    tokio::pin!(pumps);
    // A grandchild may keep the pipes open after the child has ended; it is killed with the group,
    // and then the pipes end.
    let status = tokio::select! {
        _ = &mut pumps => running.wait().await,
        status = running.wait() => {
            pumps.await;
            status
        }
    };
    status.map_err(cannot)
}

async fn pump(run: &Run, stream: OutputStream, mut from: impl AsyncRead + Unpin) {
    let mut buffer = vec![0; CHUNK_BYTES];
    // An error on a pipe is its end.
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        run.progress.output(stream, &buffer[..read]).await;
    }
}
