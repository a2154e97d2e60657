//! What is allowed in order to get a node empty.

use std::ops::RangeInclusive;

use windlass_common::cluster::{DrainSpec, OnTimeout};

use super::Fields;
use super::fault::Faults;

/// Time for budgets, seconds: long enough for what hands over in hours, short enough that somebody looks.
const TIMEOUT_SECONDS: RangeInclusive<u32> = 1..=14_400;
/// Time for load balancers, seconds.
const LOAD_BALANCER_SECONDS: RangeInclusive<u32> = 0..=600;
/// Time for a pod to end, seconds.
const GRACE_SECONDS: RangeInclusive<u32> = 0..=14_400;

/// Reads `drain` of a cluster.
pub(super) fn parse(fields: &mut Fields<'_>, faults: &mut Faults) -> Option<DrainSpec> {
    let default = DrainSpec::default();
    let Some(value) = fields.take("drain") else {
        return Some(default);
    };
    let mut inner = Fields::open(value, &fields.path("drain"), faults)?;
    let seconds = "seconds";
    let timeout = inner.number(
        "timeoutSeconds",
        default.timeout_seconds,
        &TIMEOUT_SECONDS,
        seconds,
        faults,
    );
    let allowed = "`fail`, or `delete`: past their budgets";
    let on_timeout =
        inner.optional(
            "onTimeout",
            default.on_timeout,
            allowed,
            faults,
            |text| match text {
                "fail" => Some(OnTimeout::Fail),
                "delete" => Some(OnTimeout::Delete),
                _ => None,
            },
        );
    let unmanaged = inner.flag("evictUnmanaged", default.evict_unmanaged, faults);
    let empty_dir = inner.flag("deleteEmptyDirData", default.delete_empty_dir_data, faults);
    let load_balancer = inner.number(
        "loadBalancerSeconds",
        default.load_balancer_seconds,
        &LOAD_BALANCER_SECONDS,
        seconds,
        faults,
    );
    let grace = match inner.take("gracePeriodMaxSeconds") {
        None => Some(None),
        Some(_) => inner
            .number("gracePeriodMaxSeconds", 0, &GRACE_SECONDS, seconds, faults)
            .map(Some),
    };
    inner.close(faults);
    Some(DrainSpec {
        timeout_seconds: timeout?,
        on_timeout: on_timeout?,
        evict_unmanaged: unmanaged?,
        delete_empty_dir_data: empty_dir?,
        load_balancer_seconds: load_balancer?,
        grace_period_max_seconds: grace?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(drain: Value) -> Result<DrainSpec, String> {
        let input = json!({ "drain": drain });
        let mut faults = Faults::default();
        let spec = Fields::open(&input, "", &mut faults)
            .and_then(|mut fields| parse(&mut fields, &mut faults));
        match spec {
            Some(spec) if faults.is_empty() => Ok(spec),
            _ => Err(faults.to_string()),
        }
    }

    #[test]
    fn a_policy_is_read_with_its_defaults_and_every_fault_is_named() {
        let given = json!({"timeoutSeconds": 30, "onTimeout": "delete"});
        let wanted = DrainSpec {
            timeout_seconds: 30,
            on_timeout: OnTimeout::Delete,
            ..DrainSpec::default()
        };
        assert_eq!(read(given), Ok(wanted));
        // What the API shows can be sent back.
        let shown = serde_json::to_value(wanted).unwrap();
        assert_eq!(read(shown), Ok(wanted));
        let bad = json!({"timeoutSeconds": 0, "onTimeout": "ignore", "evictUnmanaged": "yes",
            "gracePeriodMaxSeconds": 99999, "force": true});
        let said = read(bad).unwrap_err();
        for key in [
            "drain.timeoutSeconds",
            "drain.onTimeout",
            "drain.evictUnmanaged",
            "drain.gracePeriodMaxSeconds",
            "drain.force",
        ] {
            assert!(said.contains(key), "{key} is not named in {said}");
        }
    }
}
