//! An endpoint table as the managers sent it, as the network crate wants it. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use rswarm_base::Timestamp;
use rswarm_base::ipam::Subnet;
use rswarm_engine::network::{ByWords, OverlayFacts};
use rswarm_network::tunnel::Secret;
use rswarm_network::{
    Balancing, Mac, Mesh, MeshNode, MeshPort, NamedPort, Overlay, OverlayEndpoint, OverlayService,
    OverlayTunnel, Pick, Protocol, TunnelPeer,
};
use rswarm_proto::wire::{NetworkEndpoint, NetworkNode, NetworkService, PortConfig, balancing};
use rswarm_worker::ExecError;
use rswarm_worker::assignments::NetworkView;

use super::executor::failure;
use super::tunnel::OwnKey;

/// VXLAN's port when the cluster names none.
const DATA_PATH_PORT: u16 = 4789;

/// The overlay that `view` asks for on the node `node_id`, whose VXLAN traffic goes by `data_path`; in an encrypted
/// network, by a tunnel whose end here has `own_key`.
pub(super) fn overlay(
    view: &NetworkView,
    node_id: &str,
    data_path: IpAddr,
    own_key: &OwnKey,
) -> Result<Overlay, ExecError> {
    let spec = view.network.spec.clone().unwrap_or_default();
    let mut subnets = Vec::new();
    for config in &view.network.ipam {
        let subnet: Subnet = config.subnet.parse().map_err(|error| failure(&error))?;
        subnets.push((subnet, address(&config.gateway)?));
    }
    let port = u16::try_from(view.data_path_port).ok().filter(|port| *port != 0);
    let endpoints =
        view.endpoints.values().map(|endpoint| overlay_endpoint(view, endpoint, node_id, data_path));
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
        tunnel: view.network.is_encrypted().then(|| tunnel(view, node_id, own_key)).transpose()?,
    })
}

fn tunnel(view: &NetworkView, node_id: &str, own_key: &OwnKey) -> Result<OverlayTunnel, ExecError> {
    let waits = |what: &str| ExecError(format!("the managers have not said yet {what}"));
    let secret = view.tunnel.as_ref().ok_or_else(|| waits("by which key the network is encrypted"))?;
    let own = view.nodes.get(node_id).and_then(|node| node.tunnel.as_ref());
    let own = own.ok_or_else(|| waits("what address this node has in the tunnel"))?;
    let others = view.nodes.values().filter(|node| node.node_id != node_id);
    Ok(OverlayTunnel {
        version: view.version,
        private: own_key.beside(secret.made_at).map_err(|error| failure(&error))?,
        psk: Secret::new(key(&secret.psk)?),
        port: own_key.port(),
        address: address_v4(&own.address)?,
        peers: others.filter_map(|node| tunnel_peer(node).transpose()).collect::<Result<_, _>>()?,
    })
}

/// A node as a peer; nothing before it said its key.
fn tunnel_peer(node: &NetworkNode) -> Result<Option<TunnelPeer>, ExecError> {
    let Some(tunnel) = &node.tunnel else { return Ok(None) };
    let said = tunnel.key.clone().unwrap_or_default();
    Ok(Some(TunnelPeer {
        node: node.node_id.clone(),
        public: key(&said.public_key)?,
        address: address_v4(&tunnel.address)?,
        endpoint: (address(&node.node_addr)?, port(said.port)?).into(),
    }))
}

fn key(bytes: &[u8]) -> Result<[u8; 32], ExecError> {
    bytes
        .try_into()
        .map_err(|_| ExecError(format!("the manager sent {} bytes where a key belongs", bytes.len())))
}

fn address_v4(text: &str) -> Result<Ipv4Addr, ExecError> {
    match address(text)? {
        IpAddr::V4(address) => Ok(address),
        IpAddr::V6(_) => Err(ExecError(format!("the manager sent `{text}` where an IPv4 address belongs"))),
    }
}

/// Where frames for a node go: to its end of the tunnel if the network is encrypted, and nowhere while it has none.
fn way_to(view: &NetworkView, node_id: &str, node_addr: &str) -> Result<IpAddr, ExecError> {
    if !view.network.is_encrypted() {
        return address(node_addr);
    }
    match view.nodes.get(node_id).and_then(|node| node.tunnel.as_ref()) {
        Some(tunnel) => address(&tunnel.address),
        None => Ok(Ipv4Addr::UNSPECIFIED.into()),
    }
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

/// A network that this node makes by its own words.
pub(super) fn by_words(view: &NetworkView) -> ByWords {
    let spec = view.network.spec.clone().unwrap_or_default();
    ByWords {
        id: view.network.id.clone(),
        name: spec.annotations.clone().map(|annotations| annotations.name).unwrap_or_default(),
        driver: spec.driver,
        config_from: spec.config_from,
        internal: spec.internal,
        facts: facts(view),
    }
}

fn overlay_endpoint(
    view: &NetworkView,
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
        node_addr: if local { data_path } else { way_to(view, &endpoint.node_id, &endpoint.node_addr)? },
        local,
        ready: endpoint.ready,
        started: endpoint.started,
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
        addresses: addresses(&service.address, &service.addresses)?,
        balancing: balancing(service),
        ports: named_ports(service)?,
    })
}

fn balancing(service: &NetworkService) -> Balancing {
    let wanted = service.balancing.unwrap_or_default();
    Balancing {
        pick: match wanted.pick() {
            balancing::Pick::Random => Pick::Random,
            balancing::Pick::SourceHash => Pick::SourceHash,
            balancing::Pick::Sticky => Pick::Sticky,
        },
        local_first: wanted.local_first,
        local_only: wanted.local_only,
    }
}

/// The mesh as this node has it; nothing for other networks, and where this node has no address in it.
fn mesh(view: &NetworkView, node_id: &str) -> Result<Option<Mesh>, ExecError> {
    let routers = || view.nodes.values().filter(|node| !node.address.is_empty());
    let Some(own) = routers().find(|node| node.node_id == node_id) else { return Ok(None) };
    let others = routers().filter(|node| node.node_id != node_id);
    let ports =
        view.services.values().flat_map(|service| service.ports.iter().map(move |port| (service, port)));
    Ok(Some(Mesh {
        addresses: addresses(&own.address, &own.addresses)?,
        mac: mac(&own.mac)?,
        nodes: others.map(|node| mesh_node(view, node)).collect::<Result<_, _>>()?,
        ports: ports.map(|(service, port)| mesh_port(service, port)).collect::<Result<_, _>>()?,
    }))
}

fn mesh_node(view: &NetworkView, node: &NetworkNode) -> Result<MeshNode, ExecError> {
    Ok(MeshNode {
        addresses: addresses(&node.address, &node.addresses)?,
        mac: mac(&node.mac)?,
        node_addr: way_to(view, &node.node_id, &node.node_addr)?,
    })
}

fn port(number: u32) -> Result<u16, ExecError> {
    u16::try_from(number).map_err(|_| ExecError(format!("the manager sent `{number}` where a port belongs")))
}

fn mesh_port(service: &NetworkService, port: &PortConfig) -> Result<MeshPort, ExecError> {
    Ok(MeshPort {
        protocol: protocol(&port.protocol)?,
        published: self::port(port.published)?,
        target: self::port(port.target)?,
        service_id: service.service_id.clone(),
        balancing: balancing(service),
    })
}

fn protocol(name: &str) -> Result<Protocol, ExecError> {
    Protocol::named(name)
        .ok_or_else(|| ExecError(format!("the manager sent `{name}` where a protocol belongs")))
}

/// The ports that have names.
fn named_ports(service: &NetworkService) -> Result<Vec<NamedPort>, ExecError> {
    let named = service.ports.iter().filter(|port| !port.name.is_empty());
    let read = |port: &PortConfig| {
        Ok(NamedPort {
            name: port.name.clone(),
            protocol: protocol(&port.protocol)?,
            port: self::port(port.target)?,
        })
    };
    named.map(read).collect()
}

/// All addresses; a manager of an earlier version sends one.
fn addresses(one: &str, all: &[String]) -> Result<Vec<IpAddr>, ExecError> {
    match (one, all) {
        ("", []) => Ok(Vec::new()),
        (one, []) => Ok(vec![address(one)?]),
        (_, all) => all.iter().map(|text| address(text)).collect(),
    }
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
    use rswarm_proto::wire::{IpamConfig, Network, TunnelKey, TunnelPeer as WireTunnelPeer, TunnelSecret};

    use super::*;

    fn node(id: &str, last: u8) -> (String, NetworkNode) {
        let node = NetworkNode {
            node_id: id.into(),
            address: format!("10.0.0.{last}/24"),
            mac: format!("02:42:0a:00:00:{last:02x}"),
            node_addr: format!("192.0.2.{last}"),
            ..NetworkNode::default()
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

    /// One that no file is made for.
    fn own_key() -> OwnKey {
        OwnKey::new("/nonexistent/tunnel.json".into(), 51820)
    }

    #[test]
    fn an_encrypted_network_has_its_peers_inside_the_tunnel() {
        let dir = tempfile::tempdir().expect("a directory");
        let own_key = OwnKey::new(dir.path().join("tunnel.json"), 51820);
        let mut view = view();
        view.version = 9;
        let spec = view.network.spec.get_or_insert_default();
        spec.options.insert("encrypted".to_owned(), String::new());
        let data_path = IpAddr::from([192, 0, 2, 2]);
        let error = overlay(&view, "a", data_path, &own_key).expect_err("there is no key yet");
        assert!(error.0.ends_with("by which key the network is encrypted"), "{error}");
        view.tunnel = Some(TunnelSecret { psk: vec![5; 32], made_at: 1, removals: 0 });
        for (n, id) in [(1u8, "a"), (2, "b")] {
            let key = Some(TunnelKey { public_key: vec![n; 32], port: 51820 });
            let node = view.nodes.get_mut(id).expect("a node");
            node.address.clear();
            node.tunnel = Some(WireTunnelPeer { address: format!("10.0.0.{n}"), key });
        }
        let endpoint = |node: &str| NetworkEndpoint {
            task_id: node.to_owned(),
            addresses: vec!["10.0.9.9/24".to_owned()],
            mac: "02:42:0a:00:09:09".to_owned(),
            node_id: node.to_owned(),
            node_addr: "192.0.2.77".to_owned(),
            ..NetworkEndpoint::default()
        };
        view.endpoints = ["b", "c"].map(|node| (node.to_owned(), endpoint(node))).into();
        let overlay = overlay(&view, "a", data_path, &own_key).expect("an overlay");
        assert_eq!(overlay.mesh, None);
        assert_eq!(overlay.endpoints[0].node_addr, IpAddr::from([10, 0, 0, 2]));
        assert!(overlay.endpoints[1].node_addr.is_unspecified(), "without a tunnel it is nowhere");
        let tunnel = overlay.tunnel.expect("encrypted");
        assert_eq!((tunnel.address, tunnel.version), (Ipv4Addr::new(10, 0, 0, 1), 9));
        let peer = TunnelPeer {
            node: "b".to_owned(),
            public: [2; 32],
            address: Ipv4Addr::new(10, 0, 0, 2),
            endpoint: ([192, 0, 2, 3], 51820).into(),
        };
        assert_eq!(tunnel.peers, [peer]);
    }

    #[test]
    fn a_node_is_a_router_among_the_others_of_the_mesh() {
        let data_path = IpAddr::from([192, 0, 2, 3]);
        let mesh = overlay(&view(), "b", data_path, &own_key()).expect("an overlay").mesh.expect("a mesh");
        assert_eq!((mesh.addresses, mesh.mac.0[5]), (vec![IpAddr::from([10, 0, 0, 3])], 3));
        let other = MeshNode {
            addresses: vec![IpAddr::from([10, 0, 0, 2])],
            mac: Mac([2, 66, 10, 0, 0, 2]),
            node_addr: IpAddr::from([192, 0, 2, 2]),
        };
        assert_eq!(mesh.nodes, [other]);
        let (protocol, service_id) = (Protocol::Tcp, "s".to_owned());
        assert_eq!(
            mesh.ports,
            [MeshPort { protocol, published: 8080, target: 80, service_id, balancing: Balancing::default() }]
        );
    }

    #[test]
    fn a_network_without_routers_is_no_mesh_and_nonsense_is_refused() {
        let data_path = IpAddr::from([192, 0, 2, 3]);
        let plain = overlay(&view(), "c", data_path, &own_key()).expect("an overlay");
        assert_eq!(
            (plain.mesh, &plain.services[0].addresses[..]),
            (None, &[IpAddr::from([10, 0, 0, 9])][..])
        );
        let mut wrong = view();
        wrong.services.values_mut().for_each(|service| service.ports[0].published = 70_000);
        let error = overlay(&wrong, "b", data_path, &own_key()).expect_err("refused");
        assert_eq!(error.0, "the manager sent `70000` where a port belongs");
    }
}
