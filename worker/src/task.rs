//! One actor per assigned task: takes the steps that [`next_step`] names and says what came of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rswarm_base::{Scope, Timestamp};
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{ContainerStatus, Task, TaskStatus};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::content::Content;
use crate::executor::{ExecError, Executor, Started};
use crate::step::{Step, next_step};

/// How long a task waits for its networks before it is rejected (moby's executor: 30 s).
const NETWORK_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a task waits for its secrets and configs before it is rejected.
const CONTENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a task that shall stop waits to hear that nothing leads to it any more. Usual is a tenth of it; a node
/// that does not answer is found out later than this, and no managers may be there at all.
const CLOSING_MAX: Duration = Duration::from_secs(3);
/// How much older an answer may be than its client thinks, and the way from there to the task.
const ON_THE_WAY: Duration = Duration::from_millis(500);
/// How long the connections that a task has then may take to end.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Versions of the network tables that the kernel holds, by network id.
pub(crate) type AppliedTables = watch::Receiver<Arc<BTreeMap<String, u64>>>;

/// A status that a task's actor came to.
#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) task_id: String,
    pub(crate) status: TaskStatus,
}

/// The agent's hold on one task's actor.
pub(crate) struct TaskHandle {
    wanted: watch::Sender<Arc<Task>>,
    cancel: CancellationToken,
    ended: watch::Receiver<()>,
}

impl TaskHandle {
    pub(crate) fn spawn(actor: TaskActor, scope: &Scope) -> TaskHandle {
        let (wanted, receiver) = watch::channel(actor.task.clone());
        let (alive, ended) = watch::channel(());
        let cancel = scope.token().child_token();
        let (token, span) = (cancel.clone(), actor.span());
        scope.spawn(
            async move {
                actor.run(receiver, token).await;
                drop(alive);
            }
            .instrument(span),
        );
        TaskHandle { wanted, cancel, ended }
    }

    /// The managers want something else of the task.
    pub(crate) fn update(&self, task: Task) {
        self.wanted.send_replace(Arc::new(task));
    }

    /// Ends the actor, not the container; resolves when nothing more will be done for the task.
    pub(crate) async fn detach(mut self) {
        self.cancel.cancel();
        while self.ended.changed().await.is_ok() {}
    }
}

/// What a task's actor works with.
pub(crate) struct TaskActor {
    pub(crate) task: Arc<Task>,
    pub(crate) status: TaskStatus,
    pub(crate) executor: Arc<dyn Executor>,
    pub(crate) tables: AppliedTables,
    pub(crate) content: watch::Receiver<Arc<Content>>,
    /// Why tables could not be applied, by network id.
    pub(crate) troubles: watch::Receiver<BTreeMap<String, ExecError>>,
    pub(crate) observed: mpsc::Sender<Observed>,
}

impl TaskActor {
    fn span(&self) -> tracing::Span {
        tracing::info_span!(
            "task",
            task.id = self.task.id,
            service.id = self.task.service_id,
            slot = self.task.slot
        )
    }

    async fn run(mut self, mut wanted: watch::Receiver<Arc<Task>>, cancel: CancellationToken) {
        loop {
            self.task = wanted.borrow_and_update().clone();
            let told = wanted.clone();
            let state = self.status.state();
            let step = next_step(state, self.task.desired(), self.task.drains());
            let status = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = other_step(&mut wanted, state, step) => continue,
                status = self.perform(step, told) => status,
            };
            self.say(status).await;
        }
    }

    /// Takes one step and returns the status it leads to. Dropped when another step is wanted instead.
    async fn perform(&self, step: Step, told: watch::Receiver<Arc<Task>>) -> TaskStatus {
        match step {
            Step::Accept => self.reached(TaskState::Accepted, "accepted"),
            Step::Prepare => self.prepare().await,
            Step::Start => self.start().await,
            Step::Watch => self.watch().await,
            Step::Drain => self.reached(TaskState::Draining, "draining"),
            Step::Stop => self.stop(told).await,
            Step::Hold | Step::Rest => std::future::pending().await,
        }
    }

    async fn prepare(&self) -> TaskStatus {
        if self.status.state() < TaskState::Preparing {
            return self.reached(TaskState::Preparing, "preparing");
        }
        if let Err(error) = self.networks_ready().await {
            return self.failed(TaskState::Rejected, error);
        }
        if let Err(error) = self.content_ready().await {
            return self.failed(TaskState::Rejected, error);
        }
        match self.executor.prepare(&self.task, &self.content()).await {
            Ok(()) => self.reached(TaskState::Ready, "prepared"),
            Err(error) => self.failed(TaskState::Rejected, error),
        }
    }

    async fn start(&self) -> TaskStatus {
        if self.status.state() < TaskState::Starting {
            return self.reached(TaskState::Starting, "starting");
        }
        // After a restart of the daemon it may be here no more, nor needed: then the container runs already.
        let _ = self.content_ready().await;
        match self.executor.start(&self.task, &self.content()).await {
            Ok(Started { container, ports }) => TaskStatus {
                container: Some(container),
                ports,
                ..self.reached(TaskState::Running, "started")
            },
            Err(error) => self.failed(TaskState::Failed, error),
        }
    }

    async fn watch(&self) -> TaskStatus {
        let exit = match self.executor.wait(&self.task).await {
            Ok(exit) => exit,
            Err(error) => return self.failed(TaskState::Failed, error),
        };
        let mut status = match exit.code {
            0 => self.reached(TaskState::Complete, "finished"),
            code => self.failed(TaskState::Failed, ExecError(format!("task: non-zero exit ({code})"))),
        };
        if exit.oom_killed {
            status.err.push_str(": out of memory");
        }
        status.container.get_or_insert_default().exit_code = exit.code;
        status
    }

    async fn stop(&self, told: watch::Receiver<Arc<Task>>) -> TaskStatus {
        if self.status.state() == TaskState::Draining {
            tokio::select! {
                () = self.drain(told) => {}
                // It ended by itself, or cannot be asked: there is nothing to wait for.
                _ = self.executor.wait(&self.task) => {}
            }
        }
        if let Err(error) = self.executor.stop(&self.task).await {
            return self.failed(TaskState::Failed, error);
        }
        self.reached(TaskState::Shutdown, "shutdown")
    }

    /// First nothing new is led to the task, then nobody remembers the way, then what it has at hand may end.
    async fn drain(&self, mut told: watch::Receiver<Arc<Task>>) {
        let since = Timestamp::now().since(Timestamp(self.status.timestamp));
        let closed = told.wait_for(|task| task.drained);
        if tokio::time::timeout(CLOSING_MAX.saturating_sub(since), closed).await.is_err() {
            tracing::info!("not every node says in time that it leads nothing here any more");
        }
        if self.task.is_found_by_address() {
            tokio::time::sleep(self.executor.remembered() + ON_THE_WAY).await;
        }
        if tokio::time::timeout(DRAIN_MAX, self.executor.unused(&self.task)).await.is_err() {
            tracing::info!("connections are left at the end of the drain");
        }
    }

    async fn networks_ready(&self) -> Result<(), ExecError> {
        let mut tables = self.tables.clone();
        let missing = |tables: &BTreeMap<String, u64>| {
            let mut attachments = self.task.networks.iter();
            attachments
                .find(|attachment| {
                    !is_of_every_node(&attachment.network_id) && !tables.contains_key(&attachment.network_id)
                })
                .map(|a| a.network_id.clone())
        };
        let all = tables.wait_for(|tables| missing(tables).is_none());
        if let Ok(ready) = tokio::time::timeout(NETWORK_TIMEOUT, all).await {
            return ready.map(drop).map_err(|_| ExecError("the agent is stopping".into()));
        }
        let network = missing(&self.tables.borrow()).unwrap_or_default();
        let trouble = self.troubles.borrow().get(&network).map(|error| format!(": {error}"));
        let (seconds, trouble) = (NETWORK_TIMEOUT.as_secs(), trouble.unwrap_or_default());
        Err(ExecError(format!("network `{network}` was not ready within {seconds} s{trouble}")))
    }

    /// Secrets and configs that are many may come after the task.
    async fn content_ready(&self) -> Result<(), ExecError> {
        let mut content = self.content.clone();
        let all = content.wait_for(|content| content.missing(&self.task).is_none());
        if let Ok(ready) = tokio::time::timeout(CONTENT_TIMEOUT, all).await {
            return ready.map(drop).map_err(|_| ExecError("the agent is stopping".into()));
        }
        let missing = self.content.borrow().missing(&self.task).unwrap_or_default();
        Err(ExecError(format!("{missing} did not come within {} s", CONTENT_TIMEOUT.as_secs())))
    }

    fn content(&self) -> Content {
        self.content.borrow().of(&self.task)
    }

    fn reached(&self, state: TaskState, message: &str) -> TaskStatus {
        TaskStatus {
            state: state.into(),
            timestamp: Timestamp::now().0,
            message: message.into(),
            err: String::new(),
            ..self.status.clone()
        }
    }

    /// As swarmkit: the message stays that of the last good step, the error says what went wrong.
    fn failed(&self, state: TaskState, error: ExecError) -> TaskStatus {
        let message = self.status.message.clone();
        TaskStatus { err: error.0, ..self.reached(state, &message) }
    }

    async fn say(&mut self, status: TaskStatus) {
        tracing::info!(state = status.state().name(), err = status.err, "{}", status.message);
        self.status = status.clone();
        let observed = Observed { task_id: self.task.id.clone(), status };
        // The agent is gone only when the daemon stops; the disk has the last status it took.
        let _ = self.observed.send(observed).await;
    }
}

/// Resolves when the managers' wish changes such that another step is next.
async fn other_step(wanted: &mut watch::Receiver<Arc<Task>>, state: TaskState, step: Step) {
    let other = wanted.wait_for(|task| next_step(state, task.desired(), task.drains()) != step);
    if other.await.is_err() {
        // The agent dropped its handle: only cancellation ends this actor.
        std::future::pending::<()>().await;
    }
}

/// The status of a task that this node has just been given.
pub(crate) fn assigned(task: &Task) -> TaskStatus {
    let mut status = task.status.clone().unwrap_or_default();
    if status.state() < TaskState::Assigned {
        status.set_state(TaskState::Assigned);
    }
    if status.container.is_none() {
        status.container = Some(ContainerStatus::default());
    }
    status
}

/// A network that each node has of its own: it is always there.
fn is_of_every_node(network: &str) -> bool {
    matches!(network, "host" | "bridge" | "none")
}
