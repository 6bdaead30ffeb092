//! A directory tree becomes a tar stream: what is copied out of containers, exported or committed. Names are
//! the caller's; headers are those that Docker writes: ustar, with PAX records for what does not fit, times in
//! whole seconds, owners by number.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{self, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use crate::tree;

/// Deeper trees than any path reaches are an attack on our stack.
const DEPTH_MAX: usize = 2048;
/// What a ustar header has room for.
const NAME_BYTES: usize = 100;
/// Overlayfs' own, and the machine's (SELinux).
const XATTRS_LEFT_OUT: [&str; 3] = ["trusted.overlay.", "user.overlay.", "security.selinux"];
const XATTR_PREFIX: &str = "SCHILY.xattr.";
const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// Writes trees into one archive.
pub struct Packer<W: Write> {
    out: Builder<W>,
    /// The first name of each file that has several, by device and inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Overlayfs' whiteouts become a layer's.
    is_layer: bool,
    /// Names that are left out with all below.
    left_out: HashSet<Vec<u8>>,
}

impl<W: Write> Packer<W> {
    /// An archive of files as they are.
    pub fn new(out: W) -> Packer<W> {
        Packer { out: Builder::new(out), links: HashMap::new(), is_layer: false, left_out: HashSet::new() }
    }

    /// An archive of what is in the upper directory of an overlay: an image's layer. `left_out` are entries
    /// that do not belong in it, by the names that they would have.
    pub(crate) fn layer(out: W, left_out: HashSet<Vec<u8>>) -> Packer<W> {
        Packer { is_layer: true, left_out, ..Packer::new(out) }
    }

    /// Adds what is called `name` in `dir`, with all below it, under the name `path`. A directory's name gets a
    /// slash. Sockets are left out, and what vanishes meanwhile.
    ///
    /// # Errors
    /// What cannot be read or written.
    pub fn add(&mut self, dir: &OwnedFd, name: &OsStr, path: &[u8]) -> io::Result<()> {
        self.entry(dir, name, path, 0)
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// What cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.finish()?;
        self.out.into_inner()
    }

    fn entry(&mut self, dir: &OwnedFd, name: &OsStr, path: &[u8], depth: usize) -> io::Result<()> {
        if self.left_out.contains(path) {
            return Ok(());
        }
        let Some(stat) = tree::stat(dir, name)? else { return Ok(()) };
        match tree::file_type(&stat) {
            FileType::Directory => self.directory(dir, name, path, &stat, depth),
            FileType::RegularFile => self.file(dir, name, path, &stat),
            FileType::Symlink => {
                let target = fs::readlinkat(dir, name, Vec::new())?;
                self.write(&stat, EntryType::Symlink, path, target.as_bytes(), &[], io::empty())
            }
            FileType::CharacterDevice if self.is_layer && tree::is_whiteout(&stat) => {
                let (parent, name) = split_name(path);
                self.marker(&[parent, WHITEOUT_PREFIX, name].concat())
            }
            FileType::CharacterDevice => self.write(&stat, EntryType::Char, path, b"", &[], io::empty()),
            FileType::BlockDevice => self.write(&stat, EntryType::Block, path, b"", &[], io::empty()),
            FileType::Fifo => self.write(&stat, EntryType::Fifo, path, b"", &[], io::empty()),
            FileType::Socket | FileType::Unknown => Ok(()),
        }
    }

    fn directory(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &[u8],
        stat: &Stat,
        depth: usize,
    ) -> io::Result<()> {
        if depth == DEPTH_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let inner = match fs::openat(dir, name, flags, Mode::empty()) {
            // It was replaced while we looked.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            opened => opened?,
        };
        let prefix = if path.ends_with(b"/") { path.to_vec() } else { [path, b"/"].concat() };
        let xattrs = xattrs(&inner)?;
        self.write(stat, EntryType::Directory, &prefix, b"", &xattrs, io::empty())?;
        if self.is_layer && tree::is_opaque(&inner) {
            self.marker(&[&prefix, OPAQUE_NAME].concat())?;
        }
        let mut names = tree::names(&inner)?;
        names.sort();
        for name in names {
            self.entry(&inner, &name, &[&prefix, name.as_bytes()].concat(), depth + 1)?;
        }
        Ok(())
    }

    fn file(&mut self, dir: &OwnedFd, name: &OsStr, path: &[u8], stat: &Stat) -> io::Result<()> {
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode).cloned() {
                return self.write(stat, EntryType::Link, path, &first, &[], io::empty());
            }
            self.links.insert(inode, path.to_vec());
        }
        // What is put in the file's place after we looked must neither be waited for nor opened as a device.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = match fs::openat(dir, name, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(()),
            opened => opened?,
        };
        let stat = fs::fstat(&file)?;
        if tree::file_type(&stat) != FileType::RegularFile {
            return Ok(());
        }
        let xattrs = xattrs(&file)?;
        let content = Exactly { file: File::from(file), left: stat.st_size.unsigned_abs() };
        self.write(&stat, EntryType::Regular, path, b"", &xattrs, content)
    }

    /// An empty file that says something about its name.
    fn marker(&mut self, path: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_size(0);
        self.header(header, path, b"", Vec::new(), io::empty())
    }

    fn write(
        &mut self,
        stat: &Stat,
        kind: EntryType,
        path: &[u8],
        link: &[u8],
        xattrs: &[(String, Vec<u8>)],
        content: impl Read,
    ) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        // Times before 1970 do not fit.
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        header.set_size(if kind == EntryType::Regular { stat.st_size.unsigned_abs() } else { 0 });
        if matches!(kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(fs::major(stat.st_rdev))?;
            header.set_device_minor(fs::minor(stat.st_rdev))?;
        }
        let records = xattrs.iter().map(|(key, value)| (format!("{XATTR_PREFIX}{key}"), value.clone()));
        self.header(header, path, link, records.collect(), content)
    }

    fn header(
        &mut self,
        mut header: Header,
        path: &[u8],
        link: &[u8],
        mut records: Vec<(String, Vec<u8>)>,
        content: impl Read,
    ) -> io::Result<()> {
        let old = header.as_old_mut();
        for (field, text, key) in [(&mut old.name, path, "path"), (&mut old.linkname, link, "linkpath")] {
            let fits = text.len().min(NAME_BYTES);
            field[..fits].copy_from_slice(&text[..fits]);
            if text.len() > NAME_BYTES {
                records.push((key.to_owned(), text.to_vec()));
            }
        }
        header.set_cksum();
        if !records.is_empty() {
            let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            self.out.append_pax_extensions(records)?;
        }
        self.out.append(&header, content)
    }
}

/// Everything before the last part of a name, and that part.
fn split_name(path: &[u8]) -> (&[u8], &[u8]) {
    let at = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    path.split_at(at)
}

/// Exactly as many bytes as the header says, even of a file that grows or shrinks.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let mut read = self.file.read(&mut buffer[..most])?;
        if read == 0 && most > 0 {
            buffer[..most].fill(0);
            read = most;
        }
        self.left -= read as u64;
        Ok(read)
    }
}

/// Extended attributes that go along.
fn xattrs(file: impl AsFd) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = vec![0_u8; 64 << 10];
    let length = match fs::flistxattr(&file, names.as_mut_slice()) {
        Err(Errno::OPNOTSUPP) => 0,
        listed => listed?,
    };
    let mut found = Vec::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if XATTRS_LEFT_OUT.iter().any(|left_out| name.starts_with(left_out)) {
            continue;
        }
        let mut value = vec![0_u8; 64 << 10];
        match fs::fgetxattr(&file, name, value.as_mut_slice()) {
            Ok(length) => {
                value.truncate(length);
                found.push((name.to_owned(), value));
            }
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;
    use crate::tree::open_root;

    fn listed(tar: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(tar);
        let line = |entry: tar::Entry<'_, &[u8]>| {
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            match entry.link_name_bytes() {
                Some(target) => format!("{name} -> {}", String::from_utf8_lossy(&target)),
                None => name,
            }
        };
        archive.entries().expect("entries").map(|entry| line(entry.expect("entry"))).collect()
    }

    fn packed(root: &Path, name: &str, path: &str) -> Vec<u8> {
        let mut packer = Packer::new(Vec::new());
        packer.add(&open_root(root).expect("opens"), name.as_ref(), path.as_bytes()).expect("packs");
        packer.finish().expect("ends")
    }

    #[test]
    fn names_are_the_callers_and_links_stay_links() {
        let dir = tempfile::tempdir().expect("tempdir");
        let long = "n".repeat(120);
        std::fs::create_dir(dir.path().join("sub")).expect("mkdir");
        std::fs::write(dir.path().join("sub/a"), "one").expect("file");
        std::fs::hard_link(dir.path().join("sub/a"), dir.path().join("sub/b")).expect("link");
        symlink("../a", dir.path().join("sub/c")).expect("link");
        std::fs::write(dir.path().join("sub").join(&long), "").expect("file");
        let below = |prefix: &str| {
            ["".to_owned(), "a".to_owned(), format!("b -> {prefix}a"), "c -> ../a".to_owned(), long.clone()]
                .map(|name| format!("{prefix}{name}"))
        };
        assert_eq!(listed(&packed(dir.path(), "sub", "x")), below("x/"));
        assert_eq!(listed(&packed(dir.path(), "sub", ".")), below("./"));
        assert_eq!(listed(&packed(dir.path(), "sub", "/")), below("/"));
        assert_eq!(listed(&packed(dir.path(), "missing", "x")), [""; 0]);
    }

    #[test]
    fn content_owner_mode_and_time_go_along() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("file");
        std::fs::write(&path, "content").expect("file");
        std::os::unix::fs::chown(&path, Some(3_000_000), Some(5)).expect("chown");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o4751)).expect("chmod");
        let tar = packed(dir.path(), "file", "file");
        let mut archive = tar::Archive::new(&tar[..]);
        let mut entry = archive.entries().expect("entries").next().expect("one").expect("entry");
        let header = entry.header().clone();
        assert_eq!(header.mode().expect("mode"), 0o4751);
        assert_eq!((header.uid().expect("uid"), header.gid().expect("gid")), (3_000_000, 5));
        let mut text = String::new();
        entry.read_to_string(&mut text).expect("content");
        assert_eq!(text, "content");
    }

    #[test]
    fn a_layer_says_what_it_deletes() {
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::create_dir(dir.path().join("sub")).expect("mkdir");
        let sub = open_root(&dir.path().join("sub")).expect("opens");
        fs::mknodat(&sub, "gone", FileType::CharacterDevice, Mode::empty(), 0).expect("whiteout");
        tree::set_opaque(&sub).expect("opaque");
        std::fs::write(dir.path().join("ours"), "").expect("file");
        let mut packer = Packer::layer(Vec::new(), [b"./ours".to_vec()].into());
        packer.add(&open_root(dir.path()).expect("opens"), ".".as_ref(), b".").expect("packs");
        let tar = packer.finish().expect("ends");
        assert_eq!(listed(&tar), ["./", "./sub/", "./sub/.wh..wh..opq", "./sub/.wh.gone"]);
    }
}
