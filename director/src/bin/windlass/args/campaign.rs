//! Upgrades of many clusters.

use clap::{Args, Subcommand};

use super::a_while;

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).args(["clusters", "selector", "all"]))]
pub(crate) struct UpgradeArgs {
    /// These clusters, in this order
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub(crate) clusters: Vec<String>,
    /// Clusters with this label; may be given several times, and all have to be there
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) selector: Vec<(String, String)>,
    /// All clusters
    #[arg(long)]
    pub(crate) all: bool,
    /// Kubernetes version; a stemcell with it has to be there
    #[arg(long, value_name = "VERSION", required_unless_present = "stemcell")]
    pub(crate) to: Option<String>,
    /// Make all machines anew from the newest stemcell, also those whose version is right
    #[arg(long)]
    pub(crate) stemcell: bool,
    /// How many clusters of all are done with after each wave: numbers, or percent, rounded up [default: 100%]
    #[arg(long, value_name = "AMOUNTS", value_delimiter = ',')]
    pub(crate) waves: Vec<String>,
    /// Clusters that are changed at a time, 1 to 100
    #[arg(long, value_name = "COUNT", default_value_t = 5,
        value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) max_in_flight: u32,
    /// Clusters that may fail; one more stops the campaign
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub(crate) max_failures: u32,
    /// How long a wave that is over is watched before the next, for example 30m
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = a_while)]
    pub(crate) soak: std::time::Duration,
    /// Go on although the APIs of clusters with one control-plane machine will be down meanwhile
    #[arg(long)]
    pub(crate) accept_downtime: bool,
    /// Go on although pods keep nodes from being drained
    #[arg(long)]
    pub(crate) accept_blocked: bool,
    /// Go on although the clusters' maintenance windows are closed; the reason is in the audit log
    #[arg(long, value_name = "REASON")]
    pub(crate) ignore_window: Option<String>,
    /// Show the waves; change nothing
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Wait for the end, with a line for each cluster
    ///
    /// Ctrl-C ends the waiting, not the campaign.
    #[arg(long)]
    pub(crate) wait: bool,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("it must look like KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[derive(Debug, Subcommand)]
pub(crate) enum CampaignCommand {
    /// List campaigns, newest first
    List,
    /// Show one campaign with its clusters, and what comes next
    Show {
        /// Its id, as in `campaign list`
        id: String,
    },
    /// Follow a campaign to its end; exits with 1 when it failed or was cancelled
    Watch {
        /// Its id
        id: String,
    },
    /// Pause a campaign: no further cluster is begun with, and tasks finish the machines that they have begun with
    Pause {
        /// Its id
        id: String,
    },
    /// Go on with a campaign that is paused, and with its tasks
    Resume {
        /// Its id
        id: String,
        /// Wait until it has ended
        #[arg(long)]
        wait: bool,
    },
    /// Stop a campaign: tasks that run are cancelled, and bring their clusters back to service
    Cancel {
        /// Its id
        id: String,
    },
    /// Go on with a campaign that has failed or was cancelled: its failed clusters are tried again
    Retry {
        /// Its id
        id: String,
        /// Wait until it has ended
        #[arg(long)]
        wait: bool,
    },
}
