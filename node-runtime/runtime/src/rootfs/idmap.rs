//! Id-mapped mounts: files of one owner on disk show as another's in the container.
//!
//! The kernel takes the map from a user namespace. One is made for it by a child that does nothing, and
//! that is gone before the container is there.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use oci_spec::runtime::LinuxIdMapping;
use rustix::pipe::PipeFlags;

use super::mount::clone_tree;
use crate::failure::{Context, Failure};
use crate::init::close_inherited;
use crate::sys;

/// A user namespace with these maps. uid_map: id on disk, id that is shown, how many.
// spec: oci-runtime config.md#mounts uidMappings; user_namespaces(7)
pub(super) fn namespace(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<OwnedFd, Failure> {
    let (wait, hold) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("make a pipe")?;
    let flags = u64::from(libc::CLONE_NEWUSER.cast_unsigned());
    let child = sys::clone_process(flags, None, || {
        close_inherited(&hold.as_raw_fd());
        // Silence means that our parent has what it wants, or is gone.
        let _ = rustix::io::read(&wait, &mut [0; 1]);
        0
    });
    let child = child.context("make a user namespace for id-mapped mounts")?;
    let made = map(child.pid, uids, gids);
    drop(hold);
    waitpid(Pid::from_raw(child.pid), None).context("wait for a helper")?;
    made
}

/// A copy of a mount whose files show under the ids of a user namespace; with `below`, so do those of the mounts
/// below it.
pub(super) fn clone_mapped(
    source: &Path,
    recursive: bool,
    below: bool,
    namespace: &OwnedFd,
) -> Result<OwnedFd, Failure> {
    let tree = clone_tree(source, recursive).with_context(|| format!("open {}", source.display()))?;
    sys::id_map_mount(&tree, below, namespace)
        .with_context(|| format!("id-map `{}` (can its file system be id-mapped?)", source.display()))?;
    Ok(tree)
}

fn map(pid: i32, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<OwnedFd, Failure> {
    for (name, mappings) in [("uid_map", uids), ("gid_map", gids)] {
        std::fs::write(format!("/proc/{pid}/{name}"), text(mappings))
            .with_context(|| format!("write {name} of id-mapped mounts"))?;
    }
    let namespace = File::open(format!("/proc/{pid}/ns/user")).context("open user namespace")?;
    Ok(namespace.into())
}

fn text(mappings: &[LinuxIdMapping]) -> String {
    let line = |map: &LinuxIdMapping| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size());
    mappings.iter().map(line).collect()
}
