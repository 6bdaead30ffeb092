//! The system calls that `nix` and `rustix` lack: typed values in, `io::Result` out. The only unsafe code.
#![allow(unsafe_code, reason = "each block names the rule that it keeps")]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::sys::signal::Signal;

/// `libc` has it as an `i32`, where it overflows to zero and then silently does nothing.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A new process, made straight into new namespaces and, when given, into a cgroup of version 2.
pub(crate) struct Child {
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// Runs `child` in a new process, which ends with its result. Namespace flags as in clone(2); with
/// `CLONE_PARENT` it is a sibling of the caller. The caller must have one thread: then its copy may use
/// everything that the caller may.
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
        // clone(2): a sibling ends with its parent's own signal, and none may be given.
        exit_signal: if flags & libc::CLONE_PARENT as u64 == 0 { libc::SIGCHLD as u64 } else { 0 },
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

/// While it lives, nobody without `CAP_SYS_PTRACE` on the machine may look into this process, nor into the
/// copies that are made of it. A copy stays so until it executes something.
pub(crate) struct Hidden {
    before: i32,
}

impl Hidden {
    /// PR_SET_DUMPABLE(2const)
    pub(crate) fn new() -> io::Result<Hidden> {
        let before = process_control(libc::PR_GET_DUMPABLE, 0, 0)?;
        process_control(libc::PR_SET_DUMPABLE, 0, 0)?;
        Ok(Hidden { before })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // The one value that cannot be set again is 2, which the kernel gives to programs that it protects.
        let _ = process_control(libc::PR_SET_DUMPABLE, u64::from(self.before == 1), 0);
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

/// Loads a seccomp filter for this process. Flags as in seccomp(2); with `SECCOMP_FILTER_FLAG_NEW_LISTENER`
/// the listener comes back.
pub(crate) fn load_filter(program: &[libc::sock_filter], flags: u64) -> io::Result<Option<OwnedFd>> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: seccomp(2) only reads the program, whose length is exact and which lives across the call.
    let done =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    let done = result_of(done)?;
    Ok((flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER != 0).then(|| new_descriptor(done)))
}

/// A copy of another process's descriptor.
pub(crate) fn copy_descriptor(pidfd: impl AsFd, number: u32) -> io::Result<OwnedFd> {
    let pidfd = pidfd.as_fd().as_raw_fd();
    // SAFETY: pidfd_getfd(2) touches no memory of ours.
    let done = unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd, number, 0) };
    result_of(done).map(new_descriptor)
}

/// Owns what a call has returned.
fn new_descriptor(returned: libc::c_long) -> OwnedFd {
    let fd = i32::try_from(returned).expect("a descriptor is an i32");
    // SAFETY: callers pass what a successful call has returned as a new descriptor, which nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// What type of namespace a descriptor refers to, as `CLONE_NEW*`; an error when to none.
// ioctl_nsfs(2)
pub(crate) fn namespace_type(fd: impl AsFd) -> io::Result<u64> {
    const NS_GET_NSTYPE: libc::Ioctl = 0xb703;
    // SAFETY: the request takes no argument and touches no memory of ours.
    let done = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), NS_GET_NSTYPE) };
    result_of(done.into()).map(libc::c_long::cast_unsigned)
}

/// Permitted, effective and inheritable capabilities, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CapabilitySets {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
}

/// Sets the caller's capabilities.
pub(crate) fn set_capabilities(sets: CapabilitySets) -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let low = |set: u64| (set & u64::from(u32::MAX)) as u32;
    let words = |shift: u32| {
        [low(sets.effective >> shift), low(sets.permitted >> shift), low(sets.inheritable >> shift)]
    };
    let (header, data) = (Header { version: VERSION_3, pid: 0 }, [words(0), words(32)]);
    // SAFETY: capset(2) of version 3 reads the header and two structs of three words, which live across it.
    let done = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    result(done)
}

/// A `prctl(2)` operation that takes numbers only.
pub(crate) fn process_control(operation: i32, one: u64, two: u64) -> io::Result<i32> {
    // SAFETY: callers pass operations whose arguments are numbers, never addresses.
    let done = unsafe { libc::prctl(operation, one, two, 0, 0) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

/// What sched_setattr(2) takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct SchedulerAttributes {
    pub size: u32,
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// Sets the caller's scheduling policy.
pub(crate) fn set_scheduler(attributes: SchedulerAttributes) -> io::Result<()> {
    let size = u32::try_from(size_of::<SchedulerAttributes>()).expect("it is small");
    let attributes = SchedulerAttributes { size, ..attributes };
    // SAFETY: sched_setattr(2) reads `size` bytes of the struct, which is laid out as the first version's.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    result(done)
}

/// Sets the caller's I/O priority, class and level as ioprio_set(2) packs them.
pub(crate) fn set_io_priority(packed: u32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_long = 1;
    // SAFETY: ioprio_set(2) takes numbers only.
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, packed) };
    result(done)
}

/// Sets the caller's memory policy: mode with its flags, and a bit for each node.
pub(crate) fn set_memory_policy(mode: u32, nodes: &[u64]) -> io::Result<()> {
    let (mask, bits) = if nodes.is_empty() {
        (std::ptr::null(), 0)
    } else {
        // The kernel reads one bit less than it is told.
        (nodes.as_ptr(), nodes.len() * 64 + 1)
    };
    // SAFETY: set_mempolicy(2) reads as many bits of the mask as it is told, rounded down to whole words.
    let done = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) };
    result(done)
}

/// Sets the caller's execution domain.
pub(crate) fn set_personality(domain: u64) -> io::Result<()> {
    // SAFETY: personality(2) takes a number only.
    let done = unsafe { libc::personality(domain) };
    result(done.into())
}

/// Whether an inherited descriptor of this number is open: one that exec would close is ours, not inherited.
pub(crate) fn is_inherited(number: u32) -> bool {
    let Ok(number) = i32::try_from(number) else { return false };
    // SAFETY: fcntl(2) with F_GETFD only reads a flag, and fails when there is no such descriptor.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    flags != -1 && flags & libc::FD_CLOEXEC == 0
}

/// What exec leaves open: the standard files and `count` descriptors from 3 on.
pub(crate) fn keep_only(count: u32) -> io::Result<()> {
    let first = count.saturating_add(3);
    // SAFETY: close_range(2) with CLOSE_RANGE_CLOEXEC only sets a flag; nobody's descriptor is closed.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    result(done)
}

/// Closes all descriptors but the standard files, `count` from 3 on, and those given. Only for a copy of a
/// process that is about to execute something: its other descriptors' owners are never dropped.
pub(crate) fn close_all_but(count: u32, others: [Option<i32>; 4]) -> io::Result<()> {
    let mut keep: Vec<u32> = others.iter().flatten().map(|fd| fd.cast_unsigned()).collect();
    keep.sort_unstable();
    let mut first = count.saturating_add(3);
    for last in keep.into_iter().chain([u32::MAX]) {
        if last > first {
            let until = if last == u32::MAX { last } else { last - 1 };
            // SAFETY: close_range(2) touches no memory; the caller promises that nobody uses what it closes.
            let done = unsafe { libc::syscall(libc::SYS_close_range, first, until, 0) };
            result(done)?;
        }
        first = first.max(last.saturating_add(1));
    }
    Ok(())
}

/// Joins the session keyring of that name, or makes it; returns its number.
// keyctl(2)
pub(crate) fn join_session_keyring(name: &CStr) -> io::Result<libc::c_long> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: the kernel reads the name, a C string that lives across the call.
    let done = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    result_of(done)
}

/// A key's description: `type;uid;gid;permissions;name`.
pub(crate) fn describe_key(key: libc::c_long) -> io::Result<Vec<u8>> {
    const KEYCTL_DESCRIBE: libc::c_long = 6;
    let mut text = vec![0; 512];
    // SAFETY: the kernel writes at most as many bytes as it is told that there are.
    let done =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_DESCRIBE, key, text.as_mut_ptr(), text.len()) };
    let length = usize::try_from(result_of(done)?).unwrap_or(0);
    text.truncate(length);
    Ok(text)
}

/// Sets a key's permissions.
pub(crate) fn set_key_permissions(key: libc::c_long, permissions: u32) -> io::Result<()> {
    const KEYCTL_SETPERM: libc::c_long = 5;
    // SAFETY: the call takes numbers only.
    let done = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, key, permissions) };
    result(done)
}

/// Gives signals (bit 0 is signal 1) their default action, and unblocks all: what a new program expects.
/// Exec itself takes handlers away, but lets what is ignored stay so.
// signal(7), "Execve"
pub(crate) fn reset_signals(which: u64) {
    for signal in (1..=libc::SIGRTMAX()).filter(|signal| which & 1 << (signal - 1) != 0) {
        // SAFETY: signal(2) with SIG_DFL installs no code; for KILL, STOP and glibc's own it fails, harmlessly.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

/// A moment, as the machine's people name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LocalTime {
    pub year: i32,
    /// From 0.
    pub month: usize,
    pub day: i32,
    /// From 0.
    pub day_of_year: i32,
    pub hour: i32,
    pub minute: i32,
}

/// Seconds since 1970 in the machine's time zone.
pub(crate) fn local_time(seconds: i64) -> LocalTime {
    // SAFETY: the struct is integers and a pointer, for which zero is a value.
    let mut time: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: localtime_r(3) reads the number and fills the struct; both live across the call.
    unsafe { libc::localtime_r(&raw const seconds, &raw mut time) };
    LocalTime {
        year: 1900 + time.tm_year,
        month: usize::try_from(time.tm_mon).unwrap_or(0),
        day: time.tm_mday,
        day_of_year: time.tm_yday,
        hour: time.tm_hour,
        minute: time.tm_min,
    }
}

/// A signal in words, as Go has them: `bad system call`.
pub(crate) fn describe_signal(signal: i32) -> String {
    // SAFETY: strsignal(3) takes any number.
    let text = unsafe { libc::strsignal(signal) };
    // SAFETY: it returns a C string that stays as it is for the calling thread until its next call.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_string_lossy().to_lowercase()
}

/// Lets signals whose default action is to end a process end the caller, as the first of a pid namespace too, whom
/// the kernel spares otherwise. Until it executes something.
// pid_namespaces(7); signal-safety(7)
pub(crate) fn end_on(signals: &[Signal]) {
    extern "C" fn end(signal: libc::c_int) {
        exit_now(128 + signal);
    }
    for signal in signals {
        // SAFETY: the handler only calls _exit(2), which is safe in a handler, and touches no data.
        unsafe { libc::signal(*signal as i32, end as *const () as libc::sighandler_t) };
    }
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
