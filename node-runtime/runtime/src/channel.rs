//! What init says to its parent while the container is made, and the parent's answers.
//!
//! A pair of sequenced-packet sockets. Init asks the parent for what only the parent can do (each [`Said`] but
//! the last three is answered by its [`Word`]), says [`Said::Ready`], with its terminal if it has one, waits
//! for the word to start, and executes the user's command: its end is closed by exec, and that silence is
//! success.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

use crate::failure::{Context, Failure};
use crate::sys::Child;

/// The longest failure that is passed on; a longer text is cut.
const MESSAGE_MAX: usize = 16 << 10;

const READY: u8 = b'R';
const FAILED: u8 = b'F';
const BORN: u8 = b'B';
const HOOKS: u8 = b'H';
const LISTENER: u8 = b'L';
const ID_MAP: u8 = b'I';

/// What the parent tells init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Word {
    /// The user namespace has its maps.
    Mapped = b'm',
    /// The same, and in it groups cannot be set.
    MappedWithoutGroups = b'n',
    /// The runtime's hooks have run.
    HooksDone = b'h',
    /// The seccomp listener is in good hands.
    Listening = b'l',
    /// The mount's ids are mapped.
    IdMapped = b'i',
    /// Go.
    Start = b's',
}

/// One end.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// What was heard from init.
#[derive(Debug)]
pub(crate) enum Said {
    /// By an usher: init is this process.
    Born(i32, OwnedFd),
    /// Everything is mounted: it is time for the runtime's hooks.
    Hooks,
    /// A detached mount needs the machine's privileges to map its ids.
    IdMap(IdMap),
    /// A seccomp filter is loaded; its listener is this descriptor of init's.
    Listener(u32),
    /// Everything is in place; here is the terminal's near end.
    Ready(Option<OwnedFd>),
    /// It ends now, and why.
    Failed(Failure),
    /// It closed its end: by exec, or by dying.
    Nothing,
}

/// A mount whose ids are to be those of a user namespace.
#[derive(Debug)]
pub(crate) struct IdMap<Fd = OwnedFd> {
    pub tree: Fd,
    pub namespace: Fd,
    /// Those of all mounts below it too.
    pub below: bool,
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

    /// The usher's side: init's number and its pidfd.
    pub(crate) fn born(&self, child: &Child) -> Result<(), Failure> {
        let fds = [child.pidfd.as_raw_fd()];
        let mut message = vec![BORN];
        message.extend(child.pid.to_ne_bytes());
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(self.raw(), &[IoSlice::new(&message)], &rights, MsgFlags::MSG_NOSIGNAL, None)
            .context("report to parent")?;
        Ok(())
    }

    /// Init's side: asks for the runtime's hooks, and waits until they have run.
    pub(crate) fn hooks(&self) -> Result<(), Failure> {
        rustix::io::write(&self.0, &[HOOKS]).context("report to parent")?;
        self.wait_for(Word::HooksDone)
    }

    /// Init's side: lets the parent map a mount's ids, and waits until they are.
    pub(crate) fn id_map(&self, wanted: &IdMap<BorrowedFd<'_>>) -> Result<(), Failure> {
        let fds = [wanted.tree.as_raw_fd(), wanted.namespace.as_raw_fd()];
        let message = [ID_MAP, u8::from(wanted.below)];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(self.raw(), &[IoSlice::new(&message)], &rights, MsgFlags::MSG_NOSIGNAL, None)
            .context("report to parent")?;
        self.wait_for(Word::IdMapped)
    }

    /// Init's side: lets the parent take the listener, and waits until it has. Under the filter already: plain
    /// write(2) and read(2), as few calls as can be.
    pub(crate) fn listener(&self, number: u32) -> Result<(), Failure> {
        let [a, b, c, d] = number.to_ne_bytes();
        rustix::io::write(&self.0, &[LISTENER, a, b, c, d]).context("report to parent")?;
        self.wait_for(Word::Listening)
    }

    /// Init's side: waits for one word.
    pub(crate) fn wait_for(&self, word: Word) -> Result<(), Failure> {
        if self.read()? == word as u8 { Ok(()) } else { Err(Failure::other("the parent is out of step")) }
    }

    /// Init's side: waits for its user namespace; whether groups can be set in it.
    pub(crate) fn wait_until_mapped(&self) -> Result<bool, Failure> {
        match self.read()? {
            byte if byte == Word::Mapped as u8 => Ok(true),
            byte if byte == Word::MappedWithoutGroups as u8 => Ok(false),
            _ => Err(Failure::other("the parent is out of step")),
        }
    }

    fn read(&self) -> Result<u8, Failure> {
        let mut byte = [0];
        loop {
            match rustix::io::read(&self.0, &mut byte) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(1) => return Ok(byte[0]),
                Ok(_) => return Err(Failure::other("the parent is gone")),
                Err(error) => return Err(Failure::os("listen to parent", error)),
            }
        }
    }

    /// The parent's side: answers.
    pub(crate) fn tell(&self, word: Word) -> Result<(), Failure> {
        sendmsg::<()>(self.raw(), &[IoSlice::new(&[word as u8])], &[], MsgFlags::MSG_NOSIGNAL, None)
            .context("the container's init is gone")?;
        Ok(())
    }

    /// The parent's side: waits for init's next word.
    pub(crate) fn hear(&self) -> Result<Said, Failure> {
        let mut buffer = vec![0; MESSAGE_MAX];
        let mut space = nix::cmsg_space!([RawFd; 2]);
        let (length, mut fds) = loop {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            match recvmsg::<()>(self.raw(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::ECONNRESET) => return Ok(Said::Nothing),
                Err(error) => return Err(Failure::os("listen to init", error)),
                Ok(message) => {
                    let fds: Vec<RawFd> =
                        message.cmsgs().context("listen to init")?.flat_map(rights).collect();
                    break (message.bytes, fds.into_iter().map(crate::sys::own));
                }
            }
        };
        match (buffer.get(..length), fds.next(), fds.next()) {
            (Some([READY, ..]), terminal, None) => Ok(Said::Ready(terminal)),
            (Some([BORN, a, b, c, d]), Some(pidfd), None) => {
                Ok(Said::Born(i32::from_ne_bytes([*a, *b, *c, *d]), pidfd))
            }
            (Some([HOOKS]), None, None) => Ok(Said::Hooks),
            (Some([ID_MAP, below]), Some(tree), Some(namespace)) => {
                Ok(Said::IdMap(IdMap { tree, namespace, below: *below != 0 }))
            }
            (Some([LISTENER, a, b, c, d]), None, None) => {
                Ok(Said::Listener(u32::from_ne_bytes([*a, *b, *c, *d])))
            }
            (Some([FAILED, json @ ..]), ..) => Ok(Said::Failed(
                serde_json::from_slice(json).unwrap_or_else(|_| Failure::other("init failed without words")),
            )),
            _ => Ok(Said::Nothing),
        }
    }
}

fn rights(message: ControlMessageOwned) -> Vec<RawFd> {
    match message {
        ControlMessageOwned::ScmRights(fds) => fds,
        _ => Vec::new(),
    }
}
