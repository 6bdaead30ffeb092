//! Certificates by an authority outside of the cluster: a small one that speaks CFSSL's protocol, and can be made to
//! answer wrongly.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rswarm_base::{Chain, Scope, Timestamp};
use rswarm_manager::{Founding, NewCluster, found};
use rswarm_proto::tls::{
    self, Authority, Credentials, Enrollment, Identity, Subject, new_key, signing_request,
};
use rswarm_proto::token::JoinToken;
use rswarm_proto::wire::{ClusterSpec, ExternalCa, NodeAvailability, NodeRole, RootCa, UpdateClusterRequest};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::harness::{Host, enroll};

const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How it answers.
const WELL: u8 = 0;
const REFUSING: u8 = 1;
const OTHER_NODE: u8 = 2;
const OTHER_ROOT: u8 = 3;
const GARBAGE: u8 = 4;

/// An authority at a loopback address of its own. It stops with its scope.
struct Signer {
    url: String,
    mode: Arc<AtomicU8>,
    signed: Arc<AtomicU64>,
    _scope: Scope,
}

/// What one answers by.
struct Desk {
    authority: Authority,
    mode: Arc<AtomicU8>,
    signed: Arc<AtomicU64>,
}

impl Signer {
    /// `trusted` vouches for the managers that may ask.
    async fn start(authority: Authority, trusted: &str) -> Signer {
        let subject =
            Subject { node_id: "127.0.0.1".into(), role: NodeRole::Manager, cluster_id: "ca".into() };
        let key_pem = new_key().expect("key");
        let csr = signing_request(&key_pem).expect("request");
        let chain_pem = authority.issue(&csr, &subject, LIFETIME, Timestamp::wall()).expect("issued");
        let root_pem = format!("{}{trusted}", authority.certificate_pem());
        let own = Identity::new(Credentials { key_pem, chain_pem, root_pem }).expect("identity");
        let mut config = own.server_config().as_ref().clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let url = format!("https://{}/api/v1/cfssl/sign", listener.local_addr().expect("address"));
        let (mode, signed) = (Arc::new(AtomicU8::new(WELL)), Arc::new(AtomicU64::new(0)));
        let desk = Arc::new(Desk { authority, mode: mode.clone(), signed: signed.clone() });
        let scope = Scope::root("signer");
        let connections = scope.clone();
        scope.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, desk) = (acceptor.clone(), desk.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let certificate =
                        stream.get_ref().1.peer_certificates().and_then(|chain| chain.first().cloned());
                    let caller = certificate.and_then(|certificate| Subject::of(&certificate));
                    let answer = service_fn(|request| desk.answer(caller.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), answer)
                        .await;
                });
            }
        });
        Signer { url, mode, signed, _scope: scope }
    }

    fn answers(&self, mode: u8) {
        self.mode.store(mode, Ordering::Relaxed);
    }

    fn named(&self, ca_cert: &str) -> ExternalCa {
        let (protocol, url, ca_cert) = ("cfssl".to_owned(), self.url.clone(), ca_cert.to_owned());
        ExternalCa { protocol, url, ca_cert, ..ExternalCa::default() }
    }
}

impl Desk {
    async fn answer(
        &self,
        caller: Option<Subject>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<hyper::body::Bytes>>, hyper::Error> {
        let body = request.into_body().collect().await?.to_bytes();
        let asked: Value = serde_json::from_slice(&body).expect("JSON");
        let answer = self.decide(caller, &asked);
        Ok(Response::new(Full::new(answer.into())))
    }

    fn decide(&self, caller: Option<Subject>, asked: &Value) -> String {
        if caller.is_none_or(|caller| caller.role != NodeRole::Manager) {
            return json!({"success": false, "errors": [{"code": 1, "message": "not a manager"}]})
                .to_string();
        }
        let name = &asked["subject"]["names"][0];
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        assert_eq!(asked["hosts"], json!([asked["subject"]["CN"], name["OU"]]));
        let role = match name["OU"].as_str() {
            Some("swarm-manager") => NodeRole::Manager,
            _ => NodeRole::Worker,
        };
        let mut subject =
            Subject { node_id: text(&asked["subject"]["CN"]), role, cluster_id: text(&name["O"]) };
        let other = Authority::generate(Timestamp::wall()).expect("root");
        let mut authority = &self.authority;
        match self.mode.load(Ordering::Relaxed) {
            REFUSING => {
                return json!({"success": false, "errors": [{"code": 1100, "message": "out of ink"}]})
                    .to_string();
            }
            GARBAGE => return "<html>".to_owned(),
            OTHER_NODE => subject.role = NodeRole::Manager,
            OTHER_ROOT => authority = &other,
            _ => {}
        }
        let csr = text(&asked["certificate_request"]);
        let certificate = authority.issue(&csr, &subject, LIFETIME, Timestamp::wall()).expect("issued");
        self.signed.fetch_add(1, Ordering::Relaxed);
        json!({"success": true, "result": {"certificate": certificate}, "errors": [], "messages": []})
            .to_string()
    }
}

/// A cluster whose root's key no manager has, and who has it.
async fn keyless() -> (Host, Signer) {
    let (mut founding, identity) = found(NewCluster::default(), Timestamp::now()).expect("founded");
    let Founding { cluster, .. } = &mut founding;
    let root: &mut RootCa = cluster.root_ca.as_mut().expect("root");
    let key = String::from_utf8(std::mem::take(&mut root.key_pem)).expect("text");
    let authority = Authority::from_pem(&root.certificate_pem, &key).expect("root");
    let signer = Signer::start(authority, "").await;
    cluster.spec.get_or_insert_default().external_cas = vec![signer.named("")];
    (Host::found_by(founding, identity).await, signer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_join_and_renew_by_an_external_authority() {
    let (host, signer) = keyless().await;
    let worker = enroll(&host, &host.cluster().root_ca.expect("root").worker_token).await;
    assert_eq!((worker.subject().role, signer.signed.load(Ordering::Relaxed)), (NodeRole::Worker, 1));
    let channel = tls::connect(&host.addr, &worker).await.expect("connected");
    let renewed = tls::renew(channel, &worker).await.expect("renewed");
    assert_ne!(renewed.chain_pem, worker.credentials().chain_pem);
    worker.replace(renewed).expect("usable");
    assert_eq!(signer.signed.load(Ordering::Relaxed), 2);
    let manager = Host::join(&host).await;
    assert_eq!(manager.identity.subject().role, NodeRole::Manager);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_answers_of_an_external_authority_let_nobody_in() {
    let (host, signer) = keyless().await;
    let token = JoinToken::parse(&host.cluster().root_ca.expect("root").worker_token).expect("a token");
    for (mode, why) in [
        (REFUSING, "it refused: out of ink"),
        (OTHER_NODE, "does not say the node, role and cluster"),
        (OTHER_ROOT, "not one for nodes by the cluster's root"),
        (GARBAGE, "the answer is not CFSSL's"),
    ] {
        signer.answers(mode);
        let enrollment = Enrollment { hostname: "n".to_owned(), availability: NodeAvailability::Active };
        let error = tls::join(&host.addr, &token, enrollment).await.expect_err("refused");
        let text = Chain(&error).to_string();
        assert!(text.contains("no external CA signed the certificate") && text.contains(why), "{text}");
    }
    assert_eq!(host.state().nodes().count(), 1, "refused joins leave no node behind");
    // Without anybody who could sign, the cluster would take in nobody any more.
    let cluster = host.cluster();
    let request = UpdateClusterRequest {
        version: cluster.meta.expect("meta").version,
        spec: cluster.spec.map(|spec| ClusterSpec { external_cas: Vec::new(), ..spec }),
        ..UpdateClusterRequest::default()
    };
    let error = host.control().await.update_cluster(request).await.expect_err("refused");
    let wanted =
        "there must be at least one valid, reachable external CA corresponding to the current CA certificate";
    assert_eq!((error.code(), error.message()), (tonic::Code::InvalidArgument, wanted));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_is_replaced_by_one_whose_key_is_elsewhere() {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let old = host.cluster().root_ca.expect("root");
    let authority = Authority::generate(Timestamp::wall()).expect("root");
    let new_pem = authority.certificate_pem().to_owned();
    let signer = Signer::start(authority, &old.certificate_pem).await;
    let ask = async |external_cas: Vec<ExternalCa>| {
        let cluster = host.cluster();
        let request = UpdateClusterRequest {
            version: cluster.meta.expect("meta").version,
            spec: cluster.spec.map(|spec| ClusterSpec { external_cas, ..spec }),
            signing_ca_cert: new_pem.clone(),
            ..UpdateClusterRequest::default()
        };
        host.control().await.update_cluster(request).await.map(tonic::Response::into_inner)
    };
    let wanted =
        "there must be at least one valid, reachable external CA corresponding to the desired CA certificate";
    let alone = ask(Vec::new()).await.expect_err("nobody signs");
    assert_eq!(alone.message(), wanted);
    let of_another = ask(vec![signer.named("")]).await.expect_err("it signs by the current root");
    assert!(of_another.message().starts_with(wanted), "{of_another}");
    signer.answers(OTHER_ROOT);
    let wrong = ask(vec![signer.named(&new_pem)]).await.expect_err("it answers wrongly");
    assert!(wrong.message().contains("by the cluster's root"), "{wrong}");
    assert!(host.cluster().root_ca.expect("root").rotation.is_none(), "nothing has begun");

    signer.answers(WELL);
    let begun = ask(vec![signer.named(&new_pem)]).await.expect("begun");
    let rotation = begun.root_ca.expect("root").rotation.expect("under way");
    assert!(rotation.key_pem.is_empty() && rotation.certificate_pem == new_pem);
    let own = tls::connect(&host.addr, &host.identity).await.expect("connected");
    host.identity.replace(tls::renew(own, &host.identity).await.expect("renewed")).expect("usable");
    assert!(host.identity.is_by_latest_root());
    // A joiner pins the old root still, and is certified by the new one.
    let worker = enroll(&host, &old.worker_token).await;
    assert!(worker.is_by_latest_root());
    let renewed = tls::renew(tls::connect(&host.addr, &worker).await.expect("connected"), &worker).await;
    renewed.expect("renewed");
}
