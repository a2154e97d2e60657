//! The official download: checked against the publisher's checksum file, and its signature where a
//! tool for that is installed.

use std::fs;
use std::path::Path;

use windlass_common::id::Digest;
use windlass_common::stemcell::Source;

use super::web::Web;
use super::{Attempt, Request, SourceError};
use crate::digest::digest_of;
use crate::files::{at, create_dir, remove_tree};
use crate::lock::{Cosign, Release, expand};
use crate::progress::Progress;
use crate::tool::{Tool, is_installed};

/// Longest checksum file that is read, in bytes: 100 lines.
const CHECKSUM_BYTES_MAX: usize = 64 << 10;

pub(super) fn get(
    release: &Release,
    request: &Request<'_>,
    place: &Path,
    web: &mut Web,
    progress: Progress,
) -> Result<Attempt, SourceError> {
    if let Some(why) = web.unreachable(&release.url) {
        return Ok(Attempt::Passed(why));
    }
    let step = progress.start(format!("{}: downloading its release", request.title()));
    let downloads = place.join(".download");
    create_dir(&downloads)?;
    let mut signature_checked = release.cosign.is_some();
    let mut first_url = None;
    let files: Vec<&str> = match release.member {
        Some(_) => vec![request.component], // one archive for all programs
        None => request.programs.iter().map(String::as_str).collect(),
    };
    for file in files {
        let fill = |text: &str| expand(text, request.entry, request.arch, file);
        let url = fill(&release.url);
        let target = downloads.join(file);
        if let Err(why) = web.get(&url, &target)? {
            return Ok(Attempt::Passed(why));
        }
        let sums = downloads.join(format!("{file}.sums"));
        if let Err(why) = web.get(&fill(&release.checksum), &sums)? {
            return Ok(Attempt::Passed(format!(
                "no checksum to check it against: {why}"
            )));
        }
        let text = fs::read(&sums).map_err(at("read", &sums))?;
        let Some(want) = checksum_of(&text, &url) else {
            let from = fill(&release.checksum);
            return Ok(Attempt::Passed(format!("{from} has no SHA-256 of {url}")));
        };
        let (got, _) = digest_of(&target)?;
        if got != want {
            let authority = format!("its publisher's checksum {}", fill(&release.checksum));
            return Err(SourceError::DigestMismatch {
                what: url,
                authority,
                want,
                got,
            });
        }
        signature_checked &= match &release.cosign {
            Some(cosign) => check_signature(cosign, &fill, &target, web)?,
            None => false,
        };
        match &release.member {
            Some(member) => unpack(member, request, &target, place)?,
            None => {
                let path = place.join(file);
                fs::rename(&target, &path).map_err(at("rename", &target))?;
            }
        }
        first_url.get_or_insert(url);
    }
    remove_tree(&downloads)?;
    let url = first_url.unwrap_or_default();
    step.done(if signature_checked {
        "checksum and signature hold"
    } else {
        "checksum holds"
    });
    Ok(Attempt::Got(Source::Release {
        url,
        signature_checked,
    }))
}

/// Finds a file's SHA-256 in a checksum file: a bare one, or lines as `sha256sum` writes them.
pub(super) fn checksum_of(text: &[u8], url: &str) -> Option<Digest> {
    let text = str::from_utf8(text.get(..CHECKSUM_BYTES_MAX).unwrap_or(text)).ok()?;
    let name = url.rsplit('/').next().unwrap_or(url);
    let parse = |hex: &str| format!("sha256:{}", hex.to_ascii_lowercase()).parse().ok();
    let mut words = text.split_whitespace();
    if let (Some(only), None) = (words.next(), words.next()) {
        return parse(only);
    }
    text.lines().find_map(|line| {
        let (hex, file) = line.split_once(char::is_whitespace)?;
        let file = file.trim().trim_start_matches('*');
        (file.rsplit('/').next() == Some(name))
            .then(|| parse(hex))
            .flatten()
    })
}

/// Whether the publisher's signature was checked; one that does not hold is an error.
fn check_signature(
    cosign: &Cosign,
    fill: &dyn Fn(&str) -> String,
    file: &Path,
    web: &mut Web,
) -> Result<bool, SourceError> {
    if !is_installed("cosign") {
        return Ok(false);
    }
    let (signature, certificate) = (file.with_extension("sig"), file.with_extension("cert"));
    let fetched = web.get(&fill(&cosign.signature), &signature)?;
    if fetched
        .and(web.get(&fill(&cosign.certificate), &certificate)?)
        .is_err()
    {
        return Ok(false);
    }
    Tool::new("cosign", "install cosign", "checking a signature")
        .args(["verify-blob", "--certificate-identity", &cosign.identity])
        .args(["--certificate-oidc-issuer", &cosign.issuer, "--signature"])
        .arg(&signature)
        .arg("--certificate")
        .args([&certificate, file])
        .run()
        .map_err(|source| SourceError::Signature {
            url: fill("{binary}"),
            source,
        })?;
    Ok(true)
}

/// Takes the programs, and nothing else, out of an archive.
fn unpack(
    member: &str,
    request: &Request<'_>,
    archive: &Path,
    place: &Path,
) -> Result<(), SourceError> {
    let dir = place.join(".unpacked");
    create_dir(&dir)?;
    let member = |program: &str| expand(member, request.entry, request.arch, program);
    Tool::new(
        "tar",
        "install tar",
        format!("unpacking {}", archive.display()),
    )
    .args(["--extract", "--no-same-owner", "--file"])
    .arg(archive)
    .arg("--directory")
    .arg(&dir)
    .arg("--")
    .args(request.programs.iter().map(|program| member(program)))
    .run()?;
    for program in request.programs {
        let path = dir.join(member(program));
        let regular = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file());
        if !regular {
            let error = std::io::Error::other("not a regular file in its archive");
            return Err(at("take", &path)(error).into());
        }
        fs::rename(&path, place.join(program)).map_err(at("rename", &path))?;
    }
    Ok(remove_tree(&dir)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_files_come_in_several_shapes() {
        let hex = Digest::of(b"x").hex();
        let other = Digest::of(b"y").hex();
        let upper = hex.to_uppercase();
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("bare", hex.clone(), true),
            ("bare with newline", format!("{hex}\n"), true),
            ("upper case", upper, true),
            ("text mode", format!("{other}  b.tgz\n{hex}  a.tgz\n"), true),
            ("binary mode", format!("{hex} *a.tgz\n"), true),
            ("with a directory", format!("{hex}  ./dist/a.tgz\n"), true),
            ("another file only", format!("{hex}  b.tgz\n"), false),
            ("not hex", "<html>not found</html>".to_owned(), false),
            ("empty", String::new(), false),
        ];
        for (name, text, found) in cases {
            let got = checksum_of(text.as_bytes(), "https://example.org/v1/a.tgz");
            assert_eq!(got, found.then(|| Digest::of(b"x")), "{name}");
        }
    }
}
