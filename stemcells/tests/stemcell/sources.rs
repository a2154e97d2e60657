//! Where components come from: order, checks, pins, and what happens when a source is bad.

use std::fs;
use std::process::Command;

use windlass_common::id::Digest;
use windlass_common::stemcell::{Package, Source};
use windlass_stemcell::lock::Lock;
use windlass_stemcell::sources::{Kind, Mirror, SourceError, export};

use crate::support::{Killed, SmallDisk, VERSION, Web, World};

const ALL: &[Kind] = &Kind::ALL;

/// A family with an official download at `url`, and a Go module to fall back to.
fn family(url: &str, member: &str) -> String {
    format!(
        "license = \"MIT\"\n[components]\ntool = [\"tool\"]\n[release]\n\
         url = \"{url}/v{{version}}/tool-{{arch}}\"\nchecksum = \"{url}/v{{version}}/SHA256SUMS\"\n\
         {member}\n[go]\nmodule = \"windlass.internal/tool\"\n\
         ldflags = [\"-X main.version=v{{version}}\"]\n\
         [go.packages]\ntool = \"windlass.internal/tool/cmd/tool/v2\"\n"
    )
}

fn world(web: &Web) -> World {
    let world = World::new(&family(&web.url, ""));
    put_module(&world);
    world
}

/// The module that [`family`] falls back to.
fn put_module(world: &World) {
    let wrapper = format!("stemcells/components/tool/{VERSION}");
    world.put(
        &format!("{wrapper}/go.mod"),
        "module windlass.internal/tool\n\ngo 1.24\n",
    );
    world.put(&format!("{wrapper}/go.sum"), "");
    let main = "package main\n\nvar version string\n\nfunc main() { println(version) }\n";
    world.put(&format!("{wrapper}/cmd/tool/v2/main.go"), main);
}

fn publish(web: &Web, bytes: &[u8]) {
    web.serve("/v1.2.3/tool-amd64", bytes);
    let sum = Digest::of(bytes).hex();
    web.serve("/v1.2.3/SHA256SUMS", format!("{sum}  tool-amd64\n"));
}

#[test]
fn a_release_is_checked_pinned_and_then_taken_from_the_cache() {
    let web = Web::start();
    let world = world(&web);
    publish(&web, b"the real thing");
    let first = world.obtain(ALL, None).unwrap();
    assert_eq!(world.program(&first), b"the real thing");
    let Source::Release {
        url,
        signature_checked: false,
    } = &first["tool"].source
    else {
        panic!("{:?}", first["tool"].source)
    };
    assert_eq!(*url, format!("{}/v1.2.3/tool-amd64", web.url));

    let entry = Lock::load(&world.home())
        .unwrap()
        .entry("tool", VERSION)
        .cloned()
        .unwrap();
    assert_eq!(
        entry.digests["release-amd64"]["tool"],
        Digest::of(b"the real thing")
    );

    world.obtain(ALL, None).unwrap();
    assert_eq!(
        web.asked("/v1.2.3/tool-amd64"),
        1,
        "the second time it is in the cache"
    );
}

#[test]
fn a_release_that_does_not_match_its_checksum_ends_the_build() {
    let web = Web::start();
    let world = world(&web);
    publish(&web, b"the real thing");
    web.serve("/v1.2.3/tool-amd64", "something else");
    let error = world.obtain(ALL, None).unwrap_err();
    let SourceError::DigestMismatch {
        want,
        got,
        authority,
        ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(
        (*want, *got),
        (Digest::of(b"the real thing"), Digest::of(b"something else"))
    );
    assert!(authority.contains("publisher"), "{authority}");
    assert!(world.cached().is_empty());
    assert!(
        Lock::load(&world.home())
            .unwrap()
            .entry("tool", VERSION)
            .unwrap()
            .digests
            .is_empty()
    );
}

#[test]
fn a_release_that_was_replaced_is_refused_by_the_lock() {
    let web = Web::start();
    let world = world(&web);
    publish(&web, b"the real thing");
    world.obtain(ALL, None).unwrap();
    fs::remove_dir_all(&world.cache).unwrap();
    publish(&web, b"replaced, with a checksum to match");
    let error = world.obtain(ALL, None).unwrap_err();
    let SourceError::DigestMismatch { authority, .. } = &error else {
        panic!("{error}")
    };
    assert!(authority.contains("lock"), "{authority}");
    assert!(world.cached().is_empty());
}

#[test]
fn an_archive_gives_its_program_only() {
    let web = Web::start();
    let world = World::new(&family(&web.url, "member = \"tool-v{version}/{binary}\""));
    put_module(&world);
    world.put("pack/tool-v1.2.3/tool", "from an archive");
    world.put("pack/tool-v1.2.3/README", "not wanted");
    let archive = world.dir.path().join("a.tar.gz");
    let status = Command::new("tar")
        .arg("-czf")
        .arg(&archive)
        .arg("-C")
        .arg(world.dir.path().join("pack"))
        .arg("tool-v1.2.3")
        .status();
    assert!(status.unwrap().success());
    publish(&web, &fs::read(&archive).unwrap());
    let got = world.obtain(ALL, None).unwrap();
    assert_eq!(world.program(&got), b"from an archive");
    let names = fs::read_dir(&got["tool"].dir)
        .unwrap()
        .map(|item| item.unwrap().file_name());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["component.json", "tool"]);
}

#[test]
fn without_a_download_it_is_built_from_its_module_with_its_version() {
    let web = Web::start(); // knows no file
    let world = world(&web);
    let got = world.obtain(ALL, None).unwrap();
    let Source::Go {
        module, toolchain, ..
    } = &got["tool"].source
    else {
        panic!("{:?}", got["tool"].source)
    };
    assert_eq!(module, "windlass.internal/tool@v1.2.3");
    assert!(toolchain.starts_with("go1."), "{toolchain}");
    let output = Command::new(got["tool"].dir.join("tool")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr).trim(), "v1.2.3");

    fs::remove_dir_all(&world.cache).unwrap();
    let again = world.obtain(ALL, None).unwrap();
    assert_eq!(
        again["tool"].files, got["tool"].files,
        "the same bytes when built again"
    );
}

#[test]
fn a_host_that_cannot_be_reached_is_passed_over() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener); // nobody listens there now
    let world = World::new(&family(&url, ""));
    put_module(&world);
    let error = world.obtain(&[Kind::Release], None).unwrap_err();
    let SourceError::Nowhere { tried, .. } = &error else {
        panic!("{error}")
    };
    let why = |kind| &tried.iter().find(|(tried, _)| *tried == kind).unwrap().1;
    assert!(why(Kind::Release).contains("127.0.0.1"), "{error}");
    assert!(why(Kind::Go).contains("--sources"), "{error}");
    assert_eq!(tried.len(), Kind::ALL.len(), "every source has a reason");
}

#[test]
fn a_mirror_serves_what_was_exported_from_a_directory_or_the_web() {
    let web = Web::start();
    let world = world(&web);
    publish(&web, b"the real thing");
    let got = world.obtain(ALL, None).unwrap();
    let mirror = world.dir.path().join("mirror");
    export(got.values(), "amd64", &mirror).unwrap();
    let below = format!("tool/{VERSION}/linux-amd64");
    let served = Web::start();
    for name in ["tool", "SHA256SUMS"] {
        let bytes = fs::read(mirror.join(&below).join(name)).unwrap();
        served.serve(&format!("/m/{below}/{name}"), bytes);
    }
    for origin in [mirror.display().to_string(), format!("{}/m/", served.url)] {
        fs::remove_dir_all(&world.cache).unwrap();
        let got = world.obtain(ALL, Some(Mirror::parse(&origin))).unwrap();
        assert!(
            matches!(got["tool"].source, Source::Mirror { .. }),
            "{origin}"
        );
        assert_eq!(world.program(&got), b"the real thing", "{origin}");
    }
    assert_eq!(
        web.asked("/v1.2.3/tool-amd64"),
        1,
        "the mirror comes before the download"
    );

    fs::remove_dir_all(&world.cache).unwrap();
    fs::write(mirror.join(&below).join("tool"), "tampered").unwrap();
    let error = world.obtain(ALL, Some(Mirror::Dir(mirror))).unwrap_err();
    assert!(
        matches!(error, SourceError::DigestMismatch { .. }),
        "{error}"
    );
    assert!(world.cached().is_empty());
}

#[test]
fn a_damaged_cache_entry_is_made_anew() {
    let web = Web::start();
    let world = world(&web);
    publish(&web, b"the real thing");
    let got = world.obtain(ALL, None).unwrap();
    fs::write(got["tool"].dir.join("tool"), "bit rot").unwrap();
    let again = world.obtain(ALL, None).unwrap();
    assert_eq!(world.program(&again), b"the real thing");
    assert_eq!(web.asked("/v1.2.3/tool-amd64"), 2);
}

#[test]
fn a_debian_package_counts_only_at_the_wanted_version() {
    let family = "license = \"MIT\"\n[components]\ntool = [\"tool\"]\n[debian]\n\
                  package = \"tool-static\"\n[debian.files]\ntool = \"usr/bin/tool\"\n";
    let mut world = World::new(family);
    world.put("rootfs/usr/bin/tool", "packaged");
    let package = |version: &str| Package {
        name: "tool-static".to_owned(),
        version: version.to_owned(),
        source: "tool".to_owned(),
    };
    world.packages = vec![package("1:1.2.2-1")];
    let error = world.obtain(ALL, None).unwrap_err().to_string();
    assert!(
        error.contains("1:1.2.2-1") && error.contains("1.2.3"),
        "{error}"
    );
    world.packages = vec![package("1:1.2.3-4+deb12u1")];
    assert_eq!(
        world.program(&world.obtain(ALL, None).unwrap()),
        b"packaged"
    );
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing_under_a_final_name() {
    let web = Web::start();
    let world = world(&web);
    let disk = SmallDisk::mount(&world.cache, 1);
    publish(&web, &vec![7; 3 << 20]);
    let error = world.obtain(ALL, None).unwrap_err();
    assert!(error.is_disk_full(), "{error}");
    assert!(error.to_string().contains("no space left"), "{error}");
    assert!(world.cached().is_empty());

    drop(disk); // space again: the build goes on
    let got = world.obtain(ALL, None).unwrap();
    assert_eq!(got["tool"].files[0].bytes, 3 << 20);
}

#[test]
fn pause_ends_when_asked_to() {
    use nix::sys::signal::{Signal, kill};
    let world = World::new(
        "license = \"MIT\"\n[components]\ntool = [\"tool\"]\n[own]\nsource = \"pause.c\"\n",
    );
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/pause/pause.c");
    fs::copy(source, world.dir.path().join("stemcells/pause.c")).unwrap();
    let got = world.obtain(&[Kind::Cache], None).unwrap(); // own sources are never left out
    let mut child = Killed(Command::new(got["tool"].dir.join("tool")).spawn().unwrap());
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.0.id()).unwrap());
    // A signal before it waits for one would kill it.
    let waits = format!("{} ", nix::libc::SYS_rt_sigtimedwait);
    crate::support::wait_until("pause waits for signals", || {
        fs::read_to_string(format!("/proc/{pid}/syscall"))
            .unwrap()
            .starts_with(&waits)
    });
    kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(0));
}
