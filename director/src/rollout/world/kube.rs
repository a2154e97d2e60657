//! Steps that ask a cluster's API, tunnelled through the agent of one of its control-plane machines.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::Instant;
use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::gate::ServicePort;
use windlass_common::id::{ClusterName, Incarnation, MachineName, NodeName};

use super::Agents;
use super::asked::KubeApi;
use super::context::ClusterContext;
use super::gates::{self, JobOrder};
use super::lease::{self, LeaseMark};
use crate::backup::record::Census;
use crate::drain::{
    self, Course, DrainError, DrainPolicy, Drained, OwnNode, PodRef, Rehearsal, SystemPodsError,
};
use crate::kubernetes::addons;
use crate::kubernetes::client::{
    ApiError, ByteStream, Client, ConnectFuture, Connector, Node, Resource,
};
use crate::kubernetes::facts::SecretsRevision;
use crate::kubernetes::pki::{
    AuthorityName, ClientIdentity, DIRECTOR_USER, bootstrap_identity, director_identity,
    rewriter_identity,
};
use crate::model::{Machine, Stage};
use crate::planner::inputs;
use crate::rollout::{Done, EffectError, ProgressSink, RecordChange};

/// Pause between two looks at a node that is not Ready yet: a look costs the API server a fraction of a
/// millisecond, and its answer is what a create waits for.
const NODE_INTERVAL: Duration = Duration::from_millis(100);
/// How long a node may take to be Ready again whose kubelet was only started anew; it takes seconds, on a busy
/// host tens of them.
const RESTART_LIMIT: Duration = Duration::from_secs(90);

/// What a Node is dated by: two reports of a kubelet within one second look alike.
const SECOND: Duration = Duration::from_secs(1);
/// How far the clock of a machine may be from the director's, for what is asked of both.
const CLOCKS_APART: Duration = Duration::from_secs(60);

/// How long pods of the system may take to be Ready on a node that is: images of the stemcell are there, others have to
/// be fetched.
const SYSTEM_PODS_LIMIT: Duration = Duration::from_secs(180);

/// What is left of the time for dropping a node when nobody waits for its volumes any more.
const DROP_TIME: Duration = Duration::from_secs(60);

/// How long before its certificate expires a client is replaced: longer than any step may take.
const RENEW_BEFORE: Duration = Duration::from_secs(6 * 3600);

/// The real thing: one client per cluster, connected through agents.
pub struct KubeClient {
    pub(super) agents: Arc<dyn Agents>,
    clients: Mutex<BTreeMap<ClusterName, Kept>>,
}

/// A client with the incarnations that it goes through: others need another one.
struct Kept {
    through: Vec<(MachineName, Incarnation)>,
    /// What it trusts and shows changes with this.
    secrets: SecretsRevision,
    client: Arc<Client>,
}

impl fmt::Debug for KubeClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KubeClient")
    }
}

impl KubeClient {
    /// Connects through these agents.
    pub fn new(agents: Arc<dyn Agents>) -> Self {
        Self {
            agents,
            clients: Mutex::default(),
        }
    }

    /// The director's own client of a cluster.
    pub(super) fn client(&self, context: &ClusterContext) -> Result<Arc<Client>, EffectError> {
        let name = &context.cluster.spec.name;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let now = jiff::Timestamp::now();
        let through = api_servers(context);
        if let Some(kept) = clients.get(name)
            && kept.through == through
            && kept.secrets == context.cluster.secrets
            && kept.client.is_fresh(now, RENEW_BEFORE)
        {
            return Ok(kept.client.clone());
        }
        let identity = director_identity(&context.pki, name, now)
            .map_err(|error| EffectError::of(error.class(), &error))?;
        let client = Arc::new(self.connect_as(context, &identity)?);
        let kept = Kept {
            through,
            secrets: context.cluster.secrets,
            client: client.clone(),
        };
        clients.insert(name.clone(), kept);
        Ok(client)
    }

    fn connect_as(
        &self,
        context: &ClusterContext,
        identity: &ClientIdentity,
    ) -> Result<Client, EffectError> {
        self.connect_through(context, api_servers(context), identity)
    }

    /// A client of each API server that may be asked.
    fn each_api_server(&self, context: &ClusterContext) -> Result<Vec<Client>, EffectError> {
        let name = &context.cluster.spec.name;
        let identity = director_identity(&context.pki, name, jiff::Timestamp::now())
            .map_err(|error| EffectError::of(error.class(), &error))?;
        let servers = api_servers(context).into_iter();
        servers
            .map(|server| self.connect_through(context, vec![server], &identity))
            .collect()
    }

    fn connect_through(
        &self,
        context: &ClusterContext,
        machines: Vec<(MachineName, Incarnation)>,
        identity: &ClientIdentity,
    ) -> Result<Client, EffectError> {
        let connector = Arc::new(Tunnels {
            agents: self.agents.clone(),
            machines,
            turn: AtomicUsize::new(0),
        });
        let authority = &context.pki.trusted(AuthorityName::Kubernetes);
        Client::new(connector, &context.facts.endpoint, authority, identity)
            .map_err(|error| EffectError::of(error.class(), &error))
    }

    /// Has API servers refuse what an incarnation writes that is gone. A cluster that was made by a director
    /// that knew no such list, or that compared otherwise, is given it first.
    async fn bar(
        &self,
        context: &ClusterContext,
        client: &Client,
        machine: &MachineName,
        node: &NodeName,
    ) -> Result<(), EffectError> {
        let incarnation = node.as_str().rsplit_once("-i");
        let Some(incarnation) = incarnation.and_then(|(_, number)| number.parse().ok()) else {
            let what = format!("node {node} does not carry its incarnation");
            return Err(EffectError::new(ErrorClass::Bug, what));
        };
        let patch = addons::gone_patch(machine, incarnation);
        // A repair applies no add-ons: the policy may be one of an earlier release that looks at kubelets alone.
        if context.cluster.addons == Some(inputs::addons_digest(&context.future)) {
            match Self::patch_gone(client, &patch).await {
                Err(error) if matches!(error.code(), Some(403 | 404)) => {}
                done => return done.map_err(of_api),
            }
        }
        let name = &context.cluster.spec.name;
        let identity = bootstrap_identity(&context.pki, name, jiff::Timestamp::now())
            .map_err(|error| EffectError::of(error.class(), &error))?;
        let bootstrap = self.connect_as(context, &identity)?;
        for object in addons::admission_objects() {
            bootstrap.apply(&object).await.map_err(of_api)?;
        }
        Self::patch_gone(&bootstrap, &patch).await.map_err(of_api)
    }

    /// The name of a machine that is gone for good may be given to a new one, which begins to count anew.
    async fn begin_anew(client: &Client, machine: &MachineName) -> Result<(), EffectError> {
        match Self::patch_gone(client, &addons::anew_patch(machine)).await {
            // Without a list nobody is barred; and the right to it is there a moment after the list.
            Err(error) if matches!(error.code(), Some(403 | 404)) => Ok(()),
            done => done.map_err(of_api),
        }
    }

    async fn patch_gone(client: &Client, patch: &serde_json::Value) -> Result<(), ApiError> {
        let namespace = Some(addons::SYSTEM_NAMESPACE);
        client
            .merge_patch(&Resource::CONFIG_MAP, namespace, addons::GONE_NODES, patch)
            .await
            .map(drop)
    }

    async fn look(client: &Client, node: &NodeName) -> Result<Option<Node>, ApiError> {
        match client
            .get::<Node>(&Resource::NODE, None, node.as_str())
            .await
        {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl KubeApi for KubeClient {
    fn apply_addons<'a>(
        &'a self,
        context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            let name = &context.cluster.spec.name;
            let identity = bootstrap_identity(&context.pki, name, jiff::Timestamp::now())
                .map_err(|error| EffectError::of(error.class(), &error))?;
            let client = self.connect_as(context, &identity)?;
            let objects = addons::bootstrap_objects(&context.future);
            for object in &objects {
                client.apply(object).await.map_err(of_api)?;
            }
            gates::prune(&client, &objects).await.map_err(of_api)?;
            Ok(Done {
                changes: vec![format!("applied {} objects", objects.len())],
                records: vec![RecordChange::Addons(inputs::addons_digest(&context.future))],
            })
        })
    }

    fn await_node<'a>(
        &'a self,
        context: &'a ClusterContext,
        machine: &'a MachineName,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            let facts = context.machine_facts(machine)?;
            let client = self.client(context)?;
            // What the kubelet that was there before has said does not count.
            let before = context.machine(machine)?.heartbeat.as_deref();
            let whole = Instant::now() + limit;
            let limit = if before.is_some() {
                limit.min(RESTART_LIMIT)
            } else {
                limit
            };
            let deadline = Instant::now() + limit;
            if context.machine(machine)?.incarnation == Incarnation::FIRST {
                Self::begin_anew(&client, machine).await?;
            }
            let patch = addons::node_patch(&context.facts, facts);
            let labels = context.configuration(context.machine(machine)?)?.labels;
            let mut patched = false;
            loop {
                let found = Self::look(&client, &facts.node_name)
                    .await
                    .map_err(of_api)?;
                if let Some(node) = &found {
                    if !patched {
                        let name = facts.node_name.as_str();
                        client
                            .merge_patch(&Resource::NODE, None, name, &patch)
                            .await
                            .map_err(of_api)?;
                        patched = true;
                    }
                    if node.is_ready() && (before.is_none() || node.heartbeat() != before) {
                        let until = whole.min(Instant::now() + SYSTEM_PODS_LIMIT);
                        drain::await_system_pods(&client, &facts.node_name, until)
                            .await
                            .map_err(of_system_pods)?;
                        return Ok(Done {
                            changes: vec![format!(
                                "node {} is Ready, and the pods of the system on it",
                                node.name
                            )],
                            records: vec![RecordChange::NodeReady(machine.clone(), labels)],
                        });
                    }
                }
                if Instant::now() + NODE_INTERVAL >= deadline {
                    return Err(not_ready(&facts.node_name, found.as_ref(), before));
                }
                tokio::time::sleep(NODE_INTERVAL).await;
            }
        })
    }

    fn await_api<'a>(
        &'a self,
        context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            self.client(context)?
                .probe("/readyz")
                .await
                .map_err(of_api)?;
            Ok(Done::default())
        })
    }

    fn rehearse<'a>(
        &'a self,
        context: &'a ClusterContext,
        course: &'a Course,
    ) -> BoxFuture<'a, Result<Rehearsal, EffectError>> {
        Box::pin(async move {
            let client = self.client(context)?;
            let servers = match course.minor {
                Some(_) => self.each_api_server(context)?,
                None => Vec::new(),
            };
            drain::rehearse_now(&client, &servers, course)
                .await
                .map_err(of_api)
        })
    }

    fn serving<'a>(
        &'a self,
        context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<BTreeMap<NodeName, String>, EffectError>> {
        Box::pin(async move {
            let client = self.client(context)?;
            let nodes: Vec<Node> = client
                .list(&Resource::NODE, None, None)
                .await
                .map_err(of_api)?;
            let open = |node: &&Node| node.is_ready() && !node.unschedulable;
            let said: BTreeMap<&str, &str> = nodes
                .iter()
                .filter(open)
                .map(|node| (node.name.as_str(), node.heartbeat().unwrap_or_default()))
                .collect();
            let machines = context.machines.iter().map(|m| &m.node_name);
            let serving = machines
                .filter_map(|node| Some((node.clone(), (*said.get(node.as_str())?).to_owned())))
                .collect();
            Ok(serving)
        })
    }

    fn drain<'a>(
        &'a self,
        context: &'a ClusterContext,
        node: &'a NodeName,
        own: &'a dyn OwnNode,
        progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            let client = self.client(context)?;
            let policy = DrainPolicy::from(context.cluster.spec.drain);
            let tell = |line: String| progress.stage(line);
            let drained = drain::drain(&client, node, own, &policy, tell)
                .await
                .map_err(of_drain)?;
            Ok(Done {
                changes: told(node, &drained),
                records: Vec::new(),
            })
        })
    }

    fn uncordon<'a>(
        &'a self,
        context: &'a ClusterContext,
        machine: &'a MachineName,
        node: &'a NodeName,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            let client = self.client(context)?;
            match drain::uncordon(&client, node).await {
                // Nothing to open.
                Err(DrainError::Api { source, .. }) if source.is_not_found() => {}
                opened => opened.map_err(of_drain)?,
            }
            Ok(Done {
                changes: vec![format!("node {node} takes pods again")],
                records: vec![RecordChange::Uncordoned(machine.clone())],
            })
        })
    }

    fn heartbeat<'a>(
        &'a self,
        context: &'a ClusterContext,
        machine: &'a MachineName,
    ) -> BoxFuture<'a, Result<Option<String>, EffectError>> {
        Box::pin(async move {
            let node = &context.machine_facts(machine)?.node_name;
            let client = self.client(context)?;
            let found = Self::look(&client, node).await.map_err(of_api)?;
            let said = found.and_then(|node| node.heartbeat().map(str::to_owned));
            if let Some(said) = &said {
                tokio::time::sleep(until_told_apart(said, jiff::Timestamp::now())).await;
            }
            Ok(said)
        })
    }

    fn reached_from_outside<'a>(
        &'a self,
        context: &'a ClusterContext,
        machine: &'a MachineName,
    ) -> BoxFuture<'a, Result<bool, EffectError>> {
        Box::pin(async move {
            let node = &context.machine_facts(machine)?.node_name;
            let client = self.client(context)?;
            drain::is_reached_from_outside(&client, node)
                .await
                .map_err(of_drain)
        })
    }

    fn census<'a>(
        &'a self,
        context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Census, EffectError>> {
        Box::pin(async move {
            let name = &context.cluster.spec.name;
            let identity = bootstrap_identity(&context.pki, name, jiff::Timestamp::now())
                .map_err(|error| EffectError::of(error.class(), &error))?;
            let client = self.connect_as(context, &identity)?;
            let count = async |resource: &Resource| {
                let found = client.names(resource).await.map_err(of_api)?;
                Ok::<_, EffectError>(found.len() as u64)
            };
            Ok(Census {
                namespaces: count(&Resource::NAMESPACE).await?,
                secrets: count(&Resource::SECRET).await?,
                config_maps: count(&Resource::CONFIG_MAP).await?,
                deployments: count(&Resource::DEPLOYMENT).await?,
                services: count(&Resource::SERVICE).await?,
            })
        })
    }

    fn drop_node<'a>(
        &'a self,
        context: &'a ClusterContext,
        machine: &'a MachineName,
        node: &'a NodeName,
        limit: Duration,
        progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            let client = self.client(context)?;
            self.bar(context, &client, machine, node).await?;
            let wait = limit.saturating_sub(DROP_TIME).min(drain::DETACH_LIMIT);
            let tell = |line: String| progress.stage(line);
            let volumes = drain::release_volumes(&client, node, wait, tell)
                .await
                .map_err(of_drain)?;
            let there = client
                .delete(&Resource::NODE, None, node.as_str())
                .await
                .map_err(of_api)?;
            let what = if there {
                "is deleted"
            } else {
                "was gone already"
            };
            // After the Node, so that nothing new is put there; without waiting for a kubelet that is off.
            let left = drain::remove_pods(&client, node).await.map_err(of_drain)?;
            let pods = left.iter().map(|pod| format!("removed {pod}"));
            let volumes = volumes.told();
            Ok(Done {
                changes: [
                    format!("nothing is taken from {node} any more"),
                    format!("node {node} {what}"),
                ]
                .into_iter()
                .chain(volumes)
                .chain(pods)
                .collect(),
                records: vec![RecordChange::NodeDropped(machine.clone(), node.clone())],
            })
        })
    }

    fn settle_nodes<'a>(
        &'a self,
        context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            let client = self.client(context)?;
            let mut changes = Vec::new();
            for machine in &context.machines {
                let before = Incarnation(machine.incarnation.0.saturating_sub(1));
                if before >= Incarnation::FIRST
                    && let Ok(node) = machine.name.node_name(before)
                {
                    self.bar(context, &client, &machine.name, &node).await?;
                }
            }
            let nodes: Vec<Node> = client
                .list(&Resource::NODE, None, None)
                .await
                .map_err(of_api)?;
            for node in nodes {
                let current = |machine: &Machine| machine.node_name.as_str() == node.name;
                if context.machines.iter().any(current) {
                    continue;
                }
                let Ok(name) = NodeName::new(&node.name) else {
                    continue; // none that a machine of ours ever had
                };
                if let Some(machine) = gone_for_good(context, &name) {
                    self.bar(context, &client, &machine, &name).await?;
                }
                client
                    .delete(&Resource::NODE, None, name.as_str())
                    .await
                    .map_err(of_api)?;
                let left = drain::remove_pods(&client, &name).await.map_err(of_drain)?;
                changes.push(format!("node {name} is deleted: its machine is gone"));
                changes.extend(left.iter().map(|pod| format!("removed {pod}")));
            }
            Ok(Done {
                changes,
                records: Vec::new(),
            })
        })
    }

    fn lease<'a>(
        &'a self,
        context: &'a ClusterContext,
        node: &'a NodeName,
        through: &'a [(MachineName, Incarnation)],
    ) -> BoxFuture<'a, Result<Option<LeaseMark>, EffectError>> {
        Box::pin(lease::read(self, context, node, through))
    }

    fn ask_service<'a>(
        &'a self,
        context: &'a ClusterContext,
        service: &'a ServicePort,
        path: &'a str,
    ) -> BoxFuture<'a, Result<Vec<u8>, String>> {
        Box::pin(async move {
            let client = self.client(context).map_err(|error| error.message)?;
            let answer = client.ask_service(service, path).await;
            let answer = answer.map_err(|error| ErrorChain(&error).to_string())?;
            Ok(answer.to_vec())
        })
    }

    fn run_job<'a>(
        &'a self,
        context: &'a ClusterContext,
        job: &'a JobOrder,
        progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async move {
            let client = self.client(context).map_err(|error| error.message)?;
            job.run(&client, progress).await
        })
    }

    fn rewrite_secrets<'a>(
        &'a self,
        context: &'a ClusterContext,
        progress: &'a ProgressSink,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            let name = &context.cluster.spec.name;
            let identity = rewriter_identity(&context.pki, name, jiff::Timestamp::now())
                .map_err(|error| EffectError::of(error.class(), &error))?;
            let client = self.connect_as(context, &identity)?;
            let secrets = client.names(&Resource::SECRET).await.map_err(of_api)?;
            for (done, (namespace, secret)) in secrets.iter().enumerate() {
                if done % 100 == 0 {
                    progress.stage(format!("{done} of {} Secrets", secrets.len()));
                }
                let touched = client
                    .touch(&Resource::SECRET, Some(namespace), secret)
                    .await;
                match touched {
                    // One that is gone needs no key.
                    Err(error) if error.is_not_found() => {}
                    done => done.map_err(of_api)?,
                }
            }
            Ok(Done {
                changes: vec![format!("{} Secrets are written again", secrets.len())],
                records: vec![RecordChange::StageDone(Stage::Rewrite)],
            })
        })
    }

    fn await_dns<'a>(
        &'a self,
        context: &'a ClusterContext,
    ) -> BoxFuture<'a, Result<Done, EffectError>> {
        Box::pin(async move {
            let client = self.client(context)?;
            let (namespace, name) = (Some(addons::SYSTEM_NAMESPACE), "coredns");
            let found: serde_json::Value = client
                .get(&Resource::DEPLOYMENT, namespace, name)
                .await
                .map_err(of_api)?;
            if !addons::rolled_out(&found) {
                let what = "the pods of cluster DNS were not all made anew yet";
                return Err(EffectError::new(ErrorClass::Retry, what));
            }
            Ok(Done {
                changes: vec!["cluster DNS was started anew".to_owned()],
                records: vec![RecordChange::StageDone(Stage::RestartDns)],
            })
        })
    }

    fn forget(&self, cluster: &ClusterName) {
        self.clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(cluster);
    }
}

/// The machine that a node was of, if there is none of its name any more: a name that was given to another one
/// begins to count anew.
fn gone_for_good(context: &ClusterContext, node: &NodeName) -> Option<MachineName> {
    let (machine, _) = node.as_str().rsplit_once("-i")?;
    let machine = MachineName::new(machine).ok()?;
    let known = context.machines.iter().any(|of| of.name == machine);
    (!known).then_some(machine)
}

fn of_api(error: ApiError) -> EffectError {
    // Rights are there a moment after the objects that grant them: the API server's authorizer reads
    // them from a cache.
    let class = match error.code() {
        Some(401 | 403 | 404) => ErrorClass::Retry,
        _ => error.class(),
    };
    EffectError::of(class, &error)
}

fn not_ready(name: &NodeName, found: Option<&Node>, before: Option<&str>) -> EffectError {
    let state = match found {
        None => "has not registered; look at its kubelet's log".to_owned(),
        Some(node) if before.is_some() && node.heartbeat() == before => {
            "says nothing since its kubelet was started again; look at its kubelet's log".to_owned()
        }
        Some(node) => format!(
            "is not Ready: {}",
            node.ready()
                .map_or("its kubelet says nothing", |c| c.message.as_str())
        ),
    };
    EffectError::new(ErrorClass::Operator, format!("node {name} {state}"))
}

/// How long to wait until what a kubelet says next is dated otherwise than what it `said` last. A kubelet that is
/// started again reports at once, and then for minutes no more: a first report within the second of the last one of its
/// forerunner would not be seen.
fn until_told_apart(said: &str, now: jiff::Timestamp) -> Duration {
    let long_ago = said
        .parse::<jiff::Timestamp>()
        .is_ok_and(|at| now.duration_since(at).unsigned_abs() > CLOCKS_APART);
    if long_ago { Duration::ZERO } else { SECOND }
}

/// One line for each pod that left, was pushed out, or is held, with the user who told it.
fn told(node: &NodeName, drained: &Drained) -> Vec<String> {
    let line = |what: &'static str| {
        move |pod: &PodRef| {
            if drained.by_node.contains(pod) {
                format!("{what} {pod} as system:node:{node}")
            } else {
                format!("{what} {pod} as {DIRECTOR_USER}")
            }
        }
    };
    let mut lines = vec![format!("node {node} is empty")];
    if let Some(why) = &drained.not_by_node {
        lines.push(format!("the director told pods itself: {why}"));
    }
    lines.extend(drained.evicted.iter().map(line("evicted")));
    lines.extend(
        drained
            .escalated
            .iter()
            .map(line("deleted past its budget")),
    );
    let held = |pod: &PodRef| format!("held by its finalizers: {pod}");
    lines.extend(drained.held.iter().map(held));
    lines
}

fn of_drain(error: DrainError) -> EffectError {
    if let DrainError::Api { source, .. } = &error
        && matches!(source.code(), Some(401 | 403))
    {
        return EffectError::of(ErrorClass::Retry, &error);
    }
    EffectError::of(error.class(), &error)
}

fn of_system_pods(error: SystemPodsError) -> EffectError {
    match error {
        SystemPodsError::Api { source, .. } => of_api(source),
        error => EffectError::of(error.class(), &error),
    }
}

/// Machines with an API server that may be asked: those in the endpoint, or all when none is.
fn api_servers(context: &ClusterContext) -> Vec<(MachineName, Incarnation)> {
    let members = context
        .machines
        .iter()
        .filter(|machine| machine.role.is_control_plane());
    let named = |machine: &Machine| (machine.name.clone(), machine.incarnation);
    let serving: Vec<_> = members.clone().filter(|m| m.serving).map(named).collect();
    if serving.is_empty() {
        members.map(named).collect()
    } else {
        serving
    }
}

/// Opens streams to API servers through their machines, in turn, past those that are not connected.
pub(super) struct Tunnels {
    pub(super) agents: Arc<dyn Agents>,
    pub(super) machines: Vec<(MachineName, Incarnation)>,
    pub(super) turn: AtomicUsize,
}

impl Connector for Tunnels {
    fn connect(&self) -> ConnectFuture<'_> {
        Box::pin(async move {
            let mut last = io::Error::other("the cluster has no control-plane machine");
            let turn = self.turn.fetch_add(1, Ordering::Relaxed);
            let (before, from) = self.machines.split_at(turn % self.machines.len().max(1));
            for (machine, incarnation) in from.iter().chain(before) {
                match self.agents.open_tunnel(machine, *incarnation).await {
                    Ok(stream) => return Ok::<Box<dyn ByteStream>, _>(stream),
                    Err(error) => last = io::Error::other(error),
                }
            }
            Err(last)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelet_that_has_just_reported_is_given_the_second() {
        let now = "2030-01-01T00:10:00.3Z".parse().expect("a time");
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            // what it said last, how long to wait
            ("2030-01-01T00:10:00Z", SECOND),
            ("2030-01-01T00:09:59Z", SECOND),
            ("2030-01-01T00:09:05Z", SECOND), // the machine's clock may be behind
            ("2030-01-01T00:10:50Z", SECOND), // or ahead
            ("2030-01-01T00:05:00Z", Duration::ZERO),
            ("2030-01-01T01:00:00Z", Duration::ZERO),
            ("not a time", SECOND),
        ];
        for (said, wait) in cases {
            assert_eq!(until_told_apart(said, now), wait, "{said}");
        }
    }
}
