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

/// Gives memory back to the kernel: the pages of the program, which come back from its file when they are touched
/// again, and what is free.
pub(crate) fn trim_memory() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, len) in maps.lines().filter_map(program_pages) {
        // SAFETY: the range is a private mapping of a file that was never writable, so that its pages are the
        // file's, and are read from there again (madvise(2), MADV_DONTNEED).
        unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(start), len, libc::MADV_DONTNEED) };
    }
    drop(maps);
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) only touches the allocator's own lists, under its own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Where a line of proc_pid_maps(5) is the program's code or constants, and its length. What the loader writes to
/// before it takes the right away again (`RELRO`) is further on in the file than its headers.
fn program_pages(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, rights, offset, _device, inode) =
        (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
    let constants = rights == "r--p" && offset.bytes().all(|digit| digit == b'0');
    if inode == "0" || !(constants || rights == "r-xp") {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    Some((start, usize::from_str_radix(end, 16).ok()?.checked_sub(start)?))
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

/// Which of the bytes are newlines: the lowest bit for the first.
#[cfg(target_arch = "x86_64")]
pub(crate) fn newlines(block: &[u8; 16]) -> u32 {
    // SAFETY: every processor of this architecture has SSE2.
    unsafe { sse2::newlines(block) }
}

/// Which of the bytes are control characters, `"`, `\`, `<`, `>`, `&`, or not ASCII: the lowest bit for the first.
#[cfg(target_arch = "x86_64")]
pub(crate) fn json_specials(block: &[u8; 16]) -> u32 {
    // SAFETY: every processor of this architecture has SSE2.
    unsafe { sse2::json_specials(block) }
}

#[cfg(target_arch = "x86_64")]
mod sse2 {
    use std::arch::x86_64::{
        __m128i, _mm_cmpeq_epi8, _mm_cmplt_epi8, _mm_movemask_epi8, _mm_or_si128, _mm_set_epi64x,
        _mm_set1_epi8,
    };

    #[target_feature(enable = "sse2")]
    pub(super) fn newlines(block: &[u8; 16]) -> u32 {
        _mm_movemask_epi8(_mm_cmpeq_epi8(load(block), _mm_set1_epi8(0x0a))).cast_unsigned()
    }

    #[target_feature(enable = "sse2")]
    pub(super) fn json_specials(block: &[u8; 16]) -> u32 {
        let bytes = load(block);
        // Compared with signs: what is not ASCII is less than any of it.
        let outside = _mm_cmplt_epi8(bytes, _mm_set1_epi8(0x20));
        // `"` and `&` differ by one bit, `<` and `>` too.
        let quote = _mm_cmpeq_epi8(_mm_or_si128(bytes, _mm_set1_epi8(0x04)), _mm_set1_epi8(0x26));
        let angle = _mm_cmpeq_epi8(_mm_or_si128(bytes, _mm_set1_epi8(0x02)), _mm_set1_epi8(0x3e));
        let backslash = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x5c));
        let any = _mm_or_si128(_mm_or_si128(outside, quote), _mm_or_si128(angle, backslash));
        _mm_movemask_epi8(any).cast_unsigned()
    }

    #[target_feature(enable = "sse2")]
    fn load(block: &[u8; 16]) -> __m128i {
        let ([low, high], _) = block.as_chunks::<8>() else { unreachable!("16 bytes are two halves") };
        _mm_set_epi64x(i64::from_le_bytes(*high), i64::from_le_bytes(*low))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_pages_are_those_that_nobody_wrote_to() {
        let maps = [
            ("00200000-00c63000 r--p 00000000 fe:00 1234 /rswarm", Some((0x20_0000, 0xa6_3000))),
            ("00c63000-02e00000 r-xp 00a62000 fe:00 1234 /rswarm", Some((0xc6_3000, 0x219_d000))),
            ("02f2b000-02f35000 r--p 02d29000 fe:00 1234 /rswarm", None),
            ("02f35000-02f40000 rw-p 02d32000 fe:00 1234 /rswarm", None),
            ("38e6f000-38e91000 rw-p 00000000 00:00 0 [heap]", None),
            ("7ffd0000-7ffd2000 r-xp 00000000 00:00 0 [vdso]", None),
            ("", None),
        ];
        for (line, expected) in maps {
            assert_eq!(program_pages(line), expected, "{line}");
        }
    }
}
