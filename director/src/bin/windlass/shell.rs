//! `windlass node shell`: this terminal becomes the machine's.
//!
//! # Invariants
//! * The terminal is as it was before on every way out: the end of the shell, a broken connection, a
//!   signal, a panic.

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use hyper_util::rt::TokioIo;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use windlass_common::error::ErrorChain;
use windlass_common::limits::FRAME_BYTES_MAX;
use windlass_common::wire::frame::{self, FrameError};
use windlass_common::wire::message::Body;
use windlass_common::wire::session::{SessionEnd, SessionInput, SessionOutput, SessionResize};
use windlass_director::api::SESSION_PROTOCOL;
use windlass_director::client::Client;

use crate::cluster::segment;
use crate::failure::{Failure, UNREACHABLE, USAGE};

type Stream = TokioIo<hyper::upgrade::Upgraded>;

/// Bytes read from the keyboard at once; more only comes from a paste.
const INPUT_BYTES: usize = 4 << 10;
/// Reads that wait to be sent.
const INPUT_QUEUE: usize = 16;

pub(crate) async fn run(client: &Client, name: &str) -> Result<ExitCode, Failure> {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(Failure::new(
            USAGE,
            "a shell takes a terminal; `windlass node exec` runs one command without",
        ));
    }
    let term = std::env::var("TERM").unwrap_or_default();
    let size = size();
    let path = format!(
        "/v1/machines/{}/shell?term={}&rows={}&columns={}",
        segment(name),
        segment(&term),
        size.rows,
        size.columns
    );
    let mut signals = Signals::new().map_err(|error| Failure::of(&error))?;
    let stream = client.upgrade(&path, SESSION_PROTOCOL).await?;
    let (from, to) = split(TokioIo::new(stream));
    let raw = Raw::enter().map_err(|error| Failure::of(&error))?;
    let end = tokio::select! {
        end = show(from) => end,
        end = send(to, &mut signals) => end,
    };
    drop(raw);
    match end {
        Ok(SessionEnd::Exit(code)) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        Ok(SessionEnd::Failed(message)) => Err(Failure::new(UNREACHABLE, message)),
        Err(error) => {
            let message = format!(
                "the connection broke, and the shell was ended with it: {}",
                ErrorChain(&error)
            );
            Err(Failure::new(UNREACHABLE, message))
        }
    }
}

/// Shows what the machine sends, until the shell is over.
async fn show(mut from: ReadHalf<Stream>) -> Result<SessionEnd, FrameError> {
    loop {
        let frame = frame::read(&mut from, FRAME_BYTES_MAX).await?;
        let frame = frame.ok_or(FrameError::Closed)?;
        match frame.kind {
            SessionOutput::KIND => {
                let SessionOutput { bytes, .. } = frame.body()?;
                let mut out = std::io::stdout().lock();
                out.write_all(&bytes)
                    .and_then(|()| out.flush())
                    .map_err(FrameError::Io)?;
            }
            _ => return frame.body(),
        }
    }
}

/// Sends what is typed and the terminal's size; ends with a signal.
async fn send(mut to: WriteHalf<Stream>, signals: &mut Signals) -> Result<SessionEnd, FrameError> {
    let mut keyboard = keyboard();
    let mut listening = true;
    loop {
        tokio::select! {
            bytes = keyboard.recv(), if listening => match bytes {
                Some(bytes) => frame::write(&mut to, &SessionInput { bytes }).await?,
                // Nobody types any more; the shell may have something to say still.
                None => listening = false,
            },
            _ = signals.resized.recv() => frame::write(&mut to, &size()).await?,
            _ = signals.terminated.recv() => return Ok(SessionEnd::Exit(128 + 15)),
            _ = signals.hung_up.recv() => return Ok(SessionEnd::Exit(128 + 1)),
        }
        to.flush().await.map_err(FrameError::Io)?;
    }
}

/// What is typed. A thread of its own: a read of a terminal cannot be given up, and ends with the process.
fn keyboard() -> mpsc::Receiver<Vec<u8>> {
    let (typed, keyboard) = mpsc::channel(INPUT_QUEUE);
    std::thread::spawn(move || {
        let mut buffer = vec![0; INPUT_BYTES];
        let mut stdin = std::io::stdin().lock();
        while let Ok(read @ 1..) = stdin.read(&mut buffer) {
            if typed.blocking_send(buffer[..read].to_vec()).is_err() {
                return;
            }
        }
    });
    keyboard
}

fn size() -> SessionResize {
    match tcgetwinsize(std::io::stdout()) {
        Ok(size) => SessionResize {
            rows: size.ws_row,
            columns: size.ws_col,
        },
        Err(_) => SessionResize {
            rows: 24,
            columns: 80,
        },
    }
}

struct Signals {
    resized: Signal,
    terminated: Signal,
    hung_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            resized: signal(SignalKind::window_change())?,
            terminated: signal(SignalKind::terminate())?,
            hung_up: signal(SignalKind::hangup())?,
        })
    }
}

/// The terminal hands on every key, until this is dropped.
struct Raw(Termios);

impl Raw {
    fn enter() -> rustix::io::Result<Raw> {
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Raw(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
