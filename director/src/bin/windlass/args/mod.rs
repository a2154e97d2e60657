//! The command line's grammar: help, completions and parsing from one definition.

mod campaign;
mod cluster;
mod director;
mod node;

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use windlass_director::model::Role;

pub(crate) use campaign::{CampaignCommand, UpgradeArgs};
pub(crate) use cluster::{AgentArgs, ChangeArgs, ClusterCommand, RenewalArgs, SpecArgs};
pub(crate) use director::{AdoptArgs, DirectorCommand, InitArgs, RotateArgs};
pub(crate) use node::{KeptCommand, NodeCommand};

/// Raises Kubernetes clusters from VMs, and keeps them.
#[derive(Debug, Parser)]
#[command(
    name = "windlass",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
#[command(after_long_help = "\
Examples:
  windlass director init --stemcells /srv/stemcells   set up a director on this host
  windlass director start                             start it
  windlass cluster create demo --workers 2 --wait     make a cluster and watch it come up
  windlass cluster credentials demo > kubeconfig      get access to it
  windlass cluster scale demo --pool workers=5        change its size
  windlass cluster upgrade demo --to 1.37.2           change its version
  windlass upgrade --all --to 1.37.2 --waves 1,10%    change that of all clusters, in waves
  windlass node list                                  see its machines
  windlass cluster delete demo --wait                 remove it and everything it had

Exit codes:
  0    done
  1    tried and failed; the message says what to do
  2    wrong arguments or input; every fault is named
  3    there is no such cluster, node or task
  4    not possible in the state things are in
  5    the director cannot be reached, or the link to a machine that was followed broke
  130  interrupted while waiting; what was waited for goes on
  `node exec` and `node shell` exit with the code of what they ran.")]
pub(crate) struct Arguments {
    /// Data directory of the director on this host [default: /var/lib/windlass]
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        env = "WINDLASS_DIR",
        value_name = "DIR",
        hide_env_values = true
    )]
    pub(crate) data_dir: Option<PathBuf>,
    /// Context file that says how to reach a director (URL, CA, operator certificate and key)
    ///
    /// Without it: context.toml in the data directory that was named, then
    /// ~/.config/windlass/context.toml, then context.toml in the default data directory.
    #[arg(
        long,
        global = true,
        help_heading = "Global options",
        env = "WINDLASS_CONTEXT",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(crate) context: Option<PathBuf>,
    /// Answer with one JSON value on standard output
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Set up, start, stop and look at the director of this host
    #[command(subcommand)]
    Director(DirectorCommand),
    /// Build and list machine images
    #[command(subcommand)]
    Stemcell(StemcellCommand),
    /// Make, look at and remove clusters
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Look at machines, read their logs, run commands on them
    #[command(subcommand)]
    Node(NodeCommand),
    /// Look at persistent disks, delete those that no machine has
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Upgrade many clusters in waves; stops when one fails
    #[command(after_help = "\
Each cluster is upgraded by a task of its own, with its own plan, maintenance window and gates. A wave is over
before the next begins.

Examples:
  windlass upgrade --selector stage=canary --to 1.37.2 --wait
  windlass upgrade --all --to 1.37.2 --waves 1,10%,100% --max-in-flight 10 --soak 30m --dry-run
  windlass upgrade --clusters a,b,c --stemcell")]
    Upgrade(UpgradeArgs),
    /// Follow, pause and stop upgrades of many clusters
    #[command(subcommand)]
    Campaign(CampaignCommand),
    /// Watch all clusters: versions, machines, what is being done and what comes next
    ///
    /// Refreshed until Ctrl-C. `windlass node top` shows what machines use.
    #[command(after_help = "Examples:\n  windlass top\n  windlass top --once --json")]
    Top {
        /// Show it once and end
        #[arg(long)]
        once: bool,
        /// Between two looks, seconds, 1 to 60
        #[arg(long, value_name = "SECONDS", default_value_t = 2,
            value_parser = clap::value_parser!(u32).range(1..=60))]
        interval: u32,
    },
    /// Follow, pause and stop what the director is doing
    #[command(subcommand)]
    Task(TaskCommand),
    /// Say who may use the director, and for what
    #[command(subcommand)]
    Operator(OperatorCommand),
    /// Show who asked for what, newest first, and what came of it
    #[command(after_help = "\
Examples:
  windlass audit --action node.                what was done on machines
  windlass audit --actor ann --since 2h        what ann did in the last two hours
  windlass audit --subject cluster/demo -n 20")]
    Audit(AuditArgs),
    /// Keep the certificate by which you use the director
    #[command(subcommand)]
    Context(ContextCommand),
    /// Print a completion script for a shell
    ///
    /// For example: windlass completions bash > /etc/bash_completion.d/windlass
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Get a new certificate and the director's CA of today
    ///
    /// The key stays. Run it while the director's CA is rotated, and once a year.
    Renew,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DiskCommand {
    /// List persistent disks with the machines whose data they hold
    ///
    /// The disk of a machine that a cluster has no more, for example since its control plane shrank, is kept:
    /// it is an orphan until somebody deletes it by name.
    List {
        /// Only those that no machine has
        #[arg(long)]
        orphans: bool,
    },
    /// Delete a disk that no machine has, and the data on it
    #[command(
        after_help = "Example:\n  windlass disk list --orphans\n  windlass disk delete demo-cp-2-data"
    )]
    Delete {
        /// The disk
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum StemcellCommand {
    /// Build a stemcell; takes the options of windlass-stemcell build
    #[command(
        disable_help_flag = true,
        after_help = "Example:\n  windlass stemcell build --kubernetes 1.37.2"
    )]
    Build {
        /// Options of windlass-stemcell build (--help shows them)
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "OPTIONS"
        )]
        options: Vec<std::ffi::OsString>,
    },
    /// List the stemcells whose signature the director verified
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// List tasks, newest first
    List,
    /// Show one task with its steps
    Show {
        /// Its id, as in `task list`
        id: String,
    },
    /// Follow a task to its end; exits with 1 when it failed or was cancelled
    Watch {
        /// Its id
        id: String,
    },
    /// Pause a task: machines that it has begun with are finished, and no other one is begun with
    ///
    /// A paused task survives a restart of the director, and holds its cluster: resume or cancel it before
    /// another change.
    Pause {
        /// Its id
        id: String,
        /// Wait until nothing of it runs
        #[arg(long)]
        wait: bool,
    },
    /// Go on with a task that pauses, or that waits for a maintenance window
    ///
    /// A task that waits goes on by itself when its window opens.
    Resume {
        /// Its id
        id: String,
        /// Go on although the cluster's maintenance window is closed; the reason is in the audit log
        #[arg(long, value_name = "REASON")]
        ignore_window: Option<String>,
        /// Wait until it has ended
        #[arg(long)]
        wait: bool,
    },
    /// Order what a failed task did not get done: planned anew, as a task of its own
    Retry {
        /// Its id; the last task of its cluster
        id: String,
        /// Wait until it has ended
        #[arg(long)]
        wait: bool,
    },
    /// Stop a task; a create removes what it had made, an update brings the cluster back to service
    Cancel {
        /// Its id
        id: String,
        /// Wait until it has ended
        #[arg(long)]
        wait: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum OperatorCommand {
    /// Add an operator and write what they log in with
    ///
    /// The key is made here and goes to nobody: the director signs a certificate for it. Writes a context
    /// file with the certificate, the key and the director's CA beside it. What an operator may do is
    /// looked up with each request:
    ///
    ///   viewer    see everything that is not secret
    ///   operator  also make, change and delete clusters, steer tasks, read logs and diagnostics
    ///   admin     also run commands and shells on machines, hand out credentials, manage operators
    #[command(
        verbatim_doc_comment,
        after_help = "Example:\n  windlass operator add ann --role operator --out ann/context.toml"
    )]
    Add {
        /// Its name, never used before
        name: String,
        /// What it may do
        #[arg(long)]
        role: Role,
        /// The context file to write [default: NAME.toml]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// List operators, those that were revoked too
    List,
    /// Show one operator
    Show {
        /// Its name
        name: String,
    },
    /// Shut an operator out, at once and for good; what they have running ends
    Revoke {
        /// Its name
        name: String,
    },
    /// Give an operator another role, from its next request on
    SetRole {
        /// Its name
        name: String,
        /// The new role
        role: Role,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    /// Only of this operator, or `director`
    #[arg(long, value_name = "NAME")]
    pub(crate) actor: Option<String>,
    /// Only actions that begin so, for example `node.` or `cluster.create`
    #[arg(long, value_name = "ACTION")]
    pub(crate) action: Option<String>,
    /// Only about this, for example `cluster/demo` or `machine/demo-cp-0`
    #[arg(long, value_name = "SUBJECT")]
    pub(crate) subject: Option<String>,
    /// Only of the last while, for example 30m, 2h or 7d
    #[arg(long, value_name = "WHILE", value_parser = a_while)]
    pub(crate) since: Option<std::time::Duration>,
    /// Newest lines, 1 to 1000
    #[arg(short = 'n', long, default_value_t = 100)]
    pub(crate) limit: u32,
}

fn a_while(text: &str) -> Result<std::time::Duration, String> {
    let bad = || format!("{text:?} is no while; use a number with s, m, h or d, for example 30m");
    let (number, unit) = text
        .split_at_checked(text.len().saturating_sub(1))
        .ok_or_else(bad)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(bad()),
    };
    let number: u32 = number.parse().map_err(|_| bad())?;
    Ok(std::time::Duration::from_secs(u64::from(number) * seconds))
}

/// Prints the completion script of a shell.
pub(crate) fn completions(shell: clap_complete::Shell) {
    let mut command = Arguments::command();
    clap_complete::generate(shell, &mut command, "windlass", &mut std::io::stdout());
}

/// The caller's home directory.
pub(crate) fn home() -> Option<PathBuf> {
    std::env::var_os("HOME")
        .filter(|home| !home.is_empty())
        .map(PathBuf::from)
}
