//! The certificates a machine has, and the names in each: one table.
//!
//! # Invariants
//! * A certificate of a machine carries names and addresses of that machine, of the cluster's endpoint
//!   and of the `kubernetes` Service, and never of another machine.
//! * A client profile serves nothing and a server profile authenticates nobody, but for the three that
//!   say why below.
//! * Every client of the API server names its machine and incarnation: the kubelet by its user, all others by a group,
//!   so that `addons/admission.rs` can tell a machine that was replaced from its successor. No role is bound to that
//!   group.

use std::net::Ipv4Addr;

use super::super::CLUSTER_DOMAIN;
use super::super::facts::{ClusterFacts, MachineFacts, Role};
use super::{ETCD_PEER_NAME, FRONT_PROXY_NAME, KUBELET_CALLER_USER, MACHINE_GROUP_PREFIX};

/// Where key and certificate files are on a machine.
pub(super) const PKI_DIRECTORY: &str = "/etc/kubernetes/pki";

/// One certificate of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Profile {
    /// The kubelet to the API server: the node's identity.
    KubeletClient,
    /// The kubelet's API.
    KubeletServer,
    /// kube-proxy to the API server.
    KubeProxy,
    /// The API server.
    ApiServer,
    /// The API server to kubelets.
    ApiServerKubeletClient,
    /// The API server to etcd.
    ApiServerEtcdClient,
    /// An etcd member to its clients.
    EtcdServer,
    /// An etcd member to other members, both directions.
    EtcdPeer,
    /// The API server to aggregated API servers.
    FrontProxyClient,
    /// The controller manager to the API server, and its own health port on loopback: without a
    /// certificate it makes an RSA key at every start, which costs CPU when it is scarcest.
    ControllerManager,
    /// The scheduler; as for the controller manager.
    Scheduler,
}

/// Who signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AuthorityName {
    /// [`super::ClusterPki::kubernetes`].
    Kubernetes,
    /// [`super::ClusterPki::etcd`].
    Etcd,
    /// [`super::ClusterPki::front_proxy`].
    FrontProxy,
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateNames {
    /// Common name: the user.
    pub common_name: String,
    /// Organization: the group.
    pub organization: Option<String>,
    /// DNS names it serves.
    pub dns_names: Vec<String>,
    /// Addresses it serves.
    pub addresses: Vec<Ipv4Addr>,
    /// May authenticate as a client.
    pub client: bool,
    /// May serve.
    pub server: bool,
}

impl CertificateNames {
    /// A client without a group.
    pub(super) fn client(common_name: &str) -> Self {
        Self {
            common_name: common_name.to_owned(),
            organization: None,
            dns_names: Vec::new(),
            addresses: Vec::new(),
            client: true,
            server: false,
        }
    }

    /// A client in a group.
    pub(super) fn member(common_name: &str, group: &str) -> Self {
        Self {
            organization: Some(group.to_owned()),
            ..Self::client(common_name)
        }
    }

    fn serving(self, dns_names: Vec<String>, addresses: Vec<Ipv4Addr>) -> Self {
        Self {
            dns_names,
            addresses,
            server: true,
            ..self
        }
    }

    fn server(common_name: &str, dns_names: Vec<String>, addresses: Vec<Ipv4Addr>) -> Self {
        Self {
            client: false,
            ..Self::client(common_name).serving(dns_names, addresses)
        }
    }
}

const WORKER: [Profile; 3] = [
    Profile::KubeletClient,
    Profile::KubeletServer,
    Profile::KubeProxy,
];
const CONTROL_PLANE: [Profile; 11] = [
    Profile::KubeletClient,
    Profile::KubeletServer,
    Profile::KubeProxy,
    Profile::ApiServer,
    Profile::ApiServerKubeletClient,
    Profile::ApiServerEtcdClient,
    Profile::EtcdServer,
    Profile::EtcdPeer,
    Profile::FrontProxyClient,
    Profile::ControllerManager,
    Profile::Scheduler,
];

impl Profile {
    /// The certificates a machine of this role has.
    pub fn of(role: &Role) -> &'static [Profile] {
        match role {
            Role::Worker { .. } => &WORKER,
            Role::ControlPlane => &CONTROL_PLANE,
        }
    }

    /// Name of the key in a `keys` step, and of its files.
    pub fn name(self) -> &'static str {
        match self {
            Profile::KubeletClient => "kubelet-client",
            Profile::KubeletServer => "kubelet-server",
            Profile::KubeProxy => "kube-proxy",
            Profile::ApiServer => "apiserver",
            Profile::ApiServerKubeletClient => "apiserver-kubelet-client",
            Profile::ApiServerEtcdClient => "apiserver-etcd-client",
            Profile::EtcdServer => "etcd-server",
            Profile::EtcdPeer => "etcd-peer",
            Profile::FrontProxyClient => "front-proxy-client",
            Profile::ControllerManager => "kube-controller-manager",
            Profile::Scheduler => "kube-scheduler",
        }
    }

    /// The profile of this name.
    pub fn named(name: &str) -> Option<Self> {
        CONTROL_PLANE
            .into_iter()
            .find(|profile| profile.name() == name)
    }

    /// Path of the private key.
    pub fn key_path(self) -> String {
        format!("{PKI_DIRECTORY}/{}.key", self.name())
    }

    /// Path of the certificate chain.
    pub fn certificate_path(self) -> String {
        format!("{PKI_DIRECTORY}/{}.crt", self.name())
    }

    /// Who signs it.
    pub fn authority(self) -> AuthorityName {
        match self {
            Profile::KubeletClient
            | Profile::KubeletServer
            | Profile::KubeProxy
            | Profile::ApiServer
            | Profile::ApiServerKubeletClient
            | Profile::ControllerManager
            | Profile::Scheduler => AuthorityName::Kubernetes,
            Profile::ApiServerEtcdClient | Profile::EtcdServer | Profile::EtcdPeer => {
                AuthorityName::Etcd
            }
            Profile::FrontProxyClient => AuthorityName::FrontProxy,
        }
    }

    /// Whether it is shown to API servers and kubelets, as who comes to them.
    pub fn is_api_client(self) -> bool {
        match self {
            Profile::KubeletClient
            | Profile::KubeProxy
            | Profile::ApiServerKubeletClient
            | Profile::ControllerManager
            | Profile::Scheduler => true,
            Profile::KubeletServer
            | Profile::ApiServer
            | Profile::ApiServerEtcdClient
            | Profile::EtcdServer
            | Profile::EtcdPeer
            | Profile::FrontProxyClient => false,
        }
    }

    /// What the certificate of `machine` says.
    pub fn names(self, cluster: &ClusterFacts, machine: &MachineFacts) -> CertificateNames {
        let node = machine.node_name.as_str();
        let of_machine =
            |user| CertificateNames::member(user, &format!("{MACHINE_GROUP_PREFIX}{node}"));
        let localhost = || (vec!["localhost".to_owned()], vec![Ipv4Addr::LOCALHOST]);
        let own_and_localhost = || {
            (
                vec![node.to_owned(), "localhost".to_owned()],
                vec![machine.address, Ipv4Addr::LOCALHOST],
            )
        };
        match self {
            Profile::KubeletClient => {
                CertificateNames::member(&format!("system:node:{node}"), "system:nodes")
            }
            Profile::KubeletServer => CertificateNames::server(
                &format!("system:node:{node}"),
                vec![node.to_owned()],
                vec![machine.address],
            ),
            Profile::KubeProxy => of_machine("system:kube-proxy"),
            Profile::ApiServer => api_server(cluster, machine),
            Profile::ApiServerKubeletClient => of_machine(KUBELET_CALLER_USER),
            Profile::ApiServerEtcdClient => CertificateNames::client("windlass:apiserver"),
            Profile::EtcdServer => {
                let (dns_names, addresses) = own_and_localhost();
                CertificateNames::server(node, dns_names, addresses)
            }
            Profile::EtcdPeer => {
                let (dns_names, addresses) = own_and_localhost();
                CertificateNames::client(ETCD_PEER_NAME).serving(dns_names, addresses)
            }
            Profile::FrontProxyClient => CertificateNames::client(FRONT_PROXY_NAME),
            Profile::ControllerManager => {
                let (dns_names, addresses) = localhost();
                of_machine("system:kube-controller-manager").serving(dns_names, addresses)
            }
            Profile::Scheduler => {
                let (dns_names, addresses) = localhost();
                of_machine("system:kube-scheduler").serving(dns_names, addresses)
            }
        }
    }
}

fn api_server(cluster: &ClusterFacts, machine: &MachineFacts) -> CertificateNames {
    let mut dns_names: Vec<String> = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .map(str::to_owned)
        .into();
    dns_names.push(format!("kubernetes.default.svc.{CLUSTER_DOMAIN}"));
    dns_names.push("localhost".to_owned());
    dns_names.push(cluster.endpoint.name.clone());
    let mut addresses = vec![
        Ipv4Addr::LOCALHOST,
        cluster.api_service_address(),
        cluster.endpoint.address,
        machine.address,
    ];
    addresses.sort();
    addresses.dedup();
    CertificateNames::server("kube-apiserver", dns_names, addresses)
}
