//! A program of this project: one C file, compiled statically by the host's compiler.

use std::path::Path;

use windlass_common::id::Digest;
use windlass_common::stemcell::Source;

use super::{Attempt, Request, SourceError};
use crate::home::read_bounded;
use crate::lock::Own;
use crate::progress::Progress;
use crate::tool::Tool;

pub(super) fn compile(
    own: &Own,
    request: &Request<'_>,
    place: &Path,
    progress: Progress,
) -> Result<Attempt, SourceError> {
    let step = progress.start(format!("{}: compiling it", request.title()));
    let source = request.home.path(&own.source);
    let digest = Digest::of(&read_bounded(&source)?);
    for program in request.programs {
        Tool::new(
            "cc",
            "install gcc and libc6-dev",
            format!("compiling {}", source.display()),
        )
        .args(["-static", "-Os", "-s", "-Wall", "-Wl,--build-id=none", "-o"])
        .args([&place.join(program), &source])
        .run()?;
    }
    step.done("");
    Ok(Attempt::Got(Source::Own { source: digest }))
}
