//! Another process in a running container.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use oci_spec::runtime::{
    Capabilities, Capability, ContainerState, ExecCPUAffinity, LinuxCapabilitiesBuilder, LinuxNamespaceType,
    Process, Spec,
};

use crate::attributes;
use crate::cgroup::{Cgroup, Entry};
use crate::channel::{Channel, Said, Word};
use crate::confine;
use crate::create::check_inherited;
use crate::failure::{Context, Failure};
use crate::hooks::State;
use crate::init::{become_known, become_root, close_inherited, end_with_parent};
use crate::keyring;
use crate::last::{Gate, LastStep};
use crate::lsm;
use crate::namespaces::{NEW_TIME, enter_pid_namespace, leave_pid_namespace};
use crate::procfs::Proc;
use crate::rootfs::{change_root, open_dir};
use crate::seccomp::{Filter, notify};
use crate::spec;
use crate::sys;
use crate::terminal::{self, Stdio};
use crate::validate;

/// What is run, and where.
pub struct Exec<'a> {
    /// The container's name.
    pub id: &'a str,
    /// Its bundle.
    pub bundle: &'a Path,
    /// The container's configuration.
    pub spec: &'a Spec,
    /// The container's init.
    pub init: i32,
    /// The container's cgroups; they must not be frozen.
    pub cgroup: &'a Cgroup,
    /// The process, complete: what it does not say is not taken from the container's own.
    pub process: Process,
    /// Docker's user text, looked up in the container; else `process.user`'s numbers count.
    pub user: Option<&'a str>,
    /// More groups, by name or number, looked up in the container.
    pub groups: &'a [String],
    /// The container's seccomp filter is applied to it too.
    pub filtered: bool,
    /// What its standard files are.
    pub stdio: Stdio,
    /// How many descriptors from 3 on the command inherits.
    pub preserve_fds: u32,
    /// It is killed when the calling process ends.
    pub die_with_parent: bool,
}

/// A process that was added.
#[derive(Debug)]
pub struct Added {
    /// In the caller's numbering.
    pub pid: i32,
    /// Refers to it whatever becomes of the number.
    pub pidfd: OwnedFd,
    /// The near end of its terminal.
    pub terminal: Option<OwnedFd>,
}

/// What Docker's exec runs: the container's process with another command, environment and directory; a
/// privileged one has all capabilities that we have and may gain more.
///
/// # Errors
/// When the container has no process, or the command or the directory is none.
pub fn exec_process(
    spec: &Spec,
    args: Vec<String>,
    env: Vec<String>,
    cwd: Option<PathBuf>,
    privileged: bool,
) -> Result<Process, Failure> {
    let mut process = spec::process(spec)?.clone();
    process.set_args(Some(args)).set_env(Some(env));
    if let Some(cwd) = cwd {
        process.set_cwd(cwd);
    }
    if privileged {
        process.set_no_new_privileges(Some(false));
        let all: Capabilities = confine::all_capabilities();
        let none: Capabilities = std::iter::empty::<Capability>().collect();
        let sets =
            LinuxCapabilitiesBuilder::default().bounding(all.clone()).permitted(all.clone()).effective(all);
        let sets = sets.inheritable(none.clone()).ambient(none).build();
        process.set_capabilities(Some(sets.expect("every set is given")));
    }
    validate::process(&process)?;
    Ok(process)
}

/// Runs a command in a running container. The caller must have one thread.
///
/// # Errors
/// What could not be done, in runc's words where clients look for them.
pub fn exec(request: Exec<'_>) -> Result<Added, Failure> {
    validate::process(&request.process)?;
    lsm::check(&request.process)?;
    request.process.capabilities().iter().for_each(confine::warn_of_ambient);
    check_inherited(request.preserve_fds)?;
    let seccomp = spec::linux(request.spec)?.seccomp().as_ref().filter(|_| request.filtered);
    let filter = seccomp.map(Filter::compile).transpose()?;
    let proc = Proc::open().context("open /proc")?;
    let init = open_init(&request)?;
    let own_users = joins_users(&request, &proc)?;
    let (ours, theirs) = Channel::pair()?;
    let state = State::of(request.spec, request.id, request.bundle, ContainerState::Running, request.init);
    if own_users {
        let root = proc.ids_of_root(request.init).context("look at the container's user namespace")?;
        terminal::give_pipes_to(&request.stdio, root)?;
    }
    let newcomer = Newcomer {
        request: &request,
        state: &state,
        // As runc says it, whose callers look for the words.
        entry: request.cgroup.entry().map_err(|failure| Failure {
            message: format!("error adding pid to cgroups: {failure}"),
            ..failure
        })?,
        init,
        root: root(&request)?,
        own_users,
        filter,
        proc,
        channel: theirs,
    };
    let child = newcomer.born(&ours)?;
    tracing::debug!(pid = child.pid, "process made, it enters the container");
    drop(newcomer);
    listen(child, &ours, &request, &state)
}

fn open_init(request: &Exec<'_>) -> Result<OwnedFd, Failure> {
    let pid = rustix::process::Pid::from_raw(request.init)
        .ok_or_else(|| Failure::other("container is not running"))?;
    rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).context("container is not running")
}

fn root(request: &Exec<'_>) -> Result<Option<OwnedFd>, Failure> {
    if spec::has_namespace(spec::linux(request.spec)?, LinuxNamespaceType::Mount) {
        return Ok(None);
    }
    let path = spec::root_path(request.spec, request.bundle)?;
    open_dir(&path).map(Some).with_context(|| format!("open root `{}`", path.display()))
}

/// Whether the container's users are its own: the kernel refuses to join what one is in already.
fn joins_users(request: &Exec<'_>, proc: &Proc) -> Result<bool, Failure> {
    if !spec::has_namespace(spec::linux(request.spec)?, LinuxNamespaceType::User) {
        return Ok(false);
    }
    let inode = |who: &str| {
        let namespace = proc.open_namespace(&format!("{who}/ns/user"));
        let stat = namespace.and_then(|namespace| Ok(rustix::fs::fstat(&namespace)?));
        stat.map(|stat| stat.st_ino).context("look at user namespaces")
    };
    Ok(inode(&request.init.to_string())? != inode("self")?)
}

/// The process that is added, with all that it needs.
struct Newcomer<'a> {
    request: &'a Exec<'a>,
    state: &'a State,
    entry: Entry,
    /// The container's init, whose namespaces are joined.
    init: OwnedFd,
    /// Its root, when that is only a directory in the machine's mount namespace.
    root: Option<OwnedFd>,
    own_users: bool,
    filter: Option<Filter>,
    proc: Proc,
    channel: Channel,
}

impl Newcomer<'_> {
    /// In the container's pid namespace and cgroup from its first moment on, and hidden from those who are there.
    fn born(&self, ours: &Channel) -> Result<sys::Child, Failure> {
        let first = affinity(&self.request.process, ExecCPUAffinity::initial);
        let before = first.map(run_on_first).transpose()?;
        let hidden = sys::Hidden::new().context("stop being dumpable")?;
        let own_pids = enter_pid_namespace(Some(&self.init))?;
        let child = sys::clone_process(0, self.entry.unified(), || {
            close_inherited(&ours.raw());
            let failure = match self.enter().and_then(|last| last.take(&self.channel)) {
                Ok(never) => match never {},
                Err(failure) => failure,
            };
            self.channel.failed(&failure);
            1
        });
        leave_pid_namespace(own_pids)?;
        drop(hidden);
        if let Some(before) = before {
            nix::sched::sched_setaffinity(Pid::from_raw(0), &before).context("leave the first processors")?;
        }
        child.context("clone")
    }

    /// In the new process: goes where the container is.
    fn enter(&self) -> Result<LastStep<'_>, Failure> {
        let (request, process) = (self.request, &self.request.process);
        if request.die_with_parent {
            end_with_parent()?;
        }
        nix::unistd::setsid().context("setsid")?;
        attributes::set_oom_score(&self.proc, "self", process)?;
        self.entry.join_v1()?;
        match affinity(process, ExecCPUAffinity::cpu_affinity_final) {
            Some(list) => attributes::set_affinity(list, "process.execCPUAffinity.final")?,
            // Where it was told to start it stays.
            None if affinity(process, ExecCPUAffinity::initial).is_some() => {}
            None => attributes::reset_affinity()?,
        }
        let can_set_groups = self.enter_namespaces()?;
        keyring::join(request.id, self.own_users, &self.proc, process)?;
        let terminal = terminal::take(&request.stdio, process)?.map(|pair| pair.near);
        let (identity, env) = become_known(request.spec, process, request.user, request.groups, &self.proc)?;
        Ok(LastStep {
            process,
            identity,
            can_set_groups,
            env,
            filter: self.filter.as_ref(),
            proc: &self.proc,
            terminal,
            gate: &Gate::Parent,
            hooks: &[],
            state: self.state,
            preserve_fds: request.preserve_fds,
            die_with_parent: request.die_with_parent,
        })
    }

    /// All at once: the kernel looks at the user namespace first. Returns whether groups can be set there.
    fn enter_namespaces(&self) -> Result<bool, Failure> {
        let mut namespaces = CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWCGROUP;
        let linux = spec::linux(self.request.spec)?;
        if self.root.is_none() {
            namespaces |= CloneFlags::CLONE_NEWNS;
        }
        if spec::has_namespace(linux, LinuxNamespaceType::Time) {
            namespaces |= NEW_TIME;
        }
        if self.own_users {
            namespaces |= CloneFlags::CLONE_NEWUSER;
            let process = &self.request.process;
            confine::raise_limits(0, process.rlimits().as_deref().unwrap_or_default())?;
        }
        nix::sched::setns(&self.init, namespaces).context("join the container's namespaces")?;
        self.root.as_ref().map_or(Ok(()), change_root)?;
        if !self.own_users {
            return Ok(true);
        }
        let can_set_groups = self.proc.can_set_groups("self").context("look at setgroups")?;
        become_root(can_set_groups)?;
        Ok(can_set_groups)
    }
}

/// One of its lists, if it has any.
fn affinity(process: &Process, list: fn(&ExecCPUAffinity) -> &Option<String>) -> Option<&str> {
    process.exec_cpu_affinity().as_ref().and_then(|all| list(all).as_deref()).filter(|list| !list.is_empty())
}

/// Moves the caller for the moment of the clone; returns where it ran.
fn run_on_first(list: &str) -> Result<nix::sched::CpuSet, Failure> {
    let before = nix::sched::sched_getaffinity(Pid::from_raw(0)).context("look at own processors")?;
    attributes::set_affinity(list, "process.execCPUAffinity.initial")?;
    Ok(before)
}

/// Waits until the command runs, or its process has said why not.
fn listen(child: sys::Child, channel: &Channel, request: &Exec<'_>, state: &State) -> Result<Added, Failure> {
    match serve(&child, channel, request, state) {
        Ok(terminal) => Ok(Added { pid: child.pid, pidfd: child.pidfd, terminal }),
        Err(failure) => {
            let pid = Pid::from_raw(child.pid);
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
            Err(failure)
        }
    }
}

fn serve(
    child: &sys::Child,
    channel: &Channel,
    request: &Exec<'_>,
    state: &State,
) -> Result<Option<OwnedFd>, Failure> {
    let terminal = loop {
        match channel.hear()? {
            Said::Ready(terminal) => break terminal,
            Said::Listener(number) => {
                notify::hand_over(request.spec, state, child, number)?;
                channel.tell(Word::Listening)?;
            }
            Said::Failed(failure) => return Err(failure),
            Said::Nothing => return Err(Failure::other("container is not running")),
            Said::Hooks | Said::Born(..) | Said::IdMap(_) => {
                return Err(Failure::other("the new process is out of step"));
            }
        }
    };
    channel.tell(Word::Start)?;
    match channel.hear()? {
        Said::Failed(failure) => Err(failure),
        _ => Ok(terminal),
    }
}
