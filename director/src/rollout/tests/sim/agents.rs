//! The world as its agents show it: what a step does to a machine, and the links to them.

use tokio::sync::mpsc;
use tokio::time::Instant;
use windlass_common::error::ErrorClass;
use windlass_common::id::{Incarnation, MachineName};
use windlass_common::pki::{MachineIdentity, PrivateKey};
use windlass_common::step::{
    Configure, EtcdAction, EtcdDataAction, EtcdMemberReport, EtcdReport, EtcdStatus, FileContent,
    FileSpec, HELD, Outcome, OutputStream, Payload, Progress, Step, StepRequest, StepResult,
    UnitState,
};

use super::{BROKEN, BROKEN_VERSION, Life, Vm};
use crate::gateway::DeliveryError;
use crate::kubernetes::client::ByteStream;
use crate::kubernetes::render::{AUTHORIZATION_PATH, ETCD_CRL_PATH};
use crate::model::Timestamp;
use crate::provider::Power;
use crate::rollout::world::{AgentFuture, Agents};
use crate::stemcell::tests::OWN_VERSION;

impl Vm {
    fn carry_out(&mut self, step: &Step) -> Payload {
        match step {
            Step::Keys(keys) => {
                let request = |der: &Vec<u8>| {
                    let key = rcgen::KeyPair::try_from(der.as_slice()).unwrap();
                    let params = rcgen::CertificateParams::default();
                    params.serialize_request(&key).unwrap().der().to_vec()
                };
                let requests = keys.keys.iter().map(|spec| {
                    let key = self.keys.entry(spec.name.clone()).or_insert_with(|| {
                        let key = PrivateKey::generate().unwrap();
                        key.into_signer().serialize_der()
                    });
                    (spec.name.clone(), request(key))
                });
                return Payload::Requests(requests.collect());
            }
            Step::Exec(_) => return Payload::Exit(0),
            Step::Disk(_) => self.mounted = true,
            Step::Configure(configure) if stages(configure) => {
                for file in &configure.files {
                    let FileContent::Artifact(digest) = &file.content else {
                        unreachable!("components are artifacts")
                    };
                    assert!(self.artifacts.contains(digest), "{}", file.path);
                    self.files.insert(file.path.clone());
                }
                for path in &configure.absent {
                    self.files.remove(path);
                }
            }
            Step::Configure(configure) => {
                assert!(!configure.files.is_empty());
                for (path, version) in &configure.links {
                    let of = path.strip_suffix("current").unwrap();
                    let own = version == OWN_VERSION;
                    let there = self
                        .files
                        .iter()
                        .any(|f| f.starts_with(&format!("{of}{version}/")));
                    assert!(own || there, "{path} leads nowhere");
                    self.links.insert(path.clone(), version.clone());
                }
                let text = |end: &str| {
                    let text = |file: &FileSpec| match &file.content {
                        FileContent::Text(text) if file.path.ends_with(end) => Some(text.clone()),
                        _ => None,
                    };
                    configure.files.iter().find_map(text)
                };
                let list = |file: &&FileSpec| file.path == ETCD_CRL_PATH;
                if let Some(file) = configure.files.iter().find(list) {
                    let FileContent::Secret(bytes) = &file.content else {
                        unreachable!("a list is no text")
                    };
                    self.refuses = Some(bytes.expose().to_vec());
                    self.denies = text(AUTHORIZATION_PATH);
                    return Payload::None;
                }
                // A renewal of certificates writes nothing else.
                if let Some(text) = text("/kubelet.yaml") {
                    self.kubelet = text;
                }
                if let Some(text) = text("/kube-apiserver.env") {
                    self.api_flags.0 = text;
                }
                self.configured = true;
            }
            Step::Service(service) => {
                assert!(self.configured, "components start with a configuration");
                let names = |unit: &str| service.units.iter().any(|goal| goal.unit == unit);
                if service
                    .units
                    .iter()
                    .all(|goal| goal.unit == "kubelet.service")
                {
                    self.kubelet_restarts += 1;
                    return Payload::None;
                }
                if service
                    .units
                    .iter()
                    .all(|unit| unit.state == UnitState::Inactive)
                    && !names("etcd.service")
                {
                    assert!(service.units.iter().all(|goal| !goal.enabled));
                    self.serves = false;
                    return Payload::None;
                }
                if service
                    .units
                    .iter()
                    .all(|unit| unit.state == UnitState::Inactive)
                {
                    self.started = false;
                    self.serves = false;
                    return Payload::None;
                }
                assert!(
                    service
                        .units
                        .iter()
                        .all(|unit| unit.state == UnitState::Active)
                );
                let etcd = service.units.iter().any(|unit| unit.unit == "etcd.service");
                assert!(!etcd || self.mounted, "etcd starts on its disk");
                assert!(
                    !etcd || self.refuses.is_some(),
                    "etcd would refuse everybody"
                );
                let served = names("kube-apiserver.service");
                assert!(
                    !served || self.denies.is_some(),
                    "an API server would not start"
                );
                self.started = true;
                self.serves = names("kube-apiserver.service");
                self.api_flags.1.clone_from(&self.api_flags.0);
            }
            Step::EtcdData(data) => {
                let EtcdDataAction::Restore(restore) = &data.action else {
                    unreachable!("one member is not set aside")
                };
                let id = &restore.restore;
                assert!(!self.started && !self.serves, "it reads and writes still");
                if self.restored.last() != Some(&id.id) {
                    self.restored.push(id.id.clone());
                }
                assert!(restore.members.contains(&restore.member));
                assert!(restore.token.ends_with(&id.id), "{}", restore.token);
            }
            Step::Gate(_) => assert!(self.started),
            Step::Etcd(_) => assert!(self.started, "a member that runs is asked"),
            Step::Fetch(fetch) => {
                self.artifacts.insert(fetch.digest);
            }
            Step::Hold(_) => assert!(self.started, "only what runs is held"),
            // Nodes here are empty at once.
            Step::Collect(_) | Step::AgentUpgrade(_) | Step::Evict(_) => {
                unreachable!("no plan has this step")
            }
        }
        Payload::None
    }
}

/// What a member says that leads.
fn leader() -> Progress {
    let status = EtcdStatus {
        version: "3.6.0".to_owned(),
        leader: true,
        db_bytes: 1,
        db_used_bytes: 1,
        raft_term: 1,
        raft_index: 1,
        raft_applied: 1,
        errors: Vec::new(),
    };
    let report = EtcdReport {
        cluster_id: "c".to_owned(),
        member_id: "m".to_owned(),
        members: vec![EtcdMemberReport {
            id: "m".to_owned(),
            name: String::new(),
            peer_urls: Vec::new(),
            learner: false,
            alarms: Vec::new(),
            status: Some(status),
        }],
    };
    Progress::Output {
        stream: OutputStream::Stdout,
        bytes: serde_json::to_vec(&report).unwrap(),
    }
}

/// Whether a step brings components, and no configuration.
fn stages(configure: &Configure) -> bool {
    let all = configure
        .files
        .iter()
        .map(|file| &file.path)
        .chain(&configure.absent);
    configure.links.is_empty()
        && configure.routes.is_none()
        && all
            .clone()
            .all(|path| path.starts_with("/opt/windlass/components/"))
}

impl Agents for Life {
    fn wait_connected<'a>(
        &'a self,
        machine: &'a MachineName,
        incarnation: Incarnation,
        deadline: Instant,
    ) -> AgentFuture<'a, ()> {
        Box::pin(async move {
            let connected = self
                .effect(|state| match state.machines.get_mut(machine) {
                    Some(vm) => {
                        vm.connected = true;
                        assert_eq!(vm.settings.incarnation, incarnation);
                        assert_eq!(vm.settings.token.expose().len(), 64);
                        Ok(())
                    }
                    None => Err(DeliveryError::NotConnected {
                        machine: machine.clone(),
                        incarnation,
                    }),
                })
                .await;
            if connected.is_err() {
                tokio::time::sleep_until(deadline).await;
            }
            connected
        })
    }

    fn run_step<'a>(
        &'a self,
        machine: &'a MachineName,
        incarnation: Incarnation,
        request: StepRequest,
        progress: mpsc::Sender<Progress>,
    ) -> AgentFuture<'a, StepResult> {
        self.assert_intent(&request);
        let said = match &request.step {
            Step::Hold(_) => Some(Progress::Stage(HELD.to_owned())),
            Step::Etcd(etcd) if etcd.action == EtcdAction::Report => Some(leader()),
            _ => None,
        };
        let effect = self.effect(move |state| {
            let failing = state
                .fail_once
                .iter()
                .find(|end| request.id.0.ends_with(*end))
                .copied();
            let refused = state
                .refuse_once
                .iter()
                .find(|end| request.id.0.ends_with(*end))
                .copied();
            let lost = state
                .lose_once
                .iter()
                .find(|end| request.id.0.ends_with(*end))
                .copied();
            let Some(vm) = state.machines.get_mut(machine) else {
                return Err(DeliveryError::NotConnected {
                    machine: machine.clone(),
                    incarnation,
                });
            };
            if let Some((step, result)) = vm.journal.get(&request.id.0) {
                let same = *step == request.step;
                assert!(same, "{} asks for something else now", request.id);
                return Ok(result.clone());
            }
            let mut changes = vec!["changed".to_owned()];
            if matches!(request.step, Step::Service(_)) && vm.started {
                changes.push("kube-proxy.service: restarted for another configuration".into());
            }
            let (outcome, payload) = match (refused, failing) {
                (Some(end), _) => {
                    state.refuse_once.remove(end);
                    let outcome = Outcome::Failed {
                        class: ErrorClass::Operator,
                        message: "not in this way".into(),
                    };
                    (outcome, Payload::None)
                }
                (None, Some(end)) => {
                    state.fail_once.remove(end);
                    let outcome = Outcome::Failed {
                        class: ErrorClass::Retry,
                        message: "not this time".into(),
                    };
                    (outcome, Payload::None)
                }
                _ if matches!(request.step, Step::Service(_)) && vm.kubelet.contains(BROKEN) => {
                    vm.started = false;
                    let outcome = Outcome::Failed {
                        class: ErrorClass::Operator,
                        message: "the kubelet ends at once".into(),
                    };
                    (outcome, Payload::None)
                }
                _ if matches!(request.step, Step::Gate(_))
                    && vm.links.values().any(|v| v == BROKEN_VERSION) =>
                {
                    let outcome = Outcome::Failed {
                        class: ErrorClass::Retry,
                        message: "containerd.service: activating (auto-restart)".into(),
                    };
                    (outcome, Payload::None)
                }
                _ => (Outcome::Changed, vm.carry_out(&request.step)),
            };
            let result = StepResult {
                id: request.id.clone(),
                outcome,
                payload,
                changes,
                elapsed_ms: 1,
            };
            vm.journal
                .insert(request.id.0, (request.step, result.clone()));
            if let Some(end) = lost {
                state.lose_once.remove(end);
                return Err(DeliveryError::Lost {
                    machine: machine.clone(),
                    source: "the connection ended".into(),
                });
            }
            Ok(result)
        });
        Box::pin(async move {
            for message in ["it begins", "it ends"] {
                let told = Progress::Stage(message.to_owned());
                // Nobody has to listen.
                let _ = progress.send(told).await;
            }
            if let Some(said) = said {
                let _ = progress.send(said).await;
            }
            effect.await
        })
    }

    fn open_tunnel<'a>(
        &'a self,
        _machine: &'a MachineName,
        _incarnation: Incarnation,
    ) -> AgentFuture<'a, Box<dyn ByteStream>> {
        unreachable!("the API is simulated above the tunnel")
    }

    fn is_heard(&self, machine: &MachineName, incarnation: Incarnation) -> bool {
        let state = self.sim.state.lock().unwrap();
        let found = state.machines.get(machine);
        found.is_some_and(|vm| {
            let runs = vm.view.power == Power::Running;
            vm.settings.incarnation == incarnation && vm.connected && runs
        })
    }

    fn booted(&self, machine: &MachineName, incarnation: Incarnation) -> Option<Timestamp> {
        let state = self.sim.state.lock().unwrap();
        let booted = state.booted.get(machine).copied();
        drop(state);
        self.is_heard(machine, incarnation)
            .then(|| booted.unwrap_or(Timestamp::from_unix_ms(0)))
    }

    fn revoke(&self, _identity: &MachineIdentity) {}
}
