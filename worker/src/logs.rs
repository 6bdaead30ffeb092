//! Task logs for managers: the `TaskLogs` service on this node's gRPC port.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use rswarm_proto::tls;
use rswarm_proto::wire::task_logs_server::{TaskLogs, TaskLogsServer};
use rswarm_proto::wire::{LogLine, NodeRole, TaskLogsRequest};
use tonic::{Request, Response, Status};

use crate::executor::Executor;

/// Serves the logs of this node's tasks, to managers only.
pub struct TaskLogsService {
    executor: Arc<dyn Executor>,
}

impl TaskLogsService {
    /// The gRPC service over an executor.
    #[must_use]
    pub fn server(executor: Arc<dyn Executor>) -> TaskLogsServer<TaskLogsService> {
        TaskLogsServer::new(TaskLogsService { executor })
    }
}

#[tonic::async_trait]
impl TaskLogs for TaskLogsService {
    type ReadStream = Pin<Box<dyn Stream<Item = Result<LogLine, Status>> + Send>>;

    async fn read(&self, request: Request<TaskLogsRequest>) -> Result<Response<Self::ReadStream>, Status> {
        tls::require(&request, NodeRole::Manager)?;
        let lines =
            self.executor.logs(request.get_ref()).await.map_err(|error| Status::not_found(error.0))?;
        let lines = lines.map(|line| line.map_err(|error| Status::internal(error.0)));
        Ok(Response::new(Box::pin(lines)))
    }
}
