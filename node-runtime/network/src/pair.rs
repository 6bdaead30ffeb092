//! An endpoint's pair: one end at a bridge, the other in the container with its addresses, default routes and rules.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use rswarm_base::ipam::{Family, Subnet};

use crate::error::KernelError;
use crate::link::{Pair, Route};
use crate::model::{Attached, Mac, Placed};
use crate::netns::{Netns, set_ipv6, set_sysctl};
use crate::nft::{self, Held};
use crate::plan::{Address, Found, Gateway, Link, LinkKind, MarkedRoute, Plan, Port};
use crate::rules::{self, MESH_MARK, MESH_TABLE};

/// An endpoint's end at its bridge.
#[derive(Debug, Clone)]
pub struct Near {
    /// The link.
    pub link: Link,
    /// How it is a port.
    pub port: Port,
    /// Whether the bridge itself sends to the container and must know the way.
    pub is_routed: bool,
}

/// What it takes to make a container's pair again, should somebody delete it.
#[derive(Debug, Clone)]
pub struct Member {
    /// The container's namespace.
    pub netns: Netns,
    /// The families whose default route goes here.
    pub default_routes: Vec<Family>,
    /// The rules that it needs in the mesh, once they were looked at.
    pub rules: Vec<Held>,
}

impl Member {
    /// A container that a daemon before us connected: its own routes tell where the default one goes.
    pub async fn adopt(netns: &Netns, interface: &str) -> Result<Member, KernelError> {
        let list = || Route::open()?.list();
        let found = netns.act("routes of the container could not be listed", list).await?;
        let here = found.default_routes.iter().filter(|route| route.link == interface);
        let default_routes = here.map(|route| Family::of(route.address)).collect();
        Ok(Member { netns: netns.clone(), default_routes, rules: Vec::new() })
    }

    /// Has default routes of these families go here too.
    pub async fn lead(&mut self, attached: &Attached, families: &[Family]) -> Result<(), KernelError> {
        lead_through(&self.netns, &attached.interface, routed(&attached.addresses, families)).await?;
        self.default_routes.extend(families);
        Ok(())
    }

    /// Has default routes of these families go elsewhere, and forgets what is published in them. Returns the addresses
    /// of that; `None` when there was none.
    pub fn unlead(&mut self, attached: &mut Attached, families: &[Family]) -> Option<BTreeSet<IpAddr>> {
        self.default_routes.retain(|family| !families.contains(family));
        let is_kept = |address| !families.contains(&Family::of(address));
        let before = attached.ports.len();
        attached.ports.retain(|port| is_kept(port.host_ip));
        let is_less = attached.ports.len() < before;
        is_less.then(|| attached.ips().filter(|address| !is_kept(*address)).collect())
    }
}

/// Leads a container's default routes through an interface that it has: by the gateways of these addresses.
pub async fn lead_through(netns: &Netns, interface: &str, addresses: Vec<Placed>) -> Result<(), KernelError> {
    let gateway = |placed: &Placed| Some(Gateway { address: placed.gateway?, link: interface.to_owned() });
    let default_routes = addresses.iter().filter_map(gateway).collect();
    let set = move || {
        Route::open()?.reconcile(&Plan { default_routes, ..Plan::default() }, None)?;
        tell_mesh(&addresses)
    };
    netns.act(format!("default route could not be led through `{interface}`"), set).await
}

/// What an endpoint needs inside the container.
#[derive(Debug, Clone)]
pub struct Inside {
    /// The interface.
    pub interface: String,
    /// Its MAC.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: u32,
    /// Its addresses; those with a gateway have the default route of their family.
    pub addresses: Vec<Placed>,
    /// What a container of the mesh needs besides.
    pub mesh: Vec<InMesh>,
}

/// A container's place in the mesh, in one family.
#[derive(Debug, Clone, Copy)]
pub struct InMesh {
    /// The subnet, whose own members are answered directly.
    pub subnet: Subnet,
    /// Where all others are answered.
    pub gateway: IpAddr,
}

impl Inside {
    /// What the container's namespace should hold.
    pub fn plan(&self) -> Plan {
        let link = self.interface.clone();
        Plan {
            links: vec![Link {
                name: link.clone(),
                kind: LinkKind::Veth,
                mtu: self.mtu,
                mac: Some(self.mac),
                port: None,
                alias: String::new(),
            }],
            addresses: self
                .addresses
                .iter()
                .map(|placed| Address { link: link.clone(), address: placed.address, prefix: placed.prefix })
                .collect(),
            default_routes: self
                .addresses
                .iter()
                .filter_map(|placed| Some(Gateway { address: placed.gateway?, link: link.clone() }))
                .collect(),
            marked_routes: self
                .mesh
                .iter()
                .map(|mesh| MarkedRoute { mark: MESH_MARK, link: link.clone(), gateway: mesh.gateway })
                .collect(),
            ..Plan::default()
        }
    }

    /// Sets the container's end up, in the calling thread's namespace.
    fn set_up(&self) -> io::Result<Vec<Held>> {
        set_ipv6(&self.interface, self.addresses.iter().any(|placed| placed.address.is_ipv6()));
        Route::open()?.reconcile(&self.plan(), None)?;
        if self.mesh.is_empty() {
            return tell_mesh(&self.addresses).map(|()| Vec::new());
        }
        // Answers take the way of the question also where no hook can turn them: a connection's first
        // one, refusals, and the check of where a question may come from.
        set_sysctl("ipv4/tcp_fwmark_accept", "1");
        set_sysctl("ipv4/conf/all/src_valid_mark", "1");
        for mesh in &self.mesh {
            let is_v4 = mesh.subnet.family() == Family::V4;
            set_sysctl(if is_v4 { "ipv4/fwmark_reflect" } else { "ipv6/fwmark_reflect" }, "1");
        }
        self.keep_mesh_rules(Vec::new())
    }

    /// Says on the link who has its addresses now: others may remember who had them before, for half a minute. In the
    /// calling thread's namespace.
    // Documentation/networking/ip-sysctl.rst, arp_notify, ndisc_notify: when a link's MAC is set
    fn announce(&self) -> io::Result<()> {
        let has_v6 = self.addresses.iter().any(|placed| placed.address.is_ipv6());
        let notify = |value| {
            set_sysctl(&format!("ipv4/conf/{}/arp_notify", self.interface), value);
            if has_v6 {
                set_sysctl(&format!("ipv6/conf/{}/ndisc_notify", self.interface), value);
            }
        };
        notify("1");
        let done = Route::open()?.set_mac(&self.interface, self.mac);
        notify("0");
        done
    }

    /// Makes the rules of a container of the mesh, or puts them right, in the calling thread's namespace.
    pub fn keep_mesh_rules(&self, before: Vec<Held>) -> io::Result<Vec<Held>> {
        let found = Route::open()?.list()?;
        let table = |mesh: &InMesh| {
            let default = default_address(&found, mesh.subnet.family());
            rules::mesh_member(&self.interface, mesh.subnet, default)
        };
        Ok(nft::settle(before, self.mesh.iter().map(table).collect())?.0)
    }
}

/// Tells what is in the mesh already by another interface that default routes go by these addresses now. In the
/// container's namespace.
pub fn tell_mesh(addresses: &[Placed]) -> io::Result<()> {
    for placed in addresses.iter().filter(|placed| placed.gateway.is_some()) {
        let answers = rules::mesh_answers(Some(placed.address));
        nft::refill(Family::of(placed.address), MESH_TABLE, &answers)?;
    }
    Ok(())
}

/// The address that the default route gives to what has none.
fn default_address(found: &Found, family: Family) -> Option<IpAddr> {
    let of_family = |address: IpAddr| Family::of(address) == family;
    let link = &found.default_routes.iter().find(|gateway| of_family(gateway.address))?.link;
    let mut own = found.addresses.iter().filter(|entry| entry.link == *link && of_family(entry.address));
    own.next().map(|entry| entry.address)
}

/// Makes an endpoint: a pair between `near_netns`, where its end is a port of a bridge, and the container,
/// where its end gets address and route. On an error the pair is gone. Returns the rules that the container
/// needed.
pub async fn connect(
    near_netns: &Netns,
    near: Near,
    container: &Netns,
    inside: Inside,
) -> Result<Vec<Held>, KernelError> {
    let name = near.link.name.clone();
    let pair = Pair {
        near: near.link,
        port: near.port,
        far_name: inside.interface.clone(),
        far_mac: inside.mac,
        far_netns: container.raw(),
        neighbours: inside.addresses.iter().map(|placed| placed.address).filter(|_| near.is_routed).collect(),
    };
    // The descriptor must outlive the work, also when this future is dropped.
    let held = container.clone();
    let make = move || {
        let _held = held;
        let mut route = Route::open()?;
        route.connect(&pair)?;
        Ok(route)
    };
    let mut route = near_netns.act(format!("link `{name}` could not be created"), make).await?;
    let (interface, near) = (inside.interface.clone(), name.clone());
    let action = format!("interface `{interface}` could not be set up in the container");
    let set_up = move || {
        let rules = inside.set_up()?;
        route.await_carrier(&near)?;
        inside.announce()?;
        Ok(rules)
    };
    let done = container.act(action, set_up).await;
    if done.is_err() {
        disconnect(near_netns, &name).await?;
    }
    done
}

/// Removes an endpoint's pair; one that went with its container is no error.
pub async fn disconnect(near_netns: &Netns, name: &str) -> Result<(), KernelError> {
    let link = name.to_owned();
    let action = format!("link `{name}` could not be removed");
    near_netns.act(action, move || Route::open()?.delete_link(&link)).await
}

/// The name of an endpoint's near end: `veth` and eleven digits that derive from its identifiers.
#[must_use]
pub fn pair_name(container: &str, network: &str) -> String {
    const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    // FNV-1a: names must stay the same from one build to the next.
    let hash = container
        .bytes()
        .chain([b'/'])
        .chain(network.bytes())
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let digits = (0..11).map(|digit| char::from(DIGITS[(hash >> (digit * 5) & 31) as usize]));
    format!("veth{}", digits.collect::<String>())
}

/// The addresses with their gateways in those families only whose default route goes here.
pub fn routed(addresses: &[Placed], default_routes: &[Family]) -> Vec<Placed> {
    let goes_here = |address| default_routes.contains(&Family::of(address));
    let keep =
        |placed: &Placed| Placed { gateway: placed.gateway.filter(|_| goes_here(placed.address)), ..*placed };
    addresses.iter().map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pair_names_fit_the_kernel_and_derive_from_both_identifiers() {
        let name = pair_name("c1", "n1");
        assert_eq!(name.len(), 15);
        assert_eq!(name, pair_name("c1", "n1"));
        assert_ne!(name, pair_name("c1", "n2"));
        assert_ne!(name, pair_name("c2", "n1"));
    }
}
