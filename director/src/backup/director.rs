//! The backup of the director itself: everything that another host needs in order to be this director.
//!
//! An archive is `age(gzip(tar(…)))`: a manifest, a copy of the store, the key that seals the store's secrets
//! (every CA among them), the key that opens backups, the configuration and the first operator's files. Not in
//! it: stemcells, which are rebuilt or copied, and artifacts, which are taken from stemcells.
//!
//! # Invariants
//! * The store's copy is one revision of it, taken while the director goes on ([`snapshot`]).
//! * Nothing leaves in the clear: files are read, packed, sealed and written in one stream.
//! * An archive in a directory is there as a whole under its name, or not at all.
//!
//! # After a crash
//! The scratch directory of a backup that was cut off is removed by the next start ([`sweep`]).
//!
//! # Not here
//! Putting it back (`restore`); when it is made (`schedule`).

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::{Deserialize, Serialize};
use windlass_common::error::ErrorClass;

use super::envelope::{EnvelopeError, Identity, Recipient, Sealing, open};
use super::repository::RepositoryError;
use crate::config::DataDir;
use crate::model::Timestamp;
use crate::store::{Inventory, StoreError, inspect, snapshot};

/// Version of the archive's layout.
const FORMAT: u32 = 1;
/// The first file of an archive.
const MANIFEST: &str = "manifest.json";
/// Largest manifest, bytes: it is a kilobyte.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;
/// Largest file of an archive but the store, bytes: keys and settings.
const SMALL_BYTES_MAX: u64 = 1 << 20;
/// Largest store, bytes: that of 10 000 machines with a year of audit log is a tenth of it.
const STORE_BYTES_MAX: u64 = 64 << 30;
/// Begins the names of scratch directories.
const SCRATCH: &str = ".backup-";
/// Name of the store in an archive.
pub(super) const STORE: &str = "store.sqlite";
/// The small files of an archive besides the first operator's, each with whether it has to be there.
pub(super) const FILES: [(&str, bool); 4] = [
    ("seal.key", true),
    ("backup.key", true),
    ("director.toml", true),
    ("context.toml", false),
];
/// The directory of the first operator's files.
pub(super) const OPERATOR: &str = "operator";

/// What an archive says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Version of the layout.
    pub format: u32,
    /// Version of the director that wrote it.
    pub version: String,
    /// When the store was copied.
    pub taken_at: Timestamp,
    /// Schema of the store.
    pub schema: u32,
    /// Revision of the store.
    pub revision: u64,
    /// Entries of the store by kind: `cluster`, `machine`, `secret`, …
    pub entries: std::collections::BTreeMap<String, u64>,
    /// Every file, by its path, with its length in bytes.
    pub files: std::collections::BTreeMap<String, u64>,
}

/// Why the director is not backed up, or an archive is not one of a director.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The store is not copied, or the copy is not sound.
    #[error("the store cannot be backed up")]
    Store(#[from] StoreError),
    /// Sealing or opening failed.
    #[error("the archive is of no use")]
    Envelope(#[from] EnvelopeError),
    /// A file cannot be read or written.
    #[error("cannot {doing} {}; check that its disk has space", path.display())]
    File {
        /// `read`, `write`, `make`.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The repository did not take it.
    #[error("the archive was not put in its place")]
    Repository(#[from] RepositoryError),
    /// A task of the runtime was lost.
    #[error("the archive was not made: its thread was lost")]
    Lost(#[source] tokio::task::JoinError),
    /// It is sealed well, and is no backup of a director.
    #[error("this is no backup of a director that this version can read: {0}")]
    Content(String),
}

impl BackupError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Store(error) => error.class(),
            Self::Repository(error) => error.class(),
            Self::Lost(_) => ErrorClass::Bug,
            Self::Envelope(_) | Self::File { .. } | Self::Content(_) => ErrorClass::Operator,
        }
    }
}

pub(super) fn file_error(
    doing: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::File {
        doing,
        path,
        source,
    }
}

/// A directory of the data directory that is gone when this is dropped.
#[derive(Debug)]
struct Scratch(PathBuf);

impl Scratch {
    fn new(dir: &DataDir) -> Result<Scratch, BackupError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{SCRATCH}{}-{number}", std::process::id());
        let path = dir.path().join(name);
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(file_error("make", &path))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is swept by the next start.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes what backups left that were cut off; for the director that has just locked the directory.
pub fn sweep(dir: &DataDir) {
    for entry in fs::read_dir(dir.path()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(SCRATCH)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "cannot remove what a backup left");
        }
    }
}

/// Takes a backup and writes the sealed archive; gives the writer back, flushed and not synced.
///
/// Whoever can read the data directory may do so, whether its director runs or not.
///
/// # Errors
/// [`BackupError`]; what was written then does not open.
pub fn write<W: Write>(
    dir: &DataDir,
    recipients: &[Recipient],
    now: Timestamp,
    writer: W,
) -> Result<(Manifest, W), BackupError> {
    let scratch = Scratch::new(dir)?;
    let copy = scratch.0.join(STORE);
    snapshot(&dir.store(), &copy)?;
    let Inventory {
        schema,
        revision,
        entries,
    } = inspect(&copy)?;
    let mut small = Vec::new();
    for (name, needed) in FILES {
        let path = dir.path().join(name);
        match read_small(&path) {
            Ok(bytes) => small.push((name.to_owned(), bytes)),
            Err(error) if !needed && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(file_error("read", &path)(error)),
        }
    }
    for name in operator_files(dir) {
        let path = dir.operator().join(&name);
        let bytes = read_small(&path).map_err(file_error("read", &path))?;
        small.push((format!("{OPERATOR}/{name}"), bytes));
    }
    let store_bytes = fs::metadata(&copy)
        .map_err(file_error("read", &copy))?
        .len();
    let mut files: std::collections::BTreeMap<_, _> = small
        .iter()
        .map(|(name, bytes)| (name.clone(), bytes.len() as u64))
        .collect();
    files.insert(STORE.to_owned(), store_bytes);
    let manifest = Manifest {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        taken_at: now,
        schema,
        revision: revision.0,
        entries,
        files,
    };
    let packed = |source| EnvelopeError::Io {
        doing: "write the sealed archive",
        source,
    };
    let sealing = Sealing::new(recipients, writer)?;
    let mut tar = tar::Builder::new(GzEncoder::new(sealing, Compression::fast()));
    let text = serde_json::to_vec_pretty(&manifest).unwrap_or_default();
    append(&mut tar, MANIFEST, &text, now).map_err(packed)?;
    for (name, bytes) in &small {
        append(&mut tar, name, bytes, now).map_err(packed)?;
    }
    let file = File::open(&copy).map_err(file_error("read", &copy))?;
    let mut header = header(store_bytes, now);
    tar.append_data(&mut header, STORE, file.take(store_bytes))
        .map_err(packed)?;
    let sealing = tar
        .into_inner()
        .and_then(GzEncoder::finish)
        .map_err(packed)?;
    Ok((manifest, sealing.finish()?))
}

fn header(bytes: u64, now: Timestamp) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o600);
    header.set_mtime(now.unix_ms() / 1000);
    header
}

fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    bytes: &[u8],
    now: Timestamp,
) -> io::Result<()> {
    tar.append_data(&mut header(bytes.len() as u64, now), name, bytes)
}

fn read_small(path: &Path) -> io::Result<zeroize::Zeroizing<Vec<u8>>> {
    let mut bytes = zeroize::Zeroizing::new(Vec::new());
    let file = File::open(path)?;
    file.take(SMALL_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > SMALL_BYTES_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

fn operator_files(dir: &DataDir) -> Vec<String> {
    let entries = fs::read_dir(dir.operator()).into_iter().flatten().flatten();
    let files = entries.filter(|entry| entry.file_type().is_ok_and(|t| t.is_file()));
    let mut names: Vec<String> = files
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| operator_file(name))
        .collect();
    names.sort();
    names
}

/// Whether a name is one of the files that `director init` writes for the first operator.
fn operator_file(name: &str) -> bool {
    !name.starts_with('.') && (name.ends_with(".crt") || name.ends_with(".key"))
}

/// Writes a backup to the new file `to` (mode 0600): whole and synced, or not at all.
///
/// # Errors
/// [`BackupError`]; also when `to` is there already.
pub fn write_file(
    dir: &DataDir,
    recipients: &[Recipient],
    now: Timestamp,
    to: &Path,
) -> Result<(Manifest, u64), BackupError> {
    let mut part = PartFile::create(to).map_err(file_error("write", to))?;
    let (manifest, _) = write(dir, recipients, now, &mut part)?;
    let bytes = part.keep().map_err(file_error("write", to))?;
    Ok((manifest, bytes))
}

/// A file that gets its name once it is whole; dropped before, it is gone.
#[derive(Debug)]
pub struct PartFile {
    file: File,
    part: PathBuf,
    to: PathBuf,
    kept: bool,
}

impl PartFile {
    /// Begins the file that is to be `to`, which must not be there (mode 0600).
    ///
    /// # Errors
    /// What the system says.
    pub fn create(to: &Path) -> io::Result<PartFile> {
        if fs::symlink_metadata(to).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let name = to.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let part = to.with_file_name(format!(
            ".{}.{}.part",
            name.to_string_lossy(),
            std::process::id()
        ));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&part)?;
        Ok(PartFile {
            file,
            part,
            to: to.to_owned(),
            kept: false,
        })
    }

    /// Syncs it and gives it its name, which nobody may have taken meanwhile; its length in bytes.
    ///
    /// # Errors
    /// What the system says; the file is gone then.
    pub fn keep(mut self) -> io::Result<u64> {
        self.file.sync_all()?;
        let bytes = self.file.metadata()?.len();
        // A link, unlike a rename, never takes the place of another file.
        fs::hard_link(&self.part, &self.to)?;
        self.kept = true;
        fs::remove_file(&self.part)?;
        let dir = self.to.parent().filter(|dir| !dir.as_os_str().is_empty());
        File::open(dir.unwrap_or(Path::new(".")))?.sync_all()?;
        Ok(bytes)
    }
}

impl Write for PartFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// Reads a whole archive, and writes its files below `into` (a new directory of mode 0700). Every file is the
/// manifest's, with the length it says; none is missing, and nothing else is there.
///
/// # Errors
/// [`BackupError`]. What is below `into` then must not be used.
pub(super) fn unpack<R: Read>(
    identity: &Identity,
    archive: R,
    into: &Path,
) -> Result<Manifest, BackupError> {
    let mut tar = tar::Archive::new(GzDecoder::new(open(identity, archive)?));
    let mut manifest: Option<Manifest> = None;
    let mut left = std::collections::BTreeMap::new();
    for entry in tar.entries().map_err(unreadable)? {
        let mut entry = entry.map_err(unreadable)?;
        let name = entry.path().map_err(unreadable)?.display().to_string();
        let Some(_) = &manifest else {
            let read = read_manifest(&name, &mut entry)?;
            left = read.files.clone();
            manifest = Some(read);
            continue;
        };
        let wanted = left.remove(&name);
        if wanted != Some(entry.size()) || !entry.header().entry_type().is_file() {
            let what = format!("the file {name:.100} is not as its manifest says");
            return Err(BackupError::Content(what));
        }
        let path = into.join(&name);
        if let Some(parent) = path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
            made.map_err(file_error("make", parent))?;
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode_of(&name))
            .open(&path);
        let mut file = file.map_err(file_error("write", &path))?;
        copy(&mut entry, &mut file, &path)?;
        file.sync_all().map_err(file_error("sync", &path))?;
    }
    // Behind the last file: what was cut off or appended shows here.
    let mut rest = tar.into_inner();
    drain(&mut rest)?;
    drain(rest.get_mut())?;
    match manifest {
        Some(manifest) if left.is_empty() => Ok(manifest),
        Some(_) | None => Err(BackupError::Content("files are missing".to_owned())),
    }
}

fn drain<R: Read>(reader: &mut R) -> Result<(), BackupError> {
    io::copy(reader, &mut io::sink())
        .map(drop)
        .map_err(unreadable)
}

fn mode_of(name: &str) -> u32 {
    if name.ends_with(".key") || name == STORE {
        0o600
    } else {
        0o644
    }
}

fn read_manifest(name: &str, entry: &mut impl Read) -> Result<Manifest, BackupError> {
    let bad = |what: &str| BackupError::Content(what.to_owned());
    if name != MANIFEST {
        return Err(bad("its first file is no manifest"));
    }
    let mut text = Vec::new();
    entry
        .take(MANIFEST_BYTES_MAX)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    let format: Format =
        serde_json::from_slice(&text).map_err(|_| bad("its manifest is not readable"))?;
    if format.format != FORMAT {
        let what = format!(
            "its layout is {}, this version knows {FORMAT}; use the version that wrote it",
            format.format
        );
        return Err(BackupError::Content(what));
    }
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|_| bad("its manifest is not readable"))?;
    for (name, bytes) in &manifest.files {
        let small = FILES.iter().any(|(known, _)| known == name)
            || name
                .strip_prefix(OPERATOR)
                .and_then(|rest| rest.strip_prefix('/'))
                .is_some_and(|file| operator_file(file) && !file.contains('/'));
        let bound = if name == STORE {
            STORE_BYTES_MAX
        } else {
            SMALL_BYTES_MAX
        };
        if !(small || name == STORE) || *bytes > bound {
            let what = format!("it names the file {name:.100} of {bytes} bytes");
            return Err(BackupError::Content(what));
        }
    }
    let needed = FILES.iter().filter(|(_, needed)| *needed).map(|(n, _)| *n);
    if let Some(missing) = needed
        .chain([STORE])
        .find(|name| !manifest.files.contains_key(*name))
    {
        return Err(BackupError::Content(format!("{missing} is missing")));
    }
    Ok(manifest)
}

/// The part of a manifest that every version has.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// What a failed read of an archive means; gzip and tar pass the envelope's errors on.
fn unreadable(source: io::Error) -> BackupError {
    BackupError::Envelope(EnvelopeError::of_read(source))
}

fn copy(entry: &mut impl Read, file: &mut File, path: &Path) -> Result<(), BackupError> {
    let mut buffer = zeroize::Zeroizing::new(vec![0; 64 << 10]);
    loop {
        let read = entry.read(&mut buffer).map_err(unreadable)?;
        if read == 0 {
            return Ok(());
        }
        let written = file.write_all(&buffer[..read]);
        written.map_err(file_error("write", path))?;
    }
}

/// Opens an archive to its end and checks what is in it, without keeping anything.
///
/// # Errors
/// [`BackupError`].
pub fn verify(dir: &DataDir, identity: &Identity, archive: &Path) -> Result<Manifest, BackupError> {
    let scratch = Scratch::new(dir)?;
    let file = File::open(archive).map_err(file_error("read", archive))?;
    let manifest = unpack(identity, io::BufReader::new(file), &scratch.0)?;
    check_store(&manifest, &scratch.0.join(STORE))?;
    Ok(manifest)
}

/// Whether the store is the one that the manifest counts.
pub(super) fn check_store(manifest: &Manifest, store: &Path) -> Result<(), BackupError> {
    let found = inspect(store)?;
    if found.entries != manifest.entries || found.revision.0 != manifest.revision {
        let what = "its store is not the one that its manifest describes";
        return Err(BackupError::Content(what.to_owned()));
    }
    Ok(())
}
