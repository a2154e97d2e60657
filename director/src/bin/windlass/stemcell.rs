//! `windlass stemcell …`.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use windlass_director::config::Config;
use windlass_director::model::StemcellRecord;

use crate::Session;
use crate::args::StemcellCommand;
use crate::daemon::beside;
use crate::failure::Failure;
use crate::output::table;

pub(crate) async fn run(session: &Session, command: StemcellCommand) -> Result<ExitCode, Failure> {
    match command {
        StemcellCommand::Build { options } => Err(build(session, &options)),
        StemcellCommand::List => {
            let client = session.client()?;
            let answer = client.get("/v1/stemcells").await?;
            let stemcells: Vec<StemcellRecord> = client.typed(&answer["items"])?;
            session.output.answer(&answer, || {
                let rows = stemcells.iter().map(|stemcell| {
                    vec![
                        stemcell.version.clone(),
                        stemcell.kubernetes_version.clone(),
                        stemcell.digest.hex().chars().take(12).collect(),
                        stemcell.path.display().to_string(),
                    ]
                });
                table(&["VERSION", "KUBERNETES", "DIGEST", "PATH"], rows)
            });
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Becomes `windlass-stemcell build`; returns only if that is not possible.
fn build(session: &Session, options: &[std::ffi::OsString]) -> Failure {
    let program = match beside("windlass-stemcell") {
        Ok(program) => program,
        Err(failure) => return failure,
    };
    let mut command = Command::new(&program);
    command.arg("build").args(options);
    let says_where = options.iter().any(|option| {
        option
            .to_str()
            .is_some_and(|text| text == "--output" || text.starts_with("--output="))
    });
    // A director that is set up here wants them where it looks.
    if !says_where
        && let Ok(dir) = session.data_dir()
        && let Ok(config) = Config::load(&dir)
    {
        command.arg("--output").arg(config.stemcells.directory);
    }
    let error = command.exec();
    Failure::failed(format!("cannot run {}: {error}", program.display()))
}
