//! `disk`: a persistent disk, formatted if it is blank and mounted now and at every boot.
//!
//! # Invariants
//! * Only a device on which `blkid` finds nothing at all is formatted: no file system, partition
//!   table, RAID or LVM member. One that holds something else than ext4 is refused.
//! * The mount is a systemd mount unit; units that need it say `RequiresMountsFor=` and neither start
//!   before it nor write beneath it when it is missing.
//!
//! # After a crash
//! `mkfs` writes the superblock last: a disk whose formatting was interrupted is blank and formatted
//! again. One that was formatted is never formatted again.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::time::Duration;

use nix::sys::stat::{major, minor};
use windlass_common::error::ErrorClass;
use windlass_common::step::{Disk, Payload};

use super::{Context, Failure, Run};
use crate::host::tree::{Attributes, Found};
use crate::host::{STATE_DIR, command};
use crate::units::{BootState, Job};

/// Between looks for a device that is not there yet; the step's deadline bounds them.
const DEVICE_LOOK: Duration = Duration::from_millis(50);

const UNIT_FILE: Attributes = Attributes {
    mode: 0o644,
    uid: 0,
    gid: 0,
};

/// Why a disk could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Not a block device.
    #[error("{device} is not a block device")]
    NotADevice {
        /// Which.
        device: String,
    },
    /// It holds something else.
    #[error(
        "{device} holds {holds}, not ext4; it is left as it is. Give the machine a blank disk, or wipe this one by hand if its data may go"
    )]
    Occupied {
        /// Which.
        device: String,
        /// What was found.
        holds: String,
    },
    /// Something else is mounted there.
    #[error("{mount_path} is a mount of device {other}, not of {device}; unmount it first")]
    OtherMount {
        /// Where.
        mount_path: String,
        /// What is mounted.
        other: String,
        /// What should be.
        device: String,
    },
    /// It is mounted elsewhere.
    #[error("{device} is mounted at {mounted_at} already; unmount it there first")]
    MountedElsewhere {
        /// Which.
        device: String,
        /// Where it is mounted.
        mounted_at: String,
    },
    /// Mounted, but not seen.
    #[error("{device} is not mounted at {mount_path} although systemd says so")]
    NotMounted {
        /// Which.
        device: String,
        /// Where.
        mount_path: String,
    },
    /// A program is missing or failed.
    #[error("{program} on {device} failed: {said}")]
    Program {
        /// Which program.
        program: &'static str,
        /// Which device.
        device: String,
        /// Its message.
        said: String,
    },
    /// A system call failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What.
        path: String,
        /// Cause.
        #[source]
        source: io::Error,
    },
}

impl DiskError {
    /// Who acts.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NotADevice { .. }
            | Self::Occupied { .. }
            | Self::OtherMount { .. }
            | Self::MountedElsewhere { .. } => ErrorClass::Operator,
            Self::NotMounted { .. } | Self::Program { .. } | Self::Io { .. } => ErrorClass::Retry,
        }
    }
}

/// What a device holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Holds {
    Nothing,
    Ext4,
    Other(String),
}

pub(super) async fn run(context: &Context, run: &Run, disk: &Disk) -> Result<Payload, Failure> {
    run.stage(format!("{} to appear", disk.device));
    let number = device_number(context, disk).await?;
    if mounted(context, disk, &number)? {
        write_unit(context, run, disk).await?;
        return Ok(Payload::None);
    }
    match holds(disk).await? {
        Holds::Ext4 => {}
        Holds::Nothing => format(run, disk).await?,
        Holds::Other(holds) => {
            return Err(DiskError::Occupied {
                device: disk.device.clone(),
                holds,
            }
            .into());
        }
    }
    make_mount_point(context, run, disk).await?;
    let unit = write_unit(context, run, disk).await?;
    run.stage(format!("{} to be mounted", disk.mount_path));
    context.units.queue(Job::Start, &unit).await?.done().await?;
    if !mounted(context, disk, &number)? {
        return Err(DiskError::NotMounted {
            device: disk.device.clone(),
            mount_path: disk.mount_path.clone(),
        }
        .into());
    }
    make_private(context, run, disk).await?;
    run.changed(format!("mounted {} at {}", disk.device, disk.mount_path));
    Ok(Payload::None)
}

/// Waits for the device and returns its number as `major:minor`.
async fn device_number(context: &Context, disk: &Disk) -> Result<String, DiskError> {
    let path = context.host.path(&disk.device);
    loop {
        match fs::metadata(&path) {
            Ok(meta) if meta.file_type().is_block_device() => {
                let number = meta.rdev();
                return Ok(format!("{}:{}", major(number), minor(number)));
            }
            Ok(_) => {
                return Err(DiskError::NotADevice {
                    device: disk.device.clone(),
                });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                tokio::time::sleep(DEVICE_LOOK).await;
            }
            Err(source) => {
                return Err(DiskError::Io {
                    action: "look at",
                    path: disk.device.clone(),
                    source,
                });
            }
        }
    }
}

/// Whether the device is mounted where it should be; an error if something else is.
fn mounted(context: &Context, disk: &Disk, number: &str) -> Result<bool, DiskError> {
    let path = "/proc/self/mountinfo";
    let table = fs::read_to_string(context.host.path(path)).map_err(|source| DiskError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    match mount_at(&table, &disk.mount_path) {
        None => match place_of(&table, number) {
            None => Ok(false),
            Some(mounted_at) => Err(DiskError::MountedElsewhere {
                device: disk.device.clone(),
                mounted_at: mounted_at.to_owned(),
            }),
        },
        Some(found) if found == number => Ok(true),
        Some(other) => Err(DiskError::OtherMount {
            mount_path: disk.mount_path.clone(),
            other: other.to_owned(),
            device: disk.device.clone(),
        }),
    }
}

/// Device number of the topmost mount at a path. Mount paths that are checked need no unescaping.
fn mount_at<'t>(mountinfo: &'t str, mount_path: &str) -> Option<&'t str> {
    let mut rows = mountinfo.lines().rev().filter_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let (number, _root, at) = (fields.next()?, fields.next()?, fields.next()?);
        (at == mount_path).then_some(number)
    });
    rows.next()
}

/// Where a device is mounted.
fn place_of<'t>(mountinfo: &'t str, number: &str) -> Option<&'t str> {
    mountinfo.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(2);
        let (found, _root, at) = (fields.next()?, fields.next()?, fields.next()?);
        (found == number).then_some(at)
    })
}

async fn holds(disk: &Disk) -> Result<Holds, DiskError> {
    let argv = ["blkid", "-p", "-o", "export", &disk.device];
    let output = command::run(&argv, None)
        .await
        .map_err(|error| program("blkid", disk, error.to_string()))?;
    match output.status.code() {
        Some(0) => Ok(parse_blkid(&output.stdout)),
        Some(2) if output.stderr.trim().is_empty() => Ok(Holds::Nothing),
        _ => Err(program("blkid", disk, output.stderr)),
    }
}

fn parse_blkid(export: &str) -> Holds {
    let value = |name: &str| {
        let line = export.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.strip_prefix('='))
    };
    match (value("TYPE"), value("PTTYPE")) {
        (Some("ext4"), _) => Holds::Ext4,
        (Some(other), _) => Holds::Other(other.to_owned()),
        (None, Some(table)) => Holds::Other(format!("a {table} partition table")),
        // Something was found that has no name: not blank.
        (None, None) => Holds::Other("something unknown".to_owned()),
    }
}

async fn format(run: &Run, disk: &Disk) -> Result<(), DiskError> {
    run.stage(format!("{} to be formatted", disk.device));
    // Without -F, mkfs itself refuses a device on which it finds something.
    let argv = ["mkfs.ext4", "-q", "-m", "0", &disk.device];
    let output = command::run(&argv, None)
        .await
        .map_err(|error| program("mkfs.ext4", disk, error.to_string()))?;
    if !output.status.success() {
        return Err(program("mkfs.ext4", disk, output.stderr));
    }
    run.changed(format!("formatted {} (ext4)", disk.device));
    match holds(disk).await? {
        Holds::Ext4 => Ok(()),
        Holds::Nothing | Holds::Other(_) => Err(program(
            "mkfs.ext4",
            disk,
            "no ext4 is found after it".to_owned(),
        )),
    }
}

fn program(program: &'static str, disk: &Disk, said: String) -> DiskError {
    DiskError::Program {
        program,
        device: disk.device.clone(),
        said: said.trim().chars().take(1000).collect(),
    }
}

async fn make_mount_point(context: &Context, run: &Run, disk: &Disk) -> Result<(), Failure> {
    let (host, path) = (context.host.clone(), disk.mount_path.clone());
    run.blocking(move || {
        if matches!(host.tree().find(&path)?, Found::Nothing) {
            host.tree().make_directory(&path)?;
            set_private(&host.path(&path), &path)?;
        }
        Ok(())
    })
    .await
}

/// A new file system belongs to root alone; one with data keeps the mode its owner gave it.
async fn make_private(context: &Context, run: &Run, disk: &Disk) -> Result<(), Failure> {
    let (root, path) = (context.host.path(&disk.mount_path), disk.mount_path.clone());
    run.blocking(move || {
        let entries = fs::read_dir(&root).map_err(|source| DiskError::Io {
            action: "list",
            path: path.clone(),
            source,
        })?;
        if entries
            .flatten()
            .all(|entry| entry.file_name() == "lost+found")
        {
            set_private(&root, &path)?;
        }
        Ok(())
    })
    .await
}

fn set_private(at: &std::path::Path, path: &str) -> Result<(), DiskError> {
    fs::set_permissions(at, fs::Permissions::from_mode(0o700)).map_err(|source| DiskError::Io {
        action: "set the mode of",
        path: path.to_owned(),
        source,
    })
}

/// Writes and enables the mount unit if it is not as desired; returns its name.
async fn write_unit(context: &Context, run: &Run, disk: &Disk) -> Result<String, Failure> {
    let unit = unit_name(&disk.mount_path);
    let (host, path) = (context.host.clone(), format!("/etc/systemd/system/{unit}"));
    let link = host.is_container().then(|| link_path(&disk.mount_path));
    let content = unit_file(link.as_deref().unwrap_or(&disk.device), &disk.mount_path);
    let device = disk.device.clone();
    let changed = {
        let path = path.clone();
        run.blocking(move || {
            if let Some(link) = link {
                host.tree().link(&link, &device)?;
            }
            let old = match host.tree().find(&path)? {
                Found::File { file, .. } => io::read_to_string(file).unwrap_or_default(),
                Found::Nothing | Found::Link(_) | Found::Directory | Found::Other => String::new(),
            };
            if old == content {
                return Ok(false);
            }
            host.tree().write(&path, UNIT_FILE, content.as_bytes())?;
            Ok(true)
        })
        .await?
    };
    if changed {
        run.changed(format!("+ {path}"));
        context.units.reload().await?;
    }
    if context.units.boot_state(&unit).await? != BootState::Enabled {
        context.units.set_boot_state(&unit, true).await?;
        run.changed(format!("{unit}: enabled at boot"));
    }
    Ok(unit)
}

/// Name of a path's mount unit, as `systemd-escape --path` makes it.
fn unit_name(mount_path: &str) -> String {
    use std::fmt::Write;
    let mut name = String::new();
    for (i, byte) in mount_path.trim_matches('/').bytes().enumerate() {
        match byte {
            b'/' => name.push('-'),
            b'.' if i == 0 => name.push_str("\\x2e"),
            b'_' | b'.' | b':' => name.push(char::from(byte)),
            b if b.is_ascii_alphanumeric() => name.push(char::from(b)),
            b => {
                let _ = write!(name, "\\x{b:02x}");
            }
        }
    }
    name + ".mount"
}

/// In a system container no udev announces devices, and a mount unit that names a path beneath `/dev`
/// would wait for the device at each boot until it times out. One that names a link elsewhere does not
/// wait; it need not, since the provider makes the device before the machine boots.
fn link_path(mount_path: &str) -> String {
    let name = mount_path.trim_matches('/').replace('/', "-");
    format!("{STATE_DIR}/disks/{name}")
}

fn unit_file(device: &str, mount_path: &str) -> String {
    format!(
        "[Unit]\n\
         Description=Persistent disk {mount_path}\n\
         \n\
         [Mount]\n\
         What={device}\n\
         Where={mount_path}\n\
         Type=ext4\n\
         Options=noatime\n\
         \n\
         [Install]\n\
         WantedBy=local-fs.target\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_names_are_escaped_as_systemd_does() {
        assert_eq!(unit_name("/var/lib/etcd"), "var-lib-etcd.mount");
        assert_eq!(unit_name("/mnt/a-b.c_d"), "mnt-a\\x2db.c_d.mount");
        assert_eq!(unit_name("/.hidden"), "\\x2ehidden.mount");
    }

    #[test]
    fn only_a_blank_device_is_blank() {
        #[rustfmt::skip] // one case per line, so that a missing one shows
        let cases = [
            ("DEVNAME=/dev/vdb\nUUID=1\nBLOCK_SIZE=4096\nTYPE=ext4\nUSAGE=filesystem\n", Holds::Ext4),
            ("DEVNAME=/dev/vdb\nTYPE=xfs\n", Holds::Other("xfs".to_owned())),
            ("DEVNAME=/dev/vdb\nPTUUID=1\nPTTYPE=gpt\n", Holds::Other("a gpt partition table".to_owned())),
            ("DEVNAME=/dev/vdb\nAMBIVALENT=1\n", Holds::Other("something unknown".to_owned())),
        ];
        for (export, want) in cases {
            assert_eq!(parse_blkid(export), want, "{export}");
        }
    }

    #[test]
    fn the_topmost_mount_counts() {
        let table = "22 1 0:21 / / rw - overlay overlay rw\n\
                     30 22 7:3 / /var/lib/etcd rw,noatime shared:1 - ext4 /dev/loop3 rw\n\
                     31 22 7:4 / /var/lib/etcd rw - ext4 /dev/loop4 rw\n";
        assert_eq!(mount_at(table, "/var/lib/etcd"), Some("7:4"));
        assert_eq!(mount_at(table, "/"), Some("0:21"));
        assert_eq!(mount_at(table, "/var/lib"), None);
        assert_eq!(place_of(table, "7:3"), Some("/var/lib/etcd"));
        assert_eq!(place_of(table, "7:5"), None);
    }
}
