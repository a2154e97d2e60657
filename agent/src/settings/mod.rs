//! Where a machine learns who it is: a list of sources, tried in order.
//!
//! # Invariants
//! * The first source that is there decides; one that is there but broken is an error, not a reason
//!   to try the next: a machine must not take an identity that was not meant for it.
//!
//! # Not here
//! What the settings mean ([`windlass_common::settings`]).

use std::io::{self, Read};
use std::path::PathBuf;

use windlass_common::error::ErrorClass;
use windlass_common::settings::{SETTINGS_PATH, Settings};

use crate::host::Host;

/// Where cloud-init's NoCloud data is put by platforms that seed it as files.
const NOCLOUD_USER_DATA: &str = "/var/lib/cloud/seed/nocloud/user-data";
/// Longest settings, in bytes; they take about 500.
const SETTINGS_BYTES_MAX: u64 = 64 << 10;

/// Why the machine does not know who it is.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// No source has any.
    #[error("no settings were found, looked at {looked_at}; the provider has to put them there")]
    NotFound {
        /// Every place.
        looked_at: String,
    },
    /// A source cannot be read.
    #[error("cannot read the settings in {place}")]
    Read {
        /// Where.
        place: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A source does not hold settings.
    #[error("{place} does not hold settings of a machine")]
    Parse {
        /// Where.
        place: String,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
}

impl SettingsError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }
}

/// A place where a platform puts settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A JSON file with nothing but the settings.
    File(String),
    /// User data of cloud-init: the same JSON, if it is not a cloud-config of somebody else.
    UserData(String),
}

impl Source {
    /// Where it is, for messages.
    fn place(&self) -> &str {
        match self {
            Source::File(path) | Source::UserData(path) => path,
        }
    }

    fn read(&self, host: &Host) -> Result<Option<Settings>, SettingsError> {
        let place = self.place().to_owned();
        let Some(text) = read_file(&host.path(&place)).map_err(|source| SettingsError::Read {
            place: place.clone(),
            source,
        })?
        else {
            return Ok(None);
        };
        if matches!(self, Source::UserData(_)) && !text.trim_start().starts_with('{') {
            return Ok(None);
        }
        let parsed = serde_json::from_str(&text);
        parsed
            .map(Some)
            .map_err(|source| SettingsError::Parse { place, source })
    }
}

fn read_file(path: &PathBuf) -> io::Result<Option<zeroize::Zeroizing<String>>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = zeroize::Zeroizing::new(String::new());
    file.take(SETTINGS_BYTES_MAX).read_to_string(&mut text)?;
    Ok(Some(text))
}

/// Every source there is, in the order in which they are tried.
pub fn sources() -> Vec<Source> {
    vec![
        Source::File(SETTINGS_PATH.to_owned()),
        Source::UserData(NOCLOUD_USER_DATA.to_owned()),
    ]
}

/// Reads the settings from the first source that has them, and says so.
pub fn read(host: &Host, sources: &[Source]) -> Result<Settings, SettingsError> {
    let (source, settings) = find(host, sources)?;
    tracing::info!(
        source = source.place(),
        machine = %settings.machine,
        incarnation = %settings.incarnation,
        "settings read"
    );
    Ok(settings)
}

/// Reads the settings as they are now, without a word.
pub fn reread(host: &Host, sources: &[Source]) -> Result<Settings, SettingsError> {
    find(host, sources).map(|(_, settings)| settings)
}

fn find<'a>(host: &Host, sources: &'a [Source]) -> Result<(&'a Source, Settings), SettingsError> {
    for source in sources {
        if let Some(settings) = source.read(host)? {
            return Ok((source, settings));
        }
    }
    let places: Vec<&str> = sources.iter().map(Source::place).collect();
    Err(SettingsError::NotFound {
        looked_at: places.join(", "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const GOOD: &str = r#"{"director_id": "director", "directors": ["10.0.0.1:7443"],
        "ca_digest": "sha256:1111111111111111111111111111111111111111111111111111111111111111",
        "token": "hunter2", "cluster": "demo", "machine": "demo-cp-0", "incarnation": 3}"#;

    /// The machine's name, or the beginning of the error.
    fn found(files: &[(&str, &str)]) -> String {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        match read(&Host::open(root.path()).unwrap(), &sources()) {
            Ok(settings) => settings.machine.to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_first_source_that_is_there_decides() {
        let other = GOOD.replace("demo-cp-0", "other");
        let extra = GOOD.replace("\"cluster\"", "\"cloud\": 1, \"cluster\"");
        let (file, nocloud) = (SETTINGS_PATH, NOCLOUD_USER_DATA);
        let broken = format!("{file} does not hold settings of a machine");
        let nowhere = format!(
            "no settings were found, looked at {file}, {nocloud}; the provider has to put them there"
        );
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases: [(&[(&str, &str)], &str); 7] = [
            (&[(file, GOOD)], "demo-cp-0"),
            (&[(nocloud, GOOD)], "demo-cp-0"),
            (&[(file, GOOD), (nocloud, &other)], "demo-cp-0"),
            (&[(file, "{"), (nocloud, GOOD)], &broken),
            (&[(file, &extra)], &broken),
            (&[(nocloud, "#cloud-config\nusers: []\n")], &nowhere),
            (&[], &nowhere),
        ];
        for (files, want) in cases {
            assert_eq!(found(files), want, "{files:?}");
        }
    }

    #[test]
    fn the_token_is_in_no_error() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(SETTINGS_PATH.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let host = Host::open(root.path()).unwrap();
        for broken in [
            GOOD.replace("\"demo\"", "\"DEMO\""),
            GOOD.replace("3}", "-3}"),
        ] {
            fs::write(&path, broken).unwrap();
            let error = read(&host, &sources()).unwrap_err();
            let text = format!("{error:?} {}", windlass_common::error::ErrorChain(&error));
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
