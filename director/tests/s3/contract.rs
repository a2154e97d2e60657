//! What every repository does.

use std::path::{Path, PathBuf};

use tokio::io::AsyncReadExt;
use windlass_common::id::{ClusterName, Digest, DirectorId, Incarnation, MachineName};
use windlass_common::step::EtcdSnapshot;
use windlass_director::backup::cluster::{BackupReason, FORMAT, MachineEntry, Manifest};
use windlass_director::backup::own_name::OwnName;
use windlass_director::backup::repository::{
    ArchiveFacts, BackupEntry, Repository, RepositoryError,
};
use windlass_director::model::{Endpoint, Timestamp};
use windlass_director::spec::{KubernetesVersion, Surroundings};

/// So many bytes, none like the one before it.
pub(crate) fn archive(bytes: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..bytes).map(|_| next()).collect()
}

/// The entry of a backup of the cluster `demo` with this archive.
pub(crate) fn entry(name: &str, archive: &[u8]) -> BackupEntry {
    let input = serde_json::json!({ "name": "demo", "kubernetesVersion": "1.37.2" });
    let around = Surroundings {
        kubernetes_versions: KubernetesVersion::new("1.37.2").into_iter().collect(),
        reserved: Vec::new(),
    };
    let machine = MachineName::new("demo-cp-0").unwrap();
    let manifest = Manifest {
        format: FORMAT,
        name: name.parse().unwrap(),
        reason: BackupReason::Scheduled,
        cluster: ClusterName::new("demo").unwrap(),
        cluster_created_at: Timestamp::from_unix_ms(1),
        spec: windlass_director::spec::parse(&input, &around).unwrap(),
        endpoint: Endpoint {
            name: "demo.windlass.internal".to_owned(),
            address: [10, 77, 0, 2].into(),
            port: 6443,
        },
        stemcell: "debian12-1.37.2-0".to_owned(),
        machines: vec![MachineEntry {
            name: machine.clone(),
            incarnation: Incarnation(1),
            control_plane: true,
            address: [10, 77, 0, 3].into(),
        }],
        director: DirectorId::new("d").unwrap(),
        director_version: "0.1.0".to_owned(),
        taken_at: Timestamp::from_unix_ms(1_900_000_000_000),
        taken_from: machine,
        snapshot: EtcdSnapshot {
            name: "00000000000000000100-00000007.db".to_owned(),
            revision: 100,
            hash: 7,
            keys: 12,
            bytes: 2,
            digest: Digest::of(b"db"),
            format: "3.6.0".to_owned(),
            restored: true,
        },
    };
    BackupEntry {
        manifest,
        archive: ArchiveFacts {
            bytes: archive.len() as u64,
            digest: Digest::of(archive),
        },
    }
}

async fn made(repository: &dyn Repository, name: &str, bytes: &[u8]) -> PathBuf {
    let path = repository.unfinished().await.unwrap().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Puts a backup of the cluster `demo` into its place.
pub(crate) async fn store(
    repository: &dyn Repository,
    name: &str,
    bytes: &[u8],
) -> Result<BackupEntry, RepositoryError> {
    let path = made(repository, name, bytes).await;
    let entry = entry(name, bytes);
    repository.store(&path, &entry).await?;
    assert!(!path.exists(), "what has its place is not unfinished");
    Ok(entry)
}

/// A repository that has nothing does what its trait says. `files`: where what is put in it can be seen as files.
pub(crate) async fn holds(repository: &dyn Repository, files: &Path) {
    clusters(repository, files).await;
    own(repository).await;
    assert_eq!(repository.sweep().await.unwrap(), 0);
    let left = repository.unfinished().await.unwrap().join("left.age");
    std::fs::write(&left, b"x").unwrap();
    repository.tidy().await.unwrap();
    assert!(!left.exists());
}

async fn clusters(repository: &dyn Repository, files: &Path) {
    let demo = ClusterName::new("demo").unwrap();
    let other = ClusterName::new("demo-2").unwrap();
    assert_eq!(repository.list(&demo).await.unwrap(), []);
    let old = store(repository, "20300131-120000-00000001", b"the old one").await;
    let old = old.unwrap();
    let new = store(repository, "20300131-180000-00000001", b"the new one").await;
    let new = new.unwrap();
    // What has an archive alone, or is something else, is none.
    let demos = files.join("demo");
    for name in [
        "20300201-000000-00000001.age",
        "20300201-000000-00000001-0123456789abcdef.age",
        "notes.json",
    ] {
        std::fs::write(demos.join(name), b"x").unwrap();
    }
    // An entry that cannot be read keeps none of the others from being seen.
    for end in [".json", ".age", "-0123456789abcdef.age"] {
        std::fs::write(demos.join(format!("20300202-000000-00000001{end}")), b"{").unwrap();
    }
    assert_eq!(
        repository.list(&demo).await.unwrap(),
        [new.clone(), old.clone()]
    );
    assert_eq!(repository.list(&other).await.unwrap(), []);

    let name = &new.manifest.name;
    let mut archive = repository.open(&demo, name).await.unwrap().unwrap();
    let mut bytes = Vec::new();
    archive.from.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(
        (bytes.as_slice(), &archive.entry),
        (&b"the new one"[..], &new)
    );
    assert!(repository.open(&other, name).await.unwrap().is_none());

    assert!(repository.delete(&demo, name).await.unwrap());
    assert!(!repository.delete(&demo, name).await.unwrap());
    assert!(repository.open(&demo, name).await.unwrap().is_none());
    assert_eq!(
        repository.list(&demo).await.unwrap(),
        std::slice::from_ref(&old)
    );

    // Damage is found by whoever reads.
    let name = &old.manifest.name;
    let file = std::fs::read_dir(&demos)
        .unwrap()
        .map(|file| file.unwrap().path())
        .find(|path| {
            let file = path.file_name().unwrap().to_str().unwrap();
            file.starts_with(name.as_str()) && file.ends_with(".age")
        });
    std::fs::write(file.unwrap(), b"the odd one").unwrap();
    let mut archive = repository.open(&demo, name).await.unwrap().unwrap();
    let error = archive.from.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert!(
        error.to_string().contains("not the one of its entry"),
        "{error}"
    );
}

async fn own(repository: &dyn Repository) {
    let day = |day: u64| OwnName::at(Timestamp::from_unix_ms(day * 86_400_000));
    assert_eq!(repository.list_own().await.unwrap(), []);
    for at in [1, 2] {
        let path = made(repository, "own.age", b"the director").await;
        repository.store_own(&path, &day(at)).await.unwrap();
        assert!(!path.exists());
    }
    let path = made(repository, "own.age", b"another one").await;
    let taken = repository.store_own(&path, &day(1)).await;
    taken.expect_err("nothing takes the place of another");
    let mut listed = repository.list_own().await.unwrap();
    listed.sort();
    assert_eq!(listed, [day(1), day(2)]);
    assert!(repository.delete_own(&day(1)).await.unwrap());
    assert!(!repository.delete_own(&day(1)).await.unwrap());
    assert_eq!(repository.list_own().await.unwrap(), [day(2)]);
}
