//! The TCP connections that others opened to a container, as its network namespace tells (proc_net(5)).

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

/// Whether a process in the network namespace of `pid` has a connection that came in from elsewhere. UDP has none.
///
/// # Errors
/// When the process is gone.
pub(super) fn any_incoming(pid: i32) -> io::Result<bool> {
    let mut text = String::new();
    for table in ["tcp", "tcp6"] {
        match std::fs::read_to_string(PathBuf::from(format!("/proc/{pid}/net/{table}"))) {
            Ok(table) => text.push_str(&table),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table == "tcp6" => {}
            Err(error) => return Err(error),
        }
    }
    Ok(incoming(&text))
}

/// States in the kernel's tables (`include/net/tcp_states.h`) in which somebody may wait for an answer: established,
/// about to be, and closed by the other side alone.
const OPEN: [u8; 3] = [0x01, 0x03, 0x08];
const LISTEN: u8 = 0x0a;

fn incoming(tables: &str) -> bool {
    let sockets: Vec<(SocketAddr, u8)> = tables.lines().filter_map(socket).collect();
    let listening: BTreeSet<u16> =
        sockets.iter().filter(|(_, state)| *state == LISTEN).map(|(local, _)| local.port()).collect();
    sockets.iter().any(|(local, state)| {
        OPEN.contains(state) && listening.contains(&local.port()) && !local.ip().to_canonical().is_loopback()
    })
}

/// The local address and the state of one line, such as `0: 0300000A:0050 0400000A:C350 01 …`.
fn socket(line: &str) -> Option<(SocketAddr, u8)> {
    let mut fields = line.split_whitespace().skip(1);
    let (local, _remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    Some((SocketAddr::new(ip(address)?, port), u8::from_str_radix(state, 16).ok()?))
}

/// An address as the kernel prints it: words of four bytes, each in the machine's own order.
fn ip(hex: &str) -> Option<IpAddr> {
    let words: Option<Vec<[u8; 4]>> = (0..hex.len() / 8)
        .map(|word| Some(u32::from_str_radix(hex.get(word * 8..word * 8 + 8)?, 16).ok()?.to_ne_bytes()))
        .collect();
    let bytes = words?.concat();
    let v4 = <[u8; 4]>::try_from(bytes.as_slice()).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
    let v6 = || <[u8; 16]>::try_from(bytes.as_slice()).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)));
    v4.or_else(|_| v6()).ok()
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n";

    #[test]
    fn only_what_came_in_from_elsewhere_counts() {
        let listen = "   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n";
        let came = "   1: 0300000A:0050 0400000A:C350 01 00000000:00000000 00:00000000 00000000     0\n";
        let went = "   2: 0300000A:C350 0400000A:0050 01 00000000:00000000 00:00000000 00000000     0\n";
        let own = "   3: 0100007F:0050 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0\n";
        let over = "   4: 0300000A:0050 0400000A:C350 06 00000000:00000000 00:00000000 00000000     0\n";
        let comes = "   5: 0300000A:0050 0400000A:C350 03 00000000:00000000 01:00000000 00000000     0\n";
        let check = |lines: &[&str]| incoming(&format!("{HEAD}{}", lines.concat()));
        assert!(check(&[listen, came]) && check(&[listen, comes]));
        assert!(!check(&[listen, went, own, over]));
        assert!(!check(&[came]), "nobody listens: it went out from there");
        // A listener of both families; the connection came by IPv4.
        let both = "   0: 00000000000000000000000000000000:0050 0:0 0A\n";
        let mapped = "   1: 0000000000000000FFFF00000300000A:0050 0:0 01\n";
        let mapped_own = "   1: 0000000000000000FFFF00000100007F:0050 0:0 01\n";
        assert!(check(&[both, mapped]) && !check(&[both, mapped_own]));
    }

    #[test]
    fn addresses_are_in_the_machines_order() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let port = listener.local_addr().expect("an address").port();
        let _stream = TcpStream::connect(("127.0.0.1", port)).expect("connected");
        let table = std::fs::read_to_string("/proc/self/net/tcp").expect("a table");
        let found =
            table.lines().filter_map(socket).find(|(local, state)| local.port() == port && *state == LISTEN);
        assert_eq!(found.map(|(local, _)| local.ip()), Some(IpAddr::from([127, 0, 0, 1])));
    }
}
