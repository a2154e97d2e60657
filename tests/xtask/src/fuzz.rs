//! `cargo xtask test fuzz`: every fuzz target for a bounded time, from the kept corpus.
//!
//! What is found beyond the corpus goes to a directory of its own under `target/`, so that a run
//! changes nothing in the tree; an input that fails is left in `tests/fuzz/artifacts/`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::shell::{capture, command, root, step};

/// Every target of `tests/fuzz`.
const TARGETS: [&str; 4] = ["frames", "settings", "enrollment", "manifest"];
/// Each target, in CI and with `--full`.
const TIME: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(600));
/// Longest input: larger ones only take longer, the limits are tested elsewhere.
const INPUT_BYTES_MAX: u32 = 16 << 10;
/// The kept corpus, all of it.
const CORPUS_BYTES_MAX: u64 = 100 << 10;

pub(crate) fn run(full: bool) -> Result<()> {
    let bytes = corpus_bytes(&root().join("tests/fuzz/corpus"))?;
    if bytes > CORPUS_BYTES_MAX {
        bail!(
            "the fuzz corpus has {bytes} bytes, {CORPUS_BYTES_MAX} are kept; minimise it with cargo fuzz cmin"
        );
    }
    if capture(nightly().arg("--version")).is_err() {
        bail!("fuzzing needs a nightly toolchain: rustup toolchain install nightly");
    }
    if capture(nightly().args(["fuzz", "--version"])).is_err() {
        step(
            "installing cargo-fuzz",
            crate::shell::cargo().args(["install", "--quiet", "--locked", "--debug", "cargo-fuzz"]),
        )?;
    }
    step(
        "building the fuzz targets",
        nightly().args(["fuzz", "build", "--fuzz-dir", "tests/fuzz"]),
    )?;
    let time = if full { TIME.1 } else { TIME.0 };
    // Each keeps one core busy.
    for side_by_side in TARGETS.chunks(2) {
        std::thread::scope(|scope| {
            let started: Vec<_> = side_by_side
                .iter()
                .map(|target| scope.spawn(|| fuzz(target, time)))
                .collect();
            started.into_iter().try_for_each(|fuzzer| {
                fuzzer
                    .join()
                    .unwrap_or_else(|_| bail!("a thread that fuzzed panicked"))
            })
        })?;
    }
    Ok(())
}

fn fuzz(target: &str, time: Duration) -> Result<()> {
    let found = root().join("target/fuzz-found").join(target);
    std::fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    step(
        &format!("fuzzing {target}"),
        nightly()
            .args(["fuzz", "run", "--fuzz-dir", "tests/fuzz", target])
            .arg(&found)
            .arg(format!("tests/fuzz/corpus/{target}"))
            .arg("--")
            .arg(format!("-max_total_time={}", time.as_secs()))
            .arg(format!("-max_len={INPUT_BYTES_MAX}"))
            .args([
                "-timeout=10",
                "-rss_limit_mb=1024",
                "-print_final_stats=1",
                "-verbosity=0",
            ]),
    )
}

/// `cargo` of the nightly toolchain, whichever one runs this.
fn nightly() -> std::process::Command {
    let mut cargo = command("cargo");
    cargo.arg("+nightly").env_remove("RUSTUP_TOOLCHAIN");
    cargo
}

fn corpus_bytes(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry?;
        let kind = entry.metadata()?;
        bytes += if kind.is_dir() {
            corpus_bytes(&entry.path())?
        } else {
            kind.len()
        };
    }
    Ok(bytes)
}
