//! The way to a cluster's API for operators who cannot reach it: through the agent of one of its
//! control-plane machines, as themselves.
//!
//! # Invariants
//! * The API server sees the operator's user in the group of its role; the director's own identity and
//!   `system:masters` are never used.
//! * The identity lives in memory and for minutes; one made for a role serves that role alone.
//! * TLS runs end to end between director and API server, which proves the endpoint's name.
//!
//! # After a crash
//! Nothing is kept: connections break, identities are made again.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use windlass_common::error::ErrorChain;
use windlass_common::id::ClusterName;
use windlass_common::secret::SecretBytes;

use super::{Inner, ServiceError, ServiceResult};
use crate::kubernetes::client::{ByteStream, tls_config};
use crate::kubernetes::facts::SecretsRevision;
use crate::kubernetes::pki::{
    AuthorityName, CLUSTER_ADMINS_GROUP, CLUSTER_VIEWERS_GROUP, ClusterPki,
    PROXIED_CERTIFICATE_LIFE, proxied_identity,
};
use crate::model::{Caller, Cluster, Machine, Role};
use crate::rollout::cluster_pki_name;
use crate::store::Act;

/// Longest wait for TLS with an API server, over a tunnel that is open.
const TLS_TIMEOUT: Duration = Duration::from_secs(5);
/// An identity with less life than this is replaced.
const RENEW_BEFORE: Duration = Duration::from_secs(300);
/// Identities kept at most: a few dozen operators on a few clusters; beyond it all are made again.
const IDENTITIES_MAX: usize = 1024;

/// A connection with an API server, as one operator.
pub(crate) struct ApiServer {
    /// Carries HTTP/1.1.
    pub(crate) stream: TlsStream<Box<dyn ByteStream>>,
    /// The name that the server proved.
    pub(crate) host: String,
}

impl fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiServer({})", self.host)
    }
}

/// Whose identity, and since when it is made as it is.
type Who = (ClusterName, String, Role, SecretsRevision);

/// The identities of the moment.
#[derive(Default)]
pub(super) struct Identities(Mutex<BTreeMap<Who, (Arc<ClientConfig>, jiff::Timestamp)>>);

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identities[redacted]")
    }
}

impl Identities {
    fn find(&self, who: &Who, now: jiff::Timestamp) -> Option<Arc<ClientConfig>> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (tls, expires_at) = table.get(who)?;
        let fresh = *expires_at - RENEW_BEFORE > now;
        fresh.then(|| Arc::clone(tls))
    }

    fn keep(&self, who: Who, tls: &Arc<ClientConfig>, now: jiff::Timestamp) {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.retain(|_, (_, expires_at)| *expires_at > now);
        if table.len() >= IDENTITIES_MAX {
            table.clear();
        }
        table.insert(who, (Arc::clone(tls), now + PROXIED_CERTIFICATE_LIFE));
    }
}

/// The group that a role has in clusters.
fn group(role: Role) -> &'static str {
    match role {
        Role::Admin => CLUSTER_ADMINS_GROUP,
        // Running commands and reading secrets takes an admin, in a pod as on a machine.
        Role::Operator | Role::Viewer => CLUSTER_VIEWERS_GROUP,
    }
}

impl Inner {
    /// Connects with an API server of the cluster as the caller; tries one control-plane machine after
    /// the other.
    pub(super) async fn api_server(
        &self,
        name: &ClusterName,
        caller: &Caller,
    ) -> ServiceResult<ApiServer> {
        let cluster = self.cluster(name).await?;
        let tls = self.proxied(&cluster, caller).await?;
        let machines = self.records.machines_of(name.as_str()).await?;
        let mut faults = Vec::new();
        for machine in machines.iter().filter(|m| m.role.is_control_plane()) {
            match self.connect(&cluster, machine, tls.clone()).await {
                Ok(stream) => {
                    let host = cluster.endpoint.name;
                    return Ok(ApiServer { stream, host });
                }
                Err(fault) => faults.push(fault),
            }
        }
        Err(ServiceError::Unavailable {
            what: format!(
                "no API server of cluster {name} can be reached through its machines ({})",
                faults.join("; ")
            ),
            source: None,
        })
    }

    async fn connect(
        &self,
        cluster: &Cluster,
        machine: &Machine,
        tls: Arc<ClientConfig>,
    ) -> Result<TlsStream<Box<dyn ByteStream>>, String> {
        let tunnel = self
            .world
            .agents
            .open_tunnel(&machine.name, machine.incarnation)
            .await
            .map_err(|error| ErrorChain(&error).to_string())?;
        let server = ServerName::try_from(cluster.endpoint.name.clone())
            .map_err(|error| error.to_string())?;
        let handshake = TlsConnector::from(tls).connect(server, tunnel);
        match tokio::time::timeout(TLS_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(format!("{}: {error}", machine.name)),
            Err(_) => Err(format!(
                "{}: no answer within {TLS_TIMEOUT:?}",
                machine.name
            )),
        }
    }

    async fn proxied(
        &self,
        cluster: &Cluster,
        caller: &Caller,
    ) -> ServiceResult<Arc<ClientConfig>> {
        let name = &cluster.spec.name;
        let now = jiff::Timestamp::now();
        let operator = caller.operator.clone();
        let who = (name.clone(), operator, caller.role, cluster.secrets);
        if let Some(tls) = self.identities.find(&who, now) {
            return Ok(tls);
        }
        let pki = self.cluster_pki(name).await?;
        let group = group(caller.role);
        let identity = proxied_identity(&pki, name, &caller.operator, group, now)
            .map_err(|error| ServiceError::of(error.class(), "the operator's identity", error))?;
        let tls = tls_config(&pki.trusted(AuthorityName::Kubernetes), &identity)
            .map_err(|error| ServiceError::of(error.class(), "the operator's identity", error))?;
        let seconds = PROXIED_CERTIFICATE_LIFE.as_secs();
        let act = Act {
            action: "cluster.kubernetes",
            subject: &format!("cluster/{name}"),
            detail: &format!("passes requests on in group {group} for {seconds} s"),
            outcome: "granted",
        };
        self.note(caller, act).await?;
        let tls = Arc::new(tls);
        self.identities.keep(who, &tls, now);
        Ok(tls)
    }

    pub(super) async fn cluster_pki(&self, name: &ClusterName) -> ServiceResult<ClusterPki> {
        let document = self.records.secret(&cluster_pki_name(name)).await?;
        let document = document.ok_or_else(|| ServiceError::Bug {
            what: format!("cluster {name} has no PKI"),
            source: None,
        })?;
        ClusterPki::from_bytes(&SecretBytes::new(document.to_vec()))
            .map_err(|error| ServiceError::of(error.class(), "the cluster's PKI", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_serves_its_role_and_its_time() {
        let identities = Identities::default();
        let now = jiff::Timestamp::UNIX_EPOCH;
        let who = |role| {
            let name = ClusterName::new("demo").unwrap();
            (name, "ann".to_owned(), role, SecretsRevision::default())
        };
        let provider = windlass_common::tls::provider();
        let tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        identities.keep(who(Role::Admin), &Arc::new(tls), now);
        assert!(identities.find(&who(Role::Admin), now).is_some());
        assert!(identities.find(&who(Role::Viewer), now).is_none());
        let late = now + (PROXIED_CERTIFICATE_LIFE - RENEW_BEFORE);
        assert!(identities.find(&who(Role::Admin), late).is_none());
    }

    #[test]
    fn only_admins_are_administrators_of_a_cluster() {
        for role in Role::ALL {
            let administers = group(role) == CLUSTER_ADMINS_GROUP;
            assert_eq!(administers, role == Role::Admin, "{role}");
            assert!(!group(role).starts_with("system:"));
        }
    }
}
