//! `collect`: lines of the journal and, if asked, the state of the machine; streamed as output.
//!
//! Changes nothing. What one part cannot tell, it says in its place; the others follow.

use std::fmt::Write;

use windlass_common::step::{Collect, OutputStream, Payload};

use super::{Context, Failure, Run, exec};
use crate::host::{Host, command};
use crate::units::Units;

/// Most processes that are listed: a machine of 250 pods has about 1500.
const PROCESSES_MAX: usize = 4096;

pub(super) async fn run(
    context: &Context,
    run: &Run,
    collect: &Collect,
) -> Result<Payload, Failure> {
    run.progress.stage("reading the journal");
    let lines = collect.lines.to_string();
    let mut argv = vec![
        "journalctl",
        "--no-pager",
        "-q",
        "-o",
        "short-iso",
        "-n",
        &lines,
    ];
    for unit in &collect.units {
        argv.extend(["-u", unit]);
    }
    let status = exec::stream(run, &argv).await?;
    if !status.success() {
        let class = windlass_common::error::ErrorClass::Retry;
        return Err(Failure::new(
            class,
            format!("journalctl ended with {status}"),
        ));
    }
    if collect.diagnostics {
        diagnostics(context, run).await?;
    }
    Ok(Payload::None)
}

async fn diagnostics(context: &Context, run: &Run) -> Result<(), Failure> {
    run.progress.stage("gathering diagnostics");
    let host = context.host.clone();
    let files = run
        .blocking(move || Ok(kernel_files(&host) + &processes(&host)))
        .await?;
    section(run, &files).await;
    section(run, &units(&context.units).await).await;
    for argv in [
        &["ip", "-brief", "address"][..],
        &["ip", "route", "show", "table", "all"],
        &["df", "-hT"],
    ] {
        let text = match command::run(argv, None).await {
            Ok(output) => output.stdout + &output.stderr,
            Err(error) => format!("cannot be run: {error}\n"),
        };
        section(run, &format!("\n== {}\n{text}", argv.join(" "))).await;
    }
    Ok(())
}

async fn section(run: &Run, text: &str) {
    run.progress
        .output(OutputStream::Stdout, text.as_bytes())
        .await;
}

fn kernel_files(host: &Host) -> String {
    let mut text = String::new();
    for file in [
        "/proc/version",
        "/proc/uptime",
        "/proc/loadavg",
        "/proc/meminfo",
        "/proc/pressure/cpu",
        "/proc/pressure/memory",
        "/proc/pressure/io",
        "/proc/self/mounts",
    ] {
        let content = std::fs::read_to_string(host.path(file))
            .unwrap_or_else(|error| format!("cannot be read: {error}\n"));
        let _ = write!(text, "\n== {file}\n{content}");
    }
    text
}

/// Process id, state, resident kB and name; not the arguments, which may hold secrets.
fn processes(host: &Host) -> String {
    let mut text = "\n== processes\n".to_owned();
    let Ok(entries) = std::fs::read_dir(host.path("/proc")) else {
        return text + "/proc cannot be read\n";
    };
    let mut ids: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    ids.sort_unstable();
    for id in ids.into_iter().take(PROCESSES_MAX) {
        // One that has ended meanwhile is left out.
        let Ok(status) = std::fs::read_to_string(host.path(&format!("/proc/{id}/status"))) else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map_or("-", str::trim).to_owned()
        };
        let (state, resident, name) = (field("State:"), field("VmRSS:"), field("Name:"));
        let _ = writeln!(text, "{id:>8} {state:<14} {resident:>12} {name}");
    }
    text
}

async fn units(units: &Units) -> String {
    let mut text = "\n== units\n".to_owned();
    match units.list().await {
        Ok(mut rows) => {
            rows.sort_by(|a, b| a.0.cmp(&b.0));
            for (unit, status) in rows {
                let (active, sub) = (status.active_state, status.sub_state);
                let _ = writeln!(text, "{active:>12} {sub:<14} {unit}");
            }
        }
        Err(error) => {
            let _ = writeln!(text, "{error}");
        }
    }
    text
}
