//! Container images, assembled from components: one uncompressed layer, no base image.
//!
//! The result is an OCI layout in a tar, the same bytes for the same content: fixed times, owners and
//! order.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use windlass_common::id::Digest;

use crate::files::{FileError, at, copy_tree, create_dir, symlink, write_atomic};
use crate::recipe::ImageRecipe;
use crate::sources::Cached;
use crate::tool::Tool;

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";
/// Where commands of images are found.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An image as a file that containerd imports.
#[derive(Debug, Clone)]
pub struct ImageArchive {
    /// Full reference.
    pub name: String,
    /// The tar.
    pub path: PathBuf,
    /// Of the image's manifest.
    pub digest: Digest,
    /// Size of its layer.
    pub bytes: u64,
}

/// Assembles an image below `dir`, which must not exist. `owner` finds the component of a program;
/// certificates come from `rootfs`.
pub fn assemble<'a>(
    image: &ImageRecipe,
    owner: impl Fn(&str) -> Option<&'a Cached>,
    rootfs: &Path,
    arch: &str,
    dir: &Path,
) -> Result<ImageArchive, FileError> {
    let content = dir.join("content");
    let inside = |path: &str| content.join(path.trim_start_matches('/'));
    create_dir(&content)?;
    for (path, program) in &image.files {
        let Some(component) = owner(program) else {
            continue;
        }; // recipes are checked when read
        place(&component.dir.join(program), &inside(path), 0o755)?;
    }
    for (path, target) in &image.links {
        create_parent(&inside(path))?;
        symlink(target, &inside(path))?;
    }
    if image.certificates {
        place(&rootfs.join(CERTIFICATES), &inside(CERTIFICATES), 0o644)?;
    }
    // What programs without a home of their own expect.
    let passwd = "root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    create_dir(&inside("etc"))?;
    write_atomic(&inside("etc/passwd"), passwd.as_bytes(), 0o644)?;
    create_dir(&inside("tmp"))?;
    fs::set_permissions(inside("tmp"), fs::Permissions::from_mode(0o1777))
        .map_err(at("set the mode of", &inside("tmp")))?;

    let layout = dir.join("layout");
    let blobs = layout.join("blobs/sha256");
    create_dir(&blobs)?;
    let layer_path = dir.join("layer.tar");
    tar(&content, &layer_path)?;
    let (layer, bytes) = crate::digest::digest_of(&layer_path)?;
    fs::rename(&layer_path, blobs.join(layer.hex())).map_err(at("rename", &layer_path))?;
    let config = put(&blobs, &config_of(image, arch, layer))?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": { "mediaType": CONFIG_TYPE, "digest": config.0, "size": config.1 },
        "layers": [{ "mediaType": LAYER_TYPE, "digest": layer, "size": bytes }],
    });
    let (digest, size) = put(&blobs, &manifest)?;
    let index = json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": MANIFEST_TYPE,
            "digest": digest,
            "size": size,
            "annotations": { "io.containerd.image.name": image.name },
        }],
    });
    write_json(&layout.join("index.json"), &index)?;
    write_json(
        &layout.join("oci-layout"),
        &json!({ "imageLayoutVersion": "1.0.0" }),
    )?;
    let path = dir.join("image.tar");
    tar(&layout, &path)?;
    Ok(ImageArchive {
        name: image.name.clone(),
        path,
        digest,
        bytes,
    })
}

fn config_of(image: &ImageRecipe, arch: &str, layer: Digest) -> Value {
    let ports: serde_json::Map<String, Value> = image
        .ports
        .iter()
        .map(|port| (port.clone(), json!({})))
        .collect();
    let mut config = json!({ "Entrypoint": image.entrypoint, "Env": [PATH], "WorkingDir": "/" });
    if !image.command.is_empty() {
        config["Cmd"] = json!(image.command);
    }
    if let Some(user) = &image.user {
        config["User"] = json!(user);
    }
    if !ports.is_empty() {
        config["ExposedPorts"] = Value::Object(ports);
    }
    json!({
        "architecture": arch,
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [layer] },
    })
}

fn create_parent(path: &Path) -> Result<(), FileError> {
    path.parent().map_or(Ok(()), create_dir)
}

fn place(from: &Path, to: &Path, mode: u32) -> Result<(), FileError> {
    create_parent(to)?;
    copy_tree(from, to)?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).map_err(at("set the mode of", to))
}

fn tar(dir: &Path, to: &Path) -> Result<(), FileError> {
    Tool::new("tar", "install tar", format!("packing {}", dir.display()))
        .args([
            "--create",
            "--format=gnu",
            "--sort=name",
            "--mtime=@0",
            "--numeric-owner",
        ])
        .args(["--owner=0", "--group=0", "--file"])
        .arg(to)
        .arg("--directory")
        .arg(dir)
        .arg(".")
        .run()?;
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<(), FileError> {
    write_atomic(path, value.to_string().as_bytes(), 0o644)
}

fn put(blobs: &Path, value: &Value) -> Result<(Digest, usize), FileError> {
    let text = value.to_string();
    let digest = Digest::of(text.as_bytes());
    write_json(&blobs.join(digest.hex()), value)?;
    Ok((digest, text.len()))
}
