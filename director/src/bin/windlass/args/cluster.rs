//! Clusters: what is ordered, and how.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cluster_backup::BackupsCommand;

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
anew. The control plane goes first, one machine at a time, with its data disks kept; it emulates the minor
that ran before until all of it is there, is raised then, and workers follow. Until it is raised, a cancelled
upgrade can go back: --to the version that was. Minors go one by one, in legs of one task that --dry-run shows.
Where `update.strategy` of the control plane or of a pool is inPlace and the stemcell differs in components alone, with
the same minor of Kubernetes, machines get these and go on, pods included; the plan says why one is replaced all the same.

Examples:
  windlass cluster upgrade demo --to 1.37.2 --wait
  windlass cluster upgrade demo --stemcell --dry-run    the operating system only")]
    Upgrade {
        /// The cluster
        name: String,
        /// Kubernetes version; a stemcell with it has to be there
        #[arg(long, value_name = "VERSION", required_unless_present = "stemcell")]
        to: Option<String>,
        /// Bring all machines to the newest stemcell, also those whose version is right
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
