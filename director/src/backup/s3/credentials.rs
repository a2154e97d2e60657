//! The key of an object store, in the file that its other clients read too.
//!
//! # Invariants
//! * The file is its owner's alone; one that others may read is refused.
//! * The secret is in no error and in no `Debug`.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusty_s3::Credentials;
use zeroize::Zeroizing;

use super::error::S3Error;

/// Largest file, bytes: a few profiles, of which a session token is the longest part (2 KiB).
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Reads the key of a file in the format of AWS (`~/.aws/credentials`): the section `[default]`, or what comes before
/// any section.
pub(super) fn load(path: &Path) -> Result<Credentials, S3Error> {
    let fault = |problem, source| S3Error::Credentials {
        path: PathBuf::from(path),
        problem,
        source,
    };
    let unread = |source: io::Error| fault("it cannot be read", Some(source));
    let file = File::open(path).map_err(unread)?;
    if file.metadata().map_err(unread)?.mode() & 0o077 != 0 {
        return Err(fault("others may read it, `chmod 600` it", None));
    }
    let mut text = Zeroizing::new(String::with_capacity(4096));
    let read = file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    if read.map_err(unread)? as u64 > FILE_BYTES_MAX {
        return Err(fault("it is longer than 64 KiB", None));
    }
    parse(&text).map_err(|problem| fault(problem, None))
}

fn parse(text: &str) -> Result<Credentials, &'static str> {
    let (mut key, mut secret, mut token) = (None, None, None);
    let mut ours = true;
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(section) = line.strip_prefix('[') {
            ours = section.trim_end_matches(']').trim() == "default";
            continue;
        }
        let (name, value) = line
            .split_once('=')
            .ok_or("a line of it is no NAME = VALUE")?;
        let value = value.trim();
        let sound = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic());
        let slot = match name.trim().to_ascii_lowercase().as_str() {
            _ if !ours => continue,
            "aws_access_key_id" => &mut key,
            "aws_secret_access_key" => &mut secret,
            "aws_session_token" => &mut token,
            _ => continue,
        };
        if !sound {
            return Err("a value of it is empty or has other characters than keys have");
        }
        *slot = Some(value);
    }
    let key = key.ok_or("its section [default] has no aws_access_key_id")?;
    let secret = secret.ok_or("its section [default] has no aws_secret_access_key")?;
    Ok(match token {
        Some(token) => Credentials::new_with_token(key, secret, token),
        None => Credentials::new(key, secret),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_default_section_is_taken() {
        let plain = parse("aws_access_key_id = AKID\naws_secret_access_key=s/e+c=ret\n").unwrap();
        assert_eq!((plain.key(), plain.secret()), ("AKID", "s/e+c=ret"));
        let many = "# mine\n[other]\naws_access_key_id = no\n[default]\nregion = x\naws_access_key_id = yes\n\
                    aws_secret_access_key = s\naws_session_token = t\n[last]\naws_secret_access_key = no\n";
        let many = parse(many).unwrap();
        assert_eq!(
            (many.key(), many.secret(), many.token()),
            ("yes", "s", Some("t"))
        );
        for bad in [
            "",
            "aws_access_key_id = a",
            "aws_secret_access_key = s",
            "[other]\naws_access_key_id = a\naws_secret_access_key = s",
            "aws_access_key_id =\naws_secret_access_key = s",
            "aws_access_key_id = a b\naws_secret_access_key = s",
            "nonsense",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused_and_nothing_shows_the_secret() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("credentials");
        std::fs::write(
            &path,
            "aws_access_key_id = a\naws_secret_access_key = hushhush\n",
        )
        .unwrap();
        let mode = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(0o640);
        let error = load(&path).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        mode(0o600);
        let keys = load(&path).unwrap();
        assert!(!format!("{keys:?}").contains("hush"), "{keys:?}");
        let missing = load(&directory.path().join("none")).unwrap_err();
        assert!(missing.to_string().contains("none"), "{missing}");
    }
}
