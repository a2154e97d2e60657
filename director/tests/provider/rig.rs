//! A provider to try, the means to look into its machines, and a search for what it left behind.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use windlass_common::id::{Incarnation, MachineName};
use windlass_director::provider::local::{LocalConfig, LocalProvider};
use windlass_director::provider::{MachineRequest, MachineSize, MachineView, Provider};

/// How long a machine may take to boot, also on a host that is busy with other things.
pub(crate) const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// Pause between two looks at a condition.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Where the test stemcell has a part that machines see without a copy of their own.
pub(crate) const SHARED_PART: &str = "/var/lib/containerd/shared/layer";
/// Where it has a file that each machine gets a copy of.
pub(crate) const COPIED_FILE: &str = "/var/lib/containerd/meta/db";

/// The stemcell all cases use: the root file system given, with seeds added.
#[derive(Debug, Clone)]
pub(crate) struct Root {
    stemcell: PathBuf,
}

static SHARED: Mutex<Option<(tempfile::TempDir, Root)>> = Mutex::new(None);
static NUMBER: AtomicU8 = AtomicU8::new(0);

impl Root {
    /// Makes it once for all cases: links to the files given cost nothing.
    pub(crate) fn shared() -> anyhow::Result<Root> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, root)) = &*shared {
            return Ok(root.clone());
        }
        let given = std::env::var_os("WINDLASS_TEST_ROOTFS").map(PathBuf::from).context(
            "WINDLASS_TEST_ROOTFS is not set: name a Debian root file system with systemd, dbus, \
             iproute2, e2fsprogs and perl (see the head of this test)",
        )?;
        for needed in [
            "sbin/init",
            "usr/bin/systemctl",
            "usr/bin/perl",
            "usr/sbin/mkfs.ext4",
        ] {
            let there = given.join(needed).symlink_metadata().is_ok();
            ensure!(
                there,
                "WINDLASS_TEST_ROOTFS={} has no /{needed}",
                given.display()
            );
        }
        // Beside the root given, so that links are possible.
        let parent = given
            .canonicalize()?
            .parent()
            .context("the root has no parent")?
            .to_owned();
        let dir = tempfile::Builder::new()
            .prefix("windlass-provider-test-")
            .tempdir_in(parent)?;
        let rootfs = dir.path().join("rootfs");
        tool(
            Command::new("cp")
                .arg("-al")
                .arg(given.canonicalize()?)
                .arg(&rootfs),
        )?;
        for path in [SHARED_PART, "/var/lib/containerd/meta"] {
            std::fs::create_dir_all(rootfs.join(&path[1..]))?;
        }
        std::fs::write(
            rootfs.join(&SHARED_PART[1..]).join("file"),
            "from the stemcell",
        )?;
        std::fs::write(rootfs.join(&COPIED_FILE[1..]), "copied")?;
        std::fs::write(
            dir.path().join("manifest.json"),
            r#"{"seeds": [{"path": "/var/lib/containerd", "read_only": ["shared/layer"]}]}"#,
        )?;
        let root = Root {
            stemcell: dir.path().to_owned(),
        };
        *shared = Some((dir, root.clone()));
        Ok(root)
    }

    /// A root that others made.
    pub(crate) fn at(stemcell: PathBuf) -> Root {
        Root { stemcell }
    }

    pub(crate) fn stemcell(&self) -> &Path {
        &self.stemcell
    }

    /// Removes it.
    pub(crate) fn forget() {
        SHARED.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// A provider under test.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) config: LocalConfig,
    pub(crate) root: Root,
    provider: LocalProvider,
    runtime: tokio::runtime::Runtime,
}

/// Runs one case with a provider of its own, then resets it and looks for anything left.
pub(crate) fn run(
    name: &str,
    root: Root,
    case: impl FnOnce(&Rig) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    ensure!(
        nix::unistd::Uid::effective().is_root(),
        "machines need root"
    );
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let parent = root
        .stemcell
        .parent()
        .context("the stemcell has no parent")?;
    let dir = tempfile::Builder::new()
        .prefix(&format!("windlass-{name}-"))
        .tempdir_in(parent)?;
    let rig = Rig::new(
        LocalConfig {
            dir: dir.path().join("data"),
            // The process number keeps runs apart, the case's number the cases of one run.
            name: format!("t{:x}{number:02x}", std::process::id() & 0xf_ffff),
            cidr: format!("10.213.{number}.0/24").parse()?,
            director_exe: std::env::current_exe()?,
            runc: "runc".into(),
            zones: Vec::new(),
        },
        root,
    )?;
    let outcome = case(&rig);
    let outcome = outcome.map_err(|error| rig.with_logs(error));
    rig.wait(rig.provider().reset()).context("reset")?;
    let left = rig.leftovers()?;
    outcome?;
    ensure!(left.is_empty(), "left behind: {left:#?}");
    Ok(())
}

impl Rig {
    pub(crate) fn new(config: LocalConfig, root: Root) -> anyhow::Result<Rig> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let provider = LocalProvider::new(config.clone())?;
        Ok(Rig {
            config,
            root,
            provider,
            runtime,
        })
    }

    /// A second provider on the same directory, as a restarted director has.
    pub(crate) fn restarted(&self) -> anyhow::Result<Rig> {
        Rig::new(self.config.clone(), self.root.clone())
    }

    pub(crate) fn provider(&self) -> &dyn Provider {
        &self.provider
    }

    /// Waits for a call of the provider.
    pub(crate) fn wait<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.block_on(call)
    }

    /// The address of guest `number`.
    pub(crate) fn address(&self, number: u8) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.config.cidr.network()) + u32::from(number))
    }

    /// A small machine.
    pub(crate) fn request(&self, number: u8) -> anyhow::Result<MachineRequest> {
        let name = MachineName::new(format!("m{number}"))?;
        let incarnation = Incarnation::FIRST;
        Ok(MachineRequest {
            hostname: name.node_name(incarnation)?,
            name,
            incarnation,
            stemcell: self.root.stemcell.clone(),
            zone: None,
            size: MachineSize {
                cpu_millis: 1500,
                memory_bytes: 256 * 1024 * 1024,
                disk_bytes: 64 * 1024 * 1024,
            },
            address: self.address(number),
            settings: format!("settings of {number}").into_bytes(),
            tags: BTreeMap::from([("cluster".to_owned(), "test".to_owned())]),
        })
    }

    /// Makes a machine and waits until its systemd says that it is up.
    pub(crate) fn booted(&self, number: u8) -> anyhow::Result<MachineView> {
        let view = self.wait(self.provider().create_machine(self.request(number)?))?;
        self.until_up(&view.name)?;
        Ok(view)
    }

    /// Waits until the machine's systemd has finished booting, whatever it thinks of its units.
    pub(crate) fn until_up(&self, name: &MachineName) -> anyhow::Result<()> {
        until(BOOT_LIMIT, "the machine to boot", || {
            let output = self.inside(name, "systemctl is-system-running").ok()?;
            let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            matches!(state.as_str(), "running" | "degraded").then_some(())
        })
    }

    /// The machine's init process, as the host numbers it.
    pub(crate) fn init(&self, name: &MachineName) -> anyhow::Result<i32> {
        let path = self.machine_dir(name).join("init.pid");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(text.trim().parse()?)
    }

    pub(crate) fn machine_dir(&self, name: &MachineName) -> PathBuf {
        self.config.dir.join("machines").join(name.as_str())
    }

    /// Runs a shell command in the machine.
    pub(crate) fn inside(&self, name: &MachineName, script: &str) -> anyhow::Result<Output> {
        let init = self.init(name)?.to_string();
        let mut command = Command::new("nsenter");
        command.args([
            "-t", &init, "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", "--",
        ]);
        command.args(["/bin/bash", "-c", script]).env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        Ok(command.output()?)
    }

    /// Runs a shell command in the machine that has to succeed; returns what it printed.
    pub(crate) fn says(&self, name: &MachineName, script: &str) -> anyhow::Result<String> {
        let output = self.inside(name, script)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        ensure!(
            output.status.success(),
            "`{script}` in {name} failed: {out} {err}"
        );
        Ok(out)
    }

    fn with_logs(&self, error: anyhow::Error) -> anyhow::Error {
        let mut error = error;
        for machine in std::fs::read_dir(self.config.dir.join("machines"))
            .into_iter()
            .flatten()
            .flatten()
        {
            for log in ["monitor.log", "runc.log", "console.log"] {
                let text = std::fs::read_to_string(machine.path().join(log)).unwrap_or_default();
                if !text.is_empty() {
                    error = error.context(format!("{:?} {log}:\n{text}", machine.file_name()));
                }
            }
        }
        error
    }

    /// Everything on the host that still carries the provider's name.
    pub(crate) fn leftovers(&self) -> anyhow::Result<Vec<String>> {
        let mut left = Vec::new();
        let name = &self.config.name;
        let dir = self.config.dir.display().to_string();
        if self.config.dir.exists() {
            left.push(format!("directory {dir}"));
        }
        if Path::new(&format!("/run/windlass-{name}")).exists() {
            left.push(format!("/run/windlass-{name}"));
        }
        for link in names("/sys/class/net")? {
            if link == format!("wl-{name}") || link.starts_with(&format!("w{name}-")) {
                left.push(format!("link {link}"));
            }
        }
        for mounts in ["/proc/self/mountinfo", "/proc/1/mountinfo"] {
            let text = std::fs::read_to_string(mounts).unwrap_or_default();
            left.extend(
                text.lines()
                    .filter(|l| l.contains(&dir))
                    .map(|l| format!("mount {l}")),
            );
        }
        for hierarchy in names("/sys/fs/cgroup")?
            .iter()
            .map(String::as_str)
            .chain([""])
        {
            let path = Path::new("/sys/fs/cgroup")
                .join(hierarchy)
                .join(format!("windlass-{name}"));
            if path.exists() {
                left.push(format!("control group {}", path.display()));
            }
        }
        for block in names("/sys/block")? {
            let file = format!("/sys/block/{block}/loop/backing_file");
            let file = std::fs::read_to_string(file).unwrap_or_default();
            if file.contains(&dir) {
                left.push(format!("device {block} of {}", file.trim()));
            }
        }
        for pid in names("/proc")?.iter().filter(|n| n.parse::<u32>().is_ok()) {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            // Orphans that have ended hold nothing any more; the host's init reaps them when it likes.
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            if status.contains("State:\tZ") && status.contains("PPid:\t1\n") {
                continue;
            }
            if line.contains(&dir) || groups.contains(&format!("/windlass-{name}")) {
                left.push(format!("process {pid} {line}"));
            }
        }
        if let Ok(tables) = Command::new("nft").args(["list", "tables"]).output() {
            let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
            left.extend(
                tables
                    .lines()
                    .filter(|l| l.ends_with(&format!("wl_{name}")))
                    .map(str::to_owned),
            );
        }
        Ok(left)
    }
}

fn names(dir: &str) -> anyhow::Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).with_context(|| dir.to_owned())?;
    Ok(entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .collect())
}

/// Runs a program that has to succeed.
pub(crate) fn tool(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{command:?} failed: {text} {errors}"
    );
    Ok(text)
}

/// Waits until `condition` gives something.
pub(crate) fn until<T>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}
