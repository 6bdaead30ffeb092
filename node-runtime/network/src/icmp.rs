//! Pings, to find out whether and how a packet gets somewhere. Blocking: runs on a thread inside the namespace
//! that it is sent from.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// IPv4 and ICMP headers.
const HEADERS_V4: usize = 28;
/// IPv6 and ICMPv6 headers.
const HEADERS_V6: usize = 48;
/// The least that a link carries (RFC 791).
const LEAST: usize = 68;
/// A packet that every link carries.
pub const SMALL: usize = 84;
/// Each ping is tried this often: one packet may be lost.
const TRIES: u16 = 2;
/// Answers of others that are read while one waits for one's own.
const STRANGERS: usize = 256;

/// From where to where a ping goes.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// The sender's address; `None` leaves the choice to the kernel.
    pub source: Option<IpAddr>,
    /// Who is to answer.
    pub address: IpAddr,
}

/// Whether an address answers a packet of this size, all headers included, within the time.
pub fn answers(way: Way, bytes: usize, patience: Duration) -> io::Result<bool> {
    let address = way.address;
    let socket = match open(way, patience) {
        Err(error) if leads_nowhere(error) => return Ok(false),
        opened => opened?,
    };
    for sequence in 1..=TRIES {
        match send(socket.as_raw_fd(), &request(address, sequence, bytes), MsgFlags::empty()) {
            Ok(_) => {}
            Err(error) if leads_nowhere(error) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        if hears(&socket, address, sequence)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The largest packet up to `most` that an address answers, which answers small ones.
pub fn largest(way: Way, most: usize, patience: Duration) -> io::Result<usize> {
    let (mut good, mut bad) = (LEAST, most + 1);
    while bad - good > 1 {
        let middle = good.midpoint(bad);
        if answers(way, middle, patience)? {
            good = middle;
        } else {
            bad = middle;
        }
    }
    Ok(good)
}

/// Whether it is known already that no packet of that size gets there, or none at all: by this host's routes, or by
/// what somebody on the way said.
fn leads_nowhere(error: nix::Error) -> bool {
    use nix::errno::Errno::{ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH, EMSGSIZE, ENETUNREACH};
    [ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH, EMSGSIZE, ENETUNREACH].contains(&error)
}

fn open(Way { source, address }: Way, patience: Duration) -> nix::Result<OwnedFd> {
    let (family, protocol) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    let patience = TimeVal::microseconds(patience.as_micros().try_into().unwrap_or(i64::MAX));
    setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
    if let Some(source) = source {
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
    }
    connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(address, 0)))?;
    Ok(socket)
}

/// An echo request (RFC 792, RFC 4443) of which all of the packet has `bytes`.
fn request(address: IpAddr, sequence: u16, bytes: usize) -> Vec<u8> {
    let (kind, headers) = match address {
        IpAddr::V4(_) => (8, HEADERS_V4),
        IpAddr::V6(_) => (128, HEADERS_V6),
    };
    let mut message = vec![kind, 0, 0, 0];
    message.extend_from_slice(&identifier());
    message.extend_from_slice(&sequence.to_be_bytes());
    message.resize(8 + bytes.saturating_sub(headers), 0x72);
    // The kernel computes ICMPv6's own.
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

fn identifier() -> [u8; 2] {
    (std::process::id() as u16).to_be_bytes()
}

/// The Internet checksum (RFC 1071).
pub(crate) fn checksum(message: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let sum: u32 = message.chunks(2).map(word).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

/// Waits for the answer to that request.
fn hears(socket: &OwnedFd, address: IpAddr, sequence: u16) -> io::Result<bool> {
    let mut buffer = [0; 128];
    for _ in 0..STRANGERS {
        match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => {
                if is_answer(&buffer[..length], address, sequence) {
                    return Ok(true);
                }
            }
            Err(nix::Error::EINTR) => {}
            Err(error) if error == nix::Error::EAGAIN || leads_nowhere(error) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

fn is_answer(packet: &[u8], address: IpAddr, sequence: u16) -> bool {
    let (kind, message) = match address {
        // A raw IPv4 socket gives the IP header too.
        IpAddr::V4(_) => {
            let header = packet.first().map_or(0, |byte| usize::from(byte & 0x0f) * 4);
            (0, packet.get(header..).unwrap_or_default())
        }
        IpAddr::V6(_) => (129, packet),
    };
    let wanted = [identifier(), sequence.to_be_bytes()].concat();
    message.first() == Some(&kind) && message.get(4..8) == Some(&wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_its_size_and_a_good_checksum() {
        let message = request([10, 0, 0, 1].into(), 7, 1450);
        assert_eq!(message.len(), 1450 - 20);
        assert_eq!(checksum(&message), 0, "of a message with its checksum");
        assert_eq!(request([10, 0, 0, 1].into(), 7, 0).len(), 8);
    }

    #[test]
    fn only_the_answer_to_this_very_request_counts() {
        let address = IpAddr::from([10, 0, 0, 1]);
        let mut answer = [&[0x45; 20][..], &request(address, 7, 40)].concat();
        answer[20] = 0;
        assert!(is_answer(&answer, address, 7));
        assert!(!is_answer(&answer, address, 8));
        answer[20] = 8;
        assert!(!is_answer(&answer, address, 7), "our own request on loopback");
        assert!(!is_answer(&[], address, 7));
    }

    #[test]
    fn this_host_answers_itself() {
        let own = IpAddr::from([127, 0, 0, 1]);
        const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
        let way = Way { source: Some(own), address: own };
        let patience = Duration::from_secs(5);
        assert!(answers(way, 1400, patience).expect("root is needed"));
        assert_eq!(largest(way, 1400, patience).expect("probes"), 1400);
        assert!(
            answers(Way { source: Some(ELSEWHERE), ..way }, 1400, patience).is_err(),
            "no address of ours"
        );
    }

    #[tokio::test]
    async fn nobody_answers_where_no_route_leads() {
        let netns = crate::netns::Netns::create().await.expect("root is needed");
        let way = Way { source: None, address: IpAddr::from([192, 0, 2, 1]) };
        let answered = netns.run(move || answers(way, 100, Duration::from_secs(5))).await.expect("run");
        assert!(!answered.expect("a finding, not an error"));
    }
}
