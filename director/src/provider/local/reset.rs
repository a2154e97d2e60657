//! Removing everything that carries the provider's name, whatever a crash left of it.

use std::fs;
use std::time::Instant;

use nix::libc;

use super::cgroup::Hierarchies;
use super::disk::{self, Released};
use super::files::{What, list, remove_file, remove_tree};
use super::lifecycle::KILL_LIMIT;
use super::sys::PidFd;
use super::{Inner, network, relock};
use crate::provider::ProviderError;

impl Inner {
    /// See [`crate::provider::Provider::reset`].
    pub(super) fn reset(&self) -> Result<(), ProviderError> {
        self.refuse_taken_name()?;
        for cluster in self.endpoint_names()? {
            self.delete_endpoint(&cluster)?;
        }
        for machine in self.machine_names()? {
            self.alone(&machine, || self.remove(&machine))?;
        }
        self.end_strays()?;
        for name in network::links(&self.layout.port_prefix())? {
            network::delete_link(&name)?;
        }
        for device in disk::loops_below(&self.layout.disks())? {
            if disk::release_device(device)? == Released::Busy {
                return Err(ProviderError::Deadline {
                    what: "a disk that is still mounted to be let go".to_owned(),
                    limit_ms: 0,
                });
            }
        }
        for dir in [
            self.layout.disks(),
            self.layout.kept(),
            self.layout.machines(),
            self.layout.endpoints(),
        ] {
            remove_tree(&dir)?;
        }
        relock(&self.host).ready = false;
        self.remove_host()?;
        // What else is in the data directory is not ours.
        if self.layout.dir.exists() && list(&self.layout.dir)?.is_empty() {
            let dir = &self.layout.dir;
            fs::remove_dir(dir).what(|| format!("cannot remove {}", dir.display()))?;
        }
        Ok(())
    }

    /// Ends monitors and endpoints whose files are gone: they are known by their arguments.
    fn end_strays(&self) -> Result<(), ProviderError> {
        let below = [self.layout.machines(), self.layout.endpoints()];
        for pid in list("/proc".as_ref())?
            .iter()
            .filter_map(|n| n.parse::<i32>().ok())
        {
            let Ok(pidfd) = PidFd::open(pid) else {
                continue;
            };
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let args: Vec<&[u8]> = line.split(|b| *b == 0).collect();
            let ours = match args.as_slice() {
                [_, b"machine-monitor", b"--dir", path, ..]
                | [_, b"endpoint", b"--spec", path, ..] => {
                    let path = std::path::Path::new(std::str::from_utf8(path).unwrap_or_default());
                    below.iter().any(|dir| path.parent() == Some(dir))
                }
                _ => false,
            };
            if ours {
                pidfd
                    .signal(libc::SIGKILL)
                    .what(|| format!("cannot end process {pid}"))?;
                let deadline = Instant::now() + KILL_LIMIT;
                pidfd
                    .wait(deadline)
                    .what(|| format!("cannot wait for process {pid}"))?;
            }
        }
        // Machines of monitors that were ended here.
        let deadline = Instant::now() + KILL_LIMIT;
        Hierarchies::detect()?.destroy(&self.layout.cgroup_parent(), deadline)?;
        for file in list(&self.layout.run_dir())?
            .iter()
            .filter(|n| n.ends_with(".sock"))
        {
            remove_file(&self.layout.run_dir().join(file))?;
        }
        Ok(())
    }
}
