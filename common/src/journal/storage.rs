//! What a journal needs of a directory, so that the real disk can be swapped for a simulated one.

use std::fmt;
use std::io;

/// A directory with a few files. Nothing is durable before it is synced: a file's content by
/// [`StorageFile::sync`], names by [`Storage::sync_dir`].
pub trait Storage: Send + fmt::Debug {
    /// An open file.
    type File: StorageFile;

    /// Opens a file for reading and writing; `None` if there is none.
    fn open(&self, name: &str) -> io::Result<Option<Self::File>>;
    /// Makes a file, empty even if one of that name was there.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Renames a file over another.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes all names durable.
    fn sync_dir(&self) -> io::Result<()>;
    /// Where this is, for messages.
    fn place(&self) -> String;
}

/// An open file of a [`Storage`].
pub trait StorageFile: Send + fmt::Debug {
    /// The whole content; an error if it is longer than `max` bytes.
    fn read_all(&mut self, max: u64) -> io::Result<Vec<u8>>;
    /// Writes all bytes at an offset.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts or extends the file.
    fn set_len(&mut self, bytes: u64) -> io::Result<()>;
    /// Makes the content and the length durable.
    fn sync(&mut self) -> io::Result<()>;
}
