//! A machine that was replaced comes back: with its old keys it is refused at each door.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use windlass_tests::damage::Revenant;
use windlass_tests::host;
use windlass_tests::kubectl::Kubectl;
use windlass_tests::wait::until;
use windlass_tests::world::World;

use crate::repair::{ACTS, incarnation, verdict};

/// What a machine could prove its identity with, copied while it still ran.
pub(crate) struct Zombie {
    /// A root directory that holds nothing but its keys, its settings and its agent.
    root: tempfile::TempDir,
    /// Its node.
    node: String,
    /// Its cluster's API, as its kubelet.
    kubectl: Kubectl,
}

/// With what API servers refuse what a machine writes that was replaced, and with what whatever one of a control plane asks.
const REFUSALS: [&str; 2] = ["was replaced", "was-replaced"];
/// The namespace of what controls a cluster.
const SYSTEM: &str = "kube-system";
/// Its kubelet's identity, in its own file system.
const CERTIFICATE: &str = "etc/kubernetes/pki/kubelet-client.crt";
const KEY: &str = "etc/kubernetes/pki/kubelet-client.key";
/// Where identities are, in its own file system.
const PKI: &str = "etc/kubernetes/pki";
/// Its agent's settings and identity.
const SETTINGS: &str = "etc/windlass/settings.json";
const IDENTITY: &str = "var/lib/windlass/identity";

impl Zombie {
    /// Copies the keys of a machine, and shows that they open its doors as long as it is not replaced.
    pub(crate) fn of(machine: &str, node: &str, operator: &Kubectl) -> Result<Zombie> {
        let agents = host::machine_processes(machine, "windlass-agent")?;
        let agent = agents.first().context("its agent runs")?;
        let from = PathBuf::from(format!("/proc/{agent}/root"));
        let root = tempfile::tempdir()?;
        for file in [CERTIFICATE, KEY] {
            copy(&from.join(file), &root.path().join(file))?;
        }
        identity(&from, root.path())?;
        let program = root.path().join("windlass-agent");
        copy(Path::new(&format!("/proc/{agent}/exe")), &program)?;
        let kubectl = as_client(operator, root.path(), "kubelet-client")?;
        kubectl
            .run(&["annotate", "node", node, "zombie=not-yet"])
            .context("its kubelet may write as long as it is current")?;
        Ok(Zombie {
            root,
            node: node.to_owned(),
            kubectl,
        })
    }

    /// Tries all doors after its replacement.
    pub(crate) fn is_refused(&self, world: &World, operator: &Kubectl, etcd: &str) -> Result<()> {
        self.at_the_api_server(operator)?;
        self.at_etcd(etcd)?;
        self.at_the_link(world)
    }

    /// Puts the old identity onto its successor: an agent that is told that it was replaced stops what acts for its
    /// machine, which are `programs` in the order of their start. With its own identity again the machine goes on.
    pub(crate) fn gives_way(&self, world: &World, machine: &str, programs: &[&str]) -> Result<()> {
        let process = |program: &str| -> Result<i32> {
            let found = host::machine_processes(machine, program)?;
            found
                .first()
                .copied()
                .with_context(|| format!("{program} runs"))
        };
        let root = PathBuf::from(format!("/proc/{}/root", process("containerd")?));
        let own = tempfile::tempdir()?;
        identity(&root, own.path())?;
        identity(self.root.path(), &root)?;
        host::kill_hard(process("windlass-agent")?)?;
        let stopped = until("all that acts is stopped", Duration::from_secs(60), || {
            for program in programs {
                if !host::machine_processes(machine, program)?.is_empty() {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        });
        identity(own.path(), &root)?;
        host::kill_hard(process("windlass-agent")?)?;
        stopped?;
        until("it is itself again", Duration::from_secs(60), || {
            let start = ["node", "exec", machine, "--", "systemctl", "start"];
            let start = [&start, programs].concat();
            Ok(world.output(&start)?.status.success().then_some(()))
        })
    }

    fn at_the_api_server(&self, operator: &Kubectl) -> Result<()> {
        let node = &self.node;
        let again = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": node, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": node, "leaseDurationSeconds": 40}});
        for object in [again, lease] {
            let file = self.root.path().join("object.json");
            fs::write(&file, object.to_string())?;
            let path = file.to_string_lossy().into_owned();
            let said = self
                .kubectl
                .refused(&["create", "--validate=false", "-f", &path])?;
            ensure!(is_refusal(&said), "refused for another reason: {said}");
        }
        let nodes = operator.get(&["nodes"])?;
        ensure!(
            !nodes.to_string().contains(&format!("\"{node}\"")),
            "its Node is back"
        );
        Ok(())
    }

    /// Its kubelet's key never counted there, and does not now.
    fn at_etcd(&self, address: &str) -> Result<()> {
        let output = Command::new("curl")
            .args(["--verbose", "--insecure", "--max-time", "10"])
            .arg("--cert")
            .arg(self.root.path().join(CERTIFICATE))
            .arg("--key")
            .arg(self.root.path().join(KEY))
            .arg(format!("https://{address}:2379/v3/cluster/member/list"))
            .output()
            .context("cannot run curl")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "etcd took its certificate");
        // It was reached and named itself; the alert with which it refuses may be lost in the reset after it.
        ensure!(
            said.contains("SSL connection using TLSv1.3"),
            "refused for another reason: {said}"
        );
        Ok(())
    }

    fn at_the_link(&self, world: &World) -> Result<()> {
        let log = self.root.path().join("agent.log");
        let mut agent = Command::new(self.root.path().join("windlass-agent"))
            .arg("--root")
            .arg(self.root.path())
            .stdin(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("cannot start its agent")?;
        let told = until(
            "the director refuses its agent",
            Duration::from_secs(30),
            || {
                let said = fs::read_to_string(&log)?;
                let lines: Vec<&str> = said.lines().collect();
                let told = lines.iter().find(|line| line.contains("the link broke"));
                Ok(told.map(|line| (*line).to_owned()))
            },
        );
        // It would try for ever.
        agent.kill()?;
        agent.wait()?;
        let told = told.with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        ensure!(
            told.to_lowercase().contains("revoked") || told.contains("not current"),
            "refused for another reason: {told}"
        );
        let list = world.json(&["node", "list"])?;
        ensure!(
            !list.to_string().contains(&format!("\"{}\"", self.node)),
            "the director has its node: {list:#}"
        );
        Ok(())
    }
}

/// What the controllers of a control-plane machine could prove themselves with, copied while it still ran.
pub(crate) struct Controllers {
    /// Their keys and certificates, and what is written with them.
    root: tempfile::TempDir,
    /// The API as each of them.
    clients: Vec<(&'static str, Kubectl)>,
}

/// The controllers that lead by a Lease, which has their name.
const LEADERS: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];

/// As whom its API server calls kubelets.
const CALLER: &str = "apiserver-kubelet-client";

impl Controllers {
    /// Copies the keys of a machine's controllers, and shows that they may write as long as it is not replaced.
    /// The kubelet at an address answers its API server.
    pub(crate) fn of(machine: &str, operator: &Kubectl, kubelet: &str) -> Result<Controllers> {
        let agents = host::machine_processes(machine, "windlass-agent")?;
        let agent = agents.first().context("its agent runs")?;
        let from = PathBuf::from(format!("/proc/{agent}/root")).join(PKI);
        let root = tempfile::tempdir()?;
        let mut clients = Vec::new();
        for leader in LEADERS {
            for file in [format!("{leader}.crt"), format!("{leader}.key")] {
                copy(&from.join(&file), &root.path().join(PKI).join(&file))?;
            }
            clients.push((leader, as_client(operator, root.path(), leader)?));
        }
        for file in [format!("{CALLER}.crt"), format!("{CALLER}.key")] {
            copy(&from.join(&file), &root.path().join(PKI).join(&file))?;
        }
        let controllers = Controllers { root, clients };
        for (leader, kubectl) in &controllers.clients {
            let lease = controllers.lease(&format!("{leader}-of-test"))?;
            kubectl
                .run(&["create", "--validate=false", "-f", &lease])
                .with_context(|| format!("{leader} may write as long as it is current"))?;
            let lease = format!("{leader}-of-test");
            operator.run(&["-n", SYSTEM, "delete", "lease", &lease])?;
        }
        let code = controllers.calls(kubelet, "/pods")?;
        ensure!(code == "200", "a kubelet says to its API server {code}");
        Ok(controllers)
    }

    /// A file with a Lease.
    fn lease(&self, name: &str) -> Result<String> {
        let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": SYSTEM},
            "spec": {"holderIdentity": "zombie", "leaseDurationSeconds": 15}});
        let file = self.root.path().join("lease.json");
        fs::write(&file, lease.to_string())?;
        Ok(file.to_string_lossy().into_owned())
    }

    /// They make nothing, do not lead, get no token to act with, and read nothing; and the kubelet at an address, which
    /// answered their API server before, does not.
    pub(crate) fn are_refused(&self, kubelet: &str) -> Result<()> {
        for (leader, kubectl) in &self.clients {
            let new = self.lease(&format!("{leader}-of-test"))?;
            let made = kubectl.refused(&["create", "--validate=false", "-f", &new])?;
            let own = self.lease(leader)?;
            let led = until("it tries to lead", Duration::from_secs(30), || {
                let said = kubectl.refused(&["replace", "--validate=false", "-f", &own])?;
                // The one that leads has written in between.
                Ok((!said.contains("has been modified")).then_some(said))
            })?;
            for said in [made, led] {
                ensure!(
                    is_refusal(&said),
                    "{leader} is refused for another reason: {said}"
                );
            }
        }
        let (_, manager) = &self.clients[0];
        let token = ["-n", SYSTEM, "create", "token", "deployment-controller"];
        let said = manager.refused(&token)?;
        ensure!(is_refusal(&said), "refused for another reason: {said}");
        let secrets = ["get", "secrets", "--all-namespaces"];
        let said = manager.refused(&secrets).context("it reads Secrets")?;
        ensure!(is_refusal(&said), "refused for another reason: {said}");
        // Another path than before: a kubelet remembers for five minutes whom it let in where.
        let code = self.calls(kubelet, "/metrics")?;
        ensure!(code == "403", "a kubelet answers its API server: {code}");
        Ok(())
    }

    /// What the kubelet at an address says to the API server.
    fn calls(&self, address: &str, path: &str) -> Result<String> {
        let file = |end: &str| self.root.path().join(PKI).join(format!("{CALLER}.{end}"));
        let output = Command::new("curl")
            .args(["--silent", "--insecure", "--max-time", "10"])
            .args(["--output", "/dev/null", "--write-out", "%{http_code}"])
            .arg("--cert")
            .arg(file("crt"))
            .arg("--key")
            .arg(file("key"))
            .arg(format!("https://{address}:10250{path}"))
            .output()
            .context("cannot run curl")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// A worker that was replaced and kept boots again from its old disk, `kept`: it is told to give way and does, its
/// kubelet is refused where nobody stops it, and its successor is not touched.
pub(crate) fn boots_again(
    world: &World,
    operator: &Kubectl,
    machine: &str,
    kept: &Value,
) -> Result<()> {
    revives(world, operator, machine, kept, &["kubelet"], |_| Ok(()))
}

/// The same of a control-plane machine, and what controls its cluster is stopped. Where nobody stops that, it leads
/// nothing, and etcd has the members that it had.
pub(crate) fn control_plane_boots_again(
    world: &World,
    operator: &Kubectl,
    machine: &str,
    kept: &Value,
    member: (&EtcdKeys, &str),
) -> Result<()> {
    let (etcd, address) = member;
    let before = etcd.members(address)?;
    revives(world, operator, machine, kept, &ACTS, |revenant| {
        let start = ["systemctl", "start", "--no-block"];
        revenant.run(&[&start[..], &LEADERS, &["etcd", "kube-apiserver"]].concat())?;
        for leader in LEADERS {
            let config = format!("--kubeconfig=/etc/kubernetes/{leader}.kubeconfig");
            let kubectl = "/opt/windlass/components/kubectl/current/kubectl";
            let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": "of-a-zombie", "namespace": SYSTEM}});
            let create =
                format!("echo '{lease}' | {kubectl} {config} create --validate=false -f - 2>&1");
            let said = revenant.run(&["sh", "-c", &create])?;
            ensure!(is_refusal(&said), "{leader} at its console: {said}");
        }
        leads_nothing(operator, revenant)?;
        let after = etcd.members(address)?;
        ensure!(before == after, "members were {before}, and are {after}");
        Ok(())
    })
}

/// A scheduler that runs on although its machine was replaced tries to lead once nobody does, and is refused.
fn leads_nothing(operator: &Kubectl, revenant: &Revenant) -> Result<()> {
    let lease = ["-n", SYSTEM, "patch", "lease", "kube-scheduler"];
    let released = r#"{"spec":{"holderIdentity":""}}"#;
    let release = [&lease[..], &["--type=merge", "-p", released]].concat();
    let journal = || revenant.run(&["journalctl", "--unit", "kube-scheduler", "--output", "cat"]);
    let led = || Ok::<_, anyhow::Error>(journal()?.matches("successfully acquired lease").count());
    let before = led()?;
    let patience = Duration::from_secs(120);
    until("its scheduler tries to lead", patience, || {
        // It looks every few seconds, and others are quick.
        operator.run(&release)?;
        Ok(is_refusal(&journal()?).then_some(()))
    })?;
    ensure!(led()? == before, "its scheduler leads");
    Ok(())
}

/// Boots what is kept of a machine beside its successor. `acts` is what it has to stop, and `more` is done at its
/// console once its agent is ended, too.
fn revives(
    world: &World,
    operator: &Kubectl,
    machine: &str,
    kept: &Value,
    acts: &[&str],
    more: impl FnOnce(&Revenant) -> Result<()>,
) -> Result<()> {
    let patience = Duration::from_secs(120);
    let place = kept["place"].as_str().context("it is somewhere")?;
    let node = format!("{machine}-i{}", kept["incarnation"]);
    verdict(world, machine, "healthy").context("its successor")?;
    let successor = incarnation(world, machine)?;
    let boots = world.boots(machine)?;
    let began = Instant::now();
    let revenant = world.boot_kept(Path::new(place))?;
    let journal = |unit: &str| -> Result<String> {
        revenant.run(&["journalctl", "--unit", unit, "--output", "cat"])
    };
    until("its agent is told that it was replaced", patience, || {
        let said = journal("windlass-agent")?;
        let told = said.contains("was replaced by a later incarnation")
            && said.matches("stopped: this machine was replaced").count() >= acts.len();
        let active = revenant.run(&[&["systemctl", "is-active"][..], acts].concat())?;
        let mut states = active.lines();
        let stopped = states.all(|state| matches!(state, "inactive" | "failed"));
        Ok((told && stopped).then_some(()))
    })?;
    let since = |what: &str| eprintln!("  {what}: {:.1} s", began.elapsed().as_secs_f64());
    since("old disk booted, and what acts for it stopped");
    // One whose agent does not run either.
    revenant.run(&["systemctl", "stop", "windlass-agent"])?;
    let refusals = || {
        let said = journal("kubelet")?;
        let of = REFUSALS.iter().map(|refusal| said.matches(refusal).count());
        Ok::<_, anyhow::Error>(of.sum::<usize>())
    };
    let before = refusals()?;
    revenant.run(&["systemctl", "start", "--no-block", "kubelet"])?;
    until("API servers refuse its kubelet", patience, || {
        Ok((refusals()? > before).then_some(()))
    })?;
    since("its kubelet started by hand, and refused");
    more(&revenant)?;
    let nodes = operator.get(&["nodes"])?.to_string();
    ensure!(
        !nodes.contains(&format!("\"{node}\"")),
        "its Node is back: {nodes}"
    );
    verdict(world, machine, "healthy").context("its successor")?;
    ensure!(
        incarnation(world, machine)? == successor && world.boots(machine)? == boots,
        "its successor was replaced or restarted"
    );
    revenant.put_back()
}

/// What a control-plane machine could prove itself with to etcd, copied while it still ran.
pub(crate) struct EtcdKeys {
    /// Its keys and certificates, the authority's certificate, and etcd's client.
    root: tempfile::TempDir,
}

/// Its API server's identity, and its member's.
const ETCD_CLIENTS: [&str; 2] = ["apiserver-etcd-client", "etcd-peer"];

impl EtcdKeys {
    /// Copies the keys of a machine.
    pub(crate) fn of(machine: &str) -> Result<EtcdKeys> {
        let agents = host::machine_processes(machine, "windlass-agent")?;
        let agent = agents.first().context("its agent runs")?;
        let from = PathBuf::from(format!("/proc/{agent}/root"));
        let root = tempfile::tempdir()?;
        let mut files = vec!["etcd-ca.crt".to_owned()];
        for client in ETCD_CLIENTS {
            files.extend([format!("{client}.crt"), format!("{client}.key")]);
        }
        for file in files {
            let pki = from.join("etc/kubernetes/pki");
            copy(&pki.join(&file), &root.path().join(&file))?;
        }
        let versions = fs::read_dir(from.join("opt/windlass/components/etcd"))?;
        let client = versions
            .filter_map(|version| Some(version.ok()?.path().join("etcdctl")))
            // Not through a link, which would lead out of the machine.
            .find(|path| path.parent().is_some_and(|p| !p.is_symlink()) && path.is_file())
            .context("the machine has etcdctl")?;
        copy(&client, &root.path().join("etcdctl"))?;
        Ok(EtcdKeys { root })
    }

    /// Reads what API servers store, through the member at an address.
    fn read(&self, address: &str, client: &str) -> Result<Output> {
        let get = ["get", "/registry/namespaces/default", "--keys-only"];
        self.ask(address, client, &get)
    }

    fn ask(&self, address: &str, client: &str, question: &[&str]) -> Result<Output> {
        let file = |name: &str| self.root.path().join(name);
        Command::new(file("etcdctl"))
            .arg(format!("--endpoints=https://{address}:2379"))
            .arg("--cacert")
            .arg(file("etcd-ca.crt"))
            .arg("--cert")
            .arg(file(&format!("{client}.crt")))
            .arg("--key")
            .arg(file(&format!("{client}.key")))
            .args(["--dial-timeout=3s", "--command-timeout=3s"])
            .args(question)
            .output()
            .context("cannot run etcdctl")
    }

    /// The members as the one at an address has them.
    pub(crate) fn members(&self, address: &str) -> Result<String> {
        let output = self.ask(address, ETCD_CLIENTS[0], &["member", "list"])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{address}: {said}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Members at these addresses let them in.
    pub(crate) fn open(&self, addresses: &[String]) -> Result<()> {
        for (address, client) in self.tries(addresses) {
            let output = self.read(address, client)?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(
                output.status.success() && said.contains("/registry/namespaces/default"),
                "{client} at {address}: {said} {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }

    /// Members refuse them, and say that they are revoked. `members` are machines and their addresses.
    pub(crate) fn are_refused(&self, world: &World, members: &[(&str, String)]) -> Result<()> {
        for (machine, address) in members {
            for client in ETCD_CLIENTS {
                let output = self.read(address, client)?;
                ensure!(
                    !output.status.success() && output.stdout.is_empty(),
                    "{machine} takes the old key {client}"
                );
            }
            let log = "journalctl --unit etcd --output cat --no-pager | grep -c 'certificate serial .* revoked'";
            let said = world.run(&["node", "exec", machine, "--", "sh", "-c", log])?;
            let refusals: usize = said.trim().parse().context("a number of lines")?;
            ensure!(
                refusals >= ETCD_CLIENTS.len(),
                "{machine} refuses for another reason"
            );
        }
        Ok(())
    }

    fn tries<'a>(
        &self,
        addresses: &'a [String],
    ) -> impl Iterator<Item = (&'a str, &'static str)> + use<'a> {
        let each = addresses.iter().map(String::as_str);
        each.flat_map(|address| ETCD_CLIENTS.map(|client| (address, client)))
    }
}

fn is_refusal(said: &str) -> bool {
    REFUSALS.iter().any(|refusal| said.contains(refusal))
}

/// Copies what makes an agent the agent of a machine from one root directory to another.
fn identity(from: &Path, to: &Path) -> Result<()> {
    copy(&from.join(SETTINGS), &to.join(SETTINGS))?;
    for entry in fs::read_dir(from.join(IDENTITY))? {
        let name = entry?.file_name();
        copy(
            &from.join(IDENTITY).join(&name),
            &to.join(IDENTITY).join(&name),
        )?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file has a directory")?)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {from:?}"))?;
    Ok(())
}

/// The operator's way to the API, with the certificate of a machine's `client` in the place of the operator's. Its files
/// are in a copy of the machine's file system.
fn as_client(operator: &Kubectl, root: &Path, client: &str) -> Result<Kubectl> {
    let text = operator.run(&["config", "view", "--raw", "-o", "json"])?;
    let mut config: Value = serde_json::from_str(&text)?;
    config["users"][0]["user"] = json!({
        "client-certificate": root.join(PKI).join(format!("{client}.crt")),
        "client-key": root.join(PKI).join(format!("{client}.key")),
    });
    let kubeconfig = root.join(format!("{client}.kubeconfig"));
    fs::write(&kubeconfig, config.to_string())?;
    Ok(Kubectl {
        kubeconfig,
        ..operator.clone()
    })
}
