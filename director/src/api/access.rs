//! Who may ask for what: one rule for each route.
//!
//! # Invariants
//! * A route without a rule is nobody's; a test holds the rules against the OpenAPI document.
//! * The role is looked up with each request, and what a request began ends when its operator is
//!   revoked, loses the role that it took, or the CA of its certificate is dropped.

use std::task::Poll;

use axum::Extension;
use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::{FutureExt, StreamExt, stream};
use windlass_common::error::ErrorChain;
use windlass_common::id::OperatorName;

use super::problem::Problem;
use super::{ApiState, kubernetes};
use crate::model::Caller;
use crate::model::Role::{self, Admin, Operator, Viewer};
use crate::service::{ServiceError, Standing};
use crate::store::Act;

/// The operator whose certificate the connection showed.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) name: OperatorName,
    /// The generation of the CA that issued it; `None` when it was dropped since.
    pub(super) generation: Option<u32>,
}

/// The least role for each route.
#[rustfmt::skip] // one rule per line, so that a missing one shows
pub(super) const RULES: &[(&str, &str, Role)] = &[
    ("GET",    "/v1/openapi.json",                Viewer),
    ("GET",    "/v1/health",                      Viewer),
    ("GET",    "/metrics",                        Viewer),
    ("GET",    "/v1/status",                      Viewer),
    ("GET",    "/v1/stemcells",                   Viewer),
    ("GET",    "/v1/audit",                       Viewer),
    ("GET",    "/v1/director/ca",                 Viewer),
    ("POST",   "/v1/director/ca/rotation",        Admin),
    ("POST",   "/v1/director/ca/certificate",     Viewer),
    ("POST",   "/v1/director/backup",             Admin),
    ("GET",    "/v1/director/hold",               Viewer),
    ("POST",   "/v1/director/adoption",           Admin),
    ("GET",    "/v1/director/freezes",            Viewer),
    ("PUT",    "/v1/director/freezes/{name}",     Admin),
    ("DELETE", "/v1/director/freezes/{name}",     Admin),
    ("GET",    "/v1/clusters",                    Viewer),
    ("POST",   "/v1/clusters",                    Operator),
    ("GET",    "/v1/clusters/{name}",             Viewer),
    ("PUT",    "/v1/clusters/{name}",             Operator),
    ("DELETE", "/v1/clusters/{name}",             Operator),
    ("POST",   "/v1/clusters/{name}/credentials", Admin),
    ("POST",   "/v1/clusters/{name}/agents",      Operator),
    ("POST",   "/v1/clusters/{name}/restore",     Admin),
    ("GET",    "/v1/clusters/{name}/stopped-pools", Viewer),
    ("GET",    "/v1/clusters/{name}/backups",     Viewer),
    ("POST",   "/v1/clusters/{name}/backups",     Operator),
    ("GET",    "/v1/clusters/{name}/backups/{backup}", Viewer),
    ("DELETE", "/v1/clusters/{name}/backups/{backup}", Admin),
    ("GET",    "/v1/clusters/{name}/backups/{backup}/archive", Admin),
    ("POST",   "/v1/clusters/{name}/drill",       Admin),
    ("POST",   "/v1/clusters/{name}/certificates", Operator),
    ("POST",   "/v1/clusters/{name}/rotation",    Admin),
    ("*",      kubernetes::ROUTES[0],             Viewer),
    ("*",      kubernetes::ROUTES[1],             Viewer),
    ("GET",    "/v1/disks",                       Viewer),
    ("DELETE", "/v1/disks/{name}",                Operator),
    ("GET",    "/v1/machines",                    Viewer),
    ("GET",    "/v1/machines/{name}",             Viewer),
    ("GET",    "/v1/machines/{name}/evidence",    Operator),
    ("GET",    "/v1/machines/{name}/logs",        Operator),
    ("POST",   "/v1/machines/{name}/exec",        Admin),
    ("GET",    "/v1/machines/{name}/shell",       Admin),
    ("GET",    "/v1/machines/{name}/command",     Admin),
    ("GET",    "/v1/machines/{name}/why",         Viewer),
    ("PUT",    "/v1/machines/{name}/hold",        Operator),
    ("DELETE", "/v1/machines/{name}/hold",        Operator),
    ("POST",   "/v1/machines/{name}/recreation",  Operator),
    ("POST",   "/v1/machines/{name}/token",       Operator),
    ("GET",    "/v1/usage",                       Operator),
    ("GET",    "/v1/kept-machines",               Viewer),
    ("DELETE", "/v1/kept-machines/{name}",        Operator),
    ("GET",    "/v1/overview",                    Viewer),
    ("GET",    "/v1/campaigns",                   Viewer),
    ("POST",   "/v1/campaigns",                   Operator),
    ("GET",    "/v1/campaigns/{id}",              Viewer),
    ("POST",   "/v1/campaigns/{id}/pause",        Operator),
    ("POST",   "/v1/campaigns/{id}/resume",       Operator),
    ("POST",   "/v1/campaigns/{id}/cancel",       Operator),
    ("POST",   "/v1/campaigns/{id}/retry",        Operator),
    ("GET",    "/v1/tasks",                       Viewer),
    ("GET",    "/v1/tasks/{id}",                  Viewer),
    ("GET",    "/v1/tasks/{id}/events",           Viewer),
    ("POST",   "/v1/tasks/{id}/cancel",           Operator),
    ("POST",   "/v1/tasks/{id}/pause",            Operator),
    ("POST",   "/v1/tasks/{id}/resume",           Operator),
    ("POST",   "/v1/tasks/{id}/retry",            Operator),
    ("GET",    "/v1/operators",                   Viewer),
    ("POST",   "/v1/operators",                   Admin),
    ("GET",    "/v1/operators/{name}",            Viewer),
    ("PATCH",  "/v1/operators/{name}",            Admin),
    ("DELETE", "/v1/operators/{name}",            Admin),
];

/// On what grounds a request was let in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Admitted {
    needed: Role,
    generation: u32,
}

impl Admitted {
    /// Watches whether the caller keeps what the request took.
    pub(super) fn standing(self, state: &ApiState, caller: &Caller) -> Standing {
        state
            .director
            .standing(&caller.operator, self.needed, self.generation)
    }
}

/// What the rules say about a request to a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// At least this role.
    Least(Role),
    /// The route does nothing of this kind.
    NoSuchMethod,
    /// Nobody thought of it.
    Missing,
}

/// The rule for a method of a route.
pub(super) fn rule(method: &Method, path: &str) -> Rule {
    let method = if method == Method::HEAD {
        "GET"
    } else {
        method.as_str()
    };
    let mut of_path = RULES.iter().filter(|(_, of, _)| *of == path).peekable();
    if of_path.peek().is_none() {
        return Rule::Missing;
    }
    match of_path.find(|(of, _, _)| *of == method || *of == "*") {
        Some((_, _, role)) => Rule::Least(*role),
        None => Rule::NoSuchMethod,
    }
}

/// Lets a request through whose operator has the role it takes.
pub(super) async fn admit(
    State(state): State<ApiState>,
    Extension(peer): Extension<Peer>,
    route: Option<MatchedPath>,
    mut request: Request,
    next: Next,
) -> Response {
    let Peer {
        name: peer,
        generation,
    } = peer;
    let shown = match generation {
        Some(generation) => {
            let director = &state.director;
            let counts = director.operator_shows(peer.as_str(), generation).await;
            counts.then_some(generation)
        }
        None => None,
    };
    let Some(generation) = shown else {
        tracing::warn!(operator = %peer, "refused a certificate whose CA was dropped");
        return dropped(&peer).into_response();
    };
    let caller = match state.director.caller(peer.as_str()).await {
        Ok(Some(caller)) => caller,
        Ok(None) => {
            tracing::warn!(operator = %peer, "refused an operator that is unknown or revoked");
            return nobody(&peer).into_response();
        }
        Err(error) => return Problem::from(error).into_response(),
    };
    // A path that is no route: nothing is there to be protected.
    let Some(route) = route else {
        return next.run(request).await;
    };
    let asked = Asked::of(&request, &caller);
    let needed = match rule(request.method(), route.as_str()) {
        Rule::Least(needed) if caller.role >= needed => needed,
        Rule::Least(needed) => {
            let error = ServiceError::Forbidden {
                operator: caller.operator.clone(),
                action: "do this",
                needed,
            };
            asked.failed(&state, 403).await;
            return Problem::from(error).into_response();
        }
        Rule::NoSuchMethod => return super::no_such_method(request).await.into_response(),
        Rule::Missing => {
            let what = format!("{} has no rule who may use it", route.as_str());
            return Problem::from(ServiceError::Bug { what, source: None }).into_response();
        }
    };
    let admitted = Admitted { needed, generation };
    let standing = admitted.standing(&state, &caller);
    request.extensions_mut().insert(admitted);
    request.extensions_mut().insert(caller);
    let response = next.run(request).await;
    // What a cluster's API answered is written down by who passed it on.
    let acts = asked.acts && !kubernetes::ROUTES.contains(&route.as_str());
    if acts && (response.status().is_client_error() || response.status().is_server_error()) {
        asked.failed(&state, response.status().as_u16()).await;
    }
    while_kept(response, standing)
}

/// What a request asked for, for the line that says it was not done.
struct Asked {
    caller: Caller,
    method: Method,
    path: String,
    /// Whether it would have changed something.
    acts: bool,
}

impl Asked {
    fn of(request: &Request, caller: &Caller) -> Asked {
        let method = request.method().clone();
        Asked {
            caller: caller.clone(),
            acts: !matches!(method, Method::GET | Method::HEAD | Method::OPTIONS),
            path: request.uri().path().chars().take(300).collect(),
            method,
        }
    }

    async fn failed(&self, state: &ApiState, status: u16) {
        let act = Act {
            action: "request.failed",
            subject: &self.path,
            detail: self.method.as_str(),
            outcome: &status.to_string(),
        };
        if let Err(error) = state.director.note(&self.caller, act).await {
            tracing::error!(error = %ErrorChain(&error), "cannot write the audit log");
        }
    }
}

/// What an operator is told whose certificate is of a CA that was dropped on an open connection.
fn dropped(peer: &OperatorName) -> Problem {
    Problem::new(
        401,
        "unauthenticated",
        format!(
            "the CA that issued the certificate of {peer} was dropped; ask an admin to add another operator"
        ),
    )
}

fn nobody(peer: &OperatorName) -> Problem {
    let message = format!(
        "operator {peer} is not known here or was revoked; ask an admin for `windlass operator add`"
    );
    Problem::new(401, "unauthenticated", message)
}

/// Breaks an answer off when its operator loses the role or its CA is dropped. What is whole already is sent.
fn while_kept(response: Response, standing: Standing) -> Response {
    let (parts, body) = response.into_parts();
    if body.size_hint().exact().is_some() {
        return Response::from_parts(parts, body);
    }
    let mut data = body.into_data_stream();
    let mut lost = Box::pin(standing.lost().fuse());
    let kept = stream::poll_fn(move |context| match lost.poll_unpin(context) {
        Poll::Ready(()) => Poll::Ready(Some(Err(axum::Error::new(std::io::Error::other(
            "the operator has lost the role, or the CA of its certificate was dropped",
        ))))),
        Poll::Pending => data.poll_next_unpin(context),
    });
    Response::from_parts(parts, Body::from_stream(kept))
}
