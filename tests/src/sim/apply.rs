//! What a step does to a simulated machine, in one moment.

use std::sync::Arc;

use windlass_agent::steps::Failure;
use windlass_common::error::ErrorClass;
use windlass_common::id::{Incarnation, MachineName};
use windlass_common::step::{
    EtcdAction, Evict, EvictAnswer, EvictHow, EvictOutcome, FileContent, FileSpec, Payload,
    Service, Step, UnitState,
};

use super::cluster::API;
use super::etcd::ETCD;
use super::eviction::Refusal;
use super::fixtures::Fixtures;
use super::state::{State, Unit};

/// The flags of the API server, if this is the file with them.
fn api_flags(file: &FileSpec) -> Option<&str> {
    match &file.content {
        FileContent::Text(text) if file.path.ends_with("/kube-apiserver.env") => Some(text),
        _ => None,
    }
}

/// The minor that flags say is emulated.
fn emulated(flags: &str) -> Option<u32> {
    let (_, version) = flags.split_once("--emulated-version=1.")?;
    let minor = version.split(|c: char| !c.is_ascii_digit()).next()?;
    minor.parse().ok()
}

/// What came of a step, with what it changed.
pub type Done = Result<(Payload, Vec<String>), Failure>;

impl State {
    /// Carries out a step; `None` when it waits for something.
    pub fn apply(
        &mut self,
        fixtures: &Arc<Fixtures>,
        name: &MachineName,
        of: Incarnation,
        step: &Step,
    ) -> Option<Done> {
        let changed = |what: &str| Some(Ok((Payload::None, vec![what.to_owned()])));
        let nothing = Some(Ok((Payload::None, Vec::new())));
        if self.vms.get(name).is_none_or(|vm| vm.incarnation != of) {
            return Some(Err(Failure::new(ErrorClass::Bug, "the machine is gone")));
        }
        match step {
            Step::Keys(keys) => {
                let requests = keys.keys.iter().zip(&fixtures.requests);
                let requests = requests.map(|(spec, request)| (spec.name.clone(), request.clone()));
                Some(Ok((Payload::Requests(requests.collect()), Vec::new())))
            }
            Step::Disk(_) => {
                let has = |disk: &super::state::Disk| disk.attached_to.as_ref() == Some(name);
                if !self.disks.values().any(has) {
                    self.violated(
                        6,
                        format!("{name} is to mount a disk that it does not have"),
                    );
                    let message = "there is no such device";
                    return Some(Err(Failure::new(ErrorClass::Operator, message)));
                }
                let vm = self.vms.get_mut(name)?;
                if vm.mounted {
                    return nothing;
                }
                vm.mounted = true;
                changed("mounted")
            }
            Step::Configure(configure) => {
                if configure.files.is_empty() && configure.routes.is_none() {
                    self.violated(6, format!("{name} is configured with nothing"));
                }
                let flags = configure.files.iter().find_map(api_flags);
                let vm = self.vms.get_mut(name)?;
                vm.configured = true;
                if let Some(flags) = flags {
                    vm.emulates.0 = emulated(flags);
                }
                changed("configured")
            }
            Step::Service(service) => Some(self.service(name, service)),
            Step::Gate(_) => {
                if self.api_server_up(name) {
                    nothing
                } else {
                    None
                }
            }
            // Clusters here keep the members that they began with, and their members have no leader to speak of.
            Step::Etcd(etcd) => match etcd.action {
                EtcdAction::MoveLeader | EtcdAction::Report | EtcdAction::Snapshot { .. }
                    if self.api_server_up(name) =>
                {
                    nothing
                }
                EtcdAction::MoveLeader | EtcdAction::Report | EtcdAction::Snapshot { .. } => {
                    let message = "its member does not answer";
                    Some(Err(Failure::new(ErrorClass::Retry, message)))
                }
                ref other => {
                    self.violated(1, format!("{name} is to change its etcd: {other:?}"));
                    nothing
                }
            },
            Step::EtcdData(_) => {
                self.violated(
                    1,
                    format!("{name} is to have other data, and nobody ordered that"),
                );
                nothing
            }
            Step::Evict(evict) => Some(Ok((Payload::None, self.evict_as_node(name, evict)))),
            Step::Exec(_) => Some(Ok((Payload::Exit(0), vec!["ran".to_owned()]))),
            Step::Fetch(_) | Step::Collect(_) | Step::AgentUpgrade(_) | Step::Hold(_) => nothing,
        }
    }

    /// What an agent does that tells pods to leave: none but those of its own node, and only while an API server
    /// answers it. Returns what it changed.
    fn evict_as_node(&mut self, name: &MachineName, evict: &Evict) -> Vec<String> {
        let node = self.vms[name].node.clone();
        if evict.node != node.as_str() {
            self.violated(2, format!("{name} is to act as node {}", evict.node));
        }
        let (mut said, mut changes) = (Vec::new(), Vec::new());
        for pod in &evict.pods {
            let found = self.cluster.pods.get(&pod.name);
            let here = found.is_some_and(|found| found.node.as_ref() == Some(&node));
            let outcome = if !self.api_answers() {
                EvictOutcome::Failed {
                    status: None,
                    message: "no API server answers".to_owned(),
                }
            } else if !here {
                EvictOutcome::Elsewhere
            } else {
                match pod.how {
                    EvictHow::Evict => match self.evict(&pod.name, &pod.uid) {
                        Ok(()) => EvictOutcome::Accepted,
                        Err(Refusal::Gone | Refusal::Namesake) => EvictOutcome::Gone,
                        Err(why @ Refusal::Kept) => EvictOutcome::Kept {
                            message: why.message().to_owned(),
                            retry_after_seconds: None,
                        },
                        Err(why @ Refusal::TwoBudgets) => EvictOutcome::Failed {
                            status: Some(why.status()),
                            message: why.message().to_owned(),
                        },
                    },
                    EvictHow::Delete if self.delete_pod(&pod.name) => EvictOutcome::Accepted,
                    EvictHow::Delete => EvictOutcome::Gone,
                }
            };
            if outcome == EvictOutcome::Accepted {
                changes.push(format!("told {} to leave", pod.name));
            }
            let uid = pod.uid.clone();
            let answer = EvictAnswer { uid, outcome };
            said.extend(serde_json::to_vec(&answer).unwrap_or_default());
            said.push(b'\n');
        }
        self.said.insert(name.clone(), said);
        changes
    }

    fn service(&mut self, name: &MachineName, service: &Service) -> Done {
        let mut changes = Vec::new();
        for goal in &service.units {
            let now = self.now;
            let unit = &goal.unit;
            let runs = self.vms[name].units.get(unit).cloned();
            match goal.state {
                UnitState::Inactive => {
                    if runs.is_none() {
                        continue;
                    }
                    if unit == ETCD || unit == API {
                        self.taking(name, "stopping");
                    }
                    changes.push(format!("stopped {unit}"));
                    if let Some(vm) = self.vms.get_mut(name) {
                        vm.units.remove(unit);
                    }
                }
                UnitState::Active => {
                    let wanted = goal.configuration;
                    // As an agent judges: after a boot by what it remembers, and a goal without says nothing.
                    let current = |unit: &Unit| wanted.is_none() || unit.configuration == wanted;
                    if runs.as_ref().is_some_and(current) {
                        continue;
                    }
                    if runs.is_some() && unit == ETCD {
                        self.taking(name, "restarting");
                    }
                    if unit == ETCD {
                        self.member_starts(name)?;
                    }
                    if let Some(vm) = self.vms.get_mut(name) {
                        let unit = Unit {
                            since: now,
                            configuration: wanted,
                        };
                        vm.units.insert(goal.unit.clone(), unit);
                        if goal.unit == API {
                            vm.emulates.1 = vm.emulates.0;
                        }
                        let before = vm.enabled.get(&goal.unit).copied().flatten();
                        vm.enabled.insert(goal.unit.clone(), wanted.or(before));
                        changes.push(format!("started {}", goal.unit));
                    }
                }
            }
        }
        if !changes.is_empty() {
            self.tell(format!("{name}: {}", changes.join(", ")));
        }
        if !self.vms[name].configured {
            self.violated(6, format!("{name} starts without a configuration"));
        }
        Ok((Payload::None, changes))
    }

    /// A member of etcd starts on its own data, or as a new member of a cluster that is new.
    fn member_starts(&mut self, name: &MachineName) -> Result<(), Failure> {
        let vm = &self.vms[name];
        let (mounted, of) = (vm.mounted, vm.incarnation);
        let held = |disk: &&mut super::state::Disk| disk.attached_to.as_ref() == Some(name);
        let Some(disk) = self.disks.values_mut().find(held).filter(|_| mounted) else {
            self.violated(1, format!("etcd of {name} starts without its disk"));
            return Err(Failure::new(ErrorClass::Operator, "no data directory"));
        };
        match disk.member.clone() {
            Some(member) if member == *name => {}
            Some(member) => {
                self.violated(2, format!("etcd of {name} starts on the data of {member}"))
            }
            None => {
                disk.member = Some(name.clone());
                if of != Incarnation::FIRST {
                    let problem = format!("member {name} starts again on an empty disk");
                    self.violated(1, problem);
                }
            }
        }
        Ok(())
    }
}
