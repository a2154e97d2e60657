//! One director in a directory of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::host;
use crate::kubectl::Kubectl;
use crate::wait::until;

/// A director, its data directory and the programs to drive it; removed when dropped.
#[derive(Debug)]
pub struct World {
    /// Directory with `windlass` and `windlass-director`.
    bin: PathBuf,
    /// Data directory of the director.
    dir: tempfile::TempDir,
    kubectl: PathBuf,
    /// Short unique name: prefix of everything on the host.
    name: String,
}

/// Set, to its number, in the programs of a lane of scenarios that run beside others on this host.
pub const LANE: &str = "WINDLASS_TEST_LANE";

/// Ports of the API and the gateway of a director in a lane of its own: beyond those that `director init` tries, which
/// are free only until somebody else takes them.
const LANE_PORTS: (u16, u16) = (7643, 7644);

/// A path that the suite is told in its environment.
pub fn required(variable: &str) -> Result<PathBuf> {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .with_context(|| format!("{variable} is not set: run this suite by `cargo xtask test`"))
}

impl World {
    /// Sets up and starts a director named `name` (at most 5 letters).
    pub fn start(name: &str) -> Result<World> {
        World::start_with(name, &required("WINDLASS_TEST_STEMCELLS")?)
    }

    /// The same with other stemcells.
    pub fn start_with(name: &str, stemcells: &Path) -> Result<World> {
        let dir = tempfile::Builder::new()
            .prefix(&format!("windlass-e2e-{name}-"))
            .tempdir_in("/var/tmp")
            .context("cannot make a data directory")?;
        let world = World {
            bin: required("WINDLASS_TEST_BIN")?,
            dir,
            kubectl: required("WINDLASS_TEST_KUBECTL")?,
            name: name.to_owned(),
        };
        let stemcells = stemcells.to_string_lossy().into_owned();
        let init = [
            "director",
            "init",
            "--name",
            name,
            "--stemcells",
            &stemcells,
        ];
        let (api, gateway) = LANE_PORTS;
        let (api, gateway) = (format!("127.0.0.1:{api}"), format!("0.0.0.0:{gateway}"));
        let apart = ["--api", &api, "--gateway", &gateway];
        let apart = apart.iter().filter(|_| std::env::var_os(LANE).is_some());
        world.run(&init.iter().chain(apart).copied().collect::<Vec<_>>())?;
        world.run(&["director", "start"])?;
        Ok(world)
    }

    /// Sets values of `director.toml` and starts the director anew.
    pub fn configure(&self, values: &[(&str, &str)]) -> Result<()> {
        let path = self.dir.path().join("director.toml");
        let text = std::fs::read_to_string(&path)?;
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        for (key, value) in values {
            let begins = format!("{key} = ");
            let line = lines.iter_mut().find(|line| line.starts_with(&begins));
            let line = line.with_context(|| format!("director.toml has no {key}"))?;
            *line = format!("{begins}{value}");
        }
        std::fs::write(&path, lines.join("\n") + "\n")?;
        self.run(&["director", "stop"])?;
        self.run(&["director", "start"])?;
        Ok(())
    }

    /// Adds sections to `director.toml` and starts the director anew.
    pub fn extend(&self, sections: &str) -> Result<()> {
        let path = self.dir.path().join("director.toml");
        let text = std::fs::read_to_string(&path)?;
        std::fs::write(&path, text + sections)?;
        self.run(&["director", "stop"])?;
        self.run(&["director", "start"])?;
        Ok(())
    }

    /// A program of the build that is tested.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The command line, not yet started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("windlass"));
        command
            .arg("--data-dir")
            .arg(self.dir.path())
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Runs the command line to its end.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments)
            .output()
            .context("cannot start windlass")
    }

    /// Runs the command line, which has to succeed; returns its standard output.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments)?;
        if !output.status.success() {
            bail!(
                "windlass {} ({}): {}{}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs the command line with `--json`; returns what it printed.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[&["--json"], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| format!("no JSON: {text}"))
    }

    /// Whether an incarnation of a machine is not taken for healthy any more: its agent is not heard, it is judged, or
    /// another is there already. One that its provider says is gone is replaced before its connection is silent for
    /// long.
    pub fn doubted(&self, machine: &str, incarnation: u64) -> Result<bool> {
        let seen = self.json(&["node", "show", machine])?;
        let agent = &seen["agent"];
        Ok(seen["incarnation"] != incarnation
            || agent["suspect"] == true
            || agent["connected"] == false
            || !(seen["verdict"].is_null() || seen["verdict"] == "healthy"))
    }

    /// `kubectl` with fresh credentials for a cluster.
    pub fn kubectl(&self, cluster: &str) -> Result<Kubectl> {
        let kubeconfig = self.dir.path().join(format!("{cluster}.kubeconfig"));
        let path = kubeconfig.to_string_lossy().into_owned();
        self.run(&["cluster", "credentials", cluster, "--write", &path])?;
        Ok(Kubectl {
            program: self.kubectl.clone(),
            kubeconfig,
            server: None,
        })
    }

    /// `kubectl` that knows the director alone, as the operator of `context` or the first one.
    pub fn kubectl_through_director(
        &self,
        cluster: &str,
        context: Option<&Path>,
    ) -> Result<Kubectl> {
        let whose = if context.is_some() { "other" } else { "own" };
        let kubeconfig = self.dir().join(format!("{cluster}.{whose}.through"));
        let path = kubeconfig.to_string_lossy().into_owned();
        let mut arguments = vec!["cluster", "credentials", cluster];
        arguments.extend(["--via-director", "--write", &path]);
        let context = context.map(|path| path.to_string_lossy().into_owned());
        if let Some(context) = &context {
            arguments.extend(["--context", context]);
        }
        self.run(&arguments)?;
        Ok(Kubectl {
            program: self.kubectl.clone(),
            kubeconfig,
            server: None,
        })
    }

    /// Process id of the director's daemon.
    pub fn director_pid(&self) -> Result<i32> {
        let dir = self.dir.path().to_string_lossy().into_owned();
        let found = host::processes(&dir)?;
        let daemon = |line: &str| {
            let mut words = line.split_whitespace();
            words
                .next()
                .is_some_and(|argv0| argv0.ends_with("windlass-director"))
                && !line.contains("machine-monitor")
                && !line.contains(" endpoint ")
        };
        found
            .into_iter()
            .find(|(_, line)| daemon(line))
            .map(|(pid, _)| pid)
            .context("no director is running")
    }

    /// Sets up a director named `name` whose machines and disks are in `platform`, outside its data directory;
    /// starts it.
    pub fn start_apart(name: &str, platform: &Path) -> Result<World> {
        let world = World::start(name)?;
        let path = world.dir.path().join("director.toml");
        let text = std::fs::read_to_string(&path)?;
        let own = "directory = \"provider\"";
        if !text.contains(own) {
            bail!("director.toml has no line {own}");
        }
        let apart = format!("directory = \"{}\"", platform.display());
        std::fs::write(&path, text.replace(own, &apart))?;
        world.run(&["director", "stop"])?;
        world.run(&["director", "start"])?;
        Ok(world)
    }

    /// Stops the director, throws its data directory away, and restores a backup into another one. Nothing is
    /// started.
    pub fn restore_elsewhere(&mut self, archive: &Path, identity: &Path) -> Result<Value> {
        self.run(&["director", "stop"])?;
        let other = tempfile::Builder::new()
            .prefix(&format!("windlass-e2e-{}-", self.name))
            .tempdir_in("/var/tmp")
            .context("cannot make a data directory")?;
        self.dir = other;
        let output = Command::new(self.bin.join("windlass-director"))
            .args(["restore", "--json", "--data-dir"])
            .arg(self.dir.path())
            .arg("--from")
            .arg(archive)
            .arg("--identity")
            .arg(identity)
            .output()
            .context("cannot start windlass-director")?;
        if !output.status.success() {
            bail!("restore: {}", String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).context("no JSON")
    }

    /// Kills the director as a power cut would, and starts it again.
    pub fn crash_director(&self) -> Result<()> {
        let pid = self.director_pid()?;
        host::kill_hard(pid)?;
        until(
            "the killed director is gone",
            Duration::from_secs(10),
            || Ok((!Path::new(&format!("/proc/{pid}")).exists()).then_some(())),
        )?;
        self.run(&["director", "start"])?;
        Ok(())
    }

    /// Waits until a task has ended; returns it.
    pub fn task_ended(&self, id: &str, deadline: Duration) -> Result<Value> {
        // Told by the director, and not asked again and again, which would take its cores.
        let mut watch = self
            .command(&["task", "watch", id])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start windlass")?;
        let what = format!("task {id} has ended");
        let watched = until(&what, deadline, || Ok(watch.try_wait()?.map(drop)));
        if watched.is_err() {
            watch.kill()?;
            watch.wait()?;
        }
        watched?;
        // How it has ended is in what it is shown as; `watch` says it with its exit code alone.
        let task = self.json(&["task", "show", id])?;
        let state = task["state"].as_str().unwrap_or("").to_lowercase();
        if !["succeeded", "failed", "cancelled"].contains(&state.as_str()) {
            bail!("task {id} is {state}, and nobody watches it any more");
        }
        Ok(task)
    }

    /// Everything of this director that is on the host.
    pub fn traces(&self) -> Result<Vec<String>> {
        host::traces(self.dir.path(), &format!("wl-{}", self.name))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::env::var_os("WINDLASS_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.dir.path().display());
            self.dir.disable_cleanup(true);
            return;
        }
        if !self.dir.path().join("director.toml").exists() {
            return; // the scenario removed it itself
        }
        if let Err(error) = self.run(&["director", "reset", "--yes"]) {
            eprintln!("cannot remove the director of this scenario: {error:#}");
        }
    }
}
