//! `windlass-director`: the daemon, the small processes of the local provider that outlive it,
//! backups of a data directory, and the benchmark of a fleet.

use std::process::ExitCode;

use windlass_director::backup::commands;
use windlass_director::bench;
use windlass_director::provider::local::{endpoint, monitor};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    // These run one for each machine and cluster: no runtime, no parser.
    match arguments.peek().and_then(|first| first.to_str()) {
        Some("machine-monitor") => monitor::main(arguments.skip(1).collect()),
        Some("endpoint") => endpoint::main(arguments.skip(1).collect()),
        Some("bench") => bench::main(arguments.skip(1).collect()),
        Some("bench-target") => bench::target(arguments.skip(1).collect()),
        Some("backup" | "restore") => commands::main(arguments.collect()),
        Some(_) | None => windlass_director::daemon::main(),
    }
}
