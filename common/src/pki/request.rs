//! Private keys, and requests that prove their possession.

use std::fmt;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, KeyPair,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SigningKey,
};
use rustls_pki_types::{CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::ErrorClass;
use crate::secret::SecretBytes;

/// Longest request that is parsed, in bytes; one of ours has about 200.
pub const REQUEST_BYTES_MAX: usize = 2048;
/// Length of an uncompressed P-256 point.
const POINT_BYTES: usize = 65;

/// Why a key or a request is of no use.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The random source or the signature failed.
    #[error("cannot make a key or sign a certificate request")]
    Make(#[source] rcgen::Error),
    /// Not a PKCS#8 PEM file with a P-256 key.
    #[error("the private key is no PKCS#8 PEM with an ECDSA P-256 key; remove it to enroll anew")]
    Key,
    /// Longer than any request of ours.
    #[error("a certificate request has {bytes} bytes, {REQUEST_BYTES_MAX} are allowed")]
    TooLong {
        /// Length in bytes.
        bytes: usize,
    },
    /// Not PKCS#10, or its signature is not by the key it shows.
    #[error("the certificate request is malformed or does not prove possession of its key")]
    Refused(#[source] rcgen::Error),
    /// A key of another kind.
    #[error("the certificate request is for a key that is not ECDSA P-256")]
    OtherAlgorithm,
}

impl RequestError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            RequestError::Make(_) => ErrorClass::Bug,
            RequestError::Key
            | RequestError::TooLong { .. }
            | RequestError::Refused(_)
            | RequestError::OtherAlgorithm => ErrorClass::Operator,
        }
    }
}

/// A private key, ECDSA P-256. `Debug` shows nothing of it.
pub struct PrivateKey(KeyPair);

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey[redacted]")
    }
}

impl PrivateKey {
    /// Makes a new key.
    pub fn generate() -> Result<PrivateKey, RequestError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
            .map(PrivateKey)
            .map_err(RequestError::Make)
    }

    /// Reads a PKCS#8 PEM; what surrounds the first key in it is ignored.
    pub fn from_pem(pem: &SecretBytes) -> Result<PrivateKey, RequestError> {
        use rustls_pki_types::pem::PemObject;
        let der =
            PrivatePkcs8KeyDer::from_pem_slice(pem.expose()).map_err(|_| RequestError::Key)?;
        PrivateKey::from_der(der.secret_pkcs8_der())
    }

    /// Reads a PKCS#8 DER.
    pub fn from_der(der: &[u8]) -> Result<PrivateKey, RequestError> {
        KeyPair::from_pkcs8_der_and_sign_algo(&der.into(), &PKCS_ECDSA_P256_SHA256)
            .map(PrivateKey)
            .map_err(|_| RequestError::Key)
    }

    /// The key as PKCS#8 PEM, for a file with mode 0600 or a sealed record.
    pub fn to_pem(&self) -> SecretBytes {
        SecretBytes::new(self.0.serialize_pem().into_bytes())
    }

    /// The key for TLS.
    pub fn to_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.0.serialize_der().into())
    }

    /// The key for issuing certificates.
    pub fn signer(&self) -> &impl SigningKey {
        &self.0
    }

    /// The key for issuing certificates, by value.
    pub fn into_signer(self) -> KeyPair {
        self.0
    }

    /// A signature (ECDSA P-256 with SHA-256, ASN.1).
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, RequestError> {
        self.0.sign(message).map_err(RequestError::Make)
    }

    /// Its public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey {
            point: self.0.der_bytes().to_vec(),
        }
    }

    /// A PKCS#10 request, DER, without any name: proof that the sender has the key.
    pub fn request(&self) -> Result<Vec<u8>, RequestError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .serialize_request(&self.0)
            .map(|request| request.der().to_vec())
            .map_err(RequestError::Make)
    }
}

/// The public half of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey {
    point: Vec<u8>,
}

impl PublicKey {
    /// Verifies a PKCS#10 request and takes the public key out; whatever else it asks for is ignored.
    pub fn from_request(der: &[u8]) -> Result<PublicKey, RequestError> {
        if der.len() > REQUEST_BYTES_MAX {
            return Err(RequestError::TooLong { bytes: der.len() });
        }
        let der = CertificateSigningRequestDer::from(der);
        // Parsing verifies the signature with the key inside.
        let request =
            CertificateSigningRequestParams::from_der(&der).map_err(RequestError::Refused)?;
        let point = request.public_key.der_bytes().to_vec();
        // The signature algorithm names the hash, not the curve: the length of the point does.
        let uncompressed = point.first() == Some(&4) && point.len() == POINT_BYTES;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 || !uncompressed {
            return Err(RequestError::OtherAlgorithm);
        }
        Ok(PublicKey { point })
    }

    /// The key of a certificate. Nothing is verified: whoever calls this has done so.
    pub fn from_certificate(der: &[u8]) -> Result<PublicKey, RequestError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| RequestError::OtherAlgorithm)?;
        let point = certificate.public_key().subject_public_key.data.to_vec();
        if point.first() != Some(&4) || point.len() != POINT_BYTES {
            return Err(RequestError::OtherAlgorithm);
        }
        Ok(PublicKey { point })
    }

    /// Whether this key has made the signature ([`PrivateKey::sign`]).
    pub fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point)
            .verify(message, signature)
            .is_ok()
    }

    /// The uncompressed point: what a token binds to.
    pub fn as_bytes(&self) -> &[u8] {
        &self.point
    }
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_proves_possession() {
        let key = PrivateKey::generate().unwrap();
        let mut request = key.request().unwrap();
        assert_eq!(PublicKey::from_request(&request).unwrap(), key.public_key());

        // Another key under the same signature.
        let other = PrivateKey::generate().unwrap().public_key();
        let mine = key.public_key();
        let at = request
            .windows(POINT_BYTES)
            .position(|w| w == mine.as_bytes())
            .unwrap();
        request[at..at + POINT_BYTES].copy_from_slice(other.as_bytes());
        assert!(matches!(
            PublicKey::from_request(&request),
            Err(RequestError::Refused(_))
        ));
    }

    #[test]
    fn keys_of_another_curve_are_refused() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let request = CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        assert!(matches!(
            PublicKey::from_request(request.der()),
            Err(RequestError::OtherAlgorithm)
        ));
        let pem = SecretBytes::new(key.serialize_pem().into_bytes());
        assert!(matches!(PrivateKey::from_pem(&pem), Err(RequestError::Key)));
    }

    #[test]
    fn keys_survive_pem_and_show_nothing() {
        let key = PrivateKey::generate().unwrap();
        let again = PrivateKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(again.public_key(), key.public_key());
        assert_eq!(format!("{key:?}"), "PrivateKey[redacted]");
    }
}
