//! [`Table`]s as netlink batches. One datagram from BEGIN to END is one transaction: all of it, or none.
//! Blocking: runs on a thread inside the namespace.

use std::collections::BTreeMap;
use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Hook as Attach, InetHookNumber, ListAttribute,
    NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute, SetElementList,
    SetElementMessage, SetFlags, SetMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::{Socket, SocketAddr, protocols};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rswarm_base::ipam::Family;

use super::expr::expressions;
use super::held::has_map;
use super::{Chain, Change, ElementChange, Field, Map, Point, Table};

/// The kernel answers at once or waits for its own locks; longer than this it never will.
const ANSWER_SECONDS: i64 = 10;
/// An attribute holds 64 KiB; the largest element is well under 128 bytes.
const ELEMENTS_PER_MESSAGE: usize = 500;
/// A batch is one datagram, and must fit the socket's buffer.
const BUFFER_BYTES: usize = 16 << 20;

/// `nf_tables` resource of a batch.
const SUBSYSTEM: u16 = 10;
/// `NFT_DATA_VERDICT`: the type of a map's value that is a chain.
const DATA_VERDICT: u32 = 0xffff_ff00;

/// Makes these changes, each to its table, in the calling thread's namespace, all in one transaction.
pub fn commit<'a>(changes: impl Iterator<Item = (&'a Table, &'a Change)>) -> io::Result<()> {
    let mut batch = Batch::begin(Family::V4);
    for (table, change) in changes {
        batch.family = table.family;
        match change {
            Change::None => {}
            Change::Extend { chains, elements } => {
                batch.chains(&table.name, chains);
                batch.rules(&table.name, chains);
                elements.iter().for_each(|change| batch.change_elements(&table.name, table, change));
            }
            Change::Replace => {
                batch.drop_table(&table.name);
                batch.create(table);
            }
        }
    }
    batch.commit()
}

/// Removes the tables of that name, of every family, in the calling thread's namespace. None is no error.
pub fn remove(name: &str) -> io::Result<()> {
    let mut batch = Batch::begin(Family::V4);
    for family in Family::ALL {
        batch.family = family;
        batch.drop_table(name);
    }
    batch.commit()
}

/// Makes a table that others fill, in the calling thread's namespace: what is there stays as it is.
pub fn ensure(table: &Table) -> io::Result<()> {
    let mut batch = Batch::begin(table.family);
    let message = TableMessage { attributes: vec![TableAttribute::Name(table.name.clone())] };
    batch.add(NfTablesMessage::NewTable(message), NLM_F_CREATE);
    batch.chains(&table.name, &table.chains);
    batch.commit()
}

/// Gives a map other elements, all of them at once; does nothing where there is no such map.
pub fn refill(family: Family, table: &str, map: &Map) -> io::Result<()> {
    // A refused transaction costs ten milliseconds: the kernel undoes it, and waits until nobody can have seen it.
    if !has_map(family, table, map.name)? {
        return Ok(());
    }
    let mut batch = Batch::begin(family);
    let attributes = vec![SetElementList::Table(table.to_owned()), SetElementList::Set(map.name.to_owned())];
    batch.add(NfTablesMessage::DeleteSetElement(SetElementMessage { attributes }), 0);
    batch.elements(table, map, &map.elements, true);
    batch.commit()
}

/// The elements of a map that the kernel has; none when there is no such map. Interrupted if somebody changed
/// rules meanwhile.
pub fn elements(family: Family, table: &str, map: &str) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let socket = open()?;
    let attributes = vec![SetElementList::Table(table.to_owned()), SetElementList::Set(map.to_owned())];
    let message = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
    let mut bytes = Vec::new();
    push(&mut bytes, 1, protocol(family), 0, message, NLM_F_DUMP);
    socket.send(&bytes, 0)?;
    let mut found = BTreeMap::new();
    loop {
        for reply in receive(&socket)? {
            if reply.header.flags & NLM_F_DUMP_INTR != 0 {
                return Err(io::Error::from(io::ErrorKind::Interrupted));
            }
            match reply.payload {
                NetlinkPayload::InnerMessage(message) => read_elements(message, &mut found),
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    let error = error.to_io();
                    return if error.kind() == io::ErrorKind::NotFound { Ok(found) } else { Err(error) };
                }
                _ => {}
            }
        }
    }
}

fn read_elements(message: NetfilterMessage, found: &mut BTreeMap<Vec<u8>, Vec<u8>>) {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewSetElement(message)) = message.inner else {
        return;
    };
    let lists = message.attributes.into_iter().filter_map(|attribute| match attribute {
        SetElementList::Elements(elements) => Some(elements),
        _ => None,
    });
    for element in lists.flatten() {
        let ListAttribute::Element(attributes) = element else { continue };
        let (mut key, mut value) = (None, Vec::new());
        for attribute in attributes {
            match attribute {
                SetElementAttribute::Key(DataAttribute::Value(bytes)) => key = Some(bytes),
                SetElementAttribute::Data(DataAttribute::Value(bytes)) => value = bytes,
                SetElementAttribute::Data(DataAttribute::Verdict(verdict)) => value = chain_of(&verdict),
                _ => {}
            }
        }
        found.extend(key.map(|key| (key, value)));
    }
}

/// A socket in the calling thread's namespace.
pub(super) fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(protocols::NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_cap_ack(true)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))?;
    // Without the privilege the default holds some thousand elements a batch.
    let _ = setsockopt(&socket, sockopt::SndBufForce, &BUFFER_BYTES);
    Ok(socket)
}

fn receive(socket: &Socket) -> io::Result<Vec<NetlinkMessage<NetfilterMessage>>> {
    let (datagram, _) = socket.recv_from_full()?;
    let mut messages = Vec::new();
    let mut rest = &datagram[..];
    while let Some(length) = rest.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes) as usize) {
        if length < 16 || length > rest.len() {
            break;
        }
        let message = NetlinkMessage::deserialize(&rest[..length]);
        messages
            .push(message.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?);
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    Ok(messages)
}

/// Appends a message.
pub(super) fn push(
    bytes: &mut Vec<u8>,
    sequence: u32,
    family: NetfilterProtoFamily,
    resource: u16,
    message: impl Into<NetfilterMessageInner>,
    flags: u16,
) {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, resource), message);
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let at = bytes.len();
    bytes.resize(at + message.buffer_len(), 0);
    message.serialize(&mut bytes[at..]);
}

pub(super) fn protocol(family: Family) -> NetfilterProtoFamily {
    match family {
        Family::V4 => NetfilterProtoFamily::IPv4,
        Family::V6 => NetfilterProtoFamily::IPv6,
    }
}

/// A transaction being written.
struct Batch {
    /// The family of the tables that messages are about from here on.
    family: Family,
    bytes: Vec<u8>,
    sequence: u32,
    /// Where the last message starts: it alone asks for an acknowledgement.
    last: usize,
}

impl Batch {
    fn begin(family: Family) -> Batch {
        let mut batch = Batch { family, bytes: Vec::new(), sequence: 0, last: 0 };
        batch.control(ControlMessage::BatchBegin);
        batch
    }

    fn control(&mut self, message: ControlMessage) {
        self.sequence += 1;
        push(&mut self.bytes, self.sequence, NetfilterProtoFamily::Unspec, SUBSYSTEM, message, 0);
    }

    fn add(&mut self, message: NfTablesMessage, flags: u16) {
        self.sequence += 1;
        self.last = self.bytes.len();
        push(&mut self.bytes, self.sequence, protocol(self.family), 0, message, flags);
    }

    /// Sends it, and waits for the last message's acknowledgement. Errors of earlier ones come before it.
    fn commit(mut self) -> io::Result<()> {
        let wanted = self.sequence;
        let flags = self.last + 6;
        let asked = u16::from_ne_bytes([self.bytes[flags], self.bytes[flags + 1]]) | NLM_F_ACK;
        self.bytes[flags..flags + 2].copy_from_slice(&asked.to_ne_bytes());
        self.control(ControlMessage::BatchEnd);
        let socket = open()?;
        socket.send(&self.bytes, 0)?;
        loop {
            for reply in receive(&socket)? {
                let NetlinkPayload::Error(error) = reply.payload else { continue };
                if error.code.is_some() {
                    let (number, error) = (reply.header.sequence_number, error.to_io());
                    return Err(io::Error::new(error.kind(), format!("nftables message {number}: {error}")));
                }
                if reply.header.sequence_number == wanted {
                    return Ok(());
                }
            }
        }
    }

    /// Creating what exists is no error, so this leaves no table in either case.
    fn drop_table(&mut self, name: &str) {
        let message = || TableMessage { attributes: vec![TableAttribute::Name(name.to_owned())] };
        self.add(NfTablesMessage::NewTable(message()), NLM_F_CREATE);
        self.add(NfTablesMessage::DeleteTable(message()), 0);
    }

    fn create(&mut self, table: &Table) {
        let message = TableMessage { attributes: vec![TableAttribute::Name(table.name.clone())] };
        self.add(NfTablesMessage::NewTable(message), NLM_F_CREATE);
        for (id, map) in (1..).zip(&table.maps) {
            self.add(NfTablesMessage::NewSet(set_message(table, map, id)), NLM_F_CREATE);
        }
        // Elements name chains, rules name maps and chains.
        self.chains(&table.name, &table.chains);
        for map in &table.maps {
            self.elements(&table.name, map, &map.elements, true);
        }
        self.rules(&table.name, &table.chains);
    }

    fn chains(&mut self, table: &str, chains: &[Chain]) {
        for chain in chains {
            self.add(NfTablesMessage::NewChain(chain_message(table, chain)), NLM_F_CREATE);
        }
    }

    fn rules(&mut self, table: &str, chains: &[Chain]) {
        for chain in chains {
            for rule in &chain.rules {
                let attributes = vec![
                    RuleAttribute::Table(table.to_owned()),
                    RuleAttribute::Chain(chain.name.clone()),
                    RuleAttribute::Expressions(
                        rule.iter().flat_map(|expr| expressions(expr, self.family)).collect(),
                    ),
                ];
                self.add(NfTablesMessage::NewRule(RuleMessage { attributes }), NLM_F_CREATE | NLM_F_APPEND);
            }
        }
    }

    fn change_elements(&mut self, table: &str, new: &Table, change: &ElementChange) {
        if let Some(map) = new.maps.iter().find(|map| map.name == change.map) {
            self.elements(table, map, &change.delete, false);
            self.elements(table, map, &change.add, true);
        }
    }

    fn elements(&mut self, table: &str, map: &Map, elements: &BTreeMap<Vec<u8>, Vec<u8>>, add: bool) {
        let encode = |(key, value): (&Vec<u8>, &Vec<u8>)| {
            let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(key.clone()))];
            match map.value {
                [] => {}
                [Field::Chain] => attributes.push(SetElementAttribute::Data(to_chain(value))),
                _ => attributes.push(SetElementAttribute::Data(DataAttribute::Value(value.clone()))),
            }
            ListAttribute::Element(attributes)
        };
        let encoded: Vec<_> = elements.iter().map(encode).collect();
        for some in encoded.chunks(ELEMENTS_PER_MESSAGE) {
            let attributes = vec![
                SetElementList::Table(table.to_owned()),
                SetElementList::Set(map.name.to_owned()),
                SetElementList::Elements(some.to_vec()),
            ];
            let message = SetElementMessage { attributes };
            if add {
                self.add(NfTablesMessage::NewSetElement(message), NLM_F_CREATE);
            } else {
                self.add(NfTablesMessage::DeleteSetElement(message), 0);
            }
        }
    }
}

fn set_message(table: &Table, map: &Map, id: u32) -> SetMessage {
    let family = table.family;
    let mut attributes = vec![
        SetAttribute::Table(table.name.clone()),
        SetAttribute::Name(map.name.to_owned()),
        SetAttribute::KeyType(datatype(map.key, family)),
        SetAttribute::KeyLen(length(map.key, family)),
        SetAttribute::Id(id),
    ];
    if map.value.is_empty() {
        attributes.push(SetAttribute::Flags(SetFlags::empty()));
    } else if map.value == [Field::Chain] {
        attributes.push(SetAttribute::Flags(SetFlags::Map));
        attributes.push(SetAttribute::DataType(DATA_VERDICT));
    } else {
        attributes.push(SetAttribute::Flags(SetFlags::Map));
        attributes.push(SetAttribute::DataType(datatype(map.value, family)));
        attributes.push(SetAttribute::DataLen(length(map.value, family)));
    }
    SetMessage { attributes }
}

/// The verdict to go on in a chain, whose name is the element's value.
fn to_chain(name: &[u8]) -> DataAttribute {
    let name = String::from_utf8_lossy(name).into_owned();
    DataAttribute::Verdict(vec![VerdictAttribute::Code(Verdict::Goto), VerdictAttribute::Chain(name)])
}

/// The inverse. A verdict that is not of ours gives what no chain is called.
fn chain_of(verdict: &[VerdictAttribute]) -> Vec<u8> {
    let goes_on = verdict.contains(&VerdictAttribute::Code(Verdict::Goto));
    let chain = verdict.iter().find_map(|attribute| match attribute {
        VerdictAttribute::Chain(name) if goes_on => Some(name.clone().into_bytes()),
        _ => None,
    });
    chain.unwrap_or_default()
}

fn length(fields: &[Field], family: Family) -> u32 {
    match fields {
        [field] => field.bytes(family) as u32,
        fields => fields.iter().map(|field| field.padded(family) as u32).sum(),
    }
}

/// The type number by which `nft list ruleset` prints elements; the kernel does not look at it.
fn datatype(fields: &[Field], family: Family) -> u32 {
    fields.iter().fold(0, |datatype, field| {
        let one = match field {
            Field::Saddr | Field::Daddr if family == Family::V6 => 8,
            Field::Saddr | Field::Daddr => 7,
            Field::Protocol => 12,
            Field::Dport => 13,
            Field::Iifname | Field::Oifname => 41,
            Field::Mac => 9,
            Field::ConnectionMark | Field::Mark | Field::Zone => 19,
            Field::Chain => 1,
        };
        datatype << 6 | one
    })
}

fn chain_message(table: &str, chain: &Chain) -> ChainMessage {
    let mut attributes =
        vec![ChainAttribute::Table(table.to_owned()), ChainAttribute::Name(chain.name.clone())];
    if let Some(hook) = chain.hook {
        let point = match hook.point {
            Point::Prerouting => InetHookNumber::PreRouting,
            Point::Forward => InetHookNumber::Forward,
            Point::Output => InetHookNumber::LocalOut,
            Point::Postrouting => InetHookNumber::PostRouting,
        };
        attributes.push(ChainAttribute::Type(hook.kind.to_owned()));
        attributes.push(ChainAttribute::Hook(vec![
            Attach::Number(point.into()),
            Attach::Priority(hook.priority.cast_unsigned()),
        ]));
    }
    ChainMessage { attributes }
}
