//! The floor of a create.
