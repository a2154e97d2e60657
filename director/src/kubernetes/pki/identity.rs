//! Client identities whose keys the director makes: its own, and those it hands to operators.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use windlass_common::id::ClusterName;
use windlass_common::secret::Secret;

use super::super::facts::Endpoint;
use super::super::render::kubeconfig::{Credentials, Kubeconfig, Server, Source};
use super::profile::{AuthorityName, CertificateNames};
use super::{
    BOOTSTRAP_CERTIFICATE_LIFE, CLUSTER_ADMINS_GROUP, ClusterPki, DIRECTOR_CERTIFICATE_LIFE,
    DIRECTOR_USER, OPERATOR_CERTIFICATE_LIFE, OPERATOR_NAME_MAX, PROXIED_CERTIFICATE_LIFE,
    PkiError, REWRITER_CERTIFICATE_LIFE, REWRITER_USER,
};

/// A client certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    /// Certificate chain, PEM.
    pub certificate_pem: String,
    /// Private key, PKCS#8 PEM.
    pub key_pem: Secret,
    /// When the certificate expires; a client made with it has to be replaced before.
    pub expires_at: Timestamp,
}

/// The director's own identity, [`DIRECTOR_USER`] with the rights of its ClusterRole.
///
/// # Errors
/// [`PkiError::Make`].
pub fn director_identity(
    pki: &ClusterPki,
    cluster: &ClusterName,
    now: Timestamp,
) -> Result<ClientIdentity, PkiError> {
    let names = CertificateNames::client(DIRECTOR_USER);
    issue(pki, cluster, &names, now, DIRECTOR_CERTIFICATE_LIFE)
}

/// The identity that applies the first RBAC objects of a cluster, a member of `system:masters`. Keep
/// it in memory, use it for that and drop it (docs/adr/0001-bootstrap-identity.md).
///
/// # Errors
/// [`PkiError::Make`].
pub fn bootstrap_identity(
    pki: &ClusterPki,
    cluster: &ClusterName,
    now: Timestamp,
) -> Result<ClientIdentity, PkiError> {
    let names = CertificateNames::member("windlass:bootstrap", "system:masters");
    issue(pki, cluster, &names, now, BOOTSTRAP_CERTIFICATE_LIFE)
}

/// The identity that has Secrets written again, [`REWRITER_USER`]. Keep it in memory.
///
/// # Errors
/// [`PkiError::Make`].
pub fn rewriter_identity(
    pki: &ClusterPki,
    cluster: &ClusterName,
    now: Timestamp,
) -> Result<ClientIdentity, PkiError> {
    let names = CertificateNames::client(REWRITER_USER);
    issue(pki, cluster, &names, now, REWRITER_CERTIFICATE_LIFE)
}

/// An operator's identity in [`CLUSTER_ADMINS_GROUP`]. The API server's audit log shows the user
/// `windlass:operator:<operator>`, so that no operator's name can be one of Kubernetes' own.
///
/// # Errors
/// [`PkiError::Make`].
pub fn operator_identity(
    pki: &ClusterPki,
    cluster: &ClusterName,
    operator: &str,
    now: Timestamp,
) -> Result<ClientIdentity, PkiError> {
    let names = CertificateNames::member(&operator_user(operator), CLUSTER_ADMINS_GROUP);
    issue(pki, cluster, &names, now, OPERATOR_CERTIFICATE_LIFE)
}

/// The identity under which the director passes an operator's requests on: the operator's user in the
/// group of its role, and never the director's own. Keep it in memory.
///
/// # Errors
/// [`PkiError::Make`].
pub fn proxied_identity(
    pki: &ClusterPki,
    cluster: &ClusterName,
    operator: &str,
    group: &str,
    now: Timestamp,
) -> Result<ClientIdentity, PkiError> {
    let names = CertificateNames::member(&operator_user(operator), group);
    issue(pki, cluster, &names, now, PROXIED_CERTIFICATE_LIFE)
}

/// An operator as a cluster knows it.
fn operator_user(operator: &str) -> String {
    // A common name holds 64 characters (RFC 5280, ub-common-name).
    let operator: String = operator
        .chars()
        .filter(|c| !c.is_control())
        .take(OPERATOR_NAME_MAX)
        .collect();
    format!("windlass:operator:{operator}")
}

/// A kubeconfig with everything inside, for `kubectl` of an operator.
///
/// # Errors
/// [`PkiError::Make`].
pub fn operator_kubeconfig(
    pki: &ClusterPki,
    cluster: &ClusterName,
    endpoint: &Endpoint,
    operator: &str,
    now: Timestamp,
) -> Result<Secret, PkiError> {
    let identity = operator_identity(pki, cluster, operator, now)?;
    let config = Kubeconfig {
        cluster: cluster.as_str(),
        user: operator,
        server: Server::Endpoint(endpoint),
        authority: Source::Inline(BASE64.encode(pki.trusted(AuthorityName::Kubernetes))),
        credentials: Credentials::Inline {
            certificate: BASE64.encode(&identity.certificate_pem),
            key: Secret::new(BASE64.encode(identity.key_pem.expose())),
        },
    };
    Ok(Secret::new(config.render()))
}

fn issue(
    pki: &ClusterPki,
    cluster: &ClusterName,
    names: &CertificateNames,
    now: Timestamp,
    life: Duration,
) -> Result<ClientIdentity, PkiError> {
    let failed = |source| PkiError::Make {
        what: "a client certificate",
        cluster: cluster.to_string(),
        source,
    };
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let certificate_pem = pki
        .signer_of_clients()
        .signer()
        .and_then(|signer| signer.sign(&key, names, now, life))
        .map_err(failed)?;
    Ok(ClientIdentity {
        certificate_pem,
        key_pem: Secret::new(key.serialize_pem()),
        expires_at: now.saturating_add(life).unwrap_or(now),
    })
}
