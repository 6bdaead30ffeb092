//! The container's view of its cgroups.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::Mode;
use rustix::mount::{MountAttrFlags, MoveMountFlags};

use super::filesystem::Filesystem;
use super::mount::{Site, attach, change, clone_tree};
use super::options::Options;
use crate::failure::{Context, Failure};

/// Shows the container its own cgroups: with version 2 alone one directory, else one for each hierarchy.
pub(super) fn mount(
    site: &Site<'_>,
    target: &OwnedFd,
    options: &Options,
    version2: bool,
) -> Result<(), Failure> {
    if let Some((word, _)) = options.data.first() {
        return Err(Failure::invalid(format!("`{word}` is no option of a cgroup mount")));
    }
    let unified = match site.cgroup.only_unified() {
        None if version2 => {
            let mut all = site.cgroup.directories();
            let found = all.find(|(name, _)| *name == "unified").map(|(_, dir)| dir);
            Some(found.ok_or_else(|| Failure::other("this machine has no cgroups of version 2"))?)
        }
        only => only,
    };
    let Some(own) = unified else { return mount_all(site, target, options) };
    // Without a namespace of its own the container's paths start at the machine's root, and so must its tree.
    let depth = site.cgroup.path().components().count().saturating_sub(1);
    let shown = if site.cgroup_namespace { Some(own) } else { own.ancestors().nth(depth) };
    let tree = group(shown.unwrap_or(own), options)?;
    attach(&tree, target).context("attach")
}

fn mount_all(site: &Site<'_>, target: &OwnedFd, options: &Options) -> Result<(), Failure> {
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let top = Filesystem::tmpfs(&[("mode", "755")], site.label).make(flags).map_err(|r| r.failure)?;
    attach(&top, target).context("attach")?;
    for (name, dir) in site.cgroup.directories() {
        let tree = group(dir, options)?;
        rustix::fs::mkdirat(&top, name, Mode::from_raw_mode(0o755))
            .with_context(|| format!("mkdir {name}"))?;
        rustix::mount::move_mount(&tree, "", &top, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .with_context(|| format!("attach {name}"))?;
        for alias in name.split(',').filter(|alias| *alias != name) {
            rustix::fs::symlinkat(name, &top, alias).with_context(|| format!("link {alias}"))?;
        }
    }
    change(&top, options)
}

fn group(dir: &Path, options: &Options) -> Result<OwnedFd, Failure> {
    let tree = clone_tree(dir, false).with_context(|| format!("open {}", dir.display()))?;
    change(&tree, options)?;
    Ok(tree)
}
