//! A fleet of agents: builds the director and the fleet's program, and has the director measure.

use anyhow::Result;

use crate::build::{self, Profile};
use crate::shell::{command, step};

pub(crate) fn run(profile: Profile, json: bool, options: &[String]) -> Result<()> {
    let director = build::tools(profile)?.join("windlass-director");
    let table: &[&str] = if json { &[] } else { &["--table"] };
    step(
        "measuring a fleet",
        command(director)
            .args(["bench", "fleet"])
            .args(table)
            .args(options),
    )
}
