//! The guard of the agent's upgrades, as it is in the stemcell, on machines that are directories: what each
//! state of the files leads to, and that a power cut between any two of its effects changes nothing of it.

#![allow(clippy::unwrap_used, reason = "a test: what is wrong ends it")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use windlass_common::id::Digest;

const GUARD: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../stemcells/rootfs/opt/windlass/bin/windlass-agent-guard"
);
const OLD: &str = "#!/bin/sh\necho windlass-agent 1\n";
const NEW: &str = "#!/bin/sh\necho windlass-agent 2\n";
/// Runs, and is no agent.
const DEAF: &str = "#!/bin/sh\necho oh dear; exit 1\n";
const STARTS_MAX: usize = 5;

/// A machine as the guard finds it.
#[derive(Debug, Clone, Default)]
struct State {
    agent: Option<&'static str>,
    staged: Option<&'static str>,
    previous: Option<&'static str>,
    /// What the trial's record says is new.
    trial: Option<&'static str>,
    starts: usize,
    /// Boot and uptime at which the trial is over.
    until: Option<&'static str>,
    /// The step whose trial was given up.
    outcome: Option<&'static str>,
    uptime: u32,
}

fn staged() -> State {
    State {
        agent: Some(OLD),
        staged: Some(NEW),
        trial: Some(NEW),
        uptime: 100,
        ..State::default()
    }
}

fn running() -> State {
    State {
        agent: Some(NEW),
        staged: None,
        previous: Some(OLD),
        starts: 1,
        until: Some("this-boot 160"),
        ..staged()
    }
}

struct Machine(tempfile::TempDir);

impl Machine {
    fn new(state: &State) -> Machine {
        let machine = Machine(tempfile::tempdir().unwrap());
        let programs = [
            ("windlass-agent", state.agent),
            ("windlass-agent.new", state.staged),
            ("windlass-agent.previous", state.previous),
        ];
        for (name, program) in programs {
            if let Some(program) = program {
                let path = machine.write(&format!("opt/windlass/bin/{name}"), program);
                fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
            }
        }
        machine.write("proc/sys/kernel/random/boot_id", "this-boot\n");
        machine.write("proc/uptime", &format!("{}.25 17.01\n", state.uptime));
        let hex = |program: &str| Digest::of(program.as_bytes()).hex();
        let trial = state.trial.map(|new| {
            let (old, new) = (hex(OLD), hex(new));
            format!("step=t1/a\nold={old}\nnew={new}\nseconds=60\norigin=x\n")
        });
        let starts = (state.starts > 0).then(|| ".".repeat(state.starts));
        let until = state.until.map(|until| format!("{until}\n"));
        let outcome = state.outcome;
        let outcome = outcome.map(|step| format!("step={step}\nwhy=earlier\n"));
        let records = [
            ("trial", trial),
            ("starts", starts),
            ("until", until),
            ("outcome", outcome),
        ];
        for (name, text) in records {
            if let Some(text) = text {
                machine.write(&format!("var/lib/windlass/upgrade/{name}"), &text);
            }
        }
        machine
    }

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.0.path().join(path)).ok()
    }

    fn guard(&self, what: &str) -> Command {
        let mut command = Command::new("dash");
        command
            .args([GUARD, what])
            .env("WINDLASS_ROOT", self.0.path())
            .process_group(0);
        command
    }

    fn run(&self, what: &str) {
        let ended = self.guard(what).status().unwrap();
        assert!(ended.success(), "{what}: {ended}");
    }

    /// In a word: which agent is in place, whether a trial goes on, and why one was given up.
    fn seen(&self) -> String {
        let agent = match self.read("opt/windlass/bin/windlass-agent").as_deref() {
            Some(OLD) => "old",
            Some(NEW) => "new",
            other => panic!("neither agent is in place: {other:?}"),
        };
        let state = "var/lib/windlass/upgrade";
        let is = |path: &str, word| self.read(path).map_or("", |_| word);
        let staged = is("opt/windlass/bin/windlass-agent.new", ", staged");
        let trial = is(&format!("{state}/trial"), ", on trial");
        let outcome = self.read(&format!("{state}/outcome")).unwrap_or_default();
        let why = outcome.split_once("why=");
        let why = why.map_or(String::new(), |(_, why)| format!(": {}", why.trim()));
        format!("{agent}{staged}{trial}{why}")
    }
}

#[test]
fn each_state_of_the_files_has_its_answer() {
    let often = "it ended 5 times before the director could confirm it";
    let late = "the director could not confirm it within 60 s";
    let other = "what was staged is not what was ordered";
    let says = "asked for its version, the new agent says";
    let old = |why: &str| format!("old: {why}");
    let is = |seen: &str| seen.to_owned();
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("never upgraded",               State { agent: Some(OLD), ..State::default() },                 "start", is("old")),
        ("confirmed long ago",           State { trial: None, starts: 0, until: None, ..running() },     "start", is("new")),
        ("staged, not written down",     State { trial: None, ..staged() },                              "start", is("old, staged")),
        ("staged",                       staged(),                                                       "start", is("new, on trial")),
        ("staged, another one is kept",  State { previous: Some(NEW), ..staged() },                      "start", is("new, on trial")),
        ("cut off: old kept, not in",    State { previous: Some(OLD), ..staged() },                      "start", is("new, on trial")),
        ("staged is not what was meant", State { staged: Some(DEAF), ..staged() },                       "start", old(other)),
        ("staged is half a file",        State { staged: Some(""), ..staged() },                         "start", old(other)),
        ("staged is no agent",           State { staged: Some(DEAF), trial: Some(DEAF), ..staged() },    "start", old(&format!("{says}: oh dear"))),
        ("staged is nothing",            State { staged: Some(""), trial: Some(""), ..staged() },        "start", old(&format!("{says}: nothing"))),
        ("staged is gone",               State { staged: None, ..staged() },                             "start", old("it is not in its place any more")),
        ("first start",                  State { starts: 0, until: None, ..running() },                  "start", is("new, on trial")),
        ("second start",                 running(),                                                      "start", is("new, on trial")),
        ("last start",                   State { starts: STARTS_MAX - 1, ..running() },                  "start", is("new, on trial")),
        ("one start too many",           State { starts: STARTS_MAX, ..running() },                      "start", old(often)),
        ("rebooted on trial",            State { until: Some("that-boot 70"), ..running() },             "start", is("new, on trial")),
        ("started after its time",       State { uptime: 160, ..running() },                             "start", old(late)),
        ("given up, nothing done",       State { outcome: Some("t1/a"), ..running() },                   "start", old("earlier")),
        ("given up, old one back",       State { agent: Some(OLD), outcome: Some("t1/a"), ..running() }, "start", old("earlier")),
        ("given up before the switch",   State { outcome: Some("t1/a"), ..staged() },                    "start", old("earlier")),
        ("an earlier one was given up",  State { outcome: Some("t0/a"), ..running() },                   "start", is("new, on trial: earlier")),
        ("no old one to bring back",     State { previous: None, starts: STARTS_MAX, ..running() },      "start", format!("new: {often}")),
        ("watched after its time",       State { uptime: 161, ..running() },                             "watch", old(late)),
        ("staged, and the agent hangs",  State { until: Some("this-boot 90"), ..staged() },              "watch", old(late)),
        ("watched while given up",       State { uptime: 161, outcome: Some("t1/a"), ..running() },      "watch", old("earlier")),
        ("watched without a trial",      State { trial: None, ..running() },                             "watch", is("new")),
    ];
    for (name, state, what, want) in cases {
        let machine = Machine::new(&state);
        machine.run(what);
        assert_eq!(machine.seen(), want, "{name}");
        // Asked again, as after a crash at its very end, it finds nothing more to do.
        if what == "start" && state.starts < STARTS_MAX - 1 {
            machine.run(what);
            assert_eq!(machine.seen(), want, "{name}, again");
        }
    }
}

#[test]
fn a_watch_ends_with_its_trial() {
    let machine = Machine::new(&running());
    let mut watch = machine.guard("watch").spawn().unwrap();
    fs::remove_file(machine.0.path().join("var/lib/windlass/upgrade/trial")).unwrap();
    assert!(watch.wait().unwrap().success());
    assert_eq!(machine.seen(), "new");
}

#[test]
fn a_malformed_record_leaves_the_agent_as_it_is() {
    let machine = Machine::new(&running());
    let record = "step=t1/a\nseconds=soon\n";
    machine.write("var/lib/windlass/upgrade/trial", record);
    machine.run("start");
    assert_eq!(machine.seen(), "new");
}

/// Programs through which the guard changes files: each counts its calls, and at one of them the power goes.
fn fragile(dir: &Path) {
    for program in ["mv", "ln", "rm", "sync", "cat"] {
        let path = dir.join(program);
        let script = format!(
            "#!/bin/sh\nn=$(($(/bin/cat $WINDLASS_CALLS) + 1))\necho $n >$WINDLASS_CALLS\n\
             [ $n -eq $WINDLASS_CUT ] && kill -9 0\nexec /bin/{program} \"$@\"\n"
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }
}

/// Runs the guard with the power going before its `cut`th effect.
fn cut_off(machine: &Machine, tools: &Path, what: &str, cut: u32) -> ExitStatus {
    let calls = tools.join("calls");
    fs::write(&calls, "0").unwrap();
    let path = format!("{}:{}", tools.display(), std::env::var("PATH").unwrap());
    machine
        .guard(what)
        .env("PATH", path)
        .env("WINDLASS_CALLS", &calls)
        .env("WINDLASS_CUT", cut.to_string())
        .status()
        .unwrap()
}

#[test]
fn a_power_cut_between_any_two_effects_changes_nothing() {
    let tools = tempfile::tempdir().unwrap();
    fragile(tools.path());
    let deaf = State {
        staged: Some(DEAF),
        trial: Some(DEAF),
        ..staged()
    };
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        ("switching",          staged(),                                  "start", "new, on trial"),
        ("refusing",           deaf,                                      "start", "old: asked for"),
        ("bringing back",      State { starts: STARTS_MAX, ..running() }, "start", "old: it ended"),
        ("bringing back late", State { uptime: 200, ..running() },        "watch", "old: the director"),
    ];
    for (name, state, what, want) in cases {
        let mut cut = 1;
        loop {
            let machine = Machine::new(&state);
            let ended = cut_off(&machine, tools.path(), what, cut);
            machine.seen(); // a whole agent is in place
            // The machine comes up again: the guard goes first, whatever it did before.
            machine.run("start");
            let seen = machine.seen();
            let at = format!("{name}, cut before effect {cut}: {seen}");
            assert!(seen.starts_with(want), "{at}");
            if ended.signal().is_none() {
                assert!(cut > 5, "{name} has more effects");
                break;
            }
            cut += 1;
        }
    }
}
