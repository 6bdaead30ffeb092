//! Durable files: a write is whole or not there, and survives power loss once it returned.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Replaces `path` with `bytes`, mode 0600: temporary file, fsync, rename, fsync of the directory.
///
/// # Errors
/// The failing call's, with the path in its text.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomic_mode(path, bytes, 0o600)
}

/// [`write_atomic`] with a mode of the caller's.
///
/// # Errors
/// The failing call's, with the path in its text.
pub fn write_atomic_mode(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| io::Error::other("no file name")).map_err(named)?;
    let temporary = dir.join(format!(".{}.{}.tmp", name.to_string_lossy(), std::process::id()));
    let write = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_dir(dir)
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&temporary);
        named(error)
    })
}

/// Makes a directory's entries durable.
///
/// # Errors
/// The failing call's.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// [`write_atomic`] of a value as JSON.
///
/// # Errors
/// The failing call's, with the path in its text.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    write_atomic(path, &bytes)
}

/// Reads a JSON file; `None` when there is none.
///
/// # Errors
/// With the path, and the line and column of what cannot be parsed.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {error}", path.display())))
}

/// Removes a file or a whole directory; one that is not there is fine.
///
/// # Errors
/// The failing call's, with the path in its text.
pub fn remove_all(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// A directory held by this process alone; released when dropped or when the process ends.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
    /// The lock file.
    pub path: PathBuf,
}

impl DirLock {
    /// Takes the lock, or says who else may hold it.
    ///
    /// # Errors
    /// `WouldBlock` when another process holds it; else the failing call's.
    pub fn acquire(dir: &Path) -> io::Result<DirLock> {
        let path = dir.join("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            let error = io::Error::from(error);
            io::Error::new(error.kind(), format!("{} is in use by another daemon: {error}", dir.display()))
        })?;
        Ok(DirLock { _file: file, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_replaces_the_whole_file_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("state.json");
        write_json(&path, &vec![1, 2, 3]).expect("write");
        write_json(&path, &vec![4]).expect("write");
        assert_eq!(read_json::<Vec<i32>>(&path).expect("read"), Some(vec![4]));
        assert_eq!(fs::read_dir(dir.path()).expect("dir").count(), 1);
    }

    #[test]
    fn a_missing_file_is_none_and_a_broken_one_names_itself() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("x.json");
        assert_eq!(read_json::<u8>(&path).expect("read"), None);
        fs::write(&path, "{").expect("write");
        assert!(read_json::<u8>(&path).expect_err("broken").to_string().contains("x.json"));
    }

    #[test]
    fn a_directory_has_one_owner() {
        let dir = tempfile::tempdir().expect("tempdir");
        let held = DirLock::acquire(dir.path()).expect("first");
        assert!(DirLock::acquire(dir.path()).is_err());
        drop(held);
        DirLock::acquire(dir.path()).expect("free again");
    }
}
