//! Backups: archives that are sealed before they leave the process.
//!
//! [`envelope`] encrypts and opens them in the `age` format, so that the stock `age` tool opens them too.
//!
//! # Invariants
//! * Nothing of a backup is written in the clear outside of the data directory.
//! * Who has none of the private keys that an archive was sealed for has lost the archive: there is no other
//!   way in.

pub mod envelope;
