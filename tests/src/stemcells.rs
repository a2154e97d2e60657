//! Stemcells that exist for the sake of what one of their parts does.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

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

/// The stemcells that this suite was given.
pub fn given() -> Result<PathBuf> {
    crate::world::required("WINDLASS_TEST_STEMCELLS")
}
