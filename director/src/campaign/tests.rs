//! Campaigns as tables, and as simulated fleets in which anything fails.

use proptest::prelude::*;

use super::*;
use crate::model::{CampaignId, Refusal, Revision};

fn name(number: usize) -> ClusterName {
    ClusterName::new(format!("c{number:03}")).unwrap()
}

fn at(second: u64) -> Timestamp {
    Timestamp::from_unix_ms(second * 1000)
}

fn campaign(sizes: &[usize]) -> Campaign {
    let mut next = 0;
    let waves = sizes.iter().map(|size| {
        let wave = (next..next + size).map(name).collect();
        next += size;
        wave
    });
    Campaign {
        id: CampaignId::new(1, [0; 3]),
        operator: "ann".into(),
        kubernetes_version: Some("1.37.2".into()),
        newest_stemcell: false,
        waves: waves.collect(),
        max_in_flight: 2,
        max_failures: 0,
        soak_seconds: 60,
        accept_downtime: false,
        accept_blocked: false,
        ignore_window: None,
        state: CampaignState::Running,
        refused: BTreeMap::new(),
        forgiven: BTreeSet::new(),
        error: None,
        revision: Revision(0),
        created_at: at(0),
        ended_at: None,
    }
}

fn task(number: usize, state: TaskState) -> Sight {
    Sight {
        id: TaskId::new(number as u64, [0; 3]),
        cluster: name(number),
        state,
        message: (state == TaskState::Failed).then(|| "a gate is shut".to_owned()),
        created_at: at(1),
        ended_at: state.is_over().then(|| at(100)),
    }
}

#[test]
fn waves_are_shares_of_all() {
    let clusters: Vec<_> = (0..20).map(name).collect();
    let sizes = |texts: &[&str]| -> Vec<usize> {
        let amounts: Vec<Amount> = texts.iter().map(|text| text.parse().unwrap()).collect();
        waves(&clusters, &amounts).iter().map(Vec::len).collect()
    };
    assert_eq!(sizes(&["1", "10%", "100%"]), [1, 1, 18]);
    assert_eq!(
        sizes(&["1", "25%"]),
        [1, 4, 15],
        "the rest is a wave of its own"
    );
    assert_eq!(sizes(&[]), [20]);
    assert_eq!(sizes(&["0", "5", "5", "50"]), [5, 15]);
    assert!(waves(&[], &[]).is_empty());
}

#[test]
fn what_comes_next() {
    use TaskState::{Cancelled, Failed, Paused, Running, Succeeded, Waiting};
    struct Case {
        name: &'static str,
        campaign: Campaign,
        tasks: Vec<Sight>,
        now: u64,
        begin: &'static [usize],
        end: Option<CampaignState>,
    }
    let three = || campaign(&[1, 2, 3]);
    let with = |change: &dyn Fn(&mut Campaign)| {
        let mut campaign = three();
        change(&mut campaign);
        campaign
    };
    let done = || vec![task(0, Succeeded), task(1, Succeeded), task(2, Succeeded)];
    let refused = |campaign: &mut Campaign| {
        let message = "it has one control-plane machine".to_owned();
        campaign.refused.insert(
            name(0),
            Refusal {
                message,
                at: at(100),
            },
        );
    };
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases = [
        Case { name: "the first wave", campaign: three(), tasks: vec![], now: 10, begin: &[0], end: None },
        Case { name: "it runs", campaign: three(), tasks: vec![task(0, Running)], now: 10, begin: &[], end: None },
        Case { name: "it soaks", campaign: three(), tasks: vec![task(0, Succeeded)], now: 159, begin: &[], end: None },
        Case { name: "the second wave", campaign: three(), tasks: vec![task(0, Succeeded)], now: 160, begin: &[1, 2], end: None },
        Case { name: "a wave once begun does not soak again", campaign: three(), tasks: vec![task(0, Succeeded), task(1, Running)], now: 100, begin: &[2], end: None },
        Case { name: "a wave waits for all of the one before", campaign: three(), tasks: vec![task(0, Succeeded), task(1, Succeeded), task(2, Waiting)], now: 999, begin: &[], end: None },
        Case { name: "no more than may be in flight", campaign: three(), tasks: done(), now: 160, begin: &[3, 4], end: None },
        Case { name: "a failure stops it", campaign: three(), tasks: vec![task(0, Failed)], now: 999, begin: &[], end: Some(CampaignState::Failed) },
        Case { name: "a task that somebody cancelled too", campaign: three(), tasks: vec![task(0, Cancelled)], now: 999, begin: &[], end: Some(CampaignState::Failed) },
        Case { name: "a refusal too", campaign: with(&refused), tasks: vec![], now: 999, begin: &[], end: Some(CampaignState::Failed) },
        Case { name: "what runs is finished first", campaign: three(), tasks: vec![task(0, Succeeded), task(1, Failed), task(2, Running)], now: 999, begin: &[], end: None },
        Case { name: "one may fail", campaign: with(&|c| c.max_failures = 1), tasks: vec![task(0, Failed)], now: 160, begin: &[1, 2], end: None },
        Case { name: "one that is forgiven is begun again", campaign: with(&|c| { c.forgiven.insert(TaskId::new(0, [0; 3])); }), tasks: vec![task(0, Failed)], now: 160, begin: &[0], end: None },
        Case { name: "paused", campaign: with(&|c| c.state = CampaignState::Paused), tasks: vec![task(0, Paused)], now: 999, begin: &[], end: None },
        Case { name: "cancelled", campaign: with(&|c| c.state = CampaignState::Cancelling), tasks: vec![task(0, Cancelled)], now: 999, begin: &[], end: Some(CampaignState::Cancelled) },
        Case { name: "all done", campaign: campaign(&[1, 2]), tasks: done(), now: 100, begin: &[], end: Some(CampaignState::Succeeded) },
    ];
    for case in cases {
        let found = decide(&case.campaign, &case.tasks, &Closed::new(), at(case.now));
        let begin: Vec<_> = case.begin.iter().map(|number| name(*number)).collect();
        assert_eq!(found.begin, begin, "{}", case.name);
        assert_eq!(found.end.map(|(state, _)| state), case.end, "{}", case.name);
    }
}

#[test]
fn tasks_pause_and_are_cancelled_with_their_campaign() {
    let mut campaign = campaign(&[3]);
    let tasks = [
        task(0, TaskState::Running),
        task(1, TaskState::Paused),
        task(2, TaskState::Waiting),
    ];
    campaign.state = CampaignState::Paused;
    let found = decide(&campaign, &tasks, &Closed::new(), at(10));
    assert_eq!(found.pause, [tasks[0].id.clone(), tasks[2].id.clone()]);
    campaign.state = CampaignState::Cancelling;
    let found = decide(&campaign, &tasks, &Closed::new(), at(10));
    assert_eq!(found.cancel.len(), 3);
    assert_eq!(found.end, None);
}

#[test]
fn clusters_whose_window_is_closed_are_passed_over() {
    let mut campaign = campaign(&[3]);
    let closed = Closed::from([(name(0), Some(at(500))), (name(1), None)]);
    let found = decide(&campaign, &[], &closed, at(10));
    assert_eq!((found.begin, found.wake_at), (vec![name(2)], Some(at(500))));
    let tasks = [task(2, TaskState::Succeeded)];
    let found = decide(&campaign, &tasks, &closed, at(200));
    assert_eq!((found.begin, found.end), (vec![], None));
    assert!(found.next.contains("wait for a window"), "{}", found.next);
    campaign.ignore_window = Some("urgent".into());
    let found = decide(&campaign, &tasks, &closed, at(200));
    assert_eq!(found.begin, [name(0), name(1)]);
}

#[test]
fn who_failed_is_named_with_the_reason() {
    let found = decide(
        &campaign(&[1, 1]),
        &[task(0, TaskState::Failed)],
        &Closed::new(),
        at(999),
    );
    let (_, error) = found.end.unwrap();
    assert_eq!(
        error.unwrap(),
        "1 clusters failed: cluster c000: a gate is shut"
    );
}

proptest! {
    /// Whatever fails and however long it takes: waves stay apart, no more are in flight than may be, nothing is
    /// begun after too many failures, and there is an end.
    #[test]
    fn a_fleet_is_upgraded_wave_by_wave(
        sizes in prop::collection::vec(1usize..6, 1..5),
        in_flight in 1u32..5,
        max_failures in 0u32..3,
        fates in prop::collection::vec((1u64..400, prop::bool::weighted(0.15)), 24),
    ) {
        let mut campaign = campaign(&sizes);
        campaign.max_in_flight = in_flight;
        campaign.max_failures = max_failures;
        let wave_of: BTreeMap<ClusterName, usize> = campaign.waves.iter().enumerate()
            .flat_map(|(wave, clusters)| clusters.iter().map(move |c| (c.clone(), wave)))
            .collect();
        let mut tasks: Vec<Sight> = Vec::new();
        let mut now = 0;
        let end = loop {
            for sight in tasks.iter_mut().filter(|task| !task.state.is_over()) {
                let number: usize = sight.cluster.as_str()[1..].parse().unwrap();
                let (takes, fails) = fates[number % fates.len()];
                if sight.created_at.unix_ms() + takes * 1000 <= now * 1000 {
                    sight.state = if fails { TaskState::Failed } else { TaskState::Succeeded };
                    sight.ended_at = Some(at(now));
                }
            }
            let failed = tasks.iter().filter(|t| t.state == TaskState::Failed).count();
            let found = decide(&campaign, &tasks, &Closed::new(), at(now));
            if let Some((state, _)) = found.end {
                break state;
            }
            if failed > max_failures as usize {
                prop_assert!(found.begin.is_empty());
            }
            for cluster in found.begin {
                prop_assert!(tasks.iter().all(|t| t.cluster != cluster), "{} twice", cluster);
                let wave = wave_of[&cluster];
                for before in wave_of.iter().filter(|(_, of)| **of < wave) {
                    let over = tasks.iter().find(|t| t.cluster == *before.0).and_then(|t| t.ended_at);
                    let over = over.expect("waves before are over");
                    let first = !tasks.iter().any(|t| wave_of[&t.cluster] == wave);
                    prop_assert!(!first || now >= over.unix_ms() / 1000 + 60, "no soak");
                }
                let number: usize = cluster.as_str()[1..].parse().unwrap();
                let mut sight = task(number, TaskState::Running);
                sight.created_at = at(now);
                tasks.push(sight);
            }
            let running = tasks.iter().filter(|t| !t.state.is_over()).count();
            prop_assert!(running <= in_flight as usize);
            now += 10;
            prop_assert!(now < 100_000, "no end");
        };
        let failed = tasks.iter().filter(|t| t.state == TaskState::Failed).count();
        let stopped = failed > max_failures as usize;
        let want = if stopped { CampaignState::Failed } else { CampaignState::Succeeded };
        prop_assert_eq!(end, want);
        prop_assert!(stopped || tasks.len() == wave_of.len());
    }
}
