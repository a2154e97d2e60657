//! Kubernetes as the director knows it: certificates, component configuration, API access, add-ons.
//!
//! Everything but [`client`] is a pure function of typed values: what a machine is told follows from
//! the cluster's desired state, its PKI and the certificates issued to that machine, and from nothing
//! else. The planner decides *when* a step is sent; this room decides *what is in it*.
//!
//! # Invariants
//! * Nothing is rendered from facts that [`facts::ClusterFacts::validate`] would refuse.
//! * A machine receives only what it needs: no worker holds a key of another machine, and no machine
//!   holds the key of a certificate authority.
//! * The same input renders the same bytes (certificates apart: ECDSA signatures are randomised; they
//!   are issued once and kept, see [`pki`]).
//!
//! # After a crash
//! There is no state here; the caller's store has the PKI document and the issued certificates.
//!
//! # Not here
//! Order of steps and their retries (planner, rollout); how bytes reach an API server (the gateway
//! hands [`client`] a connection).

pub mod addons;
pub mod client;
pub mod facts;
pub mod pki;
pub mod render;

/// Port of the API server on every control-plane machine.
pub const API_PORT: u16 = 6443;
/// Port on loopback of every machine where its components reach the API servers.
pub const API_PROXY_PORT: u16 = 6444;
/// Client port of etcd.
pub const ETCD_CLIENT_PORT: u16 = 2379;
/// Peer port of etcd.
pub const ETCD_PEER_PORT: u16 = 2380;
/// Port of the kubelet's API.
pub const KUBELET_PORT: u16 = 10250;
/// The kubelet's health port, on loopback and without TLS.
pub const KUBELET_HEALTH_PORT: u16 = 10248;
/// Port of the controller manager, on loopback.
pub const CONTROLLER_MANAGER_PORT: u16 = 10257;
/// Port of the scheduler, on loopback.
pub const SCHEDULER_PORT: u16 = 10259;
/// kube-proxy's health port.
pub const KUBE_PROXY_HEALTH_PORT: u16 = 10256;
/// kube-proxy's metrics port, on loopback.
pub const KUBE_PROXY_METRICS_PORT: u16 = 10249;
/// Ports that Services of type `NodePort` take (the API server's default range).
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// DNS domain of Services and pods.
pub const CLUSTER_DOMAIN: &str = "cluster.local";
/// Minors that a kubelet may be older than an API server (Kubernetes' version skew policy).
pub const KUBELET_OLDER_MAX: u32 = 3;
/// Kubernetes minor versions whose flags and configuration this release renders.
#[cfg(not(test))]
pub const KUBERNETES_MINORS: std::ops::RangeInclusive<u32> = 36..=37;
/// Tests play upgrades over several minors, which takes more of them than this release renders.
#[cfg(test)]
pub const KUBERNETES_MINORS: std::ops::RangeInclusive<u32> = 36..=39;

#[cfg(test)]
mod fixtures;
