//! `fetch` from a source that breaks off, lies and grows.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use windlass_common::journal::sim::SimDisk;
use windlass_common::step::Outcome;

use super::super::Reporter;
use super::*;
use crate::history::History;
use crate::units::Units;

/// What the source does when it is asked, one entry a call: how long it says the artifact is, and how
/// many bytes it sends before it breaks off.
type Script = VecDeque<(u64, usize)>;

#[derive(Debug)]
struct Scripted {
    content: Vec<u8>,
    script: Mutex<Script>,
    offsets: Mutex<Vec<u64>>,
}

struct Bytes(VecDeque<Vec<u8>>, bool);

impl Chunks for Bytes {
    fn next(&mut self) -> NextChunk<'_> {
        let next = match self.0.pop_front() {
            Some(chunk) => Ok(Some(chunk)),
            None if self.1 => Ok(None),
            None => Err(SourceError::Unavailable("broke off".to_owned())),
        };
        Box::pin(async { next })
    }
}

impl ArtifactSource for Scripted {
    fn open(&self, Wanted { offset, .. }: Wanted) -> Opening<'_> {
        self.offsets.lock().unwrap().push(offset);
        let Some((bytes, sends)) = self.script.lock().unwrap().pop_front() else {
            return Box::pin(async { Err(SourceError::NotFound("the script is over".to_owned())) });
        };
        let rest = &self.content[usize::try_from(offset).unwrap()..];
        let sent = &rest[..sends.min(rest.len())];
        let chunks = sent.chunks(7).map(<[u8]>::to_vec).collect();
        let chunks = Box::new(Bytes(chunks, sends >= rest.len()));
        let origin = Origin::Director;
        Box::pin(async move {
            Ok(ArtifactStream {
                bytes,
                origin,
                chunks,
            })
        })
    }
}

fn content() -> Vec<u8> {
    (0..1000_u32).map(|n| (n * 31 % 251) as u8).collect()
}

async fn fetch(
    root: &Path,
    content: Vec<u8>,
    script: impl Into<Script>,
) -> (Result<Vec<String>, Failure>, Vec<u64>) {
    let source = Arc::new(Scripted {
        content,
        script: Mutex::new(script.into()),
        offsets: Mutex::default(),
    });
    let context = Context {
        host: Host::open(root).unwrap(),
        units: Arc::new(Units::default()),
        artifacts: source.clone(),
        history: Arc::new(Mutex::new(History::open(SimDisk::default()).unwrap())),
        watched: watch::channel(BTreeMap::new()).0,
        leave: watch::channel(false).0,
        director: None,
    };
    let this = Run::new(Reporter::quiet());
    let wanted = Fetch {
        digest: Digest::of(&self::content()),
        bytes: 1000,
    };
    let done = run(&context, &this, &wanted).await.map(|_| this.changes());
    let offsets = source.offsets.lock().unwrap().clone();
    (done, offsets)
}

fn stored(root: &Path) -> Option<Vec<u8>> {
    let path = Host::artifact_path(&Digest::of(&content()));
    fs::read(root.join(path.trim_start_matches('/'))).ok()
}

#[tokio::test]
async fn a_broken_transfer_goes_on_where_it_was() {
    let root = tempfile::tempdir().unwrap();
    let script = [(1000, 300), (1000, 0), (1000, 2000)];
    let (done, offsets) = fetch(root.path(), content(), script).await;
    assert_eq!(done.unwrap().len(), 1);
    assert_eq!(offsets, [0, 300, 300]);
    assert_eq!(stored(root.path()).unwrap(), content());
    // Fetched already: nobody is asked.
    let (done, offsets) = fetch(root.path(), content(), []).await;
    assert_eq!((done.unwrap().len(), offsets.len()), (0, 0));
}

#[tokio::test]
async fn a_transfer_goes_on_after_a_restart_of_the_agent() {
    let root = tempfile::tempdir().unwrap();
    let (done, _) = fetch(root.path(), content(), [(1000, 441)]).await;
    assert!(done.is_err());
    assert_eq!(stored(root.path()), None);
    let (done, offsets) = fetch(root.path(), content(), [(1000, 2000)]).await;
    assert!(done.is_ok());
    assert_eq!(offsets, [441]);
    assert_eq!(stored(root.path()).unwrap(), content());
}

#[tokio::test]
async fn other_content_never_gets_the_name() {
    let root = tempfile::tempdir().unwrap();
    let mut wrong = content();
    wrong[500] ^= 1;
    let (done, _) = fetch(root.path(), wrong, [(1000, 2000)]).await;
    let failed = done.unwrap_err().outcome;
    assert!(matches!(
        failed,
        Outcome::Failed {
            class: ErrorClass::Retry,
            ..
        }
    ));
    assert_eq!(stored(root.path()), None);
    // What was wrong is not resumed from.
    let (done, offsets) = fetch(root.path(), content(), [(1000, 2000)]).await;
    assert!(done.is_ok());
    assert_eq!(offsets, [0]);
}

#[tokio::test]
async fn another_length_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let (done, _) = fetch(root.path(), content(), [(999, 2000)]).await;
    assert!(matches!(
        done.unwrap_err().outcome,
        Outcome::Failed {
            class: ErrorClass::Operator,
            ..
        }
    ));
    let mut longer = content();
    longer.extend([0; 50]);
    let (done, _) = fetch(root.path(), longer, [(1000, 2000)]).await;
    assert!(done.is_err());
    assert_eq!(stored(root.path()), None);
}

#[tokio::test]
async fn a_file_of_a_component_is_copied_and_not_fetched() {
    let root = tempfile::tempdir().unwrap();
    let version = root.path().join("opt/windlass/components/kubelet/1.37.2");
    fs::create_dir_all(&version).unwrap();
    // As long, and something else.
    fs::write(version.join("a"), vec![7; 1000]).unwrap();
    fs::write(version.join("kubelet"), content()).unwrap();
    let (done, offsets) = fetch(root.path(), content(), []).await;
    assert_eq!(done.unwrap().len(), 1);
    assert!(offsets.is_empty());
    assert_eq!(stored(root.path()).unwrap(), content());
}
