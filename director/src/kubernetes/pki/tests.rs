//! Certificates say what they should, requests are believed in nothing but their key.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;
use rcgen::{CertificateParams, DnType, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
use windlass_common::id::Incarnation;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::{Pem, parse_x509_pem};

use super::super::facts::{ClusterFacts, HostTraits, MachineFacts};
use super::super::fixtures::cluster;
use super::*;

fn now() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().unwrap()
}

fn pki() -> ClusterPki {
    ClusterPki::generate(&ClusterName::new("demo").unwrap(), now()).unwrap()
}

/// What a machine sends: requests that ask for names the machine must not get.
fn requests(machine: &MachineFacts) -> BTreeMap<String, Vec<u8>> {
    let request = |profile: &Profile| {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, "system:admin");
        params
            .distinguished_name
            .push(DnType::OrganizationName, "system:masters");
        let der = params.serialize_request(&key).unwrap().der().to_vec();
        (profile.name().to_owned(), der)
    };
    Profile::of(&machine.role).iter().map(request).collect()
}

struct Seen {
    common_name: String,
    organizations: Vec<String>,
    names: BTreeSet<String>,
    client: bool,
    server: bool,
    ca: bool,
    life_s: i64,
}

fn pem(text: &str) -> Pem {
    parse_x509_pem(text.as_bytes()).unwrap().1
}

fn see(certificate: &X509Certificate<'_>) -> Seen {
    let text = |v: &x509_parser::x509::AttributeTypeAndValue<'_>| v.as_str().unwrap().to_owned();
    let subject = certificate.subject();
    let names = certificate.subject_alternative_name().unwrap();
    let names = names
        .iter()
        .flat_map(|n| &n.value.general_names)
        .map(|name| match name {
            GeneralName::DNSName(name) => (*name).to_owned(),
            GeneralName::IPAddress(bytes) => {
                IpAddr::from(<[u8; 4]>::try_from(*bytes).unwrap()).to_string()
            }
            other => panic!("unexpected name {other:?}"),
        });
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    let validity = certificate.validity();
    Seen {
        common_name: subject.iter_common_name().map(text).collect(),
        organizations: subject.iter_organization().map(text).collect(),
        names: names.collect(),
        client: usage.client_auth,
        server: usage.server_auth,
        ca: certificate.is_ca(),
        life_s: validity.not_after.timestamp() - validity.not_before.timestamp(),
    }
}

fn issue(cluster: &ClusterFacts, machine: &MachineFacts, pki: &ClusterPki) -> Certificates {
    machine_certificates(pki, cluster, machine, &requests(machine), now()).unwrap()
}

#[test]
fn a_document_survives_the_store_and_hides_its_keys() {
    let pki = pki();
    let bytes = pki.to_bytes();
    assert_eq!(ClusterPki::from_bytes(&bytes).unwrap(), pki);
    let shown = format!("{pki:?}");
    assert!(!shown.contains("PRIVATE KEY"), "{shown}");
    assert!(
        !shown.contains(pki.encryption[0].secret.expose()),
        "{shown}"
    );
}

#[test]
fn a_damaged_document_is_refused() {
    let (good, other) = (pki(), pki());
    let mut swapped = good.clone();
    swapped.etcd.certificate_pem = other.etcd.certificate_pem.clone();
    let mut mixed = good.clone();
    mixed.service_account.public_pem = other.service_account.public_pem;
    let mut short = good.clone();
    short.encryption[0].secret = Secret::new("AAAA".to_owned());
    let mut newer = good.clone();
    newer.version = 2;
    for (what, document) in [
        ("authority etcd", swapped.to_bytes()),
        ("service account", mixed.to_bytes()),
        ("encryption", short.to_bytes()),
        ("version 2", newer.to_bytes()),
        ("cannot be read", SecretBytes::new(b"{}".to_vec())),
        ("more than", SecretBytes::new(vec![b' '; 1 << 20])),
    ] {
        let error = ClusterPki::from_bytes(&document).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
}

#[test]
fn every_certificate_verifies_against_its_authority_alone() {
    let (pki, cluster) = (pki(), cluster(1, 1, HostTraits::default()));
    let machine = &cluster.machines[0];
    let certificates = issue(&cluster, machine, &pki);
    assert_eq!(certificates.len(), 11);
    for profile in Profile::of(&machine.role) {
        let own = pem(&certificates[profile.name()]);
        let certificate = own.parse_x509().unwrap();
        for name in [
            AuthorityName::Kubernetes,
            AuthorityName::Etcd,
            AuthorityName::FrontProxy,
        ] {
            let authority = pem(&pki.authority(name).certificate_pem);
            let key = authority.parse_x509().unwrap();
            let verified = certificate.verify_signature(Some(key.public_key())).is_ok();
            assert_eq!(
                verified,
                name == profile.authority(),
                "{profile:?} {name:?}"
            );
        }
    }
}

#[test]
fn certificates_carry_the_names_of_the_table() {
    let (pki, cluster) = (pki(), cluster(1, 1, HostTraits::default()));
    let machine = &cluster.machines[0];
    let certificates = issue(&cluster, machine, &pki);
    let node = "demo-control-0-i1";
    let group = "windlass:node:demo-control-0-i1";
    let api = "kubernetes kubernetes.default kubernetes.default.svc \
               kubernetes.default.svc.cluster.local localhost demo.windlass.internal 127.0.0.1 \
               10.96.0.1 10.88.0.2 10.88.0.10";
    let own = "demo-control-0-i1 localhost 10.88.0.10 127.0.0.1";
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("kubelet-client",           format!("system:node:{node}"),            "system:nodes", true,  false, ""),
        ("kubelet-server",           format!("system:node:{node}"),            "",             false, true,  "demo-control-0-i1 10.88.0.10"),
        ("kube-proxy",               "system:kube-proxy".into(),               group,          true,  false, ""),
        ("apiserver",                "kube-apiserver".into(),                  "",             false, true,  api),
        ("apiserver-kubelet-client", "windlass:apiserver-kubelet-client".into(), group,        true,  false, ""),
        ("apiserver-etcd-client",    "windlass:apiserver".into(),              "",             true,  false, ""),
        ("etcd-server",              node.into(),                              "",             false, true,  own),
        ("etcd-peer",                "windlass:etcd-peer".into(),              "",             true,  true,  own),
        ("front-proxy-client",       "front-proxy-client".into(),              "",             true,  false, ""),
        ("kube-controller-manager",  "system:kube-controller-manager".into(),  group,          true,  true,  "localhost 127.0.0.1"),
        ("kube-scheduler",           "system:kube-scheduler".into(),           group,          true,  true,  "localhost 127.0.0.1"),
    ];
    assert_eq!(cases.len(), certificates.len());
    for (name, common_name, organization, client, server, names) in cases {
        let pem = pem(&certificates[name]);
        let seen = see(&pem.parse_x509().unwrap());
        assert_eq!(seen.common_name, common_name, "{name}");
        assert_eq!(seen.organizations.join(","), organization, "{name}");
        assert_eq!(
            (seen.client, seen.server, seen.ca),
            (client, server, false),
            "{name}"
        );
        let names: BTreeSet<String> = names.split_whitespace().map(str::to_owned).collect();
        assert_eq!(seen.names, names, "{name}");
        assert_eq!(seen.life_s, 365 * 24 * 3600 + 300, "{name}");
    }
}

/// What a client of the API server may write follows its incarnation: none may be nobody's.
#[test]
fn every_client_of_the_api_server_names_its_incarnation() {
    let pki = pki();
    let mut cluster = cluster(1, 1, HostTraits::default());
    for machine in &mut cluster.machines {
        machine.node_name = machine.name.node_name(Incarnation(12)).unwrap();
    }
    for machine in &cluster.machines {
        let node = machine.node_name.as_str();
        let certificates = issue(&cluster, machine, &pki);
        for profile in Profile::of(&machine.role) {
            let pem = pem(&certificates[profile.name()]);
            let seen = see(&pem.parse_x509().unwrap());
            if !seen.client || profile.authority() != AuthorityName::Kubernetes {
                continue;
            }
            let named = seen.common_name == format!("system:node:{node}")
                || seen.organizations == [format!("{MACHINE_GROUP_PREFIX}{node}")];
            assert!(named, "{profile:?} of {node}");
        }
    }
}

#[test]
fn serial_numbers_differ() {
    let (pki, cluster) = (pki(), cluster(1, 2, HostTraits::default()));
    let mut serials = BTreeSet::new();
    for machine in &cluster.machines {
        for text in issue(&cluster, machine, &pki).values() {
            assert!(serials.insert(pem(text).parse_x509().unwrap().raw_serial().to_vec()));
        }
    }
    assert_eq!(serials.len(), 11 + 3 + 3);
}

#[test]
fn requests_must_be_those_of_the_role() {
    let (pki, cluster) = (pki(), cluster(1, 1, HostTraits::default()));
    let worker = &cluster.machines[1];
    let mut wrong = requests(worker);
    let request = wrong.remove("kube-proxy").unwrap();
    wrong.insert("apiserver".to_owned(), request);
    let error = machine_certificates(&pki, &cluster, worker, &wrong, now()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("kube-proxy") && text.contains("apiserver"),
        "{text}"
    );
}

#[test]
fn bad_requests_are_refused() {
    let (pki, cluster) = (pki(), cluster(1, 1, HostTraits::default()));
    let worker = &cluster.machines[1];
    let good = requests(worker)["kube-proxy"].clone();
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    let mut longer = good.clone();
    longer.push(0);
    let p384 = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = CertificateParams::default()
        .serialize_request(&p384)
        .unwrap()
        .der()
        .to_vec();
    let cases = [
        ("forged", forged),
        ("trailing", longer),
        ("curve", p384),
        ("empty", Vec::new()),
        ("huge", vec![0x30; 5000]),
        ("noise", vec![0x30; 100]),
    ];
    for (name, der) in cases {
        let mut all = requests(worker);
        all.insert("kube-proxy".to_owned(), der);
        let result = machine_certificates(&pki, &cluster, worker, &all, now());
        assert!(
            matches!(result, Err(IssueError::Request { .. })),
            "{name}: {result:?}"
        );
    }
}

#[test]
fn only_the_bootstrap_identity_is_a_master() {
    let pki = pki();
    let demo = ClusterName::new("demo").unwrap();
    let see = |identity: &ClientIdentity| {
        let pem = pem(&identity.certificate_pem);
        see(&pem.parse_x509().unwrap())
    };
    let bootstrap = see(&bootstrap_identity(&pki, &demo, now()).unwrap());
    assert_eq!(bootstrap.organizations, ["system:masters"]);
    assert_eq!(bootstrap.life_s, 600 + 300);
    let expires_at = bootstrap_identity(&pki, &demo, now()).unwrap().expires_at;
    assert_eq!((expires_at - now()).as_secs(), 600);
    let director = see(&director_identity(&pki, &demo, now()).unwrap());
    assert_eq!(
        (director.common_name.as_str(), director.organizations.len()),
        (DIRECTOR_USER, 0)
    );
    let operator = operator_identity(&pki, &demo, &"x".repeat(200), now()).unwrap();
    let operator = see(&operator);
    assert_eq!(operator.organizations, [CLUSTER_ADMINS_GROUP]);
    assert!(operator.common_name.starts_with("windlass:operator:x"));
    assert!(operator.common_name.len() <= 64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn no_certificate_names_another_machine(
        control_planes in prop::sample::select(vec![1u32, 3, 5]), workers in 1u32..4,
    ) {
        let (pki, cluster) = (pki(), cluster(control_planes, workers, HostTraits::default()));
        for machine in &cluster.machines {
            let foreign: BTreeSet<String> = cluster
                .machines
                .iter()
                .filter(|other| other.name != machine.name)
                .flat_map(|o| [o.address.to_string(), o.node_name.to_string()])
                .collect();
            for text in issue(&cluster, machine, &pki).values() {
                let pem = pem(text);
                let seen = see(&pem.parse_x509().unwrap());
                prop_assert!(seen.names.is_disjoint(&foreign));
                prop_assert!(!seen.names.contains("evil.example"));
                prop_assert!(!foreign.contains(&seen.common_name.replace("system:node:", "")));
                prop_assert!(!seen.organizations.contains(&"system:masters".to_owned()));
                let mut groups = seen.organizations.iter();
                let own = groups.all(|group| match group.strip_prefix(MACHINE_GROUP_PREFIX) {
                    Some(of) => of == machine.node_name.as_str(),
                    None => true,
                });
                prop_assert!(own);
            }
        }
    }
}

#[test]
fn certificates_are_due_after_two_thirds_and_name_their_signer() {
    let (now, pki) = (now(), pki());
    let cluster = cluster(1, 0, HostTraits::default());
    let issued = issue(&cluster, &cluster.machines[0], &pki);
    let validity = Validity::of(&issued).unwrap();
    assert_eq!(validity.until, now + MACHINE_CERTIFICATE_LIFE);
    assert!(!validity.is_due(now + MACHINE_CERTIFICATE_LIFE / 2));
    assert!(validity.is_due(now + MACHINE_CERTIFICATE_LIFE * 2 / 3));
    assert!(pki.signed(&issued));
    // Another authority of the same name is another one.
    assert!(!self::pki().signed(&issued));
    assert_eq!(Validity::of(&Certificates::new()), None);
    assert_eq!(pki.authorities_expire_at(), Some(now + AUTHORITY_LIFE));
}
