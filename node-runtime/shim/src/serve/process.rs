//! One process's stdio, seen from the shim: its output, its input, and how it ended.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Ends;
use crate::launch::Exit;
use crate::log::{Log, Stream};

/// No more input is taken from clients while this much waits for the process.
pub(super) const INPUT_MAX: usize = 64 << 10;

/// The size that a pipe has at first: a read of all that is a sign of much to come.
const PIPE_FIRST: usize = 64 << 10;

/// The size of a busy output's pipe, the most that an ordinary user may have: fewer and larger reads and writes.
const PIPE_BUSY: usize = 1 << 20;

/// A read of at least a page is a sign of more to come: what comes is left to gather for a moment, instead of
/// waking for every piece of it.
const GATHER_FROM: usize = 4 << 10;

/// Our end of what a process writes to.
#[derive(Debug)]
pub(super) struct Output {
    pub stream: Stream,
    pub fd: OwnedFd,
    /// Not looked at in the next turn.
    pub gathering: bool,
}

/// The container's first process, or one that was added by exec.
#[derive(Debug)]
pub(super) struct Process {
    pub pid: i32,
    /// An exec's identifier.
    pub exec: Option<String>,
    /// The near end of its terminal: then that is the only output, and raw.
    pub terminal: Option<OwnedFd>,
    outputs: Vec<Output>,
    stdin: Option<OwnedFd>,
    /// What clients sent and the process has not taken yet.
    input: Vec<u8>,
    input_ends: bool,
    /// Its input ends with the first client's that attaches.
    pub stdin_once: bool,
    pub log: Option<Log>,
    pub exit: Option<Exit>,
}

impl Process {
    pub(super) fn with_terminal(pid: i32, near: OwnedFd, stdin: bool) -> io::Result<Process> {
        let mut ends = Ends { stdin: None, stdout: Some(near.try_clone()?), stderr: None };
        if stdin {
            ends.stdin = Some(near.try_clone()?);
        }
        let mut process = Process::with_pipes(pid, ends)?;
        process.terminal = Some(near);
        Ok(process)
    }

    pub(super) fn with_pipes(pid: i32, ends: Ends) -> io::Result<Process> {
        let mut outputs = Vec::new();
        for (stream, fd) in [(Stream::Stdout, ends.stdout), (Stream::Stderr, ends.stderr)] {
            if let Some(fd) = fd {
                make_nonblocking(&fd)?;
                outputs.push(Output { stream, fd, gathering: false });
            }
        }
        if let Some(stdin) = &ends.stdin {
            make_nonblocking(stdin)?;
        }
        Ok(Process {
            pid,
            exec: None,
            terminal: None,
            outputs,
            stdin: ends.stdin,
            input: Vec::new(),
            input_ends: false,
            stdin_once: false,
            log: None,
            exit: None,
        })
    }

    /// What can be polled for output.
    pub(super) fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    pub(super) fn outputs_mut(&mut self) -> &mut [Output] {
        &mut self.outputs
    }

    /// What can be polled for room, when something waits for it.
    pub(super) fn stdin_wanted(&self) -> Option<&OwnedFd> {
        self.stdin.as_ref().filter(|_| !self.input.is_empty())
    }

    /// What can be polled for room, when output waits for its log.
    pub(super) fn log_wanted(&self) -> Option<BorrowedFd<'_>> {
        self.log.as_ref().and_then(Log::wanted)
    }

    /// Hands over output that waits for its log.
    pub(super) fn pump_log(&mut self) {
        if let Some(log) = &mut self.log {
            log.pump();
        }
    }

    /// Whether more input can be taken.
    pub(super) fn takes_input(&self) -> bool {
        self.input.len() < INPUT_MAX
    }

    /// Reads once; `None` when there is nothing now. An output that has ended is closed.
    pub(super) fn read<'b>(&mut self, stream: Stream, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        let index = self.outputs.iter().position(|output| output.stream == stream)?;
        let output = &mut self.outputs[index];
        loop {
            match rustix::io::read(&output.fd, &mut *buffer) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Ok(length) if length > 0 => {
                    // A terminal has little room, and somebody looks at it.
                    if self.terminal.is_none() {
                        output.gathering = gathers(&output.fd, length, buffer.len());
                    }
                    return Some(&buffer[..length]);
                }
                // A terminal without a far end gives an error instead of an end.
                Ok(_) | Err(_) => {
                    self.outputs.remove(index);
                    return None;
                }
            }
        }
    }

    /// Nothing more is read, whoever may still hold the other ends.
    pub(super) fn close_outputs(&mut self) {
        self.outputs.clear();
    }

    /// Takes input from a client and hands over what the process takes at once.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        if self.stdin.is_some() && !self.input_ends {
            self.input.extend_from_slice(bytes);
            self.pump();
        }
    }

    /// Hands over waiting input.
    pub(super) fn pump(&mut self) {
        let Some(stdin) = &self.stdin else { return };
        while !self.input.is_empty() {
            match rustix::io::write(stdin.as_fd(), &self.input) {
                Ok(length) => drop(self.input.drain(..length)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.close_stdin();
                    return;
                }
            }
        }
        if self.input_ends {
            self.close_stdin();
        }
    }

    /// A client's input has ended. A terminal goes on: its end is a character that the client sends.
    pub(super) fn end_input(&mut self) {
        if self.stdin_once && self.terminal.is_none() {
            self.input_ends = true;
            self.pump();
        }
    }

    /// Nobody takes input any more.
    pub(super) fn close_stdin(&mut self) {
        self.stdin = None;
        self.input = Vec::new();
    }
}

/// Whether more output may gather after a read of that length. A pipe that was full is made larger; when the
/// user has no right to more, its writer waits already.
fn gathers(pipe: &OwnedFd, length: usize, asked: usize) -> bool {
    match length {
        PIPE_FIRST => rustix::pipe::fcntl_setpipe_size(pipe, PIPE_BUSY).is_ok(),
        _ => (GATHER_FROM..asked).contains(&length),
    }
}

fn make_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}
