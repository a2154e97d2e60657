//! `fetch`: brings one artifact into the machine's store, resumable at any byte.
//!
//! # Invariants
//! * An artifact appears under its digest only when every byte was verified and synced.
//! * A partial download is verified from its first byte when it is resumed, and thrown away when it
//!   does not verify.
//! * One run takes bytes from one peer at most; what follows comes from the director. So wrong bytes
//!   have one author, unless some were there before the run.
//! * What the machine has under another name (a file of a component) is copied, not fetched.

mod reuse;

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::id::{Digest, Hasher, Incarnation, MachineName};
use windlass_common::limits::CHUNK_BYTES;
use windlass_common::step::{Fetch, Payload};
use windlass_common::wire::message::{PeerFailure, PeerFault};

use super::{Context, Failure, Run};
use crate::host::{Host, STATE_DIR};
pub use crate::link::Origin;

/// Between two attempts to get the rest of an artifact; the step's deadline bounds them.
const RETRY: Duration = Duration::from_millis(300);

/// Future of [`Chunks::next`].
pub type NextChunk<'a> =
    Pin<Box<dyn Future<Output = Result<Option<Vec<u8>>, SourceError>> + Send + 'a>>;

/// The rest of an artifact, as it arrives.
pub trait Chunks: Send {
    /// The next bytes; `None` at the end.
    fn next(&mut self) -> NextChunk<'_>;
}

/// An artifact from the offset asked for on.
pub struct ArtifactStream {
    /// Length of the whole artifact in bytes.
    pub bytes: u64,
    /// Who sends it.
    pub origin: Origin,
    /// Its bytes from the offset on.
    pub chunks: Box<dyn Chunks>,
}

impl fmt::Debug for ArtifactStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArtifactStream({} bytes)", self.bytes)
    }
}

/// Why an artifact could not be asked for.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// May work later.
    #[error("the artifact cannot be had now: {0}")]
    Unavailable(String),
    /// Other machines of the cluster are being served.
    #[error("it is being copied to other machines of the cluster, which will have it next")]
    Later(Duration),
    /// A peer failed while it sent.
    #[error("the peer failed: {message}")]
    Peer {
        /// In what way.
        fault: PeerFault,
        /// What happened.
        message: String,
    },
    /// The director does not have it.
    #[error("the director does not have the artifact: {0}")]
    NotFound(String),
}

/// What to open.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Which artifact.
    pub digest: Digest,
    /// First byte wanted.
    pub offset: u64,
    /// Peers that were of no use.
    pub failed: Vec<PeerFailure>,
}

/// Future of [`ArtifactSource::open`].
pub type Opening<'a> =
    Pin<Box<dyn Future<Output = Result<ArtifactStream, SourceError>> + Send + 'a>>;

/// Where artifacts come from: the link to the director.
pub trait ArtifactSource: Send + Sync + fmt::Debug {
    /// Opens an artifact from a byte on.
    fn open(&self, wanted: Wanted) -> Opening<'_>;

    /// The machine has this artifact now, verified and under its name.
    fn stored(&self, _digest: Digest) {}
}

/// Why an artifact could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The director has none.
    #[error("artifact {digest} cannot be fetched")]
    Source {
        /// Which.
        digest: Digest,
        /// Cause.
        #[source]
        source: SourceError,
    },
    /// The director's length is another one.
    #[error("artifact {digest} has {got} bytes at the director, the step says {want}")]
    Length {
        /// Which.
        digest: Digest,
        /// Length there.
        got: u64,
        /// Length ordered.
        want: u64,
    },
    /// What arrived is not the artifact.
    #[error("what arrived as {digest} has digest {got}; it was thrown away and is fetched again")]
    Digest {
        /// Which.
        digest: Digest,
        /// What arrived.
        got: Digest,
    },
    /// Not enough room.
    #[error("{free} bytes are free for artifacts, {need} are needed; enlarge the machine's disk")]
    Space {
        /// Free bytes.
        free: u64,
        /// Needed bytes.
        need: u64,
    },
    /// The store failed.
    #[error("cannot {action} {path}; check the machine's disk")]
    Store {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

impl FetchError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Source { source, .. } => match source {
                SourceError::Unavailable(_) | SourceError::Later(_) | SourceError::Peer { .. } => {
                    ErrorClass::Retry
                }
                SourceError::NotFound(_) => ErrorClass::Operator,
            },
            Self::Digest { .. } => ErrorClass::Retry,
            Self::Length { .. } | Self::Space { .. } | Self::Store { .. } => ErrorClass::Operator,
        }
    }
}

/// A download under way: its file, and the digest of what it holds.
struct Partial {
    file: File,
    hasher: Hasher,
    have: u64,
}

struct Store {
    digest: Digest,
    bytes: u64,
    whole: PathBuf,
    partial: PathBuf,
}

impl Store {
    fn new(host: &Host, fetch: &Fetch) -> Self {
        let hex = fetch.digest.hex();
        Self {
            digest: fetch.digest,
            bytes: fetch.bytes,
            whole: host.path(&Host::artifact_path(&fetch.digest)),
            partial: host.path(&format!("{STATE_DIR}/artifacts/partial/{hex}")),
        }
    }

    /// Whether the artifact is there: under its name it was verified when it came.
    fn is_whole(&self) -> bool {
        fs::metadata(&self.whole).is_ok_and(|meta| meta.is_file() && meta.len() == self.bytes)
    }

    fn resume(&self) -> Result<Partial, FetchError> {
        for path in [&self.whole, &self.partial] {
            let dir = path.parent().unwrap_or(path);
            fs::create_dir_all(dir).map_err(store_error("make the directory", dir))?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.partial)
            .map_err(store_error("open", &self.partial))?;
        let mut hasher = Hasher::default();
        let mut have = 0;
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let read = file
                .read(&mut buffer)
                .map_err(store_error("read", &self.partial))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            have += read as u64;
        }
        if have > self.bytes {
            file.set_len(0).map_err(store_error("cut", &self.partial))?;
            return self.resume();
        }
        self.check_space(self.bytes - have)?;
        Ok(Partial { file, hasher, have })
    }

    fn check_space(&self, need: u64) -> Result<(), FetchError> {
        let stat = nix::sys::statvfs::statvfs(&self.partial)
            .map_err(|errno| store_error("look at the space of", &self.partial)(errno.into()))?;
        let free = stat.blocks_available() * stat.fragment_size();
        if free < need {
            return Err(FetchError::Space { free, need });
        }
        Ok(())
    }

    /// Verifies a complete download and gives it its name.
    fn finish(&self, partial: Partial) -> Result<(), FetchError> {
        let got = partial.hasher.finish();
        if got != self.digest {
            fs::remove_file(&self.partial).map_err(store_error("remove", &self.partial))?;
            let digest = self.digest;
            return Err(FetchError::Digest { digest, got });
        }
        let sync = |file: &File| file.sync_all();
        sync(&partial.file).map_err(store_error("sync", &self.partial))?;
        fs::rename(&self.partial, &self.whole).map_err(store_error("rename", &self.partial))?;
        let dir = self.whole.parent().unwrap_or(&self.whole);
        File::open(dir)
            .and_then(|dir| sync(&dir))
            .map_err(store_error("sync", dir))
    }
}

fn store_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Store {
        action,
        path,
        source,
    }
}

pub(super) async fn run(context: &Context, run: &Run, fetch: &Fetch) -> Result<Payload, Failure> {
    if Store::new(&context.host, fetch).is_whole() {
        return Ok(Payload::None);
    }
    let mut failed = Vec::new();
    loop {
        let (host, wanted) = (context.host.clone(), fetch.clone());
        let (store, partial) = run
            .blocking(move || {
                let store = Store::new(&host, &wanted);
                reuse::copy(&host, &store);
                let partial = store.resume()?;
                Ok((store, partial))
            })
            .await?;
        let mut download = Download {
            resumed: partial.have > 0,
            partial,
            failed,
            peer: None,
        };
        download.complete(context, run, fetch).await?;
        let Download {
            resumed,
            partial,
            peer,
            failed: before,
        } = download;
        failed = before;
        let finished = run.blocking(move || Ok(store.finish(partial))).await?;
        match (finished, peer) {
            (Ok(()), _) => break,
            (Err(error @ FetchError::Digest { .. }), Some((machine, incarnation))) => {
                tracing::warn!(peer = %machine, error = %ErrorChain(&error), "wrong bytes; from the director now");
                // Bytes that were there before may be somebody else's.
                let fault = if resumed {
                    PeerFault::Broke
                } else {
                    PeerFault::Lied
                };
                failed.push(PeerFailure {
                    machine,
                    incarnation,
                    fault,
                });
            }
            (Err(error), _) => return Err(error.into()),
        }
    }
    context.artifacts.stored(fetch.digest);
    run.changed(format!(
        "+ artifact {} ({} bytes)",
        fetch.digest, fetch.bytes
    ));
    Ok(Payload::None)
}

/// A download, and who had a part in it.
struct Download {
    partial: Partial,
    /// Whether some bytes were there before.
    resumed: bool,
    failed: Vec<PeerFailure>,
    /// The peer that sent some bytes.
    peer: Option<(MachineName, Incarnation)>,
}

impl Download {
    /// Goes on until all bytes are there, from whoever gives them.
    async fn complete(
        &mut self,
        context: &Context,
        run: &Run,
        fetch: &Fetch,
    ) -> Result<(), FetchError> {
        while self.partial.have < fetch.bytes {
            let Err(error) = self.more(context, run, fetch).await else {
                continue;
            };
            let FetchError::Source { source, .. } = &error else {
                return Err(error);
            };
            if error.class() != ErrorClass::Retry {
                return Err(error);
            }
            run.stage(format!(
                "{} of {} bytes; waiting: {}",
                self.partial.have,
                fetch.bytes,
                ErrorChain(&error)
            ));
            match (source, &self.peer) {
                (SourceError::Later(wait), _) => tokio::time::sleep(*wait).await,
                (SourceError::Peer { fault, .. }, Some((machine, incarnation))) => {
                    self.failed.push(PeerFailure {
                        machine: machine.clone(),
                        incarnation: *incarnation,
                        fault: *fault,
                    });
                }
                _ => tokio::time::sleep(RETRY).await,
            }
        }
        Ok(())
    }

    /// Reads until the artifact is whole or the stream fails.
    async fn more(
        &mut self,
        context: &Context,
        run: &Run,
        fetch: &Fetch,
    ) -> Result<(), FetchError> {
        let source_error = |source| FetchError::Source {
            digest: fetch.digest,
            source,
        };
        let wanted = Wanted {
            digest: fetch.digest,
            offset: self.partial.have,
            failed: self.failed.clone(),
        };
        let mut stream = context.artifacts.open(wanted).await.map_err(source_error)?;
        if stream.bytes != fetch.bytes {
            return Err(FetchError::Length {
                digest: fetch.digest,
                got: stream.bytes,
                want: fetch.bytes,
            });
        }
        if let Origin::Peer(machine, incarnation) = &stream.origin {
            self.peer = Some((machine.clone(), *incarnation));
        }
        let mut shown = 0;
        while let Some(chunk) = stream.chunks.next().await.map_err(source_error)? {
            self.take(fetch, &chunk)?;
            let percent = self.partial.have * 100 / fetch.bytes.max(1);
            if percent >= shown + 10 {
                shown = percent;
                run.stage(format!("{percent} % of {} bytes", fetch.bytes));
            }
        }
        if self.partial.have < fetch.bytes {
            let ended = format!("the stream ended at byte {}", self.partial.have);
            return Err(source_error(SourceError::Unavailable(ended)));
        }
        Ok(())
    }

    fn take(&mut self, fetch: &Fetch, chunk: &[u8]) -> Result<(), FetchError> {
        let partial = &mut self.partial;
        let have = partial.have + chunk.len() as u64;
        if have > fetch.bytes {
            return Err(FetchError::Length {
                digest: fetch.digest,
                got: have,
                want: fetch.bytes,
            });
        }
        // 64 KiB into the page cache takes microseconds; handing it to another thread takes longer.
        partial
            .file
            .write_all(chunk)
            .map_err(store_error("write", Path::new("a partial artifact")))?;
        partial.hasher.update(chunk);
        partial.have = have;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
