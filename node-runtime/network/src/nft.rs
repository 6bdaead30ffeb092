//! nf_tables: rules as data, and the batches that bring the kernel to them.
//!
//! A [`Table`] is a value. The change from one to another is one atomic batch: only elements when nothing
//! else differs, the whole table anew otherwise. Nothing here knows what the rules are for.

mod expr;
mod held;
mod wire;

use std::collections::BTreeMap;
use std::net::IpAddr;

use rswarm_base::ipam::Family;

pub use expr::endpoint;
pub use held::{BaseChain, Held, Hooked, Settled, are_held, base_chains, has_chain, settle, undisturbed};
pub use wire::{elements, ensure, refill, remove};

/// A table of the family `ip` or `ip6`. What concerns both families is two tables, made from one description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The addresses that it is about.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its maps and sets.
    pub maps: Vec<Map>,
    /// Its chains; a chain is jumped to only from those after it, or by a map.
    pub chains: Vec<Chain>,
}

/// A map, or a set where there is no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    /// Its name.
    pub name: &'static str,
    /// What its keys are made of.
    pub key: &'static [Field],
    /// What its values are made of; empty for a set.
    pub value: &'static [Field],
    /// Its elements, encoded as the kernel compares them.
    pub elements: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A part of a packet, or of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Source address.
    Saddr,
    /// Destination address.
    Daddr,
    /// TCP or UDP, as their number.
    Protocol,
    /// Destination port.
    Dport,
    /// Name of the interface that it came in by.
    Iifname,
    /// Name of the interface that it goes out by.
    Oifname,
    /// MAC that it came from.
    Mac,
    /// Mark of its connection.
    ConnectionMark,
    /// Its own mark; in keys and values also any other number in the host's byte order.
    Mark,
    /// A conntrack zone; only as a value.
    Zone,
    /// A chain to go on in; only as a value.
    Chain,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where it hooks in; `None` for one that is only jumped to.
    pub hook: Option<Hook>,
    /// Its rules.
    pub rules: Vec<Vec<Expr>>,
}

/// Where a chain hooks in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// `filter`, `nat` or, where a change of the mark changes the way, `route`.
    pub kind: &'static str,
    /// The point in a packet's way.
    pub point: Point,
    /// Its place among others at that point.
    pub priority: i32,
}

/// A point in a packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// Just came in.
    Prerouting,
    /// On its way from one interface to another.
    Forward,
    /// Just made on this host.
    Output,
    /// About to go out.
    Postrouting,
}

/// A condition or an action. A rule's actions happen when all conditions before them hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// The name of an interface is, or is not, this.
    Interface {
        /// Which interface.
        field: Field,
        /// Whether it must be equal.
        equal: bool,
        /// The name.
        name: String,
    },
    /// An address is, or is not, in this subnet.
    Within {
        /// Which address.
        field: Field,
        /// Whether it must be inside.
        inside: bool,
        /// The network address.
        network: IpAddr,
        /// The prefix length.
        prefix: u8,
    },
    /// The protocol is this.
    Protocol(u8),
    /// The destination port is this.
    Dport(u16),
    /// The destination is an address of this host.
    DaddrIsLocal,
    /// The connection's destination was translated.
    Translated,
    /// The packet answers, or belongs to, a connection that was let through.
    Established,
    /// The fields are an element of the set.
    InSet(&'static [Field], &'static str),
    /// Translate the destination to what the map has for the fields; go on when it has nothing.
    TranslateBy(&'static [Field], &'static str),
    /// Translate the destination.
    TranslateTo(IpAddr, u16),
    /// Translate the source to the address of the interface that it goes out by.
    Masquerade,
    /// Let it through.
    Accept,
    /// Throw it away.
    Drop,
    /// Go through another chain, then on.
    Jump(&'static str),
    /// The packet begins a connection.
    New,
    /// The packet goes the way of the one that began the connection, or the other way.
    Direction {
        /// Whether it is the other way.
        reply: bool,
    },
    /// The packet's own mark is this.
    PacketMarked(u32),
    /// The connection's mark is this.
    Marked(u32),
    /// Mark the connection.
    MarkConnection(u32),
    /// Mark the connection with what the map has for the fields; go on when it has nothing.
    MarkConnectionBy(&'static [Field], &'static str),
    /// Connections that begin with the packet are told from those of other zones; the map has the zone for the
    /// fields. Answers are not: conntrack gives each connection a port of its own where it must.
    ZoneBy(&'static [Field], &'static str),
    /// Give the packet its connection's mark.
    TakeMark,
    /// Translate the destination's address, not its port, to what the map has for the fields.
    TranslateAddressBy(&'static [Field], &'static str),
    /// Translate the source's address.
    SourceTo(IpAddr),
    /// Go on in another chain and not come back: the first map has a number for the fields, which becomes
    /// the packet's mark, the second one a chain for the number. Go on here when one has nothing.
    Dispatch {
        /// What is looked up.
        key: &'static [Field],
        /// Numbers, by the fields.
        numbers: &'static str,
        /// Chains, by number.
        chains: &'static str,
    },
    /// Translate the destination to what the map has for the fields and a random number.
    Balance {
        /// What is looked up, before the number.
        key: &'static [Field],
        /// The number is less than this.
        of: u32,
        /// Not random, but by the source address.
        hashed: bool,
        /// Destinations.
        map: &'static str,
        /// Whether they have a port.
        port: bool,
    },
}

/// Length of an interface's name in the kernel.
pub(crate) const INTERFACE_BYTES: usize = 16;

impl Field {
    /// How many bytes it has in a table of the family.
    fn bytes(self, family: Family) -> usize {
        match self {
            Field::Protocol => 1,
            Field::Dport | Field::Zone => 2,
            Field::Saddr | Field::Daddr => usize::from(family.bits() / 8),
            Field::ConnectionMark | Field::Mark => 4,
            Field::Mac => 6,
            Field::Iifname | Field::Oifname => INTERFACE_BYTES,
            Field::Chain => 0,
        }
    }

    /// How many bytes it takes as a part of several: each starts at a multiple of four.
    fn padded(self, family: Family) -> usize {
        self.bytes(family).next_multiple_of(4)
    }
}

/// Key parts, each padded as the kernel pads them.
#[must_use]
pub fn key(parts: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// An address as a key part.
#[must_use]
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// An interface's name as a key part.
#[must_use]
pub fn interface(name: &str) -> [u8; INTERFACE_BYTES] {
    let mut bytes = [0; INTERFACE_BYTES];
    for (slot, byte) in bytes.iter_mut().zip(name.bytes().take(INTERFACE_BYTES - 1)) {
        *slot = byte;
    }
    bytes
}

impl Map {
    /// Whether the other is the same but for its elements.
    fn same_shape(&self, other: &Map) -> bool {
        self.name == other.name && self.key == other.key && self.value == other.value
    }
}

/// What differs between two tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// Only elements, and chains that only elements lead to.
    Extend {
        /// Chains to add.
        chains: Vec<Chain>,
        /// Elements that differ.
        elements: Vec<ElementChange>,
    },
    /// More than that: the table is made anew.
    Replace,
}

/// Elements of one map that differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElementChange {
    /// The map.
    pub map: &'static str,
    /// Elements to delete; a value that changed is deleted and added.
    pub delete: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Elements to add.
    pub add: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What must be done to the kernel, which has `old`, so that it has `new`.
#[must_use]
pub fn change(old: Option<&Table>, new: &Table) -> Change {
    let Some(old) = old else { return Change::Replace };
    let same_maps = old.maps.len() == new.maps.len()
        && old.maps.iter().zip(&new.maps).all(|(old, new)| old.same_shape(new));
    let Some(chains) = added(&old.chains, &new.chains) else { return Change::Replace };
    if (old.family, &old.name) != (new.family, &new.name) || !same_maps {
        return Change::Replace;
    }
    let elements: Vec<ElementChange> = old
        .maps
        .iter()
        .zip(&new.maps)
        .map(|(old, new)| ElementChange {
            map: new.name,
            delete: without(&old.elements, &new.elements),
            add: without(&new.elements, &old.elements),
        })
        .filter(|change| !change.delete.is_empty() || !change.add.is_empty())
        .collect();
    if chains.is_empty() && elements.is_empty() { Change::None } else { Change::Extend { chains, elements } }
}

/// The chains of `new` that `old` lacks; `None` when more differs than chains without a hook.
fn added(old: &[Chain], new: &[Chain]) -> Option<Vec<Chain>> {
    let mut old = old.iter().peekable();
    let mut added = Vec::new();
    for chain in new {
        if old.peek() == Some(&chain) {
            old.next();
        } else if chain.hook.is_none() {
            added.push(chain.clone());
        } else {
            return None;
        }
    }
    // One that differs, or has gone, is still waiting here.
    old.peek().is_none().then_some(added)
}

/// The elements of `all` that `other` does not have with the same value.
fn without(
    all: &BTreeMap<Vec<u8>, Vec<u8>>,
    other: &BTreeMap<Vec<u8>, Vec<u8>>,
) -> BTreeMap<Vec<u8>, Vec<u8>> {
    all.iter()
        .filter(|(key, value)| other.get(*key) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(elements: &[(u8, u8)]) -> Table {
        let map = Map {
            name: "ports",
            key: &[Field::Protocol],
            value: &[Field::Daddr],
            elements: elements.iter().map(|(key, value)| (vec![*key], vec![*value])).collect(),
        };
        Table { family: Family::V4, name: "t".into(), maps: vec![map], chains: Vec::new() }
    }

    #[test]
    fn only_elements_that_differ_are_changed() {
        let (old, new) = (table(&[(1, 1), (2, 2), (3, 3)]), table(&[(1, 1), (2, 9), (4, 4)]));
        assert_eq!(change(Some(&old), &old), Change::None);
        let Change::Extend { chains, elements: changes } = change(Some(&old), &new) else {
            panic!("elements only")
        };
        assert!(chains.is_empty());
        assert_eq!(changes[0].delete.keys().flatten().copied().collect::<Vec<_>>(), [2, 3]);
        assert_eq!(changes[0].add.keys().flatten().copied().collect::<Vec<_>>(), [2, 4]);
    }

    #[test]
    fn other_rules_need_the_whole_table() {
        let hook = Some(Hook { kind: "filter", point: Point::Forward, priority: 0 });
        let chain = |name: &str, hook, rules| Chain { name: name.to_owned(), hook, rules };
        let mut hooked = table(&[]);
        hooked.chains.push(chain("c", hook, vec![vec![Expr::Drop]]));
        assert_eq!(change(Some(&table(&[])), &hooked), Change::Replace);
        assert_eq!(change(None, &hooked), Change::Replace);
        let mut other = table(&[]);
        other.chains.push(chain("c", hook, vec![vec![Expr::Accept]]));
        assert_eq!(change(Some(&hooked), &other), Change::Replace);
        assert_eq!(change(Some(&hooked), &table(&[])), Change::Replace);

        let mut longer = table(&[]);
        longer.chains = vec![chain("n5", None, vec![]), hooked.chains[0].clone()];
        let added = Change::Extend { chains: vec![longer.chains[0].clone()], elements: Vec::new() };
        assert_eq!(change(Some(&hooked), &longer), added);
        assert_eq!(change(Some(&longer), &hooked), Change::Replace);
    }

    #[test]
    fn key_parts_are_padded_to_four_bytes() {
        assert_eq!(key(&[&[6], &[0, 80]]), [6, 0, 0, 0, 0, 80, 0, 0]);
        assert_eq!(&interface("lo")[..3], b"lo\0");
    }
}
