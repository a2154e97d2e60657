//! The course of a benchmark: enroll, bare handshakes, restart, heartbeats, commands, deaths, NATS.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use windlass_common::limits::{HANDSHAKES_BYTES_MAX, suspect_after};

use crate::config::Identity;
use crate::gateway::SETTLES_WITHIN;

use super::error::BenchError;
use super::half_open;
use super::nats::{self, Nats};
use super::peer::Peer;
use super::process;
use super::protocol::{
    Attempts, FleetAnswer, FleetOrder, Moment, TargetAnswer, TargetOrder, now_us,
};
use super::report::{self, Beats, Check, Commands, Goal, Memory, Report, Vanished, Wave};
use super::seed::{self, Home, Seed};
use super::{Options, VICTIMS};

/// For what takes no longer with more agents.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Agents that may be on their way at once when enrolling, and in bare handshakes: enough to keep two
/// cores busy, and few enough that none has to prove its address first.
pub(super) const AT_ONCE: usize = 96;
/// Commands sent in a second.
const COMMANDS_PER_SECOND: u32 = 200;

/// Runs the benchmark.
pub(super) fn run(options: &Options) -> Result<Report, BenchError> {
    let mut bench = Bench::prepare(options)?;
    let load_before = load();
    bench.note("enrolling");
    let (enroll, memory_enrolled) = bench.enroll()?;
    bench.note("bare handshakes");
    let (bare, memory_bare) = bench.bare()?;
    bench.note("connecting again, and restarting the director");
    let mut director = bench.director(false)?;
    bench.order_fleet(&FleetOrder::Run { at_once: AT_ONCE })?;
    let reconnect_killed = bench.restart(&mut director, true)?;
    let reconnect = bench.restart(&mut director, false)?;
    bench.settle(&mut director)?;
    bench.note("counting heartbeats");
    let (heartbeats, usage) = bench.heartbeats(&mut director)?;
    let memory = Memory::new(director.empty_bytes, usage.resident_bytes, bench.agents);
    bench.note("sending commands");
    let commands = bench.commands(&mut director)?;
    bench.note("killing agents");
    let vanished = bench.vanish(&mut director)?;
    bench.order_fleet(&FleetOrder::Stop)?;
    director
        .peer
        .ask::<TargetAnswer>(&TargetOrder::Stop, PATIENCE)?;
    drop(director);
    let half_open = half_open::run(&mut bench)?;
    let (nats, nats_note) = bench.nats()?;
    let mut report = Report {
        bench: "fleet",
        version: env!("CARGO_PKG_VERSION"),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        agents: bench.agents,
        interval_ms: options.interval_ms(),
        paced_interval_ms: bench.paced_ms,
        processes: bench.fleet.len(),
        load_before,
        enroll,
        bare,
        reconnect,
        reconnect_killed,
        memory_bare,
        memory_enrolled,
        memory,
        heartbeats,
        false_suspects: usage.suspects,
        commands,
        vanished,
        half_open,
        nats,
        nats_note,
        goals: Vec::new(),
        checks: Vec::new(),
    };
    judge(&mut report);
    Ok(report)
}

/// Goals as `docs/benchmarks.md` names them, and what must hold.
fn judge(report: &mut Report) {
    let ratio = report.reconnect.seconds / report.bare.seconds;
    report.goals = vec![
        Goal::at_most(
            "memory of the director",
            "bytes per agent",
            report.memory.bytes_per_agent,
            20_000.0,
        ),
        Goal::at_most(
            "CPU of the director",
            "us per heartbeat",
            report.heartbeats.cpu_us_each,
            50.0,
        ),
        Goal::at_most("reconnect of the fleet", "x bare handshakes", ratio, 1.1),
        Goal::at_most("command p99", "ms", report.commands.p99_ms, 20.0),
    ];
    let interval = Duration::from_millis(report.paced_interval_ms.into());
    // The look comes four times in an interval; half a second for a host that is busy.
    let notice = suspect_after(interval) + interval / 4;
    report.goals.push(Goal::at_most(
        "a death is noticed",
        "ms",
        report.vanished.longest_ms,
        notice.as_secs_f64() * 1000.0 + 250.0,
    ));
    let agents = report.agents;
    report.checks = vec![
        Check::equal(
            "agents that enrolled and connected",
            agents,
            report.enroll.agents,
        ),
        Check::equal("bare handshakes", agents, report.bare.agents),
        Check::equal(
            "agents back after the director was killed",
            agents,
            report.reconnect_killed.agents,
        ),
        Check::equal(
            "agents back after a restart",
            agents,
            report.reconnect.agents,
        ),
        Check::equal(
            "commands answered",
            report.commands.sent as usize,
            report.commands.answered as usize,
        ),
        Check::equal(
            "deaths noticed",
            report.vanished.killed,
            report.vanished.noticed,
        ),
    ];
    if let Some(half_open) = &report.half_open {
        report.checks.push(Check::at_most(
            "resident bytes of half-open handshakes",
            HANDSHAKES_BYTES_MAX as u64,
            half_open.peak_bytes,
        ));
    }
}

/// A director under test.
pub(super) struct Director {
    pub(super) peer: Peer,
    /// When its port was open.
    listening_us: u64,
    /// Resident before that.
    pub(super) empty_bytes: u64,
}

/// What it used so far.
struct Usage {
    resident_bytes: u64,
    cpu_us: u64,
    heartbeats: u64,
    suspects: usize,
    resumed: u64,
    interval_ms: u32,
}

pub(super) struct Bench {
    home: Home,
    pub(super) options: Options,
    pub(super) seed: Seed,
    agents: usize,
    pub(super) fleet: Vec<Peer>,
    fleet_exe: PathBuf,
    /// Between two heartbeats, as the director has told its agents.
    paced_ms: u32,
}

impl Bench {
    fn prepare(options: &Options) -> Result<Bench, BenchError> {
        let exe = own_exe()?;
        let beside = || exe.with_file_name("windlass-fleet");
        let fleet_exe = options.fleet_exe.clone().unwrap_or_else(beside);
        if !fleet_exe.is_file() {
            return Err(BenchError::NoFleet(fleet_exe));
        }
        let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
        let home = Home::make(&parent)?;
        let (agents, processes) = (options.agents as usize, options.processes() as usize);
        let sizes: Vec<usize> = (0..processes)
            .map(|at| agents / processes + usize::from(at < agents % processes))
            .collect();
        let seed = block_on(seed::seed(&home, &sizes, VICTIMS as usize))?;
        let mut bench = Bench {
            home,
            options: options.clone(),
            seed,
            agents,
            fleet: Vec::new(),
            fleet_exe,
            paced_ms: options.interval_ms(),
        };
        for (at, file) in bench.seed.files.clone().iter().enumerate() {
            let peer = bench.start_fleet(&format!("fleet-{at}"), file)?;
            bench.fleet.push(peer);
        }
        Ok(bench)
    }

    pub(super) fn note(&self, doing: &str) {
        eprintln!("{} agents: {doing}", self.agents);
    }

    pub(super) fn start_fleet(&self, name: &str, settings: &Path) -> Result<Peer, BenchError> {
        let mut command = Command::new(&self.fleet_exe);
        command
            .arg("--settings")
            .arg(settings)
            .arg("--dir")
            .arg(self.home.path().join("agents"))
            .stderr(self.log(name)?);
        Peer::start(name, &mut command)
    }

    fn log(&self, name: &str) -> Result<fs::File, BenchError> {
        let path = self.home.path().join(format!("{name}.log"));
        let mut options = fs::OpenOptions::new();
        options
            .create(true)
            .append(true)
            .open(&path)
            .map_err(BenchError::io("open", &path))
    }

    pub(super) fn director(&self, bare: bool) -> Result<Director, BenchError> {
        let mut command = Command::new(own_exe()?);
        command
            .arg("bench-target")
            .arg("--dir")
            .arg(self.home.data().path())
            .args(["--listen", &self.seed.address.to_string()])
            .args(["--interval-ms", &self.options.interval_ms().to_string()])
            .stderr(self.log("director")?);
        if bare {
            command.arg("--bare");
        }
        let mut peer = Peer::start("the director under test", &mut command)?;
        match peer.answer(PATIENCE)? {
            TargetAnswer::Listening {
                at_us,
                resident_bytes,
            } => Ok(Director {
                peer,
                listening_us: at_us,
                empty_bytes: resident_bytes,
            }),
            other => Err(unexpected("the director under test", &other)),
        }
    }

    /// Time for something that every agent does: 50 ms each, and a minute. Enrolling takes 3 ms of CPU
    /// and syncs to disk at both ends, on a host that may be busy.
    pub(super) fn patience(&self) -> Duration {
        PATIENCE + Duration::from_millis(50) * self.options.agents
    }

    /// Gives every process of the fleet an order and waits until all are done; returns the microseconds
    /// from the first beginning to the last end, and how many agents failed.
    fn order_fleet(&mut self, order: &FleetOrder) -> Result<(u64, usize), BenchError> {
        let patience = self.patience();
        let share = |at_once: usize| at_once.div_ceil(self.fleet.len());
        let order = match order.clone() {
            FleetOrder::Run { at_once } => FleetOrder::Run {
                at_once: share(at_once),
            },
            FleetOrder::Handshakes { address, at_once } => FleetOrder::Handshakes {
                address,
                at_once: share(at_once),
            },
            FleetOrder::Publish {
                address,
                interval_ms,
                at_once,
            } => FleetOrder::Publish {
                address,
                interval_ms,
                at_once: share(at_once),
            },
            // One process by itself.
            FleetOrder::HalfOpen { .. } | FleetOrder::Attempts | FleetOrder::Stop => order.clone(),
        };
        for peer in &mut self.fleet {
            peer.order(&order)?;
        }
        let (mut began, mut ended, mut failures) = (u64::MAX, 0, 0);
        for peer in &mut self.fleet {
            let (began_us, ended_us, failed) = done(peer.answer(patience)?)?;
            began = began.min(began_us);
            ended = ended.max(ended_us);
            if let Some((count, first)) = failed {
                eprintln!("{count} agents failed, the first: {first}");
                failures += count;
            }
        }
        Ok((ended.saturating_sub(began), failures))
    }

    /// Every agent enrolls and connects.
    fn enroll(&mut self) -> Result<(Wave, Memory), BenchError> {
        let mut director = self.director(false)?;
        let before = usage(&mut director.peer)?;
        let (us, _) = self.order_fleet(&FleetOrder::Run { at_once: AT_ONCE })?;
        let (count, ..) = self.await_connected(&mut director)?;
        let after = usage(&mut director.peer)?;
        let wave = Wave::new(count, us, after.cpu_us - before.cpu_us);
        let memory = Memory::new(director.empty_bytes, after.resident_bytes, self.agents);
        self.order_fleet(&FleetOrder::Stop)?;
        Ok((wave, memory))
    }

    /// As many handshakes with a server that does nothing else.
    fn bare(&mut self) -> Result<(Wave, Memory), BenchError> {
        let mut server = self.director(true)?;
        let before = usage(&mut server.peer)?;
        let (us, failed) = self.order_fleet(&FleetOrder::Handshakes {
            address: self.seed.address,
            at_once: AT_ONCE,
        })?;
        let after = usage(&mut server.peer)?;
        self.order_fleet(&FleetOrder::Stop)?;
        let wave = Wave::new(self.agents - failed, us, after.cpu_us - before.cpu_us);
        let memory = Memory::new(server.empty_bytes, after.resident_bytes, self.agents);
        Ok((wave, memory))
    }

    /// Ends the director, starts it again, and waits until the fleet is back. The time counts from the
    /// moment its port is open.
    fn restart(&mut self, director: &mut Director, kill: bool) -> Result<Wave, BenchError> {
        self.await_connected(director)?;
        let before = self.attempts()?;
        if !kill {
            director
                .peer
                .ask::<TargetAnswer>(&TargetOrder::Stop, PATIENCE)?;
        }
        director.peer.kill();
        *director = self.director(false)?;
        let (count, at_us, course) = self.await_connected(director)?;
        let used = usage(&mut director.peer)?;
        let us = at_us.saturating_sub(director.listening_us);
        Ok(Wave {
            resumed: used.resumed,
            attempts: self.attempts()?.since(before),
            course,
            ..Wave::new(count, us, used.cpu_us)
        })
    }

    /// What became of the attempts of all agents since they were started.
    fn attempts(&mut self) -> Result<Attempts, BenchError> {
        let mut all = Attempts::default();
        for peer in &mut self.fleet {
            match peer.ask(&FleetOrder::Attempts, PATIENCE)? {
                FleetAnswer::Attempts(attempts) => all = all.plus(attempts),
                other => return Err(unexpected("a fleet", &other)),
            }
        }
        Ok(all)
    }

    fn await_connected(
        &self,
        director: &mut Director,
    ) -> Result<(usize, u64, Vec<Moment>), BenchError> {
        let patience = self.patience();
        let order = TargetOrder::AwaitConnected {
            count: self.agents,
            patience_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
        };
        match director.peer.ask(&order, patience + PATIENCE)? {
            TargetAnswer::Connected {
                count,
                at_us,
                course,
            } => Ok((count, at_us, course)),
            other => Err(unexpected("the director under test", &other)),
        }
    }

    /// Waits until the wave of connections is over and every agent beats at its pace: three intervals of it at least.
    fn settle(&mut self, director: &mut Director) -> Result<(), BenchError> {
        std::thread::sleep((self.interval() * 3).max(SETTLES_WITHIN));
        self.paced_ms = usage(&mut director.peer)?.interval_ms;
        Ok(())
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.paced_ms.into())
    }

    fn heartbeats(&self, director: &mut Director) -> Result<(Beats, Usage), BenchError> {
        let (first, began, fleet) = (
            usage(&mut director.peer)?,
            Instant::now(),
            self.fleet_cpu()?,
        );
        std::thread::sleep(Duration::from_secs(self.options.watch.into()));
        let (last, seconds) = (usage(&mut director.peer)?, began.elapsed().as_secs_f64());
        let beats = self.beats(
            last.heartbeats.saturating_sub(first.heartbeats),
            seconds,
            last.cpu_us - first.cpu_us,
            self.fleet_cpu()? - fleet,
        );
        Ok((beats, last))
    }

    fn beats(&self, count: u64, seconds: f64, cpu_us: u64, fleet_us: u64) -> Beats {
        let interval_ms = f64::from(self.paced_ms);
        Beats {
            count,
            per_second: count as f64 / seconds,
            wanted_per_second: self.agents as f64 * 1000.0 / interval_ms,
            cpu_us_each: cpu_us as f64 / count.max(1) as f64,
            cores: cpu_us as f64 / 1e6 / seconds,
            fleet_cores: fleet_us as f64 / 1e6 / seconds,
        }
    }

    fn fleet_cpu(&self) -> Result<u64, BenchError> {
        let cpu = |peer: &Peer| process::of(peer.pid()).map(|(_, cpu)| cpu);
        self.fleet.iter().map(cpu).sum()
    }

    fn commands(&self, director: &mut Director) -> Result<Commands, BenchError> {
        let (count, per_second) = (self.options.commands, COMMANDS_PER_SECOND);
        let order = TargetOrder::Commands { count, per_second };
        let patience = PATIENCE + Duration::from_secs(1) * (count / per_second) * 4;
        match director.peer.ask(&order, patience)? {
            TargetAnswer::Commands {
                answered,
                p50_us,
                p99_us,
                max_us,
            } => Ok(Commands {
                sent: count,
                answered,
                per_second,
                p50_ms: p50_us as f64 / 1000.0,
                p99_ms: p99_us as f64 / 1000.0,
                max_ms: max_us as f64 / 1000.0,
            }),
            other => Err(unexpected("the director under test", &other)),
        }
    }

    /// Kills processes with one agent each, and waits until each death is noticed.
    fn vanish(&mut self, director: &mut Director) -> Result<Vanished, BenchError> {
        let interval = self.interval();
        let patience = suspect_after(interval) + Duration::from_secs(10);
        let mut vanished = Vanished::default();
        for (at, (file, machine)) in self.seed.victims.clone().into_iter().enumerate() {
            let mut victim = self.start_fleet(&format!("victim-{at}"), &file)?;
            let _: FleetAnswer = victim.ask(&FleetOrder::Run { at_once: 1 }, PATIENCE)?;
            // Long enough to be one of the fleet, and another moment of its interval each time.
            let beats = interval * 2 + interval * u32::try_from(at).unwrap_or(0) / VICTIMS;
            std::thread::sleep(beats);
            director.peer.order(&TargetOrder::AwaitSuspect {
                machine,
                patience_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
            })?;
            // The order is read in well under this.
            std::thread::sleep(Duration::from_millis(50));
            let killed_us = now_us();
            victim.kill();
            vanished.killed += 1;
            if let TargetAnswer::Suspect { at_us: Some(at_us) } =
                director.peer.answer(patience + PATIENCE)?
            {
                let ms = at_us.saturating_sub(killed_us) as f64 / 1000.0;
                vanished.noticed += 1;
                vanished.each_ms.push(ms);
                vanished.longest_ms = vanished.longest_ms.max(ms);
            }
        }
        Ok(vanished)
    }

    /// The comparison, or why there is none.
    fn nats(&mut self) -> Result<(Option<report::Nats>, String), BenchError> {
        if self.options.no_nats {
            return Ok((None, "left out (--no-nats)".to_owned()));
        }
        let Some(program) = nats::find() else {
            let note = "not installed (Debian and Ubuntu: apt-get install nats-server)";
            return Ok((None, note.to_owned()));
        };
        self.note("the same with nats-server");
        let identity = block_on(Identity::load(&self.home.data(), jiff::Timestamp::now()))?;
        let server = Nats::start(&program, self.home.path(), &identity)?;
        let (empty, cpu_before) = server.usage()?;
        let (us, failed) = self.order_fleet(&FleetOrder::Publish {
            address: server.address,
            interval_ms: self.paced_ms,
            at_once: AT_ONCE,
        })?;
        let (_, cpu_after) = server.usage()?;
        let connect = Wave::new(self.agents - failed, us, cpu_after - cpu_before);
        std::thread::sleep((self.interval() * 3).max(SETTLES_WITHIN));
        let heartbeats = self.nats_heartbeats(&server)?;
        let (full, _) = server.usage()?;
        self.order_fleet(&FleetOrder::Stop)?;
        let figures = report::Nats {
            version: server.version.clone(),
            connect,
            memory: Memory::new(empty, full, self.agents),
            heartbeats,
        };
        Ok((Some(figures), "measured in the same run".to_owned()))
    }

    fn nats_heartbeats(&self, server: &Nats) -> Result<Beats, BenchError> {
        let (messages, (_, cpu)) = (server.messages()?, server.usage()?);
        let (began, fleet) = (Instant::now(), self.fleet_cpu()?);
        std::thread::sleep(Duration::from_secs(self.options.watch.into()));
        let (more, (_, later)) = (server.messages()?, server.usage()?);
        let (seconds, fleet_later) = (began.elapsed().as_secs_f64(), self.fleet_cpu()?);
        Ok(self.beats(
            more.saturating_sub(messages),
            seconds,
            later - cpu,
            fleet_later - fleet,
        ))
    }
}

fn usage(peer: &mut Peer) -> Result<Usage, BenchError> {
    match peer.ask(&TargetOrder::Usage, PATIENCE)? {
        TargetAnswer::Usage {
            resident_bytes,
            cpu_us,
            heartbeats,
            suspects,
            resumed,
            interval_ms,
            ..
        } => Ok(Usage {
            resident_bytes,
            cpu_us,
            heartbeats,
            suspects,
            resumed,
            interval_ms,
        }),
        other => Err(unexpected("the director under test", &other)),
    }
}

/// How often something failed, and the first failure in words.
type Failed = Option<(usize, String)>;

/// Beginning, end and failures of something that a fleet did.
pub(super) fn done(answer: FleetAnswer) -> Result<(u64, u64, Failed), BenchError> {
    match answer {
        FleetAnswer::Done {
            began_us,
            ended_us,
            failed,
        } => Ok((began_us, ended_us, failed)),
        other => Err(unexpected("a fleet", &other)),
    }
}

fn unexpected(name: &str, answer: &impl fmt::Debug) -> BenchError {
    BenchError::Peer {
        name: name.to_owned(),
        what: format!("answered {answer:?} to another question"),
    }
}

fn own_exe() -> Result<PathBuf, BenchError> {
    std::env::current_exe().map_err(BenchError::io("find", "this program"))
}

/// The load average of one minute: what else this host does.
fn load() -> f64 {
    fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(f64::NAN)
}

fn block_on<T, E: Into<BenchError>>(
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BenchError::io("start", "a runtime"))?;
    runtime.block_on(work).map_err(Into::into)
}
