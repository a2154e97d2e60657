//! The backup of one cluster: one archive that a cluster can be made from again.
//!
//! An archive is a gzipped tar in an [`envelope`], so that the stock tools open it too:
//! `age --decrypt --identity KEYFILE ARCHIVE | tar xz`. Its parts, in this order:
//!
//! | part | what it is |
//! | --- | --- |
//! | `manifest.json` | [`Manifest`]: which cluster, its desired state, what the snapshot is |
//! | `secrets.json` | [`ClusterPki`]: every authority with its key, the service accounts' key, the keys of encryption at rest |
//! | `snapshot.db` | the snapshot, as `etcdutl snapshot restore` takes it |
//!
//! # Invariants
//! * What [`open`] returns is whole: every byte was authenticated, the snapshot has the size and the digest that
//!   the manifest names, and the parts of the secrets fit together.
//! * A part is bounded before it is read; nothing follows the last one.
//!
//! # Not here
//! Where archives are ([`super::repository`]), when they are made ([`super::schedule`]), what a restore does.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::cluster::ClusterSpec;
use windlass_common::error::ErrorClass;
use windlass_common::id::{ClusterName, Digest, DirectorId, Hasher, Incarnation, MachineName};
use windlass_common::limits::SNAPSHOT_BYTES_MAX;
use windlass_common::secret::SecretBytes;
use windlass_common::step::EtcdSnapshot;

use super::envelope::{self, EnvelopeError, Identity, Recipient, Sealing};
use crate::kubernetes::pki::{ClusterPki, PkiError};
use crate::model::{Endpoint, Timestamp};

/// The format that this release writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
/// Largest manifest, bytes: a spec of 64 KiB, and 200 bytes for each of 1000 machines.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Largest document of secrets, bytes; see [`ClusterPki::from_bytes`].
const SECRETS_BYTES_MAX: u64 = 64 << 10;
/// Most bytes behind the last part: the end of a tar is 1 KiB, and padding to 10 KiB by other tools.
const TAIL_BYTES_MAX: u64 = 64 << 10;

const MANIFEST: &str = "manifest.json";
const SECRETS: &str = "secrets.json";
const SNAPSHOT: &str = "snapshot.db";

/// Name of a backup, unique in its cluster: when it was ordered, to the second, and four random bytes. Names sort
/// as times do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "20300131-120000-5f3a0b1c")]
pub struct BackupName(String);

/// A text is no name of a backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name of a backup: they look like 20300131-120000-5f3a0b1c")]
pub struct BackupNameError(String);

impl BackupName {
    /// The name of a backup that is ordered now.
    pub fn new(at: Timestamp, random: u32) -> Self {
        // 2030-01-31T12:00:00.000Z
        let digits: String = at
            .to_string()
            .chars()
            .filter(char::is_ascii_digit)
            .collect();
        let digits = format!("{digits:0<14}");
        Self(format!("{}-{}-{random:08x}", &digits[..8], &digits[8..14]))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for BackupName {
    type Err = BackupNameError;
    fn from_str(text: &str) -> Result<Self, BackupNameError> {
        let mut parts = text.split('-');
        let mut digits = |count: usize, radix| {
            let fits = |part: &str| {
                let lower = |c: char| c.is_digit(radix) && !c.is_ascii_uppercase();
                part.len() == count && part.chars().all(lower)
            };
            parts.next().is_some_and(fits)
        };
        let good = digits(8, 10) && digits(6, 10) && digits(8, 16) && parts.next().is_none();
        good.then(|| Self(text.to_owned()))
            .ok_or_else(|| BackupNameError(text.chars().take(80).collect()))
    }
}

impl TryFrom<String> for BackupName {
    type Error = BackupNameError;
    fn try_from(text: String) -> Result<Self, BackupNameError> {
        text.parse()
    }
}

impl From<BackupName> for String {
    fn from(name: BackupName) -> String {
        name.0
    }
}

/// Why a backup is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum BackupReason {
    /// It was due; it is removed when it is older than what the cluster's policy keeps.
    Scheduled,
    /// An operator ordered it; it stays until it is deleted by name.
    Ordered,
}

impl fmt::Display for BackupReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Scheduled => "scheduled",
            Self::Ordered => "ordered",
        })
    }
}

/// What a backup holds, apart from secrets and data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Format of the archive; see [`FORMAT`].
    pub format: u32,
    /// Its name.
    pub name: BackupName,
    /// Why it was made.
    pub reason: BackupReason,
    /// Of which cluster.
    #[schema(value_type = String)]
    pub cluster: ClusterName,
    /// When that cluster was ordered: another one of the same name is another cluster.
    pub cluster_created_at: Timestamp,
    /// What the cluster should be.
    #[schema(value_type = crate::spec::RawClusterSpec)]
    pub spec: ClusterSpec,
    /// The address of its API, which its certificates name.
    pub endpoint: Endpoint,
    /// Stemcell that its machines are made from.
    pub stemcell: String,
    /// Its machines.
    pub machines: Vec<MachineEntry>,
    /// The director that made the backup.
    #[schema(value_type = String)]
    pub director: DirectorId,
    /// That director's version.
    pub director_version: String,
    /// When the snapshot was asked for: writes that were acknowledged before are in it.
    pub taken_at: Timestamp,
    /// The machine whose member gave the snapshot.
    #[schema(value_type = String)]
    pub taken_from: MachineName,
    /// The snapshot.
    #[schema(value_type = Object)]
    pub snapshot: EtcdSnapshot,
}

/// A machine of a cluster at the time of its backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MachineEntry {
    /// Its name.
    #[schema(value_type = String)]
    pub name: MachineName,
    /// Which rebirth of it.
    #[schema(value_type = u32)]
    pub incarnation: Incarnation,
    /// Whether it was of the control plane.
    pub control_plane: bool,
    /// Its address.
    #[schema(value_type = String)]
    pub address: Ipv4Addr,
}

/// A backup that was opened.
#[derive(Debug)]
pub struct Opened {
    /// What it holds.
    pub manifest: Manifest,
    /// Where its snapshot was written; whole, and on the disk.
    pub snapshot: PathBuf,
    /// The cluster's secrets.
    pub secrets: ClusterPki,
}

/// Why a backup of a cluster was not written or opened. `Display` never repeats the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// The envelope could not be sealed or opened.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// A file could not be read or written.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// What was to be put in, or taken out, could not be moved.
    #[error("cannot {doing}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// It is sealed, and is no backup of a cluster.
    #[error("the archive has {found} where {wanted} is due: it is no backup of a cluster")]
    Part {
        /// What was found.
        found: String,
        /// What was due.
        wanted: &'static str,
    },
    /// A part does not hold what it should.
    #[error(
        "{part} of the archive cannot be read; it was written by another release, or is no backup"
    )]
    Document {
        /// Which part.
        part: &'static str,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// Another release wrote it.
    #[error(
        "the archive has format {found}, this release reads up to {FORMAT}; use the release that wrote it, or a newer one"
    )]
    Format {
        /// Its format.
        found: u32,
    },
    /// The snapshot is another one than the manifest says.
    #[error(
        "the snapshot has {got_bytes} bytes with digest {got}, and {want_bytes} bytes with digest {want} are due"
    )]
    Snapshot {
        /// What came, bytes.
        got_bytes: u64,
        /// What was announced, bytes.
        want_bytes: u64,
        /// Digest of what came.
        got: Digest,
        /// Digest that was announced.
        want: Digest,
    },
    /// The snapshot is too large.
    #[error("a snapshot of {bytes} bytes is larger than any etcd has ({SNAPSHOT_BYTES_MAX} bytes)")]
    TooLarge {
        /// What was announced.
        bytes: u64,
    },
    /// The secrets do not fit together.
    #[error("the secrets of the archive cannot be used")]
    Secrets(#[from] PkiError),
}

impl ArchiveError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Envelope(source) => source.class(),
            Self::Secrets(source) => source.class(),
            Self::Snapshot { .. } | Self::Io { .. } => ErrorClass::Retry,
            Self::File { .. }
            | Self::Part { .. }
            | Self::Document { .. }
            | Self::Format { .. }
            | Self::TooLarge { .. } => ErrorClass::Operator,
        }
    }
}

/// Reads a snapshot and keeps count: of its bytes, and of their digest.
struct Counted<R> {
    from: R,
    bytes: u64,
    hasher: Hasher,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.bytes += read as u64;
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

impl<R: Read> Counted<R> {
    /// At most what is announced, and one byte more that shows that there is more.
    fn of(from: R, announced: &EtcdSnapshot) -> Counted<io::Take<R>> {
        Counted {
            from: from.take(announced.bytes.saturating_add(1)),
            bytes: 0,
            hasher: Hasher::default(),
        }
    }

    /// Whether it was what is announced.
    fn check(self, announced: &EtcdSnapshot) -> Result<(), ArchiveError> {
        let got = self.hasher.finish();
        if (self.bytes, got) == (announced.bytes, announced.digest) {
            return Ok(());
        }
        Err(ArchiveError::Snapshot {
            got_bytes: self.bytes,
            want_bytes: announced.bytes,
            got,
            want: announced.digest,
        })
    }
}

/// Writes a backup; gives the writer back, whole and flushed, not synced.
///
/// # Errors
/// [`ArchiveError::Snapshot`] when `snapshot` is not what the manifest announces, [`ArchiveError::TooLarge`],
/// [`ArchiveError::Io`] and [`ArchiveError::Envelope`]. What was written then does not open.
pub fn write<W: Write>(
    manifest: &Manifest,
    secrets: &ClusterPki,
    snapshot: impl Read,
    recipients: &[Recipient],
    out: W,
) -> Result<W, ArchiveError> {
    let announced = &manifest.snapshot;
    if announced.bytes > SNAPSHOT_BYTES_MAX {
        let bytes = announced.bytes;
        return Err(ArchiveError::TooLarge { bytes });
    }
    let failed = |source| ArchiveError::Io {
        doing: "write the archive",
        source,
    };
    // Values of secrets are encrypted already and do not shrink; the rest shrinks at any level.
    let gzip = GzEncoder::new(Sealing::new(recipients, out)?, Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    let modified_s = manifest.taken_at.unix_ms() / 1000;
    let text = serde_json::to_vec(manifest).map_err(|source| ArchiveError::Document {
        part: MANIFEST,
        source,
    })?;
    let secrets = secrets.to_bytes();
    for (name, bytes) in [(MANIFEST, text.as_slice()), (SECRETS, secrets.expose())] {
        let mut header = header(bytes.len() as u64, modified_s);
        tar.append_data(&mut header, name, bytes).map_err(failed)?;
    }
    let mut counted = Counted::of(snapshot, announced);
    let mut header = header(announced.bytes, modified_s);
    let appended = tar.append_data(&mut header, SNAPSHOT, &mut counted);
    appended.map_err(failed)?;
    counted.check(announced)?;
    let gzip = tar.into_inner().map_err(failed)?;
    let sealing = gzip.finish().map_err(failed)?;
    Ok(sealing.finish()?)
}

fn header(bytes: u64, modified_s: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o600);
    header.set_mtime(modified_s);
    header.set_entry_type(tar::EntryType::Regular);
    header
}

/// Opens the backup in the file `archive` and writes its snapshot to `snapshot`, which must not be there.
///
/// # Errors
/// [`ArchiveError`]; what was written to `snapshot` is removed then.
pub fn open(archive: &Path, identity: &Identity, snapshot: &Path) -> Result<Opened, ArchiveError> {
    let at = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| ArchiveError::File {
            doing,
            path,
            source,
        }
    };
    let from = File::open(archive).map_err(at("open", archive))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(snapshot)
        .map_err(at("make", snapshot))?;
    let read = read(BufReader::new(from), identity, &mut file);
    let read = read.and_then(|read| {
        file.sync_all().map_err(at("write", snapshot))?;
        Ok(read)
    });
    match read {
        Ok((manifest, secrets)) => Ok(Opened {
            manifest,
            snapshot: snapshot.to_owned(),
            secrets,
        }),
        Err(error) => {
            // The reason is worth more than one for a failing clean-up.
            let _ = std::fs::remove_file(snapshot);
            Err(error)
        }
    }
}

/// Reads a backup from beginning to end; the snapshot's bytes go to `snapshot`, and are to be believed when this
/// has returned.
///
/// # Errors
/// [`ArchiveError`].
pub fn read(
    archive: impl Read,
    identity: &Identity,
    snapshot: &mut dyn Write,
) -> Result<(Manifest, ClusterPki), ArchiveError> {
    let opened = envelope::open(identity, archive)?;
    let mut tar = tar::Archive::new(GzDecoder::new(opened));
    let mut entries = tar.entries().map_err(taken_out)?;
    let manifest = document(
        part(entries.next(), MANIFEST)?,
        MANIFEST,
        MANIFEST_BYTES_MAX,
    )?;
    let manifest: Manifest = parsed(&manifest, MANIFEST)?;
    let secrets = document(part(entries.next(), SECRETS)?, SECRETS, SECRETS_BYTES_MAX)?;
    let secrets = ClusterPki::from_bytes(&secrets)?;
    let announced = &manifest.snapshot;
    let mut counted = Counted::of(part(entries.next(), SNAPSHOT)?, announced);
    let mut piece = vec![0; 64 << 10];
    loop {
        let read = counted.read(&mut piece).map_err(taken_out)?;
        if read == 0 {
            break;
        }
        snapshot
            .write_all(&piece[..read])
            .map_err(|source| ArchiveError::Io {
                doing: "write the snapshot",
                source,
            })?;
    }
    counted.check(announced)?;
    if let Some(more) = entries.next() {
        let found = name_of(&more.map_err(taken_out)?);
        let wanted = "its end";
        return Err(ArchiveError::Part { found, wanted });
    }
    // The checksum of the gzip stream and the end of the envelope are behind what a tar needs.
    let mut gzip = tar.into_inner();
    let tail = io::copy(&mut (&mut gzip).take(TAIL_BYTES_MAX), &mut io::sink());
    let more = gzip.get_mut().read(&mut piece).map_err(taken_out)?;
    if tail.map_err(taken_out)? == TAIL_BYTES_MAX || more > 0 {
        let (found, wanted) = ("more bytes".to_owned(), "its end");
        return Err(ArchiveError::Part { found, wanted });
    }
    Ok((manifest, secrets))
}

fn taken_out(source: io::Error) -> ArchiveError {
    ArchiveError::Envelope(EnvelopeError::of_read(source))
}

fn name_of<R: Read>(entry: &tar::Entry<'_, R>) -> String {
    let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    format!("{:?}", name.chars().take(80).collect::<String>())
}

/// The next part, which has to have this name and to be a file.
fn part<'a, R: Read>(
    entry: Option<io::Result<tar::Entry<'a, R>>>,
    wanted: &'static str,
) -> Result<tar::Entry<'a, R>, ArchiveError> {
    let found = match entry {
        None => "its end".to_owned(),
        Some(entry) => {
            let entry = entry.map_err(taken_out)?;
            let file = entry.header().entry_type() == tar::EntryType::Regular;
            if file && *entry.path_bytes() == *wanted.as_bytes() {
                return Ok(entry);
            }
            name_of(&entry)
        }
    };
    Err(ArchiveError::Part { found, wanted })
}

/// All of a part, which is bounded.
fn document<R: Read>(
    entry: tar::Entry<'_, R>,
    part: &'static str,
    max: u64,
) -> Result<SecretBytes, ArchiveError> {
    if entry.size() > max {
        let found = format!("{} bytes", entry.size());
        return Err(ArchiveError::Part {
            found,
            wanted: part,
        });
    }
    let mut bytes = Vec::new();
    let mut entry = entry.take(max);
    entry.read_to_end(&mut bytes).map_err(taken_out)?;
    Ok(SecretBytes::new(bytes))
}

/// A manifest of a format that is known.
fn parsed<T: DeserializeOwned>(bytes: &SecretBytes, part: &'static str) -> Result<T, ArchiveError> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let failed = |source| ArchiveError::Document { part, source };
    let Version { format } = serde_json::from_slice(bytes.expose()).map_err(failed)?;
    if format > FORMAT {
        return Err(ArchiveError::Format { found: format });
    }
    serde_json::from_slice(bytes.expose()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{manifest, secrets};
    use super::*;

    fn sealed(
        snapshot: &[u8],
        announced: &[u8],
        identity: &Identity,
    ) -> Result<Vec<u8>, ArchiveError> {
        let manifest = manifest("20300131-120000-00000001", announced);
        let recipients = [identity.recipient()];
        write(&manifest, &secrets(), snapshot, &recipients, Vec::new())
    }

    #[test]
    fn what_is_put_in_comes_out() {
        let directory = tempfile::tempdir().unwrap();
        let (archive, snapshot) = (
            directory.path().join("a.age"),
            directory.path().join("s.db"),
        );
        let identity = Identity::generate();
        let data = vec![42; 300_000];
        let bytes = sealed(&data, &data, &identity).unwrap();
        assert!(bytes.len() < data.len() / 2, "{} bytes", bytes.len());
        std::fs::write(&archive, bytes).unwrap();
        let opened = open(&archive, &identity, &snapshot).unwrap();
        assert_eq!(opened.manifest, manifest("20300131-120000-00000001", &data));
        assert_eq!(opened.secrets, secrets());
        assert_eq!(std::fs::read(&opened.snapshot).unwrap(), data);
        // What is there is not written over.
        let again = open(&archive, &identity, &snapshot).unwrap_err();
        assert!(matches!(again, ArchiveError::File { .. }), "{again}");
    }

    #[test]
    fn another_snapshot_than_announced_makes_no_backup() {
        let identity = Identity::generate();
        let announced = [7; 1000];
        for other in [&[7; 999][..], &[7; 1001], &[8; 1000], &[]] {
            let error = sealed(other, &announced, &identity).unwrap_err();
            assert!(matches!(error, ArchiveError::Snapshot { .. }), "{error}");
        }
    }

    #[test]
    fn a_torn_archive_opens_nowhere_and_leaves_no_snapshot() {
        let directory = tempfile::tempdir().unwrap();
        let (archive, snapshot) = (
            directory.path().join("a.age"),
            directory.path().join("s.db"),
        );
        let identity = Identity::generate();
        let data: Vec<u8> = (0..200_000_u32)
            .map(|n| (n.wrapping_mul(n) >> 7) as u8)
            .collect();
        let whole = sealed(&data, &data, &identity).unwrap();
        for cut in (0..whole.len()).step_by(whole.len() / 40) {
            std::fs::write(&archive, &whole[..cut]).unwrap();
            open(&archive, &identity, &snapshot).unwrap_err();
            assert!(!snapshot.exists(), "{cut} of {} bytes", whole.len());
        }
        std::fs::write(&archive, &whole).unwrap();
        let stranger = open(&archive, &Identity::generate(), &snapshot).unwrap_err();
        let told = ArchiveError::Envelope(EnvelopeError::Head);
        assert_ne!(stranger.to_string(), told.to_string());
    }

    #[test]
    fn what_is_no_backup_is_refused_with_what_it_lacks() {
        let identity = Identity::generate();
        let archive = |parts: &[(&str, &[u8])]| {
            let sealing = Sealing::new(&[identity.recipient()], Vec::new()).unwrap();
            let mut tar = tar::Builder::new(GzEncoder::new(sealing, Compression::fast()));
            for (name, bytes) in parts {
                let mut header = header(bytes.len() as u64, 0);
                tar.append_data(&mut header, name, *bytes).unwrap();
            }
            tar.into_inner()
                .unwrap()
                .finish()
                .unwrap()
                .finish()
                .unwrap()
        };
        let text = serde_json::to_vec(&manifest("20300131-120000-00000001", b"db")).unwrap();
        let newer = String::from_utf8(text.clone()).unwrap();
        let newer = newer.replacen("\"format\":1", "\"format\":2", 1);
        let document = secrets().to_bytes();
        let keys = document.expose();
        type Part<'a> = (&'a str, &'a [u8]);
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases: [(&str, Vec<Part<'_>>); 6] = [
            ("its end where manifest.json", vec![]),
            ("\"else\" where manifest.json", vec![("else", b"x")]),
            ("has format 2", vec![(MANIFEST, newer.as_bytes())]),
            ("its end where secrets.json", vec![(MANIFEST, &text)]),
            ("its end where snapshot.db", vec![(MANIFEST, &text), (SECRETS, keys)]),
            ("\"more\" where its end", vec![(MANIFEST, &text), (SECRETS, keys), (SNAPSHOT, b"db"), ("more", b"x")]),
        ];
        for (said, parts) in cases {
            let error = read(&archive(&parts)[..], &identity, &mut io::sink()).unwrap_err();
            assert!(error.to_string().contains(said), "{said}: {error}");
        }
    }

    #[test]
    fn names_sort_as_times_do() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let name = BackupName::new(at("2030-01-31T12:00:05.250Z"), 0xabc);
        assert_eq!(name.as_str(), "20300131-120005-00000abc");
        assert_eq!(name.as_str().parse(), Ok(name.clone()));
        assert!(BackupName::new(at("2029-12-31T23:59:59Z"), u32::MAX) < name);
        for bad in [
            "",
            "..",
            "20300131-120005",
            "20300131-120005-0000ABCD",
            "20300131/120005-00000abc",
        ] {
            assert!(bad.parse::<BackupName>().is_err(), "{bad}");
        }
    }
}
