//! `mode=non-blocking`: a copy of the shim writes the log, behind a pipe and a bounded buffer. When the disk
//! is slow the buffer fills, and lines that do not fit are lost instead of the container's time.
//!
//! As in Docker the newest line is the one that goes, and a line always fits into an empty buffer.
//! The copy ends with the shim: it reads the end of the pipe. What it has read is written even then.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::file::{LogStore, count};
use super::{Lost, record_length};
use crate::launch::LogFormat;
use crate::note::note;
use crate::sys;

/// How long a container's end is held up by a disk that does not take its last lines.
const PATIENCE: Duration = Duration::from_secs(2);

/// How much the copy takes at once.
const READ_MAX: usize = 64 << 10;

#[derive(Debug)]
pub(super) struct Writer {
    format: LogFormat,
    /// To the copy; closed by [`Writer::finish`].
    pipe: Option<OwnedFd>,
    /// From the copy: eight bytes for each time that it lost lines, and an end when it has ended.
    answers: OwnedFd,
    /// Records that wait for room in the pipe. The first may be there in part.
    waiting: VecDeque<u8>,
    waiting_max: usize,
}

impl Writer {
    pub(super) fn start(store: LogStore, format: LogFormat, waiting_max: u64) -> io::Result<Writer> {
        let (theirs, pipe) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let (answers, losses) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        if rswarm_runtime::fork()? == 0 {
            drop((pipe, answers));
            write_all_that_comes(store, format, &theirs, &losses);
            rswarm_runtime::exit_now(0);
        }
        rustix::io::ioctl_fionbio(&pipe, true)?;
        rustix::io::ioctl_fionbio(&answers, true)?;
        let waiting_max = usize::try_from(waiting_max).unwrap_or(usize::MAX);
        Ok(Writer { format, pipe: Some(pipe), answers, waiting: VecDeque::new(), waiting_max })
    }

    /// Takes whole records; returns what was lost of them.
    pub(super) fn offer(&mut self, records: &[u8]) -> Lost {
        let mut rest = records;
        if self.waiting.is_empty() {
            let sent = self.send(records);
            // One that has begun to go has to go on.
            let mut whole = 0;
            while whole < sent {
                whole += record_length(self.format, &records[whole..]).unwrap_or(records.len() - whole);
            }
            self.waiting.extend(&records[sent..whole]);
            rest = &records[whole..];
        }
        let mut lost = Lost::default();
        while let Some(length) = record_length(self.format, rest) {
            let is_first = rest.len() == records.len();
            let (record, after) = rest.split_at(length);
            rest = after;
            if self.waiting.is_empty() || self.waiting.len() + length <= self.waiting_max {
                self.waiting.extend(record);
            } else {
                lost.lines += 1;
                lost.first |= is_first;
            }
        }
        lost
    }

    /// Hands over what waits; returns how many records were lost because the copy is gone.
    pub(super) fn pump(&mut self) -> u64 {
        while !self.waiting.is_empty() {
            let waiting = std::mem::take(&mut self.waiting);
            let sent = self.send(waiting.as_slices().0);
            self.waiting = waiting;
            self.waiting.drain(..sent);
            if sent == 0 {
                break;
            }
        }
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
        match self.pipe {
            Some(_) => 0,
            None => count(self.format, std::mem::take(&mut self.waiting).make_contiguous()),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> usize {
        let Some(pipe) = &self.pipe else { return 0 };
        loop {
            match rustix::io::write(pipe, bytes) {
                Ok(sent) => return sent,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return 0,
                Err(error) => {
                    note(format_args!("the log's writer is gone, output is not logged: {error}"));
                    self.pipe = None;
                    return 0;
                }
            }
        }
    }

    pub(super) fn wanted(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().filter(|_| !self.waiting.is_empty()).map(AsFd::as_fd)
    }

    /// How many records the copy has lost since the last call.
    pub(super) fn lost(&mut self) -> u64 {
        let (mut lost, mut number) = (0, [0; 8]);
        while let Ok(8) = rustix::io::read(&self.answers, &mut number) {
            lost += u64::from_ne_bytes(number);
        }
        lost
    }

    /// Hands over all that waits and sees the copy end, both within [`PATIENCE`]; returns what was lost.
    #[allow(clippy::disallowed_methods, reason = "a deadline for poll(2), which takes nothing else")]
    pub(super) fn finish(&mut self) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        let mut lost = self.pump();
        while let Some(pipe) = self.wanted() {
            if !wait_for(pipe, PollFlags::OUT, deadline) {
                break;
            }
            lost += self.pump();
        }
        self.pipe = None;
        lost += count(self.format, std::mem::take(&mut self.waiting).make_contiguous());
        while wait_for(self.answers.as_fd(), PollFlags::IN, deadline) {
            let mut number = [0; 8];
            match rustix::io::read(&self.answers, &mut number) {
                Ok(8) => lost += u64::from_ne_bytes(number),
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => return lost,
            }
        }
        note(format_args!("the log's writer is slow: it goes on by itself"));
        lost
    }
}

/// False when the time is up.
#[allow(clippy::disallowed_methods, reason = "a deadline for poll(2), which takes nothing else")]
fn wait_for(fd: BorrowedFd<'_>, flags: PollFlags, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    let Ok(timeout) = Timespec::try_from(left) else { return false };
    let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        Ok(0) => false,
        Ok(_) | Err(Errno::INTR) => true,
        Err(_) => false,
    }
}

/// The copy: writes until the shim closes its end.
fn write_all_that_comes(mut store: LogStore, format: LogFormat, pipe: &OwnedFd, losses: &OwnedFd) {
    sys::close_all_but(&[2, store.descriptor(), pipe.as_raw_fd(), losses.as_raw_fd()]);
    let mut buffer = vec![0; READ_MAX];
    let mut records = Vec::new();
    loop {
        match rustix::io::read(pipe, &mut buffer[..]) {
            Ok(0) => break,
            Ok(length) => records.extend_from_slice(&buffer[..length]),
            Err(Errno::INTR) => continue,
            Err(error) => {
                note(format_args!("the log's writer cannot read: {error}"));
                break;
            }
        }
        let mut whole = 0;
        while let Some(length) = record_length(format, &records[whole..]) {
            whole += length;
        }
        let lost = store.append(&records[..whole]).lines;
        records.drain(..whole);
        if lost > 0 {
            // Nobody listens to a shim that is gone.
            let _ = rustix::io::write(losses, &lost.to_ne_bytes());
        }
    }
    store.wait_for_compression();
}
