//! What could cut the link is on trial until the link is proven: routes, kernel parameters, and the rules in
//! [`NETWORK_RULES_PATH`].
//!
//! What is in force is written down first. Then the step does its work, the rules are loaded at once, and the director
//! is to be reached by a handshake of its own ([`Reach`]). If it is not within [`PROVEN_WITHIN`], all of it is put
//! back. Whether the change was to blame is told by the director being reached then, and not being reached when it is
//! tried once more; a director that is away is to blame for nothing, and the step may be sent again when it is back.
//!
//! # Invariants
//! * Nothing of it is in force without the link having been proven, or what was before being on disk.
//! * A trial that has begun comes to its end also when the step is cancelled or its time is over.
//! * Of nftables only the tables that the rules before and after are about are touched.
//!
//! # After a crash
//! What is on disk is put back: when the agent starts ([`put_back_unproven`]), or before the next trial. So a crash at
//! any moment leaves what was before, or what was proven. Only the agent does that: while it does not run, what is on
//! trial stays in force.
//!
//! # Not here
//! Changes of a pod network by pods, and rules that kube-proxy writes.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};
use windlass_common::error::ErrorClass;
use windlass_common::step::{Configure, FileContent, FileSpec, NETWORK_RULES_PATH, Payload, Route};

use super::rules::{self, Tables};
use super::{Context, Failure, Run, files, lock, routes, sysctl};
use crate::history::Network;
use crate::host::tree::{Attributes, Found, TreeError};
use crate::host::{Host, STATE_DIR};
use crate::steps::{Reach, Reporter};

/// How long the director may take to be reached: two handshakes whose packets are all lost.
pub const PROVEN_WITHIN: Duration = Duration::from_secs(10);
/// Pause between two handshakes.
const AGAIN: Duration = Duration::from_millis(100);
/// How often a change is tried before it is to blame.
const TRIES: u32 = 2;
/// Longest file of rules that is kept, bytes.
const RULES_BYTES_MAX: u64 = 1 << 20;
/// Longest record, bytes: rules and tables, each as text in JSON, which may double it.
const RECORD_BYTES_MAX: u64 = 64 << 20;

/// What was in force before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Former {
    /// The file of rules; `None` when it was not there.
    rules: Option<RulesFile>,
    /// The tables that it, and the one after it, are about.
    tables: Tables,
    /// Our routes; `None` when the step leaves them alone.
    routes: Option<Vec<Route>>,
    /// The kernel parameters that the step changes.
    sysctls: BTreeMap<String, String>,
    /// What a reboot was to bring back.
    remembered: Network,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RulesFile {
    text: String,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// How a trial ended.
enum Tried {
    Proven,
    /// Nobody was reached; what was before is in force again, as these lines say.
    PutBack {
        why: String,
        lines: Vec<String>,
    },
}

fn record_path() -> String {
    format!("{STATE_DIR}/network-trial")
}

/// Whether something is in force that was not proven.
pub fn is_under_way(host: &Host) -> bool {
    host.path(&record_path()).exists()
}

/// Carries out a step, on trial if it changes what the link goes by.
pub(super) async fn run(
    context: &Context,
    run: &Run,
    configure: &Configure,
    director: &Arc<dyn Reach>,
) -> Result<Payload, Failure> {
    let within = director.within();
    let mut tries = 1;
    loop {
        // It comes to its end, whoever waits for it.
        let (on_trial, of, wanted) = (context.clone(), run.clone(), configure.clone());
        let reach = Arc::clone(director);
        let tried = tokio::spawn(async move { attempt(&on_trial, &of, &wanted, &*reach).await });
        let Tried::PutBack { why, lines } = tried.await?? else {
            return Ok(Payload::None);
        };
        let put_back = lines.join("; ");
        tracing::warn!(
            why,
            put_back,
            "the link was not proven; the network is what it was"
        );
        run.stage("the director, who was not reached while the network was as ordered".to_owned());
        if let Err(still) = proven(&**director, within).await {
            return Err(Failure::new(
                ErrorClass::Retry,
                format!(
                    "the director was not reached within {within:?} of a change of the network ({why}), nor after what \
                     was before was put back ({still}): {put_back}"
                ),
            ));
        }
        if tries == TRIES {
            return Err(Failure::new(
                ErrorClass::Operator,
                format!(
                    "the change of the network cuts this machine off: {tries} times the director was not reached \
                     within {within:?} of it ({why}), and was reached after what was before was put back: {put_back}"
                ),
            ));
        }
        tries += 1;
    }
}

/// Tries it once.
async fn attempt(
    context: &Context,
    run: &Run,
    configure: &Configure,
    director: &dyn Reach,
) -> Result<Tried, Failure> {
    put_back_unproven(context, run).await?;
    let Some((former, loads)) = capture(context, run, configure).await? else {
        super::change(context, run, configure).await?;
        return Ok(Tried::Proven);
    };
    keep(context, run, &former).await?;
    let unproven = match put_in_force(context, run, configure, loads).await {
        Ok(()) => proven(director, director.within()).await.err(),
        // Half of it may be in force, and cut the link.
        Err(failure) => {
            put_back(context, run, &former).await?;
            return Err(failure);
        }
    };
    match unproven {
        None => {
            let (of, wanted) = (context.clone(), configure.clone());
            run.blocking(move || {
                super::remember(&of, &wanted)?;
                Ok(of.host.tree().remove(&record_path())?)
            })
            .await?;
            Ok(Tried::Proven)
        }
        Some(why) => Ok(Tried::PutBack {
            why,
            lines: put_back(context, run, &former).await?,
        }),
    }
}

/// Does what the step says, and loads rules that are new.
async fn put_in_force(
    context: &Context,
    run: &Run,
    configure: &Configure,
    loads: Option<String>,
) -> Result<(), Failure> {
    super::change(context, run, configure).await?;
    if let Some(rules) = loads {
        rules::load(&rules).await?;
    }
    Ok(())
}

/// Whether the director is reached in time; why not.
async fn proven(director: &dyn Reach, within: Duration) -> Result<(), String> {
    let mut last = "no handshake was over".to_owned();
    let reached = timeout(within, async {
        while let Err(why) = director.director().await {
            last = why;
            sleep(AGAIN).await;
        }
    });
    let reached = reached.await;
    reached.map_err(|_| last)
}

/// What is in force of what the step changes, and the rules that are to be loaded; `None` when the link goes by nothing
/// of it.
async fn capture(
    context: &Context,
    run: &Run,
    configure: &Configure,
) -> Result<Option<(Former, Option<String>)>, Failure> {
    let (of, wanted) = (context.clone(), configure.clone());
    let looked = run.blocking(move || {
        let mut sysctls = BTreeMap::new();
        for (name, value) in &wanted.sysctls {
            if let Some(old) = sysctl::differs(&of.host, name, value)? {
                sysctls.insert(name.clone(), old);
            }
        }
        let spec = wanted
            .files
            .iter()
            .find(|file| file.path == NETWORK_RULES_PATH);
        let new = match spec {
            Some(spec) if files::is_other(&of.host, spec)? => Some(text_of(&of.host, spec)?),
            Some(_) | None => None,
        };
        Ok((
            rules_file(&of.host)?,
            new,
            sysctls,
            lock(&of.history).network().clone(),
        ))
    });
    let (rules, new, sysctls, remembered) = looked.await?;
    let routes = match &configure.routes {
        Some(wanted) => routes::differ(wanted).await?,
        None => None,
    };
    if new.is_none() && sysctls.is_empty() && routes.is_none() {
        return Ok(None);
    }
    let about = match &new {
        Some(new) => {
            let old = rules.as_ref().map_or("", |file| file.text.as_str());
            rules::tables(new)
                .union(&rules::tables(old))
                .cloned()
                .collect()
        }
        None => Default::default(),
    };
    let former = Former {
        rules,
        tables: rules::observe(about).await?,
        routes,
        sysctls,
        remembered,
    };
    Ok(Some((former, new)))
}

/// The file of rules as it is.
fn rules_file(host: &Host) -> Result<Option<RulesFile>, Failure> {
    let Found::File {
        file,
        mode,
        uid,
        gid,
        bytes,
    } = host.tree().find(NETWORK_RULES_PATH)?
    else {
        return Ok(None);
    };
    if bytes > RULES_BYTES_MAX {
        let why = format!(
            "{NETWORK_RULES_PATH} has {bytes} bytes, more than {RULES_BYTES_MAX}, and could not be put back"
        );
        return Err(Failure::new(ErrorClass::Operator, why));
    }
    let text = read(file, NETWORK_RULES_PATH, RULES_BYTES_MAX)?;
    Ok(Some(RulesFile {
        text,
        mode,
        uid,
        gid,
    }))
}

fn read(file: std::fs::File, path: &str, most: u64) -> Result<String, TreeError> {
    let mut text = String::new();
    file.take(most)
        .read_to_string(&mut text)
        .map_err(|source| TreeError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
    Ok(text)
}

/// The rules that a file is to have.
fn text_of(host: &Host, spec: &FileSpec) -> Result<String, Failure> {
    match &spec.content {
        FileContent::Text(text) => Ok(text.clone()),
        FileContent::Secret(_) | FileContent::Artifact(_) => {
            let root = host.root().display();
            let why = format!(
                "{} beneath {root} has to be given as text: it is loaded and proven",
                spec.path
            );
            Err(Failure::new(ErrorClass::Bug, why))
        }
    }
}

/// Writes down what was before; once it returns, a crash brings it back.
async fn keep(context: &Context, run: &Run, former: &Former) -> Result<(), Failure> {
    const MODE: Attributes = Attributes {
        mode: 0o600,
        uid: 0,
        gid: 0,
    };
    let text = serde_json::to_vec(former).map_err(|error| {
        Failure::new(
            ErrorClass::Bug,
            format!("what was before cannot be written down: {error}"),
        )
    })?;
    let host = context.host.clone();
    run.blocking(move || Ok(host.tree().write(&record_path(), MODE, &text)?))
        .await
}

/// Puts back what is on trial, if anything is.
pub async fn put_back_unproven(context: &Context, run: &Run) -> Result<(), Failure> {
    let host = context.host.clone();
    let found = run.blocking(move || {
        let Found::File { file, .. } = host.tree().find(&record_path())? else {
            return Ok(None);
        };
        let text = read(file, &record_path(), RECORD_BYTES_MAX)?;
        let former: Former = serde_json::from_str(&text).map_err(|error| {
            let path = record_path();
            let why = format!(
                "{path} does not say what was before: {error}; remove it once the network is right"
            );
            Failure::new(ErrorClass::Operator, why)
        })?;
        Ok(Some(former))
    });
    let Some(former) = found.await? else {
        return Ok(());
    };
    for line in put_back(context, run, &former).await? {
        tracing::warn!(line, "put back: it was on trial when the agent ended");
    }
    Ok(())
}

/// Puts back what was before. May be repeated; says what it has changed.
async fn put_back(context: &Context, run: &Run, former: &Former) -> Result<Vec<String>, Failure> {
    // Its changes are no changes of the step.
    let quiet = run.apart(Reporter::quiet());
    let (of, noted, was) = (context.clone(), quiet.clone(), former.clone());
    let filed = quiet.blocking(move || {
        let tree = of.host.tree();
        match &was.rules {
            Some(RulesFile {
                text,
                mode,
                uid,
                gid,
            }) => {
                let (mode, uid, gid) = (*mode, *uid, *gid);
                tree.write(
                    NETWORK_RULES_PATH,
                    Attributes { mode, uid, gid },
                    text.as_bytes(),
                )?;
            }
            None => tree.remove(NETWORK_RULES_PATH)?,
        }
        for (name, value) in &was.sysctls {
            sysctl::converge(&of.host, &noted, name, value)?;
        }
        Ok(lock(&of.history).remember_network(was.remembered.clone())?)
    });
    filed.await?;
    if !former.tables.is_empty() {
        rules::load(&rules::former(&former.tables)).await?;
        for table in former.tables.keys() {
            quiet.changed(format!("nftables table {table}"));
        }
    }
    if let Some(was) = &former.routes {
        routes::converge(&quiet, was).await?;
    }
    let host = context.host.clone();
    quiet
        .blocking(move || Ok(host.tree().remove(&record_path())?))
        .await?;
    Ok(quiet.changes())
}
