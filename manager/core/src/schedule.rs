//! Placement: spread over what the filters leave, a group of identical tasks at a time.
//!
//! Each node's load is kept by the state as tasks come and go, so a group costs one look at every node, and
//! each of its tasks then only one step in a heap.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use rswarm_base::Timestamp;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{Node, PortConfig, Task, TaskStatus};

use crate::author::Author;
use crate::filter::{self, Filter};
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
        for port in filter::host_ports(task) {
            *self.ports.entry(port_key(port)).or_default() += 1;
        }
        if task.desired() <= TaskState::Running {
            self.tasks += 1;
            *self.services.entry(task.service_id.clone()).or_default() += 1;
        }
    }

    pub(crate) fn remove(&mut self, task: &Task) {
        if !holds(task) {
            return;
        }
        let reserved = filter::reservations(task);
        self.held -= 1;
        self.nano_cpus -= reserved.nano_cpus;
        self.memory -= reserved.memory;
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
                match filter::refusal(&filter::ALL, task, node, load) {
                    None => return self.assign(at, task, now, plan),
                    Some(filter) => vec![filter],
                }
            }
            Err(_) => Vec::new(),
        };
        explain(task, &refused, plan);
    }

    fn assign(&mut self, at: usize, task: &Task, now: Timestamp, plan: &mut Plan) {
        let (node, load) = &mut self.nodes[at];
        let status = TaskStatus {
            state: TaskState::Assigned.into(),
            timestamp: now.0,
            message: "scheduler assigned task to node".to_owned(),
            err: String::new(),
            ..task.status.clone().unwrap_or_default()
        };
        let assigned = Task { node_id: node.id.clone(), status: Some(status), ..task.clone() };
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
                None => open.insert(spread(model), node, load, rank(at, model, node, load, &failures)),
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
        left.for_each(|task| explain(task, &refusals, plan));
    }
}

/// Says on the task itself why it waits.
fn explain(task: &Task, refusals: &[Filter], plan: &mut Plan) {
    let err = filter::no_suitable_node(refusals);
    let status = task.status.clone().unwrap_or_default();
    if status.err != err {
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
    let failing = failures.get(node.id.as_str()).is_some_and(|count| *count >= FAILURES_MAX);
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
    /// By label value: the service's tasks in that part, and the part.
    Fork(BTreeMap<String, (u64, Branch)>),
}

impl Branch {
    fn new(spread: &[String]) -> Branch {
        if spread.is_empty() { Branch::Leaf(BinaryHeap::new()) } else { Branch::Fork(BTreeMap::new()) }
    }

    /// Adds a node with the service's tasks that are on it already.
    fn insert(&mut self, spread: &[String], node: &Node, load: &Load, rank: Rank) {
        match (self, spread.split_first()) {
            (Branch::Fork(parts), Some((label, rest))) => {
                let value = label_value(label, node).to_owned();
                let (count, part) = parts.entry(value).or_insert_with(|| (0, Branch::new(rest)));
                *count += rank.1;
                part.insert(rest, node, load, rank);
            }
            (Branch::Leaf(heap), _) => heap.push(Reverse(rank)),
            (Branch::Fork(_), None) => {}
        }
    }

    /// Takes the best node of the part with the fewest tasks.
    fn take(&mut self) -> Option<usize> {
        match self {
            Branch::Leaf(heap) => heap.pop().map(|Reverse(rank)| rank.4),
            Branch::Fork(parts) => loop {
                let (value, _) = parts.iter().min_by_key(|(_, (count, _))| *count)?;
                let value = value.clone();
                let (_, part) = parts.get_mut(&value)?;
                match part.take() {
                    Some(at) => return Some(at),
                    None => drop(parts.remove(&value)),
                }
            },
        }
    }

    /// Puts a node back that was just given one more task.
    fn put_back(&mut self, spread: &[String], node: &Node, rank: Rank) {
        match (self, spread.split_first()) {
            (Branch::Fork(parts), Some((label, rest))) => {
                if let Some((count, part)) = parts.get_mut(label_value(label, node)) {
                    *count += 1;
                    part.put_back(rest, node, rank);
                }
            }
            (Branch::Leaf(heap), _) => heap.push(Reverse(rank)),
            (Branch::Fork(_), None) => {}
        }
    }
}

/// The node's value of a spread descriptor; a node without the label is in a part of its own.
fn label_value<'n>(descriptor: &str, node: &'n Node) -> &'n str {
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
