//! What operators order, as records: the rules of the director's own drafts, without their refusals.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::json;
use windlass_common::cluster::ClusterSpec;
use windlass_common::id::{Incarnation, MachineName, PoolName};
use windlass_director::model::{Cluster, Machine, MachinePhase, Wanted};
use windlass_director::planner::{Observed, ObservedMachine};

use super::dice::Dice;
use super::{fixtures, windows};

/// How long a gate may take.
pub const GATE_SECONDS: u64 = 900;

/// What a cluster is to be.
#[derive(Debug, Clone)]
pub struct Target {
    /// Machines of the control plane, 1 or 3.
    pub members: u32,
    /// Pools: machines, most that may be missing, most that may be too many, canaries.
    pub pools: BTreeMap<String, Pool>,
    /// Kubernetes version.
    pub kubernetes: &'static str,
    /// Build of the stemcell.
    pub build: u32,
    /// When it may be changed.
    pub maintenance: serde_json::Value,
    /// A Job has to succeed between one machine that changes and the next.
    pub gated: bool,
    /// Machines that are to be made anew, with the incarnation they had.
    pub replace: BTreeMap<MachineName, Incarnation>,
}

/// One pool.
#[derive(Debug, Clone)]
pub struct Pool {
    /// Machines.
    pub count: u32,
    max_unavailable: u32,
    max_surge: u32,
    canaries: u32,
}

impl Pool {
    /// Machines that may be missing: one always serves, so that pods have somewhere to go.
    fn missing(&self) -> u32 {
        self.max_unavailable.min(self.count.saturating_sub(1))
    }

    /// Machines that may be too many: one at least where none may be missing.
    fn surge(&self) -> u32 {
        self.max_surge.max(u32::from(self.missing() == 0))
    }
}

impl Target {
    /// A cluster of six machines or more.
    pub fn throw(dice: &mut Dice) -> Self {
        let mut aside = Dice::new(dice.clone().roll());
        let members = if dice.chance(300) { 1 } else { 3 };
        let two = dice.chance(500);
        let mut pools = BTreeMap::new();
        let workers = 6 - members + u32::try_from(dice.within(0..=1)).unwrap_or(0);
        let first = if two { workers - 1 } else { workers };
        let mut pool = |name: &str, count: u32, dice: &mut Dice| {
            let max_unavailable = u32::try_from(dice.within(0..=2)).unwrap_or(0);
            let surge = u32::try_from(dice.within(0..=2)).unwrap_or(0);
            let pool = Pool {
                count,
                max_unavailable,
                max_surge: surge,
                canaries: u32::from(dice.chance(300)),
            };
            pools.insert(name.to_owned(), pool);
        };
        pool("wa", first, dice);
        if two {
            pool("wb", workers - first, dice);
        }
        Self {
            members,
            pools,
            kubernetes: "1.36.0",
            build: 1,
            maintenance: windows::throw(&mut aside),
            gated: aside.chance(400),
            replace: BTreeMap::new(),
        }
    }

    /// The stemcell of its machines.
    pub fn stemcell(&self) -> String {
        fixtures::stemcell(self.kubernetes, self.build)
    }

    /// The spec.
    pub fn spec(&self) -> Result<ClusterSpec> {
        let size = json!({"cpuMillis": 1000, "memoryMib": 1024, "diskMib": 64});
        let pools: BTreeMap<&String, serde_json::Value> = self
            .pools
            .iter()
            .map(|(name, pool)| {
                let update = json!({
                    "maxUnavailable": pool.missing(),
                    "maxSurge": pool.surge(),
                    "canaries": pool.canaries,
                });
                let pool = json!({"count": pool.count, "size": size, "update": update});
                (name, pool)
            })
            .collect();
        let job =
            json!({"namespace": "default", "cronJob": "smoke", "timeoutSeconds": GATE_SECONDS});
        let gate = json!({"name": "smoke", "job": job});
        let gates: Vec<_> = self.gated.then_some(gate).into_iter().collect();
        let spec = json!({
            "name": "demo",
            "kubernetesVersion": self.kubernetes,
            "controlPlane": {"count": self.members, "size": size},
            "pools": pools,
            "network": {"podCidr": "10.244.0.0/16", "serviceCidr": "10.96.0.0/16"},
            "maintenance": self.maintenance,
            "gates": gates,
        });
        serde_json::from_value(spec).context("the spec")
    }

    /// A cluster that does not exist yet.
    pub fn cluster(&self) -> Result<Cluster> {
        let cluster = json!({
            "spec": self.spec()?,
            "endpoint": {"name": "demo.clusters.windlass.internal", "address": "10.0.0.2", "port": 6443},
            "stemcell": self.stemcell(),
            "phase": "Creating",
            "message": null,
            "task": null,
            "revision": 0,
            "createdAt": "2030-01-01T00:00:00Z",
        });
        serde_json::from_value(cluster).context("the cluster")
    }

    fn machine(&self, name: &str, role: serde_json::Value, number: u8) -> Result<Machine> {
        let machine = MachineName::new(name)?;
        let disk = (role["kind"] == "controlPlane").then(|| format!("{name}-data"));
        let machine = json!({
            "name": name,
            "cluster": "demo",
            "role": role,
            "incarnation": Incarnation::FIRST,
            "nodeName": machine.node_name(Incarnation::FIRST)?,
            "address": format!("10.0.0.{number}"),
            "podCidr": format!("10.244.{number}.0/24"),
            "stemcell": self.stemcell(),
            "kubernetesVersion": self.kubernetes,
            "size": {"cpuMillis": 1000, "memoryMib": 1024, "diskMib": 64},
            "dataDisk": disk,
            "phase": "Planned",
            "revision": 0,
            "createdAt": "2030-01-01T00:00:00Z",
        });
        serde_json::from_value(machine).context("a machine")
    }

    /// All machines of a new cluster.
    pub fn fresh(&self) -> Result<Vec<Machine>> {
        let mut machines = Vec::new();
        for number in 0..self.members {
            let role = json!({"kind": "controlPlane"});
            let at = free(&machines);
            machines.push(self.machine(&format!("demo-cp-{number}"), role, at)?);
        }
        for (pool, of) in &self.pools {
            for number in 0..of.count {
                let role = json!({"kind": "worker", "pool": pool});
                let at = free(&machines);
                machines.push(self.machine(&format!("demo-{pool}-{number}"), role, at)?);
            }
        }
        Ok(machines)
    }

    /// The machines of a cluster that is there, each with what it is to become; workers only when it is their turn.
    pub fn change(
        &self,
        machines: &mut Vec<Machine>,
        workers: bool,
        observed: &Observed,
    ) -> Result<()> {
        for machine in machines.iter_mut() {
            let turn = workers || machine.role.is_control_plane() || machine.is_surplus();
            let found = observed.machines.get(&machine.name);
            if turn {
                self.retarget(machine, observed);
            } else if found.is_some_and(ObservedMachine::available)
                || machine.phase == MachinePhase::Planned
            {
                machine.wanted = None;
            } else {
                machine.wanted = Some(machine.as_it_is());
            }
        }
        for (pool, of) in self.pools.iter().filter(|_| workers) {
            self.resize(pool, of, machines, observed)?;
        }
        // As in the director: what stays as it is, is not condemned, and what went back is tried again.
        for machine in machines.iter_mut() {
            machine.pinned = false;
            machine.condemned &= machine.wanted.is_some();
        }
        machines.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(())
    }

    fn retarget(&self, machine: &mut Machine, observed: &Observed) {
        let exists = observed.machines.contains_key(&machine.name);
        if machine.is_surplus() && !exists {
            return;
        }
        let replaced = self.replace.get(&machine.name) == Some(&machine.incarnation);
        let same = !machine.fenced && machine.stemcell == self.stemcell() && !replaced;
        machine.wanted = None;
        if same {
            return;
        }
        if !exists && machine.phase == MachinePhase::Planned && !replaced {
            machine.stemcell = self.stemcell();
            machine.kubernetes_version = self.kubernetes.to_owned();
            return;
        }
        machine.wanted = Some(Wanted::Reborn {
            incarnation: machine.incarnation.next(),
            stemcell: self.stemcell(),
            kubernetes_version: self.kubernetes.to_owned(),
            size: machine.size,
            because: None,
        });
    }

    fn resize(
        &self,
        pool: &str,
        of: &Pool,
        machines: &mut Vec<Machine>,
        observed: &Observed,
    ) -> Result<()> {
        let name = PoolName::new(pool)?;
        let up = |machine: &MachineName| {
            let found = observed.machines.get(machine);
            found.is_some_and(ObservedMachine::available)
        };
        let mut going: Vec<_> = machines
            .iter()
            .filter(|m| m.role.pool() == Some(&name) && !m.is_surplus())
            .map(|m| {
                let order = (up(&m.name), m.wanted.is_none(), Reverse(number(&m.name)));
                (order, m.name.clone())
            })
            .collect();
        going.sort();
        let mut going: Vec<MachineName> = going.into_iter().map(|(_, name)| name).collect();
        let count = of.count as usize;
        let surplus = going.len().saturating_sub(count);
        let missing = count.saturating_sub(going.len());
        for name in going.drain(..surplus) {
            mark_gone(machines, &name);
        }
        let stale = |name: &MachineName| {
            let found = machines.iter().find(|m| m.name == *name);
            found.is_some_and(|m| m.wanted.is_some()) && up(name)
        };
        going.retain(stale);
        let surge = (of.surge() as usize).min(going.len());
        for name in going.iter().take(surge) {
            mark_gone(machines, name);
        }
        for _ in 0..missing + surge {
            let taken: BTreeSet<u32> = machines
                .iter()
                .filter(|m| m.role.pool() == Some(&name))
                .map(|m| number(&m.name))
                .collect();
            let next = (0..).find(|n| !taken.contains(n)).unwrap_or(0);
            let role = json!({"kind": "worker", "pool": pool});
            let joins = self.machine(&format!("demo-{pool}-{next}"), role, free(machines))?;
            machines.push(joins);
        }
        Ok(())
    }

    /// Least number of machines in service in each pool.
    pub fn floors(&self) -> BTreeMap<PoolName, usize> {
        let floor = |(name, pool): (&String, &Pool)| {
            let least = pool.count.saturating_sub(pool.missing());
            Some((PoolName::new(name.as_str()).ok()?, least as usize))
        };
        self.pools.iter().filter_map(floor).collect()
    }
}

/// The last number of an address that no machine has, and of a pod network.
fn free(machines: &[Machine]) -> u8 {
    let of = |m: &Machine| [m.address.octets()[3], m.pod_cidr.addr().octets()[2]];
    let taken = |at: &u8| machines.iter().any(|m| of(m).contains(at));
    (3..=254).find(|at| !taken(at)).unwrap_or(254)
}

fn number(name: &MachineName) -> u32 {
    let number = name.as_str().rsplit('-').next();
    number.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn mark_gone(machines: &mut [Machine], name: &MachineName) {
    for machine in machines.iter_mut().filter(|m| m.name == *name) {
        machine.wanted = Some(Wanted::Gone);
    }
}
