//! One CA certificate with its key.

use std::fmt;

use aws_lc_rs::hmac;
use jiff::Timestamp;
use rcgen::{CertificateParams, KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::ParsedExtension;

use windlass_common::error::ErrorClass;
use windlass_common::pki::profile::ProfileError;
use windlass_common::pki::{PrivateKey, RequestError, pem};
use windlass_common::secret::SecretBytes;

/// Why the director's CAs cannot be made or read back.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The parameters cannot be made.
    #[error("cannot describe a CA certificate")]
    Profile(#[source] ProfileError),
    /// A key cannot be made or read.
    #[error("cannot make or read the key of a CA")]
    Key(#[source] RequestError),
    /// Signing failed.
    #[error("cannot sign a CA certificate")]
    Sign(#[source] rcgen::Error),
    /// The PEM is not what `to_pem` wrote.
    #[error("the director's CA record is damaged: {0}; restore it from a backup")]
    Damaged(&'static str),
    /// The CA belongs to another director.
    #[error("the CA record is of another director than {0}")]
    OtherDirector(String),
}

impl CaError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            CaError::Profile(_) | CaError::Key(_) | CaError::Sign(_) => ErrorClass::Bug,
            CaError::Damaged(_) | CaError::OtherDirector(_) => ErrorClass::Operator,
        }
    }
}

/// Why a certificate was not issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The request is of no use.
    #[error("the certificate request is refused")]
    Request(#[source] RequestError),
    /// The parameters cannot be made.
    #[error("cannot describe the certificate")]
    Profile(#[source] ProfileError),
    /// Signing failed.
    #[error("cannot sign the certificate")]
    Sign(#[source] rcgen::Error),
    /// The system's random source failed.
    #[error("the system's random source failed")]
    Random,
    /// The identity is of another director.
    #[error("{0} is not of this director")]
    OtherDirector(String),
    /// The certificate cannot be used for TLS.
    #[error("the certificate that was issued cannot be used for TLS")]
    Unusable(#[source] rustls::Error),
}

impl IssueError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            IssueError::Request(source) => source.class(),
            IssueError::Profile(_)
            | IssueError::Sign(_)
            | IssueError::Random
            | IssueError::OtherDirector(_)
            | IssueError::Unusable(_) => ErrorClass::Bug,
        }
    }
}

/// A CA certificate and the means to sign with it.
pub(super) struct Issuer {
    pub(super) certificate: CertificateDer<'static>,
    signer: rcgen::Issuer<'static, KeyPair>,
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Issuer[key redacted]")
    }
}

impl Issuer {
    pub(super) fn root(params: CertificateParams) -> Result<Issuer, CaError> {
        let key = PrivateKey::generate().map_err(CaError::Key)?.into_signer();
        let certificate = params.self_signed(&key).map_err(CaError::Sign)?;
        Ok(Issuer {
            certificate: certificate.der().clone(),
            signer: rcgen::Issuer::new(params, key),
        })
    }

    pub(super) fn below(root: &Issuer, params: CertificateParams) -> Result<Issuer, CaError> {
        Issuer::below_both(root, None, params).map(|(issuer, _)| issuer)
    }

    /// An issuer below `root`, and a second certificate of it by `other`, if there is one.
    pub(super) fn below_both(
        root: &Issuer,
        other: Option<&Issuer>,
        params: CertificateParams,
    ) -> Result<(Issuer, Option<CertificateDer<'static>>), CaError> {
        let key = PrivateKey::generate().map_err(CaError::Key)?.into_signer();
        let by = |ca: &Issuer| {
            let signed = params.signed_by(&key, &ca.signer).map_err(CaError::Sign)?;
            Ok(signed.der().clone())
        };
        let certificate = by(root)?;
        let second = other.map(by).transpose()?;
        let issuer = Issuer {
            certificate,
            signer: rcgen::Issuer::new(params, key),
        };
        Ok((issuer, second))
    }

    pub(super) fn load(
        certificate: CertificateDer<'static>,
        key: PrivateKey,
    ) -> Result<Issuer, CaError> {
        let key = key.into_signer();
        // The certificate's own key: a mixed-up pair would sign what nobody can verify.
        let point = key.der_bytes();
        if !certificate.windows(point.len()).any(|bytes| bytes == point) {
            return Err(CaError::Damaged("a key does not belong to its certificate"));
        }
        let signer = rcgen::Issuer::from_ca_cert_der(&certificate, key).map_err(CaError::Sign)?;
        Ok(Issuer {
            certificate,
            signer,
        })
    }

    pub(super) fn issue(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> Result<CertificateDer<'static>, IssueError> {
        params
            .signed_by(key, &self.signer)
            .map(|certificate| certificate.der().clone())
            .map_err(IssueError::Sign)
    }

    pub(super) fn derive(&self, purpose: &[u8]) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.signer.key().serialized_der());
        let tag = hmac::sign(&key, purpose);
        let mut secret = [0; 32];
        secret.copy_from_slice(tag.as_ref());
        secret
    }

    /// Whether a certificate names this CA's key as its authority's. Says nothing about the signature.
    pub(super) fn has_issued(&self, leaf: &[u8]) -> bool {
        let Ok((_, own)) = x509_parser::parse_x509_certificate(&self.certificate) else {
            return false;
        };
        let Ok((_, leaf)) = x509_parser::parse_x509_certificate(leaf) else {
            return false;
        };
        let subject =
            own.iter_extensions()
                .find_map(|extension| match extension.parsed_extension() {
                    ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
                    _ => None,
                });
        let authority =
            leaf.iter_extensions()
                .find_map(|extension| match extension.parsed_extension() {
                    ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref(),
                    _ => None,
                });
        subject.is_some() && subject == authority.map(|id| id.0)
    }

    pub(super) fn has_common_name(&self, name: &str) -> bool {
        x509_parser::parse_x509_certificate(&self.certificate).is_ok_and(|(_, certificate)| {
            let mut names = certificate.subject().iter_common_name();
            names.next().and_then(|found| found.as_str().ok()) == Some(name)
        })
    }

    /// Certificate and key as PEM, one after the other.
    pub(super) fn to_pem(&self) -> SecretBytes {
        let mut text = pem::certificate(&self.certificate).into_bytes();
        let key = zeroize::Zeroizing::new(self.signer.key().serialize_pem());
        text.extend_from_slice(key.as_bytes());
        SecretBytes::new(text)
    }
}

/// Whether a CA certificate is valid at `now`.
pub(super) fn is_valid(certificate: &CertificateDer<'_>, now: Timestamp) -> bool {
    x509_parser::parse_x509_certificate(certificate).is_ok_and(|(_, certificate)| {
        let validity = certificate.validity();
        (validity.not_before.timestamp()..=validity.not_after.timestamp())
            .contains(&now.as_second())
    })
}
