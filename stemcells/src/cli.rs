//! The commands of `windlass-stemcell`; also usable as a group of commands of another program.

use std::env;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::json;
use windlass_common::error::{ErrorChain, ErrorClass};
use windlass_common::stemcell::{
    Installed, Manifest, TRUSTED, TrustedKeys, VerifyDepth, installed, verify,
};

use crate::base;
use crate::builder::{self, Options};
use crate::files::Staging;
use crate::home::Home;
use crate::lock::Lock;
use crate::prerequisites;
use crate::progress::Progress;
use crate::prune::prune;
use crate::recipe::Recipe;
use crate::sign::SigningKey;
use crate::sources::{Kind, Mirror, Setting, Sources, export};

/// Exit code for wrong input and missing prerequisites.
pub const EXIT_OPERATOR: u8 = 1;
/// Exit code for a fault of the program.
pub const EXIT_BUG: u8 = 70;
const RECIPE: &str = "debian12";

/// What can be done with stemcells.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build a stemcell; done in seconds if nothing changed
    Build(BuildArgs),
    /// List the stemcells there are, newest last
    List(ListArgs),
    /// Verify a stemcell's signature and every byte of it
    Verify(VerifyArgs),
    /// Make a signing key
    Keygen(KeygenArgs),
    /// Write the components of a recipe as a mirror, for builds without internet access
    Mirror(MirrorArgs),
    /// Remove old stemcells that no machine runs on
    Prune(PruneArgs),
    /// Show which programs a build needs, and the packages that have them
    Prerequisites(JsonArgs),
}

/// How to print.
#[derive(Debug, Args)]
pub struct JsonArgs {
    /// Print one JSON document instead of text
    #[arg(long)]
    json: bool,
}

/// Places.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// The stemcells directory with recipes, components and the lock file
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,
    /// Where parts are kept [default: ~/.cache/windlass]
    #[arg(long, env = "WINDLASS_CACHE", value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Where stemcells are [default: CACHE/stemcells]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

impl PlaceArgs {
    fn cache(&self) -> PathBuf {
        let from_home = || PathBuf::from(env::var_os("HOME").unwrap_or_else(|| "/root".into()));
        self.cache
            .clone()
            .unwrap_or_else(|| from_home().join(".cache/windlass"))
    }

    fn output(&self) -> PathBuf {
        self.output
            .clone()
            .unwrap_or_else(|| self.cache().join("stemcells"))
    }
}

/// What to take components from.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// The recipe, a name in recipes/ or a file
    #[arg(long, default_value = RECIPE, value_name = "NAME|FILE")]
    recipe: String,
    /// Version of Kubernetes [default: the recipe's]
    #[arg(long, value_name = "VERSION")]
    kubernetes: Option<String>,
    /// A mirror of components: a directory or base URL, as `mirror` writes it
    #[arg(long, env = "WINDLASS_MIRROR", value_name = "DIR|URL")]
    mirror: Option<String>,
    /// Another mirror of Debian than the recipe's
    #[arg(long, env = "WINDLASS_DEBIAN_MIRROR", value_name = "URL")]
    debian_mirror: Option<String>,
    /// Sources that may be used, of cache, mirror, release, go, debian
    #[arg(
        long,
        env = "WINDLASS_SOURCES",
        value_delimiter = ',',
        value_name = "LIST"
    )]
    sources: Vec<Kind>,
    /// Install today's Debian packages even if there is a root file system in the cache
    #[arg(long)]
    refresh: bool,
}

/// `build`
#[derive(Debug, Args)]
pub struct BuildArgs {
    #[command(flatten)]
    places: PlaceArgs,
    #[command(flatten)]
    sources: SourceArgs,
    /// The agent's program, a static executable
    #[arg(
        long,
        env = "WINDLASS_AGENT",
        value_name = "FILE",
        required_unless_present = "without_agent"
    )]
    agent: Option<PathBuf>,
    /// Leave the agent out: the result boots, but no director can use it
    #[arg(long, conflicts_with = "agent")]
    without_agent: bool,
    /// The signing key, made if it is not there [default: CACHE/keys/stemcell.key]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    #[command(flatten)]
    print: JsonArgs,
}

/// `list`
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    places: PlaceArgs,
    #[command(flatten)]
    print: JsonArgs,
}

/// `verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The stemcell's directory
    #[arg(value_name = "DIR")]
    stemcell: PathBuf,
    /// File of trusted keys [default: trusted.pub beside the stemcell]
    #[arg(long, value_name = "FILE")]
    trusted: Option<PathBuf>,
    /// Check signature and manifest only, not the root file system
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    print: JsonArgs,
}

/// `keygen`
#[derive(Debug, Args)]
pub struct KeygenArgs {
    /// Where to write it; the file must not exist
    #[arg(value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    print: JsonArgs,
}

/// `prune`
#[derive(Debug, Args)]
pub struct PruneArgs {
    #[command(flatten)]
    places: PlaceArgs,
    /// How many of each Kubernetes version stay; stopped machines need theirs
    #[arg(long, default_value_t = 3, value_name = "NUMBER")]
    keep: usize,
    #[command(flatten)]
    print: JsonArgs,
}

/// `mirror`
#[derive(Debug, Args)]
pub struct MirrorArgs {
    #[command(flatten)]
    places: PlaceArgs,
    #[command(flatten)]
    sources: SourceArgs,
    /// The mirror's directory
    #[arg(value_name = "DIR")]
    to: PathBuf,
}

/// An error and who acts on it.
type Failure = (String, ErrorClass);

fn failure<E: std::error::Error>(class: impl Fn(&E) -> ErrorClass) -> impl Fn(E) -> Failure {
    move |error| (ErrorChain(&error).to_string(), class(&error))
}

/// Runs a command; returns the process's exit code.
pub fn run(command: Command) -> u8 {
    let result = match command {
        Command::Build(args) => build(args),
        Command::List(args) => list(&args),
        Command::Verify(args) => check(&args),
        Command::Keygen(args) => keygen(&args),
        Command::Mirror(args) => mirror(&args),
        Command::Prune(args) => remove_old(&args),
        Command::Prerequisites(args) => show_prerequisites(&args),
    };
    match result {
        Ok(()) => 0,
        Err((text, class)) => {
            let _ = writeln!(io::stderr(), "error: {text}");
            match class {
                ErrorClass::Bug => EXIT_BUG,
                ErrorClass::Retry | ErrorClass::Operator => EXIT_OPERATOR,
            }
        }
    }
}

/// Prints to standard output; a reader that has gone away is not an error.
fn print(text: impl std::fmt::Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

fn print_json(value: &impl Serialize) {
    // Maps with string keys always serialise.
    print(serde_json::to_string_pretty(value).unwrap_or_default());
}

fn recipe_file(home: &Home, recipe: &str) -> PathBuf {
    match recipe.contains(['/', '.']) {
        true => PathBuf::from(recipe),
        false => home.path(format!("recipes/{recipe}.toml")),
    }
}

fn allowed(sources: &[Kind]) -> Vec<Kind> {
    if sources.is_empty() {
        Kind::ALL.to_vec()
    } else {
        sources.to_vec()
    }
}

fn build(args: BuildArgs) -> Result<(), Failure> {
    let BuildArgs {
        places,
        sources,
        agent,
        key,
        print: how,
        ..
    } = args;
    let home = Home::find(places.home.as_deref())
        .map_err(failure(|e: &crate::home::HomeError| e.class()))?;
    let cache = places.cache();
    let options = Options {
        recipe: recipe_file(&home, &sources.recipe),
        home,
        kubernetes: sources.kubernetes,
        output: places.output(),
        key: key.unwrap_or_else(|| cache.join("keys/stemcell.key")),
        cache,
        mirror: sources.mirror.as_deref().map(Mirror::parse),
        sources: allowed(&sources.sources),
        debian_mirror: sources.debian_mirror,
        refresh: sources.refresh,
        agent,
        progress: Progress::detect(),
    };
    let built = builder::build(&options).map_err(failure(builder::BuildError::class))?;
    let key = SigningKey::load(&options.key)
        .map_err(failure(|e: &crate::sign::KeyFileError| e.class()))?;
    if how.json {
        print_json(&json!({
            "id": built.manifest.id(),
            "dir": built.dir,
            "kubernetes": built.manifest.kubernetes,
            "up_to_date": built.up_to_date,
            "trusted": built.trusted,
            "public_key": key.public().to_string(),
            "exports": exports(&built.dir, &built.manifest),
            "seconds": built.seconds,
        }));
        return Ok(());
    }
    let state = if built.up_to_date {
        "is up to date"
    } else {
        "is built"
    };
    print(format!(
        "stemcell {} {state} ({:.1} s)",
        built.manifest.id(),
        built.seconds
    ));
    print(format!("  in       {}", built.dir.display()));
    print(format!("  signed   {}", key.public()));
    Ok(())
}

fn exports(
    dir: &std::path::Path,
    manifest: &Manifest,
) -> serde_json::Map<String, serde_json::Value> {
    let rootfs = dir.join(windlass_common::stemcell::ROOTFS);
    let entry = |export: &windlass_common::stemcell::Export| {
        (export.name.clone(), json!(rootfs.join(&export.path)))
    };
    manifest.exports.iter().map(entry).collect()
}

fn list(args: &ListArgs) -> Result<(), Failure> {
    let output = args.places.output();
    let operator =
        |error: &dyn std::error::Error| (ErrorChain(error).to_string(), ErrorClass::Operator);
    let trusted = match TrustedKeys::load(&output.join(TRUSTED)) {
        Ok(keys) => keys,
        Err(_) if !output.exists() => TrustedKeys::default(),
        Err(error) => return Err(operator(&error)),
    };
    let mut all = installed(&output, &trusted).map_err(|error| operator(&error))?;
    all.sort_by_key(|one| {
        one.manifest
            .as_ref()
            .map(|m| m.built_at.clone())
            .unwrap_or_default()
    });
    if args.print.json {
        print_json(&all.iter().map(list_entry).collect::<Vec<_>>());
        return Ok(());
    }
    print(format!(
        "{:<36} {:<11} {:<21} {:>8}  STATE",
        "STEMCELL", "KUBERNETES", "BUILT", "MB"
    ));
    for one in &all {
        match &one.manifest {
            Ok(manifest) => print(format!(
                "{:<36} {:<11} {:<21} {:>8}  {}",
                manifest.id(),
                manifest.kubernetes,
                manifest.built_at,
                manifest.rootfs.bytes / 1_000_000,
                if manifest.inputs.agent.is_some() {
                    "ready"
                } else {
                    "without agent"
                },
            )),
            Err(error) => {
                let name = one.dir.file_name().unwrap_or_default().to_string_lossy();
                print(format!(
                    "{name:<36} {:<11} {:<21} {:>8}  {}",
                    "-",
                    "-",
                    "-",
                    ErrorChain(error)
                ));
            }
        }
    }
    Ok(())
}

fn list_entry(one: &Installed) -> serde_json::Value {
    match &one.manifest {
        Ok(manifest) => json!({
            "id": manifest.id(), "dir": one.dir, "kubernetes": manifest.kubernetes,
            "built_at": manifest.built_at, "bytes": manifest.rootfs.bytes,
            "agent": manifest.inputs.agent, "usable": manifest.inputs.agent.is_some(),
        }),
        Err(error) => json!({
            "dir": one.dir, "usable": false, "error": ErrorChain(error).to_string(),
        }),
    }
}

fn check(args: &VerifyArgs) -> Result<(), Failure> {
    let beside = args
        .stemcell
        .parent()
        .map(|parent| parent.join(TRUSTED))
        .unwrap_or_default();
    let path = args.trusted.clone().unwrap_or(beside);
    let trusted = TrustedKeys::load(&path)
        .map_err(failure(|e: &windlass_common::stemcell::KeyError| e.class()))?;
    let depth = if args.quick {
        VerifyDepth::Manifest
    } else {
        VerifyDepth::Full
    };
    let manifest = verify(&args.stemcell, &trusted, depth).map_err(failure(
        |e: &windlass_common::stemcell::VerifyError| e.class(),
    ))?;
    if args.print.json {
        print_json(&manifest);
    } else {
        let what = if args.quick {
            "signature and manifest"
        } else {
            "every byte"
        };
        print(format!("stemcell {} holds: {what}", manifest.id()));
    }
    Ok(())
}

fn keygen(args: &KeygenArgs) -> Result<(), Failure> {
    let key = SigningKey::create(&args.key)
        .map_err(failure(|e: &crate::sign::KeyFileError| e.class()))?;
    match args.print.json {
        true => print_json(&json!({ "key": args.key, "public_key": key.public().to_string() })),
        false => print(key.public()),
    }
    Ok(())
}

fn mirror(args: &MirrorArgs) -> Result<(), Failure> {
    let home_failure = failure(|e: &crate::home::HomeError| e.class());
    let file_failure = failure(|e: &crate::files::FileError| e.class());
    let home = Home::find(args.places.home.as_deref()).map_err(&home_failure)?;
    let arch = builder::architecture().map_err(failure(builder::BuildError::class))?;
    let mut lock = Lock::load(&home).map_err(&home_failure)?;
    let SourceArgs {
        recipe,
        kubernetes,
        mirror,
        sources,
        refresh,
        ..
    } = &args.sources;
    let recipe = recipe_file(&home, recipe);
    let recipe =
        Recipe::load(&recipe, &home, &lock, kubernetes.as_deref()).map_err(&home_failure)?;
    let cache = args.places.cache();
    let progress = Progress::detect();
    let waiting = || progress.note("another build uses this cache; waiting for it to end");
    let _lock = crate::files::DirLock::acquire(&cache, waiting).map_err(&file_failure)?;
    let staging = Staging::open(&cache).map_err(&file_failure)?;
    let base = base::obtain(&recipe.debian, arch, &cache, &staging, *refresh, progress)
        .map_err(&file_failure)?;
    let mirror = mirror.as_deref().map(Mirror::parse);
    let mut from = Sources::new(Setting {
        home: &home,
        cache: &cache,
        staging: &staging,
        arch,
        base: &base,
        mirror,
        allowed: allowed(sources),
        progress,
    });
    let all = from
        .obtain_all(&recipe, &mut lock)
        .map_err(failure(|e: &crate::sources::SourceError| e.class()))?;
    lock.save(&home).map_err(&file_failure)?;
    export(all.values(), arch, &args.to).map_err(&file_failure)?;
    print(format!("{} components in {}", all.len(), args.to.display()));
    Ok(())
}

fn remove_old(args: &PruneArgs) -> Result<(), Failure> {
    let output = args.places.output();
    let trusted = TrustedKeys::load(&output.join(TRUSTED))
        .map_err(failure(|e: &windlass_common::stemcell::KeyError| e.class()))?;
    let pruned = prune(&output, &trusted, args.keep)
        .map_err(failure(|e: &crate::files::FileError| e.class()))?;
    if args.print.json {
        print_json(&pruned);
        return Ok(());
    }
    let groups = [
        ("removed", &pruned.removed),
        ("in use", &pruned.in_use),
        ("kept", &pruned.kept),
    ];
    for (what, names) in groups {
        for name in names {
            print(format!("{what:<8} {name}"));
        }
    }
    Ok(())
}

fn show_prerequisites(args: &JsonArgs) -> Result<(), Failure> {
    let all = prerequisites::all();
    if args.json {
        print_json(&all);
        return Ok(());
    }
    print(format!(
        "{:<24} {:<9} {:<8} WHY",
        "PACKAGE", "REQUIRED", "FOUND"
    ));
    let yes = |is: bool| if is { "yes" } else { "no" };
    for one in all {
        let package = if one.package.is_empty() {
            "(no package)"
        } else {
            one.package
        };
        print(format!(
            "{package:<24} {:<9} {:<8} {}",
            yes(one.required),
            yes(one.found),
            one.why
        ));
    }
    Ok(())
}
