//! What is revoked, for how long, and what the list says to whoever parses it.

use std::time::Duration;

use jiff::SignedDuration;
use rcgen::KeyPair;
use windlass_common::id::ClusterName;
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::super::profile::CertificateNames;
use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn now() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

fn later(days: i64) -> Timestamp {
    now() + SignedDuration::from_hours(24 * days)
}

fn pki() -> ClusterPki {
    ClusterPki::generate(&ClusterName::new("demo").unwrap(), now()).unwrap()
}

fn machine(name: &str) -> MachineName {
    MachineName::new(name).unwrap()
}

/// What a machine is given at a moment, for 30 days: two certificates of the etcd authority and one of another.
fn given(pki: &ClusterPki, at: Timestamp) -> Certificates {
    [
        Profile::EtcdPeer,
        Profile::ApiServerEtcdClient,
        Profile::KubeletClient,
    ]
    .map(|profile| {
        let key = KeyPair::generate().unwrap();
        let names = CertificateNames::client("somebody");
        let authority = pki.authority(profile.authority());
        let signer = authority.signer().unwrap();
        let pem = signer.sign(&key, &names, at, 30 * DAY).unwrap();
        (profile.name().to_owned(), pem)
    })
    .into()
}

/// Serial numbers of the certificates that etcd sees.
fn serials(certificates: &Certificates) -> BTreeSet<Vec<u8>> {
    let etcd = |(name, _): &(&String, &String)| name.as_str() != Profile::KubeletClient.name();
    let of = |(_, pem): (&String, &String)| {
        let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
        pem.parse_x509().unwrap().raw_serial().to_vec()
    };
    certificates.iter().filter(etcd).map(of).collect()
}

/// Fingerprint of the certificate that API servers see.
fn client(certificates: &Certificates) -> String {
    let pem = &certificates[Profile::KubeletClient.name()];
    let (_, pem) = parse_x509_pem(pem.as_bytes()).unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &pem.contents);
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// What the list says, checked against the authority that has to have signed it.
fn listed(revocations: &Revocations, signer: &Authority) -> BTreeSet<Vec<u8>> {
    let der = revocations.list().unwrap();
    let (rest, list) = CertificateRevocationList::from_der(&der).unwrap();
    assert!(rest.is_empty());
    let (_, pem) = parse_x509_pem(signer.certificate_pem.as_bytes()).unwrap();
    let authority = pem.parse_x509().unwrap();
    assert_eq!(list.issuer().as_raw(), authority.subject().as_raw());
    let signed = authority.public_key().subject_public_key.data.clone();
    let key = aws_lc_rs::signature::UnparsedPublicKey::new(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1,
        signed.as_ref(),
    );
    key.verify(list.tbs_cert_list.as_ref(), &list.signature_value.data)
        .unwrap();
    assert_eq!(
        list.crl_number().map(|n| n.to_string()),
        Some(revocations.number().to_string())
    );
    assert_eq!(
        list.next_update().unwrap().timestamp(),
        authority.validity().not_after.timestamp()
    );
    let revoked = list.iter_revoked_certificates();
    revoked.map(|r| r.raw_serial().to_vec()).collect()
}

#[test]
fn what_a_gone_incarnation_was_given_is_refused_and_nothing_else() {
    let pki = pki();
    let (old, renewed, other) = (
        given(&pki, now()),
        given(&pki, later(1)),
        given(&pki, now()),
    );
    let mut revocations = Revocations::default();
    revocations.note(&machine("a"), Incarnation(1), &old);
    revocations.note(&machine("a"), Incarnation(1), &renewed);
    revocations.note(&machine("b"), Incarnation(1), &other);
    revocations.settle(&pki, "demo", later(1)).unwrap();
    assert_eq!(revocations.number(), 1);
    assert_eq!(listed(&revocations, &pki.etcd), BTreeSet::new());

    let next = given(&pki, later(2));
    revocations.revoke(&machine("a"), Incarnation(1), later(2));
    revocations.note(&machine("a"), Incarnation(2), &next);
    revocations.settle(&pki, "demo", later(2)).unwrap();
    let gone: BTreeSet<_> = &serials(&old) | &serials(&renewed);
    assert_eq!(listed(&revocations, &pki.etcd), gone);
    assert_eq!((revocations.number(), gone.len()), (2, 4));
    let clients = [client(&old), client(&renewed)];
    assert_eq!(
        revocations.clients(),
        clients.iter().map(String::as_str).collect()
    );

    // The same again is the same list, to the byte.
    let list = revocations.list().unwrap();
    revocations.note(&machine("a"), Incarnation(2), &next);
    revocations.revoke(&machine("a"), Incarnation(1), later(3));
    revocations.settle(&pki, "demo", later(3)).unwrap();
    assert_eq!(
        (revocations.number(), revocations.list().unwrap()),
        (2, list)
    );
}

#[test]
fn a_name_that_is_given_again_does_not_bring_old_keys_back() {
    let pki = pki();
    let (old, new) = (given(&pki, now()), given(&pki, later(1)));
    let mut revocations = Revocations::default();
    revocations.note(&machine("a"), Incarnation(1), &old);
    revocations.keep(&BTreeMap::new(), later(1)); // its record went
    revocations.note(&machine("a"), Incarnation(1), &new);
    revocations.keep(&[(machine("a"), Incarnation(1))].into(), later(1));
    revocations.settle(&pki, "demo", later(1)).unwrap();
    assert_eq!(listed(&revocations, &pki.etcd), serials(&old));
    assert_eq!(revocations.clients(), [client(&old).as_str()].into());
}

#[test]
fn one_that_turned_out_to_serve_is_accepted_again() {
    let pki = pki();
    let (first, second) = (given(&pki, now()), given(&pki, later(1)));
    let mut revocations = Revocations::default();
    revocations.note(&machine("a"), Incarnation(1), &first);
    revocations.note(&machine("a"), Incarnation(2), &second);
    revocations.revoke(&machine("a"), Incarnation(2), later(2));
    revocations.pardon(&machine("a"), Incarnation(2));
    revocations.settle(&pki, "demo", later(2)).unwrap();
    assert_eq!(listed(&revocations, &pki.etcd), serials(&first));
    assert_eq!(revocations.clients(), [client(&first).as_str()].into());
}

#[test]
fn what_has_expired_is_forgotten() {
    let pki = pki();
    let mut revocations = Revocations::default();
    revocations.note(&machine("a"), Incarnation(1), &given(&pki, now()));
    revocations.revoke(&machine("a"), Incarnation(1), now());
    revocations.settle(&pki, "demo", later(29)).unwrap();
    assert_eq!(listed(&revocations, &pki.etcd).len(), 2);
    assert_eq!(revocations.clients().len(), 1);
    revocations.settle(&pki, "demo", later(31)).unwrap();
    assert!(revocations.issued.is_empty());
    assert_eq!(listed(&revocations, &pki.etcd), BTreeSet::new());
}

#[test]
fn a_rotation_has_the_list_signed_by_whoever_signs() {
    let mut pki = pki();
    let old = given(&pki, now());
    let mut revocations = Revocations::default();
    revocations.note(&machine("a"), Incarnation(1), &old);
    revocations.revoke(&machine("a"), Incarnation(1), now());
    revocations.settle(&pki, "demo", now()).unwrap();
    let name = ClusterName::new("demo").unwrap();
    pki.trust_newer(&name, later(1)).unwrap();
    revocations.settle(&pki, "demo", later(1)).unwrap();
    assert_eq!(revocations.number(), 1, "the older one signs still");
    pki.accept_newer();
    pki.sign_with_newer();
    // What was revoked of the older authority stays in the list of the newer: etcd compares numbers alone.
    revocations.settle(&pki, "demo", later(1)).unwrap();
    assert_eq!(revocations.number(), 2);
    assert_eq!(listed(&revocations, &pki.etcd), serials(&old));
}

#[test]
fn whoever_has_the_newest_list_is_told_nothing() {
    let pki = pki();
    let (name, first) = (machine("a"), Incarnation(1));
    let mut revocations = Revocations::default();
    revocations.settle(&pki, "demo", now()).unwrap();
    assert!(!revocations.knows(&name, first));
    revocations.tell(&name, first, 1);
    assert!(revocations.knows(&name, first));
    assert!(
        !revocations.knows(&name, Incarnation(2)),
        "it has another disk"
    );
    revocations.note(&machine("b"), first, &given(&pki, now()));
    revocations.keep(&[(name.clone(), first)].into(), now());
    revocations.settle(&pki, "demo", now()).unwrap();
    assert!(!revocations.knows(&name, first), "there is a newer one");
}

#[test]
fn a_ledger_that_is_full_forgets_what_expires_first_of_what_is_refused() {
    let mut revocations = Revocations::default();
    let entry = |serial: usize, expires_at_s, revoked_at_s| Issued {
        machine: machine("a"),
        incarnation: Incarnation(1),
        serial: BASE64.encode(serial.to_be_bytes()),
        client: None,
        expires_at_s,
        revoked_at_s,
    };
    let end = later(100).as_second();
    revocations.issued = (0..ISSUED_MAX)
        .map(|i| entry(1 + i, end, Some(0)))
        .chain([
            entry(0xffff, end - 1, Some(0)),
            entry(0xfffe, end - 2, None),
        ])
        .collect();
    assert_eq!(revocations.settle(&pki(), "demo", now()).unwrap(), 2);
    assert_eq!(revocations.issued.len(), ISSUED_MAX);
    let left = |serial: usize| {
        let serial = BASE64.encode(serial.to_be_bytes());
        revocations.issued.iter().any(|i| i.serial == serial)
    };
    assert!(left(0xfffe), "one that is in use");
    assert!(!left(0xffff), "the one that expires first");
    assert!(revocations.list().unwrap().len() < 400 << 10);
}

/// A ledger of a release that told members of etcd alone: its list is made anew, so that all are told again.
#[test]
fn a_ledger_of_etcd_alone_has_its_members_told_again() {
    let (pki, name, first) = (pki(), machine("a"), Incarnation(1));
    let given = given(&pki, now());
    let mut revocations = Revocations::default();
    revocations.note(&name, first, &given);
    revocations.settle(&pki, "demo", now()).unwrap();
    revocations.tell(&name, first, 1);
    let mut earlier = serde_json::to_value(&revocations).unwrap();
    earlier["list"]["says"] = serde_json::to_value(Digest::of(b"")).unwrap();
    let issued = earlier["issued"].as_array_mut().unwrap();
    issued.retain(|issued| issued.get("client").is_none());
    assert_eq!(issued.len(), 2);

    let mut revocations: Revocations = serde_json::from_value(earlier).unwrap();
    revocations.settle(&pki, "demo", now()).unwrap();
    assert!(!revocations.knows(&name, first));
    // What is in use is noted once it is refused.
    revocations.note(&name, first, &given);
    revocations.revoke(&name, first, now());
    revocations.settle(&pki, "demo", now()).unwrap();
    assert_eq!(listed(&revocations, &pki.etcd), serials(&given));
    assert_eq!(revocations.clients(), [client(&given).as_str()].into());
}
