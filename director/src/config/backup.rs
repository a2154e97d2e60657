//! The section `[backup]`: where backups are, who can open them, and how often the director takes its own.

use std::time::Duration;

use rusty_s3::{Bucket, UrlStyle};
use serde_json::Value;
use url::Url;

use super::read::list;
use super::{BackupConfig, DataDir};
use crate::backup::envelope::RECIPIENTS_MAX;
use crate::backup::s3::S3Config;
use crate::spec::{Faults, Fields};

/// Hours between two backups; 0: none are taken by themselves. A year is as good as never.
const HOURS: std::ops::RangeInclusive<u32> = 0..=8760;
/// Backups that are kept.
const KEPT: std::ops::RangeInclusive<u32> = 1..=10_000;

/// Seconds that one request to an object store may take.
const TIMEOUT_S: std::ops::RangeInclusive<u32> = 5..=3600;
/// Longest prefix of an object's name, bytes: S3 bears 1024 in all.
const PREFIX_MAX: usize = 256;

pub(super) fn read(value: &Value, dir: &DataDir, faults: &mut Faults) -> Option<BackupConfig> {
    let mut fields = Fields::open(value, "backup", faults)?;
    let hours = fields.number("every_hours", 0, &HOURS, "hours", faults);
    let keep = fields.number("keep", 7, &KEPT, "backups", faults);
    let default = dir.path().join("backups");
    let directory = fields.optional("directory", default, "a path", faults, |text| {
        (!text.is_empty()).then(|| dir.path().join(text))
    });
    let allowed = "a list of public keys of age, `age1…`; `age-keygen -y KEYFILE` shows one";
    let recipients = list(&mut fields, "recipients", allowed, faults, |text| {
        text.parse().ok()
    });
    // The director's own key is one of them.
    let room = RECIPIENTS_MAX - 1;
    let recipients = recipients.filter(|all: &Vec<_>| {
        let fits = all.len() <= room;
        if !fits {
            let (path, given) = (fields.path("recipients"), format!("{} keys", all.len()));
            faults.add(path, given, format!("at most {room} keys"));
        }
        fits
    });
    let s3 = fields.take("s3").map(|value| s3(value, dir, faults));
    fields.close(faults);
    let every = |hours: u32| (hours > 0).then(|| Duration::from_secs(3600 * u64::from(hours)));
    Some(BackupConfig {
        every: every(hours?),
        keep: keep?,
        directory: directory?,
        s3: match s3 {
            Some(s3) => Some(s3?),
            None => None,
        },
        recipients: recipients?,
    })
}

fn s3(value: &Value, dir: &DataDir, faults: &mut Faults) -> Option<S3Config> {
    let mut fields = Fields::open(value, "backup.s3", faults)?;
    let allowed = "https://HOST or https://HOST:PORT; without TLS (http://) only on loopback";
    let endpoint = fields.required("endpoint", allowed, faults, endpoint);
    let allowed = "the name of a bucket: 3 to 63 lower-case letters, digits, dots and hyphens";
    let name = fields.required("bucket", allowed, faults, bucket_name);
    let allowed = "the name of a region, for example eu-central-1";
    let default = "us-east-1".to_owned();
    let region = fields.optional("region", default, allowed, faults, |text| {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        (!text.is_empty() && text.len() <= 64 && text.chars().all(good)).then(|| text.to_owned())
    });
    let allowed = "what names of objects begin with: letters, digits, `-`, `_`, `.` and `/`";
    let prefix = fields.optional("prefix", String::new(), allowed, faults, prefix);
    let path_style = fields.flag("path_style", true, faults);
    let path = |text: &str| (!text.is_empty()).then(|| dir.path().join(text));
    let credentials = fields.required("credentials", "a path", faults, path);
    let ca_file = fields.optional("ca_file", None, "a path", faults, |text| {
        path(text).map(Some)
    });
    let timeout = fields.number("timeout_s", 60, &TIMEOUT_S, "seconds", faults);
    let checksums = fields.flag("checksums", true, faults);
    let style = match path_style? {
        true => UrlStyle::Path,
        false => UrlStyle::VirtualHost,
    };
    let (endpoint, name) = (endpoint?, name?);
    let bucket = Bucket::new(endpoint.clone(), style, name.clone(), region?);
    if bucket.is_err() {
        let allowed = "a host that takes the bucket's name in front; with an IP address set path_style = true";
        faults.add(fields.path("endpoint"), endpoint.as_str(), allowed);
    }
    fields.close(faults);
    Some(S3Config {
        endpoint,
        bucket: bucket.ok()?,
        prefix: prefix?,
        credentials: credentials?,
        ca_file: ca_file?,
        timeout: Duration::from_secs(u64::from(timeout?)),
        checksums: checksums?,
    })
}

/// The URL of a store: a host and nothing else, over TLS unless it is this host.
fn endpoint(text: &str) -> Option<Url> {
    let url: Url = text.parse().ok()?;
    let plain = match url.host()? {
        url::Host::Domain(name) => name == "localhost",
        url::Host::Ipv4(address) => address.is_loopback(),
        url::Host::Ipv6(address) => address.is_loopback(),
    };
    let scheme = match url.scheme() {
        "https" => true,
        "http" => plain,
        _ => false,
    };
    let bare = url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    (scheme && bare).then_some(url)
}

fn bucket_name(text: &str) -> Option<String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    let sound = (3..=63).contains(&text.len())
        && text.chars().all(good)
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && !text.contains("..");
    sound.then(|| text.to_owned())
}

/// No part of it is `.` or `..`, which URLs leave out.
fn prefix(text: &str) -> Option<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let part =
        |part: &str| !part.is_empty() && part.chars().all(good) && !part.chars().all(|c| c == '.');
    let text = text.trim_matches('/');
    let sound = text.is_empty() || (text.len() <= PREFIX_MAX && text.split('/').all(part));
    sound.then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn read(lines: &str) -> Result<S3Config, String> {
        let dir = DataDir::new(std::path::Path::new("/var/lib/windlass")).unwrap();
        let text = format!("[backup.s3]\n{lines}");
        match Config::parse(&text, &dir) {
            Ok(config) => Ok(config.backup.s3.unwrap()),
            Err(faults) => Err(faults.to_string()),
        }
    }

    #[test]
    fn a_bucket_is_read_with_its_defaults() {
        let plain = "endpoint = \"https://s3.example:9000\"\nbucket = \"vault\"\ncredentials = \"s3.key\"\n";
        let config = read(plain).unwrap();
        assert_eq!(
            config.bucket.base_url().as_str(),
            "https://s3.example:9000/vault/"
        );
        assert_eq!(config.bucket.region(), "us-east-1");
        assert_eq!(
            config.credentials,
            std::path::Path::new("/var/lib/windlass/s3.key")
        );
        assert_eq!((config.prefix.as_str(), config.ca_file), ("", None));
        assert_eq!(
            (config.timeout, config.checksums),
            (Duration::from_secs(60), true)
        );
        let more =
            format!("{plain}path_style = false\nregion = \"eu-central-1\"\nprefix = \"/a/b/\"\n");
        let config = read(&more).unwrap();
        assert_eq!(
            config.bucket.base_url().as_str(),
            "https://vault.s3.example:9000/"
        );
        assert_eq!(
            (config.bucket.region(), config.prefix.as_str()),
            ("eu-central-1", "a/b")
        );
    }

    #[test]
    fn the_documented_section_shows_the_defaults() {
        let (_, section) = super::super::EXAMPLE.split_once("# [backup.s3]\n").unwrap();
        let (section, _) = section.split_once("\n[").unwrap();
        let setting = |line: &&str| {
            let key = line.split_once(" = ").map(|(key, _)| key);
            key.is_some_and(|key| {
                key.chars()
                    .all(|c| c.is_ascii_lowercase() || matches!(c, '_' | '3'))
            })
        };
        let lines = section.lines().filter_map(|line| line.strip_prefix("# "));
        let mut documented = Vec::new();
        for line in lines.filter(setting) {
            documented.push(match line {
                "bucket = \"\"" => "bucket = \"vault\"",
                "credentials = \"\"" => "credentials = \"s3.key\"",
                "ca_file = \"\"" => continue, // nothing, where it is not given
                line => line,
            });
        }
        assert_eq!(documented.len(), 8, "{documented:?}");
        let least = "endpoint = \"https://s3.eu-central-1.amazonaws.com\"\nbucket = \"vault\"\ncredentials = \"s3.key\"";
        assert_eq!(read(&documented.join("\n")), read(least));
    }

    #[test]
    fn what_no_store_can_have_is_a_fault() {
        let with = |endpoint: &str, bucket: &str, more: &str| {
            read(&format!(
                "endpoint = \"{endpoint}\"\nbucket = \"{bucket}\"\ncredentials = \"k\"\n{more}"
            ))
        };
        with("http://127.0.0.1:1", "vault", "").unwrap();
        with("http://localhost", "vault", "").unwrap();
        let cases = [
            ("endpoint", with("http://s3.example", "vault", "")),
            ("endpoint", with("https://s3.example/store", "vault", "")),
            (
                "endpoint",
                with("https://me:secret@s3.example", "vault", ""),
            ),
            (
                "endpoint",
                with("https://10.0.0.1", "vault", "path_style = false"),
            ),
            ("endpoint", with("s3.example", "vault", "")),
            ("bucket", with("https://s3.example", "Vault", "")),
            ("bucket", with("https://s3.example", "a/b", "")),
            (
                "prefix",
                with("https://s3.example", "vault", "prefix = \"a/../b\""),
            ),
            (
                "region",
                with("https://s3.example", "vault", "region = \"\""),
            ),
            (
                "path_style",
                with("https://s3.example", "vault", "path_style = \"yes\""),
            ),
            (
                "timeout_s",
                with("https://s3.example", "vault", "timeout_s = 1"),
            ),
            (
                "secret",
                with("https://s3.example", "vault", "secret = \"x\""),
            ),
            (
                "credentials",
                read("endpoint = \"https://s3.example\"\nbucket = \"vault\""),
            ),
        ];
        for (field, read) in cases {
            let faults = read.unwrap_err();
            assert!(
                faults.contains(&format!("backup.s3.{field}")),
                "{field}: {faults}"
            );
        }
    }
}
