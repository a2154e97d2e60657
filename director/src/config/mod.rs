//! The director's configuration: `<data dir>/director.toml`, read once, every fault reported at once.
//!
//! # Invariants
//! * A [`Config`] is valid: addresses parse, the network is private and big enough, names are names.
//! * Relative paths in the file are relative to the data directory.
//! * Nothing is read from the environment.
//!
//! # After a crash
//! `director init` writes the file last and atomically: a directory without it was not initialised.
//!
//! # Not here
//! Whether what the file names works on this host: that is `preflight`.

mod backup;
mod files;
mod identity;
mod init;
pub mod preflight;
mod read;
mod resurrector;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use windlass_common::error::ErrorClass;
use windlass_common::id::ZoneName;

use crate::backup::envelope::Recipient;
use crate::backup::s3::S3Config;
use crate::gateway::ArtifactRates;
use crate::resurrector::{Mode, Policy};
use crate::spec::Faults;

pub use files::write_atomic;
pub use identity::{Identity, IdentityError};
pub use init::{InitError, InitRequest, Initialised, init};

/// Name of the file in the data directory.
pub const FILE: &str = "director.toml";
/// Largest file, bytes; the documented example is a tenth of it.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// Most zones of a provider.
pub const ZONES_MAX: usize = 16;
/// The documented file with every default, which `director init` writes with its own values.
pub const EXAMPLE: &str = include_str!("director.toml");

/// Where things are in a data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataDir(PathBuf);

impl DataDir {
    /// The directory, made absolute: the daemon runs elsewhere.
    ///
    /// # Errors
    /// When the current directory cannot be told.
    pub fn new(path: &Path) -> std::io::Result<Self> {
        std::path::absolute(path).map(Self)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The configuration.
    pub fn config(&self) -> PathBuf {
        self.0.join(FILE)
    }

    /// The embedded store.
    pub fn store(&self) -> PathBuf {
        self.0.join("store.sqlite")
    }

    /// The key that seals the secrets in the store; back it up elsewhere.
    pub fn seal_key(&self) -> PathBuf {
        self.0.join("seal.key")
    }

    /// The key that opens backups of this director; keep it elsewhere: with it lost, they are.
    pub fn backup_key(&self) -> PathBuf {
        self.0.join("backup.key")
    }

    /// Log of a director that runs in the background.
    pub fn log(&self) -> PathBuf {
        self.0.join("director.log")
    }

    /// How operators of this directory reach the director.
    pub fn context(&self) -> PathBuf {
        self.0.join("context.toml")
    }

    /// Certificate and key of the first operator, and the CA.
    pub fn operator(&self) -> PathBuf {
        self.0.join("operator")
    }

    /// What agents may fetch.
    pub fn artifacts(&self) -> PathBuf {
        self.0.join("artifacts")
    }

    /// Where the local provider keeps machines and disks.
    pub fn provider(&self) -> PathBuf {
        self.0.join("provider")
    }
}

/// The director's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Filter of the log, for example `info` or `info,windlass_director::rollout=debug`.
    pub log: String,
    /// The API's listener.
    pub api: ApiConfig,
    /// The agents' listener.
    pub gateway: GatewayConfig,
    /// Where stemcells are and whose signature counts.
    pub stemcells: StemcellConfig,
    /// The local provider.
    pub local: LocalConfig,
    /// What is done about machines that do not work.
    pub resurrector: ResurrectorConfig,
    /// Backups of the director itself, and where those of clusters are.
    pub backup: BackupConfig,
}

/// Backups of the director itself, and where those of clusters are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupConfig {
    /// Time between two of the director that are taken by themselves; `None`: none are.
    pub every: Option<Duration>,
    /// How many of those are kept.
    pub keep: u32,
    /// Where they are put; those of a cluster in a directory of its name below it. With a bucket, where they are made.
    pub directory: PathBuf,
    /// The bucket where they are put in the place of that.
    pub s3: Option<S3Config>,
    /// Who can open every backup, besides this director's own key.
    pub recipients: Vec<Recipient>,
}

/// What is done about machines that do not work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ResurrectorConfig {
    /// Whether machines are judged and healed.
    pub mode: Mode,
    /// How patient it is, and what it may do.
    pub policy: Policy,
    /// Machines that are kept after their replacement.
    pub forensics: Forensics,
}

/// Machines that are kept, off, after another incarnation followed them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Forensics {
    /// Whether those that the resurrector replaces are kept; an operator may ask for any.
    pub keep: bool,
    /// How many are kept at most; none when 0.
    pub max_kept: u32,
    /// How long each is kept at most.
    pub max_age: Duration,
}

impl Default for Forensics {
    fn default() -> Self {
        Self {
            keep: false,
            max_kept: 4,
            max_age: Duration::from_secs(7 * 24 * 3600),
        }
    }
}

/// The API's listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiConfig {
    /// TCP address.
    pub listen: SocketAddr,
    /// Further DNS names in the API's certificate.
    pub names: Vec<String>,
}

/// The agents' listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayConfig {
    /// UDP address.
    pub listen: SocketAddr,
    /// Where machines find it; the provider's own address on the machine network when empty.
    pub advertise: Vec<SocketAddr>,
    /// How fast artifacts leave.
    pub artifacts: ArtifactRates,
    /// How long after its end a machine's certificate may be followed by another without a token.
    pub lapsed_grace: Duration,
}

/// Where stemcells are and whose signature counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StemcellConfig {
    /// Directory with one directory per stemcell.
    pub directory: PathBuf,
    /// File of ed25519 public keys, one a line.
    pub trusted_keys: PathBuf,
}

/// The local provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalConfig {
    /// Where it keeps machines and disks.
    pub directory: PathBuf,
    /// Prefix of everything it makes on the host: 1 to 8 lower-case letters and digits.
    pub name: String,
    /// Network of the machines.
    pub cidr: Ipv4Net,
    /// The container runtime, a path or a name to be found in PATH.
    pub runc: PathBuf,
    /// Zones that machines are spread over, at most [`ZONES_MAX`]; none where there is one only.
    pub zones: Vec<ZoneName>,
}

impl LocalConfig {
    /// The host's own address on the machine network: the first one.
    pub fn gateway(&self) -> Ipv4Addr {
        self.cidr.hosts().next().unwrap_or(self.cidr.addr())
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// There is none.
    #[error("{} is not there; `windlass director init` makes it", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not a configuration.
    #[error("{} has faults:\n{faults}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All of them.
        faults: Faults,
    },
}

impl ConfigError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }
}

impl Config {
    /// Reads the configuration of a data directory.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(dir: &DataDir) -> Result<Config, ConfigError> {
        let path = dir.config();
        let text = read_bounded(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => ConfigError::Missing { path: path.clone() },
            _ => ConfigError::Read {
                path: path.clone(),
                source,
            },
        })?;
        Config::parse(&text, dir).map_err(|faults| ConfigError::Invalid { path, faults })
    }

    /// Parses the text of a configuration.
    ///
    /// # Errors
    /// All its faults.
    pub fn parse(text: &str, dir: &DataDir) -> Result<Config, Faults> {
        read::config(text, dir)
    }

    /// Networks that clusters have to stay clear of, each with what it is.
    pub fn reserved_networks(&self) -> Vec<(String, Ipv4Net)> {
        vec![(
            "the machine network (provider.local.cidr)".to_owned(),
            self.local.cidr,
        )]
    }

    /// Where machines find the gateway.
    pub fn advertised(&self) -> Vec<SocketAddr> {
        if self.gateway.advertise.is_empty() {
            vec![SocketAddr::from((
                self.local.gateway(),
                self.gateway.listen.port(),
            ))]
        } else {
            self.gateway.advertise.clone()
        }
    }
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let message = format!("it is longer than {FILE_BYTES_MAX} bytes");
        return Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            message,
        ));
    }
    Ok(text)
}
