//! The REST API under `/v1`: HTTP over mutual TLS, and nothing decided.
//!
//! # Invariants
//! * No request is served before its sender's operator certificate was verified in the handshake; the
//!   caller's name comes from that certificate alone, its role from the store, with each request.
//! * Every input is bounded (body, header, connections, time) and every fault of it is reported at once.
//! * The OpenAPI document is generated from the handlers that serve the requests; both are registered in
//!   one call.
//!
//! # After a crash
//! Nothing is kept here. A client that was watching a task connects again and gets its state.
//!
//! # Not here
//! What operations do ([`crate::service`]), who gets a certificate ([`crate::pki`]).

mod access;
mod agents;
mod backup;
mod backups;
mod ca;
mod campaigns;
mod clusters;
mod director;
mod disks;
mod extract;
mod freezes;
mod identity;
mod kubernetes;
mod machines;
mod metrics;
mod operators;
mod overview;
mod problem;
mod renewal;
mod repair;
mod restore;
mod serve;
mod shell;
mod stream;
mod tasks;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use ipnet::Ipv4Net;
use serde::Serialize;
use tokio::sync::Semaphore;
use utoipa::{OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::service::Director;

pub use agents::UpgradeAgents;
pub use backup::AdoptDifferences;
pub use ca::{RenewOperator, RenewedOperator, RotateCa};
pub use campaigns::CreateCampaign;
pub use director::Health;
pub use freezes::FreezeClusters;
pub use identity::{CallerError, operator_of};
pub use machines::{ExecRequest, NodeOutput, Source};
pub use operators::{AddOperator, AddedOperator, ChangeOperator};
pub use problem::Problem;
pub use renewal::{RenewCertificates, RotateSecrets};
pub use repair::{HoldNode, RecreateNode};
pub use restore::RestoreCluster;
pub use serve::{Server, ServerError, server_tls};
pub use shell::PROTOCOL as SESSION_PROTOCOL;

/// What every handler has at hand.
#[derive(Debug, Clone)]
pub(crate) struct ApiState {
    /// The operations.
    pub(crate) director: Director,
    /// What this API refused.
    pub(crate) refusals: Arc<metrics::Refusals>,
    /// Networks that clusters have to stay clear of.
    pub(crate) reserved: Vec<(String, Ipv4Net)>,
    /// Places for streams that were upgraded.
    pub(crate) upgraded: Arc<Semaphore>,
}

impl ApiState {
    pub(crate) fn new(director: Director, reserved: Vec<(String, Ipv4Net)>) -> ApiState {
        ApiState {
            director,
            refusals: Arc::default(),
            reserved,
            upgraded: Arc::new(Semaphore::new(kubernetes::UPGRADED_MAX)),
        }
    }
}

/// A list of things; an object, so that it can grow.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct List<T> {
    /// The things.
    pub items: Vec<T>,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Windlass director",
        description = "Makes Kubernetes clusters from VMs and keeps them healthy.\n\nEvery connection \
            is TLS with a client certificate of an operator. Errors are `application/problem+json`. \
            Orders answer 202 with a task; `GET /v1/tasks/{id}/events` follows it.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(Problem, crate::model::TaskEvent, NodeOutput))
)]
struct Document;

fn documented() -> OpenApiRouter<ApiState> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(director::health))
        .routes(routes!(metrics::metrics))
        .routes(routes!(director::status))
        .routes(routes!(director::stemcells))
        .routes(routes!(director::audit))
        .routes(routes!(ca::show))
        .routes(routes!(ca::rotate))
        .routes(routes!(ca::renew))
        .routes(routes!(backup::take))
        .routes(routes!(backup::hold))
        .routes(routes!(backup::adopt))
        .routes(routes!(freezes::list))
        .routes(routes!(freezes::put, freezes::delete))
        .routes(routes!(clusters::list, clusters::create))
        .routes(routes!(clusters::show, clusters::apply, clusters::delete))
        .routes(routes!(clusters::credentials))
        .routes(routes!(agents::upgrade))
        .routes(routes!(disks::list))
        .routes(routes!(disks::delete))
        .routes(routes!(restore::restore))
        .routes(routes!(backups::list, backups::order))
        .routes(routes!(backups::show, backups::delete))
        .routes(routes!(backups::archive))
        .routes(routes!(backups::drill))
        .routes(routes!(renewal::certificates))
        .routes(routes!(renewal::rotation))
        .routes(routes!(machines::list))
        .routes(routes!(machines::show))
        .routes(routes!(machines::evidence))
        .routes(routes!(machines::logs))
        .routes(routes!(machines::exec))
        .routes(routes!(machines::shell))
        .routes(routes!(machines::command))
        .routes(routes!(machines::watch))
        .routes(routes!(machines::enroll))
        .routes(routes!(repair::why))
        .routes(routes!(repair::hold, repair::release))
        .routes(routes!(repair::recreate))
        .routes(routes!(repair::stopped))
        .routes(routes!(repair::kept))
        .routes(routes!(repair::delete_kept))
        .routes(routes!(operators::list, operators::add))
        .routes(routes!(
            operators::show,
            operators::change,
            operators::revoke
        ))
        .routes(routes!(campaigns::list, campaigns::create))
        .routes(routes!(campaigns::show))
        .routes(routes!(campaigns::pause))
        .routes(routes!(campaigns::resume))
        .routes(routes!(campaigns::cancel))
        .routes(routes!(campaigns::retry))
        .routes(routes!(overview::list))
        .routes(routes!(tasks::list))
        .routes(routes!(tasks::show))
        .routes(routes!(tasks::events))
        .routes(routes!(tasks::cancel))
        .routes(routes!(tasks::pause))
        .routes(routes!(tasks::resume))
        .routes(routes!(tasks::retry))
}

/// The OpenAPI 3.1 document of this version, pretty-printed JSON with a final newline.
pub fn openapi_json() -> String {
    let document = documented().into_openapi();
    let mut text = serde_json::to_string_pretty(&document).unwrap_or_default();
    text.push('\n');
    text
}

/// All routes, for one connection's caller.
pub(crate) fn router(state: ApiState) -> Router {
    let (router, _) = documented().split_for_parts();
    router
        .route("/v1/openapi.json", axum::routing::get(document))
        .route(kubernetes::ROUTES[0], axum::routing::any(kubernetes::pass))
        .route(kubernetes::ROUTES[1], axum::routing::any(kubernetes::pass))
        .fallback(no_such_route)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(state.clone(), access::admit))
        .layer(middleware::from_fn(serve::in_time))
        .layer(axum::extract::DefaultBodyLimit::max(
            crate::spec::INPUT_BYTES_MAX,
        ))
        .with_state(state)
}

async fn document() -> Response {
    let json = [(axum::http::header::CONTENT_TYPE, "application/json")];
    (json, openapi_json()).into_response()
}

async fn no_such_route(request: Request) -> Problem {
    let path: String = request.uri().path().chars().take(120).collect();
    Problem::new(
        404,
        "no-such-route",
        format!("{path} is not part of this API; GET /v1/openapi.json shows what is"),
    )
}

async fn no_such_method(request: Request) -> Problem {
    let message = format!(
        "{} cannot be done here; GET /v1/openapi.json shows what can",
        request.method()
    );
    Problem::new(405, "no-such-method", message)
}
