//! The command line's grammar: help, completions and parsing from one definition.

mod campaign;
mod node;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use ipnet::Ipv4Net;
use windlass_director::model::Role;

pub(crate) use campaign::{CampaignCommand, UpgradeArgs};
pub(crate) use node::NodeCommand;

use crate::cluster_backup::BackupsCommand;

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
pub(crate) enum DirectorCommand {
    /// Set up a director: configuration, store, CA and the first operator's certificate
    ///
    /// Everything goes into the data directory; nothing is started. Addresses and the machine network
    /// that are not given are chosen so that they are free on this host.
    #[command(
        after_help = "Example:\n  windlass --data-dir /srv/windlass director init --stemcells /srv/stemcells"
    )]
    Init(InitArgs),
    /// Start the director in the background; returns when it answers
    ///
    /// What keeps it from running (not root, no runc, a port that is taken, no space, another director in
    /// the same directory) is named before anything is changed. Its log is director.log in the data
    /// directory. A director that runs already is left alone.
    Start {
        /// Run it in this terminal instead, with the log on standard error
        #[arg(long)]
        foreground: bool,
    },
    /// Stop the director; machines go on running
    Stop,
    /// Show how the director is
    Status,
    /// Replace the director's CA, without a connection lost or a machine made anew
    ///
    /// Every agent gets the new root and then a new certificate over its connection; the old CA is dropped
    /// once all of them have both on their disks, also those that were off. This context is renewed at
    /// once. Other operators run `windlass context renew` before the end, or are refused after it.
    /// Asking again joins the rotation under way.
    #[command(
        after_help = "Examples:\n  windlass director rotate-ca --wait\n  windlass director rotate-ca --status\n  windlass director rotate-ca --abandon demo-workers-3"
    )]
    RotateCa(RotateArgs),
    /// Back the director up: its store with every CA, and its configuration, sealed in one file
    ///
    /// The director goes on meanwhile. The file is in the age format and can be opened by the director's backup key
    /// and the recipients in director.toml. `windlass-director backup` does the same for one that does not run;
    /// `windlass-director restore` puts a backup back.
    #[command(after_help = "Example:\n  windlass director backup --to director.age")]
    Backup {
        /// File to write, which must not be there
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Show which key opens backups of the director, and copy it
    #[command(after_help = "Example:\n  windlass director backup-key --write /mnt/safe/backup.key")]
    BackupKey {
        /// Write a copy of the private key to this file, which must not be there
        #[arg(long, value_name = "FILE")]
        write: Option<PathBuf>,
    },
    /// Show what changed since the backup that the director was restored from, and adopt it
    ///
    /// A restored director is on hold: it looks, and does nothing to machines. Without --approve this shows how the
    /// world differs from its records, and changes nothing. With it, exactly what was shown is adopted, and the hold
    /// is over.
    #[command(
        after_help = "Examples:\n  windlass director adopt\n  windlass director adopt --approve sha256:3fa9…\n  windlass director adopt --approve sha256:3fa9… --forget demo-workers-3"
    )]
    Adopt(AdoptArgs),
    /// Stop the director and remove all its machines, disks and networks, then its state
    ///
    /// Works also after a crash, and when the director does not start any more. Stemcells are kept.
    Reset {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AdoptArgs {
    /// Adopt the differences that were shown with this digest
    #[arg(long, value_name = "DIGEST")]
    pub(crate) approve: Option<String>,
    /// Forget the record of this machine, which is gone or cannot be adopted; may be given several times
    #[arg(long, value_name = "MACHINE", requires = "approve")]
    pub(crate) forget: Vec<String>,
    /// Adopt this machine although its agent has shown no certificate; may be given several times
    #[arg(long, value_name = "MACHINE", requires = "approve")]
    pub(crate) accept: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    /// Wait until the old CA is dropped, showing who is waited for
    ///
    /// Ctrl-C ends the waiting, not the rotation.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Drop the old CA without this machine, which has to be recreated if it comes back; may be given
    /// several times
    #[arg(long, value_name = "MACHINE")]
    pub(crate) abandon: Vec<String>,
    /// Show how far the rotation is; changes nothing
    #[arg(long, conflicts_with_all = ["wait", "abandon"])]
    pub(crate) status: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ContextCommand {
    /// Get a new certificate and the director's CA of today
    ///
    /// The key stays. Run it while the director's CA is rotated, and once a year.
    Renew,
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Begins the name of everything this director makes on the host (1 to 8 letters and digits)
    #[arg(long, default_value = "local")]
    pub(crate) name: String,
    /// Network of the machines, for example 10.77.0.0/24
    #[arg(long, value_name = "CIDR")]
    pub(crate) cidr: Option<Ipv4Net>,
    /// Where operators connect (TCP) [default: 127.0.0.1:7443, or the next free port]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) api: Option<SocketAddr>,
    /// Where agents connect (UDP) [default: 0.0.0.0:7444, or the next free port]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) gateway: Option<SocketAddr>,
    /// Directory of stemcells [default: stemcells in the data directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) stemcells: Option<PathBuf>,
    /// Public keys whose signatures count [default: trusted.pub beside the stemcells]
    #[arg(long, value_name = "FILE")]
    pub(crate) trusted_keys: Option<PathBuf>,
    /// Name of the first operator
    #[arg(long, default_value = "admin")]
    pub(crate) operator: String,
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
pub(crate) enum ClusterCommand {
    /// Make a cluster, or go on with one that failed or was interrupted
    #[command(after_help = "\
Examples:
  windlass cluster create demo --workers 2 --wait
  windlass cluster create prod --control-plane 3 --pool web=3 --pool batch=5
  windlass cluster create -f cluster.yaml --wait

A file looks like this; everything but the name has a default:
  name: demo
  kubernetesVersion: 1.37.2
  controlPlane: {count: 1, size: {cpuMillis: 2000, memoryMib: 2048, diskMib: 10240}}
  pools:
    workers: {count: 2, size: {cpuMillis: 2000, memoryMib: 2048}, labels: {tier: web}}
  network: {podCidr: 10.244.0.0/16, serviceCidr: 10.96.0.0/16}
  drain: {timeoutSeconds: 600, onTimeout: fail, loadBalancerSeconds: 10}
  backup: {everyMinutes: 360, keep: 28}")]
    Create {
        #[command(flatten)]
        spec: SpecArgs,
        /// Wait until the cluster is there, showing what each machine is doing
        ///
        /// Ctrl-C ends the waiting, not the task.
        #[arg(long)]
        wait: bool,
    },
    /// List clusters
    List,
    /// Show one cluster
    Show {
        /// Its name
        name: String,
    },
    /// Make a cluster as a file describes it, or change the one that has this name
    #[command(after_help = "\
Machines that have to be made anew are drained first, one control-plane machine at a time, then workers as
their pool's `update` allows. A cluster that is as described already is left alone.

Examples:
  windlass cluster apply -f cluster.yaml --dry-run      what would be done, with the plan's hash
  windlass cluster apply -f cluster.yaml --plan sha256:… --wait")]
    Apply {
        /// File with the cluster in YAML or JSON; `-` for standard input
        #[arg(short, long, value_name = "FILE")]
        file: PathBuf,
        /// Make all machines anew from the newest stemcell of the version
        #[arg(long)]
        stemcell: bool,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Change the number of machines of worker pools or of the control plane
    #[command(after_help = "\
Machines that go are drained first, the highest number first. A control plane has 1, 3 or 5 machines: etcd
needs a majority of its members, 1 of 1, 2 of 3 or 3 of 5. New ones join it one at a time, without a vote
until they have caught up; those that go leave it first, and their data disks are kept.

Examples:
  windlass cluster scale demo --pool workers=5 --wait
  windlass cluster scale demo --control-plane 3 --wait")]
    Scale {
        /// The cluster
        name: String,
        /// A worker pool and its number of machines, 0 to 1000; may be given several times
        #[arg(long, value_name = "NAME=COUNT", required_unless_present = "control_plane", value_parser = pool)]
        pool: Vec<(String, u32)>,
        /// Machines of the control plane: 1, 3 or 5
        #[arg(long, value_name = "COUNT")]
        control_plane: Option<u32>,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Bring a cluster to another Kubernetes version, or to the newest stemcell of its version
    #[command(after_help = "\
Each machine is replaced by one of the same name from a stemcell of the version: drained, deleted, made
anew. The control plane goes first, one machine at a time, with its data disks kept; minors go one by one.

Examples:
  windlass cluster upgrade demo --to 1.37.2 --wait
  windlass cluster upgrade demo --stemcell --dry-run    the operating system only")]
    Upgrade {
        /// The cluster
        name: String,
        /// Kubernetes version; a stemcell with it has to be there
        #[arg(long, value_name = "VERSION", required_unless_present = "stemcell")]
        to: Option<String>,
        /// Make all machines anew from the newest stemcell, also those whose version is right
        #[arg(long)]
        stemcell: bool,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Upgrade the agents of the machines in place; pods and components go on
    #[command(after_help = "\
The agent is that of a stemcell. Each new one is on trial until it has answered the director over a
connection of its own; one that does not is replaced by the old one again, by the machine itself, and the
task ends there. Workers go first, the first machine by itself.

Examples:
  windlass cluster upgrade-agents demo --dry-run
  windlass cluster upgrade-agents demo --stemcell debian12-1.37.2-0a1b2c3d --at-a-time 5 --wait")]
    UpgradeAgents {
        /// The cluster
        name: String,
        /// Only of this machine; may be given several times
        #[arg(long, value_name = "NAME")]
        machine: Vec<String>,
        /// How many machines at a time once the first has succeeded, 1 to 50
        #[arg(long, value_name = "COUNT", default_value_t = 1,
            value_parser = clap::value_parser!(u32).range(1..=50))]
        at_a_time: u32,
        #[command(flatten)]
        upgrade: AgentArgs,
    },
    /// Make a cluster's etcd anew: from a snapshot, or from what is left of a member
    #[command(after_help = crate::restore::HELP)]
    Restore {
        /// The cluster
        name: String,
        #[command(flatten)]
        restore: crate::restore::RestoreArgs,
    },
    /// Back a cluster up now: a verified snapshot of etcd, every secret and the desired state, encrypted
    ///
    /// Waits until the backup is in its place. It stays there until it is deleted by name.
    #[command(after_help = "\
Backups are also made by themselves, as the cluster's `backup` says, and the oldest of these are removed.
An archive opens with the director's key (backup.key in its data directory), with the keys of the recipients
in its configuration, and with nothing else.

Examples:
  windlass cluster backup demo
  windlass cluster backup demo --to /mnt/vault/                 and copy it there
  age --decrypt --identity backup.key ARCHIVE | tar tz          look into one with the stock tools")]
    Backup {
        /// The cluster
        name: String,
        /// Copy the archive to this file, or into this directory
        #[arg(long, value_name = "PATH")]
        to: Option<PathBuf>,
    },
    /// List, show, fetch and delete the backups of a cluster
    #[command(subcommand)]
    Backups(BackupsCommand),
    /// Renew the certificates of the machines now; nothing is restarted
    #[command(after_help = "\
Without this order they are renewed once two thirds of their life have passed. Keys stay where they are; a
machine shows with its new certificates that they are accepted before the next one gets any.

Examples:
  windlass cluster renew-certificates demo --wait
  windlass cluster renew-certificates demo --machine demo-workers-0 --dry-run")]
    RenewCertificates {
        /// The cluster
        name: String,
        /// Only of this machine; may be given several times
        #[arg(long, value_name = "NAME")]
        machine: Vec<String>,
        #[command(flatten)]
        renewal: RenewalArgs,
    },
    /// Rotate the authorities of a cluster and the key that signs its tokens, in place
    #[command(after_help = "\
Stage by stage, one machine after the other: everything trusts the old and the new authorities, pods are given
both, certificates are signed by the new ones, and the old ones are dropped. Components are restarted, pods run
on. A cancel leaves the stage as it is, in which old and new get on with one another; the same command goes on.

Kubeconfigs that were fetched before are good until the new authorities sign. With --prepare the rotation rests
before that: fetch them again (`windlass cluster credentials`), start pods anew that read their authority once,
and order it without --prepare. The key that signed tokens before is forgotten a day later.

Examples:
  windlass cluster rotate-ca demo --prepare --wait
  windlass cluster rotate-ca demo --wait")]
    RotateCa {
        /// The cluster
        name: String,
        /// Only have both generations trusted, and rest until it is ordered again
        #[arg(long)]
        prepare: bool,
        /// Of a cluster with one control-plane machine: its API may be down for some seconds in each stage
        #[arg(long)]
        accept_downtime: bool,
        #[command(flatten)]
        renewal: RenewalArgs,
    },
    /// Rotate the key under which Secrets are encrypted in etcd, and write them all again
    #[command(after_help = "\
API servers learn the new key one after the other, then write with it; all Secrets are written again, and the old
key is forgotten. A cancel leaves both keys; the same command goes on.

Examples:
  windlass cluster rotate-encryption-key demo --dry-run
  windlass cluster rotate-encryption-key demo --wait")]
    RotateEncryptionKey {
        /// The cluster
        name: String,
        /// Of a cluster with one control-plane machine: its API may be down for some seconds in each stage
        #[arg(long)]
        accept_downtime: bool,
        #[command(flatten)]
        renewal: RenewalArgs,
    },
    /// Show what create, apply (or, with --delete, delete) would do and why; changes nothing
    #[command(after_help = "\
Examples:
  windlass cluster plan -f cluster.yaml
  windlass cluster plan demo              what an existing cluster still needs
  windlass cluster plan demo --pool workers=5 --kubernetes-version 1.37.2
  windlass cluster plan demo --delete     what deleting it would destroy")]
    Plan {
        #[command(flatten)]
        spec: SpecArgs,
        /// Plan the deletion
        #[arg(long, conflicts_with_all = ["file", "workers", "pool"])]
        delete: bool,
    },
    /// Print a kubeconfig for you
    ///
    /// It holds a certificate of the cluster for its administrators, and leads to the cluster's endpoint.
    #[command(after_help = "\
Examples:
  windlass cluster credentials demo --write ~/.kube/config-demo
  windlass cluster credentials demo --via-director --write ~/.kube/config-demo")]
    Credentials {
        /// The cluster
        name: String,
        /// Write it to this file (mode 0600) instead
        #[arg(long, value_name = "PATH")]
        write: Option<PathBuf>,
        /// Lead through the director's API, for where the endpoint cannot be reached
        ///
        /// The kubeconfig holds your own credentials of the director. What you may do in the cluster is
        /// looked up with each request: an admin everything, others look at what is not secret.
        #[arg(long)]
        via_director: bool,
    },
    /// Remove a cluster with its machines and disks
    Delete {
        /// The cluster
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Wait until nothing is left of it
        #[arg(long)]
        wait: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct RenewalArgs {
    /// Show what would be done and why; change nothing
    #[arg(long, conflicts_with_all = ["plan", "wait"])]
    pub(crate) dry_run: bool,
    /// Carry out exactly the plan with this hash, or stop and say what changed
    #[arg(long, value_name = "HASH")]
    pub(crate) plan: Option<String>,
    /// Wait for the end, showing what each machine is doing
    ///
    /// Ctrl-C ends the waiting, not the task.
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Version of the stemcell whose agent is wanted, as in `stemcell list` [default: the newest]
    #[arg(long, value_name = "VERSION")]
    pub(crate) stemcell: Option<String>,
    /// Show what would be done and why; change nothing
    #[arg(long, conflicts_with_all = ["plan", "wait"])]
    pub(crate) dry_run: bool,
    /// Carry out exactly the plan with this hash, or stop and say what changed
    #[arg(long, value_name = "HASH")]
    pub(crate) plan: Option<String>,
    /// Wait for the end, showing what each machine is doing
    ///
    /// Ctrl-C ends the waiting, not the task.
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    /// Show what would be done and why; change nothing
    #[arg(long, conflicts_with_all = ["plan", "wait"])]
    pub(crate) dry_run: bool,
    /// Carry out exactly the plan with this hash, or stop and say what changed
    #[arg(long, value_name = "HASH")]
    pub(crate) plan: Option<String>,
    /// Go on although the cluster's API will be down meanwhile (a control plane of one machine)
    #[arg(long)]
    pub(crate) accept_downtime: bool,
    /// Go on although pods keep nodes from being drained
    ///
    /// `--dry-run` names them, with the command that lets each go. Drains wait for them as long as the spec's
    /// `drain.timeoutSeconds` says.
    #[arg(long)]
    pub(crate) accept_blocked: bool,
    /// Go on although the cluster's maintenance window is closed; the reason is in the audit log
    #[arg(long, value_name = "REASON")]
    pub(crate) ignore_window: Option<String>,
    /// Wait for the end, showing what each machine is doing
    ///
    /// Ctrl-C ends the waiting, not the task.
    #[arg(long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SpecArgs {
    /// Name of the cluster
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub(crate) name: Option<String>,
    /// File with the cluster in YAML or JSON; `-` for standard input
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Kubernetes version [default: the newest one with a stemcell]
    #[arg(long, value_name = "VERSION", conflicts_with = "file")]
    pub(crate) kubernetes_version: Option<String>,
    /// Number of control-plane machines: 1, 3 or 5 [default: 1]
    #[arg(long, value_name = "COUNT", conflicts_with = "file")]
    pub(crate) control_plane: Option<u32>,
    /// Number of machines in the pool `workers` [default: 2]
    #[arg(long, value_name = "COUNT", conflicts_with_all = ["file", "pool"])]
    pub(crate) workers: Option<u32>,
    /// A worker pool; may be given several times
    #[arg(long, value_name = "NAME=COUNT", conflicts_with = "file", value_parser = pool)]
    pub(crate) pool: Vec<(String, u32)>,
    /// Addresses of pods [default: 10.244.0.0/16]
    #[arg(long, value_name = "CIDR", conflicts_with = "file")]
    pub(crate) pod_cidr: Option<String>,
    /// Addresses of Services [default: 10.96.0.0/16]
    #[arg(long, value_name = "CIDR", conflicts_with = "file")]
    pub(crate) service_cidr: Option<String>,
}

fn pool(text: &str) -> Result<(String, u32), String> {
    let (name, count) = text.split_once('=').ok_or("it must look like NAME=COUNT")?;
    let count = count
        .parse()
        .map_err(|_| format!("{count:?} is no number of machines"))?;
    Ok((name.to_owned(), count))
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
