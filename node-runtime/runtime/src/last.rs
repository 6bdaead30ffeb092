//! The last step of every process in a container: it gives up what it must not have, waits for the word, and
//! becomes the user's command.

use std::convert::Infallible;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use oci_spec::runtime::{ContainerState, Hook, Process};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::channel::{Channel, Word};
use crate::command;
use crate::confine;
use crate::failure::{Context, Failure};
use crate::hooks::{self, Point, State};
use crate::init::end_with_parent;
use crate::lsm;
use crate::procfs::Proc;
use crate::seccomp::Filter;
use crate::sys;
use crate::user::Identity;

/// How init learns that the container is started.
#[derive(Debug)]
pub enum Gate {
    /// By [`crate::Created::start`], from the process that created it.
    Parent,
    /// By somebody who opens this FIFO to read; what is then written into it is the failure to execute. It is
    /// open as `O_PATH`, since it is not in the container: no directory of the machine's is there.
    Fifo(OwnedFd),
}

/// What is left to do when a process is where it belongs; the same for the first and for added ones.
pub(crate) struct LastStep<'a> {
    pub process: &'a Process,
    pub identity: Identity,
    /// Not in a user namespace that somebody without privileges has made.
    pub can_set_groups: bool,
    pub env: Vec<String>,
    pub filter: Option<&'a Filter>,
    pub proc: &'a Proc,
    pub terminal: Option<OwnedFd>,
    pub gate: &'a Gate,
    /// `startContainer`'s.
    pub hooks: &'a [Hook],
    /// What they are told.
    pub state: &'a State,
    /// How many descriptors from 3 on the command inherits.
    pub preserve_fds: u32,
    pub die_with_parent: bool,
}

impl LastStep<'_> {
    /// Does it. Comes back only with a failure, which the caller of start is told.
    pub(crate) fn take(mut self, channel: &Channel) -> Result<Infallible, Failure> {
        let terminal = self.terminal.take();
        self.close_descriptors(channel, terminal.as_ref())?;
        let program = self.give_up(channel)?;
        if matches!(self.gate, Gate::Fifo(_)) {
            // What stops a container stops one that was never started, too: from when it is said to be there.
            sys::end_on(&[Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM]);
        }
        channel.ready(terminal.as_ref())?;
        drop(terminal);
        match self.gate {
            Gate::Parent => {
                channel.wait_for(Word::Start)?;
                self.go(channel, &program)
            }
            Gate::Fifo(fifo) => {
                // Opening it waits for a reader, which then reads why this failed, or the silence of success.
                let fifo = self.proc.reopen_own(fifo, OFlags::WRONLY).context("wait for start")?;
                self.go(channel, &program).inspect_err(|failure| {
                    let _ = rustix::io::write(&fifo, &serde_json::to_vec(failure).unwrap_or_default());
                })
            }
        }
    }

    /// All but what the command inherits and what is needed until it runs. Before a filter is loaded, which may
    /// have been made for older programs and not know the call.
    fn close_descriptors(&self, channel: &Channel, terminal: Option<&OwnedFd>) -> Result<(), Failure> {
        let gate = match self.gate {
            Gate::Parent => None,
            Gate::Fifo(fifo) => Some(fifo.as_raw_fd()),
        };
        let near = terminal.map(AsRawFd::as_raw_fd);
        let needed = [Some(channel.raw()), Some(self.proc.as_raw_fd()), gate, near];
        sys::close_all_but(self.preserve_fds, needed).context("close descriptors")
    }

    /// Privileges, directory and signals, and finds the command: what fails here fails while the container is
    /// created.
    fn give_up(&self, channel: &Channel) -> Result<PathBuf, Failure> {
        lsm::label_command(self.proc, self.process)?;
        let cwd = self.process.cwd();
        let is_inside = enter_directory(cwd)?;
        let load_early = || if self.loads_late() { Ok(()) } else { self.load_filter(channel) };
        // While root can read it.
        let own = self.proc.status().context("look at own status")?;
        confine::drop_privileges(
            self.process,
            &self.identity,
            self.can_set_groups,
            own.bounding,
            load_early,
        )?;
        if self.die_with_parent {
            // The change of identity has cleared it.
            end_with_parent()?;
        }
        if !is_inside && !enter_directory(cwd)? {
            return Err(cannot_enter(cwd, Errno::ACCESS));
        }
        let program = command::find(self.args().first().map_or("", String::as_str), &self.env)?;
        sys::reset_signals(own.ignored);
        if self.loads_late() && self.filter.is_some_and(Filter::has_listener) {
            // The one who creates the container has to pass the listener on.
            self.load_filter(channel)?;
        }
        Ok(program)
    }

    /// The container is started.
    fn go(&self, channel: &Channel, program: &Path) -> Result<Infallible, Failure> {
        if self.loads_late() && !self.filter.is_some_and(Filter::has_listener) {
            self.load_filter(channel)?;
        }
        if !self.hooks.is_empty() {
            let pid = std::process::id().cast_signed();
            let state = State { pid, status: ContainerState::Created, ..self.state.clone() };
            hooks::run_all(Point::StartContainer, &with_env(self.hooks, &self.env), &state)?;
        }
        command::execute(program, self.args(), &self.env)
    }

    fn args(&self) -> &[String] {
        self.process.args().as_deref().unwrap_or_default()
    }

    /// With no_new_privs a filter needs no privileges, and is loaded when as few calls as possible are left
    /// for it to forbid.
    fn loads_late(&self) -> bool {
        self.process.no_new_privileges().unwrap_or(false)
    }

    fn load_filter(&self, channel: &Channel) -> Result<(), Failure> {
        match self.filter.map(Filter::load).transpose()?.flatten() {
            Some(listener) => channel.listener(listener.as_raw_fd().cast_unsigned()),
            None => Ok(()),
        }
    }
}

/// Hooks without an environment of their own have the command's, as runc's have: ours means nothing here.
fn with_env(hooks: &[Hook], env: &[String]) -> Vec<Hook> {
    let mut hooks = hooks.to_vec();
    for hook in hooks.iter_mut().filter(|hook| hook.env().is_none()) {
        hook.set_env(Some(env.to_vec()));
    }
    hooks
}

/// As root first, who can enter what only root can; false when it is for the user to try, since root may not
/// (a network file system that knows no root).
fn enter_directory(path: &Path) -> Result<bool, Failure> {
    match rustix::process::chdir(path) {
        Ok(()) => is_in_container().map(|()| true),
        Err(Errno::ACCESS) => Ok(false),
        Err(error) => Err(cannot_enter(path, error)),
    }
}

fn cannot_enter(path: &Path, error: Errno) -> Failure {
    Failure::os(format!("chdir to cwd (\"{}\") set in config.json failed", path.display()), error)
}

/// A path like `/proc/self/fd/7` leads to what its process has open, on the machine too. The kernel names a
/// directory that is not below the caller's root as what it is.
// CVE-2024-21626; getcwd(2)
fn is_in_container() -> Result<(), Failure> {
    let inside = match rustix::process::getcwd(Vec::new()) {
        Ok(path) => path.as_bytes().starts_with(b"/"),
        // Somebody has removed it since.
        Err(Errno::NOENT) => false,
        Err(error) => return Err(Failure::os("verify the working directory", error)),
    };
    if inside {
        return Ok(());
    }
    let why = "is outside of container mount namespace root -- possible container breakout detected";
    Err(Failure::invalid(format!("current working directory {why}")))
}
