//! Paths as `docker cp` means them: what a trailing slash or dot asks for, which name an archive begins with, and
//! where links lead inside a container.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::view::open_in;
use crate::merge::clean_path;

/// As Go's `FollowSymlinkInScope`.
const LINKS_MAX: usize = 255;

/// A path that a client named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// Absolute and clean.
    pub path: String,
    /// A trailing slash or dot: a link at its end is followed, and it must be a directory.
    pub is_directory: bool,
    /// What an archive of it begins with: its last part, `.` or `/`.
    pub base: String,
}

impl Named {
    pub fn parse(text: &str) -> Named {
        let path = clean_path(text);
        let trimmed = text.trim_end_matches('/');
        let has_dot = trimmed == "." || trimmed.ends_with("/.");
        let last = path.rsplit('/').next().unwrap_or_default();
        let base = match (has_dot, last) {
            (true, _) => ".",
            (false, "") => "/",
            (false, last) => last,
        };
        Named { is_directory: has_dot || text.ends_with('/') || path == "/", base: base.to_owned(), path }
    }

    /// As it is shown in errors: with what was at its end.
    pub fn shown(&self) -> String {
        match self.base.as_str() {
            "." => format!("{}/.", self.path.trim_end_matches('/')),
            _ if self.is_directory && self.path != "/" => format!("{}/", self.path),
            _ => self.path.clone(),
        }
    }

    /// The directory that it is in, links followed, the name in that, and what it is.
    pub fn look_up(&self, root: &OwnedFd) -> Result<(OwnedFd, OsString, Stat), Errno> {
        let relative = Path::new(self.path.trim_start_matches('/'));
        let (dir, name) = if self.is_directory {
            (relative, OsStr::new("."))
        } else {
            (relative.parent().unwrap_or(Path::new("")), relative.file_name().unwrap_or(OsStr::new(".")))
        };
        let found = open_in(root, if dir.as_os_str().is_empty() { Path::new(".") } else { dir })?;
        // A file with a slash after it is none.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&found, ".", flags, Mode::empty())?;
        let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((dir, name.to_owned(), stat))
    }
}

/// Where a path leads when every link in it is followed, as far as there is something.
pub(super) fn follow(root: &OwnedFd, path: &str) -> io::Result<PathBuf> {
    let mut done = PathBuf::from("/");
    let mut rest: VecDeque<OsString> = parts(OsStr::new(path));
    let mut links = 0;
    while let Some(part) = rest.pop_front() {
        if part == ".." {
            done.pop();
            continue;
        }
        done.push(&part);
        let Some(target) = link_at(root, &done)? else { continue };
        links += 1;
        if links > LINKS_MAX {
            return Err(Errno::LOOP.into());
        }
        done.pop();
        if target.as_bytes().starts_with(b"/") {
            done = PathBuf::from("/");
        }
        let mut next = parts(&target);
        next.append(&mut rest);
        rest = next;
    }
    Ok(done)
}

fn parts(path: &OsStr) -> VecDeque<OsString> {
    let parts = path.as_bytes().split(|byte| *byte == b'/');
    parts
        .filter(|part| !part.is_empty() && *part != b".")
        .map(|part| OsStr::from_bytes(part).into())
        .collect()
}

/// Where the link at `path` points, if there is one. What leads to it has no links any more.
fn link_at(root: &OwnedFd, path: &Path) -> io::Result<Option<OsString>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    let parent = match open_in(root, &Path::new(".").join(parent.strip_prefix("/").unwrap_or(parent))) {
        Ok(parent) => parent,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match rustix::fs::readlinkat(&parent, name, Vec::new()) {
        Ok(target) => Ok(Some(OsStr::from_bytes(target.as_bytes()).to_owned())),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_end_of_a_path_says_what_is_meant() {
        // moby: TestCopyFromContainer
        let table = [
            ("/", "/", true, "/"),
            (".", "/", true, "."),
            ("/./", "/", true, "."),
            ("bar/quux", "/bar/quux", false, "quux"),
            ("bar/quux/", "/bar/quux", true, "quux"),
            ("/bar/../quux/.", "/quux", true, "."),
            ("/..", "/", true, "/"),
        ];
        for (text, path, is_directory, base) in table {
            let expected = Named { path: path.to_owned(), is_directory, base: base.to_owned() };
            assert_eq!(Named::parse(text), expected, "{text}");
        }
        assert_eq!(Named::parse("etc/passwd/").shown(), "/etc/passwd/");
        assert_eq!(Named::parse("etc/.").shown(), "/etc/.");
        assert_eq!(Named::parse("/").shown(), "/");
    }

    #[test]
    fn links_are_followed_within_the_root() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir_all(dir.path().join("srv/deep")).expect("mkdir");
        std::fs::write(dir.path().join("srv/file"), "").expect("file");
        symlink("/srv", dir.path().join("abs")).expect("link");
        symlink("../../../srv/deep", dir.path().join("srv/up")).expect("link");
        symlink("missing/x", dir.path().join("broken")).expect("link");
        symlink("loop", dir.path().join("loop")).expect("link");
        let root = OwnedFd::from(std::fs::File::open(dir.path()).expect("opens"));
        let followed = |path: &str| follow(&root, path).expect("followed");
        assert_eq!(followed("/abs/up/new"), Path::new("/srv/deep/new"));
        assert_eq!(followed("/broken"), Path::new("/missing/x"));
        assert_eq!(followed("/srv/file"), Path::new("/srv/file"));
        assert!(follow(&root, "/loop").is_err());
        let kind = |text: &str| {
            Named::parse(text).look_up(&root).map(|(_, name, stat)| {
                (name.to_string_lossy().into_owned(), rustix::fs::FileType::from_raw_mode(stat.st_mode))
            })
        };
        use rustix::fs::FileType::{Directory, RegularFile, Symlink};
        assert_eq!(kind("/abs"), Ok(("abs".to_owned(), Symlink)));
        assert_eq!(kind("/abs/"), Ok((".".to_owned(), Directory)));
        assert_eq!(kind("/abs/file"), Ok(("file".to_owned(), RegularFile)));
        assert_eq!(kind("/srv/file/"), Err(Errno::NOTDIR));
        assert_eq!(kind("/nothing"), Err(Errno::NOENT));
    }
}
