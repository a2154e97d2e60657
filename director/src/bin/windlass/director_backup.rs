//! `windlass director backup`, `backup-key` and `adopt`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;
use windlass_director::api::AdoptDifferences;
use windlass_director::backup::adopt::{Change, Differences, MachineDifference};
use windlass_director::backup::director::PartFile;
use windlass_director::backup::envelope::Identity;
use windlass_director::service::HoldView;

use crate::Session;
use crate::args::AdoptArgs;
use crate::failure::{CONFLICT, Failure};
use crate::output::{age, table};

/// Writes a backup of the director that answers to a file, as a whole or not at all.
pub(crate) async fn take(session: &Session, to: &Path) -> Result<ExitCode, Failure> {
    let failed = |error: std::io::Error| {
        let what = format!("cannot write {}: {error}", to.display());
        match error.kind() {
            std::io::ErrorKind::AlreadyExists => Failure::new(CONFLICT, what),
            _ => Failure::failed(what),
        }
    };
    let mut file = PartFile::create(to).map_err(failed)?;
    let client = session.client()?;
    let mut pieces = client.pieces("/v1/director/backup").await?;
    while let Some(piece) = pieces.next().await? {
        file.write_all(&piece).map_err(failed)?;
    }
    let bytes = file.keep().map_err(failed)?;
    session
        .output
        .answer(&json!({"file": to, "bytes": bytes}), || {
            format!(
                "{} ({bytes} bytes); `windlass director backup-key` says which key opens it",
                to.display()
            )
        });
    Ok(ExitCode::SUCCESS)
}

/// Says which key opens backups, and writes a copy of its private part.
pub(crate) fn key(session: &Session, write: Option<&Path>) -> Result<ExitCode, Failure> {
    let dir = session.data_dir()?;
    let path = dir.backup_key();
    let key = Identity::load(&path).map_err(|error| Failure::of(&error))?;
    if let Some(to) = write {
        key.save(to).map_err(|error| Failure::of(&error))?;
    }
    let answer =
        json!({"recipient": key.recipient().to_string(), "identity": path, "written": write});
    session.output.answer(&answer, || {
        let copy = match write {
            Some(to) => format!("a copy of it is in {}; keep that elsewhere", to.display()),
            None => "keep a copy elsewhere: `--write FILE` writes one".to_owned(),
        };
        format!(
            "backups are sealed for {}\nthe private key is {}; {copy}. Without it, and without that of a further \
             recipient in director.toml, backups cannot be opened.",
            key.recipient(),
            path.display()
        )
    });
    Ok(ExitCode::SUCCESS)
}

/// Shows what changed since the backup, or adopts what was shown.
pub(crate) async fn adopt(session: &Session, arguments: AdoptArgs) -> Result<ExitCode, Failure> {
    let client = session.client()?;
    let Some(digest) = arguments.approve else {
        let answer = client.get("/v1/director/hold").await?;
        let view: HoldView = client.typed(&answer)?;
        session.output.answer(&view, || describe(&view));
        return Ok(ExitCode::SUCCESS);
    };
    let order = AdoptDifferences {
        digest,
        forget: arguments.forget,
        accept: arguments.accept,
    };
    let body = json!(order).to_string();
    let answer = client.post("/v1/director/adoption", body).await?;
    let view: HoldView = client.typed(&answer)?;
    session.output.answer(&view, || {
        "adopted; the hold is over, and the director acts again".to_owned()
    });
    Ok(ExitCode::SUCCESS)
}

fn describe(view: &HoldView) -> String {
    let Some(hold) = &view.hold else {
        return "the director is not on hold".to_owned();
    };
    let mut text = format!(
        "on hold for {}: restored from the backup of {}\n",
        age(hold.since),
        hold.backup_at
    );
    let found = &view.differences;
    if *found == Differences::default() {
        text.push_str("everything is as the records say\n");
    }
    if !found.machines.is_empty() {
        let number = |n: Option<_>| {
            n.map_or_else(
                || "-".to_owned(),
                |n: windlass_common::id::Incarnation| n.to_string(),
            )
        };
        let rows = found.machines.iter().map(|one| {
            vec![
                one.machine.to_string(),
                number(one.recorded),
                number(one.found),
                if one.certificate { "shown" } else { "-" }.to_owned(),
                meaning(one).to_owned(),
            ]
        });
        let header = [
            "MACHINE",
            "RECORDED",
            "FOUND",
            "CERTIFICATE",
            "WHAT FOLLOWS",
        ];
        text.push_str(&format!("\n{}\n", table(&header, rows).trim_end()));
    }
    for count in &found.counts {
        let what = count
            .pool
            .as_ref()
            .map_or_else(|| "control plane".to_owned(), |pool| format!("pool {pool}"));
        text.push_str(&format!(
            "\n{} of cluster {} will be {} machines in its spec, now {}",
            what, count.cluster, count.found, count.recorded
        ));
    }
    for task in &found.tasks {
        text.push_str(&format!(
            "\ntask {} of cluster {} was under way; it ends as failed",
            task.task, task.cluster
        ));
    }
    let listed = [
        (
            "disks that no record names, left alone",
            found
                .disks
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>(),
        ),
        (
            "agents that have not connected yet",
            found.silent.iter().map(ToString::to_string).collect(),
        ),
        (
            "agents that name an epoch no director can have had, and refuse every step; recreate them",
            found.beyond.iter().map(ToString::to_string).collect(),
        ),
    ];
    for (what, names) in listed.into_iter().filter(|(_, names)| !names.is_empty()) {
        text.push_str(&format!("\n{what}: {}", names.join(", ")));
    }
    text.push_str(&format!(
        "\n\nNothing is done to machines until you approve of this:\nwindlass director adopt --approve {}",
        view.digest
    ));
    text
}

fn meaning(one: &MachineDifference) -> &'static str {
    match (one.change, one.certificate) {
        (Change::Replaced, true) => "replaced since; adopted",
        (Change::Replaced, false) => "replaced since; wait for its agent, or --accept it",
        (Change::Added, true) => "added since; adopted",
        (Change::Added, false) => "added since; wait for its agent, or --accept it",
        (Change::Undescribed, _) => "added since, and cannot be adopted; --forget it",
        (Change::Foreign, _) => "of a cluster that is not known here; left alone",
        (Change::Gone, _) => "gone; kept and healed later, or --forget it",
        (Change::Older, _) => "older than recorded; the next plan sees to it",
        (Change::Claimed, _) => "shows a certificate, and does not exist; not let in",
    }
}
