//! The node's side: the API of its engine, for managers, one container at a time. And the way between the nodes.

use std::sync::Weak;

use bytes::Bytes;
use rswarm_base::Scope;
use rswarm_engine::Engine;
use rswarm_proto::tls;
use rswarm_proto::wire::task_containers_server::{TaskContainers, TaskContainersServer};
use rswarm_proto::wire::{ContainerBytes, NodeRole};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{CHUNK, CHUNKS};
use crate::connection::{self, Socket as _};
use crate::node::ClusterNode;
use crate::router::{App, Gate};
use crate::watch;

/// Answers managers that ask about containers of this node's tasks.
pub struct TaskContainersService {
    engine: Engine,
    cluster: Weak<dyn ClusterNode>,
    scope: Scope,
}

impl TaskContainersService {
    /// The gRPC service over an engine. What it serves ends with the scope.
    #[must_use]
    pub fn server(
        engine: Engine,
        cluster: Weak<dyn ClusterNode>,
        scope: Scope,
    ) -> TaskContainersServer<TaskContainersService> {
        TaskContainersServer::new(TaskContainersService { engine, cluster, scope })
    }
}

#[tonic::async_trait]
impl TaskContainers for TaskContainersService {
    type ReachStream = ReceiverStream<Result<ContainerBytes, Status>>;

    async fn reach(
        &self,
        request: tonic::Request<Streaming<ContainerBytes>>,
    ) -> Result<tonic::Response<Self::ReachStream>, Status> {
        tls::require(&request, NodeRole::Manager)?;
        let mut messages = request.into_inner();
        let first = messages.message().await?.unwrap_or_default();
        let found = self.engine.inspect(&first.container_id).ok();
        let container = found.filter(|container| container.config.task.is_some());
        let container =
            container.ok_or_else(|| Status::not_found("no task of this node has that container"))?;
        let cluster = self.cluster.upgrade().ok_or_else(|| Status::unavailable("the daemon is stopping"))?;
        let app = App { engine: self.engine.clone(), cluster, scope: self.scope.clone() };
        let gate = Gate::of_container(app, container.id.clone());
        let (near, far) = UnixStream::pair()?;
        self.scope.spawn(connection::serve(far, gate, self.scope.clone()));
        let (out, answers) = mpsc::channel(CHUNKS);
        let manager = out.clone();
        self.scope.spawn(async move {
            tokio::select! {
                () = carry(near, messages, out, Ok) => {}
                // It may have ended its own half in good order first; who is left would wait for the container's next word.
                () = manager.closed() => {}
            }
        });
        Ok(tonic::Response::new(ReceiverStream::new(answers)))
    }
}

/// Carries what a socket says to the other side, and what that says to the socket, until the socket is closed or the
/// other side is gone. Who has only said all may still listen, on either side.
pub(super) async fn carry<T: Send + 'static>(
    socket: UnixStream,
    mut messages: Streaming<ContainerBytes>,
    out: mpsc::Sender<T>,
    message: fn(ContainerBytes) -> T,
) {
    let watch = socket.watch();
    let (mut reader, mut writer) = socket.into_split();
    let inward = async {
        while let Some(ContainerBytes { data, .. }) = messages.message().await.ok()? {
            if writer.write_all(&data).await.is_err() {
                break; // it listens no more; what it said is still on its way
            }
        }
        let _ = writer.shutdown().await;
        std::future::pending().await
    };
    let outward = async {
        let mut buffer = vec![0; CHUNK];
        while let Ok(length @ 1..) = reader.read(&mut buffer).await {
            let data = Bytes::copy_from_slice(&buffer[..length]);
            if out.send(message(ContainerBytes { data, ..ContainerBytes::default() })).await.is_err() {
                return;
            }
        }
        drop(out);
        watch::hung_up(watch).await;
    };
    tokio::select! {
        () = outward => {}
        None::<()> = inward => {}
    }
}
