//! Rotating what a cluster proves itself with: each change of the document, in the order in which they come.
//!
//! # Invariants
//! * What is trusted always holds what signs, and what machines may still show one another.
//! * The keys of authorities that sign no more are gone from the document at once.
//! * A public key verifies tokens for as long as any that its private key has signed may be in use.
//! * At every moment the first encryption key writes and all of them read.
//!
//! # After a crash
//! A change is committed together with the stage of the rotation that it belongs to, or not at all.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use windlass_common::id::ClusterName;

use super::{Authority, AuthorityName, ClusterPki, EncryptionKey, PkiError, ServiceAccountKey};

/// The generation that comes next: trusted, and signing nothing for machines yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Newer {
    pub(super) kubernetes: Authority,
    pub(super) etcd: Authority,
    pub(super) front_proxy: Authority,
    pub(super) service_account: ServiceAccountKey,
    /// Whether every machine trusts it, so that operators' certificates are signed by it already.
    accepted: bool,
}

/// What is left of the generation before: certificates, and the key that verifies tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Former {
    /// PEM; empty once it is not trusted any more. The same holds for the other two.
    kubernetes: String,
    etcd: String,
    front_proxy: String,
    /// SubjectPublicKeyInfo PEM.
    service_account: String,
}

impl ClusterPki {
    /// Makes the next generation of authorities, with a key for tokens. One that is there already stays.
    ///
    /// # Errors
    /// [`PkiError::Make`].
    pub fn trust_newer(&mut self, cluster: &ClusterName, now: Timestamp) -> Result<(), PkiError> {
        if self.newer.is_none() {
            let made = Self::of_generation(cluster, self.generation.saturating_add(1), now)?;
            self.newer = Some(Box::new(Newer {
                kubernetes: made.kubernetes,
                etcd: made.etcd,
                front_proxy: made.front_proxy,
                service_account: made.service_account,
                accepted: false,
            }));
        }
        Ok(())
    }

    /// Every machine trusts the next generation: operators get certificates of it from now on.
    pub fn accept_newer(&mut self) {
        if let Some(newer) = &mut self.newer {
            newer.accepted = true;
        }
    }

    /// The next generation signs from now on; of the one before only certificates are kept.
    pub fn sign_with_newer(&mut self) {
        let Some(newer) = self.newer.take() else {
            return; // it signs already
        };
        self.former = Some(Former {
            kubernetes: std::mem::replace(&mut self.kubernetes, newer.kubernetes).certificate_pem,
            etcd: std::mem::replace(&mut self.etcd, newer.etcd).certificate_pem,
            front_proxy: std::mem::replace(&mut self.front_proxy, newer.front_proxy)
                .certificate_pem,
            service_account: std::mem::replace(&mut self.service_account, newer.service_account)
                .public_pem,
        });
        self.generation = self.generation.saturating_add(1);
    }

    /// The former authorities are trusted no more. Tokens that the former key has signed still are.
    pub fn drop_former_authorities(&mut self) {
        if let Some(former) = &mut self.former {
            former.kubernetes.clear();
            former.etcd.clear();
            former.front_proxy.clear();
        }
    }

    /// Nothing of the former generation counts any more.
    pub fn drop_former(&mut self) {
        self.former = None;
    }

    /// Adds an encryption key that reads and does not write yet.
    ///
    /// # Errors
    /// [`PkiError::Random`].
    pub fn add_encryption_key(&mut self) -> Result<(), PkiError> {
        let number = |key: &EncryptionKey| key.name.strip_prefix("key")?.parse::<u64>().ok();
        let last = self.encryption.iter().filter_map(number).max().unwrap_or(0);
        let key = EncryptionKey::generate(format!("key{}", last.saturating_add(1)))?;
        self.encryption.push(key);
        Ok(())
    }

    /// The newest encryption key writes, the others read.
    pub fn use_encryption_key(&mut self) {
        self.encryption.rotate_right(1);
    }

    /// Only the key that writes is left.
    pub fn drop_encryption_keys(&mut self) {
        self.encryption.truncate(1);
    }

    /// Certificates that are trusted where those of an authority are, what signs first, as PEM.
    pub fn trusted(&self, name: AuthorityName) -> String {
        let other = match (&self.newer, &self.former) {
            (Some(newer), _) => &newer.authority(name).certificate_pem,
            (None, Some(former)) => former.certificate(name),
            (None, None) => "",
        };
        bundle(&self.authority(name).certificate_pem, other)
    }

    /// Public keys that verify the tokens of service accounts, as PEM.
    pub fn token_keys(&self) -> String {
        let other = match (&self.newer, &self.former) {
            (Some(newer), _) => newer.service_account.public_pem.as_str(),
            (None, Some(former)) => former.service_account.as_str(),
            (None, None) => "",
        };
        bundle(&self.service_account.public_pem, other)
    }

    /// A line of the newest `kubernetes` certificate that no other one has: whoever has the bundle has it.
    pub fn mark_of_newest(&self) -> Option<String> {
        let newest = match &self.newer {
            Some(newer) => &newer.kubernetes.certificate_pem,
            None => &self.kubernetes.certificate_pem,
        };
        let all = self.trusted(AuthorityName::Kubernetes);
        let once = |line: &&str| all.lines().filter(|other| other == line).count() == 1;
        newest.lines().find(once).map(str::to_owned)
    }

    /// The same of one that the newest stands beside.
    pub fn mark_of_oldest(&self) -> Option<String> {
        let oldest = match (&self.newer, &self.former) {
            (None, Some(former)) => former.kubernetes.as_str(),
            _ => &self.kubernetes.certificate_pem,
        };
        let all = self.trusted(AuthorityName::Kubernetes);
        let once = |line: &&str| all.lines().filter(|other| other == line).count() == 1;
        oldest.lines().find(once).map(str::to_owned)
    }

    /// Who signs for people and for the director: what every API server accepts, for longest.
    pub(super) fn signer_of_clients(&self) -> &Authority {
        match &self.newer {
            Some(newer) if newer.accepted => &newer.kubernetes,
            _ => &self.kubernetes,
        }
    }
}

impl Newer {
    pub(super) fn authority(&self, name: AuthorityName) -> &Authority {
        match name {
            AuthorityName::Kubernetes => &self.kubernetes,
            AuthorityName::Etcd => &self.etcd,
            AuthorityName::FrontProxy => &self.front_proxy,
        }
    }
}

impl Former {
    fn certificate(&self, name: AuthorityName) -> &str {
        match name {
            AuthorityName::Kubernetes => &self.kubernetes,
            AuthorityName::Etcd => &self.etcd,
            AuthorityName::FrontProxy => &self.front_proxy,
        }
    }
}

fn bundle(first: &str, other: &str) -> String {
    let mut text = first.to_owned();
    if !other.is_empty() {
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(other);
    }
    text
}

#[cfg(test)]
mod tests;
