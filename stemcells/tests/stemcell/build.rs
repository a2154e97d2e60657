//! Whole builds on bad days. What needs no Debian archive is shown here; the builds of both minors
//! are part of the end-to-end suite.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use windlass_common::id::Digest;
use windlass_stemcell::assemble::{Parts, assemble};
use windlass_stemcell::base::{self, Base};
use windlass_stemcell::builder::{BuildError, Options, build};
use windlass_stemcell::files::STAGING;
use windlass_stemcell::home::Home;
use windlass_stemcell::progress::Progress;
use windlass_stemcell::seed::Store;
use windlass_stemcell::sources::Kind;

use crate::support::{Killed, SmallDisk, Web, World, wait_until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_windlass-stemcell");

/// A build of the real recipe into directories below `dir`.
fn options(dir: &Path) -> Options {
    let home = Home::find(Some(Path::new(env!("CARGO_MANIFEST_DIR")))).unwrap();
    Options {
        recipe: home.path("recipes/debian12.toml"),
        home,
        kubernetes: None,
        output: dir.join("output"),
        cache: dir.join("cache"),
        mirror: None,
        sources: Kind::ALL.to_vec(),
        debian_mirror: None,
        refresh: false,
        agent: None,
        key: dir.join("key"),
        progress: Progress::Silent,
    }
}

fn stemcells_in(output: &Path) -> Vec<PathBuf> {
    let items = fs::read_dir(output)
        .unwrap()
        .map(|item| item.unwrap().path());
    items.filter(|path| path.is_dir()).collect()
}

#[test]
fn too_little_space_is_named_before_anything_is_built() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(dir.path());
    let _disk = SmallDisk::mount(&options.output, 16);
    let error = build(&options).unwrap_err();
    let BuildError::Space { path, need, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(
        (path, *need),
        (&options.output, windlass_stemcell::builder::OUTPUT_BYTES)
    );
    assert!(stemcells_in(&options.output).is_empty());
    assert!(!options.cache.join("base").exists());
}

#[test]
fn a_disk_that_fills_during_assembly_is_named() {
    let world = World::new("license = \"MIT\"\n[components]\ntool = [\"tool\"]\n");
    let rootfs = world.dir.path().join("rootfs");
    fs::create_dir_all(&rootfs).unwrap();
    fs::write(rootfs.join("large"), vec![7; 3 << 20]).unwrap();
    let output = world.dir.path().join("output");
    let _disk = SmallDisk::mount(&output, 1);
    let parts = Parts {
        home: &world.home(),
        recipe: &world.recipe(),
        base: &Base {
            rootfs,
            packages: Vec::new(),
        },
        components: &BTreeMap::new(),
        store: &Store {
            dir: PathBuf::new(),
            images: Vec::new(),
        },
        agent: None,
        id: "test",
    };
    let error = assemble(&parts, &output.join("test")).unwrap_err();
    assert!(error.is_disk_full(), "{error}");
}

#[test]
fn an_unknown_version_of_kubernetes_is_refused_with_those_there_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(dir.path());
    options.kubernetes = Some("1.2.3".to_owned());
    let text = build(&options).unwrap_err().to_string();
    assert!(
        text.contains("kubernetes 1.2.3") && text.contains("1.36.3, 1.37.2"),
        "{text}"
    );
    assert!(!options.output.exists());
}

fn run(dir: &Path, path: &str, args: &[&str]) -> Output {
    Command::new(PROGRAM)
        .args(args)
        .args(["--home", env!("CARGO_MANIFEST_DIR")])
        .env("PATH", path)
        .env("WINDLASS_CACHE", dir.join("cache"))
        .env_remove("WINDLASS_AGENT")
        .output()
        .unwrap()
}

#[test]
fn missing_tools_are_all_named_with_their_packages() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), "/nonexistent", &["build", "--without-agent"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in ["mmdebstrap", "setpriv", "gcc", "apt-get install"] {
        assert!(text.contains(word), "no {word} in: {text}");
    }
    assert!(stemcells_in(&dir.path().join("cache/stemcells")).is_empty());
}

#[test]
fn a_build_says_that_it_wants_an_agent() {
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path(), "/nonexistent", &["build"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("--agent"), "{text}");
}

/// `mirror` goes through the cache, the lock and the sources as `build` does.
#[test]
fn a_killed_build_goes_on_where_it_was() {
    let web = Web::start();
    let family = |name: &str| {
        format!(
            "license = \"MIT\"\n[components]\n{name} = [\"{name}\"]\n[release]\n\
             url = \"{0}/{name}\"\nchecksum = \"{0}/{name}.sha256\"\n",
            web.url
        )
    };
    let world = World::new(&family("tool"));
    world.put("stemcells/components/zeta/family.toml", &family("zeta"));
    let edit = |path: &str, from: &str, to: &str| {
        let path = world.dir.path().join(path);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(path, text.replace(from, to)).unwrap();
    };
    edit(
        "stemcells/recipes/test.toml",
        "[versions]",
        "[versions]\nzeta = \"1.0.0\"",
    );
    edit(
        "stemcells/recipes/test.toml",
        "[\"tool\"]",
        "[\"tool\", \"zeta\"]",
    );
    let entry = "[[component]]\nfamily = \"zeta\"\nversion = \"1.0.0\"\n[[component]]";
    edit(
        "stemcells/components.lock.toml",
        "[[component]]\nfamily = \"tool\"",
        &format!("{entry}\nfamily = \"tool\""),
    );
    // A Debian root that is in the cache already, so that none is made.
    let root = base::inputs(
        &world.recipe().debian,
        windlass_stemcell::builder::architecture().unwrap(),
    );
    world.put(
        &format!("cache/base/{}/base.json", &root.hex()[..16]),
        "{\"packages\": []}",
    );
    web.serve("/tool", "first");
    web.serve("/tool.sha256", Digest::of(b"first").hex());
    web.hang("/zeta");
    web.serve("/zeta.sha256", Digest::of(b"second").hex());

    let mirror = world.dir.path().join("mirror");
    let mut command = Command::new(PROGRAM);
    command
        .args(["mirror", "--recipe"])
        .arg(world.dir.path().join("stemcells/recipes/test.toml"))
        .arg("--home")
        .arg(world.dir.path().join("stemcells"))
        .arg("--cache")
        .arg(&world.cache)
        .arg(&mirror);
    let mut child = Killed(command.spawn().unwrap());
    wait_until("the second component is being downloaded", || {
        web.asked("/zeta") == 1
    });
    child.0.kill().unwrap();
    assert_eq!(child.0.wait().unwrap().signal(), Some(9));
    assert!(
        world.cache.join(STAGING).exists(),
        "it had no chance to clean up"
    );
    assert_eq!(
        world.cached().len(),
        1,
        "only what was finished has its name"
    );

    web.serve("/zeta", "second");
    assert!(command.status().unwrap().success());
    assert_eq!(
        web.asked("/tool"),
        1,
        "what was finished is not downloaded again"
    );
    assert_eq!(
        fs::read(mirror.join("zeta/1.0.0/linux-amd64/zeta")).unwrap(),
        b"second"
    );
    assert!(!world.cache.join(STAGING).exists());
}
