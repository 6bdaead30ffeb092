//! The layer of places: where every container gets something mounted, an empty directory or file is made if the
//! image has none. It lies on the image's topmost layer, is made once and shared by all containers of the image;
//! Docker makes one for each. Nobody sees it as a change.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{self, FileType, Mode, OFlags};

use crate::tree::{self, Tree};
use crate::unpack;

#[derive(Debug, Clone, Copy)]
enum Place {
    Directory,
    File(u32),
    Link(&'static str),
}

/// What lies below `/dev` is not among them: that is always a file system of the container's own.
const PLACES: [(&str, Place); 8] = [
    // No mount: programs tell by it that they are in a container.
    (".dockerenv", Place::File(0o755)),
    ("dev", Place::Directory),
    ("etc/hostname", Place::File(0o644)),
    ("etc/hosts", Place::File(0o644)),
    ("etc/mtab", Place::Link("/proc/mounts")),
    ("etc/resolv.conf", Place::File(0o644)),
    ("proc", Place::Directory),
    ("sys", Place::Directory),
];

/// Makes what `lower` (topmost first) lacks, in an empty directory. Directories on the way look as they do below.
pub(crate) fn make(dir: &Path, lower: &[PathBuf]) -> io::Result<()> {
    let mut tree = Tree::open(dir)?;
    for (path, place) in PLACES {
        let path = Path::new(path);
        if is_missing(lower, path)? {
            put(&mut tree, path, place)?;
        }
    }
    for passed in tree.take_made() {
        unpack::settle_implicit(&tree, lower, &passed)?;
    }
    Ok(())
}

/// Whether there is nothing of that name, and a directory where it may be made.
fn is_missing(lower: &[PathBuf], path: &Path) -> io::Result<bool> {
    let parent = tree::lookup(lower, path.parent().unwrap_or(Path::new("")))?;
    let has_room = parent.is_none_or(|(_, _, stat)| tree::file_type(&stat) == FileType::Directory);
    Ok(has_room && tree::lookup(lower, path)?.is_none())
}

fn put(tree: &mut Tree, path: &Path, place: Place) -> io::Result<()> {
    let (parent, Some(name)) = tree::split(path) else { return Ok(()) };
    match place {
        Place::Directory => tree.dir(path).map(drop),
        Place::Link(target) => Ok(fs::symlinkat(target, &*tree.dir(parent)?, name)?),
        Place::File(mode) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let file = fs::openat(&*tree.dir(parent)?, name, flags, Mode::empty())?;
            Ok(fs::fchmod(file, Mode::from_raw_mode(mode))?)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    /// A lower directory as `fill` leaves it, and the places made for it.
    fn made(fill: impl FnOnce(&Path)) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("tempdir");
        let (lower, places) = (dir.path().join("lower"), dir.path().join("places"));
        std::fs::create_dir(&lower).expect("lower");
        std::fs::create_dir(&places).expect("places");
        fill(&lower);
        make(&places, &[lower]).expect("places");
        (dir, places)
    }

    #[test]
    fn an_image_of_nothing_but_a_program_gets_all_of_them() {
        let (_dir, places) = made(|_| {});
        for (path, place) in PLACES {
            let meta = places.join(path).symlink_metadata().expect(path);
            match place {
                Place::Directory => assert!(meta.is_dir() && meta.mode() & 0o7777 == 0o755, "{path}"),
                Place::File(mode) => assert!(meta.is_file() && meta.mode() & 0o7777 == mode, "{path}"),
                Place::Link(target) => {
                    assert_eq!(places.join(path).read_link().expect(path), Path::new(target));
                }
            }
        }
    }

    #[test]
    fn what_an_image_has_is_left_as_it_is() {
        let (_dir, places) = made(|lower| {
            for dir in ["dev", "proc", "sys", "etc"] {
                std::fs::create_dir(lower.join(dir)).expect("dir");
            }
            std::fs::write(lower.join("etc/hosts"), "127.0.0.1 image").expect("hosts");
            let etc = lower.join("etc");
            std::fs::set_permissions(&etc, std::fs::Permissions::from_mode(0o750)).expect("mode");
            std::os::unix::fs::chown(&etc, Some(7), Some(8)).expect("owner, as root");
            let long_ago = std::time::SystemTime::UNIX_EPOCH;
            std::fs::File::open(&etc).and_then(|etc| etc.set_modified(long_ago)).expect("mtime");
        });
        let names = |dir: &Path| {
            let entries =
                std::fs::read_dir(dir).expect("read").map(|entry| entry.expect("entry").file_name());
            let mut names: Vec<_> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&places), [".dockerenv", "etc"]);
        assert_eq!(names(&places.join("etc")), ["hostname", "mtab", "resolv.conf"]);
        let etc = places.join("etc").metadata().expect("etc");
        assert_eq!((etc.mode() & 0o7777, etc.uid(), etc.gid(), etc.mtime()), (0o750, 7, 8, 0));
    }

    #[test]
    fn nothing_is_made_behind_a_link_or_in_a_file() {
        let (_dir, places) = made(|lower| {
            symlink("usr/etc", lower.join("etc")).expect("link");
            std::fs::write(lower.join("dev"), "").expect("file");
        });
        assert!(places.join("etc").symlink_metadata().is_err());
        assert!(places.join("dev").symlink_metadata().is_err());
        assert!(places.join("proc").is_dir());
    }
}
