//! Another OCI runtime, driven by the command line that runc has: every call is one run of its program.
//!
//! The container's first process, and those added by exec, are left behind by the program when it ends and fall
//! to the shim, which is their subreaper: standard files, exit codes and the log are as with the built-in runtime.
//! What a call that fails has to say is read from the JSON log that the program was told to write.

use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as ProcessStdio};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use oci_spec::runtime::{Process, Spec};
use rswarm_base::fsx;
use rswarm_runtime::cgroup::Cgroup;
use rswarm_runtime::{Added, Failure, FailureKind, Stdio};
use rustix::event::{PollFd, PollFlags};
use rustix::process::PidfdFlags;
use serde::Deserialize;

use crate::launch::{Launch, RuntimeBinary};
use crate::note::note;
use crate::sys;

/// The names of what is kept in the state directory: the program's own state, its words, and a bundle with the
/// users looked up.
const ROOT: &str = "runtime";
const LOG: &str = "runtime.log";
const BUNDLE: &str = "bundle";
const PID_FILE: &str = "runtime.pid";
const CONSOLE: &str = "console.sock";
const PROCESS: &str = "process.json";

/// The program, for one container.
#[derive(Debug)]
pub(super) struct Runtime {
    binary: RuntimeBinary,
    id: String,
    dir: PathBuf,
}

/// A container that it made.
#[derive(Debug)]
pub(super) struct Made {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub cgroup: Cgroup,
    pub terminal: Option<OwnedFd>,
}

/// A line of the program's log.
#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

impl Runtime {
    pub(super) fn new(binary: &RuntimeBinary, launch: &Launch) -> Runtime {
        Runtime { binary: binary.clone(), id: launch.id.clone(), dir: launch.state_dir.clone() }
    }

    /// `create`; on failure nothing is left of the container.
    pub(super) fn create(&self, launch: &Launch, spec: &Spec, stdio: Stdio) -> Result<Made, Failure> {
        let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
        let cgroup = Cgroup::at(path.ok_or_else(|| Failure::invalid("linux.cgroupsPath is missing"))?)?;
        let root = rswarm_runtime::spec::root_path(spec, &launch.bundle)?;
        let command = process(spec)?.args().iter().flatten().next().cloned().unwrap_or_default();
        self.write_bundle(launch, spec, &root)?;
        let mut call = self.command();
        call.arg("create").arg("--bundle").arg(self.dir.join(BUNDLE));
        let made = self.run(call, stdio, &command).map(|added| Made {
            pid: added.pid,
            pidfd: added.pidfd,
            cgroup,
            terminal: added.terminal,
        });
        made.inspect_err(|_| self.delete())
    }

    /// The configuration as the program needs it: users by number, paths absolute.
    fn write_bundle(&self, launch: &Launch, spec: &Spec, root: &Path) -> Result<(), Failure> {
        let mut spec = spec.clone();
        let mut process = process(&spec)?.clone();
        rswarm_runtime::fill_in(root, &mut process, launch.user.as_deref(), &launch.groups)?;
        process.set_terminal(Some(launch.tty));
        spec.set_process(Some(process));
        let mut at = spec.root().clone().unwrap_or_default();
        at.set_path(root.to_owned());
        spec.set_root(Some(at));
        let dir = self.dir.join(BUNDLE);
        let write = || {
            fs::create_dir_all(&dir)?;
            fs::write(dir.join("config.json"), serde_json::to_vec(&spec)?)
        };
        write().map_err(|error: io::Error| Failure::os("write the runtime's bundle", error))
    }

    /// `start`.
    pub(super) fn start(&self) -> Result<(), Failure> {
        self.call("start")
    }

    /// `kill`.
    pub(super) fn kill(&self, signal: i32, all: bool) -> Result<(), Failure> {
        let mut call = self.command();
        call.arg("kill").args(all.then_some("--all")).arg(&self.id).arg(signal.to_string());
        self.finish(call, "kill")
    }

    /// `exec --detach`: the process is the shim's when the call returns.
    pub(super) fn exec(&self, process: &Process, stdio: Stdio) -> Result<Added, Failure> {
        let path = self.dir.join(PROCESS);
        let json = serde_json::to_vec(process).map_err(|error| Failure::other(error.to_string()))?;
        fs::write(&path, json).map_err(|error| Failure::os("write the exec's process", error))?;
        let mut call = self.command();
        call.args(["exec", "--detach", "--process"]).arg(path);
        let command = process.args().iter().flatten().next().cloned().unwrap_or_default();
        self.run(call, stdio, &command)
    }

    /// `delete --force`, and all that was written for the program.
    pub(super) fn delete(&self) {
        let mut call = self.command();
        call.args(["delete", "--force"]).arg(&self.id);
        if let Err(failure) = self.finish(call, "delete") {
            // One that was never made is not there to be deleted.
            note(format_args!("{failure}"));
        }
        for name in [ROOT, LOG, BUNDLE, PID_FILE, CONSOLE, PROCESS] {
            if let Err(error) = fsx::remove_all(&self.dir.join(name)) {
                note(format_args!("something of the runtime stays behind: {error}"));
            }
        }
    }

    /// A call that takes nothing but the container's name.
    pub(super) fn call(&self, what: &str) -> Result<(), Failure> {
        let mut call = self.command();
        call.arg(what).arg(&self.id);
        self.finish(call, what)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary.path);
        command.args(&self.binary.args);
        command.arg("--root").arg(self.dir.join(ROOT));
        command.arg("--log").arg(self.dir.join(LOG)).args(["--log-format", "json"]);
        command.current_dir("/").stdin(ProcessStdio::null());
        command
    }

    /// Runs a call that leaves a process behind; `command` is what that process executes.
    fn run(&self, mut call: Command, stdio: Stdio, command: &str) -> Result<Added, Failure> {
        let what = if call.get_args().any(|arg| arg == "exec") { "exec" } else { "create" };
        let pid_file = self.dir.join(PID_FILE);
        call.arg("--pid-file").arg(&pid_file);
        let made = |error| Failure::os("prepare the runtime's call", error);
        fsx::remove_all(&pid_file).map_err(made)?;
        let mut console = None;
        match stdio {
            Stdio::Files { stdin, stdout, stderr } => {
                call.stdin(stdin).stdout(stdout).stderr(stderr);
            }
            // The runtime passes a terminal on by itself when it stays in the foreground.
            Stdio::Inherit | Stdio::PassedOn => {
                call.stdin(ProcessStdio::inherit());
            }
            Stdio::Terminal(size) => {
                let socket = Console::listen(&self.dir).map_err(made)?;
                call.arg("--console-socket").arg(socket.path());
                call.stdout(ProcessStdio::null()).stderr(ProcessStdio::null());
                console = Some((socket, size));
            }
        }
        call.arg(&self.id);
        self.wait(call, what, command)?;
        let terminal = console.map(|(socket, size)| socket.terminal(size)).transpose()?;
        let pid = fs::read_to_string(&pid_file).map_err(made)?;
        let pid = pid.trim().parse().map_err(|_| Failure::other(format!("runtime gave `{pid}` as a pid")))?;
        let pidfd = rustix::process::Pid::from_raw(pid)
            .ok_or_else(|| Failure::other("runtime gave no pid"))
            .and_then(|pid| {
                rustix::process::pidfd_open(pid, PidfdFlags::empty())
                    .map_err(|error| Failure::os("open the container's process", error))
            })?;
        Ok(Added { pid, pidfd, terminal })
    }

    fn finish(&self, mut call: Command, what: &str) -> Result<(), Failure> {
        call.stdout(ProcessStdio::null()).stderr(ProcessStdio::null());
        self.wait(call, what, "")
    }

    fn wait(&self, mut call: Command, what: &str, command: &str) -> Result<(), Failure> {
        let log = self.dir.join(LOG);
        let failed = |error| Failure::os(format!("run `{}`", self.binary.path.display()), error);
        fsx::remove_all(&log).map_err(failed)?;
        sys::unblock_signals_of(&mut call);
        let mut child = call.spawn().map_err(failed)?;
        // Its ends of the standard files are the container's now: their end is the container's.
        drop(call);
        let status = child.wait().map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        let said = fs::read_to_string(&log).unwrap_or_default();
        let why = last_words(&said).unwrap_or_else(|| status.to_string());
        Err(failure(&format!("OCI runtime {what} failed: {why}"), command))
    }
}

fn process(spec: &Spec) -> Result<&Process, Failure> {
    spec.process().as_ref().ok_or_else(|| Failure::invalid("process is missing"))
}

/// The last error in a log of JSON lines, or its last line when it is none of those.
fn last_words(log: &str) -> Option<String> {
    let said = |line: &str| serde_json::from_str::<Said>(line).ok().filter(|said| !said.msg.is_empty());
    let mut errors =
        log.lines().filter_map(said).filter(|said| matches!(said.level.as_str(), "error" | "fatal"));
    let last = errors.next_back().map(|said| said.msg);
    last.or_else(|| log.lines().rfind(|line| !line.trim().is_empty()).map(str::to_owned))
}

/// What the words mean for the exit code.
// spec: moby daemon/errors.go translateContainerdStartErr
fn failure(message: &str, command: &str) -> Failure {
    let lower = message.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|words| lower.contains(words));
    let kind = if !command.is_empty()
        && message.contains(command)
        && has(&["executable file", "no such file or directory"])
        && has(&["not found", "no such file or directory"])
    {
        FailureKind::NotFound
    } else if has(&["permission denied", "is a directory", "exec format error"]) {
        FailureKind::NotExecutable
    } else {
        FailureKind::Other
    };
    Failure { message: message.to_owned(), kind }
}

/// The socket on which a runtime hands over a terminal.
struct Console {
    listener: UnixListener,
    /// The socket's own path may be too long for an address.
    dir: File,
    path: PathBuf,
}

impl Console {
    fn listen(dir: &Path) -> io::Result<Console> {
        let path = dir.join(CONSOLE);
        fsx::remove_all(&path)?;
        let dir = File::open(dir)?;
        let listener = UnixListener::bind(format!("/proc/self/fd/{}/{CONSOLE}", dir.as_raw_fd()))?;
        Ok(Console { listener, dir, path })
    }

    /// Where another process finds it.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}/{CONSOLE}", std::process::id(), self.dir.as_raw_fd())
    }

    /// What was handed over. The runtime has ended: what is not there does not come.
    fn terminal(self, size: Option<(u16, u16)>) -> Result<OwnedFd, Failure> {
        let failed = |error| Failure::os("receive the terminal", error);
        self.listener.set_nonblocking(true).map_err(failed)?;
        let (stream, _) = self.listener.accept().map_err(failed)?;
        let terminal = receive(&stream).map_err(failed)?;
        fsx::remove_all(&self.path).map_err(failed)?;
        if let Some(size) = size {
            rswarm_runtime::resize(&terminal, size)?;
        }
        Ok(terminal)
    }
}

fn receive(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut fds = [PollFd::new(stream, PollFlags::IN)];
    rustix::event::poll(&mut fds, None)?;
    let mut name = [0; 4096];
    let mut buffers = [IoSliceMut::new(&mut name)];
    let mut control = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut buffers, Some(&mut control), flags)?;
    let rights = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    rights.map(sys::own).ok_or_else(|| io::Error::other("no descriptor came"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_counts_and_plain_text_is_taken_as_it_is() {
        let log = "{\"level\":\"warning\",\"msg\":\"a\"}\n{\"level\":\"error\",\"msg\":\"b\"}\n{\"level\":\"info\",\"msg\":\"c\"}\n";
        assert_eq!(last_words(log).as_deref(), Some("b"));
        assert_eq!(last_words("flag not known\n\n").as_deref(), Some("flag not known"));
        assert_eq!(last_words(""), None);
    }

    #[test]
    fn words_are_exit_codes() {
        let code = |words: &str| failure(words, "foo").exit_code();
        assert_eq!(code("exec: \"foo\": executable file not found in $PATH"), 127);
        assert_eq!(code("executable file `foo` not found in $PATH: No such file or directory"), 127);
        assert_eq!(code("exec: \"foo\": permission denied"), 126);
        assert_eq!(code("open executable: Permission denied"), 126);
        assert_eq!(code("error mounting \"/x\": no such file or directory"), 128);
    }
}
