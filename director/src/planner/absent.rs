//! Plans a cluster that should not be there.

use std::collections::BTreeSet;

use windlass_common::id::DiskName;

use super::Observed;
use super::steps::{Key, Steps, Verb};
use crate::model::{Action, Disruption, Invariant};

pub(super) fn plan(disks: &BTreeSet<DiskName>, observed: &Observed, steps: &mut Steps) {
    for machine in observed.machines.keys() {
        steps.add(
            Verb::Delete.of(machine),
            Action::DeleteMachine {
                machine: machine.clone(),
            },
            "the cluster is to be deleted",
            Invariant::OneIncarnation,
            Disruption::Api,
            [],
        );
    }
    for (disk, found) in &observed.disks {
        if !disks.contains(disk) {
            continue;
        }
        let holder = found.attached_to.iter().map(|m| Verb::Delete.of(m));
        steps.add(
            Key::DeleteDisk(disk.clone()),
            Action::DeleteDisk { disk: disk.clone() },
            "the order to delete the cluster names this disk",
            Invariant::NamedDeletion,
            Disruption::Data,
            holder,
        );
    }
    if observed.endpoint {
        steps.add(
            Key::Cluster("endpoint/delete"),
            Action::DeleteEndpoint,
            "the cluster is to be deleted",
            Invariant::StepEnds,
            Disruption::Api,
            [],
        );
    }
    if observed.records {
        let all: Vec<_> = steps.iter().map(|(key, _)| key.clone()).collect();
        steps.add(
            Key::Cluster("cluster/forget"),
            Action::ForgetCluster,
            "nothing of the cluster is left; its addresses and keys are given up last",
            Invariant::OneIncarnation,
            Disruption::Nothing,
            all,
        );
    }
}
