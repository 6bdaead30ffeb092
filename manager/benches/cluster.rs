//! How fast whole managers are: real certificates, real gRPC on the loopback, real logs with fsync.
//!
//! ```text
//! cargo bench -p rswarm-manager --bench cluster -- replicas [AGENTS] [REPLICAS]    from create to all running
//!                                                  idle [AGENTS]                  CPU and disk of doing nothing
//!                                                  writes                         of three managers
//!                                                  failover [TRIALS]              from leader lost to next write
//!                                                  rounds [ROUNDS]                memory over services made and removed
//! ```
//!
//! Agents are clients that answer at once that a task runs. They share the process with the managers, so resident
//! memory is that of both; CPU is told apart by the threads' names. There is nothing to compare with but the run
//! before, and the machine's load is part of every figure: it is printed too.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rswarm_base::Scope;
use rswarm_manager::TICK;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::tls::{self, Identity};
use rswarm_proto::wire::agent_message::Message as ToManager;
use rswarm_proto::wire::assignment_change::Change;
use rswarm_proto::wire::control_client::ControlClient;
use rswarm_proto::wire::dispatcher_client::DispatcherClient;
use rswarm_proto::wire::manager_message::Message as FromManager;
use rswarm_proto::wire::{
    AgentMessage, Annotations, ClusterSpec, ContainerSpec, ContentSpec, CreateConfigRequest,
    CreateServiceRequest, Heartbeat, Hello, NodeDescription, NodeState, Platform, RemoveRequest, Replicated,
    Resources, ServiceSpec, StatusReport, TaskReport, TaskSpec, TaskStatus, service_spec,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use harness::{Host, enroll, leader, trio};

#[allow(dead_code, reason = "the tests use more of it")]
#[path = "../tests/cluster/harness.rs"]
mod harness;

/// Agents that are let in at the same time.
const ENROLLING: usize = 50;
/// Calls under way at the same time where throughput is asked for.
const CALLS: usize = 512;
/// Connections that they share.
const CHANNELS: usize = 8;
/// How long idleness is watched, and writes are counted.
const WATCHED: Duration = Duration::from_secs(15);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let number =
        |at: usize, default: usize| words.get(at).and_then(|word| word.parse().ok()).unwrap_or(default);
    // `cargo test` runs benchmarks too, without a question.
    let Some(question) = words.first() else { return };
    harness::TICKING.set(TICK).expect("nothing ticks yet");
    let managers = runtime("manager");
    println!("load {}", fs::read_to_string("/proc/loadavg").expect("the load").trim());
    match question.as_str() {
        "replicas" => managers.block_on(replicas(number(1, 1_000), number(2, 10_000) as u64)),
        "idle" => managers.block_on(idle(number(1, 1_000))),
        "writes" => managers.block_on(writes()),
        "failover" => managers.block_on(failover(number(1, 20))),
        "rounds" => managers.block_on(rounds(number(1, 10_000))),
        other => panic!("no question `{other}`"),
    }
}

fn runtime(name: &str) -> Runtime {
    Builder::new_multi_thread().worker_threads(2).thread_name(name).enable_all().build().expect("threads")
}

// ---- the process ------------------------------------------------------------------------------------------

/// CPU time of the threads whose name begins so.
/// source: Documentation/scheduler/sched-stats.rst, proc_pid_comm(5)
fn cpu(name: &str) -> Duration {
    let threads = fs::read_dir("/proc/self/task").expect("proc is mounted").flatten();
    let times = threads.filter_map(|thread| {
        let comm = fs::read_to_string(thread.path().join("comm")).ok()?;
        let stat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let ran: u64 = stat.split(' ').next()?.parse().ok()?;
        comm.starts_with(name).then_some(ran)
    });
    Duration::from_nanos(times.sum())
}

/// A number of `/proc/self/FILE`, by the word before it.
fn proc_number(file: &str, word: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/{file}")).expect("proc is mounted");
    let line = text.lines().find_map(|line| line.strip_prefix(word)).expect("the kernel counts it");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

/// Resident memory, in MiB.
fn resident() -> u64 {
    proc_number("status", "VmRSS:") / 1024
}

/// Bytes that were sent to disks.
fn written() -> u64 {
    proc_number("io", "write_bytes:")
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

// ---- agents -----------------------------------------------------------------------------------------------

/// Many agents on threads of their own.
struct Crowd {
    runtime: Option<Runtime>,
    scope: Scope,
    /// Tasks that were said to run.
    answered: Arc<AtomicU64>,
}

impl Crowd {
    async fn gather(host: &Host, count: usize) -> Crowd {
        let runtime = runtime("agent");
        let (scope, answered) = (Scope::root("agents"), Arc::new(AtomicU64::new(0)));
        let token = host.cluster().root_ca.expect("root").worker_token;
        let begin = Instant::now();
        for from in (0..count).step_by(ENROLLING) {
            let some = (from..count.min(from + ENROLLING)).map(|_| enroll(host, &token));
            for identity in join_all(some).await {
                let (addr, answered, token) = (host.addr.clone(), answered.clone(), scope.token());
                runtime
                    .spawn(async move { token.run_until_cancelled(agent(addr, identity, answered)).await });
            }
        }
        let deadline = Instant::now() + Duration::from_secs(120);
        let ready = || {
            let state = host.state();
            let is_ready = |status: &rswarm_proto::wire::NodeStatus| status.state() == NodeState::ReadyNode;
            state.nodes().filter(|node| node.status.as_ref().is_some_and(is_ready)).count()
        };
        while ready() < count {
            assert!(Instant::now() < deadline, "{} of {count} agents are ready", ready());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        println!("{count} agents joined within {:.1?}; {} MiB resident", begin.elapsed(), resident());
        Crowd { runtime: Some(runtime), scope, answered }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.scope.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One agent: beats, and says of each task that it runs, or has stopped, as it is told.
async fn agent(addr: String, identity: Arc<Identity>, answered: Arc<AtomicU64>) {
    let channel = tls::connect(&addr, &identity).await.expect("connected");
    let (out, messages) = mpsc::channel(16);
    let platform = Some(Platform { architecture: "x86_64".to_owned(), os: "linux".to_owned() });
    let resources = Some(Resources { nano_cpus: 64_000_000_000, memory: 256 << 30, pids: 0 });
    let description = NodeDescription { hostname: "w".to_owned(), platform, resources, ..Default::default() };
    let say = |message| AgentMessage { message: Some(message) };
    let hello = Hello { description: Some(description), ..Hello::default() };
    out.send(say(ToManager::Hello(hello))).await.expect("room");
    let session = DispatcherClient::new(channel).session(ReceiverStream::new(messages)).await;
    let mut session = session.expect("a session").into_inner();
    let mut beat = tokio::time::interval(Duration::from_secs(1));
    let mut sequence = 0;
    loop {
        let message = tokio::select! {
            _ = beat.tick() => {
                let _ = out.send(say(ToManager::Heartbeat(Heartbeat {}))).await;
                continue;
            }
            message = session.message() => message,
        };
        let Ok(Some(message)) = message else { return };
        let Some(FromManager::Assignments(assignments)) = message.message else { continue };
        let reports = assignments.changes.into_iter().filter_map(|change| {
            let Some(Change::Task(task)) = change.change else { return None };
            let wanted = match task.desired() {
                TaskState::Running if task.observed() < TaskState::Running => TaskState::Running,
                TaskState::Shutdown | TaskState::Remove if !task.observed().is_terminal() => {
                    TaskState::Shutdown
                }
                _ => return None,
            };
            let status = Some(TaskStatus { state: wanted.into(), ..TaskStatus::default() });
            Some(TaskReport { task_id: task.id, status })
        });
        let tasks: Vec<TaskReport> = reports.collect();
        if !tasks.is_empty() {
            answered.fetch_add(tasks.len() as u64, Ordering::Relaxed);
            sequence += 1;
            let _ = out.send(say(ToManager::Statuses(StatusReport { sequence, tasks }))).await;
        }
    }
}

fn service(name: String, replicas: u64) -> CreateServiceRequest {
    let spec = ServiceSpec {
        annotations: Some(Annotations { name, ..Annotations::default() }),
        task: Some(TaskSpec {
            container: Some(ContainerSpec { image: "web:latest".to_owned(), ..ContainerSpec::default() }),
            ..TaskSpec::default()
        }),
        mode: Some(service_spec::Mode::Replicated(Replicated { replicas })),
        ..ServiceSpec::default()
    };
    CreateServiceRequest { spec: Some(spec) }
}

// ---- questions --------------------------------------------------------------------------------------------

async fn replicas(agents: usize, replicas: u64) {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let crowd = Crowd::gather(&host, agents).await;
    let (begin, used, agents_used) = (Instant::now(), cpu("manager"), cpu("agent"));
    let id = host.control().await.create_service(service("web".into(), replicas)).await.expect("created");
    let id = id.into_inner().id;
    let running = || {
        let state = host.state();
        state.tasks_of_service(&id).filter(|task| task.observed() == TaskState::Running).count() as u64
    };
    while running() < replicas {
        assert!(begin.elapsed() < Duration::from_secs(600), "{} of {replicas} run", running());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!(
        "{replicas} replicas on {agents} agents run after {:.2?}; manager {:.2?} of CPU, agents {:.2?}; {} MiB resident",
        begin.elapsed(),
        cpu("manager") - used,
        cpu("agent") - agents_used,
        resident()
    );
    println!("{} answers", crowd.answered.load(Ordering::Relaxed));
}

async fn idle(agents: usize) {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let _crowd = Crowd::gather(&host, agents).await;
    // What joining began comes to its end.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (used, bytes, index) = (cpu("manager"), written(), host.state().index());
    tokio::time::sleep(WATCHED).await;
    let share = (cpu("manager") - used).as_secs_f64() / WATCHED.as_secs_f64() * 100.0;
    println!(
        "{agents} idle agents: {share:.1} % of a core, {} bytes written to disk, {} raft entries in {WATCHED:?}",
        written() - bytes,
        host.state().index() - index
    );
}

async fn config(control: &mut ControlClient<Channel>, name: String) {
    let annotations = Some(Annotations { name, ..Annotations::default() });
    let spec = Some(ContentSpec { annotations, data: b"small".to_vec(), ..ContentSpec::default() });
    control.create_config(CreateConfigRequest { spec }).await.expect("written");
}

async fn writes() {
    let hosts = trio(ClusterSpec::default()).await;
    let at = leader(&hosts).await;
    let mut control = hosts[at].control().await;
    let mut times = Vec::new();
    for n in 0..500 {
        let begin = Instant::now();
        config(&mut control, format!("one-{n}")).await;
        times.push(begin.elapsed());
    }
    println!("one call after the other: median {:.2?}", median(&mut times));
    let channels = join_all((0..CHANNELS).map(|_| hosts[at].control())).await;
    let (begin, done) = (Instant::now(), AtomicU64::new(0));
    let callers = (0..CALLS).map(|caller| {
        let (mut control, done) = (channels[caller % CHANNELS].clone(), &done);
        async move {
            for n in 0.. {
                if begin.elapsed() > WATCHED {
                    return;
                }
                config(&mut control, format!("many-{caller}-{n}")).await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let used = cpu("manager");
    join_all(callers).await;
    let done = done.into_inner();
    let (took, used) = (begin.elapsed(), cpu("manager") - used);
    println!(
        "{CALLS} callers at once: {:.0} writes/s; {:.0?} of CPU each, callers and three managers together",
        done as f64 / took.as_secs_f64(),
        used / u32::try_from(done).expect("few")
    );
}

async fn failover(trials: usize) {
    let mut hosts = trio(ClusterSpec::default()).await;
    let mut times = Vec::new();
    for trial in 0..trials {
        let at = leader(&hosts).await;
        let others: Vec<usize> = (0..hosts.len()).filter(|other| *other != at).collect();
        let mut ways = Vec::new();
        for other in &others {
            ways.push(hosts[*other].control().await);
        }
        hosts[at].kill().await;
        let begin = Instant::now();
        for attempt in 0.. {
            let name = format!("net-{trial}-{attempt}");
            let call = harness::write(&mut ways[attempt % 2], &name);
            if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(5), call).await {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        times.push(begin.elapsed());
        hosts[at].restart().await;
        let all_vote = |host: &Host| host.manager().voters().len() == 3;
        while !hosts.iter().all(all_vote) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The one that returned catches up before the next is lost.
        while hosts[at].state().index() < hosts[others[0]].state().index() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let median = median(&mut times);
    println!(
        "leader lost to next write, {trials} trials: median {median:.2?}, at most {:.2?}",
        times[trials - 1]
    );
}

async fn rounds(rounds: usize) {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let _crowd = Crowd::gather(&host, 10).await;
    let mut control = host.control().await;
    let begin = Instant::now();
    for round in 0..rounds {
        let created = control.create_service(service(format!("web{}", round % 100), 3)).await;
        let id = created.expect("created").into_inner().id;
        control.remove_service(RemoveRequest { id, force: false }).await.expect("removed");
        if (round + 1).is_multiple_of(rounds.div_ceil(10)) {
            let tasks = host.state().task_count();
            println!("after {} rounds: {} MiB resident, {tasks} tasks", round + 1, resident());
        }
    }
    println!("{rounds} rounds took {:.1?}", begin.elapsed());
}
