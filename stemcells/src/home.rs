//! Where recipes, component definitions and the lock file are: the `stemcells/` directory.
//!
//! It is found, in this order, by `--home`, the variable `WINDLASS_STEMCELLS`, and by looking for
//! `stemcells/components.lock.toml` upwards from the working directory and from the program.

use std::env;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use windlass_common::error::ErrorClass;

/// The lock file's name.
pub const LOCK: &str = "components.lock.toml";
/// Largest file of definitions, in bytes; the largest go.sum has 70 KiB.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why definitions cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HomeError {
    /// No directory was found.
    #[error(
        "cannot find the stemcells directory (with {LOCK}); run from the repository, pass --home or \
         set WINDLASS_STEMCELLS"
    )]
    NotFound,
    /// The directory named is not one.
    #[error("{} has no {LOCK}; it is not a stemcells directory", dir.display())]
    NotHome {
        /// What was named.
        dir: PathBuf,
    },
    /// A file is missing or unreadable.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is not valid TOML of the expected shape.
    #[error("{} is not valid: {what}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and fault.
        what: String,
    },
    /// A file's content contradicts itself or others.
    #[error("{}: {}", path.display(), faults.join("; "))]
    Faults {
        /// The file.
        path: PathBuf,
        /// All of them.
        faults: Vec<String>,
    },
}

impl HomeError {
    /// Who has to act.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }
}

/// The `stemcells/` directory.
#[derive(Debug, Clone)]
pub struct Home(PathBuf);

impl Home {
    /// Finds it; see the module's documentation.
    pub fn find(named: Option<&Path>) -> Result<Home, HomeError> {
        let from_env = env::var_os("WINDLASS_STEMCELLS").map(PathBuf::from);
        if let Some(dir) = named.map(Path::to_owned).or(from_env) {
            return match dir.join(LOCK).is_file() {
                true => Ok(Home(dir)),
                false => Err(HomeError::NotHome { dir }),
            };
        }
        let starts = [env::current_dir(), env::current_exe()];
        for start in starts.into_iter().flatten() {
            for dir in start.ancestors() {
                let candidate = dir.join("stemcells");
                if candidate.join(LOCK).is_file() {
                    return Ok(Home(candidate));
                }
            }
        }
        Err(HomeError::NotFound)
    }

    /// A path inside.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.0.join(relative)
    }

    /// The directory of a family of components.
    pub fn family(&self, family: &str) -> PathBuf {
        self.path("components").join(family)
    }
}

/// Reads a file of definitions, within its limit.
pub fn read_bounded(path: &Path) -> Result<Vec<u8>, HomeError> {
    let fail = |source| HomeError::Read {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let file = fs::File::open(path).map_err(fail)?;
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(fail)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(fail(io::Error::other(format!(
            "larger than {FILE_BYTES_MAX} bytes"
        ))));
    }
    Ok(bytes)
}

/// Reads a TOML file and gives back its bytes as well, which is what digests are made of.
pub fn read_toml<T: serde::de::DeserializeOwned>(path: &Path) -> Result<(T, Vec<u8>), HomeError> {
    let parse = |what: String| HomeError::Parse {
        path: path.to_owned(),
        what,
    };
    let bytes = read_bounded(path)?;
    let text = str::from_utf8(&bytes).map_err(|error| parse(error.to_string()))?;
    let value = toml::from_str(text).map_err(|error| parse(error.to_string()))?;
    Ok((value, bytes))
}
