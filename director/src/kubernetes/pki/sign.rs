//! Certificates for the keys of one machine, from the requests it made.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use rcgen::CertificateSigningRequestParams;
use rustls_pki_types::CertificateSigningRequestDer;
use windlass_common::error::ErrorClass;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::FromDer;

use super::super::facts::{ClusterFacts, MachineFacts};
use super::authority::Signer;
use super::profile::{AuthorityName, Profile};
use super::{Certificates, ClusterPki, MACHINE_CERTIFICATE_LIFE};

/// Longest request that is looked at; one for a P-256 key is under 400 bytes.
const CSR_BYTES_MAX: usize = 4 << 10;

/// Why the certificates of a machine could not be issued.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// The requests are not those of the machine's role.
    #[error(
        "machine {machine} sent requests that do not fit its role: missing {missing:?}, unexpected \
         {unexpected:?}; run its keys step again"
    )]
    Names {
        /// The machine.
        machine: String,
        /// Not sent.
        missing: Vec<String>,
        /// Sent without being asked for.
        unexpected: Vec<String>,
    },
    /// One request is not acceptable.
    #[error(
        "machine {machine} sent an unacceptable certificate request {name}; replace the machine"
    )]
    Request {
        /// The machine.
        machine: String,
        /// Which request.
        name: &'static str,
        /// What is wrong with it.
        #[source]
        source: CsrError,
    },
    /// An authority could not sign.
    #[error("cannot sign certificate {name} of machine {machine}")]
    Sign {
        /// The machine.
        machine: String,
        /// Which certificate.
        name: &'static str,
        /// From the library.
        #[source]
        source: rcgen::Error,
    },
}

impl IssueError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            IssueError::Names { .. } => ErrorClass::Retry,
            IssueError::Request { .. } => ErrorClass::Operator,
            IssueError::Sign { .. } => ErrorClass::Bug,
        }
    }
}

/// What is wrong with a certificate request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    /// Too long.
    #[error("it has {bytes} bytes, more than {max}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Not PKCS#10, or trailing bytes.
    #[error("it is not a PKCS#10 request")]
    Parse,
    /// Not a P-256 key.
    #[error("its key is not an ECDSA P-256 key")]
    KeyType,
    /// The sender does not hold the private key, or asks for an extension nobody knows.
    #[error("its signature or extensions are not valid")]
    Signature(#[source] rcgen::Error),
}

/// Signs every certificate of `machine`.
///
/// `requests` are PKCS#10 DER by profile name, as a `keys` step returns them. All of the machine's
/// role have to be there and no other.
///
/// # Errors
/// [`IssueError`]; then nothing was issued.
pub fn machine_certificates(
    pki: &ClusterPki,
    cluster: &ClusterFacts,
    machine: &MachineFacts,
    requests: &BTreeMap<String, Vec<u8>>,
    now: Timestamp,
) -> Result<Certificates, IssueError> {
    let profiles = Profile::of(&machine.role);
    check_names(profiles, machine, requests)?;
    let mut signers: BTreeMap<AuthorityName, Signer> = BTreeMap::new();
    let mut certificates = Certificates::new();
    for profile in profiles {
        let name = profile.name();
        let request = requests.get(name).map(Vec::as_slice).unwrap_or_default();
        let params = parse_request(request).map_err(|source| IssueError::Request {
            machine: machine.name.to_string(),
            name,
            source,
        })?;
        let failed = |source| IssueError::Sign {
            machine: machine.name.to_string(),
            name,
            source,
        };
        let signer = match signers.entry(profile.authority()) {
            Entry::Occupied(read) => read.into_mut(),
            Entry::Vacant(new) => {
                let signer = pki.authority(profile.authority()).signer();
                new.insert(signer.map_err(failed)?)
            }
        };
        let names = profile.names(cluster, machine);
        let pem = signer
            .sign(&params.public_key, &names, now, MACHINE_CERTIFICATE_LIFE)
            .map_err(failed)?;
        certificates.insert(name.to_owned(), pem);
    }
    Ok(certificates)
}

fn check_names(
    profiles: &[Profile],
    machine: &MachineFacts,
    requests: &BTreeMap<String, Vec<u8>>,
) -> Result<(), IssueError> {
    let want: BTreeSet<&str> = profiles.iter().map(|p| p.name()).collect();
    let got: BTreeSet<&str> = requests.keys().map(String::as_str).collect();
    if want == got {
        return Ok(());
    }
    let owned = |name: &&str| (*name).chars().take(64).collect();
    Err(IssueError::Names {
        machine: machine.name.to_string(),
        missing: want.difference(&got).map(owned).collect(),
        unexpected: got.difference(&want).take(16).map(owned).collect(),
    })
}

/// Checks size, key type and proof of possession.
fn parse_request(der: &[u8]) -> Result<CertificateSigningRequestParams, CsrError> {
    if der.len() > CSR_BYTES_MAX {
        return Err(CsrError::TooLong {
            bytes: der.len(),
            max: CSR_BYTES_MAX,
        });
    }
    let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Parse)?;
    if !rest.is_empty() {
        return Err(CsrError::Parse);
    }
    // The signature's algorithm says nothing about the curve, so the key itself is looked at.
    let key = &request.certification_request_info.subject_pki;
    let curve = key
        .algorithm
        .parameters
        .as_ref()
        .and_then(|p| p.as_oid().ok());
    let point = &key.subject_public_key.data;
    if key.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY
        || curve.as_ref() != Some(&OID_EC_P256)
        || point.len() != 65
        || point[0] != 4
    {
        return Err(CsrError::KeyType);
    }
    CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der))
        .map_err(CsrError::Signature)
}
