//! How long the brain thinks: placing tasks on a thousand nodes, alone and beside a hundred thousand others.
//!
//! `cargo bench -p rswarm-manager-core`, or with `-- TASKS NODES` for other sizes. Prints one line per
//! question; there is nothing to compare with but the run before. Times are those of the CPU, so that what else
//! the machine does counts little.

use std::collections::BTreeMap;
use std::time::Duration;

use rswarm_base::{IdGen, Timestamp};
use rswarm_manager_core::drain::AppliedTables;
use rswarm_manager_core::schedule::Schedule;
use rswarm_manager_core::{Author, Env, Plan, Reconciler, State, apply, pass};
use rswarm_proto::wire::{
    Annotations, Batch, Change, Cluster, ClusterSpec, ContainerSpec, Node, NodeDescription, NodeSpec,
    NodeState, NodeStatus, Placement, Platform, Replicated, ResourceRequirements, Resources, Service,
    ServiceSpec, TaskSpec, TaskState, TaskStatus, Transaction, service_spec,
};

static NO_TABLES: AppliedTables = AppliedTables::new();
const NOW: Timestamp = Timestamp(1_700_000_000_000_000_000);

fn main() {
    let sizes: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let tasks = sizes.first().copied().unwrap_or(100_000);
    let nodes = sizes.get(1).copied().unwrap_or(1_000);
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
    bench.pass("a whole pass over it all, with nothing to do");
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
        bench.write(Author::Bootstrap, plan.changes);
        bench
    }

    fn write(&mut self, author: Author, changes: Vec<Change>) {
        let transaction = Transaction { id: 1, author: author.name().to_owned(), changes };
        let batch = Batch { transactions: vec![transaction], now: NOW.0 };
        let applied = apply(&self.state, self.state.index() + 1, &batch);
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
        self.write(Author::Control, plan.changes);
        let service = self.state.service(&id).expect("it was just made").clone();
        let mut plan = Plan::default();
        for slot in 1..=count as u64 {
            let place = rswarm_manager_core::slot::Place { slot, node_id: String::new() };
            let mut task = rswarm_manager_core::slot::new_task(&service, place, NOW, &mut self.ids);
            task.status = Some(TaskStatus { state: TaskState::Pending.into(), ..TaskStatus::default() });
            plan.create(task);
        }
        self.write(Author::Replicated, plan.changes);
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
        let begin = on_cpu();
        let plan = Schedule.reconcile(&self.state, &mut env);
        let thought = on_cpu() - begin;
        let count = plan.changes.len();
        let begin = on_cpu();
        self.write(Author::Schedule, plan.changes);
        let wrote = on_cpu() - begin;
        let each = thought.as_nanos() / count.max(1) as u128;
        println!("{question}: {thought:.2?} ({each} ns a task); applied in {wrote:.2?}");
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
        self.state = apply(&self.state, self.state.index() + 1, &batch).state;
        let mut env = Env {
            now: NOW,
            ids: &mut self.ids,
            heartbeats: &self.heartbeats,
            tables: &NO_TABLES,
            leader_since: NOW,
            secret: [0; 32],
        };
        let begin = on_cpu();
        let second = pass(&self.state, &mut env);
        println!("{question}: {:.2?} ({} transactions)", on_cpu() - begin, second.transactions.len());
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
