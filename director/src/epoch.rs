//! The epoch that this director acts in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use windlass_common::id::Epoch;

/// The epoch that this director acts in; it may rise once, when a restored director learns of a higher one.
/// Clones are one.
#[derive(Debug, Clone)]
pub struct CurrentEpoch(Arc<AtomicU64>);

impl CurrentEpoch {
    /// The epoch now.
    pub fn get(&self) -> Epoch {
        Epoch(self.0.load(Ordering::Acquire))
    }

    /// It is at least this one from now on. The store has to say so already.
    pub fn raise(&self, least: Epoch) {
        self.0.fetch_max(least.0, Ordering::AcqRel);
    }
}

impl From<Epoch> for CurrentEpoch {
    fn from(epoch: Epoch) -> Self {
        Self(Arc::new(AtomicU64::new(epoch.0)))
    }
}
