//! One mount of the spec: made detached, changed as its options say, and then attached to an open
//! descriptor, so that nothing between look-up and mount can be swapped.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, FileType};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::filesystem::Filesystem;
use super::options::Options;
use super::path::{self, Missing, Place};
use super::{cgroups, copy, idmap, is_procfs};
use crate::cgroup::Cgroup;
use crate::channel::{Channel, IdMap};
use crate::failure::{Context, Failure};
use crate::sys::{self, MountAttributes};

/// A spec's mount, understood.
pub(super) struct Planned<'a> {
    pub mount: &'a Mount,
    pub options: Options,
    pub kind: Kind<'a>,
    /// What a bind mount shows, where the parent had to open it.
    pub source: Option<OwnedFd>,
    /// Where a bind mount's ids come from, when init maps them.
    pub id_namespace: Option<Rc<OwnedFd>>,
}

/// What is done for a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    /// Shows a directory or file of the machine, at this path.
    Bind(&'a Path),
    /// Changes what an earlier mount put there.
    Remount,
    /// Shows the container its cgroups; those of version 2 alone when the type says so.
    Cgroups { version2: bool },
    /// A file system of its own.
    Filesystem(&'a str),
}

/// Where mounts are made.
pub(super) struct Site<'a> {
    pub root: BorrowedFd<'a>,
    /// Where it is on the machine.
    pub root_path: &'a Path,
    pub bundle: &'a Path,
    pub cgroup: &'a Cgroup,
    /// The container sees its own cgroup as the root.
    pub cgroup_namespace: bool,
    /// Processes are numbered as on the machine.
    pub host_pids: bool,
    /// SELinux' label for files of new file systems.
    pub label: Option<&'a str>,
    /// Who maps ids for a user namespace, which may not.
    pub parent: Option<&'a Channel>,
    /// Mounts that become read-only when everything inside them is made.
    pub readonly_later: Vec<OwnedFd>,
}

/// Files of procfs that may be covered one by one, as lxcfs does.
const COVERABLE: &[&str] = &[
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/meminfo",
    "proc/stat",
    "proc/swaps",
    "proc/uptime",
    "proc/loadavg",
    "proc/slabinfo",
    "proc/sys/kernel/ns_last_pid",
    "proc/sys/crypto/fips_enabled",
];

/// What a user namespace may not mount anew while the namespace that it shows is the machine's.
const MACHINES_OWN: &[(&str, &str)] = &[("sysfs", "/sys"), ("mqueue", "/dev/mqueue"), ("proc", "/proc")];

impl Site<'_> {
    // spec: oci-runtime config.md#mounts
    pub(super) fn mount(&mut self, planned: &Planned<'_>) -> Result<(), Failure> {
        let made = match planned.kind {
            Kind::Bind(source) => self.bind(planned, source),
            Kind::Remount => self.remount(planned),
            Kind::Cgroups { version2 } => self
                .directory(planned)
                .and_then(|place| cgroups::mount(self, &place.fd, &planned.options, version2)),
            Kind::Filesystem(typ) => self.filesystem(planned, typ),
        };
        made.map_err(|failure| {
            let typ = planned.mount.typ().as_deref().unwrap_or("none");
            let source = planned.mount.source().as_deref().unwrap_or(Path::new(typ)).display();
            let target = planned.mount.destination().display();
            Failure {
                message: format!("error mounting \"{source}\" to rootfs at \"{target}\": {failure}"),
                ..failure
            }
        })
    }

    fn bind(&self, planned: &Planned<'_>, source: &Path) -> Result<(), Failure> {
        let tree = self.source(planned, source)?;
        change_bind(&tree, &planned.options)?;
        let stat = rustix::fs::fstat(&tree).context("look at the source")?;
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let place = self.place(planned, if is_dir { Missing::Directory } else { Missing::File })?;
        check_place(&place.path, || is_procfs(&tree).context("look at the source"))?;
        attach(&tree, &place.fd).context("attach")
    }

    /// What the parent opened is taken only where we may not look: what we open ourselves has the flags
    /// that a user namespace may not take off.
    fn source(&self, planned: &Planned<'_>, source: &Path) -> Result<OwnedFd, Failure> {
        let prepared = || planned.source.as_ref().map(OwnedFd::try_clone);
        let source = self.bundle.join(source);
        let recursive = planned.options.bind == Some(true);
        if let (Some(below), Some(namespace)) = (planned.options.id_map, &planned.id_namespace) {
            return self.mapped(&source, recursive, below, namespace);
        }
        if planned.options.id_map.is_some()
            && let Some(tree) = prepared()
        {
            return tree.context("take the source");
        }
        let what = || format!("open {}", source.display());
        match clone_tree(&source, recursive) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => match prepared() {
                Some(tree) => tree.with_context(what),
                None => Err(Failure::os(what(), error)),
            },
            tree => tree.with_context(what),
        }
    }

    /// A source that only init sees, under other ids.
    fn mapped(
        &self,
        source: &Path,
        recursive: bool,
        below: bool,
        namespace: &OwnedFd,
    ) -> Result<OwnedFd, Failure> {
        let Some(parent) = self.parent else {
            return idmap::clone_mapped(source, recursive, below, namespace);
        };
        let tree = clone_tree(source, recursive).with_context(|| format!("open {}", source.display()))?;
        parent.id_map(&IdMap { tree: tree.as_fd(), namespace: namespace.as_fd(), below })?;
        Ok(tree)
    }

    fn remount(&self, planned: &Planned<'_>) -> Result<(), Failure> {
        let place = self.place(planned, Missing::Refuse)?;
        change(&place.fd, &planned.options)?;
        let options = &planned.options;
        if options.superblock.is_empty() && options.data.is_empty() {
            return Ok(());
        }
        super::filesystem::reconfigure(&place.fd, options)
    }

    fn filesystem(&mut self, planned: &Planned<'_>, typ: &str) -> Result<(), Failure> {
        let place = self.directory(planned)?;
        let is_kernels = matches!(typ, "proc" | "sysfs");
        if is_kernels && Some(&place.path) != path::normal(planned.mount.destination()).as_ref() {
            return Err(Failure::invalid(format!(
                "filesystem \"{typ}\" must be mounted on ordinary directory"
            )));
        }
        check_place(&place.path, || Ok(typ == "proc"))?;
        let options = &planned.options;
        let later = options.attributes.set & libc::MOUNT_ATTR_RDONLY != 0
            && (typ == "tmpfs" || place.path == Path::new("dev"));
        let attributes =
            if later { options.attributes.set & !libc::MOUNT_ATTR_RDONLY } else { options.attributes.set };
        let attributes = MountAttrFlags::from_bits_retain(u32::try_from(attributes).unwrap_or(u32::MAX));
        let made = self.make(planned, typ, &place, attributes)?;
        if typ == "tmpfs" && options.copy_up {
            let has_owner = options.data.iter().any(|(key, _)| matches!(key.as_str(), "uid" | "gid"));
            copy::contents(&place.fd, &made, !has_owner).context("tmpcopyup")?;
        }
        if typ == "mqueue"
            && let Some(label) = self.label
        {
            super::set_label(&made, label).context("label")?;
        }
        if later {
            self.readonly_later.push(made);
        }
        Ok(())
    }

    /// Makes a file system and attaches it.
    fn make(
        &self,
        planned: &Planned<'_>,
        typ: &str,
        place: &Place,
        attributes: MountAttrFlags,
    ) -> Result<OwnedFd, Failure> {
        let options = &planned.options;
        let mut wanted = Filesystem::of(planned, typ, self.label);
        if typ == "tmpfs" && !place.made && wanted.value("mode").is_none() {
            let mode = rustix::fs::fstat(&place.fd).context("look at the mount point")?.st_mode & 0o7777;
            wanted.data.push(("mode", Some(format!("{mode:04o}").into())));
        }
        let made = if wanted.is_too_long() {
            let target = PathBuf::from(format!("/proc/self/fd/{}", place.fd.as_raw_fd()));
            wanted.mount_at(&target)?;
            let made = path::open_plain(self.root, &place.path, Missing::Refuse).context("open")?.fd;
            let set = MountAttributes { set: u64::from(attributes.bits()), ..options.attributes };
            sys::mount_setattr(&made, false, set).context("set mount options")?;
            made
        } else {
            let mut made = wanted.make(attributes);
            let invalid = made.as_ref().is_err_and(|refused| refused.errno == Errno::INVAL);
            if typ == "devpts" && invalid && wanted.value("gid").is_some_and(is_nobodys) {
                // A group that the container does not have cannot own its terminals.
                wanted.data.retain(|(key, _)| *key != "gid");
                made = wanted.make(attributes);
            }
            match made {
                Ok(made) => {
                    attach(&made, &place.fd).context("attach")?;
                    made
                }
                Err(refused) => self.bind_machines_own(typ, options, place, refused)?,
            }
        };
        change_below(&made, options)?;
        Ok(made)
    }

    /// Where a user namespace may not mount a kernel's file system anew, it gets the machine's, with the
    /// options for everything below.
    fn bind_machines_own(
        &self,
        typ: &str,
        options: &Options,
        place: &Place,
        refused: super::filesystem::Refused,
    ) -> Result<OwnedFd, Failure> {
        let ours = MACHINES_OWN.iter().find(|(name, _)| *name == typ && (typ != "proc" || self.host_pids));
        let Some((_, path)) = ours.filter(|_| refused.errno == Errno::PERM) else {
            return Err(refused.failure);
        };
        let tree = clone_tree(Path::new(path), true).with_context(|| format!("open {path}"))?;
        sys::mount_setattr(&tree, true, options.attributes).context("set mount options")?;
        attach(&tree, &place.fd).context("attach")?;
        Ok(tree)
    }

    fn directory(&self, planned: &Planned<'_>) -> Result<Place, Failure> {
        self.place(planned, Missing::Directory)
    }

    fn place(&self, planned: &Planned<'_>, missing: Missing) -> Result<Place, Failure> {
        let destination = planned.mount.destination();
        // Some callers give the path on the machine, as old runtimes took it: runc strips the root, too.
        let destination = match destination.strip_prefix(self.root_path) {
            Ok(inside) if !inside.as_os_str().is_empty() => inside,
            _ => destination,
        };
        let place = path::open(self.root, destination, missing).context("make the mount point")?;
        if place.path.as_os_str().is_empty() {
            return Err(Failure::invalid("the mount point is the root itself"));
        }
        Ok(place)
    }
}

/// Nothing but procfs may be at `/proc`, or other programs could not tell what they read and write there.
fn check_place(path: &Path, is_procfs: impl FnOnce() -> Result<bool, Failure>) -> Result<(), Failure> {
    let Ok(inside) = path.strip_prefix("proc") else { return Ok(()) };
    if inside.as_os_str().is_empty() {
        if is_procfs()? {
            return Ok(());
        }
        return Err(Failure::invalid("\"/proc\" cannot be mounted because it is not of type proc"));
    }
    if COVERABLE.iter().any(|allowed| Path::new(allowed) == path) {
        return Ok(());
    }
    Err(Failure::invalid(format!("\"/{}\" cannot be mounted because it is inside /proc", path.display())))
}

/// Whether a group is a number that the caller's user namespace does not map.
fn is_nobodys(group: &str) -> bool {
    let Ok(group) = group.parse::<u64>() else { return false };
    let map = std::fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
    let mut lines = map.lines().map(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.nth(1).unwrap_or(0))
    });
    !lines.any(|(first, count)| (first..first.saturating_add(count)).contains(&group))
}

/// A detached copy of the mount at `path`.
pub(super) fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

/// A detached copy of an open mount, or of the part of it that is open.
pub(super) fn clone_of(fd: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(rustix::mount::open_tree(fd, "", flags)?)
}

/// Puts a detached mount over what is open; its descriptor goes on being the mount's root.
pub(super) fn attach(mount: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", target, "", flags)?)
}

/// Sets all that options say of a mount. What they do not name stays as it is, which keeps flags that a user
/// namespace has inherited locked.
pub(super) fn change(mount: &OwnedFd, options: &Options) -> Result<(), Failure> {
    if options.attributes != MountAttributes::default() {
        sys::mount_setattr(mount, false, options.attributes).context("set mount options")?;
    }
    change_below(mount, options)
}

/// A bind mount whose options say something about flags has those and no others, as with runc; where a user
/// namespace may not take off the others that the source has, they stay. One whose options say nothing of them
/// has the source's. The source's rules for access times stay until others are named: to take back what the
/// source has does not name one.
fn change_bind(mount: &OwnedFd, options: &Options) -> Result<(), Failure> {
    let named = options.attributes;
    if named == MountAttributes::default() && options.times.is_none() {
        return change_below(mount, options);
    }
    let mut all = named;
    all.add(0, PLAIN & !named.set);
    match sys::mount_setattr(mount, false, all) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // The one that the kernel never locks goes anyway.
            let mut unlocked = named;
            unlocked.add(0, libc::MOUNT_ATTR_NOSYMFOLLOW & !named.set);
            sys::mount_setattr(mount, false, unlocked).context("set mount options")?;
        }
        done => done.context("set mount options")?,
    }
    change_below(mount, options)
}

/// Flags without a rule for access times, of which a mount always has one.
const PLAIN: u64 = libc::MOUNT_ATTR_RDONLY
    | libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC
    | libc::MOUNT_ATTR_NOSYMFOLLOW;

/// Sets what a new mount is not made with: recursive attributes and propagation.
fn change_below(mount: &OwnedFd, options: &Options) -> Result<(), Failure> {
    if options.recursive != MountAttributes::default() {
        sys::mount_setattr(mount, true, options.recursive).context("set recursive mount options")?;
    }
    for (propagation, recursive) in &options.propagation {
        let change = MountAttributes { propagation: *propagation, ..MountAttributes::default() };
        sys::mount_setattr(mount, *recursive, change).context("set propagation")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_procfs_and_a_few_files_are_mounted_at_proc() {
        let at = |path: &str, procfs| check_place(Path::new(path), || Ok(procfs)).is_ok();
        assert!(at("proc", true) && !at("proc", false));
        assert!(at("proc/cpuinfo", false) && at("procfs", false) && at("mnt/proc", false));
        assert!(!at("proc/self", true) && !at("proc/cpuinfo/x", false) && !at("proc/sysrq-trigger", false));
    }
}
