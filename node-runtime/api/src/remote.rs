//! Containers of the cluster's tasks, asked for on a manager, wherever they run.
//!
//! A request that names the container of a task on another node is passed on there, and answered by that node's own
//! handlers. The way is a connection of an API client, carried by the streams of one gRPC call that the manager makes
//! to the node (`TaskContainers.Reach`). The node lets nothing through but what is about the container that the call
//! names. Such a connection could carry any request, also one that is upgraded; [`VIEWS`] says which ones may go.

use std::sync::Weak;

use axum::body::Body;
use axum::http::{Method, Request, Uri, header};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use rswarm_base::id::is_cluster_id;
use rswarm_base::{Chain, Kind, Scope};
use rswarm_engine::Engine;
use rswarm_proto::tls;
use rswarm_proto::wire::task_containers_server::{TaskContainers, TaskContainersServer};
use rswarm_proto::wire::{ContainerBytes, Node, NodeRole, Task};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::connection;
use crate::error::ApiError;
use crate::node::ClusterNode;
use crate::router::{App, Gate};
use crate::swarm;
use crate::version::ApiVersion;

/// What may be asked about a container elsewhere: what only looks.
const VIEWS: [&str; 7] = ["json", "top", "stats", "logs", "changes", "archive", "export"];
/// Bytes that are passed on at once.
const CHUNK: usize = 64 << 10;
/// Chunks on their way in one direction.
const CHUNKS: usize = 4;
/// Shorter beginnings of a container's identifier are looked for on this node alone.
const SHORT: usize = 12;

/// The container that a request is about, and what it asks, when it is one that may be passed on.
pub(crate) fn view_of(request: &Request<Body>) -> Option<&str> {
    let mut parts = request.uri().path().strip_prefix("/containers/")?.split('/');
    let (reference, view) = (parts.next()?, parts.next()?);
    let looks = [Method::GET, Method::HEAD].contains(request.method());
    (looks && parts.next().is_none() && VIEWS.contains(&view)).then_some(reference)
}

// ---- on the manager that is asked -----------------------------------------------------------------------

/// The task whose container it is, when this node has none of that name and another one may.
pub(crate) async fn elsewhere(app: &App, reference: &str) -> Option<Task> {
    let is_here = app.engine.inspect(reference).is_ok();
    if is_here || !app.cluster.info().control_available {
        return None;
    }
    let name = reference.trim_start_matches('/');
    // Without managers that answer, all that there is to say is that it is not here.
    let missing = |reference: &str| ApiError::new(Kind::NotFound, reference);
    if let Some(id) = name.rsplit('.').next().filter(|id| is_cluster_id(id)) {
        let task: Task = swarm::get_one(app, id, missing).await.ok()?;
        return Some(task).filter(|task| task.container_name() == name && !task.container_id().is_empty());
    }
    let is_id = name.len() >= SHORT && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id { swarm::get_one(app, &format!("container:{name}"), missing).await.ok() } else { None }
}

/// Has the task's node answer.
pub(crate) async fn pass_on(
    app: &App,
    task: &Task,
    mut request: Request<Body>,
) -> Result<Response, ApiError> {
    let id = task.container_id();
    let missing = |id: &str| ApiError::new(Kind::NotFound, format!("node {id} not found"));
    let node: Node = swarm::get_one(app, &task.node_id, missing).await?;
    let unreachable = |reason: String| {
        let host = node.description.as_ref().map_or(node.id.as_str(), |node| node.hostname.as_str());
        let name = task.container_name();
        ApiError::new(
            Kind::Unavailable,
            format!("container {name} is on node {host}, which does not answer: {reason}"),
        )
    };
    let addr = node.status.as_ref().map_or("", |status| status.listen_addr.as_str());
    let client = app.cluster.containers(&node.id, addr).await;
    let mut client = client.map_err(|error| unreachable(error.to_string()))?;
    let (out, messages) = mpsc::channel(CHUNKS);
    let first = ContainerBytes { container_id: id.to_owned(), ..ContainerBytes::default() };
    // The receiver is right here.
    let _ = out.send(first).await;
    let connected = client.reach(ReceiverStream::new(messages)).await;
    let answers = connected.map_err(|status| unreachable(status.message().to_owned()))?.into_inner();
    let (near, far) = UnixStream::pair().map_err(|error| unreachable(error.to_string()))?;
    app.scope.spawn(carry(near, answers, out, |bytes| bytes));
    *request.uri_mut() = on_its_node(&request, id)?;
    let broke = |error: hyper::Error| unreachable(Chain(&error).to_string());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(far)).await.map_err(broke)?;
    let token = app.scope.token().child_token();
    // Goes with the answer: hyper would hold the connection of an answer that nobody reads until more of it comes.
    let guard = token.clone().drop_guard();
    app.scope.spawn(async move {
        // How it ended is seen by who reads the answer.
        let _ = token.run_until_cancelled(connection).await;
    });
    let mut response = sender.send_request(request).await.map_err(broke)?;
    for of_connection in [header::CONNECTION, header::TRANSFER_ENCODING] {
        response.headers_mut().remove(of_connection);
    }
    Ok(response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _held = &guard;
            frame
        }))
    }))
}

/// The same request as its node's API takes it.
fn on_its_node(request: &Request<Body>, id: &str) -> Result<Uri, ApiError> {
    let view = request.uri().path().rsplit('/').next().unwrap_or_default();
    let version = request.extensions().get::<ApiVersion>().map(|version| format!("/v{version}"));
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let uri = format!("{}/containers/{id}/{view}{query}", version.unwrap_or_default());
    uri.parse().map_err(|error| ApiError::invalid(format!("invalid path: {error}")))
}

// ---- on the container's node ----------------------------------------------------------------------------

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
/// other side is gone. One that has only said all may still listen.
async fn carry<T: Send + 'static>(
    socket: UnixStream,
    mut messages: Streaming<ContainerBytes>,
    out: mpsc::Sender<T>,
    message: fn(ContainerBytes) -> T,
) {
    let (mut reader, mut writer) = socket.into_split();
    let inward = async {
        while let Some(ContainerBytes { data, .. }) = messages.message().await.ok()? {
            writer.write_all(&data).await.ok()?;
        }
        writer.shutdown().await.ok()?;
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
    };
    tokio::select! {
        () = outward => {}
        None::<()> = inward => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, path: &str) -> Request<Body> {
        Request::builder().method(method).uri(path).body(Body::empty()).expect("a request")
    }

    #[test]
    fn only_what_looks_at_one_container_may_go_elsewhere() {
        let seen = |method, path| view_of(&request(method, path)).map(str::to_owned);
        assert_eq!(seen("GET", "/containers/web.1.x/json?size=1").as_deref(), Some("web.1.x"));
        assert_eq!(seen("HEAD", "/containers/c1/archive?path=/").as_deref(), Some("c1"));
        for (method, path) in [
            ("GET", "/containers/json"),
            ("GET", "/containers/c1/attach/ws"),
            ("PUT", "/containers/c1/archive"),
            ("POST", "/containers/c1/stop"),
            ("DELETE", "/containers/c1"),
            ("GET", "/images/c1/json"),
            ("GET", "/exec/c1/json"),
        ] {
            assert_eq!(seen(method, path), None, "{method} {path}");
        }
    }

    #[test]
    fn its_node_is_asked_for_the_container_by_its_identifier_in_the_clients_version() {
        let asked = request("GET", "/containers/web.1.x/top?ps_args=aux");
        assert_eq!(on_its_node(&asked, "c1").expect("a path"), "/containers/c1/top?ps_args=aux");
        let mut versioned = asked;
        versioned.extensions_mut().insert(crate::version::MAX);
        assert_eq!(on_its_node(&versioned, "c1").expect("a path"), "/v1.51/containers/c1/top?ps_args=aux");
    }
}
