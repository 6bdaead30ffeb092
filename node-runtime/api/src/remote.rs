//! Containers of the cluster's tasks, asked for on a manager, wherever they run.
//!
//! A request that names the container of a task on another node, or an exec in one, is passed on there, and answered
//! by that node's own handlers. The way is a connection of an API client, carried by the streams of one gRPC call that
//! the manager makes to the node (`TaskContainers.Reach`; the node's side is `reached`). The node lets nothing through
//! but what is about the container that the call names. A request whose answer takes the connection over, as a
//! terminal does, takes this one too (`taken`). [`asked`] says what may go: what looks, and what works inside the
//! container. Whether it runs is the cluster's business.

mod reached;
mod taken;

use axum::body::Body;
use axum::http::{Request, Uri, header};
use axum::response::Response;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use rswarm_base::id::is_cluster_id;
use rswarm_base::{Chain, Kind};
use rswarm_engine::exec;
use rswarm_proto::wire::{ContainerBytes, Node, Task};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::call;
use crate::error::ApiError;
use crate::router::App;
use crate::swarm;
use crate::version::ApiVersion;

pub use reached::TaskContainersService;

/// What may be asked about a container elsewhere that only looks.
const VIEWS: [&str; 7] = ["json", "top", "stats", "logs", "changes", "archive", "export"];
/// Bytes that are passed on at once.
const CHUNK: usize = 64 << 10;
/// Chunks on their way in one direction.
const CHUNKS: usize = 4;
/// Shorter beginnings of a container's identifier are looked for on this node alone.
const SHORT: usize = 12;

/// A request that may be answered on another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked<'a> {
    subject: Subject<'a>,
    /// What its answer is like.
    pub does: Does,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject<'a> {
    Container(&'a str),
    Exec(&'a str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Does {
    /// It looks, waits, or tells how large a window is: nobody asks later who did.
    Look,
    /// It does something in the container, and has an answer like any other.
    Act,
    /// The connection becomes a stream.
    TakeOver,
}

impl Asked<'_> {
    /// Whether it is about this container alone.
    pub fn is_about(self, app: &App, container_id: &str) -> bool {
        match self.subject {
            Subject::Container(id) => id == container_id,
            Subject::Exec(id) => {
                app.engine.exec_inspect(id).is_ok_and(|exec| exec.container_id == container_id)
            }
        }
    }
}

/// What a request asks, when it may be passed on.
pub(crate) fn asked(request: &Request<Body>) -> Option<Asked<'_>> {
    let path: Vec<&str> = request.uri().path().strip_prefix('/')?.split('/').collect();
    let (subject, verb) = match path.as_slice() {
        ["containers", id, verb @ ..] => (Subject::Container(id), verb),
        ["exec", id, verb @ ..] => (Subject::Exec(id), verb),
        _ => return None,
    };
    let does = match (subject, request.method().as_str(), verb) {
        (Subject::Container(_), "GET" | "HEAD", [view]) if VIEWS.contains(view) => Does::Look,
        (Subject::Exec(_), "GET", ["json"]) | (Subject::Container(_), "POST", ["wait"]) => Does::Look,
        (Subject::Container(_), "POST", ["exec"]) | (Subject::Container(_), "PUT", ["archive"]) => Does::Act,
        (_, "POST", ["resize"]) => Does::Look,
        (Subject::Container(_), "POST", ["attach"])
        | (Subject::Container(_), "GET", ["attach", "ws"])
        | (Subject::Exec(_), "POST", ["start"]) => Does::TakeOver,
        _ => return None,
    };
    Some(Asked { subject, does })
}

/// The task whose container is asked for, when this node has none of that name and another one may.
pub(crate) async fn elsewhere(app: &App, asked: &Asked<'_>) -> Option<Task> {
    if !app.cluster.info().control_available {
        return None;
    }
    match asked.subject {
        Subject::Container(reference) if app.engine.inspect(reference).is_ok() => None,
        Subject::Container(reference) => named(app, reference.trim_start_matches('/')).await,
        Subject::Exec(id) if app.engine.exec_inspect(id).is_ok() => None,
        Subject::Exec(id) => find(app, &format!("container:{}", exec::container_of(id)?)).await,
    }
}

/// The task by its container's name, its slot's, or a beginning of its container's identifier.
async fn named(app: &App, name: &str) -> Option<Task> {
    if let Some(id) = name.rsplit('.').next().filter(|id| is_cluster_id(id)) {
        let task = find(app, id).await.filter(|task| task.container_name() == name);
        if let Some(task) = task {
            return Some(task).filter(|task| !task.container_id().is_empty());
        }
    }
    let is_id = name.len() >= SHORT && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_id || name.contains('.') { find(app, &format!("container:{name}")).await } else { None }
}

/// Without managers that answer, all that there is to say is that it is not here.
async fn find(app: &App, reference: &str) -> Option<Task> {
    swarm::get_one(app, reference, |reference| ApiError::new(Kind::NotFound, reference)).await.ok()
}

/// Has the task's node answer.
pub(crate) async fn pass_on(
    app: &App,
    task: &Task,
    does: Does,
    request: Request<Body>,
) -> Result<Response, ApiError> {
    let way = connect(app, task).await;
    if does != Does::Look {
        let asks = format!("{} {}", request.method(), request.uri().path());
        call::record_reach(app, task, asks, way.as_ref().err().map(|error| error.kind));
    }
    match does {
        Does::TakeOver => taken::take_over(app, way?, request).await,
        Does::Look | Does::Act => answer(app, way?, request).await,
    }
}

/// Passes an answer on that is like any other.
async fn answer(app: &App, way: Way, mut request: Request<Body>) -> Result<Response, ApiError> {
    *request.uri_mut() = on_its_node(&request, &way.container_id)?;
    let broke = |error: hyper::Error| unreachable(&way.name, &way.host, &Chain(&error).to_string());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(way.socket)).await.map_err(broke)?;
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

/// A connection to the API of a task's node, which answers there for the task's container.
struct Way {
    socket: UnixStream,
    container_id: String,
    /// The container, as users know it.
    name: String,
    /// The node, as users know it.
    host: String,
}

fn unreachable(name: &str, host: &str, reason: &str) -> ApiError {
    let text = format!("container {name} is on node {host}, which does not answer: {reason}");
    ApiError::new(Kind::Unavailable, text)
}

/// Reaches the task's container.
async fn connect(app: &App, task: &Task) -> Result<Way, ApiError> {
    let missing = |id: &str| ApiError::new(Kind::NotFound, format!("node {id} not found"));
    let node: Node = swarm::get_one(app, &task.node_id, missing).await?;
    let host = node.description.as_ref().map_or(&node.id, |node| &node.hostname).clone();
    let (name, container_id) = (task.container_name(), task.container_id().to_owned());
    let failed = |reason: &str| unreachable(&name, &host, reason);
    let addr = node.status.as_ref().map_or("", |status| status.listen_addr.as_str());
    let client = app.cluster.containers(&node.id, addr).await;
    let mut client = client.map_err(|error| failed(&error.to_string()))?;
    let (out, messages) = mpsc::channel(CHUNKS);
    let first = ContainerBytes { container_id: container_id.clone(), ..ContainerBytes::default() };
    // The receiver is right here.
    let _ = out.send(first).await;
    let connected = client.reach(ReceiverStream::new(messages)).await;
    let answers = connected.map_err(|status| failed(status.message()))?.into_inner();
    let (near, socket) = UnixStream::pair().map_err(|error| failed(&error.to_string()))?;
    app.scope.spawn(reached::carry(near, answers, out, |bytes| bytes));
    Ok(Way { socket, container_id, name, host })
}

/// The same request as its node's API takes it.
fn on_its_node(request: &Request<Body>, container_id: &str) -> Result<Uri, ApiError> {
    let path = request.uri().path();
    let path = match path.strip_prefix("/containers/").and_then(|rest| rest.split_once('/')) {
        Some((_, verb)) => format!("/containers/{container_id}/{verb}"),
        None => path.to_owned(),
    };
    let version = request.extensions().get::<ApiVersion>().map(|version| format!("/v{version}"));
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let uri = format!("{}{path}{query}", version.unwrap_or_default());
    uri.parse().map_err(|error| ApiError::invalid(format!("invalid path: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: &str, path: &str) -> Request<Body> {
        Request::builder().method(method).uri(path).body(Body::empty()).expect("a request")
    }

    #[test]
    fn what_looks_at_a_container_or_works_in_it_may_go_elsewhere() {
        let (container, exec) = (Subject::Container("c1"), Subject::Exec("e1"));
        let table = [
            ("GET", "/containers/c1/json?size=1", container, Does::Look),
            ("HEAD", "/containers/c1/archive?path=/", container, Does::Look),
            ("POST", "/containers/c1/wait?condition=next-exit", container, Does::Look),
            ("POST", "/containers/c1/resize?h=1&w=2", container, Does::Look),
            ("PUT", "/containers/c1/archive?path=/", container, Does::Act),
            ("POST", "/containers/c1/exec", container, Does::Act),
            ("POST", "/containers/c1/attach?stream=1", container, Does::TakeOver),
            ("GET", "/containers/c1/attach/ws", container, Does::TakeOver),
            ("POST", "/exec/e1/start", exec, Does::TakeOver),
            ("POST", "/exec/e1/resize?h=1&w=2", exec, Does::Look),
            ("GET", "/exec/e1/json", exec, Does::Look),
        ];
        for (method, path, subject, does) in table {
            assert_eq!(asked(&request(method, path)), Some(Asked { subject, does }), "{method} {path}");
        }
    }

    #[test]
    fn what_a_container_is_or_whether_it_runs_is_no_others_affair() {
        for (method, path) in [
            ("GET", "/containers/json"),
            ("POST", "/containers/create"),
            ("POST", "/containers/c1/start"),
            ("POST", "/containers/c1/stop"),
            ("POST", "/containers/c1/kill"),
            ("POST", "/containers/c1/update"),
            ("POST", "/containers/c1/json"),
            ("GET", "/containers/c1/attach"),
            ("GET", "/containers/c1/attach/json"),
            ("DELETE", "/containers/c1"),
            ("GET", "/images/c1/json"),
            ("GET", "/exec/e1/start"),
            ("POST", "/exec/e1"),
        ] {
            assert_eq!(asked(&request(method, path)), None, "{method} {path}");
        }
    }

    #[test]
    fn its_node_is_asked_for_the_container_by_its_identifier_in_the_clients_version() {
        let asked = request("GET", "/containers/web.1.x/top?ps_args=aux");
        assert_eq!(on_its_node(&asked, "c1").expect("a path"), "/containers/c1/top?ps_args=aux");
        let mut versioned = asked;
        versioned.extensions_mut().insert(crate::version::MAX);
        assert_eq!(on_its_node(&versioned, "c1").expect("a path"), "/v1.51/containers/c1/top?ps_args=aux");
        let nested = request("GET", "/containers/web.1/attach/ws");
        assert_eq!(on_its_node(&nested, "c1").expect("a path"), "/containers/c1/attach/ws");
        assert_eq!(on_its_node(&request("GET", "/exec/e1/json"), "c1").expect("a path"), "/exec/e1/json");
    }
}
