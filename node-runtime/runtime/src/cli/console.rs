//! What a caller gets of a new process besides its number: its terminal or its pidfd, over a socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::args::Flag;
use super::replace;
use crate::failure::{Context, Failure};
use crate::terminal::Stdio;

pub(super) const CONSOLE_SOCKET: Flag =
    Flag::value("console-socket", "SOCKET", "a unix socket that gets the near end of the terminal");
pub(super) const PIDFD_SOCKET: Flag =
    Flag::value("pidfd-socket", "SOCKET", "a unix socket that gets a pidfd of the process");
pub(super) const PID_FILE: Flag = Flag::value("pid-file", "FILE", "where the process's number is written");
pub(super) const PRESERVE_FDS: Flag =
    Flag::value("preserve-fds", "N", "how many more descriptors the process inherits, from 3 on");

/// Refuses what does not go together.
pub(super) fn check_terminal(terminal: bool, detached: bool, socket: Option<&str>) -> Result<(), Failure> {
    match (detached && terminal, socket) {
        (true, None) => Err(Failure::invalid(
            "cannot allocate tty if runtime will detach without setting --console-socket",
        )),
        (false, Some(_)) => {
            Err(Failure::invalid("cannot use --console-socket if runtime will not detach or allocate tty"))
        }
        _ => Ok(()),
    }
}

/// What the process gets: a terminal goes to whoever listens, or is passed on by this program.
pub(super) fn stdio(terminal: bool, detached: bool) -> Stdio {
    match (terminal, detached) {
        (true, true) => Stdio::Terminal(None),
        (true, false) => Stdio::PassedOn,
        (false, _) => Stdio::Inherit,
    }
}

/// Refuses descriptors that are not there.
pub(super) fn check_preserved(count: u32) -> Result<(), Failure> {
    for fd in (3..).take(usize::try_from(count).unwrap_or(usize::MAX)) {
        std::fs::symlink_metadata(format!("/proc/self/fd/{fd}"))
            .with_context(|| format!("unable to stat preserved-fd {} (of {count})", fd - 3))?;
    }
    Ok(())
}

/// Sends a descriptor to whoever listens; `name` goes with it.
pub(super) fn hand_over(socket: &Path, name: &[u8], fd: impl AsFd) -> Result<(), Failure> {
    let what = || format!("send descriptor to `{}`", socket.display());
    let stream = UnixStream::connect(socket).with_context(what)?;
    let fds = [fd.as_fd().as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(stream.as_raw_fd(), &[io::IoSlice::new(name)], &rights, MsgFlags::MSG_NOSIGNAL, None)
        .with_context(what)?;
    Ok(())
}

/// Writes a process's number where the caller looks for it.
pub(super) fn write_pid(path: Option<&str>, pid: i32) -> Result<(), Failure> {
    match path {
        Some(path) => replace(Path::new(path), pid.to_string().as_bytes())
            .with_context(|| format!("write pid file `{path}`")),
        None => Ok(()),
    }
}
