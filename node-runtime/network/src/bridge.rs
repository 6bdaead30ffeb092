//! One bridge network: its addresses and its endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use rswarm_base::ipam::{Family, Subnet, local_prefix, mac_for};

use crate::actor::Owner;
use crate::check::{self, Finding};
use crate::conntrack::{self, Doomed};
use crate::error::{AttachError, KernelError};
use crate::host::{Endpoint, Host, Publish, Way};
use crate::link::{Pair, Route};
use crate::model::{
    AttachRequest, Attached, BoundPort, BridgeInfo, BridgeSpec, DEFAULT_BRIDGE, Lead, Mac, Placed,
    PortBinding,
};
use crate::names::{NameTable, Names};
use crate::netns::{Netns, forward_ipv6, set_ipv6, set_sysctl};
use crate::nft::{self, Held};
use crate::places::Places;
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
    /// Addresses of overlays' ways out.
    uplinks: BTreeSet<IpAddr>,
    /// The IPv6 subnet of overlays' ways out, once there is one that needs it.
    uplinks_v6: Option<Subnet>,
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

    /// The subnet that overlays' ways out have their IPv6 addresses of: the last one of this daemon's own prefix.
    pub fn uplinks_v6(&self) -> Option<Subnet> {
        Subnet::new(local_prefix(&self.daemon_id).last(), 64)
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

/// Containers that are kept apart ask for each other's link address in vain. The host answers in their place, and
/// its rules say what goes on: what is open between two.
// Documentation/networking/ip-sysctl.rst, proxy_arp_pvlan; RFC 3069
fn lead_through_host(interface: &str) {
    set_sysctl(&format!("ipv4/conf/{interface}/proxy_arp_pvlan"), "1");
    set_sysctl(&format!("ipv4/conf/{interface}/send_redirects"), "0");
    set_sysctl(&format!("ipv4/neigh/{interface}/proxy_delay"), "0");
}

impl Bridge {
    /// Makes the bridge, or takes it over. `uplinks_v6` is what a daemon before us gave it for ways out.
    pub async fn open(
        spec: BridgeSpec,
        info: BridgeInfo,
        context: Context,
        uplinks_v6: Option<Subnet>,
    ) -> Result<Bridge, KernelError> {
        let bridge = Bridge {
            spec,
            info,
            context,
            endpoints: BTreeMap::new(),
            uplinks: BTreeSet::new(),
            uplinks_v6,
            members: BTreeMap::new(),
            removed: false,
        };
        bridge.apply().await?;
        bridge.publish_names();
        Ok(bridge)
    }

    /// Brings the interface and its rules to what they should be.
    async fn apply(&self) -> Result<(), KernelError> {
        let plan = self.plan();
        let interface = self.info.interface.clone();
        let (name, icc) = (interface.clone(), self.spec.icc);
        let make = move || {
            let mut route = Route::open()?;
            let v4_only = |address: &Address| address.address.is_ipv4();
            if !plan.addresses.iter().all(v4_only) {
                // The settings are there with the link, and must be right before it has an address.
                let addresses = plan.addresses.iter().filter(|address| v4_only(address)).cloned().collect();
                if route.links()?.iter().all(|link| link.link.name != name) {
                    route.reconcile(&Plan { addresses, ..plan.clone() }, None)?;
                }
                set_ipv6(&name, true);
                forward_ipv6();
            }
            route.reconcile(&plan, None)?;
            set_sysctl(&format!("ipv4/conf/{name}/route_localnet"), "1");
            if !icc {
                lead_through_host(&name);
            }
            Ok(())
        };
        self.context.home.act(format!("bridge `{interface}` could not be created"), make).await?;
        let subnets = self.info.subnets.iter().map(|(subnet, _)| *subnet);
        let rules = BridgeRules {
            subnets: subnets.chain(self.uplinks_v6).collect(),
            internal: self.spec.internal,
            icc: self.spec.icc,
            masquerade: self.spec.masquerade,
        };
        let host = &self.context.host;
        host.call(move |host| Box::pin(host.set_bridge(interface, rules)))
            .await
            .map_err(|_| shutting_down())?
    }

    /// Has the bridge lead out what overlays send from addresses of this subnet.
    pub async fn lead_out(&mut self, subnet: Subnet) -> Result<(), KernelError> {
        if self.uplinks_v6 == Some(subnet) {
            return Ok(());
        }
        self.uplinks_v6 = Some(subnet);
        let done = self.apply().await;
        if done.is_err() {
            self.uplinks_v6 = None;
        }
        done
    }

    fn mtu(&self) -> u32 {
        self.spec.mtu.unwrap_or(MTU)
    }

    fn plan(&self) -> Plan {
        let name = self.info.interface.clone();
        let uplinks = self.uplinks_v6.and_then(|subnet| Some((subnet, subnet.nth(1)?)));
        let on_bridge = |(subnet, address): (Subnet, IpAddr)| Address {
            link: name.clone(),
            address,
            prefix: subnet.prefix(),
        };
        Plan {
            addresses: self.info.subnets.iter().copied().chain(uplinks).map(on_bridge).collect(),
            links: vec![Link {
                name: name.clone(),
                kind: LinkKind::Bridge,
                mtu: self.mtu(),
                mac: self.info.subnets.first().map(|(_, gateway)| Mac(mac_for(*gateway))),
                port: None,
                alias: self.context.alias(&self.info.id),
            }],
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
        let addresses = self.places().choose_all(&request.addresses)?;
        let container = request.container_id.clone();
        let mut attached = self.describe(&request, addresses);
        self.connect(&netns, &container, &attached, &request.default_routes).await?;
        match self.publish(&container, &attached, &request.lead()).await {
            Ok(ports) => attached.ports = ports,
            Err(error) => {
                disconnect(&self.context.home, &pair_name(&container, &self.info.id)).await?;
                return Err(error);
            }
        }
        let member = Member { netns, default_routes: request.default_routes, rules: Vec::new() };
        self.members.insert(container.clone(), member);
        self.endpoints.insert(container, attached.clone());
        self.publish_names();
        Ok(attached)
    }

    /// Leads a container this way in families whose default route went elsewhere, and publishes its ports there.
    pub async fn lead(&mut self, container: String, lead: Lead) -> Result<Vec<BoundPort>, AttachError> {
        let known = self.endpoints.get(&container).cloned().zip(self.members.get_mut(&container));
        let Some((attached, member)) = known else {
            return Err(AttachError::NoSuchNetwork(self.info.id.clone()));
        };
        member.lead(&attached, &lead.families).await?;
        let ports = self.publish(&container, &attached, &lead).await?;
        self.endpoints.entry(container).and_modify(|attached| attached.ports.extend(ports.iter().cloned()));
        Ok(ports)
    }

    /// Leads a container this way no more in some families.
    pub async fn unlead(&mut self, container: String, families: Vec<Family>) -> Result<(), KernelError> {
        let known = self.endpoints.get_mut(&container).zip(self.members.get_mut(&container));
        let Some((attached, member)) = known else { return Ok(()) };
        member.default_routes.retain(|family| !families.contains(family));
        let is_kept = |address| !families.contains(&Family::of(address));
        if attached.ports.iter().all(|port| is_kept(port.host_ip)) {
            return Ok(());
        }
        attached.ports.retain(|port| is_kept(port.host_ip));
        let gone = attached.ips().filter(|address| !is_kept(*address)).collect();
        withdraw_in(&self.context.host, self.endpoint(&container), families).await?;
        conntrack::forget(&self.context.home, Doomed::AnsweredBy(gone)).await;
        Ok(())
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
            if plan.addresses.iter().any(|address| address.address.is_ipv6()) {
                set_ipv6(&name, true);
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
                self.connect(&member.netns, container, attached, &member.default_routes).await?;
                is_changed = true;
            }
        }
        if is_changed {
            let network = self.spec.name.as_str();
            tracing::warn!(network, "somebody else changed links of the network; they are put right");
        }
        Ok(is_changed)
    }

    fn describe(&self, request: &AttachRequest, addresses: Vec<Placed>) -> Attached {
        let derived = addresses.first().map(|placed| mac_for(placed.address)).unwrap_or_default();
        Attached {
            network_id: self.info.id.clone(),
            interface: request.interface.clone(),
            addresses,
            mac: request.mac.unwrap_or(Mac(derived)),
            ports: Vec::new(),
            names: request.names.clone(),
        }
    }

    async fn connect(
        &self,
        netns: &Netns,
        container: &str,
        attached: &Attached,
        default_routes: &[Family],
    ) -> Result<(), KernelError> {
        let link = self.near(container);
        let near = Near { link, port: self.near_port(), is_routed: false };
        let inside = Inside {
            interface: attached.interface.clone(),
            mac: attached.mac,
            mtu: self.mtu(),
            addresses: routed(&attached.addresses, default_routes),
            mesh: Vec::new(),
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

    /// The addresses that endpoints may have.
    fn places(&self) -> Places<'_> {
        let endpoints = self.endpoints.values().flat_map(Attached::ips);
        Places {
            network: &self.spec.name,
            id: &self.info.id,
            subnets: &self.info.subnets,
            pools: &self.spec.pools,
            internal: self.spec.internal,
            taken: endpoints.chain(self.uplinks.iter().copied()).collect(),
        }
    }

    /// An IPv4 address for a sandbox's way out, which is no container's endpoint.
    pub fn reserve_address(&mut self, wanted: Option<IpAddr>) -> Result<IpAddr, AttachError> {
        let places = self.places();
        let address = match places.choose(Family::V4, wanted) {
            Err(AttachError::AddressInUse(_)) => places.choose(Family::V4, None)?.address,
            other => other?.address,
        };
        self.uplinks.insert(address);
        Ok(address)
    }

    /// Gives it back.
    pub fn release_address(&mut self, address: IpAddr) {
        self.uplinks.remove(&address);
    }

    async fn publish(
        &self,
        container: &str,
        attached: &Attached,
        lead: &Lead,
    ) -> Result<Vec<BoundPort>, AttachError> {
        // Docker too ignores ports of a container whose network has no way in.
        if lead.publish.is_empty() || self.spec.internal {
            return Ok(Vec::new());
        }
        let ports = lead.publish.iter().map(|binding| {
            let host_ip = binding.host_ip.or(self.spec.host_binding);
            let binding = PortBinding { host_ip, ..binding.clone() };
            let to =
                |inside| Way { inside, target: Target { address: inside, port: binding.container_port } };
            let ways = lead.published(attached).map(to).collect();
            Publish { binding, ways }
        });
        let (owner, ports) = (self.endpoint(container), ports.collect());
        publish(&self.context.host, owner, ports).await
    }

    fn endpoint(&self, container: &str) -> Endpoint {
        Endpoint { container: container.to_owned(), network: self.info.id.clone() }
    }

    /// Takes a container out; one that has no endpoint is no error.
    pub async fn detach(&mut self, container: &str) -> Result<(), KernelError> {
        let Some(attached) = self.endpoints.get(container) else { return Ok(()) };
        if !attached.ports.is_empty() {
            withdraw(&self.context.host, self.endpoint(container)).await?;
            conntrack::forget(&self.context.home, Doomed::AnsweredBy(attached.ips().collect())).await;
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
        if !attached.ports.is_empty() {
            let target = |port: &BoundPort| {
                let address = attached.of(Family::of(port.host_ip))?.address;
                Some((port.clone(), Target { address, port: port.container_port }))
            };
            let ports = attached.ports.iter().filter_map(target).collect();
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
                table.add_container(&endpoint.names, &endpoint.ips().collect::<Vec<_>>());
            }
        }
        self.context.names.publish(&self.info.id, table);
    }
}

/// The addresses with their gateways in those families only whose default route goes here.
pub fn routed(addresses: &[Placed], default_routes: &[Family]) -> Vec<Placed> {
    let goes_here = |address| default_routes.contains(&Family::of(address));
    let keep =
        |placed: &Placed| Placed { gateway: placed.gateway.filter(|_| goes_here(placed.address)), ..*placed };
    addresses.iter().map(keep).collect()
}

/// Has the host publish ports.
pub async fn publish(
    host: &Owner<Host>,
    owner: Endpoint,
    ports: Vec<Publish>,
) -> Result<Vec<BoundPort>, AttachError> {
    host.call(move |host| Box::pin(host.publish(owner, ports)))
        .await
        .map_err(|_| AttachError::ShuttingDown)?
}

/// Has the host withdraw what an endpoint published.
pub async fn withdraw(host: &Owner<Host>, owner: Endpoint) -> Result<(), KernelError> {
    host.call(move |host| Box::pin(async move { host.withdraw(&owner).await }))
        .await
        .map_err(|_| shutting_down())?
}

/// Likewise in some families alone.
pub async fn withdraw_in(
    host: &Owner<Host>,
    owner: Endpoint,
    families: Vec<Family>,
) -> Result<(), KernelError> {
    host.call(move |host| Box::pin(async move { host.withdraw_in(&owner, &families).await }))
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
}
