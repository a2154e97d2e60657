//! Asking a URL once, in plain HTTP.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use windlass_common::error::ErrorChain;

/// Asks a URL whether all is well; what it says when that is not 200.
pub(super) async fn look(url: &str) -> Result<(), String> {
    match get(url, None).await? {
        (StatusCode::OK, _) => Ok(()),
        (status, _) => Err(format!("answers {status}")),
    }
}

/// Asks a URL for its answer, of at most so many bytes; without a number the body is not waited for.
pub(super) async fn get(url: &str, most: Option<usize>) -> Result<(StatusCode, Bytes), String> {
    let uri: Uri = url.parse().map_err(|_| "is no URL".to_owned())?;
    let host = uri.host().ok_or("names no host")?;
    let host = host.trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(80);
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|error| format!("does not connect: {error}"))?;
    let failed = |error: hyper::Error| format!("fails: {}", ErrorChain(&error));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path)
        .header(HOST, authority)
        .header(USER_AGENT, "windlass-director")
        .header(ACCEPT, "*/*")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("cannot be asked: {error}"))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(failed)?;
        let status = answer.status();
        let Some(most) = most else {
            return Ok((status, Bytes::new()));
        };
        let body = Limited::new(answer.into_body(), most).collect().await;
        let body = body.map_err(|error| format!("answers {status}, and then: {error}"))?;
        Ok((status, body.to_bytes()))
    };
    // The connection is driven here, so that nothing outlives the look.
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        // What ended the connection is in the answer's error, if there is no answer.
        _ = &mut connection => exchange.await,
    }
}
