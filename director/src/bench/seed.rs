//! The state a benchmark starts from: a director's store with its machines and their tokens.

use std::fs;
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use windlass_common::cluster::MachineSize;
use windlass_common::id::{ClusterName, Incarnation, MachineName, NameError, PoolName};
use windlass_common::settings::Settings;

use crate::config::{DataDir, Identity};
use crate::model::{Machine, MachineDraft, MachinePhase, MachineRole, Timestamp};
use crate::pki::EnrollmentToken;
use crate::store::{Commit, Expect, Kind, Token};

use super::error::BenchError;

/// Tokens count for this long: enrolling a fleet takes minutes.
const TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Machines in one commit.
const COMMIT: usize = 500;

/// A directory with all state of one benchmark; removed when dropped.
#[derive(Debug)]
pub(super) struct Home(PathBuf);

impl Home {
    pub(super) fn make(parent: &Path) -> Result<Home, BenchError> {
        let path = parent.join(format!("windlass-bench-{}", std::process::id()));
        fs::create_dir(&path).map_err(BenchError::io("create", &path))?;
        Ok(Home(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn data(&self) -> DataDir {
        // The path is absolute or below the current directory, which exists.
        DataDir::new(&self.0.join("director")).unwrap_or_else(|_| unreachable!())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What the director knows before its fleet comes.
#[derive(Debug)]
pub(super) struct Seed {
    /// Where the gateway will listen, each time it starts.
    pub(super) address: SocketAddr,
    /// One file of settings for each process, a JSON object a line.
    pub(super) files: Vec<PathBuf>,
    /// Files with one agent each, and whose they are.
    pub(super) victims: Vec<(PathBuf, MachineName)>,
}

/// Makes identity, machines and tokens; `sizes` are the numbers of agents of each process.
pub(super) async fn seed(home: &Home, sizes: &[usize], victims: usize) -> Result<Seed, BenchError> {
    let data = home.data();
    fs::create_dir(data.path()).map_err(BenchError::io("create", data.path()))?;
    let identity = Identity::create(&data, jiff::Timestamp::now()).await?;
    let address = free_port().map_err(BenchError::io("find a free port on", "127.0.0.1"))?;
    let mut number = 0;
    let mut seed = Seed {
        address,
        files: Vec::new(),
        victims: Vec::new(),
    };
    for (at, size) in sizes.iter().enumerate() {
        let path = home.path().join(format!("fleet-{at}.settings"));
        write_machines(&identity, address, &path, number..number + size).await?;
        number += size;
        seed.files.push(path);
    }
    for at in 0..victims {
        let path = home.path().join(format!("victim-{at}.settings"));
        let names = write_machines(&identity, address, &path, number..number + 1).await?;
        number += 1;
        seed.victims
            .extend(names.into_iter().map(|name| (path.clone(), name)));
    }
    Ok(seed)
}

/// Stores machines with their tokens, and writes what each is told at birth.
async fn write_machines(
    identity: &Identity,
    director: SocketAddr,
    path: &Path,
    numbers: std::ops::Range<usize>,
) -> Result<Vec<MachineName>, BenchError> {
    let mut file = fs::File::create(path).map_err(BenchError::io("create", path))?;
    let mut names = Vec::new();
    let numbers: Vec<usize> = numbers.collect();
    for group in numbers.chunks(COMMIT) {
        let mut commit = Commit::default();
        let mut lines = String::new();
        for number in group {
            // The names are fixed and short, and the number small.
            let machine = machine(*number).unwrap_or_else(|_| unreachable!());
            let EnrollmentToken { token, hash } = EnrollmentToken::generate()?;
            let life_ms = u64::try_from(TOKEN_LIFE.as_millis()).unwrap_or(u64::MAX);
            let record = Token {
                cluster: machine.cluster.clone(),
                machine: machine.name.clone(),
                incarnation: machine.incarnation,
                expires_at: Timestamp::from_unix_ms(Timestamp::now().unix_ms() + life_ms),
                public_key: None,
                spent: false,
            };
            commit.put(&machine)?;
            commit.value(Kind::Token, &hash.to_string(), Expect::Absent, &record);
            let settings = Settings {
                director_id: identity.id.clone(),
                directors: vec![director],
                ca_digest: identity.ca.root_digest(),
                token,
                cluster: machine.cluster,
                machine: machine.name.clone(),
                incarnation: machine.incarnation,
            };
            lines.push_str(&serde_json::to_string(&settings).unwrap_or_default());
            lines.push('\n');
            names.push(machine.name);
        }
        identity.records.commit(commit).await?;
        file.write_all(lines.as_bytes())
            .map_err(BenchError::io("write", path))?;
    }
    Ok(names)
}

fn machine(number: usize) -> Result<Machine, NameError> {
    let name = MachineName::new(format!("bench-w-{number}"))?;
    let address = Ipv4Addr::from(0x0a00_0000 + u32::try_from(number).unwrap_or(0));
    Ok(Machine {
        phase: MachinePhase::Ready,
        ..Machine::planned(
            MachineDraft {
                cluster: ClusterName::new("bench")?,
                role: MachineRole::Worker {
                    pool: PoolName::new("w")?,
                },
                incarnation: Incarnation::FIRST,
                node_name: name.node_name(Incarnation::FIRST)?,
                name,
                address,
                pod_cidr: Ipv4Net::from(address),
                stemcell: "bench".to_owned(),
                kubernetes_version: String::new(),
                size: MachineSize {
                    cpu_millis: 1000,
                    memory_mib: 1024,
                    disk_mib: 1024,
                },
                data_disk: None,
            },
            Timestamp::now(),
        )
    })
}

/// A free port that the kernel gives to no socket of its own accord: one of the fleet would take it while the director is
/// started again.
fn free_port() -> io::Result<SocketAddr> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let first = range
        .split_whitespace()
        .next()
        .and_then(|first| first.parse().ok());
    let mut ports = (1024..first.unwrap_or(32_768)).rev();
    let free = ports.find_map(|port| UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).ok());
    free.ok_or_else(|| io::Error::from(io::ErrorKind::AddrInUse))?
        .local_addr()
}
