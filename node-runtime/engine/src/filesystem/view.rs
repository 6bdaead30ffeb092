//! A container's file system as a thread of ours sees it: in a mount namespace that ends with the thread, so that
//! nothing is ever mounted where the machine, or the container, could see it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rswarm_image::Layers;
use rswarm_runtime::Rootfs;
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

/// What the kernel shows of itself is nobody's to copy; Docker shows the image's directories there.
const KERNEL: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Where a container's file system is found.
#[derive(Debug)]
pub(crate) enum View {
    /// One that runs: in its mount namespace.
    Running(File),
    /// One that does not: as its next start would mount it.
    Stopped {
        /// Its layers.
        layers: Layers,
        /// A directory to mount them at, in a namespace where that hides nothing that is needed.
        stage: PathBuf,
        /// Its volumes and binds, parents first.
        binds: Vec<Bind>,
    },
}

/// Something of the host's that is mounted in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bind {
    pub source: PathBuf,
    pub destination: String,
    pub writable: bool,
}

/// How much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// With volumes and binds.
    Mounts,
    /// The image and what was written on top of it.
    Root,
}

impl View {
    /// Does `work` with the root directory. Blocks.
    pub(crate) fn within<T: Send>(
        self,
        extent: Extent,
        work: impl FnOnce(OwnedFd) -> T + Send,
    ) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| self.enter(extent).map(work));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn enter(self, extent: Extent) -> io::Result<OwnedFd> {
        match self {
            View::Running(namespace) => enter_running(namespace, extent),
            View::Stopped { layers, stage, binds } => {
                let binds = if extent == Extent::Mounts { binds } else { Vec::new() };
                enter_stopped(layers, &stage, &binds)
            }
        }
    }
}

fn enter_running(namespace: File, extent: Extent) -> io::Result<OwnedFd> {
    unshare(CloneFlags::CLONE_FS)?;
    setns(namespace, CloneFlags::CLONE_NEWNS)?;
    if extent == Extent::Root {
        // The one mount, without those on it.
        return Ok(open_tree(CWD, "/", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?);
    }
    unshare(CloneFlags::CLONE_NEWNS)?;
    keep_private()?;
    for place in KERNEL {
        // One may be on another. That nothing is mounted there is how it ends.
        while umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
    }
    open_directory("/")
}

fn enter_stopped(layers: Layers, stage: &Path, binds: &[Bind]) -> io::Result<OwnedFd> {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
    keep_private()?;
    // The stage may hide them.
    let sources = binds.iter().map(clone_source).collect::<io::Result<Vec<OwnedFd>>>()?;
    let overlay = Rootfs::Overlay { lower: layers.lower, upper: layers.upper, work: layers.work };
    overlay.mount(stage).map_err(io::Error::other)?;
    let root = open_directory(stage)?;
    for (bind, source) in binds.iter().zip(sources) {
        attach(&root, bind, &source).map_err(|error| {
            io::Error::new(error.kind(), format!("mount `{}`: {error}", bind.destination))
        })?;
    }
    Ok(root)
}

/// What is mounted here from now on is seen nowhere else.
fn keep_private() -> io::Result<()> {
    let none: Option<&str> = None;
    Ok(mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?)
}

fn open_directory(path: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn clone_source(bind: &Bind) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if bind.writable {
        // Mounts below a read-only one would stay writable: they are left out.
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, &bind.source, flags)
        .map_err(|error| io::Error::new(error.kind(), format!("open `{}`: {error}", bind.source.display())))
}

fn attach(root: &OwnedFd, bind: &Bind, source: &OwnedFd) -> io::Result<()> {
    let is_directory = FileType::from_raw_mode(rustix::fs::fstat(source)?.st_mode) == FileType::Directory;
    let target = place(root, &bind.destination, is_directory)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(source, "", &target, "", flags)?;
    if !bind.writable {
        let none: Option<&str> = None;
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        // The descriptor is what lies below by now; its name leads to the mount.
        let path = std::fs::read_link(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&target)))?;
        mount(none, &path, none, flags, none)?;
    }
    Ok(())
}

/// The place of a mount; what is missing of it is made.
fn place(root: &OwnedFd, destination: &str, is_directory: bool) -> io::Result<OwnedFd> {
    let parts: Vec<&str> = destination.split('/').filter(|part| !part.is_empty()).collect();
    let Some((name, parents)) = parts.split_last() else { return Err(Errno::BUSY.into()) };
    let mut path = PathBuf::from(".");
    let mut dir = open_in(root, &path)?;
    for part in parents {
        path.push(part);
        dir = open_or_make_directory(root, &dir, &path, part)?;
    }
    path.push(name);
    if is_directory {
        return open_or_make_directory(root, &dir, &path, name);
    }
    match open_in(root, &path) {
        Err(Errno::NOENT) => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(&dir, *name, flags, Mode::from_raw_mode(0o755))?;
            Ok(open_in(root, &path)?)
        }
        opened => Ok(opened?),
    }
}

fn open_or_make_directory(root: &OwnedFd, parent: &OwnedFd, path: &Path, name: &str) -> io::Result<OwnedFd> {
    match open_in(root, path) {
        Err(Errno::NOENT) => {
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
            Ok(open_in(root, path)?)
        }
        opened => Ok(opened?),
    }
}

/// A path within the root, links followed: none of them leads out.
pub(super) fn open_in(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // It raced with a rename.
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
}
