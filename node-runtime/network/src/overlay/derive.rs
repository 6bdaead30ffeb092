//! What the managers' table means for one node's sandbox. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use rswarm_base::ipam::{Subnet, mac_for};

use super::{BRIDGE, VXLAN};
use crate::error::{AttachError, OverlayError};
use crate::model::{AttachRequest, Attached, Mac, Mesh, Overlay, OverlayEndpoint, Protocol};
use crate::plan::{Address, Forward, MarkedRoute, Neighbour};
use crate::rules::Target;

/// VXLAN network identifiers have 24 bits.
const VNI_MAX: u32 = (1 << 24) - 1;

/// The endpoint that a container asks for.
pub fn describe(overlay: &Overlay, request: &AttachRequest) -> Result<Attached, AttachError> {
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

/// The subnet and the gateway that a container's address belongs to.
pub fn place(overlay: &Overlay, address: IpAddr) -> Option<(Subnet, IpAddr)> {
    overlay.subnets.iter().find(|(subnet, _)| subnet.contains(address)).copied()
}

/// The MAC of the bridge: the same on every node, as is the gateway's address, so that a container that
/// moves keeps its gateway. Routers of the mesh must be told apart and have their own.
pub fn bridge_mac(overlay: &Overlay) -> Option<Mac> {
    if let Some(mesh) = &overlay.mesh {
        return Some(mesh.mac);
    }
    gateway(overlay).map(|gateway| Mac(mac_for(gateway)))
}

/// The first gateway.
pub fn gateway(overlay: &Overlay) -> Option<Ipv4Addr> {
    overlay.subnets.iter().find_map(|(_, gateway)| v4(*gateway))
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

/// What the bridge answers for: gateways, this node's address in the mesh, virtual addresses.
pub fn bridge_addresses(overlay: &Overlay) -> BTreeSet<Address> {
    let on_bridge = |address, prefix| Address { link: BRIDGE.to_owned(), address, prefix };
    let gateways = overlay.subnets.iter().map(|(subnet, gateway)| on_bridge(*gateway, subnet.prefix()));
    let mesh = overlay.mesh.iter().filter_map(|mesh| {
        place(overlay, mesh.address).map(|(subnet, _)| on_bridge(mesh.address, subnet.prefix()))
    });
    let virtual_ones = overlay.services.iter().filter_map(|service| v4(service.address));
    gateways.chain(mesh).chain(virtual_ones.map(|address| on_bridge(address.into(), 32))).collect()
}

/// Neighbours and VXLAN destinations of all endpoints and routers elsewhere. The device answers containers'
/// questions from its neighbours; the bridge's own are for what the sandbox routes.
pub fn remote_entries(overlay: &Overlay) -> (BTreeSet<Neighbour>, BTreeSet<Forward>) {
    let (mut neighbours, mut forwarding) = (BTreeSet::new(), BTreeSet::new());
    let mut add = |address: IpAddr, mac: Mac, node: IpAddr| {
        // There is no way to it yet: the network is encrypted, and its node has no key.
        if node.is_unspecified() {
            return;
        }
        for link in [VXLAN, BRIDGE] {
            neighbours.insert(Neighbour { link: link.to_owned(), address, mac });
        }
        forwarding.insert(Forward { link: VXLAN.to_owned(), mac, node });
    };
    let routers = routers(overlay);
    for endpoint in overlay.endpoints.iter().filter(|endpoint| !endpoint.local) {
        let mac = routers.get(&endpoint.node_addr).copied().unwrap_or(endpoint.mac);
        endpoint.addresses.iter().for_each(|address| add(*address, mac, endpoint.node_addr));
    }
    for node in overlay.mesh.iter().flat_map(|mesh| &mesh.nodes) {
        add(node.address, node.mac, node.node_addr);
    }
    (neighbours, forwarding)
}

/// The MAC of the router on each other node.
fn routers(overlay: &Overlay) -> BTreeMap<IpAddr, Mac> {
    let nodes = overlay.mesh.iter().flat_map(|mesh| &mesh.nodes);
    nodes.map(|node| (node.node_addr, node.mac)).collect()
}

/// The mark of connections that came in through another node: its address in the mesh.
fn mark(address: IpAddr) -> Option<u32> {
    v4(address).map(Ipv4Addr::to_bits)
}

/// Where the answers to such connections go: back to that node.
pub fn mesh_routes(mesh: &Mesh) -> BTreeSet<MarkedRoute> {
    let route = |node: &crate::model::MeshNode| {
        let mark = mark(node.address)?;
        Some(MarkedRoute { mark, link: BRIDGE.to_owned(), gateway: node.address })
    };
    mesh.nodes.iter().filter_map(route).collect()
}

/// The mark that each other node's router gives its connections.
pub fn mesh_entries(mesh: &Mesh) -> BTreeMap<Mac, u32> {
    mesh.nodes.iter().filter_map(|node| Some((node.mac, mark(node.address)?))).collect()
}

/// Ready endpoints, by service.
pub struct Backends<'a> {
    by_service: BTreeMap<&'a str, Vec<&'a OverlayEndpoint>>,
    routers: BTreeMap<IpAddr, Mac>,
}

impl<'a> Backends<'a> {
    /// Of a network.
    pub fn of(overlay: &'a Overlay) -> Backends<'a> {
        let mut by_service: BTreeMap<&str, Vec<&OverlayEndpoint>> = BTreeMap::new();
        for endpoint in overlay.endpoints.iter().filter(|endpoint| endpoint.ready) {
            by_service.entry(&endpoint.service_id).or_default().push(endpoint);
        }
        Backends { by_service, routers: routers(overlay) }
    }

    fn of_service(&self, service: &str) -> impl Iterator<Item = &'a OverlayEndpoint> {
        self.by_service.get(service).into_iter().flatten().copied()
    }

    /// The backends of each virtual address.
    pub fn of_services(&self, overlay: &Overlay) -> BTreeMap<Ipv4Addr, BTreeSet<Ipv4Addr>> {
        let services = overlay.services.iter().filter_map(|service| {
            let backends = self.of_service(&service.id).filter_map(first_v4);
            Some((v4(service.address)?, backends.collect()))
        });
        services.collect()
    }

    /// The backends of each port that every node publishes. A task whose node is not known yet as a router
    /// could not answer: it waits for that.
    pub fn of_ports(
        &self,
        mesh: &Mesh,
        at_uplink: impl Fn(Protocol, u16) -> Option<u16>,
    ) -> BTreeMap<(Protocol, u16), BTreeSet<Target>> {
        let reachable =
            |endpoint: &&OverlayEndpoint| endpoint.local || self.routers.contains_key(&endpoint.node_addr);
        let ports = mesh.ports.iter().filter_map(|port| {
            let backends = self.of_service(&port.service_id).filter(reachable).filter_map(first_v4);
            let targets = backends.map(|address| Target { address, port: port.target });
            Some(((port.protocol, at_uplink(port.protocol, port.published)?), targets.collect()))
        });
        ports.collect()
    }
}

fn first_v4(endpoint: &OverlayEndpoint) -> Option<Ipv4Addr> {
    endpoint.addresses.iter().find_map(|address| v4(*address))
}

/// Refuses what cannot be brought about.
pub fn validate(overlay: &Overlay) -> Result<(), OverlayError> {
    match reason(overlay) {
        Some(reason) => Err(OverlayError::Invalid { network: overlay.name.clone(), reason }),
        None => Ok(()),
    }
}

fn reason(overlay: &Overlay) -> Option<String> {
    let id = &overlay.network_id;
    if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Some(format!("`{id}` is no network identifier"));
    }
    if overlay.vni == 0 || overlay.vni > VNI_MAX {
        return Some(format!("VXLAN network identifier {} is not in 1..={VNI_MAX}", overlay.vni));
    }
    if overlay.subnets.is_empty() {
        return Some("it has no subnet".to_owned());
    }
    if let Some((subnet, gateway)) =
        overlay.subnets.iter().find(|(subnet, gateway)| !subnet.contains(*gateway))
    {
        return Some(format!("gateway {gateway} is not in subnet {subnet}"));
    }
    let taken = |address: IpAddr| overlay.subnets.iter().any(|(_, gateway)| *gateway == address);
    for service in &overlay.services {
        let address = service.address;
        if place(overlay, address).is_none() || taken(address) {
            let name = &service.name;
            return Some(format!("virtual address {address} of service `{name}` is not of its subnets"));
        }
    }
    let mesh = overlay.mesh.as_ref().map(|mesh| mesh.address)?;
    (place(overlay, mesh).is_none() || taken(mesh))
        .then(|| format!("this node's address {mesh} is not of its subnets"))
}
