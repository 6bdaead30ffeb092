//! The system calls that `nix` and `rustix` lack. The only unsafe code.
#![allow(unsafe_code, reason = "each block names the rule that it keeps")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::SigSet;

/// Closes every descriptor but these; for a copy of the process that has to hold nothing else of its
/// original's. The owners of what is closed must never be used or dropped again: the copy ends by `_exit`.
pub(crate) fn close_all_but(kept: &[RawFd]) {
    let mut kept: Vec<u32> = kept.iter().filter_map(|fd| u32::try_from(*fd).ok()).collect();
    kept.sort_unstable();
    let mut first = 0;
    for fd in kept {
        if fd > first {
            close_range(first, fd - 1);
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: close_range(2) takes no pointer; that nobody uses what it closes is the caller's promise.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}

/// Gives free memory back to the kernel.
pub(crate) fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) only touches the allocator's own lists, under its own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has a program start with no signal blocked, whatever its caller blocks: the mask is inherited (execve(2)), and
/// a container's command would never hear what the shim does not want to.
pub(crate) fn unblock_signals_of(command: &mut Command) {
    let unblock = || Ok(SigSet::empty().thread_set_mask()?);
    // SAFETY: between fork and exec this makes one system call, which is async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(unblock) };
}

/// Sends a signal by its number, real-time ones too. A process that has ended gets none.
pub(crate) fn signal(pid: i32, signal: i32) {
    // SAFETY: kill(2) takes no pointer; the caller has not reaped the process, so its number is its own.
    unsafe { libc::kill(pid, signal) };
}

/// Owns a descriptor that was just received in a control message.
pub(crate) fn own(received: RawFd) -> OwnedFd {
    // SAFETY: recvmsg(2) with SCM_RIGHTS makes a new descriptor, which only the receiver knows.
    unsafe { OwnedFd::from_raw_fd(received) }
}
