//! `configure`: files, links, absent paths, sysctls and routes.
//!
//! # Invariants
//! * Files that are as desired are not touched. Those that are not are all written and synced beside
//!   their places first; then each gets its name, in the order given.
//! * A reader sees the old or the new content of a file, whole, also after a crash.
//! * Secret content is named with its length, never shown.
//! * What could cut the link is kept only once the link is proven ([`trial`]), where there is a link.
//!
//! # After a crash
//! Any number of the files, from the first on, may be new; the step is sent again and does the rest.
//! Routes and sysctls are remembered and brought back when the agent starts ([`restore`]).

pub mod diff;
mod files;
mod routes;
mod rules;
mod sysctl;
pub mod trial;

use std::io;

use windlass_common::error::ErrorClass;
use windlass_common::step::{Configure, Payload};

use super::{Context, Failure, Run, lock};
use crate::history::Network;
use crate::host::tree::{Found, TreeError};

/// Why a machine could not be configured.
#[derive(Debug, thiserror::Error)]
pub enum ConfigureError {
    /// The artifact was not fetched.
    #[error("{path} is to hold {artifact}, which is not on the machine; fetch it first")]
    NoArtifact {
        /// Which file.
        path: String,
        /// Which artifact.
        artifact: String,
    },
    /// A kernel parameter cannot be read or written.
    #[error("cannot {action} kernel parameter {name}")]
    Sysctl {
        /// What was tried.
        action: &'static str,
        /// Which.
        name: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// `ip` cannot be run.
    #[error("cannot run `ip`; the stemcell has to bring iproute2")]
    NoIp(#[source] io::Error),
    /// `ip` said no.
    #[error("`ip` could not {action}: {said}")]
    Ip {
        /// What was tried.
        action: &'static str,
        /// Its message.
        said: String,
    },
    /// `nft` cannot be run.
    #[error("cannot run `nft`; the stemcell has to bring nftables")]
    NoNft(#[source] io::Error),
    /// `nft` said no.
    #[error("`nft` could not {action} rules: {said}")]
    Nft {
        /// What was tried.
        action: &'static str,
        /// Its message.
        said: String,
    },
    /// Something else changes what the step has set.
    #[error(
        "{what} is not as desired right after it was set; something else on the machine changes it"
    )]
    NotConverged {
        /// What.
        what: String,
    },
}

impl ConfigureError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NoArtifact { .. } | Self::Ip { .. } | Self::NotConverged { .. } => {
                ErrorClass::Retry
            }
            // The rules are the same next time.
            Self::Sysctl { .. } | Self::NoIp(_) | Self::NoNft(_) | Self::Nft { .. } => {
                ErrorClass::Operator
            }
        }
    }
}

pub(super) async fn run(
    context: &Context,
    run: &Run,
    configure: &Configure,
) -> Result<Payload, Failure> {
    if let Some(director) = &context.director {
        return trial::run(context, run, configure, director).await;
    }
    let (remembering, wanted) = (context.clone(), configure.clone());
    run.blocking(move || remember(&remembering, &wanted))
        .await?;
    change(context, run, configure).await?;
    Ok(Payload::None)
}

/// Does it, whatever becomes of the link. Nothing is remembered for a reboot.
async fn change(context: &Context, run: &Run, configure: &Configure) -> Result<(), Failure> {
    {
        let (context, noted, configure) = (context.clone(), run.clone(), configure.clone());
        run.blocking(move || {
            files::converge(&context.host, &noted, &configure.files)?;
            for (path, target) in &configure.links {
                link(&context, &noted, path, target)?;
            }
            for path in &configure.absent {
                remove(&context, &noted, path)?;
            }
            for (name, value) in &configure.sysctls {
                sysctl::converge(&context.host, &noted, name, value)?;
            }
            Ok(())
        })
        .await?;
    }
    if let Some(wanted) = &configure.routes {
        routes::converge(run, wanted).await?;
    }
    Ok(())
}

fn link(context: &Context, run: &Run, path: &str, target: &str) -> Result<(), TreeError> {
    let tree = context.host.tree();
    let old = match tree.find(path)? {
        Found::Link(to) if to == target => return Ok(()),
        Found::Link(to) => format!(" (was {to})"),
        // Anything else in the place is refused by `Tree::link`.
        Found::Nothing | Found::File { .. } | Found::Directory | Found::Other => String::new(),
    };
    tree.link(path, target)?;
    run.changed(format!("{path} -> {target}{old}"));
    Ok(())
}

fn remove(context: &Context, run: &Run, path: &str) -> Result<(), TreeError> {
    let tree = context.host.tree();
    if matches!(tree.find(path)?, Found::Nothing) {
        return Ok(());
    }
    tree.remove(path)?;
    run.changed(format!("- {path}"));
    Ok(())
}

/// Remembers what a reboot loses. Without a trial before it is set: a crash in between sets it at the next start.
fn remember(context: &Context, configure: &Configure) -> Result<(), Failure> {
    if configure.routes.is_none() && configure.sysctls.is_empty() {
        return Ok(());
    }
    let mut history = lock(&context.history);
    let mut network = history.network().clone();
    if configure.routes.is_some() {
        network.routes.clone_from(&configure.routes);
    }
    network.sysctls.extend(configure.sysctls.clone());
    Ok(history.remember_network(network)?)
}

/// Brings back routes and sysctls that earlier steps set, in the place of what was on trial.
pub async fn restore(context: &Context, run: &Run) -> Result<(), Failure> {
    trial::put_back_unproven(context, run).await?;
    let Network { routes, sysctls } = lock(&context.history).network().clone();
    let (host, noted) = (context.host.clone(), run.clone());
    run.blocking(move || {
        for (name, value) in &sysctls {
            sysctl::converge(&host, &noted, name, value)?;
        }
        Ok(())
    })
    .await?;
    if let Some(routes) = routes {
        routes::converge(run, &routes).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
