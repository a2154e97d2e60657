//! The provider: the contract of the trait, kept in memory.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use ipnet::Ipv4Net;
use tokio::time::Duration;
use windlass_common::id::{ClusterName, DiskName, Incarnation, MachineName, ZoneName};
use windlass_common::settings::Settings;
use windlass_director::provider::{
    AttachedDisk, DiskView, EndpointRequest, EndpointView, KeptView, MachineRequest, MachineView,
    NetworkView, Power, PowerView, PreflightFault, Provider, ProviderError, ProviderFuture,
    SetAside,
};

use super::agent::Agent;
use super::coverage::{Fault, Point};
use super::fixtures::minor;
use super::life::{Life, action};
use super::mutation::Mutation;
use super::state::{Disk, State, Vm};

type Answer<T> = Result<T, ProviderError>;

impl Life {
    /// A call that changes something: it takes a while, may fail, and may be done although it failed.
    async fn call<'a, T: Send + 'a>(
        &'a self,
        act: impl FnOnce(&mut State) -> Answer<T> + Send + 'a,
    ) -> Answer<T> {
        self.point(Point::BeforeEffect).await;
        let faults = [Fault::ProviderFails, Fault::ProviderSlow, Fault::ClockJumps];
        match self.strike(Point::BeforeEffect, &faults) {
            Some(Fault::ProviderFails) => return Err(failed()),
            Some(Fault::ProviderSlow) => self.site.pause(10_000..=400_000).await,
            Some(_) => {
                let ms = self.site.lock().dice.within(60_000..=1_200_000);
                tokio::time::advance(Duration::from_millis(ms)).await;
            }
            None => self.site.pause(20..=3_000).await,
        }
        self.alive().await;
        let result = self.site.act(act);
        self.point(Point::AfterEffect).await;
        match self.strike(Point::AfterEffect, &[Fault::ProviderAnswerLost]) {
            Some(_) => Err(late()),
            None => result,
        }
    }
}

fn failed() -> ProviderError {
    ProviderError::Host {
        what: "the host is busy".into(),
        source: std::io::Error::other("try again"),
    }
}

fn late() -> ProviderError {
    ProviderError::Deadline {
        what: "the host".into(),
        limit_ms: 60_000,
    }
}

impl State {
    /// What exists, or was asked to be destroyed, is what the records allow.
    fn destroys(&mut self, what: &str) {
        let key = action();
        let mut running = self.running.keys();
        let intended = running.any(|name| self.actions.get(name) == Some(&key));
        if !intended {
            self.violated(10, format!("{what} without a record that says so"));
        }
    }

    fn make(&mut self, request: &MachineRequest, complete: bool) -> Answer<MachineView> {
        check_address("machine address", request.address)?;
        if let Some(zone) = &request.zone {
            return Err(invalid("machine zone", zone));
        }
        if let Some(vm) = self.vms.get(&request.name)
            && vm.view.complete
        {
            let found = vm.incarnation;
            let made_as = (request.stemcell.clone(), request.size);
            let same = vm.view.address == request.address && vm.made_as == Some(made_as);
            if found == request.incarnation && same {
                return Ok(vm.view.clone());
            }
            if found != request.incarnation {
                self.violated(
                    2,
                    format!("{} is made while incarnation {found} exists", request.name),
                );
            }
            return Err(conflict(&request.name, found, request.incarnation));
        }
        // What was half made is made anew.
        self.take_out(&request.name);
        let taken = self.holds(request.address, Some(&request.name), None);
        if let Some(found) = taken {
            return Err(conflict(&request.name, found, request.address));
        }
        let view = MachineView {
            name: request.name.clone(),
            incarnation: request.incarnation,
            power: Power::Running,
            address: request.address,
            tags: request.tags.clone(),
            created_at: 0,
            boots: 1,
            complete,
        };
        let stemcell = request.stemcell.file_name().unwrap_or_default();
        let pool = request.name.as_str().rsplit('-').nth(1).unwrap_or("");
        let pool = windlass_common::id::PoolName::new(pool)
            .ok()
            .filter(|pool| pool.as_str() != "cp");
        let minor = minor(&stemcell.to_string_lossy());
        let mut vm = Vm::new(request.hostname.clone(), pool, minor, view.clone());
        vm.made_as = Some((request.stemcell.clone(), request.size));
        self.tell(format!(
            "machine {} {} is made",
            request.name, request.incarnation
        ));
        self.vms.insert(request.name.clone(), vm);
        self.most_machines = self.most_machines.max(self.vms.len());
        Ok(view)
    }

    /// Who has an address, besides this machine and the endpoint of this cluster.
    fn holds(
        &self,
        address: Ipv4Addr,
        machine: Option<&MachineName>,
        cluster: Option<&ClusterName>,
    ) -> Option<String> {
        let mut vms = self.vms.iter();
        let holder = vms.find(|(name, vm)| vm.view.address == address && Some(*name) != machine);
        let mut endpoints = self.endpoints.iter();
        let endpoint = endpoints.find(|(of, at)| at.address == address && Some(*of) != cluster);
        let holder = holder.map(|(name, _)| format!("held by machine {name}"));
        holder.or(endpoint.map(|(of, _)| format!("held by the endpoint of {of}")))
    }

    /// A machine is not there any more, and its disks are nobody's.
    fn take_out(&mut self, name: &MachineName) {
        if let Some(mut vm) = self.vms.remove(name) {
            vm.link.end();
        }
        for disk in self.disks.values_mut() {
            disk.attached_to.take_if(|holder| holder == name);
        }
    }

    /// A machine that was made to its end.
    fn whole(&mut self, name: &MachineName) -> Answer<&mut Vm> {
        let vm = self.vms.get_mut(name).filter(|vm| vm.view.complete);
        vm.ok_or_else(|| not_found("machine", name.as_str()))
    }
}

fn network() -> NetworkView {
    NetworkView {
        cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 16),
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        reserved: vec![
            Ipv4Addr::new(10, 0, 0, 0),
            Ipv4Addr::new(10, 0, 0, 1),
            Ipv4Addr::new(10, 0, 255, 255),
        ],
    }
}

fn check_address(what: &'static str, address: Ipv4Addr) -> Answer<()> {
    let network = network();
    match network.cidr.contains(&address) && !network.reserved.contains(&address) {
        true => Ok(()),
        false => Err(invalid(what, address)),
    }
}

fn check_size(bytes: u64) -> Answer<()> {
    match bytes > 0 && bytes.is_multiple_of(4096) {
        true => Ok(()),
        false => Err(invalid("disk size", bytes)),
    }
}

fn invalid(what: &'static str, value: impl ToString) -> ProviderError {
    ProviderError::Invalid {
        what,
        value: value.to_string(),
        allowed: "another".to_owned(),
    }
}

fn conflict(machine: &MachineName, found: impl ToString, wanted: impl ToString) -> ProviderError {
    ProviderError::Conflict {
        kind: "machine",
        name: machine.to_string(),
        found: found.to_string(),
        wanted: wanted.to_string(),
    }
}

impl Provider for Life {
    fn preflight(&self) -> BoxFuture<'_, Vec<PreflightFault>> {
        Box::pin(async { Vec::new() })
    }

    fn network(&self) -> NetworkView {
        network()
    }

    fn zones(&self) -> Vec<ZoneName> {
        Vec::new()
    }

    fn create_machine(&self, request: MachineRequest) -> ProviderFuture<'_, MachineView> {
        let leak = self.site.lock().mutation == Some(Mutation::TokenLogged);
        if let Ok(settings) = serde_json::from_slice::<Settings>(&request.settings) {
            let token = settings.token.expose();
            self.site.lock().canaries.token(token);
            if leak {
                tracing::info!(token, "the machine is told");
            }
        }
        Box::pin(async move {
            if self
                .strike(Point::BeforeEffect, &[Fault::HalfMade])
                .is_some()
            {
                let half = request.clone();
                self.call(move |state| state.make(&half, false)).await?;
                return Err(late());
            }
            let (name, of) = (request.name.clone(), request.incarnation);
            self.call(move |state| {
                let view = state.make(&request, true)?;
                // It boots whatever becomes of who has asked for it.
                self.boots(&name, of);
                Ok(view)
            })
            .await
        })
    }

    fn delete_machine<'a>(&'a self, name: &'a MachineName) -> ProviderFuture<'a, ()> {
        Box::pin(self.call(move |state| {
            state.destroys("a machine is deleted");
            if state.vms.contains_key(name) {
                state.cutting(name, "deleting");
                state.tell(format!("machine {name} is deleted"));
            }
            state.take_out(name);
            Ok(())
        }))
    }

    fn machine<'a>(&'a self, name: &'a MachineName) -> ProviderFuture<'a, Option<MachineView>> {
        let view = self.site.lock().vms.get(name).map(|vm| vm.view.clone());
        Box::pin(async { Ok(view) })
    }

    fn power<'a>(
        &'a self,
        name: &'a MachineName,
        incarnation: Incarnation,
    ) -> ProviderFuture<'a, PowerView> {
        let state = self.site.lock();
        let found = state.vms.get(name).map(|vm| &vm.view);
        let power = found
            .filter(|view| view.incarnation == incarnation)
            .map(|view| view.power);
        let detail = String::new();
        Box::pin(async move { Ok(PowerView { power, detail }) })
    }

    fn machines(&self) -> ProviderFuture<'_, Vec<MachineView>> {
        let state = self.site.lock();
        let views = state.vms.values().map(|vm| vm.view.clone()).collect();
        Box::pin(async { Ok(views) })
    }

    fn stop_machine<'a>(
        &'a self,
        name: &'a MachineName,
        _grace: Duration,
    ) -> ProviderFuture<'a, MachineView> {
        Box::pin(self.call(move |state| {
            state.destroys("a machine is stopped");
            // What comes back while its power is being cut nobody can see.
            if action() != "fence" {
                state.cutting(name, "stopping");
            }
            let vm = state.whole(name)?;
            vm.view.power = Power::Stopped;
            vm.off = true;
            vm.units.clear();
            vm.agent = Agent::default();
            vm.link.end();
            Ok(vm.view.clone())
        }))
    }

    fn start_machine<'a>(&'a self, name: &'a MachineName) -> ProviderFuture<'a, MachineView> {
        Box::pin(async move {
            let view = self
                .call(move |state| {
                    let vm = state.whole(name)?;
                    vm.off = false;
                    Ok(vm.view.clone())
                })
                .await?;
            self.site
                .boot(&self.fixtures, name, view.incarnation, false);
            let view = self.site.lock().vms.get(name).map(|vm| vm.view.clone());
            view.ok_or_else(|| not_found("machine", name.as_str()))
        })
    }

    fn reboot_machine<'a>(
        &'a self,
        name: &'a MachineName,
        _grace: Duration,
    ) -> ProviderFuture<'a, MachineView> {
        Box::pin(async move {
            let view = self
                .call(move |state| {
                    state.taking(name, "rebooting");
                    let vm = state.whole(name)?;
                    vm.view.power = Power::Stopped;
                    vm.off = false;
                    vm.agent = Agent::default();
                    vm.link.end();
                    Ok(vm.view.clone())
                })
                .await?;
            self.site
                .boot(&self.fixtures, name, view.incarnation, false);
            let view = self.site.lock().vms.get(name).map(|vm| vm.view.clone());
            view.ok_or_else(|| not_found("machine", name.as_str()))
        })
    }

    fn set_aside(&self, request: SetAside) -> ProviderFuture<'_, Option<KeptView>> {
        Box::pin(self.call(move |state| {
            state.destroys("a machine is set aside");
            let name = &request.machine;
            if let Some(kept) = state.kept.get(&request.kept) {
                if (&kept.machine, kept.incarnation) == (name, request.incarnation) {
                    return Ok(Some(kept.clone()));
                }
                return Err(conflict(name, &kept.machine, &request.kept));
            }
            let vm = state.whole(name)?;
            let (incarnation, power) = (vm.incarnation, vm.view.power);
            if incarnation != request.incarnation || power == Power::Running {
                let problem = format!("{name} {incarnation} is set aside, and is {power:?}");
                state.violated(2, problem.clone());
                return Err(conflict(name, problem, request.incarnation));
            }
            state.cutting(name, "setting aside");
            state.tell(format!("machine {name} is kept as {}", request.kept));
            state.take_out(name);
            let view = KeptView {
                name: request.kept.clone(),
                machine: name.clone(),
                incarnation,
                created_at: 0,
                kept_at: 0,
                notes: request.notes.clone(),
                place: String::new(),
            };
            state.kept.insert(request.kept.clone(), view.clone());
            Ok(Some(view))
        }))
    }

    fn kept_machines(&self) -> ProviderFuture<'_, Vec<KeptView>> {
        let views = self.site.lock().kept.values().cloned().collect();
        Box::pin(async { Ok(views) })
    }

    fn delete_kept<'a>(&'a self, kept: &'a MachineName) -> ProviderFuture<'a, ()> {
        Box::pin(self.call(move |state| {
            state.kept.remove(kept);
            Ok(())
        }))
    }

    fn create_disk<'a>(&'a self, name: &'a DiskName, bytes: u64) -> ProviderFuture<'a, DiskView> {
        Box::pin(self.call(move |state| {
            check_size(bytes)?;
            let disk = state.disks.entry(name.clone()).or_insert(Disk {
                bytes,
                attached_to: None,
                member: None,
            });
            if disk.bytes != bytes {
                return Err(ProviderError::Conflict {
                    kind: "disk",
                    name: name.to_string(),
                    found: format!("{} bytes", disk.bytes),
                    wanted: format!("{bytes} bytes"),
                });
            }
            Ok(disk_view(name, disk))
        }))
    }

    fn grow_disk<'a>(&'a self, name: &'a DiskName, bytes: u64) -> ProviderFuture<'a, DiskView> {
        Box::pin(self.call(move |state| {
            check_size(bytes)?;
            let disk = state.disks.get_mut(name);
            let disk = disk.ok_or_else(|| not_found("disk", name.as_str()))?;
            if bytes < disk.bytes {
                return Err(invalid("disk size", bytes));
            }
            disk.bytes = bytes;
            Ok(disk_view(name, disk))
        }))
    }

    fn delete_disk<'a>(&'a self, name: &'a DiskName) -> ProviderFuture<'a, ()> {
        Box::pin(self.call(move |state| {
            let Some(disk) = state.disks.get(name) else {
                return Ok(());
            };
            if let Some(holder) = disk.attached_to.clone() {
                return Err(ProviderError::DiskHeld {
                    disk: name.clone(),
                    holder,
                });
            }
            state.destroys("a disk is deleted");
            state.deleting_disk(name);
            state.disks.remove(name);
            Ok(())
        }))
    }

    fn attach_disk<'a>(
        &'a self,
        machine: &'a MachineName,
        disk: &'a DiskName,
    ) -> ProviderFuture<'a, AttachedDisk> {
        Box::pin(self.call(move |state| {
            if let Err(absent) = state.whole(machine).map(drop) {
                state.violated(
                    6,
                    format!("{disk} is attached to {machine}, which is not there"),
                );
                return Err(absent);
            }
            let Some(found) = state.disks.get_mut(disk) else {
                return Err(not_found("disk", disk.as_str()));
            };
            if let Some(holder) = found.attached_to.clone().filter(|holder| holder != machine) {
                state.violated(
                    2,
                    format!("{disk} of {holder} is to be attached to {machine}"),
                );
                return Err(ProviderError::DiskHeld {
                    disk: disk.clone(),
                    holder,
                });
            }
            found.attached_to = Some(machine.clone());
            Ok(AttachedDisk {
                device: Path::new("/dev/windlass").join(disk.as_str()),
            })
        }))
    }

    fn detach_disk<'a>(
        &'a self,
        machine: &'a MachineName,
        disk: &'a DiskName,
    ) -> ProviderFuture<'a, ()> {
        Box::pin(self.call(move |state| {
            // What is off has nothing mounted.
            let runs = |vm: &Vm| vm.mounted && vm.view.power == Power::Running;
            let mounted = state.vms.get(machine).is_some_and(runs);
            let Some(found) = state.disks.get_mut(disk) else {
                return Ok(());
            };
            if found.attached_to.as_ref() != Some(machine) {
                return Ok(());
            }
            if mounted {
                return Err(ProviderError::DiskBusy {
                    disk: disk.clone(),
                    machine: machine.clone(),
                });
            }
            found.attached_to = None;
            if let Some(vm) = state.vms.get_mut(machine) {
                vm.mounted = false;
            }
            Ok(())
        }))
    }

    fn disks(&self) -> ProviderFuture<'_, Vec<DiskView>> {
        let state = self.site.lock();
        let views = state.disks.iter().map(|(name, disk)| disk_view(name, disk));
        let views = views.collect();
        Box::pin(async { Ok(views) })
    }

    fn ensure_endpoint(&self, request: EndpointRequest) -> ProviderFuture<'_, EndpointView> {
        Box::pin(self.call(move |state| {
            check_address("endpoint address", request.address)?;
            let taken = state.holds(request.address, None, Some(&request.cluster));
            if let Some(found) = taken {
                return Err(ProviderError::Conflict {
                    kind: "address",
                    name: request.address.to_string(),
                    found,
                    wanted: format!("the endpoint of {}", request.cluster),
                });
            }
            let view = EndpointView {
                cluster: request.cluster.clone(),
                address: request.address,
                port: request.port,
                backends: request.backends,
                running: true,
            };
            state.endpoints.insert(request.cluster, view.clone());
            Ok(view)
        }))
    }

    fn delete_endpoint<'a>(&'a self, cluster: &'a ClusterName) -> ProviderFuture<'a, ()> {
        Box::pin(self.call(move |state| {
            state.destroys("an endpoint is deleted");
            state.endpoints.remove(cluster);
            Ok(())
        }))
    }

    fn endpoints(&self) -> ProviderFuture<'_, Vec<EndpointView>> {
        let views = self.site.lock().endpoints.values().cloned().collect();
        Box::pin(async { Ok(views) })
    }

    fn reset(&self) -> ProviderFuture<'_, ()> {
        Box::pin(self.call(|state| {
            state.vms.clear();
            state.kept.clear();
            state.disks.clear();
            state.endpoints.clear();
            Ok(())
        }))
    }
}

impl Life {
    fn boots(&self, name: &MachineName, of: Incarnation) {
        let (site, fixtures, name) = (self.site.clone(), Arc::clone(&self.fixtures), name.clone());
        tokio::spawn(async move {
            let whole = |vm: &Vm| vm.view.complete && !vm.agent.is_up();
            let boots = site.lock().vms.get(&name).is_some_and(whole);
            if boots {
                site.boot(&fixtures, &name, of, true);
            }
        });
    }
}

fn disk_view(name: &DiskName, disk: &Disk) -> DiskView {
    DiskView {
        name: name.clone(),
        bytes: disk.bytes,
        attached_to: disk.attached_to.clone(),
    }
}

fn not_found(kind: &'static str, name: &str) -> ProviderError {
    ProviderError::NotFound {
        kind,
        name: name.to_owned(),
    }
}
