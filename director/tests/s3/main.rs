//! Backups in a bucket, against a real S3 server (`s3s-fs`) on loopback, and the same assertions for a directory.
//!
//! `WINDLASS_TEST_S3` names the server's program; `cargo xtask test crates` installs it and sets this.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test: what is wrong ends it"
)]

mod contract;
mod server;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rusty_s3::{Bucket, UrlStyle};
use tokio::io::AsyncReadExt;
use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, Digest, DirectorId};
use windlass_director::backup::envelope;
use windlass_director::backup::hold::Hold;
use windlass_director::backup::own_name::OwnName;
use windlass_director::backup::periodic::OwnBackups;
use windlass_director::backup::repository::{Directory, Repository, RepositoryError};
use windlass_director::backup::s3::{S3, S3Config};
use windlass_director::config::{self, Config, DataDir};
use windlass_director::model::Timestamp;

use contract::{archive, entry, store};
use server::{BUCKET, Fault, Proxy, Server};

/// Between two tries of a call: a test does not wait for a store to recover.
const PAUSE: Duration = Duration::from_millis(5);
/// Three parts: two of 8 MiB, and a rest.
const THREE_PARTS: usize = (16 << 20) + 12_345;
const NAME: &str = "20300131-120000-00000001";

fn demo() -> ClusterName {
    ClusterName::new("demo").unwrap()
}

fn settings(server: &Server, endpoint: &str, ca_file: Option<PathBuf>, bucket: &str) -> S3Config {
    let endpoint: url::Url = endpoint.parse().unwrap();
    let bucket = Bucket::new(
        endpoint.clone(),
        UrlStyle::Path,
        bucket.to_owned(),
        "us-east-1",
    );
    S3Config {
        endpoint,
        bucket: bucket.unwrap(),
        prefix: "windlass/test".to_owned(),
        credentials: server.credentials(),
        ca_file,
        timeout: Duration::from_secs(20),
        checksums: true,
    }
}

/// The repository of a director whose staging directory has this name.
fn repository(server: &Server, config: S3Config, director: &str) -> S3 {
    let staging = server.root.path().join(director);
    let director = DirectorId::new(director).unwrap();
    S3::new(config, staging, director).with_pause(PAUSE)
}

fn plain(server: &Server) -> S3 {
    let config = settings(server, &server.endpoint(), None, BUCKET);
    repository(server, config, "d1")
}

async fn behind_tls(server: &Server, fault: Fault) -> (S3, Proxy) {
    let proxy = Proxy::start(server.root.path(), server.address, fault).await;
    let config = settings(server, &proxy.endpoint, Some(proxy.ca_file.clone()), BUCKET);
    (repository(server, config, "d1"), proxy)
}

fn refused(error: &RepositoryError, class: ErrorClass, parts: &[&str]) {
    let text = windlass_common::error::ErrorChain(error).to_string();
    assert_eq!(error.class(), class, "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[tokio::test]
async fn a_directory_keeps_backups() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("backups");
    contract::holds(&Directory::new(path.clone()), &path).await;
}

#[tokio::test]
async fn a_bucket_keeps_backups() {
    let server = Server::start();
    let files = server.bucket().join("windlass/test");
    contract::holds(&plain(&server), &files).await;
}

#[tokio::test]
async fn a_bucket_behind_tls_keeps_backups() {
    let server = Server::start();
    let files = server.bucket().join("windlass/test");
    let (repository, _proxy) = behind_tls(&server, Fault::None).await;
    contract::holds(&repository, &files).await;
}

#[tokio::test]
async fn a_bucket_of_a_store_without_checksums_keeps_backups() {
    let server = Server::start();
    let files = server.bucket().join("windlass/test");
    let mut config = settings(&server, &server.endpoint(), None, BUCKET);
    config.checksums = false;
    contract::holds(&repository(&server, config, "d1"), &files).await;
}

#[tokio::test]
async fn a_large_archive_is_sent_in_parts_and_read_back() {
    let server = Server::start();
    let (repository, _proxy) = behind_tls(&server, Fault::None).await;
    let bytes = archive(THREE_PARTS);
    let entry = store(&repository, NAME, &bytes).await.unwrap();
    let tag = &Digest::of(&bytes).hex()[..16];
    let stored = format!("windlass/test/demo/{NAME}-{tag}.age");
    assert!(server.objects().contains(&stored), "{:?}", server.objects());
    assert_eq!(std::fs::read(server.bucket().join(stored)).unwrap(), bytes);
    assert_eq!(server.parts(), 0);
    let opened = repository.open(&demo(), &entry.manifest.name).await;
    let mut opened = opened.unwrap().unwrap();
    let mut read = Vec::new();
    opened.from.read_to_end(&mut read).await.unwrap();
    assert_eq!(Digest::of(&read), Digest::of(&bytes));
    // Nothing is left of it on this host.
    let notes = server.root.path().join("d1/.uploads");
    assert_eq!(std::fs::read_dir(notes).unwrap().count(), 0);
    assert_eq!(repository.sweep().await.unwrap(), 0);
}

#[tokio::test]
async fn a_byte_that_is_damaged_on_the_way_makes_no_backup() {
    let server = Server::start();
    // In the second part, of which this server checks no checksum: reading back finds it.
    let (repository, _proxy) = behind_tls(&server, Fault::Flip(12 << 20)).await;
    let error = store(&repository, NAME, &archive(THREE_PARTS)).await;
    refused(
        &error.unwrap_err(),
        ErrorClass::Retry,
        &["something else", NAME],
    );
    assert_eq!(repository.list(&demo()).await.unwrap(), []);
    // The same in one piece: the server finds it, and it is sent again.
    let (repository, _proxy) = behind_tls(&server, Fault::Flip(1 << 20)).await;
    store(&repository, NAME, &archive(2 << 20)).await.unwrap();
    assert_eq!(repository.list(&demo()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn who_has_to_act_is_said_when_the_store_refuses() {
    use ErrorClass::{Operator, Retry};
    let mut server = Server::start();
    let repository = plain(&server);
    let endpoint = server.endpoint();
    server.write_key("AKIDEXAMPLE", "another");
    let error = repository.list(&demo()).await.unwrap_err();
    let parts = ["SignatureDoesNotMatch", "backup.s3.credentials", &endpoint];
    refused(&error, Operator, &parts);
    server.write_key("nobody", "another");
    let error = store(&repository, NAME, b"sealed").await.unwrap_err();
    refused(&error, Operator, &["backup.s3.credentials", NAME]);
    std::fs::remove_file(server.credentials()).unwrap();
    let error = repository.list(&demo()).await.unwrap_err();
    refused(&error, Operator, &["s3.credentials", "0600"]);
    // A key that was mended counts at once.
    server.mend_key();
    assert_eq!(repository.list(&demo()).await.unwrap(), []);

    let other = settings(&server, &endpoint, None, "nowhere");
    let other = self::repository(&server, other, "d1");
    let error = other.list(&demo()).await.unwrap_err();
    refused(
        &error,
        Operator,
        &["NoSuchBucket", "s3://nowhere/", "make the bucket"],
    );

    let proxy = Proxy::start(server.root.path(), server.address, Fault::None).await;
    let untrusting = settings(&server, &proxy.endpoint, None, BUCKET);
    let untrusting = self::repository(&server, untrusting, "d1");
    let error = untrusting.list(&demo()).await.unwrap_err();
    refused(&error, Operator, &["TLS", "ca_file"]);

    server.kill();
    let error = repository.list(&demo()).await.unwrap_err();
    refused(&error, Retry, &["backup.s3.endpoint", &endpoint]);
    server.run();
    assert_eq!(repository.list(&demo()).await.unwrap(), []);
}

#[tokio::test]
async fn a_server_that_dies_in_the_middle_of_an_upload_has_no_backup_and_later_gets_it() {
    let mut server = Server::start();
    let (repository, proxy) = behind_tls(&server, Fault::Stop(12 << 20)).await;
    let bytes = archive(THREE_PARTS);
    let storing = store(&repository, NAME, &bytes);
    let killing = async {
        proxy.reached.notified().await;
        server.kill();
    };
    let (stored, ()) = tokio::join!(storing, killing);
    refused(
        &stored.unwrap_err(),
        ErrorClass::Retry,
        &["write a part of", NAME],
    );
    // The first part is there, and so is the note of it.
    let notes = server.root.path().join("d1/.uploads");
    let noted = || std::fs::read_dir(&notes).unwrap().count();
    assert_eq!((server.parts(), noted()), (1, 1));

    // The next director of this host, with a server that is there again.
    server.run();
    let repository = plain(&server);
    assert_eq!(repository.list(&demo()).await.unwrap(), []);
    // It is left alone by one that works with another bucket, which would not know of it.
    let endpoint = format!("{}/", proxy.endpoint);
    let next = settings(&server, &endpoint, Some(proxy.ca_file.clone()), BUCKET);
    let next = self::repository(&server, next, "d1");
    assert_eq!(next.sweep().await.unwrap(), 1);
    assert_eq!((server.parts(), noted()), (0, 0));
    store(&next, NAME, &bytes).await.unwrap();
    assert_eq!(repository.list(&demo()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn two_directors_with_the_same_records_never_mix_their_backups() {
    let server = Server::start();
    let first = plain(&server);
    let config = settings(&server, &server.endpoint(), None, BUCKET);
    let second = repository(&server, config, "d2");
    let entry = store(&first, NAME, b"of the first").await.unwrap();
    // The same again is the same: as after an answer that was lost.
    store(&first, NAME, b"of the first").await.unwrap();
    let error = store(&second, NAME, b"of the second").await.unwrap_err();
    refused(&error, ErrorClass::Operator, &[NAME, "two directors"]);
    // Its archive has another name, and is nobody's.
    assert_eq!(server.objects().len(), 3, "{:?}", server.objects());
    assert_eq!(
        second.list(&demo()).await.unwrap(),
        std::slice::from_ref(&entry)
    );
    for repository in [&first, &second] {
        let opened = repository.open(&demo(), &entry.manifest.name).await;
        let mut read = Vec::new();
        let mut opened = opened.unwrap().unwrap();
        opened.from.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"of the first");
    }
}

#[tokio::test]
async fn a_director_backs_itself_up_into_a_bucket() {
    let server = Server::start();
    let bucket: Arc<dyn Repository> = Arc::new(plain(&server));
    let data = DataDir::new(&server.root.path().join("data-of-d1")).unwrap();
    config::init(&data, Default::default()).await.unwrap();
    let key = envelope::Identity::load(&data.backup_key()).unwrap();
    let mut settings = Config::load(&data).unwrap().backup;
    settings.every = Some(Duration::from_secs(3600));
    settings.keep = 1;
    // One that is older, and one of another director, which is none of its business.
    let old = OwnName::at(Timestamp::from_unix_ms(1));
    let path = bucket.unfinished().await.unwrap().join("old");
    std::fs::write(&path, b"x").unwrap();
    bucket.store_own(&path, &old).await.unwrap();
    let others = server.bucket().join("windlass/test/_director/d2");
    std::fs::create_dir_all(&others).unwrap();
    std::fs::write(others.join(old.as_str()), b"x").unwrap();

    let now = jiff::Timestamp::now();
    let records = config::Identity::load(&data, now).await.unwrap().records;
    let hold = Hold::load(&records).await.unwrap();
    let own = OwnBackups::new(data, &key, &settings, bucket.clone(), records, hold);
    let own = own.await.unwrap();
    own.start();
    let kept = async {
        loop {
            match bucket.list_own().await.unwrap().as_slice() {
                [only] if *only != old => return only.clone(),
                _ => tokio::task::yield_now().await,
            }
        }
    };
    let kept = tokio::time::timeout(Duration::from_secs(60), kept).await;
    let kept = kept.expect("a backup is due at once, and the older one goes");
    let object = server.bucket().join("windlass/test/_director/d1");
    let mut opened = Vec::new();
    let file = std::fs::File::open(object.join(kept.as_str())).unwrap();
    let mut archive = envelope::open(&key, file).unwrap();
    std::io::Read::read_to_end(&mut archive, &mut opened).unwrap();
    assert!(opened.starts_with(&[0x1f, 0x8b]), "it is gzip inside");
    assert!(others.join(old.as_str()).exists());
}

#[tokio::test]
async fn an_archive_that_no_entry_names_is_swept_after_a_day() {
    let server = Server::start();
    let repository = plain(&server);
    store(&repository, NAME, b"sealed").await.unwrap();
    let files = server.bucket().join("windlass/test/demo");
    let orphan = |name: &str, age_hours: u64| {
        let path = files.join(name);
        std::fs::write(&path, b"x").unwrap();
        let at = SystemTime::now() - Duration::from_secs(3600 * age_hours);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(at).unwrap();
    };
    // Beside an entry that names another one, and without any; one that may be an upload that goes on.
    orphan(&format!("{NAME}-00000000000000aa.age"), 25);
    orphan("20300131-130000-00000001-00000000000000ab.age", 25);
    orphan("20300131-140000-00000001-00000000000000ac.age", 23);
    orphan("notes.txt", 1000);
    let kept = entry(NAME, b"sealed");
    assert_eq!(
        repository.list(&demo()).await.unwrap(),
        std::slice::from_ref(&kept)
    );
    assert_eq!(repository.sweep().await.unwrap(), 2);
    assert_eq!(repository.sweep().await.unwrap(), 0);
    let left = std::fs::read_dir(&files).unwrap();
    let mut left: Vec<String> = left
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    let tag = &Digest::of(b"sealed").hex()[..16];
    assert_eq!(
        left,
        [
            format!("{NAME}-{tag}.age"),
            format!("{NAME}.json"),
            "20300131-140000-00000001-00000000000000ac.age".to_owned(),
            "notes.txt".to_owned(),
        ]
    );
    assert!(
        repository
            .open(&demo(), &kept.manifest.name)
            .await
            .unwrap()
            .is_some()
    );
    // One without its archive is not listed, and says so when it is asked for.
    std::fs::remove_file(files.join(&left[0])).unwrap();
    assert_eq!(repository.list(&demo()).await.unwrap(), []);
    let error = repository.open(&demo(), &kept.manifest.name).await;
    refused(
        &error.unwrap_err(),
        ErrorClass::Operator,
        &["not there", tag],
    );
}
