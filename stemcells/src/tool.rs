//! Other programs: started with a clean environment where that matters, their errors made readable.
//!
//! A program's standard error is kept (its end, within a limit) and becomes part of the error, because
//! that is where the cause is. A full disk is recognised and gets an error of its own.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use windlass_common::error::ErrorClass;

/// Lines of a failed program's output that are shown: the cause is at the end.
const TAIL_LINES: usize = 12;
/// Longest line kept, in bytes.
const LINE_BYTES_MAX: u64 = 4096;
/// Most output that is read, in bytes: a list of packages has 20 KiB.
const OUTPUT_BYTES_MAX: u64 = 16 << 20;

/// Why a program did not do its job.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// It is not there.
    #[error("{program} is not installed; {hint}")]
    Missing {
        /// What was looked for.
        program: String,
        /// How to get it.
        hint: String,
    },
    /// It could not be started or read.
    #[error("cannot run {program}")]
    Start {
        /// What was started.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("{program} failed while {what} ({status}):\n{tail}")]
    Failed {
        /// What was started.
        program: String,
        /// What it was to do.
        what: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote.
        tail: String,
    },
    /// It ran out of space.
    #[error(
        "no space left while {what} ({program}); free some and build again, it goes on from here"
    )]
    DiskFull {
        /// What was started.
        program: String,
        /// What it was to do.
        what: String,
    },
}

impl ToolError {
    /// Who has to act.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }

    /// Whether the cause is a full disk.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, ToolError::DiskFull { .. })
    }
}

/// A call of another program.
#[derive(Debug)]
pub struct Tool {
    program: String,
    hint: String,
    what: String,
    command: Command,
}

impl Tool {
    /// Prepares a call; `what` completes "failed while …", `hint` says how to get the program.
    pub fn new(program: &str, hint: &str, what: impl Into<String>) -> Tool {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).env("LC_ALL", "C");
        Tool {
            program: program.to_owned(),
            hint: hint.to_owned(),
            what: what.into(),
            command,
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Tool {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Tool {
        self.command.args(args);
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Tool {
        self.command.env(name, value);
        self
    }

    /// Sets the directory to run in.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Tool {
        self.command.current_dir(dir.into());
        self
    }

    /// Runs it and returns its standard output.
    pub fn run(mut self) -> Result<Vec<u8>, ToolError> {
        let start = self.start_error();
        let mut child = self
            .command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(&start)?;
        let stderr = child.stderr.take();
        let reader = thread::spawn(move || stderr.map(tail_of).unwrap_or_default());
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout
                .take(OUTPUT_BYTES_MAX)
                .read_to_end(&mut output)
                .map_err(&start)?;
        }
        let status = child.wait().map_err(start)?;
        let tail = reader.join().unwrap_or_default();
        let (program, what) = (self.program, self.what);
        match status.success() {
            true => Ok(output),
            false if tail.contains("No space left on device") => {
                Err(ToolError::DiskFull { program, what })
            }
            false => Err(ToolError::Failed {
                program,
                what,
                status,
                tail,
            }),
        }
    }

    /// Runs it and returns how it ended, with the end of its standard error; failing is not an error.
    pub fn status(mut self) -> Result<(ExitStatus, String), ToolError> {
        let start = self.start_error();
        let mut child = self
            .command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(&start)?;
        let tail = child.stderr.take().map(tail_of).unwrap_or_default();
        Ok((child.wait().map_err(start)?, tail))
    }

    fn start_error(&self) -> impl Fn(io::Error) -> ToolError + use<> {
        let (program, hint) = (self.program.clone(), self.hint.clone());
        move |source| match source.kind() {
            io::ErrorKind::NotFound => ToolError::Missing {
                program: program.clone(),
                hint: hint.clone(),
            },
            _ => ToolError::Start {
                program: program.clone(),
                source,
            },
        }
    }
}

/// The last lines of a stream, read to its end.
fn tail_of(stream: impl Read) -> String {
    let mut reader = BufReader::new(stream);
    let mut lines = VecDeque::with_capacity(TAIL_LINES + 1);
    loop {
        let mut line = Vec::new();
        match reader
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => return Vec::from(lines).join("\n"),
            Ok(_) => lines.push_back(String::from_utf8_lossy(&line).trim_end().to_owned()),
        }
        if lines.len() > TAIL_LINES {
            lines.pop_front();
        }
    }
}

/// Whether a program is on the PATH.
pub fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named_with_a_hint() {
        let error = Tool::new("windlass-no-such-tool", "install the moon", "testing").run();
        let text = error.unwrap_err().to_string();
        assert_eq!(
            text,
            "windlass-no-such-tool is not installed; install the moon"
        );
    }

    #[test]
    fn a_failed_program_shows_the_end_of_its_output() {
        let script = "for i in $(seq 30); do echo line $i >&2; done; exit 3";
        let error = Tool::new("sh", "", "counting")
            .args(["-c", script])
            .run()
            .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("line 30") && !text.contains("line 5\n"),
            "{text}"
        );
        assert!(text.contains("while counting"), "{text}");
    }

    #[test]
    fn a_full_disk_is_recognised() {
        let error = Tool::new("dd", "", "writing")
            .args(["if=/dev/zero", "of=/dev/full", "bs=1", "count=1"])
            .run()
            .unwrap_err();
        assert!(error.is_disk_full(), "{error}");
    }
}
