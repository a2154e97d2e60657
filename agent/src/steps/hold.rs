//! `hold`: has a unit's processes stand still for a moment, by `SIGSTOP`: not every machine may freeze a control group.
//!
//! # Invariants
//! * It goes on once its time is over or the step is given up, whoever is in the way of this step by then; a timer of
//!   systemd's sees to it where the agent ends meanwhile.
//!
//! # After a crash
//! The timer has the unit go on. A step that is sent again is one that was interrupted.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::oneshot;
use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::step::{HELD, Hold, Payload};

use super::{Context, Failure, Run};
use crate::host::command;

/// How much later than the agent the timer is.
const SPARE: Duration = Duration::from_secs(1);

pub(super) async fn run(context: &Context, run: &Run, hold: &Hold) -> Result<Payload, Failure> {
    let time = Duration::from_millis(hold.for_ms.into());
    set_timer(&hold.unit, time + SPARE).await?;
    let (units, unit) = (Arc::clone(&context.units), hold.unit.clone());
    let (here, given_up) = oneshot::channel::<()>();
    let (stands, still) = oneshot::channel();
    // On its own: what is stopped goes on, also when nobody waits for this step any more.
    let held = tokio::spawn(async move {
        let stopped = units.signal(&unit, Signal::SIGSTOP).await;
        let is_stopped = stopped.is_ok();
        // Nobody is left to hear it: then it is over at once.
        let _ = stands.send(stopped);
        if is_stopped {
            tokio::select! {
                _ = given_up => {}
                () = tokio::time::sleep(time) => {}
            }
        }
        // Also where it is not known whether it was stopped.
        units.signal(&unit, Signal::SIGCONT).await
    });
    let ended = |error: &dyn std::error::Error| {
        let said = format!("what holds {} still ended: {error}", hold.unit);
        Failure::new(ErrorClass::Bug, said)
    };
    still.await.map_err(|error| ended(&error))??;
    run.progress.stage(HELD);
    run.changed(format!("{}: held still for a moment", hold.unit));
    let goes_on = held.await.map_err(|error| ended(&error))?;
    drop(here);
    Ok(goes_on.map(|()| Payload::None)?)
}

/// Has systemd let the unit go on, whatever becomes of the agent. One that goes on already is left as it is.
async fn set_timer(unit: &str, after: Duration) -> Result<(), Failure> {
    let after = format!("--on-active={}ms", after.as_millis());
    let timer = ["systemd-run", "--quiet", "--collect", &after];
    let exact = ["--timer-property=AccuracySec=50ms"];
    let go_on = ["systemctl", "kill", "--signal=CONT", unit];
    let argv = [&timer[..], &exact, &go_on].concat();
    let failed = |said: String| {
        let message = format!("systemd takes no timer that lets {unit} go on: {said}");
        Failure::new(ErrorClass::Retry, message)
    };
    let output = command::run(&argv, None)
        .await
        .map_err(|error| failed(ErrorChain(&error).to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(failed(output.stderr.trim().to_owned())),
    }
}
