//! The container's file tree, made by its init: mounts, devices, the pivot, and what is hidden or read-only.
//!
//! Before the pivot every path is resolved inside the new root ([`path`]); mounts are made detached and then
//! attached to an open descriptor, so that nothing between look-up and mount can be swapped.

mod device;
mod options;
mod path;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use self::options::Options;
use self::path::Missing;
use crate::cgroup::Cgroup;
use crate::failure::{Context, Failure, describe};
use crate::overlay::kernel_words;
use crate::spec::linux;
use crate::sys::{self, MountAttributes};

/// Makes the tree and moves into it: when this returns, `/` is the container's.
pub(crate) fn enter(spec: &Spec, root_path: &Path, bundle: &Path, cgroup: &Cgroup) -> Result<(), Failure> {
    leave_propagation()?;
    let root = bind_root(root_path)?;
    for mount in spec.mounts().iter().flatten() {
        mount_one(&root, mount, bundle, cgroup)?;
    }
    let linux = linux(spec)?;
    if device::wanted(spec) {
        device::make_all(root.as_fd(), linux.devices().as_deref().unwrap_or_default())?;
    }
    if let Some(process) = spec.process() {
        path::open(root.as_fd(), process.cwd(), Missing::Directory)
            .with_context(|| format!("mkdir {}", process.cwd().display()))?;
    }
    pivot(&root)?;
    let (flag, recursive) = match linux.rootfs_propagation().as_deref() {
        None | Some("") => return Ok(()),
        Some(name) => options::propagation(name)
            .ok_or_else(|| Failure::invalid(format!("rootfsPropagation `{name}` is not known")))?,
    };
    let here = open_dir(Path::new("/"))?;
    sys::mount_setattr(&here, recursive, MountAttributes { propagation: flag, ..MountAttributes::default() })
        .context("set propagation of /")
}

/// Hides and protects what the spec says; the last thing before `/` itself may become read-only.
pub(crate) fn protect(spec: &Spec) -> Result<(), Failure> {
    let linux = linux(spec)?;
    for path in linux.readonly_paths().iter().flatten() {
        make_readonly(Path::new(path)).with_context(|| format!("make `{path}` read-only"))?;
    }
    for path in linux.masked_paths().iter().flatten() {
        mask(Path::new(path)).with_context(|| format!("mask `{path}`"))?;
    }
    if spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false) {
        let root = open_dir(Path::new("/"))?;
        sys::mount_setattr(&root, false, readonly()).context("make / read-only")?;
    }
    Ok(())
}

/// Binds a terminal's far end to `/dev/console`.
pub(crate) fn bind_console(terminal: &OwnedFd) -> Result<(), Failure> {
    let root = open_dir(Path::new("/"))?;
    let target =
        path::open(root.as_fd(), Path::new("dev/console"), Missing::File).context("open /dev/console")?;
    clone_of_fd(terminal)
        .and_then(|console| attach(&console, &target))
        .context("bind the terminal to /dev/console")
}

/// Mount options that mean something here; others go to the file system.
pub(crate) fn known_options() -> Vec<String> {
    options::known()
}

fn readonly() -> MountAttributes {
    MountAttributes { set: libc::MOUNT_ATTR_RDONLY, ..MountAttributes::default() }
}

/// Mounts of the machine still arrive here, none of ours leaves.
fn leave_propagation() -> Result<(), Failure> {
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .context("make mounts not propagate")
}

/// Makes the root a mount of its own, as pivot_root(2) wants it.
fn bind_root(path: &Path) -> Result<OwnedFd, Failure> {
    let what = || format!("bind root `{}`", path.display());
    let tree = clone_tree(path, true).with_context(what)?;
    let private = MountAttributes { propagation: libc::MS_PRIVATE, ..MountAttributes::default() };
    sys::mount_setattr(&tree, true, private).with_context(what)?;
    let target = open_dir(path)?;
    attach(&tree, &target).with_context(what)?;
    open_dir(path)
}

fn open_dir(path: &Path) -> Result<OwnedFd, Failure> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open `{}`", path.display()))
}

/// A detached copy of the mount at `path`.
fn clone_tree(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

fn clone_of_fd(fd: &OwnedFd) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(rustix::mount::open_tree(fd, "", flags)?)
}

fn attach(mount: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(mount, "", target, "", flags)?)
}

// spec: oci-runtime config.md#mounts
fn mount_one(root: &OwnedFd, mount: &Mount, bundle: &Path, cgroup: &Cgroup) -> Result<(), Failure> {
    let options = options::parse(mount.options().as_deref().unwrap_or_default());
    let typ = mount.typ().as_deref().unwrap_or(if options.bind.is_some() { "bind" } else { "none" });
    let made = if options.bind.is_some() || typ == "bind" {
        bind(root, mount, &options, bundle)
    } else if typ == "cgroup" || typ == "cgroup2" {
        mount_cgroups(root, mount.destination(), &options, cgroup)
    } else {
        mount_filesystem(root, mount, typ, &options)
    };
    made.map_err(|failure| {
        let source = mount.source().as_deref().unwrap_or(Path::new(typ));
        let (source, target) = (source.display(), mount.destination().display());
        Failure {
            message: format!("error mounting \"{source}\" to rootfs at \"{target}\": {failure}"),
            ..failure
        }
    })
}

fn bind(root: &OwnedFd, mount: &Mount, options: &Options, bundle: &Path) -> Result<(), Failure> {
    if let Some((word, _)) = options.data.first() {
        return Err(Failure::invalid(format!("`{word}` is no option of a bind mount")));
    }
    let source = mount.source().as_ref().ok_or_else(|| Failure::invalid("a bind mount needs a source"))?;
    let source = bundle.join(source);
    let tree = clone_tree(&source, options.bind == Some(true))
        .with_context(|| format!("open {}", source.display()))?;
    change(&tree, options)?;
    let is_dir =
        FileType::from_raw_mode(rustix::fs::fstat(&tree).context("stat")?.st_mode) == FileType::Directory;
    let missing = if is_dir { Missing::Directory } else { Missing::File };
    let target = path::open(root.as_fd(), mount.destination(), missing).context("make the mount point")?;
    attach(&tree, &target).context("attach")
}

/// Sets attributes and propagation of a detached mount.
fn change(tree: &OwnedFd, options: &Options) -> Result<(), Failure> {
    let nothing = MountAttributes::default();
    if options.attributes != nothing {
        sys::mount_setattr(tree, false, options.attributes).context("set mount options")?;
    }
    if options.recursive != nothing {
        sys::mount_setattr(tree, true, options.recursive).context("set recursive mount options")?;
    }
    if let Some((propagation, recursive)) = options.propagation {
        sys::mount_setattr(tree, recursive, MountAttributes { propagation, ..nothing })
            .context("set propagation")?;
    }
    Ok(())
}

fn mount_filesystem(root: &OwnedFd, mount: &Mount, typ: &str, options: &Options) -> Result<(), Failure> {
    let target =
        path::open(root.as_fd(), mount.destination(), Missing::Directory).context("make the mount point")?;
    let made = new_filesystem(typ, mount.source().as_deref(), &options.data)?;
    change(&made, options)?;
    attach(&made, &target).context("attach")
}

fn new_filesystem(
    typ: &str,
    source: Option<&Path>,
    data: &[(String, Option<String>)],
) -> Result<OwnedFd, Failure> {
    let context = rustix::mount::fsopen(typ, FsOpenFlags::FSOPEN_CLOEXEC)
        .with_context(|| format!("file system `{typ}`"))?;
    let explain = |what: &str, error: Errno| {
        let why = kernel_words(&context).unwrap_or_else(|| describe(&error.into()));
        Failure::other(format!("{what}: {why}"))
    };
    if let Some(source) = source {
        rustix::mount::fsconfig_set_string(context.as_fd(), "source", source)
            .map_err(|error| explain("set source", error))?;
    }
    for (key, value) in data {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(context.as_fd(), key, value.as_str()),
            None => rustix::mount::fsconfig_set_flag(context.as_fd(), key),
        }
        .map_err(|error| explain(&format!("option `{key}`"), error))?;
    }
    rustix::mount::fsconfig_create(context.as_fd()).map_err(|error| explain("create", error))?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .map_err(|error| explain("mount", error))
}

/// Shows the container its own cgroups: with version 2 alone its group, else a directory of hierarchies.
fn mount_cgroups(root: &OwnedFd, target: &Path, options: &Options, cgroup: &Cgroup) -> Result<(), Failure> {
    let at = path::open(root.as_fd(), target, Missing::Directory).context("make the mount point")?;
    let group = |dir: &Path| -> Result<OwnedFd, Failure> {
        let tree = clone_tree(dir, false).with_context(|| format!("open {}", dir.display()))?;
        change(&tree, options)?;
        Ok(tree)
    };
    if let Some(dir) = cgroup.only_unified() {
        return attach(&group(dir)?, &at).context("attach");
    }
    let tmpfs =
        new_filesystem("tmpfs", Some(Path::new("tmpfs")), &[("mode".to_owned(), Some("755".to_owned()))])?;
    attach(&tmpfs, &at).context("attach")?;
    for (name, dir) in cgroup.directories() {
        let inside = target.join(name);
        let point = path::open(root.as_fd(), &inside, Missing::Directory).context("make the mount point")?;
        attach(&group(dir)?, &point).with_context(|| format!("attach {name}"))?;
        for alias in name.split(',').filter(|alias| *alias != name) {
            let top = path::open(root.as_fd(), target, Missing::Refuse).context("open")?;
            rustix::fs::symlinkat(name, &top, alias).with_context(|| format!("link {alias}"))?;
        }
    }
    let top = path::open(root.as_fd(), target, Missing::Refuse).context("open")?;
    change(&top, options)
}

/// Swaps the roots and lets the old one go.
fn pivot(root: &OwnedFd) -> Result<(), Failure> {
    let old = open_dir(Path::new("/"))?;
    rustix::process::fchdir(root).context("enter root")?;
    rustix::process::pivot_root(".", ".").context("pivot_root")?;
    rustix::process::fchdir(&old).context("enter old root")?;
    rustix::mount::mount_change(".", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .context("make old root not propagate")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).context("detach old root")?;
    rustix::process::chdir("/").context("chdir /")
}

/// Puts a read-only copy of a mount over itself; a path that is not there needs none.
fn make_readonly(path: &Path) -> io::Result<()> {
    let tree = match clone_tree(path, true) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        tree => tree?,
    };
    sys::mount_setattr(&tree, true, readonly())?;
    attach(&tree, &open_path(path)?)
}

/// Covers a file with `/dev/null` and a directory with an empty one.
fn mask(path: &Path) -> io::Result<()> {
    let is_dir = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) => return Ok(()),
        meta => meta?.is_dir(),
    };
    let cover = if is_dir {
        let empty = new_filesystem("tmpfs", Some(Path::new("tmpfs")), &[]).map_err(io::Error::other)?;
        sys::mount_setattr(&empty, false, readonly())?;
        empty
    } else {
        clone_tree(Path::new("/dev/null"), false)?
    };
    attach(&cover, &open_path(path)?)
}

fn open_path(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Writes `linux.sysctl`: through the machine's `/proc`, where the caller's own namespaces show.
pub(crate) fn write_sysctls(spec: &Spec) -> Result<(), Failure> {
    let Some(sysctls) = linux(spec)?.sysctl() else { return Ok(()) };
    for (key, value) in sysctls {
        let path =
            sysctl_path(key).ok_or_else(|| Failure::invalid(format!("sysctl `{key}` is not a name")))?;
        fs::write(&path, value).with_context(|| format!("write sysctl {key}"))?;
    }
    Ok(())
}

/// `net.ipv4.ip_forward` or `net/ipv4/conf/eth0.1/forwarding`: the first separator decides.
fn sysctl_path(key: &str) -> Option<PathBuf> {
    let separator = key.chars().find(|letter| matches!(letter, '.' | '/'))?;
    let swapped = if separator == '.' {
        let swap = |letter| match letter {
            '.' => '/',
            '/' => '.',
            other => other,
        };
        key.chars().map(swap).collect()
    } else {
        key.to_owned()
    };
    let clean = swapped.split('/').all(|part| !matches!(part, "" | "." | ".."));
    clean.then(|| Path::new("/proc/sys").join(swapped))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_is_a_path_with_either_separator() {
        let path = |key| sysctl_path(key).map(|path| path.display().to_string());
        assert_eq!(path("net.ipv4.ip_forward").as_deref(), Some("/proc/sys/net/ipv4/ip_forward"));
        assert_eq!(
            path("net/ipv4/conf/eth0.1/forwarding").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding")
        );
        assert_eq!(
            path("net.ipv4.conf.eth0/1.forwarding").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.1/forwarding")
        );
        assert_eq!(path("net/../../etc/passwd"), None);
        assert_eq!(path("net"), None);
    }
}
