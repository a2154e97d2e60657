//! The provider of these tests under the cases that real ones are run against (`director/tests/provider`).

use std::path::{Path, PathBuf};

use windlass_common::id::Digest;
use windlass_common::secret::Secret;
use windlass_common::settings::Settings;

use super::sim::Life;
use super::*;
use crate::provider::contract;

struct Site(Arc<Sim>);

impl contract::Site for Site {
    fn stemcell(&self) -> PathBuf {
        PathBuf::from("/stemcells/test")
    }

    fn settings(&self, machine: &MachineName, incarnation: Incarnation) -> Vec<u8> {
        serde_json::to_vec(&Settings {
            director_id: DirectorId::new("d1").unwrap(),
            directors: Vec::new(),
            ca_digest: Digest::of(b""),
            token: Secret::new("0".repeat(64)),
            cluster: ClusterName::new("demo").unwrap(),
            machine: machine.clone(),
            incarnation,
        })
        .unwrap()
    }

    fn places_settings(&self) -> bool {
        true
    }

    fn mount(&mut self, machine: &MachineName, _device: &Path) {
        let mut state = self.0.state.lock().unwrap();
        state.machines.get_mut(machine).unwrap().mounted = true;
    }

    fn cut_off(&mut self, machine: &MachineName) {
        let mut state = self.0.state.lock().unwrap();
        state.machines.get_mut(machine).unwrap().view.complete = false;
    }
}

#[tokio::test]
async fn the_provider_of_rollouts_answers_as_real_ones_do() {
    let mut faults = Vec::new();
    for case in contract::CASES {
        let sim = Arc::new(Sim::default());
        sim.state.lock().unwrap().refuses = true;
        let life = Life::new(sim.clone(), usize::MAX);
        faults.extend(contract::run(case, &*life, &mut Site(sim)).await);
    }
    assert_eq!(faults, Vec::<String>::new());
}
