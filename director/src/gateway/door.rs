//! Who may begin: places for handshakes, and allowances of addresses and machines.
//!
//! # Invariants
//! * At most [`HANDSHAKES_MAX`] strangers are between their first packet and the proof of who they are. Others wait
//!   ([`Line`]); the oldest handshake gives way to them once it had its time: a stranger that holds its place
//!   keeps nobody out. A machine that has shown its certificate has nothing to give way with any more: of those
//!   there are as many as [`SESSIONS_PER_MACHINE`] lets in.
//! * Of those who wait, the one that came last is next. It is there for certain, with most of its patience
//!   left; the one that came first may have given up, and its handshake would be work for nobody. Who is
//!   passed over comes again, and is the last one then.
//! * Nobody is judged by an address that was not proven: to fail on somebody else's account, a peer
//!   would have to receive there. A machine that shows who it is clears the account of its address: a fleet
//!   behind one address that is slow to answer does not lock itself out.
//! * Both tables of allowances are bounded; what rested is forgotten.
//!
//! # Not here
//! What a session may do ([`super::control`]).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use windlass_common::id::MachineName;
use windlass_common::limits::{
    FAILURES_PER_SOURCE, HANDSHAKE_GIVES_WAY_AFTER, HANDSHAKE_WAITS_MAX, HANDSHAKES_BEFORE_RETRY,
    HANDSHAKES_MAX, HANDSHAKES_WAITING_MAX, SESSIONS_MAX, SESSIONS_PER_MACHINE, SOURCES_MAX,
};
use windlass_common::rate::{Allowance, Rate};

/// What becomes of a first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A handshake begins.
    Accept,
    /// The peer has to show that it receives at its address.
    Prove,
    /// The address has failed too often.
    Refuse,
}

/// `proven`: the address was shown to be the peer's. `under_way`: handshakes. `rested`: the address
/// has something left of its allowance.
fn judge(proven: bool, under_way: usize, rested: bool) -> Verdict {
    match (proven, rested) {
        (false, true) if under_way < HANDSHAKES_BEFORE_RETRY => Verdict::Accept,
        (false, _) => Verdict::Prove,
        (true, true) => Verdict::Accept,
        (true, false) => Verdict::Refuse,
    }
}

/// The gateway's door.
#[derive(Debug)]
pub(super) struct Door {
    since: Instant,
    places: Arc<Shared>,
    /// Those in line, for whoever asks; the line itself is its keeper's.
    waiting: AtomicUsize,
    sources: Mutex<Allowances<IpAddr>>,
    machines: Mutex<Allowances<MachineName>>,
}

impl Door {
    pub(super) fn new() -> Door {
        Door {
            since: Instant::now(),
            places: Arc::default(),
            waiting: AtomicUsize::new(0),
            sources: Mutex::new(Allowances::new(FAILURES_PER_SOURCE, SOURCES_MAX)),
            machines: Mutex::new(Allowances::new(SESSIONS_PER_MACHINE, SESSIONS_MAX)),
        }
    }

    pub(super) fn under_way(&self) -> usize {
        lock(&self.places.taken).holders.len()
    }

    /// How many are in line.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(super) fn set_waiting(&self, count: usize) {
        self.waiting.store(count, Ordering::Relaxed);
    }

    pub(super) fn judge(&self, address: IpAddr, proven: bool) -> Verdict {
        let rested = lock(&self.sources).has(&source(address), self.since.elapsed());
        judge(proven, self.under_way(), rested)
    }

    /// Gives a place; when all are taken, that of the oldest, unless it came just now. Fails with when that
    /// one will have had its time.
    pub(super) fn enter(&self) -> Result<Place, Instant> {
        let (sender, give_way) = oneshot::channel();
        let (mut places, now) = (lock(&self.places.taken), Instant::now());
        if places.holders.len() >= HANDSHAKES_MAX
            && let Some(oldest) = places.holders.first_entry()
        {
            let until = oldest.get().since + HANDSHAKE_GIVES_WAY_AFTER;
            if now < until {
                return Err(until);
            }
            // Its receiver hears that the sender is gone.
            oldest.remove();
        }
        let number = places.next;
        places.next += 1;
        let holder = Holder {
            since: now,
            _stays: sender,
        };
        places.holders.insert(number, holder);
        Ok(Place {
            number,
            give_way,
            places: Arc::clone(&self.places),
        })
    }

    /// Gives a place once there is one. Nothing is lost when its caller does not wait to the end.
    pub(super) async fn entered(&self) -> Place {
        loop {
            let freed = self.places.freed.notified();
            match self.enter() {
                Ok(place) => return place,
                Err(until) => tokio::select! {
                    () = freed => {}
                    () = sleep_until(until) => {}
                },
            }
        }
    }

    /// Counts a failure on the account of an address that is proven.
    pub(super) fn failed(&self, address: IpAddr) {
        // Beyond the allowance there is nothing to take.
        let _ = lock(&self.sources).take(source(address), self.since.elapsed());
    }

    /// Forgets what an address failed: a machine has shown from there who it is.
    pub(super) fn vouched(&self, address: IpAddr) {
        lock(&self.sources).forget(&source(address));
    }

    /// Whether a machine may open a session now.
    pub(super) fn admits_session(&self, machine: &MachineName) -> bool {
        lock(&self.machines).take(machine.clone(), self.since.elapsed())
    }
}

#[derive(Debug, Default)]
struct Shared {
    taken: Mutex<Places>,
    /// Told when a place is given back.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    /// By age.
    holders: BTreeMap<u64, Holder>,
}

#[derive(Debug)]
struct Holder {
    since: Instant,
    /// Dropped when it has to give way.
    _stays: oneshot::Sender<()>,
}

/// The place of one handshake; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    give_way: oneshot::Receiver<()>,
    places: Arc<Shared>,
}

/// Newer peers needed the place.
#[derive(Debug, thiserror::Error)]
#[error("{HANDSHAKES_MAX} handshakes are under way, this was the oldest of them")]
pub(super) struct GaveWay;

impl Place {
    /// Does something for as long as the place is held.
    pub(super) async fn hold<T>(&mut self, work: impl Future<Output = T>) -> Result<T, GaveWay> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            _ = &mut self.give_way => Err(GaveWay),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.places.taken).holders.remove(&self.number);
        self.places.freed.notify_one();
    }
}

/// Those who wait for a place, by when they came.
///
/// A line that serves the first one first serves, as soon as it is longer than peers wait, only those that
/// are about to leave: a fleet of 10,000 took four times as long with it.
#[derive(Debug)]
pub(super) struct Line<T>(VecDeque<(Instant, T)>);

impl<T> Line<T> {
    pub(super) fn new() -> Line<T> {
        Line(VecDeque::new())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds one. From a line that is full, the one that came first has to leave.
    pub(super) fn join(&mut self, one: T) -> Option<T> {
        let left = if self.0.len() >= HANDSHAKES_WAITING_MAX {
            self.leave()
        } else {
            None
        };
        self.0.push_back((Instant::now(), one));
        left
    }

    /// The one that came first, if it has waited for too long.
    pub(super) fn given_up(&mut self) -> Option<T> {
        let (since, _) = self.0.front()?;
        if since.elapsed() < HANDSHAKE_WAITS_MAX {
            return None;
        }
        self.leave()
    }

    /// The one that came last, whose turn it is.
    pub(super) fn next(&mut self) -> Option<T> {
        Some(self.0.pop_back()?.1)
    }

    fn leave(&mut self) -> Option<T> {
        Some(self.0.pop_front()?.1)
    }
}

/// What is left to each of many; who is not in the table has everything left.
#[derive(Debug)]
struct Allowances<K> {
    rate: Rate,
    max: usize,
    table: HashMap<K, Allowance>,
    /// When a full table is searched for what rested, so that a flood does not search it each time.
    search_at: Duration,
}

/// Between two searches of a full table.
const SEARCH_EVERY: Duration = Duration::from_secs(1);

impl<K: Eq + Hash> Allowances<K> {
    fn new(rate: Rate, max: usize) -> Allowances<K> {
        Allowances {
            rate,
            max,
            table: HashMap::new(),
            search_at: Duration::ZERO,
        }
    }

    fn has(&self, key: &K, now: Duration) -> bool {
        let held = self.table.get(key);
        held.is_none_or(|allowance| allowance.wait(self.rate, now).is_zero())
    }

    fn forget(&mut self, key: &K) {
        self.table.remove(key);
    }

    fn take(&mut self, key: K, now: Duration) -> bool {
        if self.table.len() >= self.max && !self.table.contains_key(&key) {
            if now < self.search_at {
                return true;
            }
            self.search_at = now + SEARCH_EVERY;
            self.table.retain(|_, allowance| !allowance.is_full(now));
            if self.table.len() >= self.max {
                return true;
            }
        }
        let allowance = self.table.entry(key).or_default();
        allowance.take(self.rate, now).is_ok()
    }
}

/// The account of an address. Whoever has one IPv6 address has its /64.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Nothing panics while it holds one of these locks, and each value in it is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::net::Ipv4Addr;

    use proptest::prelude::*;
    use windlass_common::limits::HELLO_TIMEOUT;

    use super::*;

    #[test]
    fn only_who_is_proven_is_refused() {
        let (few, many) = (HANDSHAKES_BEFORE_RETRY - 1, HANDSHAKES_BEFORE_RETRY);
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            (false, few,  true,  Verdict::Accept),
            (false, few,  false, Verdict::Prove),
            (false, many, true,  Verdict::Prove),
            (false, many, false, Verdict::Prove),
            (true,  few,  true,  Verdict::Accept),
            (true,  few,  false, Verdict::Refuse),
            (true,  many, true,  Verdict::Accept),
            (true,  many, false, Verdict::Refuse),
        ];
        for (proven, under_way, rested, wanted) in cases {
            let name = (proven, under_way, rested);
            assert_eq!(judge(proven, under_way, rested), wanted, "{name:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_gives_way_after_its_time_and_places_come_back() {
        let door = Door::new();
        let mut places: Vec<Place> = (0..HANDSHAKES_MAX).map(|_| door.enter().unwrap()).collect();
        assert_eq!(door.under_way(), HANDSHAKES_MAX);
        let until = door.enter().expect_err("all came just now");
        assert_eq!(until, Instant::now() + HANDSHAKE_GIVES_WAY_AFTER);
        tokio::time::advance(HANDSHAKE_GIVES_WAY_AFTER).await;
        let newest = door.enter().unwrap();
        assert_eq!(door.under_way(), HANDSHAKES_MAX);
        places[0]
            .hold(std::future::pending::<()>())
            .await
            .unwrap_err();
        // What is done at once is done.
        places[0].hold(std::future::ready(())).await.unwrap();
        places[1].hold(std::future::ready(())).await.unwrap();
        drop(places);
        assert_eq!(door.under_way(), 1);
        drop(newest);
        assert_eq!(door.under_way(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_failed_too_often_is_let_in_once_a_machine_vouches_for_it() {
        let door = Door::new();
        let addresses: Vec<IpAddr> = ["192.0.2.1", "192.0.2.2"]
            .map(|address| address.parse().unwrap())
            .into();
        for address in &addresses {
            for _ in 0..FAILURES_PER_SOURCE.burst {
                assert_eq!(door.judge(*address, true), Verdict::Accept);
                door.failed(*address);
            }
            assert_eq!(door.judge(*address, true), Verdict::Refuse);
        }
        door.vouched(addresses[0]);
        assert_eq!(door.judge(addresses[0], true), Verdict::Accept);
        assert_eq!(door.judge(addresses[1], true), Verdict::Refuse, "another");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_enters_when_a_place_is_given_back_or_given_way() {
        let door = Door::new();
        let mut places: Vec<Place> = (0..HANDSHAKES_MAX).map(|_| door.enter().unwrap()).collect();
        let began = Instant::now();
        let (given_back, entered) = (places.pop(), door.entered());
        tokio::pin!(entered);
        let at_once = tokio::time::timeout(Duration::ZERO, &mut entered).await;
        assert!(at_once.is_err(), "no place");
        drop(given_back);
        let newest = entered.await;
        assert_eq!(Instant::now(), began, "at once");
        let second = door.entered().await;
        assert_eq!(Instant::now(), began + HANDSHAKE_GIVES_WAY_AFTER);
        drop((places, newest, second));
        assert_eq!(door.under_way(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_is_bounded_and_forgets_those_who_have_gone() {
        let mut line = Line::new();
        for number in 0..HANDSHAKES_WAITING_MAX {
            assert_eq!(line.join(number), None);
        }
        assert_eq!(line.join(9998), Some(0), "the oldest makes room");
        assert_eq!(line.len(), HANDSHAKES_WAITING_MAX);
        assert_eq!((line.given_up(), line.next()), (None, Some(9998)));
        tokio::time::advance(HANDSHAKE_WAITS_MAX).await;
        assert_eq!(line.join(9999), None);
        for number in 1..HANDSHAKES_WAITING_MAX {
            assert_eq!(line.given_up(), Some(number));
        }
        assert_eq!((line.given_up(), line.next()), (None, Some(9999)));
        assert!(line.is_empty());
    }

    /// A fleet larger than what is served while one peer waits, each of which knocks again as QUIC does and begins
    /// a new attempt when it has given up: there is no pause until all were served, and hardly a handshake for
    /// one that has gone.
    #[tokio::test(start_paused = true)]
    async fn a_large_fleet_is_served_without_a_pause_and_none_of_it_in_vain() {
        const TICK_MS: usize = 10;
        /// One is served in each tick, 400 while one waits.
        const FLEET: usize = 2000;
        const KNOCKS_MS: [usize; 5] = [0, 300, 900, 2100, 4500];
        let attempt_ms = HELLO_TIMEOUT.as_millis() as usize + 100;
        let mut line = Line::new();
        let mut in_line = HashSet::new();
        let mut left: HashSet<usize> = (0..FLEET).collect();
        let (mut in_vain, mut idle, mut now_ms) = (0, 0, 0_usize);
        // Spread over the first second.
        let began_ms = |agent: usize| agent * 1000 / FLEET / TICK_MS * TICK_MS;
        while !left.is_empty() {
            for &agent in &left {
                let Some(since_ms) = now_ms.checked_sub(began_ms(agent)) else {
                    continue;
                };
                let attempt = (agent, since_ms / attempt_ms);
                // One that is in line knocks to no effect.
                if KNOCKS_MS.contains(&(since_ms % attempt_ms)) && in_line.insert(attempt) {
                    assert_eq!(line.join(attempt), None);
                }
            }
            while let Some(gone) = line.given_up() {
                in_line.remove(&gone);
            }
            match line.next() {
                Some(next) => {
                    in_line.remove(&next);
                    let (agent, attempt) = next;
                    let is_there = (now_ms - began_ms(agent)) / attempt_ms == attempt;
                    if !(is_there && left.remove(&agent)) {
                        in_vain += 1;
                    }
                }
                None => idle += 1,
            }
            now_ms += TICK_MS;
            tokio::time::advance(Duration::from_millis(TICK_MS as u64)).await;
        }
        assert!(in_vain <= FLEET / 20, "{in_vain} handshakes in vain");
        assert!(idle <= FLEET / 20, "{idle} ticks without a handshake");
    }

    proptest! {
        /// However many addresses come in whatever order: the table is bounded, and an address never
        /// pays for another.
        #[test]
        fn tables_are_bounded_and_accounts_are_apart(
            steps in prop::collection::vec((0u32..40, 0u64..300), 1..300),
        ) {
            let rate = Rate { every: Duration::from_millis(100), burst: 3 };
            let mut all = Allowances::new(rate, 8);
            let mut alone: HashMap<u32, Allowance> = HashMap::new();
            let mut now = Duration::ZERO;
            for (key, gap) in steps {
                now += Duration::from_millis(gap);
                let taken = all.take(key, now);
                // Alone, it would have got this or less.
                let by_itself = alone.entry(key).or_default().take(rate, now).is_ok();
                prop_assert!(taken || !by_itself);
                prop_assert!(all.table.len() <= 8);
            }
        }
    }

    #[test]
    fn a_source_is_a_host_or_a_network_of_one() {
        let v4 = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));
        assert_eq!(source(v4), v4);
        assert_eq!(source("::ffff:192.0.2.7".parse().unwrap()), v4);
        let (one, two) = ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2");
        assert_eq!(source(one.parse().unwrap()), source(two.parse().unwrap()));
        assert_ne!(
            source(one.parse().unwrap()),
            source("2001:db8:0:2::1".parse().unwrap())
        );
    }
}
