//! One overlay network: its sandbox, brought to the endpoint table that the managers sent.
//!
//! The sandbox is a network namespace pinned to a file. It holds a bridge with the gateway's address, a
//! VXLAN device whose socket is in the daemon's namespace, one end of each container's pair and, unless
//! the network is internal, an uplink to the default bridge. Everything in it is listed, compared and
//! corrected at each application, so a restarted daemon adopts it and a stale entry does not last.

mod derive;
mod keep;
mod lost;
mod uplink;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rswarm_base::Scope;
use rswarm_base::ipam::{Family, Subnet};

use self::derive::Backends;
use self::uplink::{UPLINK, uplink_address};
use crate::actor::{Owner, WeakOwner};
use crate::bridge::{self, Bridge, Context, adopt_ports, shutting_down, withdraw};
use crate::conntrack::{self, Doomed};
use crate::error::{AttachError, KernelError, OverlayError};
use crate::host::{Endpoint, Publish, Way};
use crate::link::{Route, Underlay};
use crate::model::{AttachRequest, Attached, BoundPort, BridgeInfo, Lead, MeshPort, Overlay, Protocol};
use crate::names::NameTable;
use crate::netns::{self, Netns, Pins, set_sysctl};
use crate::nft::{self, Held, Settled, Table};
use crate::pair::{Member, Near, connect, disconnect, pair_name};
use crate::plan::{Link, LinkKind, Neighbour, Plan, Port, Step, Vxlan};
use crate::rules::{self, Balance, HostPort, InFamily, MeshRules, SandboxRules, Target, UplinkRules};

/// The sandbox's bridge.
const BRIDGE: &str = "br0";
/// The sandbox's VXLAN device.
const VXLAN: &str = "vxlan0";
/// The sandbox's tables.
const TABLE: &str = "rswarm";
/// MTU of an underlay that cannot be found out.
const UNDERLAY_MTU: u32 = 1500;
/// Outer Ethernet, IP, UDP and VXLAN headers.
const ENCAPSULATION_V4: u32 = 50;
/// The same, on an IPv6 underlay.
const ENCAPSULATION_V6: u32 = 70;
/// The least that IPv4 must carry.
const MTU_MIN_V4: u32 = 576;
/// The least that IPv6 must carry: below, a link has none.
const MTU_MIN_V6: u32 = 1280;

/// The default bridge, through which overlays have a way out.
#[derive(Debug, Clone)]
pub struct WayOut {
    /// What it is.
    pub info: BridgeInfo,
    /// Its owner.
    pub owner: Owner<Bridge>,
}

/// Where the VXLAN device's socket is.
struct DataPath {
    netns: Netns,
    /// The source address that it can have.
    local: Option<IpAddr>,
    /// What is left for the network's own packets.
    mtu: u32,
}

/// What puts right what others change in the sandbox.
#[derive(Debug, Clone)]
pub struct Keeper {
    /// Ends with the sandbox.
    pub scope: Scope,
    /// The network itself.
    pub itself: WeakOwner<OverlayNetwork>,
}

/// The network's owner.
#[derive(Debug)]
pub struct OverlayNetwork {
    id: String,
    context: Context,
    pins: Pins,
    way_out: Option<WayOut>,
    /// The last state applied; `None` when only containers were adopted so far.
    wanted: Option<Arc<Overlay>>,
    mtu: u32,
    sandbox: Option<Netns>,
    /// The way out's address on the default bridge; the IPv6 one derives from it.
    uplink: Option<Ipv4Addr>,
    tables: Vec<Held>,
    endpoints: BTreeMap<String, Attached>,
    members: BTreeMap<String, Member>,
    keeper: Keeper,
    /// Published ports, by their place at the uplink, with the container that they belong to.
    published: BTreeMap<HostPort, (String, Target)>,
    /// What was published there by a daemon before us.
    inherited: BTreeMap<HostPort, Target>,
    /// The port of the mesh for which a place at the uplink stands.
    meshed: BTreeMap<HostPort, u16>,
    /// Ready backends of virtual addresses.
    services: Balance<IpAddr, IpAddr>,
    /// Ready backends of the mesh, by place at the uplink.
    mesh_ports: Balance<HostPort, Target>,
    /// Endpoints on nodes that the managers have lost.
    lost: lost::Lost,
    /// What still waited when the network was removed must not bring it back.
    removed: bool,
}

impl OverlayNetwork {
    /// A network that nothing was applied to yet.
    pub fn new(
        id: String,
        context: Context,
        pins: Pins,
        way_out: Option<WayOut>,
        keeper: Keeper,
    ) -> OverlayNetwork {
        OverlayNetwork {
            id,
            context,
            pins,
            way_out,
            wanted: None,
            mtu: UNDERLAY_MTU - ENCAPSULATION_V4,
            sandbox: None,
            uplink: None,
            tables: Vec::new(),
            endpoints: BTreeMap::new(),
            members: BTreeMap::new(),
            keeper,
            published: BTreeMap::new(),
            inherited: BTreeMap::new(),
            meshed: BTreeMap::new(),
            services: Balance::default(),
            mesh_ports: Balance::default(),
            lost: lost::Lost::default(),
            removed: false,
        }
    }

    /// Brings the sandbox to the wanted state; returns the steps that it took.
    pub async fn apply(&mut self, overlay: Overlay) -> Result<Vec<Step>, OverlayError> {
        derive::validate(&overlay)?;
        let sandbox = self.sandbox(&overlay.name).await?;
        let way = self.way(&overlay).await?;
        self.mtu = overlay.mtu.map_or(way.mtu, |asked| asked.min(way.mtu));
        let plan = self.plan(&overlay, way.local);
        let route = way.netns.act("netlink socket could not be opened", Route::open).await?;
        let underlay = Underlay { route, sandbox: sandbox.raw() };
        let action = format!("sandbox of network `{}` could not be brought to its state", overlay.name);
        // The descriptor must outlive the work, also when this future is dropped.
        let held = sandbox.clone();
        let has_v6 = families(&overlay).contains(&Family::V6);
        let translates = !overlay.services.is_empty() || overlay.mesh.is_some();
        let work = move || {
            let _held = held;
            // What a backend answers on the bridge must be translated back, though it is not routed. It
            // costs every frame a look, so networks that translate nothing go without.
            set_sysctl("bridge/bridge-nf-call-iptables", if translates { "1" } else { "0" });
            if has_v6 {
                settings_v6();
                set_sysctl("bridge/bridge-nf-call-ip6tables", if translates { "1" } else { "0" });
            }
            settings();
            let mut route = Route::open()?;
            route.reconcile(&plan, Some(underlay))
        };
        let (mut steps, found) = sandbox.act(action, work).await?;
        steps.extend(self.reconnect(&sandbox, &overlay, &found).await?);
        steps.extend(self.apply_uplink(&sandbox, &overlay, &found).await?);
        let woken = self.balance(&overlay);
        self.apply_rules(&sandbox, &overlay).await?;
        self.apply_mesh(&overlay).await?;
        self.keep_members(&overlay).await;
        self.follow_lost(&sandbox, &overlay).await;
        conntrack::forget(&sandbox, self.strays(&overlay, woken)).await;
        conntrack::forget(&sandbox, self.led_elsewhere(&overlay)).await;
        self.context.names.publish(&self.id, NameTable::of_overlay(&overlay));
        self.wanted = Some(Arc::new(overlay));
        tracing::debug!(network = self.id, steps = steps.len(), "overlay applied");
        Ok(steps)
    }

    /// Chooses backends; says whether a place has some again that had none.
    fn balance(&mut self, overlay: &Overlay) -> bool {
        let backends = Backends::of(overlay);
        let mut woken = self.services.update(backends.of_services(overlay));
        let mesh = overlay.mesh.as_ref().filter(|_| self.uplink.is_some());
        let published = mesh.map(|mesh| backends.published(mesh)).unwrap_or_default();
        self.assign_mesh_ports(&published, &families(overlay));
        let places: BTreeMap<_, _> = self
            .meshed
            .iter()
            .map(|(place, published)| (HostPort { port: *published, ..*place }, *place))
            .collect();
        let at_uplink = |published: HostPort| places.get(&published).copied();
        woken |= self
            .mesh_ports
            .update(mesh.map_or_else(BTreeMap::new, |mesh| backends.of_ports(mesh, at_uplink)));
        woken
    }

    /// Gives each port of the mesh one at the uplink: its own number, if no container's port has that.
    fn assign_mesh_ports(&mut self, ports: &[MeshPort], families: &[Family]) {
        let published = |port: &MeshPort| {
            let (protocol, published) = (port.protocol, port.published);
            families.iter().map(move |family| HostPort::any(*family, protocol, published))
        };
        let wanted: BTreeSet<HostPort> = ports.iter().flat_map(published).collect();
        self.meshed.retain(|place, published| wanted.contains(&HostPort { port: *published, ..*place }));
        let had: BTreeSet<HostPort> =
            self.meshed.iter().map(|(place, published)| HostPort { port: *published, ..*place }).collect();
        for published in wanted.difference(&had) {
            let place = self.free_place(*published);
            self.meshed.insert(place, published.port);
        }
    }

    /// Has the host lead what every node publishes to the uplink.
    async fn apply_mesh(&self, overlay: &Overlay) -> Result<(), KernelError> {
        let was = self.wanted.as_ref().is_some_and(|before| before.mesh.is_some());
        let (None, false) = (&overlay.mesh, was) else {
            if self.uplink.is_none() {
                let network = self.id.as_str();
                tracing::warn!(network, "ports are not published on this node: the network has no way out");
                return Ok(());
            }
            let target = |(place, published): (&HostPort, &u16)| {
                let address = self.uplink_at(place.family())?;
                Some((HostPort { port: *published, ..*place }, Target { address, port: place.port }))
            };
            let ports = self.meshed.iter().filter_map(target).collect();
            return self
                .context
                .host
                .call(move |host| Box::pin(host.set_mesh(ports)))
                .await
                .map_err(|_| shutting_down())?;
        };
        Ok(())
    }

    /// Connections that nobody answers any more: their endpoint has gone, perhaps unseen, or there was none when
    /// they began and now there is (`woken`).
    fn strays(&self, overlay: &Overlay, woken: bool) -> Doomed {
        let nodes = overlay.mesh.iter().flat_map(|mesh| {
            mesh.nodes.iter().flat_map(|node| &node.addresses).chain(&mesh.addresses).copied()
        });
        let local = self.endpoints.values().flat_map(Attached::ips);
        let live = addresses(overlay).chain(overlay.subnets.iter().map(|(_, gateway)| *gateway));
        let live: BTreeSet<IpAddr> = live.chain(nodes).chain(local).collect();
        if let (Some(before), false) = (&self.wanted, woken) {
            return Doomed::AnsweredBy(addresses(before).filter(|address| !live.contains(address)).collect());
        }
        let uplink =
            Family::ALL.into_iter().filter_map(|family| Subnet::new(self.uplink_at(family)?, family.bits()));
        let subnets = overlay.subnets.iter().map(|(subnet, _)| *subnet).chain(uplink).collect();
        Doomed::Stray { subnets, live }
    }

    /// Datagrams that were led to who is not ready any more, perhaps unseen.
    fn led_elsewhere(&self, overlay: &Overlay) -> Doomed {
        let before: BTreeSet<IpAddr> = self
            .wanted
            .as_ref()
            .map_or_else(|| addresses(overlay).collect(), |before| ready(before).collect());
        let now: BTreeSet<IpAddr> = ready(overlay).collect();
        Doomed::UdpAnsweredBy(before.difference(&now).copied().collect())
    }

    /// The sandbox: the one we have, the one that a daemon before us pinned, or a new one.
    async fn sandbox(&mut self, name: &str) -> Result<Netns, OverlayError> {
        if self.removed {
            return Err(OverlayError::Removed(name.to_owned()));
        }
        let pin = |source| {
            let path = self.pins.path(&self.id);
            OverlayError::Pin { network: name.to_owned(), path, source }
        };
        if let Some(sandbox) = &self.sandbox {
            let is_pinned = self.pins.find(&self.id).map_err(pin)?;
            if !is_pinned.is_some_and(|pinned| pinned.is_same(sandbox)) {
                tracing::warn!(network = self.id, "sandbox was not pinned any more, and is again");
                self.pins.unpin(&self.id).and_then(|()| self.pins.pin(&self.id, sandbox)).map_err(pin)?;
            }
            return Ok(sandbox.clone());
        }
        let sandbox = match self.pins.find(&self.id).map_err(pin)? {
            Some(sandbox) => sandbox,
            None => {
                let sandbox = Netns::create().await?;
                self.pins.pin(&self.id, &sandbox).map_err(pin)?;
                sandbox
            }
        };
        let enter = || {
            settings();
            let mut ports = BTreeMap::new();
            for family in netns::families() {
                let elements = nft::undisturbed(|| nft::elements(family, TABLE, rules::ANY))?;
                ports.extend(
                    elements.iter().filter_map(|(key, value)| rules::read_port(family, (key, value))),
                );
            }
            Ok(ports)
        };
        let ports = sandbox.act("sandbox could not be entered", enter).await?;
        self.keep_sandbox(&sandbox).await?;
        self.inherited = ports;
        Ok(self.sandbox.insert(sandbox).clone())
    }

    /// Where the VXLAN device sends: by the host's links; by the tunnel alone if the network is encrypted.
    async fn way(&self, overlay: &Overlay) -> Result<DataPath, OverlayError> {
        let Some(wanted) = overlay.tunnel.clone() else {
            return Ok(self.underlay(overlay).await?);
        };
        let (network, underlay) = (self.id.clone(), overlay.local_addr);
        let apply = self
            .context
            .tunnel
            .call(move |tunnel| Box::pin(async move { tunnel.apply(&network, wanted, underlay).await }));
        let tunnel = apply.await.map_err(|_| shutting_down())?;
        let tunnel =
            tunnel.map_err(|source| OverlayError::Tunnel { network: overlay.name.clone(), source })?;
        let mtu = tunnel.mtu.saturating_sub(ENCAPSULATION_V4).max(mtu_min(overlay));
        Ok(DataPath { netns: tunnel.netns, local: Some(tunnel.address.into()), mtu })
    }

    /// Finds the host's link that carries the data path.
    async fn underlay(&self, overlay: &Overlay) -> Result<DataPath, KernelError> {
        let address = overlay.local_addr;
        let find = move || Route::open()?.mtu_at(address);
        let found = self.context.home.act("links could not be listed", find).await?;
        let mtu = found.unwrap_or(UNDERLAY_MTU);
        let encapsulation = if address.is_ipv4() { ENCAPSULATION_V4 } else { ENCAPSULATION_V6 };
        // An advertised address that is not this host's (behind NAT) cannot be a source.
        let local = found.map(|_| address);
        let mtu = mtu.saturating_sub(encapsulation).max(mtu_min(overlay));
        Ok(DataPath { netns: self.context.home.clone(), local, mtu })
    }

    fn plan(&self, overlay: &Overlay, local: Option<IpAddr>) -> Plan {
        let alias = self.context.alias(&self.id);
        let port = |hairpin| Some(Port { bridge: BRIDGE.to_owned(), hairpin, isolated: false });
        let vxlan = Vxlan { vni: overlay.vni, port: overlay.data_path_port, local };
        let link = |name: &str, kind, mac, port| Link {
            name: name.to_owned(),
            kind,
            mtu: self.mtu,
            mac,
            port,
            alias: alias.clone(),
        };
        let mut links = vec![
            link(BRIDGE, LinkKind::Bridge, derive::bridge_mac(overlay), None),
            link(VXLAN, LinkKind::Vxlan(vxlan), None, port(false)),
        ];
        links.extend(self.endpoints.keys().map(|container| self.near(container)));
        let (mut neighbours, forwarding) = derive::remote_entries(overlay);
        neighbours.extend(self.endpoints.values().flat_map(local_neighbours));
        Plan {
            links,
            addresses: derive::bridge_addresses(overlay),
            neighbours,
            forwarding,
            default_routes: Vec::new(),
            marked_routes: overlay.mesh.as_ref().map(derive::mesh_routes).unwrap_or_default(),
        }
    }

    /// A container's end in the sandbox.
    fn near(&self, container: &str) -> Link {
        Link {
            name: pair_name(container, &self.id),
            kind: LinkKind::Veth,
            mtu: self.mtu,
            mac: None,
            port: Some(near_port()),
            alias: self.context.alias(container),
        }
    }

    async fn apply_rules(&mut self, sandbox: &Netns, overlay: &Overlay) -> Result<(), KernelError> {
        let rules = self.rules(overlay);
        let table = |family| rules::sandbox(family, TABLE, &rules);
        let wanted: Vec<Table> = families(overlay).into_iter().map(table).collect();
        let before = std::mem::take(&mut self.tables);
        let settle = move || nft::settle(before, wanted);
        let (held, settled) = sandbox.act("rules of the sandbox could not be changed", settle).await?;
        self.tables = held;
        if settled == Settled::Repaired {
            let network = self.id.as_str();
            tracing::warn!(network, "somebody else changed the sandbox's rules; they are put right");
        }
        Ok(())
    }

    fn rules(&self, overlay: &Overlay) -> SandboxRules {
        let ports = || self.published.iter().map(|(port, (_, target))| (*port, *target)).collect();
        let way_out = self.way_out.as_ref().filter(|_| self.uplink.is_some());
        let uplinks_v6 = self.context.uplinks_v6().and_then(|subnet| Some((subnet, subnet.nth(1)?)));
        let uplink = way_out.map(|way_out| UplinkRules {
            interface: UPLINK.to_owned(),
            neighbours: way_out.info.subnets.iter().copied().chain(uplinks_v6).collect(),
            ports: ports(),
        });
        let local = overlay.endpoints.iter().filter(|endpoint| endpoint.local);
        SandboxRules {
            bridge: BRIDGE.to_owned(),
            gateways: overlay.subnets.iter().map(|(_, gateway)| *gateway).collect(),
            uplink,
            services: self.services.clone(),
            local: local.flat_map(|endpoint| endpoint.addresses.iter().copied()).collect(),
            mesh: overlay.mesh.as_ref().map(|mesh| MeshRules {
                ports: self.mesh_ports.clone(),
                entries: derive::mesh_entries(mesh),
            }),
        }
    }

    /// Gives a container an endpoint; on an error nothing of it is left.
    pub async fn attach(&mut self, netns: Netns, request: AttachRequest) -> Result<Attached, AttachError> {
        let (Some(overlay), Some(sandbox)) = (self.wanted.clone(), self.sandbox.clone()) else {
            return Err(AttachError::NoSuchNetwork(self.id.clone()));
        };
        let container = request.container_id.clone();
        if self.endpoints.contains_key(&container) {
            return Err(AttachError::AlreadyAttached { container, network: overlay.name.clone() });
        }
        let mut attached = derive::describe(&overlay, &request)?;
        let inside = self.inside(&overlay, &attached, &request.default_routes);
        let near = Near { link: self.near(&container), port: near_port(), is_routed: true };
        let rules = connect(&sandbox, near, &netns, inside).await?;
        let default_routes = request.default_routes.clone();
        let member = Member { netns, default_routes, rules };
        self.members.insert(container.clone(), member);
        self.endpoints.insert(container.clone(), attached.clone());
        match self.publish(&container, &attached, &request.lead(), &overlay).await {
            Ok(ports) => attached.ports = ports,
            Err(error) => {
                self.detach(&container).await?;
                return Err(error);
            }
        }
        self.endpoints.insert(container, attached.clone());
        Ok(attached)
    }

    /// Leads a container this way in families whose default route went elsewhere, and publishes its ports there.
    pub async fn lead(&mut self, container: String, lead: Lead) -> Result<Vec<BoundPort>, AttachError> {
        let known = self.endpoints.get(&container).cloned().zip(self.members.get_mut(&container));
        let (Some((attached, member)), Some(overlay)) = (known, self.wanted.clone()) else {
            return Err(AttachError::NoSuchNetwork(self.id.clone()));
        };
        member.lead(&attached, &lead.families).await?;
        let ports = self.publish(&container, &attached, &lead, &overlay).await?;
        self.endpoints.entry(container).and_modify(|attached| attached.ports.extend(ports.iter().cloned()));
        Ok(ports)
    }

    /// Leads a container this way no more in some families.
    pub async fn unlead(&mut self, container: String, families: Vec<Family>) -> Result<(), KernelError> {
        let known = self.endpoints.get_mut(&container).zip(self.members.get_mut(&container));
        let (Some((attached, member)), Some(sandbox)) = (known, self.sandbox.clone()) else { return Ok(()) };
        let Some(gone) = member.unlead(attached, &families) else { return Ok(()) };
        self.published.retain(|place, (owner, _)| *owner != container || !families.contains(&place.family()));
        withdraw(&self.context.host, self.endpoint(&container), families).await?;
        if let Some(overlay) = self.wanted.clone() {
            self.apply_rules(&sandbox, &overlay).await?;
        }
        conntrack::forget(&sandbox, Doomed::AnsweredBy(gone)).await;
        Ok(())
    }

    /// Publishes in two steps: the host leads to a port of the uplink, the sandbox from there to the
    /// container, whose answers come back the same way because the sandbox is its gateway.
    async fn publish(
        &mut self,
        container: &str,
        attached: &Attached,
        lead: &Lead,
        overlay: &Overlay,
    ) -> Result<Vec<BoundPort>, AttachError> {
        if lead.publish.is_empty() || overlay.internal {
            return Ok(Vec::new());
        }
        let (Some(_), Some(sandbox)) = (self.uplink, self.sandbox.clone()) else {
            return Err(AttachError::NotPublishable(overlay.name.clone()));
        };
        let mut ports = Vec::new();
        for binding in lead.publish.iter().cloned() {
            let asked = |inside: &IpAddr| {
                binding.host_ip.is_none_or(|host_ip| Family::of(host_ip) == Family::of(*inside))
            };
            let mut ways = Vec::new();
            for inside in lead.published(attached).filter(asked) {
                let Some(address) = self.uplink_at(Family::of(inside)) else { continue };
                let target = Target { address: inside, port: binding.container_port };
                let port = self.expose(container, binding.protocol, target);
                ways.push(Way { inside, target: Target { address, port } });
            }
            ports.push(Publish { binding, ways });
        }
        self.apply_rules(&sandbox, overlay).await?;
        bridge::publish(&self.context.host, self.endpoint(container), ports).await
    }

    /// Chooses the uplink's port for a target: the one that it had, the container's own, or the next that
    /// is free.
    fn expose(&mut self, container: &str, protocol: Protocol, target: Target) -> u16 {
        let is_it = |(place, had): &(&HostPort, &Target)| place.protocol == protocol && **had == target;
        let mut had = self.inherited.iter().filter(is_it).map(|(place, _)| *place);
        let had = had.find(|place| !self.is_taken(*place));
        let wanted = HostPort::any(Family::of(target.address), protocol, target.port);
        let place = had.unwrap_or_else(|| self.free_place(wanted));
        self.published.insert(place, (container.to_owned(), target));
        place.port
    }

    fn is_taken(&self, place: HostPort) -> bool {
        self.published.contains_key(&place) || self.meshed.contains_key(&place)
    }

    /// A place at the uplink: this one, or the one with the next port that is free.
    fn free_place(&self, wanted: HostPort) -> HostPort {
        let from = wanted.port.max(1);
        let candidates = (from..=u16::MAX).chain(1..from).map(|port| HostPort { port, ..wanted });
        let free = candidates.into_iter().find(|place| !self.is_taken(*place));
        free.expect("one network publishes fewer than 65535 ports on one host")
    }

    fn endpoint(&self, container: &str) -> Endpoint {
        Endpoint { container: container.to_owned(), network: self.id.clone() }
    }

    /// Takes a container out; one that has no endpoint is no error.
    pub async fn detach(&mut self, container: &str) -> Result<(), KernelError> {
        let Some(endpoint) = self.endpoints.get(container).cloned() else { return Ok(()) };
        let Some(sandbox) = self.sandbox.clone() else { return Ok(()) };
        let published = self.published.len();
        self.published.retain(|_, (owner, _)| owner != container);
        if self.published.len() != published {
            withdraw(&self.context.host, self.endpoint(container), Family::ALL.to_vec()).await?;
            // Before the network's state is known again its rules stay as they are.
            if let Some(overlay) = self.wanted.clone() {
                self.apply_rules(&sandbox, &overlay).await?;
            }
        }
        conntrack::forget(&sandbox, Doomed::AnsweredBy(endpoint.ips().collect())).await;
        let pair = pair_name(container, &self.id);
        let neighbours = self.forsaken(&endpoint);
        let action = format!("link `{pair}` could not be removed");
        sandbox.act(action, move || Route::open()?.disconnect(&pair, &neighbours)).await?;
        self.endpoints.remove(container);
        self.members.remove(container);
        Ok(())
    }

    /// A container's entries in the bridge's neighbour table, those left out that lead to another node by now.
    fn forsaken(&self, endpoint: &Attached) -> Vec<Neighbour> {
        let remote = self.wanted.as_deref().map(|overlay| derive::remote_entries(overlay).0);
        let moved = |address| remote.iter().flatten().any(|entry| entry.address == address);
        local_neighbours(endpoint).filter(|entry| !moved(entry.address)).collect()
    }

    /// Takes over an endpoint that exists; the network's state may come later.
    pub async fn adopt(
        &mut self,
        container: &str,
        netns: &Netns,
        attached: Attached,
    ) -> Result<(), OverlayError> {
        let sandbox = self.sandbox(&self.id.clone()).await?;
        let member = Member::adopt(netns, &attached.interface).await?;
        self.members.insert(container.to_owned(), member);
        if self.uplink.is_none()
            && let Some(way_out) = self.way_out.clone()
        {
            let list = || Route::open()?.list();
            let found = sandbox.act("links of the sandbox could not be listed", list).await?;
            if let Some(had) = uplink_address(&found) {
                self.uplink = Some(self.reserve_again(&way_out, had).await?);
            }
        }
        let mut ports = Vec::new();
        for port in &attached.ports {
            let family = Family::of(port.host_ip);
            let (Some(uplink), Some(inside)) = (self.uplink_at(family), attached.of(family)) else {
                continue;
            };
            let target = Target { address: inside.address, port: port.container_port };
            let exposed = self.expose(container, port.protocol, target);
            ports.push((port.clone(), Target { address: uplink, port: exposed }));
        }
        if !ports.is_empty() {
            // Until the network's state is known again, the rules of the daemon before us do.
            if let Some(overlay) = self.wanted.clone() {
                self.apply_rules(&sandbox, &overlay).await?;
            }
            adopt_ports(&self.context.host, self.endpoint(container), ports).await?;
        }
        self.endpoints.insert(container.to_owned(), attached);
        Ok(())
    }

    /// Withdraws what leads into this sandbox from every node's ports, also when a daemon before us did it.
    async fn leave_mesh(&self) -> Result<(), OverlayError> {
        let sandbox = self.sandbox.clone().or_else(|| self.pins.find(&self.id).ok().flatten());
        let address = match (self.uplink, sandbox) {
            (None, Some(sandbox)) => {
                let list = || Route::open()?.list();
                uplink_address(&sandbox.act("links of the sandbox could not be listed", list).await?)
            }
            (address, _) => address,
        };
        let addresses = [address.map(IpAddr::V4), address.and_then(|address| self.uplink_v6(address))];
        for address in addresses.into_iter().flatten() {
            let left = self.context.host.call(move |host| Box::pin(host.leave_mesh(address))).await;
            left.map_err(|_| shutting_down())??;
        }
        Ok(())
    }

    /// Removes the sandbox, and all that leads to it.
    pub async fn close(&mut self) -> Result<(), OverlayError> {
        self.keeper.scope.cancel();
        self.context.names.remove(&self.id);
        self.leave_mesh().await?;
        let containers: Vec<String> = self.endpoints.keys().cloned().collect();
        for container in containers {
            self.detach(&container).await?;
        }
        disconnect(&self.context.home, &self.uplink_name()).await?;
        self.release_uplink().await;
        let sandbox = match self.sandbox.take() {
            Some(sandbox) => Some(sandbox),
            None => self.pins.find(&self.id).ok().flatten(),
        };
        if let Some(sandbox) = sandbox {
            // At once, not when the last reference to the namespace goes: the same network may come back.
            disconnect(&sandbox, VXLAN).await?;
        }
        let id = self.id.clone();
        let release =
            self.context.tunnel.call(move |tunnel| Box::pin(async move { tunnel.release(&id).await }));
        let released = release.await.map_err(|_| shutting_down())?;
        released.map_err(|source| OverlayError::Tunnel { network: self.id.clone(), source })?;
        let path = self.pins.path(&self.id);
        let network = self.wanted.take().map_or_else(|| self.id.clone(), |overlay| overlay.name.clone());
        self.pins.unpin(&self.id).map_err(|source| OverlayError::Pin { network, path, source })?;
        self.removed = true;
        Ok(())
    }
}

/// Settings of a sandbox, in the calling thread's namespace.
fn settings() {
    set_sysctl("ipv4/ip_forward", "1");
    // The gateway is on the containers' own link: it must not tell them to go around it.
    set_sysctl("ipv4/conf/all/send_redirects", "0");
    set_sysctl("ipv4/conf/default/send_redirects", "0");
    // A client of the mesh comes in by the bridge, and the way to it may be another one.
    set_sysctl("ipv4/conf/all/rp_filter", "0");
    set_sysctl("ipv4/conf/default/rp_filter", "0");
}

/// The same for IPv6, before the sandbox has links: they are born with it.
fn settings_v6() {
    for conf in ["all", "default"] {
        set_sysctl(&format!("ipv6/conf/{conf}/disable_ipv6"), "0");
        set_sysctl(&format!("ipv6/conf/{conf}/forwarding"), "1");
        set_sysctl(&format!("ipv6/conf/{conf}/accept_ra"), "0");
        set_sysctl(&format!("ipv6/conf/{conf}/accept_dad"), "0");
    }
}

/// The least MTU that its packets can do with.
fn mtu_min(overlay: &Overlay) -> u32 {
    if families(overlay).contains(&Family::V6) { MTU_MIN_V6 } else { MTU_MIN_V4 }
}

/// The families of a network's addresses.
fn families(overlay: &Overlay) -> Vec<Family> {
    let has = |family: &Family| overlay.subnets.iter().any(|(subnet, _)| subnet.family() == *family);
    Family::ALL.into_iter().filter(has).collect()
}

/// How a container's end is a port of the bridge: what it sends to a virtual address may come back to it.
fn near_port() -> Port {
    Port { bridge: BRIDGE.to_owned(), hairpin: true, isolated: false }
}

/// A container on this node, as the bridge's neighbour.
fn local_neighbours(endpoint: &Attached) -> impl Iterator<Item = Neighbour> {
    endpoint.ips().map(|address| Neighbour { link: BRIDGE.to_owned(), address, mac: endpoint.mac })
}

/// The addresses of all endpoints.
fn addresses(overlay: &Overlay) -> impl Iterator<Item = IpAddr> {
    overlay.endpoints.iter().flat_map(|endpoint| endpoint.addresses.iter().copied())
}

/// Addresses of endpoints that new connections are led to.
fn ready(overlay: &Overlay) -> impl Iterator<Item = IpAddr> {
    let ready = overlay.endpoints.iter().filter(|endpoint| endpoint.ready);
    ready.flat_map(|endpoint| endpoint.addresses.iter().copied())
}
