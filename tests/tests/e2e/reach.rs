//! Operators reach into machines and clusters through the director: logs, a shell, usage, a bundle, and
//! `kubectl`, each with the role it takes.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::tcgetattr;
use nix::unistd::Pid;
use serde_json::Value;
use windlass_tests::host;
use windlass_tests::kubectl::Kubectl;
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::lifecycle::{SHARED, machine_of, shared_cluster, with_world};
use crate::workloads::{Forward, echo, name};

/// Longest wait for something that takes a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// A program whose output is read as it comes.
struct Talker {
    child: Child,
    lines: Receiver<String>,
    said: String,
}

impl Talker {
    fn start(mut command: Command) -> Result<Talker> {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start")?;
        let (sender, lines) = channel();
        let out = child.stdout.take().context("no standard output")?;
        let err = child.stderr.take().context("no standard error")?;
        read_lines(out, sender.clone());
        read_lines(err, sender);
        Ok(Talker {
            child,
            lines,
            said: String::new(),
        })
    }

    /// Waits until a line with `wanted` has come.
    fn says(&mut self, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.said.contains(wanted) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.said.push_str(&line),
                Err(_) => bail!("{wanted:?} was not said: {}", self.said),
            }
        }
        Ok(())
    }

    fn interrupt(&self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, Signal::SIGINT).context("cannot interrupt")
    }

    fn ends(&mut self) -> Result<Option<i32>> {
        let status = until("it has ended", PATIENCE, || Ok(self.child.try_wait()?))?;
        while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(1)) {
            self.said.push_str(&line);
        }
        Ok(status.code())
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lines(from: impl Read + Send + 'static, to: std::sync::mpsc::Sender<String>) {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = String::new();
        while from.read_line(&mut line).is_ok_and(|read| read > 0) {
            if to.send(std::mem::take(&mut line)).is_err() {
                return;
            }
        }
    });
}

/// Writes a line into the journal of a machine.
fn log_line(world: &World, node: &str, line: &str) -> Result<()> {
    world.run(&[
        "node",
        "exec",
        node,
        "--",
        "systemd-cat",
        "-t",
        "canary",
        "echo",
        line,
    ])?;
    Ok(())
}

pub(crate) fn logs_follow() -> Result<()> {
    with_world(|world| {
        shared_cluster(world)?;
        let node = machine_of(world, SHARED, "worker")?;
        let follow = || -> Result<Talker> {
            let mut logs = Talker::start(world.command(&["node", "logs", &node, "-f", "-n", "1"]))?;
            // The line that is there already says that it follows.
            logs.says(&node)?;
            Ok(logs)
        };
        let mut logs = follow()?;
        log_line(world, &node, "canary-written-later")?;
        logs.says("canary-written-later")?;
        let journals = || host::machine_processes(&node, "journalctl");
        ensure!(!journals()?.is_empty(), "journalctl runs on the machine");
        logs.interrupt()?;
        logs.ends()?;
        until("journalctl has ended on the machine", PATIENCE, || {
            Ok(journals()?.is_empty().then_some(()))
        })?;
        // The link breaks: it says so, and has an exit code of its own.
        let mut logs = follow()?;
        log_line(world, &node, "canary-before-the-end")?;
        logs.says("canary-before-the-end")?;
        for pid in host::machine_processes(&node, "windlass-agent")? {
            host::kill_hard(pid)?;
        }
        let code = logs.ends()?;
        ensure!(code == Some(5), "exit code {code:?}: {}", logs.said);
        ensure!(logs.said.contains("broke"), "{}", logs.said);
        until("the agent is back", PATIENCE, || {
            let back = world.output(&["node", "exec", &node, "--", "true"])?;
            Ok(back.status.success().then_some(()))
        })
    })
}

/// `windlass node shell` on a terminal of its own.
struct Terminal {
    child: Child,
    /// Our end: what a person types and sees.
    master: std::fs::File,
    /// Kept open, to look at its modes.
    slave: OwnedFd,
    shown: String,
    pieces: Receiver<String>,
}

impl Terminal {
    fn open(world: &World, node: &str) -> Result<Terminal> {
        let pty = openpty(None, None).context("cannot open a terminal")?;
        let child = world
            .command(&["node", "shell", node])
            .env("TERM", "xterm")
            .stdin(pty.slave.try_clone()?)
            .stdout(pty.slave.try_clone()?)
            .stderr(pty.slave.try_clone()?)
            .spawn()
            .context("cannot start windlass")?;
        let master = std::fs::File::from(pty.master);
        let (sender, pieces) = channel();
        let mut reader = master.try_clone()?;
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = reader.read(&mut buffer) {
                let piece = String::from_utf8_lossy(&buffer[..read]).into_owned();
                if sender.send(piece).is_err() {
                    return;
                }
            }
        });
        Ok(Terminal {
            child,
            master,
            slave: pty.slave,
            shown: String::new(),
            pieces,
        })
    }

    fn types(&mut self, text: &str) -> Result<()> {
        self.master
            .write_all(text.as_bytes())
            .context("cannot type")
    }

    fn sees(&mut self, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.shown.contains(wanted) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.pieces.recv_timeout(left) {
                Ok(piece) => self.shown.push_str(&piece),
                Err(_) => bail!("{wanted:?} was not shown: {:?}", self.shown),
            }
        }
        Ok(())
    }

    fn ends(&mut self) -> Result<Option<i32>> {
        let status = until("the shell has ended", PATIENCE, || {
            Ok(self.child.try_wait()?)
        })?;
        Ok(status.code())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn shell() -> Result<()> {
    with_world(|world| {
        shared_cluster(world)?;
        let node = machine_of(world, SHARED, "worker")?;
        let mut terminal = Terminal::open(world, &node)?;
        let before = tcgetattr(&terminal.slave)?.local_flags;
        terminal.types("echo on-$((40+2))-$(cat /etc/hostname)\n")?;
        terminal.sees(&format!("on-42-{node}"))?;
        let raw = tcgetattr(&terminal.slave)?.local_flags;
        ensure!(raw != before, "the terminal is raw while the shell runs");
        // Ctrl-C goes to what runs in the shell, once that has the terminal.
        terminal.types("sleep 4711\n")?;
        until("sleep has the terminal", PATIENCE, || {
            let found = host::processes("sleep 4711")?;
            Ok(found
                .iter()
                .any(|(pid, _)| in_foreground(*pid))
                .then_some(()))
        })?;
        terminal.types("\u{3}")?;
        terminal.types("echo alive-$((2+2))\n")?;
        terminal.sees("alive-4")?;
        terminal.types("exit 7\n")?;
        let code = terminal.ends()?;
        ensure!(code == Some(7), "exit code {code:?}: {}", terminal.shown);
        let after = tcgetattr(&terminal.slave)?.local_flags;
        ensure!(after == before, "the terminal is as it was");
        // Who watches goes away; what the shell started goes too.
        let mut terminal = Terminal::open(world, &node)?;
        terminal.types("set -m; sleep 4712 & echo job-$((3+3)); sleep 4713\n")?;
        terminal.sees("job-6")?;
        let jobs = || Ok::<_, anyhow::Error>(host::processes("sleep 471")?.len());
        until("both jobs run", PATIENCE, || {
            Ok((jobs()? == 2).then_some(()))
        })?;
        terminal.child.kill()?;
        until("the jobs are gone", PATIENCE, || {
            Ok((jobs()? == 0).then_some(()))
        })?;
        let log = world.json(&["audit", "--action", "node.shell"])?;
        let outcomes: Vec<&str> = items(&log)
            .iter()
            .filter_map(|entry| entry["outcome"].as_str())
            .collect();
        ensure!(outcomes.contains(&"exit 7"), "{log:#}");
        Ok(())
    })
}

/// Whether a process is in the group that its terminal's keys are for (proc(5): pgrp and tpgid).
fn in_foreground(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect())
        .unwrap_or_default();
    fields.len() > 5 && fields[2] == fields[5]
}

fn items(answer: &Value) -> &[Value] {
    answer["items"].as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn top() -> Result<()> {
    with_world(|world| {
        shared_cluster(world)?;
        let rows = world.json(&["node", "top", SHARED, "--once", "--interval", "1"])?;
        let rows = rows.as_array().context("no rows")?;
        ensure!(rows.len() == 3, "{rows:#?}");
        for row in rows {
            let cpu = row["cpuPercent"].as_f64().context("no CPU")?;
            ensure!((0.0..=10_000.0).contains(&cpu), "{row:#}");
            let used = row["vitals"]["memory_used_bytes"].as_u64();
            ensure!(used > Some(1 << 20), "{row:#}");
        }
        let text = world.run(&["node", "top", SHARED, "--once", "--interval", "1"])?;
        ensure!(text.contains("MEMORY") && text.contains("%"), "{text}");
        Ok(())
    })
}

pub(crate) fn collect() -> Result<()> {
    with_world(|world| {
        shared_cluster(world)?;
        let node = machine_of(world, SHARED, "control")?;
        let canaries = ["password=canary-one", "Authorization: Bearer canary-two"];
        for canary in canaries {
            log_line(world, &node, canary)?;
        }
        log_line(
            world,
            &node,
            "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGcanarythree\n-----END PRIVATE KEY-----",
        )?;
        log_line(world, &node, "harmless-line")?;
        let bundle = world.dir().join("bundle.tar.gz");
        let path = bundle.to_string_lossy().into_owned();
        world.run(&["node", "collect", &node, "-o", &path, "-n", "2000"])?;
        let names = tar(&["-tzf"], &bundle)?;
        for part in [
            "machine.json",
            "state-and-journal.txt",
            "journal/kubelet.log",
            "audit.json",
        ] {
            let part = format!("{node}/{part}");
            ensure!(names.contains(&part), "{part} is not in {names}");
        }
        ensure!(
            names.contains(&format!("clusters/{SHARED}/tasks.json")),
            "{names}"
        );
        let all = tar(&["-xzOf"], &bundle)?;
        for wanted in ["harmless-line", "kubelet", "== processes", "createCluster"] {
            ensure!(all.contains(wanted), "{wanted} is not in the bundle");
        }
        for canary in ["canary-one", "canary-two", "canarythree"] {
            ensure!(!all.contains(canary), "{canary} is in the bundle");
        }
        // No key of the machine, of the operator or of the store, line by line.
        let keys = "cat /etc/kubernetes/pki/*.key /var/lib/windlass/identity/identity.pem";
        let keys = world.run(&["node", "exec", &node, "--", "sh", "-c", keys])?;
        let operator = std::fs::read_to_string(world.dir().join("operator/admin.key"))?;
        let mut looked_for = 0;
        for line in private_lines(&keys).chain(private_lines(&operator)) {
            ensure!(!all.contains(line), "a private key is in the bundle");
            looked_for += 1;
        }
        ensure!(looked_for > 10, "only {looked_for} lines of keys");
        Ok(())
    })
}

/// The two lines of each PKCS#8 key that hold the private number; what follows is the public key, which
/// certificates show.
fn private_lines(pem: &str) -> impl Iterator<Item = &str> {
    pem.split("-----BEGIN PRIVATE KEY-----\n")
        .skip(1)
        .flat_map(|key| key.lines().take(2))
}

pub(crate) fn tar(arguments: &[&str], bundle: &Path) -> Result<String> {
    let output = Command::new("tar").args(arguments).arg(bundle).output()?;
    ensure!(output.status.success(), "tar: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(crate) fn kubectl_through_the_director() -> Result<()> {
    with_world(|world| {
        shared_cluster(world)?;
        let kubectl = world.kubectl_through_director(SHARED, None)?;
        ensure!(kubectl.ready_nodes()?.len() == 3, "nodes");
        only_the_director(world, &kubectl)?;
        let pods = echo(&kubectl)?;
        let pod = name(&pods[0])?;
        // WebSocket, and SPDY as older clients speak it.
        for websocket in ["true", "false"] {
            let said = kubectl
                .command(&["exec", pod, "--", "/agnhost", "help"])
                .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websocket)
                .output()?;
            let text = String::from_utf8_lossy(&said.stdout).into_owned();
            let fault = String::from_utf8_lossy(&said.stderr).into_owned();
            ensure!(
                text.contains("netexec"),
                "websocket {websocket}: {text}{fault}"
            );
        }
        let forward = Forward::start(&kubectl, pod)?;
        let answer = forward.get("/hostname")?;
        ensure!(answer.ends_with(pod), "port-forward reached {answer:?}");
        let mut logs = Talker::start(kubectl.command(&["logs", "-f", pod]))?;
        logs.says("8080")?;
        forward.get("/echo?msg=canary-in-the-pod")?;
        logs.says("canary-in-the-pod")?;
        let mut watch = Talker::start(kubectl.command(&["get", "configmaps", "--watch"]))?;
        watch.says("kube-root-ca.crt")?;
        kubectl.run(&["create", "configmap", "seen-by-the-watch"])?;
        watch.says("seen-by-the-watch")?;
        kubectl.run(&["delete", "configmap", "seen-by-the-watch"])?;
        let who = kubectl.run(&["auth", "whoami", "-o", "json"])?;
        ensure!(who.contains("windlass:operator:admin"), "{who}");
        ensure!(!who.contains("system:masters"), "{who}");
        let log = world.json(&["audit", "--action", "cluster.kubernetes", "-n", "1000"])?;
        let exec = |entry: &&Value| {
            entry["detail"]
                .as_str()
                .is_some_and(|d| d.contains("/exec?"))
        };
        ensure!(items(&log).iter().any(|entry| exec(&entry)), "{log:#}");
        Ok(())
    })
}

/// Each request of kubectl goes to the director's API and none to the cluster's endpoint.
fn only_the_director(world: &World, kubectl: &Kubectl) -> Result<()> {
    let told = kubectl.command(&["get", "nodes", "-v=8"]).output()?;
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    let cluster = world.json(&["cluster", "show", SHARED])?;
    let endpoint = cluster["endpoint"]["address"]
        .as_str()
        .context("no endpoint")?;
    let path = format!("/v1/clusters/{SHARED}/kubernetes/api/v1/nodes");
    ensure!(told.contains(&path), "{told}");
    ensure!(!told.contains(endpoint), "it asked {endpoint}: {told}");
    Ok(())
}

pub(crate) fn a_viewer_looks() -> Result<()> {
    with_world(|world| {
        let direct = shared_cluster(world)?;
        let pods = echo(&direct)?;
        let pod = name(&pods[0])?;
        let context: PathBuf = world.dir().join("viewer.toml");
        let out = context.to_string_lossy().into_owned();
        let viewer = "viewer";
        world.run(&["operator", "add", viewer, "--role", "viewer", "--out", &out])?;
        let kubectl = world.kubectl_through_director(SHARED, Some(&context))?;
        ensure!(kubectl.ready_nodes()?.len() == 3, "a viewer sees nodes");
        kubectl.run(&["get", "pods", "-A"])?;
        for refused in [
            &["exec", pod, "--", "/agnhost", "help"][..],
            &["create", "configmap", "x"],
            &["delete", "pod", pod],
            &["get", "secrets", "-A"],
            &["get", "nodes", "--as=system:admin"],
        ] {
            let why = kubectl.refused(refused)?;
            let why = why.to_lowercase();
            ensure!(why.contains("forbidden"), "{refused:?}: {why}");
        }
        for refused in [
            &["node", "exec", "x", "--", "true"][..],
            &["node", "logs", "x"],
            &["cluster", "delete", SHARED, "--yes"],
            &["cluster", "credentials", SHARED],
            &["operator", "set-role", viewer, "admin"],
        ] {
            let output = world.output(&[&["--context", &out], refused].concat())?;
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(why.contains("takes the role"), "{refused:?}: {why}");
        }
        // Out at once, also from what is being watched.
        let mut watch = Talker::start(kubectl.command(&["get", "configmaps", "--watch"]))?;
        watch.says("kube-root-ca.crt")?;
        world.run(&["operator", "revoke", viewer])?;
        watch.ends()?;
        let out = kubectl.refused(&["get", "nodes"])?;
        ensure!(!out.is_empty(), "it says why");
        Ok(())
    })
}
