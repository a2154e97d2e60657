//! The cases that simulated providers are run against, too (`director/src/provider/contract.rs`).

use std::path::{Path, PathBuf};

use windlass_common::id::{Incarnation, MachineName};
use windlass_director::provider::contract::{self, Case, Site};

use crate::rig::Rig;

struct Real<'a>(&'a Rig);

impl Site for Real<'_> {
    fn stemcell(&self) -> PathBuf {
        self.0.root.stemcell().to_owned()
    }

    fn settings(&self, machine: &MachineName, incarnation: Incarnation) -> Vec<u8> {
        format!("settings of {machine} {incarnation}").into_bytes()
    }

    fn places_settings(&self) -> bool {
        true
    }

    fn mount(&mut self, machine: &MachineName, device: &Path) {
        let device = device.display();
        let script = format!("mkfs.ext4 -q -F {device} && mount {device} /mnt");
        self.0.says(machine, &script).expect("a disk is mounted");
    }

    /// As a deletion that was cut off right after it began leaves it.
    fn cut_off(&mut self, machine: &MachineName) {
        let path = self.0.machine_dir(machine).join("machine.json");
        let text = std::fs::read_to_string(&path).expect("a machine has a record");
        let mut record: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
        record["complete"] = false.into();
        std::fs::write(&path, record.to_string()).expect("it can be written");
    }
}

/// Runs one of them.
pub(crate) fn run(rig: &Rig, case: &Case) -> anyhow::Result<()> {
    let faults = rig.wait(contract::run(case, rig.provider(), &mut Real(rig)));
    anyhow::ensure!(faults.is_empty(), "{faults:#?}");
    Ok(())
}
