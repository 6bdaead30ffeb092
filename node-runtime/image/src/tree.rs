//! A directory tree that is filled from untrusted names: every path is resolved by the kernel inside the
//! tree (`openat2`, `RESOLVE_IN_ROOT`), so that no `..`, absolute link or link planted by an earlier entry leads out.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{self, AtFlags, CWD, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags, Stat, XattrFlags};
use rustix::io::Errno;

/// How often a path walk is repeated that raced with a rename on the machine.
const RETRIES_MAX: usize = 16;
/// What a directory is made with before its own mode is known.
const DIR_MODE: Mode = Mode::from_raw_mode(0o755);
const OPAQUE: &str = "trusted.overlay.opaque";

/// A tree being filled.
pub(crate) struct Tree {
    root: Arc<OwnedFd>,
    /// The directory of the last entry: archives list a directory's files in one go.
    last: Option<(PathBuf, Arc<OwnedFd>)>,
    /// Directories that no entry asked for (yet), made because something was to be put in them.
    made: Vec<PathBuf>,
}

impl Tree {
    pub(crate) fn open(root: &Path) -> io::Result<Tree> {
        Ok(Tree::of(open_root(root)?))
    }

    /// The tree below an open directory.
    pub(crate) fn of(root: OwnedFd) -> Tree {
        Tree { root: Arc::new(root), last: None, made: Vec::new() }
    }

    /// The directory `path` within the tree; what is missing of it is made.
    pub(crate) fn dir(&mut self, path: &Path) -> io::Result<Arc<OwnedFd>> {
        if path.as_os_str().is_empty() {
            return Ok(Arc::clone(&self.root));
        }
        if let Some((last, fd)) = &self.last
            && last == path
        {
            return Ok(Arc::clone(fd));
        }
        let fd = match open_in(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => Arc::new(fd),
            Err(Errno::NOENT) => Arc::new(self.make(path, false)?),
            Err(Errno::NOTDIR) => Arc::new(self.replace_whiteout(path)?),
            Err(error) => return Err(error.into()),
        };
        self.last = Some((path.to_owned(), Arc::clone(&fd)));
        Ok(fd)
    }

    /// The directory `path`, only if it is there and is one itself (no link to one).
    pub(crate) fn existing_dir(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        let (parent, name) = split(path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let opened = match name {
            None => open_in(&self.root, Path::new("."), flags),
            Some(name) => open_in(&self.root, or_dot(parent), flags).and_then(|dir| {
                fs::openat(dir, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            }),
        };
        match opened {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory that holds `path`, and the name in it; `None` where there is no such directory.
    pub(crate) fn existing_parent<'a>(&self, path: &'a Path) -> io::Result<Option<(OwnedFd, &'a OsStr)>> {
        let (parent, Some(name)) = split(path) else { return Ok(None) };
        match open_in(&self.root, or_dot(parent), OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => Ok(Some((fd, name))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Directories that were made without being asked for since the last call.
    pub(crate) fn take_made(&mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.made)
    }

    /// Removes whatever `name` is, with all below it.
    pub(crate) fn clear(&mut self, dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
        self.last = None;
        remove_tree(dir, name)
    }

    fn make(&mut self, path: &Path, is_opaque: bool) -> io::Result<OwnedFd> {
        let (parent, Some(name)) = split(path) else { return Err(Errno::NOENT.into()) };
        let dir = self.dir(parent)?;
        fs::mkdirat(&*dir, name, DIR_MODE)?;
        self.made.push(path.to_owned());
        let fd = fs::openat(
            &*dir,
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        if is_opaque {
            set_opaque(&fd)?;
        }
        Ok(fd)
    }

    /// A whiteout came first and then something below the same name: the name is a new directory.
    fn replace_whiteout(&mut self, path: &Path) -> io::Result<OwnedFd> {
        let (parent, Some(name)) = split(path) else { return Err(Errno::NOTDIR.into()) };
        let dir = self.dir(parent)?;
        match stat(&*dir, name)? {
            Some(stat) if is_whiteout(&stat) => {
                self.clear(&dir, name)?;
                self.make(path, true)
            }
            Some(_) => Err(Errno::NOTDIR.into()),
            None => self.make(path, false), // the whiteout was further up
        }
    }
}

/// Opens a directory of our own, by a path that we trust.
pub(crate) fn open_root(root: &Path) -> io::Result<OwnedFd> {
    Ok(fs::open(root, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn open_in(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..RETRIES_MAX {
        match fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
    Err(Errno::AGAIN)
}

/// An entry's path made relative and free of `.` and `..`; `None` when it leads out of the tree.
pub(crate) fn clean(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir if !clean.pop() && !path.has_root() => return None,
            Component::ParentDir | Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(clean)
}

/// Parent and last name of a clean path; the root has no name.
pub(crate) fn split(path: &Path) -> (&Path, Option<&OsStr>) {
    (path.parent().unwrap_or(Path::new("")), path.file_name())
}

fn or_dot(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// What `name` is, links not followed; `None` when it is not there.
pub(crate) fn stat(dir: impl AsFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// overlayfs marks what a layer deletes with a character device 0:0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode as RawMode)
}

/// Marks a directory as hiding everything of the same name below.
pub(crate) fn set_opaque(dir: &OwnedFd) -> io::Result<()> {
    Ok(fs::fsetxattr(dir, OPAQUE, b"y", XattrFlags::empty())?)
}

/// Whether a directory hides everything of the same name below.
pub(crate) fn is_opaque(dir: &OwnedFd) -> bool {
    let mut value = [0_u8; 1];
    fs::fgetxattr(dir, OPAQUE, &mut value) == Ok(1) && value == *b"y"
}

/// A path by which calls that take no directory descriptor reach `name`, and nothing else.
pub(crate) fn proc_path(dir: &OwnedFd, name: &OsStr) -> PathBuf {
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    path.push(name);
    path
}

/// Removes a name with all below it; never follows a link, never leaves the file system tree of `dir`.
pub(crate) fn remove_tree(dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = fs::openat(dir, name, flags, Mode::empty())?;
    for child in names(&inner)? {
        remove_tree(&inner, &child)?;
    }
    Ok(fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

/// The names in a directory.
pub(crate) fn names(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// The entry `path` as an overlay of `layers` (topmost first) shows it: whiteouts, opaque directories and
/// files in the way hide what is below. Gives the directory that holds it and what it is.
pub(crate) fn lookup(layers: &[PathBuf], path: &Path) -> io::Result<Option<(OwnedFd, OsString, Stat)>> {
    'layers: for layer in layers {
        let mut dir = open_root(layer)?;
        let mut hides_below = false;
        let mut components = path.components().peekable();
        if components.peek().is_none() {
            let stat = fs::fstat(&dir)?;
            return Ok(Some((
                fs::openat(CWD, layer, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?,
                ".".into(),
                stat,
            )));
        }
        while let Some(component) = components.next() {
            let name = component.as_os_str();
            let Some(stat) = stat(&dir, name)? else {
                if hides_below {
                    return Ok(None);
                }
                continue 'layers;
            };
            if components.peek().is_none() {
                return Ok((!is_whiteout(&stat)).then(|| (dir, name.to_owned(), stat)));
            }
            if file_type(&stat) != FileType::Directory {
                return Ok(None);
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            dir = fs::openat(&dir, name, flags, Mode::empty())?;
            hides_below |= is_opaque(&dir);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_the_ones_that_lead_out_are_refused() {
        let table = [
            ("a/b", Some("a/b")),
            ("./a//b/.", Some("a/b")),
            ("/etc/passwd", Some("etc/passwd")),
            ("a/../b", Some("b")),
            ("/../b", Some("b")),
            ("./", Some("")),
            ("..", None),
            ("a/../../b", None),
        ];
        for (given, wanted) in table {
            assert_eq!(clean(Path::new(given)).as_deref(), wanted.map(Path::new), "{given}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_clean_path_has_only_plain_names(text in "[a./]{0,20}") {
            if let Some(path) = clean(Path::new(&text)) {
                proptest::prop_assert!(path.components().all(|part| matches!(part, Component::Normal(_))));
            }
        }
    }
}
