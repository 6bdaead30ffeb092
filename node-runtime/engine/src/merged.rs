//! A container's layers seen as the one tree that overlayfs would show, without a mount.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, FileTimes, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, mknod};

use crate::merge::clean_path;

/// As the kernel: so many symbolic links in one path are a loop.
const LINKS_MAX: usize = 40;
/// Marks a directory that hides those below it.
const OPAQUE: &str = "trusted.overlay.opaque";

/// One directory, in all layers that have a part of it, topmost first.
#[derive(Debug)]
pub(crate) struct Directory {
    pub layers: Vec<PathBuf>,
}

enum Found {
    Nothing,
    Directory(Directory),
    Link(PathBuf),
    Other,
}

/// The directory at an absolute path, links followed within the tree; `None` when there is none.
pub(crate) fn directory(lower: &[PathBuf], path: &str) -> io::Result<Option<Directory>> {
    let mut path = clean_path(path);
    for _ in 0..LINKS_MAX {
        let mut here = Directory { layers: lower.to_vec() };
        let mut done = PathBuf::from("/");
        let mut rest = path.split('/').filter(|part| !part.is_empty());
        let target = loop {
            let Some(part) = rest.next() else { return Ok(Some(here)) };
            match here.child(OsStr::new(part))? {
                Found::Directory(child) => here = child,
                Found::Link(target) => break target,
                Found::Nothing | Found::Other => return Ok(None),
            }
            done.push(part);
        };
        let rest: PathBuf = rest.collect();
        path = clean_path(&done.join(target).join(rest).to_string_lossy());
    }
    Ok(None)
}

impl Directory {
    fn child(&self, name: &OsStr) -> io::Result<Found> {
        let mut layers = Vec::new();
        for layer in &self.layers {
            let path = layer.join(name);
            let Some(meta) = metadata(&path)? else { continue };
            if meta.is_dir() {
                let opaque = is_opaque(&path);
                layers.push(path);
                if opaque {
                    break;
                }
            } else if layers.is_empty() {
                return Ok(match meta.file_type() {
                    _ if is_whiteout(&meta) => Found::Nothing,
                    kind if kind.is_symlink() => Found::Link(fs::read_link(&path)?),
                    _ => Found::Other,
                });
            } else {
                break;
            }
        }
        Ok(if layers.is_empty() { Found::Nothing } else { Found::Directory(Directory { layers }) })
    }

    fn names(&self) -> io::Result<BTreeSet<OsString>> {
        let mut names = BTreeSet::new();
        for layer in &self.layers {
            for entry in fs::read_dir(layer)? {
                names.insert(entry?.file_name());
            }
        }
        Ok(names)
    }

    /// The topmost part of an entry that is no directory.
    fn file(&self, name: &OsStr) -> io::Result<Option<(PathBuf, Metadata)>> {
        for layer in &self.layers {
            let path = layer.join(name);
            if let Some(meta) = metadata(&path)? {
                return Ok((!is_whiteout(&meta)).then_some((path, meta)));
            }
        }
        Ok(None)
    }
}

/// Makes a directory in `upper` where the merged tree has none, with its missing parents (root, 0755). Parents
/// that only `lower` has get their owner and mode in `upper` too, since overlayfs shows the topmost.
pub(crate) fn ensure_directory(upper: &Path, lower: &[PathBuf], path: &str) -> io::Result<()> {
    let layers: Vec<PathBuf> = [upper.to_owned()].into_iter().chain(lower.iter().cloned()).collect();
    if directory(&layers, path)?.is_some() {
        return Ok(());
    }
    upper_directory(upper, lower, path).map(drop)
}

/// As [`ensure_directory`], but `upper` gets a part of a directory that only `lower` has too: where that is.
pub(crate) fn upper_directory(upper: &Path, lower: &[PathBuf], path: &str) -> io::Result<PathBuf> {
    let layers: Vec<PathBuf> = [upper.to_owned()].into_iter().chain(lower.iter().cloned()).collect();
    let mut path = clean_path(path);
    for _ in 0..LINKS_MAX {
        let mut here = Directory { layers: layers.clone() };
        let mut target = upper.to_owned();
        let mut done = PathBuf::from("/");
        let mut rest = path.split('/').filter(|part| !part.is_empty());
        let link = loop {
            let Some(part) = rest.next() else { return Ok(target) };
            let found = here.child(OsStr::new(part))?;
            if let Found::Link(link) = found {
                break link;
            }
            target.push(part);
            done.push(part);
            here = match found {
                Found::Directory(child) => {
                    if metadata(&target)?.is_none() {
                        fs::create_dir(&target)?;
                        finish(&child.layers[0], &fs::symlink_metadata(&child.layers[0])?, &target)?;
                    }
                    child
                }
                Found::Nothing => {
                    make_fresh(&target)?;
                    Directory { layers: vec![target.clone()] }
                }
                Found::Other | Found::Link(_) => return Err(io::ErrorKind::NotADirectory.into()),
            };
        };
        let rest: PathBuf = rest.collect();
        path = clean_path(&done.join(link).join(rest).to_string_lossy());
    }
    Err(io::Error::from_raw_os_error(nix::errno::Errno::ELOOP as i32))
}

/// A new directory, also in place of a whiteout; then it must hide what is below.
fn make_fresh(target: &Path) -> io::Result<()> {
    let was_whiteout = metadata(target)?.is_some();
    if was_whiteout {
        fs::remove_file(target)?;
    }
    fs::create_dir(target)?;
    fs::set_permissions(target, fs::Permissions::from_mode(0o755))?;
    if was_whiteout {
        rustix::fs::lsetxattr(target, OPAQUE, b"y", rustix::fs::XattrFlags::empty())?;
    }
    Ok(())
}

/// Copies what is in the directory into `into`, with owners, modes, times and extended attributes.
pub(crate) fn copy(from: &Directory, into: &Path) -> io::Result<()> {
    for name in from.names()? {
        let target = into.join(&name);
        match from.child(&name)? {
            Found::Directory(child) => {
                fs::create_dir(&target)?;
                copy(&child, &target)?;
                finish(&child.layers[0], &fs::symlink_metadata(&child.layers[0])?, &target)?;
            }
            Found::Link(_) | Found::Other => {
                if let Some((source, meta)) = from.file(&name)? {
                    copy_file(&source, &meta, &target)?;
                }
            }
            Found::Nothing => {}
        }
    }
    Ok(())
}

fn copy_file(source: &Path, meta: &Metadata, target: &Path) -> io::Result<()> {
    let kind = meta.file_type();
    if kind.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(source)?, target)?;
        return lchown(target, Some(meta.uid()), Some(meta.gid()));
    }
    if kind.is_file() {
        fs::copy(source, target)?;
    } else {
        let special = match kind {
            kind if kind.is_fifo() => SFlag::S_IFIFO,
            kind if kind.is_char_device() => SFlag::S_IFCHR,
            kind if kind.is_block_device() => SFlag::S_IFBLK,
            // A socket without its process is of no use.
            _ => return Ok(()),
        };
        mknod(target, special, Mode::from_bits_truncate(meta.mode()), meta.rdev())?;
    }
    finish(source, meta, target)
}

/// Owner first: it clears set-uid bits. Times last: everything else changes them.
fn finish(source: &Path, meta: &Metadata, target: &Path) -> io::Result<()> {
    lchown(target, Some(meta.uid()), Some(meta.gid()))?;
    fs::set_permissions(target, fs::Permissions::from_mode(meta.mode() & 0o7777))?;
    copy_attributes(source, target)?;
    if meta.is_file() || meta.is_dir() {
        let times = FileTimes::new().set_modified(meta.modified()?).set_accessed(meta.accessed()?);
        File::open(target)?.set_times(times)?;
    }
    Ok(())
}

fn copy_attributes(source: &Path, target: &Path) -> io::Result<()> {
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::llistxattr(source, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let ours = |name: &[u8]| name.starts_with(b"trusted.overlay.") || name.is_empty();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !ours(name)) {
        let mut value = vec![0; 64 << 10];
        let length = rustix::fs::lgetxattr(source, name, &mut value)?;
        rustix::fs::lsetxattr(target, name, &value[..length], rustix::fs::XattrFlags::empty())?;
    }
    Ok(())
}

fn metadata(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_whiteout(meta: &Metadata) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == 0
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 1];
    rustix::fs::lgetxattr(path, OPAQUE, &mut value[..]) == Ok(1) && value == *b"y"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(root: &Path, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let layer = root.join(name);
        for (path, content) in files {
            let path = layer.join(path);
            fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
            fs::write(path, content).expect("write");
        }
        layer
    }

    #[test]
    fn the_copy_is_what_an_overlay_would_show() {
        let dir = tempfile::tempdir().expect("tempdir");
        let bottom =
            layer(dir.path(), "bottom", &[("srv/a", "old"), ("srv/gone", "x"), ("srv/sub/deep", "d")]);
        let top = layer(dir.path(), "top", &[("srv/a", "new"), ("srv/sub/more", "m"), ("etc/x", "")]);
        mknod(&top.join("srv/gone"), SFlag::S_IFCHR, Mode::empty(), 0).expect("whiteout");
        std::os::unix::fs::symlink("/srv", top.join("link")).expect("link");
        lchown(top.join("srv/a"), Some(7), Some(8)).expect("owner");
        fs::set_permissions(top.join("srv/a"), fs::Permissions::from_mode(0o4755)).expect("mode");
        let into = dir.path().join("into");
        fs::create_dir(&into).expect("mkdir");
        let source = directory(&[top, bottom], "/link/").expect("read").expect("found");
        copy(&source, &into).expect("copied");
        assert_eq!(fs::read_to_string(into.join("a")).expect("a"), "new");
        assert_eq!(fs::read_to_string(into.join("sub/deep")).expect("deep"), "d");
        assert_eq!(fs::read_to_string(into.join("sub/more")).expect("more"), "m");
        assert!(!into.join("gone").exists());
        let meta = fs::metadata(into.join("a")).expect("meta");
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (7, 8, 0o4755));
    }

    #[test]
    fn a_missing_directory_is_made_in_the_upper_layer_under_unchanged_parents() {
        let dir = tempfile::tempdir().expect("tempdir");
        let lower = layer(dir.path(), "lower", &[("home/web/x", ""), ("file", "")]);
        fs::set_permissions(lower.join("home/web"), fs::Permissions::from_mode(0o700)).expect("mode");
        lchown(lower.join("home/web"), Some(7), Some(7)).expect("owner");
        std::os::unix::fs::symlink("home/web", lower.join("link")).expect("link");
        let upper = layer(dir.path(), "upper", &[("x", "")]);
        ensure_directory(&upper, std::slice::from_ref(&lower), "/link/a/b").expect("made");
        let meta = fs::metadata(upper.join("home/web")).expect("parent");
        assert_eq!((meta.uid(), meta.mode() & 0o777), (7, 0o700));
        assert_eq!(fs::metadata(upper.join("home/web/a/b")).expect("made").mode() & 0o777, 0o755);
        ensure_directory(&upper, std::slice::from_ref(&lower), "/home").expect("there already");
        assert!(ensure_directory(&upper, &[lower], "/file/x").is_err());
    }

    #[test]
    fn what_is_no_directory_is_not_found() {
        let dir = tempfile::tempdir().expect("tempdir");
        let only = layer(dir.path(), "only", &[("file", "x")]);
        std::os::unix::fs::symlink("loop", only.join("loop")).expect("link");
        let lower = [only];
        for path in ["/file", "/missing", "/loop", "/file/x"] {
            assert!(directory(&lower, path).expect("read").is_none(), "{path}");
        }
        assert!(directory(&lower, "/").expect("read").is_some());
    }
}
