//! One overlay network: its sandbox, brought to the endpoint table that the managers sent.
//!
//! The sandbox is a network namespace pinned to a file. It holds a bridge with the gateway's address, a
//! VXLAN device whose socket is in the daemon's namespace, one end of each container's pair and, unless
//! the network is internal, an uplink to the default bridge. Everything in it is listed, compared and
//! corrected at each application, so a restarted daemon adopts it and a stale entry does not last.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use rswarm_base::ipam::{Subnet, mac_for};

use crate::actor::Owner;
use crate::bridge::{
    self, Bridge, Context, Inside, adopt_ports, connect, disconnect, pair_name, shutting_down, withdraw,
};
use crate::conntrack::{self, Doomed};
use crate::error::{AttachError, KernelError, OverlayError};
use crate::host::{Endpoint, Publish};
use crate::link::{Route, Underlay};
use crate::model::{AttachRequest, Attached, BoundPort, BridgeInfo, Mac, Overlay, PortBinding, Protocol};
use crate::names::NameTable;
use crate::netns::{Netns, Pins, set_sysctl};
use crate::nft::{self, Table};
use crate::plan::{Address, Forward, Found, Link, LinkKind, Neighbour, Plan, Port, Step, Vxlan};
use crate::rules::{self, SandboxRules, Target};

/// The sandbox's bridge.
const BRIDGE: &str = "br0";
/// The sandbox's VXLAN device.
const VXLAN: &str = "vxlan0";
/// The sandbox's end of the pair to the default bridge.
const UPLINK: &str = "uplink0";
/// The sandbox's table.
const TABLE: &str = "rswarm";
/// MTU of an underlay that cannot be found out.
const UNDERLAY_MTU: u32 = 1500;
/// Outer Ethernet, IP, UDP and VXLAN headers.
const ENCAPSULATION_V4: u32 = 50;
/// The same, on an IPv6 underlay.
const ENCAPSULATION_V6: u32 = 70;
/// The least that IPv4 must carry.
const MTU_MIN: u32 = 576;
/// VXLAN network identifiers have 24 bits.
const VNI_MAX: u32 = (1 << 24) - 1;

/// The default bridge, through which overlays have a way out.
#[derive(Debug, Clone)]
pub struct WayOut {
    /// What it is.
    pub info: BridgeInfo,
    /// Its owner.
    pub owner: Owner<Bridge>,
}

/// The network's owner.
#[derive(Debug)]
pub struct OverlayNetwork {
    id: String,
    context: Context,
    pins: Pins,
    way_out: Option<WayOut>,
    /// The last state applied; `None` when only containers were adopted so far.
    wanted: Option<Overlay>,
    mtu: u32,
    sandbox: Option<Netns>,
    uplink: Option<Ipv4Addr>,
    table: Option<Table>,
    endpoints: BTreeMap<String, Attached>,
    /// Published ports, by protocol and port at the uplink, with the container that they belong to.
    published: BTreeMap<(Protocol, u16), (String, Target)>,
    /// What still waited when the network was removed must not bring it back.
    removed: bool,
}

impl OverlayNetwork {
    /// A network that nothing was applied to yet.
    pub fn new(id: String, context: Context, pins: Pins, way_out: Option<WayOut>) -> OverlayNetwork {
        OverlayNetwork {
            id,
            context,
            pins,
            way_out,
            wanted: None,
            mtu: UNDERLAY_MTU - ENCAPSULATION_V4,
            sandbox: None,
            uplink: None,
            table: None,
            endpoints: BTreeMap::new(),
            published: BTreeMap::new(),
            removed: false,
        }
    }

    /// Brings the sandbox to the wanted state; returns the steps that it took.
    pub async fn apply(&mut self, overlay: Overlay) -> Result<Vec<Step>, OverlayError> {
        validate(&overlay)?;
        let sandbox = self.sandbox(&overlay.name).await?;
        let local = self.underlay(&overlay).await?;
        let plan = self.plan(&overlay, local);
        let route = self.context.home.act("netlink socket could not be opened", Route::open).await?;
        let underlay = Underlay { route, sandbox: sandbox.raw() };
        let action = format!("sandbox of network `{}` could not be brought to its state", overlay.name);
        // The descriptor must outlive the work, also when this future is dropped.
        let held = sandbox.clone();
        let work = move || {
            let _held = held;
            let mut route = Route::open()?;
            let steps = route.reconcile(&plan, Some(underlay))?;
            Ok((steps, route.list()?))
        };
        let (mut steps, found) = sandbox.act(action, work).await?;
        steps.extend(self.apply_uplink(&sandbox, &overlay, &found).await?);
        self.apply_rules(&sandbox).await?;
        self.context.names.publish(&self.id, NameTable::of_overlay(&overlay));
        self.wanted = Some(overlay);
        tracing::debug!(network = self.id, steps = steps.len(), "overlay applied");
        Ok(steps)
    }

    /// The sandbox: the one we have, the one that a daemon before us pinned, or a new one.
    async fn sandbox(&mut self, name: &str) -> Result<Netns, OverlayError> {
        if self.removed {
            return Err(OverlayError::Removed(name.to_owned()));
        }
        if let Some(sandbox) = &self.sandbox {
            return Ok(sandbox.clone());
        }
        let pin = |source| {
            let path = self.pins.path(&self.id);
            OverlayError::Pin { network: name.to_owned(), path, source }
        };
        let sandbox = match self.pins.find(&self.id).map_err(pin)? {
            Some(sandbox) => sandbox,
            None => {
                let sandbox = Netns::create().await?;
                self.pins.pin(&self.id, &sandbox).map_err(pin)?;
                sandbox
            }
        };
        let settings = || {
            set_sysctl("ipv4/ip_forward", "1");
            // The gateway is on the containers' own link: it must not tell them to go around it.
            set_sysctl("ipv4/conf/all/send_redirects", "0");
            set_sysctl("ipv4/conf/default/send_redirects", "0");
            Ok(())
        };
        sandbox.act("sandbox could not be entered", settings).await?;
        Ok(self.sandbox.insert(sandbox).clone())
    }

    /// Finds the link that carries the data path: sets the MTU by it, and says which source address the
    /// VXLAN device can have.
    async fn underlay(&mut self, overlay: &Overlay) -> Result<Option<IpAddr>, KernelError> {
        let list = || Route::open()?.list();
        let found = self.context.home.act("links could not be listed", list).await?;
        let address = found.addresses.iter().find(|entry| entry.address == overlay.local_addr);
        let mtu = address
            .and_then(|entry| found.links.iter().find(|link| link.link.name == entry.link))
            .map_or(UNDERLAY_MTU, |link| link.link.mtu);
        let encapsulation = if overlay.local_addr.is_ipv4() { ENCAPSULATION_V4 } else { ENCAPSULATION_V6 };
        let most = mtu.saturating_sub(encapsulation).max(MTU_MIN);
        self.mtu = overlay.mtu.map_or(most, |asked| asked.min(most));
        // An advertised address that is not this host's (behind NAT) cannot be a source.
        Ok(address.map(|entry| entry.address))
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
            link(BRIDGE, LinkKind::Bridge, gateway_mac(overlay), None),
            link(VXLAN, LinkKind::Vxlan(vxlan), None, port(false)),
        ];
        links.extend(self.endpoints.keys().map(|container| self.near(container)));
        let gateways = overlay.subnets.iter().map(|(subnet, gateway)| Address {
            link: BRIDGE.to_owned(),
            address: *gateway,
            prefix: subnet.prefix(),
        });
        let (neighbours, forwarding) = remote_entries(overlay);
        Plan { links, addresses: gateways.collect(), neighbours, forwarding, default_route: None }
    }

    /// A container's end in the sandbox.
    fn near(&self, container: &str) -> Link {
        Link {
            name: pair_name(container, &self.id),
            kind: LinkKind::Veth,
            mtu: self.mtu,
            mac: None,
            port: Some(Port { bridge: BRIDGE.to_owned(), hairpin: true, isolated: false }),
            alias: self.context.alias(container),
        }
    }

    /// Makes, corrects or removes the way out.
    async fn apply_uplink(
        &mut self,
        sandbox: &Netns,
        overlay: &Overlay,
        found: &Found,
    ) -> Result<Vec<Step>, OverlayError> {
        let exists = found.links.iter().any(|link| link.link.name == UPLINK);
        let way_out = self.way_out.clone().filter(|_| !overlay.internal);
        let Some(way_out) = way_out else {
            if exists {
                disconnect(&self.context.home, &self.uplink_name()).await?;
            }
            self.release_uplink().await;
            return Ok(Vec::new());
        };
        let address = match self.uplink {
            Some(address) => address,
            None => self.reserve_uplink(&way_out, overlay, found).await?,
        };
        self.uplink = Some(address);
        let near = self.uplink_link(&way_out.info);
        let inside = self.uplink_inside(&way_out.info, address);
        if exists {
            return Ok(self.correct_uplink(sandbox, near, inside).await?);
        }
        connect(&self.context.home, near.clone(), sandbox, inside).await?;
        Ok(vec![Step::CreateLink(near)])
    }

    fn uplink_name(&self) -> String {
        pair_name(&self.id, "uplink")
    }

    fn uplink_link(&self, bridge: &BridgeInfo) -> Link {
        Link {
            name: self.uplink_name(),
            kind: LinkKind::Veth,
            mtu: UNDERLAY_MTU,
            mac: None,
            port: Some(Port { bridge: bridge.interface.clone(), hairpin: true, isolated: false }),
            alias: self.context.alias(&self.id),
        }
    }

    fn uplink_inside(&self, bridge: &BridgeInfo, address: Ipv4Addr) -> Inside {
        Inside {
            interface: UPLINK.to_owned(),
            mac: Mac(mac_for(address)),
            mtu: UNDERLAY_MTU,
            address: address.into(),
            prefix: bridge.subnet.prefix(),
            default_route: Some(bridge.gateway),
        }
    }

    async fn correct_uplink(
        &self,
        sandbox: &Netns,
        near: Link,
        inside: Inside,
    ) -> Result<Vec<Step>, KernelError> {
        let action = || format!("link `{}` could not be corrected", self.uplink_name());
        let near = Plan { links: vec![near], ..Plan::default() };
        let mut steps =
            self.context.home.act(action(), move || Route::open()?.reconcile(&near, None)).await?;
        let inside = inside.plan();
        steps.extend(sandbox.act(action(), move || Route::open()?.reconcile(&inside, None)).await?);
        Ok(steps)
    }

    /// Takes an address of the default bridge: the one that the uplink has, if it has one.
    async fn reserve_uplink(
        &self,
        way_out: &WayOut,
        overlay: &Overlay,
        found: &Found,
    ) -> Result<Ipv4Addr, OverlayError> {
        let had = uplink_address(found).map(IpAddr::V4).filter(|had| way_out.info.subnet.contains(*had));
        let reserved = way_out
            .owner
            .call(move |bridge| {
                let reserved = bridge.reserve_address(had);
                Box::pin(std::future::ready(reserved))
            })
            .await
            .unwrap_or(Err(AttachError::ShuttingDown));
        match reserved {
            Ok(IpAddr::V4(address)) => Ok(address),
            Ok(other @ IpAddr::V6(_)) => {
                let source = Box::new(AttachError::PortFamily(other));
                Err(OverlayError::Uplink { network: overlay.name.clone(), source })
            }
            Err(source) => {
                Err(OverlayError::Uplink { network: overlay.name.clone(), source: Box::new(source) })
            }
        }
    }

    async fn release_uplink(&mut self) {
        let (Some(address), Some(way_out)) = (self.uplink.take(), &self.way_out) else { return };
        // An owner that ended needs nothing back.
        let _ = way_out
            .owner
            .call(move |bridge| {
                bridge.release_address(address.into());
                Box::pin(std::future::ready(()))
            })
            .await;
    }

    async fn apply_rules(&mut self, sandbox: &Netns) -> Result<(), KernelError> {
        let wanted = match (&self.way_out, self.uplink) {
            (Some(way_out), Some(_)) => sandbox_rules(&way_out.info, &self.published),
            _ => None,
        };
        let wanted = wanted.map(|rules| rules::sandbox(TABLE, &rules));
        if wanted.is_none() && self.table.is_none() {
            return Ok(());
        }
        let before = self.table.take();
        let commit = move || {
            nft::commit(before.as_ref(), wanted.as_ref(), TABLE)?;
            Ok(wanted)
        };
        self.table = sandbox.act("rules of the sandbox could not be changed", commit).await?;
        Ok(())
    }

    /// Gives a container an endpoint; on an error nothing of it is left.
    pub async fn attach(&mut self, netns: Netns, request: AttachRequest) -> Result<Attached, AttachError> {
        let (Some(overlay), Some(sandbox)) = (self.wanted.clone(), self.sandbox.clone()) else {
            return Err(AttachError::NoSuchNetwork(self.id.clone()));
        };
        let container = request.container_id.clone();
        if self.endpoints.contains_key(&container) {
            return Err(AttachError::AlreadyAttached { container, network: overlay.name });
        }
        let mut attached = describe(&overlay, &request)?;
        let inside = Inside {
            interface: attached.interface.clone(),
            mac: attached.mac,
            mtu: self.mtu,
            address: attached.address,
            prefix: attached.prefix,
            default_route: attached.gateway.filter(|_| request.default_route),
        };
        connect(&sandbox, self.near(&container), &netns, inside).await?;
        self.endpoints.insert(container.clone(), attached.clone());
        match self.publish(&container, attached.address, request.publish, &overlay).await {
            Ok(ports) => attached.ports = ports,
            Err(error) => {
                self.detach(&container).await?;
                return Err(error);
            }
        }
        self.endpoints.insert(container, attached.clone());
        Ok(attached)
    }

    /// Publishes in two steps: the host leads to a port of the uplink, the sandbox from there to the
    /// container, whose answers come back the same way because the sandbox is its gateway.
    async fn publish(
        &mut self,
        container: &str,
        address: IpAddr,
        bindings: Vec<PortBinding>,
        overlay: &Overlay,
    ) -> Result<Vec<BoundPort>, AttachError> {
        if bindings.is_empty() || overlay.internal {
            return Ok(Vec::new());
        }
        let (Some(uplink), Some(sandbox), IpAddr::V4(inside)) = (self.uplink, self.sandbox.clone(), address)
        else {
            return Err(AttachError::NotPublishable(overlay.name.clone()));
        };
        let mut ports = Vec::new();
        for binding in bindings {
            let target = Target { address: inside, port: binding.container_port };
            let port = self.expose(container, binding.protocol, target);
            ports.push(Publish { binding, target: Target { address: uplink, port } });
        }
        self.apply_rules(&sandbox).await?;
        bridge::publish(&self.context.host, self.endpoint(container), ports, address).await
    }

    /// Chooses the uplink's port for a target: the container's own port, or the next that is free.
    fn expose(&mut self, container: &str, protocol: Protocol, target: Target) -> u16 {
        let from = target.port.max(1);
        let candidates = (from..=u16::MAX).chain(1..from);
        let port = candidates
            .into_iter()
            .find(|port| !self.published.contains_key(&(protocol, *port)))
            .expect("one network publishes fewer than 65535 ports on one host");
        self.published.insert((protocol, port), (container.to_owned(), target));
        port
    }

    fn endpoint(&self, container: &str) -> Endpoint {
        Endpoint { container: container.to_owned(), network: self.id.clone() }
    }

    /// Takes a container out; one that has no endpoint is no error.
    pub async fn detach(&mut self, container: &str) -> Result<(), KernelError> {
        let Some(address) = self.endpoints.get(container).map(|endpoint| endpoint.address) else {
            return Ok(());
        };
        let Some(sandbox) = self.sandbox.clone() else { return Ok(()) };
        let published = self.published.len();
        self.published.retain(|_, (owner, _)| owner != container);
        if self.published.len() != published {
            withdraw(&self.context.host, self.endpoint(container)).await?;
            self.apply_rules(&sandbox).await?;
        }
        conntrack::forget(&sandbox, Doomed::AnsweredBy(address)).await;
        disconnect(&sandbox, &pair_name(container, &self.id)).await?;
        self.endpoints.remove(container);
        Ok(())
    }

    /// Takes over an endpoint that exists; the network's state may come later.
    pub async fn adopt(&mut self, container: &str, attached: Attached) -> Result<(), OverlayError> {
        let sandbox = self.sandbox(&self.id.clone()).await?;
        if self.uplink.is_none()
            && let Some(way_out) = self.way_out.clone()
        {
            let list = || Route::open()?.list();
            let found = sandbox.act("links of the sandbox could not be listed", list).await?;
            if let Some(had) = uplink_address(&found) {
                self.uplink = Some(self.reserve_again(&way_out, had).await?);
            }
        }
        if let (Some(uplink), IpAddr::V4(inside)) = (self.uplink, attached.address) {
            let mut ports = Vec::new();
            for port in &attached.ports {
                let target = Target { address: inside, port: port.container_port };
                let exposed = self.expose(container, port.protocol, target);
                ports.push((port.clone(), Target { address: uplink, port: exposed }));
            }
            if !ports.is_empty() {
                self.apply_rules(&sandbox).await?;
                adopt_ports(&self.context.host, self.endpoint(container), ports).await?;
            }
        }
        self.endpoints.insert(container.to_owned(), attached);
        Ok(())
    }

    async fn reserve_again(&self, way_out: &WayOut, had: Ipv4Addr) -> Result<Ipv4Addr, KernelError> {
        match way_out
            .owner
            .call(move |bridge| {
                let reserved = bridge.reserve_address(Some(had.into()));
                Box::pin(std::future::ready(reserved))
            })
            .await
            .map_err(|_| shutting_down())?
        {
            Ok(IpAddr::V4(address)) => Ok(address),
            // Its subnet changed while we were away: applying the network gives it another one.
            Ok(IpAddr::V6(_)) | Err(_) => Ok(had),
        }
    }

    /// Removes the sandbox, and all that leads to it.
    pub async fn close(&mut self) -> Result<(), OverlayError> {
        self.context.names.remove(&self.id);
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
        let path = self.pins.path(&self.id);
        let network = self.wanted.take().map_or_else(|| self.id.clone(), |overlay| overlay.name);
        self.pins.unpin(&self.id).map_err(|source| OverlayError::Pin { network, path, source })?;
        self.removed = true;
        Ok(())
    }
}

fn uplink_address(found: &Found) -> Option<Ipv4Addr> {
    found.addresses.iter().find_map(|entry| match entry.address {
        IpAddr::V4(address) if entry.link == UPLINK => Some(address),
        _ => None,
    })
}

fn sandbox_rules(
    bridge: &BridgeInfo,
    published: &BTreeMap<(Protocol, u16), (String, Target)>,
) -> Option<SandboxRules> {
    let IpAddr::V4(gateway) = bridge.gateway else { return None };
    let ports = published.iter().map(|(port, (_, target))| (*port, *target)).collect();
    Some(SandboxRules { uplink: UPLINK.to_owned(), bridge_subnet: bridge.subnet, gateway, ports })
}

fn describe(overlay: &Overlay, request: &AttachRequest) -> Result<Attached, AttachError> {
    let address = request.address.ok_or_else(|| AttachError::AddressMissing(overlay.name.clone()))?;
    let place = overlay.subnets.iter().find(|(subnet, _)| subnet.contains(address));
    let (subnet, gateway) =
        place.ok_or_else(|| AttachError::AddressOutside { address, network: overlay.name.clone() })?;
    let known = overlay.endpoints.iter().find(|endpoint| endpoint.addresses.contains(&address));
    let derived = match address {
        IpAddr::V4(address) => Mac(mac_for(address)),
        IpAddr::V6(_) => Mac([0x02, 0x42, 0, 0, 0, 1]),
    };
    Ok(Attached {
        network_id: request.network_id.clone(),
        interface: request.interface.clone(),
        address,
        prefix: subnet.prefix(),
        gateway: (!overlay.internal).then_some(*gateway),
        mac: request.mac.or(known.map(|endpoint| endpoint.mac)).unwrap_or(derived),
        ports: Vec::new(),
        names: request.names.clone(),
    })
}

/// The same on every node, as is the address: a container that moves keeps its gateway.
fn gateway_mac(overlay: &Overlay) -> Option<Mac> {
    overlay.subnets.iter().find_map(|(_, gateway)| match gateway {
        IpAddr::V4(gateway) => Some(Mac(mac_for(*gateway))),
        IpAddr::V6(_) => None,
    })
}

/// Neighbours and VXLAN destinations of all endpoints elsewhere.
fn remote_entries(overlay: &Overlay) -> (BTreeSet<Neighbour>, BTreeSet<Forward>) {
    let (mut neighbours, mut forwarding) = (BTreeSet::new(), BTreeSet::new());
    for endpoint in overlay.endpoints.iter().filter(|endpoint| !endpoint.local) {
        let link = || VXLAN.to_owned();
        neighbours.extend(endpoint.addresses.iter().map(|address| Neighbour {
            link: link(),
            address: *address,
            mac: endpoint.mac,
        }));
        forwarding.insert(Forward { link: link(), mac: endpoint.mac, node: endpoint.node_addr });
    }
    (neighbours, forwarding)
}

fn validate(overlay: &Overlay) -> Result<(), OverlayError> {
    let id = &overlay.network_id;
    let plain = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let gateway_outside = |(subnet, gateway): &&(Subnet, IpAddr)| !subnet.contains(*gateway);
    let reason = if !plain {
        Some(format!("`{id}` is no network identifier"))
    } else if overlay.vni == 0 || overlay.vni > VNI_MAX {
        Some(format!("VXLAN network identifier {} is not in 1..={VNI_MAX}", overlay.vni))
    } else if overlay.subnets.is_empty() {
        Some("it has no subnet".to_owned())
    } else {
        let outside = overlay.subnets.iter().find(gateway_outside);
        outside.map(|(subnet, gateway)| format!("gateway {gateway} is not in subnet {subnet}"))
    };
    match reason {
        Some(reason) => Err(OverlayError::Invalid { network: overlay.name.clone(), reason }),
        None => Ok(()),
    }
}
