//! What a director says in its log about those whom it refuses.

use std::io;
use std::sync::{Arc, Mutex};

use tracing::subscriber::DefaultGuard;

use windlass_director::gateway::Reason;

use crate::world::{Director, wait_for};

/// Refusals of one reason and of all others, and their lines in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusals {
    counted: u64,
    others: u64,
    lines: u64,
    all_lines: u64,
}

/// What is logged on this thread: by a test that has only this one, and by no other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// From now on, for as long as the second is held.
    pub(crate) fn of_this_thread() -> (Log, DefaultGuard) {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    pub(crate) fn contains(&self, words: &str) -> bool {
        self.lines(&[words]) > 0
    }

    /// Lines about refusals for this reason.
    pub(crate) fn refusals(&self, reason: Reason) -> u64 {
        self.lines(&["peer refused", &format!("reason=\"{}\"", reason.name())])
    }

    /// Refusals for this reason that have no line of their own, by the lines that give their number.
    pub(crate) fn further_refusals(&self, reason: Reason) -> u64 {
        let bytes = self.0.lock().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let named = format!("reason=\"{}\"", reason.name());
        let further = |line: &&str| line.contains("further peers refused") && line.contains(&named);
        let counts = text.lines().filter(further).map(|line| {
            let (_, count) = line.split_once("count=").unwrap();
            let count = count.split_whitespace().next().unwrap();
            count.parse::<u64>().unwrap()
        });
        counts.sum()
    }

    /// How many lines have all of these.
    pub(crate) fn lines(&self, words: &[&str]) -> u64 {
        let bytes = self.0.lock().unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let has_all = |line: &&str| words.iter().all(|words| line.contains(words));
        text.lines().filter(has_all).count() as u64
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Director {
    /// How much is refused so far, and said in the log.
    pub(crate) fn refusals(&self, log: &Log, reason: Reason) -> Refusals {
        Refusals {
            counted: self.refused(reason),
            others: self.refused_but_for(Some(reason)),
            lines: log.refusals(reason),
            all_lines: log.lines(&["peer refused"]),
        }
    }

    /// Waits until one more is refused for this reason than `before`: one counter, and one line in the log.
    pub(crate) async fn refuses_once(
        &self,
        case: &str,
        log: &Log,
        reason: Reason,
        before: Refusals,
    ) {
        wait_for(case, || {
            (self.refused(reason) > before.counted).then_some(())
        })
        .await;
        let once = Refusals {
            counted: before.counted + 1,
            lines: before.lines + 1,
            all_lines: before.all_lines + 1,
            ..before
        };
        assert_eq!(self.refusals(log, reason), once, "{case}");
    }
}
