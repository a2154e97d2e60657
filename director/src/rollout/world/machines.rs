//! Steps that ask the provider: machines, disks and the endpoint.

use std::time::Duration;

use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, DiskName, MachineName};
use windlass_common::limits::ENROLLMENT_TOKEN_LIFE;
use windlass_common::secret::Secret;
use windlass_common::settings::Settings;
use windlass_common::step::{Payload, Step};

use super::context::ClusterContext;
use super::{Done, EffectError, RecordChange, StepOrder, World, data_device};
use crate::backup::adopt;
use crate::kubernetes::render;
use crate::model::{Cluster, Machine, MachinePhase, Timestamp};
use crate::pki::EnrollmentToken;
use crate::planner::inputs;
use crate::provider::{
    EndpointRequest, EndpointView, MachineRequest, MachineSize, Power, ProviderError,
};
use crate::rollout::change;
use crate::store::{Commit, Expect, Kind, StoreError, Token};

/// How long a machine that is taken out of a cluster gets to shut down before its power is cut.
const STOP_GRACE: Duration = Duration::from_secs(30);
/// One MiB.
const MIB: u64 = 1 << 20;
/// Root disk of a machine: logs, scratch space of pods, and images beyond those of the stemcell, which
/// cost nothing. The least that is useful, since a provider that cannot limit it asks for it to be free.
const ROOT_DISK_BYTES: u64 = 4 << 30;

impl World {
    pub(super) async fn ensure_endpoint(
        &self,
        context: &ClusterContext,
    ) -> Result<Done, EffectError> {
        let view = self
            .keep_endpoint(&context.cluster, &context.machines)
            .await?;
        Ok(Done {
            changes: vec![format!(
                "endpoint answers at {}:{}",
                view.address, view.port
            )],
            records: Vec::new(),
        })
    }

    /// Has the provider serve the cluster's endpoint, again if it stopped.
    pub async fn keep_endpoint(
        &self,
        cluster: &Cluster,
        machines: &[Machine],
    ) -> Result<EndpointView, EffectError> {
        let request = EndpointRequest {
            cluster: cluster.spec.name.clone(),
            address: cluster.endpoint.address,
            port: cluster.endpoint.port,
            backends: inputs::backends(machines),
        };
        Ok(self.provider.ensure_endpoint(request).await?)
    }

    /// Takes a machine's API server out of the endpoint; the records say so already.
    pub(super) async fn leave_endpoint(
        &self,
        context: &ClusterContext,
        name: &MachineName,
    ) -> Result<Done, EffectError> {
        self.keep_endpoint(&context.cluster, &context.machines)
            .await?;
        Ok(Done {
            changes: vec![format!("no new connections go to {name}")],
            records: Vec::new(),
        })
    }

    /// Puts a machine's API server back into the endpoint.
    pub(super) async fn join_endpoint(
        &self,
        context: &ClusterContext,
        name: &MachineName,
    ) -> Result<Done, EffectError> {
        let mut machines = context.machines.clone();
        for machine in machines.iter_mut().filter(|m| m.name == *name) {
            machine.serving = true;
        }
        self.keep_endpoint(&context.cluster, &machines).await?;
        Ok(Done {
            changes: vec![format!("connections go to {name} again")],
            records: vec![RecordChange::Serving(name.clone())],
        })
    }

    pub(super) async fn create_disk(
        &self,
        context: &ClusterContext,
        disk: &DiskName,
        machine: &MachineName,
    ) -> Result<Done, EffectError> {
        let bytes = u64::from(context.machine(machine)?.size.disk_mib) * MIB;
        self.provider.create_disk(disk, bytes).await?;
        Ok(Done {
            changes: vec![format!("disk {disk} of {} MiB", bytes / MIB)],
            records: Vec::new(),
        })
    }

    /// Makes a disk larger at the provider, then the file system on it.
    pub(super) async fn grow_disk(
        &self,
        context: &ClusterContext,
        disk: &DiskName,
        name: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        let device = data_device(machine)?;
        let bytes = u64::from(machine.size.disk_mib) * MIB;
        self.provider.grow_disk(disk, bytes).await?;
        let step = Step::Exec(render::grow_step(device));
        let result = self.send(machine, order, "", step).await?;
        let Payload::Exit(code) = result.payload else {
            return Err(EffectError::new(
                ErrorClass::Bug,
                format!("{name} does not say how growing its file system has ended"),
            ));
        };
        if code != 0 {
            return Err(EffectError::new(
                ErrorClass::Operator,
                format!(
                    "disk {disk} has {} MiB now, but the file system on it did not grow (exit code {code}); look at \
                     `windlass node exec {name} -- resize2fs {device}`, then order the change again",
                    machine.size.disk_mib
                ),
            ));
        }
        let changes = vec![format!(
            "disk {disk} and its file system have {} MiB",
            machine.size.disk_mib
        )];
        Ok(Done {
            changes,
            records: vec![RecordChange::DiskGrown(name.clone())],
        })
    }

    pub(super) async fn create_machine(
        &self,
        context: &ClusterContext,
        name: &MachineName,
    ) -> Result<Done, EffectError> {
        let machine = context.machine(name)?;
        // Written down before the machine that may show it exists.
        let mut commit = Commit::default();
        let (settings, _) = self.settings_with_token(machine, &mut commit)?;
        self.records.commit(commit).await?;
        self.registry.admit(machine);
        let request = MachineRequest {
            name: name.clone(),
            incarnation: machine.incarnation,
            stemcell: context.stemcell(machine)?.path.clone(),
            size: MachineSize {
                cpu_millis: machine.size.cpu_millis,
                memory_bytes: u64::from(machine.size.memory_mib) * MIB,
                disk_bytes: ROOT_DISK_BYTES,
            },
            zone: machine.zone.clone(),
            address: machine.address,
            hostname: machine.node_name.clone(),
            settings: settings.expose().as_bytes().to_vec(),
            tags: adopt::tags(machine),
        };
        let view = self.provider.create_machine(request).await?;
        Ok(Done {
            changes: vec![format!(
                "machine {name} incarnation {} at {}",
                view.incarnation, view.address
            )],
            records: vec![RecordChange::MachineCreated(name.clone())],
        })
    }

    /// Settings of a machine with a new one-time token, which counts once the commit is made, and until
    /// when.
    pub(crate) fn settings_with_token(
        &self,
        machine: &Machine,
        commit: &mut Commit,
    ) -> Result<(Secret, Timestamp), EffectError> {
        let issued =
            EnrollmentToken::generate().map_err(|error| EffectError::of(error.class(), &error))?;
        let life_ms = u64::try_from(ENROLLMENT_TOKEN_LIFE.as_millis()).unwrap_or(u64::MAX);
        let expires_at =
            Timestamp::from_unix_ms(Timestamp::now().unix_ms().saturating_add(life_ms));
        let token = Token {
            cluster: machine.cluster.clone(),
            machine: machine.name.clone(),
            incarnation: machine.incarnation,
            expires_at,
            public_key: None,
            spent: false,
        };
        commit.value(
            Kind::Token,
            &issued.hash.to_string(),
            Expect::Absent,
            &token,
        );
        let settings = Settings {
            director_id: self.birth.director.clone(),
            directors: self.birth.directors.clone(),
            ca_digest: self.birth.ca.root_digest(),
            token: issued.token,
            cluster: machine.cluster.clone(),
            machine: machine.name.clone(),
            incarnation: machine.incarnation,
        };
        let text = serde_json::to_string(&settings)
            .map_err(|error| EffectError::of(ErrorClass::Bug, &error))?;
        Ok((Secret::new(text), expires_at))
    }

    /// A fresh token for a machine, in the place of those that nobody has used up; it counts once the commit is
    /// made. Returns the settings with it, and until when it counts.
    pub(crate) async fn fresh_token(
        &self,
        machine: &Machine,
        commit: &mut Commit,
    ) -> Result<(Secret, Timestamp), EffectError> {
        let tokens: Vec<(String, Token)> = self.records.values(Kind::Token, "").await?;
        for (digest, token) in &tokens {
            if token.machine == machine.name && !token.spent {
                commit.delete_value(Kind::Token, digest);
            }
        }
        self.settings_with_token(machine, commit)
    }

    /// Gives a machine that has never connected another token when the one of its birth lapses before `limit` has
    /// passed: it would never be let in.
    pub(super) async fn keep_token(
        &self,
        machine: &Machine,
        limit: Duration,
    ) -> Result<(), EffectError> {
        let connected = machine.phase >= MachinePhase::Enrolled;
        if connected || self.agents.is_heard(&machine.name, machine.incarnation) {
            return Ok(());
        }
        let until = Timestamp::now().unix_ms() + u64::try_from(limit.as_millis()).unwrap_or(0);
        let tokens: Vec<(String, Token)> = self.records.values(Kind::Token, "").await?;
        let counts = |(_, token): &(String, Token)| {
            let of = token.machine == machine.name && token.incarnation == machine.incarnation;
            of && (token.spent || token.expires_at.unix_ms() > until)
        };
        if tokens.iter().any(counts) {
            return Ok(());
        }
        let mut commit = Commit::default();
        let (settings, expires_at) = self.fresh_token(machine, &mut commit).await?;
        // It is in the machine before it counts: what is only written down would be taken for enough after a crash.
        let text = settings.expose().as_bytes().to_vec();
        let placed = self
            .provider
            .place_settings(&machine.name, machine.incarnation, text)
            .await?;
        if placed {
            self.records.commit(commit).await?;
            tracing::info!(machine = %machine.name, %expires_at, "machine has a fresh enrollment token");
            return Ok(());
        }
        Err(EffectError::new(
            ErrorClass::Operator,
            format!(
                "machine {name} has never connected, the token of its birth has lapsed, and its provider cannot \
                 give it another; bring it there with `windlass node enroll {name} --print`, or order it anew with \
                 `windlass node recreate {name}`",
                name = machine.name
            ),
        ))
    }

    pub(super) async fn attach_disk(
        &self,
        disk: &DiskName,
        machine: &MachineName,
    ) -> Result<Done, EffectError> {
        let attached = self.provider.attach_disk(machine, disk).await?;
        let device = attached.device.to_string_lossy().into_owned();
        Ok(Done {
            changes: vec![format!("disk {disk} is {device} of {machine}")],
            records: vec![RecordChange::DiskAttached(machine.clone(), device)],
        })
    }

    /// Refuses a machine at the link, also over connections that are open, and has the provider prove that it
    /// is off: only then are its pods given to others, its name and its disk to its successor. One that has come
    /// back meanwhile is spared.
    pub(super) async fn fence(
        &self,
        machine: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        let record: Option<Machine> = self.records.get(machine.as_str()).await?;
        if let Some(mut back) = self.came_back(machine).await? {
            if let Some(record) = record.filter(|record| record.fenced) {
                back.changes.extend(self.accept_keys(&record, order).await?);
            }
            return Ok(back);
        }
        if let Some(record) = record.as_ref().filter(|record| !record.fenced) {
            self.empty_late(record, order).await?;
            self.note(RecordChange::Fencing(machine.clone()), &record.cluster)
                .await?;
        }
        self.expel(machine);
        let proof = match self.provider.machine(machine).await? {
            None => "the provider does not have it",
            Some(view) if !view.complete => {
                // Of what is no whole machine nothing is kept, and nothing can be proven but that it is gone.
                self.provider.delete_machine(machine).await?;
                "the provider has removed what was left of it"
            }
            Some(_) => {
                let view = self.provider.stop_machine(machine, Duration::ZERO).await?;
                if view.power != Power::Stopped {
                    return Err(EffectError::new(
                        ErrorClass::Retry,
                        format!(
                            "the provider says that machine {machine} runs after its power was cut"
                        ),
                    ));
                }
                "the provider has cut its power"
            }
        };
        let mut changes = vec![format!("machine {machine} is off: {proof}")];
        if let Some(record) = &record {
            changes.extend(self.refuse_keys(record, order).await?);
        }
        Ok(Done {
            changes,
            records: Vec::new(),
        })
    }

    /// A worker that never was seen in service, and that nothing says is dead, may have come into service since its
    /// drain found it closed: then its pods leave it now.
    async fn empty_late(&self, record: &Machine, order: &StepOrder) -> Result<(), EffectError> {
        let seen = record.phase == MachinePhase::Ready || record.configured.is_none();
        if seen || record.condemned || record.role.is_control_plane() {
            return Ok(());
        }
        // What is fenced goes whatever the store lacks.
        if let Ok(context) = self.context(&order.cluster).await {
            self.drain(&context, &record.name, order).await?;
        }
        Ok(())
    }

    /// Writes down what a step is about to do to a machine.
    pub(super) async fn note(
        &self,
        change: RecordChange,
        cluster: &ClusterName,
    ) -> Result<(), EffectError> {
        loop {
            let mut commit = Commit::default();
            change::apply(
                &self.records,
                cluster,
                std::slice::from_ref(&change),
                &mut commit,
            )
            .await?;
            match self.records.commit(commit).await {
                Ok(_) => return Ok(()),
                // Another step of the task, or a verdict, was faster.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Lets no incarnation of a machine connect, and closes its connection.
    pub(super) fn expel(&self, machine: &MachineName) {
        if let Some(identity) = self.registry.expel(machine) {
            self.agents.revoke(&identity);
        }
    }

    pub(super) async fn delete_machine(
        &self,
        machine: &MachineName,
        order: &StepOrder,
    ) -> Result<Done, EffectError> {
        // Refused at the door before it is killed, so that it cannot come back in between.
        self.expel(machine);
        let record: Option<Machine> = self.records.get(machine.as_str()).await?;
        let leaves = |record: &Machine| record.wanted.is_some() && !record.fenced;
        if record.as_ref().is_some_and(leaves) {
            // Its cluster serves on: what still runs on it ends in peace.
            match self.provider.stop_machine(machine, STOP_GRACE).await {
                Ok(_) | Err(ProviderError::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let keep = record
            .as_ref()
            .and_then(|record| Some((record, record.keep.as_ref()?)));
        let mut changes = Vec::new();
        if let Some((record, keep)) = keep {
            changes.push(match self.keep(record, keep).await? {
                Some(kept) => format!(
                    "what there was of it is kept as {}: {}",
                    kept.name, kept.place
                ),
                None => "there was nothing of it to be kept, or its provider keeps none".to_owned(),
            });
        }
        // Of one that was set aside nothing is left under its name.
        self.provider.delete_machine(machine).await?;
        changes.push(format!("machine {machine} is gone"));
        if let Some(record) = &record {
            changes.extend(self.refuse_keys(record, order).await?);
        }
        Ok(Done {
            changes,
            records: vec![RecordChange::MachineDeleted(machine.clone())],
        })
    }

    pub(super) async fn delete_disk(&self, disk: &DiskName) -> Result<Done, EffectError> {
        self.provider.delete_disk(disk).await?;
        Ok(Done {
            changes: vec![format!("disk {disk} and its data are gone")],
            records: Vec::new(),
        })
    }

    pub(super) async fn delete_endpoint(&self, cluster: &ClusterName) -> Result<Done, EffectError> {
        self.provider.delete_endpoint(cluster).await?;
        Ok(Done {
            changes: vec!["the endpoint is gone".to_owned()],
            records: Vec::new(),
        })
    }
}

impl From<ProviderError> for EffectError {
    fn from(error: ProviderError) -> Self {
        Self::of(error.class(), &error)
    }
}
