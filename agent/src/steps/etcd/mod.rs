//! `etcd`: acts on etcd through the machine's own member, with the `etcdctl` of the component that runs.
//!
//! # Invariants
//! * Each action looks at the members first; what is so already is not done again, and after doing it looks
//!   again.
//! * Members are told apart by their peer URL. A member removes no other than the one it was told, and
//!   never itself.
//! * Nothing is added while the voting members are others than the director takes them to be.
//!
//! # After a crash
//! etcd remembers: the action is sent again, and looks. A snapshot that was being saved has no name yet, and
//! the next one takes its place.
//!
//! # Not here
//! What is done when, and who is asked for it (the director's planner); starting and stopping members
//! ([`super::service`]); a member's data without etcd (`data`).

pub(super) mod data;
mod parse;
pub(crate) mod snapshot;

use std::io;
use std::time::Duration;

use serde::de::DeserializeOwned;
use windlass_common::error::ErrorClass;
use windlass_common::step::{
    Etcd, EtcdAction, EtcdPeer, EtcdReport, EtcdStatus, OutputStream, Payload,
};

use super::{Context, Failure, Run};
use crate::host::command;
use parse::{AlarmList, EndpointStatus, MemberList};

/// Where the programs of the component that runs are.
const DIRECTORY: &str = "/opt/windlass/components/etcd/current";
/// How long a member may take to answer: ten times its longest election.
const ANSWER: Duration = Duration::from_secs(10);
/// How long each of several members may take to say how it is: one that is off must not hold the others up.
const STATUS: Duration = Duration::from_secs(2);
/// How long a member may take to write its database anew: 8 GiB at 30 MB/s.
const DEFRAGMENTING: Duration = Duration::from_secs(300);
/// Where the member's database is.
const DATA: &str = "/var/lib/etcd/data";
/// Longest message of a program that is passed on, bytes.
const SAID_MAX: usize = 400;

/// Why an action on etcd failed.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// A program could not be run.
    #[error("cannot run {program}; the stemcell has to bring it with etcd")]
    Start {
        /// Which.
        program: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A program failed: etcd refused, or does not answer.
    #[error("{what} failed: {said}")]
    Refused {
        /// What was tried.
        what: String,
        /// The last thing that the program said.
        said: String,
    },
    /// A program said something else than JSON of a known form.
    #[error("what {what} said is not understood: {said:?}")]
    Output {
        /// What was asked.
        what: String,
        /// Its beginning.
        said: String,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
    /// The members are not those that the director knows of.
    #[error(
        "etcd has the voting members {found:?} and not {wanted:?}; bring them to agree before another member \
         joins"
    )]
    OtherMembers {
        /// Peer URLs that there are.
        found: Vec<String>,
        /// Peer URLs that the director named.
        wanted: Vec<String>,
    },
    /// There is no such member.
    #[error("etcd has no member at {url}; it has to be added before it can be promoted")]
    NoMember {
        /// Its peer URL.
        url: String,
    },
    /// A member was asked to remove itself.
    #[error(
        "the member at {url} is this machine's own; another member has to be asked to remove it"
    )]
    Itself {
        /// Its peer URL.
        url: String,
    },
    /// It was done, and is not seen.
    #[error("{what} was done, and is not seen yet")]
    NotSeen {
        /// What.
        what: String,
    },
    /// Nobody can take the leadership over.
    #[error(
        "none of the other {others} voting members is well enough to lead; bring one back first"
    )]
    NoSuccessor {
        /// How many there are.
        others: usize,
    },
    /// A snapshot does not fit.
    #[error(
        "a snapshot of {bytes} bytes does not fit on the data disk, which has {free} left; remove what is not \
         etcd's from it, or defragment"
    )]
    NoRoom {
        /// Size of the database.
        bytes: u64,
        /// What is free.
        free: u64,
    },
    /// Restored data does not fit beside what there is.
    #[error(
        "data of {bytes} bytes and its log do not fit on the data disk, which has {free} left; remove what is not \
         etcd's from it, or {before} once what an earlier restore replaced is of no more use"
    )]
    NoRoomToRestore {
        /// Size of the database.
        bytes: u64,
        /// What is free.
        free: u64,
        /// Where data of before a restore is.
        before: String,
    },
    /// Data cannot be made from a snapshot or a database.
    #[error("no data can be made from {what}: {said}; restore from another one")]
    Unusable {
        /// From what.
        what: String,
        /// The last thing that the program said.
        said: String,
    },
    /// A database does not fit beside itself.
    #[error(
        "the database has {bytes} bytes in use and is written anew beside itself, where {free} bytes are free; \
         remove what is not etcd's from the data disk"
    )]
    NoRoomBeside {
        /// What is in use.
        bytes: u64,
        /// What is free.
        free: u64,
    },
    /// A snapshot is not what etcd sent.
    #[error(
        "the snapshot of {bytes} bytes that was saved is not whole: it does not have the digest that etcd \
         wrote behind it; it is taken again"
    )]
    Torn {
        /// Its size.
        bytes: u64,
    },
    /// A file of a snapshot could not be handled.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// Which.
        path: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

impl EtcdError {
    /// Who acts. What etcd refuses now it may grant when a member has caught up, or is back.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Refused { .. }
            | Self::NotSeen { .. }
            | Self::NoSuccessor { .. }
            | Self::Torn { .. }
            | Self::File { .. } => ErrorClass::Retry,
            Self::Start { .. }
            | Self::OtherMembers { .. }
            | Self::NoRoom { .. }
            | Self::NoRoomToRestore { .. }
            | Self::Unusable { .. }
            | Self::NoRoomBeside { .. } => ErrorClass::Operator,
            Self::Output { .. } | Self::NoMember { .. } | Self::Itself { .. } => ErrorClass::Bug,
        }
    }
}

pub(super) async fn run(context: &Context, run: &Run, etcd: &Etcd) -> Result<Payload, Failure> {
    let local = Local::new(context, etcd);
    match &etcd.action {
        EtcdAction::Report => {
            let report = local.report().await?;
            // Plain values with string keys: serialising cannot fail.
            let text = serde_json::to_vec(&report).unwrap_or_default();
            run.progress.output(OutputStream::Stdout, &text).await;
        }
        EtcdAction::AddLearner { peer, beside } => local.add(run, peer, beside).await?,
        EtcdAction::Promote { peer } => local.promote(run, peer).await?,
        EtcdAction::Remove { peer } => local.remove(run, peer).await?,
        EtcdAction::MoveLeader => local.move_leader(run).await?,
        EtcdAction::Defragment => local.defragment(context, run).await?,
        EtcdAction::DisarmAlarms => local.disarm(run).await?,
        EtcdAction::Snapshot { keep } => snapshot::take(context, run, &local, *keep).await?,
    }
    Ok(Payload::None)
}

/// The machine's own member, and how it is asked.
struct Local<'a> {
    directory: String,
    etcd: &'a Etcd,
}

impl<'a> Local<'a> {
    fn new(context: &Context, etcd: &'a Etcd) -> Self {
        let directory = context.host.path(DIRECTORY);
        Self {
            directory: directory.to_string_lossy().into_owned(),
            etcd,
        }
    }

    /// Runs `etcdctl` against the machine's own member.
    async fn ctl(&self, limit: Duration, arguments: &[&str]) -> Result<String, EtcdError> {
        let output = self.ask(limit, arguments).await?;
        let what = format!("etcdctl {}", arguments.join(" "));
        if output.status.success() {
            Ok(output.stdout)
        } else {
            let said = last_line(&output.stderr);
            Err(EtcdError::Refused { what, said })
        }
    }

    async fn ask(&self, limit: Duration, arguments: &[&str]) -> Result<command::Output, EtcdError> {
        let program = format!("{}/etcdctl", self.directory);
        let endpoint = format!("https://{}", self.etcd.address);
        let timeout = format!("--command-timeout={}ms", limit.as_millis());
        let client = &self.etcd.client;
        let mut argv = vec![
            program.as_str(),
            "--endpoints",
            &endpoint,
            "--cacert",
            &self.etcd.ca_path,
            "--cert",
            &client.certificate_path,
            "--key",
            &client.key_path,
            "--dial-timeout=2s",
            &timeout,
            "-w",
            "json",
        ];
        argv.extend(arguments);
        run_program(&argv).await
    }

    async fn json<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T, EtcdError> {
        let text = self.ctl(ANSWER, arguments).await?;
        parsed(&format!("etcdctl {}", arguments.join(" ")), &text)
    }

    /// The members, without what each says of itself: asks the machine's own member only.
    async fn members(&self) -> Result<EtcdReport, EtcdError> {
        let list: MemberList = self.json(&["member", "list"]).await?;
        Ok(parse::report(list, &[], &AlarmList::default()))
    }

    async fn report(&self) -> Result<EtcdReport, EtcdError> {
        let list: MemberList = self.json(&["member", "list"]).await?;
        let alarms: AlarmList = self.json(&["alarm", "list"]).await?;
        let arguments = ["endpoint", "status", "--cluster"];
        // Fails when any member is silent, and shows the others all the same.
        let output = self.ask(STATUS, &arguments).await?;
        let what = "etcdctl endpoint status --cluster";
        let statuses: Vec<EndpointStatus> = parsed(what, &output.stdout)?;
        Ok(parse::report(list, &statuses, &alarms))
    }

    async fn add(&self, run: &Run, peer: &EtcdPeer, beside: &[EtcdPeer]) -> Result<(), EtcdError> {
        let before = self.members().await?;
        if parse::find(&before, peer).is_some() {
            return Ok(()); // as a learner, or with its vote already
        }
        if !parse::are_voting(&before, beside) {
            let voting = before.members.into_iter().filter(|m| !m.learner);
            return Err(EtcdError::OtherMembers {
                found: voting.flat_map(|m| m.peer_urls).collect(),
                wanted: beside.iter().map(|peer| peer.url.clone()).collect(),
            });
        }
        let url = format!("--peer-urls={}", peer.url);
        self.ctl(ANSWER, &["member", "add", &peer.name, &url, "--learner"])
            .await?;
        run.changed(format!("added learner {} at {}", peer.name, peer.url));
        let seen = parse::find(&self.members().await?, peer).is_some();
        self.seen(seen, "adding a learner")
    }

    async fn promote(&self, run: &Run, peer: &EtcdPeer) -> Result<(), EtcdError> {
        let before = self.members().await?;
        let member = parse::find(&before, peer).ok_or_else(|| EtcdError::NoMember {
            url: peer.url.clone(),
        })?;
        if !member.learner {
            return Ok(());
        }
        self.ctl(ANSWER, &["member", "promote", &member.id]).await?;
        run.changed(format!("{} has a vote", peer.name));
        let after = self.members().await?;
        let voting = parse::find(&after, peer).is_some_and(|member| !member.learner);
        self.seen(voting, "promoting a learner")
    }

    async fn remove(&self, run: &Run, peer: &EtcdPeer) -> Result<(), EtcdError> {
        let before = self.members().await?;
        let Some(member) = parse::find(&before, peer) else {
            return Ok(());
        };
        if member.id == before.member_id {
            return Err(EtcdError::Itself {
                url: peer.url.clone(),
            });
        }
        self.ctl(ANSWER, &["member", "remove", &member.id]).await?;
        run.changed(format!("removed member {} at {}", peer.name, peer.url));
        let gone = parse::find(&self.members().await?, peer).is_none();
        self.seen(gone, "removing a member")
    }

    async fn move_leader(&self, run: &Run) -> Result<(), EtcdError> {
        if self.is_off().await {
            return Ok(()); // what does not run leads nobody
        }
        let report = self.report().await?;
        let others = report
            .members
            .iter()
            .filter(|m| !m.learner)
            .count()
            .saturating_sub(1);
        if !report.leads() || others == 0 {
            return Ok(());
        }
        let to = parse::successor(&report).ok_or(EtcdError::NoSuccessor { others })?;
        self.ctl(ANSWER, &["move-leader", &to.id]).await?;
        run.changed(format!("{} leads etcd now", to.name));
        let moved = !self.report().await?.leads();
        self.seen(moved, "moving the leadership")
    }

    /// Whether nothing listens where the member would.
    async fn is_off(&self) -> bool {
        let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
        tokio::net::TcpStream::connect(self.etcd.address)
            .await
            .is_err_and(refused)
    }

    /// Writes the database anew, which takes as much room again as is in use.
    async fn defragment(&self, context: &Context, run: &Run) -> Result<(), Failure> {
        let before = self.own_status().await?;
        let data = context.host.path(DATA);
        let free = run
            .blocking(move || Ok(snapshot::free_bytes(&data)?))
            .await?;
        let bytes = before.db_used_bytes;
        if free < bytes {
            return Err(EtcdError::NoRoomBeside { bytes, free }.into());
        }
        self.ctl(DEFRAGMENTING, &["defrag"]).await?;
        let after = self.own_status().await?;
        run.changed(format!(
            "the database has {} bytes in place of {}",
            after.db_bytes, before.db_bytes
        ));
        Ok(())
    }

    /// What the machine's own member says of itself.
    async fn own_status(&self) -> Result<EtcdStatus, EtcdError> {
        let report = self.report().await?;
        let own = report
            .members
            .into_iter()
            .find(|m| m.id == report.member_id);
        own.and_then(|member| member.status)
            .ok_or_else(|| EtcdError::Refused {
                what: "etcdctl endpoint status".to_owned(),
                said: "this machine's member does not say how it is".to_owned(),
            })
    }

    async fn disarm(&self, run: &Run) -> Result<(), EtcdError> {
        let on = |report: EtcdReport| report.members.iter().any(|m| !m.alarms.is_empty());
        if on(self.report().await?) {
            self.ctl(ANSWER, &["alarm", "disarm"]).await?;
            run.changed("put the alarms of etcd out");
            let out = !on(self.report().await?);
            self.seen(out, "putting alarms out")?;
        }
        Ok(())
    }

    fn seen(&self, so: bool, what: &str) -> Result<(), EtcdError> {
        let what = what.to_owned();
        so.then_some(()).ok_or(EtcdError::NotSeen { what })
    }
}

async fn run_program(argv: &[&str]) -> Result<command::Output, EtcdError> {
    let program = || argv.first().copied().unwrap_or_default().to_owned();
    command::run(argv, None)
        .await
        .map_err(|source| EtcdError::Start {
            program: program(),
            source,
        })
}

fn parsed<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, EtcdError> {
    serde_json::from_str(text).map_err(|source| EtcdError::Output {
        what: what.to_owned(),
        said: text.chars().take(SAID_MAX).collect(),
        source,
    })
}

/// What a program said last that is no line of its log.
fn last_line(text: &str) -> String {
    let lines = text.lines().map(str::trim);
    let mut said = lines.filter(|line| !line.is_empty() && !line.starts_with('{'));
    let said = said.next_back().unwrap_or("it said nothing");
    let said = said.strip_prefix("Error: ").unwrap_or(said);
    said.chars().take(SAID_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_passed_on_without_the_log() {
        let text = "{\"level\":\"warn\",\"msg\":\"retrying of unary invoker failed\"}\n\
                    Error: etcdserver: unhealthy cluster\n";
        assert_eq!(last_line(text), "etcdserver: unhealthy cluster");
        assert_eq!(last_line(""), "it said nothing");
        assert_eq!(last_line(&"x".repeat(5000)).len(), SAID_MAX);
    }
}
