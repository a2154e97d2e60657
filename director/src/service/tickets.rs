//! The keys of session tickets, sealed in the store.
//!
//! # After a crash
//! Keys that were made and not yet stored are lost, and with them the tickets under them: their agents
//! make a full handshake.

use std::sync::Arc;

use windlass_common::clock::Clock;
use windlass_common::error::ErrorChain;
use windlass_common::secret::SecretBytes;

use crate::gateway::Tickets;
use crate::store::{Commit, Records, StoreError};

/// Name of the secret.
const KEYS: &str = "ticket-keys";

/// Tickets under the keys that the store has; changed keys are stored for as long as the tickets are
/// used. Must be called on the runtime.
///
/// Keys that cannot be opened are replaced: then nothing is resumed that began before.
pub async fn tickets(records: &Records, clock: Clock) -> Arc<Tickets> {
    let kept = match records.secret(KEYS).await {
        Ok(kept) => kept.map(|bytes| SecretBytes::new(bytes.to_vec())),
        Err(error) => {
            let error = ErrorChain(&error);
            tracing::warn!(%error, "the keys of session tickets cannot be read; no session is resumed");
            None
        }
    };
    let tickets = Arc::new(Tickets::new(clock, kept.as_ref()));
    let mut changes = tickets.changes();
    if let Err(error) = store(records, &tickets).await {
        // The next change tries again; until then a restart resumes nothing.
        tracing::warn!(error = %ErrorChain(&error), "the keys of session tickets cannot be stored");
    }
    let (records, used) = (records.clone(), Arc::downgrade(&tickets));
    tokio::spawn(async move {
        // Ends when the tickets are gone, and with them the sender.
        while changes.changed().await.is_ok() {
            let Some(tickets) = used.upgrade() else {
                return;
            };
            if let Err(error) = store(&records, &tickets).await {
                let error = ErrorChain(&error);
                tracing::warn!(%error, "the keys of session tickets cannot be stored");
            }
        }
    });
    tickets
}

async fn store(records: &Records, tickets: &Tickets) -> Result<(), StoreError> {
    let mut commit = Commit::default();
    records.replace_secret(&mut commit, KEYS, tickets.record().expose())?;
    records.commit(commit).await.map(|_| ())
}
