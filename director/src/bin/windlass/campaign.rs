//! `windlass upgrade` and `windlass campaign …`: one upgrade of many clusters.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};
use windlass_director::client::Client;
use windlass_director::model::{CampaignState, CampaignView, MemberState};

use crate::Session;
use crate::args::{CampaignCommand, UpgradeArgs};
use crate::cluster::{pairs, segment};
use crate::failure::{Failure, INTERRUPTED};
use crate::output::{age, note, table};

/// Between two looks at a campaign that is waited for.
const LOOK: Duration = Duration::from_secs(2);

pub(crate) async fn upgrade(session: &Session, asked: UpgradeArgs) -> Result<ExitCode, Failure> {
    let client = session.client()?;
    let selector: serde_json::Map<String, Value> = asked
        .selector
        .iter()
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect();
    let body = json!({
        "clusters": asked.clusters,
        "selector": selector,
        "all": asked.all,
        "kubernetesVersion": asked.to,
        "newestStemcell": asked.stemcell,
        "waves": asked.waves,
        "maxInFlight": asked.max_in_flight,
        "maxFailures": asked.max_failures,
        "soakSeconds": asked.soak.as_secs(),
        "acceptDowntime": asked.accept_downtime,
        "acceptBlocked": asked.accept_blocked,
        "ignoreWindow": asked.ignore_window,
    });
    let path = format!("/v1/campaigns?dry_run={}", asked.dry_run);
    let answer = client.post(&path, body.to_string()).await?;
    let view: CampaignView = client.typed(&answer)?;
    if asked.dry_run {
        session.output.answer(&answer, || waves(&view));
        return Ok(ExitCode::SUCCESS);
    }
    ordered(session, &client, &answer, asked.wait).await
}

pub(crate) async fn run(session: &Session, command: CampaignCommand) -> Result<ExitCode, Failure> {
    let client = session.client()?;
    match command {
        CampaignCommand::List => list(session, &client).await,
        CampaignCommand::Show { id } => {
            let answer = show(&client, &id).await?;
            let view: CampaignView = client.typed(&answer)?;
            session.output.answer(&answer, || describe(&view));
            Ok(ExitCode::SUCCESS)
        }
        CampaignCommand::Watch { id } => {
            let answer = show(&client, &id).await?;
            ordered(session, &client, &answer, true).await
        }
        CampaignCommand::Pause { id } => steer(session, &client, &id, "pause", false).await,
        CampaignCommand::Resume { id, wait } => steer(session, &client, &id, "resume", wait).await,
        CampaignCommand::Cancel { id } => steer(session, &client, &id, "cancel", false).await,
        CampaignCommand::Retry { id, wait } => steer(session, &client, &id, "retry", wait).await,
    }
}

async fn show(client: &Client, id: &str) -> Result<Value, Failure> {
    Ok(client
        .get(&format!("/v1/campaigns/{}", segment(id)))
        .await?)
}

async fn steer(
    session: &Session,
    client: &Client,
    id: &str,
    what: &str,
    wait: bool,
) -> Result<ExitCode, Failure> {
    let path = format!("/v1/campaigns/{}/{what}", segment(id));
    let answer = client.post(&path, String::new()).await?;
    ordered(session, client, &answer, wait).await
}

/// Shows a campaign that was ordered or steered, or waits for its end.
async fn ordered(
    session: &Session,
    client: &Client,
    answer: &Value,
    wait: bool,
) -> Result<ExitCode, Failure> {
    let view: CampaignView = client.typed(answer)?;
    let id = view.campaign.id.to_string();
    if !wait {
        session.output.answer(answer, || {
            let state = view.campaign.state;
            format!(
                "campaign {id} is {state}: {}\n`windlass campaign watch {id}` follows it",
                view.next
            )
        });
        return Ok(ExitCode::SUCCESS);
    }
    let (answer, view) = tokio::select! {
        over = until_over(client, &id, view) => over?,
        _ = tokio::signal::ctrl_c() => {
            return Err(Failure::new(
                INTERRUPTED,
                format!("campaign {id} goes on; `windlass campaign watch {id}` follows it"),
            ));
        }
    };
    if view.campaign.state == CampaignState::Succeeded {
        session.output.answer(&answer, || describe(&view));
        return Ok(ExitCode::SUCCESS);
    }
    let why = view.campaign.error.as_deref().unwrap_or("it was stopped");
    Err(Failure::failed(format!(
        "campaign {id} is {}: {why}\n`windlass campaign show {id}` shows its clusters; `windlass campaign retry \
         {id}` goes on from there",
        view.campaign.state
    )))
}

/// Follows a campaign to its end, with a line for each change of a cluster.
async fn until_over(
    client: &Client,
    id: &str,
    mut seen: CampaignView,
) -> Result<(Value, CampaignView), Failure> {
    note(&format!("campaign {id}: {}", seen.next));
    loop {
        let answer = show(client, id).await?;
        let view: CampaignView = client.typed(&answer)?;
        for line in changes(&seen, &view) {
            note(&line);
        }
        if view.campaign.state.is_over() {
            return Ok((answer, view));
        }
        seen = view;
        tokio::time::sleep(LOOK).await;
    }
}

fn changes(before: &CampaignView, after: &CampaignView) -> Vec<String> {
    let changed = before.members.iter().zip(&after.members);
    let mut lines: Vec<String> = changed
        .filter(|(before, after)| before.state != after.state)
        .map(|(_, member)| {
            let why = match (&member.message, member.state) {
                (Some(message), MemberState::Failed) => format!(": {message}"),
                _ => String::new(),
            };
            format!(
                "cluster {} (wave {}): {}{why}",
                member.cluster, member.wave, member.state
            )
        })
        .collect();
    if before.next != after.next {
        lines.push(after.next.clone());
    }
    lines
}

async fn list(session: &Session, client: &Client) -> Result<ExitCode, Failure> {
    let answer = client.get("/v1/campaigns").await?;
    let campaigns: Vec<CampaignView> = client.typed(&answer["items"])?;
    session.output.answer(&answer, || {
        let rows = campaigns.iter().map(|view| {
            let campaign = &view.campaign;
            vec![
                campaign.id.to_string(),
                campaign.state.to_string(),
                target(view),
                progress(view),
                campaign.operator.clone(),
                age(campaign.created_at),
                view.next.clone(),
            ]
        });
        table(
            &["ID", "STATE", "TO", "CLUSTERS", "OPERATOR", "AGE", "NEXT"],
            rows,
        )
    });
    Ok(ExitCode::SUCCESS)
}

fn target(view: &CampaignView) -> String {
    let version = view.campaign.kubernetes_version.as_deref();
    match (version, view.campaign.newest_stemcell) {
        (Some(version), false) => version.to_owned(),
        (Some(version), true) => format!("{version}, newest stemcell"),
        (None, _) => "newest stemcell".to_owned(),
    }
}

fn progress(view: &CampaignView) -> String {
    let in_state = |state| view.members.iter().filter(|m| m.state == state).count();
    let mut text = format!(
        "{} of {} done",
        in_state(MemberState::Succeeded),
        view.members.len()
    );
    for (state, what) in [
        (MemberState::Running, "run"),
        (MemberState::Failed, "failed"),
    ] {
        if in_state(state) > 0 {
            text.push_str(&format!(", {} {what}", in_state(state)));
        }
    }
    text
}

/// What an order would do.
fn waves(view: &CampaignView) -> String {
    let rows = view.campaign.waves.iter().enumerate().map(|(index, wave)| {
        let names: Vec<_> = wave.iter().map(ToString::to_string).collect();
        vec![
            (index + 1).to_string(),
            wave.len().to_string(),
            names.join(", "),
        ]
    });
    let campaign = &view.campaign;
    format!(
        "{}\n\nto {}; {} at a time, {} may fail, {} s between waves; {}",
        table(&["WAVE", "CLUSTERS", ""], rows),
        target(view),
        campaign.max_in_flight,
        campaign.max_failures,
        campaign.soak_seconds,
        view.next
    )
}

fn describe(view: &CampaignView) -> String {
    let campaign = &view.campaign;
    let mut rows = vec![
        ("Campaign", campaign.id.to_string()),
        ("State", campaign.state.to_string()),
        ("To", target(view)),
        ("Clusters", progress(view)),
        ("In flight", format!("at most {}", campaign.max_in_flight)),
        ("May fail", campaign.max_failures.to_string()),
        ("Soak", format!("{} s", campaign.soak_seconds)),
        ("Operator", campaign.operator.clone()),
        (
            "Ordered",
            format!("{} ({} ago)", campaign.created_at, age(campaign.created_at)),
        ),
        ("Next", view.next.clone()),
    ];
    if let Some(reason) = &campaign.ignore_window {
        rows.push(("Ignores windows", reason.clone()));
    }
    if let Some(error) = &campaign.error {
        rows.push(("Error", error.clone()));
    }
    let members = view.members.iter().map(|member| {
        vec![
            member.cluster.to_string(),
            member.wave.to_string(),
            member.state.to_string(),
            member
                .task
                .as_ref()
                .map_or("-".to_owned(), ToString::to_string),
            member.message.clone().unwrap_or_default(),
        ]
    });
    let members = table(&["CLUSTER", "WAVE", "STATE", "TASK", ""], members);
    format!("{}\n\n{members}", pairs(rows))
}
