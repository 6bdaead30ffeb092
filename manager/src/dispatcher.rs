//! The agents' side of a manager: one session per node, on whichever manager it chose.
//!
//! A session begins with a read barrier: a manager that lags must not tell an agent that tasks are gone which
//! it does not know yet. From then on each state that differs for the node is sent as the difference.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use prost::Message as _;
use rswarm_base::id::cluster_id;
use rswarm_base::{Clock, Scope, SystemClock};
use rswarm_manager_core::State;
use rswarm_manager_core::assign::{AssignmentSet, assignments, is_content, is_unchanged};
use rswarm_proto::tls::{MESSAGE_BYTES_MAX, Peer, require};
use rswarm_proto::wire::agent_message::Message as FromAgent;
use rswarm_proto::wire::dispatcher_server::{Dispatcher, DispatcherServer};
use rswarm_proto::wire::manager_message::Message as ToAgent;
use rswarm_proto::wire::relay_server::{Relay, RelayServer};
use rswarm_proto::wire::{
    AgentMessage, AssignmentChange, Assignments, Goodbye, Heartbeat, HeartbeatAck, Hello, ManagerAddr,
    ManagerMessage, NodeDescription, NodeHello, NodeRole, NodeStatus, NodeTaskReport, NodeUpdate,
    RelayReport, RelayResponse, StatusAck, TaskReport, Welcome, assignments, goodbye,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::Leader;
use crate::forward::{not_leader, propose_status};
use crate::guard::{Guard, is_removed};
use crate::heartbeats::Heartbeats;
use crate::intake::{IntakeHandle, Report, Writer};
use crate::store::{NO_LEADER, StoreHandle};

/// Messages on their way to one agent.
const OUT_MAX: usize = 16;
/// An agent that does not take a message for this long is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Tasks of one node whose use is told: a bound, not a limit that a machine comes to.
const USAGE_TASKS_MAX: usize = 1000;
/// What an agent may take to introduce itself.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an assignment message after which further secrets and configs go into the next one.
const PORTION_BYTES: usize = 8 << 20;
/// How long changes of the state gather before their difference is sent.
const GATHER: Duration = Duration::from_millis(10);
/// Without a leader for this long, a manager has lost its quorum, and another may be better off. An election
/// takes less; with it and the time that agents take to move, nodes are heard again before they count as down.
const LEADERLESS_MAX: Duration = Duration::from_secs(1);
/// Heartbeats missed before a session is taken for dead.
const MISSED_MAX: u32 = 5;
/// The shortest silence that ends a session, however short the heartbeat period.
const SILENCE_MIN: Duration = Duration::from_secs(5);
/// A read barrier that takes longer means there is no leader.
const BARRIER_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves sessions.
pub(crate) struct DispatcherService {
    /// The state.
    pub store: StoreHandle,
    /// Who leads.
    pub leader: watch::Receiver<Option<Leader>>,
    /// Who may call.
    pub guard: Guard,
    /// Where reports go.
    pub intake: IntakeHandle,
    /// What is wanted with heartbeats.
    pub heartbeats: Heartbeats,
    /// Where sessions live.
    pub scope: Scope,
    /// The session of each node, to end it when the node begins another.
    pub sessions: Arc<Mutex<HashMap<String, CancellationToken>>>,
}

impl DispatcherService {
    /// For the node's gRPC server.
    pub(crate) fn server(self) -> DispatcherServer<Self> {
        DispatcherServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Dispatcher for DispatcherService {
    type SessionStream = ReceiverStream<Result<ManagerMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = require(&request, NodeRole::Worker)?;
        let (out, messages) = mpsc::channel(OUT_MAX);
        let response = Response::new(ReceiverStream::new(messages));
        let state = barrier(&self.store).await?;
        if is_removed(&state, &peer.node_id) {
            // A removed node is told so, or it would try for ever.
            let _ = out
                .send(Ok(goodbye(goodbye::Reason::Removed, "the node was removed from the cluster")))
                .await;
            return Ok(response);
        }
        self.guard.node(&request)?;
        if state.node(&peer.node_id).is_none() {
            return Err(Status::not_found(format!("node {} is not part of this cluster", peer.node_id)));
        }
        let session = Session {
            heartbeats: self.heartbeats.clone(),
            node_id: peer.node_id.clone(),
            id: cluster_id(),
            store: self.store.clone(),
            leader: self.leader.clone(),
            intake: self.intake.clone(),
            out,
            sent: AssignmentSet::default(),
            sequence: 0,
            told: NodeUpdate::default(),
            seen: Arc::default(),
            applied: BTreeMap::new(),
            acks: FuturesOrdered::new(),
            heard_at: Instant::now(),
        };
        let ended = self.scope.token();
        let replaced = ended.child_token();
        let before =
            self.sessions.lock().expect("no holder panics").insert(peer.node_id.clone(), replaced.clone());
        if let Some(before) = before {
            before.cancel();
        }
        let (sessions, instruments) = (self.sessions.clone(), self.store.instruments.clone());
        instruments.sessions.set(sessions.lock().expect("no holder panics").len() as u64);
        self.scope.spawn(async move {
            session.run(request.into_inner(), peer, replaced.clone(), ended).await;
            let mut sessions = sessions.lock().expect("no holder panics");
            // The entry may be a later session's.
            if !replaced.is_cancelled() {
                replaced.cancel();
            }
            sessions.retain(|_, session| !session.is_cancelled());
            instruments.sessions.set(sessions.len() as u64);
        });
        Ok(response)
    }
}

/// A state that lacks nothing that any agent was told before.
async fn barrier(store: &StoreHandle) -> Result<Arc<State>, Status> {
    match timeout(BARRIER_TIMEOUT, store.read()).await {
        Ok(read) => read.map_err(|error| propose_status(&error)),
        Err(_) => Err(Status::unavailable(NO_LEADER)),
    }
}

/// One agent's session.
struct Session {
    heartbeats: Heartbeats,
    node_id: String,
    id: String,
    store: StoreHandle,
    leader: watch::Receiver<Option<Leader>>,
    intake: IntakeHandle,
    out: mpsc::Sender<Result<ManagerMessage, Status>>,
    /// What the agent was assigned, and the number of the message that said so.
    sent: AssignmentSet,
    sequence: u64,
    told: NodeUpdate,
    /// The state that both were computed from.
    seen: Arc<State>,
    /// The tables in the node's kernel, as it acknowledged them.
    applied: BTreeMap<String, u64>,
    /// Status reports that are not stored yet, in their order.
    acks: FuturesOrdered<PendingAck>,
    /// The last heartbeat, or the session's beginning.
    heard_at: Instant,
}

type PendingAck = std::pin::Pin<Box<dyn Future<Output = Option<u64>> + Send + Sync>>;

/// How a session ends.
enum End {
    /// The agent went, or does not listen.
    Gone,
    /// The manager ends it, and says why.
    Goodbye(goodbye::Reason, &'static str),
    /// The agent broke the protocol.
    Wrong(&'static str),
}

impl Session {
    #[tracing::instrument(name = "session", skip_all, fields(node.id = self.node_id))]
    async fn run(
        mut self,
        mut agent: Streaming<AgentMessage>,
        peer: Peer,
        replaced: CancellationToken,
        ended: CancellationToken,
    ) {
        let end = match self.begin(&mut agent, &peer).await {
            Err(end) => end,
            Ok(()) => self.serve(&mut agent, replaced, ended).await,
        };
        let last = match end {
            End::Gone => return,
            End::Goodbye(reason, message) => Ok(goodbye(reason, message)),
            End::Wrong(message) => Err(Status::invalid_argument(message)),
        };
        // The last word may find nobody there.
        let _ = timeout(SEND_TIMEOUT, self.out.send(last)).await;
        tracing::debug!("session ended");
    }

    async fn begin(&mut self, agent: &mut Streaming<AgentMessage>, peer: &Peer) -> Result<(), End> {
        let Ok(first) = timeout(HELLO_TIMEOUT, agent.message()).await else {
            return Err(End::Wrong("the agent did not introduce itself"));
        };
        let Ok(Some(AgentMessage { message: Some(FromAgent::Hello(hello)) })) = first else {
            return Err(End::Wrong("a session must begin with a hello"));
        };
        let seen = peer.addr.map(|addr| addr.ip());
        let Hello { description, listen_addr, data_path_addr, tasks } = *hello;
        let status = addresses(&listen_addr, &data_path_addr, seen);
        self.describe(description, Some(status)).await;
        if !tasks.is_empty() {
            // Nobody waits for these: what the agent holds is reported whole in each session.
            let (stored, _) = oneshot::channel();
            self.intake.report(Report::Statuses(self.reports(tasks), stored)).await;
        }
        let state = self.store.state();
        self.told = self.node_update(&state);
        let welcome = Welcome {
            session_id: self.id.clone(),
            heartbeat_period: self.told.heartbeat_period,
            node: Some(self.told.clone()),
        };
        self.send(ToAgent::Welcome(Box::new(welcome))).await?;
        self.sent = assignments(&state, &self.node_id);
        self.seen = state;
        self.assign(assignments::Kind::Complete, self.sent.complete()).await
    }

    async fn serve(
        &mut self,
        agent: &mut Streaming<AgentMessage>,
        replaced: CancellationToken,
        ended: CancellationToken,
    ) -> End {
        let (mut state, mut leader) = (self.store.state.clone(), self.leader.clone());
        state.mark_changed();
        leader.mark_changed();
        let (mut update_at, mut leaderless_at) = (None, None);
        let mut silent_at = self.silent_at();
        loop {
            let step = tokio::select! {
                () = ended.cancelled() => return End::Goodbye(goodbye::Reason::Move, "this manager stops"),
                () = replaced.cancelled() => {
                    return End::Goodbye(goodbye::Reason::Move, "the node began another session");
                }
                () = self.out.closed() => return End::Gone,
                message = agent.message() => {
                    silent_at = self.silent_at();
                    match message {
                        Ok(Some(AgentMessage { message: Some(message) })) => self.on_message(message).await,
                        Ok(Some(AgentMessage { message: None })) => Ok(()),
                        Ok(None) | Err(_) => return End::Gone,
                    }
                }
                changed = state.changed(), if update_at.is_none() => {
                    update_at = Some(Instant::now() + GATHER);
                    changed.map_err(|_| End::Goodbye(goodbye::Reason::Move, "this manager is one no more"))
                }
                () = until(update_at) => {
                    update_at = None;
                    let current = state.borrow_and_update().clone();
                    self.update(&current).await
                }
                changed = leader.changed() => {
                    let has_leader = leader.borrow_and_update().is_some();
                    leaderless_at = (!has_leader).then(|| Instant::now() + LEADERLESS_MAX);
                    changed.map_err(|_| End::Goodbye(goodbye::Reason::Move, "this manager is one no more"))
                }
                () = until(leaderless_at) => return End::Goodbye(goodbye::Reason::Move, NO_LEADER),
                () = sleep_until(silent_at) => {
                    self.note_missed();
                    return End::Goodbye(goodbye::Reason::Move, "no heartbeat");
                }
                Some(stored) = self.acks.next() => match stored {
                    Some(sequence) => self.send(ToAgent::StatusAck(StatusAck { sequence })).await,
                    None => Ok(()),
                },
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    fn silent_at(&self) -> Instant {
        Instant::now() + self.period().saturating_mul(MISSED_MAX).max(SILENCE_MIN)
    }

    /// How often the agent beats, as it was told.
    fn period(&self) -> Duration {
        Duration::from_nanos(u64::try_from(self.told.heartbeat_period).unwrap_or(0))
    }

    async fn on_message(&mut self, message: FromAgent) -> Result<(), End> {
        match message {
            FromAgent::Hello(_) => return Err(End::Wrong("a session has one hello")),
            FromAgent::Heartbeat(Heartbeat { mut usage }) => {
                self.note_missed();
                self.heard_at = Instant::now();
                self.store.instruments.heartbeats.one();
                let usage_wanted = self.heartbeats.is_usage_wanted(SystemClock.now());
                let ack = ToAgent::HeartbeatAck(HeartbeatAck { usage_wanted });
                let ack = ManagerMessage { message: Some(ack) };
                // Where there is no room, other words are on their way, which say as much.
                let _ = self.out.try_send(Ok(ack));
                self.intake.report(Report::Heartbeat(self.node_id.clone())).await;
                if usage_wanted && !usage.is_empty() {
                    usage.truncate(USAGE_TASKS_MAX);
                    self.intake.report(Report::Usage(self.node_id.clone(), usage)).await;
                }
                // Again and again: another manager may lead since.
                self.report_tables().await;
            }
            FromAgent::Description(description) => self.describe(Some(*description), None).await,
            FromAgent::Ack(ack) => {
                tracing::trace!(assignment = ack.assignment, tables = ?ack.tables, "acknowledged");
                self.applied = ack.tables;
                self.report_tables().await;
            }
            FromAgent::Statuses(report) => {
                let (stored, waiting) = oneshot::channel();
                self.intake.report(Report::Statuses(self.reports(report.tasks), stored)).await;
                let sequence = report.sequence;
                self.acks.push_back(Box::pin(async move { waiting.await.ok().map(|()| sequence) }));
            }
        }
        Ok(())
    }

    /// Counts the heartbeats that were due since the last one.
    fn note_missed(&self) {
        let period = self.period().max(Duration::from_millis(1));
        let due = self.heard_at.elapsed().as_millis() / period.as_millis();
        self.store.instruments.missed.add(u64::try_from(due.saturating_sub(1)).unwrap_or(0));
    }

    async fn report_tables(&self) {
        if !self.applied.is_empty() {
            self.intake.report(Report::Tables(self.node_id.clone(), self.applied.clone())).await;
        }
    }

    fn reports(&self, tasks: Vec<TaskReport>) -> Vec<NodeTaskReport> {
        let report = |report| NodeTaskReport { node_id: self.node_id.clone(), report: Some(report) };
        tasks.into_iter().map(report).collect()
    }

    async fn describe(&self, description: Option<NodeDescription>, status: Option<NodeStatus>) {
        let hello = NodeHello { node_id: self.node_id.clone(), description, status };
        self.intake.report(Report::Heartbeat(self.node_id.clone())).await;
        self.intake.report(Report::Hello(Box::new(hello))).await;
    }

    /// Sends what the state changes for this node.
    async fn update(&mut self, state: &Arc<State>) -> Result<(), End> {
        let seen = std::mem::replace(&mut self.seen, state.clone());
        if is_same_for_all(&seen, state) && is_unchanged(&seen, state, &self.sent, &self.node_id) {
            return Ok(());
        }
        if state.node(&self.node_id).is_none() {
            return Err(End::Goodbye(goodbye::Reason::Removed, "the node was removed from the cluster"));
        }
        let update = self.node_update(state);
        if update != self.told {
            if update.heartbeat_period != self.told.heartbeat_period {
                // An agent beats as soon as it is told of another period, and counts that from then on.
                self.note_missed();
                self.heard_at = Instant::now();
            }
            self.told = update.clone();
            self.send(ToAgent::Node(Box::new(update))).await?;
        }
        let next = assignments(state, &self.node_id);
        let changes = self.sent.diff(&next);
        self.sent = next;
        if changes.is_empty() {
            return Ok(());
        }
        self.assign(assignments::Kind::Incremental, changes).await
    }

    async fn assign(&mut self, kind: assignments::Kind, changes: Vec<AssignmentChange>) -> Result<(), End> {
        // Sequences are raft indices: they grow from message to message of a session.
        let from = self.sequence.to_string();
        self.sequence = self.sent.version;
        let to = self.sequence.to_string();
        for (number, changes) in portions(changes).into_iter().enumerate() {
            // What comes after the first message belongs to the same set.
            let (kind, from) = match number {
                0 => (kind, from.clone()),
                _ => (assignments::Kind::Incremental, to.clone()),
            };
            let message = Assignments { kind: kind.into(), from, to: to.clone(), changes };
            self.send(ToAgent::Assignments(message)).await?;
        }
        Ok(())
    }

    fn node_update(&self, state: &State) -> NodeUpdate {
        let managers = state.managers().filter_map(|node| {
            let manager = node.manager_status.as_ref()?;
            Some(ManagerAddr { node_id: node.id.clone(), addr: manager.addr.clone() })
        });
        let cluster = state.cluster();
        let root = cluster.and_then(|cluster| cluster.root_ca.as_ref());
        NodeUpdate {
            node: state.node(&self.node_id).map(|node| rswarm_proto::wire::Node::clone(node)),
            managers: managers.collect(),
            root_pem: root.map(rswarm_proto::wire::RootCa::trust_bundle).unwrap_or_default(),
            heartbeat_period: i64::try_from(state.heartbeat_period().as_nanos()).unwrap_or(i64::MAX),
            data_path_port: cluster.map_or(0, |cluster| cluster.data_path_port),
        }
    }

    async fn send(&self, message: ToAgent) -> Result<(), End> {
        let message = ManagerMessage { message: Some(message) };
        match timeout(SEND_TIMEOUT, self.out.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(End::Gone),
        }
    }
}

/// Whether two states have the same in them that every node is told: the cluster, and where its managers are.
fn is_same_for_all(before: &State, after: &State) -> bool {
    let same = |(before, after)| Arc::ptr_eq(before, after);
    before.cluster().zip(after.cluster()).is_some_and(|(before, after)| Arc::ptr_eq(before, after))
        && before.managers().count() == after.managers().count()
        && before.managers().zip(after.managers()).all(same)
}

/// The changes in messages that are not too large: secrets and configs, which are last, in as many as they need.
fn portions(changes: Vec<AssignmentChange>) -> Vec<Vec<AssignmentChange>> {
    let (mut portions, mut bytes) = (vec![Vec::new()], 0);
    for change in changes {
        let size = change.encoded_len();
        if is_content(&change) && bytes + size > PORTION_BYTES {
            portions.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        portions.last_mut().expect("there is a first one").push(change);
    }
    portions
}

fn goodbye(reason: goodbye::Reason, message: &str) -> ManagerMessage {
    let goodbye = Goodbye { reason: reason.into(), message: message.to_owned() };
    ManagerMessage { message: Some(ToAgent::Goodbye(goodbye)) }
}

/// Where a node is: what it says, and where it says nothing, what is seen.
fn addresses(listen_addr: &str, data_path_addr: &str, seen: Option<IpAddr>) -> NodeStatus {
    let seen_text = seen.map_or_else(String::new, |seen| seen.to_string());
    let listen = listen_addr.parse::<SocketAddr>().ok().map(|listen| match seen {
        Some(seen) if listen.ip().is_unspecified() => SocketAddr::new(seen, listen.port()),
        _ => listen,
    });
    let addr = listen.map_or_else(|| seen_text.clone(), |listen| listen.ip().to_string());
    NodeStatus {
        data_path_addr: if data_path_addr.is_empty() { addr.clone() } else { data_path_addr.to_owned() },
        addr,
        listen_addr: listen.map_or_else(|| listen_addr.to_owned(), |listen| listen.to_string()),
        ..NodeStatus::default()
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Takes what other managers' agents said.
pub(crate) struct RelayService {
    /// Who may call.
    pub guard: Guard,
    /// Writes it.
    pub writer: Writer,
}

impl RelayService {
    /// For the node's gRPC server.
    pub(crate) fn server(self) -> RelayServer<Self> {
        RelayServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Relay for RelayService {
    async fn report(&self, request: Request<RelayReport>) -> Result<Response<RelayResponse>, Status> {
        self.guard.manager(&request)?;
        if !self.writer.store.status().is_leading() {
            return Err(not_leader());
        }
        self.writer.write(request.get_ref()).await.map_err(|error| propose_status(&error))?;
        let usage_wanted = self.writer.heartbeats.is_usage_wanted(SystemClock.now());
        Ok(Response::new(RelayResponse { usage_wanted }))
    }
}

#[cfg(test)]
mod tests {
    use rswarm_proto::wire::assignment_change::Change;
    use rswarm_proto::wire::{Config, ContentSpec};

    use super::*;

    #[test]
    fn many_configs_come_in_several_messages_and_tasks_in_the_first() {
        let change = |change| AssignmentChange { change: Some(change) };
        let config = |number: usize| {
            let spec = ContentSpec { data: vec![0; 1_000_000], ..ContentSpec::default() };
            let config = Config { id: number.to_string(), spec: Some(spec), ..Config::default() };
            change(Change::Config(Box::new(config)))
        };
        let mut changes = vec![change(Change::Task(Box::default()))];
        changes.extend((0..20).map(config));
        let sizes: Vec<usize> = portions(changes).iter().map(Vec::len).collect();
        assert_eq!(sizes, [9, 8, 4]);
        assert_eq!(portions(Vec::new()).len(), 1, "an empty set is said, too");
    }

    #[test]
    fn a_node_is_where_it_says_and_else_where_it_is_seen() {
        let seen = Some(IpAddr::from([10, 0, 0, 7]));
        let check = |listen: &str, data: &str, wanted: [&str; 3]| {
            let status = addresses(listen, data, seen);
            assert_eq!([&status.addr, &status.listen_addr, &status.data_path_addr], wanted);
        };
        check("0.0.0.0:2377", "", ["10.0.0.7", "10.0.0.7:2377", "10.0.0.7"]);
        check("192.168.1.5:2377", "", ["192.168.1.5", "192.168.1.5:2377", "192.168.1.5"]);
        check("192.168.1.5:2377", "172.16.0.1", ["192.168.1.5", "192.168.1.5:2377", "172.16.0.1"]);
        check("[::]:2377", "", ["10.0.0.7", "10.0.0.7:2377", "10.0.0.7"]);
        check("", "", ["10.0.0.7", "", "10.0.0.7"]);
    }
}
