//! Handshakes that are begun and left: what they cost, and that they keep no agent out.

use std::time::Duration;

use super::error::BenchError;
use super::process;
use super::protocol::{FleetAnswer, FleetOrder, TargetOrder, now_us};
use super::report::HalfOpen;
use super::run::{AT_ONCE, Bench, PATIENCE, done};

/// Time for one of them: a handshake's CPU at both ends on a host that may be busy.
const EACH: Duration = Duration::from_millis(20);

/// Has a stranger leave handshakes half open with a director of its own, while an agent connects.
pub(super) fn run(bench: &mut Bench) -> Result<Option<HalfOpen>, BenchError> {
    let count = bench.options.half_open;
    if count == 0 {
        return Ok(None);
    }
    bench.note("leaving handshakes half open");
    let director = bench.director(false)?;
    let order = FleetOrder::HalfOpen {
        address: bench.seed.address,
        count: count as usize,
        at_once: AT_ONCE,
    };
    // The stranger shows a certificate, which the director never gets to see.
    let stranger = &mut bench.fleet[0];
    let (began_us, ended_us, _) = done(stranger.ask(&order, PATIENCE + EACH * count)?)?;
    let began = now_us();
    let agent_connected_ms = match bench.seed.victims.first().cloned() {
        Some((file, _)) => {
            let mut agent = bench.start_fleet("late", &file)?;
            let _: FleetAnswer = agent.ask(&FleetOrder::Run { at_once: 1 }, PATIENCE)?;
            now_us().saturating_sub(began) as f64 / 1000.0
        }
        None => f64::NAN,
    };
    let peak = process::peak_bytes(director.peer.pid())?;
    let stranger = &mut bench.fleet[0];
    let _: FleetAnswer = stranger.ask(&FleetOrder::Stop, PATIENCE)?;
    let mut director = director;
    let _: super::protocol::TargetAnswer = director.peer.ask(&TargetOrder::Stop, PATIENCE)?;
    Ok(Some(HalfOpen {
        count,
        seconds: ended_us.saturating_sub(began_us) as f64 / 1e6,
        peak_bytes: peak.saturating_sub(director.empty_bytes),
        agent_connected_ms,
    }))
}
