//! Running commands, with a line that says what is being done and how long it took.

use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
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
