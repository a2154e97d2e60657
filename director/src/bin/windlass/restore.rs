//! `windlass cluster restore`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use windlass_director::api::RestoreCluster;
use windlass_director::client::Client;
use windlass_director::model::{
    Cluster, MemberRank, Plan, RestoreForecast, Task, TaskKind, TaskState,
};

use crate::Session;
use crate::cluster::{ordered, segment};
use crate::failure::Failure;
use crate::output::{note, table};
use crate::plan::explain;
use crate::progress;

/// Between two looks at a cluster that was made and waits for its data.
const BETWEEN: Duration = Duration::from_millis(500);
/// Stands for the member whose data goes furthest.
pub(crate) const BEST: &str = "best";

/// Shown below the help of the command.
pub(crate) const HELP: &str = "\
Every API server of the cluster is stopped, then every member of etcd; the data of members is made anew, and
what they had is kept beside it on their disks. Pods go on meanwhile. What was written since the snapshot is
lost: --dry-run says how much, and --accept-loss is needed to do it. Once the first API server is stopped the
task cannot be cancelled; a director that dies goes on with it.

When a majority of the members is gone for good, --from-member begins again with what one has that is left:
the one that goes furthest, or the one that is named. The others join it again; machines that do not answer
are shut out, powered off and made anew.

A cluster that is gone is made again from its backup, with the same authorities and keys: empty at first, then its
data is restored. With --as another cluster is made of it, whose credentials are good for both.

Examples:
  windlass cluster restore demo --from-backup 20300131-120000-00000001 --dry-run
  windlass cluster restore demo --from-backup 20300131-120000-00000001 --as copy --wait
  windlass cluster restore demo --from /var/backups/demo.db --accept-loss --wait
  windlass cluster restore demo --from-member --dry-run
  windlass cluster restore demo --from-member demo-cp-1 --plan sha256:… --accept-loss --wait";

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("source").required(true)))]
pub(crate) struct RestoreArgs {
    /// A backup of the cluster, as `windlass cluster backups list` shows it
    #[arg(long, value_name = "BACKUP", group = "source")]
    from_backup: Option<String>,
    /// Make a cluster of this name from the backup, and leave the one that was backed up as it is
    #[arg(long = "as", value_name = "NAME", requires = "from_backup")]
    new_name: Option<String>,
    /// A snapshot of etcd: a file where the director runs
    #[arg(long, value_name = "FILE", group = "source")]
    from: Option<PathBuf>,
    /// Begin again with the data of this machine's member, or of the one that goes furthest
    #[arg(long, value_name = "MACHINE", group = "source", num_args = 0..=1, default_missing_value = BEST)]
    from_member: Option<String>,
    /// What the plan says is lost may be lost
    #[arg(long)]
    accept_loss: bool,
    /// Show what would be done and lost; change nothing
    #[arg(long, conflicts_with_all = ["plan", "wait", "accept_loss"])]
    dry_run: bool,
    /// Carry out exactly the plan with this hash, or stop and say what changed
    #[arg(long, value_name = "HASH")]
    plan: Option<String>,
    /// Wait for the end, showing what each machine is doing
    ///
    /// Ctrl-C ends the waiting, not the task.
    #[arg(long)]
    wait: bool,
}

/// Orders it, or shows what it would do.
pub(crate) async fn restore(
    session: &Session,
    client: &Client,
    cluster: &str,
    args: RestoreArgs,
) -> Result<ExitCode, Failure> {
    let mut path = format!(
        "/v1/clusters/{}/restore?dry_run={}&accept_loss={}",
        segment(cluster),
        args.dry_run,
        args.accept_loss
    );
    if let Some(plan) = &args.plan {
        path.push_str(&format!("&plan={}", segment(plan)));
    }
    let best = args.from_member.as_deref() == Some(BEST);
    let body = RestoreCluster {
        backup: args.from_backup,
        snapshot: args.from.map(absolute).transpose()?,
        member: args.from_member.filter(|_| !best),
        best_member: best,
        new_name: args.new_name,
    };
    let body = serde_json::to_string(&body).map_err(|error| Failure::of(&error))?;
    let answer = client.post(&path, body).await?;
    if args.dry_run {
        let plan: Plan = client.typed(&answer)?;
        session.output.answer(&answer, || {
            let forecast = plan.restore.as_ref().map(forecast).unwrap_or_default();
            format!("{forecast}{}", explain(&plan))
        });
        return Ok(ExitCode::SUCCESS);
    }
    let task: Task = client.typed(&answer)?;
    if args.wait && task.kind == TaskKind::CreateCluster {
        return made_again(session, client, &task).await;
    }
    ordered(session, client, &answer, args.wait).await
}

/// Waits until a cluster that was gone is there, and has its data.
async fn made_again(session: &Session, client: &Client, made: &Task) -> Result<ExitCode, Failure> {
    let path = format!("/v1/clusters/{}", segment(made.cluster.as_str()));
    let mut task = made.id.clone();
    let mut told = None;
    loop {
        let over = progress::until_over(client, &task).await?;
        if over.state != TaskState::Succeeded || over.kind == TaskKind::RestoreCluster {
            return progress::wait(session, client, &task).await;
        }
        // Between the two tasks.
        task = loop {
            let cluster: Cluster = client.typed(&client.get(&path).await?)?;
            if let Some(next) = cluster.task.as_ref().filter(|next| **next != task) {
                break next.clone();
            }
            if cluster.awaits_restore().is_none() {
                return progress::wait(session, client, &task).await;
            }
            if cluster.message != told {
                note(cluster.message.as_deref().unwrap_or_default());
                told = cluster.message;
            }
            tokio::time::sleep(BETWEEN).await;
        };
    }
}

/// The director reads the file where it runs.
fn absolute(path: PathBuf) -> Result<String, Failure> {
    let path = std::path::absolute(&path).map_err(|error| Failure::of(&error))?;
    Ok(path.to_string_lossy().into_owned())
}

fn forecast(forecast: &RestoreForecast) -> String {
    let known = |value: Option<u64>| value.map_or("-".to_owned(), |value| value.to_string());
    let row = |member: &MemberRank| {
        vec![
            member.machine.to_string(),
            member.fate.name().to_owned(),
            known(member.revision),
            known(member.raft_index),
            known(member.raft_term),
            known(member.db_bytes),
            member
                .last_write_at
                .map_or("-".to_owned(), |at| at.to_string()),
            member.problem.clone().unwrap_or_default(),
        ]
    };
    let head = [
        "MEMBER",
        "THEN",
        "REVISION",
        "INDEX",
        "TERM",
        "BYTES",
        "LAST WRITE",
        "",
    ];
    let losses: Vec<String> = forecast
        .losses
        .iter()
        .map(|loss| format!("  {loss}"))
        .collect();
    let members = if forecast.members.is_empty() {
        String::new()
    } else {
        table(&head, forecast.members.iter().map(row)) + "\n\n"
    };
    format!(
        "etcd is made anew from {}\n\n{members}what is lost:\n{}\n\n",
        forecast.source,
        losses.join("\n")
    )
}
