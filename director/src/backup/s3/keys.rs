//! How objects are called. Pure.
//!
//! ```text
//! PREFIX/CLUSTER/NAME.json              entry of a backup: with it the backup is there
//! PREFIX/CLUSTER/NAME-TAG.age           its archive; TAG begins the hex digits of its digest
//! PREFIX/_director/ID/director-TIME.age backup of the director ID itself
//! ```
//!
//! # Invariants
//! * The name of an archive follows from its content: two that differ never have one name, and an entry names its
//!   archive. Whoever writes an entry last, it and its archive belong together.
//! * No cluster is called `_director`.

use windlass_common::id::{ClusterName, Digest, DirectorId};

use super::super::cluster::BackupName;
use super::super::own_name::OwnName;

/// Hex digits of a digest that are part of a name: 64 bits, where names have a second and 32 bits already.
const TAG_DIGITS: usize = 16;
/// Where backups of directors are.
const OWN: &str = "_director";

/// The names of one director's objects.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    /// Empty, or ends with `/`.
    prefix: String,
    director: DirectorId,
}

/// An object of a cluster's backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) cluster: ClusterName,
    pub(super) name: BackupName,
    pub(super) part: Part,
}

/// Which object of a backup it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    Entry,
    /// With its tag.
    Archive(String),
}

/// What the name of an archive has of its digest.
pub(super) fn tag(digest: &Digest) -> String {
    let mut tag = digest.hex();
    tag.truncate(TAG_DIGITS);
    tag
}

impl Keys {
    pub(super) fn new(prefix: &str, director: DirectorId) -> Self {
        let mut prefix = prefix.trim_matches('/').to_owned();
        if !prefix.is_empty() {
            prefix.push('/');
        }
        Self { prefix, director }
    }

    /// What all names begin with.
    pub(super) fn all(&self) -> &str {
        &self.prefix
    }

    /// What the names of a cluster's objects begin with.
    pub(super) fn cluster(&self, cluster: &ClusterName) -> String {
        format!("{}{cluster}/", self.prefix)
    }

    /// What the names of a backup's objects begin with.
    pub(super) fn backup(&self, cluster: &ClusterName, name: &BackupName) -> String {
        format!("{}{cluster}/{name}", self.prefix)
    }

    pub(super) fn entry(&self, cluster: &ClusterName, name: &BackupName) -> String {
        format!("{}{cluster}/{name}.json", self.prefix)
    }

    pub(super) fn archive(
        &self,
        cluster: &ClusterName,
        name: &BackupName,
        digest: &Digest,
    ) -> String {
        format!("{}{cluster}/{name}-{}.age", self.prefix, tag(digest))
    }

    /// What the names of this director's own backups begin with.
    pub(super) fn own_all(&self) -> String {
        format!("{}{OWN}/{}/", self.prefix, self.director)
    }

    pub(super) fn own(&self, name: &OwnName) -> String {
        format!("{}{name}", self.own_all())
    }

    /// The object of that name, if it is one of a cluster's backup.
    pub(super) fn read(&self, key: &str) -> Option<Object> {
        let (cluster, file) = key.strip_prefix(&self.prefix)?.split_once('/')?;
        let cluster = ClusterName::new(cluster).ok()?;
        if let Some(name) = file.strip_suffix(".json") {
            let name = name.parse().ok()?;
            let part = Part::Entry;
            return Some(Object {
                cluster,
                name,
                part,
            });
        }
        let (name, tag) = file.strip_suffix(".age")?.rsplit_once('-')?;
        let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        let good = tag.len() == TAG_DIGITS && tag.chars().all(hex);
        let part = Part::Archive(tag.to_owned());
        let name = name.parse().ok().filter(|_| good)?;
        Some(Object {
            cluster,
            name,
            part,
        })
    }

    /// The backup of this director that the object of that name is.
    pub(super) fn read_own(&self, key: &str) -> Option<OwnName> {
        OwnName::read(key.strip_prefix(&self.own_all())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    #[test]
    fn names_are_read_as_they_were_made() {
        let director = DirectorId::new("d1").unwrap();
        let demo = ClusterName::new("demo").unwrap();
        let name: BackupName = "20300131-120000-5f3a0b1c".parse().unwrap();
        let digest = Digest::of(b"sealed");
        for (prefix, begins) in [("", ""), ("a/b", "a/b/"), ("/a/", "a/")] {
            let keys = Keys::new(prefix, director.clone());
            let entry = keys.entry(&demo, &name);
            assert_eq!(entry, format!("{begins}demo/20300131-120000-5f3a0b1c.json"));
            assert_eq!(keys.read(&entry).unwrap().part, Part::Entry);
            let archive = keys.archive(&demo, &name, &digest);
            assert!(archive.starts_with(&keys.backup(&demo, &name)));
            let read = keys.read(&archive).unwrap();
            assert_eq!(
                (read.cluster, read.name, read.part),
                (demo.clone(), name.clone(), Part::Archive(tag(&digest)))
            );
            let own = OwnName::at(Timestamp::from_unix_ms(1));
            let key = keys.own(&own);
            assert_eq!(keys.read_own(&key), Some(own));
            assert_eq!(keys.read(&key), None);
        }
        let keys = Keys::new("p", director);
        for other in [
            "demo/20300131-120000-5f3a0b1c.json",
            "p/demo/notes.txt",
            "p/demo/20300131-120000-5f3a0b1c.age",
            "p/demo/20300131-120000-5f3a0b1c-00.age",
            "p/demo/x/20300131-120000-5f3a0b1c.json",
            "p/_director/d1/20300131-120000-5f3a0b1c.json",
        ] {
            assert_eq!(keys.read(other), None, "{other}");
        }
    }
}
