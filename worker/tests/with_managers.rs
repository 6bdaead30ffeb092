//! What a node does when managers fall silent, change their settings, or come back from a backup.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rswarm_base::{Scope, Timestamp};
use rswarm_proto::model::task::TaskState;
use rswarm_proto::tls::{self, Authority, Credentials, Identity, Subject, new_key, signing_request};
use rswarm_proto::wire::agent_message::Message as FromAgent;
use rswarm_proto::wire::assignment_change::Change as Assigned;
use rswarm_proto::wire::dispatcher_server::{Dispatcher, DispatcherServer};
use rswarm_proto::wire::manager_message::Message as ToAgent;
use rswarm_proto::wire::{
    AgentMessage, AssignmentChange, Assignments, Endpoint, EndpointSpec, HeartbeatAck, ManagerAddr,
    ManagerMessage, Network, NetworkAttachment, NetworkTable, NodeDescription, NodeRole, NodeUpdate, Task,
    TaskLogsRequest, Welcome, assignment_change, assignments, endpoint_spec,
};
use rswarm_worker::assignments::NetworkView;
use rswarm_worker::executor::LogStream;
use rswarm_worker::{Agent, AgentConfig, Content, ExecError, Executor, Started, TaskExit};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(20);

/// How long clients of its tasks remember their addresses.
const REMEMBERED: Duration = Duration::from_secs(1);

/// A node without containers.
struct Nothing;

#[async_trait]
impl Executor for Nothing {
    async fn describe(&self) -> NodeDescription {
        NodeDescription::default()
    }
    async fn apply_network(&self, _: &NetworkView) -> Result<(), ExecError> {
        Ok(())
    }
    async fn remove_network(&self, _: &str) -> Result<(), ExecError> {
        Ok(())
    }
    async fn prepare(&self, _: &Task, _: &Content) -> Result<(), ExecError> {
        Ok(())
    }
    async fn start(&self, _: &Task, _: &Content) -> Result<Started, ExecError> {
        Ok(Started::default())
    }
    async fn wait(&self, _: &Task) -> Result<TaskExit, ExecError> {
        std::future::pending().await
    }
    async fn unused(&self, _: &Task) {}
    fn remembered(&self) -> Duration {
        REMEMBERED
    }
    async fn stop(&self, _: &Task) -> Result<(), ExecError> {
        Ok(())
    }
    async fn remove(&self, _: &str) -> Result<(), ExecError> {
        Ok(())
    }
    async fn held(&self) -> Vec<String> {
        Vec::new()
    }
    async fn held_networks(&self) -> Vec<String> {
        Vec::new()
    }
    async fn logs(&self, _: &TaskLogsRequest) -> Result<LogStream, ExecError> {
        Err(ExecError("no logs".into()))
    }
}

/// A session as a manager sees it; the test says what the manager says.
struct Session {
    agent: Streaming<AgentMessage>,
    out: mpsc::Sender<Result<ManagerMessage, Status>>,
}

impl Session {
    async fn say(&self, message: ToAgent) {
        self.out.send(Ok(ManagerMessage { message: Some(message) })).await.expect("the agent is there");
    }

    async fn hear(&mut self) -> FromAgent {
        let message = timeout(PATIENCE, self.agent.message()).await.expect("in time").expect("a session");
        message.expect("a message").message.expect("not empty")
    }

    async fn hear_heartbeat(&mut self) {
        while !matches!(self.hear().await, FromAgent::Heartbeat(_)) {}
    }

    async fn welcome(&mut self, update: NodeUpdate) {
        assert!(matches!(self.hear().await, FromAgent::Hello(_)));
        let heartbeat_period = update.heartbeat_period;
        let welcome = Welcome { heartbeat_period, node: Some(update), ..Welcome::default() };
        self.say(ToAgent::Welcome(Box::new(welcome))).await;
    }

    /// Assigns one task, and waits until the agent says that it has been told.
    async fn assign(&mut self, to: &str, task: &str) {
        let task = Task { id: task.to_owned(), ..Task::default() };
        let changes =
            vec![AssignmentChange { change: Some(assignment_change::Change::Task(Box::new(task))) }];
        let kind = assignments::Kind::Complete.into();
        self.say(ToAgent::Assignments(Assignments {
            kind,
            to: to.to_owned(),
            changes,
            ..Default::default()
        }))
        .await;
        loop {
            if let FromAgent::Ack(ack) = self.hear().await {
                assert_eq!(ack.assignment, to);
                return;
            }
        }
    }
}

/// A manager that hands its sessions to the test.
struct Fake(mpsc::Sender<Session>);

#[tonic::async_trait]
impl Dispatcher for Fake {
    type SessionStream = ReceiverStream<Result<ManagerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (out, messages) = mpsc::channel(16);
        let session = Session { agent: request.into_inner(), out };
        self.0.send(session).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// Managers, and a node that knows them all.
struct Cluster {
    sessions: Vec<mpsc::Receiver<Session>>,
    addrs: Vec<String>,
    scope: Scope,
    _dir: tempfile::TempDir,
    _routes: Vec<watch::Sender<Routes>>,
}

fn identity(authority: &Authority, node_id: &str, role: NodeRole) -> Arc<Identity> {
    let subject = Subject { node_id: node_id.into(), role, cluster_id: "c1".into() };
    let key_pem = new_key().expect("key");
    let csr = signing_request(&key_pem).expect("request");
    let hour = Duration::from_secs(3600);
    let chain_pem = authority.issue(&csr, &subject, hour, Timestamp::now()).expect("certificate");
    let root_pem = authority.certificate_pem().to_owned();
    Identity::new(Credentials { key_pem, chain_pem, root_pem }).expect("identity")
}

impl Cluster {
    async fn start(managers: usize) -> Cluster {
        let authority = Authority::generate(Timestamp::now()).expect("root");
        let scope = Scope::root("test");
        let dir = tempfile::tempdir().expect("tempdir");
        let (mut sessions, mut addrs, mut routes) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..managers {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
            addrs.push(listener.local_addr().expect("address").to_string());
            let (sender, begun) = mpsc::channel(1);
            sessions.push(begun);
            let (services, served) = watch::channel(Routes::new(DispatcherServer::new(Fake(sender))));
            routes.push(services);
            let identity = identity(&authority, &format!("m{number}"), NodeRole::Manager);
            let serving = scope.clone();
            scope.spawn(async move {
                tls::serve(listener, identity, served, &serving).await.expect("served");
            });
        }
        let config = AgentConfig {
            identity: identity(&authority, "n1", NodeRole::Worker),
            managers: addrs.clone(),
            dir: dir.path().to_owned(),
            listen_addr: "127.0.0.1:2377".into(),
            data_path_addr: String::new(),
        };
        Agent::start(config, Arc::new(Nothing), scope.child("agent")).await.expect("the agent starts");
        Cluster { sessions, addrs, scope, _dir: dir, _routes: routes }
    }

    /// The next session, and with which manager.
    async fn session(&mut self) -> (usize, Session) {
        let any = self.sessions.iter_mut().enumerate().map(|(number, sessions)| {
            Box::pin(async move { (number, sessions.recv().await.expect("the managers run")) })
        });
        timeout(PATIENCE, futures_util::future::select_all(any)).await.expect("in time").0
    }

    fn update(&self, period: Duration) -> NodeUpdate {
        let manager = |addr: &String| ManagerAddr { node_id: String::new(), addr: addr.clone() };
        NodeUpdate {
            managers: self.addrs.iter().map(manager).collect(),
            heartbeat_period: i64::try_from(period.as_nanos()).expect("a short period"),
            ..NodeUpdate::default()
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_leaves_a_manager_that_no_longer_answers_before_it_counts_as_down() {
    let mut cluster = Cluster::start(2).await;
    let (first, mut silent) = cluster.session().await;
    let update = cluster.update(Duration::from_secs(1));
    silent.welcome(update.clone()).await;
    silent.hear_heartbeat().await;
    silent.say(ToAgent::HeartbeatAck(HeartbeatAck::default())).await;
    // The connection stays, nothing comes over it: a link that drops what it is given looks like this.
    let heard = Instant::now();
    let (second, mut session) = cluster.session().await;
    assert_ne!(first, second);
    session.welcome(update).await;
    session.hear_heartbeat().await;
    let took = heard.elapsed();
    assert!(took >= Duration::from_secs(2), "one late answer is not silence: {took:?}");
    assert!(took < Duration::from_secs(5), "a node is down after five periods: {took:?}");
    cluster.scope.shutdown(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_never_answers_heartbeats_is_not_left_for_that() {
    let mut cluster = Cluster::start(2).await;
    let (_, mut older) = cluster.session().await;
    older.welcome(cluster.update(Duration::from_millis(100))).await;
    for _ in 0..30 {
        older.hear_heartbeat().await;
    }
    cluster.scope.shutdown(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_heartbeat_period_holds_at_once() {
    let mut cluster = Cluster::start(1).await;
    let (_, mut session) = cluster.session().await;
    session.welcome(cluster.update(Duration::from_secs(3600))).await;
    session.hear_heartbeat().await;
    session.say(ToAgent::Node(Box::new(cluster.update(Duration::from_millis(100))))).await;
    for _ in 0..3 {
        session.hear_heartbeat().await;
    }
    cluster.scope.shutdown(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_came_back_from_a_backup_assigns_tasks() {
    let mut cluster = Cluster::start(1).await;
    let (_, mut session) = cluster.session().await;
    session.welcome(cluster.update(Duration::from_secs(1))).await;
    session.assign("1000", "before").await;
    drop(session);
    let (_, mut session) = cluster.session().await;
    session.welcome(cluster.update(Duration::from_secs(1))).await;
    // The log of the backup is shorter.
    session.assign("7", "after").await;
    cluster.scope.shutdown(PATIENCE).await;
}

impl Session {
    /// Says that the task is as given, in a message that follows on `from`.
    async fn reassign(&mut self, kind: assignments::Kind, from: u64, changes: Vec<Assigned>) {
        let changes = changes.into_iter().map(|change| AssignmentChange { change: Some(change) });
        self.say(ToAgent::Assignments(Assignments {
            kind: kind.into(),
            from: from.to_string(),
            to: (from + 1).to_string(),
            changes: changes.collect(),
        }))
        .await;
    }

    /// The next state that the agent reports, or nothing at the second heartbeat from now.
    async fn next_state(&mut self) -> Option<TaskState> {
        let mut beats = 0;
        while beats < 2 {
            match self.hear().await {
                FromAgent::Heartbeat(_) => beats += 1,
                FromAgent::Statuses(report) => {
                    let status = report.tasks.last().and_then(|report| report.status.clone());
                    return status.map(|status| status.state());
                }
                _ => {}
            }
        }
        None
    }

    async fn until(&mut self, wanted: TaskState) {
        while self.next_state().await != Some(wanted) {}
    }
}

/// A running task, and the network that it is on.
fn on_a_network() -> (NetworkTable, Task) {
    let network = Network { id: "net".into(), ..Network::default() };
    let table =
        NetworkTable { network: Some(network), snapshot: true, version: 1, ..NetworkTable::default() };
    let place = NetworkAttachment {
        network_id: "net".into(),
        addresses: vec!["10.0.1.3/24".into()],
        ..NetworkAttachment::default()
    };
    let mut task = Task { id: "t".into(), networks: vec![place], ..Task::default() };
    task.set_desired_state(TaskState::Running);
    (table, task)
}

/// Its address may be remembered by whoever looked it up just before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_without_a_virtual_address_serves_while_it_is_remembered() {
    let mut cluster = Cluster::start(1).await;
    let (_, mut session) = cluster.session().await;
    session.welcome(cluster.update(Duration::from_millis(200))).await;
    let (table, mut task) = on_a_network();
    let mut spec = EndpointSpec::default();
    spec.set_mode(endpoint_spec::Mode::Dnsrr);
    task.endpoint = Some(Endpoint { spec: Some(spec), ..Endpoint::default() });
    let changes = vec![Assigned::Network(Box::new(table)), Assigned::Task(Box::new(task.clone()))];
    session.reassign(assignments::Kind::Complete, 0, changes).await;
    session.until(TaskState::Running).await;
    task.set_desired_state(TaskState::Shutdown);
    task.drained = true;
    let told = Instant::now();
    session.reassign(assignments::Kind::Incremental, 1, vec![Assigned::Task(Box::new(task))]).await;
    session.until(TaskState::Shutdown).await;
    assert!(told.elapsed() > REMEMBERED, "{:?}", told.elapsed());
    cluster.scope.shutdown(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_on_a_network_stops_once_nothing_leads_to_it() {
    let mut cluster = Cluster::start(1).await;
    let (_, mut session) = cluster.session().await;
    session.welcome(cluster.update(Duration::from_millis(200))).await;
    let (table, mut task) = on_a_network();
    let changes = vec![Assigned::Network(Box::new(table)), Assigned::Task(Box::new(task.clone()))];
    session.reassign(assignments::Kind::Complete, 0, changes).await;
    session.until(TaskState::Running).await;
    task.set_desired_state(TaskState::Shutdown);
    session.reassign(assignments::Kind::Incremental, 1, vec![Assigned::Task(Box::new(task.clone()))]).await;
    session.until(TaskState::Draining).await;
    let told = Instant::now();
    // It waits to hear that nothing leads to it any more, for three seconds.
    let early = session.next_state().await;
    assert!(early != Some(TaskState::Shutdown) || told.elapsed() >= Duration::from_secs(3));
    task.drained = true;
    session.reassign(assignments::Kind::Incremental, 2, vec![Assigned::Task(Box::new(task))]).await;
    if early != Some(TaskState::Shutdown) {
        session.until(TaskState::Shutdown).await;
    }
    cluster.scope.shutdown(PATIENCE).await;
}
