//! The cluster's state as one immutable value: a persistent map per kind of object, and the indices that
//! the brain asks by. A clone costs nothing; a reader never waits and never sees half a change.

mod object;
mod snapshot;
mod write;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet};
use rswarm_base::ipam::{Family, Subnet, local_prefix};
use rswarm_proto::model::object::Stored;
use rswarm_proto::wire::{
    Cluster, Config, Network, Node, NodeState, ObjectKind, Secret, Service, ServiceSpec, Task,
};

use crate::allocate::NODE_NETWORKS;
use crate::cohort::{Cohort, Id};
use crate::indices::TaskIndices;
use crate::schedule::Load;

pub use self::object::AnyObject;
pub use self::snapshot::RestoreError;

/// Heartbeat period of agents when the cluster's spec gives none.
pub const HEARTBEAT_PERIOD: Duration = Duration::from_secs(1);
/// Tasks kept per slot when the cluster's spec gives no limit.
pub const TASK_HISTORY_LIMIT: i64 = 5;
/// Where networks get their subnets from when the cluster has no pools of its own.
const DEFAULT_POOL: &str = "10.0.0.0/8";
/// Prefix length of a network's subnet when the cluster gives none.
const DEFAULT_SUBNET_SIZE: u8 = 24;
/// Prefix length of a network's IPv6 subnet.
/// spec: RFC 4291 2.5.1
const SUBNET_SIZE_V6: u8 = 64;

/// Objects of one kind by id.
pub(crate) type Table<T> = OrdMap<Id, Arc<T>>;

/// Everything the managers know, as of one raft index.
#[derive(Debug, Clone, Default)]
pub struct State {
    index: u64,
    clusters: Table<Cluster>,
    nodes: Table<Node>,
    services: Table<Service>,
    tasks: Table<Task>,
    networks: Table<Network>,
    secrets: Table<Secret>,
    configs: Table<Config>,
    // Indices. Each is derived from the tables alone, change by change.
    service_names: OrdMap<String, String>,
    network_names: OrdMap<String, String>,
    /// Secrets and configs by name: ids by number of the version. The last is the one that the name stands for.
    contents: OrdMap<(ObjectKind, String), OrdMap<u64, String>>,
    /// Those of more than one version.
    versioned: OrdSet<(ObjectKind, String)>,
    node_names: OrdSet<(String, String)>,
    task_indices: TaskIndices,
    /// Nodes that are in the raft group.
    managers: OrdSet<Id>,
    services_by_network: OrdSet<(String, String)>,
    /// Services with ports in ingress mode, that are not being deleted.
    on_ingress: OrdSet<String>,
    /// Protocol, port, whether in ingress mode, service: as asked for and as given, of services that are not being
    /// deleted.
    published: OrdSet<(String, u32, bool, String)>,
    ingress: Option<String>,
}

/// Reading.
impl State {
    /// The raft index that this state is the result of.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The one cluster object; `None` only before the cluster is bootstrapped.
    #[must_use]
    pub fn cluster(&self) -> Option<&Arc<Cluster>> {
        self.clusters.values().next()
    }

    /// A node by id.
    #[must_use]
    pub fn node(&self, id: &str) -> Option<&Arc<Node>> {
        self.nodes.get(id)
    }

    /// A service by id.
    #[must_use]
    pub fn service(&self, id: &str) -> Option<&Arc<Service>> {
        self.services.get(id)
    }

    /// A task by id.
    #[must_use]
    pub fn task(&self, id: &str) -> Option<&Arc<Task>> {
        self.tasks.get(id)
    }

    /// A network by id.
    #[must_use]
    pub fn network(&self, id: &str) -> Option<&Arc<Network>> {
        self.networks.get(id)
    }

    /// A secret by id.
    #[must_use]
    pub fn secret(&self, id: &str) -> Option<&Arc<Secret>> {
        self.secrets.get(id)
    }

    /// A config by id.
    #[must_use]
    pub fn config(&self, id: &str) -> Option<&Arc<Config>> {
        self.configs.get(id)
    }

    /// An object of any kind by id.
    #[must_use]
    pub fn get(&self, kind: ObjectKind, id: &str) -> Option<AnyObject> {
        match kind {
            ObjectKind::Cluster => self.clusters.get(id).cloned().map(AnyObject::Cluster),
            ObjectKind::Node => self.nodes.get(id).cloned().map(AnyObject::Node),
            ObjectKind::Service => self.services.get(id).cloned().map(AnyObject::Service),
            ObjectKind::Task => self.tasks.get(id).cloned().map(AnyObject::Task),
            ObjectKind::Network => self.networks.get(id).cloned().map(AnyObject::Network),
            ObjectKind::Secret => self.secrets.get(id).cloned().map(AnyObject::Secret),
            ObjectKind::Config => self.configs.get(id).cloned().map(AnyObject::Config),
        }
    }

    /// The first ids of a kind that begin with `prefix`, two at most: enough to tell one from many.
    #[must_use]
    pub fn ids_with_prefix(&self, kind: ObjectKind, prefix: &str) -> Vec<String> {
        match kind {
            ObjectKind::Cluster => with_prefix(&self.clusters, prefix),
            ObjectKind::Node => with_prefix(&self.nodes, prefix),
            ObjectKind::Service => with_prefix(&self.services, prefix),
            ObjectKind::Task => with_prefix(&self.tasks, prefix),
            ObjectKind::Network => with_prefix(&self.networks, prefix),
            ObjectKind::Secret => with_prefix(&self.secrets, prefix),
            ObjectKind::Config => with_prefix(&self.configs, prefix),
        }
    }

    /// All nodes, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// All services, by id, those that are being deleted too.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All tasks, by id.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    /// All networks, by id, those that are being deleted too.
    pub fn networks(&self) -> impl Iterator<Item = &Arc<Network>> {
        self.networks.values()
    }

    /// All secrets, by id.
    pub fn secrets(&self) -> impl Iterator<Item = &Arc<Secret>> {
        self.secrets.values()
    }

    /// All configs, by id.
    pub fn configs(&self) -> impl Iterator<Item = &Arc<Config>> {
        self.configs.values()
    }

    /// How many nodes there are.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// How many tasks there are.
    #[must_use]
    pub fn task_count(&self) -> usize {
        self.tasks.len()
    }

    /// The service of this name that is not being deleted.
    #[must_use]
    pub fn service_named(&self, name: &str) -> Option<&Arc<Service>> {
        self.services.get(self.service_names.get(name)?.as_str())
    }

    /// The network of this name that is not being deleted.
    #[must_use]
    pub fn network_named(&self, name: &str) -> Option<&Arc<Network>> {
        self.networks.get(self.network_names.get(name)?.as_str())
    }

    /// What differs from an earlier state, as it was and is: nodes, services, networks, secrets and configs. Tables that
    /// share what they hold are not compared, so it costs as much as what differs.
    #[must_use]
    pub fn changes_since(&self, before: &State) -> Vec<(Option<AnyObject>, Option<AnyObject>)> {
        let nodes = differences(&before.nodes, &self.nodes, AnyObject::Node);
        let services = differences(&before.services, &self.services, AnyObject::Service);
        let networks = differences(&before.networks, &self.networks, AnyObject::Network);
        let secrets = differences(&before.secrets, &self.secrets, AnyObject::Secret);
        let configs = differences(&before.configs, &self.configs, AnyObject::Config);
        nodes.chain(services).chain(networks).chain(secrets).chain(configs).collect()
    }

    /// The latest version of the secret of this name.
    #[must_use]
    pub fn secret_named(&self, name: &str) -> Option<&Arc<Secret>> {
        self.secrets.get(self.latest_content(ObjectKind::Secret, name)?)
    }

    /// The latest version of the config of this name.
    #[must_use]
    pub fn config_named(&self, name: &str) -> Option<&Arc<Config>> {
        self.configs.get(self.latest_content(ObjectKind::Config, name)?)
    }

    fn latest_content(&self, kind: ObjectKind, name: &str) -> Option<&str> {
        let (_, id) = self.contents.get(&(kind, name.to_owned()))?.get_max()?;
        Some(id.as_str())
    }

    /// The ids of a secret's or config's versions, the oldest first.
    #[must_use]
    pub fn content_versions(&self, kind: ObjectKind, name: &str) -> Vec<&str> {
        let versions = self.contents.get(&(kind, name.to_owned()));
        versions.into_iter().flat_map(|versions| versions.values()).map(String::as_str).collect()
    }

    /// The version of a secret or config that has this number.
    #[must_use]
    pub fn content_version(&self, kind: ObjectKind, name: &str, number: u64) -> Option<AnyObject> {
        self.get(kind, self.contents.get(&(kind, name.to_owned()))?.get(&number)?)
    }

    /// Kinds and ids of the secrets and configs that are not the latest of their name.
    pub fn superseded(&self) -> impl Iterator<Item = (ObjectKind, &str)> {
        self.versioned.iter().filter_map(|key| Some((key.0, self.contents.get(key)?))).flat_map(
            |(kind, versions)| {
                let old = versions.values().take(versions.len() - 1);
                old.map(move |id| (kind, id.as_str()))
            },
        )
    }

    /// The nodes of this name (in the spec, or else their hostname): names of nodes need not be unique.
    pub fn nodes_named(&self, name: &str) -> impl Iterator<Item = &Arc<Node>> {
        let from = (name.to_owned(), String::new());
        let name = name.to_owned();
        self.node_names
            .range(from..)
            .take_while(move |(candidate, _)| *candidate == name)
            .filter_map(|(_, id)| self.nodes.get(id.as_str()))
    }

    /// The tasks of one service, by slot, then id.
    pub fn tasks_of_service(&self, service: &str) -> impl Iterator<Item = &Arc<Task>> {
        self.cohort(service).into_iter().flat_map(Cohort::tasks)
    }

    /// The tasks of one service and what they add up to; `None` when it has none.
    #[must_use]
    pub fn cohort(&self, service: &str) -> Option<&Cohort> {
        self.task_indices.by_service.get(service).map(AsRef::as_ref)
    }

    /// Ids of services that have tasks, whether the service still exists or not.
    pub fn service_ids_with_tasks(&self) -> impl Iterator<Item = &str> {
        self.task_indices.by_service.keys().map(AsRef::as_ref).filter(|id: &&str| !id.is_empty())
    }

    /// The tasks that are no service's: containers of nodes' own, on networks of the cluster.
    pub fn attachments(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks_of_service("")
    }

    /// The tasks of one slot, by id.
    pub fn tasks_of_slot(&self, service: &str, slot: u64) -> impl Iterator<Item = &Arc<Task>> {
        self.cohort(service).into_iter().flat_map(move |cohort| cohort.tasks_of_slot(slot))
    }

    /// The tasks that have a place on this node, ended ones included, by id.
    pub fn tasks_on_node(&self, node: &str) -> impl Iterator<Item = &Arc<Task>> {
        self.task_indices.by_node.get(node).into_iter().flat_map(|tasks| tasks.values())
    }

    /// Ids of nodes that tasks have a place on, whether the node still exists or not.
    pub fn nodes_with_tasks(&self) -> impl Iterator<Item = &str> {
        self.task_indices.by_node.keys().map(AsRef::as_ref)
    }

    /// Whether a task is on this node that its placement does not allow there.
    #[must_use]
    pub fn has_misplaced_tasks(&self, node: &str) -> bool {
        self.task_indices.has_misplaced(node)
    }

    /// Whether two states tell this node the same tasks, without a look at them.
    #[must_use]
    pub fn has_same_tasks_on_node(&self, other: &State, node: &str) -> bool {
        let tasks = |state: &State| state.task_indices.by_node.get(node).cloned().unwrap_or_default();
        tasks(self).ptr_eq(&tasks(other))
    }

    /// The nodes that are in the raft group, by id.
    pub fn managers(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.managers.iter().filter_map(|id| self.nodes.get(id))
    }

    /// The tasks that have an attachment to this network, ended ones included, by id.
    pub fn tasks_on_network(&self, network: &str) -> impl Iterator<Item = &Arc<Task>> {
        self.task_indices.by_network.get(network).into_iter().flat_map(|tasks| tasks.values())
    }

    /// The services whose spec names this network, by id.
    pub fn services_on_network(&self, network: &str) -> impl Iterator<Item = &Arc<Service>> {
        let from = (network.to_owned(), String::new());
        let network = network.to_owned();
        self.services_by_network
            .range(from..)
            .take_while(move |(candidate, _)| *candidate == network)
            .filter_map(|(_, id)| self.services.get(id.as_str()))
    }

    /// The network of the routing mesh; `None` when it was removed, or has not been made yet.
    #[must_use]
    pub fn ingress_network(&self) -> Option<&Arc<Network>> {
        self.networks.get(self.ingress.as_deref()?)
    }

    /// Whether there is no network for the routing mesh, nor will be: the one made with the cluster was removed.
    #[must_use]
    pub fn lacks_ingress(&self) -> bool {
        self.ingress_network().is_none() && self.cluster().is_none_or(|cluster| cluster.ingress_made)
    }

    /// The services that publish on every node, by id; those that are being deleted publish no more.
    pub fn services_on_ingress(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.on_ingress.iter().filter_map(|id| self.services.get(id.as_str()))
    }

    /// The services that publish this port, and whether in ingress mode.
    pub fn publishers(&self, protocol: &str, port: u32) -> impl Iterator<Item = (bool, &Arc<Service>)> {
        let protocol = protocol.to_owned();
        self.published
            .range((protocol.clone(), port, false, String::new())..)
            .take_while(move |(other, number, _, _)| (other, *number) == (&protocol, port))
            .filter_map(|(_, _, ingress, id)| Some((*ingress, self.services.get(id.as_str())?)))
    }

    /// A network that the spec names and that a service cannot be on; nodes' own networks always can.
    #[must_use]
    pub fn missing_network<'s>(&self, spec: Option<&'s ServiceSpec>) -> Option<&'s str> {
        let task = spec.and_then(|spec| spec.task.as_ref());
        let mut targets =
            task.into_iter().flat_map(|task| &task.networks).map(|network| network.target.as_str());
        targets.find(|target| {
            let usable = self.network(target).is_some_and(|network| !network.pending_delete);
            !usable && !NODE_NETWORKS.contains(target)
        })
    }

    /// Tasks still on their way to a node: observed below *assigned*.
    pub fn unsettled_tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.task_indices.unsettled.values()
    }

    /// Tasks that are to be deleted once they have stopped.
    pub fn tasks_to_remove(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.task_indices.removing.values()
    }

    /// Tasks that are told to stop and may still run, by id.
    pub fn stopping_tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.task_indices.stopping.values()
    }

    /// What the tasks on a node take up.
    #[must_use]
    pub fn load(&self, node: &str) -> Arc<Load> {
        self.task_indices.loads.get(node).cloned().unwrap_or_default()
    }

    /// How often agents say that they live: more rarely the more there are.
    #[must_use]
    pub fn heartbeat_period(&self) -> Duration {
        let stretch = self.cluster().map_or(1, |cluster| cluster.heartbeat_stretch.max(1));
        self.wanted_heartbeat_period().saturating_mul(stretch)
    }

    /// How often agents shall say so where there are not too many of them.
    #[must_use]
    pub fn wanted_heartbeat_period(&self) -> Duration {
        let spec = self.cluster().and_then(|cluster| cluster.spec.as_ref());
        spec.and_then(|spec| u64::try_from(spec.heartbeat_period).ok())
            .filter(|ns| *ns > 0)
            .map_or(HEARTBEAT_PERIOD, Duration::from_nanos)
    }

    /// How many tasks a slot keeps, the live one included; `None` keeps all.
    #[must_use]
    pub fn task_history_limit(&self) -> Option<usize> {
        let spec = self.cluster().and_then(|cluster| cluster.spec.as_ref());
        let limit = spec.map_or(0, |spec| spec.task_history_limit);
        let limit = if limit == 0 { TASK_HISTORY_LIMIT } else { limit };
        usize::try_from(limit).ok()
    }

    /// The pools that networks get their subnets of a family from, and the prefix length they get. The cluster
    /// has an IPv6 prefix of its own, unless it was given another.
    #[must_use]
    pub fn address_pools(&self, family: Family) -> (Vec<Subnet>, u8) {
        let cluster = self.cluster();
        let pools = cluster.map_or(&[][..], |cluster| &cluster.default_address_pool);
        let pools = pools.iter().filter_map(|pool| pool.parse().ok());
        let mut pools: Vec<Subnet> = pools.filter(|pool: &Subnet| pool.family() == family).collect();
        match family {
            Family::V4 => {
                if pools.is_empty() {
                    pools.extend(DEFAULT_POOL.parse::<Subnet>().ok());
                }
                let size = cluster.and_then(|cluster| u8::try_from(cluster.subnet_size).ok());
                (pools, size.filter(|size| *size > 0).unwrap_or(DEFAULT_SUBNET_SIZE))
            }
            Family::V6 => {
                if pools.is_empty() {
                    pools.push(local_prefix(cluster.map_or("", |cluster| &cluster.id)));
                }
                (pools, SUBNET_SIZE_V6)
            }
        }
    }

    /// Whether the node is known to be gone: marked down, or no longer listed.
    #[must_use]
    pub fn is_node_lost(&self, node: &str) -> bool {
        self.node(node).is_none_or(|node| node_state(node) == NodeState::Down)
    }
}

/// A node's observed state.
#[must_use]
pub fn node_state(node: &Node) -> NodeState {
    node.status.as_ref().map_or(NodeState::Unknown, |status| status.state())
}

/// The address in a CIDR text such as `10.0.1.2/24`, or in a bare one.
#[must_use]
pub fn address_of(cidr: &str) -> Option<IpAddr> {
    cidr.split_once('/').map_or(cidr, |(address, _)| address).parse().ok()
}

fn with_prefix<T>(table: &Table<T>, prefix: &str) -> Vec<String> {
    let ids = table.range(Id::from(prefix)..).map(|(id, _)| id);
    ids.take_while(|id| id.starts_with(prefix)).take(2).map(|id| id.to_string()).collect()
}

/// What users call a node: the name in its spec, or else its hostname.
#[must_use]
pub fn display_name(node: &Node) -> &str {
    let hostname = || node.description.as_ref().map_or("", |description| description.hostname.as_str());
    if node.name().is_empty() { hostname() } else { node.name() }
}

fn differences<'s, T: PartialEq>(
    before: &'s Table<T>,
    after: &'s Table<T>,
    any: fn(Arc<T>) -> AnyObject,
) -> impl Iterator<Item = (Option<AnyObject>, Option<AnyObject>)> + 's {
    let any = move |object: &Arc<T>| Some(any(Arc::clone(object)));
    before.diff(after).map(move |item| match item {
        DiffItem::Add(_, new) => (None, any(new)),
        DiffItem::Update { old: (_, old), new: (_, new) } => (any(old), any(new)),
        DiffItem::Remove(_, old) => (any(old), None),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{World, attach, port, publish, spec};
    use rswarm_proto::model::task::TaskState;
    use rswarm_proto::wire::Object;

    fn busy_world() -> World {
        let mut world = World::new(3);
        world.network("net");
        let mut web = spec("web", 3);
        attach(&mut web, "net");
        let id = world.create(web);
        let mut api = spec("api", 2);
        publish(&mut api, [port(8080, 80)]);
        world.create(api);
        world.run(Duration::from_secs(2));
        world.report(&world.live(&id)[0].id.clone(), TaskState::Failed);
        let mut gone = spec("gone", 1);
        publish(&mut gone, [port(8081, 80)]);
        let gone = world.create(gone);
        world.run(Duration::from_millis(600));
        world.remove_service(&gone);
        world.reconcile();
        world
    }

    #[test]
    fn a_restored_state_is_the_same_indices_and_all() {
        let state = busy_world().state;
        let restored = State::restore(state.snapshot()).expect("restored");
        assert_eq!(format!("{restored:?}"), format!("{state:?}"));
        assert_eq!(restored.snapshot(), state.snapshot());
    }

    #[test]
    fn a_damaged_snapshot_is_refused() {
        let mut snapshot = busy_world().state.snapshot();
        snapshot.objects.push(snapshot.objects[0].clone());
        assert!(matches!(State::restore(snapshot.clone()), Err(RestoreError::Duplicate(..))));
        snapshot.objects[0] = Object::default();
        assert_eq!(State::restore(snapshot).map(drop), Err(RestoreError::Empty(0)));
    }

    #[test]
    fn indices_answer_what_a_scan_would() {
        let state = busy_world().state;
        for node in state.nodes() {
            let scan: Vec<_> = state.tasks().filter(|task| task.node_id == node.id).collect();
            assert_eq!(state.tasks_on_node(&node.id).collect::<Vec<_>>(), scan);
        }
        for network in state.networks() {
            let on =
                |task: &&Arc<Task>| task.networks.iter().any(|attached| attached.network_id == network.id);
            let scan: Vec<_> = state.tasks().filter(on).collect();
            assert_eq!(state.tasks_on_network(&network.id).collect::<Vec<_>>(), scan);
            let ingress = state.ingress_network().is_some_and(|ingress| ingress.id == network.id);
            assert_eq!(state.services_on_network(&network.id).count(), usize::from(!ingress));
        }
        for service in state.services() {
            let mut scan: Vec<_> = state.tasks().filter(|task| task.service_id == service.id).collect();
            scan.sort_by_key(|task| (crate::cohort::seat(task), &task.id));
            assert_eq!(state.tasks_of_service(&service.id).collect::<Vec<_>>(), scan);
        }
        let removed: Vec<_> = state.tasks().filter(|task| task.desired() == TaskState::Remove).collect();
        assert!(!removed.is_empty());
        assert_eq!(state.tasks_to_remove().collect::<Vec<_>>(), removed);
        let stopping: Vec<_> = state.tasks().filter(|task| crate::indices::is_stopping(task)).collect();
        assert!(!stopping.is_empty());
        assert_eq!(state.stopping_tasks().collect::<Vec<_>>(), stopping);
        let api = state.service_named("api").expect("api");
        assert_eq!(state.services_on_ingress().collect::<Vec<_>>(), [api]);
        assert_eq!(state.publishers("tcp", 8080).collect::<Vec<_>>(), [(true, api)]);
        assert_eq!((state.publishers("udp", 8080).count(), state.publishers("tcp", 8081).count()), (0, 0));
        assert_eq!(state.service_named("gone"), None);
        assert_eq!(state.nodes_named("host-n2").map(|node| node.id.as_str()).collect::<Vec<_>>(), ["n2"]);
    }

    #[test]
    fn prefixes_tell_one_from_many() {
        let state = World::new(11).state;
        assert_eq!(state.ids_with_prefix(ObjectKind::Node, "n11"), ["n11"]);
        assert_eq!(state.ids_with_prefix(ObjectKind::Node, "n1").len(), 2);
        assert!(state.ids_with_prefix(ObjectKind::Node, "x").is_empty());
    }

    #[test]
    fn addresses_are_read_with_and_without_a_prefix() {
        assert_eq!(address_of("10.0.0.2/24"), "10.0.0.2".parse().ok());
        assert_eq!(address_of("fd00::2"), "fd00::2".parse().ok());
        assert_eq!(address_of("ten"), None);
    }
}
