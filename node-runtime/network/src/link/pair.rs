//! Endpoints: a pair of virtual interfaces, made whole with a handful of messages. Nothing is listed, so the
//! cost does not grow with what the namespace holds.

use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, State,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::time::Instant;

use super::{Route, absent_is_fine, named_link, neighbour_message, new_link};
use crate::model::Mac;
use crate::plan::{Link, Neighbour, Port};

/// The longest wait for a carrier: a worker of the kernel's has had its turn by then, whatever else it has to do.
const CARRIER: Duration = Duration::from_secs(2);
const CARRIER_POLL: Duration = Duration::from_millis(1);

/// One end of a pair of virtual interfaces to be made here, the other one in another namespace.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The end here.
    pub near: Link,
    /// How it is a port of a bridge.
    pub port: Port,
    /// The other end's name.
    pub far_name: String,
    /// The other end's MAC.
    pub far_mac: Mac,
    /// The other end's namespace.
    pub far_netns: RawFd,
    /// The other end's addresses, where the bridge itself must know the way to them.
    pub neighbours: Vec<IpAddr>,
}

impl Route {
    /// Makes the pair, the far end straight in its namespace: neither is ever seen anywhere else. A pair of
    /// that name is replaced; on an error there is none.
    pub fn connect(&mut self, pair: &Pair) -> io::Result<()> {
        // A left-over of this very endpoint: names derive from its identifiers.
        self.delete_link(&pair.near.name)?;
        let bridge = self.index(&pair.port.bridge)?;
        self.create_pair(pair, bridge)?;
        self.set_up_port(pair, bridge).inspect_err(|_| {
            let _ = self.delete_link(&pair.near.name);
        })
    }

    /// Removes a pair, and what the bridge knows of the way to it; what is not there is no error.
    pub fn disconnect(&mut self, near: &str, neighbours: &[Neighbour]) -> io::Result<()> {
        self.delete_link(near)?;
        neighbours.iter().try_for_each(|entry| absent_is_fine(self.forget_neighbour(entry)))
    }

    fn forget_neighbour(&mut self, entry: &Neighbour) -> io::Result<()> {
        let message = neighbour_message(self.index(&entry.link)?, entry);
        self.request(RouteNetlinkMessage::DelNeighbour(message), 0)
    }

    /// Waits until the kernel has noticed that both ends are up. Until then a bridge does not pass what is for the
    /// container on: it loses what it gets, and the first question who has its address is asked again a second
    /// later. To be asked for the link makes the kernel look at once (Linux 6.8), or a worker does.
    pub fn await_carrier(&mut self, near: &str) -> io::Result<()> {
        let deadline = Instant::now() + CARRIER;
        loop {
            let link = self.link(named_link(near))?;
            let is_up = link.attributes.contains(&LinkAttribute::OperState(State::Up));
            if is_up || Instant::now() > deadline {
                if !is_up {
                    tracing::warn!(link = near, "the other end of the pair is not up yet");
                }
                return Ok(());
            }
            std::thread::sleep(CARRIER_POLL);
        }
    }

    /// Gives a link a MAC, which may be the one that it has.
    pub fn set_mac(&mut self, link: &str, mac: Mac) -> io::Result<()> {
        let mut message = named_link(link);
        message.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        self.request(RouteNetlinkMessage::SetLink(message), 0)
    }

    fn create_pair(&mut self, pair: &Pair, bridge: u32) -> io::Result<()> {
        let mut far = LinkMessage::default();
        far.attributes = vec![
            LinkAttribute::IfName(pair.far_name.clone()),
            LinkAttribute::NetNsFd(pair.far_netns),
            LinkAttribute::Address(pair.far_mac.0.to_vec()),
            LinkAttribute::Mtu(pair.near.mtu),
        ];
        let mut near = new_link(&pair.near);
        near.header.flags = LinkFlags::Up;
        near.header.change_mask = LinkFlags::Up;
        near.attributes.push(LinkAttribute::Controller(bridge));
        near.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]));
        self.request(RouteNetlinkMessage::NewLink(near), NLM_F_CREATE | NLM_F_EXCL)
    }

    fn set_up_port(&mut self, pair: &Pair, bridge: u32) -> io::Result<()> {
        let index = self.index(&pair.near.name)?;
        let mut message = LinkMessage::default();
        message.header.index = index;
        // Not taken when the link is made.
        message.attributes = vec![LinkAttribute::IfAlias(pair.near.alias.clone()), port_flags(&pair.port)];
        self.request(RouteNetlinkMessage::NewLink(message), 0)?;
        self.set_station(index, pair.far_mac)?;
        for address in pair.neighbours.iter().copied() {
            let entry = Neighbour { link: pair.port.bridge.clone(), address, mac: pair.far_mac };
            let message = RouteNetlinkMessage::NewNeighbour(neighbour_message(bridge, &entry));
            self.request(message, NLM_F_CREATE | NLM_F_REPLACE)?;
        }
        Ok(())
    }

    /// Says by which of its bridge's ports a MAC is reached, before it has sent anything.
    fn set_station(&mut self, port: u32, mac: Mac) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = port;
        message.header.state = NeighbourState::Noarp;
        message.header.flags = NeighbourFlags::Controller;
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
        self.request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
    }
}

/// How a link is a port.
pub(super) fn port_flags(port: &Port) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![
            InfoBridgePort::HairpinMode(port.hairpin),
            InfoBridgePort::Isolated(port.isolated),
        ])),
    ])
}
