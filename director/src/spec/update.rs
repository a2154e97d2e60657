//! How machines are taken out of service for a change, and come to another stemcell.

use serde_json::Value;
use windlass_common::cluster::{Amount, ControlPlaneUpdate, UpdatePolicy, UpdateStrategy};

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
    let strategy = strategy(&mut inner, faults);
    inner.close(faults);
    let policy = UpdatePolicy {
        strategy: strategy?,
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

/// Reads `update` of the control plane, whose machines change one at a time.
pub(super) fn of_control_plane(
    fields: &mut Fields<'_>,
    faults: &mut Faults,
) -> Option<ControlPlaneUpdate> {
    let Some(value) = fields.take("update") else {
        return Some(ControlPlaneUpdate::default());
    };
    let mut inner = Fields::open(value, &fields.path("update"), faults)?;
    let strategy = strategy(&mut inner, faults);
    inner.close(faults);
    Some(ControlPlaneUpdate {
        strategy: strategy?,
    })
}

fn strategy(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<UpdateStrategy> {
    let Some(value) = fields.take("strategy") else {
        return Some(UpdateStrategy::default());
    };
    let read = match value.as_str() {
        Some("replace") => Some(UpdateStrategy::Replace),
        Some("inPlace") => Some(UpdateStrategy::InPlace),
        _ => None,
    };
    if read.is_none() {
        faults.add(
            fields.path("strategy"),
            shown(value),
            "replace, which makes machines anew, or inPlace, which brings other components to them where a stemcell \
             differs in nothing else",
        );
    }
    read
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
