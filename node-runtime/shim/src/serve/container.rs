//! The container as the loop sees it, whoever made it: the built-in runtime, in this process, or another OCI
//! runtime, by its command line.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use oci_spec::runtime::{ContainerState, Spec};
use rswarm_runtime::cgroup::Cgroup;
use rswarm_runtime::{Added, Create, Created, Exec, Failure, Gate, Stdio, hooks};

use super::oci::Runtime;
use crate::launch::Launch;
use crate::protocol::ExecRequest;

/// A container that was made.
#[derive(Debug)]
pub(super) struct Container {
    /// Its first process, in the machine's numbering.
    pub pid: i32,
    maker: Maker,
    /// Its configuration names hooks for after its start or its end.
    has_hooks: bool,
    /// The score that its processes start with, when the configuration does not say.
    oom_score: Option<i32>,
}

#[derive(Debug)]
enum Maker {
    Us(Created),
    Other { runtime: Runtime, pidfd: OwnedFd, cgroup: Cgroup },
}

impl Container {
    /// Makes it; the near end of its terminal comes with it.
    pub(super) fn create(
        launch: &Launch,
        spec: &Spec,
        stdio: Stdio,
        oom_score: Option<i32>,
    ) -> Result<(Container, Option<OwnedFd>), Failure> {
        let (pid, terminal, maker) = match &launch.runtime {
            None => {
                let mut created = create(launch, spec, stdio)?;
                (created.pid, created.terminal.take(), Maker::Us(created))
            }
            Some(binary) => {
                let runtime = Runtime::new(binary, launch);
                let made = runtime.create(launch, spec, stdio)?;
                let maker = Maker::Other { runtime, pidfd: made.pidfd, cgroup: made.cgroup };
                (made.pid, made.terminal, maker)
            }
        };
        let hooks = spec.hooks().as_ref();
        let has_hooks = hooks.is_some_and(|hooks| hooks.poststart().is_some() || hooks.poststop().is_some());
        Ok((Container { pid, maker, has_hooks, oom_score }, terminal))
    }

    /// Refers to the first process whatever becomes of its number.
    pub(super) fn pidfd(&self) -> &OwnedFd {
        match &self.maker {
            Maker::Us(created) => &created.pidfd,
            Maker::Other { pidfd, .. } => pidfd,
        }
    }

    pub(super) fn cgroup(&self) -> &Cgroup {
        match &self.maker {
            Maker::Us(created) => &created.cgroup,
            Maker::Other { cgroup, .. } => cgroup,
        }
    }

    /// Lets the user's command run, and runs the hooks that follow.
    pub(super) fn start(&self, launch: &Launch) -> Result<(), Failure> {
        match &self.maker {
            Maker::Us(created) => {
                created.start()?;
                self.run_hooks(launch, ContainerState::Running)
            }
            // Its hooks are its own business.
            Maker::Other { runtime, .. } => runtime.start(),
        }
    }

    pub(super) fn pause(&self) -> Result<(), Failure> {
        match &self.maker {
            Maker::Us(created) => created.cgroup.freeze().map_err(|error| {
                // Half frozen is worse than not at all.
                let _ = created.cgroup.thaw();
                Failure::os("freeze container", error)
            }),
            Maker::Other { runtime, .. } => runtime.call("pause"),
        }
    }

    pub(super) fn resume(&self) -> Result<(), Failure> {
        match &self.maker {
            Maker::Us(created) => created.cgroup.thaw().map_err(|error| Failure::os("thaw container", error)),
            Maker::Other { runtime, .. } => runtime.call("resume"),
        }
    }

    /// A signal for the first process, or for all. Another runtime's first process may stand for something
    /// that only it can reach.
    pub(super) fn kill(&self, signal: i32, all: bool) -> io::Result<()> {
        match (&self.maker, all) {
            (Maker::Other { runtime, .. }, _) => runtime.kill(signal, all).map_err(io::Error::other),
            (Maker::Us(created), false) => {
                rswarm_runtime::send_signal(&created.pidfd, signal)?;
                if signal == Signal::SIGKILL as i32 {
                    created.cgroup.release_frozen(created.pid)?;
                }
                Ok(())
            }
            (Maker::Us(created), true) if signal == Signal::SIGKILL as i32 => created.cgroup.kill(),
            (Maker::Us(created), true) => created.cgroup.signal(Signal::try_from(signal)?),
        }
    }

    /// Adds a process. The configuration is read again: it is needed now and then, and large.
    pub(super) fn exec(
        &self,
        launch: &Launch,
        request: &ExecRequest,
        stdio: Stdio,
    ) -> Result<Added, Failure> {
        let mut spec = rswarm_runtime::spec::load(&launch.bundle)?;
        keep_oom_score(&mut spec, self.oom_score);
        let mut process = rswarm_runtime::exec_process(
            &spec,
            request.args.clone(),
            request.env.clone(),
            request.cwd.clone().map(PathBuf::from),
            request.privileged,
        )?;
        process.set_terminal(Some(request.tty));
        let user = request.user.as_deref().or(launch.user.as_deref());
        match &self.maker {
            Maker::Us(created) => rswarm_runtime::exec(Exec {
                id: &launch.id,
                bundle: &launch.bundle,
                spec: &spec,
                init: created.pid,
                cgroup: &created.cgroup,
                process,
                user,
                groups: &launch.groups,
                filtered: !request.privileged,
                stdio,
                preserve_fds: 0,
                die_with_parent: true,
            }),
            Maker::Other { runtime, .. } => {
                let root = PathBuf::from(format!("/proc/{}/root", self.pid));
                rswarm_runtime::fill_in(&root, &mut process, user, &launch.groups)?;
                runtime.exec(&process, stdio)
            }
        }
    }

    /// After its end: whatever its maker keeps of it goes.
    pub(super) fn delete(&self, launch: &Launch) {
        match &self.maker {
            Maker::Us(_) => {
                // One that fails is told, and there is nobody to refuse anything to.
                let _ = self.run_hooks(launch, ContainerState::Stopped);
            }
            Maker::Other { runtime, .. } => runtime.delete(),
        }
    }

    fn run_hooks(&self, launch: &Launch, status: ContainerState) -> Result<(), Failure> {
        if !self.has_hooks {
            return Ok(());
        }
        let spec = rswarm_runtime::spec::load(&launch.bundle)?;
        let pid = if status == ContainerState::Running { self.pid } else { 0 };
        let state = hooks::State::of(&spec, &launch.id, &launch.bundle, status, pid);
        if status == ContainerState::Running {
            return hooks::poststart(&spec, &state);
        }
        hooks::poststop(&spec, &state);
        Ok(())
    }
}

fn create(launch: &Launch, spec: &Spec, stdio: Stdio) -> Result<Created, Failure> {
    rswarm_runtime::create(Create {
        id: &launch.id,
        spec,
        bundle: &launch.bundle,
        user: launch.user.as_deref(),
        groups: &launch.groups,
        stdio,
        gate: Gate::Parent,
        preserve_fds: 0,
        no_pivot: false,
        new_keyring: true,
        die_with_parent: true,
    })
}

/// Processes that ask for no score have 0, as with Docker, however well the daemon is protected; or the shim's own
/// first one where that is higher, since lowering it takes a privilege.
pub(super) fn keep_oom_score(spec: &mut Spec, score: Option<i32>) {
    if let Some(process) = spec.process_mut()
        && process.oom_score_adj().is_none()
    {
        process.set_oom_score_adj(score.map(|score| score.max(0)));
    }
}
