//! A container's cgroups, versions 1, 2 and both at once behind one type.
//!
//! On a hybrid machine each controller is used where it is: version 1 limits most, and version 2, which may
//! have a few controllers or none there, also tracks, freezes and kills: it does these atomically, which
//! version 1 cannot.
//!
//! Start at [`Cgroup`]: `tree` makes and removes its directories, `apply` writes what `plan` (pure) says,
//! `control` freezes and kills, `count` reads [`Stats`].

mod apply;
mod check;
mod control;
mod count;
mod devices;
mod layout;
mod oom;
mod place;
mod plan;
mod rules;
mod stats;
mod sys;
mod tree;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use self::check::check as check_resources;
pub use self::layout::{Hierarchy, Layout};
pub use self::oom::OomEvents;
pub use self::place::{container_path, parent_path};
pub use self::stats::{
    CpuStats, HugetlbStats, IoStats, MemoryStats, PidStats, Pressure, RdmaStats, Stall, Stats,
};
use crate::failure::{Context, Failure};

/// One path in every hierarchy of the machine.
#[derive(Debug, Clone)]
pub struct Cgroup {
    layout: Arc<Layout>,
    /// `/parent/name`.
    path: PathBuf,
    /// A directory for each hierarchy of version 1, in the layout's order.
    v1: Vec<PathBuf>,
    unified: Option<PathBuf>,
}

/// Open doors into a cgroup, for a process about to enter it.
pub(crate) struct Entry {
    /// `tasks` of each version 1 hierarchy: writing `0` moves the writer.
    v1: Vec<OwnedFd>,
    unified: Option<OwnedFd>,
}

impl Entry {
    /// For clone3(2), which puts the child into version 2 at once.
    pub(crate) fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(OwnedFd::as_fd)
    }

    /// Moves the caller, which must have one thread, into the hierarchies of version 1.
    pub(crate) fn join_v1(&self) -> Result<(), Failure> {
        for tasks in &self.v1 {
            rustix::io::write(tasks, b"0").context("join cgroup")?;
        }
        Ok(())
    }
}

impl Cgroup {
    /// Names the cgroup; nothing is touched. `path` is below each hierarchy's root.
    ///
    /// # Errors
    /// When the path leads elsewhere, or the machine has no cgroups.
    pub fn at(path: &Path) -> Result<Cgroup, Failure> {
        Ok(Cgroup::within(Layout::detect()?, &place::absolute(path)?))
    }

    fn within(layout: Arc<Layout>, path: &Path) -> Cgroup {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let v1 = layout.v1.iter().map(|hierarchy| hierarchy.mount.join(relative)).collect();
        let unified = layout.unified.as_ref().map(|mount| mount.join(relative));
        Cgroup { layout, path: path.to_owned(), v1, unified }
    }

    /// The same with a path below it: in the hierarchies of version 1 that the controllers given, separated by
    /// commas, are in, or in all.
    ///
    /// # Errors
    /// When there is no such controller.
    pub(crate) fn below(&self, controllers: Option<&str>, relative: &Path) -> Result<Cgroup, Failure> {
        let mut below = self.clone();
        let Some(controllers) = controllers else {
            below.v1.iter_mut().chain(&mut below.unified).for_each(|dir| dir.push(relative));
            below.path.push(relative);
            return Ok(below);
        };
        let mut indices = BTreeSet::new();
        for name in controllers.split(',') {
            let index = self.layout.v1_index(name);
            indices.insert(index.ok_or_else(|| Failure::invalid(format!("unknown controller {name}")))?);
        }
        indices.into_iter().for_each(|index| below.v1[index].push(relative));
        Ok(below)
    }

    /// Its path below each hierarchy's root.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory that a controller's files are in: of version 1, or of version 2 when that has it.
    #[must_use]
    pub fn directory(&self, controller: &str) -> Option<&Path> {
        match self.layout.version_of(controller)? {
            layout::Version::V1 => self.layout.v1_index(controller).map(|index| self.v1[index].as_path()),
            layout::Version::V2 => self.unified.as_deref(),
        }
    }

    /// The version 2 directory, when version 2 is all there is.
    #[must_use]
    pub fn only_unified(&self) -> Option<&Path> {
        self.unified.as_deref().filter(|_| self.layout.is_unified())
    }

    /// The version 2 group's `cgroup.kill`, open: it kills whatever is in this very group, and nothing once the
    /// group is gone, even if another one has its path by then. `None` where the kernel or version 2 lacks it.
    #[must_use]
    pub fn kill_file(&self) -> Option<File> {
        let path = self.unified.as_ref()?.join("cgroup.kill");
        std::fs::OpenOptions::new().write(true).open(path).ok()
    }

    /// All directories by the names that they have below `/sys/fs/cgroup`.
    pub(crate) fn directories(&self) -> impl Iterator<Item = (&str, &Path)> {
        let v1 = self
            .layout
            .v1
            .iter()
            .zip(&self.v1)
            .map(|(hierarchy, dir)| (hierarchy.name.as_str(), dir.as_path()));
        v1.chain(self.unified.as_deref().map(|dir| ("unified", dir)))
    }

    /// Opens what a process needs to enter.
    ///
    /// Version 1 is entered by `tasks`, not by `cgroup.procs`: a process with one thread is the same in both,
    /// and for itself alone the kernel need not wait until no process of the machine forks or ends.
    pub(crate) fn entry(&self) -> Result<Entry, Failure> {
        let open = |path: PathBuf| {
            File::options()
                .write(true)
                .open(&path)
                .map(OwnedFd::from)
                .with_context(|| format!("open {}", path.display()))
        };
        let v1 = self.v1.iter().map(|dir| open(dir.join("tasks"))).collect::<Result<_, _>>()?;
        let unified = match &self.unified {
            Some(dir) => {
                Some(File::open(dir).map(OwnedFd::from).with_context(|| format!("open {}", dir.display()))?)
            }
            None => None,
        };
        Ok(Entry { v1, unified })
    }
}

/// Whether the cgroup that a file or directory belongs to has been removed.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}

/// Writes a value into a file that is there. The kernel takes it in one write.
fn put(path: &Path, value: &str) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    rustix::io::write(file, value.as_bytes())?;
    Ok(())
}

fn read_number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests;
