//! A sandbox's tables: the way out, the way in for published ports, virtual addresses, the mesh.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;

use rswarm_base::ipam::{Family, Subnet};

use super::{
    ANY, DSTNAT, FILTER, HostPort, InFamily, MANGLE, RAW, SCTP, SRCNAT, TCP, Target, UDP, base, port_key,
    port_map, within,
};
use crate::model::{Mac, Pick};
use crate::nft::{Chain, Expr, Field, Map, Point, Table, endpoint, octets};

/// What goes on in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRules {
    /// Its bridge.
    pub bridge: String,
    /// The bridge's own addresses, which a container sees that was led to itself.
    pub gateways: Vec<IpAddr>,
    /// Its way out, if it has one.
    pub uplink: Option<UplinkRules>,
    /// Ready backends of each virtual address.
    pub services: Balance<IpAddr, IpAddr>,
    /// Addresses of containers on this node.
    pub local: BTreeSet<IpAddr>,
    /// Its part in the mesh, if it has one.
    pub mesh: Option<MeshRules>,
}

/// The way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UplinkRules {
    /// The interface that leads to the default bridge.
    pub interface: String,
    /// The default bridge's subnets, whose containers an overlay's must not reach, and its own address in each.
    pub neighbours: Vec<(Subnet, IpAddr)>,
    /// Published ports of containers, by their place at the uplink.
    pub ports: BTreeMap<HostPort, Target>,
}

/// A router of the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshRules {
    /// Ready backends of what every node publishes, by its place at the uplink.
    pub ports: Balance<HostPort, Target>,
    /// The mark of connections that come through another node, by that node's MAC.
    pub entries: BTreeMap<Mac, u32>,
}

/// Places, each with the backends that its connections are spread over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balance<K, V> {
    places: BTreeMap<K, (Draw, Vec<V>)>,
    /// Every draw that a place ever had: each has a chain, and chains stay.
    draws: BTreeSet<Draw>,
    /// How many backends a place had that has fewer since the last update. A packet may look up that number
    /// just before a change is committed, and the backend that it drew just after: it must find one.
    tails: BTreeMap<K, usize>,
}

/// A number below another, drawn by chance or by the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Draw {
    of: u32,
    hashed: bool,
}

/// Slots of a place whose clients stay: as many as are well spread over some tens of backends.
const STICKY_SLOTS: u32 = 128;

impl Draw {
    /// What stands for it in maps.
    fn number(self) -> u32 {
        self.of | u32::from(self.hashed) << 31
    }
}

/// The backend of each slot: whose hash with the slot's number is the greatest. One that comes or goes changes no
/// slot but its own.
fn slots<V: Copy + Ord + Hash>(backends: &BTreeSet<V>) -> Vec<V> {
    let best = |slot: u32| backends.iter().copied().max_by_key(|backend| (weight(slot, backend), *backend));
    (0..STICKY_SLOTS).map_while(best).collect()
}

/// The same on every node: FNV-1a, and splitmix64's finaliser so that neighbours differ in all bits.
fn weight<V: Hash>(slot: u32, backend: &V) -> u64 {
    struct Fnv(u64);
    impl Hasher for Fnv {
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
        fn finish(&self) -> u64 {
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }
    }
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    (slot, backend).hash(&mut hasher);
    hasher.finish()
}

impl<K, V> Default for Balance<K, V> {
    fn default() -> Balance<K, V> {
        Balance { places: BTreeMap::new(), draws: BTreeSet::new(), tails: BTreeMap::new() }
    }
}

impl<K: Copy + Ord + InFamily, V: Copy + Ord + Hash> Balance<K, V> {
    /// Goes over to other backends. Those that stay keep their place as far as there are no holes, so that
    /// a change of one is a change of few elements. Says whether a place has some that had none.
    pub fn update(&mut self, wanted: BTreeMap<K, (Pick, BTreeSet<V>)>) -> bool {
        let mut woken = false;
        let before = std::mem::take(&mut self.places);
        self.tails.clear();
        for (place, (pick, backends)) in wanted {
            let had = before.get(&place).map_or(&[][..], |(_, backends)| backends);
            let slots = match pick {
                Pick::Random => kept(had, backends),
                // In one order on every node.
                Pick::SourceHash => backends.into_iter().collect(),
                Pick::Sticky => slots(&backends),
            };
            if !slots.is_empty() {
                woken |= had.is_empty();
                if had.len() > slots.len() {
                    self.tails.insert(place, had.len());
                }
                let draw = Draw { of: slots.len() as u32, hashed: pick != Pick::Random };
                self.draws.insert(draw);
                self.places.insert(place, (draw, slots));
            }
        }
        woken
    }

    /// The places of a family.
    fn of_family(&self, family: Family) -> impl Iterator<Item = (&K, &(Draw, Vec<V>))> {
        self.places.iter().filter(move |(place, _)| place.family() == family)
    }

    /// The map from a place to its number of backends.
    fn numbers(
        &self,
        family: Family,
        name: &'static str,
        key: &'static [Field],
        encode: fn(K) -> Vec<u8>,
    ) -> Map {
        let element = |(place, (draw, _)): (&K, &(Draw, Vec<V>))| {
            (encode(*place), draw.number().to_ne_bytes().to_vec())
        };
        Map { name, key, value: &[Field::Mark], elements: self.of_family(family).map(element).collect() }
    }

    /// The map from that number to the chain that draws one of so many.
    fn draws(&self, name: &'static str, chain: fn(Draw) -> String) -> Map {
        let element = |draw: &Draw| (draw.number().to_ne_bytes().to_vec(), chain(*draw).into_bytes());
        let elements = self.draws.iter().map(element).collect();
        Map { name, key: &[Field::Mark], value: &[Field::Chain], elements }
    }

    /// The map from a place and a drawn number to a backend.
    fn backends(
        &self,
        family: Family,
        name: &'static str,
        (key, value): (&'static [Field], &'static [Field]),
        encode: fn(K) -> Vec<u8>,
        encode_value: fn(V) -> Vec<u8>,
    ) -> Map {
        let numbered = |(place, (_, backends)): (&K, &(Draw, Vec<V>))| {
            let tail = self.tails.get(place).map_or(0, |had| had.saturating_sub(backends.len()));
            let tail = backends.first().into_iter().flat_map(|first| std::iter::repeat_n(first, tail));
            let place = encode(*place);
            let element = |(number, backend): (u32, &V)| {
                ([place.as_slice(), &number.to_ne_bytes()].concat(), encode_value(*backend))
            };
            (0..).zip(backends.iter().chain(tail)).map(element).collect::<Vec<_>>()
        };
        Map { name, key, value, elements: self.of_family(family).flat_map(numbered).collect() }
    }
}

/// Those that stay keep their place, as far as there are no holes.
fn kept<V: Copy + Ord>(had: &[V], mut backends: BTreeSet<V>) -> Vec<V> {
    let mut slots: Vec<Option<V>> = had.iter().map(|backend| backends.take(backend)).collect();
    let mut new = backends.into_iter();
    for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
        *slot = new.next();
    }
    slots.extend(new.map(Some));
    without_holes(slots)
}

/// Fills holes from the end.
fn without_holes<V>(mut slots: Vec<Option<V>>) -> Vec<V> {
    let mut filled = 0;
    while filled < slots.len() {
        if slots[filled].is_none() {
            slots.swap_remove(filled);
        } else {
            filled += 1;
        }
    }
    slots.into_iter().flatten().collect()
}

const SERVICES: &str = "services";
const SERVICE_DRAWS: &str = "service_draws";
const BACKENDS: &str = "backends";
const MESH_PORTS: &str = "mesh_ports";
const MESH_DRAWS: &str = "mesh_draws";
const MESH_BACKENDS: &str = "mesh_backends";
const ENTRIES: &str = "entries";
const ZONES: &str = "zones";
const SELVES: &str = "selves";

/// The table of that name and family in a sandbox.
#[must_use]
pub fn sandbox(family: Family, name: &str, rules: &SandboxRules) -> Table {
    let mut chains = draw_chains(rules);
    chains.push(base("prerouting", "nat", Point::Prerouting, DSTNAT, incoming(rules)));
    if rules.mesh.is_some() {
        chains.push(base("zones", "filter", Point::Prerouting, RAW, vec![vec![zone()]]));
        chains.push(base("mesh", "filter", Point::Prerouting, MANGLE, mesh()));
    }
    if let Some(uplink) = &rules.uplink {
        chains.push(base("forward", "filter", Point::Forward, FILTER, isolation(family, uplink)));
    }
    chains.push(base("postrouting", "nat", Point::Postrouting, SRCNAT, outgoing(family, rules)));
    Table { family, name: name.to_owned(), maps: maps(family, rules), chains }
}

fn maps(family: Family, rules: &SandboxRules) -> Vec<Map> {
    let services = &rules.services;
    let itself = |address: &IpAddr| (octets(*address).repeat(2), Vec::new());
    let local = rules.local.iter().filter(|address| address.family() == family);
    let mut maps = vec![
        services.draws(SERVICE_DRAWS, service_chain),
        services.numbers(family, SERVICES, &[Field::Daddr], octets),
        services.backends(family, BACKENDS, (&[Field::Daddr, Field::Mark], &[Field::Daddr]), octets, octets),
        Map {
            name: SELVES,
            key: &[Field::Saddr, Field::Daddr],
            value: &[],
            elements: local.map(itself).collect(),
        },
    ];
    if let Some(uplink) = &rules.uplink {
        maps.push(port_map(family, ANY, &uplink.ports));
    }
    if let Some(mesh) = &rules.mesh {
        let place: fn(HostPort) -> Vec<u8> = |port| port_key(&port);
        let entry = |(mac, mark): (&Mac, &u32)| (mac.0.to_vec(), mark.to_ne_bytes().to_vec());
        maps.extend([
            mesh.ports.draws(MESH_DRAWS, mesh_chain),
            mesh.ports.numbers(family, MESH_PORTS, &[Field::Protocol, Field::Dport], place),
            mesh.ports.backends(
                family,
                MESH_BACKENDS,
                (&[Field::Protocol, Field::Dport, Field::Mark], &[Field::Daddr, Field::Dport]),
                place,
                |target| endpoint(target.address, target.port),
            ),
            Map {
                name: ENTRIES,
                key: &[Field::Mac],
                value: &[Field::Mark],
                elements: mesh.entries.iter().map(entry).collect(),
            },
            Map {
                name: ZONES,
                key: &[Field::Mac],
                value: &[Field::Zone],
                elements: mesh.entries.iter().map(zone_of).collect(),
            },
        ]);
    }
    maps
}

fn service_chain(draw: Draw) -> String {
    format!("{}one_of_{}", if draw.hashed { "hashed_" } else { "" }, draw.of)
}

fn mesh_chain(draw: Draw) -> String {
    format!("mesh_{}", service_chain(draw))
}

/// For every number of backends a chain that draws one of so many: there are few such numbers, however
/// many services there are.
fn draw_chains(rules: &SandboxRules) -> Vec<Chain> {
    let chain = |name, draw| Chain { name, hook: None, rules: vec![vec![draw]] };
    let service = |draw: &Draw| {
        let Draw { of, hashed } = *draw;
        let expr = Expr::Balance { key: &[Field::Daddr], of, hashed, map: BACKENDS, port: false };
        chain(service_chain(*draw), expr)
    };
    let port = |draw: &Draw| {
        let (key, Draw { of, hashed }) = (&[Field::Protocol, Field::Dport], *draw);
        chain(mesh_chain(*draw), Expr::Balance { key, of, hashed, map: MESH_BACKENDS, port: true })
    };
    let mesh = rules.mesh.iter().flat_map(|mesh| mesh.ports.draws.iter().map(port));
    rules.services.draws.iter().map(service).chain(mesh).collect()
}

fn incoming(rules: &SandboxRules) -> Vec<Vec<Expr>> {
    let by = |name: &str| Expr::Interface { field: Field::Iifname, equal: true, name: name.to_owned() };
    const PORT: &[Field] = &[Field::Protocol, Field::Dport];
    let mut list = Vec::new();
    if let Some(uplink) = &rules.uplink {
        list.push(vec![by(&uplink.interface), Expr::TranslateBy(PORT, ANY)]);
        if rules.mesh.is_some() {
            let dispatch = Expr::Dispatch { key: PORT, numbers: MESH_PORTS, chains: MESH_DRAWS };
            list.push(vec![by(&uplink.interface), dispatch]);
        }
    }
    // A virtual address without backends is not in the map: it is the bridge's own, where nobody listens.
    for protocol in [TCP, UDP, SCTP] {
        let numbers = SERVICES;
        let dispatch = Expr::Dispatch { key: &[Field::Daddr], numbers, chains: SERVICE_DRAWS };
        list.push(vec![by(&rules.bridge), Expr::Protocol(protocol), dispatch]);
    }
    list
}

/// A client may use one port for connections by several nodes at once: it tells them by the node's address. Here
/// only the node's MAC tells them apart, so each node's have a zone of their own; where two would be the same to
/// the task, conntrack gives one of them another port of the client's.
fn zone() -> Expr {
    Expr::ZoneBy(&[Field::Mac], ZONES)
}

/// A node's zone, for as long as it has its address in the mesh: its connections must stay in theirs.
fn zone_of((mac, mark): (&Mac, &u32)) -> (Vec<u8>, Vec<u8>) {
    (mac.0.to_vec(), (*mark as u16).max(1).to_ne_bytes().to_vec())
}

/// A connection from another node is remembered by that node's mark; its answers go back there by it.
fn mesh() -> Vec<Vec<Expr>> {
    vec![
        vec![Expr::New, Expr::MarkConnectionBy(&[Field::Mac], ENTRIES)],
        vec![Expr::Direction { reply: true }, Expr::TakeMark],
    ]
}

fn isolation(family: Family, uplink: &UplinkRules) -> Vec<Vec<Expr>> {
    let by = |field| Expr::Interface { field, equal: true, name: uplink.interface.clone() };
    let mut forward = vec![
        vec![Expr::Established, Expr::Accept],
        vec![by(Field::Iifname), Expr::Translated, Expr::Accept],
        vec![by(Field::Iifname), Expr::Drop],
    ];
    for (subnet, gateway) in uplink.neighbours.iter().filter(|(subnet, _)| subnet.family() == family) {
        let neighbours = within(Field::Daddr, true, subnet.address(), subnet.prefix());
        let not_host = within(Field::Daddr, false, *gateway, family.bits());
        forward.push(vec![by(Field::Oifname), neighbours, not_host, Expr::Drop]);
    }
    forward
}

fn outgoing(family: Family, rules: &SandboxRules) -> Vec<Vec<Expr>> {
    let mut list = Vec::new();
    // A container that was led to itself would take its own address for a forgery.
    if let Some(gateway) = rules.gateways.iter().find(|gateway| gateway.family() == family) {
        let itself = Expr::InSet(&[Field::Saddr, Field::Daddr], SELVES);
        list.push(vec![itself, Expr::Translated, Expr::SourceTo(*gateway)]);
    }
    if let Some(uplink) = &rules.uplink {
        let out = Expr::Interface { field: Field::Oifname, equal: true, name: uplink.interface.clone() };
        list.push(vec![out, Expr::Masquerade]);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::{Change, change};

    const PLACE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn balance(balance: &mut Balance<IpAddr, u8>, backends: &[u8]) -> Vec<u8> {
        balance.update(BTreeMap::from([(PLACE, (Pick::Random, backends.iter().copied().collect()))]));
        balance.places.get(&PLACE).map(|(_, backends)| backends.clone()).unwrap_or_default()
    }

    #[test]
    fn backends_that_stay_keep_their_place() {
        let mut one = Balance::default();
        assert_eq!(balance(&mut one, &[5, 3, 9]), [3, 5, 9]);
        assert_eq!(balance(&mut one, &[3, 9, 1]), [3, 1, 9], "a new one takes the place of one that left");
        assert_eq!(balance(&mut one, &[1, 9]), [9, 1], "the last one fills a hole");
        assert_eq!(balance(&mut one, &[1, 9, 4]), [9, 1, 4]);
        assert_eq!(balance(&mut one, &[]), Vec::<u8>::new());
        let drawn: Vec<u32> = one.draws.iter().map(|draw| draw.of).collect();
        assert_eq!(drawn, [2, 3]);
    }

    #[test]
    fn clients_that_stick_move_only_with_their_backend() {
        let five: BTreeSet<u8> = (1..=5).collect();
        let before = slots(&five);
        assert_eq!(before.len(), STICKY_SLOTS as usize);
        for backend in &five {
            let share = before.iter().filter(|slot| *slot == backend).count();
            assert!((10..=45).contains(&share), "backend {backend} has {share} of {STICKY_SLOTS} slots");
        }
        let after = slots(&five.iter().copied().filter(|backend| *backend != 3).collect());
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
        assert!(moved.clone().all(|(before, _)| *before == 3) && moved.count() > 0);
        assert_eq!(slots(&BTreeSet::<u8>::new()), Vec::<u8>::new());
        // A place that goes over from chance to stickiness has both chains.
        let mut one = Balance::default();
        balance(&mut one, &[1, 2]);
        one.update(BTreeMap::from([(PLACE, (Pick::Sticky, five))]));
        assert_eq!(one.draws.len(), 2);
        assert_eq!(balance(&mut one, &[1, 2]).len(), 2);
    }

    #[test]
    fn a_number_that_was_just_drawn_still_leads_somewhere() {
        let mut one = Balance::default();
        let numbers = |one: &Balance<IpAddr, u8>| -> Vec<(u8, u8)> {
            let map = one.backends(Family::V4, "b", (&[], &[]), |_| vec![0], |backend| vec![backend]);
            map.elements.iter().map(|(key, value)| (key[1], value[0])).collect()
        };
        balance(&mut one, &[1, 2, 3, 4]);
        assert_eq!(numbers(&one), [(0, 1), (1, 2), (2, 3), (3, 4)]);
        balance(&mut one, &[2, 3]);
        assert_eq!(
            numbers(&one),
            [(0, 3), (1, 2), (2, 3), (3, 3)],
            "two of the four that might be drawn left"
        );
        balance(&mut one, &[2, 3]);
        assert_eq!(numbers(&one), [(0, 3), (1, 2)], "by now nobody remembers four");
        balance(&mut one, &[]);
        assert_eq!(numbers(&one), []);
    }

    fn rules(services: &Balance<IpAddr, IpAddr>) -> SandboxRules {
        SandboxRules {
            bridge: "br0".into(),
            gateways: vec![IpAddr::from([10, 0, 1, 1])],
            uplink: None,
            services: services.clone(),
            local: BTreeSet::new(),
            mesh: None,
        }
    }

    /// A thousand services of five backends, and one more backend for the first.
    #[test]
    fn one_backend_more_is_four_elements() {
        let backends = |service: u8, count: u8| (1..=count).map(move |n| IpAddr::from([10, 1, service, n]));
        let vip = |service: u8| IpAddr::from([10, 0, 1, service]);
        let mut services = Balance::default();
        services.update((2..=200).map(|n| (vip(n), (Pick::Random, backends(n, 5).collect()))).collect());
        let before = sandbox(Family::V4, "t", &rules(&services));
        assert_eq!(before.chains.iter().filter(|chain| chain.hook.is_none()).count(), 1);
        let count = |n| if n == 2 { 6 } else { 5 };
        services
            .update((2..=200).map(|n| (vip(n), (Pick::Random, backends(n, count(n)).collect()))).collect());
        let after = sandbox(Family::V4, "t", &rules(&services));
        let Change::Extend { chains, elements } = change(Some(&before), &after) else { panic!("extended") };
        assert_eq!(chains.len(), 1, "the first service with six backends");
        let count = |change: &crate::nft::ElementChange| change.delete.len() + change.add.len();
        assert_eq!(elements.iter().map(count).sum::<usize>(), 4);
        services.update((2..=200).map(|n| (vip(n), (Pick::Random, backends(n, 5).collect()))).collect());
        let Change::Extend { chains, .. } =
            change(Some(&after), &sandbox(Family::V4, "t", &rules(&services)))
        else {
            panic!("the chain of six stays")
        };
        assert!(chains.is_empty());
    }

    #[test]
    fn each_family_has_its_own_places_in_a_table_of_the_same_shape() {
        let address = |text: &str| text.parse::<IpAddr>().expect("address");
        let mut services = Balance::default();
        services.update(BTreeMap::from([
            (address("10.0.1.9"), (Pick::Random, BTreeSet::from([address("10.0.1.2"), address("10.0.1.3")]))),
            (address("fd00::9"), (Pick::Random, BTreeSet::from([address("fd00::2")]))),
        ]));
        let elements = |family| {
            let table = sandbox(family, "t", &rules(&services));
            let backends = table.maps.iter().find(|map| map.name == BACKENDS).expect("a map");
            let chains: Vec<String> = table.chains.into_iter().map(|chain| chain.name).collect();
            (backends.elements.len(), chains)
        };
        let ((v4, v4_chains), (v6, v6_chains)) = (elements(Family::V4), elements(Family::V6));
        assert_eq!((v4, v6), (2, 1));
        assert_eq!(v4_chains, v6_chains);
    }
}
