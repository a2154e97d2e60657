//! Machines for these tests: a network and a mount namespace each, on a bridge that exists only inside
//! the test's own network namespace. Everything disappears with the test's thread.
//!
//! A machine is configured with the very steps that an agent gets: files go where they say (on an
//! overlay over the host's folders), flags are read from the unit's environment file and split as
//! systemd splits them, gates are the gates.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio::net::TcpStream;
use windlass_common::secret::Secret;
use windlass_common::step::{Check, ClientFiles, Configure, FileContent, Keys};
use windlass_director::kubernetes::client::{ByteStream, Client, ConnectFuture, Connector};
use windlass_director::kubernetes::facts::{Endpoint, MachineFacts};
use windlass_director::kubernetes::pki::ClientIdentity;
use windlass_director::kubernetes::render::{self, Phase};

/// How long anything may take: a slow, busy machine starts an API server within half a minute.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Runtime of everything asynchronous; one thread, since a namespace belongs to a thread.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

/// Where the machines of one test are.
pub(crate) struct World {
    components: PathBuf,
    directory: tempfile::TempDir,
}

impl World {
    /// Enters namespaces of its own; the thread cannot leave them.
    pub(crate) fn new() -> Self {
        let components = std::env::var_os("WINDLASS_TEST_COMPONENTS").unwrap_or_else(|| {
            panic!(
                "WINDLASS_TEST_COMPONENTS is not set; it names the folder with the binaries etcd, \
                 etcdctl, kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, \
                 kube-proxy, kubectl and containerd"
            )
        });
        assert!(
            nix::unistd::geteuid().is_root(),
            "these tests make namespaces: run them as root"
        );
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        let directory = tempfile::Builder::new().prefix("wlk-").tempdir().unwrap();
        run("mount", &["--make-rprivate", "/"]);
        run(
            "mount",
            &["-t", "tmpfs", "wlk", directory.path().to_str().unwrap()],
        );
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["link", "add", "wlk0", "type", "bridge"]);
        run("ip", &["addr", "add", "10.88.0.1/24", "dev", "wlk0"]);
        run("ip", &["link", "set", "wlk0", "up"]);
        Self {
            components: components.into(),
            directory,
        }
    }

    /// Path of a binary.
    pub(crate) fn component(&self, name: &str) -> String {
        let path = self.components.join(name);
        assert!(
            path.is_file(),
            "WINDLASS_TEST_COMPONENTS has no {name}: {}",
            path.display()
        );
        path.to_str().unwrap().to_owned()
    }

    /// Version of the Kubernetes binaries, for example `1.37.2`.
    pub(crate) fn kubernetes_version(&self) -> String {
        let output = Command::new(self.component("kube-apiserver"))
            .arg("--version")
            .output();
        let text = String::from_utf8(output.unwrap().stdout).unwrap();
        text.trim().trim_start_matches("Kubernetes v").to_owned()
    }

    /// Makes a machine with its address and `extra` ones on the bridge.
    pub(crate) fn machine(&self, facts: &MachineFacts, extra: &[&str]) -> Machine<'_> {
        let root = self.directory.path().join(facts.name.as_str());
        for part in ["etc", "var", "work/etc", "work/var", "logs"] {
            fs::create_dir_all(root.join(part)).unwrap();
        }
        let script =
            "mount -t overlay wlk -o lowerdir=/etc,upperdir=$1/etc,workdir=$1/work/etc /etc
            mount -t overlay wlk -o lowerdir=/var,upperdir=$1/var,workdir=$1/work/var /var
            ip link set lo up; : > $1/up; exec sleep infinity";
        let holder = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--mount",
                "--net",
                "sh",
                "-ec",
                script,
                "sh",
            ])
            .arg(&root)
            .spawn()
            .unwrap();
        until("a machine's namespaces", || {
            root.join("up").exists().then_some(())
        });
        let machine = Machine {
            world: self,
            root,
            holder,
            processes: BTreeMap::new(),
        };
        let (pid, link) = (machine.pid(), format!("v{}", machine.pid()));
        let eth0 = ["peer", "name", "eth0", "netns", &pid];
        run(
            "ip",
            &[&["link", "add", &link, "type", "veth"], &eth0[..]].concat(),
        );
        run("ip", &["link", "set", &link, "master", "wlk0", "up"]);
        let own = facts.address.to_string();
        for address in [&[own.as_str()], extra].concat() {
            machine.run(
                "ip",
                &["addr", "add", &format!("{address}/24"), "dev", "eth0"],
            );
        }
        machine.run("ip", &["link", "set", "eth0", "up"]);
        machine.run("ip", &["route", "add", "default", "via", "10.88.0.1"]);
        machine
    }
}

/// One machine.
pub(crate) struct Machine<'a> {
    world: &'a World,
    root: PathBuf,
    holder: Child,
    processes: BTreeMap<String, Child>,
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        for child in self.processes.values_mut().chain([&mut self.holder]) {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for name in self.processes.keys() {
                let log = self.log(name);
                let tail: Vec<&str> = log.lines().rev().take(30).collect();
                eprintln!(
                    "--- {name}\n{}",
                    tail.into_iter().rev().collect::<Vec<_>>().join("\n")
                );
            }
        }
    }
}

impl Machine<'_> {
    fn pid(&self) -> String {
        self.holder.id().to_string()
    }

    /// Path of a binary.
    pub(crate) fn component(&self, name: &str) -> String {
        self.world.component(name)
    }

    /// Where an absolute path of the machine is seen from outside.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Command inside the machine.
    pub(crate) fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nsenter", "--target", &self.pid()]);
        command
            .args(["--mount", "--net", "--", program])
            .args(arguments);
        command
    }

    /// Runs a command inside the machine to its end.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        output(self.command(program, arguments))
    }

    /// Puts a file in the place of one that is there, as an agent does it, where who watches it in the machine sees it.
    pub(crate) fn replace(&self, path: &str, text: &str) {
        let script = "printf %s \"$2\" > \"$1.new\" && mv \"$1.new\" \"$1\"";
        self.run("sh", &["-ec", script, "sh", path, text]);
    }

    /// Writes a file of the machine.
    pub(crate) fn write(&self, path: &str, mode: u32, bytes: &[u8]) {
        write_at(&self.path(path), mode, bytes);
    }

    /// Starts a unit as systemd would: its binary with the words of `ARGS`.
    pub(crate) fn start(&mut self, unit: &str) {
        let env = fs::read_to_string(self.path(&render::env_path(unit))).unwrap();
        let words = env
            .trim()
            .strip_prefix("ARGS=\"")
            .and_then(|e| e.strip_suffix('"'))
            .unwrap();
        let arguments: Vec<&str> = words.split_whitespace().collect();
        self.spawn(unit, &self.world.component(unit), &arguments);
    }

    /// Starts the way to the API servers, in the foreground.
    pub(crate) fn start_api_proxy(&mut self) {
        self.spawn(
            "api-proxy",
            "haproxy",
            &["-db", "-f", "/etc/windlass/api-proxy.cfg"],
        );
    }

    fn spawn(&mut self, unit: &str, program: &str, arguments: &[&str]) {
        let log = File::create(self.root.join("logs").join(unit)).unwrap();
        let mut command = self.command(program, arguments);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.processes
            .insert(unit.to_owned(), command.spawn().unwrap());
    }

    /// Kills a unit.
    pub(crate) fn kill(&mut self, unit: &str) {
        let mut child = self.processes.remove(unit).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// What a unit wrote so far.
    pub(crate) fn log(&self, unit: &str) -> String {
        fs::read_to_string(self.root.join("logs").join(unit)).unwrap_or_default()
    }

    /// Waits until a unit ended by itself.
    pub(crate) fn ended(&mut self, unit: &str) -> String {
        let child = self.processes.get_mut(unit).unwrap();
        until("the unit to end", || child.try_wait().unwrap());
        self.log(unit)
    }

    /// Waits for the gate of a phase; gives how long it took.
    pub(crate) fn gate(&mut self, phase: Phase) -> Duration {
        let start = Instant::now();
        for check in render::gate(phase).checks {
            let mut seen = String::new();
            let passed = wait(|| match self.check(&check) {
                Ok(()) => Some(()),
                Err(error) => {
                    seen = error;
                    None
                }
            });
            assert!(
                passed.is_some(),
                "gate {phase:?} never opened: {check:?}: {seen}"
            );
        }
        start.elapsed()
    }

    fn check(&mut self, check: &Check) -> Result<(), String> {
        for (unit, process) in &mut self.processes {
            let status = process.try_wait().unwrap();
            assert!(status.is_none(), "{unit} ended: {status:?}");
        }
        match check {
            Check::UnitActive { .. } => Ok(()),
            Check::TcpOpen { address } => {
                let address = *address;
                self.inside(move || std::net::TcpStream::connect(address).map(drop))
                    .map_err(|e| e.to_string())
            }
            Check::Https {
                address,
                server_name,
                path,
                ca_path,
                client,
            } => {
                let client = self.client(*address, server_name, ca_path, client.as_ref().unwrap());
                let path = path.clone();
                self.inside(move || block_on(client.probe(&path)))
                    .map_err(|e| windlass_common::error::ErrorChain(&e).to_string())
            }
        }
    }

    /// A client with files of this machine.
    pub(crate) fn client(
        &self,
        address: SocketAddr,
        server_name: &str,
        ca_path: &str,
        files: &ClientFiles,
    ) -> Client {
        let read = |path: &str| fs::read_to_string(self.path(path)).unwrap();
        let identity = ClientIdentity {
            certificate_pem: read(&files.certificate_path),
            key_pem: Secret::new(read(&files.key_path)),
            expires_at: jiff::Timestamp::MAX,
        };
        client_of(address, server_name, &read(ca_path), &identity)
    }

    /// Runs `work` in the machine's network.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        std::thread::scope(|scope| {
            let entered = scope.spawn(move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            entered.join().unwrap()
        })
    }
}

struct Tcp(SocketAddr);

impl Connector for Tcp {
    fn connect(&self) -> ConnectFuture<'_> {
        Box::pin(async {
            let stream = TcpStream::connect(self.0).await?;
            stream.set_nodelay(true)?;
            io::Result::Ok(Box::new(stream) as Box<dyn ByteStream>)
        })
    }
}

/// A client on an address.
pub(crate) fn client_of(
    address: SocketAddr,
    server_name: &str,
    authority_pem: &str,
    identity: &ClientIdentity,
) -> Client {
    let SocketAddr::V4(v4) = address else {
        panic!("{address} is not IPv4")
    };
    let endpoint = Endpoint {
        name: server_name.to_owned(),
        address: *v4.ip(),
        port: address.port(),
    };
    Client::new(Arc::new(Tcp(address)), &endpoint, authority_pem, identity).unwrap()
}

/// Polls until there is something, at most [`PATIENCE`].
pub(crate) fn wait<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// [`wait`] that fails the test.
pub(crate) fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    wait(look).unwrap_or_else(|| panic!("waited in vain for {what}"))
}

/// Runs a command to its end.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments);
    output(command)
}

fn output(mut command: Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}: {stderr}",
        output.status
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Does what an agent does with a `keys` step.
pub(crate) fn make_keys(
    keys: &Keys,
    write: impl Fn(&str, u32, &[u8]),
) -> BTreeMap<String, Vec<u8>> {
    let make = |spec: &windlass_common::step::KeySpec| {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        write(&spec.path, 0o600, key.serialize_pem().as_bytes());
        let request = CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        (spec.name.clone(), request.der().to_vec())
    };
    keys.keys.iter().map(make).collect()
}

/// Does what an agent does with the files of a `configure` step.
pub(crate) fn write_files(configure: &Configure, write: impl Fn(&str, u32, &[u8])) {
    for file in &configure.files {
        let bytes = match &file.content {
            FileContent::Text(text) => text.as_bytes(),
            FileContent::Secret(bytes) => bytes.expose(),
            FileContent::Artifact(digest) => panic!("{} is artifact {digest}", file.path),
        };
        write(&file.path, file.mode, bytes);
    }
}

/// Writes a file with its mode, where `path` is.
pub(crate) fn write_at(path: &Path, mode: u32, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Writes a file that only its owner reads.
pub(crate) fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}
