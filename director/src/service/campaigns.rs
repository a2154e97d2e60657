//! Campaigns: orders, and the loop that carries them out.
//!
//! What comes next is [`crate::campaign`]'s; here it is fed and done. A cluster is upgraded by an ordinary task
//! that names its campaign in the commit that makes it, so that whoever starts anew finds it.
//!
//! # After a crash
//! The next round is the first one: all it needs is in the records of campaigns and tasks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::sync::broadcast::error::RecvError;
use windlass_common::cluster::Amount;
use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::id::ClusterName;

use super::draft::random_u32;
use super::tasks::reason_given;
use super::{ChangeOrder, Inner, ServiceError, ServiceResult, StemcellChoice};
use crate::campaign::{self, Closed, Decision, Sight};
use crate::maintenance::{self, Outlook};
use crate::model::{
    Caller, Campaign, CampaignId, CampaignState, CampaignView, Cluster, FieldFault, MemberState,
    Refusal, Revision, Role, Task, TaskState, Timestamp,
};
use crate::store::{Act, Change, Commit, Kind};

/// Clusters that may be changed at a time when nothing else is said.
pub const IN_FLIGHT_DEFAULT: u32 = 5;
/// Most clusters that may be changed at a time.
pub const IN_FLIGHT_MAX: u32 = 100;
/// Most clusters of a campaign.
const CLUSTERS_MAX: usize = 1000;
/// Most waves that are named.
const WAVES_MAX: usize = 20;
/// Longest soak, seconds: a week.
pub const SOAK_MAX_SECONDS: u32 = 7 * 24 * 3600;
/// Clusters that are begun with at a time: their drains are rehearsed with their APIs, and one of those may hang.
const BEGUN_AT_ONCE: usize = 16;
/// Between two rounds while a campaign runs and nothing happens: a cluster that somebody else works on is tried
/// again then.
const PERIOD: Duration = Duration::from_secs(5);
/// Between two rounds when there is nothing to do: an order is told at once.
const CALM: Duration = Duration::from_secs(60);
/// Changes that come together are looked at together.
const GATHER: Duration = Duration::from_millis(100);

/// Which clusters to upgrade, to what, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CampaignOrder {
    /// Which clusters.
    pub choice: ClusterChoice,
    /// Kubernetes version; the one that each has when not given.
    pub kubernetes_version: Option<String>,
    /// All machines are made anew from the newest stemcell.
    pub newest_stemcell: bool,
    /// How many clusters of all are done with after each wave; one wave when empty.
    pub waves: Vec<Amount>,
    /// See [`Campaign::max_in_flight`]; [`IN_FLIGHT_DEFAULT`] when not given.
    pub max_in_flight: Option<u32>,
    /// See [`Campaign::max_failures`].
    pub max_failures: u32,
    /// See [`Campaign::soak_seconds`].
    pub soak_seconds: u32,
    /// See [`ChangeOrder::accept_downtime`].
    pub accept_downtime: bool,
    /// See [`ChangeOrder::accept_blocked`].
    pub accept_blocked: bool,
    /// See [`ChangeOrder::ignore_window`].
    pub ignore_window: Option<String>,
}

/// Which clusters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ClusterChoice {
    /// All of them.
    #[default]
    All,
    /// These, in this order.
    Named(Vec<ClusterName>),
    /// Those that have all of these labels.
    Labelled(BTreeMap<String, String>),
}

/// What is asked of a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steer {
    /// Begin with no further cluster, and have tasks pause.
    Pause,
    /// Go on.
    Resume,
    /// Begin with no further cluster, and cancel tasks.
    Cancel,
    /// Try clusters again that failed.
    Retry,
}

impl Steer {
    fn action(self) -> &'static str {
        match self {
            Self::Pause => "campaign.pause",
            Self::Resume => "campaign.resume",
            Self::Cancel => "campaign.cancel",
            Self::Retry => "campaign.retry",
        }
    }
}

impl Inner {
    pub(super) async fn campaigns(&self) -> ServiceResult<Vec<CampaignView>> {
        let mut campaigns: Vec<Campaign> = self.records.list().await?;
        campaigns.sort_by(|a, b| (b.created_at, &b.id).cmp(&(a.created_at, &a.id)));
        let tasks: Vec<Task> = self.records.list().await?;
        let closed = self.closed(Timestamp::now()).await?;
        let view = |campaign| seen(campaign, &tasks, &closed);
        Ok(campaigns.into_iter().map(view).collect())
    }

    pub(super) async fn campaign(&self, id: &CampaignId) -> ServiceResult<CampaignView> {
        let campaign = self.campaign_record(id).await?;
        let tasks: Vec<Task> = self.records.list().await?;
        let mut view = seen(campaign, &tasks, &self.closed(Timestamp::now()).await?);
        for member in &mut view.members {
            let (MemberState::Running, Some(id)) = (member.state, &member.task) else {
                continue;
            };
            if let Some(task) = self.records.task(id).await? {
                let (done, all) = task.progress();
                let mut told = format!("{}, {done} of {all} steps", task.state);
                if let Some(held) = &task.held {
                    told.push_str(&format!("; window {held}"));
                }
                member.message = Some(told);
            }
        }
        Ok(view)
    }

    async fn campaign_record(&self, id: &CampaignId) -> ServiceResult<Campaign> {
        let found = self.records.get(id.as_str()).await?;
        found.ok_or_else(|| ServiceError::NotFound {
            kind: "campaign",
            name: id.to_string(),
        })
    }

    /// What an order would do.
    pub(super) async fn plan_campaign(
        &self,
        order: &CampaignOrder,
        caller: &Caller,
    ) -> ServiceResult<CampaignView> {
        let id = CampaignId::new(0, [0; 3]);
        let campaign = self.draft_campaign(id, order, caller).await?;
        let closed = self.closed(Timestamp::now()).await?;
        Ok(seen(campaign, &[], &closed))
    }

    pub(super) async fn create_campaign(
        &self,
        order: &CampaignOrder,
        caller: &Caller,
    ) -> ServiceResult<CampaignView> {
        let _order = self.orders.lock().await;
        let [a, b, c, _] = random_u32()?.to_be_bytes();
        let draft = self.draft_campaign(CampaignId::new(0, [0; 3]), order, caller);
        let mut campaign = draft.await?;
        let number = self.records.next_campaign_number().await?;
        campaign.id = CampaignId::new(number, [a, b, c]);
        let mut commit = Commit::default();
        commit.put(&campaign)?;
        let to = campaign.kubernetes_version.as_deref();
        let outside = match &campaign.ignore_window {
            Some(reason) => format!(", outside of maintenance windows: {reason}"),
            None => String::new(),
        };
        let act = Act {
            action: "campaign.create",
            subject: &format!("campaign/{}", campaign.id),
            detail: &format!(
                "{} clusters in {} waves to {}{outside}",
                campaign.waves.iter().map(Vec::len).sum::<usize>(),
                campaign.waves.len(),
                to.unwrap_or("the newest stemcell"),
            ),
            outcome: "",
        };
        self.records.audit_caller(&mut commit, caller, act);
        self.records.commit(commit).await?;
        self.campaign(&campaign.id).await
    }

    /// The campaign of an order; refuses what cannot work, all faults at once.
    async fn draft_campaign(
        &self,
        id: CampaignId,
        order: &CampaignOrder,
        caller: &Caller,
    ) -> ServiceResult<Campaign> {
        let clusters: Vec<Cluster> = self.records.list().await?;
        let mut faults = faults(order);
        let chosen = choose(&clusters, &order.choice, &mut faults);
        if let Some(version) = &order.kubernetes_version
            && let Err(error) = self.stemcells.find(version)
        {
            let allowed = format!("the version of a verified stemcell; {error}");
            faults.push(FieldFault::new("kubernetesVersion", version, allowed));
        }
        if !faults.is_empty() {
            return Err(ServiceError::Invalid { faults });
        }
        let ignore_window = order
            .ignore_window
            .clone()
            .map(|reason| reason_given("ignore_window", reason))
            .transpose()?;
        let others: Vec<Campaign> = self.records.list().await?;
        let taken = others.iter().filter(|other| !other.state.is_over());
        for other in taken {
            let named = other.waves.iter().flatten();
            if let Some(cluster) = named.into_iter().find(|cluster| chosen.contains(cluster)) {
                return Err(ServiceError::Conflict {
                    message: format!(
                        "cluster {cluster} is in campaign {}, which is {}; wait for it, or cancel it",
                        other.id, other.state
                    ),
                });
            }
        }
        Ok(Campaign {
            id,
            operator: caller.operator.clone(),
            kubernetes_version: order.kubernetes_version.clone(),
            newest_stemcell: order.newest_stemcell,
            waves: campaign::waves(&chosen, &order.waves),
            max_in_flight: order.max_in_flight.unwrap_or(IN_FLIGHT_DEFAULT),
            max_failures: order.max_failures,
            soak_seconds: order.soak_seconds,
            accept_downtime: order.accept_downtime,
            accept_blocked: order.accept_blocked,
            ignore_window,
            state: CampaignState::Running,
            refused: BTreeMap::new(),
            forgiven: BTreeSet::new(),
            error: None,
            revision: Revision(0),
            created_at: Timestamp::now(),
            ended_at: None,
        })
    }

    /// Has a campaign pause, go on, end, or try again what failed.
    pub(super) async fn steer_campaign(
        &self,
        id: &CampaignId,
        steer: Steer,
        caller: &Caller,
    ) -> ServiceResult<CampaignView> {
        let _order = self.orders.lock().await;
        let mut campaign = self.campaign_record(id).await?;
        let all: Vec<Task> = self.records.list().await?;
        let tasks = tasks_of(&campaign, &all);
        steered(&mut campaign, steer, &tasks)?;
        let mut commit = Commit::default();
        commit.put(&campaign)?;
        let act = Act {
            action: steer.action(),
            subject: &format!("campaign/{id}"),
            ..Act::default()
        };
        self.records.audit_caller(&mut commit, caller, act);
        self.records.commit(commit).await?;
        // Tasks of a campaign that pauses are told again with each round; those of one that goes on only here, so that
        // one that an operator pauses later stays paused.
        if matches!(steer, Steer::Pause | Steer::Resume) {
            for task in tasks.iter().filter(|task| !task.state.is_over()) {
                self.rollouts.pause(&task.id, steer == Steer::Pause);
            }
        }
        self.campaign(id).await
    }

    /// Clusters whose window is closed.
    async fn closed(&self, now: Timestamp) -> ServiceResult<Closed> {
        let clusters: Vec<Cluster> = self.records.list().await?;
        let at = crate::health::to_jiff(now);
        let closed = clusters.into_iter().filter_map(|cluster| {
            match maintenance::outlook(&self.windows_of(&cluster.spec), at) {
                Outlook::Open { .. } => None,
                Outlook::Closed { until, .. } => {
                    Some((cluster.spec.name, until.map(crate::health::from_jiff)))
                }
            }
        });
        Ok(closed.collect())
    }

    /// Goes on with every campaign that is not over; says when to do so again at the latest.
    async fn round(&self) -> ServiceResult<Duration> {
        let campaigns: Vec<Campaign> = self.records.list().await?;
        let open: Vec<Campaign> = campaigns
            .into_iter()
            .filter(|campaign| !campaign.state.is_over())
            .collect();
        if open.is_empty() {
            return Ok(CALM);
        }
        let tasks: Vec<Task> = self.records.list().await?;
        let now = Timestamp::now();
        let closed = self.closed(now).await?;
        for campaign in open {
            let sights = tasks_of(&campaign, &tasks);
            let decision = campaign::decide(&campaign, &sights, &closed, now);
            let id = campaign.id.clone();
            if let Err(error) = self.carry_on(campaign, decision).await {
                tracing::warn!(campaign = %id, error = %ErrorChain(&error), "a campaign cannot go on yet");
            }
        }
        Ok(PERIOD)
    }

    async fn carry_on(&self, campaign: Campaign, decision: Decision) -> ServiceResult<()> {
        for task in &decision.pause {
            self.rollouts.pause(task, true);
        }
        for task in &decision.cancel {
            self.rollouts.stop(task, crate::rollout::Stop::CleanUp);
        }
        if let Some((state, error)) = decision.end {
            return self.end(campaign, state, error).await;
        }
        if decision.begin.is_empty() {
            return Ok(());
        }
        let caller = self.caller(&campaign.operator).await?;
        let Some(mut caller) = caller.filter(|caller| caller.role >= Role::Operator) else {
            let why = format!(
                "operator {} may not change clusters any more; another one orders the rest",
                campaign.operator
            );
            return self.end(campaign, CampaignState::Failed, Some(why)).await;
        };
        caller.request = campaign.id.to_string();
        let caller = &caller;
        let of = &campaign;
        let begun = stream::iter(decision.begin)
            .map(|cluster| async move {
                let done = self.begin(of, &cluster, caller).await;
                (cluster, done)
            })
            .buffer_unordered(BEGUN_AT_ONCE);
        let begun: Vec<_> = begun.collect().await;
        let mut refused = BTreeMap::new();
        for (cluster, done) in begun {
            match done {
                Ok(()) => {}
                Err(error) if error.class() == ErrorClass::Retry => {
                    tracing::warn!(campaign = %campaign.id, cluster = %cluster, error = %ErrorChain(&error), "an upgrade is ordered again soon");
                }
                Err(error) => {
                    let message = ErrorChain(&error).to_string();
                    let at = Timestamp::now();
                    refused.insert(cluster, Refusal { message, at });
                }
            }
        }
        if refused.is_empty() {
            return Ok(());
        }
        let mut campaign = self.campaign_record(&campaign.id).await?;
        campaign.refused.append(&mut refused);
        let mut commit = Commit::default();
        commit.put(&campaign)?;
        self.records.commit(commit).await?;
        Ok(())
    }

    /// Orders the upgrade of one cluster. One that somebody else works on is left for later.
    async fn begin(
        &self,
        campaign: &Campaign,
        name: &ClusterName,
        caller: &Caller,
    ) -> ServiceResult<()> {
        // Whoever paused or cancelled it meanwhile is heard before the next cluster.
        let now = self.campaign_record(&campaign.id).await?;
        if now.state != CampaignState::Running {
            return Ok(());
        }
        let cluster = self.cluster(name).await?;
        if self.unfinished(&cluster).await?.is_some() {
            return Ok(());
        }
        let mut spec = cluster.spec.clone();
        if let Some(version) = &campaign.kubernetes_version {
            spec.kubernetes_version.clone_from(version);
        }
        let order = ChangeOrder {
            stemcell: match campaign.newest_stemcell {
                true => StemcellChoice::Newest,
                false => StemcellChoice::Keep,
            },
            accept_downtime: campaign.accept_downtime,
            accept_blocked: campaign.accept_blocked,
            ignore_window: campaign.ignore_window.clone(),
            campaign: Some(campaign.id.clone()),
            ..ChangeOrder::default()
        };
        self.apply_cluster(spec, &order, caller).await.map(drop)
    }

    async fn end(
        &self,
        mut campaign: Campaign,
        state: CampaignState,
        error: Option<String>,
    ) -> ServiceResult<()> {
        tracing::info!(campaign = %campaign.id, %state, error = error.as_deref(), "campaign is over");
        campaign.state = state;
        campaign.error = error;
        campaign.ended_at = Some(Timestamp::now());
        let mut commit = Commit::default();
        commit.put(&campaign)?;
        let subject = format!("campaign/{}", campaign.id);
        let detail = format!("{} is {state}", campaign.id);
        self.records
            .audit(&mut commit, "director", "campaign.end", &subject, &detail);
        self.records.commit(commit).await?;
        Ok(())
    }
}

/// What an order asks for that cannot be.
fn faults(order: &CampaignOrder) -> Vec<FieldFault> {
    let mut faults = Vec::new();
    if order.kubernetes_version.is_none() && !order.newest_stemcell {
        let allowed = "a version, unless machines get the newest stemcell";
        faults.push(FieldFault::new("kubernetesVersion", "not given", allowed));
    }
    let in_flight = order.max_in_flight.unwrap_or(IN_FLIGHT_DEFAULT);
    if !(1..=IN_FLIGHT_MAX).contains(&in_flight) {
        let allowed = format!("1 to {IN_FLIGHT_MAX} clusters");
        faults.push(FieldFault::new("maxInFlight", in_flight, allowed));
    }
    if order.soak_seconds > SOAK_MAX_SECONDS {
        let allowed = format!("0 to {SOAK_MAX_SECONDS} seconds");
        faults.push(FieldFault::new("soakSeconds", order.soak_seconds, allowed));
    }
    if order.waves.len() > WAVES_MAX {
        let allowed = format!("at most {WAVES_MAX} waves");
        faults.push(FieldFault::new("waves", order.waves.len(), allowed));
    }
    faults
}

/// The clusters of a choice.
fn choose(
    clusters: &[Cluster],
    choice: &ClusterChoice,
    faults: &mut Vec<FieldFault>,
) -> Vec<ClusterName> {
    let names = |of: &dyn Fn(&Cluster) -> bool| -> Vec<ClusterName> {
        let chosen = clusters.iter().filter(|cluster| of(cluster));
        chosen.map(|cluster| cluster.spec.name.clone()).collect()
    };
    let (key, chosen) = match choice {
        ClusterChoice::All => ("all", names(&|_| true)),
        ClusterChoice::Labelled(labels) => {
            let has = |cluster: &Cluster| {
                let of = &cluster.spec.labels;
                labels.iter().all(|(key, value)| of.get(key) == Some(value))
            };
            ("selector", names(&has))
        }
        ClusterChoice::Named(named) => {
            let mut seen = BTreeSet::new();
            for name in named {
                if !clusters.iter().any(|cluster| cluster.spec.name == *name) {
                    faults.push(FieldFault::new("clusters", name, "the name of a cluster"));
                }
                if !seen.insert(name) {
                    faults.push(FieldFault::new("clusters", name, "named once"));
                }
            }
            ("clusters", named.clone())
        }
    };
    if chosen.is_empty() || chosen.len() > CLUSTERS_MAX {
        let given = format!("{} clusters", chosen.len());
        let allowed = format!("1 to {CLUSTERS_MAX} clusters that there are");
        faults.push(FieldFault::new(key, given, allowed));
    }
    chosen
}

/// What an order makes of a campaign.
fn steered(campaign: &mut Campaign, steer: Steer, tasks: &[Sight]) -> ServiceResult<()> {
    let state = campaign.state;
    let next = match (steer, state) {
        (Steer::Pause, CampaignState::Running | CampaignState::Paused) => CampaignState::Paused,
        (Steer::Resume, CampaignState::Running | CampaignState::Paused) => CampaignState::Running,
        (
            Steer::Cancel,
            CampaignState::Running | CampaignState::Paused | CampaignState::Cancelling,
        ) => CampaignState::Cancelling,
        (Steer::Retry, CampaignState::Failed | CampaignState::Cancelled) => CampaignState::Running,
        // What failed although it was allowed to.
        (Steer::Retry, CampaignState::Succeeded) if campaign.error.is_some() => {
            CampaignState::Running
        }
        (Steer::Pause | Steer::Resume | Steer::Cancel | Steer::Retry, _) => {
            let what = steer.action().trim_start_matches("campaign.");
            return Err(ServiceError::Conflict {
                message: format!("{} is {state}; there is nothing to {what}", campaign.id),
            });
        }
    };
    if steer == Steer::Retry {
        let failed = tasks
            .iter()
            .filter(|task| matches!(task.state, TaskState::Failed | TaskState::Cancelled));
        campaign.forgiven.extend(failed.map(|task| task.id.clone()));
        campaign.refused.clear();
        campaign.error = None;
        campaign.ended_at = None;
    }
    campaign.state = next;
    Ok(())
}

fn tasks_of(campaign: &Campaign, tasks: &[Task]) -> Vec<Sight> {
    let of_campaign = tasks
        .iter()
        .filter(|task| task.campaign.as_ref() == Some(&campaign.id));
    let sight = |task: &Task| Sight {
        id: task.id.clone(),
        cluster: task.cluster.clone(),
        state: task.state,
        message: match &task.error {
            Some(fault) => Some(fault.message.clone()),
            None => task.held.clone(),
        },
        created_at: task.created_at,
        ended_at: task.ended_at,
    };
    of_campaign.map(sight).collect()
}

fn seen(campaign: Campaign, tasks: &[Task], closed: &Closed) -> CampaignView {
    let sights = tasks_of(&campaign, tasks);
    let next = campaign::decide(&campaign, &sights, closed, Timestamp::now()).next;
    CampaignView {
        members: campaign::members(&campaign, &sights),
        campaign,
        next,
    }
}

/// Starts the loop; it ends with the director.
pub(super) fn start(director: Weak<Inner>) {
    tokio::spawn(async move {
        let Some(mut changes) = director.upgrade().map(|inner| inner.records.watch()) else {
            return;
        };
        loop {
            let Some(inner) = director.upgrade() else {
                return;
            };
            let pause = match inner.round().await {
                Ok(pause) => pause,
                Err(error) => {
                    tracing::warn!(error = %ErrorChain(&error), "campaigns cannot be read");
                    PERIOD
                }
            };
            drop::<Arc<Inner>>(inner);
            tokio::select! {
                closed = told(&mut changes, pause == CALM) => if closed { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    });
}

/// Returns when a campaign or, unless all is calm, a task changed; true when nothing will any more.
async fn told(changes: &mut tokio::sync::broadcast::Receiver<Change>, calm: bool) -> bool {
    loop {
        match changes.recv().await {
            Ok(change) if change.kind == Kind::Campaign => break,
            Ok(change) if change.kind == Kind::Task && !calm => break,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => break,
            Err(RecvError::Closed) => return true,
        }
    }
    tokio::time::sleep(GATHER).await;
    false
}
