//! A machine that does what it is told at once, and reports what an idle worker reports.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use windlass_agent::link::{CancelToken, Handler, HelloFacts, ProgressSink, StepFuture};
use windlass_common::id::Epoch;
use windlass_common::report::{Heartbeat, Report, Scope, UnitReport, Vitals};
use windlass_common::step::{Outcome, Payload, StepRequest, StepResult};
use windlass_common::wire::message::Tune2;

/// What stands behind the link.
#[derive(Debug)]
pub(crate) struct Machine {
    reports: watch::Receiver<Arc<Report>>,
}

impl Machine {
    pub(crate) fn new(reports: watch::Receiver<Arc<Report>>) -> Machine {
        Machine { reports }
    }
}

impl Handler for Machine {
    fn step(
        &self,
        request: StepRequest,
        _progress: ProgressSink,
        _cancel: CancelToken,
    ) -> StepFuture<'_> {
        Box::pin(std::future::ready(StepResult {
            id: request.id,
            outcome: Outcome::Changed,
            payload: Payload::Exit(0),
            changes: Vec::new(),
            elapsed_ms: 0,
        }))
    }

    fn hello(&self) -> HelloFacts {
        HelloFacts {
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            capabilities: Vec::new(),
            boot_id: "5e6a2c1f-0b7d-4b6e-9d55-3f1d8f1f5c11".to_owned(),
            epoch: Epoch(0),
            unfinished: Vec::new(),
        }
    }

    fn reports(&self) -> watch::Receiver<Arc<Report>> {
        self.reports.clone()
    }

    fn heartbeat(&self) -> Heartbeat {
        Heartbeat {
            sequence: 0,
            at_unix_ms: self.reports.borrow().at_unix_ms,
            units_unhealthy: 0,
            memory_used_bp: 1200,
            disk_used_bp: 3400,
            epoch: Epoch(1),
        }
    }

    fn epoch_seen(&self, _epoch: Epoch) {}

    fn tuned(&self, _tune: Tune2) {}
}

/// What an idle worker reports.
pub(crate) fn report(at_unix_ms: u64) -> Report {
    let components = [
        ("cni-plugins", "1.9.1"),
        ("containerd", "2.2.9"),
        ("kube-proxy", "1.37.2"),
        ("kubelet", "1.37.2"),
        ("runc", "1.3.6"),
    ];
    let units = [
        "containerd.service",
        "kube-proxy.service",
        "kubelet.service",
        "windlass-agent.service",
    ];
    let running = UnitReport {
        active_state: "active".to_owned(),
        sub_state: "running".to_owned(),
        restarts: 0,
    };
    Report {
        at_unix_ms,
        boot_id: "5e6a2c1f-0b7d-4b6e-9d55-3f1d8f1f5c11".to_owned(),
        uptime_s: 86_400,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        components: components
            .map(|(name, version)| (name.to_owned(), version.to_owned()))
            .into(),
        units: units
            .map(|name| (name.to_owned(), running.clone()))
            .into_iter()
            .collect::<BTreeMap<_, _>>(),
        vitals: Vitals {
            memory_used_bytes: 500 << 20,
            memory_total_bytes: 4 << 30,
            memory_scope: Scope::Machine,
            cpu_used_ms: 1_000_000,
            cpu_scope: Scope::Machine,
            disk_used_bytes: 7 << 30,
            disk_total_bytes: 20 << 30,
            load1_centi: 15,
            load_scope: Scope::Host,
        },
    }
}
