//! The agent on every Windlass machine: it does what its director orders and says what it sees.
//!
//! | module | job |
//! | --- | --- |
//! | [`agent`] | puts it all together, from start to stop |
//! | [`settings`] | who this machine is |
//! | [`link`] | the connection to the director |
//! | [`artifacts`], `peer` | what was fetched, and its sharing within the cluster |
//! | [`runner`], [`history`] | steps: admitted, journaled, run, remembered |
//! | [`steps`] | one file for each kind of step |
//! | `session` | followed logs, shells, usage: for as long as somebody watches |
//! | [`host`], [`units`] | files and subprocesses; systemd over D-Bus |
//! | `fence` | a worker that alone is cut off ends its pods |
//! | [`vitals`], [`report`] | what the machine looks like |
//! | [`notify`], [`allocator`] | systemd is told that the agent lives; it stays small |

pub mod agent;
pub mod allocator;
pub mod artifacts;
mod conditions;
mod fence;
pub mod history;
pub mod host;
pub mod link;
pub mod notify;
mod peer;
pub mod report;
pub mod runner;
mod session;
pub mod settings;
pub mod steps;
pub mod units;
pub mod vitals;

/// The agent's version. A build with `WINDLASS_BUILD` in its environment carries that behind a plus sign.
pub fn version() -> String {
    let base = env!("CARGO_PKG_VERSION");
    match option_env!("WINDLASS_BUILD") {
        Some(build) if !build.is_empty() => format!("{base}+{build}"),
        _ => base.to_owned(),
    }
}
