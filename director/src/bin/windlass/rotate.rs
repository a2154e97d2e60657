//! `windlass director rotate-ca` and `windlass context renew`.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use windlass_common::pki::PrivateKey;
use windlass_common::secret::SecretBytes;
use windlass_director::api::{RenewOperator, RenewedOperator, RotateCa};
use windlass_director::client::{Client, ClientError, ContextFile};
use windlass_director::config::write_atomic;
use windlass_director::model::{CaRotation, CaStatus};
use windlass_director::rotation::Phase;

use crate::Session;
use crate::args::{ContextCommand, RotateArgs};
use crate::failure::{Failure, INTERRUPTED};
use crate::output::note;

const CA: &str = "/v1/director/ca";
/// Between two looks at a rotation that is waited for.
const LOOK: Duration = Duration::from_millis(500);
/// How long a director may be away before waiting ends.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) async fn run(session: &Session, arguments: RotateArgs) -> Result<ExitCode, Failure> {
    let client = session.client()?;
    if arguments.status {
        let status = status(&client).await?;
        session.output.answer(&status, || describe(&status));
        return Ok(ExitCode::SUCCESS);
    }
    let order = RotateCa {
        abandon: arguments.abandon,
    };
    let path = format!("{CA}/rotation");
    let answer = client.post(&path, json!(order).to_string()).await?;
    let mut status: CaStatus = client.typed(&answer)?;
    // At once: the old certificate is refused when the old CA is dropped.
    renew_context(session).await?;
    if arguments.wait {
        let waited = tokio::select! {
            waited = until_over(session) => waited,
            _ = tokio::signal::ctrl_c() => Err(Failure::new(
                INTERRUPTED,
                "not waiting any more; the director goes on rotating its CA: \
                 `windlass director rotate-ca --status` shows how far it is",
            )),
        };
        status = waited?;
        // The old root is not to be trusted any more here either.
        renew_context(session).await?;
    }
    session.output.answer(&status, || describe(&status));
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn context(
    session: &Session,
    command: ContextCommand,
) -> Result<ExitCode, Failure> {
    match command {
        ContextCommand::Renew => {
            renew_context(session).await?;
            let path = session.context_path()?;
            let answer = json!({"context": path});
            session.output.answer(&answer, || {
                format!(
                    "{} has a new certificate and the CA of today",
                    path.display()
                )
            });
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn status(client: &Client) -> Result<CaStatus, ClientError> {
    let answer = client.get(CA).await?;
    client.typed(&answer)
}

/// Waits for the end of the rotation, across restarts of the director.
async fn until_over(session: &Session) -> Result<CaStatus, Failure> {
    let client = session.client()?;
    let mut said = String::new();
    let mut heard = Instant::now();
    loop {
        match status(&client).await {
            Ok(status) => {
                heard = Instant::now();
                let Some(rotation) = &status.rotation else {
                    return Ok(status);
                };
                let line = progress(rotation);
                if line != said {
                    note(&line);
                    said = line;
                }
            }
            Err(ClientError::Unreachable { .. }) if heard.elapsed() < PATIENCE => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Gets a new certificate for the context's own key, and the roots to trust.
///
/// The key stays, so that each file is whole and fits the others at any moment.
async fn renew_context(session: &Session) -> Result<(), Failure> {
    let path = session.context_path()?;
    let file = ContextFile::read(&path)?;
    let beside = |name: &Path| path.parent().unwrap_or(Path::new("")).join(name);
    let key_path = beside(&file.key);
    let key = std::fs::read(&key_path)
        .map_err(|error| Failure::failed(format!("cannot read {}: {error}", key_path.display())))?;
    let key = PrivateKey::from_pem(&SecretBytes::new(key)).map_err(|error| Failure::of(&error))?;
    let request = key.request().map_err(|error| Failure::of(&error))?;
    let order = RenewOperator {
        request: STANDARD.encode(request),
    };
    let client = session.client()?;
    let body = json!(order).to_string();
    let answer = client.post(&format!("{CA}/certificate"), body).await?;
    let renewed: RenewedOperator = client.typed(&answer)?;
    let write = |name: &Path, text: &str| {
        let path = beside(name);
        write_atomic(&path, text.as_bytes(), 0o644)
            .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))
    };
    // The roots first: they verify the director before and after.
    write(&file.ca, &renewed.ca)?;
    write(&file.certificate, &renewed.certificate)?;
    // The director notes who shows a certificate of the new CA.
    status(&session.client()?).await?;
    Ok(())
}

/// One line about a rotation under way.
fn progress(rotation: &CaRotation) -> String {
    let phase = match rotation.phase {
        Phase::Overlap => "overlap",
        Phase::Reissue => "re-issue",
    };
    let mut line = format!(
        "{phase}: {} of {} machines acknowledged the new root, {} have a new certificate",
        rotation.trusting, rotation.machines, rotation.renewed
    );
    for waiting in &rotation.waiting {
        line.push_str(&format!(
            "\n  waits for {}: {}",
            waiting.machine, waiting.why
        ));
    }
    line
}

fn describe(status: &CaStatus) -> String {
    let Some(rotation) = &status.rotation else {
        let mut text = format!(
            "generation {} of the CA; no rotation is under way",
            status.generation
        );
        if !status.operators_left.is_empty() {
            text.push_str(&format!(
                "\noperators who had not renewed when the old CA was dropped, and are refused: {}",
                status.operators_left.join(", ")
            ));
        }
        if !status.abandoned.is_empty() {
            text.push_str(&format!(
                "\nmachines left behind: {}",
                status.abandoned.join(", ")
            ));
        }
        return text;
    };
    let mut text = format!(
        "rotating generation {} to {}, ordered by {}\n{}",
        status.generation,
        rotation.to,
        rotation.started_by,
        progress(rotation)
    );
    if !rotation.abandoned.is_empty() {
        text.push_str(&format!("\nabandoned: {}", rotation.abandoned.join(", ")));
    }
    if !rotation.operators.is_empty() {
        text.push_str(&format!(
            "\noperators who have not renewed (`windlass context renew`), and are refused once the old CA \
             is dropped: {}",
            rotation.operators.join(", ")
        ));
    }
    text
}
