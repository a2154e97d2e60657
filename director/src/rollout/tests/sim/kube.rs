//! The world as its Kubernetes API shows it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use windlass_common::error::ErrorClass;
use windlass_common::gate::ServicePort;
use windlass_common::id::{ClusterName, Incarnation, MachineName, NodeName};

use super::Life;
use crate::backup::record::Census;
use crate::drain::{Course, NodeRehearsal, OwnNode, Rehearsal};
use crate::model::Stage;
use crate::planner::inputs;
use crate::rollout::world::{ClusterContext, JobOrder, KubeApi, LeaseMark};
use crate::rollout::{Done, EffectError, ProgressSink, RecordChange};

/// When every kubelet here has said last that its node is Ready.
const SAID: &str = "1970-01-01T01:00:00Z";

impl KubeApi for Life {
    fn apply_addons<'a>(
        &'a self,
        context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.effect(|state| state.addons = true).await;
            Ok(Done {
                changes: Vec::new(),
                records: vec![RecordChange::Addons(inputs::addons_digest(&context.future))],
            })
        })
    }

    fn await_node<'a>(
        &'a self,
        context: &'a ClusterContext,
        machine: &'a MachineName,
        _limit: Duration,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            let node = context.machine_facts(machine)?.node_name.clone();
            let ready = self.effect(|state| {
                assert!(state.machines[machine].started && state.addons);
                let never = state.never_ready.contains(node.as_str());
                if !never {
                    state.ready.insert(node);
                }
                !never
            });
            if !ready.await {
                let message = "it is not Ready: container runtime network not ready";
                return Err(EffectError::new(ErrorClass::Operator, message));
            }
            Ok(Done {
                changes: Vec::new(),
                records: vec![RecordChange::NodeReady(
                    machine.clone(),
                    context.configuration(context.machine(machine)?)?.labels,
                )],
            })
        })
    }

    fn census<'a>(
        &'a self,
        _context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Census, EffectError>> {
        Box::pin(async { Ok(Census::default()) })
    }

    fn reached_from_outside<'a>(
        &'a self,
        _context: &'a ClusterContext,
        _machine: &'a MachineName,
    ) -> BoxFuture<'a, Result<bool, EffectError>> {
        Box::pin(async { Ok(true) })
    }

    fn heartbeat<'a>(
        &'a self,
        _context: &'a ClusterContext,
        _machine: &'a MachineName,
    ) -> BoxFuture<'a, Result<Option<String>, EffectError>> {
        Box::pin(async { Ok(None) })
    }

    fn drop_node<'a>(
        &'a self,
        _context: &'a ClusterContext,
        machine: &'a MachineName,
        node: &'a NodeName,
        _limit: Duration,
        _progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.effect(|state| {
                state.ready.remove(node);
                state.cordoned.remove(node);
            })
            .await;
            Ok(Done {
                changes: Vec::new(),
                records: vec![RecordChange::NodeDropped(machine.clone(), node.clone())],
            })
        })
    }

    fn settle_nodes<'a>(
        &'a self,
        _context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.effect(|state| assert!(state.addons, "the right to it is one of the add-ons"))
                .await;
            Ok(Done::default())
        })
    }

    fn await_api<'a>(
        &'a self,
        _context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.effect(|state| {
                let up = state.machines.values().any(|vm| vm.mounted && vm.started);
                let error = || EffectError::new(ErrorClass::Retry, "no API server answers");
                up.then(Done::default).ok_or_else(error)
            })
            .await
        })
    }

    fn rehearse<'a>(
        &'a self,
        _context: &'a ClusterContext,
        course: &'a Course,
    ) -> BoxFuture<'a, Result<Rehearsal, EffectError>> {
        Box::pin(async move {
            let nodes = course.sequence.iter().flatten().map(|node| NodeRehearsal {
                node: node.clone(),
                ..NodeRehearsal::default()
            });
            Ok(Rehearsal {
                nodes: nodes.collect(),
                hazards: self.sim.state.lock().unwrap().hazards.clone(),
                ..Rehearsal::default()
            })
        })
    }

    fn serving<'a>(
        &'a self,
        _context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<BTreeMap<NodeName, String>, EffectError>> {
        let state = self.sim.state.lock().unwrap();
        let open = state.ready.difference(&state.cordoned);
        let serving = open.map(|node| (node.clone(), SAID.to_owned())).collect();
        Box::pin(async { Ok(serving) })
    }

    fn drain<'a>(
        &'a self,
        _context: &'a ClusterContext,
        node: &'a NodeName,
        _own: &'a dyn OwnNode,
        _progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.effect(|state| state.cordoned.insert(node.clone()))
                .await;
            let stuck = || {
                let state = self.sim.state.lock().unwrap();
                state.stuck.iter().any(|of| node.as_str().starts_with(of))
            };
            while stuck() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(Done::default())
        })
    }

    fn uncordon<'a>(
        &'a self,
        _context: &'a ClusterContext,
        machine: &'a MachineName,
        node: &'a NodeName,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.effect(|state| state.cordoned.remove(node)).await;
            Ok(Done {
                changes: Vec::new(),
                records: vec![RecordChange::Uncordoned(machine.clone())],
            })
        })
    }

    fn lease<'a>(
        &'a self,
        _context: &'a ClusterContext,
        _node: &'a NodeName,
        _through: &'a [(MachineName, Incarnation)],
    ) -> BoxFuture<'a, Result<Option<LeaseMark>, EffectError>> {
        unreachable!("no step reads leases")
    }

    fn ask_service<'a>(
        &'a self,
        _context: &'a ClusterContext,
        _service: &'a ServicePort,
        _path: &'a str,
    ) -> BoxFuture<'a, Result<Vec<u8>, String>> {
        unreachable!("no cluster here has gates that ask")
    }

    fn run_job<'a>(
        &'a self,
        _context: &'a ClusterContext,
        _job: &'a JobOrder,
        _progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let failed = || "failed: the shop sells nothing".to_owned();
            self.effect(|state| match state.jobs_fail {
                true => Err(failed()),
                false => Ok(()),
            })
            .await
        })
    }

    fn rewrite_secrets<'a>(
        &'a self,
        _context: &'a ClusterContext,
        _progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.effect(|_| ()).await;
            Ok(Done {
                changes: Vec::new(),
                records: vec![RecordChange::StageDone(Stage::Rewrite)],
            })
        })
    }

    fn await_dns<'a>(
        &'a self,
        _context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.effect(|_| ()).await;
            Ok(Done {
                changes: Vec::new(),
                records: vec![RecordChange::StageDone(Stage::RestartDns)],
            })
        })
    }

    fn forget(&self, _cluster: &ClusterName) {}
}
