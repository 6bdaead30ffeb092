//! Paths inside a root that is not ours yet: no symbolic link in an image leads out of it, also when
//! somebody swaps a directory for a link while we look.
//!
//! Every look-up is one openat2(2) below the root's descriptor, and what is made is made in an open
//! directory by its last name alone, which follows nothing.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// As the kernel's own limit.
const LINKS_MAX: u32 = 40;
/// How often somebody else may change the tree under a look-up before we give up.
const RACES_MAX: u32 = 128;

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

/// What a path means inside a root.
#[derive(Debug)]
pub(super) struct Place {
    /// Open as `O_PATH`.
    pub fd: OwnedFd,
    /// Where it is, without links, relative to the root.
    pub path: PathBuf,
    /// Nothing was there before.
    pub made: bool,
}

/// Opens what `path` means inside `root`, and makes it first when it is missing.
pub(super) fn open(root: BorrowedFd<'_>, path: &Path, missing: Missing) -> io::Result<Place> {
    match open_plain(root, path, missing) {
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::LOOP) => {}
            Some(Errno::NOENT) if missing != Missing::Refuse => {}
            _ => return Err(error),
        },
        opened => return opened,
    }
    for _ in 0..RACES_MAX {
        let (path, made) = walk(root, path, missing)?;
        match look(root, &path, OFlags::empty()) {
            // It was moved away, or became a link, since we walked there.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => {}
            fd => return Ok(Place { fd: fd?, path, made }),
        }
    }
    Err(Errno::AGAIN.into())
}

/// The same for a path that may have no links in it: one is `ELOOP`. Makes the last name only.
pub(super) fn open_plain(root: BorrowedFd<'_>, path: &Path, missing: Missing) -> io::Result<Place> {
    let plain = normal(path).ok_or(Errno::LOOP)?;
    match look(root, &plain, OFlags::empty()) {
        Err(Errno::NOENT) if missing != Missing::Refuse => {}
        fd => return Ok(Place { fd: fd?, path: plain, made: false }),
    }
    let (parent, name) = (plain.parent().unwrap_or(Path::new("")), plain.file_name().ok_or(Errno::NOENT)?);
    let parent = look(root, parent, OFlags::DIRECTORY)?;
    let made = make_one(parent.as_fd(), name, missing == Missing::File)?;
    Ok(Place { fd: look(parent.as_fd(), Path::new(name), OFlags::empty())?, path: plain, made })
}

/// The path relative to the root, when it can be told without looking.
pub(super) fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => return None,
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Some(normal)
}

/// Opens a path without links; with `O_NOFOLLOW` a link at its end is opened itself.
fn look(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::PATH | OFlags::CLOEXEC | flags;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    for _ in 0..RACES_MAX {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            // openat2(2): a rename or mount elsewhere while `..` was looked up.
            Err(Errno::AGAIN) => {}
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

/// Walks `path`, following links within the root even when they dangle, and makes what is missing. Returns
/// the path without links, and whether its end was made.
fn walk(root: BorrowedFd<'_>, path: &Path, missing: Missing) -> io::Result<(PathBuf, bool)> {
    let mut pending: VecDeque<OsString> = VecDeque::new();
    queue(&mut pending, path);
    let mut at = PathBuf::new();
    let (mut links, mut races, mut made) = (0, 0, false);
    while let Some(name) = pending.pop_front() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(&name);
        match look(root, &next, OFlags::NOFOLLOW) {
            Ok(found) => {
                if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) != FileType::Symlink {
                    at = next;
                    continue;
                }
                links += 1;
                if links > LINKS_MAX || is_magic(root, &next, &found)? {
                    return Err(Errno::LOOP.into());
                }
                let target = rustix::fs::readlinkat(&found, "", Vec::new())?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    at = PathBuf::new();
                }
                queue(&mut pending, &target);
            }
            Err(Errno::NOENT) if missing != Missing::Refuse => {
                let parent = look(root, &at, OFlags::DIRECTORY)?;
                made = make_one(parent.as_fd(), &name, pending.is_empty() && missing == Missing::File)?;
                at = next;
            }
            // Only the way here can be a link, and we came by what was none: somebody swaps.
            Err(Errno::LOOP) if races < RACES_MAX => {
                races += 1;
                at = PathBuf::new();
                made = false;
                pending.clear();
                queue(&mut pending, path);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok((at, made))
}

/// A link of procfs to an open file, a root or a directory of a process, which may be anywhere.
fn is_magic(root: BorrowedFd<'_>, path: &Path, link: &OwnedFd) -> io::Result<bool> {
    if !super::is_procfs(link)? {
        return Ok(false);
    }
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let followed = rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve);
    Ok(matches!(followed, Err(Errno::LOOP)))
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

/// False when somebody else was faster.
fn make_one(parent: BorrowedFd<'_>, name: &OsStr, file: bool) -> io::Result<bool> {
    let made = if file {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::WRONLY;
        rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
    } else {
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))
    };
    match made {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
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
