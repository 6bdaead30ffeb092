//! Routes by mark: rules and tables of ours, told from others' by the protocol number that they carry.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rswarm_base::ipam::Family;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::{Route, absent_is_fine, family, read_gateway};
use crate::plan::MarkedRoute;

/// Who made the rule or route. Not among the numbers that other programs have (`rt_protos`).
const OURS: u8 = 0x72;
/// Before the main table, which may have a route of its own to where the packet goes.
const PRIORITY: u32 = 1000;

impl Route {
    /// The marks that a rule of ours leads to the table of.
    pub(super) fn marks(&mut self) -> io::Result<BTreeSet<(Family, u32)>> {
        // Unspecified: of every family that the kernel has.
        let messages = self.dump(RouteNetlinkMessage::GetRule(RuleMessage::default()))?;
        let read = |message| match message {
            RouteNetlinkMessage::NewRule(rule) => read_rule(&rule),
            _ => None,
        };
        Ok(messages.into_iter().filter_map(read).collect())
    }

    pub(super) fn add_mark(&mut self, family: Family, mark: u32) -> io::Result<()> {
        self.request(RouteNetlinkMessage::NewRule(rule_message(family, mark)), NLM_F_CREATE | NLM_F_EXCL)
    }

    pub(super) fn remove_mark(&mut self, family: Family, mark: u32) -> io::Result<()> {
        absent_is_fine(self.request(RouteNetlinkMessage::DelRule(rule_message(family, mark)), 0))
    }

    pub(super) fn set_marked_route(&mut self, route: &MarkedRoute, link: u32) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewRoute(route_message(route, link));
        self.request(message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    pub(super) fn remove_marked_route(&mut self, route: &MarkedRoute, link: u32) -> io::Result<()> {
        match self.request(RouteNetlinkMessage::DelRoute(route_message(route, link)), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            done => done,
        }
    }
}

fn rule_message(family: Family, mark: u32) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::FwMark(mark),
        RuleAttribute::Table(mark),
        RuleAttribute::Protocol(RouteProtocol::from(OURS)),
    ];
    message
}

fn read_rule(message: &RuleMessage) -> Option<(Family, u32)> {
    let family = match message.header.family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let (mut mark, mut table, mut ours) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::Table(value) => table = Some(*value),
            RuleAttribute::Protocol(protocol) => ours = u8::from(*protocol) == OURS,
            _ => {}
        }
    }
    mark.filter(|_| ours && mark == table).map(|mark| (family, mark))
}

fn route_message(route: &MarkedRoute, link: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(route.gateway);
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.header.protocol = RouteProtocol::from(OURS);
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        RouteAttribute::Table(route.mark),
        RouteAttribute::Gateway(route.gateway.into()),
        RouteAttribute::Oif(link),
    ];
    message
}

/// A default route of ours in a table of its own.
pub(super) fn read_route(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<MarkedRoute> {
    let table = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    })?;
    let gateway = read_gateway(message, names)?;
    (u8::from(message.header.protocol) == OURS).then_some(MarkedRoute {
        mark: table,
        link: gateway.link,
        gateway: gateway.address,
    })
}
