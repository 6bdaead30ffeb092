//! `bpf(2)` for programs that decide on a cgroup's device accesses.
#![allow(unsafe_code, reason = "each block names the rule that it keeps")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;
const PROG_DETACH: i32 = 9;
const PROG_GET_FD_BY_ID: i32 = 13;
const PROG_QUERY: i32 = 16;

const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Others' programs stay, and ours can be beside them.
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;

/// Programs on one cgroup that anybody may have attached; the kernel takes no more.
const PROGRAMS_MAX: usize = 64;

/// Loads a program.
pub(super) fn load_device_program(instructions: &[u64]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
    }
    let request = Load {
        prog_type: TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
        insns: instructions.as_ptr() as u64,
        license: c"Apache".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
    };
    // SAFETY: bpf(2) reads the request and what it points at, which all live across the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const request, size_of::<Load>()) };
    own(fd)
}

#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// Attaches a program to a cgroup of version 2, where it stays until the cgroup goes; with `instead` in the
/// place of another.
pub(super) fn attach_device_program(
    cgroup: &impl AsFd,
    program: &OwnedFd,
    instead: Option<&OwnedFd>,
) -> io::Result<()> {
    let request = Attach {
        target_fd: number(cgroup),
        attach_bpf_fd: number(program),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: if instead.is_some() { ALLOW_MULTI | REPLACE } else { ALLOW_MULTI },
        replace_bpf_fd: instead.map_or(0, number),
    };
    // SAFETY: bpf(2) reads the request, which lives across the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const request, size_of::<Attach>()) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes a program away from a cgroup.
pub(super) fn detach_device_program(cgroup: &impl AsFd, program: &OwnedFd) -> io::Result<()> {
    let request = Attach {
        target_fd: number(cgroup),
        attach_bpf_fd: number(program),
        attach_type: ATTACH_CGROUP_DEVICE,
        attach_flags: 0,
        replace_bpf_fd: 0,
    };
    // SAFETY: bpf(2) reads the request, which lives across the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, PROG_DETACH, &raw const request, size_of::<Attach>()) };
    if done == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The programs that are attached to this very cgroup.
pub(super) fn attached_device_programs(cgroup: &impl AsFd) -> io::Result<Vec<OwnedFd>> {
    #[repr(C)]
    struct Query {
        target_fd: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        prog_cnt: u32,
        padding: u32,
    }
    let mut ids = [0_u32; PROGRAMS_MAX];
    let mut request = Query {
        target_fd: number(cgroup),
        attach_type: ATTACH_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: u32::try_from(PROGRAMS_MAX).expect("it is small"),
        padding: 0,
    };
    // SAFETY: bpf(2) writes at most `prog_cnt` ids, for which there is room, and the fields of the request;
    // both live across the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, &raw mut request, size_of::<Query>()) };
    if done == -1 {
        return Err(io::Error::last_os_error());
    }
    let count = usize::try_from(request.prog_cnt).map_or(PROGRAMS_MAX, |count| count.min(PROGRAMS_MAX));
    ids[..count].iter().map(|id| program_by_id(*id)).collect()
}

fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct ById {
        prog_id: u32,
        next_id: u32,
        open_flags: u32,
    }
    let request = ById { prog_id: id, next_id: 0, open_flags: 0 };
    // SAFETY: bpf(2) reads the request, which lives across the call.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, PROG_GET_FD_BY_ID, &raw const request, size_of::<ById>()) };
    own(fd)
}

fn number(fd: &impl AsFd) -> u32 {
    u32::try_from(fd.as_fd().as_raw_fd()).expect("an open descriptor is not negative")
}

fn own(fd: libc::c_long) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).expect("a descriptor is an i32");
    // SAFETY: bpf(2) has just returned a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
