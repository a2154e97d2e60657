//! Units of a machine, in phases, and what shows that a phase is done.
//!
//! Phases of one machine depend on one another as [`Phase::ALL`] orders them, with one exception:
//! [`Phase::Runtime`] and [`Phase::Node`] need no control plane *to start*.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use windlass_common::id::{Digest, Hasher};
use windlass_common::step::{
    Check, ClientFiles, Configure, FileContent, FileSpec, Gate, Service, UnitGoal, UnitState,
};

use super::super::facts::{ClusterFacts, MachineFacts, Role};
use super::super::pki::Profile;
use super::super::{
    API_PORT, API_PROXY_PORT, CONTROLLER_MANAGER_PORT, ETCD_CLIENT_PORT, KUBE_PROXY_HEALTH_PORT,
    KUBE_PROXY_METRICS_PORT, KUBELET_HEALTH_PORT, SCHEDULER_PORT,
};
use super::{
    ETCD_CA_PATH, FRONT_PROXY_CA_PATH, KUBERNETES_CA_PATH, SERVICE_ACCOUNT_KEY_PATH,
    SERVICE_ACCOUNT_PUBLIC_PATH, api_server, component_link, containerd, controllers, env_path,
    kube_proxy, kubelet, network,
};

/// Pause between two looks of a gate. Components come up within seconds, and a look costs a TLS
/// handshake of about a millisecond: 100 ms keeps the wait short and the load below one percent.
const GATE_INTERVAL_MS: u32 = 100;

/// A group of units that starts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// containerd, the machine's network rules and its way to the API servers; needs nothing.
    Runtime,
    /// etcd; with several members its gate opens when a quorum is there.
    Etcd,
    /// The API server.
    ApiServer,
    /// Controller manager and scheduler, which reach the API through their machine's proxy.
    Controllers,
    /// kubelet and kube-proxy, which reach the API through their machine's proxy.
    Node,
}

impl Phase {
    /// All phases in the order of a control-plane machine.
    pub const ALL: [Phase; 5] = [
        Phase::Runtime,
        Phase::Etcd,
        Phase::ApiServer,
        Phase::Controllers,
        Phase::Node,
    ];

    /// The phases of a machine of this role.
    pub fn of(role: &Role) -> &'static [Phase] {
        match role {
            Role::ControlPlane => &Phase::ALL,
            Role::Worker { .. } => &[Phase::Runtime, Phase::Node],
        }
    }

    /// Name for steps and logs.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Runtime => "runtime",
            Phase::Etcd => "etcd",
            Phase::ApiServer => "api-server",
            Phase::Controllers => "controllers",
            Phase::Node => "node",
        }
    }
}

/// The units of a phase, bound to what `configure` writes.
///
/// The goals do not wait: [`gate`] says when the phase is done.
pub fn service(phase: Phase, configure: &Configure) -> Service {
    let unit = |name: &str, reads: &[&str]| UnitGoal {
        unit: format!("{name}.service"),
        state: UnitState::Active,
        enabled: true,
        configuration: Some(digest(configure, name, reads)),
        wait: false,
    };
    let units = match phase {
        Phase::Runtime => vec![
            unit(
                "windlass-network",
                &[network::RULES_PATH, network::UNIT_PATH],
            ),
            unit("containerd", &[containerd::CONFIG_PATH]),
            // Reads its configuration again by itself, so nothing restarts it.
            unit("api-proxy", &[KUBERNETES_CA_PATH]),
        ],
        Phase::Etcd => vec![unit("etcd", &[ETCD_CA_PATH])],
        Phase::ApiServer => vec![unit(
            "kube-apiserver",
            &[
                KUBERNETES_CA_PATH,
                ETCD_CA_PATH,
                FRONT_PROXY_CA_PATH,
                SERVICE_ACCOUNT_PUBLIC_PATH,
                SERVICE_ACCOUNT_KEY_PATH,
                api_server::ENCRYPTION_PATH,
                api_server::AUDIT_POLICY_PATH,
                api_server::AUTHENTICATION_PATH,
            ],
        )],
        Phase::Controllers => vec![
            unit(
                "kube-controller-manager",
                &[
                    KUBERNETES_CA_PATH,
                    FRONT_PROXY_CA_PATH,
                    SERVICE_ACCOUNT_KEY_PATH,
                    controllers::CONTROLLER_MANAGER_KUBECONFIG_PATH,
                ],
            ),
            unit(
                "kube-scheduler",
                &[
                    KUBERNETES_CA_PATH,
                    FRONT_PROXY_CA_PATH,
                    controllers::SCHEDULER_KUBECONFIG_PATH,
                ],
            ),
        ],
        Phase::Node => vec![
            unit(
                "kubelet",
                &[
                    KUBERNETES_CA_PATH,
                    kubelet::CONFIG_PATH,
                    kubelet::KUBECONFIG_PATH,
                ],
            ),
            unit(
                "kube-proxy",
                &[
                    KUBERNETES_CA_PATH,
                    kube_proxy::CONFIG_PATH,
                    kube_proxy::KUBECONFIG_PATH,
                ],
            ),
        ],
    };
    Service { units }
}

/// The components whose programs a unit runs. A kubelet starts again with what starts pods: what it says of its node
/// then is said with that.
fn components(unit: &str) -> &[&str] {
    match unit {
        "kubelet" => &["kubelet", "containerd", "runc", "cni-plugins"],
        "containerd" => &["containerd"],
        "kube-proxy" => &["kube-proxy"],
        "etcd" => &["etcd"],
        "kube-apiserver" => &["kube-apiserver"],
        "kube-controller-manager" => &["kube-controller-manager"],
        "kube-scheduler" => &["kube-scheduler"],
        _ => &[],
    }
}

/// Digest over the flags of `unit`, the files it reads at start, those that exist, and the components that it runs
/// otherwise than its machine was made with.
fn digest(configure: &Configure, unit: &str, reads: &[&str]) -> Digest {
    let flags = env_path(unit);
    let mut hasher = Hasher::default();
    let read = |file: &&FileSpec| file.path == flags || reads.contains(&file.path.as_str());
    for file in configure.files.iter().filter(read) {
        let content = match &file.content {
            FileContent::Text(text) => Digest::of(text.as_bytes()),
            FileContent::Secret(bytes) => Digest::of(bytes.expose()),
            FileContent::Artifact(digest) => *digest,
        };
        hasher.update(file.path.as_bytes());
        hasher.update(&[0]);
        hasher.update(content.as_bytes());
    }
    for component in components(unit) {
        let path = component_link(component);
        if let Some(version) = configure.links.get(&path) {
            hasher.update(path.as_bytes());
            hasher.update(&[0]);
            hasher.update(version.as_bytes());
        }
    }
    hasher.finish()
}

/// What shows that a phase is done on a machine.
pub fn gate(phase: Phase) -> Gate {
    let active = |name: &str| Check::UnitActive {
        unit: format!("{name}.service"),
    };
    let open = |port| Check::TcpOpen {
        address: loopback(port),
    };
    let checks = match phase {
        Phase::Runtime => vec![
            active("windlass-network"),
            active("containerd"),
            active("api-proxy"),
        ],
        Phase::Etcd => vec![Check::Https {
            address: loopback(ETCD_CLIENT_PORT),
            server_name: "localhost".to_owned(),
            // Includes a linearizable read: true only with a quorum.
            path: "/readyz".to_owned(),
            ca_path: ETCD_CA_PATH.to_owned(),
            client: Some(client(Profile::ApiServerEtcdClient)),
        }],
        Phase::ApiServer => vec![https(API_PORT, "/readyz", Some(Profile::KubeletClient))],
        Phase::Controllers => vec![
            https(
                CONTROLLER_MANAGER_PORT,
                "/healthz",
                Some(Profile::ControllerManager),
            ),
            https(SCHEDULER_PORT, "/healthz", Some(Profile::Scheduler)),
        ],
        // The kubelet's own API would ask the API server whether this machine may look at its health;
        // its health port on loopback asks nobody, and opens when the kubelet's loops run. Whether
        // the node is Ready is for the API to say.
        Phase::Node => vec![
            active("kubelet"),
            open(KUBELET_HEALTH_PORT),
            active("kube-proxy"),
            open(KUBE_PROXY_METRICS_PORT),
        ],
    };
    Gate {
        checks,
        interval_ms: GATE_INTERVAL_MS,
    }
}

/// What shows that a control-plane machine is in service: its own member of etcd has caught up, and its
/// API server is ready.
pub fn control_plane_gate() -> Gate {
    let mut gate = gate(Phase::Etcd);
    gate.checks.extend(self::gate(Phase::ApiServer).checks);
    gate
}

/// What shows that all that runs on a machine is healthy.
pub fn machine_gate(role: &Role) -> Gate {
    let phases = Phase::of(role).iter();
    Gate {
        checks: phases.flat_map(|phase| gate(*phase).checks).collect(),
        interval_ms: GATE_INTERVAL_MS,
    }
}

/// What shows that load balancers outside find kube-proxy again: it serves its health.
pub fn proxy_gate() -> Gate {
    Gate {
        checks: vec![
            Check::UnitActive {
                unit: "kube-proxy.service".to_owned(),
            },
            Check::TcpOpen {
                address: loopback(KUBE_PROXY_HEALTH_PORT),
            },
        ],
        interval_ms: GATE_INTERVAL_MS,
    }
}

/// What shows that a machine's certificates are accepted: its node's identity by an API server, through the
/// proxy on the machine, and on a control plane all that its components show one another.
pub fn identity_gate(cluster: &ClusterFacts, machine: &MachineFacts) -> Gate {
    let through_proxy = |profile| Check::Https {
        address: loopback(API_PROXY_PORT),
        server_name: cluster.endpoint.name.clone(),
        path: "/readyz".to_owned(),
        ca_path: KUBERNETES_CA_PATH.to_owned(),
        client: Some(client(profile)),
    };
    let mut gate = match machine.role {
        Role::ControlPlane => {
            let mut gate = control_plane_gate();
            gate.checks.extend(self::gate(Phase::Controllers).checks);
            gate
        }
        Role::Worker { .. } => Gate {
            checks: Vec::new(),
            interval_ms: GATE_INTERVAL_MS,
        },
    };
    for profile in [Profile::KubeletClient, Profile::KubeProxy] {
        gate.checks.push(through_proxy(profile));
    }
    gate
}

/// Stops a control plane so that nobody notices: the API server ends its requests and says goodbye, the
/// controllers give up their leases, and etcd hands over its leadership last.
pub fn stop_control_plane() -> Service {
    let units = API_UNITS.iter().chain(&MEMBER_UNITS);
    Service {
        units: units.map(|name| stopped(name, true)).collect(),
    }
}

/// API server and controllers, in the order in which they end in peace.
pub const API_UNITS: [&str; 3] = [
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
];
/// The member of etcd.
pub const MEMBER_UNITS: [&str; 1] = ["etcd"];

/// Stops units also for the machine's next boot: they start when they are told to, and not before.
pub fn stop_units(units: &[&str]) -> Service {
    Service {
        units: units.iter().map(|name| stopped(name, false)).collect(),
    }
}

fn stopped(name: &str, enabled: bool) -> UnitGoal {
    UnitGoal {
        unit: format!("{name}.service"),
        state: UnitState::Inactive,
        enabled,
        configuration: None,
        wait: true,
    }
}

/// Starts the kubelet again, as it is configured; its pods go on.
pub fn restart_kubelet(configure: &Configure) -> Service {
    let kubelet = |goal: &UnitGoal| goal.unit == "kubelet.service";
    let starts = service(Phase::Node, configure)
        .units
        .into_iter()
        .filter(kubelet);
    let starts = starts.map(|goal| UnitGoal { wait: true, ..goal });
    Service {
        units: [stopped("kubelet", true)]
            .into_iter()
            .chain(starts)
            .collect(),
    }
}

fn https(port: u16, path: &str, profile: Option<Profile>) -> Check {
    Check::Https {
        address: loopback(port),
        server_name: "localhost".to_owned(),
        path: path.to_owned(),
        ca_path: KUBERNETES_CA_PATH.to_owned(),
        client: profile.map(client),
    }
}

fn client(profile: Profile) -> ClientFiles {
    ClientFiles {
        certificate_path: profile.certificate_path(),
        key_path: profile.key_path(),
    }
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}
