//! How long the brain thinks: placing a million tasks on ten thousand nodes, and little beside them.
//!
//! `cargo bench -p rswarm-manager-core`, or with `-- TASKS NODES` for other sizes (a million tasks take 8 GB).
//! Prints one line per question. Times are those of the CPU, so that what else the machine does counts little, and
//! those of the clock beside them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rswarm_base::{IdGen, Timestamp};
use rswarm_manager_core::control::create_service;
use rswarm_manager_core::drain::AppliedTables;
use rswarm_manager_core::forecast::forecast;
use rswarm_manager_core::schedule::Schedule;
use rswarm_manager_core::{Author, Env, Plan, Reconciler, State, apply, pass};
use rswarm_proto::wire::{
    Annotations, Batch, Change, Cluster, ClusterSpec, ContainerSpec, CreateServiceRequest, Node,
    NodeDescription, NodeSpec, NodeState, NodeStatus, Placement, Platform, Replicated, ResourceRequirements,
    Resources, Service, ServiceSpec, Task, TaskSpec, TaskState, TaskStatus, Transaction, service_spec,
};

static NO_TABLES: AppliedTables = AppliedTables::new();
const NOW: Timestamp = Timestamp(1_700_000_000_000_000_000);

fn main() {
    let sizes: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let tasks = sizes.first().copied().unwrap_or(1_000_000);
    let nodes = sizes.get(1).copied().unwrap_or(10_000);
    let mut bench = Bench::new(nodes);
    bench.add_waiting("big", tasks, &[]);
    bench.place(&format!("{tasks} tasks of one service on {nodes} nodes"));
    bench.add_waiting("one", 1, &[]);
    bench.place(&format!("1 task beside {tasks} others"));
    bench.add_waiting("spread", 1_000, &["node.labels.zone", "node.labels.rack"]);
    bench.place("1000 tasks spread over 10 zones and 100 racks");
    for n in 0..100 {
        bench.add_waiting(&format!("small{n}"), 10, &[]);
    }
    bench.place("100 services of 10 tasks");
    bench.run_all();
    bench.pass("a whole pass over it all, with nothing to do");
    bench.forecast("what a new service of 10 tasks would come to");
}

/// What a question took: on the CPU, and by the clock.
struct Timer {
    cpu: Duration,
    clock: Instant,
}

impl Timer {
    fn start() -> Timer {
        Timer { cpu: on_cpu(), clock: Instant::now() }
    }

    /// Both in words, and the first.
    fn stop(self) -> (String, Duration) {
        let (cpu, clock) = (on_cpu() - self.cpu, self.clock.elapsed());
        (format!("{cpu:.2?} of CPU ({clock:.2?} by the clock)"), cpu)
    }
}

/// CPU time of this thread.
/// source: Documentation/scheduler/sched-stats.rst
fn on_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("proc is mounted");
    let ran = stat.split(' ').next().and_then(|ran| ran.parse().ok());
    Duration::from_nanos(ran.expect("the time on the CPU comes first"))
}

struct Bench {
    state: State,
    ids: IdGen,
    heartbeats: BTreeMap<String, Timestamp>,
}

impl Bench {
    fn new(nodes: usize) -> Bench {
        let mut bench = Bench { state: State::default(), ids: IdGen::seeded(1), heartbeats: BTreeMap::new() };
        let mut plan = Plan::default();
        let annotations = Some(Annotations { name: "default".to_owned(), ..Annotations::default() });
        let spec = ClusterSpec { annotations, ..ClusterSpec::default() };
        plan.create(Cluster { id: "cluster".to_owned(), spec: Some(spec), ..Cluster::default() });
        for n in 0..nodes {
            let node = node(n, bench.ids.cluster_id());
            bench.heartbeats.insert(node.id.clone(), NOW);
            plan.create(node);
        }
        bench.write(Author::Bootstrap, plan.into_changes());
        bench
    }

    fn write(&mut self, author: Author, changes: Vec<Change>) {
        let transaction = Transaction { id: 1, author: author.name().to_owned(), changes };
        let batch = Batch { transactions: vec![transaction], now: NOW.0 };
        let applied = apply(&self.state, self.state.index() + 1, batch);
        applied
            .results
            .iter()
            .for_each(|(_, result)| result.clone().expect("the benchmark's own writes hold"));
        self.state = applied.state;
    }

    /// A service whose tasks wait for a node.
    fn add_waiting(&mut self, name: &str, count: usize, spread: &[&str]) {
        let id = self.ids.cluster_id();
        let mut plan = Plan::default();
        plan.create(Service { id: id.clone(), spec: Some(spec(name, count, spread)), ..Service::default() });
        self.write(Author::Control, plan.into_changes());
        let service = self.state.service(&id).expect("it was just made").clone();
        let mut plan = Plan::default();
        for slot in 1..=count as u64 {
            let place = rswarm_manager_core::slot::Place { slot, node_id: String::new() };
            let mut task = rswarm_manager_core::slot::new_task(&service, place, NOW, &mut self.ids);
            task.status = Some(TaskStatus { state: TaskState::Pending.into(), ..TaskStatus::default() });
            plan.create(task);
        }
        self.write(Author::Replicated, plan.into_changes());
    }

    fn place(&mut self, question: &str) {
        let mut ids = self.ids.clone();
        let mut env = Env {
            now: NOW,
            ids: &mut ids,
            heartbeats: &self.heartbeats,
            tables: &NO_TABLES,
            leader_since: NOW,
            secret: [0; 32],
        };
        let timer = Timer::start();
        let plan = Schedule.reconcile(&self.state, &mut env);
        let (thought, cpu) = timer.stop();
        let count = plan.edits.len();
        let changes = plan.into_changes();
        let timer = Timer::start();
        self.write(Author::Schedule, changes);
        let (wrote, _) = timer.stop();
        let rate = count as f64 / cpu.as_secs_f64();
        println!("{question}: {thought}, {rate:.0} tasks/s; applied in {wrote}");
    }

    /// All tasks run, as their nodes say.
    fn run_all(&mut self) {
        let mut plan = Plan::default();
        for task in self.state.tasks() {
            let mut task = Task::clone(task);
            task.status.get_or_insert_default().set_state(TaskState::Running);
            plan.update(task);
        }
        let changes = plan.into_changes();
        let count = changes.len();
        let timer = Timer::start();
        self.write(Author::Dispatcher, changes);
        println!("{count} reports that tasks run: applied in {}", timer.stop().0);
    }

    fn forecast(&mut self, question: &str) {
        let request = CreateServiceRequest { spec: Some(spec("new", 10, &[])) };
        let decide = |state: &State, ids: &mut IdGen| create_service(state, &request, NOW, ids);
        let timer = Timer::start();
        let told = forecast(&self.state, decide, NOW, self.ids.clone()).expect("a forecast");
        println!("{question}: {} ({} tasks)", timer.stop().0, told.tasks.len());
    }

    fn pass(&mut self, question: &str) {
        let mut env = Env {
            now: NOW,
            ids: &mut self.ids,
            heartbeats: &self.heartbeats,
            tables: &NO_TABLES,
            leader_since: NOW,
            secret: [0; 32],
        };
        // The first one gives services their endpoints and nodes their states.
        let first = pass(&self.state, &mut env);
        let batch = Batch { transactions: first.transactions, now: NOW.0 };
        self.state = apply(&self.state, self.state.index() + 1, batch).state;
        let mut env = Env {
            now: NOW,
            ids: &mut self.ids,
            heartbeats: &self.heartbeats,
            tables: &NO_TABLES,
            leader_since: NOW,
            secret: [0; 32],
        };
        let timer = Timer::start();
        let second = pass(&self.state, &mut env);
        println!("{question}: {} ({} transactions)", timer.stop().0, second.transactions.len());
    }
}

fn node(n: usize, id: String) -> Node {
    let labels = [("zone".to_owned(), format!("z{}", n % 10)), ("rack".to_owned(), format!("r{}", n % 100))];
    Node {
        id,
        spec: Some(NodeSpec {
            annotations: Some(Annotations { labels: labels.into(), ..Annotations::default() }),
            ..NodeSpec::default()
        }),
        description: Some(NodeDescription {
            hostname: format!("host{n}"),
            platform: Some(Platform { architecture: "amd64".to_owned(), os: "linux".to_owned() }),
            resources: Some(Resources { nano_cpus: 64_000_000_000, memory: 256 << 30, pids: 0 }),
            ..NodeDescription::default()
        }),
        status: Some(NodeStatus { state: NodeState::ReadyNode.into(), ..NodeStatus::default() }),
        ..Node::default()
    }
}

fn spec(name: &str, replicas: usize, spread: &[&str]) -> ServiceSpec {
    let reservations = Some(Resources { nano_cpus: 10_000_000, memory: 64 << 20, pids: 0 });
    ServiceSpec {
        annotations: Some(Annotations { name: name.to_owned(), ..Annotations::default() }),
        task: Some(TaskSpec {
            container: Some(ContainerSpec { image: "web:1".to_owned(), ..ContainerSpec::default() }),
            resources: Some(ResourceRequirements { reservations, ..ResourceRequirements::default() }),
            placement: Some(Placement {
                constraints: vec!["node.platform.os==linux".to_owned()],
                spread: spread.iter().map(|label| (*label).to_owned()).collect(),
                ..Placement::default()
            }),
            ..TaskSpec::default()
        }),
        mode: Some(service_spec::Mode::Replicated(Replicated { replicas: replicas as u64 })),
        ..ServiceSpec::default()
    }
}
