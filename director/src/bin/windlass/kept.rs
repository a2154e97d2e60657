//! `windlass node kept …`.

use std::process::ExitCode;

use windlass_director::client::Client;
use windlass_director::service::KeptMachine;

use crate::Session;
use crate::args::KeptCommand;
use crate::cluster::{confirm, segment};
use crate::failure::Failure;
use crate::output::{age, table};

pub(crate) async fn run(
    session: &Session,
    client: &Client,
    command: KeptCommand,
) -> Result<ExitCode, Failure> {
    match command {
        KeptCommand::List => {
            let answer = client.get("/v1/kept-machines").await?;
            let kept: Vec<KeptMachine> = client.typed(&answer["items"])?;
            session.output.answer(&answer, || {
                let header = [
                    "NAME", "MACHINE", "CLUSTER", "KEPT", "UNTIL", "BY", "REASON", "PLACE",
                ];
                table(&header, kept.iter().map(row))
            });
        }
        KeptCommand::Delete { name, yes } => {
            let question = format!("Destroys all that {name} holds. Type its name to delete it: ");
            if !yes && !confirm(&question, &name)? {
                return Err(Failure::failed("not deleted"));
            }
            let path = format!("/v1/kept-machines/{}", segment(&name));
            let answer = client.delete(&path).await?;
            session
                .output
                .answer(&answer, || format!("machine {name} is gone"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(kept: &KeptMachine) -> Vec<String> {
    let dash = |text: &str| match text {
        "" => "-".to_owned(),
        text => text.to_owned(),
    };
    let cluster = kept.cluster.as_ref();
    vec![
        kept.name.to_string(),
        format!("{} (incarnation {})", kept.machine, kept.incarnation),
        cluster.map_or_else(|| "-".to_owned(), ToString::to_string),
        format!("{} ago", age(kept.kept_at)),
        kept.delete_at.to_string(),
        kept.operator.clone(),
        dash(&kept.reason),
        kept.place.clone(),
    ]
}
