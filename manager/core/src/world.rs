//! A small cluster for tests: state, virtual time, and agents that do as they are told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rswarm_base::{IdGen, Timestamp};
use rswarm_proto::model::object::Stored;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{
    Annotations, Batch, Change, Cluster, ClusterSpec, ContainerSpec, ContainerStatus, CreateNetworkRequest,
    CreateServiceRequest, EngineDescription, NetworkAttachment, NetworkAttachmentConfig, NetworkSpec, Node,
    NodeDescription, NodeSpec, NodeStatus, NodeTaskReport, Platform, PortConfig, RemoveRequest, Replicated,
    Resources, RestartPolicy, Service, ServiceSpec, Task, TaskReport, TaskSpec, TaskStatus, Transaction,
    UpdateServiceRequest, service_spec,
};

use crate::assign::{AssignmentSet, assignments, is_unchanged};
use crate::author::Author;
use crate::control::{self, ControlError};
use crate::drain::AppliedTables;
use crate::publish::ingress_ports;
use crate::reconcile::{Env, Plan, pass};
use crate::slot;
use crate::state::{State, address_of};
use crate::{apply, intake};

/// One step of the agents, and of time.
pub(crate) const STEP: Duration = Duration::from_millis(100);
/// The image whose container fails as it starts.
pub(crate) const BROKEN: &str = "broken";

pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) now: Timestamp,
    pub(crate) ids: IdGen,
    pub(crate) heartbeats: BTreeMap<String, Timestamp>,
    /// What the nodes' kernels have.
    pub(crate) tables: AppliedTables,
    pub(crate) leader_since: Timestamp,
    /// Nodes whose agents are cut off.
    pub(crate) cut: BTreeSet<String>,
    /// The most tasks that may be live at once, by service.
    pub(crate) live_max: BTreeMap<String, u64>,
}

impl World {
    pub(crate) fn new(nodes: usize) -> World {
        let now = Timestamp(1_700_000_000_000_000_000);
        let mut world = World {
            state: State::default(),
            now,
            ids: IdGen::seeded(42),
            heartbeats: BTreeMap::new(),
            tables: AppliedTables::new(),
            leader_since: now,
            cut: BTreeSet::new(),
            live_max: BTreeMap::new(),
        };
        let mut plan = Plan::default();
        let annotations = Some(Annotations { name: "default".to_owned(), ..Annotations::default() });
        plan.create(Cluster {
            id: "cluster".to_owned(),
            spec: Some(ClusterSpec { annotations, ..ClusterSpec::default() }),
            ..Cluster::default()
        });
        (1..=nodes).for_each(|n| plan.create(node(&format!("n{n}"))));
        world.write(Author::Bootstrap, plan.into_changes());
        world.beat();
        world
    }

    /// Writes, and demands that it holds.
    pub(crate) fn write(&mut self, author: Author, changes: Vec<Change>) {
        let transaction = Transaction { id: 1, author: author.name().to_owned(), changes };
        self.commit(vec![transaction]);
    }

    pub(crate) fn commit(&mut self, transactions: Vec<Transaction>) {
        let batch = Batch { transactions, now: self.now.0 };
        let applied = apply(&self.state, self.state.index() + 1, batch);
        for (_, result) in &applied.results {
            result.as_ref().expect("the transaction holds");
        }
        let before = std::mem::replace(&mut self.state, applied.state);
        self.check_unchanged(&before);
        self.check();
    }

    /// No node of which it is said that nothing changed is assigned anything else.
    fn check_unchanged(&self, before: &State) {
        for node in self.state.nodes() {
            let old = assignments(before, &node.id);
            if is_unchanged(before, &self.state, &old, &node.id) {
                let new = assignments(&self.state, &node.id);
                assert_eq!(AssignmentSet { version: old.version, ..new }, old);
            }
        }
    }

    /// What must hold at all times.
    fn check(&self) {
        assert!(self.state.is_as_recomputed(), "an index is not what follows from the tables");
        let mut addresses = BTreeSet::new();
        let held = self.state.tasks().filter(|task| !task.observed().is_terminal());
        let attachments = held
            .flat_map(|task| &task.networks)
            .chain(self.state.nodes().filter_map(|node| node.mesh.as_ref()));
        let on_network = |attachment: &NetworkAttachment| {
            let network = attachment.network_id.clone();
            attachment.addresses.clone().into_iter().map(move |address| (network.clone(), address))
        };
        let endpoints = || self.state.services().filter_map(|service| service.endpoint.as_ref());
        let vips = endpoints().flat_map(|endpoint| &endpoint.virtual_ips);
        let vips = vips.map(|vip| (vip.network_id.clone(), vip.address.clone()));
        for (network, address) in attachments.flat_map(on_network).chain(vips) {
            assert!(addresses.insert((network, address_of(&address))), "{address} is held twice");
        }
        let mut ports = BTreeSet::new();
        for service in self.state.services().filter(|service| !service.pending_delete) {
            let specified =
                service.spec.iter().flat_map(|spec| &spec.endpoint).flat_map(|endpoint| &endpoint.ports);
            let given = service.endpoint.iter().flat_map(|endpoint| &endpoint.ports);
            let own: BTreeSet<_> = ingress_ports(&specified.chain(given).cloned().collect::<Vec<_>>())
                .filter(|port| port.published != 0)
                .map(|port| (port.protocol.clone(), port.published))
                .collect();
            own.into_iter()
                .for_each(|port| assert!(ports.insert(port.clone()), "{port:?} is published twice"));
        }
        for (service, max) in &self.live_max {
            let live = self.state.tasks_of_service(service).filter(|task| task.is_live()).count() as u64;
            assert!(live <= *max, "{live} tasks of {service} are live, {max} may be");
        }
    }

    pub(crate) fn control<F>(&mut self, decide: F) -> Result<String, ControlError>
    where
        F: FnOnce(&State, Timestamp, &mut IdGen) -> control::Decision,
    {
        let (transaction, id) = decide(&self.state, self.now, &mut self.ids)?;
        self.commit(vec![transaction]);
        Ok(id)
    }

    pub(crate) fn create(&mut self, spec: ServiceSpec) -> String {
        let request = CreateServiceRequest { spec: Some(spec) };
        self.control(|state, now, ids| control::create_service(state, &request, now, ids)).expect("created")
    }

    pub(crate) fn change(&mut self, id: &str, change: impl FnOnce(&mut ServiceSpec)) {
        self.try_change(id, change).expect("updated");
    }

    pub(crate) fn try_change(
        &mut self,
        id: &str,
        change: impl FnOnce(&mut ServiceSpec),
    ) -> Result<String, ControlError> {
        let request = self.update_request(id, change);
        self.control(|state, now, ids| control::update_service(state, &request, now, ids))
    }

    /// What asks for a changed spec.
    pub(crate) fn update_request(
        &self,
        id: &str,
        change: impl FnOnce(&mut ServiceSpec),
    ) -> UpdateServiceRequest {
        let service = self.service(id);
        let mut spec = service.spec.clone().expect("spec");
        change(&mut spec);
        let version = service.meta().version;
        UpdateServiceRequest {
            id: id.to_owned(),
            version,
            spec: Some(spec),
            ..UpdateServiceRequest::default()
        }
    }

    pub(crate) fn remove_service(&mut self, id: &str) {
        let request = RemoveRequest { id: id.to_owned(), force: false };
        self.control(|state, _, ids| control::remove_service(state, &request, ids)).expect("removed");
    }

    pub(crate) fn network(&mut self, name: &str) -> String {
        let annotations = Some(Annotations { name: name.to_owned(), ..Annotations::default() });
        let request =
            CreateNetworkRequest { spec: Some(NetworkSpec { annotations, ..NetworkSpec::default() }) };
        self.control(|state, _, ids| control::create_network(state, &request, ids)).expect("created")
    }

    pub(crate) fn encrypted_network(&mut self, name: &str) -> String {
        let annotations = Some(Annotations { name: name.to_owned(), ..Annotations::default() });
        let options = [("encrypted".to_owned(), String::new())].into();
        let spec = NetworkSpec { annotations, options, ..NetworkSpec::default() };
        let request = CreateNetworkRequest { spec: Some(spec) };
        self.control(|state, _, ids| control::create_network(state, &request, ids)).expect("created")
    }

    /// Time passes in which nothing happens but heartbeats at its end.
    pub(crate) fn skip(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.beat();
        self.reconcile();
    }

    pub(crate) fn change_node(&mut self, id: &str, author: Author, change: impl FnOnce(&mut Node)) {
        let mut node = Node::clone(self.state.node(id).expect("node"));
        change(&mut node);
        let mut plan = Plan::default();
        plan.update(node);
        self.write(author, plan.into_changes());
    }

    /// Agents shall beat so often.
    pub(crate) fn set_heartbeat_period(&mut self, period: Duration) {
        let mut cluster = Cluster::clone(self.state.cluster().expect("cluster"));
        let period = i64::try_from(period.as_nanos()).expect("a short period");
        cluster.spec.get_or_insert_default().heartbeat_period = period;
        let mut plan = Plan::default();
        plan.update(cluster);
        self.write(Author::Control, plan.into_changes());
    }

    pub(crate) fn service(&self, id: &str) -> Arc<Service> {
        self.state.service(id).expect("service").clone()
    }

    pub(crate) fn tasks(&self, service: &str) -> Vec<Arc<Task>> {
        self.state.tasks_of_service(service).cloned().collect()
    }

    pub(crate) fn live(&self, service: &str) -> Vec<Arc<Task>> {
        self.state.tasks_of_service(service).filter(|task| task.is_live()).cloned().collect()
    }

    pub(crate) fn running(&self, service: &str) -> usize {
        self.live(service).iter().filter(|task| task.observed() == TaskState::Running).count()
    }

    /// How many tasks of the service each node has that are wanted to run.
    pub(crate) fn spread(&self, service: &str) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        self.live(service).iter().for_each(|task| *counts.entry(task.node_id.clone()).or_default() += 1);
        counts
    }

    pub(crate) fn env(&mut self) -> Env<'_> {
        Env {
            now: self.now,
            ids: &mut self.ids,
            heartbeats: &self.heartbeats,
            tables: &self.tables,
            leader_since: self.leader_since,
            secret: [u8::try_from(self.state.index() % 251).expect("below 251"); 32],
        }
    }

    /// Runs the reconcilers until they have nothing left to do at this moment.
    pub(crate) fn reconcile(&mut self) {
        for _ in 0..10 {
            let state = self.state.clone();
            let result = pass(&state, &mut self.env());
            if result.transactions.is_empty() {
                return;
            }
            self.commit(result.transactions);
        }
        panic!("the reconcilers do not come to rest");
    }

    /// Heartbeats of all nodes that are not cut off.
    pub(crate) fn beat(&mut self) {
        let up: Vec<String> = self.state.nodes().map(|node| node.id.clone()).collect();
        for id in up.into_iter().filter(|id| !self.cut.contains(id)) {
            self.heartbeats.insert(id, self.now);
        }
    }

    /// A node has this version of a network's table in its kernel.
    pub(crate) fn applied(&mut self, node: &str, network: &str, version: u64) {
        self.tables.entry(node.to_owned()).or_default().insert(network.to_owned(), version);
    }

    /// Another manager leads, with a clock of its own.
    pub(crate) fn elect(&mut self, now: Timestamp) {
        (self.now, self.leader_since) = (now, now);
        self.heartbeats.clear();
        self.beat();
    }

    /// Time passes, agents do one thing each for each of their tasks, the managers react.
    pub(crate) fn step(&mut self) {
        self.now = self.now.after(STEP);
        self.beat();
        let reports: Vec<NodeTaskReport> = self
            .state
            .tasks()
            .filter(|task| !self.cut.contains(&task.node_id))
            .filter_map(|task| report(task, next_state(task)?, self.now))
            .collect();
        let changes = intake::statuses(&self.state, &reports, self.now);
        self.write(Author::Dispatcher, changes);
        self.reconcile();
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now.after(time);
        self.reconcile();
        while self.now < end {
            self.step();
        }
    }

    /// An agent reports that a task is in another state.
    pub(crate) fn report(&mut self, task: &str, state: TaskState) {
        self.report_at(task, state, self.now);
    }

    /// An agent with a clock of its own reports that a task is in another state.
    pub(crate) fn report_at(&mut self, task: &str, state: TaskState, clock: Timestamp) {
        let task = self.state.task(task).expect("task").clone();
        let report = report(&task, state, clock).expect("a report");
        let changes = intake::statuses(&self.state, &[report], self.now);
        self.write(Author::Dispatcher, changes);
    }

    /// Tasks that still hold something on their node, slot by slot.
    pub(crate) fn held_in_slots(&self, service: &str) -> BTreeMap<u64, usize> {
        let mut held = BTreeMap::new();
        let tasks = self.tasks(service);
        let tasks =
            tasks.iter().filter(|task| (TaskState::Starting..=TaskState::Running).contains(&task.observed()));
        tasks.for_each(|task| *held.entry(task.slot).or_default() += 1);
        held
    }

    /// The slots of a service and how many tasks each keeps.
    pub(crate) fn history(&self, service: &str) -> Vec<usize> {
        slot::occupied(&self.state, &self.service(service)).iter().map(|slot| slot.tasks.len()).collect()
    }
}

fn report(task: &Task, state: TaskState, now: Timestamp) -> Option<NodeTaskReport> {
    let status = TaskStatus {
        state: state.into(),
        timestamp: now.0,
        container: Some(ContainerStatus {
            container_id: format!("c-{}", task.id),
            ..ContainerStatus::default()
        }),
        ..TaskStatus::default()
    };
    let report = TaskReport { task_id: task.id.clone(), status: Some(status) };
    Some(NodeTaskReport { node_id: task.node_id.clone(), report: Some(report) })
}

/// What an agent does next with a task.
fn next_state(task: &Task) -> Option<TaskState> {
    let image = task.spec.as_ref()?.container.as_ref()?.image.as_str();
    let observed = task.observed();
    if observed < TaskState::Assigned || observed.is_terminal() {
        return None;
    }
    if task.desired() > TaskState::Running {
        let drains = observed == TaskState::Running && task.drains();
        return Some(if drains { TaskState::Draining } else { TaskState::Shutdown });
    }
    match observed {
        TaskState::Assigned => Some(TaskState::Accepted),
        TaskState::Accepted => Some(TaskState::Preparing),
        TaskState::Preparing => Some(TaskState::Ready),
        TaskState::Ready if task.desired() == TaskState::Running => Some(TaskState::Starting),
        TaskState::Starting if image == BROKEN => Some(TaskState::Failed),
        TaskState::Starting => Some(TaskState::Running),
        _ => None,
    }
}

pub(crate) fn node(id: &str) -> Node {
    Node {
        id: id.to_owned(),
        spec: Some(NodeSpec { annotations: Some(Annotations::default()), ..NodeSpec::default() }),
        description: Some(NodeDescription {
            hostname: format!("host-{id}"),
            platform: Some(Platform { architecture: "amd64".to_owned(), os: "linux".to_owned() }),
            resources: Some(Resources { nano_cpus: 4_000_000_000, memory: 8 << 30, pids: 0 }),
            engine: Some(EngineDescription::default()),
            tunnel: None,
            tls: None,
            generic: Vec::new(),
        }),
        status: Some(NodeStatus { addr: "192.0.2.1".to_owned(), ..NodeStatus::default() }),
        ..Node::default()
    }
}

/// A replicated service's spec, restarted after one second.
pub(crate) fn spec(name: &str, replicas: u64) -> ServiceSpec {
    ServiceSpec {
        annotations: Some(Annotations { name: name.to_owned(), ..Annotations::default() }),
        task: Some(TaskSpec {
            container: Some(ContainerSpec { image: "web:1".to_owned(), ..ContainerSpec::default() }),
            restart: Some(RestartPolicy { delay: Some(1_000_000_000), ..RestartPolicy::default() }),
            ..TaskSpec::default()
        }),
        mode: Some(service_spec::Mode::Replicated(Replicated { replicas })),
        ..ServiceSpec::default()
    }
}

pub(crate) fn attach(spec: &mut ServiceSpec, network: &str) {
    let config = NetworkAttachmentConfig { target: network.to_owned(), ..NetworkAttachmentConfig::default() };
    spec.task.get_or_insert_default().networks.push(config);
}

/// A TCP port on every node; published on zero, a number is given to it.
pub(crate) fn port(published: u32, target: u32) -> PortConfig {
    PortConfig { protocol: "tcp".to_owned(), published, target, ..PortConfig::default() }
}

pub(crate) fn publish(spec: &mut ServiceSpec, ports: impl IntoIterator<Item = PortConfig>) {
    spec.endpoint.get_or_insert_default().ports = ports.into_iter().collect();
}

pub(crate) fn set_image(spec: &mut ServiceSpec, image: &str) {
    spec.task.get_or_insert_default().container.get_or_insert_default().image = image.to_owned();
}
