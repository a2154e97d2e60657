//! A time in which no cluster of a director is changed.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::id::FreezeName;
use windlass_common::maintenance::{FreezeSpec, Moment};

use super::{Revision, Timestamp};
use crate::health::to_jiff;

/// One such time. Repairs, restores, rotations and new clusters go on in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Freeze {
    /// Its name.
    #[schema(value_type = String, example = "year-end")]
    pub name: FreezeName,
    /// Its first moment.
    pub from: Timestamp,
    /// The first moment after it.
    pub to: Timestamp,
    /// Why, for people.
    pub reason: String,
    /// Who ordered it.
    pub operator: String,
    /// Revision of this record.
    pub revision: Revision,
}

impl Freeze {
    /// As a cluster's spec would say it.
    pub fn spec(&self) -> FreezeSpec {
        FreezeSpec {
            from: Moment(to_jiff(self.from)),
            to: Moment(to_jiff(self.to)),
            reason: format!("all clusters ({}): {}", self.name, self.reason),
        }
    }
}
