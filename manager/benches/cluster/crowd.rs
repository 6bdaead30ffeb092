//! Many agents, each of which beats and answers at once.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use rswarm_base::Scope;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::tls::{self, Identity, Peer};
use rswarm_proto::wire::agent_message::Message as ToManager;
use rswarm_proto::wire::assignment_change::Change;
use rswarm_proto::wire::dispatcher_client::DispatcherClient;
use rswarm_proto::wire::manager_message::Message as FromManager;
use rswarm_proto::wire::{
    AgentMessage, Annotations, Assignments, ContainerSpec, CreateServiceRequest, Heartbeat, Hello,
    NodeDescription, NodeRole, NodeState, NodeStatus, Platform, Replicated, Resources, ServiceSpec,
    StatusReport, TaskReport, TaskSpec, TaskStatus, service_spec,
};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::Interval;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{Body as HttpBody, http};
use tower::ServiceExt;

use crate::harness::{Host, enroll};
use crate::process::{self, AGENT, resident};

/// Agents that are let in at the same time.
const ENROLLING: usize = 50;
/// What all of them may take to become ready.
const PATIENCE: Duration = Duration::from_secs(300);

/// Between two sessions of an agent.
const RETRY: Duration = Duration::from_millis(500);

/// How agents reach their manager.
#[derive(Clone, Copy)]
pub enum Way {
    /// By gRPC over mutually authenticated TLS.
    Tls,
    /// By calls of the manager's services in the process.
    Inside,
}

/// Many agents on threads of their own.
pub struct Crowd {
    runtime: Option<Runtime>,
    scope: Scope,
}

impl Crowd {
    /// Lets `count` agents in, and waits until all of them are ready.
    pub async fn gather(host: &Host, count: usize, way: Way) -> Crowd {
        let crowd = Crowd { runtime: Some(process::runtime(AGENT)), scope: Scope::root("agents") };
        let token = host.cluster().root_ca.expect("root").worker_token;
        let begin = Instant::now();
        for from in (0..count).step_by(ENROLLING) {
            let some = (from..count.min(from + ENROLLING)).map(|_| enroll(host, &token));
            join_all(some).await.into_iter().for_each(|identity| crowd.admit(host, identity, way));
        }
        let is_ready = |status: &NodeStatus| status.state() == NodeState::ReadyNode;
        let ready = || {
            let state = host.state();
            state.nodes().filter(|node| node.status.as_ref().is_some_and(is_ready)).count()
        };
        while ready() < count {
            assert!(begin.elapsed() < PATIENCE, "{} of {count} agents are ready", ready());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        println!("{count} agents are ready after {:.1?}; {:.0} MiB resident", begin.elapsed(), resident());
        crowd
    }

    /// Starts one agent.
    fn admit(&self, host: &Host, identity: Arc<Identity>, way: Way) {
        let (runtime, token) = (self.runtime.as_ref().expect("until it is dropped"), self.scope.token());
        match way {
            Way::Tls => {
                let addr = host.addr.clone();
                let agent = async move {
                    loop {
                        if let Ok(channel) = tls::connect(&addr, &identity).await {
                            agent(DispatcherClient::new(channel)).await;
                        }
                        tokio::time::sleep(RETRY).await;
                    }
                };
                runtime.spawn(async move { token.run_until_cancelled(agent).await });
            }
            Way::Inside => {
                let subject = identity.subject();
                let peer = Peer {
                    node_id: subject.node_id,
                    role: Some(NodeRole::Worker),
                    cluster_id: subject.cluster_id,
                    ..Peer::default()
                };
                // What the TLS listener does.
                let services = host.manager().services(|services| services).map_request(
                    move |mut call: http::Request<Body>| {
                        call.extensions_mut().insert(peer.clone());
                        call
                    },
                );
                let agent = async move {
                    loop {
                        agent(DispatcherClient::new(services.clone())).await;
                        tokio::time::sleep(RETRY).await;
                    }
                };
                runtime.spawn(async move { token.run_until_cancelled(agent).await });
            }
        }
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

/// One session of an agent: it beats, and says of each task that it runs, or has stopped, as it is told.
async fn agent<S>(mut dispatcher: DispatcherClient<S>)
where
    S: GrpcService<Body>,
    S::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
    <S::ResponseBody as HttpBody>::Error: Into<Box<dyn Error + Send + Sync>> + Send,
{
    let (out, messages) = mpsc::channel(16);
    let say = |message| AgentMessage { message: Some(message) };
    let hello = Hello { description: Some(description()), ..Hello::default() };
    out.send(say(ToManager::Hello(Box::new(hello)))).await.expect("room");
    // A manager that is too busy refuses.
    let Ok(session) = dispatcher.session(ReceiverStream::new(messages)).await else { return };
    let mut session = session.into_inner();
    let mut beat = tokio::time::interval(Duration::from_secs(3600));
    beat.tick().await;
    let mut sequence = 0;
    loop {
        let message = tokio::select! {
            _ = beat.tick() => {
                let _ = out.send(say(ToManager::Heartbeat(Heartbeat::default()))).await;
                continue;
            }
            message = session.message() => message,
        };
        let Ok(Some(message)) = message else { return };
        let assignments = match message.message {
            Some(FromManager::Welcome(welcome)) => {
                beat = every(welcome.heartbeat_period);
                continue;
            }
            Some(FromManager::Node(update)) => {
                if beat.period() != every(update.heartbeat_period).period() {
                    beat = every(update.heartbeat_period);
                }
                continue;
            }
            Some(FromManager::Assignments(assignments)) => assignments,
            _ => continue,
        };
        let tasks = answers(assignments);
        if !tasks.is_empty() {
            sequence += 1;
            let _ = out.send(say(ToManager::Statuses(StatusReport { sequence, tasks }))).await;
        }
    }
}

/// Beats of this period, the first one now.
fn every(ns: i64) -> Interval {
    let period = Duration::from_nanos(u64::try_from(ns).expect("a period"));
    tokio::time::interval(period)
}

fn description() -> NodeDescription {
    NodeDescription {
        hostname: "w".to_owned(),
        platform: Some(Platform { architecture: "x86_64".to_owned(), os: "linux".to_owned() }),
        resources: Some(Resources { nano_cpus: 64_000_000_000, memory: 256 << 30, pids: 0 }),
        ..NodeDescription::default()
    }
}

/// What is said of tasks that are not yet as they are wanted.
fn answers(assignments: Assignments) -> Vec<TaskReport> {
    let answer = |change| {
        let Change::Task(task) = change else { return None };
        let state = match task.desired() {
            TaskState::Running if task.observed() < TaskState::Running => TaskState::Running,
            TaskState::Shutdown | TaskState::Remove if !task.observed().is_terminal() => TaskState::Shutdown,
            _ => return None,
        };
        let status = Some(TaskStatus { state: state.into(), ..TaskStatus::default() });
        Some(TaskReport { task_id: task.id, status })
    };
    assignments.changes.into_iter().filter_map(|change| answer(change.change?)).collect()
}

/// A request for so many replicas of something that reserves nothing.
pub fn service(name: String, replicas: u64) -> CreateServiceRequest {
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
