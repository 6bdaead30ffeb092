//! What a container may not see or write, although it is there. For a tree that is `/` already.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::device;
use super::filesystem::Filesystem;
use super::mount::{attach, clone_of};
use super::path::{self, Missing, Place};
use crate::failure::{Context, Failure};
use crate::sys::{self, MountAttributes};

/// What is put over hidden files and directories; made when the first is.
pub(super) struct Covers<'a> {
    root: BorrowedFd<'a>,
    label: Option<&'a str>,
    null: Option<OwnedFd>,
    empty: Option<OwnedFd>,
}

/// Puts a read-only copy of a mount over itself; a path that is not there needs none.
pub(super) fn make_readonly(root: BorrowedFd<'_>, path: &Path) -> Result<(), Failure> {
    let what = || format!("make `{}` read-only", path.display());
    let Some(place) = find(root, path).with_context(what)? else { return Ok(()) };
    let tree = clone_of(&place.fd, true).with_context(what)?;
    sys::mount_setattr(&tree, true, readonly()).with_context(what)?;
    attach(&tree, &place.fd).with_context(what)
}

pub(super) fn readonly() -> MountAttributes {
    MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() }
}

impl<'a> Covers<'a> {
    pub(super) fn new(root: BorrowedFd<'a>, label: Option<&'a str>) -> Covers<'a> {
        Covers { root, label, null: None, empty: None }
    }

    /// Covers a file with `/dev/null` and a directory with an empty one.
    pub(super) fn mask(&mut self, path: &Path) -> Result<(), Failure> {
        let what = || format!("mask `{}`", path.display());
        let Some(place) = find(self.root, path).with_context(what)? else { return Ok(()) };
        let stat = rustix::fs::fstat(&place.fd).with_context(what)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            let cover = clone_of(self.null()?, false).with_context(what)?;
            return attach(&cover, &place.fd).with_context(what);
        }
        match &self.empty {
            Some(empty) => {
                let cover = clone_of(empty, false).with_context(what)?;
                attach(&cover, &place.fd).with_context(what)
            }
            // Only a mount that is attached can be copied by kernels before 6.15.
            None => {
                let flags = MountAttrFlags::MOUNT_ATTR_RDONLY;
                let options = [("nr_blocks", "1"), ("nr_inodes", "1")];
                let made = Filesystem::tmpfs(&options, self.label).make(flags);
                let cover = made.map_err(|refused| refused.failure)?;
                attach(&cover, &place.fd).with_context(what)?;
                self.empty = Some(cover);
                Ok(())
            }
        }
    }

    /// The container's `/dev/null`, when it really is that: an image may have put something else there.
    fn null(&mut self) -> Result<&OwnedFd, Failure> {
        if self.null.is_none() {
            let place = path::open(self.root, Path::new("dev/null"), Missing::Refuse);
            let place = place.context("open /dev/null")?;
            let stat = rustix::fs::fstat(&place.fd).context("look at /dev/null")?;
            let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
            if !is_device || stat.st_rdev != device::null_number() {
                return Err(Failure::invalid("the container's /dev/null is something else"));
            }
            self.null = Some(place.fd);
        }
        Ok(self.null.as_ref().expect("it was just opened"))
    }
}

/// Where a path leads, links followed inside the root; nowhere is fine.
fn find(root: BorrowedFd<'_>, path: &Path) -> std::io::Result<Option<Place>> {
    match path::open(root, path, Missing::Refuse) {
        Ok(place) => Ok(Some(place)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            _ => Err(error),
        },
    }
}
