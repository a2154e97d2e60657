//! Room and inodes of the machine's file systems, and whose each one is.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::statvfs::Statvfs;
use windlass_common::condition::{DISK_INODES, DISK_SPACE, FREE_MIN_BP};
use windlass_common::report::{FILE_SYSTEMS_MAX, FileSystem, Scope};

use super::track::{Look, Seen};
use crate::host::Host;

/// File systems of disks; others have no end, or are somebody else's.
const KINDS: [&str; 6] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "overlay"];
/// File systems of one machine that are looked at: a root, a disk of its own, and some to spare. The root is told of
/// beyond that.
const DISKS_MAX: usize = FILE_SYSTEMS_MAX - 1;
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

/// What a look at file systems found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) looks: Vec<Look>,
    /// Those that could be looked at, that of the root first.
    pub(super) file_systems: Vec<FileSystem>,
}

/// Looks at every file system of a disk, and at the root's whatever it is.
pub(super) fn look(host: &Host) -> Found {
    let text = match fs::read_to_string(host.path(MOUNTS)) {
        Ok(text) => text,
        Err(error) => {
            let looks = vec![Look {
                name: DISK_SPACE,
                subject: "/".to_owned(),
                source: MOUNTS.to_owned(),
                scope: Scope::Machine,
                seen: Seen::Unknown(format!("what is mounted cannot be read: {error}")),
            }];
            return Found {
                looks,
                file_systems: Vec::new(),
            };
        }
    };
    let container = host.is_container();
    let mut found = Found::default();
    let disks = mounts(&text, container);
    let root = root(&text, container);
    let root = root.filter(|root| disks.iter().all(|disk| disk.point != root.point));
    if let Some(root) = root {
        let stat = nix::sys::statvfs::statvfs(&host.path(&root.point));
        found
            .file_systems
            .extend(stat.ok().map(|stat| used(&root, &stat)));
    }
    for mount in disks {
        let stat = nix::sys::statvfs::statvfs(&host.path(&mount.point));
        let (space, inodes) = match &stat {
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
        found
            .file_systems
            .extend(stat.ok().map(|stat| used(&mount, &stat)));
        found.looks.extend(
            [(DISK_SPACE, space), (DISK_INODES, inodes)].map(|(name, seen)| Look {
                name,
                subject: mount.point.clone(),
                source: format!("statvfs {}", mount.point),
                scope: mount.scope,
                seen,
            }),
        );
    }
    found.file_systems.sort_by_key(|one| one.point != "/");
    found
}

fn used(mount: &Mount, stat: &Statvfs) -> FileSystem {
    let block = stat.fragment_size();
    let bytes = |blocks: u64| blocks.saturating_mul(block);
    FileSystem {
        point: mount.point.clone(),
        used_bytes: bytes(stat.blocks().saturating_sub(stat.blocks_free())),
        total_bytes: bytes(stat.blocks()),
        inodes_used: stat.files().saturating_sub(stat.files_free()),
        inodes_total: stat.files(),
        scope: mount.scope,
    }
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

/// A line of `/proc/self/mountinfo`.
struct Line<'a> {
    device: &'a str,
    /// The directory of the file system that is mounted.
    root: &'a str,
    point: &'a str,
    kind: &'a str,
}

fn lines(mountinfo: &str) -> impl Iterator<Item = Line<'_>> {
    mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(2);
        Some(Line {
            device: left.next()?,
            root: left.next()?,
            point: left.next()?,
            kind: right.split(' ').next()?,
        })
    })
}

impl Line<'_> {
    /// Whose it is. In a system container the machine's own are disks that are mounted as a whole; what is a directory
    /// of a file system, or lies over others, is the host's.
    fn scope(&self, container: bool) -> Scope {
        let whole = self.root == "/" && self.kind != "overlay" && KINDS.contains(&self.kind);
        if container && !whole {
            Scope::Host
        } else {
            Scope::Machine
        }
    }

    fn mount(&self, container: bool) -> Mount {
        Mount {
            point: self.point.to_owned(),
            scope: self.scope(container),
        }
    }
}

/// What is mounted at the root: what was mounted there last covers the rest.
fn root(mountinfo: &str, container: bool) -> Option<Mount> {
    let root = lines(mountinfo).filter(|line| line.point == "/").last()?;
    Some(root.mount(container))
}

/// The file systems of disks, each once, by its shortest mount point.
fn mounts(mountinfo: &str, container: bool) -> Vec<Mount> {
    let mut found: Vec<(&str, Mount)> = lines(mountinfo)
        .filter(|line| KINDS.contains(&line.kind))
        .filter(|line| !NOT_HERE.iter().any(|below| line.point.starts_with(below)))
        .map(|line| (line.device, line.mount(container)))
        .collect();
    found.sort_by_key(|(_, mount)| (mount.scope == Scope::Host, mount.point.len()));
    let mut devices = BTreeSet::new();
    found.retain(|(device, _)| devices.insert(*device));
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

    /// Of a control-plane machine that is a system container, of its host, and of a virtual machine.
    #[test]
    #[rustfmt::skip] // lines as the kernel has them
    fn whose_the_root_and_the_data_disk_are() {
        let container = "\
719 686 0:45 / / rw,relatime shared:110 - overlay overlay rw,lowerdir=/s/rootfs,upperdir=/m/three-cp-1/upper,workdir=/m/three-cp-1/work,uuid=on
721 720 254:0 /m/three-cp-1/files/meminfo /proc/meminfo ro,relatime shared:121 master:7 - ext4 /dev/vda rw,discard
743 719 0:108 / /run rw,nosuid,nodev,relatime shared:143 - tmpfs tmpfs rw,mode=755
746 719 254:0 /m/three-cp-1/data/var/lib/containerd /var/lib/containerd rw,relatime shared:150 master:7 - ext4 /dev/vda rw,discard
750 719 254:0 /m/three-cp-1/data/var/lib/kubelet /var/lib/kubelet rw,relatime shared:154 master:7 - ext4 /dev/vda rw,discard
751 719 7:2 / /var/lib/etcd rw,noatime shared:155 - ext4 /dev/windlass/three-cp-1-de8a339 rw
753 719 0:45 /etc /etc ro,nosuid,relatime shared:185 - overlay overlay rw,lowerdir=/s/rootfs,upperdir=/m/three-cp-1/upper
";
        let virtual_machine = "\
1 1 0:2 / / rw - rootfs rootfs rw
24 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
88 24 254:16 / /var/lib/etcd rw,relatime shared:45 - ext4 /dev/vdb rw
";
        let (machine, host) = (Scope::Machine, Scope::Host);
        let scopes = |text: &str, contained| {
            let disks = mounts(text, contained);
            let data = disks.into_iter().find(|disk| disk.point == "/var/lib/etcd");
            (root(text, contained).map(|root| root.scope), data.map(|disk| disk.scope))
        };
        assert_eq!(scopes(container, true), (Some(host), Some(machine)));
        assert_eq!(scopes(virtual_machine, false), (Some(machine), Some(machine)));
        // Each of these in a container; on a virtual machine all are its own.
        let cases = [
            ("a directory of the host's",      "9 1 254:0 /machines/a / rw - ext4 /dev/vda rw",     host),
            ("a disk of its own",              "9 1 254:9 / / rw - xfs /dev/vdz rw",                machine),
            ("a subvolume of the host's",      "9 1 0:30 /@a / rw - btrfs /dev/vda rw",             host),
            ("what the host's programs serve", "9 1 0:31 / / rw - fuse.fuse-overlayfs overlay rw",  host),
            ("a file server's",                "9 1 0:32 / / rw - nfs4 10.0.0.1:/roots/a rw",       host),
            ("one over another",               "9 1 254:9 / / rw - ext4 /dev/vdz rw\n\
                                                10 9 254:0 /machines/a / rw - ext4 /dev/vda rw",    host),
        ];
        for (name, text, wanted) in cases {
            assert_eq!(scopes(text, true).0, Some(wanted), "{name}");
            assert_eq!(scopes(text, false).0, Some(machine), "{name}");
        }
        assert_eq!(scopes("9 1 254:9 / /elsewhere rw - xfs /dev/vdz rw", true).0, None);
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
        let Found {
            looks,
            file_systems,
        } = look(&host);
        let root = &file_systems[0];
        assert_eq!(root.point, "/");
        assert!(root.total_bytes >= root.used_bytes && root.total_bytes > 0);
        assert!(file_systems.len() <= FILE_SYSTEMS_MAX);
        assert!(
            looks.iter().any(|look| look.name == DISK_SPACE
                && matches!(&look.seen,
                Seen::Good(says) | Seen::Bad(says) if says.contains('%'))),
            "{looks:?}"
        );
    }
}
