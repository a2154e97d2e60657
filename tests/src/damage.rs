//! What befalls machines behind the director's back.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use windlass_common::id::{DiskName, MachineName};
use windlass_director::config::{Config, DataDir};
use windlass_director::provider::Provider;
use windlass_director::provider::local::{LocalConfig, LocalProvider};

use crate::world::World;

impl World {
    fn config(&self) -> Result<(DataDir, Config)> {
        let dir = DataDir::new(self.dir())?;
        let config = Config::load(&dir)?;
        Ok((dir, config))
    }

    /// Deletes a machine as somebody would who uses the platform's own tools.
    pub fn delete_behind(&self, machine: &str) -> Result<()> {
        let provider = self.provider()?;
        let name = MachineName::new(machine)?;
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(provider.delete_machine(&name))?;
        Ok(())
    }

    /// Deletes a persistent disk that no machine has, in the same way.
    pub fn delete_disk_behind(&self, disk: &str) -> Result<()> {
        let provider = self.provider()?;
        let name = DiskName::new(disk)?;
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(provider.delete_disk(&name))?;
        Ok(())
    }

    fn provider(&self) -> Result<LocalProvider> {
        let (_, config) = self.config()?;
        Ok(LocalProvider::new(LocalConfig {
            dir: config.local.directory.clone(),
            name: config.local.name.clone(),
            cidr: config.local.cidr,
            director_exe: self.program("windlass-director"),
            runc: config.local.runc.clone(),
            zones: Vec::new(),
        })?)
    }

    /// Stops every process of a machine where it stands; its kernel answers on.
    pub fn freeze(&self, machine: &str) -> Result<()> {
        let (_, config) = self.config()?;
        let group = format!("windlass-{}/{machine}", config.local.name);
        let ways = [
            ("/sys/fs/cgroup/freezer", "freezer.state", "FROZEN"),
            ("/sys/fs/cgroup", "cgroup.freeze", "1"),
        ];
        for (hierarchy, file, value) in ways {
            let path = PathBuf::from(hierarchy).join(&group).join(file);
            if path.exists() {
                return fs::write(&path, value).with_context(|| format!("cannot freeze {path:?}"));
            }
        }
        bail!("machine {machine} has no freezer")
    }

    /// Cuts the link between the director and these machines, in both directions, until the guard is dropped.
    pub fn cut(&self, addresses: &[String]) -> Result<Cut> {
        let (_, config) = self.config()?;
        let table = format!("wl_test_{}", config.local.name);
        let port = config.gateway.listen.port();
        let list = addresses.join(", ");
        nft(&format!(
            "table inet {table} {{
                chain in {{
                    type filter hook input priority -50;
                    ip saddr {{ {list} }} udp dport {port} drop
                }}
                chain out {{
                    type filter hook output priority -50;
                    ip daddr {{ {list} }} udp sport {port} drop
                }}
            }}"
        ))?;
        Ok(Cut { table })
    }
}

/// A link that is cut; whole again when dropped.
#[derive(Debug)]
pub struct Cut {
    table: String,
}

impl Drop for Cut {
    fn drop(&mut self) {
        if let Err(error) = nft(&format!("delete table inet {}", self.table)) {
            eprintln!("the cut stays: {error:#}");
        }
    }
}

fn nft(rules: &str) -> Result<()> {
    let output = Command::new("nft")
        .arg(rules)
        .output()
        .context("cannot run nft")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "nft: {said}\n{rules}");
    Ok(())
}
