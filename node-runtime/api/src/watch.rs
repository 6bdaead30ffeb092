//! What the kernel says of a client: whether it is still there, when nothing is read from or written to it, and who
//! it is.

use std::os::fd::AsFd as _;

use rswarm_base::audit::User;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use crate::connection::Socket;

/// Another hold on a client's socket, for events only: nothing is read or written through it.
pub(crate) enum Watch {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Watch {
    /// Resolves when the other side has closed the connection altogether, which a half-close is not: the kernel
    /// tells of it as the end of writing, while a half-close ends reading alone.
    pub async fn hung_up(&self) {
        loop {
            let ready = match self {
                Watch::Unix(socket) => socket.ready(Interest::WRITABLE).await,
                Watch::Tcp(socket) => socket.ready(Interest::WRITABLE).await,
            };
            if ready.is_ok_and(|ready| !ready.is_write_closed()) {
                // That there is room is seen; the kernel tells of the next change.
                let seen = || Err::<(), _>(std::io::ErrorKind::WouldBlock.into());
                let _ = match self {
                    Watch::Unix(socket) => socket.try_io(Interest::WRITABLE, seen),
                    Watch::Tcp(socket) => socket.try_io(Interest::WRITABLE, seen),
                };
            } else {
                return;
            }
        }
    }
}

/// [`Watch::hung_up`]; never where that cannot be seen.
pub(crate) async fn hung_up(watch: Option<Watch>) {
    match watch {
        Some(watch) => watch.hung_up().await,
        None => std::future::pending().await,
    }
}

impl Socket for UnixStream {
    fn watch(&self) -> Option<Watch> {
        let twin: std::os::unix::net::UnixStream = self.as_fd().try_clone_to_owned().ok()?.into();
        UnixStream::from_std(twin).ok().map(Watch::Unix)
    }

    fn user(&self) -> Option<User> {
        let peer = self.peer_cred().ok()?;
        Some(User::Local { uid: peer.uid(), gid: peer.gid(), pid: peer.pid().unwrap_or(0) })
    }
}

impl Socket for TcpStream {
    fn watch(&self) -> Option<Watch> {
        let twin: std::net::TcpStream = self.as_fd().try_clone_to_owned().ok()?.into();
        TcpStream::from_std(twin).ok().map(Watch::Tcp)
    }

    fn user(&self) -> Option<User> {
        self.peer_addr().ok().map(|addr| User::Remote { addr })
    }
}
