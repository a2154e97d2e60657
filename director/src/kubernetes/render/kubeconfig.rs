//! Kubeconfigs: of components (files on their machine) and of operators (everything inside).
//!
//! Those of components name the proxy on their own machine, which outlives any endpoint; those of operators
//! with a way to the cluster name its endpoint. The server is an address, and the certificate is verified
//! against the endpoint's name: a client needs no resolver to start, and whatever it reaches still has to
//! prove the name. Those of operators who come through the director name the director's API.

use std::net::Ipv4Addr;

use serde::Serialize;
use windlass_common::secret::Secret;

use super::super::API_PROXY_PORT;
use super::super::facts::{ClusterFacts, Endpoint};
use super::super::pki::Profile;
use super::{KUBERNETES_CA_PATH, yaml};

/// What a kubeconfig says.
#[derive(Debug)]
pub struct Kubeconfig<'a> {
    /// Name of the cluster.
    pub cluster: &'a str,
    /// Name of the user, for people.
    pub user: &'a str,
    /// Where the API is.
    pub server: Server<'a>,
    /// What verifies the API server.
    pub authority: Source,
    /// What the client shows.
    pub credentials: Credentials,
}

/// Where an API is.
#[derive(Debug)]
pub enum Server<'a> {
    /// The cluster's endpoint.
    Endpoint(&'a Endpoint),
    /// Something that stands before it and has its URL's name in its certificate.
    Url(String),
}

/// Certificate of the authority.
#[derive(Debug)]
pub enum Source {
    /// Path of a PEM file.
    Path(String),
    /// Base64 of the PEM.
    Inline(String),
}

/// Client certificate and key.
#[derive(Debug)]
pub enum Credentials {
    /// Paths of PEM files.
    Paths {
        /// Certificate.
        certificate: String,
        /// Key.
        key: String,
    },
    /// None.
    Nobody,
    /// Base64 of the PEM.
    Inline {
        /// Certificate.
        certificate: String,
        /// Key.
        key: Secret,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Document<'a> {
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    kind: &'static str,
    clusters: [NamedCluster<'a>; 1],
    users: [NamedUser<'a>; 1],
    contexts: [NamedContext<'a>; 1],
    current_context: &'a str,
}

#[derive(Serialize)]
struct NamedCluster<'a> {
    name: &'a str,
    cluster: Cluster<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster<'a> {
    server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_server_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_authority: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate_authority_data: Option<&'a str>,
}

#[derive(Serialize)]
struct NamedUser<'a> {
    name: &'a str,
    user: User<'a>,
}

#[derive(Serialize, Default)]
#[serde(rename_all = "kebab-case")]
struct User<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    client_certificate: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_certificate_data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_key_data: Option<&'a str>,
}

#[derive(Serialize)]
struct NamedContext<'a> {
    name: &'a str,
    context: Context<'a>,
}

#[derive(Serialize)]
struct Context<'a> {
    cluster: &'a str,
    user: &'a str,
}

impl Kubeconfig<'_> {
    /// The file; secret when the key is inside.
    pub fn render(&self) -> String {
        let (ca_path, ca_data) = match &self.authority {
            Source::Path(path) => (Some(path.as_str()), None),
            Source::Inline(data) => (None, Some(data.as_str())),
        };
        let user = match &self.credentials {
            Credentials::Paths { certificate, key } => User {
                client_certificate: Some(certificate),
                client_key: Some(key),
                client_certificate_data: None,
                client_key_data: None,
            },
            Credentials::Nobody => User::default(),
            Credentials::Inline { certificate, key } => User {
                client_certificate: None,
                client_key: None,
                client_certificate_data: Some(certificate),
                client_key_data: Some(key.expose()),
            },
        };
        let (server, tls_server_name) = match &self.server {
            Server::Endpoint(endpoint) => (
                format!("https://{}:{}", endpoint.address, endpoint.port),
                Some(endpoint.name.as_str()),
            ),
            Server::Url(url) => (url.clone(), None),
        };
        let cluster = Cluster {
            server,
            tls_server_name,
            certificate_authority: ca_path,
            certificate_authority_data: ca_data,
        };
        yaml(&Document {
            api_version: "v1",
            kind: "Config",
            clusters: [NamedCluster {
                name: self.cluster,
                cluster,
            }],
            users: [NamedUser {
                name: self.user,
                user,
            }],
            contexts: [NamedContext {
                name: self.cluster,
                context: Context {
                    cluster: self.cluster,
                    user: self.user,
                },
            }],
            current_context: self.cluster,
        })
    }
}

/// The kubeconfig of a component, with the certificate of `profile`.
pub(super) fn of_component(cluster: &ClusterFacts, user: &str, profile: Profile) -> String {
    let proxy = Endpoint {
        name: cluster.endpoint.name.clone(),
        address: Ipv4Addr::LOCALHOST,
        port: API_PROXY_PORT,
    };
    Kubeconfig {
        cluster: cluster.spec.name.as_str(),
        user,
        server: Server::Endpoint(&proxy),
        authority: Source::Path(KUBERNETES_CA_PATH.to_owned()),
        credentials: Credentials::Paths {
            certificate: profile.certificate_path(),
            key: profile.key_path(),
        },
    }
    .render()
}
