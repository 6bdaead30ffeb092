//! Device nodes and links of `/dev`.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};
use rustix::io::Errno;

use super::path::{self, Missing};
use crate::failure::{Context, Failure};

// spec: oci-runtime config-linux.md#default-devices
const DEFAULTS: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// A node to make.
struct Node<'a> {
    path: &'a Path,
    kind: FileType,
    number: u64,
    mode: u32,
    owner: (u32, u32),
}

/// Whether `/dev` is the container's own: one bound from the machine is left as it is.
pub(super) fn wanted(spec: &Spec) -> bool {
    let bound = |options: &Option<Vec<String>>| {
        options.iter().flatten().any(|word| word == "bind" || word == "rbind")
    };
    let mut mounts = spec.mounts().iter().flatten();
    !mounts.any(|mount| {
        mount.destination().components().eq(Path::new("/dev").components()) && bound(mount.options())
    })
}

/// Makes the default devices, the spec's, and the links.
pub(super) fn make_all(root: BorrowedFd<'_>, devices: &[LinuxDevice]) -> Result<(), Failure> {
    let dev = path::open(root, Path::new("dev"), Missing::Directory).context("open /dev")?;
    for (name, major, minor) in DEFAULTS {
        let number = rustix::fs::makedev(*major, *minor);
        let node = Node {
            path: Path::new(name),
            kind: FileType::CharacterDevice,
            number,
            mode: 0o666,
            owner: (0, 0),
        };
        make(dev.as_fd(), &node)?;
    }
    for device in devices {
        make_from_spec(root, device)?;
    }
    for (name, target) in LINKS {
        match rustix::fs::symlinkat(*target, &dev, *name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(Failure::os(format!("link /dev/{name}"), error)),
        }
    }
    if Path::new("/proc/kcore").exists() {
        let _ = rustix::fs::symlinkat("/proc/kcore", &dev, "core");
    }
    Ok(())
}

fn make_from_spec(root: BorrowedFd<'_>, device: &LinuxDevice) -> Result<(), Failure> {
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => {
            return Err(Failure::invalid(format!("device `{}` has no type", device.path().display())));
        }
    };
    let invalid = || Failure::invalid(format!("device `{}` cannot be made", device.path().display()));
    let part = |number: i64| u32::try_from(number).map_err(|_| invalid());
    let number = if kind == FileType::Fifo {
        0
    } else {
        rustix::fs::makedev(part(device.major())?, part(device.minor())?)
    };
    let parent = device.path().parent().ok_or_else(invalid)?;
    let name = device.path().file_name().ok_or_else(invalid)?;
    let dir = path::open(root, parent, Missing::Directory)
        .with_context(|| format!("open `{}`", parent.display()))?;
    let mode = device.file_mode().unwrap_or(0o666) & 0o7777;
    let owner = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
    make(dir.as_fd(), &Node { path: Path::new(name), kind, number, mode, owner })
}

/// Makes a node, or finds the same one there.
fn make(dir: BorrowedFd<'_>, node: &Node<'_>) -> Result<(), Failure> {
    let what = || format!("make device `{}`", node.path.display());
    match rustix::fs::mknodat(dir, node.path, node.kind, Mode::from_raw_mode(node.mode), node.number) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let there = rustix::fs::statat(dir, node.path, AtFlags::SYMLINK_NOFOLLOW).with_context(what)?;
            if FileType::from_raw_mode(there.st_mode) != node.kind || there.st_rdev != node.number {
                return Err(Failure::invalid(format!("{}: another file is in its place", what())));
            }
        }
        Err(error) => return Err(Failure::os(what(), error)),
    }
    let (uid, gid) = node.owner;
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(dir, node.path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags)
        .with_context(what)?;
    rustix::fs::chmodat(dir, node.path, Mode::from_raw_mode(node.mode), AtFlags::empty()).with_context(what)
}
