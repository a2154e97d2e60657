//! `windlass disk …`.

use std::process::ExitCode;

use windlass_director::service::Disk;

use crate::Session;
use crate::args::DiskCommand;
use crate::cluster::{confirm, segment};
use crate::failure::Failure;
use crate::output::table;

pub(crate) async fn run(session: &Session, command: DiskCommand) -> Result<ExitCode, Failure> {
    let client = session.client()?;
    match command {
        DiskCommand::List { orphans } => {
            let mut answer = client.get("/v1/disks").await?;
            if orphans && let Some(items) = answer["items"].as_array_mut() {
                items.retain(|disk| disk["machine"].is_null());
            }
            let disks: Vec<Disk> = client.typed(&answer["items"])?;
            session.output.answer(&answer, || {
                let header = ["NAME", "SIZE", "MACHINE", "CLUSTER", "ATTACHED TO"];
                table(&header, disks.iter().map(row))
            });
        }
        DiskCommand::Delete { name, yes } => {
            let question = format!("Destroys the data on {name}. Type its name to delete it: ");
            if !yes && !confirm(&question, &name)? {
                return Err(Failure::failed("not deleted"));
            }
            let path = format!("/v1/disks/{}", segment(&name));
            let answer = client.delete(&path).await?;
            session
                .output
                .answer(&answer, || format!("disk {name} is gone"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(disk: &Disk) -> Vec<String> {
    fn or_dash(name: Option<&impl ToString>) -> String {
        name.map_or_else(|| "-".to_owned(), ToString::to_string)
    }
    vec![
        disk.name.to_string(),
        format!("{} MiB", disk.bytes >> 20),
        or_dash(disk.machine.as_ref()),
        or_dash(disk.cluster.as_ref()),
        or_dash(disk.attached_to.as_ref()),
    ]
}
