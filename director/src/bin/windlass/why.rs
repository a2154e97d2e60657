//! `windlass node why`, `hold`, `ignore`, `release` and `recreate`.

use std::process::ExitCode;

use serde_json::json;
use windlass_director::api::{HoldNode, RecreateNode};
use windlass_director::client::Client;
use windlass_director::model::Timestamp;
use windlass_director::resurrector::{CaseRecord, HoldKind, Mode, Outlook};
use windlass_director::service::NodeWhy;

use crate::Session;
use crate::cluster::{confirm, ordered, pairs, segment};
use crate::failure::Failure;
use crate::output::{age, duration, table};

fn path(name: &str, what: &str) -> String {
    format!("/v1/machines/{}/{what}", segment(name))
}

pub(crate) async fn run(
    session: &Session,
    client: &Client,
    name: &str,
) -> Result<ExitCode, Failure> {
    let answer = client.get(&path(name, "why")).await?;
    let why: NodeWhy = client.typed(&answer)?;
    session.output.answer(&answer, || describe(&why));
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn hold(
    session: &Session,
    client: &Client,
    name: &str,
    kind: HoldKind,
    reason: String,
) -> Result<ExitCode, Failure> {
    let body = json!(HoldNode { kind, reason }).to_string();
    let answer = client.put(&path(name, "hold"), body).await?;
    let what = format!("{name} is {kind}; `windlass node release {name}` lets it go");
    session.output.answer(&answer, || what);
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn release(
    session: &Session,
    client: &Client,
    name: &str,
) -> Result<ExitCode, Failure> {
    let answer = client.delete(&path(name, "hold")).await?;
    session
        .output
        .answer(&answer, || format!("{name} is judged and healed again"));
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn recreate(
    session: &Session,
    client: &Client,
    name: &str,
    yes: bool,
    order: &RecreateNode,
    wait: bool,
) -> Result<ExitCode, Failure> {
    let prompt = format!("Type the name of the machine ({name}) to replace it: ");
    if !yes && !confirm(&prompt, name)? {
        return Err(Failure::failed("not replaced"));
    }
    let answer = client
        .post(&path(name, "recreation"), json!(order).to_string())
        .await?;
    ordered(session, client, &answer, wait).await
}

fn describe(why: &NodeWhy) -> String {
    let mut rows = vec![
        (
            "Machine",
            format!("{} (incarnation {})", why.machine, why.incarnation),
        ),
        ("Cluster", why.cluster.to_string()),
        ("Verdict", verdict(why)),
        ("Next", next(&why.outlook, why.mode)),
        ("Decided by", decides(why)),
    ];
    if let Some(task) = &why.task {
        rows.push(("Task", format!("{task} works on its cluster")));
    }
    let case = why.case.as_ref();
    if let Some(failure) = case.and_then(|record| record.failure.as_ref()) {
        rows.push(("Last remedy", format!("failed: {failure}")));
    }
    let mut text = pairs(rows);
    if let Some(gathered) = &why.gathered {
        let statements = gathered.statements.iter().map(|statement| {
            vec![
                statement.witness.to_string(),
                statement.says.clone(),
                statement.age_ms.map_or("-".to_owned(), duration),
                duration(statement.took_ms),
            ]
        });
        let header = ["WITNESS", "SAYS", "AGE", "TOOK"];
        let asked = age(gathered.at);
        text = format!(
            "{text}\n\nAsked {asked} ago:\n{}",
            table(&header, statements)
        );
    }
    if let Some(record) = case {
        text.push_str(&past(record));
    }
    text
}

fn verdict(why: &NodeWhy) -> String {
    let case = why.case.as_ref().map(|record| &record.case);
    match (why.verdict, &why.unwatched) {
        (Some(verdict), _) => match case.filter(|case| case.verdict == verdict) {
            Some(case) => format!(
                "{verdict}, for {}",
                age(Timestamp::from_unix_ms(case.since_ms))
            ),
            None => verdict.to_string(),
        },
        (None, Some(because)) => format!("not judged: {because}"),
        (None, None) if why.mode == Mode::Off => "not judged: the resurrector is off".to_owned(),
        (None, None) => "not judged yet".to_owned(),
    }
}

fn next(outlook: &Outlook, mode: Mode) -> String {
    match outlook {
        Outlook::Rest => "nothing".to_owned(),
        Outlook::Wait { until_ms, why } => {
            let left = until_ms.saturating_sub(Timestamp::now().unix_ms());
            format!("nothing for {}: {why}", duration(left))
        }
        Outlook::Stay { why } => format!("nothing by itself: {why}"),
        Outlook::Refused { rung, why } => format!("{rung}, but not now: {why}"),
        Outlook::Act { rung } => match mode {
            Mode::On => format!("{rung}, now"),
            Mode::Observe | Mode::Off => {
                format!("{rung} would be done; the resurrector only observes")
            }
        },
    }
}

fn decides(why: &NodeWhy) -> String {
    let hold = why.case.as_ref().and_then(|record| record.hold.as_ref());
    match hold {
        Some(hold) => {
            let since = ago(hold.since_ms);
            let reason = match hold.reason.as_str() {
                "" => String::new(),
                reason => format!(": {reason}"),
            };
            format!("{} ({} {since}{reason})", hold.operator, hold.kind)
        }
        None => match (&why.outlook, why.mode) {
            (Outlook::Stay { .. }, _) | (_, Mode::Off | Mode::Observe) => {
                "an operator: `windlass node recreate` replaces it".to_owned()
            }
            _ => "the director".to_owned(),
        },
    }
}

fn past(record: &CaseRecord) -> String {
    let mut text = String::new();
    if !record.case.attempts.is_empty() {
        let attempts = record.case.attempts.iter();
        let rows = attempts.map(|attempt| vec![ago(attempt.at_ms), attempt.rung.to_string()]);
        text.push_str(&format!("\n\n{}", table(&["TRIED", "WHAT"], rows)));
    }
    if !record.deaths.is_empty() {
        let rows = record.deaths.iter().map(|death| {
            let troubles: Vec<_> = death.troubles.iter().map(String::as_str).collect();
            let step = death.step.as_ref();
            let step = step.map(|step| format!("{}: {}", step.name, step.error));
            vec![
                ago(death.at_ms),
                death.incarnation.to_string(),
                death.verdict.to_string(),
                death.stemcell.clone(),
                dash(troubles.join(", ")),
                dash(step.unwrap_or_default()),
            ]
        });
        let header = [
            "DIED",
            "INCARNATION",
            "VERDICT",
            "STEMCELL",
            "TROUBLES",
            "FAILED STEP",
        ];
        text.push_str(&format!("\n\n{}", table(&header, rows)));
    }
    let judged = record.history.iter().rev().map(|judgement| {
        let of = &judgement.evidence;
        vec![
            ago(judgement.at_ms),
            judgement.verdict.to_string(),
            judgement.incarnation.to_string(),
            format!("{:?}", of.link),
            format!("{:?}", of.power),
            format!("{:?}", of.peers),
            format!("{:?}", of.lease),
            format!("{:?}", of.work),
        ]
    });
    let header = [
        "JUDGED",
        "VERDICT",
        "INCARNATION",
        "LINK",
        "POWER",
        "PEERS",
        "LEASE",
        "WORK",
    ];
    if !record.history.is_empty() {
        text.push_str(&format!("\n\n{}", table(&header, judged)));
    }
    text
}

fn dash(text: String) -> String {
    if text.is_empty() {
        return "-".to_owned();
    }
    text
}

fn ago(at_ms: u64) -> String {
    format!("{} ago", age(Timestamp::from_unix_ms(at_ms)))
}
