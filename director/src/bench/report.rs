//! The result: figures, what they are compared with, and what had to hold.

use std::fmt;

use serde::Serialize;

use super::protocol::{Attempts, Moment};

/// One goal and the figure it is about.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Goal {
    pub(super) what: &'static str,
    pub(super) unit: &'static str,
    pub(super) value: f64,
    /// At most.
    pub(super) goal: f64,
    pub(super) met: bool,
}

impl Goal {
    pub(super) fn at_most(what: &'static str, unit: &'static str, value: f64, goal: f64) -> Goal {
        Goal {
            what,
            unit,
            value,
            goal,
            met: value <= goal,
        }
    }
}

/// What must hold whatever the speed.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Check {
    pub(super) what: &'static str,
    pub(super) wanted: u64,
    pub(super) got: u64,
    pub(super) holds: bool,
}

impl Check {
    pub(super) fn equal(what: &'static str, wanted: usize, got: usize) -> Check {
        Check {
            what,
            wanted: wanted as u64,
            got: got as u64,
            holds: wanted == got,
        }
    }

    pub(super) fn at_most(what: &'static str, bound: u64, got: u64) -> Check {
        Check {
            what,
            wanted: bound,
            got,
            holds: got <= bound,
        }
    }
}

/// Handshakes of the whole fleet with one director.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Wave {
    pub(super) agents: usize,
    pub(super) seconds: f64,
    pub(super) per_second: f64,
    /// CPU time of the director for each of them.
    pub(super) director_cpu_us: f64,
    /// Of them, sessions that were resumed; the others made a full handshake.
    pub(super) resumed: u64,
    /// What became of the agents' attempts.
    pub(super) attempts: Attempts,
    /// Second by second.
    pub(super) course: Vec<Moment>,
}

impl Wave {
    pub(super) fn new(agents: usize, us: u64, cpu_us: u64) -> Wave {
        let (count, seconds) = (agents.max(1) as f64, us.max(1) as f64 / 1e6);
        Wave {
            agents,
            seconds,
            per_second: count / seconds,
            director_cpu_us: cpu_us as f64 / count,
            resumed: 0,
            attempts: Attempts::default(),
            course: Vec::new(),
        }
    }
}

/// Resident memory of the server.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Memory {
    /// Before its port was open.
    pub(super) empty_bytes: u64,
    pub(super) full_bytes: u64,
    pub(super) bytes_per_agent: f64,
}

impl Memory {
    pub(super) fn new(empty_bytes: u64, full_bytes: u64, agents: usize) -> Memory {
        let grown = full_bytes.saturating_sub(empty_bytes);
        Memory {
            empty_bytes,
            full_bytes,
            bytes_per_agent: grown as f64 / agents.max(1) as f64,
        }
    }
}

/// What heartbeats cost the server.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Beats {
    pub(super) count: u64,
    pub(super) per_second: f64,
    /// What the agents' interval comes to.
    pub(super) wanted_per_second: f64,
    pub(super) cpu_us_each: f64,
    /// Cores the server was busy.
    pub(super) cores: f64,
    /// Cores the processes with the agents were busy.
    pub(super) fleet_cores: f64,
}

/// Round trips of commands while the fleet beats.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Commands {
    pub(super) sent: u32,
    pub(super) answered: u32,
    pub(super) per_second: u32,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) max_ms: f64,
}

/// How long it took to notice agents that were killed.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Vanished {
    pub(super) killed: usize,
    pub(super) noticed: usize,
    pub(super) longest_ms: f64,
    pub(super) each_ms: Vec<f64>,
}

/// Handshakes that were begun and left.
#[derive(Debug, Clone, Serialize)]
pub(super) struct HalfOpen {
    pub(super) count: u32,
    pub(super) seconds: f64,
    /// Resident bytes of the director at the worst moment, beyond those before its port was open.
    pub(super) peak_bytes: u64,
    /// Until an agent was connected with that director, after all of them were begun.
    pub(super) agent_connected_ms: f64,
}

/// The same with `nats-server`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Nats {
    pub(super) version: String,
    pub(super) connect: Wave,
    pub(super) memory: Memory,
    pub(super) heartbeats: Beats,
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) bench: &'static str,
    pub(super) version: &'static str,
    pub(super) cores: usize,
    pub(super) agents: usize,
    /// What was asked for.
    pub(super) interval_ms: u32,
    /// What the director told its agents once all were there; longer where their heartbeats would take more
    /// than their part of the host.
    pub(super) paced_interval_ms: u32,
    pub(super) processes: usize,
    /// Of one minute, before the first agent.
    pub(super) load_before: f64,
    /// Enrolling and connecting for the first time.
    pub(super) enroll: Wave,
    /// The reference: full mutual handshakes with a server that does nothing else.
    pub(super) bare: Wave,
    /// After the director was restarted in order; from its port being open again.
    pub(super) reconnect: Wave,
    /// After it was killed.
    pub(super) reconnect_killed: Wave,
    /// Of the server of the bare handshakes, all of its connections standing: what quinn and TLS take.
    pub(super) memory_bare: Memory,
    pub(super) memory_enrolled: Memory,
    pub(super) memory: Memory,
    pub(super) heartbeats: Beats,
    pub(super) false_suspects: usize,
    pub(super) commands: Commands,
    pub(super) vanished: Vanished,
    pub(super) half_open: Option<HalfOpen>,
    pub(super) nats: Option<Nats>,
    pub(super) nats_note: String,
    pub(super) goals: Vec<Goal>,
    pub(super) checks: Vec<Check>,
}

impl Report {
    /// Whether everything held that must hold.
    pub(super) fn holds(&self) -> bool {
        self.checks.iter().all(|check| check.holds)
    }

    pub(super) fn to_json(&self) -> String {
        // Numbers, texts and lists alone: nothing that JSON does not have.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} agents in {} processes, a heartbeat every {} ms (asked for: {} ms), {} cores, load before {:.2}\n",
            self.agents,
            self.processes,
            self.paced_interval_ms,
            self.interval_ms,
            self.cores,
            self.load_before
        )?;
        wave(f, "enroll and connect", &self.enroll)?;
        wave(f, "bare handshakes", &self.bare)?;
        wave(f, "reconnect after a restart", &self.reconnect)?;
        wave(f, "reconnect after a kill", &self.reconnect_killed)?;
        memory(f, "bare server", &self.memory_bare)?;
        memory(f, "director, after enrolling", &self.memory_enrolled)?;
        memory(f, "director, after a restart", &self.memory)?;
        beats(f, "heartbeats", &self.heartbeats)?;
        let Commands { answered, sent, .. } = self.commands;
        writeln!(
            f,
            "{:<28} {answered} of {sent} answered, p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
            "commands", self.commands.p50_ms, self.commands.p99_ms, self.commands.max_ms
        )?;
        writeln!(
            f,
            "{:<28} {} of {} noticed, at the latest after {:.0} ms",
            "killed agents", self.vanished.noticed, self.vanished.killed, self.vanished.longest_ms
        )?;
        if let Some(half_open) = &self.half_open {
            writeln!(
                f,
                "{:<28} {} in {:.1} s, at most {:.1} MB resident; then an agent connected in {:.0} ms",
                "half-open handshakes",
                half_open.count,
                half_open.seconds,
                half_open.peak_bytes as f64 / 1e6,
                half_open.agent_connected_ms
            )?;
        }
        match &self.nats {
            Some(nats) => {
                writeln!(f, "\n{}", nats.version)?;
                wave(f, "connect", &nats.connect)?;
                memory(f, "server", &nats.memory)?;
                beats(f, "heartbeats", &nats.heartbeats)?;
            }
            None => writeln!(f, "\nnats-server: {}", self.nats_note)?,
        }
        writeln!(f, "\n{:<44} {:>10} {:>10}", "goal", "value", "at most")?;
        for goal in &self.goals {
            let met = if goal.met { "met" } else { "MISSED" };
            let what = format!("{}, {}", goal.what, goal.unit);
            writeln!(
                f,
                "{what:<44} {:>10.2} {:>10.2} {met}",
                goal.value, goal.goal
            )?;
        }
        for check in self.checks.iter().filter(|check| !check.holds) {
            writeln!(
                f,
                "FAILED: {}: {} of {}",
                check.what, check.got, check.wanted
            )?;
        }
        Ok(())
    }
}

fn wave(f: &mut fmt::Formatter<'_>, what: &str, wave: &Wave) -> fmt::Result {
    writeln!(
        f,
        "{what:<28} {:>8.2} s  {:>8.0} /s  {:>8.0} us CPU of the server each, {} resumed",
        wave.seconds, wave.per_second, wave.director_cpu_us, wave.resumed
    )?;
    let Some(last) = wave.course.last() else {
        return Ok(());
    };
    let Attempts {
        silent,
        unserved,
        failed,
        ..
    } = wave.attempts;
    writeln!(
        f,
        "{:<28} {silent} attempts not answered, {unserved} not served in time, {failed} failed; {} handshakes \
         begun, {} first packets turned away",
        "", last.begun, last.crowded
    )
}

fn memory(f: &mut fmt::Formatter<'_>, what: &str, memory: &Memory) -> fmt::Result {
    writeln!(
        f,
        "{what:<28} {:>8.1} MB empty, {:.1} MB full, {:.0} bytes an agent",
        memory.empty_bytes as f64 / 1e6,
        memory.full_bytes as f64 / 1e6,
        memory.bytes_per_agent
    )
}

fn beats(f: &mut fmt::Formatter<'_>, what: &str, beats: &Beats) -> fmt::Result {
    writeln!(
        f,
        "{what:<28} {:>8.0} /s of {:.0}, {:.1} us CPU each; server {:.2} cores, fleet {:.2} cores",
        beats.per_second,
        beats.wanted_per_second,
        beats.cpu_us_each,
        beats.cores,
        beats.fleet_cores
    )
}
