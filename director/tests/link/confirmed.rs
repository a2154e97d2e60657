//! What could cut the link is kept only once the link is proven: a real agent's runner with real nftables and routes, in
//! a network namespace of its own, on a real link.
//!
//! Needs root, `ip` and `nft`, as [`crate::namespaces`] does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use windlass_agent::artifacts::ArtifactStore;
use windlass_agent::history::History;
use windlass_agent::host::Host;
use windlass_agent::link::{CancelToken, LinkArtifacts, LinkProof, ProgressSink};
use windlass_agent::runner::Runner;
use windlass_agent::steps::{Context, Reach, Reached, Reporter};
use windlass_agent::units::Units;
use windlass_common::error::ErrorClass;
use windlass_common::id::Epoch;
use windlass_common::journal::DirStorage;
use windlass_common::step::{
    Configure, FileContent, FileSpec, NETWORK_RULES_PATH, Outcome, Route, Step, StepId,
    StepRequest, StepResult,
};

use crate::namespaces::{Cable, DIRECTOR, Ends, run};
use crate::world::{no_progress, wait_long};

/// Shorter than on a real machine: two handshakes of a cable without faults take milliseconds.
const WITHIN: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(60);

/// The link's own proof, less patient.
#[derive(Debug)]
struct Soon(LinkProof);

impl Reach for Soon {
    fn director(&self) -> Reached<'_> {
        self.0.director()
    }

    fn within(&self) -> Duration {
        WITHIN
    }
}

/// A machine in a directory, at the far end of a cable.
struct Rig {
    ends: Ends,
    root: tempfile::TempDir,
    cable: Cable,
}

/// The agent's own context on this root.
async fn context(ends: &Ends, root: &Path) -> Context {
    let host = Host::open(root).unwrap();
    let store = ArtifactStore::open(&host);
    // A program that another test starts has the lock of one that has ended for as long as it takes to become itself.
    let journal = wait_long("the journal of the agent before", || {
        DirStorage::open(&root.join("journal")).ok()
    })
    .await;
    Context {
        artifacts: Arc::new(LinkArtifacts::new(ends.machine.link.clone(), store)),
        host,
        units: Arc::new(Units::default()),
        history: Arc::new(Mutex::new(History::open(journal).unwrap())),
        watched: watch::channel(BTreeMap::new()).0,
        leave: watch::channel(false).0,
        director: Some(Arc::new(Soon(ends.machine.proof.clone()))),
    }
}

impl Rig {
    async fn start(name: &str) -> Rig {
        let cable = Cable::new(name, "1500");
        let ends = Ends::start(&cable, None).await;
        let root = tempfile::tempdir().unwrap();
        Rig { ends, root, cable }
    }

    /// Gives the machine its runner, for steps that come over the link.
    async fn with_runner(self) -> Rig {
        let runner = Runner::new(context(&self.ends, self.root.path()).await);
        assert!(self.ends.machine.steps.runner.set(runner).is_ok());
        self
    }

    /// What the kernel has of ours, and the file that a boot loads.
    fn in_force(&self) -> (String, Option<String>, String) {
        let end = self.cable.far.as_str();
        let rules = run("ip", &["netns", "exec", end, "nft", "list", "ruleset"]);
        let file = std::fs::read_to_string(self.path(NETWORK_RULES_PATH)).ok();
        let routes = run("ip", &["-n", end, "route", "show", "proto", "119"]);
        (rules, file, routes)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path.trim_start_matches('/'))
    }

    /// Nothing is on trial.
    fn is_decided(&self) -> bool {
        !self.path("/var/lib/windlass/network-trial").exists()
    }

    /// Has the director order it, over as many connections as it takes.
    async fn ordered(&self, id: &str, configure: &Configure) -> StepResult {
        let deadline = Instant::now() + LONG;
        let (gateway, machine) = (self.ends.director.gateway(), &self.ends.machine);
        loop {
            let step = request(id, configure);
            let ran = gateway.run_step(&machine.name, machine.incarnation, step, no_progress());
            match ran.await {
                Ok(result) => return result,
                Err(error) => assert!(Instant::now() < deadline, "{id}: {error:?}"),
            }
            gateway
                .wait_connected(&machine.name, machine.incarnation, deadline)
                .await
                .unwrap();
        }
    }
}

fn request(id: &str, configure: &Configure) -> StepRequest {
    StepRequest {
        labels: Default::default(),
        id: StepId(id.to_owned()),
        epoch: Epoch(1),
        deadline_ms: LONG.as_millis() as u64,
        step: Step::Configure(configure.clone()),
    }
}

/// Rules of a table of ours, which replace those before in one transaction.
fn rules(hook: &str, rule: &str) -> Configure {
    let text = format!(
        "table inet windlass {{}}\ndelete table inet windlass\ntable inet windlass {{\n  chain {hook} {{\n    \
         type filter hook {hook} priority 0; policy accept;\n    {rule}\n  }}\n}}\n"
    );
    let file = FileSpec {
        path: NETWORK_RULES_PATH.to_owned(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        content: FileContent::Text(text),
    };
    Configure {
        files: vec![file],
        ..Configure::default()
    }
}

fn routes(routes: &[(&str, &str)]) -> Configure {
    let route = |(destination, via): &(&str, &str)| Route {
        destination: destination.parse().unwrap(),
        via: via.parse().unwrap(),
    };
    Configure {
        routes: Some(routes.iter().map(route).collect()),
        ..Configure::default()
    }
}

/// The step failed for an operator, who is told what was put back.
fn told_of(result: &StepResult, put_back: &str) {
    let Outcome::Failed { class, message } = &result.outcome else {
        panic!("{result:?}");
    };
    assert_eq!(*class, ErrorClass::Operator, "{message}");
    assert!(
        message.contains("cuts this machine off") && message.contains(put_back),
        "{message}"
    );
}

#[tokio::test]
async fn rules_that_cut_the_link_are_put_back_and_others_stay() {
    let rig = Rig::start("rules").await.with_runner().await;
    let port = rig.ends.director.address.port();
    // The kernel follows connections from here on.
    let harmless = rules("input", "ct state invalid drop; tcp dport 1 drop");
    let kept = rig.ordered("t/harmless", &harmless).await;
    assert_eq!(kept.outcome, Outcome::Changed, "{kept:?}");
    let before = rig.in_force();
    assert!(
        before.0.contains("tcp dport 1 drop") && before.1.is_some(),
        "{before:?}"
    );
    assert!(rig.is_decided());
    let again = rig.ordered("t/again", &harmless).await;
    assert_eq!(again.outcome, Outcome::Converged, "{again:?}");

    let deaf = rules("input", &format!("udp sport {port} drop"));
    told_of(
        &rig.ordered("t/deaf", &deaf).await,
        "nftables table inet windlass",
    );
    assert_eq!(rig.in_force(), before);
    assert!(rig.is_decided());
    rig.ends.comes_back().await;
    rig.ends.works("after/deaf").await;

    // The connection that is open goes on, and a new one would not: that proves nothing of the next one.
    let since = rig.ends.director.gateway().connected()[&rig.ends.machine.name].since;
    let shut = rules("output", &format!("udp dport {port} ct state new drop"));
    told_of(
        &rig.ordered("t/shut", &shut).await,
        "nftables table inet windlass",
    );
    assert_eq!(rig.in_force(), before);
    let view = rig
        .ends
        .director
        .gateway()
        .connected()
        .remove(&rig.ends.machine.name);
    assert_eq!(
        view.unwrap().since,
        since,
        "the connection was cut, and this shows nothing new"
    );

    // A syntax that nft refuses changes nothing either.
    let wrong = rules("input", "no such rule");
    let refused = rig.ordered("t/wrong", &wrong).await;
    assert!(
        matches!(&refused.outcome, Outcome::Failed { message, .. } if message.contains("nft")),
        "{refused:?}"
    );
    assert_eq!(rig.in_force(), before);
    assert!(rig.is_decided());
    rig.ends.works("after/all").await;
    rig.ends.machine.stop().await;
}

#[tokio::test]
async fn a_route_that_cuts_the_link_is_put_back() {
    let rig = Rig::start("route").await.with_runner().await;
    let pods = ("10.244.1.0/24", "10.99.0.77");
    let kept = rig.ordered("t/pods", &routes(&[pods])).await;
    assert_eq!(kept.outcome, Outcome::Changed, "{kept:?}");
    let before = rig.in_force();
    assert!(
        before.2.contains("10.244.1.0/24 via 10.99.0.77"),
        "{before:?}"
    );
    let director = format!("{DIRECTOR}/32");
    let cut = routes(&[pods, (&director, "10.99.0.77")]);
    told_of(
        &rig.ordered("t/cut", &cut).await,
        &format!("- route {director} via 10.99.0.77"),
    );
    assert_eq!(rig.in_force(), before);
    assert!(rig.is_decided());
    rig.ends.comes_back().await;
    rig.ends.works("after").await;
    rig.ends.machine.stop().await;
}

#[tokio::test]
async fn a_director_that_is_away_is_no_fault_of_the_change() {
    let rig = Rig::start("away").await.with_runner().await;
    let before = rig.in_force();
    Cable::drops(&rig.cable.near, Some("meta l4proto udp drop"));
    let harmless = rules("input", "tcp dport 1 drop");
    let steps = &rig.ends.machine.steps;
    let runner = steps.runner.get().unwrap();
    let (_cancel, token) = CancelToken::channel();
    let quiet = Reporter::new(ProgressSink::channel(1).0);
    let lost = runner
        .step(request("t/away", &harmless), quiet, token)
        .await;
    let Outcome::Failed { class, message } = &lost.outcome else {
        panic!("{lost:?}");
    };
    assert_eq!(*class, ErrorClass::Retry, "{message}");
    assert!(
        message.contains("nor after what was before was put back"),
        "{message}"
    );
    assert_eq!(rig.in_force(), before);
    Cable::drops(&rig.cable.near, None);
    rig.ends.comes_back().await;
    let kept = rig.ordered("t/away", &harmless).await;
    assert_eq!(kept.outcome, Outcome::Changed, "{kept:?}");
    assert!(rig.in_force().0.contains("tcp dport 1 drop"));
    rig.ends.machine.stop().await;
}

/// The agent dies ever later in a step, from its first moment to its last; the next one finds what was before or what
/// was proven, all of it.
#[tokio::test]
async fn an_agent_that_dies_leaves_what_was_or_what_was_proven() {
    let rig = Arc::new(Rig::start("dies").await);
    let both = |port: &str, via: &str| Configure {
        routes: routes(&[("10.244.1.0/24", via)]).routes,
        ..rules("input", &format!("tcp dport {port} drop"))
    };
    let states = [both("1", "10.99.0.71"), both("2", "10.99.0.72")];
    let life = |wanted: Option<Configure>, id: String, lives: Duration| {
        let rig = Arc::clone(&rig);
        // A process of its own in all but name: its runtime ends, and what it does with it.
        tokio::task::spawn_blocking(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let runner = Runner::new(context(&rig.ends, rig.root.path()).await);
                runner.restore().await;
                let wanted = wanted?;
                let (_cancel, token) = CancelToken::channel();
                let quiet = Reporter::new(ProgressSink::channel(1).0);
                let step = runner.step(request(&id, &wanted), quiet, token);
                tokio::time::timeout(lives, step).await.ok()
            })
        })
    };
    let first = life(Some(states[0].clone()), "t/first".to_owned(), LONG)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(first.outcome, Outcome::Changed, "{first:?}");
    let second = life(Some(states[1].clone()), "t/second".to_owned(), LONG)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(second.outcome, Outcome::Changed, "{second:?}");
    let (mut now, mut was, mut proven, mut ended) = (1, 0, 0, 0);
    let mut lives = Duration::ZERO;
    for number in 0.. {
        let wanted = states[1 - now].clone();
        let result = life(Some(wanted), format!("t/{number}"), lives)
            .await
            .unwrap();
        ended = if result.is_some() { ended + 1 } else { 0 };
        life(None, String::new(), LONG).await.unwrap();
        assert!(rig.is_decided(), "after {lives:?}");
        let (rules, file, routes) = rig.in_force();
        let has = |state: usize| {
            let (port, via) = [("dport 1 ", ".71"), ("dport 2 ", ".72")][state];
            [
                rules.contains(port),
                file.as_ref().is_some_and(|file| file.contains(port)),
                routes.contains(via),
            ]
        };
        let state = match (has(0), has(1)) {
            ([true, true, true], [false, false, false]) => 0,
            ([false, false, false], [true, true, true]) => 1,
            _ => panic!("half of it after {lives:?}: {rules}\n{file:?}\n{routes}"),
        };
        if state == now {
            was += 1;
        } else {
            proven += 1;
        }
        now = state;
        if ended == 3 {
            break;
        }
        assert!(lives < LONG, "it does not come to its end");
        lives += Duration::from_millis(1);
    }
    assert!(
        was >= 5 && proven >= 3,
        "{was} times what was before, {proven} times what was proven"
    );
    wait_long("the link", || rig.ends.is_connected().then_some(())).await;
    let rig = Arc::into_inner(rig).expect("nobody else has it");
    rig.ends.machine.stop().await;
}
