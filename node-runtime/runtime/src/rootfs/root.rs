//! The root itself: how it hangs together with the machine's mounts, and how it becomes `/`.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags};

use super::mount::{attach, clone_tree};
use super::options;
use crate::failure::{Context, Failure};
use crate::sys::{self, MountAttributes};

/// `linux.rootfsPropagation`, understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Propagation {
    /// `MS_SHARED` and so on.
    flag: u64,
    recursive: bool,
}

impl Propagation {
    /// Unless it is said otherwise, mounts of the machine arrive in the container and none leaves it.
    pub(super) fn of(name: Option<&str>) -> Result<Propagation, Failure> {
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Ok(Propagation { flag: libc::MS_SLAVE, recursive: true });
        };
        let known = options::propagation(name);
        let (flag, recursive) =
            known.ok_or_else(|| Failure::invalid(format!("rootfsPropagation={name} is not supported")))?;
        Ok(Propagation { flag, recursive })
    }

    /// Without pivot_root(2) the machine's mounts stay below the container's, where private ones would keep
    /// what the machine unmounts.
    pub(super) fn is_private(self) -> bool {
        self.flag == libc::MS_PRIVATE
    }

    fn is_shared(self) -> bool {
        self.flag == libc::MS_SHARED
    }

    fn set(self, mount: &OwnedFd, flag: u64) -> io::Result<()> {
        let change = MountAttributes { propagation: flag, ..MountAttributes::default() };
        sys::mount_setattr(mount, self.recursive, change)
    }
}

/// Makes the root a mount of its own, as pivot_root(2) wants it, in a namespace where nothing that we mount
/// leaves by itself. A root that shares lets bind mounts share with the machine: then only the mount around
/// the root is cut off.
// spec: oci-runtime config-linux.md#rootfs-mount-propagation
pub(super) fn bind(
    path: &Path,
    prepared: Option<&OwnedFd>,
    propagation: Propagation,
) -> Result<OwnedFd, Failure> {
    let what = || format!("bind root `{}`", path.display());
    if propagation.is_shared() {
        cut_off(path).with_context(what)?;
    } else {
        rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .context("make mounts not propagate")?;
    }
    let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
    let tree = match (clone_tree(path, true), prepared) {
        (Err(error), Some(prepared)) if denied(&error) => prepared.try_clone(),
        (tree, _) => tree,
    };
    let tree = tree.with_context(what)?;
    if propagation.flag == libc::MS_PRIVATE || propagation.flag == libc::MS_UNBINDABLE {
        propagation.set(&tree, libc::MS_PRIVATE).with_context(what)?;
    }
    // Over itself, where hooks look for it; a root in a directory that its user may not enter can as well
    // be over `/`.
    let target = match open_dir(path) {
        Err(error) if prepared.is_some() && denied(&error) => open_dir(Path::new("/")),
        target => target,
    };
    attach(&tree, &target.with_context(what)?).with_context(what)?;
    Ok(tree)
}

/// Makes the mount that contains `path` private.
fn cut_off(path: &Path) -> io::Result<()> {
    let path = path_of(&open_dir(path)?)?;
    for mount in path.ancestors() {
        match rustix::mount::mount_change(mount, MountPropagationFlags::PRIVATE) {
            // Not a mount point: the next one above.
            Err(Errno::INVAL) if mount != Path::new("/") => {}
            changed => return Ok(changed?),
        }
    }
    Ok(())
}

/// Where a directory is, seen from our root.
fn path_of(dir: &OwnedFd) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Swaps the roots and lets the old one go. pivot_root(2) explains the dots.
pub(super) fn pivot(root: &OwnedFd) -> Result<(), Failure> {
    let old = open_dir(Path::new("/")).context("open old root")?;
    rustix::process::fchdir(root).context("enter root")?;
    rustix::process::pivot_root(".", ".").context("pivot_root")?;
    rustix::process::fchdir(&old).context("enter old root")?;
    rustix::mount::mount_change(".", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .context("make old root not propagate")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).context("detach old root")?;
    rustix::process::chdir("/").context("chdir /")
}

/// Makes a directory the root, in a mount namespace that is the machine's.
pub(crate) fn change(root: &OwnedFd) -> Result<(), Failure> {
    rustix::process::fchdir(root).context("enter root")?;
    rustix::process::chroot(".").context("chroot")?;
    rustix::process::chdir("/").context("chdir /")
}

/// Moves the root over the old one, for a machine that runs from its initramfs, which cannot be pivoted.
pub(super) fn move_over(root: &OwnedFd) -> Result<(), Failure> {
    take_kernels_away(root)?;
    rustix::process::fchdir(root).context("enter root")?;
    rustix::mount::move_mount(root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .context("move root over /")?;
    change(root)
}

/// The old root stays below, with it the machine's procfs and sysfs: as long as they are there whole, the
/// kernel would let the container mount more of them, unmasked.
fn take_kernels_away(root: &OwnedFd) -> Result<(), Failure> {
    let own = path_of(root).context("look at root")?;
    let table = fs::read("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    let wholes = whole_kernel_mounts(&String::from_utf8_lossy(&table));
    for mount in wholes.iter().filter(|mount| !mount.starts_with(&own)) {
        let what = || format!("take away `{}`", mount.display());
        match rustix::mount::mount_change(
            mount,
            MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        ) {
            // It went with a mount around it.
            Err(Errno::NOENT) => continue,
            changed => changed.with_context(what)?,
        }
        match rustix::mount::unmount(mount.as_path(), UnmountFlags::DETACH) {
            Err(Errno::INVAL | Errno::PERM) => {
                rustix::mount::mount(c"tmpfs", mount.as_path(), c"tmpfs", MountFlags::empty(), None)
                    .with_context(what)?;
            }
            done => done.with_context(what)?,
        }
    }
    Ok(())
}

/// Mount points of whole proc and sysfs file systems. Fields as in proc_pid_mountinfo(5).
fn whole_kernel_mounts(table: &str) -> Vec<PathBuf> {
    let mount = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let typ = filesystem.split(' ').next()?;
        let mut fields = mount.split(' ').skip(3);
        let (top, point) = (fields.next()?, fields.next()?);
        (top == "/" && matches!(typ, "proc" | "sysfs")).then(|| PathBuf::from(unescape(point)))
    };
    table.lines().filter_map(mount).collect()
}

/// Takes back what the kernel writes as `\040` and the like.
fn unescape(point: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(point.to_owned(), |text, (code, letter)| text.replace(code, letter))
}

/// What the root is to be once it is `/`; slave and private were seen to when it was bound.
pub(super) fn propagate(root: &OwnedFd, propagation: Propagation) -> Result<(), Failure> {
    match propagation.flag {
        libc::MS_SLAVE | libc::MS_PRIVATE => Ok(()),
        flag => propagation.set(root, flag).context("set propagation of /"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_kernel_file_systems_are_found() {
        let table = "23 1 0:21 / /proc rw,relatime - proc proc rw\n\
                     24 1 0:22 / /mnt/a\\040b rw shared:1 - sysfs sysfs rw\n\
                     25 1 0:21 /sys /x rw - proc proc rw\n\
                     26 1 8:1 / / rw - ext4 /dev/root rw\n";
        assert_eq!(whole_kernel_mounts(table), [Path::new("/proc"), Path::new("/mnt/a b")]);
    }

    #[test]
    fn an_unknown_propagation_is_refused_by_name() {
        let failure = Propagation::of(Some("sideways")).expect_err("refused");
        assert_eq!(failure.message, "rootfsPropagation=sideways is not supported");
        assert_eq!(Propagation::of(Some("")), Propagation::of(None));
    }
}
