//! Paths inside a root that is not ours yet: no symbolic link in an image leads out of it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// As the kernel's own limit.
const LINKS_MAX: u32 = 40;

/// What is made when nothing is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// An error.
    Refuse,
    /// A directory, with its parents.
    Directory,
    /// An empty file, with its parents.
    File,
}

/// Opens (`O_PATH`) what `path` means inside `root`, and makes it first when it is missing.
pub(super) fn open(root: BorrowedFd<'_>, path: &Path, missing: Missing) -> io::Result<OwnedFd> {
    match open_existing(root, path, OFlags::empty()) {
        Err(Errno::NOENT) if missing != Missing::Refuse => {
            let made = make(root, path, missing)?;
            Ok(open_existing(root, &made, OFlags::empty())?)
        }
        opened => Ok(opened?),
    }
}

fn open_existing(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::PATH | OFlags::CLOEXEC | flags;
    rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Walks `path`, following links within the root even when they dangle, and makes what is missing. Returns
/// the path without links. What happens between two steps cannot lead out: each step is resolved in the root.
fn make(root: BorrowedFd<'_>, path: &Path, missing: Missing) -> io::Result<PathBuf> {
    let mut pending: VecDeque<OsString> = VecDeque::new();
    queue(&mut pending, path);
    let mut at = PathBuf::new();
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        match open_existing(root, &next, OFlags::NOFOLLOW) {
            Ok(found) => {
                if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) == FileType::Symlink {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Errno::LOOP.into());
                    }
                    let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
                    let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                    if target.is_absolute() {
                        at = PathBuf::new();
                    }
                    queue(&mut pending, &target);
                } else {
                    at = next;
                }
            }
            Err(Errno::NOENT) => {
                let parent = open_existing(root, &at, OFlags::DIRECTORY)?;
                make_one(parent.as_fd(), Path::new(&name), pending.is_empty() && missing == Missing::File)?;
                at = next;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(at)
}

/// Puts a path's components before what is still to be walked.
fn queue(pending: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => pending.push_front(name.to_owned()),
            Component::ParentDir => pending.push_front("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

fn make_one(parent: BorrowedFd<'_>, name: &Path, file: bool) -> io::Result<()> {
    let made = if file {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::WRONLY;
        rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o755)).map(drop)
    } else {
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))
    };
    match made {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().expect("tempdir");
        let inside = dir.path().join("root");
        std::fs::create_dir(&inside).expect("mkdir");
        let fd = rustix::fs::open(&inside, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("open");
        (dir, fd)
    }

    #[test]
    fn missing_directories_and_files_are_made() {
        let (dir, root) = root();
        open(root.as_fd(), Path::new("/a/b/c"), Missing::Directory).expect("directory");
        open(root.as_fd(), Path::new("a/f/file"), Missing::File).expect("file");
        assert!(dir.path().join("root/a/b/c").is_dir());
        assert!(dir.path().join("root/a/f/file").is_file());
        let error = open(root.as_fd(), Path::new("none"), Missing::Refuse).expect_err("missing");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_dangling_link_is_followed_inside_the_root() {
        let (dir, root) = root();
        symlink("../../../run/resolv.conf", dir.path().join("root/link")).expect("symlink");
        symlink("/abs/olute", dir.path().join("root/absolute")).expect("symlink");
        open(root.as_fd(), Path::new("link"), Missing::File).expect("file");
        open(root.as_fd(), Path::new("absolute/x"), Missing::Directory).expect("directory");
        assert!(dir.path().join("root/run/resolv.conf").is_file());
        assert!(dir.path().join("root/abs/olute/x").is_dir());
        assert!(!dir.path().join("run").exists());
    }

    #[test]
    fn links_that_go_round_are_an_error() {
        let (dir, root) = root();
        symlink("loop", dir.path().join("root/loop")).expect("symlink");
        let error = open(root.as_fd(), Path::new("loop/x"), Missing::Directory).expect_err("loop");
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }
}
