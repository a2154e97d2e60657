//! The root file system: Debian, components, units, images and the agent put together.
//!
//! Everything is written below a directory that does not have its final name yet. Order: what changes
//! rarely first, the agent last.
//!
//! # Not here
//! The manifest and the signature ([`crate::builder`]).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use windlass_common::stemcell::{AGENT, Component, ComponentFile, Export};

use crate::base::Base;
use crate::digest::digest_of;
use crate::files::{FileError, at, copy_tree, create_dir, symlink, write_atomic};
use crate::home::Home;
use crate::recipe::{Recipe, Systemd};
use crate::seed::{STORE, Store};
use crate::sources::Cached;

/// Where components are, relative to the root file system.
pub const COMPONENTS: &str = "opt/windlass/components";
/// The version of a component that is in use: a link beside the versions.
const CURRENT: &str = "current";
const UNITS: &str = "etc/systemd/system";
/// Directories that machines expect, with their modes.
const DIRECTORIES: [(&str, u32); 5] = [
    ("var/lib/windlass", 0o700),
    ("var/lib/kubelet", 0o750),
    ("var/lib/etcd", 0o700),
    ("var/log/journal", 0o755),
    ("opt/cni/bin", 0o755),
];

/// What goes into a root file system.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Static files, and paths.
    pub home: &'a Home,
    /// What goes where.
    pub recipe: &'a Recipe,
    /// The operating system.
    pub base: &'a Base,
    /// All components.
    pub components: &'a BTreeMap<String, Cached>,
    /// Container images.
    pub store: &'a Store,
    /// The agent's program.
    pub agent: Option<&'a Path>,
    /// The stemcell's name and version, for the machine itself.
    pub id: &'a str,
}

/// Assembles the root file system in `rootfs`, which must not exist.
pub fn assemble(parts: &Parts<'_>, rootfs: &Path) -> Result<(), FileError> {
    copy_tree(&parts.base.rootfs, rootfs)?;
    for (dir, mode) in DIRECTORIES {
        let path = rootfs.join(dir);
        create_dir(&path)?;
        set_mode(&path, mode)?;
    }
    for name in &parts.recipe.machine.components {
        install_component(&parts.components[name], rootfs)?;
    }
    for program in &parts.recipe.machine.commands {
        let Some(owner) = parts.recipe.owner(program) else {
            continue;
        }; // checked when read
        let target = format!("/{COMPONENTS}/{}/{CURRENT}/{program}", owner.component);
        symlink(target, &rootfs.join("usr/local/bin").join(program))?;
    }
    overlay(&parts.home.path("rootfs"), rootfs)?;
    configure_systemd(&parts.recipe.systemd, parts.agent.is_some(), rootfs)?;
    let store = rootfs.join(STORE.trim_start_matches('/'));
    copy_tree(&parts.store.dir, &store)?;
    if let Some(agent) = parts.agent {
        let path = rootfs.join(AGENT);
        path.parent().map_or(Ok(()), create_dir)?;
        fs::copy(agent, &path).map_err(at("copy", agent))?;
        set_mode(&path, 0o755)?;
    }
    let stemcell = json!({ "stemcell": parts.id, "kubernetes": parts.recipe.kubernetes });
    let text = format!("{stemcell:#}\n");
    write_atomic(
        &rootfs.join("etc/windlass/stemcell.json"),
        text.as_bytes(),
        0o644,
    )?;
    // Says that /etc and /var are as new as /usr: otherwise systemd rebuilds caches at first boot.
    for stamp in ["etc/.updated", "var/.updated"] {
        write_atomic(&rootfs.join(stamp), b"", 0o644)?;
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), FileError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at("set the mode of", path))
}

fn install_component(cached: &Cached, rootfs: &Path) -> Result<(), FileError> {
    let dir = rootfs.join(COMPONENTS).join(&cached.component);
    let version = dir.join(&cached.version);
    create_dir(&version)?;
    for file in &cached.files {
        let (from, to) = (cached.dir.join(&file.name), version.join(&file.name));
        fs::copy(&from, &to).map_err(at("copy", &to))?;
        set_mode(&to, 0o755)?;
    }
    symlink(&cached.version, &dir.join(CURRENT))
}

/// Copies the static files over the root, as root's and with plain modes, whatever the checkout has.
fn overlay(from: &Path, to: &Path) -> Result<(), FileError> {
    for item in fs::read_dir(from).map_err(at("read", from))? {
        let item = item.map_err(at("read", from))?;
        let (path, target) = (item.path(), to.join(item.file_name()));
        let kind = item.file_type().map_err(at("read", &path))?;
        if kind.is_dir() {
            if !target.is_dir() {
                create_dir(&target)?;
                set_mode(&target, 0o755)?;
            }
            overlay(&path, &target)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(&path).map_err(at("read", &path))?, &target)?;
        } else if item.file_name() != ".keep" {
            let bytes = fs::read(&path).map_err(at("read", &path))?;
            write_atomic(&target, &bytes, mode_of(&path)?)?;
        }
    }
    Ok(())
}

/// Mode of a static file in the root: of the checkout's, only whether it may be executed counts.
pub(crate) fn mode_of(path: &Path) -> Result<u32, FileError> {
    let metadata = fs::metadata(path).map_err(at("read", path))?;
    Ok(if metadata.permissions().mode() & 0o100 != 0 {
        0o755
    } else {
        0o644
    })
}

fn configure_systemd(systemd: &Systemd, agent: bool, rootfs: &Path) -> Result<(), FileError> {
    let units = rootfs.join(UNITS);
    symlink(
        "/usr/lib/systemd/system/multi-user.target",
        &units.join("default.target"),
    )?;
    for unit in &systemd.mask {
        let _ = fs::remove_file(units.join(unit)); // packages may have put an alias there
        symlink("/dev/null", &units.join(unit))?;
    }
    for unit in &systemd.not_in_containers {
        let dir = units.join(format!("{unit}.d"));
        create_dir(&dir)?;
        let text = "[Unit]\nConditionVirtualization=!container\n";
        write_atomic(&dir.join("10-windlass.conf"), text.as_bytes(), 0o644)?;
    }
    for unit in systemd
        .enable
        .iter()
        .filter(|unit| agent || !is_of_agent(unit))
    {
        let path = units.join(unit);
        let text = fs::read_to_string(&path).map_err(at("read", &path))?;
        let targets = text
            .lines()
            .filter_map(|line| line.strip_prefix("WantedBy="));
        for target in targets.flat_map(str::split_whitespace) {
            let wants = units.join(format!("{target}.wants"));
            create_dir(&wants)?;
            symlink(format!("/{UNITS}/{unit}"), &wants.join(unit))?;
        }
    }
    Ok(())
}

/// The components as they are in an assembled root, sorted by name.
pub fn components_of(parts: &Parts<'_>, rootfs: &Path) -> Result<Vec<Component>, FileError> {
    let mut all = Vec::new();
    for (name, cached) in parts.components {
        let in_machine = parts.recipe.machine.components.contains(name);
        let mut files = Vec::new();
        for file in &cached.files {
            let paths = match in_machine {
                true => vec![format!(
                    "{COMPONENTS}/{name}/{}/{}",
                    cached.version, file.name
                )],
                false => paths_in_images(parts, rootfs, &file.name)?,
            };
            for path in paths {
                let (digest, bytes) = digest_of(&rootfs.join(&path))?;
                files.push(ComponentFile {
                    path,
                    digest,
                    bytes,
                });
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let family = parts
            .recipe
            .wanted
            .iter()
            .find(|wanted| wanted.component == *name);
        let license = family.map(|wanted| parts.recipe.families[&wanted.family].license.clone());
        all.push(Component {
            name: name.clone(),
            version: cached.version.clone(),
            license: license.unwrap_or_default(),
            source: cached.source.clone(),
            files,
        });
    }
    Ok(all)
}

/// Where a program of images is, unpacked, in the root.
fn paths_in_images(
    parts: &Parts<'_>,
    rootfs: &Path,
    program: &str,
) -> Result<Vec<String>, FileError> {
    let seed = crate::seed::describe(&parts.store.dir)?;
    let files = parts.recipe.images.iter().flat_map(|image| &image.files);
    let inside: Vec<&String> = files
        .filter(|(_, owner)| *owner == program)
        .map(|(path, _)| path)
        .collect();
    let store = STORE.trim_start_matches('/');
    let mut paths = Vec::new();
    for layer in &seed.read_only {
        for path in &inside {
            let candidate = PathBuf::from(store)
                .join(layer)
                .join(path.trim_start_matches('/'));
            if rootfs.join(&candidate).is_file() {
                paths.push(candidate.display().to_string());
            }
        }
    }
    Ok(paths)
}

/// The programs for use outside of machines.
pub fn exports_of(parts: &Parts<'_>) -> Vec<Export> {
    let mut exports: Vec<Export> = Vec::new();
    for program in &parts.recipe.machine.exports {
        if let Some(owner) = parts.recipe.owner(program) {
            let path = format!(
                "{COMPONENTS}/{}/{}/{program}",
                owner.component, owner.version
            );
            exports.push(Export {
                name: program.clone(),
                path,
            });
        }
    }
    exports.sort_by(|a, b| a.name.cmp(&b.name));
    exports
}

/// Whether a unit is the agent's own or its guard's.
fn is_of_agent(unit: &str) -> bool {
    unit.starts_with("windlass-agent")
}

/// Units of the static files that the agent starts and stops: all but its own and drop-ins.
pub fn units_of(home: &Home) -> Result<Vec<String>, FileError> {
    let dir = home.path("rootfs").join(UNITS);
    let mut units = Vec::new();
    for item in fs::read_dir(&dir).map_err(at("read", &dir))? {
        let name = item
            .map_err(at("read", &dir))?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if name.ends_with(".service") && !is_of_agent(&name) {
            units.push(name);
        }
    }
    units.sort();
    Ok(units)
}
