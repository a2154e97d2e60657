//! Backups: archives that are sealed before they leave the process, and what follows from restoring one.
//!
//! [`envelope`] encrypts and opens them in the `age` format, so that the stock `age` tool opens them too.
//! [`cluster`] is what the backup of a cluster holds, [`making`] makes it, [`repository`] is where it lies
//! (a directory, or the object store of [`s3`]), [`schedule`] when it is made and how long it is kept, [`record`] what the store remembers of it.
//!
//! [`director`] packs the director itself, [`restore`] puts it back, [`hold`] keeps a restored director from
//! acting until [`adopt`] has said what changed since and an operator approved. [`periodic`] takes backups
//! by itself; [`commands`] are those of `windlass-director`.
//!
//! # Invariants
//! * Nothing of a backup is written in the clear outside of the data directory.
//! * Who has none of the private keys that an archive was sealed for has lost the archive: there is no other
//!   way in.

pub mod adopt;
pub mod cluster;
pub mod commands;
pub mod director;
pub mod envelope;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod hold;
pub mod making;
pub mod own_name;
pub mod periodic;
pub mod record;
pub mod repository;
pub mod restore;
pub mod s3;
pub mod schedule;
