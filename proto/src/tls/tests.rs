//! Certificates and channels between real ends.

use super::*;
use crate::token::{JoinToken, RootDigest};
use crate::wire::ca_client::CaClient;
use crate::wire::ca_server::{Ca, CaServer};
use crate::wire::{IssueRequest, IssueResponse, NodeRole, RenewRequest, RootRequest, RootResponse};
use rswarm_base::{Chain, Scope, Timestamp};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

fn authority() -> Authority {
    Authority::generate(Timestamp::now()).expect("root")
}

fn credentials(authority: &Authority, node_id: &str, role: NodeRole) -> Credentials {
    let key_pem = new_key().expect("key");
    let subject = Subject { node_id: node_id.to_owned(), role, cluster_id: "c".to_owned() };
    let csr = signing_request(&key_pem).expect("csr");
    let chain_pem = authority.issue(&csr, &subject, CERTIFICATE_LIFETIME, Timestamp::now()).expect("issued");
    Credentials { key_pem, chain_pem, root_pem: authority.certificate_pem().to_owned() }
}

fn identity(authority: &Authority, node_id: &str, role: NodeRole) -> Arc<Identity> {
    Identity::new(credentials(authority, node_id, role)).expect("identity")
}

/// Answers every `Root` with who asks.
struct WhoAmI;

#[tonic::async_trait]
impl Ca for WhoAmI {
    async fn root(&self, request: Request<RootRequest>) -> Result<Response<RootResponse>, Status> {
        let caller = peer(&request);
        assert!(caller.addr.is_some());
        let expired = if caller.expired { " expired" } else { "" };
        let text = format!("{} {:?} {}{expired}", caller.node_id, caller.role, caller.cluster_id);
        Ok(Response::new(RootResponse { certificate_pem: text }))
    }

    async fn issue(&self, _: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }

    async fn renew(&self, _: Request<RenewRequest>) -> Result<Response<IssueResponse>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

struct Server {
    addr: String,
    scope: Scope,
    services: watch::Sender<Routes>,
}

async fn server(identity: &Arc<Identity>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let addr = listener.local_addr().expect("address").to_string();
    let (scope, identity) = (Scope::root("server"), identity.clone());
    let (services, routes) = watch::channel(Routes::new(CaServer::new(WhoAmI)));
    let serving = scope.clone();
    scope.spawn(async move { serve(listener, identity, routes, &serving).await.expect("served") });
    Server { addr, scope, services }
}

async fn ask(channel: tonic::transport::Channel) -> Result<String, Status> {
    Ok(CaClient::new(channel).root(RootRequest {}).await?.into_inner().certificate_pem)
}

#[tokio::test]
async fn a_server_knows_its_caller_and_a_caller_its_server() {
    let root = authority();
    let (manager, worker) =
        (identity(&root, "m1", NodeRole::Manager), identity(&root, "w1", NodeRole::Worker));
    let server = server(&manager).await;
    let channel = connect(&server.addr, &worker).await.expect("connected");
    assert_eq!(ask(channel).await.expect("answer"), "w1 Some(Worker) c");
    let channel = connect_node(&server.addr, "m1", &manager).await.expect("connected");
    assert_eq!(ask(channel).await.expect("answer"), "m1 Some(Manager) c");
    let error = connect_node(&server.addr, "m2", &worker).await.expect_err("another node answers");
    assert!(Chain(&error).to_string().contains(&format!("cannot connect to `{}`", server.addr)));
    server.scope.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn an_expired_node_is_let_in_to_renew_but_not_for_ever() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let root = authority();
    let server = server(&identity(&root, "m1", NodeRole::Manager)).await;
    let issued_before = |age: Duration| {
        let key_pem = new_key().expect("key");
        let subject = Subject { node_id: "w1".into(), role: NodeRole::Worker, cluster_id: "c".into() };
        let csr = signing_request(&key_pem).expect("csr");
        let then = Timestamp(Timestamp::wall().0 - i64::try_from(age.as_nanos()).expect("days"));
        let chain_pem = root.issue(&csr, &subject, CERTIFICATE_LIFETIME, then).expect("issued");
        let root_pem = root.certificate_pem().to_owned();
        Identity::new(Credentials { key_pem, chain_pem, root_pem }).expect("identity")
    };
    let (fresh, expired, ancient) = (issued_before(DAY), issued_before(100 * DAY), issued_before(200 * DAY));
    assert_eq!((fresh.is_expired(), expired.is_expired()), (false, true));
    let answer = async |identity| ask(connect(&server.addr, identity).await.ok()?).await.ok();
    assert_eq!(answer(&fresh).await.as_deref(), Some("w1 Some(Worker) c"));
    assert_eq!(answer(&expired).await.as_deref(), Some("w1 Some(Worker) c expired"));
    assert_eq!(answer(&ancient).await, None);
    server.scope.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_worker_does_not_pass_for_a_manager() {
    let root = authority();
    let worker = identity(&root, "w1", NodeRole::Worker);
    let server = server(&worker).await;
    connect(&server.addr, &worker).await.expect_err("no manager");
    connect_node(&server.addr, "w1", &worker).await.expect("it is that worker");
    let error = connect_pinned(&server.addr, root.digest()).await.expect_err("no manager");
    assert!(Chain(&error).to_string().contains("it is a worker"), "{}", Chain(&error));
    server.scope.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_joiner_talks_only_to_the_cluster_of_its_token() {
    let root = authority();
    let server = server(&identity(&root, "m1", NodeRole::Manager)).await;
    let channel = connect_pinned(&server.addr, root.digest()).await.expect("connected");
    assert_eq!(ask(channel).await.expect("answer"), " None ");
    let error = connect_pinned(&server.addr, RootDigest([7; 32])).await.expect_err("another root");
    assert!(Chain(&error).to_string().contains("remote CA does not match fingerprint"), "{}", Chain(&error));
    server.scope.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn certificates_and_roots_change_under_a_running_server() {
    let (old, new) = (authority(), authority());
    let (manager, worker) = (identity(&old, "m1", NodeRole::Manager), identity(&old, "w1", NodeRole::Worker));
    let server = server(&manager).await;
    let before = connect(&server.addr, &worker).await.expect("connected");
    assert_eq!(ask(before.clone()).await.expect("answer"), "w1 Some(Worker) c");

    let stranger = identity(&new, "w1", NodeRole::Worker);
    stranger.set_roots(&format!("{}{}", old.certificate_pem(), new.certificate_pem())).expect("trust both");
    let refused = match connect(&server.addr, &stranger).await {
        Ok(channel) => ask(channel).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "a root that is not trusted yet");
    for identity in [&manager, &worker] {
        identity
            .set_roots(&format!("{}{}", old.certificate_pem(), new.certificate_pem()))
            .expect("trust both");
    }
    ask(connect(&server.addr, &stranger).await.expect("trusted now")).await.expect("answer");
    let mut promoted = credentials(&new, "w1", NodeRole::Manager);
    promoted.root_pem = worker.credentials().root_pem;
    worker.replace(promoted).expect("usable");
    let after = connect(&server.addr, &worker).await.expect("connected");
    assert_eq!(ask(after).await.expect("answer"), "w1 Some(Manager) c");
    ask(before).await.expect("an open connection stays open");
    server.scope.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_is_served_changes_on_an_open_connection() {
    let root = authority();
    let manager = identity(&root, "m1", NodeRole::Manager);
    let server = server(&manager).await;
    let channel = connect(&server.addr, &manager).await.expect("connected");
    ask(channel.clone()).await.expect("answer");
    server.services.send_replace(Routes::default());
    assert_eq!(ask(channel).await.expect_err("no longer served").code(), tonic::Code::Unimplemented);
    server.scope.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_caller_that_never_shakes_hands_holds_nobody_up() {
    let root = authority();
    let manager = identity(&root, "m1", NodeRole::Manager);
    let server = server(&manager).await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(&server.addr).await.expect("connected"));
    }
    let mut noise = TcpStream::connect(&server.addr).await.expect("connected");
    noise.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("written");
    let mut rest = Vec::new();
    // Whatever the answer, the connection ends.
    let _ = noise.read_to_end(&mut rest).await;
    ask(connect(&server.addr, &manager).await.expect("connected")).await.expect("answer");
    server.scope.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_server_that_stops_cuts_its_connections() {
    let root = authority();
    let manager = identity(&root, "m1", NodeRole::Manager);
    let server = server(&manager).await;
    let channel = connect(&server.addr, &manager).await.expect("connected");
    server.scope.shutdown(Duration::from_secs(5)).await;
    ask(channel).await.expect_err("nobody there");
}

#[test]
fn an_identity_is_saved_whole_and_its_key_is_private() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("certificates");
    assert!(Identity::load(&path).expect("nothing there is fine").is_none());
    let saved = identity(&authority(), "n1", NodeRole::Worker);
    saved.save(&path, None).expect("saved");
    let mode = std::fs::metadata(path.join("swarm-node.key")).expect("key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let loaded = Identity::load(&path).expect("readable").expect("there");
    assert_eq!(loaded.credentials(), saved.credentials());
    assert_eq!(loaded.subject().node_id, "n1");
    // A join that was interrupted before its certificate came is no join.
    std::fs::remove_file(path.join("swarm-node.crt")).expect("removed");
    assert!(Identity::load(&path).expect("fine").is_none());
}

#[test]
fn a_locked_identity_needs_its_key_and_leaves_none_on_disk() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (key, other) = (UnlockKey::generate(), UnlockKey::generate());
    let saved = identity(&authority(), "m1", NodeRole::Manager);
    saved.save(dir.path(), None).expect("saved");
    saved.save(dir.path(), Some(&key)).expect("locked");
    for file in std::fs::read_dir(dir.path()).expect("listed") {
        let text = std::fs::read_to_string(file.expect("entry").path()).expect("readable");
        assert!(!text.contains("PRIVATE KEY"), "{text}");
    }
    assert!(matches!(Identity::load(dir.path()), Err(IdentityError::Locked)));
    assert!(matches!(Identity::unlock(dir.path(), &other), Err(IdentityError::WrongKey)));
    let opened = Identity::unlock(dir.path(), &key).expect("unlocked").expect("there");
    assert_eq!(opened.credentials(), saved.credentials());
    opened.save(dir.path(), None).expect("unlocked for good");
    assert!(Identity::load(dir.path()).expect("readable").is_some());
}

/// A node of each kind at each step of a rotation talks to every other.
#[tokio::test]
async fn nodes_at_every_step_of_a_rotation_trust_one_another() {
    let (old, new) = (authority(), authority());
    let bundle = format!("{}{}", old.certificate_pem(), new.certificate_pem());
    let before = identity(&old, "m1", NodeRole::Manager);
    let told = identity(&old, "m2", NodeRole::Manager);
    told.set_roots(&bundle).expect("trust both");
    let crossed = old.cross_sign(new.certificate_pem()).expect("cross-signed");
    let mut renewed = credentials(&new, "m3", NodeRole::Manager);
    renewed.chain_pem.push_str(&crossed);
    renewed.root_pem = bundle;
    let renewed = Identity::new(renewed).expect("usable");
    assert!(before.is_by_latest_root() && !told.is_by_latest_root() && renewed.is_by_latest_root());
    let issuer = issuer_info(new.certificate_pem()).expect("a certificate");
    let shown = renewed.tls_info();
    assert_eq!((shown.issuer_subject, shown.issuer_public_key), issuer);
    for manager in [&before, &told, &renewed] {
        let server = server(manager).await;
        for client in [&before, &told, &renewed] {
            let channel = connect(&server.addr, client).await.expect("connected");
            ask(channel).await.expect("answer");
        }
        server.scope.shutdown(Duration::from_secs(5)).await;
    }
    // Once it is over, the old root is worth nothing.
    renewed.set_roots(new.certificate_pem()).expect("the new one alone");
    assert!(renewed.is_by_latest_root());
    let server = server(&renewed).await;
    let refused = match connect(&server.addr, &told).await {
        Ok(channel) => ask(channel).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "a certificate by the old root");
    server.scope.shutdown(Duration::from_secs(5)).await;
}

#[test]
fn parts_that_do_not_belong_together_are_refused_by_name() {
    let root = authority();
    let good = credentials(&root, "n1", NodeRole::Worker);
    let refused = |credentials: Credentials| Identity::new(credentials).expect_err("refused").to_string();
    let other_key = Credentials { key_pem: new_key().expect("key"), ..good.clone() };
    assert_eq!(refused(other_key), "node key and certificate do not belong together");
    let no_root = Credentials { root_pem: String::new(), ..good.clone() };
    assert_eq!(refused(no_root), "root certificate is empty");
    let no_node = Credentials { chain_pem: root.certificate_pem().to_owned(), ..good };
    assert_eq!(refused(no_node), "node certificate names no node, role and cluster");
}

#[test]
fn certificates_last_ninety_days_and_are_renewed_in_the_second_half() {
    let identity = identity(&authority(), "n1", NodeRole::Worker);
    let (begin, end) = identity.validity();
    let day = 24 * 3600;
    assert_eq!(end.since(begin).as_secs(), 90 * day + 3600);
    assert!(begin < Timestamp::now(), "backdated for nodes whose clock is behind");
    let share =
        |fraction| identity.renew_at(fraction).since(begin).as_secs_f64() / end.since(begin).as_secs_f64();
    assert!((share(0.0) - 0.5).abs() < 0.001 && (share(1.0) - 0.8).abs() < 0.001);
}

#[tokio::test]
async fn a_mistyped_address_is_named() {
    let token = JoinToken::generate(RootDigest([1; 32]));
    let enrollment = Enrollment { hostname: "n".to_owned(), availability: Default::default() };
    let error = join("127.0.0.1:1", &token, enrollment).await.expect_err("nobody there");
    assert!(Chain(&error).to_string().starts_with("cannot connect to `127.0.0.1:1`: "), "{}", Chain(&error));
}
