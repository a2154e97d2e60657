//! What keeps a director from starting here, all of it at once, before anything is changed.
//!
//! What keeps the *provider* from working is the provider's own list.

use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::path::Path;

use ipnet::Ipv4Net;

use super::{Config, DataDir};
use crate::provider::{PreflightFault, Severity};

/// Free space a director needs for its store and log, bytes; machines need more, which the provider
/// checks for each.
const SPACE_MIN: u64 = 1 << 30;

/// Looks at the host without changing it.
pub fn director(dir: &DataDir, config: &Config) -> Vec<PreflightFault> {
    let mut faults = Vec::new();
    let mut fault = |subject: &str, message: String, remedy: &str| {
        faults.push(PreflightFault {
            subject: subject.to_owned(),
            message,
            remedy: remedy.to_owned(),
            severity: Severity::Fatal,
        });
    };
    if !nix::unistd::geteuid().is_root() {
        let uid = nix::unistd::geteuid();
        let message = format!(
            "this is user {uid}, and the local provider makes namespaces, mounts and networks"
        );
        fault("user", message, "run it as root, for example with sudo");
    }
    if let Err(error) = writable(dir.path()) {
        let message = format!("{} is not writable: {error}", dir.path().display());
        fault(
            "data directory",
            message,
            "make it writable or name another one with --data-dir",
        );
    }
    match nix::sys::statvfs::statvfs(dir.path()) {
        Ok(stat) => {
            let free = stat.blocks_available().saturating_mul(stat.fragment_size());
            if free < SPACE_MIN {
                let message = format!(
                    "{} has {} MiB free, {} MiB are needed",
                    dir.path().display(),
                    free >> 20,
                    SPACE_MIN >> 20
                );
                fault(
                    "space",
                    message,
                    "free some, or name another directory with --data-dir",
                );
            }
        }
        Err(error) => {
            let message = format!(
                "cannot tell the free space of {}: {error}",
                dir.path().display()
            );
            fault("space", message, "check the data directory");
        }
    }
    if let Err(error) = TcpListener::bind(config.api.listen) {
        let message = format!("cannot listen on {} (TCP): {error}", config.api.listen);
        fault(
            "api.listen",
            message,
            "free the address or change api.listen in director.toml",
        );
    }
    if let Err(error) = UdpSocket::bind(config.gateway.listen) {
        let message = format!("cannot listen on {} (UDP): {error}", config.gateway.listen);
        fault(
            "gateway.listen",
            message,
            "free the address or change gateway.listen in director.toml",
        );
    }
    faults
}

/// Whether a file can be made in a directory; it is removed again.
fn writable(dir: &Path) -> std::io::Result<()> {
    let probe = dir.join(format!(".preflight.{}", std::process::id()));
    File::create_new(&probe)?;
    std::fs::remove_file(&probe)
}

/// Networks that this host has routes to, the default route aside; those of its own interfaces are among
/// them.
pub fn networks_in_use() -> Vec<Ipv4Net> {
    // A host without IPv4 has no such file, and no networks in use.
    let text = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let field = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::swap_bytes);
    text.lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (destination, mask) = (field(fields.get(1)?)?, field(fields.get(7)?)?);
            let prefix = u8::try_from(mask.leading_ones()).ok()?;
            (prefix > 0)
                .then(|| Ipv4Net::new(destination.into(), prefix).ok())
                .flatten()
        })
        .collect()
}
