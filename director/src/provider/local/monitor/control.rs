//! How the provider speaks to a monitor: one JSON line each way over a unix socket.
//!
//! Only root reaches the socket (its directory has mode 0700). A monitor takes one command at a time; the
//! next waits in the socket's backlog, with the asker's own deadline.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::provider::ProviderError;
use crate::provider::local::record::Record;

/// Longest line, in bytes: a command is under 100, a reply carries an error's text.
const LINE_MAX: u64 = 16 * 1024;
/// How long a client that has connected may take to say what it wants.
const CLIENT_LIMIT: Duration = Duration::from_secs(2);

/// What a monitor can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Command {
    /// Power off, and keep it off.
    Stop { grace_ms: u64 },
    /// Power off and on.
    Reboot { grace_ms: u64 },
    /// Cut the power at once; the machine is about to be removed.
    Delete,
    /// Show the machine the disks it has by now.
    Disks,
}

/// What a monitor answers when it is done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    Done,
    Failed { detail: String },
}

/// A client that waits for its answer.
#[derive(Debug)]
pub(super) struct Client(UnixStream);

/// Takes the next command. A client that says nothing sensible in time is dropped.
pub(super) fn accept(listener: &UnixListener) -> Option<(Command, Client)> {
    let (stream, _) = listener.accept().ok()?;
    stream.set_read_timeout(Some(CLIENT_LIMIT)).ok()?;
    stream.set_write_timeout(Some(CLIENT_LIMIT)).ok()?;
    let mut line = String::new();
    BufReader::new((&stream).take(LINE_MAX))
        .read_line(&mut line)
        .ok()?;
    let command = serde_json::from_str(&line).ok()?;
    Some((command, Client(stream)))
}

impl Client {
    /// Answers. A client that is gone asks again or looks.
    pub(super) fn answer(mut self, reply: &Reply) {
        if let Ok(mut line) = serde_json::to_string(reply) {
            line.push('\n');
            let _ = self.0.write_all(line.as_bytes());
        }
    }
}

/// Whether a monitor lives that listens.
pub(super) fn listens(record: &Record) -> bool {
    UnixStream::connect(record.layout.socket(&record.name)).is_ok()
}

/// Tells a machine's monitor something and waits until it is done; `None` if there is no monitor, or it
/// ended before it answered: then look again.
pub(crate) fn ask(
    record: &Record,
    command: Command,
    deadline: Instant,
) -> Result<Option<()>, ProviderError> {
    let began = Instant::now();
    let exchange = || -> io::Result<Option<String>> {
        let stream = match UnixStream::connect(record.layout.socket(&record.name)) {
            Ok(stream) => stream,
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let mut line = serde_json::to_string(&command)?;
        line.push('\n');
        let mut answer = String::new();
        let sent = (&stream).write_all(line.as_bytes());
        let read =
            sent.and_then(|()| BufReader::new((&stream).take(LINE_MAX)).read_line(&mut answer));
        match read {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(answer)),
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    };
    match exchange() {
        Ok(None) => Ok(None),
        Ok(Some(line)) => match serde_json::from_str(&line) {
            Ok(Reply::Done) => Ok(Some(())),
            Ok(Reply::Failed { detail }) => Err(ProviderError::Monitor {
                machine: record.name.clone(),
                detail,
            }),
            Err(_) => Ok(None),
        },
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
            ) =>
        {
            Err(ProviderError::Deadline {
                what: format!("{command:?} of machine {}", record.name),
                limit_ms: began.elapsed().as_millis() as u64,
            })
        }
        Err(source) => Err(ProviderError::Host {
            what: format!("cannot speak to the monitor of machine {}", record.name),
            source,
        }),
    }
}
