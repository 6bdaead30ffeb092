//! The process: `rswarm shim --state-dir DIR`. One thread, one poll loop, no runtime.
//!
//! [`main`] reads the launch file, detaches itself from its caller, makes the container, tells the caller, and
//! then turns the [`event`] loop until a client sends it home. What it is asked is answered in [`request`];
//! what processes say and hear goes through [`process`]; connections are kept in [`connection`]. Who made the
//! container is known to [`container`] alone; that it ends when the shim does is seen to by its [`keeper`].
//!
//! There are thousands of these processes: what only the launch needs is dropped after it, buffers live as long
//! as there is something to move, and the configuration is read again for an exec.

mod connection;
mod container;
mod event;
mod keeper;
mod oci;
mod process;
mod request;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rswarm_base::fsx;
use rswarm_runtime::{Failure, Stdio};
use rustix::fs::CWD;
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::pipe::PipeFlags;

use self::container::{Container, keep_oom_score};
use self::event::Shim;
use self::keeper::Keeper;
use self::process::Process;
use crate::launch::{LAUNCH_FILE, Launch, SOCKET};
use crate::log::Log;
use crate::note::{self, note};
use crate::protocol::Launched;
use crate::sys;

/// In the process list; at most 15 bytes (proc_pid_comm(5)).
const NAME: &std::ffi::CStr = c"rswarm-shim";
/// The kernel takes a container's process before its shim, when memory runs out.
const OOM_SCORE: &str = "-500";

/// The entry of `rswarm shim`; called before any thread exists, with the arguments after `shim`.
#[must_use]
pub fn main(args: Vec<OsString>) -> i32 {
    note::listen();
    // It is executed through a descriptor, whose number would be its name.
    let _ = nix::sys::prctl::set_name(NAME);
    let state_dir = match parse(&args) {
        Ok(state_dir) => state_dir,
        Err(message) => {
            note(format_args!("{message}"));
            return 2;
        }
    };
    match detach() {
        Ok(true) => {}
        Ok(false) => return 0,
        Err(error) => {
            note(format_args!("shim could not be detached from its caller: {error}"));
            return 1;
        }
    }
    match launch(&state_dir) {
        Ok(shim) => {
            sys::trim_memory();
            shim.run();
            0
        }
        Err(failure) => {
            note(format_args!("container could not be created: {failure}"));
            say(&Launched::Failed(failure));
            1
        }
    }
}

fn parse(args: &[OsString]) -> Result<PathBuf, String> {
    match args {
        [flag, dir] if flag == "--state-dir" => Ok(PathBuf::from(dir)),
        _ => Err("usage: rswarm shim --state-dir DIR".to_owned()),
    }
}

/// Continues in a copy whose parent is gone at once, in a session of its own: nothing that happens to the
/// caller reaches it, and the caller need not reap it. True in the copy.
fn detach() -> io::Result<bool> {
    if rswarm_runtime::fork()? != 0 {
        return Ok(false);
    }
    nix::unistd::setsid()?;
    // A leader of a session could be given a terminal by opening one.
    Ok(rswarm_runtime::fork()? == 0)
}

/// Tells the caller how the launch went, and lets go of it.
fn say(launched: &Launched) {
    let mut line = serde_json::to_vec(launched).expect("the message is plain data");
    line.push(b'\n');
    if let Err(error) = io::stdout().write_all(&line).and_then(|()| io::stdout().flush()) {
        note(format_args!("caller is gone already: {error}"));
    }
    let closed = File::options().write(true).open("/dev/null").and_then(|null| {
        nix::unistd::dup2_stdout(&null)?;
        Ok(())
    });
    if let Err(error) = closed {
        note(format_args!("standard output could not be closed: {error}"));
    }
}

fn failed(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::os(what, error)
}

/// Makes the container; on failure nothing is left.
fn launch(state_dir: &Path) -> Result<Shim, Failure> {
    let path = state_dir.join(LAUNCH_FILE);
    let launch: Launch = fsx::read_json(&path)
        .map_err(|error| Failure::other(error.to_string()))?
        .ok_or_else(|| Failure::other(format!("{} is missing", path.display())))?;
    fsx::remove_all(&launch.exit_file).map_err(failed("remove the exit file of an earlier run"))?;
    let mut spec = rswarm_runtime::spec::load(&launch.bundle)?;
    let root = rswarm_runtime::spec::root_path(&spec, &launch.bundle)?;
    let oom_score = protect_from_oom()?;
    keep_oom_score(&mut spec, oom_score);
    let signals = take_signals().map_err(failed("take signals"))?;
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(io::Error::from)
        .map_err(failed("become a subreaper"))?;
    let listener = listen(&launch.state_dir).map_err(failed("listen on shim.sock"))?;
    leave_mounts(&launch.detach_mounts, &shared_sources(&spec))?;
    let made = launch.rootfs.mount(&root).and_then(|()| create(&launch, &spec, oom_score));
    let (container, process) = made.inspect_err(|_| {
        let _ = fs::remove_file(launch.state_dir.join(SOCKET));
        let _ = fs::remove_file(&path);
    })?;
    drop(spec);
    say(&Launched::Created { pid: container.pid });
    let keeper = Keeper::start(container.pidfd(), container.cgroup());
    // Without one the container still dies with the shim, but for the cases that the keeper is for.
    let keeper = keeper.inspect_err(|error| note(format_args!("no keeper: {error}"))).ok();
    Ok(Shim::new(launch, root, container, process, listener, signals, keeper))
}

/// The shim protects itself. Returns the score that it had before, with which its container starts.
fn protect_from_oom() -> Result<Option<i32>, Failure> {
    const FILE: &str = "/proc/self/oom_score_adj";
    let score = fs::read_to_string(FILE).map_err(failed("read oom_score_adj"))?;
    // Not allowed everywhere, and no reason not to run.
    let _ = fs::write(FILE, OOM_SCORE);
    Ok(score.trim().parse().ok())
}

/// Children's ends come as events. What would end a daemon does not end a shim.
fn take_signals() -> io::Result<SignalFd> {
    let mut blocked = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        blocked.add(signal);
    }
    blocked.thread_block()?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    Ok(SignalFd::with_flags(&children, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

/// The socket's own path may be too long for an address; its directory's descriptor never is.
fn listen(state_dir: &Path) -> io::Result<UnixListener> {
    let dir = File::open(state_dir)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()));
    fsx::remove_all(&state_dir.join(SOCKET))?;
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What the container shares with the machine: mounts that it makes there are the machine's too.
fn shared_sources(spec: &oci_spec::runtime::Spec) -> Vec<PathBuf> {
    let is_shared = |mount: &&oci_spec::runtime::Mount| {
        mount.options().iter().flatten().any(|option| matches!(option.as_str(), "shared" | "rshared"))
    };
    let shared = spec.mounts().iter().flatten().filter(is_shared);
    shared.filter_map(|mount| mount.source().clone()).collect()
}

/// A mount namespace of the shim's own, where the machine's mounts still arrive and none of ours leaves, but for
/// what is `shared`.
fn leave_mounts(pinned: &[PathBuf], shared: &[PathBuf]) -> Result<(), Failure> {
    let failed_at = |what: &str, path: &Path| {
        let what = format!("{what} `{}`", path.display());
        move |error: rustix::io::Errno| Failure::os(what, error)
    };
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let mut kept = Vec::new();
    for path in shared {
        kept.push((path, rustix::mount::open_tree(CWD, path, flags).map_err(failed_at("share", path))?));
    }
    nix::sched::unshare(CloneFlags::CLONE_NEWNS)
        .map_err(io::Error::from)
        .map_err(failed("make mount namespace"))?;
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(io::Error::from)
        .map_err(failed("make mounts not propagate"))?;
    for (path, tree) in kept {
        rustix::mount::move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(failed_at("share", path))?;
    }
    for path in pinned {
        match rustix::mount::unmount(path, UnmountFlags::DETACH) {
            // Not mounted, or gone: nothing is pinned.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(Failure::os(format!("detach `{}`", path.display()), error)),
        }
    }
    Ok(())
}

/// Makes the container with its stdio; the shim's ends of that are the [`Process`].
fn create(
    launch: &Launch,
    spec: &oci_spec::runtime::Spec,
    oom_score: Option<i32>,
) -> Result<(Container, Process), Failure> {
    let log = launch.log.as_ref().map(Log::open).transpose().map_err(failed("open the container's log"))?;
    let (stdio, ends) = if launch.tty {
        (Stdio::Terminal(launch.console_size), Ends::default())
    } else {
        pipes(launch.open_stdin).map_err(failed("make pipes"))?
    };
    let (container, terminal) = Container::create(launch, spec, stdio, oom_score)?;
    let mut process = match terminal {
        Some(near) => Process::with_terminal(container.pid, near, launch.open_stdin),
        None => Process::with_pipes(container.pid, ends),
    }
    .map_err(failed("prepare the container's stdio"))?;
    process.log = log;
    process.stdin_once = launch.stdin_once;
    Ok((container, process))
}

/// The shim's ends of a process's pipes.
#[derive(Debug, Default)]
struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// A process's standard files and our ends of them.
fn pipes(stdin: bool) -> io::Result<(Stdio, Ends)> {
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    let (stdin, our_stdin) = if stdin {
        let (read, write) = pipe()?;
        (read, Some(write))
    } else {
        (File::open("/dev/null")?.into(), None)
    };
    let (our_stdout, stdout) = pipe()?;
    let (our_stderr, stderr) = pipe()?;
    let ends = Ends { stdin: our_stdin, stdout: Some(our_stdout), stderr: Some(our_stderr) };
    Ok((Stdio::Files { stdin, stdout, stderr }, ends))
}
