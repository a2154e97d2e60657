//! `director init`: makes a data directory.
//!
//! The configuration is written last: a directory that has one is whole. One that has none but was
//! touched by an interrupted init is refused, and nothing in it is overwritten.

use std::fs::DirBuilder;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use windlass_common::error::ErrorClass;
use windlass_common::id::{NameError, OperatorName};

use super::{Config, DataDir, EXAMPLE, Identity, IdentityError, write_atomic};
use crate::backup::envelope::{EnvelopeError, Identity as BackupKey};
use crate::client::ContextFile;
use crate::model::{Operator, Role};
use crate::pki::IssueError;
use crate::service::CERTIFICATE_LIFE;
use crate::spec::Faults;
use crate::store::{Commit, DirectoryLock, LockError};

/// First port tried for the API; the gateway has the next one.
const FIRST_PORT: u16 = 7443;
/// How many pairs of ports are tried.
const PORT_PAIRS: u16 = 64;

/// What to make.
#[derive(Debug, Clone, Default)]
pub struct InitRequest {
    /// Prefix of everything the provider makes on the host.
    pub name: Option<String>,
    /// Network of the machines.
    pub cidr: Option<Ipv4Net>,
    /// Where the API listens.
    pub api: Option<SocketAddr>,
    /// Where the gateway listens.
    pub gateway: Option<SocketAddr>,
    /// Directory of stemcells.
    pub stemcells: Option<PathBuf>,
    /// Keys whose signatures count.
    pub trusted_keys: Option<PathBuf>,
    /// Name of the first operator.
    pub operator: Option<String>,
}

/// What was made.
#[derive(Debug, Clone, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Initialised {
    /// The data directory.
    pub data_dir: PathBuf,
    /// The director's id.
    pub id: String,
    /// Where the API will be.
    pub url: String,
    /// How to reach it.
    pub context: PathBuf,
    /// The configuration.
    pub config: PathBuf,
    /// The key of the store's secrets.
    pub seal_key: PathBuf,
    /// The key that opens backups of the director.
    pub backup_key: PathBuf,
}

/// Why a data directory was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// It is one already.
    #[error("{} is initialised already; edit its director.toml, or name another directory with --data-dir", .0.display())]
    Exists(PathBuf),
    /// An earlier init was interrupted, or something else lives there.
    #[error("{} is not empty ({found}); name an empty or a new directory with --data-dir", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// A file in it.
        found: String,
    },
    /// The CLI's context cannot be written as TOML.
    #[error("the context of {} cannot be written as TOML; this is a bug: report it", dir.display())]
    Context {
        /// The data directory.
        dir: PathBuf,
        /// Cause.
        #[source]
        source: toml::ser::Error,
    },
    /// A file or directory cannot be made.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No free ports.
    #[error("none of the ports {FIRST_PORT} to {} is free (TCP for the API, UDP for the gateway); choose with --api and --gateway", FIRST_PORT + 2 * PORT_PAIRS)]
    NoPort,
    /// No free network.
    #[error(
        "every network 10.64.0.0/24 to 10.95.255.0/24 that was tried is in use on this host; choose with --cidr"
    )]
    NoNetwork,
    /// What was asked for is not possible.
    #[error("the director cannot be set up like this:\n{0}")]
    Invalid(Faults),
    /// The operator's name is not one.
    #[error("the operator's name is not usable")]
    Operator(#[from] NameError),
    /// Another director has it.
    #[error("the directory is in use")]
    Lock(#[from] LockError),
    /// No identity.
    #[error("cannot make the director's identity")]
    Identity(#[from] IdentityError),
    /// No key for backups.
    #[error("cannot make the key of the director's backups")]
    BackupKey(#[from] EnvelopeError),
    /// No certificate.
    #[error("cannot issue the first operator's certificate")]
    Issue(#[from] IssueError),
}

impl InitError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Identity(error) => error.class(),
            Self::Issue(error) => error.class(),
            Self::Context { .. } => ErrorClass::Bug,
            Self::Exists(_)
            | Self::NotEmpty { .. }
            | Self::Write { .. }
            | Self::NoPort
            | Self::NoNetwork
            | Self::Invalid(_)
            | Self::Operator(_)
            | Self::BackupKey(_)
            | Self::Lock(_) => ErrorClass::Operator,
        }
    }
}

/// Makes a data directory with configuration, store, CA and the first operator's context.
///
/// # Errors
/// See [`InitError`]; nothing that was there before is changed.
pub async fn init(dir: &DataDir, request: InitRequest) -> Result<Initialised, InitError> {
    check_empty(dir)?;
    let operator = OperatorName::new(request.operator.as_deref().unwrap_or("admin"))?;
    let text = configuration(dir, &request)?;
    let config = Config::parse(&text, dir).map_err(InitError::Invalid)?;
    make_dir(dir.path())?;
    let _lock = DirectoryLock::acquire(dir.path())?;
    let now = jiff::Timestamp::now();
    BackupKey::load_or_create(&dir.backup_key())?;
    let identity = Identity::create(dir, now).await?;
    let credentials = identity
        .ca
        .issue_operator(operator.clone(), CERTIFICATE_LIFE, now)?;
    let mut commit = Commit::default();
    let first = Operator::new(operator.as_str(), Role::Admin, "director");
    commit.put(&first).map_err(IdentityError::Store)?;
    identity
        .records
        .commit(commit)
        .await
        .map_err(IdentityError::Store)?;
    let files = dir.operator();
    make_dir(&files)?;
    let certificate = files.join(format!("{operator}.crt"));
    let key = files.join(format!("{operator}.key"));
    let ca = files.join("ca.crt");
    write(&ca, identity.ca.root_pem().as_bytes(), 0o644)?;
    write(&certificate, credentials.certificate_pem.as_bytes(), 0o644)?;
    write(&key, credentials.key_pem.expose(), 0o600)?;
    let below = |path: &Path| path.strip_prefix(dir.path()).unwrap_or(path).to_owned();
    let context = ContextFile {
        url: format!("https://{}", reachable(config.api.listen)),
        ca: below(&ca),
        certificate: below(&certificate),
        key: below(&key),
    };
    let context_text = toml::to_string(&context).map_err(|source| InitError::Context {
        dir: dir.path().to_owned(),
        source,
    })?;
    write(&dir.context(), context_text.as_bytes(), 0o644)?;
    write(&dir.config(), text.as_bytes(), 0o644)?;
    Ok(Initialised {
        data_dir: dir.path().to_owned(),
        id: identity.id.to_string(),
        url: context.url,
        context: dir.context(),
        config: dir.config(),
        seal_key: dir.seal_key(),
        backup_key: dir.backup_key(),
    })
}

/// Where clients of this host find a listener.
fn reachable(listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        SocketAddr::from((Ipv4Addr::LOCALHOST, listen.port()))
    } else {
        listen
    }
}

fn check_empty(dir: &DataDir) -> Result<(), InitError> {
    if dir.config().exists() {
        return Err(InitError::Exists(dir.path().to_owned()));
    }
    let entries = match std::fs::read_dir(dir.path()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            let path = dir.path().to_owned();
            return Err(InitError::Write { path, source });
        }
    };
    // A reset leaves backups with the key that opens them; the next director goes on with both.
    let ours = [
        "stemcells",
        "lost+found",
        "director.lock",
        "backups",
        "backup.key",
    ];
    for entry in entries.flatten() {
        let found = entry.file_name().to_string_lossy().into_owned();
        if !ours.contains(&found.as_str()) {
            let dir = dir.path().to_owned();
            return Err(InitError::NotEmpty { dir, found });
        }
    }
    Ok(())
}

fn make_dir(path: &Path) -> Result<(), InitError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| InitError::Write {
        path: path.to_owned(),
        source,
    })
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), InitError> {
    write_atomic(path, bytes, mode).map_err(|source| InitError::Write {
        path: path.to_owned(),
        source,
    })
}

/// The documented file with this director's values in the place of the defaults.
fn configuration(dir: &DataDir, request: &InitRequest) -> Result<String, InitError> {
    let (api, gateway) = ports(request)?;
    let name = request.name.clone().unwrap_or_else(|| "local".to_owned());
    let cidr = match request.cidr {
        Some(cidr) => cidr,
        None => free_network(dir, &name)?,
    };
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let stemcells = request
        .stemcells
        .as_deref()
        .map_or(PathBuf::from("stemcells"), absolute);
    let trusted = request.trusted_keys.as_deref().map(absolute);
    let trusted = trusted.unwrap_or_else(|| stemcells.join(windlass_common::stemcell::TRUSTED));
    let values = [
        ("api", "listen", api.to_string()),
        ("gateway", "listen", gateway.to_string()),
        (
            "stemcells",
            "directory",
            stemcells.to_string_lossy().into_owned(),
        ),
        (
            "stemcells",
            "trusted_keys",
            trusted.to_string_lossy().into_owned(),
        ),
        ("provider.local", "name", name),
        ("provider.local", "cidr", cidr.to_string()),
    ];
    let mut section = String::new();
    let mut text = String::with_capacity(EXAMPLE.len() + 256);
    for line in EXAMPLE.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
        }
        let value = values.iter().find(|(table, key, _)| {
            *table == section
                && line
                    .strip_prefix(key)
                    .is_some_and(|rest| rest.starts_with(" ="))
        });
        match value {
            Some((_, key, value)) => {
                text.push_str(&format!("{key} = {}", toml::Value::String(value.clone())));
            }
            None => text.push_str(line),
        }
        text.push('\n');
    }
    Ok(text)
}

/// The ports asked for, or the first free pair. Free now: `director start` looks again.
fn ports(request: &InitRequest) -> Result<(SocketAddr, SocketAddr), InitError> {
    for pair in 0..PORT_PAIRS {
        let port = FIRST_PORT + 2 * pair;
        let api = request
            .api
            .unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let gateway = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port + 1));
        let gateway = request.gateway.unwrap_or(gateway);
        let tcp = request.api.is_some() || TcpListener::bind(api).is_ok();
        let udp = request.gateway.is_some() || UdpSocket::bind(gateway).is_ok();
        if tcp && udp {
            return Ok((api, gateway));
        }
    }
    Err(InitError::NoPort)
}

/// A /24 between 10.64 and 10.95 that no address or route of this host lies in. Where the search begins
/// depends on the directory and the name, so that two directors set up before either runs differ.
fn free_network(dir: &DataDir, name: &str) -> Result<Ipv4Net, InitError> {
    let used = super::preflight::networks_in_use();
    let seed = format!("{}\0{name}", dir.path().display());
    let digest = windlass_common::id::Digest::of(seed.as_bytes());
    let start = u16::from_be_bytes([digest.as_bytes()[0], digest.as_bytes()[1]]);
    let candidates = (0..64u16).map(|i| {
        // 32 times 256 networks.
        let [high, low] = (start.wrapping_add(i.wrapping_mul(257)) % 8192).to_be_bytes();
        Ipv4Net::new_assert(Ipv4Addr::new(10, 64 + high, low, 0), 24)
    });
    let free = |net: &Ipv4Net| {
        !used
            .iter()
            .any(|other| other.contains(&net.network()) || net.contains(&other.network()))
    };
    let mut candidates = candidates;
    candidates.find(free).ok_or(InitError::NoNetwork)
}
