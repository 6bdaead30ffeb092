//! What one network namespace should hold, and the steps from what it holds to that. Pure: the kernel's
//! state comes in as [`Found`], what to do goes out as [`Step`]s.
//!
//! Only what is named in the plan is touched: links of other programs, and their addresses, are not ours.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use rswarm_base::ipam::Family;

use crate::model::Mac;

/// What should exist in one network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Links, in the order of making.
    pub links: Vec<Link>,
    /// Addresses of those links; others on them are removed.
    pub addresses: BTreeSet<Address>,
    /// Permanent neighbours of those links; others are removed.
    pub neighbours: BTreeSet<Neighbour>,
    /// Where a VXLAN link sends what is for a MAC; other destinations are removed.
    pub forwarding: BTreeSet<Forward>,
    /// The default routes, at most one of each family.
    pub default_routes: Vec<Gateway>,
    /// Where packets with a mark go; other such routes of ours by those links are removed.
    pub marked_routes: BTreeSet<MarkedRoute>,
}

/// A link that should exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// Its MTU.
    pub mtu: u32,
    /// Its MAC, where it matters.
    pub mac: Option<Mac>,
    /// The bridge that it is a port of, and how.
    pub port: Option<Port>,
    /// A text that says whose it is.
    pub alias: String,
}

/// What a link is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge.
    Bridge,
    /// A VXLAN device.
    Vxlan(Vxlan),
    /// One end of a pair, made together with the other one; never created or deleted by a plan.
    Veth,
    /// Any other kind, which only listings name.
    Other,
}

/// What cannot be changed on a VXLAN device without making it anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vxlan {
    /// The network identifier.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
    /// The source address, where this host has it.
    pub local: Option<IpAddr>,
}

/// How a link is a bridge's port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The bridge.
    pub bridge: String,
    /// Whether a frame may leave where it came in (a container reaching itself through the host).
    pub hairpin: bool,
    /// Whether it is kept from other isolated ports.
    pub isolated: bool,
}

/// An address on a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The link.
    pub link: String,
    /// The address.
    pub address: IpAddr,
    /// Its prefix length.
    pub prefix: u8,
}

/// A permanent neighbour entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// The link.
    pub link: String,
    /// The address.
    pub address: IpAddr,
    /// Where it is.
    pub mac: Mac,
}

/// A forwarding entry of a VXLAN link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Forward {
    /// The link.
    pub link: String,
    /// The MAC.
    pub mac: Mac,
    /// The node that it is on.
    pub node: IpAddr,
}

/// A default route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// The next hop.
    pub address: IpAddr,
    /// The link.
    pub link: String,
}

/// The way of all packets that carry a mark: a rule, and a default route in the table of the mark's number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MarkedRoute {
    /// The mark, and the number of the table.
    pub mark: u32,
    /// The link.
    pub link: String,
    /// The next hop.
    pub gateway: IpAddr,
}

impl MarkedRoute {
    /// What its rule goes by.
    fn mark(&self) -> (Family, u32) {
        (Family::of(self.gateway), self.mark)
    }
}

/// What a namespace holds now.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// All links.
    pub links: Vec<FoundLink>,
    /// All addresses, link-local ones left out.
    pub addresses: BTreeSet<Address>,
    /// All permanent neighbours.
    pub neighbours: BTreeSet<Neighbour>,
    /// All VXLAN destinations.
    pub forwarding: BTreeSet<Forward>,
    /// The default routes.
    pub default_routes: Vec<Gateway>,
    /// The marks that a rule of ours leads to the table of.
    pub marks: BTreeSet<(Family, u32)>,
    /// Default routes of ours in tables other than the main one.
    pub marked_routes: BTreeSet<MarkedRoute>,
}

/// A link as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundLink {
    /// Its number.
    pub index: u32,
    /// Whether it is up.
    pub up: bool,
    /// The rest.
    pub link: Link,
}

/// One change. Links are named, the kernel's numbers are looked up when the step is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Delete a link.
    DeleteLink(String),
    /// Make a link.
    CreateLink(Link),
    /// Set MTU, MAC, alias of a link.
    SetLink(Link),
    /// Make a link a port of a bridge.
    SetPort(String, Port),
    /// Bring a link up.
    SetUp(String),
    /// Remove an address.
    RemoveAddress(Address),
    /// Add an address.
    AddAddress(Address),
    /// Remove a neighbour.
    RemoveNeighbour(Neighbour),
    /// Add or replace a neighbour.
    SetNeighbour(Neighbour),
    /// Remove a VXLAN destination.
    RemoveForward(Forward),
    /// Add a VXLAN destination.
    AddForward(Forward),
    /// Set the default route.
    SetDefaultRoute(Gateway),
    /// Remove a family's rule for a mark.
    RemoveMark(Family, u32),
    /// Remove a default route of a mark's table.
    RemoveMarkedRoute(MarkedRoute),
    /// Set the default route of a mark's table.
    SetMarkedRoute(MarkedRoute),
    /// Lead a mark to its table in a family.
    AddMark(Family, u32),
}

impl Step {
    /// Whether it makes or deletes a link, after which the rest must be compared anew.
    #[must_use]
    pub fn is_structural(&self) -> bool {
        matches!(self, Step::DeleteLink(_) | Step::CreateLink(_))
    }
}

/// The steps from `found` to `wanted`, in the order to take them: none when all is as it should be.
#[must_use]
pub fn steps(wanted: &Plan, found: &Found) -> Vec<Step> {
    let mut steps = Vec::new();
    let there: HashMap<&str, &FoundLink> =
        found.links.iter().map(|link| (link.link.name.as_str(), link)).collect();
    for link in &wanted.links {
        steps.extend(link_steps(link, there.get(link.name.as_str()).copied()));
    }
    let wanted_links: HashSet<&str> = wanted.links.iter().map(|link| link.name.as_str()).collect();
    let ours = |name: &str| wanted_links.contains(name);
    let leftover = found.addresses.difference(&wanted.addresses).filter(|address| ours(&address.link));
    steps.extend(leftover.cloned().map(Step::RemoveAddress));
    steps.extend(wanted.addresses.difference(&found.addresses).cloned().map(Step::AddAddress));
    // A neighbour with another MAC is replaced in place: the address must not go missing in between.
    let moved: BTreeSet<_> = wanted.neighbours.iter().map(|entry| (&entry.link, entry.address)).collect();
    let leftover = found.neighbours.difference(&wanted.neighbours);
    let leftover =
        leftover.filter(|entry| ours(&entry.link) && !moved.contains(&(&entry.link, entry.address)));
    steps.extend(leftover.cloned().map(Step::RemoveNeighbour));
    // A destination that moved is removed first: a MAC can have several, and frames would go to both.
    let leftover = found.forwarding.difference(&wanted.forwarding).filter(|entry| ours(&entry.link));
    steps.extend(leftover.cloned().map(Step::RemoveForward));
    steps.extend(wanted.forwarding.difference(&found.forwarding).cloned().map(Step::AddForward));
    steps.extend(wanted.neighbours.difference(&found.neighbours).cloned().map(Step::SetNeighbour));
    let missing = wanted.default_routes.iter().filter(|gateway| !found.default_routes.contains(gateway));
    steps.extend(missing.cloned().map(Step::SetDefaultRoute));
    steps.extend(marked_steps(wanted, found));
    steps
}

fn marked_steps(wanted: &Plan, found: &Found) -> Vec<Step> {
    let marks: BTreeSet<_> = wanted.marked_routes.iter().map(MarkedRoute::mark).collect();
    let mut steps = Vec::new();
    // A route whose gateway changed is replaced in place.
    let leftover = found.marked_routes.iter().filter(|route| {
        wanted.links.iter().any(|link| link.name == route.link) && !marks.contains(&route.mark())
    });
    for route in leftover {
        let (family, mark) = route.mark();
        steps.extend(found.marks.contains(&(family, mark)).then_some(Step::RemoveMark(family, mark)));
        steps.push(Step::RemoveMarkedRoute(route.clone()));
    }
    let missing = wanted.marked_routes.difference(&found.marked_routes);
    steps.extend(missing.cloned().map(Step::SetMarkedRoute));
    steps.extend(marks.difference(&found.marks).map(|(family, mark)| Step::AddMark(*family, *mark)));
    steps
}

fn link_steps(wanted: &Link, found: Option<&FoundLink>) -> Vec<Step> {
    let Some(found) = found else {
        return match wanted.kind {
            LinkKind::Bridge | LinkKind::Vxlan(_) => vec![Step::CreateLink(wanted.clone())],
            LinkKind::Veth | LinkKind::Other => Vec::new(),
        };
    };
    if found.link.kind != wanted.kind {
        return vec![Step::DeleteLink(wanted.name.clone()), Step::CreateLink(wanted.clone())];
    }
    let mut steps = Vec::new();
    let same_mac = wanted.mac.is_none() || wanted.mac == found.link.mac;
    if found.link.mtu != wanted.mtu || !same_mac || found.link.alias != wanted.alias {
        steps.push(Step::SetLink(wanted.clone()));
    }
    if let Some(port) = &wanted.port
        && found.link.port.as_ref() != Some(port)
    {
        steps.push(Step::SetPort(wanted.name.clone(), port.clone()));
    }
    if !found.up {
        steps.push(Step::SetUp(wanted.name.clone()));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 1, last])
    }

    fn link(name: &str, kind: LinkKind, port: bool) -> Link {
        let port = port.then(|| Port { bridge: "br0".into(), hairpin: true, isolated: false });
        Link { name: name.into(), kind, mtu: 1450, mac: None, port, alias: "ours".into() }
    }

    fn vxlan(vni: u32) -> LinkKind {
        LinkKind::Vxlan(Vxlan { vni, port: 4789, local: None })
    }

    fn neighbour(last: u8, mac: u8) -> Neighbour {
        Neighbour { link: "vxlan0".into(), address: ip(last), mac: Mac([2, 0, 0, 0, 0, mac]) }
    }

    fn forward(mac: u8, node: u8) -> Forward {
        Forward {
            link: "vxlan0".into(),
            mac: Mac([2, 0, 0, 0, 0, mac]),
            node: IpAddr::from([192, 0, 2, node]),
        }
    }

    fn sandbox() -> Plan {
        Plan {
            links: vec![link("br0", LinkKind::Bridge, false), link("vxlan0", vxlan(7), true)],
            addresses: BTreeSet::from([Address { link: "br0".into(), address: ip(1), prefix: 24 }]),
            neighbours: BTreeSet::from([neighbour(12, 12)]),
            forwarding: BTreeSet::from([forward(12, 2)]),
            marked_routes: BTreeSet::from([marked(2)]),
            default_routes: Vec::new(),
        }
    }

    fn marked(node: u8) -> MarkedRoute {
        MarkedRoute { mark: u32::from(node), link: "br0".into(), gateway: ip(200 + node) }
    }

    /// What the kernel would hold after the steps.
    fn take(steps: &[Step], found: &mut Found) {
        for step in steps {
            let named = |found: &mut Found, name: &str| {
                found.links.iter().position(|link| link.link.name == *name).expect("the link exists")
            };
            match step.clone() {
                Step::DeleteLink(name) => {
                    found.links.retain(|link| link.link.name != name);
                    found.addresses.retain(|entry| entry.link != name);
                    found.neighbours.retain(|entry| entry.link != name);
                    found.forwarding.retain(|entry| entry.link != name);
                    found.marked_routes.retain(|entry| entry.link != name);
                }
                Step::CreateLink(link) => {
                    let link = Link { port: None, ..link };
                    found.links.push(FoundLink { index: 0, up: false, link });
                }
                Step::SetLink(wanted) => {
                    let at = named(found, &wanted.name);
                    let port = found.links[at].link.port.take();
                    found.links[at].link = Link { port, ..wanted };
                }
                Step::SetPort(name, port) => {
                    let at = named(found, &name);
                    found.links[at].link.port = Some(port);
                }
                Step::SetUp(name) => {
                    let at = named(found, &name);
                    found.links[at].up = true;
                }
                Step::RemoveAddress(entry) => assert!(found.addresses.remove(&entry)),
                Step::AddAddress(entry) => assert!(found.addresses.insert(entry)),
                Step::RemoveNeighbour(entry) => assert!(found.neighbours.remove(&entry)),
                Step::SetNeighbour(entry) => {
                    found.neighbours.retain(|old| (&old.link, old.address) != (&entry.link, entry.address));
                    found.neighbours.insert(entry);
                }
                Step::RemoveForward(entry) => assert!(found.forwarding.remove(&entry)),
                Step::AddForward(entry) => assert!(found.forwarding.insert(entry)),
                Step::SetDefaultRoute(gateway) => {
                    found.default_routes.retain(|old| old.address.is_ipv4() != gateway.address.is_ipv4());
                    found.default_routes.push(gateway);
                }
                Step::RemoveMark(family, mark) => assert!(found.marks.remove(&(family, mark))),
                Step::RemoveMarkedRoute(route) => assert!(found.marked_routes.remove(&route)),
                Step::SetMarkedRoute(route) => {
                    found.marked_routes.retain(|old| old.mark() != route.mark());
                    found.marked_routes.insert(route);
                }
                Step::AddMark(family, mark) => assert!(found.marks.insert((family, mark))),
            }
        }
    }

    /// Links first, as the executor does; then nothing may be left to do.
    fn settle(plan: &Plan, found: &mut Found) -> Vec<Step> {
        let mut taken = Vec::new();
        for _ in 0..2 {
            let mut todo = steps(plan, found);
            if todo.iter().any(Step::is_structural) {
                todo.retain(Step::is_structural);
            }
            take(&todo, found);
            taken.extend(todo);
        }
        assert_eq!(steps(plan, found), Vec::new(), "settled");
        taken
    }

    #[test]
    fn an_empty_namespace_gets_everything_and_then_nothing_more() {
        let mut found = Found::default();
        let taken = settle(&sandbox(), &mut found);
        assert_eq!(found.links.len(), 2);
        assert_eq!(taken.iter().filter(|step| step.is_structural()).count(), 2);
    }

    #[test]
    fn only_what_moved_is_touched() {
        let mut found = Found::default();
        settle(&sandbox(), &mut found);
        let mut plan = sandbox();
        plan.neighbours = BTreeSet::from([neighbour(12, 99), neighbour(13, 13)]);
        plan.forwarding = BTreeSet::from([forward(12, 3)]);
        let taken = settle(&plan, &mut found);
        assert_eq!(
            taken,
            [
                Step::RemoveForward(forward(12, 2)),
                Step::AddForward(forward(12, 3)),
                Step::SetNeighbour(neighbour(12, 99)),
                Step::SetNeighbour(neighbour(13, 13)),
            ]
        );
    }

    #[test]
    fn endpoints_that_vanished_leave_no_entries() {
        let mut found = Found::default();
        settle(&sandbox(), &mut found);
        let plan = Plan { neighbours: BTreeSet::new(), forwarding: BTreeSet::new(), ..sandbox() };
        let taken = settle(&plan, &mut found);
        assert_eq!(taken, [Step::RemoveNeighbour(neighbour(12, 12)), Step::RemoveForward(forward(12, 2))]);
    }

    #[test]
    fn a_device_that_cannot_be_changed_is_made_anew() {
        let mut found = Found::default();
        settle(&sandbox(), &mut found);
        let mut plan = sandbox();
        plan.links[1].kind = vxlan(8);
        let taken = settle(&plan, &mut found);
        assert_eq!(taken[0], Step::DeleteLink("vxlan0".into()));
        assert_eq!(found.forwarding, plan.forwarding, "its entries are back");
    }

    #[test]
    fn marks_follow_the_nodes() {
        let mut found = Found::default();
        settle(&sandbox(), &mut found);
        let moved = MarkedRoute { gateway: ip(99), ..marked(3) };
        let plan = Plan { marked_routes: BTreeSet::from([marked(3)]), ..sandbox() };
        let taken = settle(&plan, &mut found);
        let removed = [Step::RemoveMark(Family::V4, 2), Step::RemoveMarkedRoute(marked(2))];
        assert_eq!(
            taken,
            [&removed[..], &[Step::SetMarkedRoute(marked(3)), Step::AddMark(Family::V4, 3)]].concat()
        );
        let plan = Plan { marked_routes: BTreeSet::from([moved.clone()]), ..sandbox() };
        assert_eq!(settle(&plan, &mut found), [Step::SetMarkedRoute(moved)]);
        let other = Plan { links: vec![link("eth0", LinkKind::Veth, false)], ..Plan::default() };
        assert_eq!(steps(&other, &found), [], "the plan for another link has no say");
    }

    #[test]
    fn what_is_not_planned_is_left_alone() {
        let mut found = Found::default();
        let other = link("eth7", LinkKind::Other, false);
        found.links.push(FoundLink { index: 9, up: false, link: other });
        let address = Address { link: "eth7".into(), address: ip(77), prefix: 24 };
        found.addresses.insert(address.clone());
        settle(&sandbox(), &mut found);
        assert!(found.addresses.contains(&address));
        assert!(!found.links[0].up);
    }
}
