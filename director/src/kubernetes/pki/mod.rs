//! The PKI of one cluster: who its components are to one another.
//!
//! The director makes it and seals it in its store as one document ([`ClusterPki::to_bytes`]). Three
//! authorities keep three kinds of trust apart: `kubernetes` (API server, kubelets, controllers,
//! operators), `etcd` (members and the API servers, nobody else) and `front-proxy` (the aggregation
//! layer, whose certificate may speak for any user and for that reason shares no authority with
//! anything). Private keys of machines are made on the machines; [`machine_certificates`] signs them.
//!
//! # Invariants
//! * Keys of authorities never leave the director.
//! * Names in a certificate are the director's choice. From a request it takes the public key and the
//!   proof of possession, and nothing else.
//! * `system:masters` appears in one certificate only, [`bootstrap_identity`]: in memory, ten minutes
//!   (docs/adr/0001-bootstrap-identity.md).
//!
//! # After a crash
//! Issued certificates are not deterministic; the caller keeps those it sent. Issuing again for the
//! same request is harmless: components read renewed files by themselves.
//!
//! # Not here
//! The director's own authority, which agents and operators of the director trust.

mod authority;
mod identity;
mod profile;
mod revocation;
mod rotate;
mod sign;
mod validity;
mod whole;

use std::collections::BTreeMap;
use std::time::Duration;

use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use windlass_common::error::ErrorClass;
use windlass_common::id::ClusterName;
use windlass_common::secret::{Secret, SecretBytes};

pub use self::authority::Authority;
pub use self::identity::{
    ClientIdentity, bootstrap_identity, director_identity, operator_identity, operator_kubeconfig,
    proxied_identity, rewriter_identity,
};
pub use self::profile::{AuthorityName, CertificateNames, Profile};
pub use self::revocation::Revocations;
pub use self::rotate::{Former, Newer};
pub use self::sign::{CsrError, IssueError, machine_certificates};
pub use self::validity::Validity;

/// Life of the authorities. They are replaced by a rotation that trusts old and new side by side, and
/// ten years is what Kubernetes installers use; a cluster outlives it only by being rotated.
pub const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * DAY_S);
/// Life of a machine's certificates: a year, as Kubernetes installers have it. They are renewed once two thirds
/// of it have passed, so that a director may be away for months.
pub const MACHINE_CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * DAY_S);
/// Life of an operator's certificate: the API server cannot revoke one, and fetching a new one is one
/// command.
pub const OPERATOR_CERTIFICATE_LIFE: Duration = Duration::from_secs(7 * DAY_S);
/// Life of the certificate under which an operator's requests are passed on; a role that was taken away
/// is noticed at once, whatever is left of it.
pub const PROXIED_CERTIFICATE_LIFE: Duration = Duration::from_secs(900);
/// Characters of an operator's name that fit into a common name behind `windlass:operator:`.
pub const OPERATOR_NAME_MAX: usize = 40;
/// Life of the director's own client certificate: it is made in memory whenever it is needed.
pub const DIRECTOR_CERTIFICATE_LIFE: Duration = Duration::from_secs(DAY_S);
/// Life of the bootstrap certificate: a few seconds of use, and retries while an API server starts.
pub const BOOTSTRAP_CERTIFICATE_LIFE: Duration = Duration::from_secs(600);
/// Life of the certificate under which Secrets are written again: longer than that may take.
pub const REWRITER_CERTIFICATE_LIFE: Duration = Duration::from_secs(7200);
/// How long before its issue a certificate is valid: clocks of machines may be behind the director's.
pub const CLOCK_SKEW: Duration = Duration::from_secs(300);

/// Group of operators who administer a whole cluster; an add-on binds it to `cluster-admin`.
pub const CLUSTER_ADMINS_GROUP: &str = "windlass:cluster-admins";
/// Group of those who may look at what is not secret.
pub const CLUSTER_VIEWERS_GROUP: &str = "windlass:cluster-viewers";
/// User of the director; an add-on gives it what it needs and no more.
pub const DIRECTOR_USER: &str = "windlass:director";
/// User as which the director has Secrets written again, and which may do nothing else.
pub const REWRITER_USER: &str = "windlass:secret-rewriter";
/// What the group of a machine's clients of the API server begins with; the name of its node follows. Their users are
/// those that Kubernetes' own roles are bound to, and the same on every machine.
pub const MACHINE_GROUP_PREFIX: &str = "windlass:node:";
/// User as which API servers call kubelets; an add-on binds it to `system:kubelet-api-admin`.
pub const KUBELET_CALLER_USER: &str = "windlass:apiserver-kubelet-client";
/// Common name that etcd members demand of one another, so that a client's certificate of the same
/// authority cannot join as a member.
pub const ETCD_PEER_NAME: &str = "windlass:etcd-peer";
/// Common name with which API servers speak to aggregated ones, which accept forwarded users from it.
pub const FRONT_PROXY_NAME: &str = "front-proxy-client";
/// A common name that no certificate has: components of a control plane accept forwarded users from it only. Without any
/// name they would accept all.
pub const NO_FRONT_PROXY: &str = "windlass:no-front-proxy";

const DAY_S: u64 = 24 * 3600;
const DOCUMENT_VERSION: u32 = 1;
/// Largest document: three authorities, two keys and a few encryption keys are under 8 KiB.
const DOCUMENT_BYTES_MAX: usize = 64 << 10;

/// Everything secret about a cluster's identity; one document in the sealed store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClusterPki {
    version: u32,
    /// Signs API servers, kubelets, controllers and operators.
    pub kubernetes: Authority,
    /// Signs etcd members and the API servers as their clients.
    pub etcd: Authority,
    /// Signs the aggregation layer's client certificate.
    pub front_proxy: Authority,
    /// Signs service account tokens.
    pub service_account: ServiceAccountKey,
    /// Keys for Secrets in etcd; the first encrypts, all decrypt.
    pub encryption: Vec<EncryptionKey>,
    /// Which generation of authorities signs.
    #[serde(default = "first", skip_serializing_if = "is_first")]
    generation: u32,
    /// The next generation, while a rotation prepares it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    newer: Option<Box<Newer>>,
    /// What is left of the generation before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    former: Option<Former>,
}

fn first() -> u32 {
    1
}

fn is_first(generation: &u32) -> bool {
    *generation == 1
}

/// The key pair that signs service account tokens (ECDSA P-256).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccountKey {
    /// PKCS#8 PEM.
    pub private_pem: Secret,
    /// SubjectPublicKeyInfo PEM.
    pub public_pem: String,
}

/// A key for encryption at rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EncryptionKey {
    /// Written in front of everything it encrypted.
    pub name: String,
    /// 32 bytes, Base64.
    pub secret: Secret,
}

/// Why a cluster's PKI could not be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// The crypto library refused.
    #[error("cannot make {what} of cluster {cluster}")]
    Make {
        /// Key or certificate.
        what: &'static str,
        /// The cluster.
        cluster: String,
        /// From the library.
        #[source]
        source: rcgen::Error,
    },
    /// No randomness.
    #[error("the operating system gave no random bytes for the encryption key")]
    Random,
    /// The stored document is not one.
    #[error("the stored PKI document of {bytes} bytes cannot be read; restore it from a backup")]
    Document {
        /// Its length.
        bytes: usize,
        /// From the parser.
        #[source]
        source: serde_json::Error,
    },
    /// The stored document is too long.
    #[error("the stored PKI document has {bytes} bytes, more than {max}; restore it from a backup")]
    DocumentTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The stored document is of another release.
    #[error("the stored PKI document has version {got}, this release reads {want}")]
    DocumentVersion {
        /// Found.
        got: u32,
        /// Known.
        want: u32,
    },
    /// A part of the stored document does not fit the rest.
    #[error("{what} in the stored PKI document is damaged; restore the document from a backup")]
    Damaged {
        /// Which part.
        what: &'static str,
    },
}

impl PkiError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            PkiError::Make { .. } => ErrorClass::Bug,
            PkiError::Random => ErrorClass::Retry,
            PkiError::Document { .. }
            | PkiError::DocumentTooLong { .. }
            | PkiError::DocumentVersion { .. }
            | PkiError::Damaged { .. } => ErrorClass::Operator,
        }
    }
}

impl ClusterPki {
    /// Makes a new PKI with keys from the operating system's randomness.
    ///
    /// # Errors
    /// [`PkiError::Make`] and [`PkiError::Random`], both from the crypto library.
    pub fn generate(cluster: &ClusterName, now: Timestamp) -> Result<Self, PkiError> {
        Self::of_generation(cluster, first(), now)
    }

    fn of_generation(
        cluster: &ClusterName,
        generation: u32,
        now: Timestamp,
    ) -> Result<Self, PkiError> {
        let failed = |what| {
            move |source| PkiError::Make {
                what,
                cluster: cluster.to_string(),
                source,
            }
        };
        let authority = |name: &'static str| {
            let number = match generation {
                1 => String::new(),
                later => format!(" {later}"),
            };
            let common_name = format!("windlass {cluster} {name}{number}");
            Authority::generate(&common_name, now, AUTHORITY_LIFE).map_err(failed(name))
        };
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(failed("the service account key"))?;
        Ok(Self {
            version: DOCUMENT_VERSION,
            kubernetes: authority("kubernetes")?,
            etcd: authority("etcd")?,
            front_proxy: authority("front-proxy")?,
            service_account: ServiceAccountKey {
                private_pem: Secret::new(pair.serialize_pem()),
                public_pem: pair.public_key_pem(),
            },
            encryption: vec![EncryptionKey::generate("key1".to_owned())?],
            generation,
            newer: None,
            former: None,
        })
    }

    /// The document for the sealed store.
    pub fn to_bytes(&self) -> SecretBytes {
        let document = serde_json::to_vec(self);
        // No map key and no float that JSON could not hold.
        SecretBytes::new(document.expect("strings and numbers serialise to JSON"))
    }

    /// Reads the document back and checks that its parts fit together.
    ///
    /// # Errors
    /// [`PkiError`]: not a document, of another version, or damaged.
    pub fn from_bytes(bytes: &SecretBytes) -> Result<Self, PkiError> {
        let bytes = bytes.expose();
        if bytes.len() > DOCUMENT_BYTES_MAX {
            return Err(PkiError::DocumentTooLong {
                bytes: bytes.len(),
                max: DOCUMENT_BYTES_MAX,
            });
        }
        let pki: Self = serde_json::from_slice(bytes).map_err(|source| PkiError::Document {
            bytes: bytes.len(),
            source,
        })?;
        if pki.version != DOCUMENT_VERSION {
            return Err(PkiError::DocumentVersion {
                got: pki.version,
                want: DOCUMENT_VERSION,
            });
        }
        // A document is read for every step; whether its keys and certificates belong together is found out once.
        whole::known_or(bytes, || pki.check())?;
        Ok(pki)
    }

    /// Whether its parts fit together.
    fn check(&self) -> Result<(), PkiError> {
        for (what, authority) in [
            ("authority kubernetes", &self.kubernetes),
            ("authority etcd", &self.etcd),
            ("authority front-proxy", &self.front_proxy),
        ] {
            authority.check().map_err(|_| PkiError::Damaged { what })?;
        }
        if let Some(newer) = &self.newer {
            let what = "the next generation of authorities";
            let names = [
                AuthorityName::Kubernetes,
                AuthorityName::Etcd,
                AuthorityName::FrontProxy,
            ];
            let whole = names.map(|name| newer.authority(name).check().is_ok());
            if whole.contains(&false) || !newer.service_account.is_whole() {
                return Err(PkiError::Damaged { what });
            }
        }
        if !self.service_account.is_whole() {
            return Err(PkiError::Damaged {
                what: "the service account key",
            });
        }
        let whole = |key: &EncryptionKey| {
            BASE64
                .decode(key.secret.expose())
                .is_ok_and(|bytes| bytes.len() == 32)
        };
        if self.encryption.is_empty() || !self.encryption.iter().all(whole) {
            return Err(PkiError::Damaged {
                what: "the encryption key",
            });
        }
        Ok(())
    }

    /// The authority of that name.
    pub fn authority(&self, name: AuthorityName) -> &Authority {
        match name {
            AuthorityName::Kubernetes => &self.kubernetes,
            AuthorityName::Etcd => &self.etcd,
            AuthorityName::FrontProxy => &self.front_proxy,
        }
    }
}

impl ServiceAccountKey {
    /// Whether its two halves belong together.
    fn is_whole(&self) -> bool {
        rcgen::KeyPair::from_pem(self.private_pem.expose())
            .is_ok_and(|pair| pair.public_key_pem() == self.public_pem)
    }
}

impl EncryptionKey {
    /// Makes one from the operating system's randomness.
    fn generate(name: String) -> Result<Self, PkiError> {
        let mut key = zeroize::Zeroizing::new([0u8; 32]);
        rand::fill(key.as_mut_slice()).map_err(|_| PkiError::Random)?;
        Ok(Self {
            name,
            secret: Secret::new(BASE64.encode(key.as_slice())),
        })
    }
}

/// Certificates of one machine: PEM chain by profile name.
pub type Certificates = BTreeMap<String, String>;

#[cfg(test)]
mod tests;
