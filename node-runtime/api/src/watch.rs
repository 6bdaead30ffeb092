//! What the kernel says of a client: who it is, whether it is still there when nothing is read from or written to it, and
//! whether it has read what was written.

use std::os::fd::AsFd as _;
use std::time::Duration;

use rswarm_base::audit::User;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};

use crate::connection::Socket;

/// The longest wait for a client to read: one that reads nothing gets the rest all the same.
pub(crate) const READ_TIMEOUT: Duration = Duration::from_millis(250);

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
                self.note_room();
            } else {
                return;
            }
        }
    }

    /// Makes the next [`Watch::has_read`] tell of what is written from now on.
    pub async fn arm(&self) {
        if let Watch::Unix(socket) = self {
            let _ = socket.writable().await;
            self.note_room();
        }
    }

    /// Whether the other side reads something within this time. On TCP, where nobody can know, it says so at once.
    // unix_write_space in net/unix/af_unix.c: the kernel tells of room for writing each time that some is read
    pub async fn has_read(&self, within: Duration) -> bool {
        match self {
            Watch::Unix(socket) => tokio::time::timeout(within, socket.writable()).await.is_ok(),
            Watch::Tcp(_) => true,
        }
    }

    /// That there is room for writing is seen; the kernel tells of the next change.
    fn note_room(&self) {
        let seen = || Err::<(), _>(std::io::ErrorKind::WouldBlock.into());
        let _ = match self {
            Watch::Unix(socket) => socket.try_io(Interest::WRITABLE, seen),
            Watch::Tcp(socket) => socket.try_io(Interest::WRITABLE, seen),
        };
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn that_the_other_side_reads_is_told() {
        let (mut near, mut far) = UnixStream::pair().expect("pair");
        let watch = near.watch().expect("watch");
        for _ in 0..2 {
            watch.arm().await;
            near.write_all(b"head").await.expect("write");
            // No wait is this long: the kernel tells, not the clock.
            let read = watch.has_read(Duration::from_secs(600));
            tokio::pin!(read);
            tokio::task::yield_now().await;
            assert!(futures_util::poll!(&mut read).is_pending());
            let mut head = [0; 4];
            far.read_exact(&mut head).await.expect("read");
            assert!(read.await);
        }
    }
}
