//! Kernel parameters: files beneath `/proc/sys`.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::{ConfigureError, Run};
use crate::host::Host;

/// A parameter as it is, if it is not as desired.
pub(super) fn differs(
    host: &Host,
    name: &str,
    value: &str,
) -> Result<Option<String>, ConfigureError> {
    let old = fs::read_to_string(path(host, name)).map_err(|source| ConfigureError::Sysctl {
        action: "read",
        name: name.to_owned(),
        source,
    })?;
    Ok((!same(&old, value)).then(|| old.trim().to_owned()))
}

/// Makes one parameter as desired.
pub(super) fn converge(
    host: &Host,
    run: &Run,
    name: &str,
    value: &str,
) -> Result<(), ConfigureError> {
    let path = path(host, name);
    let failed = |action| {
        let name = name.to_owned();
        move |source: io::Error| ConfigureError::Sysctl {
            action,
            name,
            source,
        }
    };
    let old = fs::read_to_string(&path).map_err(failed("read"))?;
    if same(&old, value) {
        return Ok(());
    }
    // `/proc/sys` knows no other way of writing; there is nothing to sync.
    fs::write(&path, value).map_err(failed("write"))?;
    run.changed(format!("sysctl {name}: {} -> {value}", old.trim()));
    let new = fs::read_to_string(&path).map_err(failed("read"))?;
    if !same(&new, value) {
        let what = format!("kernel parameter {name}");
        return Err(ConfigureError::NotConverged { what });
    }
    Ok(())
}

/// `net.ipv4.conf.eth0/1.forwarding` is the file `net/ipv4/conf/eth0.1/forwarding`.
fn path(host: &Host, name: &str) -> PathBuf {
    let file: String = name
        .chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect();
    host.path(&format!("/proc/sys/{file}"))
}

/// The kernel separates several numbers by tabs.
fn same(a: &str, b: &str) -> bool {
    a.split_whitespace().eq(b.split_whitespace())
}
