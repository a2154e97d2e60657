//! Reads parts of a request; what cannot be read is a [`Problem`], never a bare status.

use std::str::FromStr;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;

use super::problem::Problem;
use crate::service::ServiceError;

/// The query, with unknown parameters refused by the types it is read into.
#[derive(Debug)]
pub(super) struct Query<T>(pub(super) T);

impl<T, S> FromRequestParts<S> for Query<T>
where
    T: serde::de::DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(query) => Ok(Query(query.0)),
            Err(QueryRejection::FailedToDeserializeQueryString(error)) => {
                Err(Problem::new(400, "malformed", error.body_text()))
            }
            Err(error) => Err(Problem::new(400, "malformed", error.to_string())),
        }
    }
}

/// A kind of thing that is named in the path.
pub(super) trait Named: FromStr + Send {
    /// As in "`cluster` x does not exist".
    const KIND: &'static str;
}

impl Named for windlass_common::id::ClusterName {
    const KIND: &'static str = "cluster";
}

impl Named for windlass_common::id::MachineName {
    const KIND: &'static str = "node";
}

impl Named for windlass_common::id::DiskName {
    const KIND: &'static str = "disk";
}

impl Named for windlass_common::id::OperatorName {
    const KIND: &'static str = "operator";
}

impl Named for windlass_common::id::FreezeName {
    const KIND: &'static str = "freeze";
}

impl Named for crate::model::CampaignId {
    const KIND: &'static str = "campaign";
}

impl Named for crate::model::TaskId {
    const KIND: &'static str = "task";
}

/// A name in the path. What is no name at all names nothing: not found.
#[derive(Debug)]
pub(super) struct Name<T>(pub(super) T);

impl<T: Named, S: Send + Sync> FromRequestParts<S> for Name<T> {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(text)) => text,
            Err(error) => return Err(Problem::new(400, "malformed", error.to_string())),
        };
        Self::read(&text)
    }
}

impl<T: Named> Name<T> {
    /// Reads a name from text.
    pub(super) fn read(text: &str) -> Result<Self, Problem> {
        text.parse().map(Name).map_err(|_| {
            let name = text.chars().take(80).collect();
            ServiceError::NotFound {
                kind: T::KIND,
                name,
            }
            .into()
        })
    }
}

/// The body as UTF-8 text, at most [`crate::spec::INPUT_BYTES_MAX`].
#[derive(Debug)]
pub(super) struct Text(pub(super) String);

impl<S: Send + Sync> FromRequest<S> for Text {
    type Rejection = Problem;
    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = Bytes::from_request(request, state).await.map_err(|error| {
            let max = crate::spec::INPUT_BYTES_MAX;
            let message = format!("the body cannot be read or is longer than {max} bytes: {error}");
            Problem::new(error.status().as_u16(), "malformed", message)
        })?;
        String::from_utf8(bytes.into())
            .map(Text)
            .map_err(|_| Problem::new(400, "malformed", "the body is not UTF-8"))
    }
}
