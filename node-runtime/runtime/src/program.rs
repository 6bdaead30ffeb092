//! The program's own file, kept out of containers' reach.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;

use crate::sys::{self, MountAttributes};

/// A view of a program's file that cannot be written through, to run it from as `/proc/<pid>/fd/<fd>`.
///
/// A container's init is a copy of its caller until it executes the user's command. A container that gets
/// hold of `/proc/<pid>/exe` in that moment must not find a way to overwrite the program (CVE-2019-5736):
/// here it finds a read-only mount that is in nobody's namespace.
///
/// # Errors
/// The failing call's.
pub fn readonly_program(path: &Path) -> io::Result<OwnedFd> {
    let tree = rustix::mount::open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?;
    let readonly = MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() };
    sys::mount_setattr(&tree, false, readonly)?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn the_view_cannot_be_written_through() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("program");
        std::fs::write(&path, "x").expect("write");
        let view = readonly_program(&path).expect("view");
        let through = format!("/proc/self/fd/{}", view.as_raw_fd());
        assert_eq!(std::fs::read_to_string(&through).expect("read"), "x");
        let error = OpenOptions::new().write(true).open(&through).expect_err("read only");
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    }
}
