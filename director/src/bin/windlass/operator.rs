//! `windlass operator …` and `windlass audit`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use windlass_common::pki::PrivateKey;
use windlass_director::api::{AddOperator, AddedOperator, ChangeOperator};
use windlass_director::client::{Client, ContextFile};
use windlass_director::config::write_atomic;
use windlass_director::model::{AuditEntry, Operator, Role, Timestamp};

use crate::Session;
use crate::args::{AuditArgs, OperatorCommand};
use crate::cluster::{pairs, segment};
use crate::failure::{Failure, USAGE};
use crate::output::{age, table};

pub(crate) async fn run(session: &Session, command: OperatorCommand) -> Result<ExitCode, Failure> {
    let client = session.client()?;
    match command {
        OperatorCommand::Add { name, role, out } => {
            let out = out.unwrap_or_else(|| PathBuf::from(format!("{name}.toml")));
            return add(session, &client, &name, role, &out).await;
        }
        OperatorCommand::List => list(session, &client).await?,
        OperatorCommand::Show { name } => {
            let answer = client.get(&path(&name)).await?;
            answer_operator(session, &client, &answer, describe)?;
        }
        OperatorCommand::SetRole { name, role } => {
            let body = json!(ChangeOperator { role }).to_string();
            let answer = client.patch(&path(&name), body).await?;
            answer_operator(session, &client, &answer, |operator| {
                format!(
                    "operator {} has the role {} now",
                    operator.name, operator.role
                )
            })?;
        }
        OperatorCommand::Revoke { name } => {
            let answer = client.delete(&path(&name)).await?;
            answer_operator(session, &client, &answer, |operator| {
                format!("operator {} is shut out", operator.name)
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn path(name: &str) -> String {
    format!("/v1/operators/{}", segment(name))
}

fn answer_operator(
    session: &Session,
    client: &Client,
    answer: &serde_json::Value,
    text: impl FnOnce(&Operator) -> String,
) -> Result<(), Failure> {
    let operator: Operator = client.typed(answer)?;
    session.output.answer(answer, || text(&operator));
    Ok(())
}

/// Makes the key here, gets the certificate, and writes a context that uses both.
async fn add(
    session: &Session,
    client: &Client,
    name: &str,
    role: Role,
    out: &Path,
) -> Result<ExitCode, Failure> {
    let files = Files::beside(out, name);
    if let Some(there) = files.all().into_iter().find(|path| path.exists()) {
        let message = format!(
            "{} is there already; name another file with --out",
            there.display()
        );
        return Err(Failure::new(USAGE, message));
    }
    let key = PrivateKey::generate().map_err(|error| Failure::of(&error))?;
    let request = key.request().map_err(|error| Failure::of(&error))?;
    let order = AddOperator {
        name: name.to_owned(),
        role,
        request: STANDARD.encode(request),
    };
    let answer = client
        .post("/v1/operators", json!(order).to_string())
        .await?;
    let added: AddedOperator = client.typed(&answer)?;
    let context = ContextFile {
        url: format!("https://{}", client.address()),
        ca: file_name(&files.ca),
        certificate: file_name(&files.certificate),
        key: file_name(&files.key),
    };
    let context = toml::to_string(&context).map_err(|error| Failure::of(&error))?;
    write(&files.ca, added.ca.as_bytes(), 0o644)?;
    write(&files.certificate, added.certificate.as_bytes(), 0o644)?;
    write(&files.key, key.to_pem().expose(), 0o600)?;
    write(&files.context, context.as_bytes(), 0o644)?;
    let answer = json!({"operator": added.operator, "context": files.context});
    session.output.answer(&answer, || {
        let context = files.context.display();
        format!(
            "added operator {name} with the role {role}\n\nThey use it with `windlass --context {context} …`; \
             give them {context} with {name}.crt, {name}.key (secret) and {name}-ca.crt beside it."
        )
    });
    Ok(ExitCode::SUCCESS)
}

struct Files {
    context: PathBuf,
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn beside(out: &Path, name: &str) -> Files {
        let beside = |file: String| out.with_file_name(file);
        Files {
            context: out.to_owned(),
            ca: beside(format!("{name}-ca.crt")),
            certificate: beside(format!("{name}.crt")),
            key: beside(format!("{name}.key")),
        }
    }

    fn all(&self) -> [&Path; 4] {
        [&self.context, &self.ca, &self.certificate, &self.key]
    }
}

fn file_name(path: &Path) -> PathBuf {
    path.file_name().map(PathBuf::from).unwrap_or_default()
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Failure> {
    write_atomic(path, bytes, mode)
        .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))
}

async fn list(session: &Session, client: &Client) -> Result<(), Failure> {
    let answer = client.get("/v1/operators").await?;
    let operators: Vec<Operator> = client.typed(&answer["items"])?;
    session.output.answer(&answer, || {
        let rows = operators.iter().map(|operator| {
            vec![
                operator.name.clone(),
                operator.role.to_string(),
                state(operator),
                operator.added_by.clone(),
                age(operator.created_at),
            ]
        });
        table(&["NAME", "ROLE", "STATE", "ADDED BY", "AGE"], rows)
    });
    Ok(())
}

fn state(operator: &Operator) -> String {
    match operator.revoked_at {
        Some(at) => format!("revoked {} ago", age(at)),
        None => "active".to_owned(),
    }
}

fn describe(operator: &Operator) -> String {
    pairs(vec![
        ("Name", operator.name.clone()),
        ("Role", operator.role.to_string()),
        ("State", state(operator)),
        ("Added by", operator.added_by.clone()),
        (
            "Added",
            format!("{} ({} ago)", operator.created_at, age(operator.created_at)),
        ),
    ])
}

/// `windlass audit`.
pub(crate) async fn audit(session: &Session, arguments: AuditArgs) -> Result<ExitCode, Failure> {
    let client = session.client()?;
    let mut path = format!("/v1/audit?limit={}", arguments.limit);
    let since = arguments.since.map(|ago| {
        let now = Timestamp::now().unix_ms();
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        Timestamp::from_unix_ms(now.saturating_sub(ago)).to_string()
    });
    for (name, value) in [
        ("actor", arguments.actor),
        ("action", arguments.action),
        ("subject", arguments.subject),
        ("since", since),
    ] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", segment(&value)));
        }
    }
    let answer = client.get(&path).await?;
    let entries: Vec<AuditEntry> = client.typed(&answer["items"])?;
    session.output.answer(&answer, || {
        let rows = entries.iter().map(|entry| {
            vec![
                entry.at.to_string(),
                match entry.role {
                    Some(role) => format!("{} ({role})", entry.actor),
                    None => entry.actor.clone(),
                },
                entry.action.clone(),
                entry.subject.clone(),
                entry.outcome.clone(),
                entry.detail.clone(),
            ]
        });
        table(
            &["AT", "WHO", "ACTION", "SUBJECT", "OUTCOME", "DETAIL"],
            rows,
        )
    });
    Ok(ExitCode::SUCCESS)
}
