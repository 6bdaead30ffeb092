//! Connections that the kernel remembers: an endpoint that leaves takes its own with it, so that the next
//! owner of its address, or of its published port, does not get its packets.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, Tuple};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::{Socket, SocketAddr, protocols};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use crate::netns::Netns;

const ANSWER_SECONDS: i64 = 10;

/// Forgets the connections that `address` answers. What cannot be forgotten runs into its timeout.
pub async fn forget(netns: &Netns, address: IpAddr) {
    let done = netns.run(move || forget_here(address)).await.and_then(std::convert::identity);
    match done {
        Ok(count) => tracing::debug!(%address, count, "connections forgotten"),
        Err(error) => tracing::warn!(%address, %error, "connections could not be forgotten"),
    }
}

fn forget_here(address: IpAddr) -> io::Result<usize> {
    let mut socket = Socket::new(protocols::NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))?;
    let family = if address.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 };
    send(&socket, family, ConntrackMessage::Get(Vec::new()), NLM_F_DUMP)?;
    let doomed = answered_by(&socket, address)?;
    let count = doomed.len();
    for original in doomed {
        let message = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(original)]);
        send(&socket, family, message, NLM_F_ACK)?;
        // One that ended meanwhile is no error; the answer only keeps the pace.
        let _ = socket.recv_from_full()?;
    }
    Ok(count)
}

/// The original direction of every connection whose answers come from `address`.
fn answered_by(socket: &Socket, address: IpAddr) -> io::Result<Vec<Vec<Tuple>>> {
    let mut found = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while let Some(length) = rest.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes) as usize) {
            if length < 16 || length > rest.len() {
                break;
            }
            let message = NetlinkMessage::<NetfilterMessage>::deserialize(&rest[..length]);
            match message.map(|message| message.payload) {
                Ok(NetlinkPayload::Done(_)) => return Ok(found),
                Ok(NetlinkPayload::Error(error)) if error.code.is_some() => return Err(error.to_io()),
                Ok(NetlinkPayload::InnerMessage(message)) => found.extend(original_of(message, address)),
                _ => {}
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
}

fn original_of(message: NetfilterMessage, address: IpAddr) -> Option<Vec<Tuple>> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner else {
        return None;
    };
    let (mut original, mut answered) = (None, false);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => original = Some(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => {
                answered = tuple.iter().any(|part| comes_from(part, address))
            }
            _ => {}
        }
    }
    original.filter(|_| answered)
}

fn comes_from(part: &Tuple, address: IpAddr) -> bool {
    matches!(part, Tuple::Ip(ip) if ip.contains(&IPTuple::SourceAddress(address)))
}

fn send(
    socket: &Socket,
    family: NetfilterProtoFamily,
    message: ConntrackMessage,
    flags: u16,
) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map(|_| ())
}
