//! Machines.

use std::path::PathBuf;

use clap::Subcommand;

use super::AgentArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List machines with their agents
    List {
        /// Only of this cluster
        #[arg(long, value_name = "NAME")]
        cluster: Option<String>,
    },
    /// Show one machine with its units and vitals
    Show {
        /// Its name, as in `node list`
        name: String,
    },
    /// Ask everybody who can tell about a machine, now
    ///
    /// The machine's own link, the provider, and, when it is silent, three other machines of its cluster and
    /// the Lease of its node; none of them depends on another. Shows what each says, how old that is, and what
    /// it means. Changes nothing on the machine; takes up to 3 seconds.
    #[command(after_help = "Example:\n  windlass node evidence demo-workers-0")]
    Evidence {
        /// The machine
        name: String,
    },
    /// Say why a machine is judged as it is: what is known, what was tried, what comes next and when
    ///
    /// A silent machine is not a dead one: the director asks the provider, other machines of the cluster, and
    /// the Lease of the node. `docs/operations.md` says what each verdict means and what to do.
    #[command(after_help = "Example:\n  windlass node why demo-workers-0")]
    Why {
        /// The machine
        name: String,
    },
    /// Keep the director from healing a machine; it is judged on
    #[command(after_help = "\
Example:
  windlass node hold demo-workers-0 --reason 'kernel trace, ask Ann'
  windlass node release demo-workers-0")]
    Hold {
        /// The machine
        name: String,
        /// Why, for others who look
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Have the director not look at a machine at all: its silence says nothing about its cluster either
    #[command(
        after_help = "Example:\n  windlass node ignore demo-workers-0 --reason 'being rewired'"
    )]
    Ignore {
        /// The machine
        name: String,
        /// Why, for others who look
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Let a machine go that was held or ignored; what was tried on it is forgotten
    Release {
        /// The machine
        name: String,
    },
    /// Replace a machine by its next incarnation, whatever its verdict
    ///
    /// One that serves is drained first; one that is judged to serve nobody is shut out, and its pods are
    /// given to other nodes. Name, address, pod network and data disk stay; everything else on it is gone,
    /// unless it is kept: then it is off, without disks and network, under a name that `node kept list` shows.
    #[command(after_help = "\
Examples:
  windlass node recreate demo-workers-0 --yes --wait
  windlass node recreate demo-workers-0 --keep --reason 'kubelet hangs, ask Ann'")]
    Recreate {
        /// The machine
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// The API of a cluster with one control-plane machine may be down meanwhile
        #[arg(long)]
        accept_downtime: bool,
        /// Keep what there is of it, for whoever looks for a fault
        #[arg(long)]
        keep: bool,
        /// Why it is kept, for others who look
        #[arg(long, default_value = "", hide_default_value = true, requires = "keep")]
        reason: String,
        /// Wait until it is done
        #[arg(long)]
        wait: bool,
    },
    /// Look at machines that were kept after their replacement, delete them
    #[command(subcommand)]
    Kept(KeptCommand),
    /// Give a machine whose certificate lapsed for good a fresh token; it keeps all it has
    ///
    /// A machine that was cut off comes back by itself until its certificate has been over for the grace
    /// window (a week, `docs/adr/0002-lapsed-certificates.md`); after that it needs a token. The provider
    /// puts it into the machine, and its agent takes it up within seconds, without a restart. Where the
    /// provider cannot, and with --print, the settings of the machine are printed: write them to
    /// /etc/windlass/settings.json there, for root alone. The token counts once, for an hour.
    #[command(after_help = "\
Examples:
  windlass node enroll demo-workers-0
  windlass node enroll demo-workers-0 --print |
    ssh root@10.0.0.7 'umask 077; cat > /etc/windlass/settings.json.new &&
      mv /etc/windlass/settings.json.new /etc/windlass/settings.json'")]
    Enroll {
        /// The machine
        name: String,
        /// Print the settings in place of having the provider bring them there
        #[arg(long)]
        print: bool,
    },
    /// Print logs of a machine
    ///
    /// With --follow it goes on until Ctrl-C, which ends it on the machine too; when the link to the machine
    /// breaks it says so and exits with 5.
    #[command(after_help = "\
Examples:
  windlass node logs demo-workers-0 --unit kubelet -n 50
  windlass node logs demo-cp-0 -f --unit etcd --unit kube-apiserver")]
    Logs {
        /// The machine
        name: String,
        /// Only of this systemd unit; may be given several times
        #[arg(long)]
        unit: Vec<String>,
        /// Newest lines, 1 to 10000
        #[arg(short = 'n', long, default_value_t = 100)]
        lines: u32,
        /// Go on with what is logged from now on
        #[arg(short, long, conflicts_with_all = ["diagnostics", "json"])]
        follow: bool,
        /// Add processes, mounts, addresses, routes, disks and unit states
        #[arg(long)]
        diagnostics: bool,
    },
    /// Upgrade the agent of one machine in place; pods and components go on
    ///
    /// As `cluster upgrade-agents`, which see, with one machine.
    #[command(after_help = "Example:\n  windlass node upgrade-agent demo-workers-0 --wait")]
    UpgradeAgent {
        /// The machine
        name: String,
        #[command(flatten)]
        upgrade: AgentArgs,
    },
    /// Open a shell as root on a machine; exits with its code
    ///
    /// A login shell on a terminal of its own: Ctrl-C goes to what runs in it, and it follows the size of
    /// yours. When the connection goes, the shell and all it started on the machine are ended. Takes the
    /// role admin; that it was opened, by whom and for how long, is in the audit log.
    #[command(after_help = "Example:\n  windlass node shell demo-cp-0")]
    Shell {
        /// The machine
        name: String,
    },
    /// Watch what machines use: CPU, memory, disk, load
    ///
    /// CPU is the share of one core since the sample before. A figure of the host that a machine shares
    /// is marked with `host`. Refreshed until Ctrl-C.
    #[command(after_help = "\
Examples:
  windlass node top
  windlass node top demo            the machines of a cluster
  windlass node top demo-cp-0 --once --json")]
    Top {
        /// A cluster or a machine; all machines when not given
        name: Option<String>,
        /// Show it once and end
        #[arg(long)]
        once: bool,
        /// Between two looks, seconds, 1 to 60
        #[arg(long, value_name = "SECONDS", default_value_t = 2,
            value_parser = clap::value_parser!(u32).range(1..=60))]
        interval: u32,
    },
    /// Gather what is known of machines into one archive, for whoever looks for a fault
    ///
    /// For each machine its record and report as the director has them, the tasks of its cluster, the state
    /// of the machine (processes without their arguments, mounts, addresses, routes, disks, units) and the
    /// newest lines of the journals of its units. Private keys, tokens and passwords that a journal shows
    /// are blotted out. A machine that does not answer is in it with what the director knows.
    #[command(
        group = clap::ArgGroup::new("of").required(true).args(["name", "cluster"]),
        after_help = "\
Examples:
  windlass node collect demo-cp-0 -o demo-cp-0.tar.gz
  windlass node collect --cluster demo -o demo.tar.gz"
    )]
    Collect {
        /// The machine
        name: Option<String>,
        /// All machines of this cluster
        #[arg(long, value_name = "NAME")]
        cluster: Option<String>,
        /// The archive to write (mode 0600)
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        /// Newest lines of each unit's journal, 1 to 10000
        #[arg(short = 'n', long, default_value_t = 1000)]
        lines: u32,
    },
    /// Run a command on a machine as root; exits with its code
    ///
    /// It runs at most once, whatever becomes of the link meanwhile. With --stdin it reads what this command
    /// is given, and lives as long as the connection does.
    #[command(after_help = "\
Examples:
  windlass node exec demo-cp-0 -- systemctl status etcd
  windlass node exec -i demo-cp-0 -- tar -xz -C /root < files.tar.gz")]
    Exec {
        /// The machine
        name: String,
        /// Pass standard input on to the command
        #[arg(short = 'i', long, conflicts_with = "json")]
        stdin: bool,
        /// Program and arguments; no shell is involved
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeptCommand {
    /// List machines that are kept, with who wanted it, and until when
    ///
    /// Each is off, refused by the director, and has no disk and no network. Their number and age are bounded:
    /// `kept_max` and `kept_hours` in `[resurrector]` of director.toml.
    List,
    /// Delete a machine that is kept, and all it holds
    #[command(after_help = "\
Example:
  windlass node kept list
  windlass node kept delete demo-workers-0-i3-4c11d0")]
    Delete {
        /// The name under which it is kept
        name: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}
