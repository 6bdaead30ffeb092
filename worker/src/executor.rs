//! What the agent needs from an engine. Every call is idempotent: after a restart of the daemon the
//! agent repeats the step that it was in.

use std::pin::Pin;

use std::time::Duration;

use async_trait::async_trait;
use futures_util::Stream;
use rswarm_proto::wire::{
    ContainerStatus, LogLine, NodeDescription, PortConfig, Task, TaskLogsRequest, TaskUsage,
};

use crate::assignments::NetworkView;
use crate::content::Content;

/// Why an executor could not do what was asked, in the words that `service ps` shows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ExecError(pub String);

/// How a task's container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskExit {
    /// 0–255; 128 + n for signal n.
    pub code: i64,
    /// Whether the kernel killed something in it for want of memory.
    pub oom_killed: bool,
}

/// A task's container that runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Started {
    /// The container and its first process.
    pub container: ContainerStatus,
    /// Ports published on this node, as bound.
    pub ports: Vec<PortConfig>,
}

/// The lines of a task's log, oldest first.
pub type LogStream = Pin<Box<dyn Stream<Item = Result<LogLine, ExecError>> + Send>>;

/// Runs tasks as containers and programs their networks.
#[async_trait]
pub trait Executor: Send + Sync + 'static {
    /// What this node is and has.
    async fn describe(&self) -> NodeDescription;

    /// Makes the kernel agree with the table.
    async fn apply_network(&self, network: &NetworkView) -> Result<(), ExecError>;

    /// Removes all that a network left on this node. One that is not there is fine.
    async fn remove_network(&self, network_id: &str) -> Result<(), ExecError>;

    /// Gets the image and creates the container; one that exists already is kept. `content` holds the task's
    /// secrets and configs.
    async fn prepare(&self, task: &Task, content: &Content) -> Result<(), ExecError>;

    /// Starts the container; one that runs already is left alone. What a container has in memory only may have
    /// gone with an earlier daemon, so `content` is given again.
    async fn start(&self, task: &Task, content: &Content) -> Result<Started, ExecError>;

    /// Resolves when the container has ended, at once if it has.
    async fn wait(&self, task: &Task) -> Result<TaskExit, ExecError>;

    /// Resolves when no connection that others opened to the task is left, and nobody would notice its end.
    async fn unused(&self, task: &Task);

    /// How long clients may remember the address of a task that a name led to: it serves them as long, once no name
    /// leads there any more.
    fn remembered(&self) -> Duration;

    /// Sends the stop signal, waits for the grace period, then kills. A container that is not there is fine.
    async fn stop(&self, task: &Task) -> Result<(), ExecError>;

    /// Removes the container of a task, running or not. One that is not there is fine.
    async fn remove(&self, task_id: &str) -> Result<(), ExecError>;

    /// The tasks whose containers this node holds, by their label, running or not.
    async fn held(&self) -> Vec<String>;

    /// The cluster networks that the kernel of this node holds something of.
    async fn held_networks(&self) -> Vec<String>;

    /// What the running tasks use, but for rates. One whose counters cannot be read is left out.
    async fn usage(&self) -> Vec<TaskUsage> {
        Vec::new()
    }

    /// Reads a task's log.
    async fn logs(&self, request: &TaskLogsRequest) -> Result<LogStream, ExecError>;
}
