//! Checks against a real TLS server on loopback.

use std::net::Ipv4Addr;
use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::testing::{Ca, NAME, acceptor, ca, client, context};
use super::*;

/// Answers every request on every connection with this response; asks for client certificates.
async fn serve(ca: &Ca, response: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = acceptor(ca);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /readyz?verbose HTTP/1.1\r\n"));
            stream.write_all(response.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    });
    address
}

/// Writes CA and client certificate beneath the root and makes the check.
fn check(root: &Path, trusted: &Ca, client_of: Option<&Ca>, address: SocketAddr) -> Check {
    std::fs::write(root.join("ca.pem"), trusted.pem()).unwrap();
    Check::Https {
        address,
        server_name: NAME.to_owned(),
        path: "/readyz?verbose".to_owned(),
        ca_path: "/ca.pem".to_owned(),
        client: client_of.map(|ca| client(root, ca)),
    }
}

#[tokio::test]
async fn https_checks_verify_both_sides_and_the_answer() {
    let (ours, other) = (ca(), ca());
    let ok = serve(&ours, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let ill = serve(
        &ours,
        "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 37\r\n\r\n[+]ping ok\n[-]etcd failed: no\nhealthz",
    )
    .await;
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        (ok, &ours, Some(&ours), None),
        (ill, &ours, Some(&ours), Some("answers 500 Internal Server Error: [-]etcd failed: no")),
        (ok, &other, Some(&ours), Some("TLS: invalid peer certificate")),
        (ok, &ours, None, Some("HTTP:")),
        (ok, &ours, Some(&other), Some("HTTP:")),
    ];
    for (address, trusted, client_of, want) in cases {
        let root = tempfile::tempdir().unwrap();
        let check = check(root.path(), trusted, client_of, address);
        let looked = look(&context(root.path()), &check).await;
        match (looked, want) {
            (Ok(()), None) => {}
            (Err(reason), Some(want)) => assert!(reason.contains(want), "{reason} / {want}"),
            (looked, want) => panic!("{looked:?}, wanted {want:?}"),
        }
    }
}

#[tokio::test]
async fn a_missing_ca_file_is_named() {
    let root = tempfile::tempdir().unwrap();
    let ours = ca();
    let address = serve(&ours, "HTTP/1.1 200 OK\r\n\r\n").await;
    let check = check(root.path(), &ours, None, address);
    std::fs::remove_file(root.path().join("ca.pem")).unwrap();
    let reason = look(&context(root.path()), &check).await.unwrap_err();
    assert!(reason.starts_with("/ca.pem: "), "{reason}");
}
