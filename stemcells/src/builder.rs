//! A build from beginning to end.
//!
//! ```text
//! inputs digest → there already? → yes: verify its manifest, done
//!                                → no: Debian, components, images (each cached) → assemble in
//!                                  <output>/.staging → list, describe, sign, verify → rename
//! ```
//!
//! # After a crash
//! Nothing with a final name is incomplete. The next build removes the staging directories and finds
//! what was finished in the cache.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use windlass_common::error::ErrorClass;
use windlass_common::id::{Digest, Hasher};
use windlass_common::stemcell::{
    self, FILES, FileSet, Image, Inputs, MANIFEST, MANIFEST_FORMAT, Manifest, ROOTFS, Rootfs, SBOM,
    SIGNATURE, Tree, TreeError, TrustedKeys, VerifyDepth, VerifyError, verify,
};

use crate::assemble::{self, Parts};
use crate::base::{self, Base};
use crate::digest::digest_of;
use crate::files::{DirLock, FileError, Staging, at, create_dir, free_bytes, publish, remove_tree};
use crate::files::{symlink, write_atomic};
use crate::home::{Home, HomeError};
use crate::image;
use crate::inputs::inputs;
use crate::lock::Lock;
use crate::prerequisites;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::sbom;
use crate::seed::{self, SeedError, Store};
use crate::sign::{KeyFileError, SigningKey};
use crate::sources::{Cached, Kind, Mirror, Setting, SourceError, Sources};

/// Free space needed for a stemcell: a root of 0.2 GB, components of 0.55 GB, images of 0.15 GB, and
/// half as much again.
pub const OUTPUT_BYTES: u64 = 1_400_000_000;
/// Free space needed in the cache: the parts of a stemcell, and one of them twice while it is made.
pub const CACHE_BYTES: u64 = 1_400_000_000;

/// What to build.
#[derive(Debug, Clone)]
pub struct Options {
    /// Definitions.
    pub home: Home,
    /// The recipe's file.
    pub recipe: PathBuf,
    /// Version of Kubernetes; the recipe's own if absent.
    pub kubernetes: Option<String>,
    /// Where stemcells go.
    pub output: PathBuf,
    /// Where parts are kept.
    pub cache: PathBuf,
    /// A mirror of components.
    pub mirror: Option<Mirror>,
    /// Which sources may be used.
    pub sources: Vec<Kind>,
    /// Another mirror of Debian than the recipe's.
    pub debian_mirror: Option<String>,
    /// Whether to install today's Debian packages even if there is a root in the cache.
    pub refresh: bool,
    /// The agent's program; none makes a stemcell that no director can use.
    pub agent: Option<PathBuf>,
    /// The signing key; made if absent.
    pub key: PathBuf,
    /// Where progress goes.
    pub progress: Progress,
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Built {
    /// The stemcell's directory.
    pub dir: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Whether it was there already.
    pub up_to_date: bool,
    /// Keys that the output directory trusts.
    pub trusted: PathBuf,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Why there is no stemcell.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Not root.
    #[error("building a root file system needs root (owners, devices, mounts); run it with sudo")]
    NotRoot,
    /// The processor is not supported.
    #[error(
        "stemcells are built for the host's processor; {arch} is not supported, amd64 and arm64 are"
    )]
    Architecture {
        /// What Rust calls it.
        arch: &'static str,
    },
    /// Programs of the host are missing.
    #[error("missing: {}; install them with `apt-get install {}`", names.join(", "), packages.join(" "))]
    Prerequisites {
        /// What was looked for.
        names: Vec<String>,
        /// Packages that have it.
        packages: Vec<String>,
    },
    /// Too little space to begin with.
    #[error("{} has {free} bytes free, a build needs {need} there; free some or choose another directory", path.display())]
    Space {
        /// The directory.
        path: PathBuf,
        /// Free bytes.
        free: u64,
        /// Needed bytes.
        need: u64,
    },
    /// The recipe cannot make an image store.
    #[error("the recipe's machine.components lack containerd, which unpacks the images")]
    NoContainerd,
    /// Definitions.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The signing key.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// Components.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Images.
    #[error(transparent)]
    Seed(#[from] SeedError),
    /// Files and programs.
    #[error(transparent)]
    File(#[from] FileError),
    /// The finished root file system cannot be listed.
    #[error("cannot list the root file system")]
    List(#[source] TreeError),
    /// The finished stemcell does not verify.
    #[error("the stemcell just built does not verify; this is a fault of the builder")]
    Verify(#[source] VerifyError),
}

impl BuildError {
    /// Who has to act.
    pub fn class(&self) -> ErrorClass {
        match self {
            BuildError::NotRoot
            | BuildError::Architecture { .. }
            | BuildError::Prerequisites { .. }
            | BuildError::Space { .. }
            | BuildError::NoContainerd
            | BuildError::List(_) => ErrorClass::Operator,
            BuildError::Home(error) => error.class(),
            BuildError::Key(error) => error.class(),
            BuildError::Source(error) => error.class(),
            BuildError::Seed(error) => error.class(),
            BuildError::File(error) => error.class(),
            BuildError::Verify(_) => ErrorClass::Bug,
        }
    }

    /// Whether the cause is a full disk.
    pub fn is_disk_full(&self) -> bool {
        match self {
            BuildError::Space { .. } => true,
            BuildError::Source(error) => error.is_disk_full(),
            BuildError::Seed(error) => error.is_disk_full(),
            BuildError::File(error) => error.is_disk_full(),
            BuildError::NotRoot
            | BuildError::Architecture { .. }
            | BuildError::Prerequisites { .. }
            | BuildError::NoContainerd
            | BuildError::Home(_)
            | BuildError::Key(_)
            | BuildError::List(_)
            | BuildError::Verify(_) => false,
        }
    }
}

/// Debian's name of the host's processor architecture.
pub fn architecture() -> Result<&'static str, BuildError> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        arch => Err(BuildError::Architecture { arch }),
    }
}

/// Builds a stemcell, or finds that it is there already.
pub fn build(options: &Options) -> Result<Built, BuildError> {
    let started = Instant::now();
    let arch = architecture()?;
    let mut lock = Lock::load(&options.home)?;
    let mut recipe = Recipe::load(
        &options.recipe,
        &options.home,
        &lock,
        options.kubernetes.as_deref(),
    )?;
    if let Some(mirror) = &options.debian_mirror {
        use_mirror(&mut recipe, mirror);
    }
    create_dir(&options.output)?;
    let key = SigningKey::load_or_create(&options.key)?;
    let trusted = key.trust(&options.output)?;
    let build = Build {
        options,
        recipe: &recipe,
        arch,
        key: &key,
        trusted: &trusted,
    };
    let base = base::cached(&recipe.debian, arch, &options.cache).filter(|_| !options.refresh);
    if let Some(base) = base
        && let Some(manifest) = build.existing(&build.inputs(&lock, &base)?)?
    {
        return Ok(build.finish(manifest, true, started));
    }
    preflight(options)?;
    let waiting = || {
        options
            .progress
            .note("another build is running; waiting for it to end")
    };
    let _cache = DirLock::acquire(&options.cache, waiting)?;
    let _output = DirLock::acquire(&options.output, waiting)?;
    let staging = Staging::open(&options.cache)?;
    let base = base::obtain(
        &recipe.debian,
        arch,
        &options.cache,
        &staging,
        options.refresh,
        options.progress,
    )?;
    let inputs = build.inputs(&lock, &base)?;
    if let Some(manifest) = build.existing(&inputs)? {
        return Ok(build.finish(manifest, true, started)); // by another build, or of a lost cache
    }
    let prepared = build.prepare(base, &mut lock, &staging)?;
    let manifest = build.assemble_and_sign(&prepared, inputs)?;
    point_latest(&options.output, &recipe.kubernetes, &manifest.id())?;
    Ok(build.finish(manifest, false, started))
}

fn use_mirror(recipe: &mut Recipe, mirror: &str) {
    let suite = recipe.debian.suite.clone();
    let line = |suite: &str| format!("deb {} {suite} main", mirror.trim_end_matches('/'));
    recipe.debian.sources = vec![line(&suite)];
}

/// Checks all that a build needs, before anything is changed.
fn preflight(options: &Options) -> Result<(), BuildError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(BuildError::NotRoot);
    }
    let missing = prerequisites::missing();
    if !missing.is_empty() {
        return Err(BuildError::Prerequisites {
            names: missing.iter().map(|one| one.looks_for.to_owned()).collect(),
            packages: missing.iter().map(|one| one.package.to_owned()).collect(),
        });
    }
    create_dir(&options.cache)?;
    for (path, need) in [
        (&options.cache, CACHE_BYTES),
        (&options.output, OUTPUT_BYTES),
    ] {
        let free = free_bytes(path)?;
        if free < need {
            return Err(BuildError::Space {
                path: path.clone(),
                free,
                need,
            });
        }
    }
    Ok(())
}

/// The parts of a stemcell, all in the cache.
struct Prepared {
    base: Base,
    components: BTreeMap<String, Cached>,
    store: Store,
}

/// One build.
struct Build<'a> {
    options: &'a Options,
    recipe: &'a Recipe,
    arch: &'a str,
    key: &'a SigningKey,
    trusted: &'a TrustedKeys,
}

impl Build<'_> {
    fn inputs(&self, lock: &Lock, base: &Base) -> Result<Inputs, BuildError> {
        inputs(self.options, self.recipe, lock, &base.packages, self.arch)
    }

    fn id(&self, inputs: &Inputs) -> String {
        format!("{}-{}", self.recipe.name, version_of(self.recipe, inputs))
    }

    /// The stemcell made from these inputs, if it is there and holds.
    fn existing(&self, inputs: &Inputs) -> Result<Option<Manifest>, FileError> {
        let id = self.id(inputs);
        let dir = self.options.output.join(&id);
        let Ok(manifest) = verify(&dir, self.trusted, VerifyDepth::Manifest) else {
            return Ok(None);
        };
        if manifest.inputs != *inputs {
            return Ok(None);
        }
        point_latest(&self.options.output, &self.recipe.kubernetes, &id)?;
        Ok(Some(manifest))
    }

    fn finish(&self, manifest: Manifest, up_to_date: bool, started: Instant) -> Built {
        let output = &self.options.output;
        Built {
            dir: output.join(manifest.id()),
            manifest,
            up_to_date,
            trusted: output.join(stemcell::TRUSTED),
            seconds: started.elapsed().as_secs_f64(),
        }
    }

    /// Gets components and images into the cache.
    fn prepare(
        &self,
        base: Base,
        lock: &mut Lock,
        staging: &Staging,
    ) -> Result<Prepared, BuildError> {
        let Options {
            home,
            cache,
            progress,
            ..
        } = self.options;
        let before = lock.clone();
        let mut sources = Sources::new(Setting {
            home,
            cache,
            staging,
            arch: self.arch,
            base: &base,
            mirror: self.options.mirror.clone(),
            allowed: self.options.sources.clone(),
            progress: *progress,
        });
        let result = sources.obtain_all(self.recipe, lock);
        if *lock != before {
            lock.save(home)?; // also when a later component failed: what was seen was seen
        }
        let components = result?;
        let Some(containerd) = components.get("containerd") else {
            return Err(BuildError::NoContainerd);
        };
        let images = image_inputs(self.recipe, &components, &base)?;
        let key = seed::inputs(containerd, images);
        let store = seed::obtain(key, containerd, cache, staging, *progress, || {
            assemble_images(self.recipe, &components, &base, self.arch, staging)
        })?;
        Ok(Prepared {
            base,
            components,
            store,
        })
    }

    fn assemble_and_sign(
        &self,
        prepared: &Prepared,
        inputs: Inputs,
    ) -> Result<Manifest, BuildError> {
        let id = self.id(&inputs);
        let step = self.options.progress.start(format!("stemcell {id}"));
        let staging = Staging::open(&self.options.output)?;
        let place = staging.place(&id)?;
        create_dir(&place)?;
        let rootfs = place.join(ROOTFS);
        let parts = Parts {
            home: &self.options.home,
            recipe: self.recipe,
            base: &prepared.base,
            components: &prepared.components,
            store: &prepared.store,
            agent: self.options.agent.as_deref(),
            id: &id,
        };
        assemble::assemble(&parts, &rootfs)?;
        let tree = stemcell::scan(&rootfs).map_err(BuildError::List)?;
        write_atomic(&place.join(FILES), tree.listing.as_bytes(), 0o644)?;
        let mut manifest = self.describe(&parts, &rootfs, &tree, inputs)?;
        let bill = sbom::render(&manifest, self.recipe, &self.options.home)?;
        manifest.sbom = file_set(&bill);
        write_atomic(&place.join(SBOM), &bill, 0o644)?;
        let mut bytes = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| at("serialise", &place.join(MANIFEST))(error.into()))?;
        bytes.push(b'\n');
        write_atomic(&place.join(MANIFEST), &bytes, 0o644)?;
        write_atomic(
            &place.join(SIGNATURE),
            self.key.sign(&bytes).as_bytes(),
            0o644,
        )?;
        verify(&place, self.trusted, VerifyDepth::Manifest).map_err(BuildError::Verify)?;
        let dir = self.options.output.join(&id);
        remove_tree(&dir)?; // there only if it does not verify
        publish(&place, &dir)?;
        step.done(format!(
            "{} files, {} MB",
            tree.entries,
            tree.bytes / 1_000_000
        ));
        Ok(manifest)
    }

    /// The manifest, but for the digest of the bill of materials, which is made from it.
    fn describe(
        &self,
        parts: &Parts<'_>,
        rootfs: &Path,
        tree: &Tree,
        inputs: Inputs,
    ) -> Result<Manifest, BuildError> {
        Ok(Manifest {
            format: MANIFEST_FORMAT,
            name: self.recipe.name.clone(),
            version: version_of(self.recipe, &inputs),
            kubernetes: self.recipe.kubernetes.clone(),
            architecture: self.arch.to_owned(),
            built_at: jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%SZ")
                .to_string(),
            builder: env!("CARGO_PKG_VERSION").to_owned(),
            inputs,
            components: assemble::components_of(parts, rootfs)?,
            images: parts.store.images.clone(),
            seeds: vec![seed::describe(&parts.store.dir)?],
            units: assemble::units_of(parts.home)?,
            exports: assemble::exports_of(parts),
            packages: parts.base.packages.clone(),
            rootfs: Rootfs {
                files: file_set(tree.listing.as_bytes()),
                entries: tree.entries,
                bytes: tree.bytes,
            },
            sbom: file_set(b""),
        })
    }
}

/// Digest of what decides the images' content.
fn image_inputs(
    recipe: &Recipe,
    components: &BTreeMap<String, Cached>,
    base: &Base,
) -> Result<Digest, BuildError> {
    let mut hasher = Hasher::default();
    let images = serde_json::to_vec(&recipe.images);
    hasher.update(&images.expect("strings and maps serialise to JSON"));
    for program in recipe.images.iter().flat_map(|image| image.files.values()) {
        let owner = recipe
            .owner(program)
            .and_then(|wanted| components.get(&wanted.component));
        for file in owner.iter().flat_map(|cached| &cached.files) {
            hasher.update(file.digest.as_bytes());
        }
    }
    let (certificates, _) = digest_of(&base.rootfs.join("etc/ssl/certs/ca-certificates.crt"))?;
    hasher.update(certificates.as_bytes());
    Ok(hasher.finish())
}

fn assemble_images(
    recipe: &Recipe,
    components: &BTreeMap<String, Cached>,
    base: &Base,
    arch: &str,
    staging: &Staging,
) -> Result<Vec<(image::ImageArchive, Image)>, FileError> {
    let mut archives = Vec::new();
    for (number, wanted) in recipe.images.iter().enumerate() {
        let owner = |program: &str| {
            recipe
                .owner(program)
                .and_then(|wanted| components.get(&wanted.component))
        };
        let mut inside: Vec<String> = wanted
            .files
            .values()
            .filter_map(|program| owner(program))
            .map(|cached| format!("{} {}", cached.component, cached.version))
            .collect();
        inside.sort();
        let dir = staging.place(&format!("image-{number}"))?;
        let archive = image::assemble(wanted, owner, &base.rootfs, arch, &dir)?;
        let described = Image {
            name: archive.name.clone(),
            digest: archive.digest,
            bytes: archive.bytes,
            components: inside,
        };
        archives.push((archive, described));
    }
    archives.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
    Ok(archives)
}

fn file_set(bytes: &[u8]) -> FileSet {
    FileSet {
        digest: Digest::of(bytes),
        bytes: bytes.len() as u64,
    }
}

fn version_of(recipe: &Recipe, inputs: &Inputs) -> String {
    format!("{}-{}", recipe.kubernetes, &inputs.digest.hex()[..10])
}

/// Makes `latest-<kubernetes>` lead to a stemcell, atomically.
fn point_latest(output: &Path, kubernetes: &str, id: &str) -> Result<(), FileError> {
    let link = output.join(format!("latest-{kubernetes}"));
    if fs::read_link(&link).is_ok_and(|target| target == Path::new(id)) {
        return Ok(());
    }
    let temporary = output.join(format!(".latest.{}", std::process::id()));
    let _ = fs::remove_file(&temporary);
    symlink(id, &temporary)?;
    fs::rename(&temporary, &link).map_err(at("rename", &temporary))
}
