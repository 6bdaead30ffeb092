//! Where a container's root file system comes from, and how an overlay is mounted by its shim.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

use crate::failure::{Context, Failure};

/// What is mounted at the bundle's root path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rootfs {
    /// An overlay of image layers and the container's own writable directory.
    Overlay {
        /// Read-only layers, topmost first.
        lower: Vec<PathBuf>,
        /// The container's own changes.
        upper: PathBuf,
        /// Overlayfs' scratch directory, on the same file system as `upper`.
        work: PathBuf,
    },
    /// The directory is there already.
    Directory,
}

impl Rootfs {
    /// Mounts at `target`, in the caller's mount namespace; `target` is made when it is missing.
    ///
    /// # Errors
    /// What could not be mounted, with overlayfs' own words where it has any.
    pub fn mount(&self, target: &Path) -> Result<(), Failure> {
        match self {
            Rootfs::Directory => Ok(()),
            Rootfs::Overlay { lower, upper, work } => {
                std::fs::create_dir_all(target).with_context(|| format!("create `{}`", target.display()))?;
                mount_overlay(lower, upper, work, target)
            }
        }
    }

    /// Takes away what [`Rootfs::mount`] mounted.
    ///
    /// # Errors
    /// The failing call's.
    pub fn unmount(&self, target: &Path) -> io::Result<()> {
        match self {
            Rootfs::Directory => Ok(()),
            Rootfs::Overlay { .. } => Ok(rustix::mount::unmount(target, UnmountFlags::DETACH)?),
        }
    }
}

/// Hands the layers over one by one (`lowerdir+`), so that neither their number nor a comma or colon in
/// their paths matters; overlayfs' own limit is 500.
fn mount_overlay(lower: &[PathBuf], upper: &Path, work: &Path, target: &Path) -> Result<(), Failure> {
    let overlay = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).context("open overlay")?;
    let set = |key: &str, value: &Path| {
        rustix::mount::fsconfig_set_string(overlay.as_fd(), key, value).map_err(|error| {
            let why = kernel_words(&overlay).unwrap_or_else(|| crate::failure::describe(&error.into()));
            Failure::other(format!("overlay {key}={}: {why}", value.display()))
        })
    };
    for layer in lower {
        set("lowerdir+", layer)?;
    }
    set("upperdir", upper)?;
    set("workdir", work)?;
    // An inode index would refuse an upper directory that was ever below other layers, as after an import.
    set("index", Path::new("off"))?;
    let made = rustix::mount::fsconfig_create(overlay.as_fd())
        .and_then(|()| {
            rustix::mount::fsmount(overlay.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        })
        .map_err(|error| {
            let why = kernel_words(&overlay).unwrap_or_else(|| crate::failure::describe(&error.into()));
            Failure::other(format!("mount overlay on `{}`: {why}", target.display()))
        })?;
    rustix::mount::move_mount(&made, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("mount overlay on `{}`", target.display()))
}

/// The kernel's own explanation of why a file system context refused something.
pub(crate) fn kernel_words(context: impl AsFd) -> Option<String> {
    let mut words = Vec::new();
    let mut buffer = [0; 1024];
    while let Ok(length) = rustix::io::read(context.as_fd(), &mut buffer) {
        let message = String::from_utf8_lossy(&buffer[..length]);
        if let Some(error) = message.trim().strip_prefix("e ") {
            words.push(error.to_owned());
        }
    }
    (!words.is_empty()).then(|| words.join("; "))
}
