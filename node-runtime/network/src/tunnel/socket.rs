//! UDP in bulk: the kernel takes and gives many datagrams of one size at a time (UDP_SEGMENT, UDP_GRO: udp(7)),
//! which is most of the difference between a fast tunnel and a slow one.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SetSockOpt, SockFlag, SockType,
    SockaddrStorage, recvmsg, sendmsg, setsockopt, socket, sockopt,
};

use super::exchange::Sink;

/// Datagrams that one call hands over: the kernel's limit is 64 (`UDP_MAX_SEGMENTS` of older ones).
const SEGMENTS_MAX: usize = 64;
/// Bytes that one call hands over: what fits into the length of an IP packet.
const BYTES_MAX: usize = 65_000;
/// The largest datagram, or as many small ones as the kernel puts together.
const BUFFER: usize = 1 << 16;
/// Calls for one socket before others get their turn.
const CALLS_PER_TURN: usize = 16;
/// What may wait in the kernel: some milliseconds at ten gigabits.
const SOCKET_BUFFER: usize = 4 << 20;
/// How long a full socket is waited for.
const FULL_MS: u8 = 20;

/// A UDP socket on `address`, alone on its port.
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, SockType::Datagram, flags, None)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    prefer(&socket, sockopt::SndBufForce, &SOCKET_BUFFER);
    prefer(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER);
    nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(UdpSocket::from(socket))
}

/// Sets what only speed depends on.
fn prefer<F: AsFd, O: SetSockOpt<Val = V>, V>(socket: &F, option: O, value: &V) {
    let _ = setsockopt(socket, option, value);
}

/// The receiving end of a socket.
pub struct Inbox {
    socket: UdpSocket,
    buffer: Vec<u8>,
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Inbox {
    /// Shares the socket with the [`Outbox`].
    pub fn new(socket: &UdpSocket) -> io::Result<Inbox> {
        prefer(socket, sockopt::UdpGroSegment, &true);
        Ok(Inbox { socket: socket.try_clone()?, buffer: vec![0; BUFFER] })
    }

    /// Hands over what has come, each datagram by itself.
    pub fn receive(&mut self, mut each: impl FnMut(SocketAddr, &[u8])) {
        for _ in 0..CALLS_PER_TURN {
            let Ok((from, length, segment)) = self.receive_some() else { return };
            self.buffer[..length].chunks(segment.max(1)).for_each(|datagram| each(from, datagram));
        }
    }

    fn receive_some(&mut self) -> io::Result<(SocketAddr, usize, usize)> {
        let mut control = nix::cmsg_space!(i32);
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        let message = recvmsg::<SockaddrStorage>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::empty(),
        )?;
        let segment = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::UdpGroSegments(bytes) => usize::try_from(bytes).ok(),
            _ => None,
        });
        let from = message.address.as_ref().and_then(address).ok_or(io::ErrorKind::InvalidData)?;
        Ok((from, message.bytes, segment.unwrap_or(message.bytes)))
    }
}

fn address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4(SocketAddrV4::from(*v4)));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6(SocketAddrV6::from(*v6))))
}

/// Where all that leaves the device goes. Datagrams for one node are put together until [`Outbox::flush`].
pub struct Outbox {
    v4: UdpSocket,
    v6: Option<UdpSocket>,
    tun: File,
    batch: Batch,
    /// Whether the kernel cuts what is handed over in one piece.
    cuts: bool,
}

/// Datagrams of one size for one node; the last may be shorter.
#[derive(Default)]
struct Batch {
    to: Option<SocketAddr>,
    segment: usize,
    bytes: Vec<u8>,
}

impl Batch {
    fn takes(&self, to: SocketAddr, datagram: &[u8]) -> bool {
        self.to == Some(to)
            && datagram.len() <= self.segment
            && self.bytes.len().is_multiple_of(self.segment)
            && self.bytes.len() + datagram.len() <= BYTES_MAX
            && self.bytes.len() / self.segment < SEGMENTS_MAX
    }
}

impl Sink for Outbox {
    fn to_network(&mut self, to: SocketAddr, datagram: &[u8]) {
        if !self.batch.takes(to, datagram) {
            self.flush();
            self.batch.to = Some(to);
            self.batch.segment = datagram.len().max(1);
        }
        self.batch.bytes.extend_from_slice(datagram);
    }

    fn to_tunnel(&mut self, packet: &[u8]) {
        // An interface that is down loses it, as any other does.
        let _ = self.tun.write(packet);
    }
}

impl Outbox {
    /// To send by these sockets.
    pub fn new(v4: UdpSocket, v6: Option<UdpSocket>, tun: File) -> Outbox {
        Outbox { v4, v6, tun, batch: Batch::default(), cuts: true }
    }

    /// Sends what was put together.
    pub fn flush(&mut self) {
        let Some(to) = self.batch.to.take() else { return };
        let bytes = std::mem::take(&mut self.batch.bytes);
        let segment = self.batch.segment;
        if self.cuts && bytes.len() > segment {
            match self.send(to, &bytes, Some(segment)) {
                // The way there takes no datagrams of this size in one piece; others it may.
                Err(Errno::EINVAL | Errno::EMSGSIZE) => {}
                // This kernel, or the interface, cannot cut.
                Err(Errno::EIO | Errno::EOPNOTSUPP) => self.cuts = false,
                _ => return self.recycle(bytes),
            }
        }
        for datagram in bytes.chunks(segment) {
            // What cannot be sent is lost, as on any network.
            let _ = self.send(to, datagram, None);
        }
        self.recycle(bytes);
    }

    fn recycle(&mut self, mut bytes: Vec<u8>) {
        bytes.clear();
        self.batch.bytes = bytes;
    }

    fn send(&self, to: SocketAddr, bytes: &[u8], segment: Option<usize>) -> nix::Result<()> {
        let Some(socket) = (if to.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() }) else {
            return Err(Errno::EAFNOSUPPORT);
        };
        let segment = segment.and_then(|bytes| u16::try_from(bytes).ok());
        let control = segment.as_ref().map(ControlMessage::UdpGsoSegments);
        let address = SockaddrStorage::from(to);
        let send = || {
            let parts = [IoSlice::new(bytes)];
            sendmsg(socket.as_raw_fd(), &parts, control.as_slice(), MsgFlags::empty(), Some(&address))
        };
        match send() {
            Err(Errno::EAGAIN) => {
                let _ =
                    poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], PollTimeout::from(FULL_MS));
                send().map(drop)
            }
            sent => sent.map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(to: SocketAddr, sizes: &[usize]) -> Batch {
        let bytes = vec![0; sizes.iter().sum()];
        Batch { to: Some(to), segment: sizes[0], bytes }
    }

    #[test]
    fn only_datagrams_of_one_size_and_one_node_go_together() {
        let (a, b) = (SocketAddr::from(([192, 0, 2, 1], 1)), SocketAddr::from(([192, 0, 2, 2], 1)));
        assert!(batch(a, &[100, 100]).takes(a, &[0; 100]));
        assert!(batch(a, &[100, 100]).takes(a, &[0; 60]), "the last may be shorter");
        assert!(!batch(a, &[100, 60]).takes(a, &[0; 60]), "after that there is none");
        assert!(!batch(a, &[100]).takes(a, &[0; 101]));
        assert!(!batch(a, &[100]).takes(b, &[0; 100]));
        assert!(!batch(a, &[1; SEGMENTS_MAX]).takes(a, &[0; 1]));
        assert!(!batch(a, &[40_000]).takes(a, &[0; 40_000]));
        assert!(!Batch::default().takes(a, &[0; 1]));
    }

    #[test]
    fn what_is_put_together_arrives_in_pieces() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let (near, far) = (bind(loopback).expect("a socket"), bind(loopback).expect("a socket"));
        let to = far.local_addr().expect("its address");
        let mut inbox = Inbox::new(&far).expect("an inbox");
        let null = File::options().write(true).open("/dev/null").expect("opened");
        let mut outbox = Outbox::new(near, None, null);
        let sent: Vec<Vec<u8>> = (0..70u8).map(|n| vec![n; if n == 69 { 10 } else { 900 }]).collect();
        sent.iter().for_each(|datagram| outbox.to_network(to, datagram));
        outbox.flush();
        let mut received = Vec::new();
        while received.len() < sent.len() {
            let mut fds = [PollFd::new(inbox.as_fd(), PollFlags::POLLIN)];
            assert!(poll(&mut fds, PollTimeout::from(5000u16)).expect("polled") > 0, "{}", received.len());
            inbox.receive(|_, datagram| received.push(datagram.to_vec()));
        }
        assert_eq!(received, sent);
    }
}
