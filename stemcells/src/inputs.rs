//! What a stemcell is made from, as digests: the same inputs give the same stemcell.
//!
//! The Debian packages count with the versions that are installed, so that a refreshed root file
//! system makes another stemcell instead of changing one that machines use.

use std::fs;
use std::path::Path;

use windlass_common::id::{Digest, Hasher};
use windlass_common::stemcell::{Inputs, Package};

use crate::assemble::mode_of;
use crate::base;
use crate::builder::{BuildError, Options};
use crate::digest::digest_of;
use crate::files::at;
use crate::home::{Home, read_bounded};
use crate::lock::Lock;
use crate::recipe::{KUBERNETES, Recipe};

/// Changes with the code of this crate, so that stemcells of older code are not taken for current.
const REVISION: u32 = 2;

/// Digests of everything that a stemcell is made from.
pub(crate) fn inputs(
    options: &Options,
    recipe: &Recipe,
    lock: &Lock,
    packages: &[Package],
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
    for package in packages {
        all.update(format!("{} {}\n", package.name, package.version).as_bytes());
    }
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

/// Digest of the static files: places, modes as they will be, contents.
fn static_files(home: &Home) -> Result<Digest, BuildError> {
    fn visit(
        dir: &Path,
        root: &Path,
        files: &mut Vec<(String, u32, Vec<u8>)>,
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
                files.push((name, 0, target.display().to_string().into_bytes()));
            } else {
                files.push((name, mode_of(&path)?, read_bounded(&path)?));
            }
        }
        Ok(())
    }
    let root = home.path("rootfs");
    let mut files = Vec::new();
    visit(&root, &root, &mut files)?;
    files.sort();
    let listed = serde_json::to_vec(&files);
    Ok(Digest::of(
        &listed.expect("strings and bytes serialise to JSON"),
    ))
}
