//! Control groups of machines: who is in them, how to empty and remove them. Versions 1 and 2.
//!
//! runc makes a machine's groups; what is below them belongs to the machine's systemd and kubelet.
//! Removing goes over every mounted hierarchy, children first. A frozen group is thawed before it is
//! killed, else its processes would never see the signal.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{AccessFlags, Pid, access};

use super::files::What;
use crate::provider::ProviderError;

/// Pause between two looks at a group that is emptying, where the kernel gives no event.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Deepest nesting followed; systemd, kubelet and a container use seven levels.
const DEPTH_MAX: usize = 32;

/// The hierarchies mounted on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchies {
    mounts: Vec<Hierarchy>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    path: PathBuf,
    unified: bool,
    controllers: Vec<String>,
}

impl Hierarchies {
    /// Finds them.
    pub(crate) fn detect() -> Result<Hierarchies, ProviderError> {
        let path = "/proc/self/mountinfo";
        let text = fs::read_to_string(path).what(|| format!("cannot read {path}"))?;
        let mut found = Hierarchies::parse(&text);
        for mount in found.mounts.iter_mut().filter(|m| m.unified) {
            let file = mount.path.join("cgroup.controllers");
            let text = fs::read_to_string(&file).unwrap_or_default();
            mount.controllers = text.split_whitespace().map(str::to_owned).collect();
        }
        Ok(found)
    }

    fn parse(mountinfo: &str) -> Hierarchies {
        let mut mounts: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some((mount, tail)) = line.split_once(" - ") else {
                continue;
            };
            let (Some(path), mut tail) = (mount.split(' ').nth(4), tail.split(' ')) else {
                continue;
            };
            let kind = tail.next().unwrap_or_default();
            let options = tail.nth(1).unwrap_or_default();
            if !matches!(kind, "cgroup" | "cgroup2")
                || mounts.iter().any(|m| m.path == Path::new(path))
            {
                continue;
            }
            let unified = kind == "cgroup2";
            let controllers = if unified { "" } else { options };
            mounts.push(Hierarchy {
                path: path.into(),
                unified,
                controllers: controllers.split(',').map(str::to_owned).collect(),
            });
        }
        Hierarchies { mounts }
    }

    /// Whether some hierarchy offers this controller.
    pub(crate) fn has_controller(&self, controller: &str) -> bool {
        self.mounts
            .iter()
            .any(|m| m.controllers.iter().any(|c| c == controller))
    }

    /// Whether any hierarchy is mounted.
    pub(crate) fn is_empty(&self) -> bool {
        self.mounts.is_empty()
    }

    /// Whether groups can be made in every hierarchy.
    pub(crate) fn writable(&self) -> bool {
        let writable = |m: &Hierarchy| access(&m.path, AccessFlags::W_OK).is_ok();
        self.mounts.iter().all(writable)
    }

    /// Whether the host has version 2 alone.
    #[cfg(test)]
    fn unified(&self) -> bool {
        !self.mounts.is_empty() && self.mounts.iter().all(|m| m.unified)
    }

    /// Every directory this group has.
    fn directories(&self, group: &str) -> Vec<PathBuf> {
        let relative = group.trim_start_matches('/');
        self.mounts
            .iter()
            .map(|m| m.path.join(relative))
            .filter(|d| d.is_dir())
            .collect()
    }

    /// Whether the group exists in any hierarchy.
    pub(crate) fn exists(&self, group: &str) -> bool {
        !self.directories(group).is_empty()
    }

    /// The names of the groups directly below this one, over all hierarchies.
    pub(crate) fn children(&self, group: &str) -> Vec<String> {
        let mut names: Vec<String> = self
            .directories(group)
            .iter()
            .flat_map(|d| subdirectories(d))
            .filter_map(|d| d.file_name().and_then(|n| n.to_str()).map(str::to_owned))
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// How many processes are in the group and below it.
    pub(crate) fn count(&self, group: &str) -> usize {
        let directories = self.directories(group);
        let mut pids: Vec<i32> = directories
            .iter()
            .flat_map(|d| walk(d))
            .flat_map(|d| processes(&d))
            .collect();
        pids.sort_unstable();
        pids.dedup();
        pids.len()
    }

    /// Whether the group's processes are stopped by the freezer.
    pub(crate) fn frozen(&self, group: &str) -> bool {
        let is = |directory: &Path, file: &str, wanted: &str| {
            fs::read_to_string(directory.join(file)).is_ok_and(|text| text.trim() == wanted)
        };
        // The first is version 1, the second version 2.
        self.directories(group)
            .iter()
            .any(|d| is(d, "freezer.state", "FROZEN") || is(d, "cgroup.freeze", "1"))
    }

    /// Whether process `pid` is in the group or below it.
    pub(crate) fn contains(group: &str, pid: i32) -> bool {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/cgroup")) else {
            return false;
        };
        text.lines()
            .filter_map(|line| line.splitn(3, ':').nth(2))
            .any(|path| {
                path.strip_prefix(group)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
    }

    /// Ends every process of the group and removes it with all below it. One that is gone is fine.
    pub(crate) fn destroy(&self, group: &str, deadline: Instant) -> Result<(), ProviderError> {
        let began = Instant::now();
        loop {
            let directories = self.directories(group);
            let tree: Vec<PathBuf> = directories.iter().flat_map(|d| walk(d)).collect();
            if tree.is_empty() {
                return Ok(());
            }
            let pids: Vec<i32> = tree.iter().flat_map(|d| processes(d)).collect();
            if pids.is_empty() {
                // Children come after their parents in `tree`.
                for directory in tree.iter().rev() {
                    // Fails while the kernel still counts a dying process; the next round sees it.
                    let _ = fs::remove_dir(directory);
                }
                if self.directories(group).is_empty() {
                    return Ok(());
                }
            } else {
                thaw_and_kill(&tree, &pids);
            }
            if Instant::now() >= deadline {
                return Err(ProviderError::Deadline {
                    what: format!("ending {} processes of control group {group}", pids.len()),
                    limit_ms: deadline.duration_since(began).as_millis() as u64,
                });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Removes the group if nothing is below it.
    pub(crate) fn remove_if_empty(&self, group: &str) {
        for directory in self.directories(group) {
            // Not empty means another machine is there: that is the condition, not a fault.
            let _ = fs::remove_dir(directory);
        }
    }
}

fn thaw_and_kill(tree: &[PathBuf], pids: &[i32]) {
    for directory in tree {
        // Which of these files exists depends on version and controller.
        for (file, value) in [
            ("cgroup.kill", "1"),
            ("freezer.state", "THAWED"),
            ("cgroup.freeze", "0"),
        ] {
            let path = directory.join(file);
            if path.exists() {
                let _ = fs::write(path, value);
            }
        }
    }
    for pid in pids {
        // Gone already: fine. Not permitted cannot be, we are root.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
}

fn processes(directory: &Path) -> Vec<i32> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    // 0 is a process outside our process namespace, which cannot be signalled by number.
    text.lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid > 0)
        .collect()
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect()
}

/// The directory and all below it, parents first.
fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    let mut level = found.clone();
    for _ in 0..DEPTH_MAX {
        level = level.iter().flat_map(|d| subdirectories(d)).collect();
        if level.is_empty() {
            break;
        }
        found.extend(level.iter().cloned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "\
24 23 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:22 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
26 24 0:23 / /sys/fs/cgroup/systemd rw,relatime shared:9 - cgroup cgroup rw,name=systemd
27 24 0:24 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const V2: &str =
        "31 23 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn hierarchies_are_read_from_the_mount_table() {
        let v1 = Hierarchies::parse(V1);
        assert_eq!(v1.mounts.len(), 3);
        assert!(v1.has_controller("cpuacct") && !v1.has_controller("memory") && !v1.unified());
        assert!(Hierarchies::parse(V2).unified());
        assert!(Hierarchies::parse("").is_empty());
    }

    #[test]
    fn a_group_does_not_contain_its_namesakes_processes() {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let path = own
            .lines()
            .next()
            .unwrap()
            .splitn(3, ':')
            .nth(2)
            .unwrap()
            .to_owned();
        let pid = std::process::id() as i32;
        assert!(path == "/" || Hierarchies::contains(&path, pid));
        assert!(!Hierarchies::contains("/windlass-no-such", pid));
    }
}
