//! Getting a component's programs from the first source that has them.
//!
//! Order: local cache, a mirror that the user names, the official download, a build from the Go
//! module, the Debian package. A source that does not have the component, cannot be reached or lacks
//! its tool is passed over with its reason; bytes that are not the expected ones end the build, for
//! another source would only hide that somebody tampered.
//!
//! # Invariants
//! * A cache entry under its final name is complete; its digests are checked on every use.
//! * A download is used only if it matches its publisher's checksum and what the lock has seen.
//!
//! # After a crash
//! Finished components are in the cache; the one in progress starts again (the Go tool chain keeps
//! what it compiled).

mod cache;
mod debian;
mod go;
mod mirror;
mod own;
mod release;
mod web;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use windlass_common::error::ErrorClass;
use windlass_common::id::Digest;
use windlass_common::stemcell::Source;

pub use self::cache::{Cached, CachedFile};
pub use self::mirror::{Mirror, export};
use self::web::Web;
use crate::base::Base;
use crate::files::{FileError, Staging};
use crate::home::{Home, HomeError};
use crate::lock::{Entry, Family, Lock, Pin};
use crate::progress::Progress;
use crate::recipe::{Recipe, Wanted};
use crate::tool::ToolError;

/// A kind of source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// What an earlier build left.
    Cache,
    /// A directory or web server that the user names.
    Mirror,
    /// The project's own download.
    Release,
    /// A build from its Go module.
    Go,
    /// A Debian package.
    Debian,
}

impl Kind {
    /// All of them, in the order they are tried.
    pub const ALL: [Kind; 5] = [
        Kind::Cache,
        Kind::Mirror,
        Kind::Release,
        Kind::Go,
        Kind::Debian,
    ];

    fn name(self) -> &'static str {
        match self {
            Kind::Cache => "cache",
            Kind::Mirror => "mirror",
            Kind::Release => "release",
            Kind::Go => "go",
            Kind::Debian => "debian",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;
    fn from_str(value: &str) -> Result<Kind, String> {
        let found = Kind::ALL.into_iter().find(|kind| kind.name() == value);
        found.ok_or_else(|| format!("{value:?} is not one of cache, mirror, release, go, debian"))
    }
}

/// Why a component cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Bytes are not the expected ones.
    #[error(
        "{what} has digest {got}, {authority} says {want}; nothing of it was kept. Find out which is \
         right before you build again"
    )]
    DigestMismatch {
        /// The file or URL.
        what: String,
        /// Who says what it should be.
        authority: String,
        /// What it should be.
        want: Digest,
        /// What it is.
        got: Digest,
    },
    /// A publisher's signature does not hold.
    #[error("the signature of {url} does not hold; nothing of it was kept")]
    Signature {
        /// The file.
        url: String,
        /// What the checking tool said.
        #[source]
        source: ToolError,
    },
    /// No source has it.
    #[error("{component} {version} is nowhere to be had:{}", list(tried))]
    Nowhere {
        /// The component.
        component: String,
        /// Its version.
        version: String,
        /// Sources with the reason why each was passed over.
        tried: Vec<(Kind, String)>,
    },
    /// Definitions cannot be read.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// A file cannot be written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A program of the host failed.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

fn list(tried: &[(Kind, String)]) -> String {
    tried
        .iter()
        .map(|(kind, why)| format!("\n  {kind:<8} {why}"))
        .collect()
}

impl SourceError {
    /// Who has to act.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }

    /// Whether the cause is a full disk.
    pub fn is_disk_full(&self) -> bool {
        match self {
            SourceError::File(error) => error.is_disk_full(),
            SourceError::Tool(error) => error.is_disk_full(),
            SourceError::DigestMismatch { .. }
            | SourceError::Signature { .. }
            | SourceError::Nowhere { .. }
            | SourceError::Home(_) => false,
        }
    }
}

/// What a source did.
enum Attempt {
    /// The programs are in the directory given; this is where they came from.
    Got(Source),
    /// It has them not, for this reason.
    Passed(String),
}

/// One component to get.
struct Request<'a> {
    home: &'a Home,
    family: &'a Family,
    entry: &'a Entry,
    component: &'a str,
    programs: &'a [String],
    arch: &'a str,
}

impl Request<'_> {
    fn title(&self) -> String {
        format!("{} {}", self.component, self.entry.version)
    }
}

/// What sources work with.
#[derive(Debug)]
pub struct Setting<'a> {
    /// Definitions.
    pub home: &'a Home,
    /// The cache; components are in a directory of their own in it.
    pub cache: &'a Path,
    /// Where unfinished work goes.
    pub staging: &'a Staging,
    /// Debian's name of the processor architecture.
    pub arch: &'a str,
    /// The root file system, for what is taken from Debian packages.
    pub base: &'a Base,
    /// A mirror of components.
    pub mirror: Option<Mirror>,
    /// What may be used; the order is always that of [`Kind::ALL`].
    pub allowed: Vec<Kind>,
    /// Where progress goes.
    pub progress: Progress,
}

/// Where components come from, for one build.
#[derive(Debug)]
pub struct Sources<'a> {
    setting: Setting<'a>,
    web: Web,
}

impl<'a> Sources<'a> {
    /// Sources that have not been asked yet.
    pub fn new(setting: Setting<'a>) -> Sources<'a> {
        Sources {
            setting,
            web: Web::default(),
        }
    }

    /// Gets all components of a recipe into the cache; the lock may have gained digests afterwards.
    pub fn obtain_all(
        &mut self,
        recipe: &Recipe,
        lock: &mut Lock,
    ) -> Result<BTreeMap<String, Cached>, SourceError> {
        let mut all = BTreeMap::new();
        for wanted in &recipe.wanted {
            let cached = self.obtain(wanted, &recipe.families[&wanted.family], lock)?;
            all.insert(wanted.component.clone(), cached);
        }
        Ok(all)
    }

    fn obtain(
        &mut self,
        wanted: &Wanted,
        family: &Family,
        lock: &mut Lock,
    ) -> Result<Cached, SourceError> {
        let nowhere = |tried| SourceError::Nowhere {
            component: wanted.component.clone(),
            version: wanted.version.clone(),
            tried,
        };
        let Some(entry) = lock.entry(&wanted.family, &wanted.version).cloned() else {
            return Err(nowhere(Vec::new())); // recipes are checked against the lock when read
        };
        let definition = family.definition(self.setting.home, &entry)?;
        let programs = family
            .components
            .get(&wanted.component)
            .map_or(&[][..], Vec::as_slice);
        let request = Request {
            home: self.setting.home,
            family,
            entry: &entry,
            component: &wanted.component,
            programs,
            arch: self.setting.arch,
        };
        let key = format!(
            "{}-{}-{}-{}",
            wanted.component,
            wanted.version,
            self.setting.arch,
            &definition.hex()[..12]
        );
        let path = self.setting.cache.join("components").join(key);
        let mut tried = Vec::new();
        for kind in Kind::ALL {
            // Sources of this project are part of it, and compiled whatever is left out.
            let own = kind == Kind::Go && family.own.is_some();
            if !own && !self.setting.allowed.contains(&kind) {
                tried.push((kind, "left out by --sources".to_owned()));
                continue;
            }
            if kind == Kind::Cache {
                match cache::open(&path, &request) {
                    Ok(cached) => {
                        check_pins(&cached, &request, lock)?;
                        return Ok(cached);
                    }
                    Err(why) => tried.push((kind, why)),
                }
                continue;
            }
            let place = self
                .setting
                .staging
                .place(&format!("component-{}", wanted.component))?;
            crate::files::create_dir(&place)?;
            match self.attempt(kind, &request, &place)? {
                Attempt::Passed(why) => tried.push((kind, why)),
                Attempt::Got(source) => {
                    let staged = cache::describe(&place, &request, source)?;
                    check_pins(&staged, &request, lock)?;
                    return Ok(cache::store(staged, &path)?);
                }
            }
        }
        Err(nowhere(tried))
    }

    fn attempt(
        &mut self,
        kind: Kind,
        request: &Request<'_>,
        place: &Path,
    ) -> Result<Attempt, SourceError> {
        let passed = |why: &str| Ok(Attempt::Passed(why.to_owned()));
        let progress = self.setting.progress;
        match kind {
            Kind::Cache => passed("looked up before"),
            Kind::Mirror => match &self.setting.mirror {
                Some(mirror) => mirror.get(request, place, &mut self.web, progress),
                None => passed("none was named (--mirror)"),
            },
            Kind::Release => match &request.family.release {
                Some(release) => release::get(release, request, place, &mut self.web, progress),
                None => passed("its project has no download"),
            },
            Kind::Go => match (&request.family.go, &request.family.own) {
                (Some(go), _) => go::build(go, request, place, progress),
                (None, Some(own)) => own::compile(own, request, place, progress),
                (None, None) => passed("it is not a Go module"),
            },
            Kind::Debian => match &request.family.debian {
                Some(package) => debian::take(package, request, place, self.setting.base),
                None => passed("it is not in the recipe's packages"),
            },
        }
    }
}

/// Compares downloads with what was seen before; first sights are remembered.
fn check_pins(cached: &Cached, request: &Request<'_>, lock: &mut Lock) -> Result<(), SourceError> {
    let origin = match &cached.source {
        Source::Release { .. } => format!("release-{}", request.arch),
        Source::Mirror { .. } => format!("mirror-{}", request.arch),
        // Pinned by go.sum, by Debian's signatures, by being in this repository.
        Source::Go { .. } | Source::Debian { .. } | Source::Own { .. } => return Ok(()),
    };
    let Entry {
        family, version, ..
    } = request.entry;
    for file in &cached.files {
        match lock.pin(family, version, &origin, &file.name, file.digest) {
            Pin::Known | Pin::New => {}
            Pin::Contradicts(want) => {
                return Err(SourceError::DigestMismatch {
                    what: format!("{} of {}", file.name, request.title()),
                    authority: format!("the lock ({origin})"),
                    want,
                    got: file.digest,
                });
            }
        }
    }
    Ok(())
}
