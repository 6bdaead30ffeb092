//! The system calls that `nix` and `rustix` lack: typed values in, `io::Result` out. The only unsafe code.
#![allow(unsafe_code, reason = "each block names the rule that it keeps")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `libc` has it as an `i32`, where it overflows to zero and then silently does nothing.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A new process, made straight into new namespaces and, when given, into a cgroup of version 2.
pub(crate) struct Child {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// Runs `child` in a new process, which ends with its result. Namespace flags as in clone(2). The caller
/// must have one thread: then its copy may use everything that the caller may.
pub(crate) fn clone_process(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> i32,
) -> io::Result<Child> {
    let mut pidfd: i32 = -1;
    let mut args = libc::clone_args {
        flags: flags | libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: clone3(2) without CLONE_VM or CLONE_THREAD and with no stack of its own is a fork: both sides
    // return here, and the only thread is copied, so no lock is left held. `args` lives across the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => exit_now(child()),
        pid => {
            let pid = i32::try_from(pid).expect("a pid is an i32");
            // SAFETY: on success the kernel has stored a new descriptor, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Child { pid, pidfd })
        }
    }
}

/// Ends a copy of a process, without running anything that is the original's to run at its exit.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit(2) is always safe to call; a clone must not flush its parent's buffers.
    unsafe { libc::_exit(code) }
}

/// What mount_setattr(2) changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MountAttributes {
    pub set: u64,
    pub clear: u64,
    /// One of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or zero.
    pub propagation: u64,
}

impl MountAttributes {
    /// Sets and clears more; what comes later counts.
    pub(crate) fn add(&mut self, set: u64, clear: u64) {
        self.set = (self.set & !clear) | set;
        self.clear = (self.clear & !set) | clear;
    }
}

/// Changes a mount's attributes, and with `recursive` those of all below it.
pub(crate) fn mount_setattr(
    mount: impl AsFd,
    recursive: bool,
    attributes: MountAttributes,
) -> io::Result<()> {
    let mut attr: libc::mount_attr = zeroed_mount_attr();
    attr.attr_set = attributes.set;
    attr.attr_clr = attributes.clear;
    attr.propagation = attributes.propagation;
    set_mount_attr(mount, recursive, attr)
}

/// Shows the files of a detached mount, and with `recursive` of all below it, under the ids to which a user
/// namespace maps them.
pub(crate) fn id_map_mount(mount: impl AsFd, recursive: bool, namespace: impl AsFd) -> io::Result<()> {
    let mut attr: libc::mount_attr = zeroed_mount_attr();
    attr.attr_set = libc::MOUNT_ATTR_IDMAP;
    attr.userns_fd =
        u64::try_from(namespace.as_fd().as_raw_fd()).expect("an open descriptor is not negative");
    set_mount_attr(mount, recursive, attr)
}

fn set_mount_attr(mount: impl AsFd, recursive: bool, mut attr: libc::mount_attr) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: mount_setattr(2) reads `size` bytes of `attr`, which lives across the call; the path is an
    // empty C string as AT_EMPTY_PATH wants.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw mut attr,
            size_of::<libc::mount_attr>(),
        )
    };
    result(done)
}

fn zeroed_mount_attr() -> libc::mount_attr {
    // SAFETY: the struct is four integers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// Loads a seccomp filter for this process. Flags as in seccomp(2).
pub(crate) fn load_filter(program: &[libc::sock_filter], flags: u64) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: seccomp(2) only reads the program, whose length is exact and which lives across the call.
    let done =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    result(done)
}

/// What exec leaves open: the standard files and `count` descriptors from 3 on, which must be open.
pub(crate) fn keep_only(count: u32) -> io::Result<()> {
    let first = count.saturating_add(3);
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC only sets a flag; nobody's descriptor is closed.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    result(done)?;
    for fd in 3..first {
        let fd = i32::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
        // SAFETY: fcntl(2) with F_SETFD only clears a flag, and fails when there is no such descriptor.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, 0) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Gives the caller a session keyring that it shares with nobody; a kernel without keyrings has nothing to share.
pub(crate) fn join_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: keyctl(2) takes a null name for an anonymous keyring and touches no memory of ours.
    let done = unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>())
    };
    match result_of(done) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        joined => joined.map(drop),
    }
}

/// Gives every signal its default action and unblocks all: what a new program expects.
pub(crate) fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: signal(2) with SIG_DFL installs no code; for KILL, STOP and glibc's own it fails, harmlessly.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// Sends a signal by its number, real-time ones too, to the process that a pidfd refers to.
///
/// # Errors
/// `ESRCH` when it has ended, `EINVAL` when there is no such signal.
pub fn send_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let (fd, nothing) = (pidfd.as_fd().as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: pidfd_send_signal(2) takes a null pointer for the information that kill(2) would send.
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, nothing, 0) };
    result(done)
}

/// Makes a copy of the process, which must have one thread. Returns the copy's pid in the original, and
/// zero in the copy.
///
/// # Errors
/// The failing call's.
pub fn fork() -> io::Result<i32> {
    // SAFETY: fork(2) of a process with one thread leaves no lock held in the copy.
    let pid = unsafe { libc::fork() };
    if pid == -1 { Err(io::Error::last_os_error()) } else { Ok(pid) }
}

fn result(done: libc::c_long) -> io::Result<()> {
    result_of(done).map(drop)
}

fn result_of(done: libc::c_long) -> io::Result<libc::c_long> {
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

/// Owns a descriptor that was just received in a control message.
pub(crate) fn own(received: i32) -> OwnedFd {
    // SAFETY: recvmsg(2) with SCM_RIGHTS makes a new descriptor, which only the receiver knows.
    unsafe { OwnedFd::from_raw_fd(received) }
}
