//! PEM, the form of certificates at rest.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Why a file holds no certificates.
#[derive(Debug, thiserror::Error)]
#[error("the file is no PEM with certificates")]
pub struct PemError;

/// One certificate as PEM.
pub fn certificate(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut pem = String::with_capacity(text.len() + text.len() / 64 + 64);
    pem.push_str("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|&byte| char::from(byte)));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// Certificates one after the other as PEM.
pub fn bundle<D: AsRef<[u8]>>(certificates: &[D]) -> String {
    certificates
        .iter()
        .map(|der| certificate(der.as_ref()))
        .collect()
}

/// Every certificate in a PEM text, in order; what else is in it is skipped.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_| PemError)
}
