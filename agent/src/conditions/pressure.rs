//! Pressure: for how much of the time work stands still for want of CPU, memory or input and output (PSI,
//! `Documentation/accounting/psi.rst` of the kernel).
//!
//! The machine's own cgroup counts the machine's own work, in a system container too; `/proc/pressure` counts that of
//! the whole host, and says so there. For want of CPU something always waits: that is shown, and never bad.

use std::fs;
use std::io;

use windlass_common::condition::{IO_FULL_MAX_BP, MEMORY_FULL_MAX_BP, PRESSURE};
use windlass_common::report::Scope;

use super::track::{Look, Seen};
use crate::host::Host;

/// What can be short, and the share of a minute from which on it is too short, hundredths of a percent.
const RESOURCES: [(&str, Option<u32>); 3] = [
    ("cpu", None),
    ("memory", Some(MEMORY_FULL_MAX_BP)),
    ("io", Some(IO_FULL_MAX_BP)),
];

/// Looks at each resource; a kernel that does not count (`psi=0`) has nothing to say.
pub(super) fn look(host: &Host) -> Vec<Look> {
    let looks = RESOURCES.into_iter().filter_map(|(resource, max_bp)| {
        let (source, scope, text) = read(host, resource)?;
        Some(Look {
            name: PRESSURE,
            subject: resource.to_owned(),
            seen: match text {
                Ok(text) => judge(&text, max_bp),
                Err(error) => Seen::Unknown(format!("{source} cannot be read: {error}")),
            },
            source,
            scope,
        })
    });
    looks.collect()
}

/// The nearest counter that there is: where it is, whose it is, and what it says.
fn read(host: &Host, resource: &str) -> Option<(String, Scope, io::Result<String>)> {
    let whole = if host.is_container() {
        Scope::Host
    } else {
        Scope::Machine
    };
    // Version 2 by itself, then beside version 1, then without cgroups.
    let places = [
        (
            format!("/sys/fs/cgroup/{resource}.pressure"),
            Scope::Machine,
        ),
        (
            format!("/sys/fs/cgroup/unified/{resource}.pressure"),
            Scope::Machine,
        ),
        (format!("/proc/pressure/{resource}"), whole),
    ];
    places.into_iter().find_map(|(path, scope)| {
        match fs::read_to_string(host.path(&path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            // The kernel counts nothing.
            Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => None,
            read => Some((path, scope, read)),
        }
    })
}

/// `full` is when nothing of the machine went on, `some` when something had to wait.
fn judge(text: &str, max_bp: Option<u32>) -> Seen {
    let (some, full) = (average_bp(text, "some"), average_bp(text, "full"));
    match (max_bp, some, full) {
        (Some(max_bp), _, Some(full)) => {
            let says = format!(
                "everything stood still for {} of the last minute",
                percent(full)
            );
            if full > max_bp {
                Seen::Bad(says)
            } else {
                Seen::Good(says)
            }
        }
        (None, Some(some), _) => Seen::Good(format!(
            "something waited for {} of the last minute",
            percent(some)
        )),
        (Some(_), _, None) | (None, None, _) => {
            Seen::Unknown("the kernel's figures cannot be understood".to_owned())
        }
    }
}

fn percent(bp: u32) -> String {
    format!("{}.{:02} %", bp / 100, bp % 100)
}

/// Average over a minute in the line of this kind, hundredths of a percent: `full avg10=0.00 avg60=1.25 …`.
fn average_bp(text: &str, kind: &str) -> Option<u32> {
    let mut lines = text.lines();
    let figures = lines.find_map(|line| line.strip_prefix(kind)?.strip_prefix(' '))?;
    let average = figures
        .split(' ')
        .find_map(|figure| figure.strip_prefix("avg60="))?;
    let (whole, hundredths) = average.split_once('.')?;
    if hundredths.len() != 2 {
        return None;
    }
    let (whole, hundredths): (u32, u32) = (whole.parse().ok()?, hundredths.parse().ok()?);
    whole.checked_mul(100)?.checked_add(hundredths)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn figures(some: &str, full: &str) -> String {
        format!(
            "some avg10=99.00 avg60={some} avg300=0.00 total=1\nfull avg10=99.00 avg60={full} avg300=0.00 total=1\n"
        )
    }

    #[test]
    #[rustfmt::skip] // one case per line, so that a missing one shows
    fn what_stands_still_for_too_long_is_bad() {
        let good = |says: &str| Seen::Good(says.to_owned());
        let full = |share: &str| format!("everything stood still for {share} % of the last minute");
        let unknown = Seen::Unknown("the kernel's figures cannot be understood".to_owned());
        let cases = [
            (figures("50.00", "0.00"),  Some(2000), good(&full("0.00"))),
            (figures("50.00", "20.00"), Some(2000), good(&full("20.00"))),
            (figures("50.00", "20.01"), Some(2000), Seen::Bad(full("20.01"))),
            (figures("90.50", "90.50"), None,       good("something waited for 90.50 % of the last minute")),
            (String::new(),             Some(2000), unknown.clone()),
            (figures("x", "7"),         Some(2000), unknown.clone()),
            (figures("1.5", "0.00"),    None,       unknown),
        ];
        for (text, max_bp, wanted) in cases {
            assert_eq!(judge(&text, max_bp), wanted, "{text}");
        }
    }

    #[test]
    fn the_nearest_counter_counts_and_says_whose_it_is() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let host = || Host::open(root.path()).unwrap();
        let memory = |looks: Vec<Look>| looks.into_iter().find(|look| look.subject == "memory");
        assert_eq!(look(&host()), []);
        write("proc/pressure/memory", &figures("0.00", "99.00"));
        let seen = memory(look(&host())).unwrap();
        assert!(matches!(seen.seen, Seen::Bad(_)), "{seen:?}");
        assert_eq!(seen.scope, Scope::Machine, "a machine without others");
        write("run/systemd/container", "oci\n");
        let seen = memory(look(&host())).unwrap();
        assert_eq!(seen.scope, Scope::Host, "of all machines together");
        write(
            "sys/fs/cgroup/unified/memory.pressure",
            &figures("0.00", "0.00"),
        );
        let seen = memory(look(&host())).unwrap();
        assert!(matches!(seen.seen, Seen::Good(_)), "{seen:?}");
        assert_eq!(seen.scope, Scope::Machine);
        assert_eq!(seen.source, "/sys/fs/cgroup/unified/memory.pressure");
    }

    #[test]
    fn this_machine_is_looked_at() {
        let looks = look(&Host::open(Path::new("/")).unwrap());
        let understood = |look: &Look| !matches!(look.seen, Seen::Unknown(_));
        assert!(looks.iter().all(understood), "{looks:?}");
    }
}
