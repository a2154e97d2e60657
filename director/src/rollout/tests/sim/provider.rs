//! The world as its provider shows it: machines, disks and endpoints.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use windlass_common::id::{ClusterName, DiskName, Incarnation, MachineName, ZoneName};

use super::{Life, Vm};
use crate::provider::{
    AttachedDisk, DiskView, EndpointRequest, EndpointView, KeptView, MachineRequest, MachineView,
    NetworkView, Power, PowerView, PreflightFault, Provider, ProviderError, ProviderFuture,
    SetAside,
};

impl Provider for Life {
    fn preflight(&self) -> BoxFuture<'_, Vec<PreflightFault>> {
        Box::pin(async { Vec::new() })
    }

    fn network(&self) -> NetworkView {
        NetworkView {
            cidr: "10.0.0.0/20".parse().unwrap(),
            gateway: Ipv4Addr::new(10, 0, 0, 1),
            reserved: Vec::new(),
        }
    }

    fn zones(&self) -> Vec<ZoneName> {
        self.sim.state.lock().unwrap().zones.clone()
    }

    fn create_machine(&self, request: MachineRequest) -> ProviderFuture<'_, MachineView> {
        Box::pin(self.effect(move |state| {
            if let Some(vm) = state.machines.get(&request.name) {
                assert_eq!(vm.view.incarnation, request.incarnation);
                return Ok(vm.view.clone());
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
            state.machines.remove(name);
            for disk in state.disks.values_mut() {
                disk.attached_to.take_if(|holder| holder == name);
            }
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
            let vm = state.machines.get_mut(name).unwrap();
            assert_eq!(vm.view.incarnation, incarnation);
            vm.settings = serde_json::from_slice(&settings).unwrap();
            Ok(true)
        }))
    }

    fn stop_machine<'a>(
        &'a self,
        name: &'a MachineName,
        _grace: Duration,
    ) -> ProviderFuture<'a, MachineView> {
        Box::pin(
            self.effect(move |state| match state.machines.get_mut(name) {
                Some(vm) => {
                    vm.view.power = Power::Stopped;
                    Ok(vm.view.clone())
                }
                None => Err(ProviderError::NotFound {
                    kind: "machine",
                    name: name.to_string(),
                }),
            }),
        )
    }

    fn start_machine<'a>(&'a self, _name: &'a MachineName) -> ProviderFuture<'a, MachineView> {
        unreachable!("no step starts machines")
    }

    fn reboot_machine<'a>(
        &'a self,
        name: &'a MachineName,
        _grace: Duration,
    ) -> ProviderFuture<'a, MachineView> {
        Box::pin(self.effect(move |state| {
            let vm = state.machines.get_mut(name).unwrap();
            // One that has lost its power has lost it for good.
            if vm.view.power == Power::Running {
                vm.view.boots += 1;
            }
            Ok(vm.view.clone())
        }))
    }

    fn set_aside(&self, request: SetAside) -> ProviderFuture<'_, Option<KeptView>> {
        Box::pin(self.effect(move |state| {
            if let Some(kept) = state.kept.get(&request.kept) {
                return Ok(Some(kept.clone()));
            }
            let Some(vm) = state.machines.get(&request.machine) else {
                return Err(ProviderError::NotFound {
                    kind: "machine",
                    name: request.machine.to_string(),
                });
            };
            assert_eq!(vm.view.incarnation, request.incarnation);
            assert_eq!(vm.view.power, Power::Stopped, "what is set aside is off");
            let view = KeptView {
                name: request.kept.clone(),
                machine: request.machine.clone(),
                incarnation: request.incarnation,
                created_at: vm.view.created_at,
                kept_at: u64::try_from(jiff::Timestamp::now().as_second()).unwrap(),
                notes: request.notes,
                place: format!("kept/{}", request.kept),
            };
            state.machines.remove(&request.machine);
            for disk in state.disks.values_mut() {
                disk.attached_to
                    .take_if(|holder| *holder == request.machine);
            }
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
            let disk = DiskView {
                name: name.clone(),
                bytes,
                attached_to: None,
            };
            Ok(state.disks.entry(name.clone()).or_insert(disk).clone())
        }))
    }

    fn grow_disk<'a>(&'a self, name: &'a DiskName, bytes: u64) -> ProviderFuture<'a, DiskView> {
        Box::pin(self.effect(move |state| {
            let disk = state.disks.get_mut(name).unwrap();
            assert!(bytes >= disk.bytes, "a disk does not shrink");
            disk.bytes = bytes;
            Ok(disk.clone())
        }))
    }

    fn delete_disk<'a>(&'a self, name: &'a DiskName) -> ProviderFuture<'a, ()> {
        Box::pin(self.effect(move |state| {
            let gone = state.disks.remove(name);
            assert_eq!(gone.and_then(|disk| disk.attached_to), None);
            Ok(())
        }))
    }

    fn attach_disk<'a>(
        &'a self,
        machine: &'a MachineName,
        disk: &'a DiskName,
    ) -> ProviderFuture<'a, AttachedDisk> {
        Box::pin(self.effect(move |state| {
            assert!(state.machines.contains_key(machine));
            let view = state.disks.get_mut(disk).unwrap();
            assert!(
                view.attached_to
                    .as_ref()
                    .is_none_or(|holder| holder == machine)
            );
            view.attached_to = Some(machine.clone());
            Ok(AttachedDisk {
                device: "/dev/disk".into(),
            })
        }))
    }

    fn detach_disk<'a>(
        &'a self,
        _machine: &'a MachineName,
        _disk: &'a DiskName,
    ) -> ProviderFuture<'a, ()> {
        unreachable!("no step detaches disks of machines that stay")
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
