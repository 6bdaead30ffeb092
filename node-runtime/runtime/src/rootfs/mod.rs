//! The container's file tree: mounts, devices, the change of root, and what is hidden or read-only.
//!
//! A [`Plan`] is made by the parent, which checks everything and opens what the container may not. Init
//! builds the [`Tree`] from it, enters it, and protects it. Before it is entered every path is resolved
//! inside the new root ([`path`]) and mounts are attached to open descriptors ([`mount`]), so that nothing
//! between look-up and mount can be swapped.

mod cgroups;
mod copy;
mod device;
mod filesystem;
mod hide;
mod idmap;
mod mount;
mod options;
mod path;
mod plan;
mod root;
mod sysctl;

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, XattrFlags};
use rustix::io::Errno;

use self::hide::Covers;
use self::mount::{Site, attach, clone_of};
use self::path::Missing;
pub(crate) use self::plan::Plan;
pub(crate) use self::root::{change as change_root, open_dir};
use crate::cgroup::Cgroup;
use crate::channel::Channel;
use crate::failure::{Context, Failure};
use crate::sys;

/// Mount options that mean something here; others go to the file system.
pub(crate) fn known_options() -> Vec<String> {
    options::known()
}

/// The tree, with everything mounted.
pub(crate) struct Tree<'a> {
    plan: &'a Plan<'a>,
    root: OwnedFd,
    readonly_later: Vec<OwnedFd>,
}

impl<'a> Tree<'a> {
    /// Mounts and makes all that belongs below the root, in the caller's mount namespace. What is made has
    /// the modes that runc gives it, whatever our caller's umask is; so has what the container makes. The parent
    /// is asked for what a user namespace may not.
    pub(crate) fn build(plan: &'a Plan<'a>, cgroup: &Cgroup, parent: &Channel) -> Result<Tree<'a>, Failure> {
        rustix::process::umask(Mode::WGRP | Mode::WOTH);
        let root = if plan.mount_namespace {
            root::bind(&plan.root_path, plan.root.as_ref(), plan.propagation)?
        } else {
            open_dir(&plan.root_path).with_context(|| format!("open root `{}`", plan.root_path.display()))?
        };
        let mut site = Site {
            root: root.as_fd(),
            root_path: &plan.root_path,
            bundle: plan.bundle,
            cgroup,
            cgroup_namespace: plan.cgroup_namespace,
            host_pids: plan.host_pids,
            label: plan.label(),
            parent: plan.user_namespace.then_some(parent),
            readonly_later: Vec::new(),
        };
        for planned in &plan.mounts {
            site.mount(planned)?;
        }
        let readonly_later = site.readonly_later;
        if device::wanted(plan.spec) {
            let devices = plan.linux.devices().as_deref().unwrap_or_default();
            device::make_all(root.as_fd(), devices, plan.user_namespace)?;
        }
        if let Some(process) = plan.spec.process()
            && process.cwd() != Path::new("/")
        {
            path::open(root.as_fd(), process.cwd(), Missing::Directory)
                .with_context(|| format!("mkdir {}", process.cwd().display()))?;
        }
        Ok(Tree { plan, root, readonly_later })
    }

    /// Makes the tree's root the working directory, before it is entered.
    pub(crate) fn change_directory(&self) -> Result<(), Failure> {
        rustix::process::fchdir(&self.root).context("chdir to the root file system")
    }

    /// Makes the tree the caller's `/`; the machine's is gone then, or with `no_pivot` out of sight. In the
    /// machine's mount namespace it is only the caller's root that changes.
    pub(crate) fn enter(&self, no_pivot: bool) -> Result<(), Failure> {
        if !self.plan.mount_namespace {
            return root::change(&self.root);
        }
        if no_pivot {
            if self.plan.propagation.is_private() {
                return Err(Failure::invalid(
                    "rootfsPropagation of [r]private is not safe without pivot_root",
                ));
            }
            root::move_over(&self.root)?;
        } else {
            root::pivot(&self.root)?;
        }
        root::propagate(&self.root, self.plan.propagation)
    }

    /// Binds a terminal's far end to `/dev/console`, where a mount is the container's own. Comes after
    /// [`Tree::enter`].
    pub(crate) fn bind_console(&self, terminal: &OwnedFd) -> Result<(), Failure> {
        if !self.plan.mount_namespace {
            return Ok(());
        }
        let dev = path::open(self.root.as_fd(), Path::new("dev"), Missing::Directory);
        let dev = dev.context("open /dev")?.fd;
        let place = path::open_plain(dev.as_fd(), Path::new("console"), Missing::File)
            .context("open /dev/console")?;
        let stat = rustix::fs::fstat(&place.fd).context("look at /dev/console")?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::CharacterDevice => {}
            _ => return Err(Failure::invalid("/dev/console is neither a file nor a terminal")),
        }
        clone_of(terminal, false)
            .and_then(|console| attach(&console, &place.fd))
            .context("bind the terminal to /dev/console")
    }

    /// Hides and protects what the spec says. The last thing that is done to the tree.
    pub(crate) fn protect(self) -> Result<(), Failure> {
        let (root, linux) = (self.root.as_fd(), self.plan.linux);
        for path in linux.readonly_paths().iter().flatten() {
            hide::make_readonly(root, Path::new(path))?;
        }
        let mut covers = Covers::new(root, self.plan.label());
        let mut masked = HashSet::new();
        for path in linux.masked_paths().iter().flatten().filter(|path| masked.insert(*path)) {
            covers.mask(Path::new(path))?;
        }
        for mount in &self.readonly_later {
            sys::mount_setattr(mount, false, hide::readonly()).context("make a mount read-only")?;
        }
        if self.plan.readonly_root() {
            sys::mount_setattr(root, false, hide::readonly()).context("make / read-only")?;
        }
        Ok(())
    }
}

/// Whether something open is the kernel's procfs, and not something put in its place.
pub(crate) fn is_procfs(fd: impl AsFd) -> Result<bool, Errno> {
    Ok(rustix::fs::fstatfs(fd)?.f_type == libc::PROC_SUPER_MAGIC)
}

/// Gives what is open (`O_PATH`) an SELinux label.
fn set_label(fd: &OwnedFd, label: &str) -> Result<(), Errno> {
    let through = format!("/proc/self/fd/{}", fd.as_raw_fd());
    rustix::fs::setxattr(through, "security.selinux", label.as_bytes(), XattrFlags::empty())
}
