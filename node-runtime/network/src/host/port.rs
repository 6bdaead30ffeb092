//! Ports of the host that are kept from other processes, and who has one that is not free.

use std::fs;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;

use crate::model::Protocol;
use crate::rules::HostPort;

/// Binds the port (0: any free one) in the calling thread's namespace, so that no other process of the
/// host takes it. Nothing ever reaches the socket: connections are translated before.
pub fn reserve(host: HostPort) -> io::Result<(OwnedFd, u16)> {
    let address = (host.address, host.port);
    match host.protocol {
        // Sets SO_REUSEADDR, as every server does: connections that linger from before do not count.
        Protocol::Tcp => {
            let socket = TcpListener::bind(address)?;
            let port = socket.local_addr()?.port();
            Ok((socket.into(), port))
        }
        Protocol::Udp => {
            let socket = UdpSocket::bind(address)?;
            let port = socket.local_addr()?.port();
            Ok((socket.into(), port))
        }
    }
}

/// The process that has a port in the calling thread's namespace, as `name (pid)`, where the kernel tells.
pub fn holder(protocol: Protocol, port: u16) -> Option<String> {
    let sockets = [format!("/proc/thread-self/net/{protocol}"), format!("/proc/thread-self/net/{protocol}6")];
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
}
