//! Connections that the kernel remembers: an endpoint that leaves takes its own with it, so that the next
//! owner of its address, or of its published port, does not get its packets.
//!
//! The kernel keeps those of all namespaces in one table of fixed size. To list them costs it a look, under a lock, at
//! each of some hundred thousand places; to delete by a filter (Linux 6.9) passes over the empty ones.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, Nla,
};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily, NetfilterSubsystem,
};
use netlink_sys::{Socket, protocols};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rswarm_base::ipam::{Family, Subnet};

use crate::netns::Netns;

const ANSWER_SECONDS: i64 = 10;
/// More filters than these cost more than one list.
const FILTERS: usize = 8;
/// With version 0 a deletion would not look at the family (`ctnetlink_del_conntrack`).
const VERSION: u8 = 1;
/// `IPCTNL_MSG_CT_DELETE`.
const DELETE: u8 = 2;
/// `CTA_FILTER`; in it `CTA_FILTER_ORIG_FLAGS` and `CTA_FILTER_REPLY_FLAGS`.
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
/// What counts of a direction (`CTA_FILTER_F_CTA_IP_SRC`, `…_PROTO_NUM`, `…_PROTO_DST_PORT`).
const SOURCE: u32 = 1 << 0;
const PROTOCOL: u32 = 1 << 3;
const DESTINATION_PORT: u32 = 1 << 5;

/// Which connections to forget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doomed {
    /// Those that one of these addresses answers.
    AnsweredBy(BTreeSet<IpAddr>),
    /// UDP that one of these addresses answers. It has no end that could be waited for: a client that was led there
    /// is led anew with its next datagram, and one that asks for the address itself notices nothing.
    UdpAnsweredBy(BTreeSet<IpAddr>),
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
    /// Those in which one of these answers that client: `(who answers, whom)`.
    Between(BTreeSet<(SocketAddr, SocketAddr)>),
}

/// A TCP connection that was led to somebody else than its client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Led {
    /// Who began it.
    pub client: SocketAddr,
    /// Whom it asks for.
    pub asked: SocketAddr,
    /// Who answers.
    pub answers: SocketAddr,
}

/// Forgets connections. What cannot be forgotten runs into its timeout.
pub async fn forget(netns: &Netns, doomed: Doomed) {
    if doomed.families().is_empty() {
        return;
    }
    let work = move || {
        let socket = open()?;
        let filters = doomed.filters();
        if filters.is_some_and(|filters| filters.into_iter().all(|filter| filter.delete(&socket).is_ok())) {
            return Ok(());
        }
        forget_listed(&socket, &doomed).map(drop)
    };
    warn(netns.run(work).await.and_then(std::convert::identity));
}

/// The same; which TCP connections of those were led to others than their clients asked for.
pub async fn sever(netns: &Netns, doomed: Doomed) -> Vec<Led> {
    if doomed.families().is_empty() {
        return Vec::new();
    }
    let work = move || Ok(forget_listed(&open()?, &doomed)?.iter().filter_map(Row::led).collect());
    warn(netns.run(work).await.and_then(std::convert::identity))
}

fn warn<R: Default>(done: io::Result<R>) -> R {
    done.unwrap_or_else(|error| {
        tracing::warn!(%error, "connections could not be forgotten");
        R::default()
    })
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(protocols::NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))?;
    Ok(socket)
}

/// Looks at every connection.
fn forget_listed(socket: &Socket, doomed: &Doomed) -> io::Result<Vec<Row>> {
    let mut forgotten = Vec::new();
    for family in doomed.families() {
        let family = protocol(family);
        send(socket, family, ConntrackMessage::Get(Vec::new()), NLM_F_DUMP)?;
        for row in list(socket, doomed)? {
            let message =
                ConntrackMessage::Delete(vec![ConntrackAttribute::CtaTupleOrig(row.original.clone())]);
            send(socket, family, message, NLM_F_ACK)?;
            // One that ended meanwhile is no error; the answer only keeps the pace.
            let _ = socket.recv_from_full()?;
            forgotten.push(row);
        }
    }
    Ok(forgotten)
}

fn protocol(family: Family) -> NetfilterProtoFamily {
    match family {
        Family::V4 => NetfilterProtoFamily::IPv4,
        Family::V6 => NetfilterProtoFamily::IPv6,
    }
}

/// What the kernel itself can compare connections with (`ctnetlink_alloc_filter`).
struct Filter {
    family: Family,
    /// One direction's addresses and ports, of which `fields` count.
    tuple: ConntrackAttribute,
    /// The attribute of [`FILTER`] that names the direction, and what counts of it.
    fields: (u16, u32),
}

impl Filter {
    fn answered_by(address: IpAddr) -> Filter {
        let tuple = vec![Tuple::Ip(vec![IPTuple::SourceAddress(address)])];
        Filter {
            family: Family::of(address),
            tuple: ConntrackAttribute::CtaTupleReply(tuple),
            fields: (FILTER_REPLY, SOURCE),
        }
    }

    fn udp_answered_by(address: IpAddr) -> Filter {
        let tuple = vec![
            Tuple::Ip(vec![IPTuple::SourceAddress(address)]),
            Tuple::Proto(vec![ProtoTuple::Protocol(Protocol::Udp)]),
        ];
        Filter {
            family: Family::of(address),
            tuple: ConntrackAttribute::CtaTupleReply(tuple),
            fields: (FILTER_REPLY, SOURCE | PROTOCOL),
        }
    }

    fn udp_to(family: Family, port: u16) -> Filter {
        let tuple = vec![Tuple::Proto(udp_to(port).to_vec())];
        Filter {
            family,
            tuple: ConntrackAttribute::CtaTupleOrig(tuple),
            fields: (FILTER_ORIGINAL, PROTOCOL | DESTINATION_PORT),
        }
    }

    /// Deletes all that it fits. A kernel that cannot takes it for the description of one connection, which it refuses.
    fn delete(self, socket: &Socket) -> io::Result<()> {
        let (direction, fields) = self.fields;
        let fields = DefaultNla::new(direction, fields.to_ne_bytes().to_vec());
        let message = NetfilterMessageInner::Other {
            subsys: NetfilterSubsystem::Conntrack,
            message_type: DELETE,
            attributes: vec![nested(self.tuple.kind(), &value(&self.tuple)), nested(FILTER, &bytes(&fields))],
        };
        send(socket, protocol(self.family), message, NLM_F_ACK)?;
        let (answer, _) = socket.recv_from_full()?;
        match NetlinkMessage::<NetfilterMessage>::deserialize(&answer).map(|answer| answer.payload) {
            Ok(NetlinkPayload::Error(error)) if error.code.is_none() => Ok(()),
            Ok(NetlinkPayload::Error(error)) => Err(error.to_io()),
            other => Err(io::Error::other(format!("not an answer to a deletion: {other:?}"))),
        }
    }
}

fn nested(kind: u16, attributes: &[u8]) -> DefaultNla {
    DefaultNla::new(kind | NLA_F_NESTED, attributes.to_vec())
}

fn value(attribute: &impl Nla) -> Vec<u8> {
    let mut bytes = vec![0; attribute.value_len()];
    attribute.emit_value(&mut bytes);
    bytes
}

fn bytes(attribute: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

impl Doomed {
    /// What to have the kernel compare with; `None` if it cannot, or if to look at each once is less work.
    fn filters(&self) -> Option<Vec<Filter>> {
        match self {
            Doomed::AnsweredBy(addresses) if addresses.len() <= FILTERS => {
                Some(addresses.iter().copied().map(Filter::answered_by).collect())
            }
            Doomed::UdpAnsweredBy(addresses) if addresses.len() <= FILTERS => {
                Some(addresses.iter().copied().map(Filter::udp_answered_by).collect())
            }
            Doomed::UdpTo { family, port } => Some(vec![Filter::udp_to(*family, *port)]),
            Doomed::AnsweredBy(_) | Doomed::UdpAnsweredBy(_) | Doomed::Stray { .. } | Doomed::Between(_) => {
                None
            }
        }
    }

    /// The families that such connections are of.
    fn families(&self) -> BTreeSet<Family> {
        match self {
            Doomed::AnsweredBy(addresses) | Doomed::UdpAnsweredBy(addresses) => {
                addresses.iter().copied().map(Family::of).collect()
            }
            Doomed::UdpTo { family, .. } => BTreeSet::from([*family]),
            Doomed::Stray { subnets, .. } => subnets.iter().map(|subnet| subnet.family()).collect(),
            Doomed::Between(pairs) => pairs.iter().map(|(answers, _)| Family::of(answers.ip())).collect(),
        }
    }

    fn has(&self, row: &Row) -> bool {
        let Row { original, reply } = row;
        match self {
            Doomed::AnsweredBy(addresses) => {
                source(reply).is_some_and(|answers| addresses.contains(&answers))
            }
            Doomed::UdpAnsweredBy(addresses) => {
                has(reply, &[ProtoTuple::Protocol(Protocol::Udp)])
                    && source(reply).is_some_and(|answers| addresses.contains(&answers))
            }
            Doomed::UdpTo { port, .. } => has(original, &udp_to(*port)),
            Doomed::Stray { subnets, live } => source(reply).is_some_and(|answers| {
                subnets.iter().any(|subnet| subnet.contains(answers)) && !live.contains(&answers)
            }),
            Doomed::Between(pairs) => ends(reply).is_some_and(|ends| pairs.contains(&ends)),
        }
    }
}

/// A connection as the kernel tells of it: what its client sends, and what it is sent.
struct Row {
    original: Vec<Tuple>,
    reply: Vec<Tuple>,
}

impl Row {
    fn of(message: NetfilterMessage) -> Option<Row> {
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
        Some(Row { original: original?, reply: reply? })
    }

    fn led(&self) -> Option<Led> {
        let ((client, asked), (answers, _)) = (ends(&self.original)?, ends(&self.reply)?);
        let is_tcp = has(&self.original, &[ProtoTuple::Protocol(Protocol::Tcp)]);
        (is_tcp && asked != answers).then_some(Led { client, asked, answers })
    }
}

/// Every doomed connection.
fn list(socket: &Socket, doomed: &Doomed) -> io::Result<Vec<Row>> {
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
                Ok(NetlinkPayload::InnerMessage(message)) => {
                    found.extend(Row::of(message).filter(|row| doomed.has(row)));
                }
                _ => {}
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
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

fn udp_to(port: u16) -> [ProtoTuple; 2] {
    [ProtoTuple::Protocol(Protocol::Udp), ProtoTuple::DestinationPort(port)]
}

/// The source and the destination of one direction.
fn ends(tuple: &[Tuple]) -> Option<(SocketAddr, SocketAddr)> {
    let (mut source, mut destination) = ((None, None), (None, None));
    for part in tuple {
        match part {
            Tuple::Ip(parts) => parts.iter().for_each(|part| match part {
                IPTuple::SourceAddress(address) => source.0 = Some(*address),
                IPTuple::DestinationAddress(address) => destination.0 = Some(*address),
                _ => {}
            }),
            Tuple::Proto(parts) => parts.iter().for_each(|part| match part {
                ProtoTuple::SourcePort(port) => source.1 = Some(*port),
                ProtoTuple::DestinationPort(port) => destination.1 = Some(*port),
                _ => {}
            }),
            _ => {}
        }
    }
    let end = |(address, port): (Option<IpAddr>, Option<u16>)| Some(SocketAddr::new(address?, port?));
    Some((end(source)?, end(destination)?))
}

fn has(tuple: &[Tuple], wanted: &[ProtoTuple]) -> bool {
    let has_all = |parts: &[ProtoTuple]| wanted.iter().all(|part| parts.contains(part));
    tuple.iter().any(|part| matches!(part, Tuple::Proto(parts) if has_all(parts)))
}

fn send(
    socket: &Socket,
    family: NetfilterProtoFamily,
    message: impl Into<NetfilterMessageInner>,
    flags: u16,
) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let message = NetfilterMessage::new(NetfilterHeader::new(family, VERSION, 0), message);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0).map(|_| ())
}
