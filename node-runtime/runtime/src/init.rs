//! The container's first process until it becomes the user's command: top to bottom, in order.
//!
//! Everything that can be prepared is in [`Init`] before the clone; what fails here goes to the parent over
//! the channel. Nothing here may be skipped silently.

use std::convert::Infallible;
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sched::CloneFlags;
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use rustix::fs::{Mode, OFlags};

use crate::cgroup::{Cgroup, Entry};
use crate::channel::Channel;
use crate::command;
use crate::confine;
use crate::failure::{Context, Failure};
use crate::rootfs::{Plan, Tree};
use crate::seccomp::Filter;
use crate::spec::{has_new_namespace, linux, process};
use crate::sys;
use crate::terminal::{self, Stdio};
use crate::user::{Accounts, Identity, add_groups};

/// How init learns that the container is started.
#[derive(Debug)]
pub enum Gate {
    /// By [`crate::Created::start`], from the process that created it.
    Parent,
    /// By somebody who opens this FIFO to read; what is then written into it is the failure to execute. The
    /// directory is kept open, since it is not in the container.
    Fifo {
        /// Where the FIFO is.
        dir: OwnedFd,
        /// Its name there.
        name: String,
    },
}

/// All that init needs.
pub(crate) struct Init<'a> {
    pub spec: &'a Spec,
    pub tree: Plan<'a>,
    pub user: Option<&'a str>,
    pub groups: &'a [String],
    pub cgroup: &'a Cgroup,
    pub entry: Entry,
    /// Namespaces to join, with their types.
    pub join: Vec<(OwnedFd, CloneFlags)>,
    pub filter: Option<Filter>,
    pub stdio: Stdio,
    pub gate: Gate,
    pub preserve_fds: u32,
    pub new_keyring: bool,
    pub no_pivot: bool,
    pub die_with_parent: bool,
    pub channel: Channel,
}

impl Init<'_> {
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
        if self.new_keyring {
            sys::join_session_keyring().context("join a new session keyring")?;
        }
        self.enter_namespaces()?;
        set_names(spec)?;
        set_oom_score(process)?;
        self.tree.write_sysctls()?;
        let tree = Tree::build(&self.tree, self.cgroup)?;
        tree.enter(self.no_pivot)?;
        let terminal = terminal::take(&self.stdio, process)?;
        if let Some(pair) = &terminal {
            tree.bind_console(&pair.far)?;
        }
        tree.protect()?;
        let accounts = Accounts::read();
        let identity = identity(process, self.user, self.groups, &accounts)?;
        let env = environment(process, &accounts, &identity);
        terminal::give_to(identity.uid)?;
        confine::limit(process.rlimits().as_deref().unwrap_or_default())?;
        Ok(LastStep {
            process,
            identity,
            env,
            filter: self.filter.as_ref(),
            terminal: terminal.map(|pair| pair.near),
            gate: &self.gate,
            preserve_fds: self.preserve_fds,
            die_with_parent: self.die_with_parent,
        })
    }

    /// Control groups first: a new cgroup namespace has the present groups as its roots.
    fn enter_namespaces(&self) -> Result<(), Failure> {
        self.entry.join_v1()?;
        for (namespace, typ) in &self.join {
            nix::sched::setns(namespace, *typ).with_context(|| format!("join namespace {typ:?}"))?;
        }
        let linux = linux(self.spec)?;
        if has_new_namespace(linux, LinuxNamespaceType::Cgroup) {
            nix::sched::unshare(CloneFlags::CLONE_NEWCGROUP).context("make cgroup namespace")?;
        }
        if has_new_namespace(linux, LinuxNamespaceType::Network) {
            crate::loopback::up()?;
        }
        Ok(())
    }
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
    add_groups(&mut identity, numbers.additional_gids().iter().flatten().copied().chain(more));
    Ok(identity)
}

/// What is left to do when a process is where it belongs; the same for the first and for added ones.
pub(crate) struct LastStep<'a> {
    pub process: &'a Process,
    pub identity: Identity,
    pub env: Vec<String>,
    pub filter: Option<&'a Filter>,
    pub terminal: Option<OwnedFd>,
    pub gate: &'a Gate,
    /// How many descriptors from 3 on the command inherits.
    pub preserve_fds: u32,
    pub die_with_parent: bool,
}

impl LastStep<'_> {
    /// Drops what is not needed any more, waits for the word, and becomes the command.
    pub(crate) fn take(self, channel: &Channel) -> Result<Infallible, Failure> {
        let args = self.process.args().as_deref().unwrap_or_default();
        confine::drop_privileges(self.process, &self.identity, self.filter)?;
        if self.die_with_parent {
            // The change of identity has cleared it.
            end_with_parent()?;
        }
        enter_directory(self.process.cwd())?;
        let program = command::find(args.first().map_or("", String::as_str), &self.env)?;
        sys::keep_only(self.preserve_fds).context("close descriptors")?;
        sys::reset_signals();
        channel.ready(self.terminal.as_ref())?;
        drop(self.terminal);
        match self.gate {
            Gate::Parent if !channel.wait_for_start() => Err(Failure::other("the parent is gone")),
            Gate::Parent => command::execute(&program, args, &self.env),
            Gate::Fifo { dir, name } => execute_after_fifo(dir, name, &program, args, &self.env),
        }
    }
}

/// The kernel kills the caller when its parent ends.
pub(crate) fn end_with_parent() -> Result<(), Failure> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).context("set parent death signal")
}

fn set_names(spec: &Spec) -> Result<(), Failure> {
    let own = has_new_namespace(linux(spec)?, LinuxNamespaceType::Uts);
    let names = [("hostname", spec.hostname()), ("domainname", spec.domainname())];
    for (what, name) in names {
        let Some(name) = name.as_ref().filter(|name| !name.is_empty()) else { continue };
        if !own {
            return Err(Failure::invalid(format!("{what} needs a UTS namespace of the container's own")));
        }
        match what {
            "hostname" => nix::unistd::sethostname(name).context("sethostname")?,
            _ => rustix::system::setdomainname(name.as_bytes()).context("setdomainname")?,
        }
    }
    Ok(())
}

pub(crate) fn set_oom_score(process: &Process) -> Result<(), Failure> {
    match process.oom_score_adj() {
        Some(score) => fs::write("/proc/self/oom_score_adj", score.to_string())
            .with_context(|| format!("set oom_score_adj to {score}")),
        None => Ok(()),
    }
}

/// The spec's environment, with a home for those who have none.
pub(crate) fn environment(process: &Process, accounts: &Accounts, identity: &Identity) -> Vec<String> {
    let mut env = process.env().clone().unwrap_or_default();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", accounts.home(identity.uid)));
    }
    env
}

/// As the user: a directory that only root may enter is an error.
pub(crate) fn enter_directory(path: &Path) -> Result<(), Failure> {
    std::env::set_current_dir(path)
        .with_context(|| format!("chdir to cwd (\"{}\") set in config.json failed", path.display()))
}

/// Opening the FIFO waits for a reader, which then reads why this failed, or the silence of success.
fn execute_after_fifo(
    dir: &OwnedFd,
    name: &str,
    program: &Path,
    args: &[String],
    env: &[String],
) -> Result<Infallible, Failure> {
    let fifo = rustix::fs::openat(dir, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .context("wait for start")?;
    let failure = match command::execute(program, args, env) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let _ = rustix::io::write(&fifo, &serde_json::to_vec(&failure).unwrap_or_default());
    Err(failure)
}

/// Closes a descriptor of the parent's by number, in the child.
pub(crate) fn close_inherited(fd: &impl AsRawFd) {
    let _ = nix::unistd::close(fd.as_raw_fd());
}
