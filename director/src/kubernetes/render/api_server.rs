//! The API server: flags, audit policy, encryption at rest, anonymous access, whom it refuses.

use std::collections::BTreeSet;

use serde::Serialize;

use super::super::facts::{ClusterFacts, MachineFacts};
use super::super::pki::{EncryptionKey, NO_FRONT_PROXY, Profile};
use super::super::{API_PORT, CLUSTER_DOMAIN, ETCD_CLIENT_PORT};
use super::flags::{Flags, emulation};
use super::kubeconfig::{Credentials, Kubeconfig, Server, Source};
use super::{
    AUTHORIZATION_PATH, ETCD_CA_PATH, FRONT_PROXY_CA_PATH, KUBERNETES_CA_PATH,
    SERVICE_ACCOUNT_KEY_PATH, SERVICE_ACCOUNT_PUBLIC_PATH, yaml,
};

/// `EncryptionConfiguration`; holds the key.
pub(super) const ENCRYPTION_PATH: &str = "/etc/kubernetes/encryption.yaml";
/// `Policy` of the audit log.
pub(super) const AUDIT_POLICY_PATH: &str = "/etc/kubernetes/audit-policy.yaml";
/// `AuthenticationConfiguration`.
pub(super) const AUTHENTICATION_PATH: &str = "/etc/kubernetes/authentication.yaml";
/// Kubeconfig that leads to nobody.
pub(super) const NOBODY_PATH: &str = "/etc/kubernetes/nobody.kubeconfig";

/// How long an API server serves on after it was told to end: it is out of the endpoint by then, where it is one of
/// several or is to become it, and takes itself out of the Service `kubernetes` at once, but kube-proxies have to hear
/// of it, and clients to come to the end of their connections. Its unit gives it 10 s in all.
const SHUTDOWN_DELAY: &str = "5s";

const SHA256_BYTES: usize = 32;

const AUDIT_LOG_PATH: &str = "/var/log/kubernetes/audit.log";

/// Flags, the same names for every minor in [`super::super::KUBERNETES_MINORS`].
pub(super) fn flags(cluster: &ClusterFacts, machine: &MachineFacts) -> Flags {
    let flags = Flags::default()
        .set("bind-address", "0.0.0.0")
        .set("secure-port", API_PORT)
        .set("advertise-address", machine.address)
        .set("allow-privileged", true)
        .set("profiling", false)
        // Its own machine's member alone. A client of several would send a third of all requests to a member that
        // hangs, and lose those under way when any of them is restarted; an API server whose member is away says
        // that it is not ready, and clients go to another.
        .set(
            "etcd-servers",
            format!("https://127.0.0.1:{ETCD_CLIENT_PORT}"),
        )
        .set("etcd-cafile", ETCD_CA_PATH)
        .set(
            "etcd-certfile",
            Profile::ApiServerEtcdClient.certificate_path(),
        )
        .set("etcd-keyfile", Profile::ApiServerEtcdClient.key_path())
        .set("encryption-provider-config", ENCRYPTION_PATH)
        .set(
            "service-cluster-ip-range",
            cluster.spec.network.service_cidr,
        )
        .set("authorization-config", AUTHORIZATION_PATH)
        .set("enable-admission-plugins", "NodeRestriction")
        .set("audit-policy-file", AUDIT_POLICY_PATH)
        .set("audit-log-path", AUDIT_LOG_PATH)
        // 10 files of 50 MB: the disk that a log may take is known. 30 days at most.
        .set("audit-log-maxsize", 50)
        .set("audit-log-maxbackup", 10)
        .set("audit-log-maxage", 30);
    let flags = match machine.emulates {
        // Its machine's kubelet and its controllers are of its own minor, and may ask for an API by the version that
        // it has there: the newer versions of APIs that the emulated minor serves are served, too.
        Some(_) => emulation(flags, machine).set("emulation-forward-compatible", true),
        None => flags,
    };
    trust_flags(flags, cluster)
}

fn trust_flags(flags: Flags, cluster: &ClusterFacts) -> Flags {
    let flags = flags
        .set("tls-cert-file", Profile::ApiServer.certificate_path())
        .set("tls-private-key-file", Profile::ApiServer.key_path())
        .set("tls-min-version", "VersionTLS13")
        .set("client-ca-file", KUBERNETES_CA_PATH)
        .set("authentication-config", AUTHENTICATION_PATH)
        .set(
            "service-account-issuer",
            format!("https://kubernetes.default.svc.{CLUSTER_DOMAIN}"),
        )
        .set("service-account-key-file", SERVICE_ACCOUNT_PUBLIC_PATH)
        .set("service-account-signing-key-file", SERVICE_ACCOUNT_KEY_PATH)
        .set("kubelet-certificate-authority", KUBERNETES_CA_PATH)
        .set(
            "kubelet-client-certificate",
            Profile::ApiServerKubeletClient.certificate_path(),
        )
        .set(
            "kubelet-client-key",
            Profile::ApiServerKubeletClient.key_path(),
        )
        // The one address that a kubelet's certificate is sure to carry.
        .set("kubelet-preferred-address-types", "InternalIP")
        .set("requestheader-client-ca-file", FRONT_PROXY_CA_PATH)
        .set("requestheader-allowed-names", NO_FRONT_PROXY)
        .set("requestheader-username-headers", "X-Remote-User")
        .set("requestheader-group-headers", "X-Remote-Group")
        .set("requestheader-extra-headers-prefix", "X-Remote-Extra-")
        .set(
            "proxy-client-cert-file",
            Profile::FrontProxyClient.certificate_path(),
        )
        .set(
            "proxy-client-key-file",
            Profile::FrontProxyClient.key_path(),
        );
    let flags = flags.set("shutdown-delay-duration", SHUTDOWN_DELAY);
    if cluster.control_planes().len() > 1 {
        // Long-lived connections spread again after a restart behind the endpoint.
        flags.set("goaway-chance", "0.001")
    } else {
        flags
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EncryptionConfiguration<'a> {
    api_version: &'static str,
    kind: &'static str,
    resources: [EncryptedResources<'a>; 1],
}

#[derive(Serialize)]
struct EncryptedResources<'a> {
    resources: [&'static str; 1],
    providers: (Secretbox<'a>, Identity),
}

/// XSalsa20 and Poly1305: of the providers without an outside key service the one that Kubernetes
/// calls strong. `aescbc` is open to padding oracles, `aesgcm` must rotate its key every 200 000
/// writes.
#[derive(Serialize)]
struct Secretbox<'a> {
    secretbox: Keys<'a>,
}

#[derive(Serialize)]
struct Keys<'a> {
    keys: Vec<Key<'a>>,
}

#[derive(Serialize)]
struct Key<'a> {
    name: &'a str,
    secret: &'a str,
}

impl<'a> From<&'a EncryptionKey> for Key<'a> {
    fn from(key: &'a EncryptionKey) -> Self {
        Self {
            name: &key.name,
            secret: key.secret.expose(),
        }
    }
}

/// Reads what was written before encryption was on.
#[derive(Serialize)]
struct Identity {
    identity: Empty,
}

#[derive(Serialize)]
struct Empty {}

/// `EncryptionConfiguration`; secret.
pub(super) fn encryption(keys: &[EncryptionKey]) -> String {
    yaml(&EncryptionConfiguration {
        api_version: "apiserver.config.k8s.io/v1",
        kind: "EncryptionConfiguration",
        resources: [EncryptedResources {
            resources: ["secrets"],
            providers: (
                Secretbox {
                    secretbox: Keys {
                        keys: keys.iter().map(Key::from).collect(),
                    },
                },
                Identity { identity: Empty {} },
            ),
        }],
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AuthenticationConfiguration {
    api_version: &'static str,
    kind: &'static str,
    anonymous: Anonymous,
}

#[derive(Serialize)]
struct Anonymous {
    enabled: bool,
    conditions: Vec<Condition>,
}

#[derive(Serialize)]
struct Condition {
    path: &'static str,
}

/// `AuthenticationConfiguration`: without credentials only the health paths answer, which load
/// balancers and the agent's gates ask.
pub(super) fn authentication() -> String {
    let paths = ["/healthz", "/livez", "/readyz"];
    yaml(&AuthenticationConfiguration {
        api_version: "apiserver.config.k8s.io/v1",
        kind: "AuthenticationConfiguration",
        anonymous: Anonymous {
            enabled: true,
            conditions: paths.map(|path| Condition { path }).into(),
        },
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AuthorizationConfiguration {
    api_version: &'static str,
    kind: &'static str,
    authorizers: Vec<Authorizer>,
}

#[derive(Serialize)]
struct Authorizer {
    r#type: &'static str,
    name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    webhook: Option<Webhook>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Webhook {
    timeout: &'static str,
    subject_access_review_version: &'static str,
    match_condition_subject_access_review_version: &'static str,
    failure_policy: &'static str,
    connection_info: ConnectionInfo,
    match_conditions: [MatchCondition; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionInfo {
    r#type: &'static str,
    kube_config_file: &'static str,
}

#[derive(Serialize)]
struct MatchCondition {
    expression: String,
}

/// `AuthorizationConfiguration`: who comes with one of these certificates (SHA-256, hex) is denied whatever it asks; about
/// all others Node and RBAC decide, as ever. Denied is by a webhook that nobody serves, that is asked about these alone,
/// and whose failure denies: no other authorizer denies some. Kubelets ask API servers with the certificate's
/// fingerprint, and so refuse the same.
pub(super) fn authorization(clients: &BTreeSet<&str>) -> String {
    let plain = |r#type, name| Authorizer {
        r#type,
        name,
        webhook: None,
    };
    let gone = (!clients.is_empty()).then(|| Authorizer {
        r#type: "Webhook",
        name: "gone-machines",
        webhook: Some(Webhook {
            timeout: "1s",
            subject_access_review_version: "v1",
            match_condition_subject_access_review_version: "v1",
            failure_policy: "Deny",
            connection_info: ConnectionInfo {
                r#type: "KubeConfigFile",
                kube_config_file: NOBODY_PATH,
            },
            match_conditions: [MatchCondition {
                expression: has_one_of(clients),
            }],
        }),
    });
    let rest = [plain("Node", "node"), plain("RBAC", "rbac")];
    yaml(&AuthorizationConfiguration {
        api_version: "apiserver.config.k8s.io/v1",
        kind: "AuthorizationConfiguration",
        authorizers: gone.into_iter().chain(rest).collect(),
    })
}

/// Whether a request comes with one of these certificates, in CEL. An evaluation that fails denies, so none does, whatever
/// others write there who are no certificate. 64 bits of each: nobody chooses them, and the expression may not be long.
fn has_one_of(clients: &BTreeSet<&str>) -> String {
    const KEY: &str = "authentication.kubernetes.io/credential-id";
    const PREFIX: &str = "X509SHA256=";
    const DIGITS: usize = 16;
    let (start, end, whole) = (
        PREFIX.len(),
        PREFIX.len() + DIGITS,
        PREFIX.len() + 2 * SHA256_BYTES,
    );
    let list: Vec<String> = clients
        .iter()
        .map(|client| format!("'{}'", client.get(..DIGITS).unwrap_or(client)))
        .collect();
    format!(
        "'{KEY}' in request.extra && request.extra['{KEY}'].exists(id, id.startsWith('{PREFIX}') \
         && size(id) == {whole} && id.substring({start}, {end}) in [{}])",
        list.join(",")
    )
}

/// Kubeconfig of the webhook that denies: the first port, which nothing serves. A client that is denied is shown the URL.
pub(super) fn nobody() -> String {
    Kubeconfig {
        cluster: "nobody",
        user: "nobody",
        server: Server::Url(
            "https://127.0.0.1:1/this-machine-was-replaced-switch-it-off".to_owned(),
        ),
        authority: Source::Path(KUBERNETES_CA_PATH.to_owned()),
        credentials: Credentials::Nobody,
    }
    .render()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy {
    api_version: &'static str,
    kind: &'static str,
    omit_stages: [&'static str; 1],
    rules: Vec<Rule>,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct Rule {
    level: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    users: Vec<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    user_groups: Vec<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    verbs: Vec<&'static str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    resources: Vec<GroupResources>,
    #[serde(rename = "nonResourceURLs", skip_serializing_if = "Vec::is_empty")]
    non_resource_urls: Vec<&'static str>,
}

#[derive(Serialize)]
struct GroupResources {
    group: &'static str,
    resources: Vec<&'static str>,
}

fn resources(group: &'static str, resources: &[&'static str]) -> GroupResources {
    GroupResources {
        group,
        resources: resources.to_vec(),
    }
}

/// `Policy`: who did what to which object; bodies only where rights change, never of secrets; none of
/// the chatter that components make by themselves. The first rule that matches decides.
pub(super) fn audit_policy() -> String {
    let read = vec!["get", "list", "watch"];
    let rules = vec![
        Rule {
            level: "None",
            non_resource_urls: vec!["/healthz*", "/livez*", "/readyz*", "/version", "/openapi/*"],
            ..Rule::default()
        },
        Rule {
            level: "None",
            resources: vec![
                resources("coordination.k8s.io", &["leases"]),
                resources("", &["events"]),
                resources("events.k8s.io", &["events"]),
            ],
            ..Rule::default()
        },
        Rule {
            level: "None",
            user_groups: vec!["system:nodes"],
            verbs: read.clone(),
            resources: vec![resources(
                "",
                &["nodes", "nodes/status", "pods", "services"],
            )],
            ..Rule::default()
        },
        Rule {
            level: "None",
            users: vec![
                "system:kube-proxy",
                "system:kube-scheduler",
                "system:apiserver",
            ],
            verbs: read.clone(),
            ..Rule::default()
        },
        Rule {
            level: "Metadata",
            resources: vec![
                resources("", &["secrets", "configmaps", "serviceaccounts/token"]),
                resources("authentication.k8s.io", &["tokenreviews"]),
            ],
            ..Rule::default()
        },
        Rule {
            level: "RequestResponse",
            verbs: vec!["create", "update", "patch", "delete", "deletecollection"],
            resources: vec![
                resources("rbac.authorization.k8s.io", &[]),
                resources("admissionregistration.k8s.io", &[]),
            ],
            ..Rule::default()
        },
        Rule {
            level: "Metadata",
            ..Rule::default()
        },
    ];
    yaml(&Policy {
        api_version: "audit.k8s.io/v1",
        kind: "Policy",
        omit_stages: ["RequestReceived"],
        rules,
    })
}
