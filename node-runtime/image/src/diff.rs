//! What a container changed: its writable layer against the layers below, as `docker diff` shows it.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{self, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::tree::{self, open_root};

/// Where every container gets a mount. Where there is no layer of places ([`crate::places`]), what the image lacks of
/// them is made in the writable one, and is no change.
const PLACES: [&str; 12] = [
    ".dockerenv",
    "dev",
    "dev/console",
    "dev/pts",
    "dev/shm",
    "etc",
    "etc/hostname",
    "etc/hosts",
    "etc/mtab",
    "etc/resolv.conf",
    "proc",
    "sys",
];

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// There was something of that name.
    Modified,
    /// There was nothing.
    Added,
    /// There is nothing any more.
    Deleted,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Absolute, within the container.
    pub path: PathBuf,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// Compares `upper` with `lower` (topmost first).
pub(crate) fn changes(upper: &Path, lower: &[PathBuf]) -> io::Result<Vec<Change>> {
    let places = places(upper, lower)?;
    let mut walk = Walk { lower, places, found: Vec::new(), noted: BTreeSet::new() };
    walk.directory(&open_root(upper)?, Path::new(""))?;
    walk.found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(walk.found)
}

/// The places for mounts that are in the writable layer only because they had to be made.
pub(crate) fn places(upper: &Path, lower: &[PathBuf]) -> io::Result<HashSet<PathBuf>> {
    let mut places = HashSet::new();
    // What is below comes before what it is in.
    for place in PLACES.iter().rev().map(Path::new) {
        let at = upper.join(place);
        let is_ours = match std::fs::symlink_metadata(&at) {
            Ok(meta) if meta.is_dir() => {
                let mut inside = std::fs::read_dir(&at)?.filter_map(Result::ok);
                inside.all(|entry| places.contains(&place.join(entry.file_name())))
            }
            Ok(meta) => meta.is_file() && meta.len() == 0,
            Err(_) => false,
        };
        if is_ours && tree::lookup(lower, place)?.is_none() {
            places.insert(place.to_owned());
        }
    }
    Ok(places)
}

struct Walk<'a> {
    lower: &'a [PathBuf],
    places: HashSet<PathBuf>,
    found: Vec<Change>,
    /// Directories that are in `found`.
    noted: BTreeSet<PathBuf>,
}

impl Walk<'_> {
    fn directory(&mut self, dir: &OwnedFd, path: &Path) -> io::Result<()> {
        let mut names = tree::names(dir)?;
        names.sort();
        for name in names {
            let path = path.join(&name);
            let Some(stat) = tree::stat(dir, &name)? else { continue };
            if self.places.contains(&path) {
                continue;
            }
            self.entry(&path, &stat)?;
            if tree::file_type(&stat) == FileType::Directory
                && let Some(inner) = open_child(dir, &name)?
            {
                if tree::is_opaque(&inner) {
                    self.hidden(&inner, &path)?;
                }
                self.directory(&inner, &path)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, stat: &Stat) -> io::Result<()> {
        let below = tree::lookup(self.lower, path)?.map(|(_, _, stat)| stat);
        let kind = match &below {
            // A whiteout of something that never was.
            None if tree::is_whiteout(stat) => return Ok(()),
            Some(_) if tree::is_whiteout(stat) => ChangeKind::Deleted,
            Some(below) if self.is_passage(path, stat, below) => return Ok(()),
            Some(_) => ChangeKind::Modified,
            None => ChangeKind::Added,
        };
        self.note(path, kind);
        Ok(())
    }

    /// A directory that is only there because of what is in it.
    fn is_passage(&self, path: &Path, stat: &Stat, below: &Stat) -> bool {
        let is_dir = |stat: &Stat| tree::file_type(stat) == FileType::Directory;
        let holds_places = self.places.iter().any(|place| place.parent() == Some(path));
        let same_time = (stat.st_mtime, stat.st_mtime_nsec) == (below.st_mtime, below.st_mtime_nsec);
        is_dir(stat)
            && is_dir(below)
            && (stat.st_mode, stat.st_uid, stat.st_gid) == (below.st_mode, below.st_uid, below.st_gid)
            && (same_time || holds_places)
    }

    /// What an opaque directory no longer shows.
    fn hidden(&mut self, dir: &OwnedFd, path: &Path) -> io::Result<()> {
        let mut names = BTreeSet::new();
        for layer in self.lower {
            if let Some(below) = tree::Tree::open(layer)?.existing_dir(path)? {
                names.extend(tree::names(&below)?);
            }
        }
        for name in names {
            let path = path.join(&name);
            if tree::stat(dir, &name)?.is_none() && tree::lookup(self.lower, &path)?.is_some() {
                self.note(&path, ChangeKind::Deleted);
            }
        }
        Ok(())
    }

    /// What comes or goes changes the directory that it is in.
    fn note(&mut self, path: &Path, kind: ChangeKind) {
        if kind != ChangeKind::Modified
            && let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty())
            && self.noted.insert(parent.to_owned())
        {
            self.found.push(Change { path: Path::new("/").join(parent), kind: ChangeKind::Modified });
        }
        if self.noted.insert(path.to_owned()) {
            self.found.push(Change { path: Path::new("/").join(path), kind });
        }
    }
}

fn open_child(dir: &OwnedFd, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match fs::openat(dir, name, flags, Mode::empty()) {
        Ok(opened) => Ok(Some(opened)),
        // A running container may replace it at any time.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Names in an archive of the writable layer that do not belong into an image.
pub(crate) fn left_out(upper: &Path, lower: &[PathBuf]) -> io::Result<HashSet<Vec<u8>>> {
    let name = |place: &PathBuf| [b"./", place.as_os_str().as_bytes()].concat();
    Ok(places(upper, lower)?.iter().map(name).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A lower and an upper directory.
    fn layers() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().expect("tempdir");
        let (lower, upper) = (dir.path().join("lower"), dir.path().join("upper"));
        for path in ["etc/conf", "srv/old/deep", "var/lib"] {
            std::fs::create_dir_all(lower.join(path)).expect("lower");
        }
        for path in ["etc/passwd", "srv/a", "srv/old/b"] {
            std::fs::write(lower.join(path), "x").expect("lower");
        }
        std::fs::create_dir(&upper).expect("upper");
        for path in ["etc", "srv", "srv/old", "var"] {
            let dir = std::fs::File::open(lower.join(path)).expect("opens");
            dir.set_modified(std::time::SystemTime::UNIX_EPOCH).expect("mtime");
        }
        (dir, lower, upper)
    }

    /// Makes a directory in `upper` as overlayfs copies it up.
    fn copy_up(lower: &Path, upper: &Path, path: &str) {
        std::fs::create_dir_all(upper.join(path)).expect("mkdir");
        let meta = std::fs::metadata(lower.join(path)).expect("meta");
        std::fs::set_permissions(upper.join(path), meta.permissions()).expect("mode");
        let dir = std::fs::File::open(upper.join(path)).expect("opens");
        dir.set_modified(meta.modified().expect("mtime")).expect("mtime");
    }

    fn whiteout(path: &Path) {
        let dir = open_root(path.parent().expect("parent")).expect("opens");
        let name = path.file_name().expect("name");
        fs::mknodat(&dir, name, FileType::CharacterDevice, Mode::empty(), 0).expect("whiteout");
    }

    fn shown(lower: &Path, upper: &Path) -> Vec<String> {
        let line = |change: &Change| {
            let letter = match change.kind {
                ChangeKind::Modified => "C",
                ChangeKind::Added => "A",
                ChangeKind::Deleted => "D",
            };
            format!("{letter} {}", change.path.display())
        };
        changes(upper, &[lower.to_owned()]).expect("walks").iter().map(line).collect()
    }

    #[test]
    fn additions_changes_and_deletions_are_shown_with_their_directories() {
        let (_dir, lower, upper) = layers();
        std::fs::create_dir_all(upper.join("srv")).expect("mkdir");
        std::fs::write(upper.join("srv/new"), "n").expect("file");
        std::fs::write(upper.join("srv/a"), "n").expect("file");
        copy_up(&lower, &upper, "etc");
        whiteout(&upper.join("etc/passwd"));
        copy_up(&lower, &upper, "var");
        assert_eq!(shown(&lower, &upper), ["C /etc", "D /etc/passwd", "C /srv", "C /srv/a", "A /srv/new"]);
    }

    #[test]
    fn a_directory_that_was_made_anew_hides_what_it_had() {
        let (_dir, lower, upper) = layers();
        std::fs::create_dir_all(upper.join("srv/old")).expect("mkdir");
        tree::set_opaque(&open_root(&upper.join("srv/old")).expect("opens")).expect("opaque");
        let expected = ["C /srv", "C /srv/old", "D /srv/old/b", "D /srv/old/deep"];
        assert_eq!(shown(&lower, &upper), expected);
    }

    #[test]
    fn places_for_mounts_are_nobodys_changes_until_something_is_in_them() {
        let (_dir, lower, upper) = layers();
        for place in ["dev/pts", "proc", "etc"] {
            std::fs::create_dir_all(upper.join(place)).expect("mkdir");
        }
        std::fs::write(upper.join("etc/hosts"), "").expect("file");
        assert_eq!(shown(&lower, &upper), [""; 0]);
        std::fs::write(upper.join("dev/mine"), "").expect("file");
        std::fs::set_permissions(upper.join("etc"), std::fs::Permissions::from_mode(0o700)).expect("mode");
        assert_eq!(shown(&lower, &upper), ["A /dev", "A /dev/mine", "C /etc"]);
        let left_out = left_out(&upper, &[lower]).expect("walks");
        assert!(left_out.contains(&b"./proc"[..]) && !left_out.contains(&b"./dev"[..]));
    }
}
