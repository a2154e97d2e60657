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
            let step = step.map(|step| match &step.error {
                Some(error) => format!("{}: {error}", step.name),
                None => format!("{}: its task ended", step.name),
            });
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

#[cfg(test)]
mod tests {
    use windlass_common::id::{ClusterName, Incarnation, MachineName};
    use windlass_director::model::TaskId;
    use windlass_director::resurrector::witness::{Gathered, Statement, Witness};
    use windlass_director::resurrector::{
        Death, Evidence, FailedStep, Hold, Lease, Link, Peers, Policy, Power, Rung, Verdict, Work,
    };

    use super::*;

    fn before(ms: u64) -> u64 {
        Timestamp::now().unix_ms() - ms
    }

    const HUNG: Evidence = Evidence {
        link: Link::Silent,
        peers: Peers::Nobody,
        lease: Lease::Unknown,
        power: Power::Running,
        work: Work::Well,
    };

    /// Of a worker that hangs for two minutes, was restarted, and is not replaced yet.
    fn hung() -> NodeWhy {
        let machine = MachineName::new("demo-w-0").unwrap();
        let policy = Policy::default();
        let mut case = CaseRecord::new(machine.clone(), Incarnation(2), before(120_500));
        let (at_ms, verdict) = (before(120_500), Verdict::NodeHung);
        case.judge(Incarnation(2), verdict, HUNG, at_ms, &policy.ladder, 0);
        case.case.tried(Rung::Reboot, before(60_500));
        let statement = |witness, says: &str, age_ms| Statement {
            witness,
            says: says.to_owned(),
            age_ms,
            took_ms: 2_500,
        };
        let gathered = Gathered {
            evidence: HUNG,
            at: Timestamp::now(),
            took_ms: 2_500,
            silent_ms: Some(120_500),
            lease_watched_ms: None,
            statements: vec![
                statement(Witness::Link, "its connection is gone", Some(120_500)),
                statement(Witness::Peers, "demo-w-1 reaches nothing", None),
            ],
            probes: Vec::new(),
        };
        NodeWhy {
            machine,
            cluster: ClusterName::new("demo").unwrap(),
            incarnation: Incarnation(2),
            mode: Mode::On,
            looked_at: Timestamp::now(),
            verdict: Some(verdict),
            unwatched: None,
            outlook: Outlook::Wait {
                until_ms: Timestamp::now().unix_ms() + 29_500,
                why: "the reboot gets time to show".to_owned(),
            },
            task: None,
            gathered: Some(gathered),
            case: Some(case),
            policy,
        }
    }

    /// What follows a word at the beginning of a line.
    fn row<'a>(text: &'a str, first: &str) -> &'a str {
        let line = text.lines().find_map(|line| line.strip_prefix(first));
        let rest = line.unwrap_or_else(|| panic!("no {first}: {text}"));
        rest.trim_start_matches(':').trim()
    }

    #[test]
    fn what_is_known_what_is_awaited_and_who_decides() {
        let text = describe(&hung());
        assert_eq!(row(&text, "Machine"), "demo-w-0 (incarnation 2)");
        assert_eq!(row(&text, "Verdict"), "NodeHung, for 2m00s");
        let next = row(&text, "Next");
        assert_eq!(next, "nothing for 29s: the reboot gets time to show");
        assert_eq!(row(&text, "Decided by"), "the director");
        // Each witness with the age of its word, what was tried, and how the verdict came about.
        let peers = row(&text, "peers").split_whitespace().collect::<Vec<_>>();
        assert_eq!(peers, ["demo-w-1", "reaches", "nothing", "-", "2.5s"]);
        assert!(
            row(&text, "link").contains("its connection is gone"),
            "{text}"
        );
        assert!(row(&text, "1m00s ago").contains("reboot it"), "{text}");
        let judged = row(&text, "2m00s ago").split_whitespace();
        let wanted = [
            "NodeHung", "2", "Silent", "Running", "Nobody", "Unknown", "Well",
        ];
        assert_eq!(judged.collect::<Vec<_>>(), wanted);
        assert!(!text.contains("Task") && !text.contains("DIED"), "{text}");
    }

    #[test]
    fn how_its_replacements_died_and_what_failed_is_told() {
        let mut why = hung();
        why.task = Some(TaskId::new(7, [1, 2, 3]));
        let case = why.case.as_mut().unwrap();
        case.failure = Some("the provider refuses".to_owned());
        case.tell_death(Death {
            incarnation: Incarnation(2),
            at_ms: before(180_500),
            verdict: Verdict::MachineGone,
            stemcell: "1.2".to_owned(),
            kubernetes_version: String::new(),
            troubles: Default::default(),
            step: Some(FailedStep {
                name: "create-machine".to_owned(),
                error: Some("no room".to_owned()),
            }),
        });
        let text = describe(&why);
        assert_eq!(row(&text, "Task"), "t7-010203 works on its cluster");
        assert_eq!(row(&text, "Last remedy"), "failed: the provider refuses");
        let died = row(&text, "3m00s ago")
            .split_whitespace()
            .collect::<Vec<_>>();
        let wanted = [
            "2",
            "MachineGone",
            "1.2",
            "-",
            "create-machine:",
            "no",
            "room",
        ];
        assert_eq!(died, wanted);
    }

    #[test]
    fn who_decides_by_case() {
        let refused = Outlook::Refused {
            rung: Rung::Replace,
            why: "a storm".to_owned(),
        };
        let stay = Outlook::Stay {
            why: "nobody can tell".to_owned(),
        };
        let act = Outlook::Act { rung: Rung::Reboot };
        let operator = "an operator: `windlass node recreate` replaces it";
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            (Outlook::Rest,   Mode::On,      "nothing", "the director"),
            (refused,         Mode::On,      "replace it, but not now: a storm", "the director"),
            (act.clone(),     Mode::On,      "reboot it, now", "the director"),
            (act.clone(),     Mode::Observe, "reboot it would be done; the resurrector only observes", operator),
            (act,             Mode::Off,     "reboot it would be done; the resurrector only observes", operator),
            (stay,            Mode::On,      "nothing by itself: nobody can tell", operator),
        ];
        for (outlook, mode, wanted, decides) in cases {
            let why = NodeWhy {
                outlook,
                mode,
                ..hung()
            };
            let text = describe(&why);
            assert_eq!(row(&text, "Next"), wanted);
            assert_eq!(row(&text, "Decided by"), decides, "{wanted}");
        }
        let mut held = hung();
        let (kind, operator) = (HoldKind::Ignore, "ann".to_owned());
        (held.verdict, held.unwatched) = (None, Some("an operator has it ignored".to_owned()));
        held.case.as_mut().unwrap().hold = Some(Hold {
            kind,
            operator,
            since_ms: before(3_600_500),
            reason: "a new disk".to_owned(),
        });
        let text = describe(&held);
        assert_eq!(
            row(&text, "Decided by"),
            "ann (ignored 1h00m ago: a new disk)"
        );
        assert_eq!(
            row(&text, "Verdict"),
            "not judged: an operator has it ignored"
        );
        let off = NodeWhy {
            verdict: None,
            mode: Mode::Off,
            ..hung()
        };
        let text = describe(&off);
        assert_eq!(row(&text, "Verdict"), "not judged: the resurrector is off");
    }
}
