//! Placement: spread over what the filters leave, a group of identical tasks at a time.
//!
//! Each node's load is kept by the state as tasks come and go, so a group costs one look at every node, and
//! each of its tasks then only one step in a heap.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use rswarm_base::Timestamp;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{Node, PortConfig, Task, TaskStatus};

use crate::author::Author;
use crate::filter;
use crate::generic::{self, Claims};
use crate::reconcile::{Env, Plan, Reconciler};
use crate::slot::ended_by_itself;
use crate::state::State;

/// A node on which a service version failed this often lately is used last.
const FAILURES_MAX: u32 = 5;
/// What "lately" means there.
const FAILURE_WINDOW: Duration = Duration::from_secs(5 * 60);

/// Gives waiting tasks a node.
#[derive(Debug)]
pub struct Schedule;

impl Reconciler for Schedule {
    fn author(&self) -> Author {
        Author::Schedule
    }

    fn reconcile(&self, view: &State, env: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        let waiting = view
            .unsettled_tasks()
            .filter(|task| task.observed() == TaskState::Pending && task.desired() <= TaskState::Running);
        let (bound, free): (Vec<_>, Vec<_>) = waiting.partition(|task| !task.node_id.is_empty());
        if bound.is_empty() && free.is_empty() {
            return plan;
        }
        let mut nodes = Nodes::new(view);
        for task in bound {
            nodes.confirm(task, env.now, &mut plan);
        }
        let mut groups: BTreeMap<(&str, u64), Vec<&Arc<Task>>> = BTreeMap::new();
        for task in free {
            groups.entry((&task.service_id, task.spec_version)).or_default().push(task);
        }
        for tasks in groups.into_values() {
            nodes.place(view, &tasks, env.now, &mut plan);
        }
        plan
    }
}

/// What the tasks on a node take up. Kept by the state, task by task.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Load {
    /// Tasks that hold something: assigned and not ended.
    held: u64,
    /// Those of them that are wanted to run.
    pub tasks: u64,
    /// Reserved CPU, in billionths.
    pub nano_cpus: i64,
    /// Reserved memory, in bytes.
    pub memory: i64,
    /// Generic resources that tasks were given.
    pub generic: Claims,
    services: OrdMap<String, u64>,
    ports: BTreeMap<(String, u32), u32>,
}

impl Load {
    /// Tasks of one service that are wanted to run here.
    #[must_use]
    pub fn of_service(&self, service: &str) -> u64 {
        self.services.get(service).copied().unwrap_or(0)
    }

    /// Whether a host port is free.
    #[must_use]
    pub fn is_port_free(&self, port: &PortConfig) -> bool {
        self.ports.is_empty() || !self.ports.contains_key(&port_key(port))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held == 0
    }

    pub(crate) fn add(&mut self, task: &Task) {
        if !holds(task) {
            return;
        }
        let reserved = filter::reservations(task);
        self.held += 1;
        self.nano_cpus += reserved.nano_cpus;
        self.memory += reserved.memory;
        self.generic.add(&task.generic);
        for port in filter::host_ports(task) {
            *self.ports.entry(port_key(port)).or_default() += 1;
        }
        if task.desired() <= TaskState::Running {
            self.tasks += 1;
            match self.services.get_mut(&task.service_id) {
                Some(tasks) => *tasks += 1,
                None => drop(self.services.insert(task.service_id.clone(), 1)),
            }
        }
    }

    /// Whether two tasks, on the same node or none, take up the same.
    pub(crate) fn is_same(one: &Task, other: &Task) -> bool {
        let takes = |task: &Task| (task.desired() <= TaskState::Running, filter::reservations(task));
        one.node_id == other.node_id
            && holds(one) == holds(other)
            && (!holds(one)
                || takes(one) == takes(other)
                    && one.service_id == other.service_id
                    && one.generic == other.generic
                    && filter::host_ports(one).eq(filter::host_ports(other)))
    }

    pub(crate) fn remove(&mut self, task: &Task) {
        if !holds(task) {
            return;
        }
        let reserved = filter::reservations(task);
        self.held -= 1;
        self.nano_cpus -= reserved.nano_cpus;
        self.memory -= reserved.memory;
        self.generic.remove(&task.generic);
        for port in filter::host_ports(task) {
            let key = port_key(port);
            match self.ports.get_mut(&key) {
                Some(users) if *users > 1 => *users -= 1,
                _ => drop(self.ports.remove(&key)),
            }
        }
        if task.desired() <= TaskState::Running {
            self.tasks -= 1;
            match self.services.get_mut(&task.service_id) {
                Some(tasks) if *tasks > 1 => *tasks -= 1,
                _ => drop(self.services.remove(&task.service_id)),
            }
        }
    }
}

fn port_key(port: &PortConfig) -> (String, u32) {
    (port.protocol.clone(), port.published)
}

/// Whether a task takes something up on its node. One that waits there for its first confirmation does not.
fn holds(task: &Task) -> bool {
    task.observed() >= TaskState::Assigned && !task.observed().is_terminal()
}

/// All nodes with their loads, which grow as tasks are placed.
struct Nodes<'a> {
    nodes: Vec<(&'a Arc<Node>, Arc<Load>)>,
}

impl<'a> Nodes<'a> {
    fn new(view: &'a State) -> Nodes<'a> {
        Nodes { nodes: view.nodes().map(|node| (node, view.load(&node.id))).collect() }
    }

    /// A task that belongs to one node gets it, or waits for it.
    fn confirm(&mut self, task: &Arc<Task>, now: Timestamp, plan: &mut Plan) {
        let found = self.nodes.binary_search_by(|(node, _)| node.id.as_str().cmp(&task.node_id));
        let refused = match found {
            Ok(at) => {
                let (node, load) = &self.nodes[at];
                // The container is there already, whatever else the node may take.
                let filters = if task.is_attachment() { &[][..] } else { &filter::ALL[..] };
                match filter::refusal(filters, task, node, load) {
                    None => return self.assign(at, task, now, plan),
                    Some(filter) => vec![filter],
                }
            }
            Err(_) => Vec::new(),
        };
        explain(task, filter::no_suitable_node(&refused), plan);
    }

    fn assign(&mut self, at: usize, task: &Task, now: Timestamp, plan: &mut Plan) {
        let (node, load) = &mut self.nodes[at];
        let mut assigned = task.clone();
        assigned.node_id.clone_from(&node.id);
        assigned.generic = load.generic.choose(generic::reserved(task), node).unwrap_or_default();
        let status = assigned.status.get_or_insert_default();
        status.set_state(TaskState::Assigned);
        status.timestamp = now.0;
        status.message = "scheduler assigned task to node".to_owned();
        status.err.clear();
        Arc::make_mut(load).add(&assigned);
        plan.update(assigned);
    }

    /// Places tasks that are alike in everything but their slot.
    fn place(&mut self, view: &State, tasks: &[&Arc<Task>], now: Timestamp, plan: &mut Plan) {
        let model = tasks[0];
        let failures = recent_failures(view, model, now);
        let mut refusals = Vec::new();
        let mut open = Branch::new(spread(model));
        for (at, (node, load)) in self.nodes.iter().enumerate() {
            match filter::refusal(&filter::ALL, model, node, load) {
                Some(filter) => refusals.push(filter),
                None => open.insert(spread(model), node, rank(at, model, node, load, &failures)),
            }
        }
        let mut left = tasks.iter();
        while let Some(task) = left.as_slice().first() {
            let Some(at) = open.take() else { break };
            let (node, load) = &self.nodes[at];
            if let Some(filter) = filter::refusal(&filter::DYNAMIC, task, node, load) {
                refusals.push(filter);
                continue;
            }
            self.assign(at, task, now, plan);
            let (node, load) = &self.nodes[at];
            open.put_back(spread(model), node, rank(at, model, node, load, &failures));
            left.next();
        }
        let err = filter::no_suitable_node(&refusals);
        left.for_each(|task| explain(task, err.clone(), plan));
    }
}

/// Says on the task itself why it waits.
fn explain(task: &Task, err: String, plan: &mut Plan) {
    if task.status.as_ref().is_none_or(|status| status.err != err) {
        let status = task.status.clone().unwrap_or_default();
        plan.update(Task { status: Some(TaskStatus { err, ..status }), ..task.clone() });
    }
}

/// How often this version of the service ended by itself on each node lately.
fn recent_failures<'a>(view: &'a State, model: &Task, now: Timestamp) -> BTreeMap<&'a str, u32> {
    let mut failures = BTreeMap::new();
    for task in view.tasks_of_service(&model.service_id) {
        let ended = task.status.as_ref().map_or(0, |status| status.timestamp);
        let recent = now.since(Timestamp(ended)) < FAILURE_WINDOW;
        if task.spec_version == model.spec_version
            && ended_by_itself(task)
            && task.observed() != TaskState::Complete
            && recent
        {
            *failures.entry(task.node_id.as_str()).or_default() += 1;
        }
    }
    failures
}

/// How good a node is for the next task; the least is taken. The position makes it total.
type Rank = (bool, u64, u64, i64, usize);

fn rank(at: usize, model: &Task, node: &Node, load: &Load, failures: &BTreeMap<&str, u32>) -> Rank {
    let failing =
        !failures.is_empty() && failures.get(node.id.as_str()).is_some_and(|count| *count >= FAILURES_MAX);
    (failing, load.of_service(&model.service_id), load.tasks, reserved_per_mille(node, load), at)
}

/// The larger of the reserved shares of CPU and memory.
fn reserved_per_mille(node: &Node, load: &Load) -> i64 {
    let has = filter::capacity(node);
    let share = |used: i64, has: i64| if has > 0 { used.saturating_mul(1000) / has } else { 0 };
    share(load.nano_cpus, has.nano_cpus).max(share(load.memory, has.memory))
}

fn spread(task: &Task) -> &[String] {
    let placement = task.spec.as_ref().and_then(|spec| spec.placement.as_ref());
    placement.map_or(&[], |placement| &placement.spread)
}

/// Candidate nodes: split by the values of each spread label in turn, ranked at the leaves.
enum Branch {
    Leaf(BinaryHeap<Reverse<Rank>>),
    Fork(Fork),
}

/// Parts of the cluster by their value of one label.
#[derive(Default)]
struct Fork {
    /// How many of the service's tasks are in each part, and the part.
    parts: BTreeMap<Arc<str>, (u64, Branch)>,
    /// The parts in the order in which they get tasks: the emptiest first.
    order: BTreeSet<(u64, Arc<str>)>,
}

impl Branch {
    fn new(spread: &[String]) -> Branch {
        if spread.is_empty() { Branch::Leaf(BinaryHeap::new()) } else { Branch::Fork(Fork::default()) }
    }

    /// Adds a node with the service's tasks that are on it already.
    fn insert(&mut self, spread: &[String], node: &Node, rank: Rank) {
        match (self, spread.split_first()) {
            (Branch::Fork(fork), Some((label, rest))) => {
                let value = label_value(label, node);
                if !fork.parts.contains_key(value) {
                    fork.parts.insert(value.into(), (0, Branch::new(rest)));
                }
                if let Some(part) = fork.grow(value, rank.1) {
                    part.insert(rest, node, rank);
                }
            }
            (Branch::Leaf(heap), _) => heap.push(Reverse(rank)),
            (Branch::Fork(_), None) => {}
        }
    }

    /// Takes the best node of the part with the fewest tasks.
    fn take(&mut self) -> Option<usize> {
        match self {
            Branch::Leaf(heap) => heap.pop().map(|Reverse(rank)| rank.4),
            Branch::Fork(fork) => loop {
                let (_, value) = fork.order.first()?;
                let (_, part) = fork.parts.get_mut(value)?;
                if let Some(at) = part.take() {
                    return Some(at);
                }
                // None of its nodes is left.
                if let Some((_, value)) = fork.order.pop_first() {
                    fork.parts.remove(&value);
                }
            },
        }
    }

    /// Puts a node back that was just given one more task.
    fn put_back(&mut self, spread: &[String], node: &Node, rank: Rank) {
        match (self, spread.split_first()) {
            (Branch::Fork(fork), Some((label, rest))) => {
                if let Some(part) = fork.grow(label_value(label, node), 1) {
                    part.put_back(rest, node, rank);
                }
            }
            (Branch::Leaf(heap), _) => heap.push(Reverse(rank)),
            (Branch::Fork(_), None) => {}
        }
    }
}

impl Fork {
    /// The part of this value, which has so many tasks more.
    fn grow(&mut self, value: &str, tasks: u64) -> Option<&mut Branch> {
        let (key, _) = self.parts.get_key_value(value)?;
        let key = key.clone();
        let (count, part) = self.parts.get_mut(value)?;
        self.order.remove(&(*count, key.clone()));
        *count += tasks;
        self.order.insert((*count, key));
        Some(part)
    }
}

/// The node's value of a spread descriptor; a node without the label is in a part of its own.
pub(crate) fn label_value<'n>(descriptor: &str, node: &'n Node) -> &'n str {
    let labels = if let Some(name) = descriptor.strip_prefix("node.labels.") {
        let annotations = node.spec.as_ref().and_then(|spec| spec.annotations.as_ref());
        annotations.and_then(|annotations| annotations.labels.get(name))
    } else if let Some(name) = descriptor.strip_prefix("engine.labels.") {
        let engine = node.description.as_ref().and_then(|description| description.engine.as_ref());
        engine.and_then(|engine| engine.labels.get(name))
    } else {
        None
    };
    labels.map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Author;
    use crate::world::{World, spec};
    use rswarm_proto::wire::{
        EndpointSpec, NodeAvailability, Placement, ResourceRequirements, Resources, ServiceSpec, port_config,
    };

    const SECONDS: Duration = Duration::from_secs(2);

    fn place(spec: &mut ServiceSpec) -> &mut Placement {
        spec.task.get_or_insert_default().placement.get_or_insert_default()
    }

    fn reserve(spec: &mut ServiceSpec, memory: i64) {
        let reservations = Some(Resources { memory, ..Resources::default() });
        let requirements = ResourceRequirements { reservations, ..ResourceRequirements::default() };
        spec.task.get_or_insert_default().resources = Some(requirements);
    }

    fn drain(world: &mut World, node: &str) {
        world.change_node(node, Author::Control, |node| {
            node.spec.get_or_insert_default().set_availability(NodeAvailability::Drain);
        });
    }

    fn errors(world: &World, id: &str) -> Vec<String> {
        let errors = world.live(id).into_iter().filter_map(|task| task.status.clone());
        errors.map(|status| status.err).filter(|err| !err.is_empty()).collect()
    }

    #[test]
    fn tasks_spread_over_nodes_then_over_what_nodes_have() {
        let mut world = World::new(3);
        let first = world.create(spec("a", 2));
        world.run(SECONDS);
        assert_eq!(world.spread(&first).into_keys().collect::<Vec<_>>(), ["n1", "n2"]);
        let second = world.create(spec("b", 1));
        world.run(SECONDS);
        assert_eq!(world.spread(&second).into_keys().collect::<Vec<_>>(), ["n3"], "the emptiest node");
        let third = world.create(spec("c", 7));
        world.run(SECONDS);
        assert_eq!(world.spread(&third).into_values().max(), Some(3));
        assert_eq!(world.spread(&third).into_values().min(), Some(2));
    }

    #[test]
    fn a_task_that_no_node_can_take_says_why() {
        let mut world = World::new(3);
        drain(&mut world, "n3");
        let mut big = spec("big", 1);
        reserve(&mut big, 16 << 30);
        let id = world.create(big);
        world.run(SECONDS);
        assert_eq!(
            errors(&world, &id),
            ["no suitable node (insufficient resources on 2 nodes; 1 node not available for new tasks)"]
        );
        world.change_node("n2", Author::Dispatcher, |node| {
            let description = node.description.get_or_insert_default();
            description.resources.get_or_insert_default().memory = 32 << 30;
        });
        world.run(SECONDS);
        assert_eq!(world.spread(&id), [("n2".to_owned(), 1)].into());
        assert_eq!(errors(&world, &id), Vec::<String>::new());
    }

    #[test]
    fn reservations_fill_nodes_and_no_further() {
        let mut world = World::new(2);
        let mut big = spec("big", 6);
        reserve(&mut big, 3 << 30);
        let id = world.create(big);
        world.run(SECONDS);
        assert_eq!(world.running(&id), 4);
        assert_eq!(errors(&world, &id), vec!["no suitable node (insufficient resources on 2 nodes)"; 2]);
    }

    #[test]
    fn a_host_port_is_had_once_per_node() {
        let mut world = World::new(2);
        let mut web = spec("web", 3);
        let port = PortConfig {
            protocol: "tcp".to_owned(),
            target: 80,
            published: 8080,
            mode: port_config::Mode::Host.into(),
            ..PortConfig::default()
        };
        web.endpoint = Some(EndpointSpec { ports: vec![port], ..EndpointSpec::default() });
        let id = world.create(web);
        world.run(SECONDS);
        assert_eq!(world.running(&id), 2);
        assert_eq!(errors(&world, &id), ["no suitable node (host-mode port already in use on 2 nodes)"]);
    }

    #[test]
    fn replicas_per_node_are_limited() {
        let mut world = World::new(2);
        let mut web = spec("web", 5);
        place(&mut web).max_replicas = 2;
        let id = world.create(web);
        world.run(SECONDS);
        assert_eq!(world.running(&id), 4);
        assert_eq!(errors(&world, &id), ["no suitable node (max replicas per node limit exceed)"]);
    }

    #[test]
    fn constraints_and_platforms_choose() {
        let mut world = World::new(3);
        let mut web = spec("web", 2);
        place(&mut web).constraints = vec!["node.hostname==host-n2".to_owned()];
        let id = world.create(web);
        let mut arm = spec("arm", 1);
        let platform =
            rswarm_proto::wire::Platform { architecture: "arm64".to_owned(), os: "linux".to_owned() };
        place(&mut arm).platforms = vec![platform];
        let nowhere = world.create(arm);
        world.run(SECONDS);
        assert_eq!(world.spread(&id), [("n2".to_owned(), 2)].into());
        assert_eq!(errors(&world, &nowhere), ["no suitable node (unsupported platform on 3 nodes)"]);
    }

    #[test]
    fn spread_is_even_over_label_values_first() {
        let mut world = World::new(4);
        for (node, zone) in [("n1", "a"), ("n2", "b"), ("n3", "b"), ("n4", "b")] {
            world.change_node(node, Author::Control, |node| {
                let annotations = node.spec.get_or_insert_default().annotations.get_or_insert_default();
                annotations.labels.insert("zone".to_owned(), zone.to_owned());
            });
        }
        let mut web = spec("web", 6);
        place(&mut web).spread = vec!["node.labels.zone".to_owned()];
        let id = world.create(web);
        world.run(SECONDS);
        assert_eq!(world.spread(&id).into_values().collect::<Vec<_>>(), [3, 1, 1, 1]);
    }

    #[test]
    fn a_node_where_it_keeps_failing_is_used_last() {
        let mut world = World::new(2);
        let id = world.create(spec("web", 1));
        world.run(SECONDS);
        for _ in 0..FAILURES_MAX {
            // Room is only where it fails.
            drain(&mut world, "n2");
            world.run(SECONDS);
            let task = world.live(&id)[0].clone();
            assert_eq!(task.node_id, "n1");
            world.report(&task.id, TaskState::Failed);
        }
        world.change_node("n2", Author::Control, |node| {
            node.spec.get_or_insert_default().set_availability(NodeAvailability::Active);
        });
        let other = world.create(spec("other", 3));
        world.run(SECONDS);
        assert_eq!(world.running(&other), 3);
        assert_eq!(world.spread(&id), [("n2".to_owned(), 1)].into());
    }

    #[test]
    fn the_kept_loads_are_what_the_tasks_add_up_to() {
        let mut world = World::new(3);
        let mut web = spec("web", 7);
        reserve(&mut web, 1 << 30);
        let id = world.create(web);
        world.run(SECONDS);
        drain(&mut world, "n1");
        world.run(SECONDS);
        world.change(&id, |spec| crate::world::set_image(spec, "web:2"));
        for _ in 0..30 {
            world.step();
            for node in world.state.nodes() {
                let mut expected = Load::default();
                world.state.tasks_on_node(&node.id).for_each(|task| expected.add(task));
                assert_eq!(*world.state.load(&node.id), expected);
            }
        }
    }
}
