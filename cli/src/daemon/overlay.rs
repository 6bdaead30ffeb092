//! An endpoint table as the managers sent it, as the network crate wants it. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use rswarm_base::Timestamp;
use rswarm_base::ipam::Subnet;
use rswarm_engine::network::OverlayFacts;
use rswarm_network::{Mac, Mesh, MeshNode, MeshPort, Overlay, OverlayEndpoint, OverlayService, Protocol};
use rswarm_proto::wire::{NetworkEndpoint, NetworkNode, NetworkService, PortConfig};
use rswarm_worker::ExecError;
use rswarm_worker::assignments::NetworkView;

use super::executor::failure;

/// VXLAN's port when the cluster names none.
const DATA_PATH_PORT: u16 = 4789;

/// The overlay that `view` asks for on the node `node_id`, whose VXLAN traffic goes by `data_path`.
pub(super) fn overlay(view: &NetworkView, node_id: &str, data_path: IpAddr) -> Result<Overlay, ExecError> {
    let spec = view.network.spec.clone().unwrap_or_default();
    let mut subnets = Vec::new();
    for config in &view.network.ipam {
        let subnet: Subnet = config.subnet.parse().map_err(|error| failure(&error))?;
        subnets.push((subnet, address(&config.gateway)?));
    }
    let port = u16::try_from(view.data_path_port).ok().filter(|port| *port != 0);
    let endpoints = view.endpoints.values().map(|endpoint| overlay_endpoint(endpoint, node_id, data_path));
    Ok(Overlay {
        network_id: view.network.id.clone(),
        name: spec.annotations.map(|annotations| annotations.name).unwrap_or_default(),
        vni: view.network.vni,
        subnets,
        mtu: mtu(&spec.options)?,
        data_path_port: port.unwrap_or(DATA_PATH_PORT),
        local_addr: data_path,
        internal: spec.internal,
        endpoints: endpoints.collect::<Result<_, _>>()?,
        services: view.services.values().map(overlay_service).collect::<Result<_, _>>()?,
        mesh: mesh(view, node_id)?,
    })
}

/// What users of this node see of the network.
pub(super) fn facts(view: &NetworkView) -> OverlayFacts {
    let spec = view.network.spec.clone().unwrap_or_default();
    let annotations = spec.annotations.unwrap_or_default();
    OverlayFacts {
        created: Timestamp(view.network.meta.unwrap_or_default().created_at),
        attachable: spec.attachable,
        ingress: spec.ingress,
        options: spec.options,
        labels: annotations.labels,
    }
}

fn overlay_endpoint(
    endpoint: &NetworkEndpoint,
    node_id: &str,
    data_path: IpAddr,
) -> Result<OverlayEndpoint, ExecError> {
    let local = endpoint.node_id == node_id;
    Ok(OverlayEndpoint {
        task_id: endpoint.task_id.clone(),
        service_id: endpoint.service_id.clone(),
        service_name: endpoint.service_name.clone(),
        slot_name: endpoint.task_name.clone(),
        container_names: container_names(endpoint),
        aliases: endpoint.aliases.clone(),
        addresses: endpoint.addresses.iter().map(|cidr| address(cidr)).collect::<Result<_, _>>()?,
        mac: mac(&endpoint.mac)?,
        node_addr: if local { data_path } else { address(&endpoint.node_addr)? },
        local,
        ready: endpoint.ready,
    })
}

/// A task's container has its full name, one of a node's own those that it brought.
fn container_names(endpoint: &NetworkEndpoint) -> Vec<String> {
    match endpoint.task_name.as_str() {
        "" => endpoint.names.clone(),
        task => vec![format!("{task}.{}", endpoint.task_id)],
    }
}

fn overlay_service(service: &NetworkService) -> Result<OverlayService, ExecError> {
    Ok(OverlayService {
        id: service.service_id.clone(),
        name: service.name.clone(),
        aliases: service.aliases.clone(),
        address: address(&service.address)?,
    })
}

/// The mesh as this node has it; nothing for other networks, and where this node has no address in it.
fn mesh(view: &NetworkView, node_id: &str) -> Result<Option<Mesh>, ExecError> {
    let Some(own) = view.nodes.get(node_id) else { return Ok(None) };
    let others = view.nodes.values().filter(|node| node.node_id != node_id);
    let ports =
        view.services.values().flat_map(|service| service.ports.iter().map(move |port| (service, port)));
    Ok(Some(Mesh {
        address: address(&own.address)?,
        mac: mac(&own.mac)?,
        nodes: others.map(mesh_node).collect::<Result<_, _>>()?,
        ports: ports.map(|(service, port)| mesh_port(service, port)).collect::<Result<_, _>>()?,
    }))
}

fn mesh_node(node: &NetworkNode) -> Result<MeshNode, ExecError> {
    Ok(MeshNode {
        address: address(&node.address)?,
        mac: mac(&node.mac)?,
        node_addr: address(&node.node_addr)?,
    })
}

fn mesh_port(service: &NetworkService, port: &PortConfig) -> Result<MeshPort, ExecError> {
    let number = |number: u32| {
        u16::try_from(number)
            .map_err(|_| ExecError(format!("the manager sent `{number}` where a port belongs")))
    };
    let protocol = match port.protocol.as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => return Err(ExecError(format!("the manager sent `{other}` where a protocol belongs"))),
    };
    Ok(MeshPort {
        protocol,
        published: number(port.published)?,
        target: number(port.target)?,
        service_id: service.service_id.clone(),
    })
}

/// An address, with or without a prefix length.
pub(super) fn address(text: &str) -> Result<IpAddr, ExecError> {
    let ip = text.split('/').next().unwrap_or_default();
    ip.parse().map_err(|_| ExecError(format!("the manager sent `{text}` where an address belongs")))
}

pub(super) fn mac(text: &str) -> Result<Mac, ExecError> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    bytes.map(Mac).ok_or_else(|| ExecError(format!("the manager sent `{text}` where a MAC address belongs")))
}

fn mtu(options: &BTreeMap<String, String>) -> Result<Option<u32>, ExecError> {
    let text = options.get("com.docker.network.driver.mtu");
    text.map(|text| text.parse().map_err(|_| ExecError(format!("invalid MTU `{text}`")))).transpose()
}

#[cfg(test)]
mod tests {
    use rswarm_proto::wire::{IpamConfig, Network};

    use super::*;

    fn node(id: &str, last: u8) -> (String, NetworkNode) {
        let node = NetworkNode {
            node_id: id.into(),
            address: format!("10.0.0.{last}/24"),
            mac: format!("02:42:0a:00:00:{last:02x}"),
            node_addr: format!("192.0.2.{last}"),
        };
        (id.into(), node)
    }

    fn view() -> NetworkView {
        let ipam =
            IpamConfig { subnet: "10.0.0.0/24".into(), gateway: "10.0.0.1".into(), ..IpamConfig::default() };
        let port =
            PortConfig { protocol: "tcp".into(), published: 8080, target: 80, ..PortConfig::default() };
        let web = NetworkService {
            service_id: "s".into(),
            name: "web".into(),
            address: "10.0.0.9".into(),
            ports: vec![port],
            ..NetworkService::default()
        };
        NetworkView {
            network: Network { id: "n".into(), vni: 4096, ipam: vec![ipam], ..Network::default() },
            services: [("s".to_owned(), web)].into(),
            nodes: [node("a", 2), node("b", 3)].into(),
            ..NetworkView::default()
        }
    }

    #[test]
    fn a_node_is_a_router_among_the_others_of_the_mesh() {
        let data_path = IpAddr::from([192, 0, 2, 3]);
        let mesh = overlay(&view(), "b", data_path).expect("an overlay").mesh.expect("a mesh");
        assert_eq!((mesh.address, mesh.mac.0[5]), (IpAddr::from([10, 0, 0, 3]), 3));
        let other = MeshNode {
            address: IpAddr::from([10, 0, 0, 2]),
            mac: Mac([2, 66, 10, 0, 0, 2]),
            node_addr: IpAddr::from([192, 0, 2, 2]),
        };
        assert_eq!(mesh.nodes, [other]);
        let (protocol, service_id) = (Protocol::Tcp, "s".to_owned());
        assert_eq!(mesh.ports, [MeshPort { protocol, published: 8080, target: 80, service_id }]);
    }

    #[test]
    fn a_network_without_routers_is_no_mesh_and_nonsense_is_refused() {
        let data_path = IpAddr::from([192, 0, 2, 3]);
        let plain = overlay(&view(), "c", data_path).expect("an overlay");
        assert_eq!((plain.mesh, plain.services[0].address), (None, IpAddr::from([10, 0, 0, 9])));
        let mut wrong = view();
        wrong.services.values_mut().for_each(|service| service.ports[0].published = 70_000);
        let error = overlay(&wrong, "b", data_path).expect_err("refused");
        assert_eq!(error.0, "the manager sent `70000` where a port belongs");
    }
}
