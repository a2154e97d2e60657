//! The programs as users run them: exit codes, refusals, a director's life in a directory of its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::io::{BufRead, BufReader};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A directory in which a director was set up; removed when dropped.
struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Home {
        let home = Home {
            dir: tempfile::tempdir().unwrap(),
        };
        home.init();
        home
    }

    /// Sets the director up under a name and on ports that no other test has.
    fn init(&self) {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("cli{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let api = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let gateway = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
        let (api, gateway) = (api.unwrap().to_string(), gateway.unwrap().to_string());
        let made = self.run(&[
            "director",
            "init",
            "--name",
            &name,
            "--api",
            &api,
            "--gateway",
            &gateway,
        ]);
        assert_eq!(code(&made), 0, "{}", text(&made.stderr));
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        windlass(arguments)
            .arg("--data-dir")
            .arg(self.path())
            .output()
            .unwrap()
    }

    fn daemon(&self) -> Daemon {
        let mut child = Command::new(env!("CARGO_BIN_EXE_windlass-director"))
            .arg("--data-dir")
            .arg(self.path())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (sender, log) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Daemon { child, log }
    }
}

struct Daemon {
    child: Child,
    log: std::sync::mpsc::Receiver<String>,
}

impl Daemon {
    fn await_line(&self, needle: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) if line.contains(needle) => return,
                Ok(line) => seen.push(line),
                Err(_) => panic!("{needle:?} is not in the log: {seen:#?}"),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn windlass(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
    command
        .args(arguments)
        .env_remove("WINDLASS_DIR")
        .env_remove("WINDLASS_CONTEXT")
        .env("HOME", "/nonexistent")
        .stdin(Stdio::null());
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", text(&output.stdout)))
}

#[test]
fn wrong_arguments_are_code_2_and_help_is_0() {
    assert_eq!(code(&windlass(&["frobnicate"]).output().unwrap()), 2);
    assert_eq!(code(&windlass(&["cluster", "create"]).output().unwrap()), 2);
    assert_eq!(code(&windlass(&[]).output().unwrap()), 2);
    let help = windlass(&["--help"]).output().unwrap();
    assert_eq!(code(&help), 0);
    assert!(
        text(&help.stdout).contains("Exit codes:"),
        "{}",
        text(&help.stdout)
    );
    let script = windlass(&["completions", "bash"]).output().unwrap();
    assert!(text(&script.stdout).contains("_windlass()"));
}

#[test]
fn without_a_director_commands_say_so_with_code_5() {
    let nowhere = windlass(&["cluster", "list", "--data-dir", "/nonexistent"])
        .output()
        .unwrap();
    assert_eq!(code(&nowhere), 5);
    assert!(
        text(&nowhere.stderr).contains("windlass director init"),
        "{}",
        text(&nowhere.stderr)
    );
    let home = Home::new();
    let silent = home.run(&["--json", "cluster", "list"]);
    assert_eq!(code(&silent), 5);
    assert_eq!(json(&silent)["error"]["code"], 5);
    let status = home.run(&["director", "status"]);
    assert_eq!(code(&status), 5);
    assert!(
        text(&status.stderr).contains("no director runs in"),
        "{}",
        text(&status.stderr)
    );
}

#[test]
fn init_keeps_secrets_and_does_not_touch_what_is_there() {
    use std::os::unix::fs::MetadataExt;
    let home = Home::new();
    for file in ["seal.key", "operator/admin.key"] {
        let mode = std::fs::metadata(home.path().join(file)).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let key = std::fs::read(home.path().join("seal.key")).unwrap();
    let again = home.run(&["director", "init"]);
    assert_eq!(code(&again), 4, "{}", text(&again.stderr));
    assert_eq!(std::fs::read(home.path().join("seal.key")).unwrap(), key);
    let full = tempfile::tempdir().unwrap();
    std::fs::write(full.path().join("precious"), "x").unwrap();
    let refused = windlass(&["director", "init", "--data-dir"])
        .arg(full.path())
        .output()
        .unwrap();
    assert_eq!(code(&refused), 4, "{}", text(&refused.stderr));
    let left: Vec<_> = std::fs::read_dir(full.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left, ["precious"]);
    let bad = tempfile::tempdir().unwrap();
    let bad = windlass(&["director", "init", "--name", "Too_Long_Name", "--data-dir"])
        .arg(bad.path().join("new"))
        .output()
        .unwrap();
    assert_eq!(code(&bad), 2);
    assert!(
        text(&bad.stderr).contains("provider.local.name"),
        "{}",
        text(&bad.stderr)
    );
}

#[test]
fn two_directors_on_one_directory_the_second_refuses() {
    let home = Home::new();
    let first = home.daemon();
    first.await_line("director is up");
    let second = Command::new(env!("CARGO_BIN_EXE_windlass-director"))
        .arg("--data-dir")
        .arg(home.path())
        .output()
        .unwrap();
    assert_eq!(code(&second), 1);
    let said = text(&second.stderr);
    assert!(
        said.contains(&format!("pid {}", first.child.id())),
        "{said}"
    );
    // The command line leaves the one that runs alone, and stops it when asked.
    let start = home.run(&["--json", "director", "start"]);
    assert_eq!(json(&start)["alreadyRunning"], true);
    let stop = home.run(&["--json", "director", "stop"]);
    assert_eq!(json(&stop)["stopped"], first.child.id());
    first.await_line("director is stopped");
    let stop = home.run(&["--json", "director", "stop"]);
    assert_eq!(json(&stop)["stopped"], Value::Null);
}

#[test]
fn a_broken_configuration_is_refused_with_every_fault() {
    let home = Home::new();
    let path: PathBuf = home.path().join("director.toml");
    std::fs::write(&path, "log = 3\n[api]\nlisten = \"x\"\nextra = 1\n").unwrap();
    let start = home.run(&["director", "start"]);
    assert_eq!(code(&start), 1);
    let said = text(&start.stderr);
    for key in ["log", "api.listen", "api.extra"] {
        assert!(said.contains(key), "{key} is not named in: {said}");
    }
}

#[test]
fn a_port_that_is_taken_is_named_before_anything_is_started() {
    let home = Home::new();
    let config = std::fs::read_to_string(home.path().join("director.toml")).unwrap();
    let config: toml::Table = toml::from_str(&config).unwrap();
    let listen = config["api"]["listen"].as_str().unwrap().to_owned();
    let taken = TcpListener::bind(&listen).unwrap();
    let start = home.run(&["director", "start"]);
    assert_eq!(code(&start), 1);
    let said = text(&start.stderr);
    assert!(
        said.contains("api.listen") && said.contains(&listen),
        "{said}"
    );
    assert!(!home.path().join("director.log").exists());
    drop(taken);
    let start = home.run(&["director", "start"]);
    if !nix::unistd::geteuid().is_root() {
        let said = text(&start.stderr);
        assert!(code(&start) == 1 && said.contains("as root"), "{said}");
        return;
    }
    assert_eq!(code(&start), 0, "{}", text(&start.stderr));
    let status = json(&home.run(&["--json", "director", "status"]));
    assert_eq!(
        (&status["machines"], &status["stemcells"]),
        (&Value::from(0), &Value::from(0))
    );
    let pid = status["pid"].as_i64().unwrap();
    let parent = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session: i64 = parent
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .nth(3)
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(session, pid, "it left the terminal's session");
    assert_eq!(
        json(&home.run(&["--json", "director", "stop"]))["stopped"],
        pid
    );
    let data = home.path();
    for backed_up in [false, true] {
        let key = std::fs::read(data.join("backup.key")).unwrap();
        if backed_up {
            std::fs::create_dir_all(data.join("backups/demo")).unwrap();
        }
        let reset = home.run(&["director", "reset", "--yes"]);
        assert_eq!(code(&reset), 0, "{}", text(&reset.stderr));
        let init = home.run(&["director", "init", "--name", "clitest"]);
        assert_eq!(code(&init), 0, "as before init: {}", text(&init.stderr));
        // Backups stay, with the key that opens them.
        let again = std::fs::read(data.join("backup.key")).unwrap();
        assert_eq!(again == key, backed_up, "the key after a reset");
        assert_eq!(data.join("backups/demo").exists(), backed_up);
    }
}
