//! `windlass node …`.

use std::io::Write;
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use serde_json::{Value, json};
use windlass_common::condition::State;
use windlass_common::error::ErrorClass;
use windlass_common::report::Scope;
use windlass_common::vital::Unit;
use windlass_director::api::{NodeOutput, RecreateNode, Source};
use windlass_director::client::{Client, Lines};
use windlass_director::health::{ConditionView, VitalView};
use windlass_director::model::{MachineHealth, MachineView};
use windlass_director::resurrector::HoldKind;
use windlass_director::resurrector::witness::Judgement;
use windlass_director::service::FreshToken;

use crate::args::NodeCommand;
use crate::cluster::{pairs, segment};
use crate::failure::{FAILED, Failure, UNREACHABLE};
use crate::output::{age, duration, line, note, table};
use crate::{Session, agents, collect, exec, kept, shell, top, why};

pub(crate) async fn run(session: &Session, command: NodeCommand) -> Result<ExitCode, Failure> {
    let client = session.client()?;
    match command {
        NodeCommand::List { cluster } => list(session, &client, cluster.as_deref()).await,
        NodeCommand::Show { name } => show(session, &client, &name).await,
        NodeCommand::Evidence { name } => evidence(session, &client, &name).await,
        NodeCommand::Why { name } => why::run(session, &client, &name).await,
        NodeCommand::Hold { name, reason } => {
            why::hold(session, &client, &name, HoldKind::Hold, reason).await
        }
        NodeCommand::Ignore { name, reason } => {
            why::hold(session, &client, &name, HoldKind::Ignore, reason).await
        }
        NodeCommand::Release { name } => why::release(session, &client, &name).await,
        NodeCommand::Recreate {
            name,
            yes,
            accept_downtime,
            keep,
            reason,
            wait,
        } => {
            let order = RecreateNode {
                accept_downtime,
                keep,
                reason,
            };
            why::recreate(session, &client, &name, yes, &order, wait).await
        }
        NodeCommand::Kept(command) => kept::run(session, &client, command).await,
        NodeCommand::Enroll { name, print } => enroll(session, &client, &name, print).await,
        NodeCommand::Logs {
            name,
            unit,
            lines,
            follow,
            diagnostics,
        } => {
            let unit = segment(&unit.join(","));
            let path = format!(
                "/v1/machines/{}/logs?lines={lines}&diagnostics={diagnostics}&follow={follow}&unit={unit}",
                segment(&name)
            );
            let lines = client.lines(Method::GET, &path, None, &[]).await?;
            stream(session, &client, lines).await
        }
        NodeCommand::UpgradeAgent { name, upgrade } => {
            agents::upgrade_one(session, &client, &name, upgrade).await
        }
        NodeCommand::Shell { name } => shell::run(&client, &name).await,
        NodeCommand::Top {
            name,
            once,
            interval,
        } => top::run(session, &client, name.as_deref(), once, interval).await,
        NodeCommand::Collect {
            name,
            cluster,
            output,
            lines,
        } => {
            let of = (name.as_deref(), cluster.as_deref());
            collect::run(session, &client, of, &output, lines).await
        }
        NodeCommand::Exec {
            name,
            stdin: true,
            command,
        } => exec::run(&client, &name, &command).await,
        NodeCommand::Exec {
            name,
            stdin: false,
            command,
        } => {
            let path = format!("/v1/machines/{}/exec", segment(&name));
            let body = json!({ "argv": command }).to_string();
            let lines = client.lines(Method::POST, &path, Some(body), &[]).await?;
            stream(session, &client, lines).await
        }
    }
}

async fn list(
    session: &Session,
    client: &Client,
    cluster: Option<&str>,
) -> Result<ExitCode, Failure> {
    let path = match cluster {
        Some(name) => format!("/v1/machines?cluster={}", segment(name)),
        None => "/v1/machines".to_owned(),
    };
    let answer = client.get(&path).await?;
    let machines: Vec<MachineView> = client.typed(&answer["items"])?;
    session.output.answer(&answer, || {
        let rows = machines.iter().map(|view| {
            let machine = &view.machine;
            let heartbeat = view.agent.last_heartbeat_age_ms;
            vec![
                machine.name.to_string(),
                machine.cluster.to_string(),
                machine.role.to_string(),
                zone(machine),
                machine.phase.to_string(),
                verdict(view),
                machine.address.to_string(),
                heartbeat.map_or("-".to_owned(), duration),
                age(machine.created_at),
            ]
        });
        table(
            &[
                "NAME",
                "CLUSTER",
                "ROLE",
                "ZONE",
                "PHASE",
                "VERDICT",
                "ADDRESS",
                "HEARTBEAT",
                "AGE",
            ],
            rows,
        )
    });
    Ok(ExitCode::SUCCESS)
}

async fn show(session: &Session, client: &Client, name: &str) -> Result<ExitCode, Failure> {
    let answer = client
        .get(&format!("/v1/machines/{}", segment(name)))
        .await?;
    let view: MachineView = client.typed(&answer)?;
    session.output.answer(&answer, || describe(&view));
    Ok(ExitCode::SUCCESS)
}

fn zone(machine: &windlass_director::model::Machine) -> String {
    machine
        .zone
        .as_ref()
        .map_or("-".to_owned(), ToString::to_string)
}

/// What it was in service with last, and whose that is where it is not its own stemcell's.
fn components(machine: &windlass_director::model::Machine) -> String {
    let all: Vec<String> = machine
        .components
        .iter()
        .map(|(name, version)| format!("{name} {version}"))
        .collect();
    match (&machine.fitted, all.is_empty()) {
        (_, true) => "-".to_owned(),
        (None, false) => all.join(", "),
        (Some(stemcell), false) => format!("{} (of {stemcell}, in place)", all.join(", ")),
    }
}

fn describe(view: &MachineView) -> String {
    let machine = &view.machine;
    let mut rows = vec![
        ("Name", machine.name.to_string()),
        ("Cluster", machine.cluster.to_string()),
        ("Role", machine.role.to_string()),
        ("Zone", zone(machine)),
        ("Phase", machine.phase.to_string()),
        (
            "Node",
            format!(
                "{} (incarnation {})",
                machine.node_name, machine.incarnation
            ),
        ),
        ("Address", machine.address.to_string()),
        ("Pods", machine.pod_cidr.to_string()),
        ("Stemcell", machine.stemcell.clone()),
        ("Components", components(machine)),
        ("Verdict", verdict(view)),
        ("Health", health(&view.health)),
        ("Agent", agent(view)),
        (
            "Created",
            format!("{} ({} ago)", machine.created_at, age(machine.created_at)),
        ),
    ];
    if let Some(disk) = &machine.data_disk {
        rows.push(("Data disk", disk.to_string()));
    }
    let Some(report) = &view.report else {
        return pairs(rows);
    };
    let units = report.units.iter().map(|(name, unit)| {
        vec![
            name.clone(),
            unit.active_state.clone(),
            unit.sub_state.clone(),
            unit.restarts.to_string(),
        ]
    });
    let units = table(&["UNIT", "STATE", "SUBSTATE", "RESTARTS"], units);
    let mut text = pairs(rows);
    if !view.measured.is_empty() {
        let rows = view.measured.iter().map(vital);
        let heads = ["VITAL", "VALUE", "WHOSE", "AGE", "SOURCE"];
        text = format!("{text}\n\n{}", table(&heads, rows));
    }
    text = format!("{text}\n\n{units}");
    if !view.conditions.is_empty() {
        let rows = view.conditions.iter().map(condition);
        let heads = ["CONDITION", "STATE", "SAYS", "WHOSE", "AGE"];
        text = format!("{text}\n\n{}", table(&heads, rows));
    }
    text
}

fn vital(one: &VitalView) -> Vec<String> {
    let name = match one.subject.as_str() {
        "" => one.name.clone(),
        subject => format!("{} {subject}", one.name),
    };
    vec![
        name,
        amount(one),
        one.scope.map_or("-", Scope::name).to_owned(),
        duration(one.age_ms),
        one.source.clone(),
    ]
}

/// A figure as people read it.
fn amount(one: &VitalView) -> String {
    match (one.unit, one.total) {
        (Unit::Bytes, Some(total)) => top::share(one.value, total),
        (Unit::Bytes, None) => format!("{} MiB", one.value >> 20),
        (Unit::Milliseconds, _) => duration(one.value),
        (Unit::Seconds, _) => duration(one.value.saturating_mul(1000)),
        (Unit::Hundredths, _) => format!("{}.{:02}", one.value / 100, one.value % 100),
        (Unit::Count, Some(total)) => format!("{} of {total}", one.value),
        (Unit::Count, None) => one.value.to_string(),
    }
}

fn condition(one: &ConditionView) -> Vec<String> {
    let name = match one.subject.as_str() {
        "" => one.name.clone(),
        subject => format!("{} {subject}", one.name),
    };
    let state = match one.state {
        State::Good => "good",
        State::Bad => "BAD",
        State::Unknown => "unknown",
    };
    vec![
        name,
        state.to_owned(),
        one.says.clone(),
        one.scope.name().to_owned(),
        duration(one.age_ms),
    ]
}

async fn enroll(
    session: &Session,
    client: &Client,
    name: &str,
    print: bool,
) -> Result<ExitCode, Failure> {
    let path = format!("/v1/machines/{}/token?tell={print}", segment(name));
    let answer = client.post(&path, String::new()).await?;
    let fresh: FreshToken = client.typed(&answer)?;
    let until = fresh.expires_at;
    match &fresh.settings {
        // The settings alone go to standard output, to be taken from there to the machine.
        Some(settings) => {
            if !session.output.json {
                note(&format!(
                    "a token for {name} until {until}: write this to /etc/windlass/settings.json of the \
                     machine, for root alone"
                ));
            }
            session
                .output
                .answer(&answer, || settings.expose().to_owned());
        }
        None => session.output.answer(&answer, || {
            format!("{name} has a token until {until}; its agent takes it up within seconds")
        }),
    }
    Ok(ExitCode::SUCCESS)
}

async fn evidence(session: &Session, client: &Client, name: &str) -> Result<ExitCode, Failure> {
    let answer = client
        .get(&format!("/v1/machines/{}/evidence", segment(name)))
        .await?;
    let judgement: Judgement = client.typed(&answer)?;
    session.output.answer(&answer, || testimony(&judgement));
    Ok(ExitCode::SUCCESS)
}

fn testimony(judgement: &Judgement) -> String {
    let gathered = &judgement.gathered;
    let heard = match gathered.silent_ms {
        Some(silent) => format!("{} ago", duration(silent)),
        None => "not since the director started".to_owned(),
    };
    let head = pairs(vec![
        ("Verdict", judgement.verdict.to_string()),
        ("Last heard", heard),
        (
            "Asked",
            format!("{} (took {})", gathered.at, duration(gathered.took_ms)),
        ),
    ]);
    let said = gathered.statements.iter().map(|said| {
        vec![
            said.witness.to_string(),
            said.says.clone(),
            said.age_ms.map_or("-".to_owned(), duration),
        ]
    });
    let said = table(&["WITNESS", "SAYS", "AGE"], said);
    let probes = gathered.probes.iter().map(|probe| {
        vec![
            probe.peer.clone(),
            probe.found.to_string(),
            duration(probe.took_ms),
            probe.why.clone().unwrap_or_default(),
        ]
    });
    if gathered.probes.is_empty() {
        return format!("{head}\n\n{said}");
    }
    let probes = table(&["PEER", "FOUND", "TOOK", "WHY"], probes);
    format!("{head}\n\n{said}\n\n{probes}")
}

/// What the machine is judged to be; what its agent says while it is not judged.
fn verdict(view: &MachineView) -> String {
    let judged = match view.verdict {
        Some(verdict) => verdict.to_string(),
        None => format!("{} (not judged)", view.health),
    };
    match view.hold {
        Some(hold) => format!("{judged} ({hold})"),
        None => judged,
    }
}

/// How a machine is, and why it is not well.
pub(crate) fn health(health: &MachineHealth) -> String {
    match health {
        MachineHealth::Degraded { units } => format!("{health}: {}", units.join(", ")),
        MachineHealth::Healthy | MachineHealth::AgentLost | MachineHealth::Unknown => {
            health.to_string()
        }
    }
}

fn agent(view: &MachineView) -> String {
    let agent = &view.agent;
    let version = agent.version.as_deref().unwrap_or("unknown version");
    match (agent.connected, agent.last_heartbeat_age_ms) {
        (true, Some(age)) => format!("{version}, connected, heartbeat {} ago", duration(age)),
        (true, None) => format!("{version}, connected"),
        (false, _) => "not connected".to_owned(),
    }
}

/// Prints what a machine sends as it comes; ends with the code it ends with.
async fn stream(session: &Session, client: &Client, mut lines: Lines) -> Result<ExitCode, Failure> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(text) = lines.next().await? {
        let value: Value = serde_json::from_str(&text).map_err(|error| Failure::of(&error))?;
        match client.typed::<NodeOutput>(&value)? {
            NodeOutput::Stage { .. } => {}
            NodeOutput::Output { source, data } => {
                let bytes = STANDARD.decode(data).map_err(|error| Failure::of(&error))?;
                match (session.output.json, source) {
                    (true, Source::Stdout) => stdout.extend(bytes),
                    (true, Source::Stderr) => stderr.extend(bytes),
                    // A reader that went away is no error of ours.
                    (false, Source::Stdout) => {
                        let mut out = std::io::stdout().lock();
                        let _ = out.write_all(&bytes).and_then(|()| out.flush());
                    }
                    (false, Source::Stderr) => {
                        let _ = std::io::stderr().lock().write_all(&bytes);
                    }
                }
            }
            NodeOutput::Exit { code } => {
                if session.output.json {
                    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                    line(&json!({"exitCode": code, "stdout": text(&stdout), "stderr": text(&stderr)}).to_string());
                }
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
            }
            NodeOutput::Failed { class, message } => {
                let code = match class {
                    ErrorClass::Retry => UNREACHABLE,
                    ErrorClass::Operator | ErrorClass::Bug => FAILED,
                };
                return Err(Failure::new(code, message));
            }
        }
    }
    Err(Failure::failed(
        "the director ended the answer in the middle; what the command did is not known",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_shown_with_its_unit_and_whose_it_is() {
        let shown = |subject: &str, value, total, unit, scope| {
            vital(&VitalView {
                name: "it".to_owned(),
                subject: subject.to_owned(),
                value,
                total,
                unit,
                source: "statvfs /".to_owned(),
                scope,
                age_ms: 1_500,
            })
        };
        let of_disk = shown("/", 1 << 30, Some(4 << 30), Unit::Bytes, Some(Scope::Host));
        let wanted = [
            "it /",
            "1024 of 4096 MiB (25%)",
            "host",
            "1.5s",
            "statvfs /",
        ];
        assert_eq!(of_disk, wanted);
        let of_older = shown("/", 1, Some(2), Unit::Count, None);
        assert_eq!(of_older[1..3], ["1 of 2", "-"]);
        #[rustfmt::skip] // one case per line
        let cases = [
            (142,     None,    Unit::Hundredths,   "1.42"),
            (1_605,   None,    Unit::Hundredths,   "16.05"),
            (90_000,  None,    Unit::Milliseconds, "1m30s"),
            (3_600,   None,    Unit::Seconds,      "1h00m"),
            (5 << 20, None,    Unit::Bytes,        "5 MiB"),
            (7,       None,    Unit::Count,        "7"),
        ];
        for (value, total, unit, wanted) in cases {
            let shown = shown("", value, total, unit, Some(Scope::Machine));
            assert_eq!(shown[..3], ["it", wanted, "machine"]);
        }
    }
}
