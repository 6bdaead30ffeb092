//! What the rules are: the daemon's table, a sandbox's table, a container's tables. Pure.

mod container;
mod sandbox;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use rswarm_base::ipam::Subnet;

use crate::model::Protocol;
use crate::nft::{Chain, Expr, Field, Hook, Map, Point, Table, endpoint, interface, key};

pub use container::{MESH_MARK, MESH_TABLE, dns, mesh_answers, mesh_member};
pub use sandbox::{Balance, MeshRules, SandboxRules, UplinkRules, sandbox};

/// Ports published on one address of the host.
pub const BY_ADDRESS: &str = "by_address";
/// Ports published on all addresses.
pub const ANY: &str = "any";
/// Ports that every node of the cluster publishes, on all addresses.
pub const MESH: &str = "mesh";

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Priorities of `raw`, `mangle`, `dstnat`, `filter` and `srcnat`.
const RAW: i32 = -300;
const MANGLE: i32 = -150;
const DSTNAT: i32 = -100;
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;

/// The administrator's table.
pub const USER: &str = "rswarm-user";
/// Its chain.
pub const USER_CHAIN: &str = "forward";

/// Where a published port is found on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The address; unspecified for all.
    pub address: Ipv4Addr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// Where a translated connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The address.
    pub address: Ipv4Addr,
    /// The port.
    pub port: u16,
}

/// What the host's rules need to know of a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeRules {
    /// The bridge's subnet.
    pub subnet: Subnet,
    /// No way in or out.
    pub internal: bool,
    /// Whether containers on it reach each other.
    pub icc: bool,
    /// Whether what leaves it carries the host's address.
    pub masquerade: bool,
}

/// The number that the kernel has for a protocol.
fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    }
}

/// The daemon's table: isolation of bridges by interface name, masquerading, published ports.
#[must_use]
pub fn host(
    name: &str,
    bridges: &BTreeMap<String, BridgeRules>,
    ports: &BTreeMap<HostPort, Target>,
    mesh: &BTreeMap<(Protocol, u16), Target>,
) -> Table {
    Table {
        name: name.to_owned(),
        maps: host_maps(bridges, ports, mesh),
        chains: vec![
            base("guard", "filter", Point::Prerouting, RAW, vec![guard()]),
            Chain { name: "published".to_owned(), hook: None, rules: published() },
            base("prerouting", "nat", Point::Prerouting, DSTNAT, vec![vec![Expr::Jump("published")]]),
            base("output", "nat", Point::Output, DSTNAT, vec![vec![Expr::Jump("published")]]),
            base("forward", "filter", Point::Forward, FILTER, isolation()),
            base("postrouting", "nat", Point::Postrouting, SRCNAT, masquerading(bridges)),
        ],
    }
}

/// The administrator's table: a chain that all forwarded packets pass before any rule of ours, empty when it
/// is made. What it drops is dropped; what it accepts goes on to our rules.
#[must_use]
pub fn user() -> Table {
    let forward = base(USER_CHAIN, "filter", Point::Forward, FILTER - 1, Vec::new());
    Table { name: USER.to_owned(), maps: Vec::new(), chains: vec![forward] }
}

fn host_maps(
    bridges: &BTreeMap<String, BridgeRules>,
    ports: &BTreeMap<HostPort, Target>,
    mesh: &BTreeMap<(Protocol, u16), Target>,
) -> Vec<Map> {
    let names = |keep: &dyn Fn(&BridgeRules) -> bool, times: usize| {
        let kept = bridges.iter().filter(|(_, rules)| keep(rules));
        kept.map(|(name, _)| (interface(name).repeat(times), Vec::new())).collect::<BTreeMap<_, _>>()
    };
    let set = |name, key: &'static [Field], elements| Map { name, key, value: &[], elements };
    let ports = |name, key: &'static [Field], all: bool| Map {
        name,
        key,
        value: &[Field::Daddr, Field::Dport],
        elements: ports
            .iter()
            .filter(|(port, _)| port.address.is_unspecified() == all)
            .map(|(port, target)| (host_port_key(port), endpoint(target.address, target.port)))
            .collect(),
    };
    vec![
        set("bridges", &[Field::Oifname], names(&|_| true, 1)),
        set("internal", &[Field::Iifname], names(&|rules| rules.internal, 1)),
        set("talking", &[Field::Iifname, Field::Oifname], names(&|rules| rules.icc, 2)),
        ports(BY_ADDRESS, &[Field::Daddr, Field::Protocol, Field::Dport], false),
        ports(ANY, &[Field::Protocol, Field::Dport], true),
        port_map(MESH, mesh),
    ]
}

/// Where a protocol's port leads.
fn port_map(name: &'static str, ports: &BTreeMap<(Protocol, u16), Target>) -> Map {
    let element = |((protocol, port), target): (&(Protocol, u16), &Target)| {
        (port_key(*protocol, *port), endpoint(target.address, target.port))
    };
    Map {
        name,
        key: &[Field::Protocol, Field::Dport],
        value: &[Field::Daddr, Field::Dport],
        elements: ports.iter().map(element).collect(),
    }
}

fn port_key(protocol: Protocol, port: u16) -> Vec<u8> {
    key(&[&[number(protocol)], &port.to_be_bytes()])
}

fn host_port_key(port: &HostPort) -> Vec<u8> {
    if port.address.is_unspecified() {
        return port_key(port.protocol, port.port);
    }
    key(&[&port.address.octets(), &[number(port.protocol)], &port.port.to_be_bytes()])
}

/// The inverse of the port maps' encoding: what a daemon before us published. Foreign bytes give nothing.
#[must_use]
pub fn read_port(element: (&[u8], &[u8])) -> Option<(HostPort, Target)> {
    let (key, value) = element;
    let (address, key) = match key.len() {
        12 => (Ipv4Addr::from(<[u8; 4]>::try_from(&key[..4]).ok()?), &key[4..]),
        8 => (Ipv4Addr::UNSPECIFIED, key),
        _ => return None,
    };
    let protocol = match key[0] {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        _ => return None,
    };
    let port = u16::from_be_bytes([key[4], key[5]]);
    let target = Ipv4Addr::from(<[u8; 4]>::try_from(value.get(..4)?).ok()?);
    let target_port = u16::from_be_bytes(value.get(4..6)?.try_into().ok()?);
    Some((HostPort { address, protocol, port }, Target { address: target, port: target_port }))
}

/// `route_localnet` lets 127.0.0.0/8 through the bridges, for ports published on it; without this, a
/// container could reach what listens only on the host's loopback (CVE-2020-8558).
fn guard() -> Vec<Expr> {
    let loopback = Expr::Interface { field: Field::Iifname, equal: false, name: "lo".into() };
    vec![loopback, within(Field::Daddr, true, Ipv4Addr::new(127, 0, 0, 0), 8), Expr::Drop]
}

fn published() -> Vec<Vec<Expr>> {
    vec![
        vec![
            Expr::DaddrIsLocal,
            Expr::TranslateBy(&[Field::Daddr, Field::Protocol, Field::Dport], BY_ADDRESS),
        ],
        vec![Expr::DaddrIsLocal, Expr::TranslateBy(&[Field::Protocol, Field::Dport], ANY)],
        vec![Expr::DaddrIsLocal, Expr::TranslateBy(&[Field::Protocol, Field::Dport], MESH)],
    ]
}

/// A bridge is entered only by what answers, by its own containers, and through published ports.
fn isolation() -> Vec<Vec<Expr>> {
    vec![
        vec![Expr::Established, Expr::Accept],
        vec![Expr::InSet(&[Field::Iifname, Field::Oifname], "talking"), Expr::Accept],
        vec![Expr::InSet(&[Field::Iifname], "internal"), Expr::Drop],
        vec![Expr::Translated, Expr::Accept],
        vec![Expr::InSet(&[Field::Oifname], "bridges"), Expr::Drop],
    ]
}

fn masquerading(bridges: &BTreeMap<String, BridgeRules>) -> Vec<Vec<Expr>> {
    let mut rules = Vec::new();
    for (name, bridge) in bridges {
        let IpAddr::V4(network) = bridge.subnet.address() else { continue };
        let out = |equal| Expr::Interface { field: Field::Oifname, equal, name: name.clone() };
        let ours = || within(Field::Saddr, true, network, bridge.subnet.prefix());
        if bridge.masquerade && !bridge.internal {
            rules.push(vec![ours(), out(false), Expr::Masquerade]);
        }
        // The host to a port published on its loopback: a container cannot answer 127.0.0.1.
        let loopback = within(Field::Saddr, true, Ipv4Addr::new(127, 0, 0, 0), 8);
        rules.push(vec![out(true), loopback, Expr::Masquerade]);
        // A container to a port published by its neighbour or itself: the answer must come back by the host.
        rules.push(vec![out(true), ours(), Expr::Translated, Expr::Masquerade]);
    }
    rules
}

fn base(name: &'static str, kind: &'static str, point: Point, priority: i32, rules: Vec<Vec<Expr>>) -> Chain {
    Chain { name: name.to_owned(), hook: Some(Hook { kind, point, priority }), rules }
}

fn within(field: Field, inside: bool, network: Ipv4Addr, prefix: u8) -> Expr {
    Expr::Within { field, inside, network, prefix }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_are_read_back_as_they_were_written() {
        let target = Target { address: Ipv4Addr::new(172, 17, 0, 2), port: 80 };
        for address in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::LOCALHOST] {
            let port = HostPort { address, protocol: Protocol::Udp, port: 8080 };
            let table = host("t", &BTreeMap::new(), &BTreeMap::from([(port, target)]), &BTreeMap::new());
            let elements: Vec<_> = table.maps.iter().flat_map(|map| &map.elements).collect();
            assert_eq!(elements.len(), 1);
            assert_eq!(read_port((elements[0].0, elements[0].1)), Some((port, target)));
        }
        assert_eq!(read_port((&[1, 2, 3], &[])), None);
    }

    #[test]
    fn an_internal_bridge_is_not_masqueraded() {
        let subnet: Subnet = "172.18.0.0/16".parse().expect("subnet");
        let rules = |internal| BridgeRules { subnet, internal, icc: true, masquerade: true };
        let leaves = |internal| {
            masquerading(&BTreeMap::from([("br".to_owned(), rules(internal))]))
                .iter()
                .any(|rule| rule.iter().any(|expr| matches!(expr, Expr::Interface { equal: false, .. })))
        };
        assert!(leaves(false));
        assert!(!leaves(true));
    }
}
