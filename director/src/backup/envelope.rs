//! The envelope of every archive: streams encrypted in the [`age` format, version 1][format], for one or
//! more X25519 recipients. `age --decrypt --identity KEYFILE ARCHIVE` opens them as well.
//!
//! # Invariants
//! * No byte is handed out before its chunk (64 KiB) was authenticated, and none that is out of order.
//! * A stream that was cut off is told from one that ended: [`Opened::copy_to`] succeeds for whole ones
//!   alone. Who reads an [`Opened`] must read to its end before believing any of it.
//! * A private key shows itself in its key file and nowhere else.
//!
//! # After a crash
//! A key file is written whole or not at all, and never overwritten. A [`Sealing`] that was not
//! finished is an archive that does not open.
//!
//! # Not here
//! What is in an archive, and putting it in its place atomically: its writer's.
//!
//! [format]: https://age-encryption.org/v1

use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use age::secrecy::ExposeSecret;
use age::stream::{StreamReader, StreamWriter};
use age::x25519;
use windlass_common::error::ErrorClass;
use windlass_common::secret::Secret;
use zeroize::Zeroizing;

/// Most recipients of one archive: every operator of a small company. Each is 100 bytes of its head.
pub const RECIPIENTS_MAX: usize = 32;
/// Largest key file, bytes: hundreds of keys, where one is looked for.
const KEY_FILE_BYTES_MAX: u64 = 64 << 10;
/// How the line of a private key begins.
const PRIVATE_PREFIX: &str = "AGE-SECRET-KEY-1";

/// Why an archive was not sealed or opened, or a key is not one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// Nobody could open what is sealed for nobody.
    #[error("an archive needs 1 to {RECIPIENTS_MAX} recipients, {0} are given")]
    Recipients(usize),
    /// The text is no public key.
    #[error(
        "`{0}` is not the public key of an age identity; it begins with `age1`, `age-keygen -y KEYFILE` shows it"
    )]
    Recipient(String),
    /// The key file holds no private key.
    #[error(
        "{} holds no private key of age (a line that begins with {PRIVATE_PREFIX})",
        .0.display()
    )]
    NoIdentity(PathBuf),
    /// The key file can be read by others.
    #[error("others may read the key file {}; `chmod 600` it", .0.display())]
    Exposed(PathBuf),
    /// The key file cannot be read or written.
    #[error("cannot {doing} the key file {}", path.display())]
    KeyFile {
        /// `read` or `write`.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The archive was sealed for others.
    #[error(
        "the archive was not sealed for {0}; open it with the key of the director that wrote it, or of one of its further recipients"
    )]
    WrongIdentity(Recipient),
    /// Not an archive, or its head was altered.
    #[error(
        "this is no archive in the age format, or its first bytes were altered; take another copy"
    )]
    Head,
    /// A byte of the content was altered.
    #[error(
        "the archive was altered or damaged; take another copy, nothing of this one can be believed"
    )]
    Altered,
    /// The end is missing.
    #[error("the archive ends too early; copy it again, nothing of this one can be believed")]
    Truncated,
    /// What is sealed cannot be read, or what is opened cannot be written.
    #[error("cannot {doing}")]
    Io {
        /// For example `write the sealed archive`.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl EnvelopeError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }
}

/// Who can open an archive: the public part of an [`Identity`], as `age1…`.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient(x25519::Recipient);

impl FromStr for Recipient {
    type Err = EnvelopeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = x25519::Recipient::from_str(text);
        // The text may be a private key by mistake: only the start of what looks like a public one is shown.
        known.map(Self).map_err(|_| {
            let shown = match text.starts_with("age1") {
                true => text.chars().take(80).collect(),
                false => "…".to_owned(),
            };
            EnvelopeError::Recipient(shown)
        })
    }
}

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recipient({self})")
    }
}

/// A private key that opens archives.
#[derive(Clone)]
pub struct Identity(x25519::Identity);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.recipient())
    }
}

impl Identity {
    /// A new one from the system's random source.
    pub fn generate() -> Self {
        Self(x25519::Identity::generate())
    }

    /// Its public part.
    pub fn recipient(&self) -> Recipient {
        Recipient(self.0.to_public())
    }

    /// The text of its key file, as `age-keygen` writes it.
    pub fn to_file(&self) -> Secret {
        let key = self.0.to_string();
        Secret::new(format!(
            "# public key: {}\n{}\n",
            self.recipient(),
            key.expose_secret()
        ))
    }

    /// The first private key in the text of a key file; `path` names the text in the error.
    ///
    /// # Errors
    /// [`EnvelopeError::NoIdentity`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, EnvelopeError> {
        text.lines()
            .map(str::trim)
            .find(|line| line.starts_with(PRIVATE_PREFIX))
            .and_then(|line| x25519::Identity::from_str(line).ok())
            .map(Self)
            .ok_or_else(|| EnvelopeError::NoIdentity(path.to_owned()))
    }

    /// Reads a key file; refuses one that others may read.
    ///
    /// # Errors
    /// [`EnvelopeError::Exposed`], [`EnvelopeError::NoIdentity`] or [`EnvelopeError::KeyFile`].
    pub fn load(path: &Path) -> Result<Self, EnvelopeError> {
        let fail = |source| EnvelopeError::KeyFile {
            doing: "read",
            path: path.to_owned(),
            source,
        };
        let file = std::fs::File::open(path).map_err(fail)?;
        if file.metadata().map_err(fail)?.mode() & 0o077 != 0 {
            return Err(EnvelopeError::Exposed(path.to_owned()));
        }
        let mut text = Zeroizing::new(String::new());
        let mut file = file.take(KEY_FILE_BYTES_MAX);
        file.read_to_string(&mut text).map_err(fail)?;
        Self::parse(&text, path)
    }

    /// Writes the key file (mode 0600, synced); refuses to overwrite.
    ///
    /// # Errors
    /// [`EnvelopeError::KeyFile`].
    pub fn save(&self, path: &Path) -> Result<(), EnvelopeError> {
        let fail = |source| EnvelopeError::KeyFile {
            doing: "write",
            path: path.to_owned(),
            source,
        };
        // Linked into place: a reader sees all of it or no file, and a file that is there stays.
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let dir = dir.unwrap_or(Path::new("."));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = dir.join(format!(".{name}.{}", std::process::id()));
        let written = (|| {
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(self.to_file().expose().as_bytes())?;
            file.sync_all()?;
            std::fs::hard_link(&temporary, path)
        })();
        // What matters is whether the key is in its place.
        let _ = std::fs::remove_file(&temporary);
        written.map_err(fail)?;
        let synced = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(fail)
    }

    /// Reads the key file, or makes one where there is none.
    ///
    /// # Errors
    /// As [`Identity::load`] and [`Identity::save`].
    pub fn load_or_create(path: &Path) -> Result<Self, EnvelopeError> {
        match Self::load(path) {
            Err(EnvelopeError::KeyFile { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                let identity = Self::generate();
                match identity.save(path) {
                    Ok(()) => Ok(identity),
                    // Somebody else was faster; theirs counts.
                    Err(EnvelopeError::KeyFile { source, .. })
                        if source.kind() == io::ErrorKind::AlreadyExists =>
                    {
                        Self::load(path)
                    }
                    Err(error) => Err(error),
                }
            }
            loaded => loaded,
        }
    }
}

/// Encrypts what is written to it. Dropped without [`Sealing::finish`], it leaves an archive that does not
/// open.
pub struct Sealing<W: Write>(StreamWriter<W>);

impl<W: Write> fmt::Debug for Sealing<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealing")
    }
}

impl<W: Write> Sealing<W> {
    /// Writes the head of an archive that each of the recipients can open.
    ///
    /// # Errors
    /// [`EnvelopeError::Recipients`], or [`EnvelopeError::Io`] of the writer.
    pub fn new(recipients: &[Recipient], writer: W) -> Result<Self, EnvelopeError> {
        if recipients.is_empty() || recipients.len() > RECIPIENTS_MAX {
            return Err(EnvelopeError::Recipients(recipients.len()));
        }
        let inner = recipients.iter().map(|one| &one.0 as &dyn age::Recipient);
        let sealing = age::Encryptor::with_recipients(inner)
            // X25519 recipients have no labels that could conflict; what is left is how many there are.
            .map_err(|_| EnvelopeError::Recipients(recipients.len()))?;
        let writer = sealing.wrap_output(writer).map_err(sealed)?;
        Ok(Self(writer))
    }

    /// Writes the end of the archive and flushes it. The writer is then the caller's, to be synced.
    ///
    /// # Errors
    /// [`EnvelopeError::Io`] of the writer.
    pub fn finish(self) -> Result<W, EnvelopeError> {
        let mut writer = self.0.finish().map_err(sealed)?;
        writer.flush().map_err(sealed)?;
        Ok(writer)
    }
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn sealed(source: io::Error) -> EnvelopeError {
    EnvelopeError::Io {
        doing: "write the sealed archive",
        source,
    }
}

/// Encrypts all of `reader` for the recipients; gives the writer back, whole and flushed, not synced.
///
/// # Errors
/// [`EnvelopeError::Recipients`], or [`EnvelopeError::Io`]; what was written then does not open.
pub fn seal<R: Read, W: Write>(
    recipients: &[Recipient],
    mut reader: R,
    writer: W,
) -> Result<W, EnvelopeError> {
    let mut sealing = Sealing::new(recipients, writer)?;
    io::copy(&mut reader, &mut sealing).map_err(|source| EnvelopeError::Io {
        doing: "seal the archive",
        source,
    })?;
    sealing.finish()
}

/// The content of an archive, chunk by authenticated chunk.
///
/// [`Read::read`] fails with [`io::ErrorKind::InvalidData`] for an altered archive and with
/// [`io::ErrorKind::UnexpectedEof`] for one that was cut off.
pub struct Opened<R>(StreamReader<R>);

impl<R> fmt::Debug for Opened<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opened")
    }
}

impl<R: Read> Read for Opened<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Opened<R> {
    /// Writes the whole content; how many bytes it was.
    ///
    /// # Errors
    /// [`EnvelopeError::Altered`], [`EnvelopeError::Truncated`], or [`EnvelopeError::Io`] of the writer. What
    /// was written by then must not be believed.
    pub fn copy_to<W: Write>(mut self, mut writer: W) -> Result<u64, EnvelopeError> {
        let mut buffer = Zeroizing::new(vec![0; 64 << 10]);
        let mut bytes = 0;
        loop {
            let read = self.0.read(&mut buffer).map_err(EnvelopeError::of_read)?;
            if read == 0 {
                break;
            }
            let fail = |source| EnvelopeError::Io {
                doing: "write what the archive holds",
                source,
            };
            writer.write_all(&buffer[..read]).map_err(fail)?;
            bytes += read as u64;
        }
        Ok(bytes)
    }
}

impl EnvelopeError {
    /// What a failed read of an [`Opened`] means.
    pub fn of_read(source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::InvalidData => Self::Altered,
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            _ => Self::Io {
                doing: "read the archive",
                source,
            },
        }
    }
}

/// Opens an archive.
///
/// # Errors
/// [`EnvelopeError::WrongIdentity`], [`EnvelopeError::Head`], [`EnvelopeError::Truncated`] when even the head
/// is not whole, or [`EnvelopeError::Io`] of the reader.
pub fn open<R: Read>(identity: &Identity, reader: R) -> Result<Opened<R>, EnvelopeError> {
    use age::DecryptError;
    let refused = |error| match error {
        DecryptError::NoMatchingKeys => EnvelopeError::WrongIdentity(identity.recipient()),
        DecryptError::Io(source) => EnvelopeError::of_read(source),
        _ => EnvelopeError::Head,
    };
    let decryptor = age::Decryptor::new(reader).map_err(refused)?;
    let keys = std::iter::once(&identity.0 as &dyn age::Identity);
    decryptor.decrypt(keys).map(Opened).map_err(refused)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use proptest::prelude::*;

    use super::*;

    fn sealed_for(recipients: &[Recipient], content: &[u8]) -> Vec<u8> {
        seal(recipients, content, Vec::new()).unwrap()
    }

    fn opened(identity: &Identity, archive: &[u8]) -> Result<Vec<u8>, EnvelopeError> {
        let mut content = Vec::new();
        open(identity, archive)?.copy_to(&mut content)?;
        Ok(content)
    }

    #[test]
    fn every_recipient_opens_it_and_nobody_else() {
        let [one, two, other] = [(); 3].map(|()| Identity::generate());
        let content = vec![7; 200_000];
        let archive = sealed_for(&[one.recipient(), two.recipient()], &content);
        assert!(archive.starts_with(b"age-encryption.org/v1\n-> X25519 "));
        assert_eq!(opened(&one, &archive).unwrap(), content);
        assert_eq!(opened(&two, &archive).unwrap(), content);
        let refused = opened(&other, &archive).unwrap_err();
        assert!(matches!(&refused, EnvelopeError::WrongIdentity(_)));
        assert!(refused.to_string().contains(&other.recipient().to_string()));
    }

    #[test]
    fn nobody_and_too_many_are_refused() {
        let many = vec![Identity::generate().recipient(); RECIPIENTS_MAX + 1];
        for recipients in [&[][..], &many[..]] {
            let refused = Sealing::new(recipients, Vec::new()).unwrap_err();
            assert!(matches!(refused, EnvelopeError::Recipients(n) if n == recipients.len()));
        }
    }

    #[test]
    fn every_truncated_archive_is_refused() {
        let identity = Identity::generate();
        // One whole chunk and a bit: the first chunk alone must not pass as all of it.
        let archive = sealed_for(&[identity.recipient()], &vec![1; (64 << 10) + 10]);
        let end_of_first_chunk = archive.len() - 26;
        let all = (0..300).chain(end_of_first_chunk - 3..archive.len());
        for cut in all {
            let refused = opened(&identity, &archive[..cut]).unwrap_err();
            let told = matches!(
                refused,
                EnvelopeError::Truncated | EnvelopeError::Altered | EnvelopeError::Head
            );
            assert!(told, "{cut}: {refused:?}");
        }
    }

    #[test]
    fn an_archive_that_was_not_finished_does_not_open() {
        let identity = Identity::generate();
        let mut archive = Vec::new();
        let mut sealing = Sealing::new(&[identity.recipient()], &mut archive).unwrap();
        sealing.write_all(&vec![3; 300_000]).unwrap();
        drop(sealing);
        assert!(opened(&identity, &archive).is_err());
    }

    #[test]
    fn the_key_file_is_private_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup.key");
        let made = Identity::load_or_create(&path).unwrap();
        let again = Identity::load_or_create(&path).unwrap();
        assert_eq!(made.recipient(), again.recipient());
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let refused = Identity::generate().save(&path).unwrap_err();
        assert!(matches!(refused, EnvelopeError::KeyFile { .. }));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let refused = Identity::load(&path).unwrap_err();
        assert!(refused.to_string().contains("chmod 600"));
        let none = Identity::parse("# nothing\n", &path).unwrap_err();
        assert!(matches!(none, EnvelopeError::NoIdentity(_)));
    }

    #[test]
    fn a_private_key_is_not_shown() {
        let identity = Identity::generate();
        let text = identity.to_file();
        let key = text.expose().lines().last().unwrap().to_owned();
        assert!(key.starts_with(PRIVATE_PREFIX));
        assert!(!format!("{identity:?}").contains(&key[16..]));
        // One that is taken for a public key does not come back in the error.
        let refused = key.parse::<Recipient>().unwrap_err();
        assert!(!refused.to_string().contains(&key[16..]));
        let public = identity.recipient();
        assert_eq!(public.to_string().parse::<Recipient>().unwrap(), public);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn what_is_sealed_opens_and_what_is_altered_does_not(
            content in prop::collection::vec(any::<u8>(), 0..200_000),
            place in any::<prop::sample::Index>(),
            flip in 1..=255u8,
        ) {
            let identity = Identity::generate();
            let mut archive = sealed_for(&[identity.recipient()], &content);
            prop_assert_eq!(&opened(&identity, &archive).unwrap(), &content);
            let place = place.index(archive.len());
            archive[place] ^= flip;
            prop_assert!(opened(&identity, &archive).is_err());
        }
    }
}
