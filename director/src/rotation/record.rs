//! What the store keeps of the CA: its generations, and a rotation under way.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use windlass_common::error::ErrorClass;
use windlass_common::id::{DirectorId, Incarnation, MachineName};
use windlass_common::secret::SecretBytes;

use super::phase::{Phase, Progress};
use crate::model::{Revision, Timestamp};
use crate::pki::{CaError, DirectorCa, Generation, Stage};
use crate::store::{Expect, Kind, Records, StoreError};

/// Name of the secret with the first generation; those after it add their number.
const GENERATION: &str = "director-ca";
/// Name of the secret from which others are derived; there is none until the first rotation.
pub(super) const SEED: &str = "director-seed";
/// Name of the record.
pub(super) const RECORD: &str = "director-ca";

/// Why the CA cannot be read from the store or made.
#[derive(Debug, thiserror::Error)]
pub enum CaStoreError {
    /// The store does not answer.
    #[error("the store does not answer about the CA")]
    Store(#[from] StoreError),
    /// A generation is not usable.
    #[error("a generation of the CA is not usable")]
    Ca(#[from] CaError),
    /// A generation is not there.
    #[error("the store holds no generation {0} of the CA; restore it from a backup")]
    Missing(u32),
}

impl CaStoreError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            CaStoreError::Store(source) => source.class(),
            CaStoreError::Ca(source) => source.class(),
            CaStoreError::Missing(_) => ErrorClass::Operator,
        }
    }
}

/// The CA's record. A director that never rotated has none, which is its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CaRecord {
    /// The generation that is trusted for good; during a rotation, the older one.
    pub(super) generation: u32,
    /// The rotation under way.
    #[serde(default)]
    pub(super) rotation: Option<Rotation>,
    /// The one before it.
    #[serde(default)]
    pub(super) last: Option<Finished>,
}

impl Default for CaRecord {
    fn default() -> Self {
        CaRecord {
            generation: 1,
            rotation: None,
            last: None,
        }
    }
}

/// A rotation under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rotation {
    /// The generation that stays.
    pub(super) to: u32,
    pub(super) phase: Phase,
    pub(super) started_by: String,
    pub(super) started_at: Timestamp,
    /// Incarnations that the drop does not wait for.
    #[serde(default)]
    pub(super) abandoned: BTreeMap<MachineName, Incarnation>,
}

/// A rotation that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Finished {
    pub(super) finished_at: Timestamp,
    /// Machines that were left behind.
    pub(super) abandoned: Vec<String>,
    /// Operators that had not renewed.
    pub(super) operators: Vec<String>,
}

/// How far one incarnation has followed; by machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Followed {
    pub(super) incarnation: Incarnation,
    pub(super) progress: Progress,
}

/// Name of the entry of a machine that follows.
pub(super) fn of_machine(name: &MachineName) -> String {
    format!("machine/{name}")
}

/// Name of the entry of an operator that has renewed.
pub(super) fn of_operator(name: &str) -> String {
    format!("operator/{name}")
}

/// Name of the secret with a generation.
pub(super) fn secret_of(generation: u32) -> String {
    match generation {
        1 => GENERATION.to_owned(),
        number => format!("{GENERATION}/{number}"),
    }
}

pub(super) async fn read(records: &Records) -> Result<(Expect, CaRecord), StoreError> {
    let found: Option<(Revision, CaRecord)> = records.value(Kind::Meta, RECORD).await?;
    Ok(match found {
        Some((revision, record)) => (Expect::At(revision), record),
        None => (Expect::Absent, CaRecord::default()),
    })
}

async fn generation(
    records: &Records,
    director: &DirectorId,
    number: u32,
    now: jiff::Timestamp,
) -> Result<Option<Arc<Generation>>, CaStoreError> {
    let Some(text) = records.secret(&secret_of(number)).await? else {
        return Ok(None);
    };
    let text = SecretBytes::new(text.to_vec());
    let read = Generation::from_pem(director, number, &text, now)?;
    Ok(Some(Arc::new(read)))
}

/// The stage that the record speaks of, with the generations from the store.
pub(super) async fn stage(
    records: &Records,
    director: &DirectorId,
    record: &CaRecord,
    now: jiff::Timestamp,
) -> Result<Stage, CaStoreError> {
    let get = async |number| {
        let found = generation(records, director, number, now).await?;
        found.ok_or(CaStoreError::Missing(number))
    };
    let older = get(record.generation).await?;
    let Some(rotation) = &record.rotation else {
        return Ok(Stage::Alone(older));
    };
    let newer = get(rotation.to).await?;
    Ok(match rotation.phase {
        Phase::Overlap => Stage::Overlap { older, newer },
        Phase::Reissue => Stage::Reissue { older, newer },
    })
}

/// The CA of a director, at the stage that its store has kept. `None` when there is none.
pub async fn load(
    records: &Records,
    director: &DirectorId,
    now: jiff::Timestamp,
) -> Result<Option<DirectorCa>, CaStoreError> {
    let (expect, record) = read(records).await?;
    let stage = match stage(records, director, &record, now).await {
        Err(CaStoreError::Missing(_)) if expect == Expect::Absent => return Ok(None),
        stage => stage?,
    };
    Ok(Some(match records.secret(SEED).await? {
        Some(seed) => {
            let seed = SecretBytes::new(seed.to_vec());
            DirectorCa::new(director.clone(), seed, stage)
        }
        None => DirectorCa::first(director.clone(), stage),
    }))
}
