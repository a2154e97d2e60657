//! The operations in full, a room for what each is about: who may ask, and whom it is handed to.

mod backups;
mod clusters;
mod nodes;
mod operators;
mod own;
mod tasks;
