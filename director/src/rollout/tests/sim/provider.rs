//! The world as its provider shows it: machines, disks and endpoints. It refuses what real ones refuse; a rollout that
//! is refused anything fails its test there ([`State::refuses`]).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use windlass_common::id::{ClusterName, DiskName, Incarnation, MachineName, ZoneName};

use super::{Life, State, Vm};
use crate::provider::{
    AttachedDisk, DiskView, EndpointRequest, EndpointView, KeptView, MachineRequest, MachineView,
    NetworkView, Power, PowerView, PreflightFault, Provider, ProviderError, ProviderFuture,
    SetAside,
};

type Answer<T> = Result<T, ProviderError>;

fn network() -> NetworkView {
    NetworkView {
        cidr: "10.0.0.0/20".parse().unwrap(),
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        reserved: vec![
            Ipv4Addr::new(10, 0, 0, 0),
            Ipv4Addr::new(10, 0, 0, 1),
            Ipv4Addr::new(10, 0, 15, 255),
        ],
    }
}

impl State {
    /// Refuses; only a contract asks for what is refused.
    fn refuse<T>(&self, error: ProviderError) -> Answer<T> {
        assert!(self.refuses, "{error}");
        Err(error)
    }

    fn invalid<T>(&self, what: &'static str, value: impl ToString) -> Answer<T> {
        self.refuse(ProviderError::Invalid {
            what,
            value: value.to_string(),
            allowed: "another".to_owned(),
        })
    }

    fn conflict<T>(
        &self,
        kind: &'static str,
        name: impl ToString,
        found: impl ToString,
    ) -> Answer<T> {
        self.refuse(ProviderError::Conflict {
            kind,
            name: name.to_string(),
            found: found.to_string(),
            wanted: "another".to_owned(),
        })
    }

    fn not_found<T>(&self, kind: &'static str, name: impl ToString) -> Answer<T> {
        self.refuse(ProviderError::NotFound {
            kind,
            name: name.to_string(),
        })
    }

    /// A machine that was made to its end.
    fn whole(&mut self, name: &MachineName) -> Answer<&mut Vm> {
        if self.machines.get(name).is_none_or(|vm| !vm.view.complete) {
            return self.not_found("machine", name);
        }
        Ok(self.machines.get_mut(name).unwrap())
    }

    fn check_address(&self, what: &'static str, address: Ipv4Addr) -> Answer<()> {
        let network = network();
        if network.cidr.contains(&address) && !network.reserved.contains(&address) {
            return Ok(());
        }
        self.invalid(what, address)
    }

    fn check_size(&self, bytes: u64) -> Answer<()> {
        if bytes > 0 && bytes.is_multiple_of(4096) {
            return Ok(());
        }
        self.invalid("disk size", bytes)
    }

    fn take_out(&mut self, machine: &MachineName) {
        self.machines.remove(machine);
        for disk in self.disks.values_mut() {
            disk.attached_to.take_if(|holder| holder == machine);
        }
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
        self.sim.state.lock().unwrap().zones.clone()
    }

    fn create_machine(&self, request: MachineRequest) -> ProviderFuture<'_, MachineView> {
        Box::pin(self.effect(move |state| {
            state.check_address("machine address", request.address)?;
            if let Some(zone) = request.zone.as_ref().filter(|of| !state.zones.contains(of)) {
                return state.invalid("machine zone", zone);
            }
            let made_as = (request.stemcell.clone(), request.size);
            let found = state.machines.get(&request.name);
            if let Some(vm) = found.filter(|vm| vm.view.complete) {
                let of = (vm.view.incarnation, vm.view.address);
                if of != (request.incarnation, request.address) || vm.made_as != made_as {
                    return state.conflict("machine", &request.name, of.0);
                }
                return Ok(vm.view.clone());
            }
            // What was half made is made anew.
            state.take_out(&request.name);
            let mut vms = state.machines.values();
            let mut endpoints = state.endpoints.values();
            let address = request.address;
            if vms.any(|vm| vm.view.address == address) || endpoints.any(|at| at.address == address)
            {
                return state.conflict("address", address, "held");
            }
            if let Some(why) = state.create_faults.pop_front() {
                return Err(ProviderError::Invalid {
                    what: "machine",
                    value: request.name.to_string(),
                    allowed: why.to_owned(),
                });
            }
            let key = (request.name.clone(), request.incarnation);
            *state.births.entry(key).or_default() += 1;
            let view = MachineView {
                name: request.name.clone(),
                incarnation: request.incarnation,
                power: Power::Running,
                address: request.address,
                tags: request.tags,
                created_at: 0,
                boots: 1,
                complete: true,
            };
            let vm = Vm {
                view: view.clone(),
                made_as,
                broken: false,
                settings: serde_json::from_slice(&request.settings).unwrap(),
                keys: BTreeMap::new(),
                journal: BTreeMap::new(),
                connected: false,
                mounted: false,
                refuses: None,
                denies: None,
                configured: false,
                started: false,
                serves: false,
                restored: Vec::new(),
                kubelet_restarts: 0,
                artifacts: Default::default(),
                files: Default::default(),
                links: Default::default(),
                kubelet: String::new(),
                api_flags: Default::default(),
            };
            if !state.vanish_once.remove(request.name.as_str()) {
                state.machines.insert(request.name, vm);
            }
            Ok(view)
        }))
    }

    fn delete_machine<'a>(&'a self, name: &'a MachineName) -> ProviderFuture<'a, ()> {
        Box::pin(self.effect(move |state| {
            state.take_out(name);
            Ok(())
        }))
    }

    fn machine<'a>(&'a self, name: &'a MachineName) -> ProviderFuture<'a, Option<MachineView>> {
        let view = self
            .sim
            .state
            .lock()
            .unwrap()
            .machines
            .get(name)
            .map(|vm| vm.view.clone());
        Box::pin(async { Ok(view) })
    }

    fn power<'a>(
        &'a self,
        name: &'a MachineName,
        incarnation: Incarnation,
    ) -> ProviderFuture<'a, PowerView> {
        let state = self.sim.state.lock().unwrap();
        let found = state.machines.get(name).map(|vm| &vm.view);
        let power = found
            .filter(|view| view.incarnation == incarnation)
            .map(|view| view.power);
        let detail = String::new();
        Box::pin(async move { Ok(PowerView { power, detail }) })
    }

    fn machines(&self) -> ProviderFuture<'_, Vec<MachineView>> {
        let state = self.sim.state.lock().unwrap();
        let views = state.machines.values().map(|vm| vm.view.clone()).collect();
        Box::pin(async { Ok(views) })
    }

    fn place_settings<'a>(
        &'a self,
        name: &'a MachineName,
        incarnation: Incarnation,
        settings: Vec<u8>,
    ) -> ProviderFuture<'a, bool> {
        Box::pin(self.effect(move |state| {
            let view = state.whole(name)?.view.clone();
            if view.incarnation != incarnation || view.power == Power::Stopped {
                return state.conflict("machine", name, view.incarnation);
            }
            let vm = state.whole(name)?;
            vm.settings = serde_json::from_slice(&settings).unwrap();
            Ok(true)
        }))
    }

    fn stop_machine<'a>(
        &'a self,
        name: &'a MachineName,
        _grace: Duration,
    ) -> ProviderFuture<'a, MachineView> {
        Box::pin(self.effect(move |state| {
            if !state.machines.contains_key(name) {
                // Rollouts ask for the end of what may be gone.
                return Err(ProviderError::NotFound {
                    kind: "machine",
                    name: name.to_string(),
                });
            }
            let vm = state.whole(name)?;
            vm.view.power = Power::Stopped;
            Ok(vm.view.clone())
        }))
    }

    fn start_machine<'a>(&'a self, name: &'a MachineName) -> ProviderFuture<'a, MachineView> {
        Box::pin(self.effect(move |state| {
            let vm = state.whole(name)?;
            vm.starts();
            Ok(vm.view.clone())
        }))
    }

    fn reboot_machine<'a>(
        &'a self,
        name: &'a MachineName,
        _grace: Duration,
    ) -> ProviderFuture<'a, MachineView> {
        Box::pin(self.effect(move |state| {
            let vm = state.whole(name)?;
            vm.view.power = Power::Stopped;
            vm.starts();
            Ok(vm.view.clone())
        }))
    }

    fn set_aside(&self, request: SetAside) -> ProviderFuture<'_, Option<KeptView>> {
        Box::pin(self.effect(move |state| {
            if let Some(kept) = state.kept.get(&request.kept) {
                if (&kept.machine, kept.incarnation) == (&request.machine, request.incarnation) {
                    return Ok(Some(kept.clone()));
                }
                return state.conflict("machine", &request.machine, &kept.machine);
            }
            if !state.machines.contains_key(&request.machine) {
                // It may be gone.
                return Err(ProviderError::NotFound {
                    kind: "machine",
                    name: request.machine.to_string(),
                });
            }
            let found = state.whole(&request.machine)?.view.clone();
            if found.incarnation != request.incarnation || found.power == Power::Running {
                return state.conflict("machine", &request.machine, found.incarnation);
            }
            let view = KeptView {
                name: request.kept.clone(),
                machine: request.machine.clone(),
                incarnation: request.incarnation,
                created_at: found.created_at,
                kept_at: u64::try_from(jiff::Timestamp::now().as_second()).unwrap(),
                notes: request.notes,
                place: format!("kept/{}", request.kept),
            };
            state.take_out(&request.machine);
            state.kept.insert(request.kept, view.clone());
            Ok(Some(view))
        }))
    }

    fn kept_machines(&self) -> ProviderFuture<'_, Vec<KeptView>> {
        let state = self.sim.state.lock().unwrap();
        let views = state.kept.values().cloned().collect();
        Box::pin(async { Ok(views) })
    }

    fn delete_kept<'a>(&'a self, kept: &'a MachineName) -> ProviderFuture<'a, ()> {
        Box::pin(self.effect(move |state| {
            state.kept.remove(kept);
            Ok(())
        }))
    }

    fn create_disk<'a>(&'a self, name: &'a DiskName, bytes: u64) -> ProviderFuture<'a, DiskView> {
        Box::pin(self.effect(move |state| {
            state.check_size(bytes)?;
            let disk = DiskView {
                name: name.clone(),
                bytes,
                attached_to: None,
            };
            let disk = state.disks.entry(name.clone()).or_insert(disk).clone();
            if disk.bytes != bytes {
                return state.conflict("disk", name, disk.bytes);
            }
            Ok(disk)
        }))
    }

    fn grow_disk<'a>(&'a self, name: &'a DiskName, bytes: u64) -> ProviderFuture<'a, DiskView> {
        Box::pin(self.effect(move |state| {
            state.check_size(bytes)?;
            let Some(found) = state.disks.get(name) else {
                return state.not_found("disk", name);
            };
            if bytes < found.bytes {
                return state.invalid("disk size", bytes);
            }
            let disk = state.disks.get_mut(name).unwrap();
            disk.bytes = bytes;
            Ok(disk.clone())
        }))
    }

    fn delete_disk<'a>(&'a self, name: &'a DiskName) -> ProviderFuture<'a, ()> {
        Box::pin(self.effect(move |state| {
            let held = state
                .disks
                .get(name)
                .and_then(|disk| disk.attached_to.clone());
            if let Some(holder) = held {
                let disk = name.clone();
                return state.refuse(ProviderError::DiskHeld { disk, holder });
            }
            state.disks.remove(name);
            Ok(())
        }))
    }

    fn attach_disk<'a>(
        &'a self,
        machine: &'a MachineName,
        disk: &'a DiskName,
    ) -> ProviderFuture<'a, AttachedDisk> {
        Box::pin(self.effect(move |state| {
            state.whole(machine)?;
            let Some(found) = state.disks.get(disk) else {
                return state.not_found("disk", disk);
            };
            if let Some(holder) = found.attached_to.clone().filter(|holder| holder != machine) {
                let disk = disk.clone();
                return state.refuse(ProviderError::DiskHeld { disk, holder });
            }
            state.disks.get_mut(disk).unwrap().attached_to = Some(machine.clone());
            Ok(AttachedDisk {
                device: format!("/dev/windlass/{disk}").into(),
            })
        }))
    }

    fn detach_disk<'a>(
        &'a self,
        machine: &'a MachineName,
        disk: &'a DiskName,
    ) -> ProviderFuture<'a, ()> {
        Box::pin(self.effect(move |state| {
            let found = state.disks.get(disk);
            if found.is_none_or(|found| found.attached_to.as_ref() != Some(machine)) {
                return Ok(());
            }
            // What is off has nothing mounted.
            let uses = |vm: &Vm| vm.mounted && vm.view.power == Power::Running;
            if state.machines.get(machine).is_some_and(uses) {
                let (disk, machine) = (disk.clone(), machine.clone());
                return state.refuse(ProviderError::DiskBusy { disk, machine });
            }
            state.disks.get_mut(disk).unwrap().attached_to = None;
            state.machines.get_mut(machine).unwrap().mounted = false;
            Ok(())
        }))
    }

    fn disks(&self) -> ProviderFuture<'_, Vec<DiskView>> {
        let disks = self
            .sim
            .state
            .lock()
            .unwrap()
            .disks
            .values()
            .cloned()
            .collect();
        Box::pin(async { Ok(disks) })
    }

    fn ensure_endpoint(&self, request: EndpointRequest) -> ProviderFuture<'_, EndpointView> {
        Box::pin(self.effect(move |state| {
            let address = request.address;
            state.check_address("endpoint address", address)?;
            let mut vms = state.machines.values();
            let mut others = state.endpoints.values();
            if vms.any(|vm| vm.view.address == address)
                || others.any(|at| at.address == address && at.cluster != request.cluster)
            {
                return state.conflict("address", address, "held");
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
        Box::pin(self.effect(move |state| {
            state.endpoints.remove(cluster);
            Ok(())
        }))
    }

    fn endpoints(&self) -> ProviderFuture<'_, Vec<EndpointView>> {
        let views = self
            .sim
            .state
            .lock()
            .unwrap()
            .endpoints
            .values()
            .cloned()
            .collect();
        Box::pin(async { Ok(views) })
    }

    fn reset(&self) -> ProviderFuture<'_, ()> {
        unreachable!("no step resets the provider")
    }
}
