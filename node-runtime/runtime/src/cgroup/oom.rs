//! Processes killed for want of memory: how many, and to be told of the next.

use std::cell::Cell;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::EventfdFlags;
use rustix::fs::inotify;

use super::layout::Version;
use super::tree::visit;
use super::{Cgroup, put};

/// Tells when memory ran out in a cgroup: readable when [`OomEvents::take`] has something to say.
#[derive(Debug)]
pub struct OomEvents {
    /// An event counter of version 1, or an inotify instance that watches the file of version 2.
    source: OwnedFd,
    /// `memory.oom_control` or `memory.events`.
    file: PathBuf,
    version: Version,
    /// Kills that were told of.
    seen: Cell<u64>,
}

impl AsFd for OomEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }
}

impl OomEvents {
    /// Whether memory ran out since the last call. Does not wait.
    ///
    /// With version 1 that is told before a process is chosen to be killed for it, and also where the limit
    /// is a parent's.
    #[must_use]
    pub fn take(&self) -> bool {
        let mut buffer = [0; 4096];
        let mut told = false;
        while rustix::io::read(&self.source, &mut buffer).is_ok_and(|length| length > 0) {
            told = true;
        }
        match self.version {
            // A cgroup that is removed signals too.
            Version::V1 => told && self.file.exists(),
            Version::V2 => {
                let kills = count(&self.file);
                self.seen.replace(kills) < kills
            }
        }
    }
}

impl Cgroup {
    /// Listens for memory running out, from now on.
    ///
    /// # Errors
    /// When the machine has no memory controller, or the cgroup is not there.
    pub fn oom_events(&self) -> io::Result<OomEvents> {
        let (Some(dir), Some(version)) = (self.directory("memory"), self.layout.version_of("memory")) else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "this machine has no memory controller"));
        };
        let (source, file) = match version {
            Version::V1 => (counter(dir)?, dir.join("memory.oom_control")),
            Version::V2 => (watch(&dir.join("memory.events"))?, dir.join("memory.events")),
        };
        let seen = Cell::new(count(&file));
        Ok(OomEvents { source, file, version, seen })
    }

    /// How often the kernel killed a process in it, or below it, for want of memory.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        match (self.directory("memory"), self.layout.version_of("memory")) {
            (Some(dir), Some(Version::V2)) => count(&dir.join("memory.events")),
            (Some(dir), Some(Version::V1)) => {
                // Version 1 counts for each cgroup alone.
                let mut kills = 0;
                let _ = visit(dir, &mut |dir| {
                    kills += count(&dir.join("memory.oom_control"));
                    Ok(())
                });
                kills
            }
            _ => 0,
        }
    }
}

/// Documentation/admin-guide/cgroup-v1/memory.rst, "OOM Control"
fn counter(dir: &Path) -> io::Result<OwnedFd> {
    let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let control = File::open(dir.join("memory.oom_control"))?;
    let request = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
    put(&dir.join("cgroup.event_control"), &request)?;
    Ok(event)
}

fn watch(file: &Path) -> io::Result<OwnedFd> {
    let instance = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&instance, file, inotify::WatchFlags::MODIFY)?;
    Ok(instance)
}

fn count(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok()).unwrap_or(0)
}
