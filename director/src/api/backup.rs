//! Backups of the director, and the hold of one that was restored.

use std::collections::BTreeSet;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::MachineName;

use super::ApiState;
use super::extract::Text;
use super::operators::read;
use super::problem::Problem;
use crate::backup::adopt::Approval;
use crate::model::Caller;
use crate::service::{AdoptOrder, HoldView};
use crate::spec::Faults;

/// An approval of what changed since the backup.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdoptDifferences {
    /// The digest that the differences were shown with.
    pub digest: String,
    /// Machines whose records are forgotten although the provider does not have them, or that may be taken away
    /// since what they carry does not describe them.
    #[serde(default)]
    pub forget: Vec<String>,
    /// Machines that are adopted although their agents have shown no certificate.
    #[serde(default)]
    pub accept: Vec<String>,
}

/// Take a backup of the director: its store with every CA, the key of that, its configuration. The answer is
/// sealed in the age format; one that breaks off is of no use.
#[utoipa::path(post, path = "/v1/director/backup", operation_id = "backupDirector", tag = "director",
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn take(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Problem> {
    let pieces = state.director.own_backup(&caller).await?;
    let headers = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// Whether the director is on hold after a restore, and how the world differs from its records.
#[utoipa::path(get, path = "/v1/director/hold", operation_id = "getHold", tag = "director",
    responses((status = 200, body = HoldView),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn hold(State(state): State<ApiState>) -> Result<Json<HoldView>, Problem> {
    Ok(Json(state.director.hold().await?))
}

/// Adopt what changed since the backup that the director was restored from; ends its hold.
#[utoipa::path(post, path = "/v1/director/adoption", operation_id = "adoptDifferences", tag = "director",
    request_body = AdoptDifferences,
    responses((status = 200, body = HoldView),
        (status = "default", body = Problem, content_type = "application/problem+json")))]
pub(super) async fn adopt(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Text(body): Text,
) -> Result<Json<HoldView>, Problem> {
    let order: AdoptDifferences = read(&body)?;
    let mut faults = Faults::default();
    let forget = names("forget", &order.forget, &mut faults);
    let accept = names("accept", &order.accept, &mut faults);
    let digest = order.digest.parse().ok();
    if digest.is_none() {
        faults.add("digest", &order.digest, "the digest that was shown");
    }
    let Some(digest) = digest.filter(|_| faults.is_empty()) else {
        return Err(faults.into());
    };
    let approval = Approval { forget, accept };
    let order = AdoptOrder { digest, approval };
    Ok(Json(state.director.adopt(&order, &caller).await?))
}

fn names(key: &str, texts: &[String], faults: &mut Faults) -> BTreeSet<MachineName> {
    let mut names = BTreeSet::new();
    for text in texts {
        match MachineName::new(text) {
            Ok(name) => {
                names.insert(name);
            }
            Err(_) => faults.add(key, text, "names of machines"),
        }
    }
    names
}
