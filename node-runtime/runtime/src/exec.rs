//! Another process in a running container.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilitiesBuilder, Process, Spec};

use crate::cgroup::{Cgroup, Entry};
use crate::channel::{Channel, Said};
use crate::confine;
use crate::create::{enter_pid_namespace, leave_pid_namespace};
use crate::failure::{Context, Failure};
use crate::init::{Gate, LastStep, close_inherited, end_with_parent, environment, identity, set_oom_score};
use crate::seccomp::Filter;
use crate::spec;
use crate::sys;
use crate::terminal::{self, Stdio};
use crate::user::Accounts;

/// What is run, and where.
pub struct Exec<'a> {
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
    spec::check_process(&process)?;
    Ok(process)
}

/// Runs a command in a running container. The caller must have one thread.
///
/// # Errors
/// What could not be done, in runc's words where clients look for them.
pub fn exec(request: Exec<'_>) -> Result<Added, Failure> {
    spec::check_process(&request.process)?;
    let seccomp = spec::linux(request.spec)?.seccomp().as_ref().filter(|_| request.filtered);
    let filter = seccomp.map(Filter::compile).transpose()?;
    let init = rustix::process::Pid::from_raw(request.init)
        .ok_or_else(|| Failure::other("container is not running"))?;
    let init = rustix::process::pidfd_open(init, rustix::process::PidfdFlags::empty())
        .context("container is not running")?;
    let pids =
        File::open(format!("/proc/{}/ns/pid", request.init)).context("open the container's pid namespace")?;
    let entry = request.cgroup.entry()?;
    let (ours, theirs) = Channel::pair()?;
    let own_pids = enter_pid_namespace(Some(pids))?;
    let child = sys::clone_process(0, entry.unified(), || {
        close_inherited(&ours.raw());
        let failure =
            match enter(&request, &entry, &init, filter.as_ref()).and_then(|last| last.take(&theirs)) {
                Ok(never) => match never {},
                Err(failure) => failure,
            };
        theirs.failed(&failure);
        1
    });
    leave_pid_namespace(own_pids)?;
    drop(theirs);
    listen(child.context("clone")?, &ours)
}

/// In the new process: goes where the container is.
fn enter<'a>(
    request: &'a Exec<'_>,
    entry: &Entry,
    init: &OwnedFd,
    filter: Option<&'a Filter>,
) -> Result<LastStep<'a>, Failure> {
    let process = &request.process;
    if request.die_with_parent {
        end_with_parent()?;
    }
    nix::unistd::setsid().context("setsid")?;
    set_oom_score(process)?;
    entry.join_v1()?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWCGROUP;
    nix::sched::setns(init, namespaces).context("join the container's namespaces")?;
    let terminal = terminal::take(&request.stdio, process)?.map(|pair| pair.near);
    let accounts = Accounts::read();
    let identity = identity(process, request.user, request.groups, &accounts)?;
    let env = environment(process, &accounts, &identity);
    terminal::give_to(identity.uid)?;
    confine::limit(process.rlimits().as_deref().unwrap_or_default())?;
    Ok(LastStep {
        process,
        identity,
        env,
        filter,
        terminal,
        gate: &Gate::Parent,
        preserve_fds: request.preserve_fds,
        die_with_parent: request.die_with_parent,
    })
}

/// Waits until the command runs, or its process has said why not.
fn listen(child: sys::Child, channel: &Channel) -> Result<Added, Failure> {
    let failure = match channel.hear() {
        Ok(Said::Ready(terminal)) => match channel.start().and_then(|()| channel.hear()) {
            Ok(Said::Failed(failure)) | Err(failure) => failure,
            Ok(Said::Nothing | Said::Ready(_)) => {
                return Ok(Added { pid: child.pid, pidfd: child.pidfd, terminal });
            }
        },
        Ok(Said::Failed(failure)) | Err(failure) => failure,
        Ok(Said::Nothing) => Failure::other("container is not running"),
    };
    let pid = Pid::from_raw(child.pid);
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    let _ = waitpid(pid, None);
    Err(failure)
}
