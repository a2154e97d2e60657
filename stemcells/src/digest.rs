//! Digests of files, for what is copied and packed here.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use windlass_common::id::{Digest, Hasher};

use crate::files::{FileError, at};

/// Read at once; large enough that the system call does not count.
const CHUNK_BYTES: usize = 256 << 10;

/// Digest and size, in bytes, of a file's content.
pub fn digest_of(path: &Path) -> Result<(Digest, u64), FileError> {
    let mut file = File::open(path).map_err(at("open", path))?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    loop {
        match file.read(&mut buffer).map_err(at("read", path))? {
            0 => return Ok((hasher.finish(), bytes)),
            n => {
                hasher.update(&buffer[..n]);
                bytes += n as u64;
            }
        }
    }
}
