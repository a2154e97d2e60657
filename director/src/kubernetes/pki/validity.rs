//! How long the certificates of a machine are valid, and who signed them.

use jiff::Timestamp;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::pem::parse_x509_pem;

use super::{AuthorityName, Certificates, ClusterPki, Profile};

/// When certificates begin and cease to be valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The beginning of the first.
    pub from: Timestamp,
    /// The end of the first that ends.
    pub until: Timestamp,
}

impl Validity {
    /// Of these certificates together; `None` when there are none or one of them cannot be read.
    pub fn of(certificates: &Certificates) -> Option<Self> {
        let each = certificates.values().map(|pem| Self::of_pem(pem));
        each.reduce(|all, one| {
            let (all, one) = (all?, one?);
            Some(Self {
                from: all.from.min(one.from),
                until: all.until.min(one.until),
            })
        })?
    }

    /// Of the first certificate of a PEM chain.
    pub fn of_pem(pem: &str) -> Option<Self> {
        read(pem, |certificate| {
            let validity = certificate.validity();
            Some(Self {
                from: Timestamp::from_second(validity.not_before.timestamp()).ok()?,
                until: Timestamp::from_second(validity.not_after.timestamp()).ok()?,
            })
        })
    }

    /// Whether two thirds of it have passed: then they are renewed.
    pub fn is_due(&self, now: Timestamp) -> bool {
        now >= self.renew_at()
    }

    /// When two thirds of it have passed.
    pub fn renew_at(&self) -> Timestamp {
        let life = self.until.as_second().saturating_sub(self.from.as_second());
        let due = self.from.as_second().saturating_add(life / 3 * 2);
        Timestamp::from_second(due).unwrap_or(self.from)
    }
}

impl ClusterPki {
    /// Whether all of these certificates were signed by the authorities that sign now.
    pub fn signed(&self, certificates: &Certificates) -> bool {
        certificates.iter().all(|(name, pem)| {
            let signer = Profile::named(name).map_or(AuthorityName::Kubernetes, Profile::authority);
            signed_by(pem, &self.authority(signer).certificate_pem)
        })
    }

    /// When the first of the authorities that sign now expires.
    pub fn authorities_expire_at(&self) -> Option<Timestamp> {
        let all = [&self.kubernetes, &self.etcd, &self.front_proxy];
        let ends = all.map(|authority| Validity::of_pem(&authority.certificate_pem));
        ends.into_iter()
            .map(|validity| validity.map(|v| v.until))
            .reduce(|a, b| Some(a?.min(b?)))?
    }
}

/// Whether a certificate names this authority and its key as its issuer.
fn signed_by(pem: &str, authority_pem: &str) -> bool {
    let subject = read(authority_pem, |authority| {
        let key = authority
            .extensions()
            .iter()
            .find_map(|e| match e.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                _ => None,
            })?;
        Some((authority.subject().as_raw().to_vec(), key))
    });
    let issuer = read(pem, |certificate| {
        let key = certificate
            .extensions()
            .iter()
            .find_map(|e| match e.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    Some(id.key_identifier.as_ref()?.0.to_vec())
                }
                _ => None,
            })?;
        Some((certificate.issuer().as_raw().to_vec(), key))
    });
    subject.is_some() && subject == issuer
}

fn read<T>(pem: &str, look: impl FnOnce(&X509Certificate<'_>) -> Option<T>) -> Option<T> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).ok()?;
    look(&pem.parse_x509().ok()?)
}
