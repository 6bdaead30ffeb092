//! A `/proc` that is known to be one: attributes are written through it and nothing else.
//!
//! A container's file system can have anything at `/proc/self/attr/exec` (a file that takes the label and does
//! nothing, CVE-2019-16884; a link that leads the write elsewhere). Here `/proc` itself is checked to be the
//! root of procfs, and below it no mount is crossed and no magic link followed.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags};

/// The inode of procfs' root, which no other file of it has.
const PROC_ROOT_INODE: u64 = 1;

/// A part of a process's status.
// proc_pid_status(5)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    /// The capabilities that it may have at most, a bit each.
    pub bounding: u64,
    /// The signals that it ignores: bit 0 is signal 1.
    pub ignored: u64,
}

/// The root of a procfs.
#[derive(Debug)]
pub(crate) struct Proc(OwnedFd);

impl AsRawFd for Proc {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

impl Proc {
    /// The caller's `/proc`.
    pub(crate) fn open() -> io::Result<Proc> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat2(CWD, "/proc", flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
        let is_proc = rustix::fs::fstatfs(&dir)?.f_type == PROC_SUPER_MAGIC
            && rustix::fs::fstat(&dir)?.st_ino == PROC_ROOT_INODE;
        if is_proc { Ok(Proc(dir)) } else { Err(io::Error::other("/proc is not a procfs")) }
    }

    /// Opens a file of it, by a relative path.
    pub(crate) fn file(&self, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        Ok(rustix::fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), inside)?)
    }

    /// Writes a file of it, in one call as the kernel wants it.
    pub(crate) fn write(&self, path: &str, value: &[u8]) -> io::Result<()> {
        let written = rustix::io::write(self.file(path, OFlags::WRONLY)?, value)?;
        if written == value.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Reads a small file of it.
    pub(crate) fn read(&self, path: &str) -> io::Result<String> {
        let mut text = String::new();
        std::fs::File::from(self.file(path, OFlags::RDONLY)?).read_to_string(&mut text)?;
        Ok(text)
    }

    /// What the kernel tells of the caller.
    pub(crate) fn status(&self) -> io::Result<Status> {
        let text = self.read("self/status")?;
        let mask = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
            let mask = line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
            mask.ok_or_else(|| io::Error::other(format!("status has no {name}")))
        };
        Ok(Status { bounding: mask("CapBnd")?, ignored: mask("SigIgn")? })
    }

    /// Opens a file again that the caller has open, in another way; what it is is known then, and stays.
    pub(crate) fn reopen(&self, fd: &OwnedFd, flags: OFlags) -> io::Result<OwnedFd> {
        let dir = self.file("self/fd", OFlags::PATH | OFlags::DIRECTORY)?;
        let name = fd.as_raw_fd().to_string();
        Ok(rustix::fs::openat(&dir, name, flags | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// The same by openat(2) alone, where a filter may know nothing newer: for a procfs that is the machine's.
    pub(crate) fn reopen_own(&self, fd: &OwnedFd, flags: OFlags) -> io::Result<OwnedFd> {
        let path = format!("self/fd/{}", fd.as_raw_fd());
        Ok(rustix::fs::openat(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Whether a process's user namespace lets groups be set.
    // user_namespaces(7)
    pub(crate) fn can_set_groups(&self, who: &str) -> io::Result<bool> {
        Ok(self.read(&format!("{who}/setgroups"))?.trim() != "deny")
    }

    /// The caller's numbers of the user and the group that are root in a process's user namespace.
    pub(crate) fn ids_of_root(&self, pid: i32) -> io::Result<(u32, u32)> {
        let of = |file: &str| {
            let text = self.read(&format!("{pid}/{file}"))?;
            root_of_map(&text).ok_or_else(|| io::Error::other(format!("{file} does not map 0")))
        };
        Ok((of("uid_map")?, of("gid_map")?))
    }

    /// Opens what `<process>/ns/<type>` refers to: magic links by nature, whose directory is checked.
    pub(crate) fn open_namespace(&self, path: &str) -> io::Result<OwnedFd> {
        let (dir, name) = path.rsplit_once('/').unwrap_or((".", path));
        let dir = self.file(dir, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok(rustix::fs::openat(&dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }
}

/// The outer number of 0 in the text of a map: inner number, outer number, how many.
fn root_of_map(text: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (inner, outer) = (fields.next()?.ok()?, fields.next()?.ok()?);
        (inner == 0).then_some(outer)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_found_in_a_map() {
        assert_eq!(root_of_map("       1     5      2\n       0   1000   1\n"), Some(1000));
        assert_eq!(root_of_map("1 5 2\n"), None);
    }

    #[test]
    fn files_of_the_real_proc_can_be_opened() {
        let proc = Proc::open().expect("proc");
        assert!(!proc.read("self/comm").expect("read").is_empty());
    }

    #[test]
    fn status_is_what_the_kernel_enforces() {
        let status = Proc::open().expect("proc").status().expect("status");
        for capability in 0..64 {
            let has = crate::sys::process_control(libc::PR_CAPBSET_READ, capability, 0).unwrap_or(0);
            assert_eq!(status.bounding >> capability & 1, u64::try_from(has).expect("a bit"), "{capability}");
        }
        // The standard library ignores it from the start.
        assert_ne!(status.ignored & 1 << (libc::SIGPIPE - 1), 0);
    }

    #[test]
    fn nothing_leads_out_of_it() {
        let proc = Proc::open().expect("proc");
        for path in ["self/root/etc/passwd", "self/cwd", "../etc/passwd", "self/exe"] {
            assert!(proc.file(path, OFlags::RDONLY).is_err(), "{path}");
        }
        assert!(proc.open_namespace("self/ns/mnt").is_ok());
    }
}
