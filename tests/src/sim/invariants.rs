//! The invariants of the design, as far as a world without hardware shows them.
//!
//! | number | looked at |
//! | --- | --- |
//! | 1 | when a member of etcd is taken, and when one starts: quorum, one at a time, never on an empty disk |
//! | 2 | when a machine is made or a disk attached, and after every event |
//! | 3 | when a worker is taken out of service, also when it is written down that it is shut out |
//! | 4 | when a pod is deleted, and when a machine that has pods goes or is shut out |
//! | 5 | after every event |
//! | 6 | when a step arrives, is carried out or ends; when a machine is begun with; at the end of a task, and of the seed |
//! | 7 | when a disk is deleted |
//! | 8 | when it is written down that a node is Ready |
//! | 9 | in logs, errors and everything in the store that is not sealed |
//! | 10 | when the provider is asked to destroy something: its intent is in the store |
//!
//! What went down by itself less than [`UNNOTICED_MS`] ago nobody can be blamed for not knowing.

use windlass_common::id::{DiskName, MachineName};

use super::cluster::{API, KUBELET};
use super::state::{State, UNNOTICED_MS};

/// How a node is taken out of service whose machine and components go on.
pub const DRAINING: &str = "draining";
/// Minors that a kubelet may be older than an API server.
const KUBELET_OLDER_MAX: u32 = 3;
/// How old the sight of a node that is Ready may be when it is written down: a store that refuses for 90 s
/// and clocks that jump by 20 minutes come between.
const READY_AGE_MS: u64 = 1_800_000;

impl State {
    /// Looks at what has to hold after every event.
    pub fn check(&mut self) {
        self.skew();
        let astray = self.disks.iter().find_map(|(name, disk)| {
            let holder = disk.attached_to.as_ref()?;
            (!self.vms.contains_key(holder)).then(|| format!("disk {name} is held by nobody"))
        });
        if let Some(astray) = astray {
            self.violated(2, astray);
        }
    }

    fn skew(&mut self) {
        let (vms, now) = (&self.vms, self.now);
        let running = |unit: &'static str| vms.iter().filter(move |(_, vm)| vm.has(unit, now));
        // What an API server emulates is what it is to its clients.
        let servers = running(API).map(|(name, vm)| {
            let acts = vm.emulates.1.map_or(vm.minor, |minor| minor.min(vm.minor));
            (acts, vm.minor, name)
        });
        let Some((oldest, _, old)) = servers.clone().min() else {
            return;
        };
        let newest = servers
            .clone()
            .map(|(acts, ..)| acts)
            .max()
            .unwrap_or(oldest);
        let own = servers.clone().map(|(_, own, _)| own);
        let (first, last) = (own.clone().min(), own.max().unwrap_or(newest));
        let kubelet = running(KUBELET).find_map(|(name, vm)| {
            let minor = vm.minor;
            // A control-plane machine prefers its own API server, which is as new as its kubelet.
            if minor > oldest && !vm.control_plane() {
                Some(format!(
                    "kubelet of {name} is 1.{minor}, the API server of {old} is 1.{oldest} to it"
                ))
            } else if last.saturating_sub(minor) > KUBELET_OLDER_MAX {
                Some(format!(
                    "kubelet of {name} is 1.{minor}, an API server is 1.{last}"
                ))
            } else {
                None
            }
        });
        let far = newest - oldest > 1 || first.is_some_and(|first| last - first > 1);
        let apart =
            far.then(|| format!("API servers are 1.{oldest} and 1.{newest} to their clients"));
        if let Some(problem) = kubelet.or(apart) {
            self.violated(5, problem);
        }
    }

    /// Whether a machine that does not serve may still be thought to: it went down just now.
    fn thought_up(&self, name: &MachineName) -> bool {
        self.vms.get(name).is_some_and(|vm| {
            !vm.by_us
                && vm
                    .down_since
                    .is_some_and(|since| since + UNNOTICED_MS > self.now)
        })
    }

    /// A machine is about to be taken out of service.
    pub fn taking(&mut self, name: &MachineName, how: &str) {
        if self.ordered.going {
            return;
        }
        let Some(vm) = self.vms.get(name) else { return };
        match vm.pool.clone() {
            None => self.taking_member(name, how),
            Some(pool) => {
                if !self.available(name) || !vm.served {
                    return; // it counts already, or never did
                }
                let of_pool = |other: &&MachineName| {
                    *other != name && self.vms[*other].pool.as_ref() == Some(&pool)
                };
                let left = self
                    .vms
                    .keys()
                    .filter(of_pool)
                    .filter(|other| self.available(other) || self.thought_up(other));
                let left = left.count();
                let floor = self.ordered.floors.get(&pool).copied().unwrap_or(0);
                if left < floor {
                    self.violated(
                        3,
                        format!("{how} {name} leaves {left} machines of pool {pool}, {floor} have to serve"),
                    );
                }
            }
        }
        if let Some(vm) = self.vms.get_mut(name) {
            vm.by_us = true;
        }
    }

    fn taking_member(&mut self, name: &MachineName, how: &str) {
        let members = self.voters().count();
        if members > 2 && self.member_up(name) {
            let others: Vec<&MachineName> = self.voters().filter(|m| *m != name).collect();
            let ours = others
                .iter()
                .any(|m| !self.member_up(m) && self.vms.get(*m).is_none_or(|vm| vm.by_us));
            let left = others
                .iter()
                .filter(|m| self.member_up(m) || self.thought_up(m))
                .count();
            if ours {
                self.violated(1, format!("{how} {name} while another member is changed"));
            } else if left < members / 2 + 1 && how != DRAINING {
                // The member of a node that is drained serves on; it is looked at again before it is stopped.
                self.violated(
                    1,
                    format!("{how} {name} leaves {left} of {members} members of etcd"),
                );
            }
        }
        if let Some(vm) = self.vms.get_mut(name) {
            vm.by_us = true;
        }
    }

    /// A machine is about to lose its power by an order.
    pub fn cutting(&mut self, name: &MachineName, how: &str) {
        let serves = self.available(name);
        self.taking(name, how);
        let Some(vm) = self.vms.get(name).filter(|_| !self.ordered.going) else {
            return;
        };
        let pods = self.pods_on(&vm.node).len();
        if serves && pods > 0 {
            self.violated(4, format!("{how} {name}, which serves {pods} pods"));
        }
    }

    /// It is written down that a machine is shut out: one that came back, and that the director hears of, is not.
    /// From then on nobody hears of it, and its power is cut, in whichever life of the director.
    pub fn fencing(&mut self, name: &MachineName) {
        let now = self.now;
        if self.vms.get(name).is_some_and(|vm| vm.connected(now)) {
            self.cutting(name, "fencing");
        }
    }

    /// A disk is about to be deleted.
    pub fn deleting_disk(&mut self, name: &DiskName) {
        if !self.ordered.disks_named.contains(name) {
            self.violated(7, format!("disk {name} is deleted, and no order names it"));
        }
    }

    /// It is written down that a machine's node is Ready.
    pub fn said_ready(&mut self, name: &MachineName) {
        let vm = self.vms.get_mut(name);
        let ready_at = vm.and_then(|vm| {
            vm.served = true;
            vm.ready_at
        });
        if ready_at.is_none_or(|at| at + READY_AGE_MS < self.now) {
            self.violated(8, format!("{name} is said to be Ready, and has not been"));
        }
    }
}
