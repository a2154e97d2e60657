//! The S3 server that backups are tested against: `s3s-fs` of the registry, kept in `.windlass/tools`.

use std::path::PathBuf;

use anyhow::Result;

use crate::build;
use crate::shell::{Background, capture, cargo, command};

const NAME: &str = "s3s-fs";
const VERSION: &str = "0.14.1";
/// What takes its time in a server without optimisation: the sums of 20 MiB.
const OPTIMISED: [&str; 4] = ["block-buffer", "digest", "md-5", "sha2"];

/// The server, or its installation.
#[derive(Debug)]
pub(crate) struct Server {
    program: PathBuf,
    installing: Option<Background>,
}

impl Server {
    /// Begins to install it where it is not there, behind what else is built: it takes two minutes of one core.
    pub(crate) fn begin() -> Result<Server> {
        let root = build::state().join("tools");
        let program = root.join("bin").join(NAME);
        let wanted = format!("{NAME} {VERSION}");
        let there = capture(command(&program).arg("--version"));
        if there.is_ok_and(|version| version.trim() == wanted) {
            let installing = None;
            return Ok(Server {
                program,
                installing,
            });
        }
        let mut install = cargo();
        install
            .args(["install", "--quiet", "--locked", "--debug", "--force"])
            .args(["--features", "binary", "--config", "profile.dev.debug=0"]);
        for package in OPTIMISED {
            let setting = format!("profile.dev.package.{package}.opt-level=3");
            install.args(["--config", &setting]);
        }
        // It builds in a directory of its own: one that is shared is built in one after the other.
        install
            .env_remove("CARGO_TARGET_DIR")
            .arg("--root")
            .arg(&root)
            .arg(format!("{NAME}@{VERSION}"));
        let installing = Background::begin(&format!("installing {wanted}"), &install)?;
        Ok(Server {
            program,
            installing: Some(installing),
        })
    }

    /// The program, once it is there.
    pub(crate) fn program(&mut self) -> Result<PathBuf> {
        if let Some(installing) = self.installing.take() {
            installing.end()?;
        }
        Ok(self.program.clone())
    }
}
