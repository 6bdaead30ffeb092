//! The kernel's WireGuard: an interface by route netlink, its keys and peers by the generic netlink family of that
//! name (include/uapi/linux/wireguard.h).

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::control::{Config, PeerConfig};
use crate::link::Route;
use crate::netns::Netns;

/// The family, and the controller that knows its number (include/uapi/linux/genetlink.h).
const FAMILY: &str = "wireguard";
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Both protocols are at their first version.
const VERSION: u8 = 1;

const WG_CMD_SET_DEVICE: u8 = 1;
const WGDEVICE_A_IFNAME: u16 = 2;
const WGDEVICE_A_PRIVATE_KEY: u16 = 3;
const WGDEVICE_A_LISTEN_PORT: u16 = 6;
const WGDEVICE_A_PEERS: u16 = 8;
const WGPEER_A_PUBLIC_KEY: u16 = 1;
const WGPEER_A_PRESHARED_KEY: u16 = 2;
const WGPEER_A_FLAGS: u16 = 3;
const WGPEER_A_ENDPOINT: u16 = 4;
const WGPEER_A_ALLOWEDIPS: u16 = 9;
const WGPEER_F_REMOVE_ME: u32 = 1;
const WGPEER_F_REPLACE_ALLOWEDIPS: u32 = 2;
const WGALLOWEDIP_A_FAMILY: u16 = 1;
const WGALLOWEDIP_A_IPADDR: u16 = 2;
const WGALLOWEDIP_A_CIDR_MASK: u16 = 3;
const WG_CMD_GET_DEVICE: u8 = 0;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLA_F_NESTED: u16 = 1 << 15;
/// Peers of one message: it has to fit into 64 KiB, and one takes about 150 bytes.
const PEERS_PER_MESSAGE: usize = 200;
/// The kernel answers at once or never.
const ANSWER_SECONDS: i64 = 10;

/// Makes the interface in `netns`, from the host's namespace, in which its UDP socket stays. `false`: this kernel
/// has no WireGuard.
///
/// # Errors
/// When the kernel has it and refuses.
pub fn make(interface: &str, netns: &Netns) -> io::Result<bool> {
    match Route::open()?.create_wireguard(interface, netns.raw()) {
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(true),
        made => made.map(|()| true),
    }
}

/// Gives the interface keys and peers. Its sessions live on where keys stay; for a peer whose key changed, the kernel
/// begins a handshake with the next packet, and holds that back until then. From inside the interface's namespace.
///
/// # Errors
/// When the kernel refuses.
pub fn configure(interface: &str, port: u16, config: &Config) -> io::Result<()> {
    let mut socket = Generic::open()?;
    let had = socket.peers(interface)?;
    for message in messages(interface, port, config, &had) {
        socket.call(WG_CMD_SET_DEVICE, NLM_F_ACK, &message)?;
    }
    Ok(())
}

/// The attributes of the calls that lead to `config`. Peers that are gone are removed one by one: to replace the list
/// would end the sessions of those that stay.
fn messages(interface: &str, port: u16, config: &Config, had: &BTreeSet<[u8; 32]>) -> Vec<Vec<u8>> {
    let mut device = Attributes::default();
    device.text(WGDEVICE_A_IFNAME, interface);
    device.bytes(WGDEVICE_A_PRIVATE_KEY, config.private.expose());
    device.bytes(WGDEVICE_A_LISTEN_PORT, &port.to_ne_bytes());
    let gone = had.iter().filter(|key| !config.peers.iter().any(|peer| peer.public == **key));
    let mut peers: Vec<Attributes> = gone.map(removal).collect();
    // After the removals: an address belongs to one peer.
    peers.extend(config.peers.iter().map(|peer| addition(peer, config)));
    let mut messages = vec![device.0];
    messages.extend(peers.chunks(PEERS_PER_MESSAGE).map(|peers| {
        let mut message = Attributes::default();
        message.text(WGDEVICE_A_IFNAME, interface);
        message.nested(WGDEVICE_A_PEERS, |list| {
            peers.iter().for_each(|peer| list.bytes(NLA_F_NESTED, &peer.0));
        });
        message.0
    }));
    messages
}

fn removal(key: &[u8; 32]) -> Attributes {
    let mut peer = Attributes::default();
    peer.bytes(WGPEER_A_PUBLIC_KEY, key);
    peer.bytes(WGPEER_A_FLAGS, &WGPEER_F_REMOVE_ME.to_ne_bytes());
    peer
}

fn addition(wanted: &PeerConfig, config: &Config) -> Attributes {
    let mut peer = Attributes::default();
    peer.bytes(WGPEER_A_PUBLIC_KEY, &wanted.public);
    peer.bytes(WGPEER_A_PRESHARED_KEY, config.psk.expose());
    peer.bytes(WGPEER_A_FLAGS, &WGPEER_F_REPLACE_ALLOWEDIPS.to_ne_bytes());
    peer.bytes(WGPEER_A_ENDPOINT, &socket_address(wanted.endpoint));
    peer.nested(WGPEER_A_ALLOWEDIPS, |list| {
        list.nested(0, |allowed| {
            allowed.bytes(WGALLOWEDIP_A_FAMILY, &(libc::AF_INET as u16).to_ne_bytes());
            allowed.bytes(WGALLOWEDIP_A_IPADDR, &wanted.address.octets());
            allowed.bytes(WGALLOWEDIP_A_CIDR_MASK, &[32]);
        });
    });
    peer
}

/// `struct sockaddr_in` or `sockaddr_in6`, as in memory.
fn socket_address(address: SocketAddr) -> Vec<u8> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 } as u16;
    let mut bytes = family.to_ne_bytes().to_vec();
    bytes.extend(address.port().to_be_bytes());
    match address.ip() {
        IpAddr::V4(ip) => {
            bytes.extend(ip.octets());
            bytes.extend([0; 8]);
        }
        IpAddr::V6(ip) => {
            bytes.extend([0; 4]);
            bytes.extend(ip.octets());
            bytes.extend([0; 4]);
        }
    }
    bytes
}

/// Netlink attributes one after the other.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).expect("peers are counted so that an attribute fits");
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes)) {
        let mut inner = Attributes::default();
        fill(&mut inner);
        self.bytes(kind | NLA_F_NESTED, &inner.0);
    }
}

/// The attributes in `bytes`; what is cut short is left out.
fn attributes(mut bytes: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while let Some((header, _)) = bytes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & !NLA_F_NESTED;
        let Some(value) = bytes.get(4..length) else { break };
        found.push((kind, value));
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// A socket that speaks to the family.
struct Generic {
    socket: Socket,
    family: u16,
    sequence: u32,
}

impl Generic {
    fn open() -> io::Result<Generic> {
        let mut socket = Socket::new(protocols::NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))?;
        let mut generic = Generic { socket, family: GENL_ID_CTRL, sequence: 0 };
        let mut name = Attributes::default();
        name.text(CTRL_ATTR_FAMILY_NAME, FAMILY);
        let answer = generic.call(CTRL_CMD_GETFAMILY, NLM_F_ACK, &name.0)?;
        let id = answer.iter().flat_map(|message| attributes(message)).find_map(|(kind, value)| {
            (kind == CTRL_ATTR_FAMILY_ID).then(|| value.try_into().ok().map(u16::from_ne_bytes))?
        });
        generic.family = id.ok_or_else(|| io::Error::other("the kernel does not name its WireGuard"))?;
        Ok(generic)
    }

    /// The public keys of the interface's peers.
    fn peers(&mut self, interface: &str) -> io::Result<BTreeSet<[u8; 32]>> {
        let mut device = Attributes::default();
        device.text(WGDEVICE_A_IFNAME, interface);
        let messages = self.call(WG_CMD_GET_DEVICE, NLM_F_DUMP, &device.0)?;
        Ok(messages.iter().flat_map(|message| peer_keys(message)).collect())
    }

    /// Sends a call; the attributes of what the kernel answers.
    fn call(&mut self, command: u8, flags: u16, body: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        self.sequence += 1;
        self.socket.send(&message(self.family, command, flags, self.sequence, body), 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while let Some((header, _)) = rest.split_first_chunk::<16>() {
                let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
                let Some(body) = rest.get(16..length) else { break };
                match u16::from_ne_bytes([header[4], header[5]]) {
                    NLMSG_ERROR => return error(body).map_or(Ok(answers), Err),
                    NLMSG_DONE => return Ok(answers),
                    // The generic header comes before the attributes.
                    _ => answers.push(body.get(4..).unwrap_or_default().to_vec()),
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

fn peer_keys(message: &[u8]) -> Vec<[u8; 32]> {
    let peers = attributes(message).into_iter().filter(|(kind, _)| *kind == WGDEVICE_A_PEERS);
    let peers = peers.flat_map(|(_, list)| attributes(list)).flat_map(|(_, peer)| attributes(peer));
    peers
        .filter(|(kind, _)| *kind == WGPEER_A_PUBLIC_KEY)
        .filter_map(|(_, key)| key.try_into().ok())
        .collect()
}

/// A whole message: netlink's header, the generic one, attributes.
fn message(family: u16, command: u8, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + body.len()).expect("a message is far below 4 GiB");
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(family.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    // The kernel fills in who asks.
    message.extend([0; 4]);
    message.extend([command, VERSION, 0, 0]);
    message.extend(body);
    message
}

/// The error of an acknowledgement; `None` says that all is well.
fn error(body: &[u8]) -> Option<io::Error> {
    let code = body.first_chunk::<4>().map(|code| i32::from_ne_bytes(*code))?;
    (code != 0).then(|| io::Error::from_raw_os_error(-code))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::tunnel::Secret;

    fn config(peers: u8) -> Config {
        let peer = |n: u8| PeerConfig {
            node: n.to_string(),
            public: [n; 32],
            address: Ipv4Addr::new(10, 0, 0, n),
            endpoint: ([192, 0, 2, n], 51820).into(),
        };
        Config {
            private: Secret::new([1; 32]),
            psk: Secret::new([2; 32]),
            peers: (1..=peers).map(peer).collect(),
        }
    }

    #[test]
    fn a_message_is_as_the_kernel_reads_it() {
        let mut body = Attributes::default();
        body.text(WGDEVICE_A_IFNAME, "wg0");
        body.bytes(WGDEVICE_A_LISTEN_PORT, &51820u16.to_ne_bytes());
        let message = message(0x1d, WG_CMD_SET_DEVICE, NLM_F_ACK, 7, &body.0);
        // Little-endian, as captured from wg(8) on x86-64 but for its choice of sequence.
        let expected = [
            36, 0, 0, 0, 0x1d, 0, 5, 0, 7, 0, 0, 0, 0, 0, 0, 0, // nlmsghdr
            1, 1, 0, 0, // genlmsghdr
            8, 0, 2, 0, b'w', b'g', b'0', 0, // WGDEVICE_A_IFNAME
            6, 0, 6, 0, 0x6c, 0xca, 0, 0, // WGDEVICE_A_LISTEN_PORT, padded
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(message, expected);
        }
    }

    #[test]
    fn a_peer_is_told_whole_and_one_that_is_gone_is_removed_first() {
        let messages = messages("wg0", 51820, &config(1), &BTreeSet::from([[1; 32], [9; 32]]));
        assert_eq!(messages.len(), 2);
        let device = attributes(&messages[0]);
        assert!(device.contains(&(WGDEVICE_A_PRIVATE_KEY, &[1; 32])));
        // Its flags (attribute 5) would replace all peers, and end their sessions.
        assert!(!device.iter().any(|(kind, _)| *kind == 5));
        let list = attributes(&messages[1])[1];
        assert_eq!(list.0, WGDEVICE_A_PEERS);
        let peers: Vec<Vec<_>> = attributes(list.1).iter().map(|(_, peer)| attributes(peer)).collect();
        assert_eq!(
            peers[0],
            [(WGPEER_A_PUBLIC_KEY, &[9; 32][..]), (WGPEER_A_FLAGS, &WGPEER_F_REMOVE_ME.to_ne_bytes())]
        );
        let kinds: Vec<u16> = peers[1].iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [1, 2, 3, 4, 9]);
        let mut endpoint = (libc::AF_INET as u16).to_ne_bytes().to_vec();
        endpoint.extend([0xca, 0x6c, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(peers[1][3].1, endpoint);
        let allowed = attributes(attributes(peers[1][4].1)[0].1);
        assert_eq!(
            allowed[1..],
            [(WGALLOWEDIP_A_IPADDR, &[10, 0, 0, 1][..]), (WGALLOWEDIP_A_CIDR_MASK, &[32])]
        );
    }

    #[test]
    fn many_peers_take_several_messages_that_fit() {
        let mut many = config(1);
        many.peers = (0..1000u32)
            .map(|n| {
                let mut peer = many.peers[0].clone();
                peer.public[..4].copy_from_slice(&n.to_ne_bytes());
                peer
            })
            .collect();
        let messages = messages("wg0", 51820, &many, &BTreeSet::new());
        assert_eq!(messages.len(), 6);
        assert!(messages.iter().all(|message| message.len() < 1 << 16));
        let keys: Vec<_> = messages.iter().flat_map(|message| peer_keys(message)).collect();
        assert_eq!(keys.len(), 1000, "the kernel's own lists are read as they are written");
    }

    #[test]
    fn an_ipv6_endpoint_is_a_sockaddr_in6() {
        let bytes = socket_address("[2001:db8::1]:51820".parse().expect("an address"));
        assert_eq!(bytes.len(), 28);
        assert_eq!(bytes[2..4], [0xca, 0x6c]);
        assert_eq!(bytes[8..10], [0x20, 0x01]);
    }
}
