use windlass_common::secret::SecretBytes;

use super::*;

fn now() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

fn demo() -> ClusterName {
    ClusterName::new("demo").unwrap()
}

fn kept(pki: &ClusterPki) -> ClusterPki {
    ClusterPki::from_bytes(&pki.to_bytes()).unwrap()
}

fn count(pem: &str, what: &str) -> usize {
    pem.matches(what).count()
}

#[test]
fn both_generations_are_trusted_from_before_the_first_leaf_until_after_the_last() {
    let mut pki = ClusterPki::generate(&demo(), now()).unwrap();
    let old = pki.clone();
    pki.trust_newer(&demo(), now()).unwrap();
    let prepared = pki.clone();
    pki.trust_newer(&demo(), now()).unwrap();
    assert_eq!(pki, prepared, "made once");
    let names = [
        AuthorityName::Kubernetes,
        AuthorityName::Etcd,
        AuthorityName::FrontProxy,
    ];
    for name in names {
        let trusted = pki.trusted(name);
        assert!(trusted.starts_with(&old.trusted(name)), "the old one signs");
        assert_eq!(count(&trusted, "BEGIN CERTIFICATE"), 2);
    }
    assert!(pki.signer_of_clients() == &old.kubernetes);
    pki.accept_newer();
    assert!(pki.signer_of_clients() != &old.kubernetes);
    assert!(pki.kubernetes == old.kubernetes);
    pki = kept(&pki);
    let (before, oldest) = (pki.clone(), pki.mark_of_oldest().unwrap());
    pki.sign_with_newer();
    for name in names {
        let trusted = pki.trusted(name);
        assert!(
            trusted.ends_with(old.trusted(name).as_str()),
            "the new one signs"
        );
        assert_eq!(count(&trusted, "BEGIN CERTIFICATE"), 2);
        assert_ne!(
            trusted,
            before.trusted(name),
            "what reads it is started anew"
        );
    }
    assert_eq!(pki.mark_of_oldest(), Some(oldest));
    assert_eq!(pki.mark_of_newest(), before.mark_of_newest());
    let kept_keys = String::from_utf8(pki.to_bytes().expose().to_vec()).unwrap();
    // Three authorities and the key for tokens, of one generation.
    assert_eq!(count(&kept_keys, "BEGIN PRIVATE KEY"), 4);
    assert_eq!(count(&pki.token_keys(), "BEGIN PUBLIC KEY"), 2);
    pki = kept(&pki);
    pki.drop_former_authorities();
    for name in names {
        assert_eq!(pki.trusted(name), pki.authority(name).certificate_pem);
    }
    assert_eq!(count(&pki.token_keys(), "BEGIN PUBLIC KEY"), 2);
    pki = kept(&pki);
    pki.drop_former();
    assert_eq!(pki.token_keys(), pki.service_account.public_pem);
    assert_eq!(kept(&pki), pki);
    // The next rotation makes a third generation, with a name of its own.
    pki.trust_newer(&demo(), now()).unwrap();
    assert_eq!(
        count(&pki.trusted(AuthorityName::Etcd), "BEGIN CERTIFICATE"),
        2
    );
}

#[test]
fn a_certificate_tells_its_generation() {
    let mut pki = ClusterPki::generate(&demo(), now()).unwrap();
    let subject = |pem: &str| {
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        pem.parse_x509().unwrap().subject().to_string()
    };
    let old = subject(&pki.kubernetes.certificate_pem);
    pki.trust_newer(&demo(), now()).unwrap();
    pki.sign_with_newer();
    let new = subject(&pki.kubernetes.certificate_pem);
    assert_eq!(
        (old.as_str(), new.as_str()),
        (
            "CN=windlass demo kubernetes",
            "CN=windlass demo kubernetes 2"
        )
    );
}

#[test]
fn the_first_encryption_key_writes_and_all_read() {
    let mut pki = ClusterPki::generate(&demo(), now()).unwrap();
    let names = |pki: &ClusterPki| -> Vec<String> {
        pki.encryption.iter().map(|key| key.name.clone()).collect()
    };
    for number in 2..5 {
        let (old, new) = (format!("key{}", number - 1), format!("key{number}"));
        pki.add_encryption_key().unwrap();
        assert_eq!(names(&pki), [old.clone(), new.clone()]);
        pki.use_encryption_key();
        assert_eq!(names(&kept(&pki)), [new.clone(), old]);
        pki.drop_encryption_keys();
        assert_eq!(names(&pki), [new]);
    }
}

#[test]
fn a_damaged_next_generation_is_refused() {
    let mut pki = ClusterPki::generate(&demo(), now()).unwrap();
    let other = ClusterPki::generate(&demo(), now()).unwrap();
    pki.trust_newer(&demo(), now()).unwrap();
    pki.newer.as_mut().unwrap().etcd.certificate_pem = other.etcd.certificate_pem;
    let text = pki.to_bytes();
    let refused = ClusterPki::from_bytes(&SecretBytes::new(text.expose().to_vec()));
    assert!(
        matches!(refused, Err(PkiError::Damaged { .. })),
        "{refused:?}"
    );
}
