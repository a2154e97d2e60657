//! What the agent must remember: steps begun and ended, the highest epoch, the units it was told of.
//!
//! # Invariants
//! * A step's `Begun` is on disk before its effect, its `Ended` before its result is sent.
//! * The highest epoch is on disk before a step of that epoch begins.
//! * The content of a step is not kept, only its digest: it may hold secrets.
//! * Each release reads what the one before it and the one after it write: a new kind of entry is written
//!   from the second release on that can read it. An agent that is rolled back ([`crate::steps::upgrade`])
//!   finds a journal that its successor wrote.
//!
//! # After a crash
//! [`History::open`] replays the journal. A begun step without an end converges when it is sent
//! again; one that cannot converge is ended here as `Unknown`, so that it never runs twice.
//!
//! # Not here
//! Running steps ([`crate::runner`]). All calls that write block.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use windlass_common::id::{Digest, Epoch};
use windlass_common::journal::{Journal, JournalError, Storage};
use windlass_common::step::{Outcome, Payload, Route, StepId, StepResult};
use windlass_common::wire::codec::{self, CodecError};

/// Ended steps that are kept; a director asks again only for steps of tasks that are not over, and
/// gives one machine fewer than 100 steps a task.
const ENDED_KEPT: usize = 256;
/// Ended steps that cannot be repeated are kept longer: forgetting one would let it run twice.
const ENDED_ONCE_KEPT: usize = 4096;
/// Size at which the journal is rewritten, in bytes.
const REWRITE_BYTES: u64 = 2 << 20;
/// Changes kept with an ended step, in bytes: 256 steps of 4 KiB are 1 MiB.
const CHANGES_KEPT_BYTES: usize = 4 << 10;

/// Why history could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The journal failed.
    #[error("the agent's journal cannot be used")]
    Journal(#[from] JournalError),
    /// An entry is not one of ours.
    #[error("an entry of the agent's journal cannot be read or written")]
    Entry(#[from] CodecError),
}

/// One entry of the journal. New kinds go to the end: old journals are read by new agents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Entry {
    Epoch(Epoch),
    Begun {
        id: StepId,
        content: Digest,
        once: bool,
    },
    Ended {
        id: StepId,
        content: Digest,
        once: bool,
        result: StepResult,
    },
    Unit {
        unit: String,
        memory: UnitMemory,
    },
    Network(Network),
}

/// What is remembered of a unit that a `service` step named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UnitMemory {
    /// Configuration with which it was last started.
    pub configuration: Option<Digest>,
    /// Whether it was last asked to be active.
    pub active: bool,
}

/// Kernel state that a reboot loses, and that the agent brings back when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Network {
    /// Routes to other machines' pods; `None`: never told.
    pub routes: Option<Vec<Route>>,
    /// Kernel parameters, by dotted name.
    pub sysctls: BTreeMap<String, String>,
}

/// What is known of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    /// Digest of what it asked for.
    pub content: Digest,
    /// How it ended; `None` while it has not.
    pub result: Option<StepResult>,
    once: bool,
    order: u64,
}

/// The journal as seen from here: what it is stored on does not matter.
trait Records: Send + std::fmt::Debug {
    fn append(&mut self, payload: &[u8]) -> Result<(), JournalError>;
    fn rewrite(&mut self, payloads: &[Vec<u8>]) -> Result<(), JournalError>;
    fn bytes(&self) -> u64;
}

impl<S: Storage> Records for Journal<S>
where
    S::File: Send,
{
    fn append(&mut self, payload: &[u8]) -> Result<(), JournalError> {
        Journal::append(self, payload)
    }

    fn rewrite(&mut self, payloads: &[Vec<u8>]) -> Result<(), JournalError> {
        Journal::rewrite(self, payloads)
    }

    fn bytes(&self) -> u64 {
        Journal::bytes(self)
    }
}

/// The agent's memory.
#[derive(Debug)]
pub struct History {
    records: Box<dyn Records>,
    rewrite_at: u64,
    epoch: Epoch,
    steps: BTreeMap<StepId, Known>,
    units: BTreeMap<String, UnitMemory>,
    network: Network,
    next_order: u64,
    broken: watch::Sender<bool>,
}

impl History {
    /// Reads the journal; steps that cannot be repeated and were interrupted end here.
    pub fn open(storage: impl Storage + 'static) -> Result<Self, HistoryError> {
        let (journal, payloads) = Journal::open(storage)?;
        let mut history = Self {
            records: Box::new(journal),
            rewrite_at: REWRITE_BYTES,
            epoch: Epoch::default(),
            steps: BTreeMap::new(),
            units: BTreeMap::new(),
            network: Network::default(),
            next_order: 0,
            broken: watch::channel(false).0,
        };
        for payload in &payloads {
            history.replay(codec::decode(payload)?);
        }
        history.end_interrupted()?;
        Ok(history)
    }

    /// Turns true when nothing can be remembered any more: the agent has to start anew, which opens the
    /// journal again.
    pub fn broken(&self) -> watch::Receiver<bool> {
        self.broken.subscribe()
    }

    /// Highest epoch seen.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Remembers an epoch if it is higher than any seen.
    pub fn see_epoch(&mut self, epoch: Epoch) -> Result<(), HistoryError> {
        if epoch > self.epoch {
            self.record(Entry::Epoch(epoch))?;
        }
        Ok(())
    }

    /// What is known of a step.
    pub fn step(&self, id: &StepId) -> Option<&Known> {
        self.steps.get(id)
    }

    /// Steps that have begun and not ended.
    pub fn unfinished(&self) -> Vec<StepId> {
        let open = self
            .steps
            .iter()
            .filter(|(_, known)| known.result.is_none());
        open.map(|(id, _)| id.clone()).collect()
    }

    /// Remembers that a step begins; `once` says that it must not run again.
    pub fn begin(&mut self, id: &StepId, content: Digest, once: bool) -> Result<(), HistoryError> {
        let id = id.clone();
        self.record(Entry::Begun { id, content, once })
    }

    /// Remembers how a step ended. Long lists of changes are cut.
    pub fn end(
        &mut self,
        content: Digest,
        once: bool,
        result: &StepResult,
    ) -> Result<(), HistoryError> {
        let id = result.id.clone();
        let result = cut(result);
        self.record(Entry::Ended {
            id,
            content,
            once,
            result,
        })?;
        self.rewrite_if_long()
    }

    /// What is remembered of a unit.
    pub fn unit(&self, unit: &str) -> Option<UnitMemory> {
        self.units.get(unit).copied()
    }

    /// All units that steps named, and whether they should be active.
    pub fn units(&self) -> BTreeMap<String, bool> {
        let units = self.units.iter();
        units
            .map(|(unit, memory)| (unit.clone(), memory.active))
            .collect()
    }

    /// Remembers a unit.
    pub fn remember_unit(&mut self, unit: &str, memory: UnitMemory) -> Result<(), HistoryError> {
        if self.unit(unit) == Some(memory) {
            return Ok(());
        }
        let unit = unit.to_owned();
        self.record(Entry::Unit { unit, memory })
    }

    /// Routes and kernel parameters to bring back after a reboot.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Remembers routes and kernel parameters.
    pub fn remember_network(&mut self, network: Network) -> Result<(), HistoryError> {
        if self.network == network {
            return Ok(());
        }
        self.record(Entry::Network(network))
    }

    fn record(&mut self, entry: Entry) -> Result<(), HistoryError> {
        let appended = self.records.append(&codec::encode(&entry)?);
        if matches!(appended, Err(JournalError::Poisoned { .. })) {
            self.broken.send_replace(true);
        }
        appended?;
        self.replay(entry);
        Ok(())
    }

    fn replay(&mut self, entry: Entry) {
        let order = self.next_order;
        self.next_order += 1;
        match entry {
            Entry::Epoch(epoch) => self.epoch = self.epoch.max(epoch),
            Entry::Begun { id, content, once } => {
                let known = Known {
                    content,
                    result: None,
                    once,
                    order,
                };
                self.steps.insert(id, known);
            }
            Entry::Ended {
                id,
                content,
                once,
                result,
            } => {
                let known = Known {
                    content,
                    result: Some(result),
                    once,
                    order,
                };
                self.steps.insert(id, known);
            }
            Entry::Unit { unit, memory } => {
                self.units.insert(unit, memory);
            }
            Entry::Network(network) => self.network = network,
        }
    }

    fn end_interrupted(&mut self) -> Result<(), HistoryError> {
        let interrupted: Vec<(StepId, Digest)> = self
            .steps
            .iter()
            .filter(|(_, known)| known.once && known.result.is_none())
            .map(|(id, known)| (id.clone(), known.content))
            .collect();
        for (id, content) in interrupted {
            let result = StepResult {
                id,
                outcome: Outcome::Unknown {
                    message: "the agent or its machine went down while this ran; it is not run \
                              again, and what it did is not known"
                        .to_owned(),
                },
                payload: Payload::None,
                changes: Vec::new(),
                elapsed_ms: 0,
            };
            self.end(content, true, &result)?;
        }
        Ok(())
    }

    fn rewrite_if_long(&mut self) -> Result<(), HistoryError> {
        self.forget();
        if self.records.bytes() < self.rewrite_at {
            return Ok(());
        }
        let mut entries = vec![
            Entry::Epoch(self.epoch),
            Entry::Network(self.network.clone()),
        ];
        for (unit, memory) in &self.units {
            entries.push(Entry::Unit {
                unit: unit.clone(),
                memory: *memory,
            });
        }
        let mut steps: Vec<(&StepId, &Known)> = self.steps.iter().collect();
        steps.sort_by_key(|(_, known)| known.order);
        for (id, known) in steps {
            let (id, content, once) = (id.clone(), known.content, known.once);
            entries.push(match &known.result {
                None => Entry::Begun { id, content, once },
                Some(result) => Entry::Ended {
                    id,
                    content,
                    once,
                    result: result.clone(),
                },
            });
        }
        let payloads: Result<Vec<_>, _> = entries.iter().map(codec::encode).collect();
        self.records.rewrite(&payloads?)?;
        // What is kept may itself be long; rewriting at each step would be slow.
        self.rewrite_at = self.records.bytes() + REWRITE_BYTES;
        Ok(())
    }

    /// Drops the oldest ended steps beyond what is kept of each sort.
    fn forget(&mut self) {
        for (once, kept) in [(false, ENDED_KEPT), (true, ENDED_ONCE_KEPT)] {
            let of_sort = |known: &Known| known.once == once && known.result.is_some();
            let mut orders: Vec<u64> = self
                .steps
                .values()
                .filter(|known| of_sort(known))
                .map(|known| known.order)
                .collect();
            if orders.len() <= kept {
                continue;
            }
            orders.sort_unstable();
            let oldest_kept = orders[orders.len() - kept];
            self.steps
                .retain(|_, known| !of_sort(known) || known.order >= oldest_kept);
        }
    }
}

/// A result with at most [`CHANGES_KEPT_BYTES`] of changes.
fn cut(result: &StepResult) -> StepResult {
    let mut left = CHANGES_KEPT_BYTES;
    let mut changes = Vec::new();
    for change in &result.changes {
        if change.len() > left {
            changes.push("… (cut)".to_owned());
            break;
        }
        left -= change.len();
        changes.push(change.clone());
    }
    StepResult {
        changes,
        ..result.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use windlass_common::journal::sim::SimDisk;

    fn id(n: usize) -> StepId {
        StepId(format!("task/{n:04}"))
    }

    fn result(n: usize) -> StepResult {
        StepResult {
            id: id(n),
            outcome: Outcome::Changed,
            payload: Payload::Exit(0),
            changes: vec![format!("change {n}")],
            elapsed_ms: 1,
        }
    }

    #[test]
    fn all_is_remembered_across_a_restart() {
        let disk = SimDisk::default();
        let content = Digest::of(b"content");
        let memory = UnitMemory {
            configuration: Some(content),
            active: true,
        };
        let network = Network {
            routes: Some(Vec::new()),
            sysctls: BTreeMap::from([("a.b".to_owned(), "1".to_owned())]),
        };
        {
            let mut history = History::open(disk.clone()).unwrap();
            history.see_epoch(Epoch(7)).unwrap();
            history.see_epoch(Epoch(3)).unwrap();
            history.begin(&id(1), content, false).unwrap();
            history.end(content, false, &result(1)).unwrap();
            history.begin(&id(2), content, false).unwrap();
            history.remember_unit("a.service", memory).unwrap();
            history.remember_network(network.clone()).unwrap();
        }
        let history = History::open(disk).unwrap();
        assert_eq!(history.epoch(), Epoch(7));
        assert_eq!(history.step(&id(1)).unwrap().result, Some(result(1)));
        assert_eq!(history.unfinished(), [id(2)]);
        assert_eq!(history.unit("a.service"), Some(memory));
        assert_eq!(history.network(), &network);
    }

    #[test]
    fn once_means_once_whatever_the_disk_loses() {
        // The effect happens when `begin` has returned. After any power cut, either the effect did
        // not happen, or the step is known and will not run again.
        let content = Digest::of(b"content");
        for call in 1..12 {
            for seed in 0..20 {
                let disk = SimDisk::default();
                disk.crash_at(call);
                let mut effects = 0;
                let _ = History::open(disk.clone()).map(|mut history| {
                    history.see_epoch(Epoch(1))?;
                    history.begin(&id(1), content, true)?;
                    effects += 1;
                    history.end(content, true, &result(1))
                });
                let history = History::open(disk.after_power_cut(seed)).unwrap();
                let known = history.step(&id(1)).and_then(|known| known.result.as_ref());
                match known.map(|result| &result.outcome) {
                    None => assert_eq!(effects, 0, "would run again: call {call}, seed {seed}"),
                    Some(Outcome::Unknown { .. } | Outcome::Changed) => {}
                    Some(other) => panic!("{other:?}"),
                }
                assert!(history.unfinished().is_empty());
            }
        }
    }

    #[test]
    fn the_journal_stays_short_and_keeps_what_counts() {
        let disk = SimDisk::default();
        let content = Digest::of(b"content");
        let mut history = History::open(disk.clone()).unwrap();
        history.begin(&id(9000), content, true).unwrap();
        history.end(content, true, &result(9000)).unwrap();
        history.see_epoch(Epoch(5)).unwrap();
        history.begin(&id(9001), content, false).unwrap();
        let long = "x".repeat(CHANGES_KEPT_BYTES);
        for n in 0..1200 {
            history.begin(&id(n), content, false).unwrap();
            let mut result = result(n);
            result.changes = vec![long.clone(), long.clone()];
            history.end(content, false, &result).unwrap();
        }
        assert!(history.records.bytes() < 2 * REWRITE_BYTES + (1 << 20));
        let history = History::open(disk).unwrap();
        assert_eq!(history.epoch(), Epoch(5));
        assert!(history.step(&id(9000)).is_some(), "once is kept");
        assert_eq!(history.unfinished(), [id(9001)]);
        assert!(history.step(&id(1199)).is_some());
        let changes = &history
            .step(&id(1199))
            .unwrap()
            .result
            .as_ref()
            .unwrap()
            .changes;
        assert_eq!(changes.last().unwrap(), "… (cut)");
    }
}
