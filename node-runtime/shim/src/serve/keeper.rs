//! The keeper: a copy of the shim that does nothing until the shim is gone, and then kills its container.
//!
//! The kernel's parent death signal does most of that alone, but it is cleared when a program changes its
//! identity (a set-user-ID command, `gosu`, file capabilities; prctl(2)), and processes that another runtime made
//! never had one. The keeper waits for the end of a pipe whose other end only the shim holds. What it kills it
//! holds open, so that a new container of the same name is never meant: the first process by its pidfd, with
//! which its pid namespace dies, and the version 2 cgroup by its `cgroup.kill`.
//!
//! Where there is no version 2 hierarchy, a process that shares the machine's pid namespace and changed its
//! identity is left to the daemon, which kills by cgroup when it finds the shim gone.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::signal::Signal;
use rswarm_runtime::cgroup::Cgroup;
use rustix::pipe::PipeFlags;

use crate::note::note;
use crate::sys;

/// Tells the keeper to go: the container has ended.
const DISMISSED: &[u8] = b"D";

/// The shim's hold on its keeper; a shim that dies lets go of it.
#[derive(Debug)]
pub(super) struct Keeper {
    pub pid: i32,
    pipe: OwnedFd,
}

impl Keeper {
    /// Sets one on a container.
    pub(super) fn start(pidfd: &OwnedFd, cgroup: &Cgroup) -> io::Result<Keeper> {
        let kill_file = cgroup.kill_file();
        let (theirs, pipe) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let pid = rswarm_runtime::fork()?;
        if pid == 0 {
            drop(pipe);
            keep(&theirs, pidfd, kill_file);
            rswarm_runtime::exit_now(0);
        }
        Ok(Keeper { pid, pipe })
    }

    /// The container has ended by itself.
    pub(super) fn dismiss(self) {
        if let Err(error) = rustix::io::write(&self.pipe, DISMISSED) {
            note(format_args!("keeper is gone already: {error}"));
        }
    }
}

fn keep(pipe: &OwnedFd, pidfd: &OwnedFd, kill_file: Option<File>) {
    let _ = nix::sys::prctl::set_name(c"rswarm-keeper");
    let mut kept = vec![2, pipe.as_raw_fd(), pidfd.as_raw_fd()];
    kept.extend(kill_file.as_ref().map(AsRawFd::as_raw_fd));
    sys::close_all_but(&kept);
    let shim_is_gone = loop {
        match rustix::io::read(pipe.as_fd(), &mut [0; 1]) {
            Err(rustix::io::Errno::INTR) => {}
            read => break read == Ok(0),
        }
    };
    if !shim_is_gone {
        return;
    }
    note(format_args!("shim is gone: its container is killed"));
    // Either may be gone already.
    let _ = rswarm_runtime::send_signal(pidfd, Signal::SIGKILL as i32);
    if let Some(mut file) = kill_file {
        let _ = file.write_all(b"1");
    }
}
