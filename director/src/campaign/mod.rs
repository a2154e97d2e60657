//! What a campaign over many clusters does next. Pure.
//!
//! # Invariants
//! * No cluster of a wave is begun with before all of the wave before are over, and were so for the soak.
//! * No more than `max_in_flight` clusters are changed at a time.
//! * When more clusters have failed than may, none is begun with any more.
//! * How far a cluster is follows from its task, which names its campaign: there is no second account of it.
//!
//! # Not here
//! How one cluster is changed: an ordinary task, with its own plan, window and gates.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::cluster::Amount;
use windlass_common::id::ClusterName;

use crate::model::{Campaign, CampaignState, Member, MemberState, TaskId, TaskState, Timestamp};

/// Failed clusters that are named.
const NAMED_MAX: usize = 5;

/// A task of a campaign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sight {
    /// Its id.
    pub id: TaskId,
    /// Its cluster.
    pub cluster: ClusterName,
    /// How far it is.
    pub state: TaskState,
    /// Why it failed or what it waits for, for people.
    pub message: Option<String>,
    /// When it was ordered.
    pub created_at: Timestamp,
    /// When it was over.
    pub ended_at: Option<Timestamp>,
}

/// Clusters whose maintenance window is closed, each with when it opens, if that is known.
pub type Closed = BTreeMap<ClusterName, Option<Timestamp>>;

/// What comes next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Clusters to order the upgrade of, in this order.
    pub begin: Vec<ClusterName>,
    /// Tasks to pause.
    pub pause: Vec<TaskId>,
    /// Tasks to cancel.
    pub cancel: Vec<TaskId>,
    /// It is over in this state; with why it failed, or what failed although it succeeded.
    pub end: Option<(CampaignState, Option<String>)>,
    /// When to decide again, whatever happens.
    pub wake_at: Option<Timestamp>,
    /// For people.
    pub next: String,
}

/// Puts clusters into waves: each amount is how many of all are done with after a wave. The last wave has the rest.
pub fn waves(clusters: &[ClusterName], amounts: &[Amount]) -> Vec<Vec<ClusterName>> {
    let total = u32::try_from(clusters.len()).unwrap_or(u32::MAX);
    let mut ends: BTreeSet<usize> = amounts
        .iter()
        .map(|amount| amount.at_least(total).min(total) as usize)
        .collect();
    ends.insert(clusters.len());
    ends.remove(&0);
    let mut begin = 0;
    let wave = |end: usize| {
        let wave = clusters[begin..end].to_vec();
        begin = end;
        wave
    };
    ends.into_iter().map(wave).collect()
}

/// How far the clusters of a campaign are.
pub fn members(campaign: &Campaign, tasks: &[Sight]) -> Vec<Member> {
    let mut newest: BTreeMap<&ClusterName, &Sight> = BTreeMap::new();
    for task in tasks.iter().filter(|t| !campaign.forgiven.contains(&t.id)) {
        let seen = newest.entry(&task.cluster).or_insert(task);
        if (task.created_at, &task.id) > (seen.created_at, &seen.id) {
            *seen = task;
        }
    }
    let member = |wave: usize, cluster: &ClusterName| {
        let task = newest.get(cluster).copied();
        let refusal = campaign.refused.get(cluster);
        let state = match (task.map(|task| task.state), refusal) {
            (Some(TaskState::Succeeded), _) => MemberState::Succeeded,
            (Some(TaskState::Failed | TaskState::Cancelled), _) => MemberState::Failed,
            (Some(_), _) => MemberState::Running,
            (None, Some(_)) => MemberState::Failed,
            (None, None) => MemberState::Waiting,
        };
        let message = match (task, refusal) {
            (Some(task), _) if task.state == TaskState::Cancelled => {
                Some(format!("{} was cancelled", task.id))
            }
            (Some(task), _) => task.message.clone(),
            (None, refusal) => refusal.map(|refusal| refusal.message.clone()),
        };
        Member {
            cluster: cluster.clone(),
            wave: u32::try_from(wave + 1).unwrap_or(u32::MAX),
            state,
            task: task.map(|task| task.id.clone()),
            message,
            ended_at: task.map_or(refusal.map(|refusal| refusal.at), |task| task.ended_at),
        }
    };
    let waves = campaign.waves.iter().enumerate();
    waves
        .flat_map(|(wave, clusters)| clusters.iter().map(move |cluster| (wave, cluster)))
        .map(|(wave, cluster)| member(wave, cluster))
        .collect()
}

/// What a campaign does next.
pub fn decide(campaign: &Campaign, tasks: &[Sight], closed: &Closed, now: Timestamp) -> Decision {
    let members = members(campaign, tasks);
    let running: Vec<&Member> = of(&members, MemberState::Running).collect();
    let task_state = |member: &Member| {
        let of_member = tasks
            .iter()
            .find(|task| Some(&task.id) == member.task.as_ref());
        of_member.map(|task| task.state)
    };
    let running_tasks = |wanted: &dyn Fn(TaskState) -> bool| -> Vec<TaskId> {
        let chosen = running.iter().filter(|m| task_state(m).is_some_and(wanted));
        chosen.filter_map(|member| member.task.clone()).collect()
    };
    match campaign.state {
        CampaignState::Succeeded | CampaignState::Failed | CampaignState::Cancelled => Decision {
            next: "nothing".to_owned(),
            ..Decision::default()
        },
        CampaignState::Cancelling if running.is_empty() => Decision {
            end: Some((CampaignState::Cancelled, None)),
            next: "it is cancelled".to_owned(),
            ..Decision::default()
        },
        CampaignState::Cancelling => Decision {
            cancel: running_tasks(&|state| state != TaskState::Cancelling),
            next: format!("{} tasks are being cancelled", running.len()),
            ..Decision::default()
        },
        CampaignState::Paused => Decision {
            pause: running_tasks(&|state| {
                matches!(
                    state,
                    TaskState::Queued | TaskState::Running | TaskState::Waiting
                )
            }),
            next: format!(
                "paused: `windlass campaign resume {}` goes on with it",
                campaign.id
            ),
            ..Decision::default()
        },
        CampaignState::Running => go_on(campaign, &members, closed, now),
    }
}

fn of(members: &[Member], state: MemberState) -> impl Iterator<Item = &Member> {
    members.iter().filter(move |member| member.state == state)
}

fn go_on(campaign: &Campaign, members: &[Member], closed: &Closed, now: Timestamp) -> Decision {
    let failed: Vec<&Member> = of(members, MemberState::Failed).collect();
    let running = of(members, MemberState::Running).count();
    if failed.len() > campaign.max_failures as usize {
        let why = told(&failed);
        if running > 0 {
            let next = format!("it stops once {running} tasks are over: {why}");
            return Decision {
                next,
                ..Decision::default()
            };
        }
        return ended(CampaignState::Failed, Some(why));
    }
    let mut ended_before: Option<Timestamp> = None;
    for wave in 1..=campaign.waves.len() {
        let of_wave = || members.iter().filter(move |m| m.wave as usize == wave);
        let over =
            |member: &Member| matches!(member.state, MemberState::Succeeded | MemberState::Failed);
        if of_wave().all(over) {
            ended_before = of_wave()
                .filter_map(|member| member.ended_at)
                .max()
                .max(ended_before);
            continue;
        }
        let waiting = of_wave().filter(|member| member.state == MemberState::Waiting);
        let untouched = of_wave().all(|member| member.state == MemberState::Waiting);
        if let Some(before) = ended_before.filter(|_| untouched) {
            let soak_ms = u64::from(campaign.soak_seconds) * 1000;
            let soaked = Timestamp::from_unix_ms(before.unix_ms().saturating_add(soak_ms));
            if now < soaked {
                return Decision {
                    wake_at: Some(soaked),
                    next: format!("wave {wave} begins at {soaked}"),
                    ..Decision::default()
                };
            }
        }
        let may = |member: &&Member| {
            campaign.ignore_window.is_some() || !closed.contains_key(&member.cluster)
        };
        let room = (campaign.max_in_flight as usize).saturating_sub(running);
        let begin: Vec<ClusterName> = waiting
            .clone()
            .filter(may)
            .take(room)
            .map(|member| member.cluster.clone())
            .collect();
        let opens = waiting.clone().filter(|member| !may(member));
        let opens = opens.filter_map(|member| closed.get(&member.cluster).copied().flatten());
        let wake_at = opens.min();
        let left = waiting.count() - begin.len();
        let mut next = format!("wave {wave} of {}", campaign.waves.len());
        match (left, wake_at) {
            (0, _) => next.push_str(": its last clusters are being changed"),
            (_, Some(at)) if running == 0 && begin.is_empty() => {
                next.push_str(&format!(
                    ": {left} clusters wait for a window, the first until {at}"
                ));
            }
            _ => next.push_str(&format!(": {left} clusters are to come")),
        }
        return Decision {
            begin,
            wake_at,
            next,
            ..Decision::default()
        };
    }
    let error = (!failed.is_empty()).then(|| told(&failed));
    ended(CampaignState::Succeeded, error)
}

fn ended(state: CampaignState, error: Option<String>) -> Decision {
    Decision {
        next: format!("it is over: {state}"),
        end: Some((state, error)),
        ..Decision::default()
    }
}

/// Which clusters failed, and why.
fn told(failed: &[&Member]) -> String {
    let line = |member: &&Member| {
        let why = member.message.as_deref().unwrap_or("no reason was given");
        format!("cluster {}: {why}", member.cluster)
    };
    let mut lines: Vec<String> = failed.iter().take(NAMED_MAX).map(line).collect();
    if failed.len() > NAMED_MAX {
        lines.push(format!("and {} more", failed.len() - NAMED_MAX));
    }
    format!("{} clusters failed: {}", failed.len(), lines.join("; "))
}

#[cfg(test)]
mod tests;
