//! The spec's hooks: programs of others, run at six points of a container's life with its state on their
//! standard input.
//!
//! `prestart`, `createRuntime`, `createContainer` and `startContainer` run inside [`create`](crate::create())
//! and init; whoever starts and removes a container calls [`poststart`] and [`poststop`].

use std::collections::HashMap;
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use oci_spec::runtime::{ContainerState, Hook, Spec};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::MemfdFlags;
use serde::Serialize;

use crate::command;
use crate::failure::{Context, Failure};
use crate::sys;

/// How much of what a failed hook printed is told.
const OUTPUT_MAX: u64 = 4 << 10;

/// What a hook reads from its standard input.
// spec: oci-runtime runtime.md#state
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The configuration's version of the specification.
    pub oci_version: String,
    /// The container's name.
    pub id: String,
    /// Where it is in its life.
    pub status: ContainerState,
    /// Its init, as the hook sees it; zero and left out when there is none any more.
    #[serde(skip_serializing_if = "is_zero")]
    pub pid: i32,
    /// The bundle's directory, absolute.
    pub bundle: PathBuf,
    /// The configuration's annotations.
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    pub annotations: HashMap<String, String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(pid: &i32) -> bool {
    *pid == 0
}

impl State {
    /// The state of a container of this configuration.
    #[must_use]
    pub fn of(spec: &Spec, id: &str, bundle: &Path, status: ContainerState, pid: i32) -> State {
        State {
            oci_version: spec.version().clone(),
            id: id.to_owned(),
            status,
            pid,
            bundle: bundle.to_owned(),
            annotations: spec.annotations().clone().unwrap_or_default(),
        }
    }
}

/// When hooks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Point {
    /// Its name in the configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Point::Prestart => "prestart",
            Point::CreateRuntime => "createRuntime",
            Point::CreateContainer => "createContainer",
            Point::StartContainer => "startContainer",
            Point::Poststart => "poststart",
            Point::Poststop => "poststop",
        }
    }

    /// All, in their order.
    pub(crate) const ALL: [Point; 6] = [
        Point::Prestart,
        Point::CreateRuntime,
        Point::CreateContainer,
        Point::StartContainer,
        Point::Poststart,
        Point::Poststop,
    ];
}

/// A configuration's hooks of one point.
pub(crate) fn of(spec: &Spec, point: Point) -> &[Hook] {
    let Some(hooks) = spec.hooks() else { return &[] };
    let list = match point {
        Point::Prestart => hooks.prestart(),
        Point::CreateRuntime => hooks.create_runtime(),
        Point::CreateContainer => hooks.create_container(),
        Point::StartContainer => hooks.start_container(),
        Point::Poststart => hooks.poststart(),
        Point::Poststop => hooks.poststop(),
    };
    list.as_deref().unwrap_or_default()
}

/// Whether init has to wait for hooks that its parent runs.
pub(crate) fn has_runtime_hooks(spec: &Spec) -> bool {
    [Point::Prestart, Point::CreateRuntime].iter().any(|point| !of(spec, *point).is_empty())
}

/// Runs what its parent runs for an init that has mounted everything and not yet changed its root.
pub(crate) fn run_in_runtime(spec: &Spec, state: &State) -> Result<(), Failure> {
    for point in [Point::Prestart, Point::CreateRuntime] {
        run_all(point, of(spec, point), state)?;
    }
    Ok(())
}

/// Runs the hooks that follow a container's start, in order, up to the first that fails. The caller must have
/// one thread, and stops the container when one has failed.
///
/// # Errors
/// The hook that failed, and what it printed.
// spec: oci-runtime runtime.md#lifecycle step 9
pub fn poststart(spec: &Spec, state: &State) -> Result<(), Failure> {
    run_all(Point::Poststart, of(spec, Point::Poststart), state)
}

/// Runs the hooks that follow a container's removal. One that fails is logged, and the others run. The caller
/// must have one thread.
// spec: oci-runtime runtime.md#lifecycle step 13
pub fn poststop(spec: &Spec, state: &State) {
    for (index, hook) in of(spec, Point::Poststop).iter().enumerate() {
        if let Err(failure) = run(Point::Poststop, index, hook, state) {
            tracing::warn!(%failure, container.id = state.id, "hook failed");
        }
    }
}

/// Runs one point's hooks, in order, up to the first that fails.
pub(crate) fn run_all(point: Point, hooks: &[Hook], state: &State) -> Result<(), Failure> {
    hooks.iter().enumerate().try_for_each(|(index, hook)| run(point, index, hook, state))
}

fn run(point: Point, index: usize, hook: &Hook, state: &State) -> Result<(), Failure> {
    let what = || format!("error running {} hook #{index}", point.name());
    let stdin = file("hook-state").with_context(what)?;
    let json = serde_json::to_vec(state).map_err(std::io::Error::from).with_context(what)?;
    rustix::io::write(&stdin, &json).with_context(what)?;
    rustix::fs::seek(&stdin, rustix::fs::SeekFrom::Start(0)).with_context(what)?;
    let output = file("hook-output").with_context(what)?;
    let child = sys::clone_process(0, None, || become_hook(hook, &stdin, &output)).with_context(what)?;
    let timeout = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
    let in_time = wait_until_ended(&child.pidfd, timeout).with_context(what)?;
    if !in_time {
        let _ = sys::send_signal(&child.pidfd, libc::SIGKILL);
    }
    let status = reap(child.pid).with_context(what)?;
    let why = match (in_time, status) {
        (false, _) => format!("it ran longer than its {} s", hook.timeout().unwrap_or_default()),
        (true, WaitStatus::Exited(_, 0)) => return Ok(()),
        (true, WaitStatus::Exited(_, code)) => format!("exit status {code}"),
        (true, WaitStatus::Signaled(_, signal, _)) => {
            format!("signal: {}", sys::describe_signal(signal as i32))
        }
        (true, other) => format!("{other:?}"),
    };
    Err(Failure::other(format!("{}: {}: {why}{}", what(), hook.path().display(), printed(output))))
}

/// A file in memory: nobody waits for its other end, whatever a hook leaves running.
fn file(name: &str) -> std::io::Result<OwnedFd> {
    Ok(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?)
}

/// In the new process.
fn become_hook(hook: &Hook, stdin: &OwnedFd, output: &OwnedFd) -> i32 {
    use std::os::unix::ffi::OsStrExt;
    let path = hook.path();
    let name = || vec![String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned()];
    let args = hook.args().clone().filter(|args| !args.is_empty()).unwrap_or_else(name);
    let becomes = || {
        nix::unistd::dup2_stdin(stdin).context("set stdin")?;
        nix::unistd::dup2_stdout(output).context("set stdout")?;
        nix::unistd::dup2_stderr(output).context("set stderr")?;
        sys::keep_only(0).context("close descriptors")?;
        sys::reset_signals(u64::MAX);
        command::execute(path, &args, &hook.env().clone().unwrap_or_else(own_environment))
    };
    let failure: Failure = match becomes() {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let _ = rustix::io::write(output, failure.message.as_bytes());
    127
}

/// What a hook without an environment gets. Text only, as in a configuration.
fn own_environment() -> Vec<String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some(format!("{}={}", name.to_str()?, value.to_str()?)))
        .collect()
}

/// False when time is up.
fn wait_until_ended(pidfd: &OwnedFd, timeout: Option<Duration>) -> std::io::Result<bool> {
    let deadline = timeout.map(|timeout| std::time::Instant::now() + timeout);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(std::time::Instant::now()));
        let left = left.map(rustix::event::Timespec::try_from).transpose().map_err(std::io::Error::other)?;
        match rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], left.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            polled => return Ok(polled? > 0),
        }
    }
}

fn reap(pid: i32) -> nix::Result<WaitStatus> {
    loop {
        match waitpid(Pid::from_raw(pid), None) {
            Err(nix::Error::EINTR) => {}
            reaped => return reaped,
        }
    }
}

/// The end of what a hook printed, on one line.
fn printed(output: OwnedFd) -> String {
    let mut file = std::fs::File::from(output);
    let length = file.metadata().map_or(0, |meta| meta.len());
    let mut bytes = Vec::new();
    let read = file
        .seek(SeekFrom::Start(length.saturating_sub(OUTPUT_MAX)))
        .and_then(|_| std::io::Read::read_to_end(&mut file, &mut bytes));
    let text = String::from_utf8_lossy(&bytes);
    let line = text.trim().replace('\n', "; ");
    if read.is_err() || line.is_empty() { String::new() } else { format!(": {line}") }
}
