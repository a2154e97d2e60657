//! How a machine comes to another stemcell: in place, with its components alone, or made anew. Pure.
//!
//! # Invariants
//! * In place is only what differs in components alone: the rest of the operating system and the images are the same,
//!   and a component of another content has another version, since versions stand beside one another on the machine.
//! * Kubernetes and etcd keep their minor, every other component its major: their data can go back with them.
//!
//! # Not here
//! How components come to a machine and run there (`rollout::world::refit`).

use std::collections::BTreeMap;

use windlass_common::cluster::{MachineSize, UpdateStrategy};
use windlass_common::id::Incarnation;

use crate::kubernetes::facts::minor_of;
use crate::model::{Machine, Part, StemcellRecord, Wanted};

/// What a machine in service is to become, which differs from what is wanted; `from` is the stemcell whose components
/// it runs.
pub fn becomes(
    machine: &Machine,
    size: MachineSize,
    strategy: UpdateStrategy,
    from: Option<&StemcellRecord>,
    to: &StemcellRecord,
) -> Wanted {
    let in_place = match strategy {
        UpdateStrategy::Replace => Err(None),
        UpdateStrategy::InPlace if !same_shape(machine.size, size) => {
            Err(Some("its shape changes".to_owned()))
        }
        UpdateStrategy::InPlace => match from {
            Some(from) => changes(from, to).map_err(Some),
            None => Err(Some(format!(
                "stemcell {} that it runs is not in the catalogue any more",
                machine.runs()
            ))),
        },
    };
    match in_place {
        Ok(changes) => Wanted::Refitted {
            stemcell: to.version.clone(),
            kubernetes_version: to.kubernetes_version.clone(),
            changes,
        },
        Err(because) => Wanted::Reborn {
            incarnation: Incarnation(machine.incarnation.0.saturating_add(1)),
            stemcell: to.version.clone(),
            kubernetes_version: to.kubernetes_version.clone(),
            size,
            because,
        },
    }
}

/// Whether a machine need not be made anew; data disks do not change with it.
pub fn same_shape(a: MachineSize, b: MachineSize) -> bool {
    (a.cpu_millis, a.memory_mib) == (b.cpu_millis, b.memory_mib)
}

/// What changes in place from one stemcell to another, for people, or why that cannot be.
fn changes(from: &StemcellRecord, to: &StemcellRecord) -> Result<String, String> {
    let (old, new) = (&from.inside, &to.inside);
    if (&old.line, &old.architecture) != (&new.line, &new.architecture) {
        return Err(format!(
            "{} {} becomes {} {}",
            old.line, old.architecture, new.line, new.architecture
        ));
    }
    let (was, is) = (&from.kubernetes_version, &to.kubernetes_version);
    if minor_of(was).is_none() || minor_of(was) != minor_of(is) {
        return Err(format!(
            "Kubernetes {was} becomes {is}, which is another minor"
        ));
    }
    if old.base.is_none() || old.base != new.base {
        return Err(format!(
            "the operating systems of {} and {} differ, not only their components",
            from.version, to.version
        ));
    }
    if old.images != new.images {
        let all = old.images.iter().chain(&new.images);
        let other = |(name, digest): &(&String, _)| {
            old.images.get(*name) != Some(*digest) || new.images.get(*name) != Some(*digest)
        };
        let name = all.clone().find(other).map_or("", |(name, _)| name);
        return Err(format!("image {name} in it is another one"));
    }
    let mut said = Vec::new();
    for (name, part) in &new.parts {
        let Some(before) = old.parts.get(name) else {
            return Err(format!("component {name} is new in it"));
        };
        if let Some(change) = change(name, before, part)? {
            said.push(change);
        }
    }
    if let Some(name) = old.parts.keys().find(|name| !new.parts.contains_key(*name)) {
        return Err(format!("component {name} is missing in it"));
    }
    if said.is_empty() {
        said.push("nothing that runs".to_owned());
    }
    Ok(said.join(", "))
}

/// What changes of one component, or why it cannot change in place.
fn change(name: &str, from: &Part, to: &Part) -> Result<Option<String>, String> {
    if from == to {
        return Ok(None);
    }
    if from.version == to.version {
        return Err(format!(
            "{name} {} has another content in it under the same version",
            to.version
        ));
    }
    let numbers = |version: &str, how_many: usize| -> Vec<String> {
        version
            .split('.')
            .take(how_many)
            .map(str::to_owned)
            .collect()
    };
    let (kept, what) = match name {
        "etcd" => (2, "minor"),
        _ => (1, "major version"),
    };
    let text = format!("{name} {} to {}", from.version, to.version);
    if numbers(&from.version, kept) != numbers(&to.version, kept) {
        return Err(format!("{text} is another {what}"));
    }
    Ok(Some(text))
}

/// Versions of the components that a machine runs otherwise than it was made with, by name: `own` are those that it was
/// made with, `runs` those that it is to run.
pub fn switched(
    own: &BTreeMap<String, String>,
    runs: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let other = |(name, version): &(&String, &String)| own.get(*name) != Some(*version);
    let versions = runs.iter().filter(other);
    versions
        .map(|(name, version)| (name.clone(), version.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use windlass_common::id::Digest;
    use windlass_common::stemcell::ComponentFile;

    use super::*;
    use crate::model::Inside;

    fn part(name: &str, version: &str, content: &str) -> (String, Part) {
        let file = ComponentFile {
            path: format!("opt/windlass/components/{name}/{version}/{name}"),
            digest: Digest::of(content.as_bytes()),
            bytes: 1,
        };
        let part = Part {
            version: version.to_owned(),
            files: vec![file],
        };
        (name.to_owned(), part)
    }

    fn stemcell() -> StemcellRecord {
        StemcellRecord {
            version: "test-1".to_owned(),
            kubernetes_version: "1.37.2".to_owned(),
            built_at: String::new(),
            components: BTreeMap::new(),
            images: BTreeMap::new(),
            digest: Digest::of(b""),
            agent: None,
            path: std::path::PathBuf::new(),
            inside: Inside {
                line: "debian12".to_owned(),
                architecture: "amd64".to_owned(),
                base: Some(Digest::of(b"base")),
                images: [("pause:1".to_owned(), Digest::of(b"pause"))].into(),
                parts: [
                    part("containerd", "2.2.9", "a"),
                    part("etcd", "3.6.16", "a"),
                    part("kubelet", "1.37.2", "a"),
                ]
                .into(),
            },
        }
    }

    #[test]
    fn only_components_change_in_place() {
        type Make = fn(&mut StemcellRecord);
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases: [(Make, Result<&str, &str>); 13] = [
            (|_| {}, Ok("nothing that runs")),
            (|s| s.inside.parts.extend([part("containerd", "2.3.7", "b")]), Ok("containerd 2.2.9 to 2.3.7")),
            (|s| s.inside.parts.extend([part("etcd", "3.6.17", "b")]), Ok("etcd 3.6.16 to 3.6.17")),
            (|s| s.inside.parts.extend([part("etcd", "3.7.0", "b")]), Err("another minor")),
            (|s| s.inside.parts.extend([part("containerd", "3.0.0", "b")]), Err("another major version")),
            (|s| s.inside.parts.extend([part("containerd", "2.2.9", "b")]), Err("under the same version")),
            (|s| s.inside.parts.extend([part("runc", "1.3.6", "b")]), Err("runc is new")),
            (|s| { s.inside.parts.remove("etcd"); }, Err("etcd is missing")),
            (|s| s.kubernetes_version = "1.38.0".to_owned(), Err("another minor")),
            (|s| s.inside.base = Some(Digest::of(b"other")), Err("operating systems")),
            (|s| s.inside.base = None, Err("operating systems")),
            (|s| s.inside.line = "debian13".to_owned(), Err("debian13")),
            (|s| s.inside.images.extend([("pause:1".to_owned(), Digest::of(b"b"))]), Err("image pause:1")),
        ];
        for (make, want) in cases {
            let mut to = stemcell();
            make(&mut to);
            let got = changes(&stemcell(), &to);
            match (&got, want) {
                (Ok(said), Ok(want)) => assert_eq!(said, want),
                (Err(why), Err(want)) => assert!(why.contains(want), "{why} / {want}"),
                _ => panic!("{got:?} / {want:?}"),
            }
        }
    }

    #[test]
    fn what_is_switched_is_told_from_what_the_machine_was_made_with() {
        let own = stemcell().inside.versions();
        let mut runs = own.clone();
        assert!(switched(&own, &runs).is_empty());
        runs.insert("containerd".to_owned(), "2.3.7".to_owned());
        let want = BTreeMap::from([("containerd".to_owned(), "2.3.7".to_owned())]);
        assert_eq!(switched(&own, &runs), want);
    }
}
