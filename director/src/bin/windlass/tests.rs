//! The grammar and its exit codes.
