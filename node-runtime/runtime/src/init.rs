//! The container's first process until it becomes the user's command: top to bottom, in order.
//!
//! Everything that can be prepared is in [`Init`] before the clone; what fails here goes to the parent over
//! the channel. Nothing here may be skipped silently.

use std::collections::HashSet;
use std::os::fd::AsRawFd;

use nix::sched::CloneFlags;
use oci_spec::runtime::{Process, Spec};

use crate::attributes;
use crate::cgroup::{Cgroup, Entry};
use crate::channel::Channel;
use crate::confine;
use crate::failure::{Context, Failure};
use crate::hooks::{self, Point, State};
use crate::keyring;
use crate::last::{Gate, LastStep};
use crate::namespaces::{Existing, Namespaces, User, enter_new_time};
use crate::procfs::Proc;
use crate::rootfs::{Plan, Tree};
use crate::seccomp::Filter;
use crate::spec::{linux, process};
use crate::sys;
use crate::terminal::{self, Stdio};
use crate::user::{Accounts, Identity, add_groups};

/// All that init needs.
pub(crate) struct Init<'a> {
    pub spec: &'a Spec,
    pub tree: Plan<'a>,
    pub user: Option<&'a str>,
    pub groups: &'a [String],
    /// What hooks are told.
    pub state: State,
    pub cgroup: &'a Cgroup,
    pub entry: Entry,
    pub namespaces: Namespaces,
    pub filter: Option<Filter>,
    /// The machine's, for as long as init is not the command.
    pub proc: Proc,
    pub stdio: Stdio,
    pub gate: Gate,
    pub preserve_fds: u32,
    pub new_keyring: bool,
    pub no_pivot: bool,
    pub die_with_parent: bool,
    pub channel: Channel,
}

impl Init<'_> {
    /// Runs in a process with the caller's privileges, where a user namespace comes after existing ones: joins
    /// those, and makes init, which becomes its sibling.
    pub(crate) fn usher(&self) -> i32 {
        let made = self.before_user_namespace().and_then(|()| {
            self.namespaces.join_all()?;
            let flags = self.namespaces.new | u64::from(libc::CLONE_PARENT.cast_unsigned());
            let child = sys::clone_process(flags, None, || self.run()).context("clone init")?;
            self.channel.born(&child)
        });
        match made {
            Ok(()) => 0,
            Err(failure) => {
                self.channel.failed(&failure);
                1
            }
        }
    }

    /// Runs in the new process; returns only to say the exit code of a failure.
    pub(crate) fn run(&self) -> i32 {
        let failure = match self.prepare().and_then(|last| last.take(&self.channel)) {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        self.channel.failed(&failure);
        1
    }

    /// Everything but the last step; ends with the container made.
    fn prepare(&self) -> Result<LastStep<'_>, Failure> {
        let (spec, process) = (self.spec, process(self.spec)?);
        if self.die_with_parent {
            end_with_parent()?;
        }
        nix::unistd::setsid().context("setsid")?;
        let can_set_groups = self.enter_namespaces()?;
        if self.new_keyring {
            let own_users = !matches!(self.namespaces.user, User::Host);
            keyring::join(&self.state.id, own_users, &self.proc, process)?;
        }
        self.set_names()?;
        self.tree.write_sysctls()?;
        let tree = Tree::build(&self.tree, self.cgroup, &self.channel)?;
        self.run_hooks_before_entering(&tree)?;
        tree.enter(self.no_pivot)?;
        let terminal = terminal::take(&self.stdio, process)?;
        if let Some(pair) = &terminal {
            tree.bind_console(&pair.far)?;
        }
        tree.protect()?;
        let (identity, env) = become_known(spec, process, self.user, self.groups, &self.proc)?;
        Ok(LastStep {
            process,
            identity,
            can_set_groups,
            env,
            filter: self.filter.as_ref(),
            proc: &self.proc,
            terminal: terminal.map(|pair| pair.near),
            gate: &self.gate,
            hooks: hooks::of(spec, Point::StartContainer),
            state: &self.state,
            preserve_fds: self.preserve_fds,
            die_with_parent: self.die_with_parent,
        })
    }

    /// User namespace first, and in it what is new; control groups before a cgroup namespace, which has the
    /// present groups as its roots. Returns whether groups can be set.
    fn enter_namespaces(&self) -> Result<bool, Failure> {
        let namespaces = &self.namespaces;
        let mut can_set_groups = true;
        match namespaces.user {
            User::New(_) | User::Existing(_) => can_set_groups = self.channel.wait_until_mapped()?,
            User::Host => {
                self.before_user_namespace()?;
                namespaces.join.iter().try_for_each(Existing::join)?;
            }
        }
        if namespaces.new_time {
            enter_new_time(&self.proc, linux(self.spec)?.time_offsets().as_ref())?;
        }
        self.entry.join_v1()?;
        attributes::reset_affinity()?;
        if namespaces.new_cgroup {
            nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP).context("make cgroup namespace")?;
        }
        if !matches!(namespaces.user, User::Host) {
            become_root(can_set_groups)?;
        }
        if namespaces.new & u64::from(libc::CLONE_NEWNET.cast_unsigned()) != 0 {
            crate::loopback::up()?;
        }
        Ok(can_set_groups)
    }

    /// What takes privileges on the machine. For a new user namespace the parent does it, from outside.
    fn before_user_namespace(&self) -> Result<(), Failure> {
        let process = process(self.spec)?;
        if let User::Existing(_) = self.namespaces.user {
            confine::raise_limits(0, process.rlimits().as_deref().unwrap_or_default())?;
        }
        match self.namespaces.user {
            User::New(_) => Ok(()),
            User::Host | User::Existing(_) => attributes::set_oom_score(&self.proc, "self", process),
        }
    }

    fn set_names(&self) -> Result<(), Failure> {
        if let Some(name) = self.spec.hostname().as_ref().filter(|name| !name.is_empty()) {
            nix::unistd::sethostname(name).context("sethostname")?;
        }
        if let Some(name) = self.spec.domainname().as_ref().filter(|name| !name.is_empty()) {
            rustix::system::setdomainname(name.as_bytes()).context("setdomainname")?;
        }
        Ok(())
    }

    /// The machine's files are still there for them; the runtime's are run by the parent, where it is.
    fn run_hooks_before_entering(&self, tree: &Tree<'_>) -> Result<(), Failure> {
        if hooks::has_runtime_hooks(self.spec) {
            self.channel.hooks()?;
        }
        let create_container = hooks::of(self.spec, Point::CreateContainer);
        if create_container.is_empty() {
            return Ok(());
        }
        // Hooks that other runtimes start there go by relative paths.
        tree.change_directory()?;
        let state = State { pid: std::process::id().cast_signed(), ..self.state.clone() };
        hooks::run_all(Point::CreateContainer, create_container, &state)
    }
}

/// In a user namespace: its root, instead of somebody whom it does not know.
pub(crate) fn become_root(can_set_groups: bool) -> Result<(), Failure> {
    if can_set_groups {
        nix::unistd::setgroups(&[]).context("setgroups")?;
    }
    confine::become_user(0, 0)
}

/// Looks up whom the process runs as, gives it its standard files, and sets its attributes and limits; called
/// when `/` is the container's, by the first process and by added ones.
pub(crate) fn become_known(
    spec: &Spec,
    process: &Process,
    user: Option<&str>,
    groups: &[String],
    proc: &Proc,
) -> Result<(Identity, Vec<String>), Failure> {
    let accounts = Accounts::read(process, user, groups, proc)?;
    let identity = identity(process, user, groups, &accounts)?;
    let env = environment(process, &accounts, &identity);
    terminal::give_to(identity.uid)?;
    let linux = linux(spec)?;
    attributes::apply(process, linux)?;
    confine::limit(process.rlimits().as_deref().unwrap_or_default())?;
    Ok((identity, env))
}

/// Whom a process runs as: Docker's user text when there is one, else the spec's numbers.
pub(crate) fn identity(
    process: &Process,
    user: Option<&str>,
    groups: &[String],
    accounts: &Accounts,
) -> Result<Identity, Failure> {
    let numbers = process.user();
    let mut identity = match user {
        Some(text) => accounts.look_up(text)?,
        None => Identity { uid: numbers.uid(), gid: numbers.gid(), groups: Vec::new() },
    };
    let more = groups.iter().map(|name| accounts.group(name)).collect::<Result<Vec<_>, _>>()?;
    // Docker's user is in its own group twice: a set-group-ID program that gives up the first keeps the second,
    // and what is denied to the group stays denied (CVE-2022-36109).
    let own = user.map(|_| identity.gid);
    add_groups(&mut identity, numbers.additional_gids().iter().flatten().copied().chain(more).chain(own));
    Ok(identity)
}

/// The kernel kills the caller when its parent ends.
pub(crate) fn end_with_parent() -> Result<(), Failure> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).context("set parent death signal")
}

/// The spec's environment, with a home for those who have none. Of several values for a name the last counts
/// and is the only one that the command sees, as with runc.
pub(crate) fn environment(process: &Process, accounts: &Accounts, identity: &Identity) -> Vec<String> {
    let given = process.env().as_deref().unwrap_or_default();
    let mut seen = HashSet::new();
    let mut env: Vec<String> = given.to_vec();
    env.reverse();
    env.retain(|entry| seen.insert(entry.split('=').next().unwrap_or_default().to_owned()));
    env.reverse();
    env.retain(|entry| entry != "HOME=");
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", accounts.home(identity.uid)));
    }
    env
}

/// Closes a descriptor of the parent's by number, in the child.
pub(crate) fn close_inherited(fd: &impl AsRawFd) {
    let _ = nix::unistd::close(fd.as_raw_fd());
}
