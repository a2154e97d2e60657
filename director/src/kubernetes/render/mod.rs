//! What a machine is told: keys, configuration, disks, units and gates as agent steps.
//!
//! Every file is rendered from a typed value (`kubelet`, `kube_proxy`, `containerd`, `cni`, `etcd`,
//! `api_server`, `controllers`, `api_proxy`, [`kubeconfig`]). The units themselves are part of the image: each
//! reads `/etc/windlass/units/<unit>.env`, one variable `ARGS`, and runs the binary under
//! `/opt/windlass/components/<name>/current`.
//!
//! # Invariants
//! * Same input, same bytes; files are ordered by path.
//! * A unit's digest ([`windlass_common::step::UnitGoal::configuration`]) covers what it reads only at start: flags,
//!   configuration and authorities, and not leaf certificates, which all components read again by
//!   themselves. Issuing a certificate anew restarts nothing.
//! * A worker gets no control-plane file.
//!
//! # After a crash
//! No state; the same step is rendered again.
//!
//! # Not here
//! When a step is sent and what it waits for: the planner. Which certificate says what:
//! [`super::pki`].

mod api_proxy;
mod api_server;
mod cni;
mod containerd;
mod controllers;
mod etcd;
mod flags;
mod kube_proxy;
pub mod kubeconfig;
mod kubelet;
mod network;
mod self_fence;
mod services;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};

use windlass_common::cluster::ClusterSpec;
use windlass_common::error::ErrorClass;
use windlass_common::secret::SecretBytes;
use windlass_common::step::{
    ClientFiles, Configure, Disk, Etcd, EtcdAction, EtcdData, EtcdDataAction, EtcdPeer, Evict,
    Exec, FileContent, FileSpec, KeySpec, Keys,
};

use super::facts::{ClusterFacts, FactsError, MachineFacts, Role};
use super::pki::{
    AuthorityName, Certificates, ClusterPki, EncryptionKey, Profile, ServiceAccountKey,
};
use super::{API_PROXY_PORT, ETCD_CLIENT_PORT};

pub use self::flags::FlagsError;
pub(super) use self::kubelet::CONTROL_PLANE_TAINT;
pub use self::services::{
    API_UNITS, MEMBER_UNITS, Phase, control_plane_gate, gate, identity_gate, machine_gate,
    proxy_gate, restart_kubelet, service, stop_control_plane, stop_units,
};

/// Grows with every change of what is rendered from the same facts, so that machines that were configured
/// by an older director are seen to differ.
pub const REVISION: u32 = 4;
/// Where Kubernetes' configuration is on a machine.
pub const KUBERNETES_DIRECTORY: &str = "/etc/kubernetes";
/// Certificate of the `kubernetes` authority.
pub const KUBERNETES_CA_PATH: &str = "/etc/kubernetes/pki/ca.crt";
/// Certificate of the `etcd` authority.
pub const ETCD_CA_PATH: &str = "/etc/kubernetes/pki/etcd-ca.crt";
/// Certificates of the `etcd` authority that are refused, DER: read at each handshake. Where it is missing, members
/// refuse everybody.
pub const ETCD_CRL_PATH: &str = "/etc/kubernetes/pki/etcd.crl";
/// `AuthorizationConfiguration`: whom the API server refuses, whatever it is asked, and who decides about all others. Read
/// again when it changes. Where it is missing, API servers do not start.
pub const AUTHORIZATION_PATH: &str = "/etc/kubernetes/authorization.yaml";
/// Certificate of the `front-proxy` authority.
pub const FRONT_PROXY_CA_PATH: &str = "/etc/kubernetes/pki/front-proxy-ca.crt";
/// Verifies service account tokens.
pub const SERVICE_ACCOUNT_PUBLIC_PATH: &str = "/etc/kubernetes/pki/service-account.pub";
/// Signs service account tokens.
pub const SERVICE_ACCOUNT_KEY_PATH: &str = "/etc/kubernetes/pki/service-account.key";
/// Mount point of the persistent disk of a control-plane machine.
pub const ETCD_MOUNT_PATH: &str = "/var/lib/etcd";

/// The part of a cluster's PKI that machines need: certificates of the authorities, and for control
/// planes the shared keys. The authorities' keys are not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trust {
    /// Certificates of the `kubernetes` authorities that are trusted, PEM.
    pub kubernetes_ca: String,
    /// Certificates of the `etcd` authorities that are trusted, PEM.
    pub etcd_ca: String,
    /// Certificates of the `front-proxy` authorities that are trusted, PEM.
    pub front_proxy_ca: String,
    /// Key pair for service account tokens.
    pub service_account: ServiceAccountKey,
    /// Public keys that verify service account tokens, PEM.
    pub token_keys: String,
    /// Keys for encryption at rest.
    pub encryption: Vec<EncryptionKey>,
}

impl From<&ClusterPki> for Trust {
    fn from(pki: &ClusterPki) -> Self {
        Self {
            kubernetes_ca: pki.trusted(AuthorityName::Kubernetes),
            etcd_ca: pki.trusted(AuthorityName::Etcd),
            front_proxy_ca: pki.trusted(AuthorityName::FrontProxy),
            token_keys: pki.token_keys(),
            service_account: pki.service_account.clone(),
            encryption: pki.encryption.clone(),
        }
    }
}

/// Why a machine's configuration could not be rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RenderError {
    /// The facts make no cluster.
    #[error("machine {machine} cannot be configured")]
    Facts {
        /// The machine.
        machine: String,
        /// Every fault.
        #[source]
        source: FactsError,
    },
    /// The machine is not one of the cluster's.
    #[error("machine {machine} is not a machine of cluster {cluster}")]
    Stranger {
        /// The machine.
        machine: String,
        /// The cluster.
        cluster: String,
    },
    /// Certificates are not there.
    #[error(
        "machine {machine} has no certificate {missing:?}; issue them from its keys step first"
    )]
    Certificates {
        /// The machine.
        machine: String,
        /// The names.
        missing: Vec<&'static str>,
    },
    /// A flag cannot be written.
    #[error("flags of {unit} of machine {machine} cannot be written")]
    Flags {
        /// The machine.
        machine: String,
        /// The unit.
        unit: &'static str,
        /// Which flag.
        #[source]
        source: FlagsError,
    },
}

impl RenderError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            RenderError::Facts { source, .. } => source.class(),
            RenderError::Stranger { .. }
            | RenderError::Certificates { .. }
            | RenderError::Flags { .. } => ErrorClass::Bug,
        }
    }
}

/// The keys that a machine makes.
pub fn keys_step(machine: &MachineFacts) -> Keys {
    let key = |profile: &Profile| KeySpec {
        name: profile.name().to_owned(),
        path: profile.key_path(),
    };
    Keys {
        keys: Profile::of(&machine.role).iter().map(key).collect(),
    }
}

/// The persistent disk of a control-plane machine; workers have none.
pub fn disk_step(machine: &MachineFacts, device: &str) -> Option<Disk> {
    match machine.role {
        Role::ControlPlane => Some(Disk {
            device: device.to_owned(),
            mount_path: ETCD_MOUNT_PATH.to_owned(),
        }),
        Role::Worker { .. } => None,
    }
}

/// Grows the file system of a control-plane machine's data disk to the size of its device. Where the kernel lets the
/// machine do that while it is mounted, nothing stops. In a system container without `CAP_SYS_RESOURCE` it is unmounted
/// for it, and what holds the mount ends for that long: its member, and services with a mount namespace of their own,
/// where a mount that systemd has stopped stays. Asked again, also after it was cut off, it does what is left.
///
/// Its exit code is that of the program that failed, or 11 to 14: the mount has no name, could not be stopped, could
/// not be started, or the services could not.
pub fn grow_step(device: &str) -> Exec {
    let script = r#"
device=$1 path=$2
resize2fs "$device" && exit 0
mount=$(systemd-escape --path --suffix=mount "$path") || exit 11
units=
for unit in kube-apiserver kube-controller-manager kube-scheduler etcd api-proxy; do
  if systemctl is-active --quiet "$unit.service"; then units="$units $unit.service"; fi
done
for unit in $units; do systemctl stop "$unit"; done
systemctl stop "$mount" || exit 12
e2fsck -f -p "$device"; found=$?
# 1: mended what there was.
if [ "$found" -le 1 ]; then resize2fs "$device"; code=$?; else code=$found; fi
systemctl start "$mount" || exit 13
if [ -n "$units" ]; then systemctl start --no-block $units || exit 14; fi
exit "$code"
"#;
    let argv = ["/bin/sh", "-c", script, "grow", device, ETCD_MOUNT_PATH];
    Exec {
        argv: argv.map(str::to_owned).into(),
    }
}

/// An action on etcd through the member of the machine that is told, with the identity that its API server
/// has there.
pub fn etcd_step(action: EtcdAction) -> Etcd {
    let client = Profile::ApiServerEtcdClient;
    Etcd {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, ETCD_CLIENT_PORT)),
        ca_path: ETCD_CA_PATH.to_owned(),
        client: ClientFiles {
            certificate_path: client.certificate_path(),
            key_path: client.key_path(),
        },
        action,
    }
}

/// Acts on the data of a machine's own member, whether or not etcd answers.
pub fn etcd_data_step(action: EtcdDataAction) -> EtcdData {
    let Etcd {
        address,
        ca_path,
        client,
        ..
    } = etcd_step(EtcdAction::Report);
    EtcdData {
        address,
        ca_path,
        client,
        action,
    }
}

/// A machine's kubelet telling pods of its own node to leave, by the way that it has to the API. Nobody is named yet.
pub fn evict_step(cluster: &ClusterFacts, machine: &MachineFacts) -> Evict {
    let kubelet = Profile::KubeletClient;
    Evict {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, API_PROXY_PORT)),
        server_name: cluster.endpoint.name.clone(),
        ca_path: KUBERNETES_CA_PATH.to_owned(),
        client: ClientFiles {
            certificate_path: kubelet.certificate_path(),
            key_path: kubelet.key_path(),
        },
        node: machine.node_name.to_string(),
        pods: Vec::new(),
    }
}

/// Bytes at which the members of a cluster's etcd take no more writes.
pub fn etcd_quota_bytes(spec: &ClusterSpec) -> u64 {
    etcd::quota_bytes(spec.control_plane.size.disk_mib)
}

/// A machine's member as other members know it.
pub fn etcd_peer(machine: &MachineFacts) -> EtcdPeer {
    etcd::peer(machine)
}

/// Everything that is written on `machine`.
///
/// # Errors
/// [`RenderError`]; nothing may be sent then.
pub fn configure_step(
    cluster: &ClusterFacts,
    machine: &MachineFacts,
    trust: &Trust,
    certificates: &Certificates,
) -> Result<Configure, RenderError> {
    check(cluster, machine, certificates)?;
    let mut files = Files::default();
    files.certificates(machine, certificates);
    files.text(KUBERNETES_CA_PATH, trust.kubernetes_ca.clone());
    node_files(cluster, machine, &mut files)?;
    match machine.role {
        Role::Worker { .. } => files.text(
            windlass_common::fence::PATH,
            self_fence::orders(cluster, machine),
        ),
        Role::ControlPlane => control_plane_files(cluster, machine, trust, &mut files)?,
    }
    Ok(Configure {
        files: files.sorted(),
        routes: Some(network::routes(cluster, machine)),
        sysctls: network::sysctls(),
        ..Configure::default()
    })
}

/// The certificates of `machine` and nothing else.
pub fn certificates_step(machine: &MachineFacts, certificates: &Certificates) -> Configure {
    let mut files = Files::default();
    files.certificates(machine, certificates);
    Configure {
        files: files.sorted(),
        ..Configure::default()
    }
}

/// What a control-plane machine's member of etcd refuses, DER, and the clients that its API server refuses, each by the
/// SHA-256 of its certificate; nothing else. Not part of [`configure_step`], since it changes on its own, and nothing is
/// restarted for it.
pub fn revocations_step(list: Vec<u8>, clients: &BTreeSet<&str>) -> Configure {
    let mut files = Files::default();
    files.text(AUTHORIZATION_PATH, api_server::authorization(clients));
    // Not secret, but no text: only secrets are bytes in a step that agents of all releases know.
    let list = FileContent::Secret(SecretBytes::new(list));
    files.push(ETCD_CRL_PATH.to_owned(), 0o644, list);
    Configure {
        files: files.sorted(),
        ..Configure::default()
    }
}

fn check(
    cluster: &ClusterFacts,
    machine: &MachineFacts,
    certificates: &Certificates,
) -> Result<(), RenderError> {
    let name = || machine.name.to_string();
    cluster.validate().map_err(|source| RenderError::Facts {
        machine: name(),
        source,
    })?;
    if !cluster.machines.contains(machine) {
        let cluster = cluster.spec.name.to_string();
        return Err(RenderError::Stranger {
            machine: name(),
            cluster,
        });
    }
    let profiles = Profile::of(&machine.role).iter().map(|p| p.name());
    let missing: Vec<_> = profiles
        .filter(|p| !certificates.contains_key(*p))
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(RenderError::Certificates {
            machine: name(),
            missing,
        })
    }
}

fn node_files(
    cluster: &ClusterFacts,
    machine: &MachineFacts,
    files: &mut Files,
) -> Result<(), RenderError> {
    files.text(
        containerd::CONFIG_PATH,
        containerd::config(cluster, machine),
    );
    files.env(machine, "containerd", containerd::flags().env())?;
    files.text(api_proxy::CONFIG_PATH, api_proxy::config(cluster, machine));
    files.text(cni::CONFIG_PATH, cni::config(machine));
    files.text(network::RULES_PATH, network::rules(cluster, machine));
    files.text(network::UNIT_PATH, network::UNIT.to_owned());
    files.text(kubelet::CONFIG_PATH, kubelet::config(cluster, machine));
    files.text(
        kubelet::KUBECONFIG_PATH,
        kubeconfig::of_component(
            cluster,
            &machine.node_name.to_string(),
            Profile::KubeletClient,
        ),
    );
    files.env(machine, "kubelet", kubelet::flags(machine).env())?;
    files.text(
        kube_proxy::CONFIG_PATH,
        kube_proxy::config(cluster, machine),
    );
    files.text(
        kube_proxy::KUBECONFIG_PATH,
        kubeconfig::of_component(cluster, "kube-proxy", Profile::KubeProxy),
    );
    files.env(machine, "kube-proxy", kube_proxy::flags().env())
}

fn control_plane_files(
    cluster: &ClusterFacts,
    machine: &MachineFacts,
    trust: &Trust,
    files: &mut Files,
) -> Result<(), RenderError> {
    files.text(ETCD_CA_PATH, trust.etcd_ca.clone());
    files.text(FRONT_PROXY_CA_PATH, trust.front_proxy_ca.clone());
    files.text(SERVICE_ACCOUNT_PUBLIC_PATH, trust.token_keys.clone());
    files.secret(
        SERVICE_ACCOUNT_KEY_PATH,
        trust.service_account.private_pem.expose(),
    );
    files.env(machine, "etcd", etcd::flags(cluster, machine).env())?;
    files.secret(
        api_server::ENCRYPTION_PATH,
        &api_server::encryption(&trust.encryption),
    );
    files.text(api_server::AUDIT_POLICY_PATH, api_server::audit_policy());
    files.text(
        api_server::AUTHENTICATION_PATH,
        api_server::authentication(),
    );
    files.text(api_server::NOBODY_PATH, api_server::nobody());
    files.env(
        machine,
        "kube-apiserver",
        api_server::flags(cluster, machine).env(),
    )?;
    files.text(
        controllers::CONTROLLER_MANAGER_KUBECONFIG_PATH,
        kubeconfig::of_component(
            cluster,
            "kube-controller-manager",
            Profile::ControllerManager,
        ),
    );
    let flags = controllers::controller_manager(cluster, machine);
    files.env(machine, "kube-controller-manager", flags.env())?;
    files.text(
        controllers::SCHEDULER_KUBECONFIG_PATH,
        kubeconfig::of_component(cluster, "kube-scheduler", Profile::Scheduler),
    );
    files.env(
        machine,
        "kube-scheduler",
        controllers::scheduler(cluster, machine).env(),
    )
}

/// Where the versions of components are on a machine: a directory for each component, with one for each version.
pub const COMPONENTS_DIRECTORY: &str = "/opt/windlass/components";

/// Path of the link to the version of a component that runs.
pub fn component_link(component: &str) -> String {
    format!("{COMPONENTS_DIRECTORY}/{component}/current")
}

/// Path of the file with the flags of a unit, named without suffix.
pub fn env_path(unit: &str) -> String {
    format!("/etc/windlass/units/{unit}.env")
}

#[derive(Default)]
struct Files(Vec<FileSpec>);

impl Files {
    fn text(&mut self, path: impl Into<String>, text: String) {
        self.push(path.into(), 0o644, FileContent::Text(text));
    }

    /// A certificate that is not there is not written over.
    fn certificates(&mut self, machine: &MachineFacts, certificates: &Certificates) {
        for profile in Profile::of(&machine.role) {
            if let Some(pem) = certificates.get(profile.name()) {
                self.text(profile.certificate_path(), pem.clone());
            }
        }
    }

    fn secret(&mut self, path: &str, text: &str) {
        let bytes = SecretBytes::new(text.as_bytes().to_vec());
        self.push(path.to_owned(), 0o600, FileContent::Secret(bytes));
    }

    fn env(
        &mut self,
        machine: &MachineFacts,
        unit: &'static str,
        text: Result<String, FlagsError>,
    ) -> Result<(), RenderError> {
        let machine = machine.name.to_string();
        let text = text.map_err(|source| RenderError::Flags {
            machine,
            unit,
            source,
        })?;
        self.text(env_path(unit), text);
        Ok(())
    }

    fn push(&mut self, path: String, mode: u32, content: FileContent) {
        self.0.push(FileSpec {
            path,
            mode,
            uid: 0,
            gid: 0,
            content,
        });
    }

    fn sorted(mut self) -> Vec<FileSpec> {
        self.0.sort_by(|a, b| a.path.cmp(&b.path));
        self.0
    }
}

/// YAML of a plain value.
fn yaml(value: &impl serde::Serialize) -> String {
    // Structs of strings, numbers, lists and string-keyed maps: nothing that YAML cannot hold.
    serde_saphyr::to_string(value).expect("plain values serialise to YAML")
}

#[cfg(test)]
mod tests;
