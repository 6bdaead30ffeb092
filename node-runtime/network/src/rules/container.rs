//! Tables in a container's own namespace: where its questions go, and how answers find back into the mesh.

use std::net::{IpAddr, Ipv4Addr};

use rswarm_base::ipam::{Family, Subnet};

use super::{DSTNAT, MANGLE, TCP, UDP, base, within};
use crate::nft::{Expr, Field, Map, Point, Table, octets};

/// The table of a container in the mesh.
pub const MESH_TABLE: &str = "rswarm-mesh";
/// Its map of where UDP that came by the mesh is received.
const MESH_ANSWERS: &str = "answers";
/// The mark of connections that came by the mesh, and the routing table of their answers.
pub const MESH_MARK: u32 = 0x7273_776d;

/// A container's DNS table: what it sends to port 53 of `server` reaches the ports where we listen. We do
/// not listen on 53 itself, so that a container may run a name server of its own.
#[must_use]
pub fn dns(name: &str, server: Ipv4Addr, udp_port: u16, tcp_port: u16) -> Table {
    let to = |protocol, port| {
        vec![
            within(Field::Daddr, true, server.into(), 32),
            Expr::Protocol(protocol),
            Expr::Dport(53),
            Expr::TranslateTo(server.into(), port),
        ]
    };
    let rules = vec![to(UDP, udp_port), to(TCP, tcp_port)];
    Table {
        family: Family::V4,
        name: name.to_owned(),
        maps: Vec::new(),
        chains: vec![base("output", "nat", Point::Output, DSTNAT, rules)],
    }
}

/// The table, of the subnet's family, of a container that has an interface in the mesh: what came by it from
/// outside its subnet is answered by it, whatever the container's default route is. Which node it came through
/// only the sandbox knows.
#[must_use]
pub fn mesh_member(interface: &str, subnet: Subnet, answers: Option<IpAddr>) -> Table {
    let by_mesh = || Expr::Interface { field: Field::Iifname, equal: true, name: interface.to_owned() };
    let from_outside = within(Field::Saddr, false, subnet.address(), subnet.prefix());
    let enter = vec![by_mesh(), from_outside, Expr::New, Expr::MarkConnection(MESH_MARK)];
    let route_as_asked = vec![Expr::Direction { reply: false }, Expr::Marked(MESH_MARK), Expr::TakeMark];
    let receive = vec![
        by_mesh(),
        Expr::Protocol(UDP),
        Expr::TranslateAddressBy(&[Field::ConnectionMark], MESH_ANSWERS),
    ];
    let answer = vec![Expr::Direction { reply: true }, Expr::Marked(MESH_MARK), Expr::TakeMark];
    Table {
        family: subnet.family(),
        name: MESH_TABLE.to_owned(),
        maps: vec![mesh_answers(answers)],
        chains: vec![
            base("enter", "filter", Point::Prerouting, MANGLE, vec![enter, route_as_asked]),
            base("receive", "nat", Point::Prerouting, DSTNAT, vec![receive]),
            base("answer", "route", Point::Output, MANGLE, vec![answer]),
        ],
    }
}

/// Where UDP that came by the mesh is received: a server that is bound to no address answers from the one
/// that its default route has, and only so is that the address that was asked.
#[must_use]
pub fn mesh_answers(address: Option<IpAddr>) -> Map {
    let element = |address| (MESH_MARK.to_ne_bytes().to_vec(), octets(address));
    Map {
        name: MESH_ANSWERS,
        key: &[Field::ConnectionMark],
        value: &[Field::Daddr],
        elements: address.map(element).into_iter().collect(),
    }
}
