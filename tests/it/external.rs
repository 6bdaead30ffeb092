//! A root whose key no manager has: a signer on another host speaks CFSSL's protocol and says who is a node.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rswarm_base::{Scope, Timestamp};
use rswarm_proto::tls::{Authority, Credentials, Identity, Subject, new_key, signing_request};
use rswarm_proto::wire::NodeRole;
use rswarm_tests::harness::{Lab, eventually};
use rswarm_tests::host::Host;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use crate::support::inside;

const PATIENCE: Duration = Duration::from_secs(60);
const LIFETIME: Duration = Duration::from_secs(3600);
/// A certificate of an hour that began so long ago is to be renewed at once.
const OLD: Duration = Duration::from_secs(55 * 60);
const PORT: u16 = 8888;

/// The authority, and what it has signed: it stays when its signer goes.
struct Desk {
    authority: Authority,
    signed: Mutex<Vec<(Subject, String)>>,
}

/// Answers until it is dropped.
struct Signer(Option<Runtime>);

impl Signer {
    /// On a host, for managers whose certificates are by `trusted` or by the authority itself.
    fn start(host: &Host, desk: &Arc<Desk>, trusted: &str) -> Result<Signer> {
        let address = SocketAddr::from((host.address, PORT));
        let netns = Path::new("/run/netns").join(&host.netns);
        let listener = inside(&netns, || Ok(std::net::TcpListener::bind(address)?))?;
        listener.set_nonblocking(true)?;
        let acceptor = desk.acceptor(&host.address.to_string(), trusted)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let entered = runtime.enter();
        let (listener, desk, scope) = (TcpListener::from_std(listener)?, desk.clone(), Scope::root("signer"));
        let connections = scope.clone();
        scope.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, desk) = (acceptor.clone(), desk.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
                    let caller = shown.and_then(Subject::of);
                    let answer = service_fn(|request| desk.answer(caller.clone(), request));
                    // Whoever hangs up has what it came for, or tries again.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer)
                        .await;
                });
            }
        });
        drop(entered);
        Ok(Signer(Some(runtime)))
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_timeout(PATIENCE);
        }
    }
}

impl Desk {
    fn acceptor(&self, address: &str, trusted: &str) -> Result<TlsAcceptor> {
        let subject =
            Subject { node_id: address.to_owned(), role: NodeRole::Manager, cluster_id: "ca".to_owned() };
        let key_pem = new_key()?;
        let csr = signing_request(&key_pem)?;
        let chain_pem = self.authority.issue(&csr, &subject, LIFETIME, Timestamp::wall())?;
        let root_pem = format!("{}{trusted}", self.authority.certificate_pem());
        let own = Identity::new(Credentials { key_pem, chain_pem, root_pem })?;
        let mut config = own.server_config().as_ref().clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    async fn answer(
        &self,
        caller: Option<Subject>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, hyper::Error> {
        let asked = request.into_body().collect().await?.to_bytes();
        let answer = match self.sign(caller, &asked) {
            Ok(certificate) => json!({ "success": true, "result": { "certificate": certificate } }),
            Err(error) => {
                json!({ "success": false, "errors": [{ "code": 1, "message": format!("{error:#}") }] })
            }
        };
        Ok(Response::new(Full::new(answer.to_string().into())))
    }

    /// What was asked for, if a manager asks; the first certificate of each worker is an old one.
    fn sign(&self, caller: Option<Subject>, asked: &[u8]) -> Result<String> {
        ensure!(caller.is_some_and(|caller| caller.role == NodeRole::Manager), "only managers may ask");
        let asked: Value = serde_json::from_slice(asked)?;
        let text = |pointer: &str| -> Result<&str> {
            asked.pointer(pointer).and_then(Value::as_str).with_context(|| format!("{pointer}: {asked}"))
        };
        let role = match text("/subject/names/0/OU")? {
            "swarm-manager" => NodeRole::Manager,
            _ => NodeRole::Worker,
        };
        let subject = Subject {
            node_id: text("/subject/CN")?.to_owned(),
            role,
            cluster_id: text("/subject/names/0/O")?.to_owned(),
        };
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = role == NodeRole::Worker && !signed.iter().any(|(other, _)| *other == subject);
        let now = Timestamp::wall();
        let begin = if is_first { Timestamp(now.0 - i64::try_from(OLD.as_nanos())?) } else { now };
        let certificate = self.authority.issue(text("/certificate_request")?, &subject, LIFETIME, begin)?;
        signed.push((subject, certificate.clone()));
        Ok(certificate)
    }

    /// The certificates of a node, in the order in which they were signed.
    fn signed_for(&self, node: &str) -> Vec<String> {
        let signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        let of_node = signed.iter().filter(|(subject, _)| subject.node_id == node);
        of_node.map(|(_, certificate)| certificate.clone()).collect()
    }
}

#[test]
fn nodes_join_and_renew_by_a_signer_elsewhere_and_a_signer_that_is_gone_changes_nothing() -> Result<()> {
    let mut lab = Lab::start(3)?;
    let [first, second, third] = &lab.hosts[..] else { unreachable!("three hosts") };
    first.rswarm(&["init", "--advertise-addr", &first.address.to_string()])?;
    let desk =
        Arc::new(Desk { authority: Authority::generate(Timestamp::wall())?, signed: Mutex::default() });
    let file = lab.dir.join("root.pem").to_string_lossy().into_owned();
    std::fs::write(&file, desk.authority.certificate_pem())?;
    let external =
        format!("protocol=cfssl,url=https://{}:{PORT}/api/v1/cfssl/sign,cacert={file}", third.address);
    let rotate = ["swarm", "ca", "--rotate", "--quiet", "--ca-cert", &file, "--external-ca", &external];

    let before = trust(first)?;
    let refused = first.refusal(&rotate)?;
    let wanted = "at least one valid, reachable external CA corresponding to the desired CA certificate";
    ensure!(refused.contains(wanted) && refused.contains("Connection refused"), "{refused}");
    ensure!(trust(first)? == before, "a signer that is not there changed the cluster");

    let signer = Signer::start(third, &desk, &before.1)?;
    first.docker(&rotate)?;
    ensure!(trust(first)? == (false, desk.authority.certificate_pem().to_owned()), "{:?}", trust(first)?);
    ensure!(!desk.signed_for(&node_id(first)?).is_empty(), "the manager's certificate is not the signer's");

    join(second, first, "worker")?;
    let worker = node_id(second)?;
    eventually(PATIENCE, "the worker has renewed what was old when it came", || {
        let signed = desk.signed_for(&worker);
        let on_disk = certificates(second)?;
        Ok(signed.len() == 2 && on_disk.contains(&flat(&signed[1])) && !on_disk.contains(&flat(&signed[0])))
    })?;
    are_ready(first, 2)?;

    drop(signer);
    let refused = join(third, first, "manager").expect_err("nobody signs").to_string();
    ensure!(
        refused.contains("no external CA signed the certificate") && refused.contains("Connection refused"),
        "{refused}"
    );
    ensure!(third.docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"])?.trim() == "inactive");
    ensure!(!third.dir.join("data/swarm").exists(), "a node that did not join left something behind");
    lab.hosts[1].restart_hard()?;
    let [first, second, third] = &lab.hosts[..] else { unreachable!("three hosts") };
    are_ready(first, 2)?;
    ensure!(
        desk.signed_for(&node_id(second)?).len() == 2,
        "a node with a good certificate asked for another"
    );

    let signer = Signer::start(third, &desk, "")?;
    join(third, first, "manager")?;
    are_ready(first, 3)?;
    ensure!(certificates(third)?.contains(&flat(&desk.signed_for(&node_id(third)?)[0])));
    drop(signer);
    lab.finish()
}

fn join(host: &Host, manager: &Host, role: &str) -> Result<()> {
    let token = manager.docker(&["swarm", "join-token", "-q", role])?;
    host.docker(&["swarm", "join", "--token", token.trim(), &format!("{}:2377", manager.address)]).map(drop)
}

fn are_ready(manager: &Host, nodes: usize) -> Result<()> {
    eventually(PATIENCE, &format!("{nodes} nodes are ready, and there is no other"), || {
        let listed = manager.docker(&["node", "ls", "--format", "{{.Status}} {{.TLSStatus}}"])?;
        Ok(listed.lines().count() == nodes && listed.lines().all(|line| line == "Ready Ready"))
    })
}

fn node_id(host: &Host) -> Result<String> {
    Ok(host.docker(&["info", "--format", "{{.Swarm.NodeID}}"])?.trim().to_owned())
}

/// Whether the root is being replaced, and the roots that nodes trust.
fn trust(host: &Host) -> Result<(bool, String)> {
    let (code, body) = host.api("GET", "/swarm", "")?;
    ensure!(code == 200, "{code} {body}");
    let swarm: Value = serde_json::from_str(&body)?;
    let root = swarm["TLSInfo"]["TrustRoot"].as_str().context("a root")?.to_owned();
    Ok((swarm["RootRotationInProgress"] == true, root))
}

/// All of a node's certificates, without line ends.
fn certificates(host: &Host) -> Result<String> {
    let mut all = String::new();
    for entry in std::fs::read_dir(host.dir.join("data/swarm/certificates"))? {
        all.push_str(&flat(&std::fs::read_to_string(entry?.path())?));
    }
    Ok(all)
}

fn flat(pem: &str) -> String {
    pem.split_whitespace().collect()
}
