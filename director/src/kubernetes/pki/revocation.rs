//! Which certificates of its control-plane machines a cluster refuses: a ledger of what was issued, the list that members
//! of etcd read, and the list of clients that API servers read.
//!
//! A control-plane machine that was replaced keeps its keys: of etcd peer, server and the API server's client key, and
//! those with which its components are clients of API servers and of kubelets. It is proven off before it is replaced;
//! this is for the one that is started again by somebody, and for copies of its keys.
//! Members read their list at each handshake (`--client-crl-file`, `--peer-crl-file`), so that it changes without a
//! restart. They compare serial numbers, and look neither at who signed the list nor at when the next is due (etcd 3.5
//! and 3.6, `client/pkg/transport/listener_tls.go`): one list serves the authorities of both generations while a
//! rotation has them side by side, and is signed by the one that signs certificates. API servers know who comes with a
//! certificate by its fingerprint (`authentication.kubernetes.io/credential-id`, since Kubernetes 1.32), and pass that on
//! where they are asked by kubelets: [`Revocations::clients`] are fingerprints, and not names, which a machine that is made
//! anew may have again.
//!
//! # Invariants
//! * Revoked is what an incarnation was given that is gone, and never what the incarnation in service was given: one
//!   that is renewed keeps its earlier certificates.
//! * What was revoked stays so until it expires, whoever is called by its machine's name later. The one exception is a
//!   machine that was about to be shut out and turned out to serve ([`Revocations::pardon`]).
//! * The ledger holds only what has not expired, and 6144 certificates at most.
//! * Same lists, same bytes: etcd's is signed once and kept, with a number that grows with each change of either.
//!
//! # Not here
//! The certificate with which API servers speak to aggregated ones: those take users from whoever has it, and look at no
//! list (`kubernetes/addons/aggregation.rs`). Workers, whose kubelets read what follows their pods. Certificates that were
//! issued before there was a ledger, to incarnations that were gone by then: these are refused once they expire, or once a
//! rotation has replaced the authorities. How the list reaches machines (`rollout/world/revocation.rs`).

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use windlass_common::id::{Digest, Incarnation, MachineName};
use x509_parser::pem::parse_x509_pem;

use super::profile::{AuthorityName, Profile};
use super::{Authority, Certificates, ClusterPki, PkiError};

/// Certificates that the ledger of one cluster holds. Each machine of a control plane is given eight a time, so these
/// are 768 replacements and renewals a year. Lists of that many are 160 KiB, less than a fifth of what a step may carry,
/// and an expression of API servers may have 100 000 characters.
const ISSUED_MAX: usize = 6144;
/// Grows with what members are told besides, so that all are told again.
const TELLS: &str = "2";

/// The ledger of one cluster, and its list. Its machines are those of the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Revocations {
    /// Number of the list; 0 before there is one.
    number: u64,
    issued: Vec<Issued>,
    list: Option<List>,
    /// Which list each machine was told last.
    told: BTreeMap<MachineName, Told>,
}

/// A certificate that somebody has to be told of, once it counts no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Issued {
    machine: MachineName,
    incarnation: Incarnation,
    /// Base64 of the number, big-endian and without leading zeros.
    serial: String,
    /// SHA-256 of a certificate for API servers, hex; absent with one of the etcd authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client: Option<String>,
    /// Seconds since 1970.
    expires_at_s: i64,
    /// Seconds since 1970; absent as long as it is accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revoked_at_s: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct List {
    /// The authority that signed it: digest of its certificate.
    signer: Digest,
    /// What it and the list of clients say: digest of the serial numbers in both.
    says: Digest,
    /// DER, Base64.
    der: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    incarnation: Incarnation,
    number: u64,
}

impl Revocations {
    /// Number of the list; 0 before there is one.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// SHA-256 of each certificate that API servers refuse, hex, in order.
    pub fn clients(&self) -> BTreeSet<&str> {
        self.revoked().filter_map(|i| i.client.as_deref()).collect()
    }

    /// The list of etcd, DER.
    ///
    /// # Errors
    /// [`PkiError::Damaged`]: there is none, or it is no Base64.
    pub fn list(&self) -> Result<Vec<u8>, PkiError> {
        let what = "the revocation list of etcd";
        let list = self.list.as_ref().ok_or(PkiError::Damaged { what })?;
        let der = BASE64.decode(&list.der);
        der.map_err(|_| PkiError::Damaged { what })
    }

    /// Adds what an incarnation was given; what is there already is left as it is. Certificates that cannot be read
    /// are nobody's: etcd could not read them either.
    pub fn note(
        &mut self,
        machine: &MachineName,
        incarnation: Incarnation,
        certificates: &Certificates,
    ) {
        for (name, pem) in certificates {
            let is_client = match Profile::named(name) {
                Some(profile) if profile.authority() == AuthorityName::Etcd => false,
                Some(profile) if profile.is_api_client() => true,
                _ => continue,
            };
            let Some(Read {
                serial,
                fingerprint,
                expires_at_s,
            }) = read(pem)
            else {
                continue;
            };
            if self.issued.iter().all(|issued| issued.serial != serial) {
                self.issued.push(Issued {
                    machine: machine.clone(),
                    incarnation,
                    serial,
                    client: is_client.then_some(fingerprint),
                    expires_at_s,
                    revoked_at_s: None,
                });
            }
        }
    }

    /// Refuses what a machine was given in this incarnation and those before.
    pub fn revoke(&mut self, machine: &MachineName, last: Incarnation, now: Timestamp) {
        self.revoke_where(now, |issued| {
            issued.machine == *machine && issued.incarnation <= last
        });
    }

    /// Refuses what incarnations were given that are none of these: `current` are the machines of the control plane.
    pub fn keep(&mut self, current: &BTreeMap<MachineName, Incarnation>, now: Timestamp) {
        self.revoke_where(now, |issued| {
            current
                .get(&issued.machine)
                .is_none_or(|incarnation| issued.incarnation < *incarnation)
        });
        self.told.retain(|machine, _| current.contains_key(machine));
    }

    /// Accepts again what this incarnation was given: it was about to be shut out, and serves.
    pub fn pardon(&mut self, machine: &MachineName, incarnation: Incarnation) {
        let of = self
            .issued
            .iter_mut()
            .filter(|issued| issued.machine == *machine && issued.incarnation == incarnation);
        for issued in of {
            issued.revoked_at_s = None;
        }
    }

    /// Forgets what has expired, and brings the list up to what is revoked and to the authority that signs. Returns
    /// how many certificates had to be forgotten before they expired because there are too many.
    ///
    /// # Errors
    /// [`PkiError::Make`]: the authority could not sign.
    pub fn settle(
        &mut self,
        pki: &ClusterPki,
        cluster: &str,
        now: Timestamp,
    ) -> Result<usize, PkiError> {
        self.issued
            .retain(|issued| issued.expires_at_s >= now.as_second());
        let surplus = self.bound();
        let authority = pki.authority(AuthorityName::Etcd);
        let signer = Digest::of(authority.certificate_pem.as_bytes());
        let serials: BTreeSet<&str> = self.revoked().map(|i| i.serial.as_str()).collect();
        let said = format!("{TELLS};{}", Vec::from_iter(serials).join(","));
        let says = Digest::of(said.as_bytes());
        let current = |list: &List| list.signer == signer && list.says == says;
        if self.list.as_ref().is_some_and(current) {
            return Ok(surplus);
        }
        let number = self.number + 1;
        let der = self
            .sign(authority, number, now)
            .map_err(|source| PkiError::Make {
                what: "the revocation list of etcd",
                cluster: cluster.to_owned(),
                source,
            })?;
        let der = BASE64.encode(der);
        self.list = Some(List { signer, says, der });
        self.number = number;
        Ok(surplus)
    }

    /// Notes that an incarnation has this list.
    pub fn tell(&mut self, machine: &MachineName, incarnation: Incarnation, number: u64) {
        let told = Told {
            incarnation,
            number,
        };
        self.told.insert(machine.clone(), told);
    }

    /// Whether an incarnation has the newest list.
    pub fn knows(&self, machine: &MachineName, incarnation: Incarnation) -> bool {
        let newest = Told {
            incarnation,
            number: self.number,
        };
        self.told.get(machine) == Some(&newest)
    }

    fn revoked(&self) -> impl Iterator<Item = &Issued> {
        let issued = self.issued.iter();
        issued.filter(|issued| issued.revoked_at_s.is_some())
    }

    fn revoke_where(&mut self, now: Timestamp, gone: impl Fn(&Issued) -> bool) {
        for issued in &mut self.issued {
            if issued.revoked_at_s.is_none() && gone(issued) {
                issued.revoked_at_s = Some(now.as_second());
            }
        }
    }

    /// Keeps the ledger within `ISSUED_MAX`: what is refused and expires first goes first.
    fn bound(&mut self) -> usize {
        let surplus = self.issued.len().saturating_sub(ISSUED_MAX);
        if surplus > 0 {
            self.issued
                .sort_by_key(|issued| (issued.revoked_at_s.is_none(), issued.expires_at_s));
            self.issued.drain(..surplus);
        }
        surplus
    }

    fn sign(
        &self,
        authority: &Authority,
        number: u64,
        now: Timestamp,
    ) -> Result<Vec<u8>, rcgen::Error> {
        let of_etcd = self.revoked().filter(|issued| issued.client.is_none());
        let revoked = of_etcd.map(|issued| {
            let serial = BASE64.decode(&issued.serial);
            let serial = serial.map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(&serial),
                revocation_time: moment(issued.revoked_at_s.unwrap_or_else(|| now.as_second())),
                reason_code: None,
                invalidity_date: None,
            })
        });
        let revoked_certs = revoked.collect::<Result<Vec<_>, rcgen::Error>>()?;
        authority.sign_list(number, revoked_certs, now)
    }
}

impl Authority {
    /// Signs a list; it is the newest until another is made, so the next is due when the authority expires.
    fn sign_list(
        &self,
        number: u64,
        revoked_certs: Vec<RevokedCertParams>,
        now: Timestamp,
    ) -> Result<Vec<u8>, rcgen::Error> {
        let Read { expires_at_s, .. } =
            read(&self.certificate_pem).ok_or(rcgen::Error::CouldNotParseCertificate)?;
        let now_s = now.as_second();
        let params = CertificateRevocationListParams {
            this_update: moment(now_s),
            next_update: moment(expires_at_s.max(now_s.saturating_add(1))),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(params.signed_by(&self.issuer()?)?.der().to_vec())
    }
}

/// What is kept of a certificate.
struct Read {
    serial: String,
    /// SHA-256 of all of it, hex.
    fingerprint: String,
    expires_at_s: i64,
}

/// The first certificate of a PEM chain.
fn read(pem: &str) -> Option<Read> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let serial = certificate.raw_serial();
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    Some(Read {
        serial: BASE64.encode(&serial[zeros..]),
        fingerprint: Digest::of(&pem.contents).hex(),
        expires_at_s: certificate.validity().not_after.timestamp(),
    })
}

fn moment(seconds: i64) -> OffsetDateTime {
    // What certificates and clocks say is within the years that `time` has.
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
#[path = "revocation_tests.rs"]
mod tests;
