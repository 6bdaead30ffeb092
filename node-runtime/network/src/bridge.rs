//! One bridge network: its addresses and its endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use rswarm_base::ipam::{Subnet, lowest_address, mac_for};

use crate::actor::Owner;
use crate::check::{self, Finding};
use crate::conntrack::{self, Doomed};
use crate::error::{AttachError, KernelError};
use crate::host::{Endpoint, Host, Publish};
use crate::link::{Pair, Route};
use crate::model::{
    AttachRequest, Attached, BoundPort, BridgeInfo, BridgeSpec, DEFAULT_BRIDGE, Mac, PortBinding,
};
use crate::names::{NameTable, Names};
use crate::netns::{Netns, set_sysctl};
use crate::nft::{self, Held};
use crate::plan::{Address, Found, Gateway, Link, LinkKind, MarkedRoute, Plan, Port, steps};
use crate::rules::{self, BridgeRules, MESH_MARK, MESH_TABLE, Target};
use crate::tunnel::Tunnel;

/// MTU of a bridge that was given none.
const MTU: u32 = 1500;

/// The network's owner.
#[derive(Debug)]
pub struct Bridge {
    pub(crate) spec: BridgeSpec,
    pub(crate) info: BridgeInfo,
    context: Context,
    endpoints: BTreeMap<String, Attached>,
    members: BTreeMap<String, Member>,
    /// What still waited when the network was removed must not bring it back.
    removed: bool,
}

/// What networks share.
#[derive(Debug, Clone)]
pub struct Context {
    /// The daemon's identifier.
    pub daemon_id: String,
    /// The daemon's network namespace.
    pub home: Netns,
    /// Its owner.
    pub host: Owner<Host>,
    /// All names.
    pub names: Names,
    /// The device of encrypted overlays.
    pub tunnel: Owner<Tunnel>,
}

impl Context {
    /// The text that marks a link as ours: teardown and adoption go by it.
    pub fn alias(&self, what: &str) -> String {
        format!("rswarm {} {what}", self.daemon_id)
    }

    /// The prefix of all of them.
    pub fn alias_prefix(daemon_id: &str) -> String {
        format!("rswarm {daemon_id} ")
    }
}

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
    /// Whether its default route goes here.
    pub default_route: bool,
    /// The rules that it needs in the mesh, once they were looked at.
    pub rules: Option<Held>,
}

impl Member {
    /// A container that a daemon before us connected: its own routes tell where the default one goes.
    pub async fn adopt(netns: &Netns, interface: &str) -> Result<Member, KernelError> {
        let list = || Route::open()?.list();
        let found = netns.act("routes of the container could not be listed", list).await?;
        let default_route = found.default_routes.iter().any(|route| route.link == interface);
        Ok(Member { netns: netns.clone(), default_route, rules: None })
    }
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
    /// Its address.
    pub address: IpAddr,
    /// The address's prefix length.
    pub prefix: u8,
    /// Where the default route goes, if it goes here.
    pub default_route: Option<IpAddr>,
    /// What a container of the mesh needs besides.
    pub mesh: Option<InMesh>,
}

/// A container's place in the mesh.
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
            addresses: BTreeSet::from([Address {
                link: link.clone(),
                address: self.address,
                prefix: self.prefix,
            }]),
            default_route: self.default_route.map(|address| Gateway { address, link: link.clone() }),
            marked_routes: self
                .mesh
                .map(|mesh| MarkedRoute { mark: MESH_MARK, link, gateway: mesh.gateway })
                .into_iter()
                .collect(),
            ..Plan::default()
        }
    }

    /// Sets the container's end up, in the calling thread's namespace.
    fn set_up(&self) -> io::Result<Option<Held>> {
        if self.address.is_ipv4() {
            set_sysctl(&format!("ipv6/conf/{}/disable_ipv6", self.interface), "1");
        }
        let mut route = Route::open()?;
        route.reconcile(&self.plan(), None)?;
        if let Some(mesh) = self.mesh {
            // Answers take the way of the question also where no hook can turn them: a connection's first
            // one, refusals, and the check of where a question may come from.
            set_sysctl("ipv4/tcp_fwmark_accept", "1");
            set_sysctl("ipv4/fwmark_reflect", "1");
            set_sysctl("ipv4/conf/all/src_valid_mark", "1");
            return self.keep_mesh_rules(mesh, None).map(Some);
        }
        if let (Some(_), IpAddr::V4(address)) = (self.default_route, self.address) {
            // Another interface may be in the mesh already.
            nft::refill(MESH_TABLE, &rules::mesh_answers(Some(address)))?;
        }
        Ok(None)
    }

    /// Makes the rules of a container of the mesh, or puts them right, in the calling thread's namespace.
    pub fn keep_mesh_rules(&self, mesh: InMesh, before: Option<Held>) -> io::Result<Held> {
        let default = default_address(&Route::open()?.list()?);
        let table = rules::mesh_member(&self.interface, mesh.subnet, default);
        Ok(nft::settle(before, table)?.0)
    }
}

/// The address that the default route gives to what has none.
fn default_address(found: &Found) -> Option<Ipv4Addr> {
    let link = &found.default_routes.first()?.link;
    found.addresses.iter().find_map(|entry| match entry.address {
        IpAddr::V4(address) if entry.link == *link => Some(address),
        _ => None,
    })
}

/// Makes an endpoint: a pair between `near_netns`, where its end is a port of a bridge, and the container,
/// where its end gets address and route. On an error the pair is gone. Returns the rules that the container
/// needed.
pub async fn connect(
    near_netns: &Netns,
    near: Near,
    container: &Netns,
    inside: Inside,
) -> Result<Option<Held>, KernelError> {
    let name = near.link.name.clone();
    let pair = Pair {
        near: near.link,
        port: near.port,
        far_name: inside.interface.clone(),
        far_mac: inside.mac,
        far_netns: container.raw(),
        neighbour: near.is_routed.then_some(inside.address),
    };
    // The descriptor must outlive the work, also when this future is dropped.
    let held = container.clone();
    let make = move || {
        let _held = held;
        Route::open()?.connect(&pair)
    };
    near_netns.act(format!("link `{name}` could not be created"), make).await?;
    let interface = inside.interface.clone();
    let action = format!("interface `{interface}` could not be set up in the container");
    let done = container.act(action, move || inside.set_up()).await;
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

impl Bridge {
    /// Makes the bridge, or takes it over.
    pub async fn open(spec: BridgeSpec, info: BridgeInfo, context: Context) -> Result<Bridge, KernelError> {
        let bridge = Bridge {
            spec,
            info,
            context,
            endpoints: BTreeMap::new(),
            members: BTreeMap::new(),
            removed: false,
        };
        let plan = bridge.plan();
        let interface = bridge.info.interface.clone();
        let name = interface.clone();
        let make = move || {
            Route::open()?.reconcile(&plan, None)?;
            set_sysctl(&format!("ipv4/conf/{name}/route_localnet"), "1");
            Ok(())
        };
        bridge.context.home.act(format!("bridge `{interface}` could not be created"), make).await?;
        let rules = BridgeRules {
            subnet: bridge.info.subnet,
            internal: bridge.spec.internal,
            icc: bridge.spec.icc,
            masquerade: bridge.spec.masquerade,
        };
        bridge
            .context
            .host
            .call(move |host| {
                let work = host.set_bridge(interface, rules);
                Box::pin(work)
            })
            .await
            .map_err(|_| shutting_down())??;
        bridge.publish_names();
        Ok(bridge)
    }

    fn mtu(&self) -> u32 {
        self.spec.mtu.unwrap_or(MTU)
    }

    fn plan(&self) -> Plan {
        let name = self.info.interface.clone();
        let mac = match self.info.gateway {
            IpAddr::V4(gateway) => Some(Mac(mac_for(gateway))),
            IpAddr::V6(_) => None,
        };
        Plan {
            links: vec![Link {
                name: name.clone(),
                kind: LinkKind::Bridge,
                mtu: self.mtu(),
                mac,
                port: None,
                alias: self.context.alias(&self.info.id),
            }],
            addresses: BTreeSet::from([Address {
                link: name,
                address: self.info.gateway,
                prefix: self.info.subnet.prefix(),
            }]),
            ..Plan::default()
        }
    }

    /// Gives a container an endpoint; on an error nothing of it is left.
    pub async fn attach(&mut self, netns: Netns, request: AttachRequest) -> Result<Attached, AttachError> {
        if self.endpoints.contains_key(&request.container_id) {
            return Err(AttachError::AlreadyAttached {
                container: request.container_id,
                network: self.spec.name.clone(),
            });
        }
        let address = self.choose_address(request.address)?;
        let container = request.container_id.clone();
        let mut attached = self.describe(&request, address);
        self.connect(&netns, &container, &attached, request.default_route).await?;
        match self.publish(&container, address, request.publish).await {
            Ok(ports) => attached.ports = ports,
            Err(error) => {
                disconnect(&self.context.home, &pair_name(&container, &self.info.id)).await?;
                return Err(error);
            }
        }
        let member = Member { netns, default_route: request.default_route, rules: None };
        self.members.insert(container.clone(), member);
        self.endpoints.insert(container, attached.clone());
        self.publish_names();
        Ok(attached)
    }

    /// Looks whether bridge and pairs are still as they were made, and puts right what is not. Says whether
    /// there was anything.
    pub async fn check(&mut self) -> Result<bool, KernelError> {
        if self.removed {
            return Ok(false);
        }
        let mut plan = self.plan();
        plan.links.extend(self.endpoints.keys().map(|container| self.near(container)));
        let name = self.info.interface.clone();
        let correct = move || {
            let mut route = Route::open()?;
            let mut found = route.links_and_addresses()?;
            let is_changed = !steps(&plan, &found).is_empty();
            if is_changed {
                found = route.reconcile(&plan, None)?.1;
            }
            set_sysctl(&format!("ipv4/conf/{name}/route_localnet"), "1");
            Ok((is_changed, found))
        };
        let action = format!("bridge `{}` could not be corrected", self.info.interface);
        let (mut is_changed, found) = self.context.home.act(action, correct).await?;
        let there: BTreeSet<&str> = found.links.iter().map(|link| link.link.name.as_str()).collect();
        for (container, attached) in &self.endpoints {
            let Some(member) = self.members.get(container) else { continue };
            if !there.contains(pair_name(container, &self.info.id).as_str()) {
                self.connect(&member.netns, container, attached, member.default_route).await?;
                is_changed = true;
            }
        }
        if is_changed {
            let network = self.spec.name.as_str();
            tracing::warn!(network, "somebody else changed links of the network; they are put right");
        }
        Ok(is_changed)
    }

    fn describe(&self, request: &AttachRequest, address: IpAddr) -> Attached {
        let derived = match address {
            IpAddr::V4(address) => Mac(mac_for(address)),
            IpAddr::V6(_) => Mac([0x02, 0x42, 0, 0, 0, 1]),
        };
        Attached {
            network_id: self.info.id.clone(),
            interface: request.interface.clone(),
            address,
            prefix: self.info.subnet.prefix(),
            gateway: (!self.spec.internal).then_some(self.info.gateway),
            mac: request.mac.unwrap_or(derived),
            ports: Vec::new(),
            names: request.names.clone(),
        }
    }

    async fn connect(
        &self,
        netns: &Netns,
        container: &str,
        attached: &Attached,
        default_route: bool,
    ) -> Result<(), KernelError> {
        let link = self.near(container);
        let near = Near { link, port: self.near_port(), is_routed: false };
        let inside = Inside {
            interface: attached.interface.clone(),
            mac: attached.mac,
            mtu: self.mtu(),
            address: attached.address,
            prefix: attached.prefix,
            default_route: attached.gateway.filter(|_| default_route),
            mesh: None,
        };
        connect(&self.context.home, near, netns, inside).await.map(drop)
    }

    /// Whether the kernel has what it should; nothing is changed.
    pub async fn examine(&self) -> Result<Vec<Finding>, KernelError> {
        let mut plan = self.plan();
        plan.links.extend(self.endpoints.keys().map(|container| self.near(container)));
        let look = move || {
            let found = Route::open()?.links_and_addresses()?;
            Ok(check::compare(&plan, &found))
        };
        self.context.home.act("links could not be listed", look).await
    }

    /// The container's end here.
    fn near(&self, container: &str) -> Link {
        Link {
            name: pair_name(container, &self.info.id),
            kind: LinkKind::Veth,
            mtu: self.mtu(),
            mac: None,
            port: Some(self.near_port()),
            alias: self.context.alias(container),
        }
    }

    fn near_port(&self) -> Port {
        Port { bridge: self.info.interface.clone(), hairpin: true, isolated: !self.spec.icc }
    }

    fn choose_address(&self, wanted: Option<IpAddr>) -> Result<IpAddr, AttachError> {
        let mut taken: BTreeSet<IpAddr> = self.endpoints.values().map(|endpoint| endpoint.address).collect();
        taken.insert(self.info.gateway);
        taken.extend(&self.spec.reserved);
        match wanted {
            Some(address) if !self.info.subnet.contains(address) => {
                Err(AttachError::AddressOutside { address, network: self.spec.name.clone() })
            }
            Some(address) if taken.contains(&address) => Err(AttachError::AddressInUse(address)),
            Some(address) => Ok(address),
            None => {
                let range = self.spec.ip_range.unwrap_or(self.info.subnet);
                free_address(range, self.info.subnet, taken).ok_or_else(|| AttachError::AddressesExhausted {
                    network: self.spec.name.clone(),
                    id: self.info.id.clone(),
                })
            }
        }
    }

    /// An address for a sandbox's way out, which is no container's endpoint.
    pub fn reserve_address(&mut self, wanted: Option<IpAddr>) -> Result<IpAddr, AttachError> {
        let address = match self.choose_address(wanted) {
            Err(AttachError::AddressInUse(_)) => self.choose_address(None)?,
            other => other?,
        };
        self.spec.reserved.push(address);
        Ok(address)
    }

    /// Gives it back.
    pub fn release_address(&mut self, address: IpAddr) {
        self.spec.reserved.retain(|other| *other != address);
    }

    async fn publish(
        &self,
        container: &str,
        address: IpAddr,
        bindings: Vec<PortBinding>,
    ) -> Result<Vec<BoundPort>, AttachError> {
        // Docker too ignores ports of a container whose network has no way in.
        let (false, false, IpAddr::V4(inside)) = (bindings.is_empty(), self.spec.internal, address) else {
            return Ok(Vec::new());
        };
        let ports = bindings.into_iter().map(|mut binding| {
            binding.host_ip = binding.host_ip.or(self.spec.host_binding);
            Publish { target: Target { address: inside, port: binding.container_port }, binding }
        });
        let (owner, ports) = (self.endpoint(container), ports.collect());
        publish(&self.context.host, owner, ports, address).await
    }

    fn endpoint(&self, container: &str) -> Endpoint {
        Endpoint { container: container.to_owned(), network: self.info.id.clone() }
    }

    /// Takes a container out; one that has no endpoint is no error.
    pub async fn detach(&mut self, container: &str) -> Result<(), KernelError> {
        let Some(attached) = self.endpoints.get(container) else { return Ok(()) };
        let address = attached.address;
        if !attached.ports.is_empty() {
            withdraw(&self.context.host, self.endpoint(container)).await?;
            conntrack::forget(&self.context.home, Doomed::AnsweredBy(address)).await;
        }
        disconnect(&self.context.home, &pair_name(container, &self.info.id)).await?;
        self.endpoints.remove(container);
        self.members.remove(container);
        self.publish_names();
        Ok(())
    }

    /// Takes over an endpoint that exists.
    pub async fn adopt(
        &mut self,
        container: &str,
        netns: &Netns,
        attached: Attached,
    ) -> Result<(), KernelError> {
        let member = Member::adopt(netns, &attached.interface).await?;
        self.members.insert(container.to_owned(), member);
        if let (IpAddr::V4(address), false) = (attached.address, attached.ports.is_empty()) {
            let target = |port: &BoundPort| Target { address, port: port.container_port };
            let ports = attached.ports.iter().map(|port| (port.clone(), target(port))).collect();
            adopt_ports(&self.context.host, self.endpoint(container), ports).await?;
        }
        self.endpoints.insert(container.to_owned(), attached);
        self.publish_names();
        Ok(())
    }

    /// Replaces a container's names.
    pub fn set_names(&mut self, container: &str, names: Vec<String>) {
        if let Some(endpoint) = self.endpoints.get_mut(container) {
            endpoint.names = names;
            self.publish_names();
        }
    }

    /// Whether a container or an overlay's way out is on it.
    pub fn is_in_use(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// The bridge is being removed: it must not be put right any more.
    pub fn retire(&mut self) {
        self.removed = true;
    }

    /// Removes the bridge and its rules.
    pub async fn close(&mut self) -> Result<(), KernelError> {
        self.retire();
        let interface = self.info.interface.clone();
        self.context
            .host
            .call(move |host| {
                let work = async move { host.remove_bridge(&interface).await };
                Box::pin(work)
            })
            .await
            .map_err(|_| shutting_down())??;
        self.context.names.remove(&self.info.id);
        disconnect(&self.context.home, &self.info.interface).await
    }

    /// Containers on the default bridge are not found by name, as in Docker.
    fn publish_names(&self) {
        let mut table = NameTable::new(&self.spec.name);
        if self.info.id != DEFAULT_BRIDGE {
            for endpoint in self.endpoints.values() {
                table.add_container(&endpoint.names, endpoint.address);
            }
        }
        self.context.names.publish(&self.info.id, table);
    }
}

/// The lowest free address of `range`, which is the subnet or a part of it.
fn free_address(range: Subnet, subnet: Subnet, mut taken: BTreeSet<IpAddr>) -> Option<IpAddr> {
    if range != subnet {
        // All of a range's addresses are good but the subnet's own ends.
        taken.insert(subnet.address());
        taken.extend(subnet.nth(subnet.size() - 1));
        return (0..range.size()).filter_map(|n| range.nth(n)).find(|address| !taken.contains(address));
    }
    lowest_address(subnet, &taken)
}

/// Has the host publish ports.
pub async fn publish(
    host: &Owner<Host>,
    owner: Endpoint,
    ports: Vec<Publish>,
    inside: IpAddr,
) -> Result<Vec<BoundPort>, AttachError> {
    host.call(move |host| Box::pin(host.publish(owner, ports, inside)))
        .await
        .map_err(|_| AttachError::ShuttingDown)?
}

/// Has the host withdraw what an endpoint published.
pub async fn withdraw(host: &Owner<Host>, owner: Endpoint) -> Result<(), KernelError> {
    host.call(move |host| Box::pin(async move { host.withdraw(&owner).await }))
        .await
        .map_err(|_| shutting_down())?
}

/// Has the host take over ports that are published.
pub async fn adopt_ports(
    host: &Owner<Host>,
    owner: Endpoint,
    ports: Vec<(BoundPort, Target)>,
) -> Result<(), KernelError> {
    host.call(move |host| Box::pin(host.adopt(owner, ports))).await.map_err(|_| shutting_down())?
}

/// What callers of an owner that ended are told.
pub fn shutting_down() -> KernelError {
    KernelError {
        action: "networking is shutting down".to_owned(),
        source: io::Error::from(io::ErrorKind::NotConnected),
    }
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

    #[test]
    fn a_range_gives_all_of_its_addresses() {
        let (range, subnet) = ("10.1.0.0/30".parse().expect("range"), "10.1.0.0/16".parse().expect("subnet"));
        let mut taken = BTreeSet::from([IpAddr::from([10, 1, 0, 1])]);
        let mut given = Vec::new();
        while let Some(address) = free_address(range, subnet, taken.clone()) {
            taken.insert(address);
            given.push(address.to_string());
        }
        assert_eq!(given, ["10.1.0.2", "10.1.0.3"]);
    }
}
