//! Connections that the kernel remembers: an endpoint that leaves takes its own with it, so that the next
//! owner of its address, or of its published port, does not get its packets.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::{Socket, SocketAddr, protocols};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rswarm_base::ipam::{Family, Subnet};

use crate::netns::Netns;

const ANSWER_SECONDS: i64 = 10;

/// Which connections to forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doomed {
    /// Those that this address answers.
    AnsweredBy(IpAddr),
    /// UDP to this port of the host: a client that never pauses would keep the flow that it had before
    /// the port was published, past all rules.
    UdpTo {
        /// Of this family.
        family: Family,
        /// The port.
        port: u16,
    },
    /// Those that are answered from these subnets, but by none of these addresses.
    Stray {
        /// The subnets.
        subnets: Vec<Subnet>,
        /// Everyone who is still there.
        live: BTreeSet<IpAddr>,
    },
}

/// Forgets connections. What cannot be forgotten runs into its timeout.
pub async fn forget(netns: &Netns, doomed: Doomed) {
    let done = netns.run(move || forget_here(&doomed)).await.and_then(std::convert::identity);
    match done {
        Ok(count) => tracing::debug!(count, "connections forgotten"),
        Err(error) => tracing::warn!(%error, "connections could not be forgotten"),
    }
}

fn forget_here(doomed: &Doomed) -> io::Result<usize> {
    let mut socket = Socket::new(protocols::NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))?;
    let mut count = 0;
    for family in doomed.families() {
        let family = match family {
            Family::V4 => NetfilterProtoFamily::IPv4,
            Family::V6 => NetfilterProtoFamily::IPv6,
        };
        send(&socket, family, ConntrackMessage::Get(Vec::new()), NLM_F_DUMP)?;
        let originals = list(&socket, doomed)?;
        count += originals.len();
        for original in originals {
            let message = ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(original)]);
            send(&socket, family, message, NLM_F_ACK)?;
            // One that ended meanwhile is no error; the answer only keeps the pace.
            let _ = socket.recv_from_full()?;
        }
    }
    Ok(count)
}

impl Doomed {
    /// The families that such connections are of.
    fn families(&self) -> BTreeSet<Family> {
        match self {
            Doomed::AnsweredBy(address) => BTreeSet::from([Family::of(*address)]),
            Doomed::UdpTo { family, .. } => BTreeSet::from([*family]),
            Doomed::Stray { subnets, .. } => subnets.iter().map(|subnet| subnet.family()).collect(),
        }
    }
}

/// The original direction of every doomed connection.
fn list(socket: &Socket, doomed: &Doomed) -> io::Result<Vec<Vec<Tuple>>> {
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
                Ok(NetlinkPayload::InnerMessage(message)) => found.extend(original_of(message, doomed)),
                _ => {}
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
}

/// The connection's original direction, if it is doomed.
fn original_of(message: NetfilterMessage, doomed: &Doomed) -> Option<Vec<Tuple>> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = message.inner else {
        return None;
    };
    let (mut original, mut reply) = (None, None);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => original = Some(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => reply = Some(tuple),
            _ => {}
        }
    }
    let (original, reply) = (original?, reply?);
    let is_doomed = match doomed {
        Doomed::AnsweredBy(address) => source(&reply) == Some(*address),
        Doomed::UdpTo { port, .. } => goes_to(&original, *port),
        Doomed::Stray { subnets, live } => source(&reply).is_some_and(|answers| {
            subnets.iter().any(|subnet| subnet.contains(answers)) && !live.contains(&answers)
        }),
    };
    is_doomed.then_some(original)
}

fn source(tuple: &[Tuple]) -> Option<IpAddr> {
    tuple.iter().find_map(|part| match part {
        Tuple::Ip(ip) => ip.iter().find_map(|part| match part {
            IPTuple::SourceAddress(address) => Some(*address),
            _ => None,
        }),
        _ => None,
    })
}

fn goes_to(tuple: &[Tuple], port: u16) -> bool {
    let wanted = [ProtoTuple::Protocol(Protocol::Udp), ProtoTuple::DestinationPort(port)];
    let has_all = |parts: &[ProtoTuple]| wanted.iter().all(|part| parts.contains(part));
    tuple.iter().any(|part| matches!(part, Tuple::Proto(parts) if has_all(parts)))
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
