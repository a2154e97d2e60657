//! Settings brought to a machine that runs, in the place of those that it was born with.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use windlass_common::id::{Incarnation, MachineName};
use windlass_common::settings::SETTINGS_PATH;

use super::Inner;
use super::files::What;
use super::machines::check_settings;
use crate::provider::ProviderError;

/// Where they are written before they take their place.
const NEW: &str = "settings.json.new";

impl Inner {
    /// See [`crate::provider::Provider::place_settings`].
    pub(super) fn place_settings(
        &self,
        name: &MachineName,
        incarnation: Incarnation,
        settings: &[u8],
    ) -> Result<(), ProviderError> {
        check_settings(settings)?;
        self.alone(name, || {
            let record = self.record(name)?;
            let conflict = |found: String, wanted: String| ProviderError::Conflict {
                kind: "machine",
                name: name.to_string(),
                found,
                wanted,
            };
            if record.incarnation != incarnation {
                let found = format!("incarnation {}", record.incarnation);
                return Err(conflict(found, format!("incarnation {incarnation}")));
            }
            // The second keeps the number from being given to another process meanwhile.
            let Some((init, _alive)) = record.init() else {
                return Err(conflict("off".to_owned(), "one that runs".to_owned()));
            };
            place(Path::new(&format!("/proc/{init}/root")), settings)
                .what(|| format!("cannot write {SETTINGS_PATH} of {name}"))
        })
    }
}

/// Replaces the settings below a root, whole or not at all. Paths are resolved inside it, without
/// following any link that the machine may have laid.
fn place(root: &Path, settings: &[u8]) -> io::Result<()> {
    let path = Path::new(SETTINGS_PATH.trim_start_matches('/'));
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::EINVAL.into());
    };
    let directory = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(root, OFlag::O_PATH | directory, Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | directory)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let dir = openat2(&root, parent, how)?;
    // What an attempt that was cut off has left, or what the machine has put in the way.
    match unlinkat(&dir, NEW, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = openat(&dir, NEW, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let mut file = File::from(file);
    file.write_all(settings)?;
    file.sync_all()?;
    renameat(&dir, NEW, &dir, name)?;
    File::from(dir).sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn settings_are_replaced_whole_and_no_link_leads_out() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        fs::create_dir_all(etc.join("windlass")).unwrap();
        let file = etc.join("windlass/settings.json");
        fs::write(&file, "the first, which is longer").unwrap();
        // Left by an attempt that was cut off.
        fs::write(etc.join("windlass").join(NEW), "half").unwrap();
        place(root.path(), b"second").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"second");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        // A file in the place is replaced, not followed.
        let victim = outside.path().join("victim");
        fs::write(&victim, "mine").unwrap();
        fs::remove_file(&file).unwrap();
        symlink(&victim, &file).unwrap();
        symlink(&victim, etc.join("windlass").join(NEW)).unwrap();
        place(root.path(), b"third").unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
        assert_eq!(fs::read(&file).unwrap(), b"third");
        // Neither is the directory.
        fs::remove_dir_all(etc.join("windlass")).unwrap();
        symlink(outside.path(), etc.join("windlass")).unwrap();
        place(root.path(), b"fourth").unwrap_err();
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }
}
