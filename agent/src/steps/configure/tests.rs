//! `configure` against a temporary root, and killed in the middle as a real process.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use windlass_common::id::Digest;
use windlass_common::journal::sim::SimDisk;
use windlass_common::secret::SecretBytes;
use windlass_common::step::{FileContent, FileSpec};

use super::super::fetch::{ArtifactSource, Opening, SourceError, Wanted};
use super::super::progress::Reporter;
use super::*;
use crate::history::History;
use crate::host::Host;
use crate::units::Units;

#[derive(Debug)]
struct NoArtifacts;

impl ArtifactSource for NoArtifacts {
    fn open(&self, _: Wanted) -> Opening<'_> {
        Box::pin(async { Err(SourceError::NotFound("none here".to_owned())) })
    }
}

fn context(root: &Path, disk: &SimDisk) -> Context {
    Context {
        host: Host::open(root).unwrap(),
        units: Arc::new(Units::default()),
        artifacts: Arc::new(NoArtifacts),
        history: Arc::new(Mutex::new(History::open(disk.clone()).unwrap())),
        watched: watch::channel(BTreeMap::new()).0,
        leave: watch::channel(false).0,
        director: None,
    }
}

fn file(path: &str, mode: u32, content: FileContent) -> FileSpec {
    FileSpec {
        path: path.to_owned(),
        mode,
        uid: 0,
        gid: 0,
        content,
    }
}

fn text(content: &str) -> FileContent {
    FileContent::Text(content.to_owned())
}

async fn converge(context: &Context, configure: &Configure) -> Result<Vec<String>, Failure> {
    let this = Run::new(Reporter::quiet());
    run(context, &this, configure).await.map(|_| this.changes())
}

#[tokio::test]
async fn everything_is_put_in_place_once() {
    let root = tempfile::tempdir().unwrap();
    let artifact = Digest::of(b"binary");
    let store = root.path().join("var/lib/windlass/artifacts/sha256");
    fs::create_dir_all(&store).unwrap();
    fs::write(store.join(artifact.hex()), b"binary").unwrap();
    fs::create_dir_all(root.path().join("proc/sys/net/ipv4/conf/eth0.1")).unwrap();
    fs::write(root.path().join("proc/sys/net/ipv4/ip_forward"), "0\n").unwrap();
    fs::write(
        root.path().join("proc/sys/net/ipv4/conf/eth0.1/x"),
        "1\t2\n",
    )
    .unwrap();
    fs::create_dir_all(root.path().join("etc")).unwrap();
    fs::write(root.path().join("etc/old"), "").unwrap();
    let configure = Configure {
        files: vec![
            file("/etc/kubernetes/kubelet.yaml", 0o644, text("a: 1\nb: 2\n")),
            file(
                "/etc/kubernetes/token",
                0o600,
                FileContent::Secret(SecretBytes::new(b"hunter2".to_vec())),
            ),
            file(
                "/opt/windlass/bin/tool",
                0o755,
                FileContent::Artifact(artifact),
            ),
        ],
        links: [(
            "/opt/windlass/components/kubelet/current".to_owned(),
            "1.37.2".to_owned(),
        )]
        .into(),
        absent: vec!["/etc/old".to_owned(), "/etc/never/there".to_owned()],
        routes: None,
        sysctls: [
            ("net.ipv4.ip_forward".to_owned(), "1".to_owned()),
            ("net.ipv4.conf.eth0/1.x".to_owned(), "1 2".to_owned()),
        ]
        .into(),
    };
    let disk = SimDisk::default();
    let context = context(root.path(), &disk);
    let changes = converge(&context, &configure).await.unwrap();
    assert_eq!(
        changes,
        [
            "/etc/kubernetes/kubelet.yaml (mode 0644 owner 0:0)",
            "+a: 1",
            "+b: 2",
            "/etc/kubernetes/token (secret, 7 bytes)",
            &format!("/opt/windlass/bin/tool (mode 0755 owner 0:0) from {artifact}"),
            "/opt/windlass/components/kubelet/current -> 1.37.2",
            "- /etc/old",
            "sysctl net.ipv4.ip_forward: 0 -> 1",
        ]
    );
    let tool = fs::metadata(root.path().join("opt/windlass/bin/tool")).unwrap();
    assert_eq!(tool.permissions().mode() & 0o7777, 0o755);
    // Converged: nothing is touched, not even rewritten.
    let inode = tool.ino();
    assert_eq!(converge(&context, &configure).await.unwrap(), [""; 0]);
    assert_eq!(
        fs::metadata(root.path().join("opt/windlass/bin/tool"))
            .unwrap()
            .ino(),
        inode
    );
    // What a reboot loses is brought back.
    fs::write(root.path().join("proc/sys/net/ipv4/ip_forward"), "0\n").unwrap();
    drop(context);
    let context = self::context(root.path(), &disk);
    restore(&context, &Run::new(Reporter::quiet()))
        .await
        .unwrap();
    let value = fs::read_to_string(root.path().join("proc/sys/net/ipv4/ip_forward")).unwrap();
    assert_eq!(value, "1");
}

#[tokio::test]
async fn only_what_differs_is_changed_and_shown() {
    let root = tempfile::tempdir().unwrap();
    let context = context(root.path(), &SimDisk::default());
    let one = |mode, content| Configure {
        files: vec![file("/etc/a", mode, content)],
        ..Configure::default()
    };
    converge(&context, &one(0o644, text("x\ny\n")))
        .await
        .unwrap();
    let changes = converge(&context, &one(0o600, text("x\ny\n")))
        .await
        .unwrap();
    assert_eq!(
        changes,
        ["/etc/a: mode 0644 owner 0:0 -> mode 0600 owner 0:0"]
    );
    let changes = converge(&context, &one(0o600, text("x\nz\n")))
        .await
        .unwrap();
    assert_eq!(changes, ["/etc/a (mode 0600 owner 0:0)", " x", "-y", "+z"]);
    // What was text is not shown when it becomes a secret.
    let secret = FileContent::Secret(SecretBytes::new(b"hunter2".to_vec()));
    let changes = converge(&context, &one(0o600, secret)).await.unwrap();
    assert_eq!(changes, ["/etc/a (secret, 7 bytes)"]);
}

#[tokio::test]
async fn when_one_file_cannot_be_written_none_is() {
    let root = tempfile::tempdir().unwrap();
    let context = context(root.path(), &SimDisk::default());
    let configure = Configure {
        files: vec![
            file("/etc/a", 0o644, text("new")),
            file(
                "/etc/b",
                0o644,
                FileContent::Artifact(Digest::of(b"never fetched")),
            ),
        ],
        ..Configure::default()
    };
    let failure = converge(&context, &configure).await.unwrap_err();
    assert!(format!("{failure:?}").contains("fetch it first"));
    assert_eq!(fs::read_dir(root.path().join("etc")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_missing_kernel_parameter_is_named() {
    let root = tempfile::tempdir().unwrap();
    let context = context(root.path(), &SimDisk::default());
    let configure = Configure {
        sysctls: [("net.no.such".to_owned(), "1".to_owned())].into(),
        ..Configure::default()
    };
    let failure = converge(&context, &configure).await.unwrap_err();
    assert!(format!("{failure:?}").contains("cannot read kernel parameter net.no.such"));
}

/// Variable that turns [`forever`] from a passing test into the child of the test below.
const CHILD_ROOT: &str = "WINDLASS_TEST_CONFIGURE_FOREVER";
const KILLED_FILES: usize = 6;

/// One of two contents, long enough to be written in more than one piece.
fn generation(odd: bool) -> String {
    let line = if odd { "odd\n" } else { "even\n" };
    line.repeat(200_000 / line.len())
}

fn generation_of_files(odd: bool) -> Configure {
    let path = |n| format!("/etc/kubernetes/{n}.yaml");
    let one = |n| file(&path(n), 0o640, text(&generation(odd)));
    Configure {
        files: (0..KILLED_FILES).map(one).collect(),
        ..Configure::default()
    }
}

/// Not a test by itself: in the child it configures until it is killed.
#[tokio::test]
async fn forever() {
    let Some(root) = std::env::var_os(CHILD_ROOT) else {
        return;
    };
    let context = context(Path::new(&root), &SimDisk::default());
    for odd in [false, true].into_iter().cycle() {
        converge(&context, &generation_of_files(odd)).await.unwrap();
    }
}

#[tokio::test]
async fn killed_at_any_moment_each_file_is_old_or_new() {
    use std::time::{Duration, Instant};

    let root = tempfile::tempdir().unwrap();
    let context = context(root.path(), &SimDisk::default());
    converge(&context, &generation_of_files(true))
        .await
        .unwrap();
    let dir = root.path().join("etc/kubernetes");
    let inode = |n: usize| fs::metadata(dir.join(format!("{n}.yaml"))).unwrap().ino();
    let (mut mixed, mut leftovers) = (0, 0);
    for round in 0..25_u64 {
        let before = inode(0);
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "steps::configure::tests::forever"])
            .env(CHILD_ROOT, root.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // It has begun to replace files; then some time more, different in each round.
        let deadline = Instant::now() + Duration::from_secs(30);
        while inode(0) == before {
            assert!(Instant::now() < deadline, "the child does nothing");
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_micros(round * 1700));
        child.kill().unwrap();
        child.wait().unwrap();
        let (odd, even) = (generation(true), generation(false));
        let mut odds = 0;
        for n in 0..KILLED_FILES {
            let path = dir.join(format!("{n}.yaml"));
            let found = fs::read_to_string(&path).unwrap();
            assert!(found == odd || found == even, "{n} is neither old nor new");
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
            odds += usize::from(found == odd);
        }
        mixed += usize::from(odds != 0 && odds != KILLED_FILES);
        leftovers += usize::from(fs::read_dir(&dir).unwrap().count() > KILLED_FILES);
    }
    // Else the kills came at moments that prove nothing.
    assert!(mixed + leftovers > 0, "no kill hit a step in the middle");
    converge(&context, &generation_of_files(true))
        .await
        .unwrap();
    converge(&context, &generation_of_files(false))
        .await
        .unwrap();
    assert_eq!(
        fs::read_dir(&dir).unwrap().count(),
        KILLED_FILES,
        "leftovers are gone"
    );
}
