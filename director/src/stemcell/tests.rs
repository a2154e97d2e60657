//! Stemcells that are signed in the test: small, and real to the verifier.

use std::fs;
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;
use windlass_common::id::Digest;
use windlass_common::stemcell::{
    FILES, MANIFEST, PublicKey, ROOTFS, SBOM, SIGNATURE, TRUSTED, signed_message,
};

use super::{Catalogue, CatalogueError};

/// Makes a key that signs stemcells.
fn key() -> Ed25519KeyPair {
    Ed25519KeyPair::generate().unwrap()
}

fn public(key: &Ed25519KeyPair) -> PublicKey {
    PublicKey::from_bytes(key.public_key().as_ref().try_into().unwrap())
}

/// Version of each component in a stemcell that says nothing else.
pub(crate) const OWN_VERSION: &str = "1.0.0";
/// Components that each of them has.
const OWN: [(&str, &str); 2] = [("containerd", OWN_VERSION), ("kubelet", OWN_VERSION)];

/// Writes a signed stemcell with these components, each of one file that says its name and version.
fn write(root: &Path, kubernetes: &str, build: &str, key: &Ed25519KeyPair, parts: &[(&str, &str)]) {
    let version = format!("{kubernetes}-{build}");
    let dir = root.join(format!("test-{version}"));
    fs::create_dir_all(dir.join(ROOTFS)).unwrap();
    fs::write(dir.join(FILES), "").unwrap();
    fs::write(dir.join(SBOM), "{}").unwrap();
    let digest = |bytes: &[u8]| Digest::of(bytes).to_string();
    let file = |bytes: &[u8]| json!({"digest": digest(bytes), "bytes": bytes.len()});
    let input = digest(build.as_bytes());
    let pause = digest(b"pause");
    let component = |(name, version): &(&str, &str)| {
        let path = format!("opt/windlass/components/{name}/{version}/{name}");
        let (place, content) = (dir.join(ROOTFS).join(&path), format!("{name} {version}"));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, &content).unwrap();
        let bytes = content.as_bytes();
        json!({
            "name": name, "version": version, "license": "MIT", "source": {"kind": "mirror", "origin": "/"},
            "files": [{"path": path, "digest": digest(bytes), "bytes": bytes.len()}],
        })
    };
    let components: Vec<_> = parts.iter().map(component).collect();
    let manifest = json!({
        "format": 1, "name": "test", "version": version, "kubernetes": kubernetes,
        "architecture": "amd64", "built_at": format!("2030-01-01T00:00:0{build}Z"), "builder": "0",
        "inputs": {"digest": input, "recipe": input, "components": input, "agent": null},
        "components": components, "seeds": [], "units": [], "exports": [], "packages": [],
        "images": [{"name": "registry.example/pause:9", "digest": pause, "bytes": 1, "components": []}],
        "rootfs": {"files": file(b""), "entries": 0, "bytes": 0},
        "sbom": file(b"{}"),
    })
    .to_string();
    fs::write(dir.join(MANIFEST), &manifest).unwrap();
    let signature = BASE64.encode(key.sign(&signed_message(manifest.as_bytes())));
    fs::write(
        dir.join(SIGNATURE),
        format!("{} {signature}\n", public(key)),
    )
    .unwrap();
}

/// Writes the file of trusted keys; returns its path.
fn trust(root: &Path, keys: &[&Ed25519KeyPair]) -> PathBuf {
    let path = root.join(TRUSTED);
    let lines: String = keys
        .iter()
        .map(|key| format!("{}\n", public(key)))
        .collect();
    fs::write(&path, lines).unwrap();
    path
}

/// A catalogue with one trusted stemcell of this Kubernetes version.
pub(crate) fn catalogue(root: &Path, kubernetes: &str) -> Catalogue {
    let key = key();
    write(root, kubernetes, "1", &key, &OWN);
    Catalogue::new(root.to_owned(), trust(root, &[&key]))
}

/// Like [`catalogue`], as files: stemcells in `root`, trusted keys in `root/trusted.pub`, beside those there are.
pub(crate) fn install(root: &Path, kubernetes: &str) {
    install_build(root, kubernetes, "1");
}

/// Another stemcell of a version; `build` says which, and later ones are newer.
pub(crate) fn install_build(root: &Path, kubernetes: &str, build: &str) {
    install_parts(root, kubernetes, build, &OWN);
}

/// The same with other components; returns its version.
pub(crate) fn install_parts(
    root: &Path,
    kubernetes: &str,
    build: &str,
    parts: &[(&str, &str)],
) -> String {
    let key = key();
    write(root, kubernetes, build, &key, parts);
    let trusted = root.join("trusted.pub");
    let before = fs::read_to_string(&trusted).unwrap_or_default();
    fs::write(&trusted, format!("{before}{}\n", public(&key))).unwrap();
    format!("test-{kubernetes}-{build}")
}

#[test]
fn the_newest_trusted_stemcell_of_a_version_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, theirs) = (key(), key());
    write(dir.path(), "1.37.2", "1", &ours, &OWN);
    write(dir.path(), "1.37.2", "2", &ours, &OWN);
    write(dir.path(), "1.36.3", "1", &ours, &OWN);
    write(dir.path(), "1.37.2", "3", &theirs, &OWN);
    let catalogue = Catalogue::new(dir.path().to_owned(), trust(dir.path(), &[&ours]));
    let found = catalogue.find("1.37.2").unwrap();
    assert_eq!(found.version, "test-1.37.2-2");
    assert_eq!(found.images["pause"], "registry.example/pause:9");
    let error = catalogue.find("1.35.0").unwrap_err().to_string();
    assert!(
        error.contains("1.36.3 (test-1.36.3-1)") && error.contains("not trusted"),
        "{error}"
    );
    let (usable, faults) = catalogue.list().unwrap();
    assert_eq!((usable.len(), faults.len()), (3, 1));
}

#[test]
fn a_stemcell_that_changes_is_verified_again() {
    let dir = tempfile::tempdir().unwrap();
    let catalogue = catalogue(dir.path(), "1.37.2");
    let version = "test-1.37.2-1";
    assert!(catalogue.get(version).is_ok());
    let manifest = dir.path().join(version).join(MANIFEST);
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("1.37.2\"", "1.37.3\"")).unwrap();
    let error = catalogue.get(version).unwrap_err();
    assert!(matches!(error, CatalogueError::Unusable { .. }), "{error}");
    fs::write(&manifest, text).unwrap();
    fs::remove_file(dir.path().join(version).join(SIGNATURE)).unwrap();
    assert!(catalogue.get(version).is_err());
    assert!(catalogue.get("absent").is_err());
}

#[test]
fn a_key_counts_from_when_it_is_there_until_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let key = key();
    write(dir.path(), "1.37.2", "1", &key, &OWN);
    let catalogue = Catalogue::new(dir.path().to_owned(), dir.path().join(TRUSTED));
    assert!(catalogue.find("1.37.2").is_err(), "no keys, no stemcells");
    trust(dir.path(), &[&key]);
    let version = catalogue.find("1.37.2").unwrap().version;
    assert!(catalogue.get(&version).is_ok());
    trust(dir.path(), &[]);
    assert!(
        catalogue.get(&version).is_err(),
        "what was verified is not remembered longer than its key"
    );
}
