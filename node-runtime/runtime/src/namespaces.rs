//! Which namespaces a container has: new ones, ones that exist already, and the caller's own.
//!
//! A user namespace comes first: the kernel makes it before all others of one clone, which then belong to it.
//! Existing namespaces are joined before that, with the caller's privileges; the last to be joined is a user
//! namespace, which takes them away.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sched::CloneFlags;
use oci_spec::runtime::{Linux, LinuxNamespaceType, LinuxTimeOffset};

use crate::failure::{Context, Failure};
use crate::idmap::Maps;
use crate::procfs::Proc;
use crate::sys;

/// A namespace that exists.
#[derive(Debug)]
pub(crate) struct Existing {
    fd: OwnedFd,
    typ: CloneFlags,
    /// Where the configuration names it, for errors.
    field: String,
}

impl Existing {
    /// Moves the caller there; of a pid namespace, its future children.
    pub(crate) fn join(&self) -> Result<(), Failure> {
        nix::sched::setns(&self.fd, self.typ).with_context(|| format!("join namespace `{}`", self.field))
    }
}

/// The container's user namespace.
#[derive(Debug)]
pub(crate) enum User {
    /// The caller's.
    Host,
    /// A new one, with these maps.
    New(Maps),
    /// One that exists.
    Existing(Existing),
}

/// Namespaces, sorted by how they are entered.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// `CLONE_NEW*` for clone3(2). New cgroup and time namespaces are init's to make: it has to be in its
    /// cgroups, and to set its clocks, first.
    pub new: u64,
    pub new_cgroup: bool,
    pub new_time: bool,
    pub user: User,
    /// A pid namespace is entered by being born there.
    pub pid: Option<Existing>,
    /// Of all other types.
    pub join: Vec<Existing>,
}

impl Namespaces {
    /// Reads the configuration and opens what exists.
    // spec: oci-runtime config-linux.md#namespaces
    pub(crate) fn of(linux: &Linux) -> Result<Namespaces, Failure> {
        let mut all = Namespaces {
            new: 0,
            new_cgroup: false,
            new_time: false,
            user: User::Host,
            pid: None,
            join: Vec::new(),
        };
        for (index, namespace) in linux.namespaces().iter().flatten().enumerate() {
            match namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) {
                None => all.make(linux, namespace.typ())?,
                Some(path) => all.open(namespace.typ(), path, format!("linux.namespaces[{index}].path"))?,
            }
        }
        Ok(all)
    }

    fn make(&mut self, linux: &Linux, typ: LinuxNamespaceType) -> Result<(), Failure> {
        match typ {
            LinuxNamespaceType::Cgroup => self.new_cgroup = true,
            LinuxNamespaceType::Time => self.new_time = true,
            LinuxNamespaceType::User => {
                self.user = User::New(Maps::of(linux)?);
                self.new |= bits(typ);
            }
            LinuxNamespaceType::Mount
            | LinuxNamespaceType::Uts
            | LinuxNamespaceType::Ipc
            | LinuxNamespaceType::Pid
            | LinuxNamespaceType::Network => self.new |= bits(typ),
        }
        Ok(())
    }

    fn open(&mut self, typ: LinuxNamespaceType, path: &Path, field: String) -> Result<(), Failure> {
        let fd: OwnedFd = File::open(path)
            .with_context(|| format!("`{field}`: open namespace `{}`", path.display()))?
            .into();
        if sys::namespace_type(&fd).ok() != Some(bits(typ)) {
            let path = path.display();
            return Err(Failure::invalid(format!("`{field}`: `{path}` is no namespace of type {typ:?}")));
        }
        let is_ours = || same_namespace(&fd, "/proc/self/ns/user");
        if typ == LinuxNamespaceType::User && is_ours().with_context(|| field.clone())? {
            // The kernel refuses to join what one is in already.
            return Ok(());
        }
        if typ == LinuxNamespaceType::Mount && is_machines(&fd).with_context(|| field.clone())? {
            return Err(Failure::invalid(format!(
                "`{field}`: `{}` is the machine's own mount namespace, whose root the container's would become",
                path.display()
            )));
        }
        let existing = Existing { fd, typ: flag(typ), field };
        match typ {
            LinuxNamespaceType::User => self.user = User::Existing(existing),
            LinuxNamespaceType::Pid => self.pid = Some(existing),
            _ => self.join.push(existing),
        }
        Ok(())
    }

    /// Whether existing namespaces must be joined by a process that still has the caller's privileges and then
    /// makes init.
    pub(crate) fn needs_usher(&self) -> bool {
        match self.user {
            User::Host => false,
            User::New(_) => self.pid.is_some() || !self.join.is_empty(),
            User::Existing(_) => true,
        }
    }

    /// Joins all existing ones, the user namespace last.
    pub(crate) fn join_all(&self) -> Result<(), Failure> {
        self.pid.iter().chain(&self.join).try_for_each(Existing::join)?;
        match &self.user {
            User::Existing(user) => user.join(),
            User::Host | User::New(_) => Ok(()),
        }
    }
}

/// `CLONE_NEW*`: also what the kernel says that an open namespace is.
fn flag(typ: LinuxNamespaceType) -> CloneFlags {
    match typ {
        LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
        LinuxNamespaceType::User => CloneFlags::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
        LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
        LinuxNamespaceType::Time => NEW_TIME,
    }
}

/// `nix` has no name for it.
pub(crate) const NEW_TIME: CloneFlags = CloneFlags::from_bits_retain(libc::CLONE_NEWTIME);

fn bits(typ: LinuxNamespaceType) -> u64 {
    u64::from(flag(typ).bits().cast_unsigned())
}

/// pivot_root(2) takes all who are in a mount namespace to the new root.
fn is_machines(mounts: &OwnedFd) -> std::io::Result<bool> {
    // One that we may not look at is none that we have opened.
    let is_inits = same_namespace(mounts, "/proc/1/ns/mnt").unwrap_or(false);
    Ok(is_inits || same_namespace(mounts, "/proc/self/ns/mnt")?)
}

fn same_namespace(fd: &OwnedFd, path: &str) -> std::io::Result<bool> {
    let (one, other) = (rustix::fs::fstat(fd)?, rustix::fs::stat(path)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

/// Makes a time namespace with its clocks set, and enters it: it is final from then on.
// time_namespaces(7): offsets can be written as long as nobody is in the namespace.
pub(crate) fn enter_new_time(
    proc: &Proc,
    offsets: Option<&HashMap<String, LinuxTimeOffset>>,
) -> Result<(), Failure> {
    nix::sched::unshare(NEW_TIME).context("make time namespace")?;
    for (clock, offset) in offsets.into_iter().flatten() {
        let (seconds, nanoseconds) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        let line = format!("{clock} {seconds} {nanoseconds}\n");
        proc.write("self/timens_offsets", line.as_bytes())
            .with_context(|| format!("set `linux.timeOffsets.{clock}`"))?;
    }
    let made = proc.open_namespace("self/ns/time_for_children").context("open new time namespace")?;
    nix::sched::setns(made, NEW_TIME).context("enter time namespace")
}

/// Makes children be born in the namespace given; returns the way back.
pub(crate) fn enter_pid_namespace(target: Option<impl AsFd>) -> Result<Option<OwnedFd>, Failure> {
    let Some(target) = target else { return Ok(None) };
    let own = File::open("/proc/self/ns/pid").context("open own pid namespace")?;
    nix::sched::setns(target, CloneFlags::CLONE_NEWPID).context("join pid namespace")?;
    Ok(Some(own.into()))
}

/// Makes children be born in the caller's own namespace again.
pub(crate) fn leave_pid_namespace(own: Option<OwnedFd>) -> Result<(), Failure> {
    match own {
        Some(own) => nix::sched::setns(own, CloneFlags::CLONE_NEWPID).context("leave pid namespace"),
        None => Ok(()),
    }
}

/// Takes the caller back to its own network namespace.
pub(crate) fn leave_network_namespace(own: impl AsFd) -> Result<(), Failure> {
    nix::sched::setns(own, CloneFlags::CLONE_NEWNET).context("leave the container's network namespace")
}

impl Existing {
    /// Whether it is of this type.
    pub(crate) fn is(&self, typ: CloneFlags) -> bool {
        self.typ == typ
    }
}

impl AsFd for Existing {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
