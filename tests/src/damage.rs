//! What befalls machines behind the director's back.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
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

    /// Which incarnation of a machine there is on the platform, whatever its director says.
    pub fn made_behind(&self, machine: &str) -> Result<Option<u64>> {
        let provider = self.provider()?;
        let name = MachineName::new(machine)?;
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let view = runtime.block_on(provider.machine(&name))?;
        Ok(view.map(|view| u64::from(view.incarnation.0)))
    }

    /// Gives a machine a disk that its director knows nothing of, with a file system at `point`.
    pub fn mount_behind(&self, machine: &str, disk: &str, bytes: u64, point: &str) -> Result<()> {
        let provider = self.provider()?;
        let (name, disk) = (MachineName::new(machine)?, DiskName::new(disk)?);
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(provider.create_disk(&disk, bytes))?;
        let attached = runtime.block_on(provider.attach_disk(&name, &disk))?;
        let device = attached.device.display();
        let script =
            format!("mkfs.ext4 -q -m 0 {device} && mkdir -p {point} && mount {device} {point}");
        self.run(&["node", "exec", machine, "--", "sh", "-c", &script])?;
        Ok(())
    }

    /// Takes such a disk away again.
    pub fn unmount_behind(&self, machine: &str, disk: &str, point: &str) -> Result<()> {
        self.run(&["node", "exec", machine, "--", "umount", point])?;
        let provider = self.provider()?;
        let (name, disk_name) = (MachineName::new(machine)?, DiskName::new(disk)?);
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(provider.detach_disk(&name, &disk_name))?;
        self.delete_disk_behind(disk)
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

    /// A file of the provider about a machine, as text.
    fn provider_file(&self, machine: &str, file: &str) -> Result<String> {
        let (_, config) = self.config()?;
        let path = config.local.directory.join("machines");
        let path = path.join(machine).join(file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path:?}"))?;
        Ok(text.trim().to_owned())
    }

    /// How often a machine was started in its present incarnation, by whomever.
    pub fn boots(&self, machine: &str) -> Result<u64> {
        let boots = self.provider_file(machine, "boots")?;
        boots.parse().with_context(|| format!("boots: {boots:?}"))
    }

    /// Reboots a machine as somebody would who sits at its console: no director, no agent has a part in it.
    pub fn reboot_at_console(&self, machine: &str) -> Result<()> {
        let init = self.provider_file(machine, "init.pid")?;
        // The command may be cut off by the reboot it causes, which `boots` counts.
        Command::new("nsenter")
            .args(["--target", &init, "--all", "systemctl", "reboot"])
            .output()
            .context("cannot run nsenter")?;
        Ok(())
    }

    /// Boots what was kept of a machine that was replaced, as somebody would who starts its old disk: all that was on
    /// it, beside its successor, with the address that the platform gives to another machine.
    pub fn boot_kept(&self, place: &Path) -> Result<Revenant> {
        let (_, config) = self.config()?;
        let name = MachineName::new("revenant")?;
        let dir = config.local.directory.join("machines").join(name.as_str());
        let record = fs::read_to_string(place.join(RECORD)).context("cannot read its record")?;
        let mut changed: Value = serde_json::from_str(&record)?;
        changed["name"] = json!(name);
        let hosts = config.local.cidr.hosts();
        changed["address"] = json!(hosts.last().context("the network has addresses")?);
        fs::rename(place, &dir).with_context(|| format!("cannot move {place:?}"))?;
        fs::write(dir.join(RECORD), changed.to_string())?;
        let provider = self.provider()?;
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(provider.start_machine(&name))?;
        Ok(Revenant {
            name,
            provider,
            record,
            dir,
            place: place.to_owned(),
        })
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

    /// Leaves one way between this host and all machines of this director, of now and later, until the guard is
    /// dropped: UDP that a machine sends to the gateway, and the answers. Nothing else passes in either direction, nor
    /// through this host to anywhere else; machines reach one another over the bridge as before.
    pub fn isolate_but_for_agents(&self) -> Result<Isolation> {
        let (_, config) = self.config()?;
        let table = format!("wl_alone_{}", config.local.name);
        let bridge = format!("wl-{}", config.local.name);
        let port = config.gateway.listen.port();
        // One that an interrupted run has left is replaced.
        nft(&format!(
            "table inet {table} {{ }}
            delete table inet {table}
            table inet {table} {{
                counter {FROM_MACHINES} {{ }}
                counter {TO_MACHINES} {{ }}
                chain in {{
                    type filter hook input priority -50;
                    iifname \"{bridge}\" udp dport {port} accept
                    iifname \"{bridge}\" counter name {FROM_MACHINES} drop
                }}
                chain out {{
                    type filter hook output priority -50;
                    oifname \"{bridge}\" udp sport {port} ct state established accept
                    oifname \"{bridge}\" counter name {TO_MACHINES} drop
                }}
                chain through {{
                    type filter hook forward priority -50;
                    iifname \"{bridge}\" oifname != \"{bridge}\" counter name {FROM_MACHINES} drop
                    iifname != \"{bridge}\" oifname \"{bridge}\" counter name {TO_MACHINES} drop
                }}
            }}"
        ))?;
        Ok(Isolation { table })
    }
}

/// What the provider writes down about a machine, in its directory.
const RECORD: &str = "machine.json";

/// A machine that runs again after it was replaced.
#[derive(Debug)]
pub struct Revenant {
    name: MachineName,
    provider: LocalProvider,
    record: String,
    dir: PathBuf,
    place: PathBuf,
}

impl Revenant {
    /// Runs a command at its console; returns what it wrote, whatever its exit code.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let init = fs::read_to_string(self.dir.join("init.pid")).context("cannot read its init")?;
        let output = Command::new("nsenter")
            .args(["--target", init.trim(), "--all"])
            .args(arguments)
            .output()
            .context("cannot run nsenter")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Switches it off, and puts it back to where it was kept.
    pub fn put_back(self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        runtime.block_on(self.provider.stop_machine(&self.name, Duration::ZERO))?;
        fs::write(self.dir.join(RECORD), &self.record)?;
        let (from, to) = (&self.dir, &self.place);
        fs::rename(from, to).with_context(|| format!("cannot move {from:?} to {to:?}"))
    }
}

const FROM_MACHINES: &str = "from_machines";
const TO_MACHINES: &str = "to_machines";

/// Machines that reach nothing of this host but the gateway; as before when dropped.
#[derive(Debug)]
pub struct Isolation {
    table: String,
}

impl Isolation {
    /// How many packets were dropped so far on their way from machines, and to machines.
    pub fn dropped(&self) -> Result<(u64, u64)> {
        Ok((self.count(FROM_MACHINES)?, self.count(TO_MACHINES)?))
    }

    fn count(&self, counter: &str) -> Result<u64> {
        let listed = nft(&format!("list counter inet {} {counter}", self.table))?;
        let mut words = listed
            .split_whitespace()
            .skip_while(|word| *word != "packets");
        let packets = words.nth(1).and_then(|word| word.parse().ok());
        packets.with_context(|| format!("nft lists no packets: {listed}"))
    }
}

impl Drop for Isolation {
    fn drop(&mut self) {
        if let Err(error) = nft(&format!("delete table inet {}", self.table)) {
            eprintln!("machines stay isolated: {error:#}");
        }
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

fn nft(rules: &str) -> Result<String> {
    let output = Command::new("nft")
        .arg(rules)
        .output()
        .context("cannot run nft")?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "nft: {said}\n{rules}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
