//! Processes that take orders: one JSON object a line on standard input, one answer a line on
//! standard output, `{"Ok": …}` or `{"Err": "…"}`.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::BenchError;

/// Longest line read, bytes: an order is a few addresses and numbers.
const LINE_BYTES_MAX: usize = 64 << 10;

/// A process that takes orders. Killed when dropped.
#[derive(Debug)]
pub(super) struct Peer {
    name: String,
    child: Child,
    orders: ChildStdin,
    answers: mpsc::Receiver<String>,
}

impl Peer {
    pub(super) fn start(name: &str, command: &mut Command) -> Result<Peer, BenchError> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(BenchError::io("start", command.get_program()))?;
        let (Some(orders), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(broken(name, "has no standard input or output"));
        };
        let (send, answers) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Peer {
            name: name.to_owned(),
            child,
            orders,
            answers,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn order(&mut self, order: &impl Serialize) -> Result<(), BenchError> {
        let mut line = serde_json::to_vec(order).map_err(|e| broken(&self.name, &e.to_string()))?;
        line.push(b'\n');
        self.orders
            .write_all(&line)
            .map_err(|_| broken(&self.name, "ended before it was told to"))
    }

    pub(super) fn answer<A: DeserializeOwned>(
        &mut self,
        patience: Duration,
    ) -> Result<A, BenchError> {
        let line = match self.answers.recv_timeout(patience) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                return Err(BenchError::Silent {
                    name: self.name.clone(),
                    patience,
                });
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(broken(&self.name, "ended before it was told to"));
            }
        };
        match serde_json::from_str::<Result<A, String>>(&line) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(message)) => Err(BenchError::Failed {
                name: self.name.clone(),
                message,
            }),
            Err(error) => Err(broken(&self.name, &format!("answered {line:?}: {error}"))),
        }
    }

    pub(super) fn ask<A: DeserializeOwned>(
        &mut self,
        order: &impl Serialize,
        patience: Duration,
    ) -> Result<A, BenchError> {
        self.order(order)?;
        self.answer(patience)
    }

    /// Ends it as a crash does.
    pub(super) fn kill(&mut self) {
        // Fails only for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn broken(name: &str, what: &str) -> BenchError {
    BenchError::Peer {
        name: name.to_owned(),
        what: what.to_owned(),
    }
}

/// The other end: the orders that come in, until standard input ends. Must be called on a runtime.
pub fn orders<O: DeserializeOwned + Send + 'static>() -> tokio::sync::mpsc::Receiver<O> {
    let (send, orders) = tokio::sync::mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let order = line
                .get(..LINE_BYTES_MAX.min(line.len()))
                .and_then(|line| serde_json::from_str(line).ok());
            let Some(order) = order else {
                reply::<()>(Err(format!("no order: {line:.200}")));
                continue;
            };
            if send.blocking_send(order).is_err() {
                return;
            }
        }
    });
    orders
}

/// Answers an order.
pub fn reply<A: Serialize>(answer: Result<A, String>) {
    let line = serde_json::to_string(&answer)
        .unwrap_or_else(|error| format!("{{\"Err\":\"cannot answer: {error}\"}}"));
    // Fails only when nobody asks any more, and then standard input ends next.
    let _ = writeln!(io::stdout().lock(), "{line}");
}
