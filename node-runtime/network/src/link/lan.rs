//! Interfaces on one of the host's own links, and links to put them on.

use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rswarm_base::ipam::Family;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{
    InfoData, InfoIpVlan, InfoKind, InfoMacVlan, InfoVlan, IpVlanFlags, IpVlanMode, LinkAttribute, LinkInfo,
    LinkMessage, MacVlanMode,
};
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use super::{Route, named_link};
use crate::model::{IpvlanFlag, IpvlanMode, LanMode, Mac, MacvlanMode};

/// An interface to be made on a link here, in another namespace.
#[derive(Debug, Clone)]
pub struct LanLink {
    /// The link here.
    pub parent: String,
    /// How it is on that.
    pub mode: LanMode,
    /// The interface's name there.
    pub name: String,
    /// Its MAC, where it has one of its own.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: u32,
    /// Its namespace.
    pub netns: RawFd,
}

/// A link that a network makes for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnParent {
    /// A VLAN of another link.
    Vlan {
        /// That link.
        of: String,
        /// The VLAN's identifier.
        id: u16,
    },
    /// One that leads nowhere.
    Dummy,
}

impl Route {
    /// Whether the kernel has interfaces of that mode. A request that lacks the link is refused as invalid by a
    /// driver, and as unknown where there is none; so the kernel also loads its module.
    pub fn has_lan(&mut self, mode: LanMode) -> io::Result<bool> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind(mode))]));
        match self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL) {
            Err(error) => Ok(error.raw_os_error() != Some(libc::EOPNOTSUPP)),
            Ok(()) => Err(io::Error::other("the kernel made an interface without a link")),
        }
    }

    /// A link's MTU and MAC; `None` when there is no such link.
    pub fn parent(&mut self, name: &str) -> io::Result<Option<(u32, Option<Mac>)>> {
        match self.link(named_link(name)) {
            Ok(message) => {
                let found = super::read_link(&message, &std::collections::BTreeMap::new()).link;
                Ok(Some((found.mtu, found.mac)))
            }
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a link for a network of its own, and brings it up.
    pub fn create_parent(&mut self, name: &str, parent: &OwnParent, alias: &str) -> io::Result<()> {
        let mut message = named_link(name);
        match parent {
            OwnParent::Vlan { of, id } => {
                message.attributes.push(LinkAttribute::Link(self.index(of)?));
                message.attributes.push(LinkAttribute::LinkInfo(vec![
                    LinkInfo::Kind(InfoKind::Vlan),
                    LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(*id)])),
                ]));
            }
            OwnParent::Dummy => {
                message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]));
            }
        }
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?;
        // Not taken when the link is made.
        let mut mark = named_link(name);
        mark.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        let marked = self.request(RouteNetlinkMessage::SetLink(mark), 0).and_then(|()| self.set_up(name));
        marked.inspect_err(|_| {
            let _ = self.delete_link(name);
        })
    }

    /// Makes an interface straight in its namespace: it is never seen here.
    pub fn create_lan(&mut self, lan: &LanLink) -> io::Result<()> {
        let mut message = named_link(&lan.name);
        message.attributes.extend([
            LinkAttribute::Link(self.index(&lan.parent)?),
            LinkAttribute::NetNsFd(lan.netns),
            LinkAttribute::Mtu(lan.mtu),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind(lan.mode)), LinkInfo::Data(info(lan.mode))]),
        ]);
        message.attributes.extend(lan.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
        self.request(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// A default route by a link that knows the way itself.
    pub fn set_default_link(&mut self, name: &str, family: Family) -> io::Result<()> {
        let mut message = RouteMessage::default();
        let any: IpAddr = match family {
            Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        message.header.address_family = super::family(any);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Link;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Oif(self.index(name)?)];
        self.request(RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_REPLACE)
    }
}

fn kind(mode: LanMode) -> InfoKind {
    match mode {
        LanMode::Macvlan(_) => InfoKind::MacVlan,
        LanMode::Ipvlan(..) => InfoKind::IpVlan,
    }
}

fn info(mode: LanMode) -> InfoData {
    match mode {
        LanMode::Macvlan(mode) => InfoData::MacVlan(vec![InfoMacVlan::Mode(match mode {
            MacvlanMode::Bridge => MacVlanMode::Bridge,
            MacvlanMode::Private => MacVlanMode::Private,
            MacvlanMode::Vepa => MacVlanMode::Vepa,
            MacvlanMode::Passthru => MacVlanMode::Passthrough,
        })]),
        LanMode::Ipvlan(mode, flag) => InfoData::IpVlan(vec![
            InfoIpVlan::Mode(match mode {
                IpvlanMode::L2 => IpVlanMode::L2,
                IpvlanMode::L3 => IpVlanMode::L3,
                IpvlanMode::L3s => IpVlanMode::L3S,
            }),
            InfoIpVlan::Flags(match flag {
                IpvlanFlag::Bridge => IpVlanFlags::empty(),
                IpvlanFlag::Private => IpVlanFlags::Private,
                IpvlanFlag::Vepa => IpVlanFlags::Vepa,
            }),
        ]),
    }
}
