//! Logs of services and tasks: the asked manager reads them from the nodes that have them, and merges.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rswarm_base::Scope;
use rswarm_manager_core::State;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::tls::{ConnectError, Identity, MESSAGE_BYTES_MAX, connect_node};
use rswarm_proto::wire::logs_server::{Logs, LogsServer};
use rswarm_proto::wire::task_logs_client::TaskLogsClient;
use rswarm_proto::wire::{LogLine, LogsMessage, LogsRequest, Task, TaskLogsRequest};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::guard::Guard;
use crate::store::StoreHandle;

/// Lines on their way to one reader: a slow reader slows the nodes down, nothing is kept here.
const OUT_MAX: usize = 256;
/// Pause before a followed task whose node went away is looked for again.
const RETRY: Duration = Duration::from_secs(2);
/// What readers are told when something is missing (swarmkit's words).
const INCOMPLETE: &str = "incomplete log stream. some logs could not be retrieved for the following reasons";

/// Serves logs.
pub(crate) struct LogsService {
    /// Who may call.
    pub guard: Guard,
    /// The state.
    pub store: StoreHandle,
    /// To reach the nodes.
    pub identity: Arc<Identity>,
    /// Where subscriptions live.
    pub scope: Scope,
}

impl LogsService {
    /// For the node's gRPC server.
    pub(crate) fn server(self) -> LogsServer<Self> {
        LogsServer::new(self).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[tonic::async_trait]
impl Logs for LogsService {
    type SubscribeStream = ReceiverStream<Result<LogsMessage, Status>>;

    async fn subscribe(
        &self,
        request: Request<LogsRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        self.guard.manager(&request)?;
        let LogsRequest { service_ids, task_ids, options } = request.into_inner();
        let options = options.unwrap_or_default();
        if !options.stdout && !options.stderr {
            return Err(Status::invalid_argument("you must choose at least one stream"));
        }
        let (out, messages) = mpsc::channel(OUT_MAX);
        let subscription = Subscription {
            services: service_ids.into_iter().collect(),
            tasks: task_ids.into_iter().collect(),
            options,
            state: self.store.state.clone(),
            nodes: Nodes { identity: self.identity.clone(), channels: Arc::default() },
            out,
            seen: HashSet::new(),
            readers: JoinSet::new(),
        };
        let token = self.scope.token();
        self.scope.spawn(async move {
            token.run_until_cancelled(subscription.run()).await;
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// One request for logs.
struct Subscription {
    services: HashSet<String>,
    tasks: HashSet<String>,
    options: TaskLogsRequest,
    state: watch::Receiver<Arc<State>>,
    nodes: Nodes,
    out: mpsc::Sender<Result<LogsMessage, Status>>,
    /// Tasks that are or were read.
    seen: HashSet<String>,
    readers: JoinSet<()>,
}

impl Subscription {
    async fn run(mut self) {
        let mut is_first = true;
        loop {
            let state = self.state.borrow_and_update().clone();
            self.begin_readers(&state, is_first).await;
            is_first = false;
            if !self.options.follow || self.is_over(&state) {
                while self.readers.join_next().await.is_some() {}
                return;
            }
            tokio::select! {
                () = self.out.closed() => return,
                changed = self.state.changed() => if changed.is_err() { return },
                Some(_) = self.readers.join_next() => {}
            }
        }
    }

    /// Starts to read every task that has something to read and is not read yet. Those that appear later are
    /// new since the subscription, so all of their lines are.
    async fn begin_readers(&mut self, state: &State, is_first: bool) {
        let listed = self.tasks.iter().filter_map(|id| state.task(id));
        let of_services = self.services.iter().flat_map(|id| state.tasks_of_service(id));
        let wanted: Vec<Arc<Task>> = listed.chain(of_services).cloned().collect();
        for task in wanted {
            if task.node_id.is_empty() || task.observed() < TaskState::Assigned {
                if !self.options.follow {
                    warn(&self.out, &task, &format!("task {} has not been scheduled", task.id)).await;
                }
                continue;
            }
            let has_begun = task.observed() >= TaskState::Starting;
            if (has_begun || !self.options.follow) && self.seen.insert(task.id.clone()) {
                let mut options = self.options.clone();
                options.task_id.clone_from(&task.id);
                if !is_first {
                    options.tail = -1;
                }
                let (state, nodes) = (self.state.clone(), self.nodes.clone());
                let reader = Reader { task, options, state, nodes, out: self.out.clone() };
                self.readers.spawn(reader.run());
            }
        }
    }

    /// Whether nothing that was asked for exists any more, so that nothing can come.
    fn is_over(&self, state: &State) -> bool {
        let services = self.services.iter().any(|id| state.service(id).is_some());
        let tasks =
            self.tasks.iter().filter_map(|id| state.task(id)).any(|task| !task.observed().is_terminal());
        !services && !tasks
    }
}

/// Reads one task's log.
struct Reader {
    task: Arc<Task>,
    options: TaskLogsRequest,
    state: watch::Receiver<Arc<State>>,
    nodes: Nodes,
    out: mpsc::Sender<Result<LogsMessage, Status>>,
}

impl Reader {
    async fn run(mut self) {
        loop {
            let error = match self.read().await {
                Ok(()) => return,
                Err(error) => error,
            };
            match &error {
                // A task that never had a container has no log either.
                ReadError::Refused(status) if status.code() == Code::NotFound => return,
                ReadError::Address | ReadError::Connect(_) => {
                    self.warn(&format!("node {} is not available", self.task.node_id)).await;
                }
                ReadError::Refused(status) => self.warn(status.message()).await,
            }
            let is_live = |task: &Arc<Task>| !task.observed().is_terminal();
            if !self.options.follow || !self.state.borrow().task(&self.task.id).is_some_and(is_live) {
                return;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Passes lines on until the node has no more.
    async fn read(&mut self) -> Result<(), ReadError> {
        let listen_addr = {
            let state = self.state.borrow();
            let status = state.node(&self.task.node_id).and_then(|node| node.status.as_ref());
            status.map(|status| status.listen_addr.clone()).filter(|addr| !addr.is_empty())
        };
        let addr = listen_addr.ok_or(ReadError::Address)?;
        let channel = self.nodes.channel(&self.task.node_id, &addr).await?;
        let mut lines = TaskLogsClient::new(channel).read(self.options.clone()).await?.into_inner();
        while let Some(line) = lines.message().await? {
            // Where to go on should the node go away.
            self.options.since = self.options.since.max(line.timestamp + 1);
            self.options.tail = -1;
            if self.pass(line).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    async fn pass(&self, line: LogLine) -> Result<(), mpsc::error::SendError<Result<LogsMessage, Status>>> {
        self.out.send(Ok(LogsMessage { line: Some(line), ..about(&self.task) })).await
    }

    async fn warn(&self, what: &str) {
        warn(&self.out, &self.task, what).await;
    }
}

async fn warn(out: &mpsc::Sender<Result<LogsMessage, Status>>, task: &Task, what: &str) {
    let warning = format!("{INCOMPLETE}: {what}");
    // A reader that has gone needs no warning.
    let _ = out.send(Ok(LogsMessage { warning, ..about(task) })).await;
}

fn about(task: &Task) -> LogsMessage {
    LogsMessage {
        task_id: task.id.clone(),
        service_id: task.service_id.clone(),
        node_id: task.node_id.clone(),
        ..LogsMessage::default()
    }
}

/// Channels to nodes: one each, however many of its tasks are read.
#[derive(Clone)]
struct Nodes {
    identity: Arc<Identity>,
    channels: Arc<Mutex<HashMap<String, Channel>>>,
}

impl Nodes {
    async fn channel(&self, node_id: &str, addr: &str) -> Result<Channel, ConnectError> {
        let key = format!("{node_id} {addr}");
        if let Some(channel) = self.channels.lock().expect("no holder panics").get(&key) {
            return Ok(channel.clone());
        }
        let channel = connect_node(addr, node_id, &self.identity).await?;
        self.channels.lock().expect("no holder panics").insert(key, channel.clone());
        Ok(channel)
    }
}

/// Why a task's log cannot be read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("the node's address is not known")]
    Address,
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("{}", .0.message())]
    Refused(Box<Status>),
}

impl From<Status> for ReadError {
    fn from(status: Status) -> ReadError {
        ReadError::Refused(Box::new(status))
    }
}
