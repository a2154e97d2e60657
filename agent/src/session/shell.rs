//! A shell on a terminal of its own.
//!
//! # Invariants
//! * The shell leads a session of the kernel; when it is over, every process of that session is killed,
//!   background jobs too. Who has left the session by itself lives on, as a daemon does.
//! * The environment is fixed, but for `TERM`.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quinn::{RecvStream, SendStream};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::time::timeout;

use windlass_common::limits::FRAME_BYTES_MAX;
use windlass_common::step::OutputStream;
use windlass_common::wire::frame::{self, FrameError};
use windlass_common::wire::message::Body;
use windlass_common::wire::session::{OpenShell, SessionEnd, SessionInput, SessionResize};

use super::{Ended, open, output};
use crate::host::command::{PATH, exit_code};

/// Shells, the first that is there.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];
/// One read of a terminal gives at most 4 KiB.
const READ_BYTES: usize = 4 << 10;
/// How long what the shell wrote last may take to be read.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) async fn serve(
    request: &OpenShell,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<Ended, FrameError> {
    let (terminal, mut shell) = match start(request) {
        Ok(started) => started,
        Err(error) => return Ok(Ended::NotBegun(format!("cannot start a shell: {error}"))),
    };
    open(send).await?;
    let status = {
        let output = read(&terminal, send);
        let input = write(&terminal, recv);
        tokio::pin!(output, input);
        let (status, drained) = tokio::select! {
            // The director has gone, or sent what is no input.
            fault = &mut input => return fault.map(|()| Ended::Left),
            status = shell.wait() => (status, false),
            ended = &mut output => {
                ended?;
                (shell.wait().await, true)
            }
        };
        shell.kill_rest();
        if !drained {
            // What the shell wrote last is in the terminal still.
            let _ = timeout(DRAIN_TIMEOUT, output).await;
        }
        status
    };
    Ok(Ended::Over(match status {
        Ok(status) => SessionEnd::Exit(exit_code(status)),
        Err(error) => SessionEnd::Failed(format!("cannot tell how the shell ended: {error}")),
    }))
}

fn start(request: &OpenShell) -> io::Result<(AsyncFd<OwnedFd>, Shell)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = openpt(flags)?;
    grantpt(&terminal)?;
    unlockpt(&terminal)?;
    resize(&terminal, request.rows, request.columns)?;
    let end = ioctl_tiocgptpeer(&terminal, flags)?;
    let program = SHELLS.into_iter().find(|shell| Path::new(shell).exists());
    let program = program.ok_or_else(|| io::Error::other("there is no shell"))?;
    // `setsid -c` makes the terminal the controlling one, so that Ctrl-C reaches what runs on it.
    let child = Command::new("setsid")
        .args(["-c", "-w", program, "-l"])
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("USER", "root")
        .env("LOGNAME", "root")
        .env("SHELL", program)
        .env("LANG", "C.UTF-8")
        .env("TERM", term(&request.term))
        .current_dir(if Path::new("/root").is_dir() {
            "/root"
        } else {
            "/"
        })
        .stdin(Stdio::from(end.try_clone()?))
        .stdout(Stdio::from(end.try_clone()?))
        .stderr(Stdio::from(end))
        .kill_on_drop(true)
        .spawn()?;
    rustix::io::ioctl_fionbio(&terminal, true)?;
    let leader = child.id().and_then(|id| i32::try_from(id).ok());
    Ok((register(terminal)?, Shell { child, leader }))
}

fn register(terminal: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(unsafe_code, reason = "there is no safe way to register a descriptor")]
    // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped, which happens after
    // `AsyncFd` has taken it out again.
    let registered = unsafe { AsyncFd::register(terminal) };
    Ok(registered?)
}

/// The kind of terminal, if it is a name of one.
fn term(name: &str) -> &str {
    let sound = !name.is_empty()
        && name.len() <= 64
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-+._".contains(&b));
    if sound { name } else { "dumb" }
}

fn resize(terminal: &OwnedFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).map_err(io::Error::from)
}

/// Hands on what appears on the terminal, until nothing has it open any more.
async fn read(terminal: &AsyncFd<OwnedFd>, send: &mut SendStream) -> Result<(), FrameError> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = terminal
            .async_io(Interest::READABLE, |fd| {
                rustix::io::read(fd, &mut buffer[..]).map_err(io::Error::from)
            })
            .await;
        // EIO: every process that had the terminal open has ended.
        let Ok(read @ 1..) = read else {
            return Ok(());
        };
        output(send, OutputStream::Stdout, &buffer[..read]).await?;
    }
}

/// Types what the director sends, until it has closed its side.
async fn write(terminal: &AsyncFd<OwnedFd>, recv: &mut RecvStream) -> Result<(), FrameError> {
    while let Some(frame) = frame::read(recv, FRAME_BYTES_MAX).await? {
        match frame.kind {
            SessionResize::KIND => {
                let SessionResize { rows, columns } = frame.body()?;
                // A terminal that is going is of no size.
                let _ = resize(terminal.get_ref(), rows, columns);
            }
            _ => {
                let SessionInput { bytes } = frame.body()?;
                let mut left = &bytes[..];
                while !left.is_empty() {
                    let written = terminal
                        .async_io(Interest::WRITABLE, |fd| {
                            rustix::io::write(fd, left).map_err(io::Error::from)
                        })
                        .await
                        .map_err(FrameError::Io)?;
                    left = &left[written..];
                }
            }
        }
    }
    Ok(())
}

/// A shell that runs, and what it started.
struct Shell {
    child: Child,
    /// Process id of the shell, and of its session; `None` when the rest was killed.
    leader: Option<i32>,
}

impl Shell {
    async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Kills every process of the session. Its number stays taken for as long as one is left.
    fn kill_rest(&mut self) {
        let Some(leader) = self.leader.take() else {
            return;
        };
        let Ok(entries) = fs::read_dir("/proc") else {
            return;
        };
        for entry in entries.flatten() {
            let pid = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            let stat = fs::read_to_string(entry.path().join("stat"));
            if let (Some(pid), Ok(stat)) = (pid, stat)
                && session_of(&stat) == Some(leader)
            {
                // ESRCH: it has ended since.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.kill_rest();
    }
}

/// The session in a line of `/proc/<pid>/stat`: the fourth field behind the name, which is in brackets
/// and may hold anything.
fn session_of(stat: &str) -> Option<i32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_is_found_behind_any_name() {
        #[rustfmt::skip]
        let cases = [
            ("7 (bash) S 1 7 6 34816 9 0",       Some(6)),
            ("7 (a b) c) R 1 7 42 0 -1 0",       Some(42)),
            ("7 (x) S 1",                        None),
            ("",                                 None),
        ];
        for (stat, want) in cases {
            assert_eq!(session_of(stat), want, "{stat:?}");
        }
    }

    #[test]
    fn a_kind_of_terminal_is_a_name() {
        for (name, want) in [
            ("xterm-256color", "xterm-256color"),
            ("", "dumb"),
            ("a b", "dumb"),
            ("$(id)", "dumb"),
        ] {
            assert_eq!(term(name), want);
        }
    }
}
