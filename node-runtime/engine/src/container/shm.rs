//! The `/dev/shm` of a container that shares its IPC namespace: a mount of the daemon's, which the shims of those
//! that share it find. It goes with its container.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags};

use super::Container;

/// Docker's size.
const SIZE: i64 = 64 << 20;

/// Where it is below a container's state directory.
fn place(state_dir: &Path) -> PathBuf {
    state_dir.join("shm")
}

/// Mounts it, unless that was done. Blocks.
pub(super) fn mount(state_dir: &Path, container: &Container) -> io::Result<PathBuf> {
    let (place, asked) = (place(state_dir), container.config.spec.shm_size);
    fs::create_dir_all(&place)?;
    if is_mounted(&place)? {
        return Ok(place);
    }
    let size = if asked > 0 { asked } else { SIZE };
    let data = format!("mode=1777,size={size}\0");
    let data = std::ffi::CStr::from_bytes_with_nul(data.as_bytes()).map_err(io::Error::other)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("shm", &place, "tmpfs", flags, data)?;
    Ok(place)
}

/// That of a container which shares it; `None` when it does not.
pub(super) fn shared(state_dir: &Path) -> Option<PathBuf> {
    Some(place(state_dir)).filter(|place| is_mounted(place).unwrap_or(false))
}

/// Takes it away where there is one: users that are left keep their own view of it. Blocks.
pub(super) fn unmount(state_dir: &Path) -> io::Result<()> {
    let place = place(state_dir);
    if place.exists() && is_mounted(&place)? {
        rustix::mount::unmount(&place, UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// Whether another file system begins here.
fn is_mounted(place: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let parent = place.parent().unwrap_or(Path::new("/"));
    Ok(fs::symlink_metadata(place)?.dev() != fs::symlink_metadata(parent)?.dev())
}
