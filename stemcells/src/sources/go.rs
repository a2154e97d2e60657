//! A build from a Go module, by a wrapper module whose go.mod and go.sum pin every dependency.
//!
//! The flags make the result depend on nothing but those files and the tool chain: no paths, no
//! version control, the publisher's date. Variables of the environment that change code are reset.

use std::path::Path;

use windlass_common::id::Hasher;
use windlass_common::stemcell::Source;

use super::{Attempt, Request, SourceError};
use crate::files::at;
use crate::home::read_bounded;
use crate::lock::{Go, expand};
use crate::progress::Progress;
use crate::tool::{Tool, ToolError};

/// How to get the tool chain.
pub(super) const HINT: &str =
    "install Go (the version in components/*/*/go.mod) from https://go.dev/dl/";

pub(super) fn build(
    go: &Go,
    request: &Request<'_>,
    place: &Path,
    progress: Progress,
) -> Result<Attempt, SourceError> {
    let wrapper = request
        .home
        .family(&request.entry.family)
        .join(&request.entry.version);
    let mut sums = Hasher::default();
    for name in ["go.mod", "go.sum"] {
        sums.update(&read_bounded(&wrapper.join(name))?);
    }
    let call = |what: String| {
        let cgo = if go.cgo { "1" } else { "0" };
        let go_arch = request.arch;
        let call = Tool::new("go", HINT, what)
            .dir(&wrapper)
            .env("GOWORK", "off");
        let call = call
            .env("CGO_ENABLED", cgo)
            .env("GOFLAGS", "")
            .env("GOOS", "linux");
        call.env("GOARCH", go_arch)
            .env("GOAMD64", "v1")
            .env("GOEXPERIMENT", "")
    };
    let toolchain = match call("asking for its version".to_owned())
        .args(["env", "GOVERSION"])
        .run()
    {
        Ok(output) => String::from_utf8_lossy(&output).trim().to_owned(),
        Err(error) => return passed_unless_full(error),
    };
    let step = progress.start(format!("{}: building it with {toolchain}", request.title()));
    let expanded: Vec<String> = go
        .ldflags
        .iter()
        .map(|flag| expand(flag, request.entry, request.arch, ""))
        .collect();
    let ldflags = format!("-s -w {}", expanded.join(" "));
    let packages: Vec<&String> = request
        .programs
        .iter()
        .filter_map(|program| go.packages.get(program))
        .collect();
    let built = call(format!("building {}", request.title()))
        .args(["build", "-trimpath", "-buildvcs=false", "-mod=readonly"])
        .args(["-tags", &go.tags.join(","), "-ldflags", &ldflags, "-o"])
        .arg(format!("{}/", place.display()))
        .args(&packages)
        .run();
    if let Err(error) = built {
        return passed_unless_full(error);
    }
    for (program, package) in request.programs.iter().zip(packages) {
        let built = place.join(executable_name(package));
        std::fs::rename(&built, place.join(program)).map_err(at("rename", &built))?;
    }
    step.done("");
    Ok(Attempt::Got(Source::Go {
        module: format!("{}@v{}", go.module, request.entry.version),
        toolchain,
        sums: sums.finish(),
    }))
}

fn passed_unless_full(error: ToolError) -> Result<Attempt, SourceError> {
    match error.is_disk_full() {
        true => Err(error.into()),
        false => Ok(Attempt::Passed(error.to_string())),
    }
}

/// What `go build` calls a package's program: its last element that is not a major version.
fn executable_name(package: &str) -> &str {
    let is_major = |part: &str| {
        part.strip_prefix('v')
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    let mut parts = package.rsplit('/');
    let last = parts.next().unwrap_or(package);
    if is_major(last) {
        parts.next().unwrap_or(last)
    } else {
        last
    }
}

#[cfg(test)]
mod tests {
    use super::executable_name;

    #[test]
    fn programs_are_named_as_go_names_them() {
        assert_eq!(executable_name("k8s.io/kubernetes/cmd/kubelet"), "kubelet");
        assert_eq!(executable_name("go.etcd.io/etcd/server/v3"), "server");
        assert_eq!(executable_name("github.com/opencontainers/runc"), "runc");
        assert_eq!(executable_name("example.org/v/vlan"), "vlan");
    }
}
