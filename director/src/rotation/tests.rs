//! A director that dies at every write of a rotation, and a fleet that follows what it is told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{broadcast, watch};
use windlass_common::id::{DirectorId, Epoch, Incarnation, MachineName};
use windlass_common::pki::MachineIdentity;
use windlass_common::wire::PROTOCOL;
use windlass_common::wire::message::Hello;

use super::record::secret_of;
use super::*;
use crate::gateway::SessionTrust;
use crate::model::{MachineDraft, MachinePhase, MachineRole, Revision, Role};
use crate::store::memory::Memory;
use crate::store::{Change, Entry, Sealer, Store, StoreFuture, Write};

/// A store that is gone from a point on: before or after a commit.
#[derive(Debug)]
struct Dying {
    store: Arc<Memory>,
    point: AtomicUsize,
    dies_at: usize,
}

impl Dying {
    fn dead(&self) -> bool {
        self.point.fetch_add(1, Ordering::Relaxed) + 1 >= self.dies_at
    }
}

impl Store for Dying {
    fn get<'a>(&'a self, kind: Kind, name: &'a str) -> StoreFuture<'a, Option<Entry>> {
        self.store.get(kind, name)
    }

    fn list<'a>(&'a self, kind: Kind, prefix: &'a str) -> StoreFuture<'a, Vec<Entry>> {
        self.store.list(kind, prefix)
    }

    fn newest(&self, kind: Kind, limit: u32) -> StoreFuture<'_, Vec<Entry>> {
        self.store.newest(kind, limit)
    }

    fn commit(&self, writes: Vec<Write>) -> StoreFuture<'_, Revision> {
        Box::pin(async move {
            if self.dead() {
                return Err(StoreError::Closed);
            }
            let done = self.store.commit(writes).await;
            if self.dead() {
                return Err(StoreError::Closed);
            }
            done
        })
    }

    fn watch(&self) -> broadcast::Receiver<Change> {
        self.store.watch()
    }
}

#[derive(Debug, Clone)]
struct Agent {
    roots: Vec<Digest>,
    certificate: u32,
    connected: bool,
}

/// Machines that outlive their directors.
#[derive(Debug)]
struct Fleet {
    agents: Mutex<BTreeMap<MachineName, Agent>>,
}

/// The fleet as one life of a director sees it.
struct Seen {
    fleet: Arc<Fleet>,
    ca: Arc<DirectorCa>,
    changes: watch::Sender<u64>,
}

impl Links for Seen {
    fn agents(&self) -> BTreeMap<MachineName, SessionView> {
        let agents = self.fleet.agents.lock().unwrap();
        let connected = agents.iter().filter(|(_, agent)| agent.connected);
        connected
            .map(|(name, agent)| (name.clone(), view(name, agent)))
            .collect()
    }

    /// Each connected agent does one thing that it lacks.
    fn bring_up_to_date(&self) {
        for (name, agent) in self.fleet.agents.lock().unwrap().iter_mut() {
            if !agent.connected {
                continue;
            }
            // Whatever was dropped, nobody who followed was cut off.
            assert!(
                self.ca.trusts(agent.certificate),
                "{name} is cut off: {agent:?}"
            );
            let wanted = self.ca.root_digests();
            // The bridge: some root that it trusts verifies the director.
            assert!(
                agent.roots.iter().any(|root| wanted.contains(root)),
                "{name}: {agent:?}"
            );
            if agent.roots != wanted {
                agent.roots = wanted;
            } else {
                agent.certificate = self.ca.agents_from();
            }
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

fn view(name: &MachineName, agent: &Agent) -> SessionView {
    let hello = Hello {
        protocols: vec![PROTOCOL],
        agent_version: String::new(),
        capabilities: Vec::new(),
        boot_id: String::new(),
        epoch: Epoch(1),
        unfinished: Vec::new(),
    };
    SessionView {
        identity: identity(name),
        address: "10.0.0.1:1".parse().unwrap(),
        since: jiff::Timestamp::now(),
        last_heartbeat: None,
        protocol: PROTOCOL,
        hello: Arc::new(hello),
        trust: SessionTrust {
            certificate: Some(agent.certificate),
            roots: Some(agent.roots.clone()),
        },
        report: None,
        conditions: None,
        file_systems: None,
        suspect: false,
    }
}

fn identity(name: &MachineName) -> MachineIdentity {
    format!("windlass://d1/clusters/demo/machines/{name}/incarnations/1")
        .parse()
        .unwrap()
}

fn machine(name: &MachineName) -> Machine {
    let identity = identity(name);
    Machine {
        phase: MachinePhase::Ready,
        ..Machine::planned(
            MachineDraft {
                name: identity.machine,
                cluster: identity.cluster,
                role: MachineRole::ControlPlane,
                incarnation: Incarnation(1),
                node_name: windlass_common::id::NodeName::new(name.as_str()).unwrap(),
                address: [10, 0, 0, 1].into(),
                pod_cidr: "10.244.0.0/24".parse().unwrap(),
                stemcell: String::new(),
                kubernetes_version: "1.37.2".to_owned(),
                size: windlass_common::cluster::MachineSize {
                    cpu_millis: 1000,
                    memory_mib: 1024,
                    disk_mib: 1024,
                },
                data_disk: None,
            },
            Timestamp::now(),
        )
    }
}

fn director() -> DirectorId {
    DirectorId::new("d1").unwrap()
}

fn names() -> [MachineName; 3] {
    ["demo-cp-0", "demo-w-0", "demo-w-1"].map(|name| MachineName::new(name).unwrap())
}

/// A store with a CA that was never rotated and three machines, of which the last is off.
async fn world() -> (Arc<Memory>, Arc<Fleet>) {
    let store = Arc::new(Memory::default());
    let records = records(store.clone()).await;
    let ca = DirectorCa::create(director(), jiff::Timestamp::now()).unwrap();
    let mut commit = Commit::default();
    records
        .put_secret(&mut commit, &secret_of(1), ca.to_pem().expose())
        .unwrap();
    for name in names() {
        commit.put(&machine(&name)).unwrap();
    }
    records.commit(commit).await.unwrap();
    let agent = |name: MachineName| {
        let connected = name != names()[2];
        let roots = ca.root_digests();
        let agent = Agent {
            roots,
            certificate: 1,
            connected,
        };
        (name, agent)
    };
    let agents = Mutex::new(names().into_iter().map(agent).collect());
    (store, Arc::new(Fleet { agents }))
}

async fn records(store: Arc<dyn Store>) -> Records {
    let sealer = Sealer::new(&[7; 32]).unwrap();
    Records::new(store, sealer).await.unwrap()
}

/// One life: orders the rotation if nobody has, and goes on with it to its end or its own.
async fn live(store: &Arc<Memory>, fleet: &Arc<Fleet>, dies_at: usize) -> Result<(), String> {
    let dying: Arc<dyn Store> = Arc::new(Dying {
        store: store.clone(),
        point: AtomicUsize::new(0),
        dies_at,
    });
    let records = records(dying).await;
    let ca = load(&records, &director(), jiff::Timestamp::now()).await;
    let ca = Arc::new(ca.unwrap().unwrap());
    let links = Seen {
        fleet: fleet.clone(),
        ca: ca.clone(),
        changes: watch::Sender::new(0),
    };
    let rotations = Rotations::idle(records, ca, Arc::new(links));
    let died = |error: &dyn std::error::Error| ErrorChain(error).to_string();
    let status = rotations.status().await.unwrap();
    if status.rotation.is_none() && status.generation == 1 {
        let caller = Caller {
            operator: "ann".to_owned(),
            role: Role::Admin,
            request: String::new(),
        };
        rotations
            .order(&[], &caller)
            .await
            .map_err(|error| died(&error))?;
        // Whoever asks for the roots now gets the new one, too.
        let roots = rotations.inner.ca.root_pem();
        assert_eq!(roots.matches("BEGIN CERTIFICATE").count(), 2);
    }
    for _ in 0..50 {
        rotations.inner.step().await.map_err(|error| died(&error))?;
        let status = rotations.status().await.unwrap();
        let Some(rotation) = status.rotation else {
            return Ok(());
        };
        // The one that was off comes back once it alone is waited for.
        if rotation.phase == Phase::Reissue && rotation.renewed == 2 {
            let mut agents = fleet.agents.lock().unwrap();
            agents.get_mut(&names()[2]).unwrap().connected = true;
        }
    }
    panic!("the rotation does not end: {:?}", rotations.status().await);
}

#[tokio::test]
async fn a_rotation_ends_whichever_write_its_director_dies_at() {
    let mut deaths = 0;
    for dies_at in 1.. {
        let (store, fleet) = world().await;
        let first = live(&store, &fleet, dies_at).await;
        let died = first.is_err();
        if died {
            deaths += 1;
            live(&store, &fleet, usize::MAX).await.unwrap();
        }
        let records = records(store.clone()).await;
        let ca = load(&records, &director(), jiff::Timestamp::now()).await;
        let ca = ca.unwrap().unwrap();
        assert_eq!(ca.stage().numbers(), (2, None), "died at {dies_at}");
        assert!(records.secret(&secret_of(1)).await.unwrap().is_none());
        let left: Vec<(String, serde_json::Value)> = records.values(Kind::Trust, "").await.unwrap();
        assert!(left.is_empty(), "{left:?}");
        for (name, agent) in fleet.agents.lock().unwrap().iter() {
            assert_eq!(agent.certificate, 2, "{name}, died at {dies_at}");
            assert!(
                agent.roots.contains(&ca.root_digest()),
                "{name}, died at {dies_at}"
            );
        }
        if !died {
            break;
        }
    }
    // Order, who followed (twice or more), re-issue, drop: each before and after its write.
    assert!(deaths >= 8, "{deaths} deaths");
}

#[tokio::test]
async fn an_older_directory_has_its_ca_and_what_was_derived_from_it() {
    let (store, _) = world().await;
    let records = records(store).await;
    let now = jiff::Timestamp::now();
    let text = records.secret(&secret_of(1)).await.unwrap().unwrap();
    let text = windlass_common::secret::SecretBytes::new(text.to_vec());
    let was = DirectorCa::from_pem(director(), &text, now).unwrap();
    let ca = load(&records, &director(), now).await.unwrap().unwrap();
    assert_eq!(ca.root_digest(), was.root_digest());
    assert_eq!(ca.derive(b"x"), was.derive(b"x"));
}
