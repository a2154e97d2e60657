//! Tools of the host, run with a deadline.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::files::What;
use super::sys::PidFd;
use crate::provider::ProviderError;

/// How much of a tool's output is kept, in bytes; its last lines say why it failed.
const OUTPUT_MAX: u64 = 64 * 1024;
/// How much of it goes into an error, in bytes.
const SHOWN_MAX: usize = 600;

/// Runs a tool to its end and returns what it printed. Standard input is as the caller set it.
///
/// A tool that runs past `deadline` is killed. A tool that exits with a failure is an error with the
/// end of its output.
pub(crate) fn run(
    command: &mut Command,
    doing: &str,
    deadline: Instant,
) -> Result<String, ProviderError> {
    let tool = command.get_program().to_string_lossy().into_owned();
    let began = Instant::now();
    let (mut reader, writer) = std::io::pipe().what(|| "cannot make a pipe".to_owned())?;
    let errors = writer
        .try_clone()
        .what(|| "cannot copy a pipe".to_owned())?;
    command
        .stdout(Stdio::from(writer))
        .stderr(Stdio::from(errors));
    let spawned = command.spawn();
    // The command holds the write ends; they have to go, or reading never ends.
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut child = spawned.what(|| format!("cannot run {tool}; install it"))?;
    let pidfd = PidFd::open(child.id() as i32).what(|| format!("cannot watch {tool}"))?;
    let in_time = pidfd
        .wait(deadline)
        .what(|| format!("cannot wait for {tool}"))?;
    if !in_time {
        let _ = child.kill(); // fails only if it has ended by now
    }
    let status = child.wait().what(|| format!("cannot wait for {tool}"))?;
    if !in_time {
        return Err(ProviderError::Deadline {
            what: format!("{tool}, {doing},"),
            limit_ms: began.elapsed().as_millis() as u64,
        });
    }
    let mut output = Vec::new();
    // A grandchild may hold the pipe open; the tools run here have none.
    let _ = (&mut reader).take(OUTPUT_MAX).read_to_end(&mut output);
    let output = String::from_utf8_lossy(&output).into_owned();
    if status.success() {
        return Ok(output);
    }
    Err(ProviderError::Tool {
        tool,
        doing: doing.to_owned(),
        output: tail(&output),
    })
}

/// The end of a text, on a character boundary, for an error message.
pub(crate) fn tail(text: &str) -> String {
    let text = text.trim();
    let start = text.len().saturating_sub(SHOWN_MAX);
    let start = (start..=text.len())
        .find(|i| text.is_char_boundary(*i))
        .unwrap_or(0);
    if text.is_empty() {
        "no output".to_owned()
    } else {
        text[start..].to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_tool_that_hangs_is_killed() {
        let began = Instant::now();
        let limit = Instant::now() + Duration::from_millis(50);
        let error = run(Command::new("sleep").arg("60"), "sleeping", limit).unwrap_err();
        assert!(matches!(error, ProviderError::Deadline { .. }), "{error}");
        assert!(began.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_failure_carries_what_the_tool_said() {
        let limit = Instant::now() + Duration::from_secs(10);
        let mut command = Command::new("sh");
        command.args(["-c", "echo reason >&2; exit 3"]);
        let error = run(&mut command, "failing", limit).unwrap_err();
        assert!(error.to_string().contains("reason"), "{error}");
        let missing = run(&mut Command::new("/no/such/tool"), "x", limit).unwrap_err();
        assert!(missing.to_string().contains("/no/such/tool"), "{missing}");
    }
}
