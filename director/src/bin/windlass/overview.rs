//! `windlass top`: all clusters, live.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use windlass_director::model::ClusterOverview;

use crate::Session;
use crate::failure::Failure;
use crate::output::{line, table};

/// Clears the screen and goes to its corner.
const CLEAR: &str = "\x1b[H\x1b[2J";
/// Longest text in a cell, characters.
const CELL_MAX: usize = 60;

pub(crate) async fn run(
    session: &Session,
    once: bool,
    interval_s: u32,
) -> Result<ExitCode, Failure> {
    let client = session.client()?;
    loop {
        let answer = client.get("/v1/overview").await?;
        let clusters: Vec<ClusterOverview> = client.typed(&answer["items"])?;
        if once {
            session.output.answer(&answer["items"], || text(&clusters));
            return Ok(ExitCode::SUCCESS);
        }
        if session.output.json {
            line(&answer["items"].to_string());
        } else if std::io::stdout().is_terminal() {
            line(&format!("{CLEAR}{}", text(&clusters)));
        } else {
            line(&format!("{}\n", text(&clusters)));
        }
        tokio::time::sleep(Duration::from_secs(u64::from(interval_s))).await;
    }
}

fn text(clusters: &[ClusterOverview]) -> String {
    let rows = clusters.iter().map(|cluster| {
        let task = cluster.task.as_ref().map_or("-".to_owned(), |task| {
            format!("{} {} {}/{}", task.kind, task.state, task.done, task.all)
        });
        let running = cluster.task.as_ref().and_then(|task| task.running.first());
        let now = running.map_or(String::new(), ToString::to_string);
        let window = cluster
            .window
            .as_ref()
            .map(|window| match (window.open, window.until) {
                (true, None) => "open".to_owned(),
                (true, Some(until)) => format!("open until {until}"),
                (false, None) => "closed".to_owned(),
                (false, Some(until)) => format!("opens {until}"),
            });
        let trouble = cluster.task.as_ref().and_then(|task| task.trouble.clone());
        let fault = cluster.fault.clone().or(trouble);
        vec![
            cluster.name.to_string(),
            cluster.phase.to_string(),
            versions(cluster),
            format!("{}/{}", cluster.ready, cluster.wanted),
            task,
            cell(&now),
            cell(cluster.next.as_deref().unwrap_or("-")),
            window.unwrap_or_else(|| "-".to_owned()),
            cell(fault.as_deref().unwrap_or("-")),
        ]
    });
    table(
        &[
            "CLUSTER", "PHASE", "VERSION", "READY", "TASK", "NOW", "NEXT", "WINDOW", "FAULT",
        ],
        rows,
    )
}

/// One version, or how many machines run which.
fn versions(cluster: &ClusterOverview) -> String {
    let mut versions = cluster.versions.iter();
    match (versions.next(), versions.next()) {
        (None, _) => format!("→ {}", cluster.wanted_version),
        (Some((version, _)), None) if *version == cluster.wanted_version => version.clone(),
        _ => {
            let counts: Vec<String> = cluster
                .versions
                .iter()
                .map(|(version, count)| format!("{count}×{version}"))
                .collect();
            format!("{} → {}", counts.join(" "), cluster.wanted_version)
        }
    }
}

fn cell(text: &str) -> String {
    if text.chars().count() <= CELL_MAX {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(CELL_MAX - 1).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_for_each_cluster() {
        let clusters: Vec<ClusterOverview> = serde_json::from_value(json!([
            {"name": "a", "phase": "Ready", "versions": {"1.37.2": 3}, "wantedVersion": "1.37.2", "ready": 3,
                "wanted": 3, "toChange": 0, "labels": {}},
            {"name": "b", "phase": "Updating", "versions": {"1.36.3": 2, "1.37.2": 1}, "wantedVersion": "1.37.2",
                "ready": 2, "wanted": 3, "toChange": 2, "labels": {},
                "task": {"id": "t1-000000", "kind": "updateCluster", "state": "Waiting", "done": 4, "all": 9,
                    "running": [], "createdAt": "2030-01-01T00:00:00Z"},
                "next": "window opens at 2030-01-02T02:00:00.000Z",
                "window": {"open": false, "until": "2030-01-02T02:00:00Z", "why": "no window"}},
        ]))
        .unwrap();
        let text = text(&clusters);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("a         Ready"), "{text}");
        for part in [
            "2×1.36.3 1×1.37.2 → 1.37.2",
            "2/3",
            "Waiting 4/9",
            "opens 2030-01-02T02:00",
        ] {
            assert!(lines[2].contains(part), "{part}: {text}");
        }
        assert_eq!(cell(&"x".repeat(100)).chars().count(), CELL_MAX);
    }
}
