//! Who is let in, and who may call what.

use crate::harness::{Host, enroll};
use rswarm_base::{Chain, Classify, Kind};
use rswarm_proto::tls::{self, Enrollment, Identity};
use rswarm_proto::token::JoinToken;
use rswarm_proto::wire::control_client::ControlClient;
use rswarm_proto::wire::dispatcher_client::DispatcherClient;
use rswarm_proto::wire::logs_client::LogsClient;
use rswarm_proto::wire::raft_client::RaftClient;
use rswarm_proto::wire::relay_client::RelayClient;
use rswarm_proto::wire::{
    ClusterSpec, ListRequest, LogsRequest, NodeAvailability, NodeRole, RaftJoinRequest, RaftMessage,
    RaftStatusRequest, RelayReport, RemoveRequest, UpdateClusterRequest,
};
use std::sync::Arc;
use tonic::Code;

async fn refusal(via: &Host, token: &JoinToken) -> (Kind, String) {
    let node = Enrollment { hostname: "n".to_owned(), availability: NodeAvailability::Active };
    let error = tls::join(&via.addr, token, node).await.expect_err("refused");
    (error.kind(), Chain(&error).to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_is_refused_with_the_reason() {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let other = Host::bootstrap(ClusterSpec::default()).await;
    let token = JoinToken::parse(&host.cluster().root_ca.expect("root").worker_token).expect("valid");

    let (kind, text) = refusal(&host, &JoinToken::generate(token.root_digest)).await;
    assert_eq!(kind, Kind::InvalidArgument);
    assert!(text.contains("invalid join token: its secret is mistyped, or the token was rotated"), "{text}");

    // The secret is never sent to a cluster with another root.
    let (_, text) = refusal(&other, &token).await;
    assert!(text.contains("remote CA does not match fingerprint"), "{text}");

    let version = host.cluster().meta.expect("meta").version;
    let rotate =
        UpdateClusterRequest { version, rotate_worker_token: true, ..UpdateClusterRequest::default() };
    let rotated = host.control().await.update_cluster(rotate).await.expect("rotated").into_inner();
    let (_, text) = refusal(&host, &token).await;
    assert!(text.contains("rotated"), "{text}");
    let root = rotated.root_ca.expect("root");
    assert!(root.key_pem.is_empty(), "the root's key is never shown");
    assert_eq!(enroll(&host, &root.worker_token).await.subject().role, NodeRole::Worker);
    let nodes = host.state().nodes().count();
    assert_eq!(nodes, 2, "refused joins leave no node behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workers_certificate_opens_no_managers_call() {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let worker = enroll(&host, &host.cluster().root_ca.expect("root").worker_token).await;
    let channel = tls::connect(&host.addr, &worker).await.expect("connected");
    let denied = |status: tonic::Status| assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    denied(ControlClient::new(channel.clone()).list(ListRequest::default()).await.expect_err("refused"));
    denied(LogsClient::new(channel.clone()).subscribe(LogsRequest::default()).await.expect_err("refused"));
    denied(RelayClient::new(channel.clone()).report(RelayReport::default()).await.expect_err("refused"));
    let mut raft = RaftClient::new(channel.clone());
    denied(raft.status(RaftStatusRequest {}).await.expect_err("refused"));
    denied(raft.join(RaftJoinRequest::default()).await.expect_err("refused"));
    denied(raft.messages(tokio_stream::iter([RaftMessage::default()])).await.expect_err("refused"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_without_a_certificate_can_only_ask_to_join() {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let token = JoinToken::parse(&host.cluster().root_ca.expect("root").worker_token).expect("valid");
    let channel = tls::connect_pinned(&host.addr, token.root_digest).await.expect("connected");
    let anonymous = |status: tonic::Status| assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    anonymous(ControlClient::new(channel.clone()).list(ListRequest::default()).await.expect_err("refused"));
    let session = DispatcherClient::new(channel.clone()).session(tokio_stream::pending()).await;
    anonymous(session.expect_err("refused"));
    let mut ca = rswarm_proto::wire::ca_client::CaClient::new(channel);
    anonymous(ca.renew(rswarm_proto::wire::RenewRequest::default()).await.expect_err("refused"));
    let root = ca.root(rswarm_proto::wire::RootRequest {}).await.expect("the root is public").into_inner();
    assert_eq!(root.certificate_pem, host.cluster().root_ca.expect("root").certificate_pem);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_cluster_gets_no_connection() {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let other = Host::bootstrap(ClusterSpec::default()).await;
    let outcome = match tls::connect(&host.addr, &other.identity).await {
        Err(_) => return,
        Ok(channel) => ControlClient::new(channel).list(ListRequest::default()).await,
    };
    outcome.expect_err("refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_keeps_the_key_and_a_removed_node_gets_none() {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let worker = enroll(&host, &host.cluster().root_ca.expect("root").worker_token).await;
    let connect =
        async |identity: &Arc<Identity>| tls::connect(&host.addr, identity).await.expect("connected");
    let renewed = tls::renew(connect(&worker).await, &worker).await.expect("renewed");
    assert_eq!(renewed.key_pem, worker.credentials().key_pem);
    assert_ne!(renewed.chain_pem, worker.credentials().chain_pem);
    worker.replace(renewed).expect("usable");

    let remove = RemoveRequest { id: worker.subject().node_id, force: true };
    host.control().await.remove_node(remove).await.expect("removed");
    let error = tls::renew(connect(&worker).await, &worker).await.expect_err("refused");
    assert_eq!(error.kind(), Kind::PermissionDenied);
    assert!(error.to_string().contains("removed from the cluster"), "{error}");
}
