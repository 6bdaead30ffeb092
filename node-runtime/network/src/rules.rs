//! What the rules are: the daemon's tables, a sandbox's, a container's. Pure. A description speaks of both families;
//! each function makes the table of one of them.

mod consent;
mod container;
mod sandbox;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rswarm_base::ipam::{Family, Subnet};

use crate::model::Protocol;
use crate::nft::{Chain, Expr, Field, Hook, Map, Point, Table, endpoint, interface, key, octets};

pub use consent::require_consent;
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
const SCTP: u8 = 132;

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

/// Where a published port is found: on the host, or at a sandbox's way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The address; unspecified for all of its family.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

impl HostPort {
    /// A port of all addresses of a family.
    #[must_use]
    pub fn any(family: Family, protocol: Protocol, port: u16) -> HostPort {
        HostPort { address: family.unspecified(), protocol, port }
    }
}

/// What belongs to the table of one family.
pub trait InFamily {
    /// Which one.
    fn family(&self) -> Family;
}

impl InFamily for IpAddr {
    fn family(&self) -> Family {
        Family::of(*self)
    }
}

impl InFamily for HostPort {
    fn family(&self) -> Family {
        Family::of(self.address)
    }
}

/// Where a translated connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
}

/// What the host's rules need to know of a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeRules {
    /// The subnets of what is on it.
    pub subnets: Vec<Subnet>,
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
        Protocol::Sctp => SCTP,
    }
}

/// The daemon's table of a family: isolation of bridges by interface name, masquerading, published ports.
#[must_use]
pub fn host(
    family: Family,
    name: &str,
    bridges: &BTreeMap<String, BridgeRules>,
    ports: &BTreeMap<HostPort, Target>,
    mesh: &BTreeMap<HostPort, Target>,
) -> Table {
    Table {
        family,
        name: name.to_owned(),
        maps: host_maps(family, bridges, ports, mesh),
        chains: vec![
            base("guard", "filter", Point::Prerouting, RAW, vec![guard(family)]),
            Chain { name: "published".to_owned(), hook: None, rules: published() },
            base("prerouting", "nat", Point::Prerouting, DSTNAT, vec![vec![Expr::Jump("published")]]),
            base("output", "nat", Point::Output, DSTNAT, vec![vec![Expr::Jump("published")]]),
            base("forward", "filter", Point::Forward, FILTER, isolation()),
            base("postrouting", "nat", Point::Postrouting, SRCNAT, masquerading(family, bridges)),
        ],
    }
}

/// The administrator's table: a chain that all forwarded packets pass before any rule of ours, empty when it
/// is made. What it drops is dropped; what it accepts goes on to our rules.
#[must_use]
pub fn user(family: Family) -> Table {
    let forward = base(USER_CHAIN, "filter", Point::Forward, FILTER - 1, Vec::new());
    Table { family, name: USER.to_owned(), maps: Vec::new(), chains: vec![forward] }
}

fn host_maps(
    family: Family,
    bridges: &BTreeMap<String, BridgeRules>,
    ports: &BTreeMap<HostPort, Target>,
    mesh: &BTreeMap<HostPort, Target>,
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
            .filter(|(port, _)| port.family() == family && port.address.is_unspecified() == all)
            .map(|(port, target)| (host_port_key(port), endpoint(target.address, target.port)))
            .collect(),
    };
    vec![
        set("bridges", &[Field::Oifname], names(&|_| true, 1)),
        set("internal", &[Field::Iifname], names(&|rules| rules.internal, 1)),
        set("talking", &[Field::Iifname, Field::Oifname], names(&|rules| rules.icc, 2)),
        ports(BY_ADDRESS, &[Field::Daddr, Field::Protocol, Field::Dport], false),
        ports(ANY, &[Field::Protocol, Field::Dport], true),
        port_map(family, MESH, mesh),
    ]
}

/// Where a protocol's port leads.
fn port_map(family: Family, name: &'static str, ports: &BTreeMap<HostPort, Target>) -> Map {
    let ports = ports.iter().filter(|(port, _)| port.family() == family);
    let element =
        |(port, target): (&HostPort, &Target)| (port_key(port), endpoint(target.address, target.port));
    Map {
        name,
        key: &[Field::Protocol, Field::Dport],
        value: &[Field::Daddr, Field::Dport],
        elements: ports.map(element).collect(),
    }
}

/// Without its address.
fn port_key(port: &HostPort) -> Vec<u8> {
    key(&[&[number(port.protocol)], &port.port.to_be_bytes()])
}

fn host_port_key(port: &HostPort) -> Vec<u8> {
    if port.address.is_unspecified() {
        return port_key(port);
    }
    key(&[&octets(port.address), &[number(port.protocol)], &port.port.to_be_bytes()])
}

/// The inverse of the port maps' encoding: what a daemon before us published. Foreign bytes give nothing.
#[must_use]
pub fn read_port(family: Family, (key, value): (&[u8], &[u8])) -> Option<(HostPort, Target)> {
    const PORT_BYTES: usize = 8;
    let (address, key) = key.split_at_checked(key.len().checked_sub(PORT_BYTES)?)?;
    let address = if address.is_empty() { family.unspecified() } else { read_address(family, address)? };
    let protocol = match key[0] {
        TCP => Protocol::Tcp,
        UDP => Protocol::Udp,
        SCTP => Protocol::Sctp,
        _ => return None,
    };
    let port = u16::from_be_bytes([key[4], key[5]]);
    let (target, target_port) = value.split_at_checked(usize::from(family.bits() / 8))?;
    let target = Target {
        address: read_address(family, target)?,
        port: u16::from_be_bytes(*target_port.first_chunk()?),
    };
    Some((HostPort { address, protocol, port }, target))
}

fn read_address(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        Family::V4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        Family::V6 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

/// The addresses that only the host itself has.
fn loopback(field: Field, family: Family) -> Expr {
    match family {
        Family::V4 => within(field, true, Ipv4Addr::new(127, 0, 0, 0).into(), 8),
        Family::V6 => within(field, true, Ipv6Addr::LOCALHOST.into(), 128),
    }
}

/// `route_localnet` lets 127.0.0.0/8 through the bridges, for ports published on it; without this, a
/// container could reach what listens only on the host's loopback (CVE-2020-8558).
fn guard(family: Family) -> Vec<Expr> {
    let from_outside = Expr::Interface { field: Field::Iifname, equal: false, name: "lo".into() };
    vec![from_outside, loopback(Field::Daddr, family), Expr::Drop]
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

fn masquerading(family: Family, bridges: &BTreeMap<String, BridgeRules>) -> Vec<Vec<Expr>> {
    let mut rules = Vec::new();
    for (name, bridge) in bridges {
        let out = |equal| Expr::Interface { field: Field::Oifname, equal, name: name.clone() };
        for subnet in bridge.subnets.iter().filter(|subnet| subnet.family() == family) {
            let ours = || within(Field::Saddr, true, subnet.address(), subnet.prefix());
            if bridge.masquerade && !bridge.internal {
                rules.push(vec![ours(), out(false), Expr::Masquerade]);
            }
            // A container to a port published by its neighbour or itself: the answer must come back by the host.
            rules.push(vec![out(true), ours(), Expr::Translated, Expr::Masquerade]);
        }
        // The host to a port published on its loopback: a container cannot answer 127.0.0.1.
        rules.push(vec![out(true), loopback(Field::Saddr, family), Expr::Masquerade]);
    }
    rules
}

fn base(name: &'static str, kind: &'static str, point: Point, priority: i32, rules: Vec<Vec<Expr>>) -> Chain {
    Chain { name: name.to_owned(), hook: Some(Hook { kind, point, priority }), rules }
}

fn within(field: Field, inside: bool, network: IpAddr, prefix: u8) -> Expr {
    Expr::Within { field, inside, network, prefix }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    #[test]
    fn published_ports_are_read_back_as_they_were_written() {
        let addresses = [
            ("0.0.0.0", "172.17.0.2"),
            ("127.0.0.1", "172.17.0.2"),
            ("::", "fd00::2"),
            ("2001:db8::1", "fd00::2"),
        ];
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let cases = addresses.iter().flat_map(|pair| protocols.map(|protocol| (*pair, protocol)));
        for ((published, target), protocol) in cases {
            let port = HostPort { address: address(published), protocol, port: 8080 };
            let target = Target { address: address(target), port: 80 };
            let ports = BTreeMap::from([(port, target)]);
            for family in Family::ALL {
                let table = host(family, "t", &BTreeMap::new(), &ports, &BTreeMap::new());
                let elements: Vec<_> = table.maps.iter().flat_map(|map| &map.elements).collect();
                let read: Vec<_> =
                    elements.iter().filter_map(|(key, value)| read_port(family, (key, value))).collect();
                let wanted = if family == port.family() { vec![(port, target)] } else { Vec::new() };
                assert_eq!((read.len(), read), (elements.len(), wanted), "{published} in {family}");
            }
        }
        assert_eq!(read_port(Family::V4, (&[1, 2, 3], &[])), None);
        assert_eq!(read_port(Family::V6, (&[6, 0, 0, 0, 0, 80, 0, 0], &[0; 8])), None);
    }

    #[test]
    fn an_internal_bridge_is_not_masqueraded() {
        let subnets = vec!["172.18.0.0/16".parse().expect("subnet"), "fd00::/64".parse().expect("subnet")];
        let rules =
            |internal| BridgeRules { subnets: subnets.clone(), internal, icc: true, masquerade: true };
        for family in Family::ALL {
            let leaves = |internal| {
                masquerading(family, &BTreeMap::from([("br".to_owned(), rules(internal))]))
                    .iter()
                    .filter(|rule| {
                        rule.iter().any(|expr| matches!(expr, Expr::Interface { equal: false, .. }))
                    })
                    .count()
            };
            assert_eq!((leaves(false), leaves(true)), (1, 0), "{family}");
        }
    }
}
