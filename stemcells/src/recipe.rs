//! Recipes: what a line of stemcells consists of, apart from digests (those are in the lock).
//!
//! A recipe is read as it is (`RawRecipe`), checked against the definitions of components, and
//! becomes a [`Recipe`] whose references all lead somewhere. All faults are reported together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use crate::home::{Home, HomeError, read_toml};
use crate::lock::{Family, Lock};

/// The family that `--kubernetes` chooses the version of.
pub const KUBERNETES: &str = "kubernetes";

/// A recipe as written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRecipe {
    name: String,
    kubernetes: String,
    debian: Debian,
    systemd: Systemd,
    versions: BTreeMap<String, String>,
    machine: Machine,
    #[serde(default)]
    image: Vec<ImageRecipe>,
}

/// The operating system.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Debian {
    /// Release, for example `bookworm`.
    pub suite: String,
    /// Lines of `sources.list`.
    pub sources: Vec<String>,
    /// Packages besides the essential ones; what they depend on comes along, what they recommend does not.
    pub packages: Vec<String>,
    /// Paths that packages do not install, in dpkg's patterns.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Paths that they do install nevertheless.
    #[serde(default)]
    pub include: Vec<String>,
}

/// What happens at boot.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Systemd {
    /// Units that start by themselves.
    pub enable: Vec<String>,
    /// Units that never start.
    #[serde(default)]
    pub mask: Vec<String>,
    /// Units that start only where the machine has a kernel of its own.
    #[serde(default)]
    pub not_in_containers: Vec<String>,
}

/// Components in the root file system.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// Names of components.
    pub components: Vec<String>,
    /// Programs of theirs on every shell's PATH.
    #[serde(default)]
    pub commands: Vec<String>,
    /// Programs of theirs for use outside of machines.
    #[serde(default)]
    pub exports: Vec<String>,
}

/// A container image.
#[derive(Debug, Clone, serde::Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRecipe {
    /// Full reference; `{family}` stands for the version of a family.
    pub name: String,
    /// Path in the image → program of a component.
    pub files: BTreeMap<String, String>,
    /// Path in the image → target of a symbolic link.
    #[serde(default)]
    pub links: BTreeMap<String, String>,
    /// What it runs.
    pub entrypoint: Vec<String>,
    /// Its default arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// User and group, as numbers; root if absent.
    #[serde(default)]
    pub user: Option<String>,
    /// Ports that it listens on, for example `53/udp`.
    #[serde(default)]
    pub ports: Vec<String>,
    /// Whether it has Debian's certificate authorities.
    #[serde(default)]
    pub certificates: bool,
}

/// A component that the recipe asks for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its name.
    pub component: String,
    /// The family that defines it.
    pub family: String,
    /// Its version.
    pub version: String,
}

/// A checked recipe.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The stemcell's line.
    pub name: String,
    /// The chosen version of Kubernetes.
    pub kubernetes: String,
    /// The operating system.
    pub debian: Debian,
    /// What happens at boot.
    pub systemd: Systemd,
    /// Components in the root file system.
    pub machine: Machine,
    /// Container images, their names complete.
    pub images: Vec<ImageRecipe>,
    /// Everything to get, sorted by name: the machine's components and those of images.
    pub wanted: Vec<Wanted>,
    /// Definitions of the families used.
    pub families: BTreeMap<String, Family>,
    /// The recipe's bytes.
    pub bytes: Vec<u8>,
}

impl Recipe {
    /// Reads a recipe and the definitions that it refers to.
    pub fn load(
        path: &Path,
        home: &Home,
        lock: &Lock,
        kubernetes: Option<&str>,
    ) -> Result<Recipe, HomeError> {
        let (raw, bytes): (RawRecipe, _) = read_toml(path)?;
        let mut versions = raw.versions.clone();
        let kubernetes = kubernetes.unwrap_or(&raw.kubernetes).to_owned();
        versions.insert(KUBERNETES.to_owned(), kubernetes.clone());
        let mut families = BTreeMap::new();
        for family in versions.keys() {
            families.insert(family.clone(), Family::load(home, family)?);
        }
        let mut faults = Vec::new();
        check_names(&raw, &mut faults);
        for (family, version) in &versions {
            if lock.entry(family, version).is_none() {
                faults.push(format!(
                    "{family} {version} is not in the lock, which has {}",
                    lock.versions(family).join(", ")
                ));
            }
        }
        let mut images = raw.image.clone();
        for image in &mut images {
            image.name = expand_versions(&image.name, &versions);
            if image.name.contains(['{', '}']) || !image.name.contains('/') {
                faults.push(format!(
                    "image name {:?} is not a full reference",
                    image.name
                ));
            }
        }
        let wanted = want(&raw.machine, &images, &families, &versions, &mut faults);
        if !faults.is_empty() {
            return Err(HomeError::Faults {
                path: path.to_owned(),
                faults,
            });
        }
        let RawRecipe {
            name,
            debian,
            systemd,
            machine,
            ..
        } = raw;
        Ok(Recipe {
            name,
            kubernetes,
            debian,
            systemd,
            machine,
            images,
            wanted,
            families,
            bytes,
        })
    }

    /// The component that has a program, among those wanted.
    pub fn owner(&self, program: &str) -> Option<&Wanted> {
        self.wanted
            .iter()
            .find(|wanted| has_program(&self.families, wanted, program))
    }
}

fn has_program(families: &BTreeMap<String, Family>, wanted: &Wanted, program: &str) -> bool {
    families[&wanted.family].components[&wanted.component]
        .iter()
        .any(|name| name == program)
}

fn check_names(raw: &RawRecipe, faults: &mut Vec<String>) {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if raw.name.is_empty() || raw.name.len() > 32 || !raw.name.bytes().all(plain) {
        faults.push(format!(
            "name {:?} must be 1 to 32 lower-case letters, digits and '-'",
            raw.name
        ));
    }
    if raw.debian.sources.is_empty() {
        faults.push("debian.sources must name at least one source".to_owned());
    }
    let units = [
        &raw.systemd.enable,
        &raw.systemd.mask,
        &raw.systemd.not_in_containers,
    ];
    for unit in units.into_iter().flatten() {
        if unit.contains('/') || !unit.contains('.') {
            faults.push(format!("{unit:?} is not the name of a systemd unit"));
        }
    }
}

/// Finds the component and family behind every name that the recipe uses.
fn want(
    machine: &Machine,
    images: &[ImageRecipe],
    families: &BTreeMap<String, Family>,
    versions: &BTreeMap<String, String>,
    faults: &mut Vec<String>,
) -> Vec<Wanted> {
    let mut names: BTreeSet<&str> = machine.components.iter().map(String::as_str).collect();
    let programs = images.iter().flat_map(|image| image.files.values());
    for program in programs.chain(&machine.commands).chain(&machine.exports) {
        let owner = families.values().flat_map(|family| &family.components);
        match owner
            .into_iter()
            .find(|(_, programs)| programs.contains(program))
        {
            Some((component, _)) => names.extend([component.as_str()]),
            None => faults.push(format!("no component has the program {program:?}")),
        }
    }
    let mut wanted = Vec::new();
    for name in names {
        match families
            .iter()
            .find(|(_, family)| family.components.contains_key(name))
        {
            Some((family, _)) => wanted.push(Wanted {
                component: name.to_owned(),
                family: family.clone(),
                version: versions[family].clone(),
            }),
            None => faults.push(format!(
                "no family of [versions] has the component {name:?}"
            )),
        }
    }
    wanted
}

fn expand_versions(text: &str, versions: &BTreeMap<String, String>) -> String {
    versions.iter().fold(text.to_owned(), |text, (family, v)| {
        text.replace(&format!("{{{family}}}"), v)
    })
}
