//! Links, addresses, routes and neighbours over route netlink: lists what a namespace holds, takes the
//! steps that [`crate::plan`] decides on. Blocking: runs on a thread inside the namespace.

mod lan;
mod marked;
mod pair;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_sys::{Socket, SocketAddr, protocols};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rswarm_base::ipam::{Family, Subnet};
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoVxlan, LinkAttribute, LinkExtentMask,
    LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

pub use self::lan::{LanLink, OwnParent};
pub use self::pair::Pair;
use self::pair::port_flags;
use crate::model::Mac;
use crate::plan::{
    Address, Forward, Found, FoundLink, Gateway, Link, LinkKind, Neighbour, Plan, Port, Step, Vxlan, steps,
};

/// The kernel answers at once or waits for its own locks; longer than this it never will.
const ANSWER_SECONDS: i64 = 10;
/// Making and deleting links settles in two rounds, unless others do the same.
const ROUNDS: usize = 4;
/// Hops that an encapsulated frame may take; VXLAN's default of "inherit" would hide the underlay's.
const VXLAN_TTL: u8 = 64;

/// A route netlink socket in the namespace of the thread that opened it. It may be used from any thread.
pub struct Route {
    socket: Socket,
    sequence: u32,
}

/// Where a plan's VXLAN devices are made: in the daemon's namespace, so that their UDP socket stays
/// there, and straight into the sandbox.
pub struct Underlay {
    /// A socket in the daemon's namespace.
    pub route: Route,
    /// The sandbox.
    pub sandbox: RawFd,
}

impl Route {
    /// Opens a socket in the calling thread's namespace.
    pub fn open() -> io::Result<Route> {
        let mut socket = Socket::new(protocols::NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS, 0))?;
        Ok(Route { socket, sequence: 0 })
    }

    /// Brings the namespace to the plan; returns the steps that it took, and what there was before the last
    /// of them.
    pub fn reconcile(
        &mut self,
        plan: &Plan,
        mut underlay: Option<Underlay>,
    ) -> io::Result<(Vec<Step>, Found)> {
        let mut taken = Vec::new();
        for _ in 0..ROUNDS {
            let found = self.list()?;
            let mut todo = steps(plan, &found);
            let is_last = !todo.iter().any(Step::is_structural);
            if !is_last {
                todo.retain(Step::is_structural);
            }
            let indexes = found.links.iter().map(|link| (link.link.name.clone(), link.index)).collect();
            for step in &todo {
                self.take(step, &indexes, underlay.as_mut()).map_err(|error| named(&error, step))?;
            }
            taken.append(&mut todo);
            // Each step was acknowledged. A list costs more than all steps where there are many links.
            if is_last {
                return Ok((taken, found));
            }
        }
        Err(io::Error::other(format!("the kernel does not keep what it is told: {:?}", taken.last())))
    }

    /// Links and addresses. Routes and neighbours may be many where they are not ours.
    pub fn links_and_addresses(&mut self) -> io::Result<Found> {
        let links = self.links()?;
        let names = names_of(&links);
        let mut found = Found { links, ..Found::default() };
        for message in self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))? {
            if let RouteNetlinkMessage::NewAddress(message) = message {
                found.addresses.extend(read_address(&message, &names));
            }
        }
        Ok(found)
    }

    /// Everything that plans speak of.
    pub fn list(&mut self) -> io::Result<Found> {
        let mut found = self.links_and_addresses()?;
        let names = names_of(&found.links);
        for family in [AddressFamily::Unspec, AddressFamily::Bridge] {
            let mut request = NeighbourMessage::default();
            request.header.family = family;
            for message in self.dump(RouteNetlinkMessage::GetNeighbour(request))? {
                if let RouteNetlinkMessage::NewNeighbour(message) = message {
                    read_neighbour(&message, &names, &mut found);
                }
            }
        }
        for message in self.routes()? {
            if message.header.destination_prefix_length != 0 {
                continue;
            }
            if message.header.table == RouteHeader::RT_TABLE_MAIN {
                found.default_routes.extend(read_gateway(&message, &names));
            } else {
                found.marked_routes.extend(marked::read_route(&message, &names));
            }
        }
        found.marks = self.marks()?;
        Ok(found)
    }

    /// Through which link each family's default route goes, by a gateway or by the link alone.
    pub fn default_links(&mut self) -> io::Result<Vec<(Family, String)>> {
        let names = names_of(&self.links()?);
        let is_default = |header: &RouteHeader| {
            header.destination_prefix_length == 0 && header.table == RouteHeader::RT_TABLE_MAIN
        };
        let routes = self.routes()?.into_iter().filter(|message| is_default(&message.header));
        let read = |message: RouteMessage| {
            let family = match message.header.address_family {
                AddressFamily::Inet => Family::V4,
                AddressFamily::Inet6 => Family::V6,
                _ => return None,
            };
            let link = message.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Oif(index) => names.get(index).cloned(),
                _ => None,
            });
            Some((family, link?))
        };
        Ok(routes.filter_map(read).collect())
    }

    /// All links.
    pub fn links(&mut self) -> io::Result<Vec<FoundLink>> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let messages = self.dump(RouteNetlinkMessage::GetLink(request))?;
        let messages: Vec<LinkMessage> = messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) => Some(link),
                _ => None,
            })
            .collect();
        let names: BTreeMap<u32, String> =
            messages.iter().map(|message| (message.header.index, link_name(message))).collect();
        Ok(messages.iter().map(|message| read_link(message, &names)).collect())
    }

    /// The MTU of the link that has this address; `None` when none has it.
    pub fn mtu_at(&mut self, address: IpAddr) -> io::Result<Option<u32>> {
        let messages = self.dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let has_it = |message: &RouteNetlinkMessage| match message {
            RouteNetlinkMessage::NewAddress(message) => {
                own_address(message).is_some_and(|own| own == address).then_some(message.header.index)
            }
            _ => None,
        };
        let Some(index) = messages.iter().find_map(has_it) else { return Ok(None) };
        let mut request = LinkMessage::default();
        request.header.index = index;
        let link = self.link(request)?;
        Ok(Some(read_link(&link, &BTreeMap::new()).link.mtu))
    }

    /// Whether a link is as it should be, without a look at any others.
    pub fn is_as_planned(&mut self, link: &Link) -> io::Result<bool> {
        let mut names = BTreeMap::new();
        if let Some(port) = &link.port {
            names.insert(self.index(&port.bridge)?, port.bridge.clone());
        }
        let Ok(found) = self.link(named_link(&link.name)) else { return Ok(false) };
        let found = Found { links: vec![read_link(&found, &names)], ..Found::default() };
        Ok(steps(&Plan { links: vec![link.clone()], ..Plan::default() }, &found).is_empty())
    }

    /// One link, by name or number.
    fn link(&mut self, request: LinkMessage) -> io::Result<LinkMessage> {
        self.send(RouteNetlinkMessage::GetLink(request), NLM_F_REQUEST)?;
        loop {
            for reply in self.receive()? {
                match reply.payload {
                    _ if reply.header.sequence_number != self.sequence => {}
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => return Ok(link),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    /// A link's number.
    fn index(&mut self, name: &str) -> io::Result<u32> {
        Ok(self.link(named_link(name))?.header.index)
    }

    /// The subnets that the namespace's main routes lead to, default routes left out.
    pub fn routed_subnets(&mut self) -> io::Result<Vec<Subnet>> {
        let routes = self.routes()?;
        let main = routes.iter().filter(|route| route.header.table == RouteHeader::RT_TABLE_MAIN);
        Ok(main.filter_map(read_destination).collect())
    }

    /// The unicast routes of all tables.
    fn routes(&mut self) -> io::Result<Vec<RouteMessage>> {
        let messages = self.dump(RouteNetlinkMessage::GetRoute(RouteMessage::default()))?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Unicast => {
                    Some(route)
                }
                _ => None,
            })
            .collect())
    }

    /// Deletes a link; one that does not exist is no error.
    pub fn delete_link(&mut self, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        absent_is_fine(self.request(RouteNetlinkMessage::DelLink(message), 0))
    }

    /// Brings a link up.
    pub fn set_up(&mut self, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(message), 0)
    }

    fn take(
        &mut self,
        step: &Step,
        indexes: &BTreeMap<String, u32>,
        underlay: Option<&mut Underlay>,
    ) -> io::Result<()> {
        let index = |name: &str| indexes.get(name).copied().ok_or_else(|| no_such_link(name));
        match step {
            Step::DeleteLink(name) => self.delete_link(name),
            Step::CreateLink(link) => self.create(link, underlay),
            Step::SetLink(link) => {
                let mut message = new_link(link);
                message.header.index = index(&link.name)?;
                message.attributes.retain(|attribute| !matches!(attribute, LinkAttribute::IfName(_)));
                self.request(RouteNetlinkMessage::SetLink(message), 0)
            }
            Step::SetPort(name, port) => self.set_port(index(name)?, index(&port.bridge)?, port),
            Step::SetUp(name) => self.set_up(name),
            Step::RemoveAddress(address) => {
                let message =
                    RouteNetlinkMessage::DelAddress(address_message(index(&address.link)?, address));
                absent_is_fine(self.request(message, 0))
            }
            Step::AddAddress(address) => {
                let message = address_message(index(&address.link)?, address);
                self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE)
            }
            Step::RemoveNeighbour(entry) => {
                let message = neighbour_message(index(&entry.link)?, entry);
                absent_is_fine(self.request(RouteNetlinkMessage::DelNeighbour(message), 0))
            }
            Step::SetNeighbour(entry) => {
                let message = neighbour_message(index(&entry.link)?, entry);
                self.request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
            }
            Step::RemoveForward(entry) => {
                let message = forward_message(index(&entry.link)?, entry);
                absent_is_fine(self.request(RouteNetlinkMessage::DelNeighbour(message), 0))
            }
            Step::AddForward(entry) => {
                let message = forward_message(index(&entry.link)?, entry);
                self.request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
            }
            Step::SetDefaultRoute(gateway) => self.set_default_route(index(&gateway.link)?, gateway.address),
            Step::RemoveMark(family, mark) => self.remove_mark(*family, *mark),
            Step::RemoveMarkedRoute(route) => self.remove_marked_route(route, index(&route.link)?),
            Step::SetMarkedRoute(route) => self.set_marked_route(route, index(&route.link)?),
            Step::AddMark(family, mark) => self.add_mark(*family, *mark),
        }
    }

    fn create(&mut self, link: &Link, underlay: Option<&mut Underlay>) -> io::Result<()> {
        let mut message = new_link(link);
        match link.kind {
            LinkKind::Bridge => {
                message.attributes.push(LinkAttribute::LinkInfo(vec![
                    LinkInfo::Kind(InfoKind::Bridge),
                    LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::ForwardDelay(0)])),
                ]));
                self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
            }
            LinkKind::Vxlan(vxlan) => {
                let info = LinkAttribute::LinkInfo(vec![
                    LinkInfo::Kind(InfoKind::Vxlan),
                    LinkInfo::Data(InfoData::Vxlan(vxlan_info(vxlan))),
                ]);
                message.attributes.push(info);
                let underlay =
                    underlay.ok_or_else(|| io::Error::other("a VXLAN device needs an underlay"))?;
                message.attributes.push(LinkAttribute::NetNsFd(underlay.sandbox));
                let message = RouteNetlinkMessage::NewLink(message);
                underlay.route.request(message, NLM_F_CREATE | NLM_F_EXCL)
            }
            LinkKind::Veth | LinkKind::Other => Err(io::Error::other("only bridges and VXLAN are planned")),
        }
    }

    /// Makes a WireGuard interface in the namespace `netns`; its UDP socket is in this one.
    pub fn create_wireguard(&mut self, name: &str, netns: RawFd) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Wireguard)]),
            LinkAttribute::NetNsFd(netns),
        ];
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    fn set_port(&mut self, link: u32, bridge: u32, port: &Port) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.attributes = vec![LinkAttribute::Controller(bridge)];
        self.request(RouteNetlinkMessage::SetLink(message), 0)?;
        let mut message = LinkMessage::default();
        message.header.index = link;
        message.attributes = vec![port_flags(port)];
        self.request(RouteNetlinkMessage::NewLink(message), 0)
    }

    fn set_default_route(&mut self, link: u32, gateway: IpAddr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(gateway);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(link)];
        self.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Sends a change and waits for its acknowledgement.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        loop {
            for reply in self.receive()? {
                if reply.header.sequence_number == self.sequence
                    && let NetlinkPayload::Error(error) = reply.payload
                {
                    return if error.code.is_none() { Ok(()) } else { Err(error.to_io()) };
                }
            }
        }
    }

    /// Lists. A table that changed meanwhile may miss an entry: the next reconciliation sees it.
    fn dump(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut list = Vec::new();
        loop {
            for reply in self.receive()? {
                if reply.header.sequence_number != self.sequence {
                    continue;
                }
                match reply.payload {
                    NetlinkPayload::InnerMessage(message) => list.push(message),
                    NetlinkPayload::Done(_) => return Ok(list),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(|_| ())
    }

    /// One datagram's messages. What cannot be parsed belongs to a kind of object that is not ours.
    fn receive(&mut self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let (datagram, _) = self.socket.recv_from_full()?;
        let mut messages = Vec::new();
        let mut rest = &datagram[..];
        while let Some(length) = rest.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes) as usize) {
            if length < 16 || length > rest.len() {
                break;
            }
            match NetlinkMessage::deserialize(&rest[..length]) {
                Ok(message) => messages.push(message),
                Err(error) => tracing::trace!(%error, "netlink message skipped"),
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
        Ok(messages)
    }
}

// === what is sent ===

fn new_link(link: &Link) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(link.name.clone()),
        LinkAttribute::Mtu(link.mtu),
        LinkAttribute::IfAlias(link.alias.clone()),
    ];
    message.attributes.extend(link.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    message
}

fn vxlan_info(vxlan: Vxlan) -> Vec<InfoVxlan> {
    let mut info = vec![
        InfoVxlan::Id(vxlan.vni),
        InfoVxlan::Port(vxlan.port),
        InfoVxlan::Learning(false),
        InfoVxlan::Proxy(true),
        InfoVxlan::Ttl(VXLAN_TTL),
    ];
    info.extend(vxlan.local.map(|local| match local {
        IpAddr::V4(local) => InfoVxlan::Local(local),
        IpAddr::V6(local) => InfoVxlan::Local6(local),
    }));
    info
}

/// The links' names, by number.
fn names_of(links: &[FoundLink]) -> BTreeMap<u32, String> {
    links.iter().map(|link| (link.index, link.link.name.clone())).collect()
}

fn named_link(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn address_message(index: u32, address: &Address) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address.address);
    message.header.prefix_len = address.prefix;
    message.header.index = index;
    message.attributes = vec![AddressAttribute::Address(address.address)];
    if let IpAddr::V4(v4) = address.address {
        message.attributes.push(AddressAttribute::Local(v4.into()));
        if address.prefix < 31 {
            let host_bits = u32::MAX.checked_shr(u32::from(address.prefix)).unwrap_or(0);
            let broadcast = Ipv4Addr::from_bits(v4.to_bits() | host_bits);
            message.attributes.push(AddressAttribute::Broadcast(broadcast));
        }
    } else {
        // The cluster saw to it that nobody else has it; detection would only delay the first packet.
        message.header.flags = rtnetlink::packet_route::address::AddressHeaderFlags::Nodad;
    }
    message
}

fn neighbour_message(index: u32, entry: &Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(entry.address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(entry.address.into()),
        NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()),
    ];
    message
}

fn forward_message(index: u32, entry: &Forward) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(entry.mac.0.to_vec()),
        NeighbourAttribute::Destination(entry.node.into()),
    ];
    message
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error)
            if [libc::ENODEV, libc::ENOENT, libc::EADDRNOTAVAIL]
                .contains(&error.raw_os_error().unwrap_or(0)) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn no_such_link(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("link `{name}` has gone"))
}

fn named(error: &io::Error, step: &Step) -> io::Error {
    io::Error::new(error.kind(), format!("{step:?}: {error}"))
}

// === what is read ===

fn link_name(message: &LinkMessage) -> String {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    name.unwrap_or_default()
}

fn read_link(message: &LinkMessage, names: &BTreeMap<u32, String>) -> FoundLink {
    let mut link = Link {
        name: link_name(message),
        kind: LinkKind::Other,
        mtu: 0,
        mac: None,
        port: None,
        alias: String::new(),
    };
    let mut bridge = None;
    let (mut hairpin, mut isolated) = (false, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok().map(Mac),
            LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
            LinkAttribute::Controller(index) => bridge = names.get(index).cloned(),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = read_kind(infos);
                (hairpin, isolated) = read_port_flags(infos);
            }
            _ => {}
        }
    }
    link.port = bridge.map(|bridge| Port { bridge, hairpin, isolated });
    FoundLink { index: message.header.index, up: message.header.flags.contains(LinkFlags::Up), link }
}

fn read_kind(infos: &[LinkInfo]) -> LinkKind {
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        Some(InfoKind::Bridge) => LinkKind::Bridge,
        Some(InfoKind::Veth) => LinkKind::Veth,
        Some(InfoKind::Vxlan) => LinkKind::Vxlan(read_vxlan(infos)),
        _ => LinkKind::Other,
    }
}

fn read_vxlan(infos: &[LinkInfo]) -> Vxlan {
    let mut vxlan = Vxlan { vni: 0, port: 0, local: None };
    let data = infos.iter().filter_map(|info| match info {
        LinkInfo::Data(InfoData::Vxlan(data)) => Some(data),
        _ => None,
    });
    for item in data.flatten() {
        match item {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(local) if !local.is_unspecified() => vxlan.local = Some((*local).into()),
            InfoVxlan::Local6(local) if !local.is_unspecified() => vxlan.local = Some((*local).into()),
            _ => {}
        }
    }
    vxlan
}

/// Hairpin and isolation of a bridge's port.
fn read_port_flags(infos: &[LinkInfo]) -> (bool, bool) {
    let data = infos.iter().filter_map(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(data)) => Some(data),
        _ => None,
    });
    let mut flags = (false, false);
    for item in data.flatten() {
        match item {
            InfoBridgePort::HairpinMode(on) => flags.0 = *on,
            InfoBridgePort::Isolated(on) => flags.1 = *on,
            _ => {}
        }
    }
    flags
}

fn read_address(message: &AddressMessage, names: &BTreeMap<u32, String>) -> Option<Address> {
    if message.header.scope == AddressScope::Link {
        return None;
    }
    let link = names.get(&message.header.index)?.clone();
    Some(Address { link, address: own_address(message)?, prefix: message.header.prefix_len })
}

/// The interface's own address.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    // `Local` is the interface's own address; `Address` is the peer's on point-to-point links.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let plain = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    local.or(plain)
}

fn read_neighbour(message: &NeighbourMessage, names: &BTreeMap<u32, String>, found: &mut Found) {
    let mut mac = None;
    let mut destination = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            NeighbourAttribute::Destination(address) => destination = read_destination_address(address),
            _ => {}
        }
    }
    let (Some(mac), Some(address), Some(link)) = (mac, destination, names.get(&message.header.ifindex))
    else {
        return;
    };
    let link = link.clone();
    if message.header.family == AddressFamily::Bridge {
        found.forwarding.insert(Forward { link, mac, node: address });
    } else if message.header.state == NeighbourState::Permanent {
        found.neighbours.insert(Neighbour { link, address, mac });
    }
}

fn read_destination_address(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(v4) => Some((*v4).into()),
        NeighbourAddress::Inet6(v6) => Some((*v6).into()),
        NeighbourAddress::Other(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes.as_slice()).ok().map(|bytes| Ipv4Addr::from(bytes).into()),
            16 => <[u8; 16]>::try_from(bytes.as_slice()).ok().map(|bytes| Ipv6Addr::from(bytes).into()),
            _ => None,
        },
        _ => None,
    }
}

fn read_gateway(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<Gateway> {
    let mut address = None;
    let mut link = None;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(v4)) => address = Some(IpAddr::from(*v4)),
            RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => address = Some(IpAddr::from(*v6)),
            RouteAttribute::Oif(index) => link = names.get(index).cloned(),
            _ => {}
        }
    }
    Some(Gateway { address: address?, link: link? })
}

fn read_destination(message: &RouteMessage) -> Option<Subnet> {
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(IpAddr::from(*v4)),
        RouteAttribute::Destination(RouteAddress::Inet6(v6)) => Some(IpAddr::from(*v6)),
        _ => None,
    })?;
    Subnet::new(address, message.header.destination_prefix_length)
}
