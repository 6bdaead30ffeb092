//! What one network namespace should hold, and the steps from what it holds to that. Pure: the kernel's
//! state comes in as [`Found`], what to do goes out as [`Step`]s.
//!
//! Only what is named in the plan is touched: links of other programs, and their addresses, are not ours.

use std::collections::BTreeSet;
use std::net::IpAddr;

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
    /// The default route's gateway and link, where there is one.
    pub default_route: Option<Gateway>,
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
    for link in &wanted.links {
        steps.extend(link_steps(link, found.links.iter().find(|other| other.link.name == link.name)));
    }
    let ours = |name: &str| wanted.links.iter().any(|link| link.name == name);
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
    if let Some(gateway) = &wanted.default_route
        && !found.default_routes.contains(gateway)
    {
        steps.push(Step::SetDefaultRoute(gateway.clone()));
    }
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
