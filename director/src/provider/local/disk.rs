//! Persistent disks: sparse files behind loop devices, shown to one machine each.
//!
//! # Invariants
//! * `attached_to` in `disk.json` is the only truth about who has a disk; it is written before the
//!   device is made and cleared after the device is gone. Two machines can never have one disk.
//! * A disk lets go of a machine only when no mount of it is left: its device is opened exclusively
//!   first, which the kernel refuses while it is mounted anywhere.
//!
//! # After a crash
//! A disk that is recorded as attached gets its device at the next start of the machine or the next
//! attach. A loop device found by its file is used again, never doubled.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::libc;
use nix::sys::stat::{Mode, SFlag, fstatat, makedev, mkdirat, mknodat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};
use windlass_common::id::{DiskName, MachineName};

use super::files::{What, list, make_dir, read_json, remove_file, remove_tree, write_json};
use super::layout::Layout;
use super::oci::BlockDevice;
use super::process::run;
use crate::provider::ProviderError;

/// Smallest disk: what ext4 needs for its own structures and some files.
pub(crate) const DISK_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// Largest disk: the largest file of an ext4 host file system, 16 TiB.
pub(crate) const DISK_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024 * 1024;
/// How long losetup may take, and how long a device may take to go.
const LOOP_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks at a device that is going: the kernel gives no event.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Where machines find their disks.
const NODES: &str = "dev/windlass";

/// `disk.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Disk {
    pub(crate) name: DiskName,
    pub(crate) bytes: u64,
    pub(crate) attached_to: Option<MachineName>,
}

/// A loop device that is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoopDevice {
    path: PathBuf,
    major: u64,
    minor: u64,
}

/// What came of taking a device away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Released {
    /// No device is left.
    Gone,
    /// It is mounted somewhere.
    Busy,
}

/// The path of a disk's device in a machine.
pub(crate) fn device_path(disk: &DiskName) -> PathBuf {
    Path::new("/").join(NODES).join(disk.as_str())
}

fn record_path(layout: &Layout, disk: &DiskName) -> PathBuf {
    layout.disk(disk).join("disk.json")
}

/// The disk's image file.
pub(crate) fn image_path(layout: &Layout, disk: &DiskName) -> PathBuf {
    layout.disk(disk).join("image")
}

/// Reads a disk's record; `None` if there is no such disk (or its creation was cut off).
pub(crate) fn load(layout: &Layout, disk: &DiskName) -> Result<Option<Disk>, ProviderError> {
    read_json(&record_path(layout, disk))
}

/// Writes a disk's record.
pub(crate) fn save(layout: &Layout, disk: &Disk) -> Result<(), ProviderError> {
    write_json(&record_path(layout, &disk.name), disk)
}

/// Makes the image, then the record: a disk without a record has no content anybody saw.
pub(crate) fn create(layout: &Layout, name: &DiskName, bytes: u64) -> Result<Disk, ProviderError> {
    make_dir(&layout.disk(name), 0o700)?;
    let image = image_path(layout, name);
    remove_file(&image)?;
    let make = || -> io::Result<()> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&image)?;
        file.set_len(bytes)?;
        file.sync_all()
    };
    make().what(|| {
        format!(
            "cannot make disk image {} of {bytes} bytes",
            image.display()
        )
    })?;
    let disk = Disk {
        name: name.clone(),
        bytes,
        attached_to: None,
    };
    save(layout, &disk)?;
    Ok(disk)
}

/// Makes the image larger and has its devices see it, then the record: what was cut off in between is done again by
/// the next call, and an image that is larger than its record is harmless.
pub(crate) fn grow(layout: &Layout, disk: Disk, bytes: u64) -> Result<Disk, ProviderError> {
    let image = image_path(layout, &disk.name);
    let grow = || -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(&image)?;
        // Never less than there is, whatever the record says.
        if file.metadata()?.len() < bytes {
            file.set_len(bytes)?;
        }
        file.sync_all()
    };
    grow().what(|| {
        format!(
            "cannot make disk image {} of {bytes} bytes larger",
            image.display()
        )
    })?;
    let deadline = Instant::now() + LOOP_LIMIT;
    for device in loops(|file| file == image)? {
        let mut command = Command::new("losetup");
        command.arg("--set-capacity").arg(&device.path);
        run(
            &mut command,
            &format!("growing disk {}", disk.name),
            deadline,
        )?;
    }
    let grown = Disk { bytes, ..disk };
    save(layout, &grown)?;
    Ok(grown)
}

/// Removes record and image.
pub(crate) fn destroy(layout: &Layout, name: &DiskName) -> Result<(), ProviderError> {
    remove_file(&record_path(layout, name))?;
    remove_tree(&layout.disk(name))
}

/// All disks, in the order of their names.
pub(crate) fn all(layout: &Layout) -> Result<Vec<Disk>, ProviderError> {
    let mut disks = Vec::new();
    for name in list(&layout.disks())? {
        if let Ok(name) = DiskName::new(name)
            && let Some(disk) = load(layout, &name)?
        {
            disks.push(disk);
        }
    }
    Ok(disks)
}

/// The disks of one machine.
pub(crate) fn of_machine(
    layout: &Layout,
    machine: &MachineName,
) -> Result<Vec<Disk>, ProviderError> {
    let mut disks = all(layout)?;
    disks.retain(|d| d.attached_to.as_ref() == Some(machine));
    Ok(disks)
}

/// The loop devices whose files lie below `dir`, deleted files included.
pub(crate) fn loops_below(dir: &Path) -> Result<Vec<LoopDevice>, ProviderError> {
    loops(|file| file.starts_with(dir))
}

fn loops(wanted: impl Fn(&Path) -> bool) -> Result<Vec<LoopDevice>, ProviderError> {
    let mut found = Vec::new();
    for name in list("/sys/block".as_ref())?
        .into_iter()
        .filter(|n| n.starts_with("loop"))
    {
        let sys = Path::new("/sys/block").join(&name);
        // Absent while the device is free.
        let Ok(file) = fs::read_to_string(sys.join("loop/backing_file")) else {
            continue;
        };
        let file = file.trim_end_matches('\n');
        let file = file.strip_suffix(" (deleted)").unwrap_or(file);
        if !wanted(Path::new(file)) {
            continue;
        }
        let numbers = fs::read_to_string(sys.join("dev")).unwrap_or_default();
        let parts = numbers
            .trim()
            .split_once(':')
            .map(|(a, b)| (a.parse(), b.parse()));
        if let Some((Ok(major), Ok(minor))) = parts {
            found.push(LoopDevice {
                path: Path::new("/dev").join(name),
                major,
                minor,
            });
        }
    }
    Ok(found)
}

/// Makes sure that a disk has a loop device, and says how the machine gets it.
pub(crate) fn ensure_device(
    layout: &Layout,
    disk: &DiskName,
) -> Result<BlockDevice, ProviderError> {
    let image = image_path(layout, disk);
    let find = || loops(|file| file == image).map(|found| found.into_iter().next());
    let device = match find()? {
        Some(device) => device,
        None => {
            let mut command = Command::new("losetup");
            command
                .args(["--find", "--show", "--nooverlap"])
                .arg(&image);
            run(
                &mut command,
                &format!("giving disk {disk} a device"),
                Instant::now() + LOOP_LIMIT,
            )?;
            find()?.ok_or_else(|| {
                ProviderError::Bug(format!("losetup gave {} no device", image.display()))
            })?
        }
    };
    let path = device_path(disk).display().to_string();
    Ok(BlockDevice {
        path,
        major: device.major,
        minor: device.minor,
    })
}

/// A device that nobody has mounted, and that nobody can mount until this is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    device: LoopDevice,
    exclusive: File,
}

/// Claims a disk's devices; `None` if one is mounted.
pub(crate) fn claim(layout: &Layout, disk: &DiskName) -> Result<Option<Vec<Claim>>, ProviderError> {
    let image = image_path(layout, disk);
    let mut claims = Vec::new();
    for device in loops(|file| file == image)? {
        match claim_device(device)? {
            Claimed::Ours(claim) => claims.push(claim),
            Claimed::Gone => {}
            Claimed::Busy => return Ok(None),
        }
    }
    Ok(Some(claims))
}

enum Claimed {
    Ours(Claim),
    Gone,
    Busy,
}

fn claim_device(device: LoopDevice) -> Result<Claimed, ProviderError> {
    match OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(&device.path)
    {
        Ok(exclusive) => Ok(Claimed::Ours(Claim { device, exclusive })),
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Ok(Claimed::Busy),
        // No such device any more.
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(Claimed::Gone),
        Err(source) => {
            let what = format!("cannot open {}", device.path.display());
            Err(ProviderError::Host { what, source })
        }
    }
}

/// Takes claimed devices away and waits until they are gone.
pub(crate) fn take_away(claims: Vec<Claim>) -> Result<Released, ProviderError> {
    let deadline = Instant::now() + LOOP_LIMIT;
    for Claim { device, exclusive } in claims {
        let mut command = Command::new("losetup");
        command.arg("--detach").arg(&device.path);
        run(&mut command, "taking a device away", deadline)?;
        drop(exclusive); // the kernel lets go of the file with the last opener
        let number = device.path.file_name().unwrap_or_default().to_owned();
        let backing = Path::new("/sys/block")
            .join(number)
            .join("loop/backing_file");
        while backing.exists() {
            if Instant::now() >= deadline {
                return Ok(Released::Busy);
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }
    Ok(Released::Gone)
}

/// [`claim`], then [`take_away`].
pub(crate) fn release(layout: &Layout, disk: &DiskName) -> Result<Released, ProviderError> {
    match claim(layout, disk)? {
        Some(claims) => take_away(claims),
        None => Ok(Released::Busy),
    }
}

/// Takes a loop device away unless it is mounted.
pub(crate) fn release_device(device: LoopDevice) -> Result<Released, ProviderError> {
    match claim_device(device)? {
        Claimed::Ours(claim) => take_away(vec![claim]),
        Claimed::Gone => Ok(Released::Gone),
        Claimed::Busy => Ok(Released::Busy),
    }
}

/// Makes the device nodes in a running machine equal to `devices`: adds what is missing, removes the
/// rest. Paths are resolved inside the machine, without following any link it may have laid.
pub(crate) fn place_nodes(init: i32, devices: &[BlockDevice]) -> Result<(), ProviderError> {
    let place = || -> Result<(), Errno> {
        let root = open(
            format!("/proc/{init}/root").as_str(),
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let Some(nodes) = nodes_dir(&root, !devices.is_empty())? else {
            return Ok(());
        };
        let wanted = |name: &str| {
            devices
                .iter()
                .find(|d| d.path.rsplit('/').next() == Some(name))
        };
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&nodes));
        for name in list(Path::new(&path)).map_err(|_| Errno::EIO)? {
            let found = fstatat(&nodes, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            let right = wanted(&name).is_some_and(|d| {
                SFlag::from_bits_truncate(found.st_mode & libc::S_IFMT) == SFlag::S_IFBLK
                    && found.st_rdev == makedev(d.major, d.minor)
            });
            if !right {
                unlinkat(&nodes, name.as_str(), UnlinkatFlags::NoRemoveDir)?;
            }
        }
        for device in devices {
            let name = device.path.rsplit('/').next().unwrap_or_default();
            let number = makedev(device.major, device.minor);
            let mode = Mode::S_IRUSR | Mode::S_IWUSR;
            match mknodat(&nodes, name, SFlag::S_IFBLK, mode, number) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    };
    place().what(|| format!("cannot place device nodes in /{NODES} of the machine"))
}

/// Opens the machine's directory of disks, making it if `make`; `None` if it is not there.
fn nodes_dir(root: &OwnedFd, make: bool) -> Result<Option<OwnedFd>, Errno> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS);
    if make {
        let dev = openat2(root, "dev", how)?;
        match mkdirat(&dev, "windlass", Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(e) => return Err(e),
        }
    }
    match openat2(root, NODES, how) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::ENOENT) if !make => Ok(None),
        Err(e) => Err(e),
    }
}
