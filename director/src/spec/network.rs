//! Networks of a cluster: big enough, private, and apart from one another and from the machines'.

use ipnet::Ipv4Net;
use windlass_common::cluster::{ClusterNetwork, NODE_POD_PREFIX};

use super::Surroundings;
use super::fault::Faults;
use super::fields::Fields;

/// Prefix lengths a pod network may have: one /24 per machine, so /24 is one machine.
const POD_PREFIXES: std::ops::RangeInclusive<u8> = 8..=NODE_POD_PREFIX;
/// Prefix lengths a Service network may have: Kubernetes' allocator takes at most 20 host bits, and
/// below /24 the fixed addresses (.1 API, .10 DNS) leave next to nothing.
const SERVICE_PREFIXES: std::ops::RangeInclusive<u8> = 12..=24;

/// Pods when nothing is given.
const POD_DEFAULT: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 244, 0, 0), 16);
/// Services when nothing is given.
const SERVICE_DEFAULT: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 96, 0, 0), 16);

/// Reads `network` of a cluster with so many machines.
pub(super) fn parse(
    fields: &mut Fields<'_>,
    machines: u64,
    around: &Surroundings,
    faults: &mut Faults,
) -> Option<ClusterNetwork> {
    let path = fields.path("network");
    let (pod, service) = match fields.take("network") {
        None => (Some(POD_DEFAULT), Some(SERVICE_DEFAULT)),
        Some(value) => {
            let mut inner = Fields::open(value, &path, faults)?;
            let pod = cidr(&mut inner, "podCidr", POD_DEFAULT, &POD_PREFIXES, faults);
            let service = cidr(
                &mut inner,
                "serviceCidr",
                SERVICE_DEFAULT,
                &SERVICE_PREFIXES,
                faults,
            );
            inner.close(faults);
            (pod, service)
        }
    };
    let named = [("podCidr", pod), ("serviceCidr", service)];
    for (key, net) in named {
        let Some(net) = net else { continue };
        for (what, reserved) in &around.reserved {
            if overlap(net, *reserved) {
                let allowed = format!("a network apart from {what} {reserved}");
                faults.add(format!("{path}.{key}"), net.to_string(), allowed);
            }
        }
    }
    let (pod, service) = (pod?, service?);
    if overlap(pod, service) {
        let allowed = format!("a network apart from {path}.podCidr {pod}");
        faults.add(format!("{path}.serviceCidr"), service.to_string(), allowed);
    }
    let room = 1_u64 << (NODE_POD_PREFIX - pod.prefix_len());
    if machines > room {
        let bits = machines.next_power_of_two().trailing_zeros();
        let prefix = u32::from(NODE_POD_PREFIX).saturating_sub(bits);
        let allowed = format!(
            "room for one /{NODE_POD_PREFIX} for each of {machines} machines, so /{prefix} or larger \
             (this one has room for {room})"
        );
        faults.add(format!("{path}.podCidr"), pod.to_string(), allowed);
    }
    Some(ClusterNetwork {
        pod_cidr: pod,
        service_cidr: service,
    })
}

fn cidr(
    fields: &mut Fields<'_>,
    key: &'static str,
    default: Ipv4Net,
    prefixes: &std::ops::RangeInclusive<u8>,
    faults: &mut Faults,
) -> Option<Ipv4Net> {
    let allowed = format!(
        "an IPv4 network in CIDR notation with no host bits set, /{} to /{}, that can be routed (not \
         loopback, link-local, multicast or 0.0.0.0/8), for example {default}",
        prefixes.start(),
        prefixes.end()
    );
    fields.optional(key, default, &allowed, faults, |text| {
        let net: Ipv4Net = text.parse().ok()?;
        let canonical = net.trunc() == net && prefixes.contains(&net.prefix_len());
        (canonical && usable(net)).then_some(net)
    })
}

/// Whether hosts can have addresses in it.
pub(crate) fn usable(net: Ipv4Net) -> bool {
    let never = [
        Ipv4Net::new_assert(std::net::Ipv4Addr::new(0, 0, 0, 0), 8),
        Ipv4Net::new_assert(std::net::Ipv4Addr::new(127, 0, 0, 0), 8),
        Ipv4Net::new_assert(std::net::Ipv4Addr::new(169, 254, 0, 0), 16),
        Ipv4Net::new_assert(std::net::Ipv4Addr::new(224, 0, 0, 0), 3),
    ];
    !never.iter().any(|other| overlap(net, *other))
}

/// Whether two networks share an address.
pub(super) fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}
