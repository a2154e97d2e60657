//! Starting a machine, and removing what a start leaves on the host. Used by monitors, and by the
//! provider where no monitor is left to do it.
//!
//! [`boot`] begins by removing what an earlier start left, so it may follow a crash anywhere. Its mounts
//! live in the mount namespace of the monitor that called it and go with that.

use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::cgroup::Hierarchies;
use super::disk;
use super::files::{What, make_dir, remove_file, remove_tree, write_quick};
use super::monitor::watchdog;
use super::network;
use super::oci;
use super::process::tail;
use super::record::{Record, boots};
use super::sys::PidFd;
use crate::provider::ProviderError;

/// How long runc may take to start an init process. It needs about 0.1 s; a host under full load has
/// been seen to need seconds.
const RUNC_LIMIT: Duration = Duration::from_secs(30);
/// How long the processes of a machine may take to end after SIGKILL. Only one that waits for a disk
/// that does not answer takes longer than milliseconds.
pub(crate) const KILL_LIMIT: Duration = Duration::from_secs(15);

/// Starts the machine; returns its init process.
///
/// The caller is in a mount namespace of its own.
pub(crate) fn boot(record: &Record) -> Result<(i32, PidFd), ProviderError> {
    let dir = record.dir();
    clean(record)?;
    mount_root(record)?;
    let netns = network::machine_namespace(&record.layout, record.address)?;
    let mut devices = Vec::new();
    for disk in disk::of_machine(&record.layout, &record.name)? {
        devices.push(disk::ensure_device(&record.layout, &disk.name)?);
    }
    watchdog::make(&dir)?;
    write_config(record, &netns, &devices)?;
    let boots = boots(&dir) + 1;
    write_quick(&dir.boots(), format!("{boots}\n").as_bytes(), 0o600)?;
    run_container(record)?;
    record.init().ok_or_else(|| ProviderError::Tool {
        tool: record.runc.display().to_string(),
        doing: format!("starting machine {}", record.name),
        output: format!(
            "its init process ended at once; see {}",
            dir.log("console.log").display()
        ),
    })
}

/// Ends every process of the machine and removes what its last start made on the host, disks excepted.
pub(crate) fn clean(record: &Record) -> Result<(), ProviderError> {
    let deadline = Instant::now() + KILL_LIMIT;
    Hierarchies::detect()?.destroy(&record.cgroup(), deadline)?;
    network::delete_link(&record.layout.port(record.address))?;
    remove_tree(
        &record
            .layout
            .runc_root()
            .join(record.layout.container(&record.name)),
    )?;
    remove_file(&record.dir().init_pid())
}

fn mount_root(record: &Record) -> Result<(), ProviderError> {
    let (dir, root) = (record.dir(), record.dir().root());
    // That of the last start, if this monitor made it. Not a mount is fine.
    let _ = umount2(&root, MntFlags::MNT_DETACH);
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        escape(record.stemcell.join("rootfs")),
        escape(dir.upper()),
        escape(dir.work())
    );
    mount(
        Some("overlay"),
        &root,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .what(|| {
        format!(
            "cannot mount the root of machine {} ({options})",
            record.name
        )
    })
}

/// Escapes what separates options and layers in an overlay's mount options.
fn escape(path: PathBuf) -> String {
    path.display()
        .to_string()
        .replace('\\', "\\\\")
        .replace(',', "\\,")
        .replace(':', "\\:")
}

fn write_config(
    record: &Record,
    netns: &OwnedFd,
    devices: &[oci::BlockDevice],
) -> Result<(), ProviderError> {
    // runc is our child and joins the namespace through our descriptor; it has no name of its own. The
    // caller keeps it open until runc is done.
    let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd());
    let config = oci::config(record, path.as_ref(), devices)?;
    let bytes = serde_json::to_vec(&config).map_err(|e| {
        ProviderError::Bug(format!("the OCI configuration does not serialise: {e}"))
    })?;
    let path = record.dir().config();
    // Read once, now, by runc: no need to survive a power cut.
    fs::write(&path, bytes).what(|| format!("cannot write {}", path.display()))
}

fn run_container(record: &Record) -> Result<(), ProviderError> {
    let dir = record.dir();
    let log = |name: &str| -> Result<File, ProviderError> {
        let path = dir.log(name);
        OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .open(&path)
            .what(|| format!("cannot write {}", path.display()))
    };
    make_dir(&record.layout.runc_root(), 0o700)?;
    log("runc.log")?;
    let console = log("console.log")?;
    let errors = console
        .try_clone()
        .what(|| "cannot copy a descriptor".to_owned())?;
    let mut child = Command::new(&record.runc)
        .arg("--root")
        .arg(record.layout.runc_root())
        .arg("--log")
        .arg(dir.log("runc.log"))
        .args(["run", "--detach", "--bundle"])
        .arg(dir.path())
        .arg("--pid-file")
        .arg(dir.init_pid())
        .arg(record.layout.container(&record.name))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(console)
        .stderr(errors)
        .spawn()
        .what(|| format!("cannot run {}; install runc", record.runc.display()))?;
    let waiting = || "cannot wait for runc".to_owned();
    let pidfd = PidFd::open(child.id() as i32).what(waiting)?;
    if !pidfd.wait(Instant::now() + RUNC_LIMIT).what(waiting)? {
        let _ = child.kill(); // fails only if it has ended by now
        child.wait().what(waiting)?;
        return Err(ProviderError::Deadline {
            what: format!("starting machine {} with runc", record.name),
            limit_ms: RUNC_LIMIT.as_millis() as u64,
        });
    }
    if child.wait().what(waiting)?.success() {
        return Ok(());
    }
    let said = fs::read_to_string(dir.log("runc.log")).unwrap_or_default();
    let console = fs::read_to_string(dir.log("console.log")).unwrap_or_default();
    Err(ProviderError::Tool {
        tool: record.runc.display().to_string(),
        doing: format!("starting machine {}", record.name),
        output: tail(&format!("{said}\n{console}")),
    })
}
