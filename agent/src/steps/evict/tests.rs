//! The step against a TLS server on loopback that answers as API servers do.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use hyper::header::HeaderValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use windlass_common::step::{Progress, StepId};

use super::super::testing::{Ca, NAME, acceptor, ca, client, context};
use super::*;
use crate::link::ProgressSink;
use crate::steps::Reporter;

/// What was asked of the API: method and path, and the body.
type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// Answers requests, several on one connection, as `answer` says of method and path; ends a connection where it says
/// nothing.
async fn serve(
    ca: &Ca,
    answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
) -> (SocketAddr, Asked) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (acceptor, asked) = (acceptor(ca), Asked::default());
    let seen = asked.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut bytes = Vec::new();
            while stream.read_buf(&mut bytes).await.unwrap_or(0) > 0 {
                let text = String::from_utf8(bytes.clone()).unwrap();
                let Some((head, body)) = text.split_once("\r\n\r\n") else {
                    continue;
                };
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "));
                if body.len() < length.map_or(0, |length| length.parse().unwrap()) {
                    continue;
                }
                let (request, _) = head.split_once(" HTTP/1.1").unwrap();
                seen.lock().unwrap().push((request.into(), body.into()));
                bytes.clear();
                let Some(answer) = answer(request) else {
                    break;
                };
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            let _ = stream.shutdown().await;
        }
    });
    (address, asked)
}

fn http(status: &str, body: &str) -> Option<String> {
    let length = body.len();
    Some(format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}"
    ))
}

fn pod(name: &str, how: EvictHow) -> EvictPod {
    EvictPod {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        grace_seconds: Some(7).filter(|_| how == EvictHow::Delete),
        how,
    }
}

/// Carries the step out; returns what became of each pod, and what was changed.
async fn carry_out(
    trusted: &Ca,
    shown: &Ca,
    address: SocketAddr,
    pods: Vec<EvictPod>,
) -> Result<(Vec<EvictAnswer>, Vec<String>), Failure> {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("ca.pem"), trusted.pem()).unwrap();
    let step = windlass_common::step::Step::Evict(Evict {
        address,
        server_name: NAME.to_owned(),
        ca_path: "/ca.pem".to_owned(),
        client: client(root.path(), shown),
        node: "demo-workers-0-i1".to_owned(),
        pods,
    });
    let id = StepId("t/evict".to_owned());
    assert_eq!(super::super::check::check(&id, &step), Vec::<String>::new());
    let (sink, mut progress) = ProgressSink::channel(64);
    let run = Run::new(Reporter::new(sink));
    let done = super::super::run(&context(root.path()), &run, &id, &step).await;
    let changes = run.changes();
    drop(run);
    let mut said = Vec::new();
    while let Some(item) = progress.recv().await {
        if let Progress::Output { bytes, .. } = item {
            said.extend(bytes);
        }
    }
    done?;
    let answers = String::from_utf8(said).unwrap();
    let answers = answers.lines().map(|l| serde_json::from_str(l).unwrap());
    Ok((answers.collect(), changes))
}

const ONE: &str = r#"{"kind":"PartialObjectMetadataList","items":[{"metadata":{}}]}"#;
const NONE: &str = r#"{"kind":"PartialObjectMetadataList","items":null}"#;

#[tokio::test]
async fn each_pod_is_looked_for_on_this_node_and_told_once() {
    let ours = ca();
    let (address, asked) = serve(&ours, |request| match request {
        look if look.starts_with("GET") && look.ends_with("%3Dother") => http("200 OK", NONE),
        look if look.starts_with("GET") => http("200 OK", ONE),
        told if told.contains("/kept/") => http(
            "429 Too Many Requests\r\nRetry-After: 10",
            r#"{"kind":"Status","message":"it would violate the budget"}"#,
        ),
        _ => http("201 Created", "{}"),
    })
    .await;
    let pods = vec![
        pod("web", EvictHow::Evict),
        pod("other", EvictHow::Evict),
        pod("kept", EvictHow::Evict),
        pod("late", EvictHow::Delete),
    ];
    let (answers, changes) = carry_out(&ours, &ours, address, pods).await.unwrap();
    let outcomes: Vec<_> = answers.into_iter().map(|a| (a.uid, a.outcome)).collect();
    let kept = EvictOutcome::Kept {
        message: "it would violate the budget".to_owned(),
        retry_after_seconds: Some(10),
    };
    let want = [
        ("uid-web", EvictOutcome::Accepted),
        ("uid-other", EvictOutcome::Elsewhere),
        ("uid-kept", kept),
        ("uid-late", EvictOutcome::Accepted),
    ];
    assert_eq!(
        outcomes,
        want.map(|(uid, outcome)| (uid.to_owned(), outcome))
    );
    assert_eq!(
        changes,
        [
            "told shop/web to leave",
            "told shop/late to leave, past its budgets"
        ]
    );
    let asked = asked.lock().unwrap();
    let requests: Vec<&str> = asked.iter().map(|(request, _)| request.as_str()).collect();
    let pods = "/api/v1/namespaces/shop/pods";
    let look = |name| {
        format!(
            "GET {pods}?fieldSelector=spec.nodeName%3Ddemo-workers-0-i1%2Cmetadata.name%3D{name}"
        )
    };
    let want = [
        look("web"),
        format!("POST {pods}/web/eviction"),
        look("other"),
        look("kept"),
        format!("POST {pods}/kept/eviction"),
        look("late"),
        format!("DELETE {pods}/late"),
    ];
    assert_eq!(requests, want);
    let body = |at: usize| -> Value { serde_json::from_str(&asked[at].1).unwrap() };
    let eviction = body(1);
    assert_eq!(eviction["kind"], "Eviction");
    assert_eq!(eviction["metadata"]["name"], "web");
    assert_eq!(eviction["deleteOptions"]["preconditions"]["uid"], "uid-web");
    assert!(eviction["deleteOptions"]["gracePeriodSeconds"].is_null());
    let deletion = body(6);
    assert_eq!(deletion["preconditions"]["uid"], "uid-late");
    assert_eq!(deletion["gracePeriodSeconds"], 7);
}

#[tokio::test]
async fn what_was_said_before_a_connection_broke_is_kept() {
    let ours = ca();
    let (address, _) = serve(&ours, |request| match request {
        look if look.starts_with("GET") => http("200 OK", ONE),
        told if told.contains("/web/") => http("201 Created", "{}"),
        _ => None,
    })
    .await;
    let pods = ["web", "broken", "never"];
    let pods = pods.map(|name| pod(name, EvictHow::Evict)).to_vec();
    let (answers, changes) = carry_out(&ours, &ours, address, pods).await.unwrap();
    assert_eq!(changes, ["told shop/web to leave"]);
    let failed = |answer: &EvictAnswer| matches!(answer.outcome, EvictOutcome::Failed { status: None, ref message } if !message.is_empty());
    let failed: Vec<bool> = answers.iter().map(failed).collect();
    assert_eq!(failed, [false, true, true], "{answers:?}");
}

#[tokio::test]
async fn who_cannot_prove_the_name_is_told_nothing() {
    let (ours, other) = (ca(), ca());
    let (address, asked) = serve(&ours, |_| http("200 OK", ONE)).await;
    let told = carry_out(&other, &ours, address, vec![pod("web", EvictHow::Evict)]).await;
    let Failure { outcome, .. } = told.unwrap_err();
    let said = format!("{outcome:?}");
    assert!(
        said.contains("the API is not reached at 127.0.0.1"),
        "{said}"
    );
    assert!(said.contains("invalid peer certificate"), "{said}");
    // A certificate of another authority is no node's, which shows with the first request.
    let told = carry_out(&ours, &other, address, vec![pod("web", EvictHow::Evict)]).await;
    let (answers, changes) = told.unwrap();
    assert!(
        matches!(
            answers[0].outcome,
            EvictOutcome::Failed { status: None, .. }
        ),
        "{answers:?}"
    );
    assert!(changes.is_empty() && asked.lock().unwrap().is_empty());
}

#[test]
fn answers_are_told_apart() {
    let said = |message: &str| message.to_owned();
    let status = br#"{"kind":"Status","status":"Failure","message":"no"}"#.as_slice();
    let no = || said("no");
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        (200, None, status, EvictOutcome::Accepted),
        (201, None, status, EvictOutcome::Accepted),
        (202, None, status, EvictOutcome::Accepted),
        (404, None, status, EvictOutcome::Gone),
        (409, None, status, EvictOutcome::Gone),
        (401, None, status, EvictOutcome::Forbidden { message: no() }),
        (403, None, status, EvictOutcome::Forbidden { message: no() }),
        (429, None, status, EvictOutcome::Kept { message: no(), retry_after_seconds: None }),
        (429, Some("1"), b"Too many\nrequests", EvictOutcome::Kept { message: said("Too many requests"), retry_after_seconds: Some(1) }),
        (429, Some("Fri, 31 Dec"), status, EvictOutcome::Kept { message: no(), retry_after_seconds: None }),
        (500, None, status, EvictOutcome::Failed { status: Some(500), message: no() }),
        (301, None, b"", EvictOutcome::Failed { status: Some(301), message: said("") }),
    ];
    for (code, after, body, want) in cases {
        let mut headers = HeaderMap::new();
        if let Some(after) = after {
            headers.insert(RETRY_AFTER, HeaderValue::from_static(after));
        }
        let got = outcome(StatusCode::from_u16(code).unwrap(), &headers, body);
        assert_eq!(got, want, "{code} {after:?}");
    }
    let long = "ü".repeat(EVICT_MESSAGE_MAX);
    assert!(shown(&long).len() <= EVICT_MESSAGE_MAX);
}
