//! Room and inodes of the machine's file systems.

use std::collections::BTreeSet;
use std::fs;

use windlass_common::condition::{DISK_INODES, DISK_SPACE, FREE_MIN_BP};
use windlass_common::report::Scope;

use super::track::{Look, Seen};
use crate::host::Host;

/// File systems of disks; others have no end, or are somebody else's.
const KINDS: [&str; 6] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "overlay"];
/// File systems of one machine that are looked at: a root, a disk of its own, and some to spare.
const DISKS_MAX: usize = 8;
/// Below these are pods' own mounts, which fill a file system above, and single files that a container runtime puts over
/// the kernel's.
const NOT_HERE: [&str; 4] = ["/var/lib/kubelet/pods", "/run/", "/proc/", "/sys/"];

/// What is mounted (proc_pid_mountinfo(5)).
const MOUNTS: &str = "/proc/self/mountinfo";

/// One mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    point: String,
    scope: Scope,
}

/// Looks at every file system of a disk.
pub(super) fn look(host: &Host) -> Vec<Look> {
    let text = match fs::read_to_string(host.path(MOUNTS)) {
        Ok(text) => text,
        Err(error) => {
            return vec![Look {
                name: DISK_SPACE,
                subject: "/".to_owned(),
                source: MOUNTS.to_owned(),
                scope: Scope::Machine,
                seen: Seen::Unknown(format!("what is mounted cannot be read: {error}")),
            }];
        }
    };
    let found = mounts(&text, host.is_container());
    found
        .into_iter()
        .flat_map(|mount| {
            let stat = nix::sys::statvfs::statvfs(&host.path(&mount.point));
            let (space, inodes) = match stat {
                Ok(stat) => (
                    share(stat.blocks_available(), stat.blocks(), "of its space"),
                    // File systems that make inodes as they need them have none to count.
                    share(stat.files_available(), stat.files(), "of its inodes"),
                ),
                Err(error) => {
                    let why = format!("cannot be looked at: {error}");
                    (Seen::Unknown(why.clone()), Seen::Unknown(why))
                }
            };
            [(DISK_SPACE, space), (DISK_INODES, inodes)].map(|(name, seen)| Look {
                name,
                subject: mount.point.clone(),
                source: format!("statvfs {}", mount.point),
                scope: mount.scope,
                seen,
            })
        })
        .collect()
}

fn share(free: u64, all: u64, what: &str) -> Seen {
    if all == 0 {
        return Seen::Good(format!("it counts none {what}"));
    }
    let bp = u64::try_from(u128::from(free) * 10_000 / u128::from(all)).unwrap_or(u64::MAX);
    let says = format!("{}.{:02} % {what} are free", bp / 100, bp % 100);
    if bp < FREE_MIN_BP {
        Seen::Bad(says)
    } else {
        Seen::Good(says)
    }
}

/// The file systems in `/proc/self/mountinfo`, each once, by its shortest mount point.
///
/// In a system container the machine's own are those that are mounted as a whole; what is a directory of a
/// file system, or lies over others, is the host's.
fn mounts(mountinfo: &str, container: bool) -> Vec<Mount> {
    let mut found: Vec<(String, Mount)> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let left: Vec<&str> = left.split(' ').collect();
        let kind = right.split(' ').next().unwrap_or_default();
        let [_, _, device, root, point, ..] = left[..] else {
            continue;
        };
        if !KINDS.contains(&kind) || NOT_HERE.iter().any(|below| point.starts_with(below)) {
            continue;
        }
        let whole = root == "/" && kind != "overlay";
        let scope = if container && !whole {
            Scope::Host
        } else {
            Scope::Machine
        };
        found.push((
            device.to_owned(),
            Mount {
                point: point.to_owned(),
                scope,
            },
        ));
    }
    found.sort_by_key(|(_, mount)| (mount.scope == Scope::Host, mount.point.len()));
    let mut devices = BTreeSet::new();
    found.retain(|(device, _)| devices.insert(device.clone()));
    found.truncate(DISKS_MAX);
    found.into_iter().map(|(_, mount)| mount).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_count_once_and_say_whose_they_are() {
        let text = "\
21 20 0:40 / / rw - overlay overlay rw,lowerdir=/a\n\
22 21 0:41 / /proc rw - proc proc rw\n\
23 21 7:1 / /var/lib/windlass-data rw - ext4 /dev/loop1 rw\n\
24 21 7:1 /etcd /var/lib/etcd rw - ext4 /dev/loop1 rw\n\
25 21 254:0 /machines/a /var/lib/containerd rw - ext4 /dev/vda rw\n\
26 21 0:50 / /var/lib/kubelet/pods/x rw - ext4 /dev/loop9 rw\n\
27 22 254:1 /swaps /proc/swaps ro - ext4 /dev/vdb ro\n\
broken\n";
        let seen = |container| -> Vec<_> {
            mounts(text, container)
                .into_iter()
                .map(|mount| (mount.point, mount.scope))
                .collect()
        };
        let (machine, host) = (Scope::Machine, Scope::Host);
        let row = |point: &str, scope| (point.to_owned(), scope);
        assert_eq!(
            seen(true),
            [
                row("/var/lib/windlass-data", machine),
                row("/", host),
                row("/var/lib/containerd", host)
            ]
        );
        assert!(seen(false).iter().all(|(_, scope)| *scope == machine));
    }

    #[test]
    fn a_file_system_is_full_below_five_percent() {
        assert!(matches!(share(5, 100, ""), Seen::Good(_)));
        assert!(matches!(share(4, 100, ""), Seen::Bad(_)));
        assert!(matches!(share(0, 0, ""), Seen::Good(_)));
        assert!(matches!(share(u64::MAX, u64::MAX, ""), Seen::Good(_)));
    }

    #[test]
    fn this_machine_is_looked_at() {
        let host = Host::open(std::path::Path::new("/")).unwrap();
        let looks = look(&host);
        assert!(
            looks.iter().any(|look| look.name == DISK_SPACE
                && matches!(&look.seen,
                Seen::Good(says) | Seen::Bad(says) if says.contains('%'))),
            "{looks:?}"
        );
    }
}
