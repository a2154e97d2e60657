//! Subprocesses: bounded in time and output, and gone when the caller is.
//!
//! # Invariants
//! * A child has a process group of its own; dropping [`Running`] kills the whole group and so does
//!   cancelling any future here.
//! * Environment is fixed; standard input is empty, or what the caller writes.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};

/// Where programs are looked for.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Most output of a helper program that is kept.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;

/// A running child.
#[derive(Debug)]
pub struct Running {
    child: Child,
    group: Option<Pid>,
}

/// What a helper program said.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, at most 1 MiB.
    pub stdout: String,
    /// Its standard error, at most 1 MiB.
    pub stderr: String,
}

impl Running {
    /// Starts a program; `input` says whether its standard input is a pipe.
    pub fn start(argv: &[&str], input: Stdio) -> io::Result<Self> {
        let (program, arguments) = argv
            .split_first()
            .ok_or_else(|| io::Error::other("no program was named"))?;
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("LC_ALL", "C.UTF-8")
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .map(Pid::from_raw);
        Ok(Self { child, group })
    }

    /// Takes the ends of the output pipes; once.
    pub fn take_output(&mut self) -> Option<(ChildStdout, ChildStderr)> {
        self.child.stdout.take().zip(self.child.stderr.take())
    }

    /// Takes the pipe to its standard input, if it was started with one; once.
    pub fn take_input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// Waits for the end of the child itself; what it left in its group is killed.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await;
        self.kill_group();
        status
    }

    fn kill_group(&mut self) {
        if let Some(group) = self.group.take() {
            // ESRCH: all of it has ended already.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill_group();
    }
}

/// The exit code as shells count: 128 + signal when killed by one.
pub(crate) fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(-1)
}

/// Runs a helper program to its end, with text as its standard input.
pub async fn run(argv: &[&str], input: Option<&str>) -> io::Result<Output> {
    let stdin = if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    let mut running = Running::start(argv, stdin)?;
    let (stdout, stderr) = running
        .take_output()
        .ok_or_else(|| io::Error::other("the child has no output pipes"))?;
    let writing = write_input(running.take_input(), input);
    let (_, stdout, stderr) = tokio::join!(writing, read_some(stdout), read_some(stderr));
    let status = running.wait().await?;
    Ok(Output {
        status,
        stdout: stdout?,
        stderr: stderr?,
    })
}

async fn write_input(stdin: Option<ChildStdin>, input: Option<&str>) {
    use tokio::io::AsyncWriteExt;
    if let (Some(mut stdin), Some(input)) = (stdin, input) {
        // A child that ends without reading says why on its standard error.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
}

/// Reads to the end, keeps the first bytes.
async fn read_some(mut from: impl AsyncRead + Unpin) -> io::Result<String> {
    let mut bytes = Vec::new();
    (&mut from)
        .take(OUTPUT_BYTES_MAX)
        .read_to_end(&mut bytes)
        .await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
