//! A mirror that the user names: a directory or web server with
//! `<component>/<version>/linux-<arch>/<program>` and a `SHA256SUMS` beside the programs, as
//! [`export`] writes them. It is what an installation without internet access builds from.

use std::fs;
use std::path::{Path, PathBuf};

use windlass_common::stemcell::Source;

use super::cache::Cached;
use super::release::checksum_of;
use super::web::Web;
use super::{Attempt, Request, SourceError};
use crate::digest::digest_of;
use crate::files::{FileError, at, create_dir, write_atomic};
use crate::progress::Progress;

const SUMS: &str = "SHA256SUMS";

/// Where a mirror is.
#[derive(Debug, Clone)]
pub enum Mirror {
    /// A directory.
    Dir(PathBuf),
    /// The base URL, `http` or `https`, without a trailing slash.
    Url(String),
}

impl Mirror {
    /// What the user named: a URL, else a directory.
    pub fn parse(text: &str) -> Mirror {
        match text.starts_with("http://") || text.starts_with("https://") {
            true => Mirror::Url(text.trim_end_matches('/').to_owned()),
            false => Mirror::Dir(PathBuf::from(text)),
        }
    }

    fn origin(&self) -> String {
        match self {
            Mirror::Dir(dir) => dir.display().to_string(),
            Mirror::Url(url) => url.clone(),
        }
    }

    pub(super) fn get(
        &self,
        request: &Request<'_>,
        place: &Path,
        web: &mut Web,
        progress: Progress,
    ) -> Result<Attempt, SourceError> {
        let step = progress.start(format!("{}: copying it from the mirror", request.title()));
        let below = format!(
            "{}/{}/linux-{}",
            request.component, request.entry.version, request.arch
        );
        let sums = place.join(SUMS);
        if let Err(why) = self.fetch(&below, SUMS, &sums, web)? {
            return Ok(Attempt::Passed(why));
        }
        let text = fs::read(&sums).map_err(at("read", &sums))?;
        for program in request.programs {
            let path = place.join(program);
            if let Err(why) = self.fetch(&below, program, &path, web)? {
                return Ok(Attempt::Passed(why));
            }
            let what = format!("{}/{below}/{program}", self.origin());
            let Some(want) = checksum_of(&text, program) else {
                return Ok(Attempt::Passed(format!("{SUMS} has no line for {what}")));
            };
            let (got, _) = digest_of(&path)?;
            if got != want {
                let authority = format!("the mirror's {SUMS}");
                return Err(SourceError::DigestMismatch {
                    what,
                    authority,
                    want,
                    got,
                });
            }
        }
        fs::remove_file(&sums).map_err(at("remove", &sums))?;
        step.done("");
        Ok(Attempt::Got(Source::Mirror {
            origin: self.origin(),
        }))
    }

    fn fetch(
        &self,
        below: &str,
        name: &str,
        to: &Path,
        web: &mut Web,
    ) -> Result<Result<(), String>, SourceError> {
        match self {
            Mirror::Url(url) => web.get(&format!("{url}/{below}/{name}"), to),
            Mirror::Dir(dir) => {
                let from = dir.join(below).join(name);
                match fs::copy(&from, to) {
                    Ok(_) => Ok(Ok(())),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        Ok(Err(format!("{} is not there", from.display())))
                    }
                    Err(error) => Err(at("copy", &from)(error).into()),
                }
            }
        }
    }
}

/// Writes components from the cache as a mirror, beside whatever is there.
pub fn export<'a>(
    components: impl IntoIterator<Item = &'a Cached>,
    arch: &str,
    to: &Path,
) -> Result<(), FileError> {
    for component in components {
        let Cached {
            dir,
            component,
            version,
            files,
            ..
        } = component;
        let target = to
            .join(component)
            .join(version)
            .join(format!("linux-{arch}"));
        create_dir(&target)?;
        let mut sums = String::new();
        for file in files {
            let path = target.join(&file.name);
            fs::copy(dir.join(&file.name), &path).map_err(at("copy", &path))?;
            sums.push_str(&format!("{}  {}\n", file.digest.hex(), file.name));
        }
        write_atomic(&target.join(SUMS), sums.as_bytes(), 0o644)?;
    }
    Ok(())
}
