//! Persistent disks as the trait sees them: who may have which, and when one is let go.

use std::time::Instant;

use windlass_common::id::{DiskName, MachineName};

use super::disk::{self, DISK_BYTES_MAX, DISK_BYTES_MIN, Disk, Released};
use super::files::make_dir;
use super::monitor::control::{Command, ask};
use super::record::Record;
use super::{Inner, machines::COMMAND_LIMIT};
use crate::provider::{AttachedDisk, DiskView, ProviderError};

impl From<Disk> for DiskView {
    fn from(disk: Disk) -> DiskView {
        DiskView {
            name: disk.name,
            bytes: disk.bytes,
            attached_to: disk.attached_to,
        }
    }
}

fn check_size(bytes: u64) -> Result<(), ProviderError> {
    if (DISK_BYTES_MIN..=DISK_BYTES_MAX).contains(&bytes) && bytes.is_multiple_of(4096) {
        return Ok(());
    }
    Err(ProviderError::Invalid {
        what: "disk size",
        value: bytes.to_string(),
        allowed: format!("{DISK_BYTES_MIN} to {DISK_BYTES_MAX} bytes, a multiple of 4096"),
    })
}

impl Inner {
    fn disk_alone<T>(&self, name: &DiskName, work: impl FnOnce() -> T) -> T {
        self.busy.alone(format!("disk/{name}"), work)
    }

    fn disk(&self, name: &DiskName) -> Result<Disk, ProviderError> {
        disk::load(&self.layout, name)?.ok_or_else(|| ProviderError::NotFound {
            kind: "disk",
            name: name.to_string(),
        })
    }

    /// See [`crate::provider::Provider::create_disk`].
    pub(super) fn create_disk(
        &self,
        name: &DiskName,
        bytes: u64,
    ) -> Result<DiskView, ProviderError> {
        check_size(bytes)?;
        self.disk_alone(name, || {
            make_dir(&self.layout.disks(), 0o700)?;
            match disk::load(&self.layout, name)? {
                Some(found) if found.bytes == bytes => Ok(found.into()),
                Some(found) => Err(ProviderError::Conflict {
                    kind: "disk",
                    name: name.to_string(),
                    found: format!("{} bytes", found.bytes),
                    wanted: format!("{bytes} bytes"),
                }),
                None => disk::create(&self.layout, name, bytes).map(DiskView::from),
            }
        })
    }

    /// See [`crate::provider::Provider::grow_disk`].
    pub(super) fn grow_disk(&self, name: &DiskName, bytes: u64) -> Result<DiskView, ProviderError> {
        check_size(bytes)?;
        self.disk_alone(name, || {
            let disk = self.disk(name)?;
            if bytes < disk.bytes {
                return Err(ProviderError::Invalid {
                    what: "disk size",
                    value: bytes.to_string(),
                    allowed: format!("{} bytes or more: disk {name} does not shrink", disk.bytes),
                });
            }
            disk::grow(&self.layout, disk, bytes).map(DiskView::from)
        })
    }

    /// See [`crate::provider::Provider::delete_disk`].
    pub(super) fn delete_disk(&self, name: &DiskName) -> Result<(), ProviderError> {
        self.disk_alone(name, || {
            if let Some(Disk {
                attached_to: Some(holder),
                ..
            }) = disk::load(&self.layout, name)?
            {
                return Err(ProviderError::DiskHeld {
                    disk: name.clone(),
                    holder,
                });
            }
            disk::release(&self.layout, name)?;
            disk::destroy(&self.layout, name)
        })
    }

    /// See [`crate::provider::Provider::attach_disk`].
    pub(super) fn attach_disk(
        &self,
        machine: &MachineName,
        name: &DiskName,
    ) -> Result<AttachedDisk, ProviderError> {
        self.alone(machine, || {
            let record = self.record(machine)?;
            self.disk_alone(name, || {
                let disk = self.disk(name)?;
                match &disk.attached_to {
                    Some(holder) if holder != machine => {
                        return Err(ProviderError::DiskHeld {
                            disk: name.clone(),
                            holder: holder.clone(),
                        });
                    }
                    Some(_) => {}
                    None => {
                        // A device left by a crash may still be mounted by a machine that is gone.
                        if disk::release(&self.layout, name)? == Released::Busy {
                            return Err(ProviderError::DiskBusy {
                                disk: name.clone(),
                                machine: machine.clone(),
                            });
                        }
                        let attached_to = Some(machine.clone());
                        disk::save(
                            &self.layout,
                            &Disk {
                                attached_to,
                                ..disk
                            },
                        )?;
                    }
                }
                self.show_disks(&record)?;
                Ok(AttachedDisk {
                    device: disk::device_path(name),
                })
            })
        })
    }

    /// See [`crate::provider::Provider::detach_disk`].
    pub(super) fn detach_disk(
        &self,
        machine: &MachineName,
        name: &DiskName,
    ) -> Result<(), ProviderError> {
        self.alone(machine, || {
            self.disk_alone(name, || {
                let Some(disk) = disk::load(&self.layout, name)? else {
                    return Ok(());
                };
                if disk.attached_to.as_ref() != Some(machine) {
                    return Ok(());
                }
                let busy = || {
                    let (disk, machine) = (name.clone(), machine.clone());
                    Err(ProviderError::DiskBusy { disk, machine })
                };
                let Some(claims) = disk::claim(&self.layout, name)? else {
                    return busy();
                };
                disk::save(
                    &self.layout,
                    &Disk {
                        attached_to: None,
                        ..disk
                    },
                )?;
                // The node goes while the device is still claimed: its number may come to mean another
                // disk as soon as it is free.
                if let Some(record) = Record::load(&self.layout.machine(machine))? {
                    self.show_disks(&record)?;
                }
                match disk::take_away(claims)? {
                    Released::Gone => Ok(()),
                    Released::Busy => busy(),
                }
            })
        })
    }

    /// Makes a running machine's device nodes match the disks it has. One that is off gets them when it
    /// starts.
    fn show_disks(&self, record: &Record) -> Result<(), ProviderError> {
        self.bring_up(record)?;
        ask(record, Command::Disks, Instant::now() + COMMAND_LIMIT).map(|_| ())
    }

    /// See [`crate::provider::Provider::disks`].
    pub(super) fn disks(&self) -> Result<Vec<DiskView>, ProviderError> {
        Ok(disk::all(&self.layout)?
            .into_iter()
            .map(DiskView::from)
            .collect())
    }
}
