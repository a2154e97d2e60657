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

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use windlass_common::error::ErrorClass;
use windlass_common::id::{Digest, Hasher};
use windlass_common::stemcell::{
    self, FILES, FileSet, Image, Inputs, MANIFEST, MANIFEST_FORMAT, Manifest, ROOTFS, Rootfs, SBOM,
    SIGNATURE, TreeError, TrustedKeys, VerifyDepth, VerifyError, verify,
};

use crate::assemble::{self, Parts};
use crate::base::{self, Base};
use crate::digest::digest_of;
use crate::files::{DirLock, FileError, Staging, at, create_dir, free_bytes, publish, remove_tree};
use crate::files::{symlink, write_atomic};
use crate::home::{Home, HomeError, read_bounded};
use crate::image;
use crate::lock::Lock;
use crate::prerequisites;
use crate::progress::Progress;
use crate::recipe::{KUBERNETES, Recipe};
use crate::sbom;
use crate::seed::{self, SeedError, Store};
use crate::sign::{KeyFileError, SigningKey};
use crate::sources::{Cached, Kind, Mirror, SourceError, Sources};

/// Changes with the code of this crate, so that stemcells of older code are not taken for current.
const REVISION: u32 = 1;
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
    let inputs = inputs(options, &recipe, &lock, arch)?;
    let id = format!("{}-{}", recipe.name, version_of(&recipe, &inputs));
    create_dir(&options.output)?;
    let key = SigningKey::load_or_create(&options.key)?;
    let trusted = key.trust(&options.output)?;
    let dir = options.output.join(&id);
    let finish = |manifest, up_to_date| Built {
        dir: dir.clone(),
        manifest,
        up_to_date,
        trusted: options.output.join(stemcell::TRUSTED),
        seconds: started.elapsed().as_secs_f64(),
    };
    if !options.refresh
        && let Some(manifest) = existing(&dir, &trusted, &inputs)
    {
        point_latest(&options.output, &recipe.kubernetes, &id)?;
        return Ok(finish(manifest, true));
    }
    preflight(options)?;
    let waiting = || {
        options
            .progress
            .note("another build uses this cache; waiting for it to end")
    };
    let _lock = DirLock::acquire(&options.cache, waiting)?;
    if !options.refresh
        && let Some(manifest) = existing(&dir, &trusted, &inputs)
    {
        return Ok(finish(manifest, true)); // the other build was the same
    }
    let staging = Staging::open(&options.cache)?;
    let prepared = prepare(options, &recipe, &mut lock, arch, &staging)?;
    let manifest = assemble_and_sign(options, &recipe, &prepared, inputs, &id, &key, arch)?;
    point_latest(&options.output, &recipe.kubernetes, &id)?;
    Ok(finish(manifest, false))
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
    components: std::collections::BTreeMap<String, Cached>,
    store: Store,
}

fn prepare(
    options: &Options,
    recipe: &Recipe,
    lock: &mut Lock,
    arch: &str,
    staging: &Staging,
) -> Result<Prepared, BuildError> {
    let Options {
        home,
        cache,
        progress,
        ..
    } = options;
    let base = base::obtain(
        &recipe.debian,
        arch,
        cache,
        staging,
        options.refresh,
        *progress,
    )?;
    let before = lock.clone();
    let mut sources = Sources::new(
        home,
        cache,
        staging,
        arch,
        &base,
        options.mirror.clone(),
        options.sources.clone(),
        *progress,
    );
    let result = sources.obtain_all(recipe, lock);
    if *lock != before {
        lock.save(home)?; // also when a later component failed: what was seen was seen
    }
    let components = result?;
    let containerd = &components["containerd"];
    let images = image_inputs(recipe, &components, &base)?;
    let key = seed::inputs(containerd, images);
    let store = seed::obtain(key, containerd, cache, staging, *progress, || {
        assemble_images(recipe, &components, &base, arch, staging)
    })?;
    Ok(Prepared {
        base,
        components,
        store,
    })
}

/// Digest of what decides the images' content.
fn image_inputs(
    recipe: &Recipe,
    components: &std::collections::BTreeMap<String, Cached>,
    base: &Base,
) -> Result<Digest, BuildError> {
    let mut hasher = Hasher::default();
    // Recipes of images are strings and maps: they always serialise.
    hasher.update(&serde_json::to_vec(&recipe.images).unwrap_or_default());
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
    components: &std::collections::BTreeMap<String, Cached>,
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

fn assemble_and_sign(
    options: &Options,
    recipe: &Recipe,
    prepared: &Prepared,
    inputs: Inputs,
    id: &str,
    key: &SigningKey,
    arch: &str,
) -> Result<Manifest, BuildError> {
    let step = options.progress.start(format!("stemcell {id}"));
    let staging = Staging::open(&options.output)?;
    let place = staging.place(id)?;
    create_dir(&place)?;
    let rootfs = place.join(ROOTFS);
    let parts = Parts {
        home: &options.home,
        recipe,
        base: &prepared.base,
        components: &prepared.components,
        store: &prepared.store,
        agent: options.agent.as_deref(),
        id,
    };
    assemble::assemble(&parts, &rootfs)?;
    let tree = stemcell::scan(&rootfs).map_err(BuildError::List)?;
    write_atomic(&place.join(FILES), tree.listing.as_bytes(), 0o644)?;
    let mut manifest = Manifest {
        format: MANIFEST_FORMAT,
        name: recipe.name.clone(),
        version: version_of(recipe, &inputs),
        kubernetes: recipe.kubernetes.clone(),
        architecture: arch.to_owned(),
        built_at: jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string(),
        builder: env!("CARGO_PKG_VERSION").to_owned(),
        inputs,
        components: assemble::components_of(&parts, &rootfs)?,
        images: prepared.store.images.clone(),
        seeds: vec![seed::describe(&prepared.store.dir)?],
        units: assemble::units_of(&options.home)?,
        exports: assemble::exports_of(&parts),
        packages: prepared.base.packages.clone(),
        rootfs: Rootfs {
            files: file_set(tree.listing.as_bytes()),
            entries: tree.entries,
            bytes: tree.bytes,
        },
        sbom: file_set(b""),
    };
    let bill = sbom::render(&manifest, recipe, &options.home)?;
    manifest.sbom = file_set(&bill);
    write_atomic(&place.join(SBOM), &bill, 0o644)?;
    let mut bytes = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| at("serialise", &place.join(MANIFEST))(error.into()))?;
    bytes.push(b'\n');
    write_atomic(&place.join(MANIFEST), &bytes, 0o644)?;
    write_atomic(&place.join(SIGNATURE), key.sign(&bytes).as_bytes(), 0o644)?;
    let trusted = TrustedKeys::new([key.public()]);
    verify(&place, &trusted, VerifyDepth::Manifest).map_err(BuildError::Verify)?;
    let dir = options.output.join(id);
    remove_tree(&dir)?; // one that does not verify, or is being refreshed
    publish(&place, &dir)?;
    step.done(format!(
        "{} files, {:.0} MB",
        tree.entries,
        tree.bytes as f64 / 1e6
    ));
    Ok(manifest)
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

/// The stemcell in `dir`, if it is complete, ours and made from these inputs.
fn existing(dir: &Path, trusted: &TrustedKeys, inputs: &Inputs) -> Option<Manifest> {
    let manifest = verify(dir, trusted, VerifyDepth::Manifest).ok()?;
    (manifest.inputs == *inputs).then_some(manifest)
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

/// Digests of everything that a stemcell is made from.
fn inputs(
    options: &Options,
    recipe: &Recipe,
    lock: &Lock,
    arch: &str,
) -> Result<Inputs, BuildError> {
    let mut components = Hasher::default();
    for (name, family) in &recipe.families {
        let version = match recipe.wanted.iter().find(|wanted| wanted.family == *name) {
            Some(wanted) => &wanted.version,
            None => continue,
        };
        if let Some(entry) = lock.entry(name, version) {
            components.update(family.definition(&options.home, entry)?.as_bytes());
        }
    }
    let recipe_digest = Digest::of(&recipe.bytes);
    let components = components.finish();
    let agent = match &options.agent {
        Some(path) => Some(digest_of(path)?.0),
        None => None,
    };
    let mut all = Hasher::default();
    all.update(&REVISION.to_be_bytes());
    all.update(env!("CARGO_PKG_VERSION").as_bytes());
    all.update(KUBERNETES.as_bytes());
    all.update(recipe.kubernetes.as_bytes());
    all.update(base::inputs(&recipe.debian, arch).as_bytes());
    all.update(recipe_digest.as_bytes());
    all.update(components.as_bytes());
    all.update(static_files(&options.home)?.as_bytes());
    if let Some(agent) = &agent {
        all.update(agent.as_bytes());
    }
    Ok(Inputs {
        digest: all.finish(),
        recipe: recipe_digest,
        components,
        agent,
    })
}

/// Digest of the static files and their places; owners and modes are set when they are copied.
fn static_files(home: &Home) -> Result<Digest, BuildError> {
    fn visit(
        dir: &Path,
        root: &Path,
        files: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<(), BuildError> {
        for item in fs::read_dir(dir).map_err(at("read", dir))? {
            let path = item.map_err(at("read", dir))?.path();
            let metadata = fs::symlink_metadata(&path).map_err(at("read", &path))?;
            let name = path
                .strip_prefix(root)
                .unwrap_or(&path)
                .display()
                .to_string();
            if metadata.is_dir() {
                visit(&path, root, files)?;
            } else if metadata.is_symlink() {
                let target = fs::read_link(&path).map_err(at("read", &path))?;
                files.push((name, target.display().to_string().into_bytes()));
            } else {
                files.push((name, read_bounded(&path)?));
            }
        }
        Ok(())
    }
    let root = home.path("rootfs");
    let mut files = Vec::new();
    visit(&root, &root, &mut files)?;
    files.sort();
    // Strings and bytes always serialise.
    Ok(Digest::of(&serde_json::to_vec(&files).unwrap_or_default()))
}
