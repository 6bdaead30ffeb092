//! Sessions of agents, on any manager; and what comes of their reports.

use crate::harness::{Host, PATIENCE, enroll, leader, three_with, trio};
use rswarm_base::Scope;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::tls::{self, Identity};
use rswarm_proto::wire::agent_message::Message as ToManager;
use rswarm_proto::wire::assignment_change::Change;
use rswarm_proto::wire::dispatcher_client::DispatcherClient;
use rswarm_proto::wire::logs_client::LogsClient;
use rswarm_proto::wire::manager_message::Message as FromManager;
use rswarm_proto::wire::task_logs_server::{TaskLogs, TaskLogsServer};
use rswarm_proto::wire::{
    AgentMessage, Annotations, ClusterSpec, ContainerSpec, CreateServiceRequest, Heartbeat, Hello, LogLine,
    LogsRequest, ManagerMessage, NodeDescription, NodeRole, NodeState, Platform, RemoveRequest, Replicated,
    Service, ServiceSpec, StatusReport, Task, TaskLogsRequest, TaskReport, TaskSpec, TaskStatus, assignments,
    goodbye, service_spec,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

/// An agent that does as it is told by the test.
struct Agent {
    out: mpsc::Sender<AgentMessage>,
    messages: Streaming<ManagerMessage>,
    beating: Scope,
}

impl Agent {
    async fn connect(host: &Host, identity: &Arc<Identity>, listen_addr: &str) -> Agent {
        let channel = tls::connect(&host.addr, identity).await.expect("connected");
        let (out, messages) = mpsc::channel(16);
        let platform = Some(Platform { architecture: "x86_64".to_owned(), os: "linux".to_owned() });
        let description =
            Some(NodeDescription { hostname: "w".to_owned(), platform, ..NodeDescription::default() });
        let hello = Hello { description, listen_addr: listen_addr.to_owned(), ..Hello::default() };
        let agent = AgentMessage { message: Some(ToManager::Hello(Box::new(hello))) };
        out.send(agent).await.expect("room");
        let session = DispatcherClient::new(channel).session(ReceiverStream::new(messages)).await;
        let beating = Scope::root("heartbeats");
        let (beats, token) = (out.clone(), beating.token());
        beating.spawn(async move {
            let beat = || AgentMessage { message: Some(ToManager::Heartbeat(Heartbeat::default())) };
            let run = async {
                while beats.send(beat()).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            };
            token.run_until_cancelled(run).await;
        });
        Agent { out, messages: session.expect("a session").into_inner(), beating }
    }

    async fn next(&mut self) -> FromManager {
        let message = timeout(PATIENCE, self.messages.message()).await.expect("in time").expect("a session");
        message.expect("a message").message.expect("not empty")
    }

    /// The next message about tasks; the tasks it holds.
    async fn tasks(&mut self) -> (assignments::Kind, Vec<Task>) {
        loop {
            if let FromManager::Assignments(assignments) = self.next().await {
                let kind = assignments.kind();
                let tasks = assignments.changes.into_iter().filter_map(|change| match change.change {
                    Some(Change::Task(task)) => Some(*task),
                    _ => None,
                });
                return (kind, tasks.collect());
            }
        }
    }

    async fn report(&self, sequence: u64, task: &Task, state: TaskState) {
        let status = TaskStatus { state: state.into(), ..TaskStatus::default() };
        let report = TaskReport { task_id: task.id.clone(), status: Some(status) };
        let report = StatusReport { sequence, tasks: vec![report] };
        let message = AgentMessage { message: Some(ToManager::Statuses(report)) };
        self.out.send(message).await.expect("room");
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.beating.cancel();
    }
}

async fn create_service(host: &Host, replicas: u64) -> Service {
    let spec = ServiceSpec {
        annotations: Some(Annotations { name: "web".to_owned(), ..Annotations::default() }),
        task: Some(TaskSpec {
            container: Some(ContainerSpec { image: "web:latest".to_owned(), ..ContainerSpec::default() }),
            ..TaskSpec::default()
        }),
        mode: Some(service_spec::Mode::Replicated(Replicated { replicas })),
        ..ServiceSpec::default()
    };
    let request = CreateServiceRequest { spec: Some(spec) };
    host.control().await.create_service(request).await.expect("created").into_inner()
}

async fn worker(host: &Host) -> Arc<Identity> {
    enroll(host, &host.cluster().root_ca.expect("root").worker_token).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_on_a_follower_gets_tasks_and_its_reports_reach_the_leader() {
    let hosts = trio(ClusterSpec::default()).await;
    let at = leader(&hosts).await;
    let follower = &hosts[(at + 1) % 3];
    let identity = worker(follower).await;
    let mut agent = Agent::connect(follower, &identity, "0.0.0.0:2377").await;
    let FromManager::Welcome(welcome) = agent.next().await else { panic!("no welcome") };
    let update = welcome.node.expect("about the node");
    assert_eq!((update.managers.len(), update.data_path_port), (3, 4789));
    assert_eq!(agent.tasks().await, (assignments::Kind::Complete, vec![]));

    let node_id = identity.subject().node_id;
    hosts[at]
        .wait("the node is ready", |manager| {
            let state = manager.state().borrow().clone();
            let status = state.node(&node_id).and_then(|node| node.status.clone());
            status.is_some_and(|status| status.state() == NodeState::ReadyNode && status.addr == "127.0.0.1")
        })
        .await;
    create_service(follower, 1).await;
    let (kind, tasks) = agent.tasks().await;
    assert_eq!((kind, tasks.len()), (assignments::Kind::Incremental, 1));
    agent.report(7, &tasks[0], TaskState::Running).await;
    loop {
        if let FromManager::StatusAck(ack) = agent.next().await {
            assert_eq!(ack.sequence, 7);
            break;
        }
    }
    // Acknowledged means stored.
    let task = hosts[at].state().task(&tasks[0].id).cloned().expect("stored");
    assert_eq!(task.observed(), TaskState::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_survives_nobody_but_its_agent_moves_on() {
    let mut hosts = trio(ClusterSpec::default()).await;
    let identity = worker(&hosts[0]).await;
    let at = leader(&hosts).await;
    let mut agent = Agent::connect(&hosts[at], &identity, "").await;
    agent.tasks().await;
    hosts[at].kill().await;
    let over = timeout(PATIENCE, async { while let Ok(Some(_)) = agent.messages.message().await {} }).await;
    over.expect("the session ends with its manager");
    let other = leader(&hosts).await;
    let mut agent = Agent::connect(&hosts[other], &identity, "").await;
    assert_eq!(agent.tasks().await.0, assignments::Kind::Complete);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_find_the_new_leader_when_the_old_one_is_cut_off() {
    let (first, link) = Host::bootstrap_behind_link(ClusterSpec::default()).await;
    let hosts = three_with(first).await;
    // The first may have lost the lead on a slow machine; then there is nothing to see here.
    if leader(&hosts).await != 0 {
        return eprintln!("skipped: another manager leads");
    }
    let identity = worker(&hosts[1]).await;
    let mut agent = Agent::connect(&hosts[1], &identity, "").await;
    agent.tasks().await;
    create_service(&hosts[0], 1).await;
    let (_, tasks) = agent.tasks().await;
    link.cut();
    let cut = Instant::now();
    agent.report(7, &tasks[0], TaskState::Running).await;
    while !matches!(agent.next().await, FromManager::StatusAck(_)) {}
    let took = cut.elapsed();
    // A dead connection is given up after ten seconds, an election takes two at most.
    assert!(took < Duration::from_secs(6), "{took:?}");
    let node_id = identity.subject().node_id;
    let state = hosts[1].state();
    let status = state.node(&node_id).and_then(|node| node.status.clone()).expect("a status");
    assert_eq!(status.state(), NodeState::ReadyNode);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_are_answered() {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let mut agent = Agent::connect(&host, &worker(&host).await, "").await;
    while !matches!(agent.next().await, FromManager::HeartbeatAck(_)) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_session_of_a_node_ends_the_first() {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let identity = worker(&host).await;
    let mut first = Agent::connect(&host, &identity, "").await;
    first.tasks().await;
    let mut second = Agent::connect(&host, &identity, "").await;
    second.tasks().await;
    loop {
        if let FromManager::Goodbye(goodbye) = first.next().await {
            assert_eq!(goodbye.reason(), goodbye::Reason::Move);
            break;
        }
    }
    let mut third = Agent::connect(&host, &identity, "").await;
    third.tasks().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_is_told_so_in_its_session_and_in_the_next() {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let identity = worker(&host).await;
    let mut agent = Agent::connect(&host, &identity, "").await;
    agent.tasks().await;
    let remove = RemoveRequest { id: identity.subject().node_id, force: true };
    host.control().await.remove_node(remove).await.expect("removed");
    loop {
        if let FromManager::Goodbye(goodbye) = agent.next().await {
            assert_eq!(goodbye.reason(), goodbye::Reason::Removed);
            break;
        }
    }
    let mut again = Agent::connect(&host, &identity, "").await;
    let FromManager::Goodbye(goodbye) = again.next().await else { panic!("no goodbye") };
    assert_eq!(goodbye.reason(), goodbye::Reason::Removed);
}

/// A node's log server, with one line for each task.
struct OneLine;

#[tonic::async_trait]
impl TaskLogs for OneLine {
    type ReadStream = ReceiverStream<Result<LogLine, Status>>;

    async fn read(&self, request: Request<TaskLogsRequest>) -> Result<Response<Self::ReadStream>, Status> {
        tls::require(&request, NodeRole::Manager)?;
        let (out, lines) = mpsc::channel(1);
        let data = format!("log of {}\n", request.get_ref().task_id).into_bytes();
        out.send(Ok(LogLine { data, timestamp: 5, ..LogLine::default() })).await.expect("room");
        Ok(Response::new(ReceiverStream::new(lines)))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_of_a_service_come_from_its_nodes_and_a_dead_one_is_named() {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let (identity, scope) = (worker(&host).await, Scope::root("worker"));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let addr = listener.local_addr().expect("address").to_string();
    let (_services, routes) = watch::channel(Routes::new(TaskLogsServer::new(OneLine)));
    let (served, serving) = (identity.clone(), scope.clone());
    scope.spawn(async move { tls::serve(listener, served, routes, &serving).await.expect("served") });

    let mut agent = Agent::connect(&host, &identity, &addr).await;
    agent.tasks().await;
    let service = create_service(&host, 1).await;
    let (_, tasks) = agent.tasks().await;
    agent.report(1, &tasks[0], TaskState::Running).await;
    let read = async || {
        let channel = tls::connect(&host.addr, &host.identity).await.expect("connected");
        let options = Some(TaskLogsRequest { stdout: true, tail: -1, ..TaskLogsRequest::default() });
        let request =
            LogsRequest { service_ids: vec![service.id.clone()], options, ..LogsRequest::default() };
        let mut stream = LogsClient::new(channel).subscribe(request).await.expect("subscribed").into_inner();
        let mut messages = Vec::new();
        while let Some(message) = timeout(PATIENCE, stream.message()).await.expect("in time").expect("intact")
        {
            messages.push(message);
        }
        messages
    };
    let messages = read().await;
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert_eq!(
        messages[0].line.as_ref().expect("a line").data,
        format!("log of {}\n", tasks[0].id).into_bytes()
    );
    assert_eq!(messages[0].service_id, service.id);

    scope.shutdown(PATIENCE).await;
    let messages = read().await;
    assert_eq!(messages.len(), 1, "{messages:?}");
    let node_id = identity.subject().node_id;
    assert!(messages[0].warning.contains(&format!("node {node_id} is not available")), "{messages:?}");
}
