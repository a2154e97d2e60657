//! The director of this host.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use ipnet::Ipv4Net;
use windlass_common::maintenance::Moment;

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
    /// Have no cluster be changed for some time
    ///
    /// Changes finish the machines they have begun with and wait, as for a closed maintenance window; `--ignore-window`
    /// of an order, or of `windlass task resume`, goes past it. Repairs, restores, rotations and new clusters go on.
    /// Said again under the same name, it is changed.
    #[command(
        after_help = "Example:\n  windlass director freeze year-end --from 2030-12-20T00:00:00Z --until 2031-01-02T06:00:00Z --reason 'year-end closing'"
    )]
    Freeze {
        /// What it is called: lower-case letters, digits and hyphens
        name: String,
        /// Its first moment, as RFC 3339 [default: now]
        #[arg(long, value_name = "MOMENT")]
        from: Option<Moment>,
        /// The first moment after it
        #[arg(long, value_name = "MOMENT")]
        until: Moment,
        /// Why, for others who look
        #[arg(long)]
        reason: String,
    },
    /// Show the times in which no cluster is changed
    Freezes,
    /// End such a time, or take back one that is to come
    Thaw {
        /// What it is called
        name: String,
    },
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
