//! The machine's image store, filled at build time by the containerd that machines run.
//!
//! Importing at boot would stand between a machine and Ready. Instead containerd runs once here, with
//! directories of its own, imports and unpacks the images, and its data directory becomes part of the
//! stemcell. A machine gets a copy of the small databases; the unpacked layers never change and are
//! shared read-only (see [`windlass_common::stemcell::Seed`]).
//!
//! # Invariants
//! * Images are marked as the kubelet's and pinned, so that its garbage collection keeps them.
//! * Layers are there unpacked only, not as blobs as well.
//! * A store is used only after containerd said that every image is unpacked.
//!
//! # After a crash
//! containerd dies with this process; its directories are in the staging directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use windlass_common::error::ErrorClass;
use windlass_common::id::{Digest, Hasher};
use windlass_common::stemcell::{Image, Seed};

use crate::files::{FileError, Staging, at, create_dir, publish, remove_tree, write_atomic};
use crate::image::ImageArchive;
use crate::progress::Progress;
use crate::sources::Cached;
use crate::tool::{Tool, ToolError};

/// Where machines have the store.
pub const STORE: &str = "/var/lib/containerd";
/// Changes with the code below, so that stores made by older code are not taken from the cache.
const REVISION: u32 = 1;
const RECORD: &str = "images.json";
/// The kubelet's namespace in containerd.
const NAMESPACE: &str = "k8s.io";
const SNAPSHOTS: &str = "io.containerd.snapshotter.v1.overlayfs/snapshots";
/// What a machine needs of containerd's data; everything else is made when it starts.
const KEPT: [&str; 3] = [
    "io.containerd.content.v1.content",
    "io.containerd.metadata.v1.bolt",
    "io.containerd.snapshotter.v1.overlayfs",
];
/// containerd serves within 0.1 s; a busy machine gets this long.
const START_DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Why the image store could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeedError {
    /// containerd ended or did not serve.
    #[error("containerd did not start within {} s; its log says:\n{log}", START_DEADLINE.as_secs())]
    NotServing {
        /// The end of its log.
        log: String,
    },
    /// An image is not complete after its import.
    #[error("image {image} is not unpacked after its import; containerd lists:\n{listing}")]
    NotUnpacked {
        /// Its name.
        image: String,
        /// What `ctr images check` printed.
        listing: String,
    },
    /// Files.
    #[error(transparent)]
    File(#[from] FileError),
    /// Programs.
    #[error(transparent)]
    Tool(#[from] ToolError),
}

impl SeedError {
    /// Who has to act.
    pub fn class(&self) -> ErrorClass {
        ErrorClass::Operator
    }

    /// Whether the cause is a full disk.
    pub fn is_disk_full(&self) -> bool {
        match self {
            SeedError::File(error) => error.is_disk_full(),
            SeedError::Tool(error) => error.is_disk_full(),
            SeedError::NotServing { .. } | SeedError::NotUnpacked { .. } => false,
        }
    }
}

/// An image store in the cache.
#[derive(Debug, Clone)]
pub struct Store {
    /// Its directory: what a machine has at [`STORE`].
    pub dir: PathBuf,
    /// The images in it, sorted by name.
    pub images: Vec<Image>,
}

/// Digest of what decides the content of a store, besides what `images` says.
pub fn inputs(containerd: &Cached, images: Digest) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(&REVISION.to_be_bytes());
    hasher.update(images.as_bytes());
    for file in &containerd.files {
        hasher.update(file.digest.as_bytes());
    }
    hasher.finish()
}

/// Finds the store with these `inputs` in the cache, or makes it from what `assemble` returns.
pub fn obtain(
    inputs: Digest,
    containerd: &Cached,
    cache: &Path,
    staging: &Staging,
    progress: Progress,
    assemble: impl FnOnce() -> Result<Vec<(ImageArchive, Image)>, FileError>,
) -> Result<Store, SeedError> {
    let path = cache.join("images").join(&inputs.hex()[..16]);
    if let Ok(bytes) = fs::read(path.join(RECORD))
        && let Ok(images) = serde_json::from_slice(&bytes)
    {
        return Ok(Store {
            dir: path.join("root"),
            images,
        });
    }
    let step = progress.start("container images");
    let archives = assemble()?;
    let place = staging.place("image-store")?;
    let work = staging.place("image-store-work")?;
    create_dir(&place)?;
    create_dir(&work)?;
    let store = place.join("root");
    {
        let daemon = Daemon::start(containerd, &store, &work)?;
        for (archive, _) in &archives {
            daemon.import(archive)?;
        }
        let archives: Vec<&ImageArchive> = archives.iter().map(|(archive, _)| archive).collect();
        daemon.collect_garbage(&archives)?;
        daemon.check(&archives)?;
    } // ends containerd, which closes its databases
    trim(&store)?;
    let images: Vec<Image> = archives.into_iter().map(|(_, image)| image).collect();
    let record = serde_json::to_vec_pretty(&images)
        .map_err(|error| at("serialise", &place.join(RECORD))(error.into()))?;
    write_atomic(&place.join(RECORD), &record, 0o644)?;
    remove_tree(&path)?;
    publish(&place, &path)?;
    step.done(format!("{} unpacked", images.len()));
    Ok(Store {
        dir: path.join("root"),
        images,
    })
}

/// The seed that machines copy from a store, for the manifest.
pub fn describe(store: &Path) -> Result<Seed, FileError> {
    let snapshots = store.join(SNAPSHOTS);
    let mut read_only = Vec::new();
    for item in fs::read_dir(&snapshots).map_err(at("read", &snapshots))? {
        let name = item.map_err(at("read", &snapshots))?.file_name();
        read_only.push(format!("{SNAPSHOTS}/{}/fs", name.to_string_lossy()));
    }
    read_only.sort();
    Ok(Seed {
        path: STORE.to_owned(),
        read_only,
    })
}

/// Removes what containerd makes anew.
fn trim(store: &Path) -> Result<(), FileError> {
    for item in fs::read_dir(store).map_err(at("read", store))? {
        let item = item.map_err(at("read", store))?;
        if !KEPT.iter().any(|kept| item.file_name() == *kept) {
            remove_tree(&item.path())?;
        }
    }
    Ok(())
}

/// A containerd of our own.
struct Daemon<'a> {
    child: Child,
    run: PathBuf,
    log: PathBuf,
    containerd: &'a Cached,
}

impl<'a> Daemon<'a> {
    fn start(containerd: &'a Cached, store: &Path, work: &Path) -> Result<Daemon<'a>, SeedError> {
        // Sockets need a short path.
        let run = PathBuf::from(format!("/run/windlass-stemcell.{}", std::process::id()));
        remove_tree(&run)?;
        create_dir(&run)?;
        let config = work.join("config.toml");
        write_atomic(&config, config_of(store, work, &run).as_bytes(), 0o600)?;
        let log = work.join("containerd.log");
        let output = fs::File::create(&log).map_err(at("create", &log))?;
        let program = containerd.dir.join("containerd");
        // setpriv: containerd must not outlive this process, however that ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&program)
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .map_err(at("run", Path::new("setpriv")))?;
        let mut daemon = Daemon {
            child,
            run,
            log,
            containerd,
        };
        daemon.wait()?;
        Ok(daemon)
    }

    fn wait(&mut self) -> Result<(), SeedError> {
        let deadline = Instant::now() + START_DEADLINE;
        loop {
            if self
                .ctr("asking containerd for its version")
                .arg("version")
                .run()
                .is_ok()
            {
                return Ok(());
            }
            let ended = self
                .child
                .try_wait()
                .map_err(at("wait for", &self.log))?
                .is_some();
            if ended || Instant::now() > deadline {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().rev().take(8).collect();
                let log = lines.into_iter().rev().collect::<Vec<_>>().join("\n");
                return Err(SeedError::NotServing { log });
            }
            thread::sleep(POLL);
        }
    }

    fn ctr(&self, what: &str) -> Tool {
        let program = self.containerd.dir.join("ctr").display().to_string();
        Tool::new(&program, "build containerd again", what)
            .arg("--address")
            .arg(self.run.join("containerd.sock"))
            .args(["--namespace", NAMESPACE])
    }

    fn import(&self, image: &ImageArchive) -> Result<(), SeedError> {
        self.ctr(&format!("importing {}", image.name))
            .args(["images", "import", "--local", "--snapshotter", "overlayfs"])
            .arg("--discard-unpacked-layers")
            .args(["--label", "io.cri-containerd.image=managed"])
            .args(["--label", "io.cri-containerd.pinned=pinned"])
            .arg(&image.path)
            .run()?;
        Ok(())
    }

    /// Removing an image waits for containerd's garbage collection, which takes the layers' blobs.
    fn collect_garbage(&self, images: &[&ImageArchive]) -> Result<(), SeedError> {
        const PROBE: &str = "registry.windlass.internal/collect:1";
        let Some(image) = images.first() else {
            return Ok(());
        };
        self.ctr("tagging")
            .args(["images", "tag", &image.name, PROBE])
            .run()?;
        self.ctr("collecting garbage")
            .args(["images", "remove", "--sync", PROBE])
            .run()?;
        Ok(())
    }

    fn check(&self, images: &[&ImageArchive]) -> Result<(), SeedError> {
        let output = self
            .ctr("checking images")
            .args(["images", "check"])
            .run()?;
        let listing = String::from_utf8_lossy(&output).into_owned();
        for image in images {
            let unpacked = listing.lines().any(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                words.first() == Some(&image.name.as_str())
                    && words
                        .get(2)
                        .is_some_and(|digest| *digest == image.digest.to_string())
                    && words.last() == Some(&"true")
            });
            if !unpacked {
                return Err(SeedError::NotUnpacked {
                    image: image.name.clone(),
                    listing,
                });
            }
        }
        Ok(())
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id()).unwrap_or(0);
        if pid > 0 {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let deadline = Instant::now() + START_DEADLINE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(POLL);
        }
        let _ = self.child.kill(); // does nothing to one that has ended
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.run);
    }
}

/// A containerd that has images and nothing else: no CRI, no other snapshotters, no devices.
fn config_of(store: &Path, work: &Path, run: &Path) -> String {
    let (store, work, run) = (store.display(), work.display(), run.display());
    format!(
        r#"version = 3
root = "{store}"
state = "{run}/state"
temp = "{work}/tmp"
disabled_plugins = [
  "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
  "io.containerd.internal.v1.opt", "io.containerd.internal.v1.restart",
  "io.containerd.internal.v1.tracing", "io.containerd.nri.v1.nri",
  "io.containerd.podsandbox.controller.v1.podsandbox", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.native",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
address = "{run}/containerd.sock"
[ttrpc]
address = "{run}/containerd.sock.ttrpc"
"#
    )
}
