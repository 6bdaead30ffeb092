//! What each node must know: its tasks, and for every network that they are on, who else is on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rswarm_proto::model::object::Stored;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::assignment_change::Change as Kind;
use rswarm_proto::wire::{
    AssignmentChange, Balancing, Config, Network, NetworkAttachment, NetworkEndpoint, NetworkNode,
    NetworkService, NetworkTable, Node, ObjectKind, PortConfig, Secret, Service, Task, TunnelSecret,
};

use crate::content::references;
use crate::publish::{balancing, ingress_ports};
use crate::state::{State, address_of};

/// Everything that one node is assigned, as of one state.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AssignmentSet {
    /// Index of the state that it was computed from.
    pub version: u64,
    /// The node's tasks by id, ended ones too: they keep their container until they are reaped.
    pub tasks: BTreeMap<String, Arc<Task>>,
    /// The networks that live tasks of the node are on, by id.
    pub networks: BTreeMap<String, Arc<Table>>,
    /// The secrets that tasks of the node use which have not ended, by id.
    pub secrets: BTreeMap<String, Arc<Secret>>,
    /// The configs that they use, by id.
    pub configs: BTreeMap<String, Arc<Config>>,
}

/// One network and the tasks on it, wherever they run.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The network.
    pub network: Arc<Network>,
    /// Its endpoints by task id.
    pub endpoints: BTreeMap<String, NetworkEndpoint>,
    /// The services that have a virtual address in it, by id.
    pub services: BTreeMap<String, NetworkService>,
    /// For the network of the routing mesh: the nodes that are routers in it, by id. For an encrypted one: those
    /// on it.
    pub nodes: BTreeMap<String, NetworkNode>,
    /// For an encrypted network: what its nodes share.
    pub tunnel: Option<TunnelSecret>,
}

/// The endpoint tables of one state, each computed once however many nodes ask for it.
pub struct Tables<'a> {
    state: &'a State,
    tables: BTreeMap<String, Arc<Table>>,
}

/// What `node_id` is assigned. For many nodes of one state, use [`Tables`].
#[must_use]
pub fn assignments(state: &State, node_id: &str) -> AssignmentSet {
    Tables::new(state).assignments(node_id)
}

impl<'a> Tables<'a> {
    /// Nothing computed yet.
    #[must_use]
    pub fn new(state: &'a State) -> Tables<'a> {
        Tables { state, tables: BTreeMap::new() }
    }

    /// What `node_id` is assigned.
    #[must_use]
    pub fn assignments(&mut self, node_id: &str) -> AssignmentSet {
        let mine = self.state.tasks_on_node(node_id).filter(|task| task.observed() >= TaskState::Assigned);
        let tasks: BTreeMap<String, Arc<Task>> = mine.map(|task| (task.id.clone(), task.clone())).collect();
        let mut wanted: BTreeSet<&str> = tasks
            .values()
            .filter(|task| !task.observed().is_terminal())
            .flat_map(|task| task.networks.iter().map(|attachment| attachment.network_id.as_str()))
            .collect();
        wanted.extend(mesh_of(self.state, node_id));
        let networks = wanted.into_iter().filter_map(|id| Some((id.to_owned(), self.table(id)?))).collect();
        let used = |kind| {
            let live = tasks.values().filter(|task| !task.observed().is_terminal());
            live.filter_map(|task| task.spec.as_ref())
                .flat_map(move |spec| references(spec, kind))
                .map(|reference| reference.id.as_str())
        };
        let secrets = shared(used(ObjectKind::Secret), |id| self.state.secret(id));
        let configs = shared(used(ObjectKind::Config), |id| self.state.config(id));
        AssignmentSet { version: self.state.index(), tasks, networks, secrets, configs }
    }

    fn table(&mut self, network_id: &str) -> Option<Arc<Table>> {
        if let Some(table) = self.tables.get(network_id) {
            return Some(table.clone());
        }
        // Networks of the node itself, such as `host`, are not stored and have no table.
        let network = self.state.network(network_id)?.clone();
        let endpoints: BTreeMap<String, NetworkEndpoint> = self
            .state
            .tasks_on_network(network_id)
            .filter(|task| network.is_overlay() && is_present(task))
            .filter_map(|task| Some((task.id.clone(), endpoint(self.state, task, network_id)?)))
            .collect();
        let services = services(self.state, &network);
        let mut nodes = if is_ingress(&network) { nodes(self.state, network_id) } else { BTreeMap::new() };
        let mut tunnel = None;
        if network.is_encrypted() {
            peers(self.state, &endpoints, &mut nodes);
            tunnel = self.state.cluster().and_then(|cluster| cluster.tunnel.clone());
        }
        let table = Arc::new(Table { network, endpoints, services, nodes, tunnel });
        self.tables.insert(network_id.to_owned(), table.clone());
        Some(table)
    }
}

/// Whether `after` certainly assigns a node what `before` did, which was `assigned`, as far as that can be told
/// without computing it: most changes of the state do not concern most nodes, and those that have no networks,
/// secrets and configs least of all.
#[must_use]
pub fn is_unchanged(before: &State, after: &State, assigned: &AssignmentSet, node_id: &str) -> bool {
    let (old, new) = (before.node(node_id), after.node(node_id));
    let is_alone = assigned.networks.is_empty() && assigned.secrets.is_empty() && assigned.configs.is_empty();
    is_alone
        && old.zip(new).is_some_and(|(old, new)| Arc::ptr_eq(old, new) && new.mesh.is_none())
        && before.has_same_tasks_on_node(after, node_id)
}

/// The objects of these ids that there are.
fn shared<'s, T: 's>(
    ids: impl Iterator<Item = &'s str>,
    find: impl Fn(&str) -> Option<&'s Arc<T>>,
) -> BTreeMap<String, Arc<T>> {
    ids.filter_map(|id| Some((id.to_owned(), find(id)?.clone()))).collect()
}

/// The network of the routing mesh, which every node with an address there is told of while anything is published:
/// each answers for all.
fn mesh_of<'s>(state: &'s State, node_id: &str) -> Option<&'s str> {
    let ingress = state.ingress_network()?;
    state.services_on_ingress().next()?;
    let mesh = state.node(node_id)?.mesh.as_ref()?;
    (mesh.network_id == ingress.id).then_some(ingress.id.as_str())
}

fn is_ingress(network: &Network) -> bool {
    network.spec.as_ref().is_some_and(|spec| spec.ingress)
}

/// The services with a virtual address in the network; one that is being deleted has lost it.
fn services(state: &State, network: &Network) -> BTreeMap<String, NetworkService> {
    let described = |service: &Arc<Service>| {
        let entry = network_service(service, network)?;
        Some((service.id.clone(), entry))
    };
    if is_ingress(network) {
        state.services_on_ingress().filter_map(described).collect()
    } else {
        let on_it = state.services_on_network(&network.id).filter(|service| !service.pending_delete);
        on_it.filter_map(described).collect()
    }
}

fn network_service(service: &Service, network: &Network) -> Option<NetworkService> {
    let endpoint = service.endpoint.as_ref()?;
    let vips = endpoint.virtual_ips.iter().filter(|vip| vip.network_id == network.id);
    let addresses: Vec<String> =
        vips.filter_map(|vip| address_of(&vip.address)).map(|address| address.to_string()).collect();
    let task = service.spec.as_ref().and_then(|spec| spec.task.as_ref());
    let config = task.and_then(|task| task.networks.iter().find(|config| config.target == network.id));
    let labels = service.spec.as_ref().and_then(|spec| Some(&spec.annotations.as_ref()?.labels));
    let ports: Vec<PortConfig> = if is_ingress(network) {
        ingress_ports(&endpoint.ports).filter(|port| port.published != 0).cloned().collect()
    } else {
        endpoint.ports.iter().filter(|port| !port.name.is_empty()).cloned().collect()
    };
    // Without an address it is only looked up by its ports' names.
    if addresses.is_empty() && (ports.is_empty() || is_ingress(network)) {
        return None;
    }
    Some(NetworkService {
        service_id: service.id.clone(),
        name: service.name().to_owned(),
        address: addresses.first().cloned().unwrap_or_default(),
        addresses,
        aliases: config.map(|config| config.aliases.clone()).unwrap_or_default(),
        ports,
        // Labels are checked when the spec is taken in; those of a cluster from before say nothing.
        balancing: labels.and_then(|labels| balancing(labels).ok()).filter(|b| *b != Balancing::default()),
    })
}

fn nodes(state: &State, ingress: &str) -> BTreeMap<String, NetworkNode> {
    let router = |node: &Arc<Node>| {
        // A node that has never been heard has no address yet.
        let mesh = node
            .mesh
            .as_ref()
            .filter(|mesh| mesh.network_id == ingress && !data_path_addr(node).is_empty())?;
        let entry = NetworkNode {
            node_id: node.id.clone(),
            address: mesh.addresses.first()?.clone(),
            addresses: mesh.addresses.clone(),
            mac: mesh.mac.clone(),
            node_addr: data_path_addr(node).to_owned(),
            tunnel: None,
        };
        Some((node.id.clone(), entry))
    };
    state.nodes().filter_map(router).collect()
}

/// Makes the nodes of an encrypted network peers: those that endpoints are on, and those that are routers in it.
fn peers(
    state: &State,
    endpoints: &BTreeMap<String, NetworkEndpoint>,
    nodes: &mut BTreeMap<String, NetworkNode>,
) {
    let hosts: BTreeSet<&str> = endpoints.values().map(|endpoint| endpoint.node_id.as_str()).collect();
    for node in hosts.into_iter().filter_map(|id| state.node(id)) {
        if !nodes.contains_key(&node.id)
            && let Some(entry) = crate::tunnel::entry(node, data_path_addr(node))
        {
            nodes.insert(node.id.clone(), entry);
        }
    }
    for (id, entry) in nodes {
        entry.tunnel = state.node(id).and_then(|node| crate::tunnel::peer(node));
    }
}

/// Whether a task may hold its addresses on its node.
pub(crate) fn is_present(task: &Task) -> bool {
    task.observed() >= TaskState::Assigned && !task.observed().is_terminal()
}

fn endpoint(state: &State, task: &Task, network_id: &str) -> Option<NetworkEndpoint> {
    let attachment: &NetworkAttachment =
        task.networks.iter().find(|attachment| attachment.network_id == network_id)?;
    let node = state.node(&task.node_id);
    let service = state.service(&task.service_id);
    let named = task.service_annotations.as_ref().map_or("", |annotations| annotations.name.as_str());
    let service_name = service.map_or(named, |service| service.name());
    let running = task.observed() == TaskState::Running && task.desired() <= TaskState::Running;
    Some(NetworkEndpoint {
        task_id: task.id.clone(),
        service_id: task.service_id.clone(),
        service_name: service_name.to_owned(),
        slot: task.slot,
        addresses: attachment.addresses.clone(),
        mac: attachment.mac.clone(),
        node_id: task.node_id.clone(),
        node_addr: node.map_or_else(String::new, |node| data_path_addr(node).to_owned()),
        aliases: attachment.aliases.clone(),
        ready: running && !state.is_node_lost(&task.node_id),
        started: task.observed() >= TaskState::Starting && !state.is_node_lost(&task.node_id),
        task_name: if task.is_attachment() { String::new() } else { task.slot_name() },
        names: task.attachment().map(|attachment| attachment.names.clone()).unwrap_or_default(),
    })
}

/// Where a node's VXLAN traffic goes.
fn data_path_addr(node: &Node) -> &str {
    node.status.as_ref().map_or("", |status| {
        if status.data_path_addr.is_empty() { &status.addr } else { &status.data_path_addr }
    })
}

impl AssignmentSet {
    /// The changes that make this set out of nothing: for a new session.
    #[must_use]
    pub fn complete(&self) -> Vec<AssignmentChange> {
        AssignmentSet::default().diff(self)
    }

    /// The changes that make `next` out of this set, in an order that can be applied one by one: networks
    /// before the tasks on them, and gone after them. Secrets and configs, which can be large, are last
    /// ([`is_content`]): a task waits for its own.
    #[must_use]
    pub fn diff(&self, next: &AssignmentSet) -> Vec<AssignmentChange> {
        let mut changes = Vec::new();
        for (id, table) in &next.networks {
            match self.networks.get(id) {
                None => changes.push(Kind::Network(Box::new(table.snapshot(next.version)))),
                Some(before) if Arc::ptr_eq(before, table) || before == table => {}
                Some(before) => changes.push(Kind::Network(Box::new(before.delta(table, next.version)))),
            }
        }
        for (id, task) in &next.tasks {
            let before = self.tasks.get(id);
            if before.is_none_or(|before| !Arc::ptr_eq(before, task) && before != task) {
                changes.push(Kind::Task(Box::new(Task::clone(task))));
            }
        }
        let gone = self.tasks.keys().filter(|id| !next.tasks.contains_key(*id));
        changes.extend(gone.map(|id| Kind::RemoveTask(id.clone())));
        let gone = self.networks.keys().filter(|id| !next.networks.contains_key(*id));
        changes.extend(gone.map(|id| Kind::RemoveNetwork(id.clone())));
        changes.extend(
            renewed(&self.secrets, &next.secrets).map(|secret| Kind::Secret(Box::new(Secret::clone(secret)))),
        );
        changes.extend(
            renewed(&self.configs, &next.configs).map(|config| Kind::Config(Box::new(Config::clone(config)))),
        );
        changes.extend(missing(&self.secrets, &next.secrets).into_iter().map(Kind::RemoveSecret));
        changes.extend(missing(&self.configs, &next.configs).into_iter().map(Kind::RemoveConfig));
        changes.into_iter().map(|change| AssignmentChange { change: Some(change) }).collect()
    }
}

/// Whether a change brings a secret or config: those may come in a message of their own.
#[must_use]
pub fn is_content(change: &AssignmentChange) -> bool {
    matches!(change.change, Some(Kind::Secret(_) | Kind::Config(_)))
}

fn renewed<'s, T: PartialEq>(
    before: &'s BTreeMap<String, Arc<T>>,
    after: &'s BTreeMap<String, Arc<T>>,
) -> impl Iterator<Item = &'s Arc<T>> {
    let is_new = |(id, object): &(&String, &Arc<T>)| {
        before.get(*id).is_none_or(|known| !Arc::ptr_eq(known, object) && known != *object)
    };
    after.iter().filter(is_new).map(|(_, object)| object)
}

impl Table {
    fn snapshot(&self, version: u64) -> NetworkTable {
        let nothing = Table {
            network: self.network.clone(),
            endpoints: BTreeMap::new(),
            services: BTreeMap::new(),
            nodes: BTreeMap::new(),
            tunnel: None,
        };
        NetworkTable { snapshot: true, ..nothing.delta(self, version) }
    }

    fn delta(&self, next: &Table, version: u64) -> NetworkTable {
        NetworkTable {
            network: Some(Network::clone(&next.network)),
            version,
            snapshot: false,
            endpoints: changed(&self.endpoints, &next.endpoints),
            removed: missing(&self.endpoints, &next.endpoints),
            services: changed(&self.services, &next.services),
            removed_services: missing(&self.services, &next.services),
            nodes: changed(&self.nodes, &next.nodes),
            removed_nodes: missing(&self.nodes, &next.nodes),
            tunnel: next.tunnel.clone(),
        }
    }
}

fn changed<T: Clone + PartialEq>(before: &BTreeMap<String, T>, after: &BTreeMap<String, T>) -> Vec<T> {
    after
        .iter()
        .filter(|(id, entry)| before.get(*id) != Some(entry))
        .map(|(_, entry)| entry.clone())
        .collect()
}

fn missing<T>(before: &BTreeMap<String, T>, after: &BTreeMap<String, T>) -> Vec<String> {
    before.keys().filter(|id| !after.contains_key(*id)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::world::{World, attach, port, publish, spec};
    use rswarm_proto::wire::endpoint_spec;

    fn networked(replicas: u64) -> (World, String, String) {
        let mut world = World::new(2);
        let network = world.network("net");
        let mut web = spec("web", replicas);
        attach(&mut web, "net");
        let id = world.create(web);
        world.run(Duration::from_secs(2));
        (world, id, network)
    }

    /// Applies changes as an agent does, and demands that they lead to `to`.
    fn replay(from: &AssignmentSet, to: &AssignmentSet) -> usize {
        let changes = from.diff(to);
        let mut set = from.clone();
        for change in &changes {
            match change.change.clone().expect("a change") {
                Kind::Task(task) => drop(set.tasks.insert(task.id.clone(), Arc::from(task))),
                Kind::RemoveTask(id) => assert!(set.tasks.remove(&id).is_some()),
                Kind::RemoveNetwork(id) => assert!(set.networks.remove(&id).is_some()),
                Kind::Network(table) => {
                    let network = Arc::new(table.network.expect("a network"));
                    let (mut endpoints, mut services, mut nodes) = match set.networks.get(&network.id) {
                        Some(known) if !table.snapshot => {
                            (known.endpoints.clone(), known.services.clone(), known.nodes.clone())
                        }
                        known => {
                            assert!(table.snapshot && known.is_none());
                            Default::default()
                        }
                    };
                    table.removed.iter().for_each(|id| assert!(endpoints.remove(id).is_some()));
                    table.removed_services.iter().for_each(|id| assert!(services.remove(id).is_some()));
                    table.removed_nodes.iter().for_each(|id| assert!(nodes.remove(id).is_some()));
                    endpoints.extend(table.endpoints.into_iter().map(|entry| (entry.task_id.clone(), entry)));
                    services
                        .extend(table.services.into_iter().map(|entry| (entry.service_id.clone(), entry)));
                    nodes.extend(table.nodes.into_iter().map(|entry| (entry.node_id.clone(), entry)));
                    let table = Table { network, endpoints, services, nodes, tunnel: table.tunnel };
                    set.networks.insert(table.network.id.clone(), Arc::new(table));
                }
                Kind::Secret(secret) => drop(set.secrets.insert(secret.id.clone(), Arc::from(secret))),
                Kind::RemoveSecret(id) => assert!(set.secrets.remove(&id).is_some()),
                Kind::Config(config) => drop(set.configs.insert(config.id.clone(), Arc::from(config))),
                Kind::RemoveConfig(id) => assert!(set.configs.remove(&id).is_some()),
            }
        }
        set.version = to.version;
        assert_eq!(set, *to);
        changes.len()
    }

    #[test]
    fn a_node_knows_its_tasks_and_everyone_on_their_networks() {
        let (world, _, network) = networked(3);
        let set = assignments(&world.state, "n1");
        assert!(set.tasks.values().all(|task| task.node_id == "n1"));
        let table = &set.networks[&network];
        assert_eq!(table.endpoints.len(), 3);
        let first = table.endpoints.values().find(|endpoint| endpoint.slot == 1).expect("slot 1");
        assert_eq!((first.service_name.as_str(), first.task_name.as_str()), ("web", "web.1"));
        assert_eq!(first.node_addr, "192.0.2.1");
        assert!(table.endpoints.values().all(|endpoint| endpoint.ready));
    }

    #[test]
    fn a_node_without_a_task_on_a_network_is_not_told_of_it() {
        let (world, _, _) = networked(1);
        assert_eq!(
            assignments(&world.state, "n2"),
            AssignmentSet { version: world.state.index(), ..Default::default() }
        );
    }

    #[test]
    fn an_endpoint_is_ready_while_it_runs_and_is_wanted() {
        let (mut world, id, network) = networked(2);
        let ready = |world: &World| {
            let set = assignments(&world.state, "n1");
            let endpoints =
                set.networks.get(&network).map(|table| table.endpoints.clone()).unwrap_or_default();
            endpoints.into_values().filter(|endpoint| endpoint.ready).count()
        };
        assert_eq!(ready(&world), 2);
        world.change(&id, |spec| crate::world::set_image(spec, "web:2"));
        world.reconcile();
        assert_eq!(ready(&world), 1, "the one that is told to stop leaves at once");
        world.run(Duration::from_secs(20));
        assert_eq!(ready(&world), 2);
    }

    #[test]
    fn differences_lead_from_one_set_to_the_next() {
        let (mut world, id, _) = networked(3);
        let mut known = assignments(&world.state, "n1");
        replay(&AssignmentSet::default(), &known);
        assert_eq!(replay(&known, &known), 0);
        let last = world.live(&id)[2].id.clone();
        world.report(&last, TaskState::Failed);
        let mut sent = 0;
        for _ in 0..60 {
            world.step();
            let next = assignments(&world.state, "n1");
            sent += replay(&known, &next);
            known = next;
        }
        assert!(sent > 0);
        world.remove_service(&id);
        world.run(Duration::from_secs(2));
        let end = assignments(&world.state, "n1");
        assert!(replay(&known, &end) > 0 && end.tasks.is_empty() && end.networks.is_empty());
    }

    #[test]
    fn a_network_names_its_services_by_their_virtual_address() {
        let (mut world, id, network) = networked(1);
        let node = world.live(&id)[0].node_id.clone();
        let services = |world: &World| assignments(&world.state, &node).networks[&network].services.clone();
        let vip = world.service(&id).endpoint.clone().expect("endpoint").virtual_ips[0].address.clone();
        let entry = services(&world)[&id].clone();
        assert_eq!((entry.name.as_str(), format!("{}/24", entry.address)), ("web", vip));
        world.change(&id, |spec| spec.endpoint.get_or_insert_default().set_mode(endpoint_spec::Mode::Dnsrr));
        world.reconcile();
        assert!(services(&world).is_empty(), "its name leads to its tasks");
    }

    #[test]
    fn ports_with_names_are_told_with_or_without_a_virtual_address() {
        let (mut world, id, network) = networked(1);
        let named = PortConfig { name: "http".into(), ..port(0, 80) };
        world.change(&id, |spec| spec.endpoint.get_or_insert_default().ports = vec![named, port(0, 81)]);
        world.run(Duration::from_secs(2));
        let told = |world: &World| {
            let table = assignments(&world.state, "n1").networks.get(&network).cloned();
            let table = table.unwrap_or_else(|| assignments(&world.state, "n2").networks[&network].clone());
            let entry = table.services[&id].clone();
            let ports: Vec<(String, u32)> =
                entry.ports.iter().map(|port| (port.name.clone(), port.target)).collect();
            (entry.address.is_empty(), ports, table.endpoints.values().all(|one| one.started))
        };
        let http = vec![("http".to_owned(), 80)];
        assert_eq!(told(&world), (false, http.clone(), true));
        world.change(&id, |spec| {
            let endpoint = spec.endpoint.get_or_insert_default();
            endpoint.set_mode(endpoint_spec::Mode::Dnsrr);
            endpoint
                .ports
                .iter_mut()
                .for_each(|port| port.set_mode(rswarm_proto::wire::port_config::Mode::Host));
        });
        world.run(Duration::from_secs(2));
        assert_eq!(told(&world), (true, http, true));
    }

    #[test]
    fn every_node_is_told_of_the_mesh_while_anything_is_published() {
        let mut world = World::new(3);
        let mut web = spec("web", 1);
        publish(&mut web, [port(8080, 80)]);
        world.create(spec("api", 3));
        world.run(Duration::from_secs(1));
        assert!(assignments(&world.state, "n1").networks.is_empty());
        let id = world.create(web);
        world.run(Duration::from_secs(1));
        let ingress = world.state.ingress_network().expect("ingress").id.clone();
        let known: Vec<_> = ["n1", "n2", "n3"].map(|node| assignments(&world.state, node)).into();
        for set in &known {
            let table = &set.networks[&ingress];
            assert_eq!(table.nodes.len(), 3);
            assert_eq!(table.endpoints.len(), 1);
            assert_eq!(table.services[&id].ports, [port(8080, 80)]);
        }
        world.change(&id, |spec| publish(spec, [port(8081, 80)]));
        world.run(Duration::from_secs(1));
        let changes = known[0].diff(&assignments(&world.state, "n1"));
        let table = changes.into_iter().find_map(|change| match change.change {
            Some(Kind::Network(table)) => Some(table),
            _ => None,
        });
        let table = table.expect("a delta");
        assert_eq!((table.endpoints.len(), table.services.len(), table.nodes.len()), (0, 1, 0));
        let task_node = world.live(&id)[0].node_id.clone();
        let idle = ["n1", "n2", "n3"].into_iter().find(|node| *node != task_node).expect("three nodes");
        let known = assignments(&world.state, idle);
        world.remove_service(&id);
        world.reconcile();
        let next = assignments(&world.state, idle);
        assert!(next.networks.is_empty(), "nothing is published any more");
        replay(&known, &next);
    }

    #[test]
    fn an_ended_task_stays_until_it_is_reaped_but_needs_no_network() {
        let (mut world, id, _) = networked(1);
        let task = world.live(&id)[0].clone();
        world.change(&id, |spec| {
            let replicated = rswarm_proto::wire::Replicated { replicas: 1 };
            spec.mode = Some(rswarm_proto::wire::service_spec::Mode::Replicated(replicated));
            let restart = spec.task.get_or_insert_default().restart.get_or_insert_default();
            restart.set_condition(rswarm_proto::wire::restart_policy::Condition::None);
        });
        world.run(Duration::from_secs(15));
        world.live(&id).iter().for_each(|live| assert_ne!(live.id, task.id));
        let set = assignments(&world.state, &task.node_id);
        assert!(set.tasks.contains_key(&task.id));
        let live_here = world.live(&id).iter().any(|live| live.node_id == task.node_id);
        assert_eq!(!set.networks.is_empty(), live_here);
    }
}
