//! A Debian package: the recipe installs it in the root file system, the program is taken from there.

use std::fs;
use std::path::Path;

use windlass_common::stemcell::Source;

use super::{Attempt, Request, SourceError};
use crate::base::Base;
use crate::files::at;
use crate::lock::DebianPackage;

pub(super) fn take(
    wanted: &DebianPackage,
    request: &Request<'_>,
    place: &Path,
    base: &Base,
) -> Result<Attempt, SourceError> {
    let Some(package) = base
        .packages
        .iter()
        .find(|package| package.name == wanted.package)
    else {
        let why = format!("the recipe does not install the package {}", wanted.package);
        return Ok(Attempt::Passed(why));
    };
    if upstream_version(&package.version) != request.entry.version {
        let why = format!(
            "package {} has version {}, the lock wants {}",
            package.name, package.version, request.entry.version
        );
        return Ok(Attempt::Passed(why));
    }
    for program in request.programs {
        let Some(path) = wanted.files.get(program) else {
            continue;
        }; // checked when read
        let from = base.rootfs.join(path);
        fs::copy(&from, place.join(program)).map_err(at("copy", &from))?;
    }
    Ok(Attempt::Got(Source::Debian {
        package: package.name.clone(),
        package_version: package.version.clone(),
    }))
}

/// Debian's version without epoch, revision and repacking mark.
fn upstream_version(version: &str) -> &str {
    let version = version.split_once(':').map_or(version, |(_, rest)| rest);
    let version = version
        .rsplit_once('-')
        .map_or(version, |(upstream, _)| upstream);
    version.split(['+', '~']).next().unwrap_or(version)
}

#[cfg(test)]
mod tests {
    use super::upstream_version;

    #[test]
    fn the_upstream_part_of_a_version() {
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("1:1.35.0-4+b3", "1.35.0"), ("1.1.5+ds1-1+deb12u1", "1.1.5"), ("1.2", "1.2"),
            ("3.4.23~rc1-1", "3.4.23"),
        ];
        for (version, want) in cases {
            assert_eq!(upstream_version(version), want, "{version}");
        }
    }
}
