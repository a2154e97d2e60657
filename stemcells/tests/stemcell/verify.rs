//! A stemcell that was touched anywhere is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use windlass_common::id::Digest;
use windlass_common::stemcell::{
    Component, ComponentFile, FILES, FileSet, Inputs, MANIFEST, MANIFEST_FORMAT, Manifest, ROOTFS,
    Rootfs, SBOM, SIGNATURE, Seed, Source, TrustedKeys, VerifyDepth, VerifyError, installed, scan,
    verify,
};
use windlass_stemcell::prune::prune;
use windlass_stemcell::sign::SigningKey;

use crate::support::BindMount;

struct Stemcell {
    _dir: tempfile::TempDir,
    root: PathBuf,
    path: PathBuf,
    key: SigningKey,
    manifest: Manifest,
}

impl Stemcell {
    fn new() -> Stemcell {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("stemcells");
        let path = root.join("test-1.0.0-0123456789");
        let program = path.join(ROOTFS).join("opt/tool");
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        fs::write(&program, "a program").unwrap();
        let tree = scan(&path.join(ROOTFS)).unwrap();
        fs::write(path.join(FILES), &tree.listing).unwrap();
        fs::write(path.join(SBOM), "{}").unwrap();
        let key = SigningKey::create(&dir.path().join("key")).unwrap();
        let set = |bytes: &[u8]| FileSet {
            digest: Digest::of(bytes),
            bytes: bytes.len() as u64,
        };
        let inputs = Inputs {
            digest: Digest::of(b""),
            recipe: Digest::of(b""),
            components: Digest::of(b""),
            agent: None,
        };
        let file = ComponentFile {
            path: "opt/tool".to_owned(),
            digest: Digest::of(b"a program"),
            bytes: 9,
        };
        let component = Component {
            name: "tool".to_owned(),
            version: "1".to_owned(),
            license: "MIT".to_owned(),
            source: Source::Own {
                source: Digest::of(b""),
            },
            files: vec![file],
        };
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            name: "test".to_owned(),
            version: "1.0.0-0123456789".to_owned(),
            kubernetes: "1.0.0".to_owned(),
            architecture: "amd64".to_owned(),
            built_at: "2026-01-02T03:04:05Z".to_owned(),
            builder: "0".to_owned(),
            inputs,
            components: vec![component],
            images: Vec::new(),
            seeds: Vec::new(),
            units: Vec::new(),
            exports: Vec::new(),
            packages: Vec::new(),
            rootfs: Rootfs {
                files: set(tree.listing.as_bytes()),
                entries: tree.entries,
                bytes: tree.bytes,
            },
            sbom: set(b"{}"),
        };
        let stemcell = Stemcell {
            _dir: dir,
            root,
            path,
            key,
            manifest,
        };
        stemcell.sign(&serde_json::to_vec(&stemcell.manifest).unwrap());
        stemcell
    }

    /// Writes a manifest, signed.
    fn sign(&self, manifest: &[u8]) {
        fs::write(self.path.join(MANIFEST), manifest).unwrap();
        fs::write(self.path.join(SIGNATURE), self.key.sign(manifest)).unwrap();
    }

    fn verify(&self, depth: VerifyDepth) -> Result<Manifest, VerifyError> {
        verify(&self.path, &TrustedKeys::new([self.key.public()]), depth)
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.path.join(path)
    }
}

#[test]
fn an_untouched_stemcell_holds() {
    let stemcell = Stemcell::new();
    assert_eq!(
        stemcell.verify(VerifyDepth::Full).unwrap(),
        stemcell.manifest
    );
    let found = installed(&stemcell.root, &TrustedKeys::new([stemcell.key.public()])).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].manifest.as_ref().unwrap(), &stemcell.manifest);
}

#[test]
fn a_touched_stemcell_is_refused_and_the_error_says_what_was_touched() {
    type Touch = fn(&Stemcell);
    use VerifyDepth::{Full, Manifest as Quick};
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases: [(&str, Touch, VerifyDepth, &str); 9] = [
        ("manifest", |s| fs::write(s.at(MANIFEST), fs::read_to_string(s.at(MANIFEST)).unwrap().replace("\"tool\"", "\"TOOL\"")).unwrap(), Quick, "does not match its signature"),
        ("signature", |s| fs::write(s.at(SIGNATURE), "ed25519:AA== x").unwrap(), Quick, "base64 signature"),
        ("no signature", |s| fs::remove_file(s.at(SIGNATURE)).unwrap(), Quick, "manifest.sig"),
        ("bill of materials", |s| fs::write(s.at(SBOM), "[]").unwrap(), Quick, "sbom.cdx.json has digest"),
        ("listing", |s| fs::write(s.at(FILES), "").unwrap(), Quick, "files.txt has digest"),
        ("size of a program", |s| fs::write(s.at("rootfs/opt/tool"), "longer than before").unwrap(), Quick, "opt/tool has 18 bytes"),
        ("program replaced by a link", |s| { fs::remove_file(s.at("rootfs/opt/tool")).unwrap(); std::os::unix::fs::symlink("/bin/true", s.at("rootfs/opt/tool")).unwrap(); }, Quick, "opt/tool has"),
        ("byte of a program", |s| fs::write(s.at("rootfs/opt/tool"), "a prograM").unwrap(), Full, "the first is opt/tool"),
        ("additional file", |s| fs::write(s.at("rootfs/backdoor"), "x").unwrap(), Full, "the first is backdoor"),
    ];
    for (name, touch, depth, says) in cases {
        let stemcell = Stemcell::new();
        touch(&stemcell);
        let error = stemcell.verify(depth).expect_err(name).to_string();
        assert!(error.contains(says), "{name}: {error}");
    }
}

#[test]
fn a_signer_who_is_not_trusted_is_refused_and_named() {
    let stemcell = Stemcell::new();
    let other = SigningKey::create(&stemcell.root.join("other.key")).unwrap();
    let error = verify(
        &stemcell.path,
        &TrustedKeys::new([other.public()]),
        VerifyDepth::Manifest,
    );
    let error = error.unwrap_err();
    assert!(matches!(error, VerifyError::Untrusted { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains(&stemcell.key.public().to_string()),
        "{error}"
    );
}

#[test]
fn a_stemcell_under_another_name_is_refused() {
    let stemcell = Stemcell::new();
    let other = stemcell.root.join("test-1.0.0-9999999999");
    fs::rename(&stemcell.path, &other).unwrap();
    let trusted = TrustedKeys::new([stemcell.key.public()]);
    let error = verify(&other, &trusted, VerifyDepth::Manifest).unwrap_err();
    assert!(matches!(error, VerifyError::Name { .. }), "{error}");
}

#[test]
fn a_signed_manifest_that_leads_outside_or_is_of_the_future_is_refused() {
    type Change = fn(&mut Manifest);
    #[rustfmt::skip] // one case per line, so that a missing one shows
    let cases: [(&str, Change, &str); 6] = [
        ("component", |m| m.components[0].files[0].path = "../../etc/passwd".to_owned(), "leaves its directory"),
        ("seed's part", |m| m.seeds = vec![Seed { path: "/var/lib/x".to_owned(), read_only: vec!["../y".to_owned()] }], "leaves its directory"),
        ("seed", |m| m.seeds = vec![Seed { path: "/var/../etc".to_owned(), read_only: vec![] }], "not absolute and plain"),
        ("name", |m| m.name = "../x".to_owned(), "no part of a file name"),
        ("version", |m| m.version = "1/2".to_owned(), "no part of a file name"),
        ("format", |m| m.format = 2, "its format is 2"),
    ];
    for (name, change, says) in cases {
        let mut stemcell = Stemcell::new();
        change(&mut stemcell.manifest);
        stemcell.sign(&serde_json::to_vec(&stemcell.manifest).unwrap());
        let error = stemcell
            .verify(VerifyDepth::Manifest)
            .expect_err(name)
            .to_string();
        assert!(error.contains(says), "{name}: {error}");
    }
}

#[test]
fn old_stemcells_go_unless_they_are_mounted_or_the_latest() {
    let stemcell = Stemcell::new();
    let trusted = TrustedKeys::new([stemcell.key.public()]);
    for (number, built_at) in [(1, "2026-01-01"), (2, "2026-01-02"), (3, "2026-01-03")] {
        let mut manifest = stemcell.manifest.clone();
        manifest.version = format!("1.0.0-000000000{number}");
        manifest.built_at = format!("{built_at}T00:00:00Z");
        let dir = stemcell.root.join(manifest.id());
        let copied = Command::new("cp")
            .arg("-a")
            .args([&stemcell.path, &dir])
            .status();
        assert!(copied.unwrap().success());
        let bytes = serde_json::to_vec(&manifest).unwrap();
        fs::write(dir.join(MANIFEST), &bytes).unwrap();
        fs::write(dir.join(SIGNATURE), stemcell.key.sign(&bytes)).unwrap();
    }
    let name = |number: u8| format!("test-1.0.0-000000000{number}");
    let newest = stemcell
        .path
        .file_name()
        .unwrap()
        .to_string_lossy()
        .into_owned();
    std::os::unix::fs::symlink(&newest, stemcell.root.join("latest-1.0.0")).unwrap();
    // By age: 1, 2, the one that latest leads to, 3.
    let mounted = stemcell.root.join(name(2)).join(ROOTFS);
    let at = stemcell.root.join("machine");
    fs::create_dir(&at).unwrap();
    let _machine = BindMount::new(&mounted, &at);
    let pruned = prune(&stemcell.root, &trusted, 1).unwrap();
    assert_eq!(pruned.removed, [name(1)]);
    assert_eq!(pruned.in_use, [name(2)]);
    assert_eq!(pruned.kept, [newest, name(3)]);
    assert!(!stemcell.root.join(name(1)).exists());
    assert!(mounted.join("opt/tool").exists());
}
