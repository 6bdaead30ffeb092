//! Device nodes and links of `/dev`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::mount::{attach, clone_tree};
use super::path::{self, Missing};
use crate::failure::{Context, Failure};

// spec: oci-runtime config-linux.md#default-devices
const DEFAULTS: &[(&str, u32, u32)] = &[
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// `/dev/null`, as rustix makes device numbers.
pub(super) fn null_number() -> u64 {
    rustix::fs::makedev(1, 3)
}

/// A node to make.
struct Node<'a> {
    path: &'a Path,
    kind: FileType,
    number: u64,
    mode: u32,
    owner: (u32, u32),
}

/// Where nodes are made, and how.
struct Maker {
    /// The container may not make nodes: the machine's are bound instead.
    bind: bool,
    /// The directory is a tmpfs that gives a node the mode and the owner that it is made with.
    exact: bool,
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

/// Makes the default devices, the spec's, and the links. In a user namespace of the container's own nobody
/// may make nodes: the machine's are bound.
pub(super) fn make_all(
    root: BorrowedFd<'_>,
    devices: &[LinuxDevice],
    user_namespace: bool,
) -> Result<(), Failure> {
    let dev = path::open(root, Path::new("dev"), Missing::Directory).context("open /dev")?.fd;
    let maker = Maker { bind: user_namespace, exact: is_exact(&dev)? };
    let masked = rustix::process::umask(Mode::empty());
    let made = make_nodes(root, &dev, devices, &maker);
    rustix::process::umask(masked);
    made?;
    link_all(&dev)
}

fn make_nodes(
    root: BorrowedFd<'_>,
    dev: &OwnedFd,
    devices: &[LinuxDevice],
    maker: &Maker,
) -> Result<(), Failure> {
    let asked = |path: &str| devices.iter().any(|device| device.path() == Path::new(path));
    for (path, major, minor) in DEFAULTS.iter().filter(|(path, ..)| !asked(path)) {
        let number = rustix::fs::makedev(*major, *minor);
        let kind = FileType::CharacterDevice;
        maker.make(dev, &Node { path: Path::new(path), kind, number, mode: 0o666, owner: (0, 0) })?;
    }
    for device in devices.iter().filter(|device| device.path() != Path::new("/dev/ptmx")) {
        let node = from_spec(device)?;
        let parent = node.path.parent().unwrap_or(Path::new("/"));
        if parent == Path::new("/dev") {
            maker.make(dev, &node)?;
        } else {
            let dir = path::open(root, parent, Missing::Directory)
                .with_context(|| format!("open `{}`", parent.display()))?;
            Maker { exact: false, ..*maker }.make(&dir.fd, &node)?;
        }
    }
    Ok(())
}

/// A fresh tmpfs knows no default access list and, without the set-group-id bit, hands nothing down.
fn is_exact(dir: &OwnedFd) -> Result<bool, Failure> {
    let plain = rustix::fs::fstat(dir).context("look at /dev")?.st_mode & libc::S_ISGID == 0;
    let filesystem = rustix::fs::fstatfs(dir).context("look at /dev")?.f_type;
    Ok(plain && filesystem == libc::TMPFS_MAGIC)
}

// spec: oci-runtime config-linux.md#devices
fn from_spec(device: &LinuxDevice) -> Result<Node<'_>, Failure> {
    let invalid = |why: &str| Failure::invalid(format!("device `{}` {why}", device.path().display()));
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => return Err(invalid("has no type")),
    };
    let part = |number: i64| u32::try_from(number).map_err(|_| invalid("has a number that is none"));
    let number = match kind {
        FileType::Fifo => 0,
        _ => rustix::fs::makedev(part(device.major())?, part(device.minor())?),
    };
    if device.path().file_name().is_none() || !device.path().is_absolute() {
        return Err(invalid("has no path that a file can have"));
    }
    let mode = device.file_mode().unwrap_or(0o666) & 0o7777;
    let owner = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
    Ok(Node { path: device.path(), kind, number, mode, owner })
}

impl Maker {
    /// Makes a node in an open directory, or finds the same one there, which then stays as it is: it may be
    /// the machine's own.
    fn make(&self, dir: &OwnedFd, node: &Node<'_>) -> Result<(), Failure> {
        let what = || format!("make device `{}`", node.path.display());
        let name = node.path.file_name().unwrap_or_default();
        if self.bind && node.kind != FileType::Fifo {
            return bind(dir, node);
        }
        match rustix::fs::mknodat(dir, name, node.kind, Mode::from_raw_mode(node.mode), node.number) {
            Ok(()) if self.exact && node.owner == (0, 0) => Ok(()),
            Ok(()) => settle(dir, node).with_context(what),
            Err(Errno::EXIST) => {
                let there = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).with_context(what)?;
                if node.is(&there) {
                    return Ok(());
                }
                Err(Failure::invalid(format!("{}: another file is in its place", what())))
            }
            Err(Errno::PERM) if node.kind != FileType::Fifo => bind(dir, node),
            Err(error) => Err(Failure::os(what(), error)),
        }
    }
}

impl Node<'_> {
    fn is(&self, stat: &rustix::fs::Stat) -> bool {
        FileType::from_raw_mode(stat.st_mode) == self.kind
            && (self.kind == FileType::Fifo || stat.st_rdev == self.number)
    }
}

/// Gives a new node its owner and mode: by its descriptor, since its name may be another file's by now.
fn settle(dir: &OwnedFd, node: &Node<'_>) -> Result<(), Errno> {
    let name = node.path.file_name().unwrap_or_default();
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    if !node.is(&rustix::fs::fstat(&made)?) {
        return Err(Errno::STALE);
    }
    let (uid, gid) = node.owner;
    rustix::fs::chownat(&made, "", Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::EMPTY_PATH)?;
    let through = format!("/proc/self/fd/{}", made.as_raw_fd());
    rustix::fs::chmodat(CWD, through, Mode::from_raw_mode(node.mode), AtFlags::empty())
}

/// Binds the machine's node of the same path.
fn bind(dir: &OwnedFd, node: &Node<'_>) -> Result<(), Failure> {
    let what = || format!("bind device `{}`", node.path.display());
    let tree = clone_tree(node.path, false).with_context(what)?;
    if !node.is(&rustix::fs::fstat(&tree).with_context(what)?) {
        return Err(Failure::invalid(format!("{}: the machine has another file there", what())));
    }
    let name = Path::new(node.path.file_name().unwrap_or_default());
    let place = path::open_plain(dir.as_fd(), name, Missing::File).with_context(what)?;
    attach(&tree, &place.fd).with_context(what)
}

fn link_all(dev: &OwnedFd) -> Result<(), Failure> {
    for (name, target) in LINKS {
        link(dev, name, target)?;
    }
    link_ptmx(dev)?;
    // CONFIG_PROC_KCORE may be off.
    if Path::new("/proc/kcore").exists() {
        link(dev, "core", "/proc/kcore")?;
    }
    Ok(())
}

fn link(dev: &OwnedFd, name: &str, target: &str) -> Result<(), Failure> {
    match rustix::fs::symlinkat(target, dev, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(Failure::os(format!("link /dev/{name}"), error)),
    }
}

/// `/dev/ptmx` is that of the container's own devpts: a node that an image brings would be the machine's.
fn link_ptmx(dev: &OwnedFd) -> Result<(), Failure> {
    match rustix::fs::symlinkat("pts/ptmx", dev, "ptmx") {
        Err(Errno::EXIST) => {}
        made => return made.context("link /dev/ptmx"),
    }
    if rustix::fs::readlinkat(dev, "ptmx", Vec::new()).is_ok_and(|target| target.as_bytes() == b"pts/ptmx") {
        return Ok(());
    }
    rustix::fs::unlinkat(dev, "ptmx", AtFlags::empty()).context("replace /dev/ptmx")?;
    rustix::fs::symlinkat("pts/ptmx", dev, "ptmx").context("link /dev/ptmx")
}
