//! The parent's side of a new container: prepare everything, clone, and listen to init until it waits.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};

use crate::cgroup::{Cgroup, container_path};
use crate::channel::{Channel, Said};
use crate::failure::{Context, Failure};
use crate::init::{Gate, Init, close_inherited};
use crate::rootfs::Plan;
use crate::seccomp::Filter;
use crate::spec;
use crate::sys;
use crate::terminal::Stdio;

/// What a container is made from.
pub struct Create<'a> {
    /// Its name, for the state that hooks get.
    pub id: &'a str,
    /// Its configuration.
    pub spec: &'a Spec,
    /// The directory that relative paths in it start from.
    pub bundle: &'a Path,
    /// Docker's user text, looked up in the container; else `process.user`'s numbers count.
    pub user: Option<&'a str>,
    /// More groups, by name or number, looked up in the container.
    pub groups: &'a [String],
    /// What its standard files are.
    pub stdio: Stdio,
    /// How it learns that it is started.
    pub gate: Gate,
    /// How many descriptors from 3 on the command inherits. (`LISTEN_FDS` is the caller's to add.)
    pub preserve_fds: u32,
    /// The root is moved over `/` and entered by chroot: for a machine whose own root is its initramfs.
    pub no_pivot: bool,
    /// The command gets a session keyring of its own.
    pub new_keyring: bool,
    /// It is killed when the calling process ends.
    pub die_with_parent: bool,
}

/// A container whose init waits.
#[derive(Debug)]
pub struct Created {
    /// Init, in the caller's numbering.
    pub pid: i32,
    /// Refers to init whatever becomes of the number.
    pub pidfd: OwnedFd,
    /// Its cgroups.
    pub cgroup: Cgroup,
    /// The near end of its terminal.
    pub terminal: Option<OwnedFd>,
    channel: Channel,
}

impl Created {
    /// Lets init execute the user's command ([`Gate::Parent`]).
    ///
    /// # Errors
    /// When the command cannot be executed; init then ends.
    pub fn start(&self) -> Result<(), Failure> {
        self.channel.start()?;
        match self.channel.hear()? {
            Said::Failed(failure) => Err(failure),
            Said::Nothing | Said::Ready(_) => Ok(()),
        }
    }
}

/// Makes a container. The caller must have one thread. On failure nothing is left of it.
///
/// # Errors
/// What could not be done, in runc's words where clients look for them.
pub fn create(request: Create<'_>) -> Result<Created, Failure> {
    spec::check(request.spec)?;
    let linux = spec::linux(request.spec)?;
    let cgroup = Cgroup::at(&container_path(linux.cgroups_path().as_deref(), request.id, false)?)?;
    let filter = linux.seccomp().as_ref().map(Filter::compile).transpose()?;
    let namespaces = Namespaces::of(linux)?;
    let plan = Plan::of(request.spec, request.bundle)?;
    cgroup.create(linux.resources().as_ref())?;
    let made = clone_init(request, &cgroup, filter, namespaces, plan);
    made.inspect_err(|_| {
        let _ = cgroup.kill();
        let _ = cgroup.remove();
    })
}

fn clone_init(
    request: Create<'_>,
    cgroup: &Cgroup,
    filter: Option<Filter>,
    namespaces: Namespaces,
    tree: Plan<'_>,
) -> Result<Created, Failure> {
    let (ours, theirs) = Channel::pair()?;
    let init = Init {
        spec: request.spec,
        tree,
        user: request.user,
        groups: request.groups,
        cgroup,
        entry: cgroup.entry()?,
        join: namespaces.join,
        filter,
        stdio: request.stdio,
        gate: request.gate,
        preserve_fds: request.preserve_fds,
        new_keyring: request.new_keyring,
        no_pivot: request.no_pivot,
        die_with_parent: request.die_with_parent,
        channel: theirs,
    };
    let own_pids = enter_pid_namespace(namespaces.pid.as_ref())?;
    let child = sys::clone_process(namespaces.new, init.entry.unified(), || {
        close_inherited(&ours.raw());
        init.run()
    });
    // Only the child may hold its end of the channel: then silence means that it is gone.
    drop(init);
    leave_pid_namespace(own_pids)?;
    let child = child.context("clone init")?;
    listen(child, ours, cgroup)
}

/// Waits until init is ready, or has said why not.
fn listen(child: sys::Child, channel: Channel, cgroup: &Cgroup) -> Result<Created, Failure> {
    let failure = match channel.hear() {
        Ok(Said::Ready(terminal)) => {
            let cgroup = cgroup.clone();
            return Ok(Created { pid: child.pid, pidfd: child.pidfd, cgroup, terminal, channel });
        }
        Ok(Said::Failed(failure)) | Err(failure) => failure,
        Ok(Said::Nothing) => died(&child, cgroup),
    };
    let pid = Pid::from_raw(child.pid);
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    let _ = waitpid(pid, None);
    Err(failure)
}

/// Init ended without a word; too small a memory limit is the usual reason.
fn died(child: &sys::Child, cgroup: &Cgroup) -> Failure {
    if cgroup.oom_kills() > 0 {
        return Failure::other("container init was OOM-killed (memory limit too low?)");
    }
    let status = waitpid(Pid::from_raw(child.pid), Some(WaitPidFlag::WNOWAIT));
    Failure::other(format!("container init ended unexpectedly: {status:?}"))
}

/// Which namespaces are made, and which are joined.
struct Namespaces {
    /// `CLONE_NEW*` for clone3. A cgroup namespace is made later, by init itself.
    new: u64,
    join: Vec<(OwnedFd, CloneFlags)>,
    /// A pid namespace is entered by being born there.
    pid: Option<OwnedFd>,
}

impl Namespaces {
    fn of(linux: &Linux) -> Result<Namespaces, Failure> {
        let mut namespaces = Namespaces { new: 0, join: Vec::new(), pid: None };
        for namespace in linux.namespaces().iter().flatten() {
            let typ = namespace.typ();
            let flag = flag(typ)?;
            let Some(path) = namespace.path().as_ref().filter(|path| !path.as_os_str().is_empty()) else {
                if typ != LinuxNamespaceType::Cgroup {
                    namespaces.new |= u64::from(flag.bits().cast_unsigned());
                }
                continue;
            };
            let fd = File::open(path).with_context(|| format!("open namespace `{}`", path.display()))?;
            if typ == LinuxNamespaceType::Pid {
                namespaces.pid = Some(fd.into());
            } else {
                namespaces.join.push((fd.into(), flag));
            }
        }
        Ok(namespaces)
    }
}

fn flag(typ: LinuxNamespaceType) -> Result<CloneFlags, Failure> {
    Ok(match typ {
        LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
        LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
        LinuxNamespaceType::Uts => CloneFlags::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => CloneFlags::CLONE_NEWIPC,
        LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
        LinuxNamespaceType::Network => CloneFlags::CLONE_NEWNET,
        LinuxNamespaceType::User | LinuxNamespaceType::Time => {
            return Err(Failure::invalid(format!("not supported by this runtime: {typ} namespaces")));
        }
    })
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
