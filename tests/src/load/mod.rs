//! Clients that never try again: what they count as failed, a user would have seen.
//!
//! A [`Load`] sends requests at a fixed rate from several threads, over new connections or over ones that
//! are kept. Every request has ten seconds; whatever does not end in a `200` within them is a failure. A
//! kept connection that the server closed while nothing was under way on it is opened again, as every HTTP
//! client does (RFC 9112, section 9.5); one that breaks under a request is a failure.

mod balancer;
mod http;
mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

pub use balancer::{Backend, Balancer};
pub use http::{Method, NUMBER, Secure, Target};
pub use watch::Watch;

use http::Connection;

/// How long one request may take.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Failures that are kept with their words.
const KEPT_MAX: usize = 20;

/// How connections are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// One for each request.
    New,
    /// Kept for many requests, for at most this long.
    Kept(Duration),
}

/// Requests that are being sent.
#[derive(Debug)]
pub struct Load {
    name: String,
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
    workers: Vec<JoinHandle<Tally>>,
}

/// What became of the requests.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Requests sent.
    pub sent: u64,
    /// How many failed.
    pub failed: u64,
    /// The first of them, in words, with the time since the beginning.
    pub failures: Vec<String>,
    /// The slowest that did not fail.
    pub slowest: Duration,
}

impl Load {
    /// Sends `rate` requests a second from `threads` threads, until stopped.
    pub fn start(
        name: &str,
        target: &Target,
        connections: Connections,
        rate: u32,
        threads: u32,
    ) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let failed = Arc::new(AtomicU64::new(0));
        let pause = Duration::from_secs(1) * threads / rate.max(1);
        let workers = (0..threads)
            .map(|number| {
                let worker = Worker {
                    target: target.clone(),
                    connections,
                    pause,
                    // Spread, so that the threads do not send all at once.
                    first: pause * number / threads,
                    stop: Arc::clone(&stop),
                    failed: Arc::clone(&failed),
                };
                std::thread::spawn(move || worker.run())
            })
            .collect();
        Load {
            name: name.to_owned(),
            stop,
            failed,
            workers,
        }
    }

    /// Requests that have failed so far.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Lets the requests under way end, and counts.
    pub fn stop(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for worker in self.workers {
            let tally = worker
                .join()
                .map_err(|_| anyhow!("a thread of load {} panicked", self.name))?;
            all.add(tally);
        }
        all.print(&self.name);
        Ok(all)
    }
}

impl Tally {
    /// Fails unless requests were sent and none of them failed.
    pub fn flawless(&self) -> Result<()> {
        ensure!(self.sent > 0, "no request was sent");
        ensure!(
            self.failed == 0,
            "{} of {} requests failed:\n{}",
            self.failed,
            self.sent,
            self.failures.join("\n")
        );
        Ok(())
    }

    fn print(&self, name: &str) {
        eprintln!(
            "load {name}: {} sent, {} failed, slowest {:.0} ms",
            self.sent,
            self.failed,
            self.slowest.as_secs_f64() * 1000.0
        );
    }

    fn fail(&mut self, since: Duration, error: &anyhow::Error) {
        self.failed += 1;
        if self.failures.len() < KEPT_MAX {
            let at = since.as_secs_f64();
            self.failures.push(format!("{at:.2} s: {error:#}"));
        }
    }

    fn add(&mut self, other: Tally) {
        self.sent += other.sent;
        self.failed += other.failed;
        let room = KEPT_MAX.saturating_sub(self.failures.len());
        self.failures.extend(other.failures.into_iter().take(room));
        self.slowest = self.slowest.max(other.slowest);
    }
}

struct Worker {
    target: Target,
    connections: Connections,
    pause: Duration,
    first: Duration,
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
}

impl Worker {
    fn run(self) -> Tally {
        let began = Instant::now();
        let mut due = began + self.first;
        let mut tally = Tally::default();
        let mut kept: Option<Connection> = None;
        while !self.stop.load(Ordering::Relaxed) {
            // A request that took longer than its turn is followed by the next one at once.
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            due += self.pause;
            let sent = Instant::now();
            tally.sent += 1;
            match self.request(&mut kept) {
                Ok(()) => tally.slowest = tally.slowest.max(sent.elapsed()),
                Err(error) => {
                    tally.fail(sent.duration_since(began), &error);
                    self.failed.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        tally
    }

    fn request(&self, kept: &mut Option<Connection>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let usable = kept.take().filter(|connection| match self.connections {
            Connections::New => false,
            Connections::Kept(age) => connection.age() < age && connection.is_idle(),
        });
        let mut connection = match usable {
            Some(connection) => connection,
            None => Connection::open(&self.target, deadline)?,
        };
        let keep = self.connections != Connections::New;
        let (reusable, _) = connection.exchange(&self.target, keep, deadline)?;
        if keep && reusable {
            *kept = Some(connection);
        }
        Ok(())
    }
}
