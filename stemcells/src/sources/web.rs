//! Downloads, by `curl`: it knows the host's proxies and certificates.
//!
//! A host that cannot be reached is remembered for the run, so that a build without a network fails
//! over in seconds instead of waiting for each file.

use std::collections::BTreeSet;
use std::path::Path;

use super::SourceError;
use crate::files::FileError;
use crate::tool::{Tool, ToolError};

const HINT: &str = "install curl";
/// Longest wait for a connection.
const CONNECT_SECONDS: &str = "5";
/// Below a kilobyte a second for this long, a download is given up.
const STALL_SECONDS: &str = "30";
/// Largest file, in bytes: a kubelet has 60 MB, debug builds 150 MB.
const FILE_BYTES_MAX: &str = "1000000000";

/// Exit codes of curl that mean: this host is not to be reached from here (proxy or host name not
/// resolved, no connection, timeout, TLS handshake, certificate).
const UNREACHABLE: [i32; 6] = [5, 6, 7, 28, 35, 60];
/// Exit code of curl for a failed write.
const WRITE_FAILED: i32 = 23;

/// The web, as far as it was found reachable.
#[derive(Debug, Default)]
pub(super) struct Web {
    unreachable: BTreeSet<String>,
}

impl Web {
    /// Why nothing of `url`'s host can be had, if that is known already.
    pub(super) fn unreachable(&self, url: &str) -> Option<String> {
        let host = host_of(url);
        let known = self.unreachable.contains(host);
        known.then(|| format!("{host} could not be reached before"))
    }

    /// Downloads `url` to `path`. The inner error is why the file is not to be had.
    pub(super) fn get(
        &mut self,
        url: &str,
        path: &Path,
    ) -> Result<Result<(), String>, SourceError> {
        let host = host_of(url);
        if let Some(why) = self.unreachable(url) {
            return Ok(Err(why));
        }
        let protocols = if url.starts_with("https:") {
            "=https"
        } else {
            "=http,https"
        };
        let call = Tool::new("curl", HINT, format!("downloading {url}"))
            .args([
                "--silent",
                "--show-error",
                "--fail",
                "--location",
                "--proto",
                protocols,
            ])
            .args([
                "--connect-timeout",
                CONNECT_SECONDS,
                "--max-filesize",
                FILE_BYTES_MAX,
            ])
            .args([
                "--speed-limit",
                "1024",
                "--speed-time",
                STALL_SECONDS,
                "--output",
            ])
            .arg(path)
            .args(["--", url]);
        let (status, tail) = match call.status() {
            Ok(ended) => ended,
            Err(error @ ToolError::Missing { .. }) => return Ok(Err(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        let reason = tail.lines().last().unwrap_or("curl failed").to_owned();
        match status.code() {
            Some(0) => Ok(Ok(())),
            Some(WRITE_FAILED) => Err(FileError::DiskFull {
                what: "write",
                path: path.to_owned(),
            }
            .into()),
            Some(code) if UNREACHABLE.contains(&code) => {
                self.unreachable.insert(host.to_owned());
                Ok(Err(format!("{host}: {reason}")))
            }
            _ => Ok(Err(format!("{url}: {reason}"))),
        }
    }
}

fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}
