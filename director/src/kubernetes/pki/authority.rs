//! One certificate authority: a self-signed certificate and its key, both PEM.
//!
//! Signing is here and nowhere else. What is signed is decided by [`super::profile`] and
//! [`super::identity`].

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use windlass_common::id::Hasher;
use windlass_common::secret::Secret;

use super::CLOCK_SKEW;
use super::profile::CertificateNames;

/// A certificate authority.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Authority {
    /// Its certificate, PEM.
    pub certificate_pem: String,
    key_pem: Secret,
}

/// An authority whose key was read: reading it costs more than what it signs with it, and a machine has up to ten
/// certificates of three authorities. It lives as long as what it signs is being made.
pub(super) struct Signer(Issuer<'static, KeyPair>);

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").finish_non_exhaustive()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes a new authority.
    pub(super) fn generate(
        common_name: &str,
        now: Timestamp,
        life: Duration,
    ) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        (params.not_before, params.not_after) = validity(now, life);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial(&key, &key, common_name, now));
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            key_pem: Secret::new(key.serialize_pem()),
        })
    }

    /// Reads the key and the certificate, to sign with.
    pub(super) fn signer(&self) -> Result<Signer, rcgen::Error> {
        self.issuer().map(Signer)
    }

    /// Whether certificate and key are readable and belong together.
    pub(super) fn check(&self) -> Result<(), rcgen::Error> {
        use x509_parser::pem::parse_x509_pem;
        let issuer = self.issuer()?;
        let (_, pem) = parse_x509_pem(self.certificate_pem.as_bytes())
            .map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        let certificate = pem
            .parse_x509()
            .map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        if *certificate.public_key().subject_public_key.data == *issuer.key().der_bytes() {
            Ok(())
        } else {
            Err(rcgen::Error::CouldNotParseKeyPair)
        }
    }

    pub(super) fn issuer(&self) -> Result<Issuer<'static, KeyPair>, rcgen::Error> {
        let key = KeyPair::from_pem(self.key_pem.expose())?;
        Issuer::from_ca_cert_pem(&self.certificate_pem, key)
    }
}

impl Signer {
    /// Signs `public` under `names`; gives PEM.
    pub(super) fn sign(
        &self,
        public: &impl PublicKeyData,
        names: &CertificateNames,
        now: Timestamp,
        life: Duration,
    ) -> Result<String, rcgen::Error> {
        let Self(issuer) = self;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(organization) = &names.organization {
            params
                .distinguished_name
                .push(DnType::OrganizationName, organization);
        }
        params
            .distinguished_name
            .push(DnType::CommonName, &names.common_name);
        (params.not_before, params.not_after) = validity(now, life);
        for name in &names.dns_names {
            params
                .subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into()?));
        }
        for address in &names.addresses {
            params
                .subject_alt_names
                .push(SanType::IpAddress(IpAddr::V4(*address)));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        if names.client {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        if names.server {
            params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial(issuer.key(), public, &names.common_name, now));
        Ok(params.signed_by(public, issuer)?.pem())
    }
}

fn validity(now: Timestamp, life: Duration) -> (OffsetDateTime, OffsetDateTime) {
    // A jiff timestamp is always within the years that `time` has.
    let now =
        OffsetDateTime::from_unix_timestamp(now.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    (now - CLOCK_SKEW, now + life)
}

/// A serial number that no other certificate of the same issuer has: over both keys, the name and the
/// instant of signing. 16 bytes, positive.
fn serial(
    issuer: &impl PublicKeyData,
    subject: &impl PublicKeyData,
    name: &str,
    now: Timestamp,
) -> SerialNumber {
    let mut hasher = Hasher::default();
    hasher.update(issuer.der_bytes());
    hasher.update(subject.der_bytes());
    hasher.update(name.as_bytes());
    hasher.update(&now.as_nanosecond().to_be_bytes());
    let digest = hasher.finish();
    let mut bytes = digest.as_bytes()[..16].to_vec();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}
