//! What init says to its parent while the container is made, and the parent's "go".
//!
//! A pair of sequenced-packet sockets. Init says [`Said::Ready`], with its terminal if it has one, waits for
//! the word to start, and executes the user's command: its end is closed by exec, and that silence is success.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

use crate::failure::{Context, Failure};

/// The longest failure that is passed on; a longer text is cut.
const MESSAGE_MAX: usize = 16 << 10;

const READY: u8 = b'R';
const FAILED: u8 = b'F';
const START: u8 = b'S';

/// One end.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// What was heard from init.
#[derive(Debug)]
pub(crate) enum Said {
    /// Everything is in place; here is the terminal's near end.
    Ready(Option<OwnedFd>),
    /// It ends now, and why.
    Failed(Failure),
    /// It closed its end: by exec, or by dying.
    Nothing,
}

impl Channel {
    /// The parent's end and init's.
    pub(crate) fn pair() -> Result<(Channel, Channel), Failure> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
            .context("make a socket pair")?;
        Ok((Channel(ours), Channel(theirs)))
    }

    /// The descriptor, which a new process has to close by number.
    pub(crate) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Init's side: in place.
    pub(crate) fn ready(&self, terminal: Option<&OwnedFd>) -> Result<(), Failure> {
        let fds: Vec<RawFd> = terminal.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[] } else { rights.as_slice() };
        sendmsg::<()>(self.raw(), &[IoSlice::new(&[READY])], control, MsgFlags::MSG_NOSIGNAL, None)
            .context("report to parent")?;
        Ok(())
    }

    /// Init's side: failed. Nothing can be done when this fails too.
    pub(crate) fn failed(&self, failure: &Failure) {
        let mut cut = failure.clone();
        cut.message.truncate(cut.message.floor_char_boundary(MESSAGE_MAX / 2));
        let mut message = vec![FAILED];
        message.extend(serde_json::to_vec(&cut).unwrap_or_default());
        let _ = sendmsg::<()>(self.raw(), &[IoSlice::new(&message)], &[], MsgFlags::MSG_NOSIGNAL, None);
    }

    /// Init's side: waits; false when the parent is gone.
    pub(crate) fn wait_for_start(&self) -> bool {
        let mut byte = [0];
        loop {
            match rustix::io::read(&self.0, &mut byte) {
                Err(rustix::io::Errno::INTR) => {}
                read => return read == Ok(1) && byte[0] == START,
            }
        }
    }

    /// The parent's side: go.
    pub(crate) fn start(&self) -> Result<(), Failure> {
        sendmsg::<()>(self.raw(), &[IoSlice::new(&[START])], &[], MsgFlags::MSG_NOSIGNAL, None)
            .context("the container's init is gone")?;
        Ok(())
    }

    /// The parent's side: waits for init's next word.
    pub(crate) fn hear(&self) -> Result<Said, Failure> {
        let mut buffer = vec![0; MESSAGE_MAX];
        let mut space = nix::cmsg_space!(RawFd);
        let (length, terminal) = loop {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            match recvmsg::<()>(self.raw(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::ECONNRESET) => return Ok(Said::Nothing),
                Err(error) => return Err(Failure::os("listen to init", error)),
                Ok(message) => {
                    let terminal = message.cmsgs().context("listen to init")?.find_map(first_fd);
                    break (message.bytes, terminal);
                }
            }
        };
        match buffer.get(..length) {
            Some([READY, ..]) => Ok(Said::Ready(terminal.map(crate::sys::own))),
            Some([FAILED, json @ ..]) => Ok(Said::Failed(
                serde_json::from_slice(json).unwrap_or_else(|_| Failure::other("init failed without words")),
            )),
            _ => Ok(Said::Nothing),
        }
    }
}

fn first_fd(message: ControlMessageOwned) -> Option<RawFd> {
    match message {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    }
}
