//! Ports of the host that are kept from other processes, and who has one that is not free.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, listen, setsockopt,
    socket, sockopt,
};

use crate::model::Protocol;
use crate::rules::HostPort;

/// Binds the port (0: any free one) in the calling thread's namespace, so that no other process of the
/// host takes it. Connections are translated before they reach the socket, but for those to `::1`, which no
/// rule can serve: they are refused, so that a client goes on to 127.0.0.1.
///
/// A kernel without SCTP has no such sockets, and nobody who could take the port: there it is not reserved.
pub fn reserve(host: HostPort) -> io::Result<(Option<OwnedFd>, u16)> {
    let Some(socket) = open(host)? else {
        // The kernel still knows which numbers are for whoever wants any.
        let udp = HostPort { protocol: Protocol::Udp, ..host };
        return Ok((None, if host.port == 0 { reserve(udp)?.1 } else { host.port }));
    };
    if host.address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    if host.protocol == Protocol::Tcp {
        // As every server does: connections that linger from before do not count.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(host.address, host.port)))?;
    if host.protocol == Protocol::Tcp && host.address.is_ipv4() {
        listen(&socket, Backlog::new(1)?)?;
    } else {
        // Whoever else binds it hears of us when he listens.
        setsockopt(&socket, sockopt::ReuseAddr, &false)?;
    }
    let bound: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    let v4 = bound.as_sockaddr_in().map(|bound| bound.port());
    let port = v4.or_else(|| bound.as_sockaddr_in6().map(|bound| bound.port()));
    Ok((Some(socket), port.unwrap_or(host.port)))
}

/// A socket of the port's protocol; nothing if the kernel has none of it.
fn open(host: HostPort) -> io::Result<Option<OwnedFd>> {
    let family = if host.address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = match host.protocol {
        Protocol::Tcp => SockType::Stream,
        Protocol::Udp => SockType::Datagram,
        Protocol::Sctp => return open_sctp(host.address.is_ipv4()),
    };
    Ok(Some(socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?))
}

fn open_sctp(is_ipv4: bool) -> io::Result<Option<OwnedFd>> {
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
    let family = if is_ipv4 { AddressFamily::INET } else { AddressFamily::INET6 };
    match socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::SCTP)) {
        Ok(socket) => Ok(Some(socket)),
        Err(Errno::PROTONOSUPPORT | Errno::SOCKTNOSUPPORT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The process that has a port in the calling thread's namespace, as `name (pid)`, where the kernel tells.
pub fn holder(protocol: Protocol, port: u16) -> Option<String> {
    let sockets = [format!("/proc/thread-self/net/{protocol}"), format!("/proc/thread-self/net/{protocol}6")];
    // What listens by SCTP has a listing of another shape, and no kernel that we met has it.
    let inode = sockets.iter().find_map(|path| inode(&fs::read_to_string(path).ok()?, protocol, port))?;
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| has_descriptor(*pid, &wanted)).map(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        format!("{} ({pid})", name.trim_end())
    })
}

/// The inode of the socket that is bound to a port, in a listing as of `/proc/net/tcp` (proc(5)).
fn inode(listing: &str, protocol: Protocol, port: u16) -> Option<u64> {
    const LISTEN: &str = "0A";
    let port = format!(":{port:04X}");
    listing.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let bound = fields.get(1)?.ends_with(&port) && (protocol == Protocol::Udp || fields[3] == LISTEN);
        bound.then(|| fields.get(9)?.parse().ok())?
    })
}

fn has_descriptor(pid: u32, wanted: &str) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .any(|target| target.to_str() == Some(wanted))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};

    use rswarm_base::ipam::Family;

    use super::*;

    #[test]
    fn a_listener_is_told_from_a_connection() {
        let listing = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 11 1 0 20 4 30 10 -1
   1: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 22 1 0 100 0 0 10 0
";
        assert_eq!(inode(listing, Protocol::Tcp, 8080), Some(22));
        assert_eq!(inode(listing, Protocol::Udp, 8080), Some(11));
        assert_eq!(inode(listing, Protocol::Tcp, 80), None);
    }

    #[test]
    fn this_process_is_found_by_its_port() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
        let port = listener.local_addr().expect("address").port();
        let holder = holder(Protocol::Tcp, port).expect("holder");
        assert!(holder.ends_with(&format!(" ({})", std::process::id())), "{holder}");
    }

    #[test]
    fn a_port_is_kept_in_each_family_by_itself() {
        let (v4, port) = reserve(HostPort::any(Family::V4, Protocol::Tcp, 0)).expect("IPv4");
        let v6 = HostPort::any(Family::V6, Protocol::Tcp, port);
        // Others of this machine may have it: then nothing is said.
        let Ok((_kept, same)) = reserve(v6) else { return };
        assert_eq!(same, port);
        let refused = std::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)).expect_err("nobody answers");
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(TcpListener::bind((Ipv6Addr::LOCALHOST, port)).is_err(), "another server takes it");
        assert!(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err(), "another server takes it");
        drop(v4);
    }
}
