//! The parent's side of a new container: prepare everything, clone, and listen to init until it waits.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use oci_spec::runtime::{ContainerState, Spec};

use crate::attributes;
use crate::cgroup::{Cgroup, container_path};
use crate::channel::{Channel, IdMap, Said, Word};
use crate::confine;
use crate::failure::{Context, Failure};
use crate::hooks::{self, State};
use crate::idmap;
use crate::init::{Init, close_inherited};
use crate::last::Gate;
use crate::namespaces::{Namespaces, User, enter_pid_namespace, leave_pid_namespace};
use crate::netdevice;
use crate::procfs::Proc;
use crate::rootfs::Plan;
use crate::seccomp::{Filter, notify};
use crate::spec;
use crate::sys;
use crate::terminal::{self, Stdio};
use crate::validate;

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
    /// How many descriptors from 3 on the command inherits: open, and not to be closed by exec, or it is an
    /// error. (`LISTEN_FDS` is the caller's to add.)
    pub preserve_fds: u32,
    /// The root is moved over `/` and entered by chroot: for a machine whose own root is its initramfs.
    pub no_pivot: bool,
    /// The command gets a session keyring of its own.
    pub new_keyring: bool,
    /// It is killed when the calling process ends. The kernel forgets that when the command (or what it
    /// executes later) is a program with the set-user-ID bit or capabilities: PR_SET_PDEATHSIG(2const).
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
        self.channel.tell(Word::Start)?;
        match self.channel.hear()? {
            Said::Failed(failure) => Err(failure),
            Said::Nothing => Ok(()),
            said => Err(Failure::other(format!("init is out of step: {said:?}"))),
        }
    }
}

/// Makes a container. The caller must have one thread. On failure nothing is left of it.
///
/// # Errors
/// What could not be done, in runc's words where clients look for them.
pub fn create(request: Create<'_>) -> Result<Created, Failure> {
    validate::config(request.spec)?;
    spec::process(request.spec)?.capabilities().iter().for_each(confine::warn_of_ambient);
    check_inherited(request.preserve_fds)?;
    let linux = spec::linux(request.spec)?;
    let cgroup = Cgroup::at(&container_path(linux.cgroups_path().as_deref(), request.id, false)?)?;
    let filter = linux.seccomp().as_ref().map(Filter::compile).transpose()?;
    let namespaces = Namespaces::of(linux)?;
    let tree = Plan::of(request.spec, request.bundle)?;
    let proc = Proc::open().context("open /proc")?;
    cgroup.create(linux.resources().as_ref())?;
    tracing::debug!(cgroup = %cgroup.path().display(), "cgroup made");
    let made = set_up(request, &cgroup, filter, namespaces, tree, proc);
    made.inspect_err(|_| {
        let _ = cgroup.kill();
        let _ = cgroup.remove();
    })
}

/// A descriptor that exec would close is one of ours, and no container may have it (CVE-2024-21626).
pub(crate) fn check_inherited(count: u32) -> Result<(), Failure> {
    match (3..count.saturating_add(3)).find(|number| !sys::is_inherited(*number)) {
        Some(number) => Err(Failure::invalid(format!("descriptor {number} to preserve is not open"))),
        None => Ok(()),
    }
}

fn set_up(
    request: Create<'_>,
    cgroup: &Cgroup,
    filter: Option<Filter>,
    namespaces: Namespaces,
    tree: Plan<'_>,
    proc: Proc,
) -> Result<Created, Failure> {
    let (ours, theirs) = Channel::pair()?;
    let state = State::of(request.spec, request.id, request.bundle, ContainerState::Creating, 0);
    let init = Init {
        spec: request.spec,
        tree,
        user: request.user,
        groups: request.groups,
        state,
        cgroup,
        entry: cgroup.entry()?,
        namespaces,
        filter,
        proc,
        stdio: request.stdio,
        gate: request.gate,
        preserve_fds: request.preserve_fds,
        new_keyring: request.new_keyring,
        no_pivot: request.no_pivot,
        die_with_parent: request.die_with_parent,
        channel: theirs,
    };
    let child = clone_init(&init, &ours)?;
    tracing::debug!(pid = child.pid, "init made, it sets the container up");
    let state = State { pid: child.pid, ..init.state.clone() };
    let ready = move_devices(&init, &child).and_then(|()| set_up_user_namespace(&init, &child, &ours));
    // Only init may hold its end of the channel: then silence means that it is gone.
    drop(init);
    Parent { child, state }.listen(ready, request.spec, ours, cgroup)
}

/// Gives the container the machine's network devices that are to be its own. A new network namespace is there as
/// soon as init is; one that exists, before.
fn move_devices(init: &Init<'_>, child: &sys::Child) -> Result<(), Failure> {
    let linux = spec::linux(init.spec)?;
    if linux.net_devices().as_ref().is_none_or(HashMap::is_empty) {
        return Ok(());
    }
    match init.namespaces.join.iter().find(|existing| existing.is(CloneFlags::CLONE_NEWNET)) {
        Some(existing) => netdevice::move_all(linux, existing),
        None => {
            let own = init.proc.open_namespace(&format!("{}/ns/net", child.pid));
            netdevice::move_all(linux, own.context("open the container's network namespace")?)
        }
    }
}

/// What needs the machine's privileges and init's present identity: after this it is root of its namespace and
/// nobody outside.
fn set_up_user_namespace(init: &Init<'_>, child: &sys::Child, channel: &Channel) -> Result<(), Failure> {
    let what = "look at the user namespace";
    let (root, groups) = match &init.namespaces.user {
        User::Host => return Ok(()),
        User::New(maps) => {
            let process = spec::process(init.spec)?;
            confine::raise_limits(child.pid, process.rlimits().as_deref().unwrap_or_default())?;
            attributes::set_oom_score(&init.proc, &child.pid.to_string(), process)?;
            (maps.root(), maps.write(&init.proc, child.pid)?)
        }
        User::Existing(_) => {
            idmap::check_joined(spec::linux(init.spec)?, &init.proc, child.pid)?;
            let root = init.proc.ids_of_root(child.pid).context(what)?;
            (root, init.proc.can_set_groups(&child.pid.to_string()).context(what)?)
        }
    };
    terminal::give_pipes_to(&init.stdio, root)?;
    // An init that is gone has said why, or its silence is heard next.
    let _ = channel.tell(if groups { Word::Mapped } else { Word::MappedWithoutGroups });
    Ok(())
}

/// Clones init into its namespaces: at once, or by an usher who joins existing ones first.
fn clone_init(init: &Init<'_>, ours: &Channel) -> Result<sys::Child, Failure> {
    let namespaces = &init.namespaces;
    let into = init.entry.unified();
    // Init shares the image of the caller's memory until it is the command: nobody who shares its pid
    // namespace may look into it, from its first moment on.
    let _hidden = sys::Hidden::new().context("stop being dumpable")?;
    if !namespaces.needs_usher() {
        let own_pids = enter_pid_namespace(namespaces.pid.as_ref())?;
        let child = sys::clone_process(namespaces.new, into, || {
            close_inherited(&ours.raw());
            init.run()
        });
        leave_pid_namespace(own_pids)?;
        return child.context("clone init");
    }
    let usher = sys::clone_process(0, into, || {
        close_inherited(&ours.raw());
        init.usher()
    });
    let usher = usher.context("clone")?;
    let said = ours.hear();
    waitpid(Pid::from_raw(usher.pid), None).context("wait for the usher")?;
    match said? {
        Said::Born(pid, pidfd) => Ok(sys::Child { pid, pidfd }),
        Said::Failed(failure) => Err(failure),
        said => Err(Failure::other(format!("the usher is out of step: {said:?}"))),
    }
}

/// What the parent has to hand while init asks.
struct Parent {
    child: sys::Child,
    state: State,
}

impl Parent {
    /// Does what only the parent can, until init is ready or has said why not.
    fn listen(
        self,
        ready: Result<(), Failure>,
        spec: &Spec,
        channel: Channel,
        cgroup: &Cgroup,
    ) -> Result<Created, Failure> {
        match ready.and_then(|()| self.serve(spec, &channel, cgroup)) {
            Ok(terminal) => {
                let (sys::Child { pid, pidfd }, cgroup) = (self.child, cgroup.clone());
                Ok(Created { pid, pidfd, cgroup, terminal, channel })
            }
            Err(failure) => {
                let pid = Pid::from_raw(self.child.pid);
                let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
                let _ = waitpid(pid, None);
                Err(failure)
            }
        }
    }

    fn serve(&self, spec: &Spec, channel: &Channel, cgroup: &Cgroup) -> Result<Option<OwnedFd>, Failure> {
        loop {
            match channel.hear()? {
                Said::Hooks => {
                    hooks::run_in_runtime(spec, &self.state)?;
                    channel.tell(Word::HooksDone)?;
                }
                Said::IdMap(IdMap { tree, namespace, below }) => {
                    sys::id_map_mount(&tree, below, &namespace)
                        .context("id-map what the container sees (can its file system be id-mapped?)")?;
                    channel.tell(Word::IdMapped)?;
                }
                Said::Listener(number) => {
                    notify::hand_over(spec, &self.state, &self.child, number)?;
                    channel.tell(Word::Listening)?;
                }
                Said::Ready(terminal) => {
                    tracing::debug!(pid = self.child.pid, "init waits for start");
                    return Ok(terminal);
                }
                Said::Failed(failure) => return Err(failure),
                Said::Nothing => return Err(died(&self.child, cgroup)),
                Said::Born(..) => return Err(Failure::other("init is out of step")),
            }
        }
    }
}

/// Init ended without a word; too small a memory limit is the usual reason.
fn died(child: &sys::Child, cgroup: &Cgroup) -> Failure {
    if cgroup.oom_kills() > 0 {
        return Failure::other("container init was OOM-killed (memory limit too low?)");
    }
    // Looked at, and left for whoever reaps it. waitpid(2) knows no such look.
    let how = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    let why = match waitid(Id::Pid(Pid::from_raw(child.pid)), how) {
        Ok(WaitStatus::Exited(_, code)) => format!("exit status {code}"),
        Ok(WaitStatus::Signaled(_, signal, _)) => format!("signal: {}", sys::describe_signal(signal as i32)),
        other => format!("{other:?}"),
    };
    Failure::other(format!("container init ended unexpectedly: {why}"))
}
