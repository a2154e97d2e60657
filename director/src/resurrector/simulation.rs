//! Many small worlds with simulated time: machines die, hang, lose their agents or their networks, the
//! provider and the director have their own troubles, operators keep quiet. Whatever happens, nothing that
//! lives is replaced, etcd keeps its majority, and in the end everything that died was repaired.

use std::collections::BTreeMap;

use windlass_common::id::{ClusterName, Incarnation, MachineName, PoolName};

use super::*;

/// Worlds, each from its own seed. `WINDLASS_SIM_SEEDS` runs more of them.
const SEEDS: u64 = 1_000;
/// One look at everything, milliseconds.
const TICK_MS: u64 = 2000;
/// How long troubles come, and how long it may take to heal all of them after the last one. The longest
/// pause between two replacements is an hour.
const TROUBLE_MS: u64 = 6 * 60 * 1000;
const HEALING_MS: u64 = 4 * 3600 * 1000;
/// How long a replacement takes until it serves.
const REPLACING_MS: u64 = 40_000;
/// How long an operator watches before stepping in.
const OPERATOR_MS: u64 = 10 * 60 * 1000;
/// How long a Lease that is renewed may look as if it was not.
const LEASE_MS: u64 = 12_000;
/// How long a restart takes.
const REBOOTING_MS: u64 = 15_000;

/// A generator of numbers that depend on the seed alone (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// How a machine really is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Truth {
    /// It works.
    Well,
    /// Its kubelet works and its agent does not; for good.
    NoAgent,
    /// Something on it fails until it is restarted.
    Broken,
    /// Its disk is full: it serves, and only an operator can do something about it.
    Full,
    /// Its user space stands still; a restart helps if the flag says so.
    Hung { curable: bool },
    /// It is powered off; a start helps if the flag says so.
    Off { curable: bool },
    /// It does not exist any more.
    Lost,
    /// The director restarts it or makes it anew; it comes up at that time.
    Coming { at_ms: u64 },
}

struct Body {
    truth: Truth,
    /// It cannot reach the director until then.
    cut_until_ms: u64,
    /// Nor can it reach its peers meanwhile; it reaches its API server.
    deep: bool,
    /// Its link was heard or not at the last look, which may be a moment ago.
    silent_since_ms: Option<u64>,
}

struct World {
    dice: Dice,
    now_ms: u64,
    bodies: BTreeMap<MachineName, Body>,
    roles: BTreeMap<MachineName, Role>,
    records: BTreeMap<MachineName, CaseRecord>,
    /// The director reaches no machine until then.
    isolated_until_ms: u64,
    /// The provider does not answer until then.
    provider_down_until_ms: u64,
    director_since_ms: u64,
    policy: Policy,
    replaced: u32,
    /// Machines that an operator had to mend.
    mended: u32,
    outlooks: BTreeMap<MachineName, Outlook>,
}

impl World {
    fn new(seed: u64) -> World {
        let mut dice = Dice(seed);
        let members = [1, 3, 3, 5][dice.below(4) as usize];
        let workers = dice.below(6);
        let mut roles = BTreeMap::new();
        for number in 0..members {
            roles.insert(name(&format!("cp-{number}")), Role::ControlPlane);
        }
        for number in 0..workers {
            let pool = PoolName::new(if number % 2 == 0 { "a" } else { "b" }).unwrap();
            roles.insert(name(&format!("w-{number}")), Role::Worker(pool));
        }
        let body = |_| Body {
            truth: Truth::Well,
            cut_until_ms: 0,
            deep: false,
            silent_since_ms: None,
        };
        let bodies = roles
            .keys()
            .map(|name| (name.clone(), body(name)))
            .collect();
        World {
            dice,
            now_ms: 1_000_000,
            bodies,
            roles,
            records: BTreeMap::new(),
            isolated_until_ms: 0,
            provider_down_until_ms: 0,
            director_since_ms: 1_000_000,
            policy: Policy::default(),
            replaced: 0,
            mended: 0,
            outlooks: BTreeMap::new(),
        }
    }

    /// One trouble, now and then.
    fn trouble(&mut self) {
        if !self.dice.one_in(15) {
            return;
        }
        let now = self.now_ms;
        let span = 1000 * (1 + self.dice.below(120));
        match self.dice.below(12) {
            0 => self.isolated_until_ms = now + span,
            1 => self.provider_down_until_ms = now + span,
            // The director restarts: what it knew in memory is gone, cases are kept.
            2 => self.director_since_ms = now,
            // It was paused, or its clock jumped: nobody was looked at meanwhile.
            3 => self.now_ms += span * 10,
            _ => {
                let names: Vec<MachineName> = self.bodies.keys().cloned().collect();
                let name = &names[self.dice.below(names.len() as u64) as usize];
                let curable = self.dice.one_in(2);
                let truth = match self.dice.below(9) {
                    0 | 1 => {
                        // Flapping: short or long, and no sign of death.
                        let body = self.bodies.get_mut(name).unwrap();
                        body.cut_until_ms = now + span;
                        body.deep = curable;
                        return;
                    }
                    2 => Truth::NoAgent,
                    3 => Truth::Broken,
                    4 => Truth::Hung { curable },
                    5 | 6 => Truth::Off { curable },
                    7 => Truth::Full,
                    _ => Truth::Lost,
                };
                let body = self.bodies.get_mut(name).unwrap();
                if body.truth == Truth::Well {
                    body.truth = truth;
                }
            }
        }
    }

    fn live(&mut self) {
        for body in self.bodies.values_mut() {
            if matches!(body.truth, Truth::Coming { at_ms } if at_ms <= self.now_ms) {
                body.truth = Truth::Well;
            }
        }
    }

    /// Whether an agent can be heard by the director.
    fn heard(&self, name: &MachineName) -> bool {
        let body = &self.bodies[name];
        let speaks = matches!(body.truth, Truth::Well | Truth::Broken | Truth::Full);
        speaks && self.now_ms >= body.cut_until_ms && self.now_ms >= self.isolated_until_ms
    }

    /// What the witnesses say. They may not know, and never know better than the truth.
    fn evidence(&mut self, name: &MachineName) -> Evidence {
        let heard = self.heard(name);
        let body = self.bodies.get_mut(name).unwrap();
        body.silent_since_ms = match (heard, body.silent_since_ms) {
            (true, _) => None,
            (false, since) => since.or(Some(self.now_ms)),
        };
        let truth = body.truth;
        let long_silent = body
            .silent_since_ms
            .is_some_and(|since| self.now_ms - since >= LEASE_MS);
        let deep = body.deep && self.now_ms < body.cut_until_ms;
        let peer_heard = self
            .bodies
            .keys()
            .any(|other| other != name && self.heard(other));
        let answers = self.now_ms >= self.provider_down_until_ms && !self.dice.one_in(30);
        let power = match truth {
            _ if !answers => Power::Unknown,
            Truth::Off { .. } => Power::Stopped,
            Truth::Lost => Power::Absent,
            Truth::Well
            | Truth::NoAgent
            | Truth::Broken
            | Truth::Full
            | Truth::Hung { .. }
            | Truth::Coming { .. } => Power::Running,
        };
        let asked = peer_heard && !self.dice.one_in(20);
        let peers = match truth {
            _ if !asked => Peers::Unknown,
            _ if deep => Peers::Nobody,
            Truth::Well | Truth::Broken | Truth::Full => Peers::Agent,
            Truth::NoAgent => Peers::Kubelet,
            Truth::Hung { .. } | Truth::Off { .. } | Truth::Lost | Truth::Coming { .. } => {
                Peers::Nobody
            }
        };
        let lives = matches!(
            truth,
            Truth::Well | Truth::NoAgent | Truth::Broken | Truth::Full
        );
        let lease = match lives && long_silent && peer_heard {
            true => Lease::Renewed,
            false => Lease::Unknown,
        };
        Evidence {
            link: if heard { Link::Beating } else { Link::Silent },
            peers,
            lease,
            power,
            work: match truth {
                Truth::Broken => Work::Impaired,
                Truth::Full => Work::Strained,
                Truth::Well
                | Truth::NoAgent
                | Truth::Hung { .. }
                | Truth::Off { .. }
                | Truth::Lost
                | Truth::Coming { .. } => Work::Well,
            },
        }
    }

    /// One round of the loop: look, judge, decide, act.
    fn round(&mut self) {
        let names: Vec<MachineName> = self.bodies.keys().cloned().collect();
        for name in &names {
            let evidence = self.evidence(name);
            let now = self.now_ms;
            let record = self
                .records
                .entry(name.clone())
                .or_insert_with(|| CaseRecord::new(name.clone(), Incarnation::FIRST, now));
            let ladder = &self.policy.ladder;
            let replaced = record.case.attempts.last().map(|a| a.rung) == Some(Rung::Replace);
            let coming = matches!(self.bodies[name].truth, Truth::Coming { .. });
            record.arrive(Incarnation::FIRST, replaced && coming);
            let poison = self.policy.guard.poison_ms;
            record.judge(
                Incarnation::FIRST,
                verdict(&evidence),
                evidence,
                now,
                ladder,
                poison,
            );
        }
        let fleet = self.fleet();
        let cases = self
            .records
            .iter()
            .map(|(name, r)| (name.clone(), r.case.clone()))
            .collect();
        self.outlooks = decide(&cases, &fleet, self.now_ms, &self.policy);
        for (name, outlook) in self.outlooks.clone() {
            if let Outlook::Act { rung } = outlook {
                self.act(&name, rung);
            }
        }
        self.watch_over();
    }

    fn fleet(&self) -> Fleet {
        let machines = self.records.iter().map(|(name, record)| {
            let body = &self.bodies[name];
            let coming = matches!(body.truth, Truth::Coming { .. });
            let replaced = record.case.attempts.last().map(|a| a.rung) == Some(Rung::Replace);
            let member = Member {
                cluster: ClusterName::new("demo").unwrap(),
                role: self.roles[name].clone(),
                zone: None,
                verdict: record.case.verdict,
                silent: body.silent_since_ms.is_some() && !(coming && replaced),
                in_hand: coming && replaced,
                joins: false,
                held: false,
                fenced: false,
                stillborn: record.case.stillborn(),
            };
            (name.clone(), member)
        });
        Fleet {
            machines: machines.collect(),
            director: Director {
                since_ms: self.director_since_ms,
                provider_answers: self.now_ms >= self.provider_down_until_ms,
            },
            causes: BTreeMap::new(),
        }
    }

    fn act(&mut self, name: &MachineName, rung: Rung) {
        let truth = self.bodies[name].truth;
        let case = &self.records[name].case;
        assert!(
            truth != Truth::Full,
            "{rung} of {name}, which no remedy mends: {case:?}"
        );
        match rung {
            Rung::Units | Rung::Runtime => {}
            Rung::Reboot | Rung::Replace => {
                // The invariant of invariants: what works is left alone, whoever cannot see it.
                assert!(
                    truth != Truth::Well,
                    "{rung} of {name}, which is well: {case:?}"
                );
                let since = self.now_ms - self.director_since_ms;
                assert!(
                    since >= self.policy.guard.watch_first_ms,
                    "{rung} by a young director"
                );
                assert!(
                    self.now_ms >= self.provider_down_until_ms,
                    "{rung} without the provider"
                );
                self.quorum(name, rung);
            }
        }
        self.records
            .get_mut(name)
            .unwrap()
            .case
            .tried(rung, self.now_ms);
        let coming = |after| Truth::Coming { at_ms: after };
        let body = self.bodies.get_mut(name).unwrap();
        body.truth = match (rung, truth) {
            (Rung::Runtime, Truth::Broken) if self.dice.one_in(2) => Truth::Well,
            (Rung::Reboot, Truth::Broken | Truth::NoAgent) => coming(self.now_ms + REBOOTING_MS),
            (Rung::Reboot, Truth::Hung { curable: true } | Truth::Off { curable: true }) => {
                coming(self.now_ms + REBOOTING_MS)
            }
            (Rung::Replace, _) => {
                self.replaced += 1;
                coming(self.now_ms + REPLACING_MS)
            }
            _ => truth,
        };
    }

    /// Taking this one costs no majority that there is.
    fn quorum(&self, name: &MachineName, rung: Rung) {
        if self.roles[name] != Role::ControlPlane {
            return;
        }
        let members = || {
            self.roles
                .iter()
                .filter(|(_, role)| **role == Role::ControlPlane)
        };
        let serves = |name: &MachineName| {
            matches!(
                self.bodies[name].truth,
                Truth::Well | Truth::NoAgent | Truth::Broken | Truth::Full
            )
        };
        let all = members().count();
        let before = members().filter(|(name, _)| serves(name)).count();
        let after = members()
            .filter(|(other, _)| *other != name && serves(other))
            .count();
        let majority = all / 2 + 1;
        // Witnesses see a death a moment late; what is asked is that nothing we know of is spent.
        let known_down = members()
            .filter(|(other, _)| *other != name && self.records[*other].case.verdict.is_down())
            .count();
        let spent = before >= majority && after < majority && known_down > 0;
        let down = self.records[name].case.verdict.is_down();
        assert!(
            down || !spent || all == 1,
            "{rung} of {name} costs etcd its majority"
        );
    }

    fn watch_over(&self) {
        let in_hand = self.bodies.iter().filter(|(name, body)| {
            matches!(body.truth, Truth::Coming { .. }) && self.roles[*name] == Role::ControlPlane
        });
        assert!(
            in_hand.count() <= 1,
            "two control-plane machines are worked on"
        );
    }

    fn all_well(&self) -> bool {
        self.bodies.values().all(|body| body.truth == Truth::Well)
    }

    /// Whether something is being done, or comes up.
    fn is_at_work(&self) -> bool {
        let acts = |outlook: &Outlook| matches!(outlook, Outlook::Act { .. });
        let comes = |body: &Body| matches!(body.truth, Truth::Coming { .. });
        self.outlooks.values().any(acts) || self.bodies.values().any(comes)
    }

    /// An operator mends a machine that is left to operators: much is silent at once, or nobody can tell
    /// whether it lives.
    fn mend(&mut self) {
        let outlooks = &self.outlooks;
        let left = |name: &MachineName| {
            matches!(
                outlooks[name],
                Outlook::Stay { .. } | Outlook::Refused { .. }
            )
        };
        let mut bodies = self.bodies.iter_mut();
        if let Some((_, body)) = bodies.find(|(name, b)| b.truth != Truth::Well && left(name)) {
            body.truth = Truth::Well;
            self.mended += 1;
        }
    }
}

fn name(text: &str) -> MachineName {
    MachineName::new(text).unwrap()
}

/// Plays one world to its end; returns how many machines were replaced, and how many operators mended.
fn play(seed: u64) -> (u32, u32) {
    let mut world = World::new(seed);
    let calm = world.now_ms + TROUBLE_MS;
    while world.now_ms < calm {
        world.trouble();
        world.live();
        world.round();
        world.now_ms += TICK_MS;
    }
    let end = world.now_ms + HEALING_MS;
    let mut left_for_ms = 0;
    while !world.all_well() {
        let unwell = || world.bodies.iter().filter(|(_, b)| b.truth != Truth::Well);
        let unwell = || unwell().map(|(name, b)| (name, b.truth, &world.outlooks[name]));
        assert!(
            world.now_ms < end,
            "seed {seed}: not healed: {:?}",
            unwell().collect::<Vec<_>>()
        );
        world.live();
        world.round();
        left_for_ms = match world.is_at_work() {
            true => 0,
            false => left_for_ms + TICK_MS,
        };
        if left_for_ms >= OPERATOR_MS {
            world.mend();
            left_for_ms = 0;
        }
        world.now_ms += TICK_MS;
    }
    (world.replaced, world.mended)
}

#[test]
fn nothing_that_lives_is_replaced_and_everything_that_died_is_repaired() {
    let seeds = std::env::var("WINDLASS_SIM_SEEDS").ok();
    let seeds = seeds.map_or(SEEDS, |text| text.parse().unwrap());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let play_share = |first| {
        let worlds = (first..seeds).step_by(threads as usize).map(play);
        worlds.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    };
    let (replaced, mended) = std::thread::scope(|scope| {
        let shares: Vec<_> = (0..threads)
            .map(|first| scope.spawn(move || play_share(first)))
            .collect();
        let shares = shares.into_iter().map(|share| share.join().unwrap());
        shares.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    });
    println!("{seeds} worlds: {replaced} machines replaced, {mended} left to operators");
    // A simulation in which nothing happens proves nothing, nor does one in which operators do the work.
    assert!(
        u64::from(replaced) > seeds / 2,
        "{replaced} in {seeds} worlds"
    );
    assert!(
        mended < replaced,
        "operators mended {mended}, {replaced} were replaced"
    );
}
