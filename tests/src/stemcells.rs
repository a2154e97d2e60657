//! Stemcells that exist for the sake of what one of their parts does.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use windlass_common::id::Digest;
use windlass_common::stemcell::{AGENT, FILES, MANIFEST, ROOTFS, SBOM, SIGNATURE};
use windlass_stemcell::sign::SigningKey;

/// A directory of stemcells: those of another one, and some that carry nothing but an agent, signed by a
/// key of its own. Removed when dropped.
#[derive(Debug)]
pub struct Shelf {
    dir: tempfile::TempDir,
    key: SigningKey,
    /// The manifest that the others are made after.
    model: Value,
}

impl Shelf {
    /// Takes the stemcells of `from` by links: their content is not copied.
    pub fn beside(from: &Path) -> Result<Shelf> {
        let dir = tempfile::Builder::new()
            .prefix("windlass-e2e-shelf-")
            .tempdir_in("/var/tmp")
            .context("cannot make a directory for stemcells")?;
        let mut model = None;
        for entry in fs::read_dir(from).with_context(|| format!("cannot list {from:?}"))? {
            let entry = entry?;
            let manifest = entry.path().join(MANIFEST);
            if !entry.file_type()?.is_dir() || !manifest.exists() {
                continue;
            }
            let place = dir.path().join(entry.file_name());
            fs::create_dir(&place)?;
            for name in [MANIFEST, SIGNATURE, FILES, SBOM, ROOTFS] {
                symlink(entry.path().join(name), place.join(name))?;
            }
            model = Some(serde_json::from_slice(&fs::read(&manifest)?)?);
        }
        let trusted = from.join(windlass_common::stemcell::TRUSTED);
        let shelf = Shelf {
            key: SigningKey::create(&dir.path().join("signing.pem"))?,
            model: model.with_context(|| format!("no stemcell in {from:?}"))?,
            dir,
        };
        fs::copy(
            &trusted,
            shelf.path().join(windlass_common::stemcell::TRUSTED),
        )
        .with_context(|| format!("cannot copy {trusted:?}"))?;
        shelf.key.trust(shelf.path())?;
        Ok(shelf)
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Adds one with this agent; returns its version. No machine can be made from it.
    pub fn add_agent(&self, build: &str, program: &[u8]) -> Result<String> {
        let mut manifest = self.model.clone();
        manifest["version"] = format!("0-{build}").into();
        // Older than any other, so that no cluster is made from it.
        manifest["built_at"] = "2000-01-01T00:00:00Z".into();
        manifest["kubernetes"] = "1.0.0".into();
        manifest["inputs"]["agent"] = Digest::of(program).to_string().into();
        for list in [
            "components",
            "images",
            "seeds",
            "exports",
            "units",
            "packages",
        ] {
            manifest[list] = Value::Array(Vec::new());
        }
        let name = manifest["name"].as_str().context("a stemcell has a name")?;
        let version = format!("{name}-0-{build}");
        let dir = self.path().join(&version);
        ensure!(!dir.exists(), "{version} is there already");
        let agent = dir.join(ROOTFS).join(AGENT);
        fs::create_dir_all(agent.parent().unwrap_or(&dir))?;
        fs::write(&agent, program)?;
        fs::set_permissions(&agent, PermissionsExt::from_mode(0o755))?;
        for (file, place) in [(FILES, "/rootfs/files"), (SBOM, "/sbom")] {
            fs::write(dir.join(file), "{}")?;
            let set = manifest.pointer_mut(place).context("a manifest has it")?;
            set["digest"] = Digest::of(b"{}").to_string().into();
            set["bytes"] = 2.into();
        }
        let text = manifest.to_string();
        fs::write(dir.join(MANIFEST), &text)?;
        fs::write(dir.join(SIGNATURE), self.key.sign(text.as_bytes()))?;
        Ok(version)
    }
}

/// What becomes of a component in a stemcell that is made after another.
#[derive(Debug)]
pub struct Part {
    /// The component.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// What becomes of each of its programs.
    pub program: Program,
}

/// What becomes of a program.
#[derive(Debug)]
pub enum Program {
    /// It says another version of the same length, wherever it says its own.
    Says(&'static str, &'static str),
    /// It is this instead.
    Is(&'static str),
}

impl Program {
    fn of(&self, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
        let (from, to) = match self {
            Program::Is(text) => return Ok(text.as_bytes().to_vec()),
            Program::Says(from, to) => (from.as_bytes(), to.as_bytes()),
        };
        ensure!(from.len() == to.len(), "{self:?} would move what follows");
        let mut at = 0;
        while let Some(found) = find(&bytes[at..], from) {
            at += found;
            bytes[at..at + to.len()].copy_from_slice(to);
        }
        Ok(bytes)
    }
}

/// Where a pattern begins in bytes; its first byte is looked for alone, which programs of 100 MB need.
fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    let first = pattern.first()?;
    let mut at = 0;
    while let Some(next) = bytes[at..].iter().position(|byte| byte == first) {
        at += next;
        if bytes[at..].starts_with(pattern) {
            return Some(at);
        }
        at += 1;
    }
    None
}

impl Shelf {
    /// Adds one that differs from `of`, a stemcell or the newest of a Kubernetes version, in these components alone, is
    /// newer than all there are, and has the Kubernetes version `to`; returns its version. Machines can be made from it.
    pub fn repackage(&self, build: &str, of: &str, to: &str, parts: &[Part]) -> Result<String> {
        let (from, mut manifest) = self.newest(of)?;
        let name = manifest["name"].as_str().context("a stemcell has a name")?;
        let version = format!("{name}-{to}-{build}");
        let dir = self.path().join(&version);
        let rootfs = dir.join(ROOTFS);
        fs::create_dir(&dir).with_context(|| format!("cannot make {dir:?}"))?;
        // Files are shared where both are on one file system: nobody changes any.
        let source = from.join(ROOTFS).canonicalize()?;
        let linked = Command::new("cp")
            .arg("-al")
            .args([&source, &rootfs])
            .status()?;
        if !linked.success() {
            let _ = fs::remove_dir_all(&rootfs); // what was begun with
            let copied = Command::new("cp")
                .arg("-a")
                .args([&source, &rootfs])
                .status()?;
            ensure!(copied.success(), "cannot copy {source:?}");
        }
        for part in parts {
            change(&mut manifest, &rootfs, part)?;
        }
        let about = rootfs.join("etc/windlass/stemcell.json");
        fs::remove_file(&about)?;
        let said = serde_json::json!({"stemcell": version, "kubernetes": to});
        fs::write(&about, format!("{said:#}\n"))?;
        let tree = windlass_common::stemcell::scan(&rootfs)?;
        manifest["version"] = format!("{to}-{build}").into();
        manifest["kubernetes"] = to.into();
        let count = fs::read_dir(self.path())?.count();
        manifest["built_at"] = format!("2100-01-01T00:00:{count:02}Z").into();
        manifest["inputs"]["digest"] = Digest::of(version.as_bytes()).to_string().into();
        let files = tree.listing.as_bytes();
        manifest["rootfs"] = serde_json::json!({
            "files": {"digest": Digest::of(files).to_string(), "bytes": files.len()},
            "entries": tree.entries, "bytes": tree.bytes,
        });
        fs::write(dir.join(FILES), files)?;
        fs::copy(from.join(SBOM), dir.join(SBOM))?;
        let text = manifest.to_string();
        fs::write(dir.join(MANIFEST), &text)?;
        fs::write(dir.join(SIGNATURE), self.key.sign(text.as_bytes()))?;
        Ok(version)
    }

    /// A stemcell, or the newest of a Kubernetes version, and its manifest.
    fn newest(&self, of: &str) -> Result<(PathBuf, Value)> {
        let mut newest: Option<(PathBuf, Value)> = None;
        for entry in fs::read_dir(self.path())? {
            let dir = entry?.path();
            let Ok(bytes) = fs::read(dir.join(MANIFEST)) else {
                continue;
            };
            let manifest: Value = serde_json::from_slice(&bytes)?;
            let later = newest
                .as_ref()
                .is_none_or(|(_, of)| of["built_at"].as_str() < manifest["built_at"].as_str());
            let asked = manifest["kubernetes"] == of || dir.ends_with(of);
            if asked && later {
                newest = Some((dir, manifest));
            }
        }
        newest.with_context(|| format!("no stemcell {of}, nor one of this version of Kubernetes"))
    }
}

/// Puts another version of a component into the place of its own.
fn change(manifest: &mut Value, rootfs: &Path, part: &Part) -> Result<()> {
    let Part {
        name,
        version,
        program,
    } = part;
    let components = manifest["components"].as_array_mut().into_iter().flatten();
    let mut found = components.filter(|of| of["name"] == *name);
    let component = found
        .next()
        .with_context(|| format!("no component {name}"))?;
    let own = component["version"]
        .as_str()
        .context("a version")?
        .to_owned();
    let place = format!("opt/windlass/components/{name}");
    let (was, is) = (
        rootfs.join(&place).join(&own),
        rootfs.join(&place).join(version),
    );
    ensure!(own != *version, "{name} has version {own} already");
    fs::create_dir(&is).with_context(|| format!("cannot make {is:?}"))?;
    for file in component["files"].as_array_mut().into_iter().flatten() {
        let path = file["path"].as_str().context("a path")?.to_owned();
        let program_name = path.rsplit('/').next().context("a name")?.to_owned();
        let bytes = program.of(fs::read(rootfs.join(&path))?)?;
        let target = is.join(&program_name);
        fs::write(&target, &bytes)?;
        fs::set_permissions(&target, PermissionsExt::from_mode(0o755))?;
        file["path"] = format!("{place}/{version}/{program_name}").into();
        file["digest"] = Digest::of(&bytes).to_string().into();
        file["bytes"] = bytes.len().into();
    }
    component["version"] = (*version).into();
    fs::remove_dir_all(&was)?;
    let current = rootfs.join(&place).join("current");
    fs::remove_file(&current)?;
    symlink(version, &current)?;
    let moved = format!("{place}/{own}/");
    for export in manifest["exports"].as_array_mut().into_iter().flatten() {
        let path = export["path"].as_str().context("a path")?;
        if let Some(rest) = path.strip_prefix(&moved) {
            export["path"] = format!("{place}/{version}/{rest}").into();
        }
    }
    Ok(())
}

/// The stemcells that this suite was given.
pub fn given() -> Result<PathBuf> {
    crate::world::required("WINDLASS_TEST_STEMCELLS")
}
