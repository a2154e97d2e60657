//! How a pool's machines are taken out of service for a change.

use serde_json::Value;
use windlass_common::cluster::{Amount, UpdatePolicy};

use super::fault::{Faults, shown};
use super::{Fields, POOL_COUNT_MAX};

/// Reads `update` of a pool.
pub(super) fn parse(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<UpdatePolicy> {
    let default = UpdatePolicy::default();
    let Some(value) = fields.take("update") else {
        return Some(default);
    };
    let path = fields.path("update");
    let mut inner = Fields::open(value, &path, faults)?;
    let max_unavailable = amount(
        &mut inner,
        "maxUnavailable",
        default.max_unavailable,
        faults,
    );
    let max_surge = amount(&mut inner, "maxSurge", default.max_surge, faults);
    let range = 0..=POOL_COUNT_MAX;
    let canaries = inner.number("canaries", default.canaries, &range, "machines", faults);
    inner.close(faults);
    let policy = UpdatePolicy {
        max_unavailable: max_unavailable?,
        max_surge: max_surge?,
        canaries: canaries?,
    };
    let none = |amount| matches!(amount, Amount::Count(0) | Amount::Percent(0));
    if none(policy.max_unavailable) && none(policy.max_surge) {
        let allowed = "above zero, or maxSurge is: otherwise no machine may ever be changed";
        faults.add(format!("{path}.maxUnavailable"), "0", allowed);
        return None;
    }
    Some(policy)
}

fn amount(
    fields: &mut Fields<'_>,
    key: &'static str,
    default: Amount,
    faults: &mut Faults,
) -> Option<Amount> {
    let Some(value) = fields.take(key) else {
        return Some(default);
    };
    let read = match value {
        Value::Number(number) => number.as_u64().and_then(|n| u32::try_from(n).ok()),
        _ => None,
    };
    let read = read
        .map(Amount::Count)
        .or_else(|| value.as_str()?.parse().ok());
    let read = read.filter(|amount| match amount {
        Amount::Count(count) => *count <= POOL_COUNT_MAX,
        Amount::Percent(_) => true,
    });
    if read.is_none() {
        let allowed = format!("a number of machines, 0 to {POOL_COUNT_MAX}, or 0% to 100%");
        faults.add(fields.path(key), shown(value), allowed);
    }
    read
}
