//! Running commands, with a line that says what is being done and how long it took.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).map(PathBuf::from).unwrap_or(here)
}

/// A command in the root of the checkout.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// `cargo`, the one that runs this.
pub(crate) fn cargo() -> Command {
    command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A command that runs as root, through sudo where this is not root; sudo may ask for a password.
pub(crate) fn privileged(program: impl AsRef<OsStr>) -> Command {
    if nix::unistd::geteuid().is_root() {
        let mut direct = command(program);
        direct.env("DEBIAN_FRONTEND", "noninteractive");
        return direct;
    }
    let mut sudo = command("sudo");
    sudo.stdin(Stdio::inherit())
        .args([
            "--prompt=password of %u, to make machines and install packages: ",
            "-E",
        ])
        .arg("DEBIAN_FRONTEND=noninteractive")
        .arg(program);
    sudo
}

/// Runs a command whose output is for the reader.
pub(crate) fn step(what: &str, command: &mut Command) -> Result<()> {
    println!("==> {what}");
    flush();
    let started = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !status.success() {
        bail!("{what} failed ({status}): {}", line(command));
    }
    println!("    {what}: {:.1} s", started.elapsed().as_secs_f64());
    flush();
    Ok(())
}

/// Runs a command and returns its standard output; what it says on standard error is shown only if
/// it fails.
pub(crate) fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", line(command)))?;
    if !output.status.success() {
        bail!(
            "{} failed ({}): {}{}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    String::from_utf8(output.stdout).context("output is not UTF-8")
}

/// Runs a command whose errors and progress are shown as they come; what it prints is returned.
pub(crate) fn capture_shown(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", line(command)))?;
    if !output.status.success() {
        bail!("{} failed ({})", line(command), output.status);
    }
    String::from_utf8(output.stdout).context("output is not UTF-8")
}

/// A command that runs behind everything else: it gets what processors nobody wants, and ends with this program.
#[derive(Debug)]
pub(crate) struct Background {
    what: String,
    text: String,
    child: Child,
    said: File,
    since: Instant,
}

/// Runs what follows it in a group of its own that the scheduler serves last, then as a task that it serves last.
const BEHIND: &str = "echo 19 2>/dev/null >/proc/self/autogroup; exec chrt --idle 0 \"$@\"";

impl Background {
    /// Starts it. What it says is kept for [`Background::end`].
    pub(crate) fn begin(what: &str, behind: &Command) -> Result<Background> {
        let text = line(behind);
        println!("==> {what} meanwhile");
        flush();
        let said = tempfile::tempfile().context("cannot make a temporary file")?;
        let both = || said.try_clone().context("cannot share a temporary file");
        let mut child = command("setpriv");
        child
            .args([
                "--pdeathsig",
                "KILL",
                "setsid",
                "--wait",
                "sh",
                "-c",
                BEHIND,
                "sh",
            ])
            .arg(behind.get_program())
            .args(behind.get_args())
            .stdout(both()?)
            .stderr(both()?);
        for (name, value) in behind.get_envs() {
            match value {
                Some(value) => child.env(name, value),
                None => child.env_remove(name),
            };
        }
        let child = child
            .spawn()
            .with_context(|| format!("cannot start {text}"))?;
        Ok(Background {
            what: what.to_owned(),
            text,
            child,
            said,
            since: Instant::now(),
        })
    }

    /// Waits until it has ended, and prints what it said.
    pub(crate) fn end(mut self) -> Result<()> {
        let waited = Instant::now();
        let status = self
            .child
            .wait()
            .with_context(|| format!("cannot wait for {}", self.text))?;
        let mut said = String::new();
        self.said.rewind().context("cannot read what was said")?;
        self.said
            .read_to_string(&mut said)
            .context("cannot read what was said")?;
        print!("{said}");
        if !status.success() {
            bail!("{} failed ({status}): {}", self.what, self.text);
        }
        println!(
            "    {}: {:.1} s, {:.1} s of them waited for",
            self.what,
            self.since.elapsed().as_secs_f64(),
            waited.elapsed().as_secs_f64()
        );
        flush();
        Ok(())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // One that has ended, or that nobody waits for any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a program is on the PATH; an absolute path stands for itself.
pub(crate) fn has(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|dir| dir.join(program).is_file())
    })
}

/// The command as a person would type it.
pub(crate) fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

fn flush() {
    // A closed standard output shows itself at the next print.
    let _ = std::io::stdout().flush();
}
