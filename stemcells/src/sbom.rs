//! The bill of materials, in CycloneDX 1.6: Debian packages, components with their files, and the Go
//! modules that components were built from.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use windlass_common::stemcell::{Component, Manifest, Source};

use crate::home::{Home, HomeError, read_bounded};
use crate::recipe::Recipe;

/// Writes the bill of materials of a stemcell. The manifest is complete but for the bill's digest.
pub fn render(manifest: &Manifest, recipe: &Recipe, home: &Home) -> Result<Vec<u8>, HomeError> {
    let root = format!("stemcell:{}", manifest.id());
    let mut components = Vec::new();
    let mut contained = BTreeMap::new();
    let mut modules: BTreeSet<(String, String)> = BTreeSet::new();
    let mut direct = Vec::new();
    let distro = format!("debian-{}", recipe.debian.suite);
    for package in &manifest.packages {
        let (name, version, source) = (&package.name, &package.version, &package.source);
        let version_text = percent(version);
        let purl = format!(
            "pkg:deb/debian/{name}@{version_text}?arch={}&distro={distro}&upstream={source}",
            manifest.architecture
        );
        direct.push(purl.clone());
        components.push(json!({
            "type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl,
        }));
    }
    for component in &manifest.components {
        let reference = purl_of(component);
        let required = match (
            &component.source,
            recipe.wanted.iter().find(|w| w.component == component.name),
        ) {
            (Source::Go { .. }, Some(wanted)) => {
                let wrapper = home.family(&wanted.family).join(&wanted.version);
                requirements(&read_bounded(&wrapper.join("go.mod"))?)
            }
            _ => Vec::new(),
        };
        let below: Vec<String> = required.iter().map(|(m, v)| module_purl(m, v)).collect();
        modules.extend(required);
        contained.insert(reference.clone(), below);
        direct.push(reference.clone());
        components.push(component_entry(component, &reference));
    }
    for (module, version) in &modules {
        let purl = module_purl(module, version);
        let entry = json!({
            "type": "library", "bom-ref": purl, "name": module, "version": version, "purl": purl,
        });
        if !contained.contains_key(&purl) {
            components.push(entry);
        }
    }
    let mut dependencies = vec![json!({ "ref": root, "dependsOn": direct })];
    dependencies.extend(
        contained
            .iter()
            .map(|(r, below)| json!({ "ref": r, "dependsOn": below })),
    );
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": serial(manifest),
        "version": 1,
        "metadata": {
            "timestamp": manifest.built_at,
            "tools": { "components": [{
                "type": "application", "name": "windlass-stemcell", "version": manifest.builder,
            }] },
            "component": {
                "type": "operating-system", "bom-ref": root, "name": manifest.name,
                "version": manifest.version,
            },
        },
        "components": components,
        "dependencies": dependencies,
    });
    Ok(document.to_string().into_bytes())
}

fn component_entry(component: &Component, reference: &str) -> Value {
    let files: Vec<Value> = component
        .files
        .iter()
        .map(|file| {
            json!({
                "type": "file", "name": file.path,
                "hashes": [{ "alg": "SHA-256", "content": file.digest.hex() }],
            })
        })
        .collect();
    json!({
        "type": "application", "bom-ref": reference, "name": component.name,
        "version": component.version, "purl": reference.split('#').next(),
        "licenses": [{ "license": { "id": component.license } }],
        "components": files,
    })
}

/// A package URL that is unique among the components.
fn purl_of(component: &Component) -> String {
    let Component { name, version, .. } = component;
    match &component.source {
        Source::Go { module, .. } => {
            let module = module.split('@').next().unwrap_or(module);
            format!("pkg:golang/{module}@v{version}#{name}")
        }
        Source::Release { .. } | Source::Mirror { .. } | Source::Own { .. } => {
            format!("pkg:generic/{name}@{version}")
        }
        Source::Debian {
            package,
            package_version,
        } => {
            format!(
                "pkg:deb/debian/{package}@{}#{name}",
                percent(package_version)
            )
        }
    }
}

fn module_purl(module: &str, version: &str) -> String {
    format!("pkg:golang/{module}@{}", percent(version))
}

/// Escapes what has a meaning in a package URL.
fn percent(text: &str) -> String {
    text.replace('%', "%25")
        .replace('+', "%2B")
        .replace(':', "%3A")
        .replace('~', "%7E")
}

/// Modules and versions that a go.mod requires.
fn requirements(go_mod: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(go_mod);
    let mut required = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let line = line.split("//").next().unwrap_or(line).trim();
        let single = line.strip_prefix("require ").filter(|rest| *rest != "(");
        match (line, single) {
            ("require (", _) => inside = true,
            (")", _) => inside = false,
            (_, Some(rest)) => required.extend(pair(rest)),
            (_, None) if inside => required.extend(pair(line)),
            (_, None) => {}
        }
    }
    required
}

fn pair(line: &str) -> Option<(String, String)> {
    let (module, version) = line.split_once(' ')?;
    Some((module.to_owned(), version.trim().to_owned()))
}

/// A UUID (version 8: of our own making) from the digest of the inputs.
fn serial(manifest: &Manifest) -> String {
    let mut bytes = [0u8; 16];
    bytes.copy_from_slice(&manifest.inputs.digest.as_bytes()[..16]);
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let (a, b, c, d, e) = (
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    );
    format!("urn:uuid:{a}-{b}-{c}-{d}-{e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_read_from_both_forms() {
        let text =
            b"module a\n\nrequire k8s.io/kubernetes v1.37.2\n\nrequire (\n\tgolang.org/x/sys \
                     v0.30.0 // indirect\n)\n\nreplace x => y v1\n";
        let want = [
            ("k8s.io/kubernetes", "v1.37.2"),
            ("golang.org/x/sys", "v0.30.0"),
        ];
        let want: Vec<_> = want
            .iter()
            .map(|(m, v)| ((*m).to_owned(), (*v).to_owned()))
            .collect();
        assert_eq!(requirements(text), want);
    }
}
