//! A cluster's API behind the director's: requests are passed on as they come, upgrades included.
//!
//! # Invariants
//! * What the client says about who it is (tokens, impersonation) goes no further: the identity is the
//!   one of its operator certificate.
//! * A stream that was upgraded ends with either of its ends, and when the operator loses the role.
//!
//! # Not here
//! Who the caller is in the cluster and which machine leads there: the service.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::json;
use windlass_common::error::ErrorChain;
use windlass_common::id::ClusterName;

use super::ApiState;
use super::access::Admitted;
use super::extract::Name;
use super::problem::Problem;
use crate::model::Caller;
use crate::service::Standing;
use crate::store::Act;

/// The routes, for the rules.
pub(super) const ROUTES: [&str; 2] = [
    "/v1/clusters/{name}/kubernetes",
    "/v1/clusters/{name}/kubernetes/{*path}",
];
/// Streams that were upgraded, at once: commands, forwarded ports and shells of a few dozen people.
/// Each holds two buffers of 8 KiB and one stream of a link.
pub(super) const UPGRADED_MAX: usize = 128;

/// Headers that concern one connection only (RFC 9110, 7.6.1), and those that would name somebody.
const DROPPED: [HeaderName; 9] = [
    header::CONNECTION,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::EXPECT,
    header::HOST,
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
];

/// Passes a request on to an API server of the cluster.
pub(super) async fn pass(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Extension(admitted): Extension<Admitted>,
    request: Request,
) -> Response {
    let asked = Asked::of(&request);
    let standing = admitted.standing(&state, &caller);
    let response = match forward(&state, &caller, standing, request, &asked).await {
        Ok(response) => response,
        Err(problem) => status_of(&problem),
    };
    if asked.acts {
        note(&state, &caller, &asked, response.status().as_str()).await;
    }
    response
}

/// What is written down about a request.
#[derive(Clone)]
struct Asked {
    subject: String,
    detail: String,
    /// Whether it changes something, or runs something.
    acts: bool,
}

impl Asked {
    fn of(request: &Request) -> Asked {
        let looks = matches!(
            *request.method(),
            Method::GET | Method::HEAD | Method::OPTIONS
        );
        let (cluster, path) = split(request.uri()).unwrap_or(("", ""));
        Asked {
            subject: format!("cluster/{cluster}"),
            detail: format!("{} {path}", request.method()),
            acts: !looks || request.headers().contains_key(header::UPGRADE),
        }
    }
}

async fn note(state: &ApiState, caller: &Caller, asked: &Asked, outcome: &str) {
    let act = Act {
        action: "cluster.kubernetes",
        subject: &asked.subject,
        detail: &asked.detail,
        outcome,
    };
    if let Err(error) = state.director.note(caller, act).await {
        tracing::error!(error = %ErrorChain(&error), "cannot write the audit log");
    }
}

async fn forward(
    state: &ApiState,
    caller: &Caller,
    standing: Standing,
    mut request: Request,
    asked: &Asked,
) -> Result<Response, Problem> {
    if let Some(name) = impersonation(request.headers()) {
        let message = format!(
            "{name} is not passed on: requests are made as {}",
            caller.operator
        );
        return Err(Problem::new(403, "forbidden", message));
    }
    let uri = target(request.uri())?;
    let (name, _) = split(request.uri()).ok_or_else(not_there)?;
    let Name(cluster) = Name::<ClusterName>::read(name)?;
    let server = state.director.api_server(&cluster, caller).await?;
    let client_end = request
        .headers()
        .contains_key(header::UPGRADE)
        .then(|| hyper::upgrade::on(&mut request));
    let upgrade = request.headers().get(header::UPGRADE).cloned();
    let (mut parts, body) = request.into_parts();
    parts.uri = uri;
    strip(&mut parts.headers, upgrade);
    let host = HeaderValue::from_str(&server.host).map_err(|_| not_there())?;
    parts.headers.insert(header::HOST, host);
    let outgoing = hyper::Request::from_parts(parts, body);
    let (mut sender, connection) = http1::handshake(TokioIo::new(server.stream))
        .await
        .map_err(broke)?;
    // Ends with the answer's body, or when whoever waits for it goes.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection with an API server ended");
        }
    });
    let mut response = sender.send_request(outgoing).await.map_err(broke)?;
    let upgrade = response.headers().get(header::UPGRADE).cloned();
    let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if let (true, Some(client_end)) = (upgraded, client_end) {
        let server_end = hyper::upgrade::on(&mut response);
        let relay = Relay {
            state: state.clone(),
            caller: caller.clone(),
            asked: asked.clone(),
            ends: (client_end, server_end),
        };
        relay.start(standing)?;
    }
    let (mut parts, body) = response.into_parts();
    strip(&mut parts.headers, upgrade.filter(|_| upgraded));
    Ok(Response::from_parts(parts, Body::new(body)))
}

/// Both ends of a stream that is no HTTP any more.
struct Relay {
    state: ApiState,
    caller: Caller,
    asked: Asked,
    ends: (OnUpgrade, OnUpgrade),
}

impl Relay {
    fn start(self, standing: Standing) -> Result<(), Problem> {
        let place = self.state.upgraded.clone().try_acquire_owned();
        let place = place.map_err(|_| {
            let message = format!("{UPGRADED_MAX} streams are open; end one of them, or try later");
            Problem::new(503, "unavailable", message)
        })?;
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = copy(self.ends) => outcome,
                () = standing.lost() => "ended: the operator lost the role, or the CA of its certificate was dropped".to_owned(),
            };
            note(&self.state, &self.caller, &self.asked, &outcome).await;
            drop(place);
        });
        Ok(())
    }
}

async fn copy((client, server): (OnUpgrade, OnUpgrade)) -> String {
    let (client, server) = match tokio::try_join!(client, server) {
        Ok(ends) => ends,
        Err(error) => return format!("ended: {error}"),
    };
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    match tokio::io::copy_bidirectional(&mut client, &mut server).await {
        Ok((sent, received)) => format!("ended: {sent} bytes sent, {received} received"),
        Err(error) => format!("ended: {error}"),
    }
}

/// The cluster's name and the rest of the path with its query.
fn split(uri: &Uri) -> Option<(&str, &str)> {
    let text = uri.path_and_query()?.as_str();
    let (cluster, rest) = text.strip_prefix("/v1/clusters/")?.split_once('/')?;
    Some((cluster, rest.strip_prefix("kubernetes")?))
}

fn target(uri: &Uri) -> Result<Uri, Problem> {
    let (_, path) = split(uri).ok_or_else(not_there)?;
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    };
    path.parse().map_err(|_| not_there())
}

fn impersonation(headers: &HeaderMap) -> Option<&HeaderName> {
    headers.keys().find(|name| {
        name.as_str().starts_with("impersonate-") || name.as_str().starts_with("x-remote-")
    })
}

/// Takes out what is not passed on, and puts the upgrade back in that is.
fn strip(headers: &mut HeaderMap, upgrade: Option<HeaderValue>) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&DROPPED) {
        headers.remove(name);
    }
    if let Some(upgrade) = upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, upgrade);
    }
}

fn not_there() -> Problem {
    Problem::new(404, "not-found", "the path is none of a cluster's API")
}

fn broke(error: hyper::Error) -> Problem {
    Problem {
        class: windlass_common::error::ErrorClass::Retry,
        ..Problem::new(
            502,
            "unavailable",
            format!("the API server broke off: {error}; try again"),
        )
    }
}

/// A problem in the words of Kubernetes, whose clients ask here.
fn status_of(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let reason = match problem.status {
        403 => "Forbidden",
        404 => "NotFound",
        503 => "ServiceUnavailable",
        _ => "InternalError",
    };
    let body = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": format!("director: {}", problem.message),
        "reason": reason,
        "code": problem.status,
    });
    (status, Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rest_of_the_path_is_passed_on_as_it_is() {
        #[rustfmt::skip]
        let cases = [
            ("/v1/clusters/demo/kubernetes",                       Some(("demo", "/"))),
            ("/v1/clusters/demo/kubernetes/",                      Some(("demo", "/"))),
            ("/v1/clusters/demo/kubernetes/api/v1/pods?watch=1",   Some(("demo", "/api/v1/pods?watch=1"))),
            ("/v1/clusters/demo/kubernetes?timeout=1s",            Some(("demo", "/?timeout=1s"))),
            ("/v1/clusters/demo/kubernetes/apis/a%2Fb",            Some(("demo", "/apis/a%2Fb"))),
            ("/v1/clusters/demo/credentials",                      None),
            ("/v1/machines/demo/kubernetes",                       None),
        ];
        for (uri, want) in cases {
            let uri: Uri = uri.parse().unwrap();
            let got = target(&uri).ok().map(|target| target.to_string());
            assert_eq!(got.as_deref(), want.map(|(_, path)| path), "{uri}");
            assert_eq!(
                split(&uri).map(|(name, _)| name),
                want.map(|(name, _)| name)
            );
        }
    }

    #[test]
    fn what_names_a_connection_or_a_caller_stays_behind() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("authorization", "Bearer stolen"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "k"),
            ("accept", "*/*"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let mut plain = headers.clone();
        strip(&mut plain, None);
        let left: Vec<&str> = plain.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["sec-websocket-key", "accept"]);
        strip(&mut headers, Some(HeaderValue::from_static("websocket")));
        assert_eq!(headers["connection"], "Upgrade");
        assert_eq!(headers["upgrade"], "websocket");
        assert!(!headers.contains_key("authorization"));
    }

    #[test]
    fn impersonation_is_noticed() {
        for name in ["Impersonate-User", "impersonate-extra-x", "X-Remote-Group"] {
            let mut headers = HeaderMap::new();
            headers.insert(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_static("system:masters"),
            );
            assert!(impersonation(&headers).is_some(), "{name}");
        }
        assert!(impersonation(&HeaderMap::new()).is_none());
    }
}
