//! Addresses: subnets and VXLAN ids for networks, virtual addresses and published ports for services, addresses
//! for tasks, and for nodes on the network of the routing mesh, which is made here too.
//!
//! What is taken is read from the state each time, so nothing can leak. An address is free again once its
//! task has ended; the next one is looked for after the one given last, so that it is not reused at once.

mod pool;
mod subnets;

use std::collections::BTreeMap;

use rswarm_base::Timestamp;
use rswarm_base::ipam::{self, Family};
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{
    Annotations, Cluster, Endpoint, Network, NetworkAttachment, NetworkAttachmentConfig, NetworkSpec, Node,
    Service, ServiceSpec, Task, TaskStatus, VirtualIp, endpoint_spec,
};

use crate::author::Author;
use crate::publish::{DynamicPorts, needs_ingress};
use crate::reconcile::{Env, Plan, Reconciler};
use crate::state::{State, address_of};
use pool::Pool;

/// What the network of the routing mesh is called when it is made with the cluster (as Docker).
const INGRESS: &str = "ingress";
/// Networks that every node has of its own: nothing is allocated on them.
pub const NODE_NETWORKS: [&str; 3] = ["host", "bridge", "none"];

/// Hands out addresses.
#[derive(Debug)]
pub struct Allocate;

impl Reconciler for Allocate {
    fn author(&self) -> Author {
        Author::Allocate
    }

    fn reconcile(&self, view: &State, env: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        let made = made_ingress(view, env, &mut plan);
        let fresh = subnets::given(view, made.as_ref());
        for network in fresh.values().filter(|network| made.as_ref().is_none_or(|made| made.id != network.id))
        {
            plan.update(network.clone());
        }
        if let Some(made) = made {
            plan.create(fresh.get(&made.id).cloned().unwrap_or(made));
        }
        let mut pools = Pools { view, fresh, networks: BTreeMap::new(), ports: DynamicPorts::default() };
        for node in view.nodes() {
            if let Some(mesh) = pools.mesh(node) {
                plan.update(Node { mesh, ..Node::clone(node) });
            }
        }
        for service in view.services().filter(|service| !service.pending_delete) {
            if let Some(endpoint) = pools.endpoint(service) {
                plan.update(Service { endpoint: Some(endpoint), ..Service::clone(service) });
            }
        }
        for task in view.unsettled_tasks() {
            if task.observed() == TaskState::New && task.desired() <= TaskState::Running {
                pools.admit(task, env.now, &mut plan);
            }
        }
        plan
    }
}

/// The endpoint of a service that needs no address and no port: nothing is left to hand out, and a client that has just
/// created the service can update it without having to read it again.
pub fn bare_endpoint(spec: &ServiceSpec) -> Option<Endpoint> {
    let endpoint = spec.endpoint.clone().unwrap_or_default();
    let has_networks = spec.task.as_ref().is_some_and(|task| !task.networks.is_empty());
    let is_bare = endpoint.ports.is_empty() && !has_networks;
    is_bare.then(|| Endpoint { spec: Some(endpoint), ..Endpoint::default() })
}

/// The network of the routing mesh, for a cluster that never had one: it is made once, and users may remove it.
fn made_ingress(view: &State, env: &mut Env<'_>, plan: &mut Plan) -> Option<Network> {
    let cluster = view.cluster().filter(|cluster| !cluster.ingress_made)?;
    plan.update(Cluster { ingress_made: true, ..Cluster::clone(cluster) });
    // A user's network may have the name already, in a cluster from before there was a mesh.
    let mut names = std::iter::once(INGRESS.to_owned()).chain((2..).map(|n| format!("{INGRESS}-{n}")));
    let name = names.find(|name| view.network_named(name).is_none())?;
    let spec = NetworkSpec {
        annotations: Some(Annotations { name, ..Annotations::default() }),
        driver: "overlay".to_owned(),
        ipv6: true,
        ingress: true,
        ..NetworkSpec::default()
    };
    let made = Network { id: env.ids.cluster_id(), spec: Some(spec), ..Network::default() };
    view.ingress_network().is_none().then_some(made)
}

/// Addresses of all networks that were asked for in this pass.
struct Pools<'a> {
    view: &'a State,
    /// Networks that this pass gave their subnets.
    fresh: BTreeMap<String, Network>,
    networks: BTreeMap<String, Vec<Pool>>,
    /// Published ports that this pass gave.
    ports: DynamicPorts,
}

impl Pools<'_> {
    /// The pools of a network; `None` when it does not exist or has no subnets yet.
    fn of(&mut self, network_id: &str) -> Option<&mut Vec<Pool>> {
        if !self.networks.contains_key(network_id) {
            let stored = || self.view.network(network_id).map(|network| network.as_ref());
            let network = self.fresh.get(network_id).or_else(stored).filter(|network| network.vni != 0)?;
            self.networks.insert(network_id.to_owned(), pool::of(self.view, network));
        }
        self.networks.get_mut(network_id)
    }

    /// The node's place on the ingress network as it should be, when that is not how it is: one from the moment
    /// that anything is published there, for as long as there is the network.
    fn mesh(&mut self, node: &Node) -> Option<Option<NetworkAttachment>> {
        let Some(ingress) = self.view.ingress_network().map(|network| network.id.clone()) else {
            return node.mesh.is_some().then_some(None);
        };
        if node.mesh.as_ref().is_some_and(|mesh| mesh.network_id == ingress) {
            return None;
        }
        self.view.services_on_ingress().next()?;
        let config = NetworkAttachmentConfig { target: ingress, ..NetworkAttachmentConfig::default() };
        self.attachment(&config).ok().map(Some)
    }

    /// The service's endpoint as it should be, when that is not how it is.
    fn endpoint(&mut self, service: &Service) -> Option<Endpoint> {
        let spec = service.spec.as_ref().and_then(|spec| spec.endpoint.clone()).unwrap_or_default();
        let has = service.endpoint.clone().unwrap_or_default();
        let mut virtual_ips = Vec::new();
        if spec.mode() == endpoint_spec::Mode::Vip {
            let ingress = self.view.ingress_network().filter(|_| needs_ingress(Some(&spec)));
            let ingress = ingress.map(|network| network.id.clone());
            let networks = service.task_spec().networks.into_iter().map(|network| network.target);
            let wanted: Vec<String> = ingress.iter().cloned().chain(networks).collect();
            for family in Family::ALL {
                // The mesh leads to tasks by port; of its own service address nobody asks.
                let wanted = wanted.iter().filter(|id| family == Family::V4 || ingress.as_ref() != Some(*id));
                for network in wanted {
                    let is_it =
                        |vip: &&VirtualIp| vip.network_id == *network && family_of(vip) == Some(family);
                    let kept = has.virtual_ips.iter().find(is_it).cloned();
                    virtual_ips.extend(kept.or_else(|| self.virtual_ip(network, family)));
                }
            }
        }
        let ports = self.ports.assign(self.view, &service.id, &spec, &has);
        let endpoint = Endpoint { ports, spec: Some(spec), virtual_ips };
        (service.endpoint.as_ref() != Some(&endpoint)).then_some(endpoint)
    }

    fn virtual_ip(&mut self, network_id: &str, family: Family) -> Option<VirtualIp> {
        let pools = self.of(network_id)?;
        let pool = pools.iter_mut().find(|pool| pool.subnet.family() == family)?;
        let address = pool.next()?;
        Some(VirtualIp { network_id: network_id.to_owned(), address: pool.cidr(address) })
    }

    /// A new task gets its addresses and becomes *pending*, or says what it waits for.
    fn admit(&mut self, task: &Task, now: Timestamp, plan: &mut Plan) {
        let wanted = task.spec.as_ref().map_or(&[][..], |spec| &spec.networks);
        let mut attachments: Vec<_> = wanted.iter().map(|config| self.attachment(config)).collect();
        attachments.extend(self.on_ingress(task));
        let attachments: Result<Vec<_>, String> = attachments.into_iter().collect();
        let status = task.status.clone().unwrap_or_default();
        match attachments {
            Ok(networks) => {
                let status = TaskStatus {
                    state: TaskState::Pending.into(),
                    timestamp: now.0,
                    message: "pending task scheduling".to_owned(),
                    err: String::new(),
                    ..status
                };
                plan.update(Task { networks, status: Some(status), ..task.clone() });
            }
            Err(err) if status.err != err => {
                plan.update(Task { status: Some(TaskStatus { err, ..status }), ..task.clone() });
            }
            Err(_) => {}
        }
    }

    /// The task's place on the ingress network, last of all; nothing when it publishes nothing there.
    fn on_ingress(&mut self, task: &Task) -> Option<Result<NetworkAttachment, String>> {
        let endpoint = task.endpoint.as_ref().and_then(|endpoint| endpoint.spec.as_ref());
        if !needs_ingress(endpoint) {
            return None;
        }
        let Some(ingress) = self.view.ingress_network() else {
            return Some(Err("service needs ingress network, but no ingress network is present".to_owned()));
        };
        let target = ingress.id.clone();
        Some(self.attachment(&NetworkAttachmentConfig { target, ..NetworkAttachmentConfig::default() }))
    }

    fn attachment(&mut self, config: &NetworkAttachmentConfig) -> Result<NetworkAttachment, String> {
        let mut attachment = NetworkAttachment {
            network_id: config.target.clone(),
            aliases: config.aliases.clone(),
            ..NetworkAttachment::default()
        };
        let view = self.view;
        // Of those that every node makes for itself, it gives the addresses as well.
        let is_of_nodes = view.network(&config.target).is_some_and(|network| !network.is_overlay());
        if NODE_NETWORKS.contains(&config.target.as_str()) || is_of_nodes {
            return Ok(attachment);
        }
        for pool in self.of(&config.target).ok_or_else(|| subnets::why_none(view, &config.target))? {
            let asked = config.addresses.iter().filter_map(|text| address_of(text));
            let asked = asked.into_iter().find(|address| pool.subnet.contains(*address));
            let address = match asked {
                Some(address) if pool.taken.insert(address) => address,
                Some(address) => return Err(format!("address {address} is already in use")),
                None => pool.next().ok_or_else(|| {
                    let (size, used) = (pool.range.size(), pool.taken.len());
                    format!(
                        "could not find an available IP in subnet {} of network {}: {used} of {size} addresses \
                         of {} are given away or reserved",
                        pool.subnet, config.target, pool.range
                    )
                })?,
            };
            attachment.addresses.push(pool.cidr(address));
            if attachment.mac.is_empty() {
                attachment.mac = mac(ipam::mac_for(address));
            }
        }
        Ok(attachment)
    }
}

fn family_of(vip: &VirtualIp) -> Option<Family> {
    address_of(&vip.address).map(Family::of)
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use rswarm_base::ipam::Subnet;
    use rswarm_proto::model::object::Stored;
    use rswarm_proto::wire::{CreateNetworkRequest, IpamConfig, PortConfig, RemoveRequest};

    use super::*;
    use crate::world::{World, attach, port, publish, spec};

    #[test]
    fn networks_get_subnets_and_vxlan_ids_of_their_own() {
        let mut world = World::new(1);
        let (a, b) = (world.network("a"), world.network("b"));
        world.reconcile();
        let ingress = world.state.ingress_network().expect("made with the cluster").clone();
        assert_eq!(
            (ingress.name(), ingress.ipam[0].subnet.as_str(), ingress.vni),
            ("ingress", "10.0.0.0/24", 4096)
        );
        let shown = |id: &str| {
            let network = world.state.network(id).expect("network");
            (network.ipam[0].subnet.clone(), network.ipam[0].gateway.clone(), network.vni)
        };
        let mut both = [shown(&a), shown(&b)];
        both.sort();
        assert_eq!(
            both,
            [
                ("10.0.1.0/24".to_owned(), "10.0.1.1".to_owned(), 4097),
                ("10.0.2.0/24".to_owned(), "10.0.2.1".to_owned(), 4098)
            ]
        );
    }

    #[test]
    fn services_get_a_virtual_address_and_tasks_their_own() {
        let mut world = World::new(2);
        let network = world.network("net");
        let mut web = spec("web", 2);
        attach(&mut web, "net");
        let id = world.create(web);
        world.run(Duration::from_secs(2));
        let endpoint = world.service(&id).endpoint.clone().expect("endpoint");
        assert_eq!(
            endpoint.virtual_ips,
            [VirtualIp { network_id: network, address: "10.0.1.2/24".to_owned() }]
        );
        let attachments: Vec<_> = world.live(&id).iter().map(|task| task.networks[0].clone()).collect();
        assert_eq!(attachments[0].addresses, ["10.0.1.3/24"]);
        assert_eq!(attachments[0].mac, "02:42:0a:00:01:03");
        assert_eq!(attachments[1].addresses, ["10.0.1.4/24"]);
        assert!(world.state.nodes().all(|node| node.mesh.is_none()), "nothing is published");
    }

    #[test]
    fn what_is_published_is_on_the_ingress_network_with_every_node() {
        let mut world = World::new(3);
        let network = world.network("net");
        let mut web = spec("web", 2);
        attach(&mut web, "net");
        publish(&mut web, [port(8080, 80), port(0, 81)]);
        let id = world.create(web);
        world.run(Duration::from_secs(2));
        let ingress = world.state.ingress_network().expect("ingress").id.clone();
        let endpoint = world.service(&id).endpoint.clone().expect("endpoint");
        assert_eq!(endpoint.ports.iter().map(|port| port.published).collect::<Vec<_>>(), [8080, 30_000]);
        let on: Vec<_> = endpoint.virtual_ips.iter().map(|vip| vip.network_id.clone()).collect();
        assert_eq!(on, [ingress.clone(), network.clone()]);
        for task in world.live(&id) {
            let on: Vec<_> = task.networks.iter().map(|attachment| attachment.network_id.clone()).collect();
            assert_eq!(on, [network.clone(), ingress.clone()]);
        }
        assert!(
            world.state.nodes().all(|node| node.mesh.as_ref().is_some_and(|mesh| mesh.network_id == ingress))
        );
    }

    #[test]
    fn a_network_of_both_families_gives_both_addresses() {
        let mut world = World::new(2);
        let annotations = Some(Annotations { name: "dual".to_owned(), ..Annotations::default() });
        let ipam = vec![IpamConfig { subnet: "fd00:9::/64".to_owned(), ..IpamConfig::default() }];
        let dual = NetworkSpec { annotations, ipv6: true, ipam, ..NetworkSpec::default() };
        let request = CreateNetworkRequest { spec: Some(dual) };
        let id = world.control(|state, _, ids| crate::control::create_network(state, &request, ids));
        let id = id.expect("created");
        let mut web = spec("web", 2);
        attach(&mut web, "dual");
        publish(&mut web, [port(8080, 80)]);
        let service = world.create(web);
        world.run(Duration::from_secs(2));
        let network = world.state.network(&id).expect("network");
        let shown: Vec<_> = network.ipam.iter().map(|config| config.subnet.clone()).collect();
        assert_eq!(shown, ["10.0.1.0/24", "fd00:9::/64"], "IPv4 from the pools comes first");
        let endpoint = world.service(&service).endpoint.clone().expect("endpoint");
        let vips: Vec<_> = endpoint.virtual_ips.iter().map(|vip| vip.address.clone()).collect();
        assert_eq!(vips, ["10.0.0.4/24", "10.0.1.2/24", "fd00:9::2/64"], "the mesh needs none of IPv6");
        let task = world.live(&service)[0].clone();
        assert_eq!(task.networks[0].addresses, ["10.0.1.3/24", "fd00:9::3/64"]);
        assert_eq!(task.networks[0].mac, "02:42:0a:00:01:03");
        let ingress = world.state.ingress_network().expect("ingress").clone();
        let own: Subnet = ingress.ipam[1].subnet.parse().expect("subnet");
        let site = ipam::local_prefix(&world.state.cluster().expect("cluster").id);
        assert!(site.contains(own.address()) && own.prefix() == 64, "{own}");
        let meshes =
            |node: &std::sync::Arc<Node>| node.mesh.as_ref().is_some_and(|mesh| mesh.addresses.len() == 2);
        assert!(world.state.nodes().all(meshes));
        let before = endpoint.virtual_ips;
        world.reconcile();
        assert_eq!(world.service(&service).endpoint.clone().expect("endpoint").virtual_ips, before);
    }

    /// Makes a network with a service of one task on it; their ids.
    fn with_service(world: &mut World, spec: NetworkSpec) -> (String, String) {
        let annotations = Some(Annotations { name: "net".to_owned(), ..Annotations::default() });
        let request = CreateNetworkRequest { spec: Some(NetworkSpec { annotations, ..spec }) };
        let id = world.control(|state, _, ids| crate::control::create_network(state, &request, ids));
        let mut web = crate::world::spec("web", 1);
        attach(&mut web, "net");
        let service = world.create(web);
        world.run(Duration::from_secs(2));
        (id.expect("created"), service)
    }

    #[test]
    fn a_network_without_ipv4_has_none() {
        let mut world = World::new(1);
        let ipam = vec![IpamConfig { subnet: "fd00:9::/64".to_owned(), ..IpamConfig::default() }];
        let spec = NetworkSpec { ipv6: true, without_ipv4: true, ipam, ..NetworkSpec::default() };
        let (network, service) = with_service(&mut world, spec);
        let network = world.state.network(&network).expect("network");
        assert_eq!((network.ipam.len(), network.ipam[0].gateway.as_str()), (1, "fd00:9::1"));
        assert!(network.vni > 0);
        let vips = world.service(&service).endpoint.clone().expect("endpoint").virtual_ips;
        assert_eq!(vips.iter().map(|vip| vip.address.as_str()).collect::<Vec<_>>(), ["fd00:9::2/64"]);
        assert_eq!(world.live(&service)[0].networks[0].addresses, ["fd00:9::3/64"]);
    }

    #[test]
    fn nodes_give_the_addresses_of_networks_on_their_own_links() {
        let mut world = World::new(1);
        let spec = NetworkSpec {
            driver: "macvlan".to_owned(),
            config_from: "words".to_owned(),
            ..NetworkSpec::default()
        };
        let (network, service) = with_service(&mut world, spec);
        let network = world.state.network(&network).expect("network");
        assert_eq!((network.ipam.len(), network.vni), (0, 0));
        assert!(world.service(&service).endpoint.clone().expect("endpoint").virtual_ips.is_empty());
        let task = world.live(&service)[0].clone();
        assert_eq!((task.networks[0].network_id == network.id, task.networks[0].addresses.len()), (true, 0));
        assert_eq!(world.running(&service), 1);
        let table = crate::assign::assignments(&world.state, &task.node_id).networks;
        assert!(table[&network.id].endpoints.is_empty(), "other nodes have no way there");
    }

    #[test]
    fn a_number_that_was_given_stays_and_is_given_once() {
        let mut world = World::new(1);
        let with = |name: &str, ports: &[PortConfig]| {
            let mut spec = spec(name, 1);
            publish(&mut spec, ports.iter().cloned());
            spec
        };
        let (a, b) = (world.create(with("a", &[port(0, 80)])), world.create(with("b", &[port(0, 80)])));
        world.reconcile();
        let given = |world: &World, id: &str| {
            world.service(id).endpoint.clone().expect("endpoint").ports[0].published
        };
        let (first, second) = (given(&world, &a), given(&world, &b));
        assert_eq!(BTreeSet::from([first, second]), [30_000, 30_001].into());
        world.change(&b, |spec| publish(spec, [port(0, 80), port(9000, 90)]));
        world.reconcile();
        assert_eq!(given(&world, &b), second);
        world.remove_service(&a);
        world.create(with("c", &[port(first, 80)]));
        world.run(Duration::from_secs(2));
    }

    #[test]
    fn a_cluster_from_before_gets_its_ingress_network_once() {
        let mut world = World::new(1);
        // As an earlier version left it: networks have their subnets, and one has the name.
        let mut old = Network { vni: 4096, ..Network::default() };
        (old.id, old.ipam) = ("old".to_owned(), vec![IpamConfig::default()]);
        (old.ipam[0].subnet, old.ipam[0].gateway) = ("10.0.0.0/24".to_owned(), "10.0.0.1".to_owned());
        old.spec.get_or_insert_default().annotations.get_or_insert_default().name = "ingress".to_owned();
        let mut plan = Plan::default();
        plan.create(old);
        world.write(Author::Control, plan.into_changes());
        world.reconcile();
        let made = world.state.ingress_network().expect("made").clone();
        assert_eq!((made.name(), made.ipam[0].subnet.as_str()), ("ingress-2", "10.0.1.0/24"));
        let request = RemoveRequest { id: made.id.clone(), force: false };
        world.control(|state, _, ids| crate::control::remove_network(state, &request, ids)).expect("removed");
        world.run(Duration::from_secs(1));
        assert_eq!(world.state.networks().count(), 1, "removed for good");
    }

    #[test]
    fn a_new_ingress_network_takes_the_nodes_along() {
        let mut world = World::new(2);
        let mut web = spec("web", 1);
        publish(&mut web, [port(8080, 80)]);
        let id = world.create(web.clone());
        world.run(Duration::from_secs(1));
        world.remove_service(&id);
        let request = RemoveRequest { id: "ingress".to_owned(), force: false };
        world.control(|state, _, ids| crate::control::remove_network(state, &request, ids)).expect("removed");
        world.run(Duration::from_secs(1));
        assert!(world.state.nodes().all(|node| node.mesh.is_none()));
        let spec = NetworkSpec { ingress: true, ..NetworkSpec::default() };
        let annotations = Some(Annotations { name: "mesh".to_owned(), ..Annotations::default() });
        let request = CreateNetworkRequest { spec: Some(NetworkSpec { annotations, ..spec }) };
        let mesh = world.control(|state, _, ids| crate::control::create_network(state, &request, ids));
        let mesh = mesh.expect("created");
        let id = world.create(web);
        world.run(Duration::from_secs(1));
        assert_eq!(world.live(&id)[0].networks[0].network_id, mesh);
        assert!(
            world.state.nodes().all(|node| node.mesh.as_ref().is_some_and(|place| place.network_id == mesh))
        );
    }

    #[test]
    fn an_address_is_not_reused_while_others_are_free() {
        let mut world = World::new(1);
        world.network("net");
        let mut web = spec("web", 1);
        attach(&mut web, "net");
        let id = world.create(web);
        let mut seen = BTreeSet::new();
        for _ in 0..4 {
            world.run(Duration::from_secs(3));
            let task = world.live(&id)[0].clone();
            assert!(seen.insert(task.networks[0].addresses[0].clone()), "reused at once");
            world.report(&task.id, TaskState::Failed);
        }
    }

    #[test]
    fn a_full_network_says_so_and_goes_on_when_there_is_room() {
        let mut world = World::new(1);
        let ipam = vec![IpamConfig { subnet: "10.9.0.0/29".to_owned(), ..IpamConfig::default() }];
        let annotations = Some(Annotations { name: "tiny".to_owned(), ..Annotations::default() });
        let request =
            CreateNetworkRequest { spec: Some(NetworkSpec { annotations, ipam, ..NetworkSpec::default() }) };
        world.control(|state, _, ids| crate::control::create_network(state, &request, ids)).expect("created");
        let mut web = spec("web", 5);
        attach(&mut web, "tiny");
        let id = world.create(web);
        world.run(Duration::from_secs(2));
        assert_eq!(world.running(&id), 4, "six addresses, less the gateway and the virtual one");
        let waiting =
            world.live(&id).into_iter().find(|task| task.observed() == TaskState::New).expect("one waits");
        let err = waiting.status.clone().unwrap_or_default().err;
        assert!(err.starts_with("could not find an available IP in subnet 10.9.0.0/29"), "{err}");
        assert!(err.ends_with("6 of 8 addresses of 10.9.0.0/29 are given away or reserved"), "{err}");
        world.change(&id, |spec| {
            spec.mode =
                Some(rswarm_proto::wire::service_spec::Mode::Replicated(rswarm_proto::wire::Replicated {
                    replicas: 4,
                }));
        });
        world.run(Duration::from_secs(2));
        assert_eq!((world.running(&id), world.tasks(&id).len()), (4, 4));
    }

    #[test]
    fn exhausted_pools_are_told_with_use_and_size() {
        let pools = ["10.40.0.0/23", "10.50.0.0/24"].map(|pool| pool.parse().expect("subnet"));
        let told = subnets::exhausted("n", &pools, 24, 3);
        assert!(
            told.contains("(10.40.0.0/23, 10.50.0.0/24, 3 subnets of /24) are exhausted by 3 networks"),
            "{told}"
        );
    }

    #[test]
    fn a_removed_network_goes_with_the_last_task_on_it() {
        let mut world = World::new(1);
        let network = world.network("net");
        let mut web = spec("web", 1);
        attach(&mut web, "net");
        let id = world.create(web);
        world.run(Duration::from_secs(2));
        let request = RemoveRequest { id: "net".to_owned(), force: false };
        let refused = world.control(|state, _, ids| crate::control::remove_network(state, &request, ids));
        assert_eq!(
            refused.map_err(|error| error.to_string()),
            Err(format!("network {network} is in use by service {id}"))
        );
        world.remove_service(&id);
        world.control(|state, _, ids| crate::control::remove_network(state, &request, ids)).expect("removed");
        let again = world.network("net");
        world.reconcile();
        assert!(world.state.network(&network).is_some(), "a task is still on it");
        world.run(Duration::from_secs(2));
        assert!(world.state.network(&network).is_none());
        assert!(world.state.network(&again).is_some());
    }

    #[test]
    fn networks_of_the_node_need_no_addresses() {
        let mut world = World::new(1);
        let mut web = spec("web", 1);
        attach(&mut web, "host");
        let id = world.create(web);
        world.run(Duration::from_secs(2));
        assert_eq!(world.running(&id), 1);
        assert_eq!(world.live(&id)[0].networks[0].addresses, Vec::<String>::new());
    }
}
