//! What the managers' table means for one node's sandbox. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use rswarm_base::ipam::{Family, Subnet, mac_for};

use super::{BRIDGE, VXLAN};
use crate::error::{AttachError, OverlayError};
use crate::model::{
    AttachRequest, Attached, Balancing, Mac, Mesh, MeshNode, MeshPort, Overlay, OverlayEndpoint, Pick, Placed,
};
use crate::plan::{Address, Forward, MarkedRoute, Neighbour};
use crate::rules::{HostPort, Target};

/// VXLAN network identifiers have 24 bits.
const VNI_MAX: u32 = (1 << 24) - 1;

/// The endpoint that a container asks for.
pub fn describe(overlay: &Overlay, request: &AttachRequest) -> Result<Attached, AttachError> {
    let outside = |address| AttachError::AddressOutside { address, network: overlay.name.clone() };
    let placed = |address: &IpAddr| {
        let (subnet, gateway) = place(overlay, *address).ok_or_else(|| outside(*address))?;
        let gateway = (!overlay.internal).then_some(gateway);
        Ok(Placed { address: *address, prefix: subnet.prefix(), gateway })
    };
    let mut addresses = request.addresses.iter().map(placed).collect::<Result<Vec<_>, AttachError>>()?;
    addresses.sort_by_key(|placed| Family::of(placed.address));
    let first = addresses.first().ok_or_else(|| AttachError::AddressMissing(overlay.name.clone()))?.address;
    let known = overlay.endpoints.iter().find(|endpoint| endpoint.addresses.contains(&first));
    let derived = Mac(mac_for(first));
    Ok(Attached {
        network_id: request.network_id.clone(),
        interface: request.interface.clone(),
        addresses,
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
    let gateways = overlay.subnets.iter().map(|(_, gateway)| *gateway);
    gateways.min_by_key(|gateway| Family::of(*gateway)).map(|gateway| Mac(mac_for(gateway)))
}

/// What the bridge answers for: gateways, this node's address in the mesh, virtual addresses.
pub fn bridge_addresses(overlay: &Overlay) -> BTreeSet<Address> {
    let on_bridge = |address, prefix| Address { link: BRIDGE.to_owned(), address, prefix };
    let gateways = overlay.subnets.iter().map(|(subnet, gateway)| on_bridge(*gateway, subnet.prefix()));
    let mesh = overlay.mesh.iter().flat_map(|mesh| &mesh.addresses).filter_map(|address| {
        place(overlay, *address).map(|(subnet, _)| on_bridge(*address, subnet.prefix()))
    });
    let virtual_ones = overlay.services.iter().flat_map(|service| &service.addresses);
    let virtual_ones = virtual_ones.map(|address| on_bridge(*address, Family::of(*address).bits()));
    gateways.chain(mesh).chain(virtual_ones).collect()
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
        node.addresses.iter().for_each(|address| add(*address, node.mac, node.node_addr));
    }
    (neighbours, forwarding)
}

/// The MAC of the router on each other node.
fn routers(overlay: &Overlay) -> BTreeMap<IpAddr, Mac> {
    let nodes = overlay.mesh.iter().flat_map(|mesh| &mesh.nodes);
    nodes.map(|node| (node.node_addr, node.mac)).collect()
}

/// The mark of connections that came in through another node: its address in the mesh.
fn mark(node: &MeshNode) -> Option<u32> {
    let [_, _, rest @ ..] = mac_for(*node.addresses.first()?);
    Some(u32::from_be_bytes(rest))
}

/// Where the answers to such connections go: back to that node.
pub fn mesh_routes(mesh: &Mesh) -> BTreeSet<MarkedRoute> {
    let to =
        |node: &MeshNode, gateway| Some(MarkedRoute { mark: mark(node)?, link: BRIDGE.to_owned(), gateway });
    let mut routes = BTreeSet::new();
    for node in &mesh.nodes {
        routes.extend(node.addresses.iter().filter_map(|gateway| to(node, *gateway)));
    }
    routes
}

/// The mark that each other node's router gives its connections.
pub fn mesh_entries(mesh: &Mesh) -> BTreeMap<Mac, u32> {
    mesh.nodes.iter().filter_map(|node| Some((node.mac, mark(node)?))).collect()
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

    fn of_service(&self, service: &str, balancing: Balancing) -> impl Iterator<Item = &'a OverlayEndpoint> {
        let all = self.by_service.get(service).map_or(&[][..], Vec::as_slice);
        let near = balancing.local_only || (balancing.local_first && all.iter().any(|backend| backend.local));
        all.iter().copied().filter(move |backend| backend.local || !near)
    }

    /// The ports that this node publishes.
    pub fn published(&self, mesh: &Mesh) -> Vec<MeshPort> {
        let has_task = |port: &&MeshPort| self.of_service(&port.service_id, port.balancing).next().is_some();
        let wanted = mesh.ports.iter().filter(|port| !port.balancing.local_only || has_task(port));
        wanted.cloned().collect()
    }

    /// The backends of each virtual address.
    pub fn of_services(&self, overlay: &Overlay) -> BTreeMap<IpAddr, (Pick, BTreeSet<IpAddr>)> {
        let services = overlay.services.iter().flat_map(|service| {
            // What is published only here is still everybody's inside.
            let balancing = Balancing { local_only: false, ..service.balancing };
            service.addresses.iter().map(move |address| {
                let backends = self.of_service(&service.id, balancing);
                let backends = backends.filter_map(|backend| first(backend, Family::of(*address)));
                (*address, (balancing.pick, backends.collect()))
            })
        });
        services.collect()
    }

    /// The backends of each port that every node publishes. A task whose node is not known yet as a router
    /// could not answer: it waits for that.
    pub fn of_ports(
        &self,
        mesh: &Mesh,
        at_uplink: impl Fn(HostPort) -> Option<HostPort>,
    ) -> BTreeMap<HostPort, (Pick, BTreeSet<Target>)> {
        let reachable =
            |endpoint: &&OverlayEndpoint| endpoint.local || self.routers.contains_key(&endpoint.node_addr);
        let mut ports = BTreeMap::new();
        for port in &mesh.ports {
            for family in Family::ALL {
                let published = HostPort::any(family, port.protocol, port.published);
                let Some(place) = at_uplink(published) else { continue };
                let backends = self.of_service(&port.service_id, port.balancing).filter(reachable);
                let backends = backends.filter_map(|endpoint| first(endpoint, family));
                let targets = backends.map(|address| Target { address, port: port.target });
                ports.insert(place, (port.balancing.pick, targets.collect()));
            }
        }
        ports
    }
}

/// The endpoint's first address of a family.
fn first(endpoint: &OverlayEndpoint, family: Family) -> Option<IpAddr> {
    endpoint.addresses.iter().copied().find(|address| Family::of(*address) == family)
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
    let wrong = |address: &&IpAddr| place(overlay, **address).is_none() || taken(**address);
    for service in &overlay.services {
        if let Some(address) = service.addresses.iter().find(wrong) {
            let name = &service.name;
            return Some(format!("virtual address {address} of service `{name}` is not of its subnets"));
        }
    }
    let own = overlay.mesh.as_ref().and_then(|mesh| mesh.addresses.iter().find(wrong))?;
    Some(format!("this node's address {own} is not of its subnets"))
}
