//! A simulated disk that, at a crash, loses, tears and reorders what was not synced.
//!
//! Only for tests (feature `testing`). `kill -9` spares the page cache, so real processes cannot show
//! what a power cut does; this can. A crash keeps any subset of the unsynced writes of a file, each
//! whole or in part, and any number of the oldest unsynced changes of names: journaling file systems
//! keep those in order.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::storage::{Storage, StorageFile};

/// Writes tear at multiples of this many bytes: small, so that short entries tear too.
const SECTOR_BYTES: usize = 8;

/// A disk in memory. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

/// A file of a [`SimDisk`].
#[derive(Debug)]
pub struct SimFile {
    disk: SimDisk,
    inode: usize,
}

#[derive(Debug, Clone, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    unsynced_names: Vec<NameChange>,
    calls: usize,
    crash_at: Option<usize>,
    fail_once_at: Option<usize>,
}

#[derive(Debug, Clone, Default)]
struct Inode {
    content: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

#[derive(Debug, Clone)]
enum NameChange {
    Set(String, usize),
    Rename(String, String),
}

impl SimDisk {
    /// Makes the disk fail at its `call`th writing call (counting from 1), before or in the middle
    /// of it, and at every call after that.
    pub fn crash_at(&self, call: usize) {
        self.state().crash_at = Some(call);
    }

    /// Makes only the disk's `call`th writing call (counting from 1) fail, in the middle of it.
    pub fn fail_once_at(&self, call: usize) {
        self.state().fail_once_at = Some(call);
    }

    /// Writing calls so far.
    pub fn calls(&self) -> usize {
        self.state().calls
    }

    /// The disk as it may be after a power cut now; `seed` chooses among the possibilities.
    #[must_use]
    pub fn after_power_cut(&self, seed: u64) -> SimDisk {
        let mut dice = Dice(seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
        let state = self.state();
        let mut names = state.durable_names.clone();
        let kept = dice.below(state.unsynced_names.len() + 1);
        for change in &state.unsynced_names[..kept] {
            change.apply(&mut names);
        }
        let inodes = state
            .inodes
            .iter()
            .map(|inode| Inode::durable(inode.after_power_cut(&mut dice)))
            .collect();
        SimDisk(Arc::new(Mutex::new(State {
            inodes,
            durable_names: names.clone(),
            names,
            ..State::default()
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a writing call; `Err` from the moment of the crash on.
    fn call(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.calls += 1;
        if state.crash_at.is_some_and(|at| state.calls > at) {
            return Err(io::Error::other("the simulated disk has lost power"));
        }
        Ok(state)
    }

    /// Like [`SimDisk::call`], for a call whose effect may be begun when the power goes: true if it
    /// goes now.
    fn begin(&self) -> io::Result<(MutexGuard<'_, State>, bool)> {
        let state = self.call()?;
        let now = Some(state.calls);
        let dies = state.crash_at == now || state.fail_once_at == now;
        Ok((state, dies))
    }
}

fn lost_power(dies: bool) -> io::Result<()> {
    if dies {
        return Err(io::Error::other("the simulated disk has lost power"));
    }
    Ok(())
}

impl Inode {
    fn durable(content: Vec<u8>) -> Self {
        Self {
            durable: content.clone(),
            content,
            unsynced: Vec::new(),
        }
    }

    fn after_power_cut(&self, dice: &mut Dice) -> Vec<u8> {
        let mut content = self.durable.clone();
        for change in &self.unsynced {
            match change {
                Change::Write { offset, bytes } => match dice.below(4) {
                    0 => {}
                    1 => write(&mut content, *offset, bytes),
                    2 => write(&mut content, *offset, &bytes[..dice.below(bytes.len() + 1)]),
                    // The length is known, some sectors are not written yet: zeros.
                    _ => {
                        let torn: Vec<u8> = bytes
                            .chunks(SECTOR_BYTES)
                            .flat_map(|sector| {
                                let lost = dice.below(3) == 0;
                                sector.iter().map(move |b| if lost { 0 } else { *b })
                            })
                            .collect();
                        write(&mut content, *offset, &torn);
                    }
                },
                Change::SetLen(bytes) => {
                    if dice.below(2) == 0 {
                        content.resize(*bytes, 0);
                    }
                }
            }
        }
        content
    }
}

fn write(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(bytes);
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            NameChange::Set(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            NameChange::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
        }
    }
}

impl Storage for SimDisk {
    type File = SimFile;

    fn open(&self, name: &str) -> io::Result<Option<SimFile>> {
        let inode = self.state().names.get(name).copied();
        Ok(inode.map(|inode| SimFile {
            disk: self.clone(),
            inode,
        }))
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let (mut state, dies) = self.begin()?;
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        let change = NameChange::Set(name.to_owned(), inode);
        change.apply(&mut state.names);
        state.unsynced_names.push(change);
        lost_power(dies)?;
        Ok(SimFile {
            disk: self.clone(),
            inode,
        })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (mut state, dies) = self.begin()?;
        let change = NameChange::Rename(from.to_owned(), to.to_owned());
        change.apply(&mut state.names);
        state.unsynced_names.push(change);
        lost_power(dies)
    }

    fn sync_dir(&self) -> io::Result<()> {
        let (mut state, dies) = self.begin()?;
        lost_power(dies)?;
        state.unsynced_names.clear();
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn place(&self) -> String {
        "a simulated disk".to_owned()
    }
}

impl StorageFile for SimFile {
    fn read_all(&mut self, max: u64) -> io::Result<Vec<u8>> {
        let content = self.disk.state().inodes[self.inode].content.clone();
        if content.len() as u64 > max {
            return Err(io::Error::other(format!("longer than {max} bytes")));
        }
        Ok(content)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (mut state, dies) = self.disk.begin()?;
        let inode = &mut state.inodes[self.inode];
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        write(&mut inode.content, offset, bytes);
        inode.unsynced.push(Change::Write {
            offset,
            bytes: bytes.to_vec(),
        });
        lost_power(dies)
    }

    fn set_len(&mut self, bytes: u64) -> io::Result<()> {
        let (mut state, dies) = self.disk.begin()?;
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        let inode = &mut state.inodes[self.inode];
        inode.content.resize(bytes, 0);
        inode.unsynced.push(Change::SetLen(bytes));
        lost_power(dies)
    }

    fn sync(&mut self) -> io::Result<()> {
        let (mut state, dies) = self.disk.begin()?;
        lost_power(dies)?;
        let inode = &mut state.inodes[self.inode];
        inode.durable = inode.content.clone();
        inode.unsynced.clear();
        Ok(())
    }
}

/// SplitMix64: small, seeded, good enough to choose.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        usize::try_from(z % bound as u64).unwrap_or(0)
    }
}
