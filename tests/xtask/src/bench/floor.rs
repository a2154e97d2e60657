//! The floor of a create: what the machines cost without us.
//!
//! The configuration of a cluster that Windlass made is taken out of its machines; then the same
//! machines are started by hand, by `runc` from an overlay each, with every unit enabled and the
//! agent left out, and the time is taken until every node is Ready. etcd and the kubelets start
//! empty, as in a create. Nothing is planned, enrolled, signed or sent.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::director::Director;
use crate::build;
use crate::shell::{capture, command};

const BRIDGE: &str = "wlfloor0";
/// Kubeconfig of the controller manager inside a control-plane machine.
const CONTROLLERS: &str = "/etc/kubernetes/kube-controller-manager.kubeconfig";
const DEADLINE: Duration = Duration::from_secs(60);

/// Prepared machines.
pub(super) struct Floor {
    dir: PathBuf,
    stemcell: PathBuf,
    gateway: String,
    endpoint: String,
    machines: Vec<Machine>,
}

struct Machine {
    name: String,
    address: String,
    control_plane: bool,
}

impl Floor {
    /// Takes the configuration out of the running machines of a cluster.
    pub(super) fn prepare(director: &Director, cluster: &str) -> Result<Floor> {
        let dir = build::state().join("floor");
        let mut floor = Floor {
            dir,
            stemcell: director.stemcell.clone(),
            gateway: String::new(),
            endpoint: String::new(),
            machines: Vec::new(),
        };
        floor.clean()?;
        let shown = director.json(&["cluster", "show", cluster])?;
        floor.endpoint = text(&shown, "/endpoint/address")?;
        for node in director.list(&["node", "list", "--cluster", cluster])? {
            let node = &node;
            let machine = Machine {
                name: text(node, "/nodeName")?,
                address: text(node, "/address")?,
                control_plane: node["role"].to_string().contains("controlPlane"),
            };
            floor.take(&machine)?;
            floor.machines.push(machine);
        }
        Ok(floor)
    }

    /// Copies `/etc` of a running machine.
    fn take(&mut self, machine: &Machine) -> Result<()> {
        let init = init_of(&machine.name)?;
        let home = self.dir.join(&machine.name);
        fs::create_dir_all(home.join("upper"))?;
        let etc = format!("/proc/{init}/root/etc");
        capture(command("cp").args(["-a", &etc]).arg(home.join("upper/etc")))?;
        let routes = capture(command("nsenter").args(["-t", &init, "-n", "ip", "route", "show"]))?;
        fs::write(home.join("routes"), &routes)?;
        if let Some(gateway) = routes.lines().find_map(|l| l.strip_prefix("default via ")) {
            self.gateway = gateway
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned();
        }
        let units = home.join("upper/etc/systemd/system");
        for entry in fs::read_dir(&units)? {
            let path = entry?.path();
            // The floor keeps etcd's data in a plain directory.
            if path
                .extension()
                .is_some_and(|extension| extension == "mount")
            {
                fs::remove_file(&path)?;
            }
        }
        let mask = units.join("windlass-agent.service");
        let _ = fs::remove_file(&mask);
        symlink("/dev/null", &mask).context("cannot mask the agent")?;
        Ok(())
    }

    /// Starts the machines and returns the seconds until every node is Ready; then removes them.
    pub(super) fn start(&self) -> Result<f64> {
        self.network()?;
        for machine in &self.machines {
            self.bundle(machine)?;
        }
        let started = Instant::now();
        for machine in &self.machines {
            self.boot(machine)?;
        }
        // A floor that did not come up stays for a look; the next run removes it.
        let seconds = self.await_ready(started)?;
        self.clean()?;
        Ok(seconds)
    }

    fn network(&self) -> Result<()> {
        batch(&[
            format!("link add {BRIDGE} type bridge"),
            format!("addr add {}/20 dev {BRIDGE}", self.gateway),
            format!("link set {BRIDGE} up"),
        ])
    }

    /// Everything that is prepared before the clock starts.
    fn bundle(&self, machine: &Machine) -> Result<()> {
        let home = self.dir.join(&machine.name);
        for dir in [
            "work",
            "root",
            "data/containerd",
            "data/kubelet",
            "data/etcd",
        ] {
            fs::create_dir_all(home.join(dir))?;
        }
        fs::set_permissions(home.join("data/etcd"), fs::Permissions::from_mode(0o700))?;
        // What containerd has at birth: the images.
        let images = self.stemcell.join("rootfs/var/lib/containerd/.");
        capture(
            command("cp")
                .arg("-a")
                .arg(images)
                .arg(home.join("data/containerd")),
        )?;
        fs::write(home.join("config.json"), spec(machine, &home)?.to_string())?;
        Ok(())
    }

    fn boot(&self, machine: &Machine) -> Result<()> {
        let name = &machine.name;
        let home = self.dir.join(name);
        let link = format!("wf{}", &name.chars().rev().take(10).collect::<String>());
        let mut lines = vec![
            format!("netns add {name}"),
            format!("link add {link} type veth peer name eth0 netns {name}"),
            format!("link set {link} master {BRIDGE} up"),
        ];
        batch(&lines)?;
        lines = vec![
            format!("addr add {}/20 dev eth0", machine.address),
            "link set eth0 up".to_owned(),
            "link set lo up".to_owned(),
            format!("route add default via {}", self.gateway),
            "route add prohibit 169.254.169.254".to_owned(),
        ];
        if machine.control_plane {
            lines.push(format!("addr add {}/20 dev eth0", self.endpoint));
        }
        let routes = fs::read_to_string(home.join("routes"))?;
        lines.extend(
            routes
                .lines()
                .filter(|l| l.contains("proto 119"))
                .map(|l| format!("route add {l}")),
        );
        batch_in(name, &lines)?;
        capture(command("ip").args([
            "netns",
            "exec",
            name,
            "sysctl",
            "-qw",
            "net.ipv4.ip_forward=1",
        ]))?;
        let root = home.join("root");
        capture(
            command("mount")
                .args(["-t", "overlay", "overlay", "-o"])
                .arg(format!(
                    "lowerdir={},upperdir={},workdir={}",
                    self.stemcell.join("rootfs").display(),
                    home.join("upper").display(),
                    home.join("work").display()
                ))
                .arg(&root),
        )?;
        let console = fs::File::create(home.join("console.log"))?;
        let status = command("runc")
            .args(["run", "--detach", "--bundle"])
            .arg(&home)
            .arg(name)
            .stdout(console.try_clone()?)
            .stderr(console)
            .status()?;
        if !status.success() {
            bail!("runc: {}", fs::read_to_string(home.join("console.log"))?);
        }
        Ok(())
    }

    fn await_ready(&self, started: Instant) -> Result<f64> {
        let control_plane = self
            .machines
            .iter()
            .find(|m| m.control_plane)
            .context("no control plane")?;
        let ready =
            r#"{range .items[*]}{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}"#;
        loop {
            // The controllers' own credentials: a new cluster grants them the list of nodes, while the
            // operators' group has no rights before somebody binds it.
            let answer = capture(
                command("runc")
                    .args(["exec", &control_plane.name])
                    .arg("/opt/windlass/components/kubectl/current/kubectl")
                    .args(["--kubeconfig", CONTROLLERS, "--request-timeout=2s"])
                    .args(["get", "nodes", "-o", &format!("jsonpath={ready}")]),
            );
            if let Ok(answer) = answer
                && answer.lines().filter(|line| *line == "True").count() == self.machines.len()
            {
                return Ok(started.elapsed().as_secs_f64());
            }
            if started.elapsed() > DEADLINE {
                bail!("the floor did not come up; look at {}", self.dir.display());
            }
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    /// Removes every trace of the floor, also of one that was cut off.
    fn clean(&self) -> Result<()> {
        let Ok(entries) = fs::read_dir(&self.dir) else {
            return Ok(());
        };
        for entry in entries.flatten() {
            let home = entry.path();
            if !home.join("upper").is_dir() {
                continue;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            // Each may be gone already: a floor that was cut off is cleaned all the same.
            let _ = capture(command("runc").args(["delete", "--force", &name]));
            let _ = capture(command("umount").arg("-R").arg("-l").arg(home.join("root")));
            let _ = capture(command("ip").args(["netns", "del", &name]));
            remove_cgroups(&name);
        }
        let _ = capture(command("ip").args(["link", "del", BRIDGE]));
        fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {:?}", self.dir))
    }
}

fn remove_cgroups(name: &str) {
    let roots = fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten();
    for root in roots
        .map(|entry| entry.path())
        .chain([PathBuf::from("/sys/fs/cgroup")])
    {
        let group = root.join("wlfloor").join(name);
        if group.is_dir() {
            // Busy for the moment in which the last process of the machine ends.
            let _ = capture(
                command("find")
                    .arg(&group)
                    .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]),
            );
        }
        // Stays while another machine of the floor has a group in it.
        let _ = fs::remove_dir(root.join("wlfloor"));
    }
}

/// The OCI configuration of a machine: systemd as its first process.
fn spec(machine: &Machine, home: &Path) -> Result<Value> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &[]),
        mount("/sys", "sysfs", "sysfs", &["rw"]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["rw"]),
        mount("/dev", "tmpfs", "tmpfs", &["mode=755"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["newinstance", "ptmxmode=0666", "mode=0620"],
        ),
        mount("/dev/shm", "tmpfs", "shm", &[]),
        mount("/dev/mqueue", "mqueue", "mqueue", &[]),
        mount("/run", "tmpfs", "tmpfs", &[]),
        mount("/run/lock", "tmpfs", "tmpfs", &[]),
        mount("/tmp", "tmpfs", "tmpfs", &[]),
        mount("/dev/kmsg", "bind", "/dev/kmsg", &["bind", "rw"]),
    ];
    for data in ["containerd", "kubelet", "etcd"] {
        let source = home.join("data").join(data);
        let source = source.to_string_lossy();
        mounts.push(mount(
            &format!("/var/lib/{data}"),
            "bind",
            &source,
            &["rbind", "rw", "rshared"],
        ));
    }
    let capabilities = bounding_set()?;
    let namespaces: Vec<Value> = ["pid", "ipc", "uts", "mount", "cgroup"]
        .iter()
        .map(|kind| json!({"type": kind}))
        .chain([json!({"type": "network", "path": format!("/run/netns/{}", machine.name)})])
        .collect();
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false, "user": {"uid": 0, "gid": 0}, "args": ["/sbin/init"], "cwd": "/",
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "container=oci"],
            "capabilities": {"bounding": capabilities, "effective": capabilities,
                             "permitted": capabilities, "inheritable": capabilities},
            "noNewPrivileges": false},
        "root": {"path": home.join("root")},
        "hostname": machine.name,
        "mounts": mounts,
        "linux": {
            "namespaces": namespaces, "cgroupsPath": format!("/wlfloor/{}", machine.name),
            "rootfsPropagation": "shared", "maskedPaths": [], "readonlyPaths": [],
            "resources": {"devices": [{"allow": true, "access": "rwm"}]}},
    }))
}

/// Names of the capabilities that this process may hand on.
fn bounding_set() -> Result<Vec<String>> {
    let listed = capture(command("capsh").arg("--print"))?;
    let line = listed
        .lines()
        .find_map(|l| l.strip_prefix("Bounding set ="))
        .context("no bounding set")?;
    Ok(line.trim().split(',').map(str::to_uppercase).collect())
}

/// The first process of the machine whose node has this name.
fn init_of(node: &str) -> Result<String> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let comm = fs::read_to_string(path.join("comm")).unwrap_or_default();
        let hostname = fs::read_to_string(path.join("root/etc/hostname")).unwrap_or_default();
        let status = fs::read_to_string(path.join("status")).unwrap_or_default();
        let first = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))
            .is_some_and(|pids| pids.split_whitespace().last() == Some("1"));
        if comm.trim() == "systemd" && hostname.trim() == node && first {
            return Ok(path
                .file_name()
                .context("a process has a name")?
                .to_string_lossy()
                .into_owned());
        }
    }
    bail!("no machine of node {node} runs here")
}

fn text(value: &Value, pointer: &str) -> Result<String> {
    let found = value.pointer(pointer).and_then(Value::as_str);
    Ok(found
        .with_context(|| format!("no {pointer} in {value}"))?
        .to_owned())
}

fn batch(lines: &[String]) -> Result<()> {
    lines
        .iter()
        .try_for_each(|line| capture(command("ip").args(line.split_whitespace())).map(|_| ()))
}

fn batch_in(namespace: &str, lines: &[String]) -> Result<()> {
    lines.iter().try_for_each(|line| {
        capture(
            command("ip")
                .args(["-n", namespace])
                .args(line.split_whitespace()),
        )
        .map(|_| ())
    })
}
