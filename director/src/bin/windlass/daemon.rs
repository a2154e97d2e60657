//! The director's process: starting it detached, finding it, stopping it.
//!
//! Whether one runs is told by the lock on the data directory, which the kernel drops with the process;
//! a stale process id is never believed.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use windlass_common::error::ErrorChain;
use windlass_director::client::Client;
use windlass_director::config::{Config, DataDir, preflight};
use windlass_director::provider::local::{LocalConfig, LocalProvider};
use windlass_director::provider::{PreflightFault, Provider, Severity};
use windlass_director::store::{DirectoryLock, LockError};

use crate::failure::{CONFLICT, Failure};
use crate::output::note;

/// Longest wait for a director to answer: it opens its store and binds two sockets.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for a director to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How much of the log a failed start shows, bytes.
const LOG_TAIL: u64 = 4 << 10;

/// A director that holds the lock of its data directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Running {
    /// Its process.
    pub(crate) pid: i32,
}

/// The director of a data directory, if one runs.
pub(crate) fn running(dir: &DataDir) -> Result<Option<Running>, Failure> {
    if !dir.path().exists() {
        return Ok(None);
    }
    match DirectoryLock::acquire(dir.path()) {
        Ok(_) => Ok(None),
        Err(LockError::Held { pid, .. }) => {
            let pid = pid.parse().map_err(|_| {
                let path = dir.path().display();
                Failure::new(
                    CONFLICT,
                    format!(
                        "something holds the lock of {path} and does not say which process it is"
                    ),
                )
            })?;
            Ok(Some(Running { pid }))
        }
        Err(error) => Err(Failure::of(&error)),
    }
}

/// A program that was installed beside this one.
pub(crate) fn beside(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| Failure::failed(format!("cannot tell where this program is: {error}")))?;
    let path = own.with_file_name(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(Failure::failed(format!(
        "{} is not there; it is installed beside this program",
        path.display()
    )))
}

/// The provider of a configuration.
pub(crate) fn provider(config: &Config) -> Result<LocalProvider, Failure> {
    LocalProvider::new(LocalConfig {
        dir: config.local.directory.clone(),
        name: config.local.name.clone(),
        cidr: config.local.cidr,
        director_exe: beside("windlass-director")?,
        runc: config.local.runc.clone(),
        zones: config.local.zones.clone(),
    })
    .map_err(|error| Failure::of(&error))
}

/// Starts a director in the background; returns its process id when it answers.
pub(crate) async fn start(dir: &DataDir, config: &Config, client: &Client) -> Result<i32, Failure> {
    let mut faults = preflight::director(dir, config);
    if faults.iter().all(|fault| fault.subject != "user") {
        faults.extend(provider(config)?.preflight().await);
    }
    refuse(&faults)?;
    let program = beside("windlass-director")?;
    let log = open_log(&dir.log())?;
    let from = log.metadata().map_or(0, |metadata| metadata.len());
    let mut starting = spawn(&program, dir, config, log)?;
    let pid = await_answer(client, dir, Expected::Started(&mut starting, from)).await?;
    Ok(pid)
}

/// Names all faults; fails when one of them keeps the director from running.
fn refuse(faults: &[PreflightFault]) -> Result<(), Failure> {
    let (fatal, degraded): (Vec<_>, Vec<_>) = faults
        .iter()
        .partition(|fault| fault.severity == Severity::Fatal);
    for fault in degraded {
        note(&format!("warning: {fault}"));
    }
    if fatal.is_empty() {
        return Ok(());
    }
    let lines: Vec<String> = fatal.iter().map(|fault| format!("  {fault}")).collect();
    Err(Failure::failed(format!(
        "a director cannot run here; nothing was changed:\n{}",
        lines.join("\n")
    )))
}

/// A director that is being started.
pub(crate) struct Starting {
    child: Child,
    /// Whether the child is systemd-run and not the director itself.
    transient: bool,
}

impl Starting {
    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(-1)
    }

    /// Fails with the end of the log when the process has ended.
    fn still_there(&mut self, dir: &DataDir, from: u64) -> Result<(), Failure> {
        let ended = self
            .child
            .try_wait()
            .map_err(|error| Failure::failed(format!("cannot watch the director: {error}")))?;
        match ended {
            Some(status) if !(self.transient && status.success()) => {
                let said = tail(&dir.log(), from);
                Err(Failure::failed(format!(
                    "the director ended at once ({status}):\n{}",
                    said.trim_end()
                )))
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn open_log(path: &Path) -> Result<File, Failure> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)
        .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))
}

fn spawn(program: &Path, dir: &DataDir, config: &Config, log: File) -> Result<Starting, Failure> {
    let transient = Path::new("/run/systemd/system").is_dir();
    let mut command = if transient {
        let mut command = Command::new("systemd-run");
        command
            .args(["--quiet", "--collect", "--property=KillMode=process"])
            .arg(format!("--unit=windlass-director-{}", config.local.name))
            .arg(format!(
                "--property=StandardOutput=append:{}",
                dir.log().display()
            ))
            .arg(format!(
                "--property=StandardError=append:{}",
                dir.log().display()
            ))
            .arg(program);
        command
    } else {
        let mut command = Command::new(program);
        command.arg("--detached");
        command
    };
    let errors = log
        .try_clone()
        .map_err(|error| Failure::failed(format!("cannot use the log: {error}")))?;
    command
        .arg("--data-dir")
        .arg(dir.path())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors);
    let child = command
        .spawn()
        .map_err(|error| Failure::failed(format!("cannot run {}: {error}", program.display())))?;
    Ok(Starting { child, transient })
}

/// Which director is to answer.
pub(crate) enum Expected<'a> {
    /// The one with this process id.
    Running(i32),
    /// The one that is being started; its log begins at this length of the file.
    Started(&'a mut Starting, u64),
}

/// Waits until the director that is expected answers; returns its process id.
///
/// The lock is not looked at: to look is to take it, and the director may want it at that moment.
pub(crate) async fn await_answer(
    client: &Client,
    dir: &DataDir,
    mut expected: Expected<'_>,
) -> Result<i32, Failure> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        let health = client.get("/v1/health").await;
        let error = match health {
            Ok(health) => {
                let pid = health["pid"]
                    .as_i64()
                    .and_then(|pid| i32::try_from(pid).ok());
                let right = match &expected {
                    Expected::Running(expected) => pid == Some(*expected),
                    // systemd-run is not the director; the client believes this director's CA alone.
                    Expected::Started(starting, _) => {
                        starting.transient || pid == Some(starting.pid())
                    }
                };
                if let (Some(pid), true) = (pid, right) {
                    return Ok(pid);
                }
                format!("another director answers at {}", client.address())
            }
            Err(error) => ErrorChain(&error).to_string(),
        };
        if let Expected::Started(starting, from) = &mut expected {
            starting.still_there(dir, *from)?;
        }
        if Instant::now() > deadline {
            let log = dir.log();
            return Err(Failure::failed(format!(
                "the director does not answer: {error}; look at {}",
                log.display()
            )));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The end of a file, from `from` on at most.
fn tail(path: &Path, from: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(length.saturating_sub(LOG_TAIL))))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) => format!("cannot read {}: {error}", path.display()),
    }
}

/// Stops the director of a data directory; `None` when none runs.
pub(crate) async fn stop(dir: &DataDir) -> Result<Option<i32>, Failure> {
    let Some(Running { pid }) = running(dir)? else {
        return Ok(None);
    };
    // The lock is held, so the process lives and the number is its own.
    kill(Pid::from_raw(pid), Signal::SIGTERM).map_err(|error| {
        Failure::failed(format!("cannot stop the director (pid {pid}): {error}"))
    })?;
    let deadline = Instant::now() + STOP_TIMEOUT;
    // Its process first: to look at the lock is to take it.
    while Path::new(&format!("/proc/{pid}")).exists() && running(dir)?.is_some() {
        if Instant::now() > deadline {
            let seconds = STOP_TIMEOUT.as_secs();
            return Err(Failure::failed(format!(
                "the director (pid {pid}) did not stop within {seconds} s; look at {}, or end it with `kill -9 {pid}`: \
                 it goes on where it was when it is started again",
                dir.log().display()
            )));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(Some(pid))
}
