//! Two generations beside one another: who verifies what at each stage.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use windlass_common::clock::Clock;
use windlass_common::id::{Digest, DirectorId, OperatorName};
use windlass_common::pki::{MachineIdentity, PrivateKey, gateway_name, pem};
use windlass_common::tls::{self, PinnedRoot};

use super::{Chain, DirectorCa, Generation, ServerDoor, Stage};

const LIFE: Duration = Duration::from_secs(3600);

fn now() -> Timestamp {
    Timestamp::now()
}

fn at() -> UnixTime {
    let seconds = u64::try_from(now().as_second()).unwrap();
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

fn ca() -> DirectorCa {
    DirectorCa::create(DirectorId::new("d1").unwrap(), now()).unwrap()
}

/// The CA at each stage of its first rotation.
fn stages(ca: &DirectorCa) -> [Stage; 4] {
    let Stage::Alone(older) = ca.stage() else {
        panic!("a new CA is alone");
    };
    let newer = Arc::new(ca.next_generation(now()).unwrap());
    let pair = (older.clone(), newer.clone());
    [
        Stage::Alone(older),
        Stage::Overlap {
            older: pair.0.clone(),
            newer: pair.1.clone(),
        },
        Stage::Reissue {
            older: pair.0,
            newer: pair.1,
        },
        Stage::Alone(newer),
    ]
}

fn agent(ca: &DirectorCa) -> Chain {
    let me: MachineIdentity = "windlass://d1/clusters/demo/machines/demo-cp-0/incarnations/1"
        .parse()
        .unwrap();
    let request = PrivateKey::generate().unwrap().request().unwrap();
    ca.issue_agent(&request, &me, LIFE, now()).unwrap()
}

fn operator(ca: &DirectorCa) -> Chain {
    let name = OperatorName::new("ann").unwrap();
    let made = ca.issue_operator(name, LIFE, now()).unwrap();
    Chain(pem::certificates(made.certificate_pem.as_bytes()).unwrap())
}

fn agent_gets_in(ca: &DirectorCa, chain: &Chain) -> bool {
    let verifier = ca.agent_verifier().unwrap();
    let verified = verifier.verify_client_cert(&chain.0[0], &chain.0[1..], at());
    verified.is_ok()
}

fn operator_gets_in(ca: &DirectorCa, chain: &Chain) -> bool {
    let verifier = ca.operator_verifier().unwrap();
    let verified = verifier.verify_client_cert(&chain.0[0], &chain.0[1..], at());
    verified.is_ok()
}

/// Whether a client that trusts this root believes the chain; by the root itself and by its digest.
fn believed(chain: &[CertificateDer<'_>], root: &CertificateDer<'_>) -> [bool; 2] {
    let name = ServerName::try_from(gateway_name(&DirectorId::new("d1").unwrap())).unwrap();
    let roots = Arc::new(tls::root_store(std::slice::from_ref(root)).unwrap());
    let trusting = WebPkiServerVerifier::builder_with_provider(roots, tls::provider())
        .build()
        .unwrap();
    let verify = |verifier: &dyn ServerCertVerifier| {
        let verified = verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], at());
        verified.is_ok()
    };
    [
        verify(&*trusting),
        verify(&PinnedRoot::new(Digest::of(root))),
    ]
}

#[test]
fn each_stage_trusts_and_issues_what_its_table_says() {
    let ca = ca();
    let [alone, overlap, reissue, dropped] = stages(&ca);
    let old_agent = agent(&ca);
    let old_operator = operator(&ca);
    let old_root = ca.root_der();
    let new_root = overlap.newest().root.certificate.clone();
    let name = gateway_name(ca.director());
    #[rustfmt::skip]
    let cases = [
        // stage, agents' issuer, operators' issuer, old certificates, by the old root, by the new
        (alone,   1, 1, true,  true,  false),
        (overlap, 1, 2, true,  true,  true),
        (reissue, 2, 2, true,  true,  true),
        (dropped, 2, 2, false, false, true),
    ];
    for (stage, agents, operators, old_gets_in, by_old, by_new) in cases {
        let what = format!("{stage:?}");
        ca.enter(stage);
        let (issued, operator) = (agent(&ca), operator(&ca));
        assert_eq!(ca.agent_generation(&issued.0[0]), Some(agents), "{what}");
        assert_eq!(
            ca.operator_generation(&operator.0[0]),
            Some(operators),
            "{what}"
        );
        assert!(agent_gets_in(&ca, &issued), "{what}");
        assert!(operator_gets_in(&ca, &operator), "{what}");
        // One door's certificate opens no other, whatever the generation.
        assert!(!agent_gets_in(&ca, &operator), "{what}");
        assert!(!operator_gets_in(&ca, &issued), "{what}");
        assert_eq!(ca.agent_generation(&operator.0[0]), None, "{what}");

        assert_eq!(agent_gets_in(&ca, &old_agent), old_gets_in, "{what}");
        assert_eq!(operator_gets_in(&ca, &old_operator), old_gets_in, "{what}");
        let known = old_gets_in.then_some(1);
        assert_eq!(ca.agent_generation(&old_agent.0[0]), known, "{what}");
        assert_eq!(ca.operator_generation(&old_operator.0[0]), known, "{what}");

        let shown = ca.issue_server(std::slice::from_ref(&name), &[], LIFE, now());
        let shown = shown.unwrap().chain.0;
        assert_eq!(believed(&shown, &old_root), [by_old; 2], "{what}");
        assert_eq!(believed(&shown, &new_root), [by_new; 2], "{what}");
    }
}

#[test]
fn a_generation_survives_its_record_with_its_bridge() {
    let ca = ca();
    let secret = ca.derive(b"x");
    let Stage::Alone(older) = ca.stage() else {
        panic!("a new CA is alone");
    };
    let newer = ca.next_generation(now()).unwrap();
    let text = newer.to_pem();
    let director = ca.director();
    let read = Generation::from_pem(director, 2, &text, now()).unwrap();
    assert_eq!(read.root_digest(), newer.root_digest());
    assert!(read.bridge.is_some() && read.bridge == newer.bridge);
    // It is not another one's record.
    assert!(Generation::from_pem(director, 1, &text, now()).is_err());
    assert!(Generation::from_pem(director, 2, &older.to_pem(), now()).is_err());
    // What is derived from the CA outlives its first generation.
    let seed = ca.seed().clone();
    let again = DirectorCa::new(director.clone(), seed, Stage::Alone(Arc::new(read)));
    assert_eq!(again.derive(b"x"), secret);
    assert_ne!(again.root_digest(), ca.root_digest());
}

#[test]
fn a_server_shows_a_new_chain_as_soon_as_the_stage_changes() {
    let ca = Arc::new(ca());
    let name = gateway_name(ca.director());
    let door = ServerDoor::new(ca.clone(), vec![name], Vec::new(), LIFE, Clock::system()).unwrap();
    let first = door.certificate(now());
    assert!(Arc::ptr_eq(&first, &door.certificate(now())));
    let [_, overlap, _, dropped] = stages(&ca);
    let new_root = overlap.newest().root.certificate.clone();
    let old_root = ca.root_der();
    ca.enter(overlap);
    let both = door.certificate(now());
    assert_eq!(believed(&both.cert, &old_root), [true; 2]);
    assert_eq!(believed(&both.cert, &new_root), [true; 2]);
    assert!(Arc::ptr_eq(&both, &door.certificate(now())));
    ca.enter(dropped);
    assert_eq!(
        believed(&door.certificate(now()).cert, &old_root),
        [false; 2]
    );
    // And at half of its life, without any change.
    let half = Timestamp::from_second(now().as_second() + 1801).unwrap();
    assert!(!Arc::ptr_eq(
        &door.certificate(now()),
        &door.certificate(half)
    ));
}
