//! A client that follows a collection of a Kubernetes API: lists it, watches from there, and lists again when
//! the watch was cut, as every controller does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::Value;

use super::http::{Connection, Target};
use super::{PATIENCE, Tally};

/// How long a read waits before it looks whether the watch is to end.
const LOOK: Duration = Duration::from_millis(200);

/// A collection that is being followed. A watch that is cut is no failure; a list or a watch that cannot be
/// begun is one.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    follower: JoinHandle<(Tally, u64)>,
}

impl Watch {
    /// Follows `target`, the path of a collection without a query.
    pub fn start(target: &Target) -> Watch {
        let stop = Arc::new(AtomicBool::new(false));
        let follower = Follower {
            target: target.clone(),
            stop: Arc::clone(&stop),
            began: Instant::now(),
            tally: Tally::default(),
            seen: 0,
        };
        let follower = std::thread::spawn(move || follower.run());
        Watch { stop, follower }
    }

    /// Ends it; lists and watches that were begun, and bytes of events that came.
    pub fn stop(self) -> Result<(Tally, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.follower.join();
        let (tally, seen) = ended.map_err(|_| anyhow!("a watch panicked"))?;
        tally.print("watch");
        Ok((tally, seen))
    }
}

struct Follower {
    target: Target,
    stop: Arc<AtomicBool>,
    began: Instant,
    tally: Tally,
    seen: u64,
}

impl Follower {
    fn run(mut self) -> (Tally, u64) {
        while !self.stop.load(Ordering::Relaxed) {
            let since = self.began.elapsed();
            if let Err(error) = self.follow() {
                self.tally.fail(since, &error);
                // A server that refuses at once is not asked a thousand times a second.
                std::thread::sleep(LOOK);
            }
        }
        (self.tally, self.seen)
    }

    /// One list and the watch that begins there, until the watch is over.
    fn follow(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        self.tally.sent += 1;
        let mut connection = Connection::open(&self.target, deadline)?;
        let (_, body) = connection.exchange(&self.target, false, deadline)?;
        let list: Value = serde_json::from_slice(&body).context("the list is no JSON")?;
        let version = list["metadata"]["resourceVersion"].as_str();
        let version = version.context("the list has no resourceVersion")?;
        let deadline = Instant::now() + PATIENCE;
        let path = &self.target.path;
        let target = Target {
            path: format!("{path}?watch=true&resourceVersion={version}&allowWatchBookmarks=true"),
            ..self.target.clone()
        };
        self.tally.sent += 1;
        let mut connection = Connection::open(&target, deadline)?;
        let (_, begun) = connection.open_answer(&target, false, deadline)?;
        self.seen += begun.len() as u64;
        while !self.stop.load(Ordering::Relaxed) {
            match connection.read_some(LOOK) {
                Ok(piece) => self.seen += piece.map_or(0, |piece| piece.len() as u64),
                Err(_cut) => break,
            }
        }
        Ok(())
    }
}
