//! One client's connection: bytes in and out without ever blocking the loop.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::log::Stream;
use crate::protocol;

/// No output is read for a client while this much waits for it: a slow reader slows the container.
pub(super) const OUTBOX_MAX: usize = 64 << 10;

/// Where a conversation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Phase {
    /// Its hello is awaited.
    Hello,
    /// Its request is awaited.
    Request,
    /// It waits for the exit of the container, or of this exec.
    Waiting(Option<String>),
    /// It is the stdio of the container, or of this exec.
    Attached {
        /// The exec.
        exec: Option<String>,
        /// Its sending side is still open.
        sends: bool,
    },
    /// What is left is sent, then it is closed.
    Closing,
}

/// A client.
#[derive(Debug)]
pub(super) struct Connection {
    pub stream: UnixStream,
    pub phase: Phase,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    broken: bool,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        Ok(Connection { stream, phase: Phase::Hello, inbox: Vec::new(), outbox: Vec::new(), broken: false })
    }

    /// Whether the loop should listen to it.
    pub(super) fn listens(&self) -> bool {
        matches!(self.phase, Phase::Hello | Phase::Request | Phase::Attached { sends: true, .. })
    }

    /// Whether something waits to be sent.
    pub(super) fn has_output(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether too much waits to be sent.
    pub(super) fn is_slow(&self) -> bool {
        self.outbox.len() > OUTBOX_MAX
    }

    /// Whether it can be forgotten.
    pub(super) fn is_over(&self) -> bool {
        self.broken || (self.phase == Phase::Closing && self.outbox.is_empty())
    }

    /// The client is gone.
    pub(super) fn break_off(&mut self) {
        self.broken = true;
    }

    /// Reads what is there; false when the client's sending side has ended.
    pub(super) fn receive(&mut self, buffer: &mut [u8]) -> bool {
        match self.stream.read(buffer) {
            Ok(0) => false,
            Ok(length) => {
                self.inbox.extend_from_slice(&buffer[..length]);
                true
            }
            Err(error) => {
                let later = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
                self.broken |= !later;
                later
            }
        }
    }

    /// The next message, when all of it has come.
    pub(super) fn message<T: DeserializeOwned>(&mut self) -> Result<Option<T>, String> {
        protocol::decode(&mut self.inbox)
    }

    /// Raw bytes that have come.
    pub(super) fn take_raw(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.inbox)
    }

    /// Queues a message.
    pub(super) fn send<T: Serialize>(&mut self, message: &T) {
        self.outbox.extend(protocol::encode(message));
        self.flush();
    }

    /// Queues output, in a stdcopy frame unless it is a terminal's.
    pub(super) fn output(&mut self, stream: Stream, bytes: &[u8], raw: bool) {
        if !raw {
            let length = u32::try_from(bytes.len()).expect("a read is shorter than 4 GiB");
            self.outbox.extend([stream as u8, 0, 0, 0]);
            self.outbox.extend(length.to_be_bytes());
        }
        self.outbox.extend_from_slice(bytes);
        self.flush();
    }

    /// Sends what the socket takes.
    pub(super) fn flush(&mut self) {
        let mut sent = 0;
        while sent < self.outbox.len() {
            match self.stream.write(&self.outbox[sent..]) {
                Ok(length) => sent += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.broken = true;
                    break;
                }
            }
        }
        self.outbox.drain(..sent);
        if self.phase == Phase::Closing && self.outbox.is_empty() {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Nothing more will be queued.
    pub(super) fn close(&mut self) {
        self.phase = Phase::Closing;
        self.flush();
    }
}
