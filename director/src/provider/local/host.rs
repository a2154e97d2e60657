//! What all machines of a host share: kernel settings that machines change host-wide.
//!
//! kubelets set some sysctls of the whole host, and many machines need more inotify instances than a
//! host's default allows. What was there before the first machine of the first provider is kept in
//! `/run/windlass/` and put back when the last machine of the last provider goes; several directors on one
//! host share this through a lock file. After a restart of the host both the settings and the directory
//! are new.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::files::{What, list, make_dir, read_json, remove_file, remove_tree, write_json};
use crate::provider::ProviderError;

/// Where the settings are kept and where they are set; tests have others.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    shared: PathBuf,
    sysctls: PathBuf,
}

impl Default for Host {
    fn default() -> Host {
        Host {
            shared: "/run/windlass".into(),
            sysctls: "/proc/sys".into(),
        }
    }
}

/// What kubelets change (`protectKernelDefaults` off), for all of the host.
const CHANGED_BY_KUBELETS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];
/// What we raise: each systemd, kubelet and containerd holds several inotify instances, and a
/// host's default of 128 is used up by about ten machines.
const RAISED: [(&str, u64); 2] = [
    ("fs/inotify/max_user_instances", 8192),
    ("fs/inotify/max_user_watches", 524_288),
];
/// What NAT needs.
const FORWARD: &str = "net/ipv4/ip_forward";

impl Host {
    fn sysctl(&self, key: &str) -> PathBuf {
        self.sysctls.join(key)
    }

    fn users(&self) -> PathBuf {
        self.shared.join("users")
    }

    fn saved(&self) -> PathBuf {
        self.shared.join("sysctls.json")
    }

    fn lock(&self) -> Result<File, ProviderError> {
        make_dir(&self.shared, 0o755)?;
        let path = self.shared.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .what(|| format!("cannot open {}", path.display()))?;
        // Held for a few file operations only.
        file.lock()
            .what(|| format!("cannot lock {}", path.display()))?;
        Ok(file)
    }

    /// Registers a provider that is about to have machines: keeps the host's settings first, raises what
    /// has to be raised.
    pub(crate) fn register(&self, name: &str) -> Result<(), ProviderError> {
        let _lock = self.lock()?;
        if read_json::<BTreeMap<String, String>>(&self.saved())?.is_none() {
            let keys = CHANGED_BY_KUBELETS
                .iter()
                .chain(RAISED.iter().map(|(key, _)| key));
            let values: BTreeMap<String, String> = keys
                .chain([&FORWARD])
                .filter_map(|key| {
                    let value = fs::read_to_string(self.sysctl(key)).ok()?; // not in this kernel
                    Some(((*key).to_owned(), value.trim().to_owned()))
                })
                .collect();
            write_json(&self.saved(), &values)?;
        }
        make_dir(&self.users(), 0o755)?;
        let user = self.users().join(name);
        fs::write(&user, b"").what(|| format!("cannot write {}", user.display()))?;
        for (key, least) in RAISED {
            let now = fs::read_to_string(self.sysctl(key)).ok();
            if now
                .and_then(|v| v.trim().parse::<u64>().ok())
                .is_some_and(|now| now < least)
            {
                // A host that refuses can still carry a few machines.
                let _ = fs::write(self.sysctl(key), least.to_string());
            }
        }
        // A host that refuses gives machines no way out; the preflight says so.
        let _ = fs::write(self.sysctl(FORWARD), "1");
        Ok(())
    }

    /// The provider has no machine left: puts the host's settings back if it was the last.
    pub(crate) fn unregister(&self, name: &str) -> Result<(), ProviderError> {
        if !self.shared.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        remove_file(&self.users().join(name))?;
        if !list(&self.users())?.is_empty() {
            return Ok(());
        }
        let saved: BTreeMap<String, String> = read_json(&self.saved())?.unwrap_or_default();
        for (key, value) in saved {
            let now = fs::read_to_string(self.sysctl(&key)).unwrap_or_default();
            if now.trim() != value {
                fs::write(self.sysctl(&key), &value)
                    .what(|| format!("cannot put sysctl {key} back to {value}"))?;
            }
        }
        // The lock file stays: another provider may be waiting for it. It is empty, and /run is volatile.
        remove_file(&self.saved())?;
        remove_tree(&self.users())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_provider_puts_the_settings_back() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host {
            shared: dir.path().join("run"),
            sysctls: dir.path().join("sys"),
        };
        let set = |key: &str, value: &str| {
            let path = host.sysctl(key);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        };
        let get = |key: &str| {
            fs::read_to_string(host.sysctl(key))
                .unwrap()
                .trim()
                .to_owned()
        };
        let (overcommit, instances) = ("vm/overcommit_memory", "fs/inotify/max_user_instances");
        set(overcommit, "0");
        set(instances, "128");
        set(FORWARD, "0");

        host.register("a").unwrap();
        assert_eq!((get(FORWARD), get(instances)), ("1".into(), "8192".into()));
        set(overcommit, "1"); // a kubelet
        host.register("b").unwrap();
        host.register("b").unwrap();
        host.unregister("a").unwrap();
        assert_eq!(get(overcommit), "1", "b still has machines");
        host.unregister("b").unwrap();
        let all = (get(overcommit), get(instances), get(FORWARD));
        assert_eq!(all, ("0".into(), "128".into(), "0".into()));

        // What is kept next time is what is there then.
        set(overcommit, "2");
        host.register("a").unwrap();
        set(overcommit, "1");
        host.unregister("a").unwrap();
        host.unregister("a").unwrap();
        assert_eq!(get(overcommit), "2");
    }
}
