//! Machines that were set aside: out of every list of machines, never started, for people to look into.
//!
//! The directory of such a machine is moved as a whole, so that its changes to the stemcell's root (`upper`), its data
//! directories and its console are as they were. `kept.json` is written into it before the move: once the directory
//! is among the kept ones, it is whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use windlass_common::id::{Incarnation, MachineName};

use super::Inner;
use super::disk;
use super::files::{What, list, make_dir, read_json, remove_file, remove_tree, write_json};
use super::lifecycle::clean;
use super::record::{monitor_lives, wanted_power};
use crate::provider::{KeptView, Power, ProviderError, SetAside};

const FILE: &str = "kept.json";

/// `kept.json`. Fields added later need a serde default: what is kept outlives directors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    name: MachineName,
    machine: MachineName,
    incarnation: Incarnation,
    created_at: u64,
    kept_at: u64,
    notes: BTreeMap<String, String>,
}

impl Kept {
    fn load(dir: &Path) -> Result<Option<Kept>, ProviderError> {
        read_json(&dir.join(FILE))
    }

    fn view(self, place: &Path) -> KeptView {
        KeptView {
            name: self.name,
            machine: self.machine,
            incarnation: self.incarnation,
            created_at: self.created_at,
            kept_at: self.kept_at,
            notes: self.notes,
            place: place.display().to_string(),
        }
    }
}

impl Inner {
    fn kept_dir(&self, kept: &MachineName) -> PathBuf {
        self.layout.kept().join(kept.as_str())
    }

    /// See [`crate::provider::Provider::set_aside`].
    pub(super) fn set_aside(&self, request: &SetAside) -> Result<KeptView, ProviderError> {
        let view = self.alone(&request.machine, || {
            self.kept_alone(&request.kept, || self.move_aside(request))
        })?;
        self.release_host()?;
        Ok(view)
    }

    fn kept_alone<T>(&self, kept: &MachineName, work: impl FnOnce() -> T) -> T {
        self.busy.alone(format!("kept/{kept}"), work)
    }

    fn move_aside(&self, request: &SetAside) -> Result<KeptView, ProviderError> {
        let (name, to) = (&request.machine, self.kept_dir(&request.kept));
        if let Some(found) = Kept::load(&to)? {
            if (&found.machine, found.incarnation) == (name, request.incarnation) {
                return Ok(found.view(&to));
            }
            let found = format!("incarnation {} of {}", found.incarnation, found.machine);
            return Err(conflict(request, found));
        }
        let record = self.record(name)?;
        if record.incarnation != request.incarnation {
            return Err(conflict(
                request,
                format!("incarnation {}", record.incarnation),
            ));
        }
        let dir = record.dir();
        let runs = record.init().is_some() || monitor_lives(&dir);
        if runs || wanted_power(&dir) == Power::Running {
            return Err(conflict(request, "not off".to_owned()));
        }
        clean(&record)?;
        for disk in disk::of_machine(&self.layout, name)? {
            self.let_go(name, disk)?;
        }
        remove_file(&self.layout.socket(name))?;
        let kept = Kept {
            name: request.kept.clone(),
            machine: name.clone(),
            incarnation: record.incarnation,
            created_at: record.created_at,
            kept_at: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |passed| passed.as_secs()),
            notes: request.notes.clone(),
        };
        write_json(&dir.path().join(FILE), &kept)?;
        make_dir(&self.layout.kept(), 0o700)?;
        fs::rename(dir.path(), &to)
            .what(|| format!("cannot move {} to {}", dir.path().display(), to.display()))?;
        for parent in [self.layout.kept(), self.layout.machines()] {
            File::open(&parent)
                .and_then(|parent| parent.sync_all())
                .what(|| format!("cannot sync {}", parent.display()))?;
        }
        Ok(kept.view(&to))
    }

    /// See [`crate::provider::Provider::kept_machines`].
    pub(super) fn kept_machines(&self) -> Result<Vec<KeptView>, ProviderError> {
        let mut views = Vec::new();
        for name in list(&self.layout.kept())? {
            let Ok(name) = MachineName::new(name) else {
                continue; // what is not called so is not ours
            };
            let dir = self.kept_dir(&name);
            let view = match Kept::load(&dir) {
                Ok(Some(kept)) => kept.view(&dir),
                // Its removal was cut off, or the disk has lost it: it has to be seen, to be removed.
                Ok(None) | Err(ProviderError::Damaged { .. }) => lost(name, &dir),
                Err(error) => return Err(error),
            };
            views.push(view);
        }
        Ok(views)
    }

    /// See [`crate::provider::Provider::delete_kept`].
    pub(super) fn delete_kept(&self, kept: &MachineName) -> Result<(), ProviderError> {
        self.kept_alone(kept, || {
            let dir = self.kept_dir(kept);
            // What it was goes last: a removal that is cut off is still known by it.
            for entry in list(&dir)?.iter().filter(|entry| *entry != FILE) {
                let path = dir.join(entry);
                if path.is_dir() && !path.is_symlink() {
                    remove_tree(&path)?;
                } else {
                    remove_file(&path)?;
                }
            }
            remove_tree(&dir)
        })
    }
}

/// What is left of one that nobody can say anything about.
fn lost(name: MachineName, dir: &Path) -> KeptView {
    KeptView {
        machine: name.clone(),
        name,
        incarnation: Incarnation(0),
        created_at: 0,
        kept_at: 0,
        notes: BTreeMap::new(),
        place: dir.display().to_string(),
    }
}

fn conflict(request: &SetAside, found: String) -> ProviderError {
    ProviderError::Conflict {
        kind: "machine",
        name: request.machine.to_string(),
        found,
        wanted: format!(
            "incarnation {}, off, to be kept as {}",
            request.incarnation, request.kept
        ),
    }
}
