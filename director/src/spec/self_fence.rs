//! Whether a pool's machines end their own pods when they alone are cut off.

use windlass_common::cluster::{SELF_FENCE_SECONDS, SelfFence};

use super::Fields;
use super::fault::Faults;

/// Reads `selfFence` of a pool. The outer `None` is a fault.
pub(super) fn parse(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<Option<SelfFence>> {
    let Some(value) = fields.take("selfFence") else {
        return Some(None);
    };
    let default = SelfFence::default().after_seconds;
    let mut inner = Fields::open(value, &fields.path("selfFence"), faults)?;
    let after = inner.number(
        "afterSeconds",
        default,
        &SELF_FENCE_SECONDS,
        "seconds",
        faults,
    );
    inner.close(faults);
    Some(Some(SelfFence {
        after_seconds: after?,
    }))
}
