//! How things really are, and what goes wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

use windlass_common::id::{ClusterName, Incarnation, MachineName, PoolName, ZoneName};
use windlass_director::resurrector::{
    CaseRecord, CauseKind, Evidence, FailedStep, Hold, HoldKind, Lease, Link, Outlook, Peers,
    Policy, Power, Probe, Role, Rung, Watch, Work,
};

use crate::invariants::Guard;

/// Between two looks, milliseconds, while there are troubles and afterwards.
const TICK_MS: u64 = 2000;
const CALM_TICK_MS: u64 = 5000;
/// How long troubles come, and how long it may take to heal all of them after the last one. The longest
/// pause between two replacements is an hour.
const TROUBLE_MS: u64 = 6 * 60 * 1000;
const HEALING_MS: u64 = 4 * 3600 * 1000;
/// How long an operator watches before stepping in.
const OPERATOR_MS: u64 = 10 * 60 * 1000;
/// How long a Lease that is renewed may look as if it was not.
const LEASE_MS: u64 = 12_000;
/// How long a restart takes.
const REBOOTING_MS: u64 = 15_000;
/// Within this an agent whose connection is gone is back.
const RETURN_MS: u64 = 15_000;
/// What the wall clock shows at the beginning.
const BEGIN_MS: u64 = 1_700_000_000_000;
const YEAR_MS: i64 = 365 * 86_400_000;

/// A generator of numbers that depend on the seed alone (splitmix64).
pub(crate) struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.roll() % n
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// How a machine really is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Truth {
    /// It works.
    Well,
    /// Its kubelet works and its agent does not; for good.
    NoAgent,
    /// Something on it fails until it is restarted, if that helps.
    Broken { curable: bool },
    /// Its disk is full: it serves, and only an operator can do something about it.
    Full,
    /// Its user space stands still; a restart helps if the flag says so.
    Hung { curable: bool },
    /// Its user space stands still until then, and goes on by itself: its host had other things to do.
    Stalled { until_ms: u64 },
    /// It is powered off; a start helps if the flag says so.
    Off { curable: bool },
    /// It does not exist.
    Lost,
    /// It is being restarted; at that time it is up, and fails again unless that helped.
    Starting { at_ms: u64, helps: bool },
}

impl Truth {
    pub(crate) fn serves(self) -> bool {
        match self {
            Truth::Well | Truth::NoAgent | Truth::Broken { .. } | Truth::Full => true,
            Truth::Hung { .. }
            | Truth::Stalled { .. }
            | Truth::Off { .. }
            | Truth::Lost
            | Truth::Starting { .. } => false,
        }
    }

    fn speaks(self) -> bool {
        self.serves() && self != Truth::NoAgent
    }
}

/// The task that makes a machine anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replacing {
    /// The old one is drained until then, and is there until the provider proves that it is off.
    Leaving { until_ms: u64 },
    /// The old one is gone, and the new one is there at that time.
    Making { until_ms: u64 },
}

pub(crate) struct Body {
    pub(crate) role: Role,
    pub(crate) zone: Option<ZoneName>,
    pub(crate) truth: Truth,
    pub(crate) incarnation: Incarnation,
    pub(crate) stemcell: &'static str,
    pub(crate) replacing: Option<Replacing>,
    /// Its last replacement could not be made, for that reason.
    pub(crate) unmade: Option<FailedStep>,
    /// It is a replacement that a curse struck, and whether its death was counted.
    pub(crate) cursed: Option<bool>,
    /// An operator let it go while it was made, so that its death counts for nothing.
    pardoned: bool,
    /// Replacements that a curse struck and that were seen dead, since an operator let it go last.
    pub(crate) young_deaths: u32,
    /// It cannot reach the director until then.
    pub(crate) cut_until_ms: u64,
    /// Nor can it reach its peers meanwhile; it reaches its API server.
    deep: bool,
    /// Its agent has no connection until then, and is on its way back.
    back_at_ms: u64,
    /// Since when its link is silent at each look.
    pub(crate) silent_since_ms: Option<u64>,
    /// When its operator lets it go.
    held_until_ms: Option<u64>,
}

/// What happened in a world, or in many.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum {
    pub(crate) replaced: u64,
    pub(crate) rebooted: u64,
    /// Machines that an operator had to mend.
    pub(crate) mended: u64,
    pub(crate) poisoned: u64,
    pub(crate) held: u64,
    pub(crate) stalls: u64,
    pub(crate) set_ahead: u64,
    pub(crate) set_back: u64,
    pub(crate) paused: u64,
}

impl Sum {
    pub(crate) fn all_occur(&self) -> bool {
        let own = [self.rebooted, self.mended, self.poisoned, self.held];
        let others = [self.stalls, self.set_ahead, self.set_back, self.paused];
        own.into_iter().chain(others).all(|count| count > 0)
    }
}

impl AddAssign for Sum {
    fn add_assign(&mut self, more: Sum) {
        self.replaced += more.replaced;
        self.rebooted += more.rebooted;
        self.mended += more.mended;
        self.poisoned += more.poisoned;
        self.held += more.held;
        self.stalls += more.stalls;
        self.set_ahead += more.set_ahead;
        self.set_back += more.set_back;
        self.paused += more.paused;
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} machines replaced, {} rebooted, {} left to operators; {} pools poisoned, {} holds, {} stalls; the \
             director's clock set ahead {} times and back {} times, the director paused {} times",
            self.replaced,
            self.rebooted,
            self.mended,
            self.poisoned,
            self.held,
            self.stalls,
            self.set_ahead,
            self.set_back,
            self.paused
        )
    }
}

pub(crate) struct World {
    pub(crate) dice: Dice,
    /// The time it really is.
    pub(crate) now_ms: u64,
    /// What the director's wall clock shows beyond it.
    skew_ms: i64,
    pub(crate) bodies: BTreeMap<MachineName, Body>,
    /// The director reaches no machine until then.
    pub(crate) isolated_until_ms: u64,
    /// The provider does not answer until then.
    pub(crate) provider_down_until_ms: u64,
    /// What every replacement of a pool dies of, until an operator does something about it.
    pub(crate) curse: Option<(Role, CauseKind)>,
    /// Of a hundred heartbeats and answers, how many are lost on the way.
    loss: u64,
    /// Since when the director runs without a break.
    pub(crate) whole_since_ms: u64,
    pub(crate) watch: Watch,
    pub(crate) since_ms: u64,
    pub(crate) records: BTreeMap<MachineName, CaseRecord>,
    /// How it decides, and how it should.
    pub(crate) policy: Policy,
    pub(crate) wanted: Policy,
    pub(crate) broken: Option<Guard>,
    pub(crate) outlooks: BTreeMap<MachineName, Outlook>,
    pub(crate) sum: Sum,
    traced: bool,
    pub(crate) trace: Vec<String>,
}

impl World {
    /// A world of this seed, with a guard that does not work.
    pub(crate) fn new(seed: u64, broken: Option<Guard>, traced: bool) -> World {
        let mut dice = Dice(seed);
        let members = [1, 3, 3, 5][dice.below(4) as usize];
        let workers = dice.below(7);
        let mut wanted = Policy::default();
        wanted.guard.pool_max_unavailable = 1 + u32::from(dice.one_in(2));
        let zoned = dice.one_in(2);
        let body = |role: Role, number: u64| {
            let zone = ZoneName::new(format!("z-{}", number % 2)).unwrap();
            Body {
                role,
                zone: zoned.then_some(zone),
                truth: Truth::Well,
                incarnation: Incarnation::FIRST,
                stemcell: "good",
                replacing: None,
                unmade: None,
                cursed: None,
                pardoned: false,
                young_deaths: 0,
                cut_until_ms: 0,
                deep: false,
                back_at_ms: 0,
                silent_since_ms: None,
                held_until_ms: None,
            }
        };
        let mut bodies = BTreeMap::new();
        for number in 0..members {
            let name = MachineName::new(format!("cp-{number}")).unwrap();
            bodies.insert(name, body(Role::ControlPlane, number));
        }
        for number in 0..workers {
            // Mostly in one pool, whose two zones then hold two machines each.
            let pool = PoolName::new(if number < 4 { "a" } else { "b" }).unwrap();
            let name = MachineName::new(format!("w-{number}")).unwrap();
            bodies.insert(name, body(Role::Worker(pool), number));
        }
        let kinds = [
            CauseKind::Step,
            CauseKind::Trouble,
            CauseKind::Stemcell,
            CauseKind::None,
        ];
        let kind = kinds[dice.below(4) as usize];
        let pool = PoolName::new("a").unwrap();
        let curse = dice.one_in(3).then_some((Role::Worker(pool), kind));
        let loss = if dice.one_in(3) { 30 } else { 0 };
        World {
            dice,
            now_ms: BEGIN_MS,
            skew_ms: 0,
            bodies,
            isolated_until_ms: 0,
            provider_down_until_ms: 0,
            curse,
            loss,
            whole_since_ms: BEGIN_MS,
            watch: Watch::new(std::time::Duration::ZERO, BEGIN_MS),
            since_ms: BEGIN_MS,
            records: BTreeMap::new(),
            policy: broken.map_or(wanted, |guard| guard.weaken(wanted)),
            wanted,
            broken,
            outlooks: BTreeMap::new(),
            sum: Sum::default(),
            traced,
            trace: Vec::new(),
        }
    }

    /// Plays it to its end.
    pub(crate) fn play(&mut self) -> Result<(), String> {
        let calm = self.now_ms + TROUBLE_MS;
        while self.now_ms < calm {
            self.trouble();
            self.live();
            self.round()?;
            self.now_ms += TICK_MS;
        }
        // What keeps time on its host sets its clock right in the end.
        self.set_clock(0);
        let end = self.now_ms + HEALING_MS;
        let mut left_for_ms = 0;
        while !self.all_well() {
            if self.now_ms >= end {
                let unwell = self.bodies.iter().filter(|(_, body)| !body.is_well());
                let told: Vec<_> = unwell
                    .map(|(name, b)| format!("{name} {:?} {:?}", b.truth, self.outlooks.get(name)))
                    .collect();
                return Err(format!("not healed: {}", told.join(", ")));
            }
            self.live();
            self.round()?;
            left_for_ms = match self.is_at_work() {
                true => 0,
                false => left_for_ms + CALM_TICK_MS,
            };
            if left_for_ms >= OPERATOR_MS {
                self.mend();
                left_for_ms = 0;
            }
            self.now_ms += CALM_TICK_MS;
        }
        Ok(())
    }

    /// What the director's wall clock shows.
    pub(crate) fn clock_ms(&self) -> u64 {
        self.now_ms.checked_add_signed(self.skew_ms).unwrap()
    }

    pub(crate) fn steady(&self) -> std::time::Duration {
        std::time::Duration::from_millis(self.now_ms - BEGIN_MS)
    }

    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        if self.traced {
            let line = format!("{:>9} s  {}", (self.now_ms - BEGIN_MS) / 1000, what());
            self.trace.push(line);
        }
    }

    fn set_clock(&mut self, skew_ms: i64) {
        if skew_ms != self.skew_ms {
            let (sum, ahead) = (&mut self.sum, skew_ms > self.skew_ms);
            *(if ahead {
                &mut sum.set_ahead
            } else {
                &mut sum.set_back
            }) += 1;
            self.skew_ms = skew_ms;
            self.whole_since_ms = self.now_ms;
            self.note(|| format!("the director's clock is set: {skew_ms} ms beyond the truth"));
        }
    }

    /// Connections are gone, and agents come back one after the other.
    fn disconnect(&mut self) {
        self.whole_since_ms = self.now_ms;
        for body in self.bodies.values_mut() {
            body.back_at_ms = self.now_ms + self.dice.below(RETURN_MS);
        }
    }

    /// One trouble, now and then.
    fn trouble(&mut self) {
        if !self.dice.one_in(12) {
            return;
        }
        let now = self.now_ms;
        let span = 1000 * (1 + self.dice.below(120));
        match self.dice.below(19) {
            0 => self.isolated_until_ms = now + span,
            1 => self.provider_down_until_ms = now + span,
            // The director restarts: what it knew in memory is gone, cases are kept.
            2 => {
                self.since_ms = self.clock_ms();
                self.watch = Watch::new(self.steady(), self.since_ms);
                self.disconnect();
                self.note(|| "the director restarts".to_owned());
            }
            // It is paused: nobody is looked at meanwhile.
            3 => {
                self.now_ms += span * 10;
                self.sum.paused += 1;
                self.disconnect();
                self.note(|| format!("the director was paused for {} s", span / 100));
            }
            4 => self.set_clock(self.skew_ms + span as i64 * 10),
            5 => self.set_clock(self.skew_ms - span as i64 * 10),
            // It is a year ahead until somebody sets it right.
            6 => self.set_clock(if self.skew_ms < YEAR_MS {
                self.skew_ms + YEAR_MS
            } else {
                0
            }),
            7 | 8 => self.stall(span),
            9 => self.hold(span),
            10 => self.spoil(),
            _ => self.strike(span),
        }
    }

    /// The host of some machines has other things to do.
    fn stall(&mut self, span: u64) {
        let until_ms = self.now_ms + span;
        let part = 1 + self.dice.below(3);
        let mut stalled = Vec::new();
        for (name, body) in &mut self.bodies {
            if body.truth == Truth::Well && body.replacing.is_none() && !self.dice.one_in(1 + part)
            {
                body.truth = Truth::Stalled { until_ms };
                stalled.push(name.as_str().to_owned());
            }
        }
        self.sum.stalls += 1;
        self.note(|| format!("stalled for {span} ms: {}", stalled.join(", ")));
    }

    /// Something breaks on all workers at once.
    fn spoil(&mut self) {
        for body in self.bodies.values_mut() {
            if body.role != Role::ControlPlane && body.is_well() {
                let curable = self.dice.one_in(2);
                body.truth = Truth::Broken { curable };
            }
        }
        self.note(|| "all workers are broken".to_owned());
    }

    fn any(&mut self) -> MachineName {
        let at = self.dice.below(self.bodies.len() as u64);
        self.bodies.keys().nth(at as usize).unwrap().clone()
    }

    /// An operator takes a machine for a while.
    fn hold(&mut self, span: u64) {
        let name = self.any();
        let kind = match self.dice.one_in(2) {
            true => HoldKind::Hold,
            false => HoldKind::Ignore,
        };
        let Some(record) = self.records.get_mut(&name) else {
            return;
        };
        record.hold = Some(Hold {
            kind,
            operator: "ann".to_owned(),
            since_ms: self.since_ms,
            reason: String::new(),
        });
        self.sum.held += 1;
        self.bodies.get_mut(&name).unwrap().held_until_ms = Some(self.now_ms + span * 3);
        self.note(|| format!("{name} is {kind} for {} ms", span * 3));
    }

    /// Something happens to one machine.
    fn strike(&mut self, span: u64) {
        let (name, now) = (self.any(), self.now_ms);
        let curable = self.dice.one_in(2);
        let kind = self.dice.below(9);
        let body = self.bodies.get_mut(&name).unwrap();
        let truth = match kind {
            0 | 1 => {
                // Flapping: short or long, and no sign of death.
                (body.cut_until_ms, body.deep) = (now + span, curable);
                self.note(|| format!("{name} is cut off for {span} ms, deep: {curable}"));
                return;
            }
            2 => Truth::NoAgent,
            3 => Truth::Broken { curable: true },
            4 => Truth::Hung { curable },
            5 | 6 => Truth::Off { curable },
            7 => Truth::Full,
            _ => Truth::Lost,
        };
        if body.truth == Truth::Well && body.replacing.is_none() {
            body.truth = truth;
            self.note(|| format!("{name} is {truth:?}"));
        }
    }

    fn live(&mut self) {
        let now = self.now_ms;
        let proves = now >= self.provider_down_until_ms;
        for (name, body) in &mut self.bodies {
            body.truth = match body.truth {
                Truth::Stalled { until_ms } if until_ms <= now => Truth::Well,
                Truth::Starting { at_ms, helps } if at_ms <= now => match helps {
                    true => Truth::Well,
                    false => Truth::Broken { curable: false },
                },
                truth => truth,
            };
            match body.replacing {
                Some(Replacing::Leaving { until_ms }) if proves && until_ms <= now => {
                    body.truth = Truth::Lost;
                    if body.unmade.take().is_none() {
                        body.incarnation = body.incarnation.next();
                    }
                    // Some take their time.
                    let slow = self.dice.one_in(4);
                    let takes_ms = if slow { 8 * 60_000 } else { 40_000 };
                    let until_ms = now + takes_ms;
                    body.replacing = Some(Replacing::Making { until_ms });
                }
                Some(Replacing::Making { until_ms }) if until_ms <= now => {
                    body.replacing = None;
                    let curse = self.curse.as_ref().filter(|(role, _)| *role == body.role);
                    body.come_up(curse.map(|(_, kind)| *kind), &mut self.dice);
                }
                _ => {}
            }
            if body.held_until_ms.is_some_and(|until| until <= now) {
                body.let_go(self.records.get_mut(name).unwrap());
            }
        }
    }

    /// Whether an agent can be heard by the director.
    pub(crate) fn heard(&self, body: &Body) -> bool {
        let way = body.cut_until_ms.max(self.isolated_until_ms);
        body.truth.speaks() && self.now_ms >= way.max(body.back_at_ms)
    }

    /// What the witnesses say. They may not know, and never know better than the truth.
    pub(crate) fn evidence(&mut self, name: &MachineName) -> Evidence {
        let body = &self.bodies[name];
        let (truth, heard) = (body.truth, self.heard(body));
        let deep = body.deep && self.now_ms < body.cut_until_ms;
        let stands = heard;
        // At a loss of 30 % a second and a half without a sound is rare.
        let heard = heard && !(self.loss > 0 && self.dice.one_in(100));
        let others = self.bodies.iter().filter(|(other, _)| *other != name);
        let askable = others.filter(|(_, body)| self.heard(body)).count().min(3);
        let body = self.bodies.get_mut(name).unwrap();
        body.silent_since_ms = match (heard, body.silent_since_ms) {
            (true, _) => None,
            (false, since) => since.or(Some(self.now_ms)),
        };
        let silence = body.silent_since_ms.map(|since| self.now_ms - since);
        let answers = self.now_ms >= self.provider_down_until_ms && !self.dice.one_in(30);
        let power = match truth {
            _ if !answers => Power::Unknown,
            Truth::Off { .. } => Power::Stopped,
            Truth::Lost => Power::Absent,
            Truth::Well
            | Truth::NoAgent
            | Truth::Broken { .. }
            | Truth::Full
            | Truth::Hung { .. }
            | Truth::Stalled { .. }
            | Truth::Starting { .. } => Power::Running,
        };
        let found = match truth {
            _ if deep => Probe::Nobody,
            Truth::NoAgent => Probe::Kubelet,
            truth if truth.serves() => Probe::Agent,
            _ => Probe::Nobody,
        };
        // What each is asked, and what it answers, may be lost; it asks the machine itself often enough.
        let probes: Vec<Probe> = (0..askable)
            .map(|_| match self.dice.below(100) {
                chance if chance < 5 + self.loss / 4 => Probe::Unanswered,
                _ => found,
            })
            .collect();
        let peers = Peers::of(&probes);
        let lives = truth.serves() && silence.is_some_and(|ms| ms >= LEASE_MS);
        let link = if heard { Link::Beating } else { Link::Silent };
        let link = match self.broken {
            Some(Guard::Loss) => link,
            _ => link.beside(stands, peers),
        };
        Evidence {
            link,
            peers,
            lease: match lives && askable > 0 {
                true => Lease::Renewed,
                false => Lease::Unknown,
            },
            power,
            work: match truth {
                Truth::Broken { .. } => Work::Impaired,
                Truth::Full => Work::Strained,
                _ => Work::Well,
            },
        }
    }

    /// What a remedy does.
    pub(crate) fn remedy(&mut self, name: &MachineName, rung: Rung) {
        let (at_ms, lucky) = (self.now_ms + REBOOTING_MS, self.dice.one_in(2));
        let body = self.bodies.get_mut(name).unwrap();
        body.truth = match (rung, body.truth) {
            (Rung::Runtime, Truth::Broken { curable: true }) if lucky => Truth::Well,
            (Rung::Reboot, Truth::Broken { curable: helps }) => Truth::Starting { at_ms, helps },
            (
                Rung::Reboot,
                Truth::NoAgent
                | Truth::Stalled { .. }
                | Truth::Hung { curable: true }
                | Truth::Off { curable: true },
            ) => Truth::Starting { at_ms, helps: true },
            (_, truth) => truth,
        };
        if rung == Rung::Replace {
            // What serves is drained, and pods may take their time.
            let drains = body.truth.serves() && lucky;
            let until_ms = self.now_ms + if drains { 6 * 60_000 } else { 0 };
            body.replacing = Some(Replacing::Leaving { until_ms });
        }
        self.sum.replaced += u64::from(rung == Rung::Replace);
        self.sum.rebooted += u64::from(rung == Rung::Reboot);
    }

    fn all_well(&self) -> bool {
        self.bodies.values().all(Body::is_well)
    }

    /// Whether something is being done, or comes up, or is an operator's.
    fn is_at_work(&self) -> bool {
        let acts = |outlook: &Outlook| matches!(outlook, Outlook::Act { .. });
        let comes = |body: &Body| {
            let restarts = matches!(body.truth, Truth::Starting { .. });
            restarts || body.replacing.is_some() || body.held_until_ms.is_some()
        };
        self.outlooks.values().any(acts) || self.bodies.values().any(comes)
    }

    /// An operator looks at what is left to operators: much is silent at once, nobody can tell whether it lives, or
    /// replacements die. The cause of that is mended, and the pool's machines are let go; the director does the rest.
    fn mend(&mut self) {
        let left = |name: &MachineName| {
            matches!(
                self.outlooks.get(name),
                Some(Outlook::Stay { .. } | Outlook::Refused { .. })
            )
        };
        let unwell = |(name, body): &(&MachineName, &Body)| !body.is_well() && left(name);
        let Some((name, body)) = self.bodies.iter().find(unwell) else {
            return;
        };
        let (name, role) = (name.clone(), body.role.clone());
        let alike = || self.bodies.iter().filter(|(_, body)| body.role == role);
        let died = alike().map(|(_, body)| body.young_deaths).sum::<u32>();
        if died >= self.wanted.guard.poison_after {
            self.curse = None;
            for (name, body) in self.bodies.iter_mut().filter(|(_, b)| b.role == role) {
                body.let_go(self.records.get_mut(name).unwrap());
            }
            self.note(|| format!("an operator mends what {role:?} died of"));
        } else {
            self.bodies.get_mut(&name).unwrap().truth = Truth::Well;
            self.sum.mended += 1;
            self.note(|| format!("an operator mends {name}"));
        }
    }
}

impl Body {
    fn is_well(&self) -> bool {
        self.truth == Truth::Well && self.replacing.is_none() && self.held_until_ms.is_none()
    }

    /// A replacement is there, or dies of a curse.
    fn come_up(&mut self, curse: Option<CauseKind>, dice: &mut Dice) {
        let failed = |name: String, error: String| FailedStep {
            name,
            error: Some(error),
        };
        let pardoned = std::mem::take(&mut self.pardoned);
        (self.stemcell, self.cursed) = ("good", curse.filter(|_| !pardoned).map(|_| false));
        self.truth = match curse {
            None => Truth::Well,
            Some(CauseKind::Step) => {
                let error = format!("no room: {} MiB are free", dice.below(1000));
                self.unmade = Some(failed("create-machine".to_owned(), error));
                Truth::Lost
            }
            // Each of another cause.
            Some(CauseKind::None) => {
                let letter = || char::from(b'a' + dice.below(26) as u8);
                let name: String = std::iter::repeat_with(letter).take(8).collect();
                self.unmade = Some(failed(name, "no".to_owned()));
                Truth::Lost
            }
            Some(CauseKind::Stemcell) => {
                self.stemcell = "bad";
                Truth::Off { curable: false }
            }
            Some(CauseKind::Trouble | CauseKind::Kubernetes) => Truth::Broken { curable: false },
        };
    }

    /// Its operator lets it go.
    fn let_go(&mut self, record: &mut CaseRecord) {
        record.release();
        (self.held_until_ms, self.young_deaths, self.cursed) = (None, 0, None);
        self.pardoned = self.replacing.is_some();
    }
}

pub(crate) fn cluster() -> ClusterName {
    ClusterName::new("demo").unwrap()
}
