//! A layer's tar stream becomes a directory that overlayfs can stack: deletions turn into its whiteouts,
//! owners before modes (a change of owner clears setuid and capabilities), directory times last. Files that
//! are copied into a container take the same way, by other [`Rules`].
//!
//! Unpacking needs nothing of the layers below, so layers are unpacked side by side; what does depend on
//! them (directories that the archive uses but does not describe, hard links into a lower layer) is done
//! by [`Unpacked::settle`], once they are there.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{self, Read, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType};

use crate::tree::{self, Tree, clean, split};

/// Bounds what names and extended headers between two entries can take up in memory.
const HEADER_BYTES_MAX: u64 = 4 << 20;
/// One write call for most files.
const COPY_BYTES: usize = 128 << 10;
const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
const META_PREFIX: &[u8] = b".wh..wh.";
const XATTR_PREFIX: &str = "SCHILY.xattr.";
/// Ours to set (overlayfs would obey them), or the machine's (SELinux).
const XATTRS_REFUSED: [&str; 3] = ["trusted.overlay.", "user.overlay.", "security.selinux"];

/// Why a layer cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UnpackError {
    #[error("invalid tar stream")]
    Tar(#[source] io::Error),
    #[error("invalid tar header: path `{0}` leads outside of the layer")]
    Breakout(PathBuf),
    #[error("invalid tar header: `{0}` is a hard link to `{1}`, which does not exist")]
    LinkTarget(PathBuf, PathBuf),
    #[error("invalid tar header: `{0}` is of unknown type {1:#x}")]
    Type(PathBuf, u8),
    #[error("cannot overwrite directory \"/{0}\" with non-directory \"/{1}\"")]
    OverDirectory(PathBuf, PathBuf),
    #[error("cannot overwrite non-directory \"/{0}\" with directory \"/{1}\"")]
    OverFile(PathBuf, PathBuf),
    #[error("`{path}` cannot be unpacked")]
    Entry {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl UnpackError {
    /// Whether the archive is to blame, not this machine.
    pub(crate) fn is_bad_input(&self) -> bool {
        !matches!(self, Self::Entry { .. })
    }
}

/// A layer whose files are in place, and what is left to do.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    /// Bytes in regular files.
    pub(crate) size: u64,
    dirs: BTreeMap<PathBuf, Meta>,
    implicit: BTreeSet<PathBuf>,
    links: Vec<(PathBuf, PathBuf)>,
}

/// Everything about a file but its name and content.
#[derive(Debug, Clone)]
struct Meta {
    mode: Mode,
    uid: Uid,
    gid: Gid,
    time: Timespec,
    xattrs: Vec<(String, Vec<u8>)>,
}

/// What an archive's entries may do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    /// The archive is a layer: names that begin with `.wh.` delete.
    pub(crate) is_layer: bool,
    /// A directory replaces nothing but a directory, and is replaced by nothing else.
    pub(crate) keeps_kinds: bool,
    /// Who owns everything, whatever the archive says.
    pub(crate) owner: Option<(u32, u32)>,
}

/// Unpacks a layer into the empty directory `root`.
pub(crate) fn unpack(reader: impl Read, root: &Path) -> Result<Unpacked, UnpackError> {
    let tree = Tree::open(root).map_err(|source| UnpackError::Entry { path: root.to_owned(), source })?;
    let mut done = Unpacked::default();
    done.implicit.insert(PathBuf::new());
    let rules = Rules { is_layer: true, ..Rules::default() };
    let mut unpacker = Unpacker { tree, into: PathBuf::new(), rules, done, buffer: vec![0; COPY_BYTES] };
    each_entry(reader, |entry| unpacker.entry(entry))?;
    Ok(unpacker.done)
}

/// Unpacks files into the directory `into` (clean, without links) of a whole root file system: what links
/// name is looked up in that.
pub(crate) fn unpack_files(
    reader: impl Read,
    root: OwnedFd,
    into: &Path,
    rules: Rules,
) -> Result<(), UnpackError> {
    let (tree, done) = (Tree::of(root), Unpacked::default());
    let mut unpacker = Unpacker { tree, into: into.to_owned(), rules, done, buffer: vec![0; COPY_BYTES] };
    each_entry(reader, |entry| unpacker.entry(entry))?;
    unpacker.done.finish_files(&unpacker.tree)
}

/// Every entry, in order.
fn each_entry<R: Read>(
    reader: R,
    mut take: impl FnMut(&mut Entry<'_, Bounded<R>>) -> Result<(), UnpackError>,
) -> Result<(), UnpackError> {
    let allowance = Rc::new(Cell::new(HEADER_BYTES_MAX));
    let mut archive = Archive::new(Bounded { inner: reader, allowance: Rc::clone(&allowance) });
    let mut entries = archive.entries().map_err(UnpackError::Tar)?;
    loop {
        allowance.set(HEADER_BYTES_MAX);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(UnpackError::Tar)?;
        allowance.set(u64::MAX);
        take(&mut entry)?;
        io::copy(&mut entry, &mut io::sink()).map_err(UnpackError::Tar)?;
    }
    allowance.set(u64::MAX);
    Ok(())
}

/// Ends a stream that sends more headers than any real archive has.
struct Bounded<R> {
    inner: R,
    allowance: Rc<Cell<u64>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let left = self.allowance.get();
        if left != u64::MAX {
            let left =
                left.checked_sub(read as u64).ok_or_else(|| io::Error::other("headers are too large"))?;
            self.allowance.set(left);
        }
        Ok(read)
    }
}

struct Unpacker {
    tree: Tree,
    /// Where in the tree the archive goes.
    into: PathBuf,
    rules: Rules,
    done: Unpacked,
    buffer: Vec<u8>,
}

impl Unpacker {
    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), UnpackError> {
        let raw = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()));
        let Some(path) = clean(&raw) else { return Err(UnpackError::Breakout(raw)) };
        let is_whiteout = path.file_name().is_some_and(|name| name.as_bytes().starts_with(WHITEOUT_PREFIX));
        let placed = if self.rules.is_layer {
            if is_whiteout { self.whiteout(&path) } else { self.place(entry, &path) }
        } else if path.as_os_str().is_empty() {
            Ok(()) // the directory that they go into stays as it is
        } else {
            let target = self.into.join(&path);
            self.check_kind(entry, &target).and_then(|()| self.place(entry, &target))
        };
        for made in self.tree.take_made() {
            self.done.implicit.insert(made);
        }
        placed
    }

    /// Refuses an entry that is of another kind than what is there, where that matters.
    fn check_kind<R: Read>(&self, entry: &Entry<'_, R>, path: &Path) -> Result<(), UnpackError> {
        let named = |source: io::Error| UnpackError::Entry { path: path.to_owned(), source };
        if !self.rules.keeps_kinds {
            return Ok(());
        }
        let Some((dir, name)) = self.tree.existing_parent(path).map_err(named)? else { return Ok(()) };
        let Some(stat) = tree::stat(&dir, name).map_err(named)? else { return Ok(()) };
        let (was_dir, is_dir) = (tree::file_type(&stat) == FileType::Directory, is_directory(entry));
        match (was_dir, is_dir) {
            (true, false) => Err(UnpackError::OverDirectory(path.to_owned(), self.into.clone())),
            (false, true) => Err(UnpackError::OverFile(path.to_owned(), self.into.clone())),
            (true, true) | (false, false) => Ok(()),
        }
    }

    /// Everything about an entry but its name and content, by our rules.
    fn meta<R: Read>(&self, entry: &mut Entry<'_, R>) -> Result<Meta, UnpackError> {
        let mut meta = Meta::of(entry)?;
        if let Some((uid, gid)) = self.rules.owner {
            (meta.uid, meta.gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        }
        let is_node = matches!(
            entry.header().entry_type(),
            EntryType::Symlink | EntryType::Char | EntryType::Block | EntryType::Fifo
        );
        if is_node && !self.rules.is_layer {
            // They are set by path, through a /proc that a container's file system need not have.
            meta.xattrs.clear();
        }
        Ok(meta)
    }

    fn place<R: Read>(&mut self, entry: &mut Entry<'_, R>, path: &Path) -> Result<(), UnpackError> {
        let named = |source: io::Error| UnpackError::Entry { path: path.to_owned(), source };
        let kind = entry.header().entry_type();
        match kind {
            _ if is_directory(entry) => {
                let meta = self.meta(entry)?;
                self.directory(path, meta)
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let meta = self.meta(entry)?;
                self.file(entry, path, &meta)
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let meta = self.meta(entry)?;
                let make = |dir: &OwnedFd, name: &OsStr| fs::symlinkat(target.as_slice(), dir, name);
                self.node(path, &meta, FileType::Symlink, make).map_err(named)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let meta = self.meta(entry)?;
                let (kind, device) = device_of(entry).map_err(UnpackError::Tar)?;
                let make = |dir: &OwnedFd, name: &OsStr| fs::mknodat(dir, name, kind, meta.mode, device);
                self.node(path, &meta, kind, make).map_err(named)
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let target = Path::new(OsStr::from_bytes(&target));
                let Some(target) = clean(target) else {
                    return Err(UnpackError::Breakout(target.to_owned()));
                };
                self.hard_link(path, &self.into.join(target))
            }
            EntryType::XGlobalHeader => Ok(()),
            other => Err(UnpackError::Type(path.to_owned(), other.as_byte())),
        }
    }

    fn directory(&mut self, path: &Path, meta: Meta) -> Result<(), UnpackError> {
        let named = |source: io::Error| UnpackError::Entry { path: path.to_owned(), source };
        if let (parent, Some(name)) = split(path) {
            let dir = self.tree.dir(parent).map_err(named)?;
            self.make_directory(&dir, name, path).map_err(named)?;
        }
        self.done.implicit.remove(path);
        self.done.dirs.insert(path.to_owned(), meta);
        Ok(())
    }

    fn make_directory(&mut self, dir: &OwnedFd, name: &OsStr, path: &Path) -> io::Result<()> {
        match fs::mkdirat(dir, name, Mode::RWXU) {
            Err(Errno::EXIST) => {}
            made => return Ok(made?),
        }
        let Some(stat) = tree::stat(dir, name)? else { return Err(Errno::NOENT.into()) };
        if tree::file_type(&stat) == FileType::Directory {
            return Ok(());
        }
        self.clear(dir, name, path)?;
        fs::mkdirat(dir, name, Mode::RWXU)?;
        if tree::is_whiteout(&stat) {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            tree::set_opaque(&fs::openat(dir, name, flags, Mode::empty())?)?;
        }
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        path: &Path,
        meta: &Meta,
    ) -> Result<(), UnpackError> {
        let named = |source: io::Error| UnpackError::Entry { path: path.to_owned(), source };
        let mut file = self.create(path).map_err(named)?;
        loop {
            let read = match entry.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(UnpackError::Tar(error)),
            };
            file.write_all(&self.buffer[..read]).map_err(named)?;
            self.done.size += read as u64;
        }
        meta.apply(&file).map_err(named)
    }

    fn create(&mut self, path: &Path) -> io::Result<std::fs::File> {
        let (parent, Some(name)) = split(path) else { return Err(Errno::ISDIR.into()) };
        let dir = self.tree.dir(parent)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || fs::openat(&*dir, name, flags, Mode::RUSR | Mode::WUSR);
        let file = match open() {
            Err(Errno::EXIST) => {
                self.clear(&dir, name, path)?;
                open()?
            }
            opened => opened?,
        };
        Ok(file.into())
    }

    /// Anything that is made by one call and has no content.
    fn node(
        &mut self,
        path: &Path,
        meta: &Meta,
        kind: FileType,
        make: impl Fn(&OwnedFd, &OsStr) -> Result<(), Errno>,
    ) -> io::Result<()> {
        let (parent, Some(name)) = split(path) else { return Err(Errno::ISDIR.into()) };
        let dir = self.tree.dir(parent)?;
        self.make_anew(&dir, name, path, || make(&dir, name))?;
        meta.apply_to_node(&dir, name, kind)
    }

    fn make_anew(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
        make: impl Fn() -> Result<(), Errno>,
    ) -> io::Result<()> {
        match make() {
            Err(Errno::EXIST) => {
                self.clear(dir, name, path)?;
                Ok(make()?)
            }
            made => Ok(made?),
        }
    }

    fn hard_link(&mut self, path: &Path, target: &Path) -> Result<(), UnpackError> {
        let named = |source: io::Error| UnpackError::Entry { path: path.to_owned(), source };
        if target == path {
            return Ok(());
        }
        let (parent, Some(name)) = split(path) else { return Err(named(Errno::ISDIR.into())) };
        let dir = self.tree.dir(parent).map_err(named)?;
        let Some((target_dir, target_name)) = self.tree.existing_parent(target).map_err(named)? else {
            self.done.links.push((path.to_owned(), target.to_owned()));
            return Ok(());
        };
        let link = || fs::linkat(&target_dir, target_name, &*dir, name, AtFlags::empty());
        match self.make_anew(&dir, name, path, link) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.done.links.push((path.to_owned(), target.to_owned()));
                Ok(())
            }
            linked => linked.map_err(named),
        }
    }

    // spec: oci image-spec layer.md#whiteouts
    fn whiteout(&mut self, path: &Path) -> Result<(), UnpackError> {
        let named = |source: io::Error| UnpackError::Entry { path: path.to_owned(), source };
        let (parent, Some(name)) = split(path) else { return Ok(()) };
        let bytes = name.as_bytes();
        if bytes == OPAQUE_NAME {
            let dir = self.tree.dir(parent).map_err(named)?;
            return tree::set_opaque(&dir).map_err(named);
        }
        if bytes.starts_with(META_PREFIX) {
            return Ok(()); // bookkeeping of aufs
        }
        let hidden = &bytes[WHITEOUT_PREFIX.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(UnpackError::Breakout(path.to_owned()));
        }
        let dir = self.tree.dir(parent).map_err(named)?;
        hide(&dir, OsStr::from_bytes(hidden)).map_err(named)
    }

    /// Removes what is in the way, and what we meant to do to it later.
    fn clear(&mut self, dir: &OwnedFd, name: &OsStr, path: &Path) -> io::Result<()> {
        self.tree.clear(dir, name)?;
        self.done.dirs.retain(|known, _| !known.starts_with(path));
        self.done.implicit.retain(|known| !known.starts_with(path));
        Ok(())
    }
}

/// Archives older than POSIX mark directories by a slash alone.
fn is_directory<R: Read>(entry: &Entry<'_, R>) -> bool {
    let kind = entry.header().entry_type();
    kind == EntryType::Directory || kind == EntryType::Regular && entry.path_bytes().ends_with(b"/")
}

/// Hides a name of the layers below. Where this layer has the name too, a file hides by itself, and a
/// directory must not be merged with the one below.
fn hide(dir: &OwnedFd, name: &OsStr) -> io::Result<()> {
    match fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0) {
        Err(Errno::EXIST) => {}
        made => return Ok(made?),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match fs::openat(dir, name, flags, Mode::empty()) {
        Ok(inner) => tree::set_opaque(&inner),
        Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn device_of<R: Read>(entry: &Entry<'_, R>) -> io::Result<(FileType, fs::Dev)> {
    let header = entry.header();
    let device = || -> io::Result<fs::Dev> {
        let (major, minor) = (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
        Ok(fs::makedev(major, minor))
    };
    Ok(match header.entry_type() {
        EntryType::Char => (FileType::CharacterDevice, device()?),
        EntryType::Block => (FileType::BlockDevice, device()?),
        _ => (FileType::Fifo, 0),
    })
}

impl Meta {
    fn of<R: Read>(entry: &mut Entry<'_, R>) -> Result<Meta, UnpackError> {
        let header = entry.header();
        let fields = header.as_old();
        let id = |field: &[u8], parsed| match u32::try_from(number(field, parsed)?) {
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(UnpackError::Tar(io::Error::other("a user's or group's number is too large"))),
        };
        let mode = number(&fields.mode, header.mode().map(u64::from))? & 0o7777;
        let mut meta = Meta {
            mode: Mode::from_raw_mode(mode as u32),
            uid: Uid::from_raw(id(&fields.uid, header.uid())?),
            gid: Gid::from_raw(id(&fields.gid, header.gid())?),
            time: Timespec { tv_sec: i64::try_from(header.mtime().unwrap_or(0)).unwrap_or(0), tv_nsec: 0 },
            xattrs: Vec::new(),
        };
        if let Some(extensions) = entry.pax_extensions().map_err(UnpackError::Tar)? {
            for extension in extensions {
                let extension = extension.map_err(UnpackError::Tar)?;
                let Ok(key) = extension.key() else { continue };
                if key == "mtime" {
                    meta.time = extension.value().ok().and_then(parse_time).unwrap_or(meta.time);
                } else if let Some(name) = key.strip_prefix(XATTR_PREFIX)
                    && !XATTRS_REFUSED.iter().any(|refused| name.starts_with(refused))
                {
                    meta.xattrs.push((name.to_owned(), extension.value_bytes().to_vec()));
                }
            }
        }
        Ok(meta)
    }

    fn times(&self) -> Timestamps {
        Timestamps { last_access: self.time, last_modification: self.time }
    }

    /// To an open file or directory of ours.
    fn apply(&self, file: impl AsFd) -> io::Result<()> {
        fs::fchown(&file, Some(self.uid), Some(self.gid))?;
        fs::fchmod(&file, self.mode)?;
        for (name, value) in &self.xattrs {
            tolerate(fs::fsetxattr(&file, name.as_str(), value, XattrFlags::empty()), name)?;
        }
        Ok(fs::futimens(&file, &self.times())?)
    }

    /// To something that cannot be opened for this: a link, a device, a pipe.
    fn apply_to_node(&self, dir: &OwnedFd, name: &OsStr, kind: FileType) -> io::Result<()> {
        fs::chownat(dir, name, Some(self.uid), Some(self.gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if kind != FileType::Symlink {
            fs::chmodat(dir, name, self.mode, AtFlags::empty())?;
        }
        for (key, value) in &self.xattrs {
            let path = tree::proc_path(dir, name);
            tolerate(fs::lsetxattr(&path, key.as_str(), value, XattrFlags::empty()), key)?;
        }
        Ok(fs::utimensat(dir, name, &self.times(), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Of something in a lower layer.
    fn read(dir: &OwnedFd, name: &OsStr, stat: &fs::Stat) -> io::Result<Meta> {
        let path = tree::proc_path(dir, name);
        let mut xattrs = Vec::new();
        for key in list_xattrs(&path)? {
            if XATTRS_REFUSED.iter().any(|refused| key.starts_with(refused)) {
                continue;
            }
            let mut value = vec![0; fs::lgetxattr(&path, key.as_str(), &mut [0_u8; 0][..])?];
            let length = fs::lgetxattr(&path, key.as_str(), value.as_mut_slice())?;
            value.truncate(length);
            xattrs.push((key, value));
        }
        Ok(Meta {
            mode: Mode::from_raw_mode(stat.st_mode & 0o7777),
            uid: Uid::from_raw(stat.st_uid),
            gid: Gid::from_raw(stat.st_gid),
            time: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
            xattrs,
        })
    }
}

/// A header's number; a field that was left blank is zero.
fn number(field: &[u8], parsed: io::Result<u64>) -> Result<u64, UnpackError> {
    let is_blank = || field.iter().all(|byte| matches!(byte, 0 | b' '));
    parsed.or_else(|error| if is_blank() { Ok(0) } else { Err(UnpackError::Tar(error)) })
}

/// File systems without extended attributes still hold images.
fn tolerate(set: Result<(), Errno>, name: &str) -> io::Result<()> {
    match set {
        Err(Errno::OPNOTSUPP) => {
            tracing::debug!(name, "the file system does not keep this extended attribute");
            Ok(())
        }
        set => Ok(set?),
    }
}

fn list_xattrs(path: &Path) -> io::Result<Vec<String>> {
    let mut list = vec![0_u8; 64 << 10];
    let length = match fs::llistxattr(path, list.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let names = list[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
}

/// A PAX time: seconds, with a fraction down to nanoseconds.
fn parse_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let tv_sec: i64 = seconds.parse().ok()?;
    let mut digits: String = fraction.chars().take(9).collect();
    while digits.len() < 9 {
        digits.push('0');
    }
    let nanoseconds: i64 = digits.parse().ok()?;
    Some(match (seconds.starts_with('-'), nanoseconds) {
        (true, 1..) => Timespec { tv_sec: tv_sec - 1, tv_nsec: 1_000_000_000 - nanoseconds },
        _ => Timespec { tv_sec, tv_nsec: nanoseconds },
    })
}

impl Unpacked {
    /// Does what had to wait for the last entry, where there are no layers below.
    fn finish_files(&self, tree: &Tree) -> Result<(), UnpackError> {
        if let Some((path, target)) = self.links.first() {
            return Err(UnpackError::LinkTarget(path.clone(), target.clone()));
        }
        for (path, meta) in &self.dirs {
            let named = |source| UnpackError::Entry { path: path.clone(), source };
            if let Some(dir) = tree.existing_dir(path).map_err(named)? {
                meta.apply(&dir).map_err(named)?;
            }
        }
        Ok(())
    }

    /// Does what had to wait for the layers below, topmost first in `lower`.
    pub(crate) fn settle(&self, root: &Path, lower: &[PathBuf]) -> Result<(), UnpackError> {
        let named = |path: &Path| {
            let path = path.to_owned();
            move |source| UnpackError::Entry { path, source }
        };
        let tree = Tree::open(root).map_err(named(root))?;
        for (path, target) in &self.links {
            if !settle_link(&tree, lower, path, target).map_err(named(path))? {
                return Err(UnpackError::LinkTarget(path.clone(), target.clone()));
            }
        }
        for path in &self.implicit {
            settle_implicit(&tree, lower, path).map_err(named(path))?;
        }
        for (path, meta) in &self.dirs {
            if let Some(dir) = tree.existing_dir(path).map_err(named(path))? {
                meta.apply(&dir).map_err(named(path))?;
            }
        }
        Ok(())
    }
}

/// A directory that the archive only passes through looks as it does below.
pub(crate) fn settle_implicit(tree: &Tree, lower: &[PathBuf], path: &Path) -> io::Result<()> {
    let Some(dir) = tree.existing_dir(path)? else { return Ok(()) };
    match tree::lookup(lower, path)? {
        Some((below, name, stat)) if tree::file_type(&stat) == FileType::Directory => {
            Meta::read(&below, &name, &stat)?.apply(&dir)
        }
        _ => Ok(fs::fchmod(&dir, Mode::from_raw_mode(0o755))?),
    }
}

/// A hard link to a file that came later in the archive, or to one of a lower layer, which is copied up.
fn settle_link(tree: &Tree, lower: &[PathBuf], path: &Path, target: &Path) -> io::Result<bool> {
    let Some((dir, name)) = tree.existing_parent(path)? else { return Ok(false) };
    if let Some((target_dir, target_name)) = tree.existing_parent(target)? {
        match fs::linkat(&target_dir, target_name, &dir, name, AtFlags::empty()) {
            Err(Errno::NOENT) => {}
            linked => return Ok(linked.map(|()| true)?),
        }
    }
    let Some((below, below_name, stat)) = tree::lookup(lower, target)? else { return Ok(false) };
    if tree::file_type(&stat) != FileType::RegularFile {
        return Ok(false);
    }
    let source =
        fs::openat(&below, &*below_name, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let copy = fs::openat(&dir, name, flags, Mode::RUSR | Mode::WUSR)?;
    let mut copy = std::fs::File::from(copy);
    io::copy(&mut std::fs::File::from(source), &mut copy)?;
    Meta::read(&below, &below_name, &stat)?.apply(&copy)?;
    Ok(true)
}

#[cfg(test)]
mod tests;
