//! Ends TCP connections of clients whose server has died without a word.
//!
//! A client that only waits never sends anything that could be refused. It is sent an acknowledgement out of the
//! blue, from the address that it asked for: it answers with its own (RFC 9293 §3.10.7.4: an unacceptable segment is
//! acknowledged), and as no socket has that connection here, the kernel refuses it, with the very number that the
//! client accepts. Blocking: runs on a thread inside the namespace that has the address.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, sendto, socket,
};

use crate::conntrack::Led;
use crate::icmp::checksum;
use crate::netns::Netns;

/// At most one of them can lie in the client's window, and be taken in silence.
const NUMBERS: [u32; 2] = [0, 1 << 31];
const HEADER: usize = 20;
const ACK: u8 = 0x10;
const PROTOCOL: u8 = 6;

/// Has these clients' connections refused. The kernel must have forgotten whom they were led to.
pub async fn refuse(netns: &Netns, connections: Vec<Led>) {
    if connections.is_empty() {
        return;
    }
    let work = move || {
        let refused = connections.iter().try_for_each(|led| startle(led.asked, led.client));
        refused.map(|()| connections.len())
    };
    match netns.run(work).await.and_then(std::convert::identity) {
        Ok(count) => tracing::info!(count, "connections to tasks that cannot be reached were refused"),
        Err(error) => tracing::warn!(%error, "connections to tasks that cannot be reached may hang"),
    }
}

fn startle(from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)?;
    let raw = |address: IpAddr| SockaddrStorage::from(SocketAddr::new(address, 0));
    bind(socket.as_raw_fd(), &raw(from.ip()))?;
    for number in NUMBERS {
        let segment = acknowledgement(from, to, number);
        sendto(socket.as_raw_fd(), &segment, &raw(to.ip()), MsgFlags::empty())?;
    }
    Ok(())
}

/// A segment without data (RFC 9293 §3.1).
fn acknowledgement(from: SocketAddr, to: SocketAddr, number: u32) -> Vec<u8> {
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    segment.extend_from_slice(&number.to_be_bytes());
    segment.extend_from_slice(&number.to_be_bytes());
    segment.extend_from_slice(&[(HEADER as u8 / 4) << 4, ACK, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = checksum(&[pseudo_header(from.ip(), to.ip()), segment.clone()].concat());
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// What the checksum covers beside the segment (RFC 9293 §3.1, RFC 8200 §8.1).
fn pseudo_header(from: IpAddr, to: IpAddr) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            [&from.octets()[..], &to.octets(), &[0, PROTOCOL, 0, HEADER as u8]].concat()
        }
        (from, to) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            [&octets(from)[..], &octets(to), &[0, 0, 0, HEADER as u8, 0, 0, 0, PROTOCOL]].concat()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_has_a_good_checksum() {
        for (from, to) in [("10.0.1.9:80", "10.0.1.2:40000"), ("[fd00::9]:80", "[fd00::2]:40000")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().expect("from"), to.parse().expect("to"));
            let segment = acknowledgement(from, to, 7);
            assert_eq!(segment.len(), HEADER);
            assert_eq!(&segment[..4], &[0, 80, 0x9c, 0x40]);
            assert_eq!(checksum(&[pseudo_header(from.ip(), to.ip()), segment].concat()), 0);
        }
    }
}
