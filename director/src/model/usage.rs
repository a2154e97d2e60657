//! Usage of machines, as somebody watches it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use windlass_common::report::Vitals;

use crate::health::VitalView;

/// One line of the stream that watching usage answers with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(
    rename_all = "camelCase",
    rename_all_fields = "camelCase",
    tag = "type"
)]
pub enum Usage {
    /// Usage of a machine at a moment.
    Sample {
        /// Which machine.
        machine: String,
        /// The machine's wall clock, milliseconds since the Unix epoch.
        at_unix_ms: u64,
        /// What its agent saw; CPU time grows from its boot on.
        #[schema(value_type = Object)]
        vitals: Vitals,
        /// The same, each with unit, source, owner and age.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        measured: Vec<VitalView>,
    },
    /// A machine cannot be watched, or not any more.
    Away {
        /// Which machine.
        machine: String,
        /// Why.
        message: String,
    },
}
