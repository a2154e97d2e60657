//! One round of the director: it looks, judges, decides and acts, with the product's own functions.

use std::collections::{BTreeMap, BTreeSet};

use windlass_common::id::{Incarnation, MachineName};
use windlass_director::resurrector::{
    Case, CaseRecord, Cause, Death, Director, Evidence, Fleet, Link, Member, Outlook, Role, Rung,
    Verdict, common, decide, in_doubt, verdict,
};

use crate::invariants::{Guard, Seen};
use crate::world::{Body, Replacing, World, cluster};

impl World {
    pub(crate) fn round(&mut self) -> Result<(), String> {
        let clock_ms = self.clock_ms();
        if self.watch.look(self.steady(), clock_ms).is_some() {
            self.since_ms = clock_ms;
        }
        let mut seen = Seen::default();
        let names: Vec<MachineName> = self.bodies.keys().cloned().collect();
        for name in names {
            let evidence = self.evidence(&name);
            let record = self.records.entry(name.clone());
            let record = record
                .or_insert_with(|| CaseRecord::new(name.clone(), Incarnation::FIRST, clock_ms));
            let ignored = record.ignored() && self.broken != Some(Guard::Ignore);
            let making = matches!(self.bodies[&name].replacing, Some(Replacing::Making { .. }));
            if !ignored && !making {
                self.judge(&name, &evidence);
                self.is_judged_right(&name, &evidence)?;
                seen.evidence.insert(name, evidence);
            }
        }
        let fleet = self.fleet(&seen);
        let watched = self
            .records
            .iter()
            .filter(|(name, _)| seen.evidence.contains_key(*name));
        let cases: BTreeMap<MachineName, Case> = watched
            .map(|(name, record)| (name.clone(), record.case.clone()))
            .collect();
        self.outlooks = decide(&cases, &fleet, clock_ms, &self.policy);
        self.is_poison_explained(&fleet)?;
        for (name, outlook) in self.outlooks.clone() {
            if let Outlook::Act { rung } = outlook {
                self.may_act(&seen, &name, rung)?;
                self.act(&name, rung);
            }
        }
        self.one_member_at_a_time()
    }

    fn judge(&mut self, name: &MachineName, evidence: &Evidence) {
        let clock_ms = self.clock_ms();
        let doubts = clock_ms < self.since_ms + self.wanted.guard.watch_first_ms;
        let body = self.bodies.get_mut(name).unwrap();
        let record = self.records.get_mut(name).unwrap();
        let same = record.incarnation == body.incarnation;
        let before = same.then_some(record.case.verdict);
        let said = match doubts && self.broken != Some(Guard::Doubt) {
            true => in_doubt(evidence, before),
            false => verdict(evidence),
        };
        record.arrive(body.incarnation, body.replacing.is_some());
        let (ladder, poison_ms) = (&self.policy.ladder, self.policy.guard.poison_ms);
        record.judge(
            body.incarnation,
            said,
            *evidence,
            clock_ms,
            ladder,
            poison_ms,
        );
        if record.died_untold() {
            let troubles = match said {
                Verdict::Degraded => BTreeSet::from(["kubelet.service".to_owned()]),
                _ => BTreeSet::new(),
            };
            record.tell_death(Death {
                incarnation: body.incarnation,
                at_ms: clock_ms,
                verdict: said,
                stemcell: body.stemcell.to_owned(),
                kubernetes_version: String::new(),
                troubles,
                step: body.unmade.clone(),
            });
        }
        let dead = said.is_down() || said == Verdict::Degraded;
        if body.cursed == Some(false) && dead && body.replacing.is_none() {
            body.cursed = Some(true);
            body.young_deaths += 1;
            self.sum.poisoned += u64::from(body.young_deaths == self.wanted.guard.poison_after);
        }
        // A curse that an operator lifted, or that it outlived, is none.
        if said == Verdict::Healthy && body.cursed.take() == Some(true) {
            body.young_deaths = body.young_deaths.saturating_sub(1);
        }
        if record.case.proven {
            body.young_deaths = 0;
        }
        if before != Some(said) {
            self.note(|| format!("{name} is judged {said}: {evidence:?}"));
        }
    }

    /// What the machines of a pool that work are made of.
    pub(crate) fn working(&self, role: &Role) -> BTreeSet<(String, String)> {
        let works = |(name, body): &(&MachineName, &Body)| {
            let judged = self.records.get(*name).map(|record| record.case.verdict);
            let healthy = judged == Some(Verdict::Healthy);
            body.role == *role && healthy && body.replacing.is_none()
        };
        let working = self.bodies.iter().filter(works);
        working
            .map(|(_, body)| (body.stemcell.to_owned(), String::new()))
            .collect()
    }

    fn fleet(&self, seen: &Seen) -> Fleet {
        let mut causes = BTreeMap::new();
        for body in self.bodies.values() {
            let alike = self
                .bodies
                .iter()
                .filter(|(_, other)| other.role == body.role);
            let records = alike.filter_map(|(name, _)| self.records.get(name));
            let deaths: Vec<_> = records
                .flat_map(|record| record.deaths.iter().map(|death| (&record.machine, death)))
                .collect();
            if deaths.is_empty() {
                continue;
            }
            let cause = match self.broken {
                Some(Guard::Cause) => Cause::default(),
                _ => common(&deaths, &self.working(&body.role)),
            };
            causes.insert((cluster(), body.role.clone()), cause);
        }
        let members = self.bodies.iter().filter_map(|(name, body)| {
            let record = self.records.get(name)?;
            let evidence = seen.evidence.get(name);
            let making = matches!(body.replacing, Some(Replacing::Making { .. }));
            if evidence.is_none() && !making {
                return None; // it is ignored
            }
            let broken = |guard| self.broken == Some(guard);
            let member = Member {
                cluster: cluster(),
                role: body.role.clone(),
                zone: body.zone.clone().filter(|_| !broken(Guard::Zone)),
                verdict: evidence.map_or(Verdict::Unknown, |_| record.case.verdict),
                silent: evidence.is_some_and(|evidence| evidence.link == Link::Silent),
                in_hand: body.replacing.is_some() && !broken(Guard::InHand),
                joins: false,
                held: record.held() && !broken(Guard::Hold) && !broken(Guard::Ignore),
                fenced: body.unmade.is_some(),
                stillborn: record.case.stillborn(),
            };
            Some((name.clone(), member))
        });
        Fleet {
            machines: members.collect(),
            director: Director {
                since_ms: self.since_ms,
                provider_answers: self.now_ms >= self.provider_down_until_ms
                    || self.broken == Some(Guard::Provider),
            },
            causes,
        }
    }

    fn act(&mut self, name: &MachineName, rung: Rung) {
        let clock_ms = self.clock_ms();
        self.note(|| format!("{name}: {rung}"));
        let case = &mut self.records.get_mut(name).unwrap().case;
        case.tried(rung, clock_ms);
        self.remedy(name, rung);
    }
}
