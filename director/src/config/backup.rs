//! The section `[backup]`: where backups are, who can open them, and how often the director takes its own.

use std::time::Duration;

use serde_json::Value;

use super::read::list;
use super::{BackupConfig, DataDir};
use crate::backup::envelope::RECIPIENTS_MAX;
use crate::spec::{Faults, Fields};

/// Hours between two backups; 0: none are taken by themselves. A year is as good as never.
const HOURS: std::ops::RangeInclusive<u32> = 0..=8760;
/// Backups that are kept.
const KEPT: std::ops::RangeInclusive<u32> = 1..=10_000;

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
    fields.close(faults);
    let every = |hours: u32| (hours > 0).then(|| Duration::from_secs(3600 * u64::from(hours)));
    Some(BackupConfig {
        every: every(hours?),
        keep: keep?,
        directory: directory?,
        recipients: recipients?,
    })
}
