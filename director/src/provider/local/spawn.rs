//! Starting the processes that outlive the director: monitors and endpoints.
//!
//! Each leads a session of its own and, where the host runs systemd, lives in a scope of its own, so that
//! stopping or restarting the director's service never touches it. The starter waits until the
//! process says that it is ready, or why not.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, poll};

use super::files::What;
use super::monitor::READY;
use super::sys::poll_timeout;
use crate::provider::ProviderError;

/// Longest first line of such a process, in bytes.
const LINE_MAX: u64 = 8 * 1024;

/// Processes of ours that have to be reaped when they end before us.
#[derive(Debug, Default)]
pub(crate) struct Children(Mutex<Vec<Child>>);

impl Children {
    /// Reaps those that have ended.
    pub(crate) fn reap(&self) {
        let mut children = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    }

    /// Starts `program` with `args`, its errors going to `log`, and waits until it says `ready`.
    pub(crate) fn start(
        &self,
        program: &Path,
        args: &[&std::ffi::OsStr],
        log: &PathBuf,
        deadline: Instant,
    ) -> Result<(), ProviderError> {
        let began = Instant::now();
        let log_file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .what(|| format!("cannot write {}", log.display()))?;
        let mut command = detached(program);
        command.args(args).current_dir("/").stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(log_file);
        let mut child = command
            .spawn()
            .what(|| format!("cannot run {}", program.display()))?;
        let stdout = child.stdout.take();
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(child);
        let stdout =
            stdout.ok_or_else(|| ProviderError::Bug("a child has no standard output".into()))?;
        let doing = args
            .iter()
            .map(|a| a.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, poll_timeout(left)) {
                Ok(0) if left.is_zero() => {
                    return Err(ProviderError::Deadline {
                        what: format!("waiting for `{doing}` to be ready"),
                        limit_ms: began.elapsed().as_millis() as u64,
                    });
                }
                Ok(0) | Err(nix::errno::Errno::EINTR) => {}
                Ok(_) => break,
                Err(e) => return Err(e).what(|| format!("cannot wait for `{doing}`")),
            }
        }
        let mut line = String::new();
        // The process writes its line whole, so what is there now is all of it.
        BufReader::new(stdout.take(LINE_MAX))
            .read_line(&mut line)
            .what(|| format!("cannot read what `{doing}` says"))?;
        match line.trim() {
            READY => Ok(()),
            said => Err(ProviderError::Tool {
                tool: program.display().to_string(),
                doing,
                output: match said.strip_prefix("failed: ") {
                    Some(reason) => reason.to_owned(),
                    None => format!("it ended without a word; see {}", log.display()),
                },
            }),
        }
    }
}

/// A command that runs `program` outside the control group of the director's service.
fn detached(program: &Path) -> Command {
    if !Path::new("/run/systemd/system").is_dir() {
        return Command::new(program);
    }
    let mut command = Command::new("systemd-run");
    command.args([
        "--scope",
        "--quiet",
        "--collect",
        "--description=Windlass machine",
        "--",
    ]);
    command.arg(program);
    command
}
