//! The API from the outside: bytes on a connection, with a made-up cluster behind it.

use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use rswarm_base::audit::Audit;
use rswarm_engine::EngineConfig;
use rswarm_proto::model::object::Stored as _;
use rswarm_proto::status::{NO_LEADER, REPLICA, USER};
use rswarm_proto::wire;
use rswarm_proto::wire::control_server::{Control, ControlServer};
use rswarm_proto::wire::logs_client::LogsClient;
use rswarm_proto::wire::task_containers_client::TaskContainersClient;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tonic::{Response as Reply, Status};

use super::*;
use crate::connection;
use crate::node::{ClusterError, ClusterInfo, InitRequest, JoinRequest, LocalState, RestoreRequest};

#[test]
fn the_table_of_statuses_is_dockers() {
    let table = [
        (Kind::InvalidArgument, 400),
        (Kind::FailedPrecondition, 400),
        (Kind::Unauthenticated, 401),
        (Kind::PermissionDenied, 403),
        (Kind::NotFound, 404),
        (Kind::Conflict, 409),
        (Kind::Internal, 500),
        (Kind::DeadlineExceeded, 500),
        (Kind::ResourceExhausted, 500),
        (Kind::NotImplemented, 501),
        (Kind::Unavailable, 503),
        (Kind::NotModified, 304),
    ];
    for (kind, code) in table {
        assert_eq!(status(kind).as_u16(), code, "{kind:?}");
    }
}

// ---- a made-up cluster ----------------------------------------------------------------------------------

/// A store of objects behind a real gRPC channel, and what was asked of it last.
#[derive(Clone, Default)]
struct FakeManager {
    objects: Arc<Mutex<Vec<wire::Object>>>,
    updates: Arc<Mutex<Vec<wire::UpdateServiceRequest>>>,
    /// Who asked for an update, as the managers are told.
    users: Arc<Mutex<Vec<String>>>,
    /// Whether it answers as a manager without a leader does.
    is_leaderless: bool,
}

impl FakeManager {
    fn put(&self, object: impl Into<wire::Object>) {
        self.objects.lock().expect("no panic").push(object.into());
    }

    fn read<T>(&self, answer: T) -> Reply<T> {
        let mut reply = Reply::new(answer);
        if self.is_leaderless {
            reply.metadata_mut().insert(REPLICA, "1".parse().expect("a value"));
        }
        reply
    }

    fn find(&self, request: &wire::GetRequest) -> Option<wire::Object> {
        let objects = self.objects.lock().expect("no panic");
        let name = |object: &wire::Object| match &object.object {
            Some(wire::object::Object::Service(service)) => service.name().to_owned(),
            Some(wire::object::Object::Network(network)) => network.name().to_owned(),
            Some(wire::object::Object::Secret(secret)) => secret.name().to_owned(),
            Some(wire::object::Object::Config(config)) => config.name().to_owned(),
            _ => String::new(),
        };
        let found = objects.iter().find(|object| {
            object.key().is_some_and(|(kind, id)| {
                i32::from(kind) == request.kind
                    && (id == request.reference || name(object) == request.reference)
            })
        });
        found.cloned()
    }
}

#[tonic::async_trait]
impl Control for FakeManager {
    async fn get(&self, request: tonic::Request<wire::GetRequest>) -> Result<Reply<wire::Object>, Status> {
        let found = self.find(request.get_ref());
        found.map(|found| self.read(found)).ok_or_else(|| Status::not_found("no such object"))
    }

    async fn list(
        &self,
        request: tonic::Request<wire::ListRequest>,
    ) -> Result<Reply<wire::ListResponse>, Status> {
        let wanted = request.get_ref().kind;
        let objects = self.objects.lock().expect("no panic").clone();
        let objects =
            objects.into_iter().filter(|o| o.key().is_some_and(|(kind, _)| i32::from(kind) == wanted));
        Ok(self.read(wire::ListResponse { objects: objects.collect() }))
    }

    async fn usage(
        &self,
        _: tonic::Request<wire::UsageRequest>,
    ) -> Result<Reply<wire::UsageResponse>, Status> {
        Ok(Reply::new(wire::UsageResponse::default()))
    }

    async fn create_service(
        &self,
        request: tonic::Request<wire::CreateServiceRequest>,
    ) -> Result<Reply<wire::Service>, Status> {
        let service = wire::Service {
            id: "service1".into(),
            meta: Some(wire::Meta { version: 7, ..wire::Meta::default() }),
            spec: request.into_inner().spec,
            ..wire::Service::default()
        };
        let name = service.name().to_owned();
        if self.find(&wire::GetRequest { kind: wire::ObjectKind::Service.into(), reference: name }).is_some()
        {
            return Err(Status::already_exists(
                "name conflicts with an existing object: service web already exists",
            ));
        }
        self.put(service.clone());
        Ok(Reply::new(service))
    }

    async fn update_service(
        &self,
        request: tonic::Request<wire::UpdateServiceRequest>,
    ) -> Result<Reply<wire::Service>, Status> {
        let user = request.metadata().get(USER).map(|user| user.to_str().expect("text").to_owned());
        self.users.lock().expect("no panic").extend(user);
        if self.is_leaderless {
            return Err(Status::unavailable(NO_LEADER));
        }
        let request = request.into_inner();
        if request.version != 7 {
            return Err(Status::failed_precondition("update out of sequence"));
        }
        self.updates.lock().expect("no panic").push(request);
        Ok(Reply::new(wire::Service::default()))
    }

    async fn forecast_service(
        &self,
        request: tonic::Request<wire::ForecastServiceRequest>,
    ) -> Result<Reply<wire::Forecast>, Status> {
        let task = wire::ForecastTask {
            name: "web.1".into(),
            starts: true,
            to_node: "node1".into(),
            ..wire::ForecastTask::default()
        };
        let service = match request.into_inner().request {
            Some(wire::forecast_service_request::Request::Create(request)) => {
                wire::Service { spec: request.spec, ..wire::Service::default() }
            }
            _ => return Err(Status::failed_precondition("update out of sequence")),
        };
        Ok(Reply::new(wire::Forecast {
            service: Some(service),
            tasks: vec![task],
            unchanged: 2,
            complete: true,
        }))
    }

    async fn create_network(
        &self,
        request: tonic::Request<wire::CreateNetworkRequest>,
    ) -> Result<Reply<wire::Network>, Status> {
        let network = wire::Network {
            id: "network1".into(),
            spec: request.into_inner().spec,
            ..wire::Network::default()
        };
        self.put(network.clone());
        Ok(Reply::new(network))
    }

    async fn remove_service(
        &self,
        _: tonic::Request<wire::RemoveRequest>,
    ) -> Result<Reply<wire::RemoveResponse>, Status> {
        Ok(Reply::new(wire::RemoveResponse {}))
    }

    async fn remove_network(
        &self,
        _: tonic::Request<wire::RemoveRequest>,
    ) -> Result<Reply<wire::RemoveResponse>, Status> {
        Ok(Reply::new(wire::RemoveResponse {}))
    }

    async fn update_node(
        &self,
        _: tonic::Request<wire::UpdateNodeRequest>,
    ) -> Result<Reply<wire::Node>, Status> {
        Ok(Reply::new(wire::Node::default()))
    }

    async fn remove_node(
        &self,
        _: tonic::Request<wire::RemoveRequest>,
    ) -> Result<Reply<wire::RemoveResponse>, Status> {
        Ok(Reply::new(wire::RemoveResponse {}))
    }

    async fn update_cluster(
        &self,
        _: tonic::Request<wire::UpdateClusterRequest>,
    ) -> Result<Reply<wire::Cluster>, Status> {
        Ok(Reply::new(wire::Cluster::default()))
    }

    async fn create_secret(
        &self,
        request: tonic::Request<wire::CreateSecretRequest>,
    ) -> Result<Reply<wire::Secret>, Status> {
        let meta = Some(wire::Meta { version: 7, ..wire::Meta::default() });
        let secret = wire::Secret {
            id: "secret1".into(),
            meta,
            spec: request.into_inner().spec,
            ..wire::Secret::default()
        };
        self.put(secret.clone());
        Ok(Reply::new(secret))
    }

    async fn update_secret(
        &self,
        request: tonic::Request<wire::UpdateSecretRequest>,
    ) -> Result<Reply<wire::Secret>, Status> {
        match request.into_inner().version {
            7 => Ok(Reply::new(wire::Secret::default())),
            _ => Err(Status::failed_precondition("update out of sequence")),
        }
    }

    async fn remove_secret(
        &self,
        request: tonic::Request<wire::RemoveRequest>,
    ) -> Result<Reply<wire::RemoveResponse>, Status> {
        match request.into_inner().id.as_str() {
            "secret1" => Ok(Reply::new(wire::RemoveResponse {})),
            _ => Err(Status::invalid_argument("secret 'key' is in use by the following service: web")),
        }
    }

    async fn create_config(
        &self,
        request: tonic::Request<wire::CreateConfigRequest>,
    ) -> Result<Reply<wire::Config>, Status> {
        let config =
            wire::Config { id: "config1".into(), spec: request.into_inner().spec, ..wire::Config::default() };
        self.put(config.clone());
        Ok(Reply::new(config))
    }

    async fn update_config(
        &self,
        _: tonic::Request<wire::UpdateConfigRequest>,
    ) -> Result<Reply<wire::Config>, Status> {
        Ok(Reply::new(wire::Config::default()))
    }

    async fn remove_config(
        &self,
        _: tonic::Request<wire::RemoveRequest>,
    ) -> Result<Reply<wire::RemoveResponse>, Status> {
        Ok(Reply::new(wire::RemoveResponse {}))
    }

    async fn get_unlock_key(
        &self,
        _: tonic::Request<wire::UnlockKeyRequest>,
    ) -> Result<Reply<wire::UnlockKeyResponse>, Status> {
        Ok(Reply::new(wire::UnlockKeyResponse { key: vec![0; 32] }))
    }

    async fn leave_manager(
        &self,
        _: tonic::Request<wire::LeaveManagerRequest>,
    ) -> Result<Reply<wire::RemoveResponse>, Status> {
        Ok(Reply::new(wire::RemoveResponse {}))
    }
}

/// A node that is a manager when there is a channel, else outside any cluster.
struct FakeNode {
    control: Option<Channel>,
    audit: Audit,
    inits: Mutex<Vec<InitRequest>>,
}

#[async_trait]
impl ClusterNode for FakeNode {
    fn info(&self) -> ClusterInfo {
        let is_manager = self.control.is_some();
        ClusterInfo {
            state: if is_manager { LocalState::Active } else { LocalState::Inactive },
            control_available: is_manager,
            node_id: if is_manager { "node1".into() } else { String::new() },
            ..ClusterInfo::default()
        }
    }

    async fn init(&self, request: InitRequest) -> Result<String, ClusterError> {
        if self.control.is_some() {
            return Err(ClusterError::already_in_cluster());
        }
        self.inits.lock().expect("no panic").push(request);
        Ok("node1".into())
    }

    async fn join(&self, _: JoinRequest) -> Result<(), ClusterError> {
        Ok(())
    }

    async fn leave(&self, force: bool) -> Result<(), ClusterError> {
        if force {
            Ok(())
        } else {
            Err(ClusterError::new(Kind::Unavailable, "You are attempting to leave").hint("use --force"))
        }
    }

    async fn unlock(&self, key: String) -> Result<(), ClusterError> {
        if self.control.is_none() {
            return Err(ClusterError::not_in_cluster());
        }
        if key == "SWMKEY-1-locked" { Ok(()) } else { Err(ClusterError::not_locked()) }
    }

    async fn backup(&self) -> Result<Bytes, ClusterError> {
        self.control().await.map(|_| Bytes::from_static(b"the state"))
    }

    async fn restore(&self, request: RestoreRequest) -> Result<String, ClusterError> {
        if self.control.is_some() {
            return Err(ClusterError::already_in_cluster());
        }
        Ok(format!("{}@{}", String::from_utf8_lossy(&request.backup), request.advertise_addr))
    }

    fn audit(&self) -> &Audit {
        &self.audit
    }

    async fn control(&self) -> Result<Channel, ClusterError> {
        self.control.clone().ok_or_else(|| ClusterError::no_control(self.info().state))
    }

    async fn logs(&self) -> Result<LogsClient<Channel>, ClusterError> {
        Err(ClusterError::no_control(self.info().state))
    }

    async fn containers(&self, _: &str, _: &str) -> Result<TaskContainersClient<Channel>, ClusterError> {
        Err(ClusterError::not_a_manager())
    }
}

struct Host {
    gate: Gate,
    node: Arc<FakeNode>,
    scope: Scope,
    _dir: tempfile::TempDir,
}

impl Host {
    async fn start(manager: Option<FakeManager>) -> Host {
        let scope = Scope::root("test");
        let dir = tempfile::tempdir().expect("directory");
        let config = EngineConfig {
            default_bridge: false,
            ..EngineConfig::new(
                dir.path().join("data"),
                dir.path().join("run"),
                "0badcafe".into(),
                "/bin/false".into(),
            )
        };
        let engine = Engine::open(config, scope.child("engine")).await.expect("engine");
        let control = match manager {
            Some(manager) => Some(connect(manager, &scope).await),
            None => None,
        };
        let audit = Audit::open(&dir.path().join("audit")).expect("opened");
        let node = Arc::new(FakeNode { control, audit, inits: Mutex::default() });
        let gate = Gate::new(App { engine, cluster: node.clone(), scope: scope.clone() });
        Host { gate, node, scope, _dir: dir }
    }

    fn connect(&self) -> DuplexStream {
        let (client, server) = tokio::io::duplex(1 << 20);
        self.scope.spawn(connection::serve(server, self.gate.clone(), self.scope.clone()));
        client
    }

    /// The whole answer to raw bytes, read until the server closes.
    async fn raw(&self, request: &str) -> String {
        let mut client = self.connect();
        client.write_all(request.as_bytes()).await.expect("write");
        client.shutdown().await.expect("half-close");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("read");
        answer
    }

    /// Status and JSON body of one request.
    async fn call(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        let content_type = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n{content_type}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = self.raw(&request).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head[9..12].parse().expect("status");
        (status, serde_json::from_str(body).unwrap_or_else(|_| Value::String(body.to_owned())))
    }

    async fn check(&self, method: &str, path: &str, body: Option<Value>, status: u16, message: &str) {
        let (found, answer) = self.call(method, path, body).await;
        assert_eq!(found, status, "{method} {path}: {answer}");
        assert_eq!(answer["message"], message, "{method} {path}");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.scope.cancel();
    }
}

async fn connect(manager: FakeManager, scope: &Scope) -> Channel {
    let (client, server) = tokio::io::duplex(1 << 20);
    scope.spawn(async move {
        let incoming = tokio_stream::once(Ok::<_, std::io::Error>(server));
        let server = tonic::transport::Server::builder().add_service(ControlServer::new(manager));
        server.serve_with_incoming(incoming).await.expect("served");
    });
    let mut client = Some(hyper_util::rt::TokioIo::new(client));
    let connector = tower::service_fn(move |_: Uri| {
        let client = client.take().ok_or_else(|| std::io::Error::other("connected once"));
        async move { client }
    });
    let endpoint = tonic::transport::Endpoint::from_static("http://manager");
    endpoint.connect_with_connector(connector).await.expect("channel")
}

// ---- who asks, and what an answer rests on ----------------------------------------------------------------

#[tokio::test]
async fn managers_are_told_for_whom_they_work_and_membership_is_written_down() {
    let manager = FakeManager::default();
    manager.put(wire::Service { id: "s1".into(), ..wire::Service::default() });
    let users = manager.users.clone();
    let host = Host::start(Some(manager)).await;
    let body = json!({ "Name": "web", "TaskTemplate": { "ContainerSpec": { "Image": "a" } } });
    assert_eq!(host.call("POST", "/services/s1/update?version=7", Some(body)).await.0, 200);
    assert_eq!(*users.lock().expect("no panic"), ["1000:1000:42"]);

    assert_eq!(host.call("POST", "/swarm/leave", None).await.0, 503);
    assert_eq!(host.call("POST", "/swarm/leave?force=1", None).await.0, 200);
    assert_eq!(host.call("POST", "/swarm/unlock", Some(json!({ "UnlockKey": "SWMKEY-1-x" }))).await.0, 409);
    let written = std::fs::read_to_string(host._dir.path().join("audit")).expect("an audit log");
    let lines: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let told: Vec<_> = lines.iter().map(|line| (line["call"].as_str(), line["outcome"].as_str())).collect();
    let (leave, unlock) = (Some("leave"), Some("unlock"));
    assert_eq!(told, [(leave, Some("Unavailable")), (leave, Some("ok")), (unlock, Some("AlreadyExists"))]);
    assert_eq!(lines[1]["user"], json!({ "uid": 1000, "gid": 1000, "pid": 42 }));
    assert_eq!((&lines[1]["id"], &lines[1]["detail"]), (&json!("node1"), &json!(["force"])));
    assert!(!written.contains("SWMKEY"), "the unlock key is in the audit log: {written}");
}

#[tokio::test]
async fn without_a_leader_reads_are_marked_and_writes_are_refused_as_dockerd_refuses_them() {
    let manager = FakeManager { is_leaderless: true, ..FakeManager::default() };
    manager.put(wire::Service { id: "s1".into(), ..wire::Service::default() });
    let host = Host::start(Some(manager)).await;
    let head = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n");
    for path in ["/services", "/services/s1", "/tasks", "/nodes"] {
        let answer = host.raw(&head(path)).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("rswarm-stale: 1"), "{path}: {answer}");
    }
    assert!(!host.raw(&head("/_ping")).await.contains("rswarm-stale"));
    let body = json!({ "Name": "web", "TaskTemplate": { "ContainerSpec": { "Image": "a" } } });
    host.check("POST", "/services/s1/update?version=7", Some(body), 500, NO_LEADER).await;
}

// ---- what every request goes through --------------------------------------------------------------------

#[tokio::test]
async fn every_answer_says_what_we_are_errors_too() {
    let host = Host::start(None).await;
    for path in ["/_ping", "/v1.24/_ping", "/nowhere", "/v1.99/info"] {
        let answer = host.raw(&format!("GET {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")).await;
        let head = answer.to_ascii_lowercase();
        for header in ["api-version: 1.51", "ostype: linux", "docker-experimental: false", "server: docker/"]
        {
            assert!(head.contains(header), "{path}: {header}: {answer}");
        }
    }
    let ping = host.raw("HEAD /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n").await;
    let ping = ping.to_ascii_lowercase();
    assert!(
        ping.starts_with("http/1.1 200") && ping.contains("swarm: inactive") && ping.ends_with("\r\n\r\n")
    );
}

#[tokio::test]
async fn unknown_paths_and_wrong_methods_are_not_found_and_versions_are_checked() {
    let host = Host::start(None).await;
    host.check("GET", "/nowhere", None, 404, "page not found").await;
    host.check("DELETE", "/v1.47/version", None, 404, "page not found").await;
    host.check("PATCH", "/images/json", None, 404, "page not found").await;
    let new = "client version 1.99 is too new. Maximum supported API version is 1.51";
    host.check("GET", "/v1.99/info", None, 400, new).await;
    let old = "client version 1.12 is too old. Minimum supported API version is 1.24, please upgrade your client to a newer version";
    // As text: a client that old would show JSON as it is.
    assert_eq!(host.call("GET", "/v1.12/info", None).await, (400, Value::String(format!("{old}\n"))));
    assert_eq!(host.call("OPTIONS", "/anything", None).await.0, 200);
}

#[tokio::test]
async fn a_container_needs_a_configuration_and_attaching_is_refused_in_text() {
    let host = Host::start(None).await;
    let create = "/containers/create";
    let empty = "config cannot be empty in order to create a container";
    host.check("POST", create, Some(serde_json::json!({})), 400, empty).await;
    host.check("POST", create, Some(serde_json::json!({"HostConfig": {}})), 400, empty).await;
    host.check("POST", create, Some(serde_json::json!({"Image": ""})), 400, "no command specified").await;
    let nothing = "invalid JSON: got EOF while reading request body";
    host.check("POST", create, None, 400, nothing).await;
    let refused = host.call("POST", "/containers/nope/attach?stream=1", None).await;
    assert_eq!(refused, (404, Value::String("No such container: nope\r\n".to_owned())));
}

#[tokio::test]
async fn bodies_are_json_by_dockers_rules() {
    let host = Host::start(None).await;
    let post = |content_type: &str, body: &str| {
        format!(
            "POST /swarm/init HTTP/1.1\r\nHost: d\r\nConnection: close\r\n{content_type}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    let json = "Content-Type: application/json\r\n";
    for (content_type, body, text) in [
        (json, "{} {}", "unexpected content after JSON"),
        (json, "{\"ListenAddr\":", "invalid JSON: unexpected EOF"),
        (json, "{\"ListenAddr\":7}", "invalid JSON: invalid type"),
        (
            "Content-Type: text/plain\r\n",
            "{}",
            "unsupported Content-Type header (text/plain): must be 'application/json'",
        ),
    ] {
        let answer = host.raw(&post(content_type, body)).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains(text), "{body}: {answer}");
    }
}

#[tokio::test]
async fn a_connection_is_kept_for_the_next_request_even_when_a_body_was_not_read() {
    let host = Host::start(None).await;
    let body = "x".repeat(1000);
    let unread = format!("POST /nowhere HTTP/1.1\r\nHost: d\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let answer =
        host.raw(&format!("{unread}GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 404") && answer.ends_with("OK"), "{answer}");
}

#[tokio::test]
async fn a_taken_connection_carries_raw_bytes_with_and_without_an_upgrade() {
    use axum::routing::post;
    async fn echo(hijacker: connection::Hijacker, _body: Bytes) -> Response {
        hijacker
            .take(|mut raw| async move {
                crate::attach::accept(&mut raw, crate::stream::MULTIPLEXED).await.expect("head").await;
                let mut rest = raw.early.to_vec();
                raw.socket.read_to_end(&mut rest).await.expect("read");
                raw.socket.write_all(&rest).await.expect("write");
                raw.socket.shutdown().await.expect("close");
            })
            .await
    }
    let mut host = Host::start(None).await;
    host.gate = Gate { routes: Router::new().route("/echo", post(echo)), ..host.gate.clone() };
    for (upgrade, head) in [
        (
            "Connection: Upgrade\r\nUpgrade: tcp\r\n",
            "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\n",
        ),
        ("", "HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n"),
    ] {
        let request = format!(
            "POST /v1.47/echo HTTP/1.1\r\nHost: d\r\n{upgrade}Content-Length: 2\r\n\r\n{{}}early bytes"
        );
        let answer = host.raw(&request).await;
        assert!(answer.starts_with(head) && answer.ends_with("\r\n\r\nearly bytes"), "{answer}");
        assert!(answer.contains("api-version: 1.51"), "{answer}");
    }
}

const NOT_IN_CLUSTER: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to \
                              connect this node to swarm and try again.";

// ---- Swarm ----------------------------------------------------------------------------------------------

#[tokio::test]
async fn outside_a_cluster_every_swarm_path_says_how_to_get_into_one() {
    let host = Host::start(None).await;
    let text = NOT_IN_CLUSTER;
    for path in [
        "/swarm",
        "/services",
        "/nodes",
        "/tasks",
        "/secrets",
        "/configs",
        "/services/x",
        "/nodes/self",
        "/swarm/unlockkey",
    ] {
        host.check("GET", path, None, 503, text).await;
    }
    host.check("POST", "/services/create", Some(json!({"TaskTemplate": {}})), 503, text).await;
    host.check("POST", "/secrets/create", Some(json!({})), 503, text).await;
    host.check("POST", "/networks/create", Some(json!({"Name": "n", "Driver": "overlay"})), 503, text).await;
}

#[tokio::test]
async fn init_hands_on_what_was_asked_for_and_answers_with_the_nodes_id() {
    let host = Host::start(None).await;
    let body = json!({"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "eth0", "Availability": "drain",
        "DefaultAddrPool": ["10.20.0.0/16"], "SubnetSize": 26, "Spec": {"Dispatcher": {"HeartbeatPeriod": 2}}});
    assert_eq!(host.call("POST", "/swarm/init", Some(body)).await, (200, json!("node1")));
    let inits = host.node.inits.lock().expect("no panic");
    let request = inits.first().expect("asked");
    assert_eq!((request.advertise_addr.as_str(), request.subnet_size), ("eth0", 26));
    assert_eq!(request.availability, wire::NodeAvailability::Drain);
    assert_eq!((request.spec.heartbeat_period, request.spec.task_history_limit), (2, 5));
}

#[tokio::test]
async fn managers_are_locked_as_dockers_clients_ask_and_tell_their_key() {
    let host = Host::start(None).await;
    for body in
        [json!({"AutoLockManagers": true}), json!({"Spec": {"EncryptionConfig": {"AutoLockManagers": true}}})]
    {
        assert_eq!(host.call("POST", "/swarm/init", Some(body)).await.0, 200);
    }
    assert!(host.node.inits.lock().expect("no panic").iter().all(|request| request.spec.auto_lock));

    let manager = Host::start(Some(FakeManager::default())).await;
    let (status, answer) = manager.call("GET", "/swarm/unlockkey", None).await;
    assert_eq!((status, &answer["UnlockKey"]), (200, &json!(format!("SWMKEY-1-{}", "A".repeat(43)))));
    let key = |text: &str| Some(json!({ "UnlockKey": text }));
    manager.check("POST", "/swarm/unlock", key("SWMKEY-1-other"), 409, "swarm is not locked").await;
    assert_eq!(manager.call("POST", "/swarm/unlock", key("SWMKEY-1-locked")).await.0, 200);
}

#[tokio::test]
async fn a_backup_is_restored_outside_any_cluster_only() {
    let body = || Some(json!({}));
    let host = Host::start(None).await;
    let restored = host.call("POST", "/swarm/restore?advertiseAddr=eth1", body()).await;
    assert_eq!(restored, (200, json!("{}@eth1")));
    host.check("GET", "/swarm/backup", None, 503, NOT_IN_CLUSTER).await;
    let manager = Host::start(Some(FakeManager::default())).await;
    let already = "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join \
                   another one.";
    manager.check("POST", "/swarm/restore", body(), 503, already).await;
}

#[tokio::test]
async fn membership_calls_that_make_no_sense_are_refused() {
    let host = Host::start(None).await;
    let body = Some(json!({"DataPathPort": 80}));
    host.check("POST", "/swarm/init", body, 400, "invalid data path port 80: want 1024 to 49151").await;
    let body = Some(json!({"JoinToken": "x"}));
    host.check("POST", "/swarm/join", body, 400, "at least 1 RemoteAddr is required to join").await;
    let body = Some(json!({"Spec": {"TaskDefaults": {"LogDriver": {"Name": "x"}}}}));
    let text = "a log driver for all tasks (TaskDefaults.LogDriver) is not supported";
    host.check("POST", "/swarm/init", body, 501, text).await;
    let key = Some(json!({"UnlockKey": "SWMKEY-1-x"}));
    host.check("POST", "/swarm/unlock", key, 503, NOT_IN_CLUSTER).await;
    let (status, answer) = host.call("POST", "/swarm/leave", None).await;
    assert_eq!((status, &answer["hint"]), (503, &json!("use --force")));
    assert_eq!(host.call("POST", "/swarm/leave?force=1", None).await.0, 200);
}

#[tokio::test]
async fn secrets_and_configs_have_dockers_paths_and_statuses() {
    let manager = FakeManager::default();
    let host = Host::start(Some(manager.clone())).await;
    let body = json!({"Name": "key", "Labels": {"tier": "a"}, "Data": "aHVzaA=="});
    let created = host.call("POST", "/secrets/create", Some(body.clone())).await;
    assert_eq!(created, (201, json!({"ID": "secret1"})));
    let (_, shown) = host.call("GET", "/secrets/key", None).await;
    assert_eq!((&shown["ID"], &shown["Version"]), (&json!("secret1"), &json!({"Index": 7})));
    assert_eq!(shown["Spec"], json!({"Name": "key", "Labels": {"tier": "a"}}), "never the data");
    host.check("GET", "/secrets/other", None, 404, "secret other not found").await;
    host.check("POST", "/secrets/key/update", Some(body.clone()), 400, "invalid secret version").await;
    host.check("POST", "/secrets/key/update?version=6", Some(body.clone()), 400, "update out of sequence")
        .await;
    assert_eq!(host.call("POST", "/secrets/key/update?version=7", Some(body.clone())).await.0, 200);

    let put = |id: &str, name: &str| {
        let annotations = Some(wire::Annotations { name: name.into(), ..wire::Annotations::default() });
        let spec = Some(wire::ContentSpec { annotations, ..wire::ContentSpec::default() });
        manager.put(wire::Secret { id: id.into(), spec, ..wire::Secret::default() });
    };
    put("x9", "keyring");
    put("y9", "used");
    let names = async |filters: &str| {
        let filters = filters.replace('"', "%22").replace('{', "%7B").replace('}', "%7D");
        let (_, listed) = host.call("GET", &format!("/secrets?filters={filters}"), None).await;
        let names = listed.as_array().expect("a list").iter().map(|row| row["Spec"]["Name"].clone());
        names.map(|name| name.as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(r#"{"name":["key"]}"#).await, ["key", "keyring"]);
    assert_eq!(names(r#"{"names":["key"],"id":["y"]}"#).await, ["key", "used"], "either of them");
    assert_eq!(names(r#"{"label":["tier=a"]}"#).await, ["key"]);
    let in_use = "secret 'key' is in use by the following service: web";
    host.check("DELETE", "/secrets/used", None, 400, in_use).await;
    assert_eq!(host.call("DELETE", "/secrets/key", None).await.0, 204);

    assert_eq!(host.call("POST", "/configs/create", Some(body)).await, (201, json!({"ID": "config1"})));
    let (_, shown) = host.call("GET", "/configs/config1", None).await;
    assert_eq!(shown["Spec"]["Data"], "aHVzaA==");
    assert_eq!(host.call("DELETE", "/configs/key", None).await.0, 204);
}

#[tokio::test]
async fn a_service_is_created_shown_updated_and_its_names_are_unique() {
    let manager = FakeManager::default();
    manager.put(wire::Network {
        id: "network9".into(),
        spec: Some(wire::NetworkSpec {
            annotations: Some(wire::Annotations { name: "front".into(), ..wire::Annotations::default() }),
            ..wire::NetworkSpec::default()
        }),
        ..wire::Network::default()
    });
    let host = Host::start(Some(manager.clone())).await;
    let spec = json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "web:1"}, "Networks": [{"Target": "front"}]},
        "Mode": {"Replicated": {"Replicas": 2}}});
    let created = host.call("POST", "/v1.47/services/create", Some(spec.clone())).await;
    assert_eq!(created, (201, json!({"ID": "service1", "Warnings": null})));
    let (_, shown) = host.call("GET", "/services/web", None).await;
    assert_eq!(shown["Version"], json!({"Index": 7}));
    assert_eq!(shown["Spec"]["TaskTemplate"]["Networks"][0]["Target"], "network9");
    let conflict = "name conflicts with an existing object: service web already exists";
    host.check("POST", "/services/create", Some(spec.clone()), 409, conflict).await;
    host.check("GET", "/services/nothing", None, 404, "service nothing not found").await;

    host.check("POST", "/services/web/update?version=6", Some(spec.clone()), 400, "update out of sequence")
        .await;
    host.check(
        "POST",
        "/services/web/update",
        Some(spec.clone()),
        400,
        "invalid service version '': strconv.ParseUint: parsing \"\": invalid syntax",
    )
    .await;
    let path = "/services/web/update?version=7&rollback=previous&registryAuthFrom=previous-spec";
    assert_eq!(host.call("POST", path, Some(spec)).await, (200, json!({"Warnings": null})));
    let updates = manager.updates.lock().expect("no panic");
    let update = updates.first().expect("updated");
    assert_eq!(
        (update.id.as_str(), update.rollback),
        ("service1", wire::update_service_request::Rollback::Previous.into())
    );
    assert!(update.registry_auth_from_previous && update.spec.is_none());
}

#[tokio::test]
async fn lists_are_filtered_and_count_running_tasks_when_asked() {
    let manager = FakeManager::default();
    for (id, name) in [("service1", "web"), ("service2", "db")] {
        manager.put(wire::Service {
            id: id.into(),
            spec: Some(wire::ServiceSpec {
                annotations: Some(wire::Annotations { name: name.into(), ..wire::Annotations::default() }),
                ..wire::ServiceSpec::default()
            }),
            ..wire::Service::default()
        });
    }
    manager.put(wire::Node {
        id: "node1".into(),
        status: Some(wire::NodeStatus {
            state: wire::NodeState::ReadyNode.into(),
            ..wire::NodeStatus::default()
        }),
        ..wire::Node::default()
    });
    manager.put(wire::Task {
        id: "task1".into(),
        service_id: "service1".into(),
        node_id: "node1".into(),
        slot: 1,
        desired_state: wire::TaskState::Running.into(),
        status: Some(wire::TaskStatus {
            state: wire::TaskState::Running.into(),
            ..wire::TaskStatus::default()
        }),
        ..wire::Task::default()
    });
    let host = Host::start(Some(manager)).await;
    let (_, services) =
        host.call("GET", "/services?status=1&filters=%7B%22name%22%3A%5B%22we%22%5D%7D", None).await;
    assert_eq!(services.as_array().map(Vec::len), Some(1));
    assert_eq!(
        services[0]["ServiceStatus"],
        json!({"RunningTasks": 1, "DesiredTasks": 1, "CompletedTasks": 0})
    );
    let (_, tasks) = host
        .call(
            "GET",
            "/tasks?filters=%7B%22service%22%3A%7B%22web%22%3Atrue%7D%2C%22node%22%3A%5B%22self%22%5D%7D",
            None,
        )
        .await;
    assert_eq!(tasks[0]["ID"], "task1");
    let (_, tasks) = host.call("GET", "/tasks?filters=%7B%22service%22%3A%5B%22db%22%5D%7D", None).await;
    assert_eq!(tasks, json!([]));
    host.check("GET", "/tasks?filters=%7B%22x%22%3A%5B%5D%7D", None, 400, "invalid filter 'x'").await;
    let (_, networks) =
        host.call("POST", "/networks/create", Some(json!({"Name": "n", "Driver": "overlay"}))).await;
    assert_eq!(networks, json!({"Id": "network1", "Warning": ""}));
}
