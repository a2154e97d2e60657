//! How often a cluster is backed up.

use windlass_common::cluster::{BACKUP_MINUTES, BACKUPS_KEPT_MAX, BackupSpec};

use super::Fields;
use super::fault::{Faults, shown};

/// Reads `backup` of a cluster.
pub(super) fn parse(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<BackupSpec> {
    let default = BackupSpec::default();
    let Some(value) = fields.take("backup") else {
        return Some(default);
    };
    let mut inner = Fields::open(value, &fields.path("backup"), faults)?;
    let every_minutes = match inner.take("everyMinutes") {
        None => Some(default.every_minutes),
        Some(value) => {
            let minutes = value.as_u64().and_then(|n| u32::try_from(n).ok());
            let minutes = minutes.filter(|n| *n == 0 || BACKUP_MINUTES.contains(n));
            if minutes.is_none() {
                let (least, most) = (BACKUP_MINUTES.start(), BACKUP_MINUTES.end());
                let allowed = format!("{least} to {most} minutes, or 0 for no backups");
                faults.add(inner.path("everyMinutes"), shown(value), allowed);
            }
            minutes
        }
    };
    let range = 1..=BACKUPS_KEPT_MAX;
    let keep = inner.number("keep", default.keep, &range, "backups", faults);
    inner.close(faults);
    Some(BackupSpec {
        every_minutes: every_minutes?,
        keep: keep?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(backup: Value) -> Result<BackupSpec, String> {
        let input = json!({ "backup": backup });
        let mut faults = Faults::default();
        let spec = Fields::open(&input, "", &mut faults)
            .and_then(|mut fields| parse(&mut fields, &mut faults));
        match spec {
            Some(spec) if faults.is_empty() => Ok(spec),
            _ => Err(faults.to_string()),
        }
    }

    #[test]
    fn a_policy_is_read_with_its_defaults_and_every_fault_is_named() {
        let given = |every_minutes: u32, keep: u32| {
            let keys = json!({ "everyMinutes": every_minutes, "keep": keep });
            let spec = BackupSpec {
                every_minutes,
                keep,
            };
            (read(keys), spec)
        };
        for (every_minutes, keep) in [(0, 1), (5, 1000), (43_200, 28)] {
            let (got, want) = given(every_minutes, keep);
            assert_eq!(got, Ok(want));
            // What the API shows can be sent back.
            assert_eq!(read(serde_json::to_value(want).unwrap()), Ok(want));
        }
        assert_eq!(read(json!({})), Ok(BackupSpec::default()));
        for (every_minutes, keep) in [(4, 0), (43_201, 1001)] {
            let said = given(every_minutes, keep).0.unwrap_err();
            for key in ["backup.everyMinutes", "backup.keep"] {
                assert!(said.contains(key), "{key} is not named in {said}");
            }
        }
        let said = read(json!({"daily": true})).unwrap_err();
        assert!(said.contains("backup.daily"), "{said}");
    }
}
