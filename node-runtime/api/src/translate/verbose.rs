//! `network inspect --verbose`: the nodes on a cluster network, and the services with their tasks. Docker reads this
//! from its gossip, on each node; here the managers know.

use std::collections::BTreeMap;

use rswarm_engine::TunnelPeerStatus;
use rswarm_proto::model::object::Stored;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire;

use super::ports;
use crate::types;

/// All that may be on a network.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) services: Vec<wire::Service>,
    pub(crate) tasks: Vec<wire::Task>,
    pub(crate) nodes: Vec<wire::Node>,
    /// What this node's tunnel knows of others; nothing for a network in the clear.
    pub(crate) tunnel: Vec<TunnelPeerStatus>,
}

impl Cluster {
    /// Adds what there is to say of the network.
    pub(crate) fn describe(&self, network: &mut types::NetworkInspect) {
        let id = network.id.clone();
        let on_it = self.nodes.iter().filter(|node| self.is_on(node, &id));
        network.peers = on_it.map(|node| self.peer(node, &id)).collect();
        let services = self.services.iter().filter_map(|service| self.service(service, &id));
        network.services = services.collect();
    }

    fn tasks_on<'a>(&'a self, network: &'a str) -> impl Iterator<Item = (&'a wire::Task, &'a str)> {
        let present =
            |task: &&wire::Task| task.observed() >= TaskState::Assigned && !task.observed().is_terminal();
        self.tasks
            .iter()
            .filter(present)
            .filter_map(move |task| Some((task, address(&task.networks, network)?)))
    }

    fn is_on(&self, node: &wire::Node, network: &str) -> bool {
        let is_router = address(node.mesh.as_slice(), network).is_some();
        is_router || self.tasks_on(network).any(|(task, _)| task.node_id == node.id)
    }

    fn peer(&self, node: &wire::Node, network: &str) -> types::PeerInfo {
        let named = node.description.as_ref().map_or("", |description| &description.hostname);
        let name = if node.name().is_empty() { named } else { node.name() };
        let status = self.tunnel.iter().find(|status| status.node == node.id);
        types::PeerInfo {
            name: name.to_owned(),
            ip: data_path(node),
            table_version: node.tables.get(network).copied().unwrap_or(0),
            tunnel: status.map(tunnel_out),
        }
    }

    fn service(&self, service: &wire::Service, network: &str) -> Option<(String, types::NetworkServiceInfo)> {
        let endpoint = service.endpoint.clone().unwrap_or_default();
        let vip = endpoint.virtual_ips.iter().find(|vip| vip.network_id == network);
        let own = self.tasks_on(network).filter(|(task, _)| task.service_id == service.id);
        let tasks: Vec<_> = own.map(|(task, address)| self.task(task, address)).collect();
        if vip.is_none() && tasks.is_empty() {
            return None;
        }
        let shown = endpoint.ports.iter().map(ports::service_port_out);
        let shown =
            shown.map(|port| format!("Target: {}, Publish: {}", port.target_port, port.published_port));
        let info = types::NetworkServiceInfo {
            vip: vip.map(|vip| without_prefix(&vip.address)).unwrap_or_default(),
            ports: shown.collect(),
            tasks,
            ..types::NetworkServiceInfo::default()
        };
        Some((service.name().to_owned(), info))
    }

    fn task(&self, task: &wire::Task, address: &str) -> types::NetworkServiceTask {
        let node = self.nodes.iter().find(|node| node.id == task.node_id);
        let mut info = BTreeMap::from([("Host IP".to_owned(), node.map(data_path).unwrap_or_default())]);
        // Ours: whether anything is led to it.
        let ready = task.observed() == TaskState::Running && task.desired() <= TaskState::Running;
        info.insert("Ready".to_owned(), ready.to_string());
        types::NetworkServiceTask {
            name: task.container_name(),
            endpoint_ip: without_prefix(address),
            info,
            ..types::NetworkServiceTask::default()
        }
    }
}

/// The first address in a network.
fn address<'a>(places: &'a [wire::NetworkAttachment], network: &str) -> Option<&'a str> {
    let place = places.iter().find(|place| place.network_id == network)?;
    place.addresses.first().map(String::as_str)
}

fn without_prefix(cidr: &str) -> String {
    cidr.split('/').next().unwrap_or_default().to_owned()
}

/// What a node that knows no other nodes' names can say: whom its tunnel leads to.
pub(crate) fn tunnel_peers(statuses: &[TunnelPeerStatus]) -> Vec<types::PeerInfo> {
    let peer = |status: &TunnelPeerStatus| types::PeerInfo {
        name: status.node.clone(),
        ip: status.endpoint.ip().to_string(),
        tunnel: Some(tunnel_out(status)),
        ..types::PeerInfo::default()
    };
    statuses.iter().map(peer).collect()
}

fn tunnel_out(status: &TunnelPeerStatus) -> types::TunnelInfo {
    types::TunnelInfo {
        endpoint: status.endpoint.to_string(),
        handshake_seconds: status.handshake_seconds,
        is_current: status.is_current,
    }
}

fn data_path(node: &wire::Node) -> String {
    let status = node.status.clone().unwrap_or_default();
    if status.data_path_addr.is_empty() { status.addr } else { status.data_path_addr }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(network: &str, address: &str) -> wire::NetworkAttachment {
        wire::NetworkAttachment {
            network_id: network.into(),
            addresses: vec![address.into()],
            ..wire::NetworkAttachment::default()
        }
    }

    fn node(id: &str, address: &str) -> wire::Node {
        let description = wire::NodeDescription { hostname: format!("host-{id}"), ..Default::default() };
        let status = wire::NodeStatus { addr: address.into(), ..wire::NodeStatus::default() };
        wire::Node {
            id: id.into(),
            description: Some(description),
            status: Some(status),
            ..Default::default()
        }
    }

    fn task(node: &str, address: &str, state: TaskState) -> wire::Task {
        let status = wire::TaskStatus { state: state.into(), ..wire::TaskStatus::default() };
        let mut task = wire::Task {
            id: format!("t-{node}"),
            service_id: "s".into(),
            slot: 1,
            node_id: node.into(),
            service_annotations: Some(wire::Annotations { name: "web".into(), ..Default::default() }),
            status: Some(status),
            networks: vec![place("net", address)],
            ..wire::Task::default()
        };
        task.set_desired_state(TaskState::Running);
        task
    }

    #[test]
    fn peers_and_services_of_a_network_are_told() {
        let port =
            wire::PortConfig { protocol: "tcp".into(), target: 80, published: 8080, ..Default::default() };
        let vip = wire::VirtualIp { network_id: "net".into(), address: "10.0.1.2/24".into() };
        let endpoint = wire::Endpoint { ports: vec![port], virtual_ips: vec![vip], ..Default::default() };
        let annotations = wire::Annotations { name: "web".into(), ..Default::default() };
        let spec = wire::ServiceSpec { annotations: Some(annotations), ..Default::default() };
        let service = wire::Service {
            id: "s".into(),
            spec: Some(spec),
            endpoint: Some(endpoint),
            ..wire::Service::default()
        };
        let tasks =
            vec![task("a", "10.0.1.3/24", TaskState::Running), task("b", "10.0.1.4/24", TaskState::Failed)];
        let mut nodes = vec![node("a", "192.0.2.1"), node("b", "192.0.2.2")];
        nodes[0].tables.insert("net".into(), 7);
        nodes.push(node("c", "192.0.2.3"));
        let tunnel = vec![TunnelPeerStatus {
            node: "b".into(),
            endpoint: "192.0.2.2:51820".parse().expect("address"),
            handshake_seconds: Some(4),
            is_current: true,
        }];
        let mut tasks = tasks;
        tasks.push(task("b", "10.0.1.5/24", TaskState::Running));
        let cluster = Cluster { services: vec![service], tasks, nodes, tunnel };
        let mut shown = types::NetworkInspect { id: "net".into(), ..types::NetworkInspect::default() };
        cluster.describe(&mut shown);
        let json = serde_json::to_value(&shown).expect("json");
        assert_eq!(
            json["Peers"],
            serde_json::json!([
                {"Name": "host-a", "IP": "192.0.2.1", "TableVersion": 7},
                {"Name": "host-b", "IP": "192.0.2.2", "Tunnel": {
                    "Endpoint": "192.0.2.2:51820", "HandshakeSeconds": 4, "IsCurrent": true
                }},
            ])
        );
        let web = &json["Services"]["web"];
        assert_eq!(
            (&web["VIP"], &web["Ports"][0]),
            (&"10.0.1.2".into(), &"Target: 80, Publish: 8080".into())
        );
        let tasks = serde_json::json!([{
            "Name": "web.1.t-a", "EndpointID": "", "EndpointIP": "10.0.1.3",
            "Info": {"Host IP": "192.0.2.1", "Ready": "true"}
        }]);
        assert_eq!(web["Tasks"][0], tasks[0]);
        let mut other = types::NetworkInspect { id: "other".into(), ..types::NetworkInspect::default() };
        cluster.describe(&mut other);
        assert!(other.peers.is_empty() && other.services.is_empty());
    }
}
