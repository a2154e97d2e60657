//! The grammar: it is consistent, its help is what was agreed, and its errors have their codes.

use clap::{CommandFactory, Parser};

use crate::args::Arguments;
use crate::cluster::segment;
use crate::failure::{CONFLICT, FAILED, Failure, NOT_FOUND, USAGE};
use crate::output::{duration, table};

/// Every command's long help, one after another.
fn help() -> String {
    fn add(command: &mut clap::Command, path: &str, text: &mut String) {
        let help = command.render_long_help().to_string();
        let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
        text.push_str(&format!("==== {path}\n{}\n\n", lines.join("\n").trim_end()));
        for sub in command
            .get_subcommands_mut()
            .filter(|sub| sub.get_name() != "help")
        {
            let path = format!("{path} {}", sub.get_name());
            add(sub, &path, text);
        }
    }
    let mut command = Arguments::command().term_width(100);
    command.build();
    let mut text = String::new();
    add(&mut command, "windlass", &mut text);
    text
}

#[test]
fn the_grammar_is_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn help_is_as_agreed() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/bin/windlass/help.txt");
    let help = help();
    if std::env::var_os("WINDLASS_BLESS").is_some() {
        std::fs::write(path, &help).unwrap();
    }
    let agreed = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        help, agreed,
        "run with WINDLASS_BLESS=1 to accept the new help"
    );
}

#[test]
fn arguments_that_contradict_each_other_are_refused() {
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases: &[(&[&str], bool)] = &[
        (&["cluster", "create", "demo"], true),
        (&["cluster", "create", "-f", "a.yaml", "--wait"], true),
        (&["cluster", "create"], false),
        (&["cluster", "create", "demo", "-f", "a.yaml"], false),
        (&["cluster", "create", "-f", "a.yaml", "--workers", "2"], false),
        (&["cluster", "create", "demo", "--workers", "2", "--pool", "a=1"], false),
        (&["cluster", "create", "demo", "--pool", "a=1", "--pool", "b=2"], true),
        (&["cluster", "create", "demo", "--pool", "a"], false),
        (&["cluster", "create", "demo", "--workers", "-1"], false),
        (&["node", "exec", "n", "--", "ls", "-l"], true),
        (&["cluster", "credentials", "demo", "--via-director"], true),
        (&["node", "exec", "n"], false),
        (&["node", "exec", "n", "-i", "--", "cat"], true),
        (&["node", "exec", "n", "-i", "--json", "--", "cat"], false),
        (&["node", "logs", "n", "-f", "--unit", "a", "--unit", "b"], true),
        (&["node", "logs", "n", "-f", "--diagnostics"], false),
        (&["node", "logs", "n", "-f", "--json"], false),
        (&["node", "enroll", "n", "--print"], true),
        (&["node", "enroll"], false),
        (&["node", "shell", "n"], true),
        (&["node", "shell"], false),
        (&["node", "top"], true),
        (&["node", "top", "demo", "--once", "--interval", "5"], true),
        (&["node", "top", "--interval", "0"], false),
        (&["node", "collect", "n", "-o", "f"], true),
        (&["node", "collect", "--cluster", "c", "-o", "f"], true),
        (&["node", "collect", "n", "--cluster", "c", "-o", "f"], false),
        (&["node", "collect", "-o", "f"], false),
        (&["node", "collect", "n"], false),
        (&["node", "logs", "n", "-n", "5", "--unit", "kubelet"], true),
        (&["--json", "node", "list", "--cluster", "a"], true),
        (&["node", "list", "--json", "--data-dir", "/x"], true),
        (&["stemcell", "build", "--kubernetes", "1.37.2"], true),
        (&["director", "reset", "--yes"], true),
        (&["operator", "add", "ann", "--role", "viewer"], true),
        (&["operator", "add", "ann"], false),
        (&["operator", "set-role", "ann", "root"], false),
        (&["operator", "set-role", "ann", "admin"], true),
        (&["audit", "--since", "2h", "--actor", "ann"], true),
        (&["audit", "--since", "2"], false),
        (&["top", "--once"], true),
        (&["upgrade", "--all", "--to", "1.37.2", "--waves", "1,10%,100%", "--soak", "30m"], true),
        (&["upgrade", "--clusters", "a,b", "--stemcell", "--dry-run"], true),
        (&["upgrade", "--selector", "stage=canary", "--to", "1.37.2", "--wait"], true),
        (&["upgrade", "--selector", "canary", "--to", "1.37.2"], false),
        (&["upgrade", "--to", "1.37.2"], false),
        (&["upgrade", "--all", "--clusters", "a", "--to", "1.37.2"], false),
        (&["upgrade", "--all"], false),
        (&["campaign", "retry", "c1-000000", "--wait"], true),
        (&["frobnicate"], false),
    ];
    for (arguments, ok) in cases {
        let all = std::iter::once(&"windlass").chain(*arguments);
        assert_eq!(Arguments::try_parse_from(all).is_ok(), *ok, "{arguments:?}");
    }
}

#[test]
fn problems_have_their_exit_codes() {
    use windlass_director::api::Problem;
    use windlass_director::client::ClientError;
    let cases = [
        (400, USAGE),
        (413, USAGE),
        (422, USAGE),
        (404, NOT_FOUND),
        (409, CONFLICT),
        (401, FAILED),
        (403, FAILED),
        (500, FAILED),
        (503, FAILED),
        (504, FAILED),
    ];
    for (status, code) in cases {
        let failure = Failure::from(ClientError::Problem(Problem::new(status, "x", "why")));
        assert_eq!(
            (failure.code, failure.message.as_str()),
            (code, "why"),
            "{status}"
        );
    }
}

#[test]
fn names_cannot_leave_their_segment_of_a_path() {
    assert_eq!(segment("demo-cp-0"), "demo-cp-0");
    assert_eq!(segment("../a?b=c#d e"), "%2E%2E%2Fa%3Fb%3Dc%23d%20e");
}

#[test]
fn tables_and_durations_read_well() {
    let text = table(
        &["NAME", "N"],
        [
            vec!["long-name".to_owned(), "1".to_owned()],
            vec!["a".to_owned(), "22".to_owned()],
        ],
    );
    assert_eq!(text, "NAME        N\nlong-name   1\na           22");
    assert_eq!(table(&["NAME"], []), "nothing");
    #[rustfmt::skip]
    let cases = [(0, "0.0s"), (9_940, "9.9s"), (59_000, "59s"), (61_000, "1m01s"), (3_600_000, "1h00m"), (90_000_000, "1d01h")];
    for (ms, text) in cases {
        assert_eq!(duration(ms), text);
    }
}
