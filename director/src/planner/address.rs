//! Hands out addresses: of machines and endpoints from the provider's network, of pods from the cluster's.
//!
//! Pure: what is in use is an argument. Lowest free address first, so that the same input gives the same
//! answer.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use windlass_common::cluster::NODE_POD_PREFIX;

/// A network is full.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "network {network} has {free} free addresses or pod networks, {wanted} are needed; use a larger one"
)]
pub struct AddressError {
    /// The network.
    pub network: Ipv4Net,
    /// How many are free.
    pub free: usize,
    /// How many are needed.
    pub wanted: usize,
}

/// The lowest `count` addresses of `network` that are neither in `used` nor its first or last.
pub fn free_addresses(
    network: Ipv4Net,
    used: &BTreeSet<Ipv4Addr>,
    count: usize,
) -> Result<Vec<Ipv4Addr>, AddressError> {
    let free = network.hosts().filter(|address| !used.contains(address));
    take(network, free, count)
}

/// The lowest `count` pod networks of one machine each out of `network` that are not in `used`.
pub fn free_pod_cidrs(
    network: Ipv4Net,
    used: &BTreeSet<Ipv4Net>,
    count: usize,
) -> Result<Vec<Ipv4Net>, AddressError> {
    match network.subnets(NODE_POD_PREFIX) {
        Ok(subnets) => take(
            network,
            subnets.filter(|subnet| !used.contains(subnet)),
            count,
        ),
        Err(_) => take(network, std::iter::empty(), count),
    }
}

fn take<T>(
    network: Ipv4Net,
    free: impl Iterator<Item = T>,
    wanted: usize,
) -> Result<Vec<T>, AddressError> {
    let taken: Vec<T> = free.take(wanted).collect();
    if taken.len() == wanted {
        Ok(taken)
    } else {
        Err(AddressError {
            network,
            free: taken.len(),
            wanted,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_out_the_lowest_free_ones_until_none_is_left() {
        let network: Ipv4Net = "10.0.0.0/29".parse().unwrap();
        let used = BTreeSet::from(["10.0.0.1".parse().unwrap(), "10.0.0.3".parse().unwrap()]);
        let text = |n: usize| {
            free_addresses(network, &used, n)
                .map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(text(2).unwrap(), ["10.0.0.2", "10.0.0.4"]);
        assert_eq!(
            text(4).unwrap(),
            ["10.0.0.2", "10.0.0.4", "10.0.0.5", "10.0.0.6"]
        );
        assert_eq!(text(5).unwrap_err().free, 4);
    }

    #[test]
    fn pod_networks_never_overlap() {
        let network: Ipv4Net = "10.244.0.0/22".parse().unwrap();
        let used = BTreeSet::from(["10.244.1.0/24".parse().unwrap()]);
        let found = free_pod_cidrs(network, &used, 3).unwrap();
        let text: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(text, ["10.244.0.0/24", "10.244.2.0/24", "10.244.3.0/24"]);
        assert!(free_pod_cidrs(network, &used, 4).is_err());
        assert!(free_pod_cidrs("10.0.0.0/25".parse().unwrap(), &used, 1).is_err());
    }
}
