//! What is made once and used by every seed: keys, certificates, stemcells. They are costly and decide
//! nothing.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::json;
use windlass_common::id::{ClusterName, Digest, DirectorId};
use windlass_common::stemcell::{
    FILES, MANIFEST, PublicKey, ROOTFS, SBOM, SIGNATURE, TRUSTED, signed_message,
};
use windlass_director::artifacts::Artifacts;
use windlass_director::kubernetes::pki::ClusterPki;
use windlass_director::pki::DirectorCa;
use windlass_director::stemcell::Catalogue;

/// Kubernetes versions and builds of which there are stemcells.
pub const STEMCELLS: [(&str, u32); 4] =
    [("1.36.0", 1), ("1.36.0", 2), ("1.37.0", 1), ("1.37.0", 2)];
/// Certificate requests of one machine, at most.
const REQUESTS: usize = 16;

/// What every seed uses.
#[derive(Debug)]
pub struct Fixtures {
    /// Stemcells.
    pub stemcells: Catalogue,
    /// Where artifacts would be: nothing here fetches any.
    pub artifacts: Arc<Artifacts>,
    /// The director's CA.
    pub ca: Arc<DirectorCa>,
    /// The cluster's keys and certificates.
    pub pki: ClusterPki,
    /// Certificate requests that machines hand out, whichever key they are asked for.
    pub requests: Vec<Vec<u8>>,
    _dir: tempfile::TempDir,
}

/// The director of every seed.
pub fn director() -> Result<DirectorId> {
    DirectorId::new("sim").context("the director's name")
}

/// The cluster of every seed.
pub fn cluster() -> Result<ClusterName> {
    ClusterName::new("demo").context("the cluster's name")
}

/// The version of a stemcell, as records name it.
pub fn stemcell(kubernetes: &str, build: u32) -> String {
    format!("sim-{kubernetes}-{build}")
}

/// The Kubernetes minor of a stemcell.
pub fn minor(stemcell: &str) -> u32 {
    let minor = stemcell.split('.').nth(1);
    minor.and_then(|minor| minor.parse().ok()).unwrap_or(0)
}

impl Fixtures {
    /// Makes them.
    pub fn new() -> Result<Arc<Self>> {
        let dir = tempfile::tempdir().context("no temporary directory")?;
        let key = Ed25519KeyPair::generate().context("no key for stemcells")?;
        for (kubernetes, build) in STEMCELLS {
            write_stemcell(dir.path(), kubernetes, build, &key)?;
        }
        let trusted = dir.path().join(TRUSTED);
        fs::write(&trusted, format!("{}\n", public(&key)?)).context("trusted keys")?;
        let now = jiff::Timestamp::now();
        let requests = (0..REQUESTS).map(|_| request()).collect::<Result<_>>()?;
        Ok(Arc::new(Self {
            stemcells: Catalogue::new(dir.path().to_owned(), trusted),
            artifacts: Arc::new(Artifacts::new(dir.path().join("artifacts"))),
            ca: Arc::new(DirectorCa::create(director()?, now)?),
            pki: ClusterPki::generate(&cluster()?, now)?,
            requests,
            _dir: dir,
        }))
    }
}

fn request() -> Result<Vec<u8>> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let params = rcgen::CertificateParams::default();
    Ok(params.serialize_request(&key)?.der().to_vec())
}

fn public(key: &Ed25519KeyPair) -> Result<PublicKey> {
    let bytes = key.public_key().as_ref().try_into();
    Ok(PublicKey::from_bytes(
        bytes.context("an Ed25519 key has 32 bytes")?,
    ))
}

/// Writes a signed stemcell without components.
fn write_stemcell(root: &Path, kubernetes: &str, build: u32, key: &Ed25519KeyPair) -> Result<()> {
    let version = format!("{kubernetes}-{build}");
    let dir = root.join(stemcell(kubernetes, build));
    let digest = |bytes: &[u8]| Digest::of(bytes).to_string();
    let file = |bytes: &[u8]| json!({"digest": digest(bytes), "bytes": bytes.len()});
    let input = digest(version.as_bytes());
    let manifest = json!({
        "format": 1, "name": "sim", "version": version, "kubernetes": kubernetes,
        "architecture": "amd64", "built_at": format!("2030-01-01T00:00:0{build}Z"), "builder": "0",
        "inputs": {"digest": input, "recipe": input, "components": input, "agent": null},
        "components": [], "seeds": [], "units": [], "exports": [], "packages": [],
        "images": [{"name": "registry.example/pause:9", "digest": input, "bytes": 1, "components": []}],
        "rootfs": {"files": file(b""), "entries": 0, "bytes": 0},
        "sbom": file(b"{}"),
    })
    .to_string();
    let signature = BASE64.encode(key.sign(&signed_message(manifest.as_bytes())));
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    fs::create_dir_all(dir.join(ROOTFS)).context("cannot make a stemcell")?;
    write(FILES, "")?;
    write(SBOM, "{}")?;
    write(MANIFEST, &manifest)?;
    write(SIGNATURE, &format!("{} {signature}\n", public(key)?))
}
