//! What system containers cannot do: they share this host's kernel and its limits.

use std::fs;
use std::path::Path;

use crate::kubernetes::facts::HostTraits;

/// Number of CAP_SYS_RESOURCE (`linux/capability.h`).
const CAP_SYS_RESOURCE: u32 = 24;

/// Looks at this process and host. What cannot be told is taken to be limited, which always works.
pub(super) fn detect() -> HostTraits {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    HostTraits {
        cgroup_v1: !Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        restrict_oom_score_adj: !may(&status, CAP_SYS_RESOURCE),
        // A network namespace of its own sees them read-only.
        read_only_conntrack: true,
        shared_disk: true,
    }
}

/// Whether the capability is in the bounding set of `/proc/<pid>/status`.
fn may(status: &str, capability: u32) -> bool {
    let bounding = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bounding.is_some_and(|set| set >> capability & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounding_set_decides() {
        let status = |set: &str| format!("Name:\tx\nCapBnd:\t{set}\nCapAmb:\t0\n");
        assert!(may(&status("000001ffffffffff"), CAP_SYS_RESOURCE));
        assert!(!may(&status("000001fffeffffff"), CAP_SYS_RESOURCE));
        assert!(!may("", CAP_SYS_RESOURCE));
    }
}
