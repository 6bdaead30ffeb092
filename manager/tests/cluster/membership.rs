//! Managers that come and go.

use crate::harness::{Host, enroll, get, is_voter, leader, trio};
use rswarm_manager::{Boot, Ended, StartError};
use rswarm_proto::tls;
use rswarm_proto::wire::{
    ClusterSpec, LeaveManagerRequest, Node, NodeRole, NodeSpec, ObjectKind, UpdateNodeRequest,
};
use tonic::Code;

async fn set_role(via: &Host, node: &Node, role: NodeRole) -> Result<Node, tonic::Status> {
    let spec = NodeSpec { desired_role: role.into(), ..node.spec.clone().expect("spec") };
    let version = node.meta.expect("meta").version;
    let request = UpdateNodeRequest { id: node.id.clone(), version, spec: Some(spec) };
    Ok(via.control().await.update_node(request).await?.into_inner())
}

fn stored(via: &Host, id: &str) -> Node {
    Node::clone(via.state().node(id).expect("listed"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_demotion_that_would_cost_the_quorum_is_refused_with_the_numbers() {
    let mut hosts = trio(ClusterSpec::default()).await;
    let dead = (leader(&hosts).await + 1) % 3;
    let alive = (dead + 1) % 3;
    hosts[dead].kill().await;
    let at = leader(&hosts).await;
    let id = hosts[dead].id();
    let is_unreachable = async || {
        let object = get(&hosts[at], ObjectKind::Node, &id).await.expect("found");
        let node = Node::try_from(object).expect("a node");
        !node.manager_status.expect("a manager").reachable
    };
    while !is_unreachable().await {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let victim = stored(&hosts[at], &hosts[alive].id());
    let status = set_role(&hosts[at], &victim, NodeRole::Worker).await.expect_err("refused");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("loss of quorum (1 of the 2"), "{}", status.message());
    // The dead one may go: that makes the group smaller and safer.
    set_role(&hosts[at], &stored(&hosts[at], &id), NodeRole::Worker).await.expect("demoted");
    hosts[at].wait("two voters", |manager| manager.voters().len() == 2).await;
    hosts[at].write("works").await.expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_manager_stays_one() {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let status = set_role(&host, &host.node(), NodeRole::Worker).await.expect_err("refused");
    assert!(status.message().contains("last manager"), "{}", status.message());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_promoted_and_demoted_again() {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let identity = enroll(&host, &host.cluster().root_ca.expect("root").worker_token).await;
    let id = identity.subject().node_id;
    let mut worker = Host::new(identity).await;

    // As long as it is a worker, it gets no manager's certificate, and without that it is not let in.
    let renew = async |worker: &Host| {
        let channel = tls::connect(&host.addr, &worker.identity).await.expect("connected");
        worker
            .identity
            .replace(tls::renew(channel, &worker.identity).await.expect("renewed"))
            .expect("usable");
        worker.identity.subject().role
    };
    assert_eq!(renew(&worker).await, NodeRole::Worker);
    let refused = worker.start(Boot::Join { via: vec![host.addr.clone()] }).await.expect_err("refused");
    assert!(matches!(refused, StartError::Refused(_)), "{refused}");

    set_role(&host, &stored(&host, &id), NodeRole::Manager).await.expect("promoted");
    host.wait("its role is written", |manager| {
        manager.state().borrow().node(&id).is_some_and(|node| node.role() == NodeRole::Manager)
    })
    .await;
    assert_eq!(renew(&worker).await, NodeRole::Manager);
    worker.start(Boot::Join { via: vec![host.addr.clone()] }).await.expect("joined");
    host.wait("it votes", |manager| is_voter(manager, &id)).await;
    worker.write("from-the-new-manager").await.expect("written");

    set_role(&worker, &stored(&host, &id), NodeRole::Worker).await.expect("demoted");
    host.wait("it votes no more", |manager| !is_voter(manager, &id)).await;
    host.wait("its role is written", |manager| {
        manager.state().borrow().node(&id).is_some_and(|node| node.role() == NodeRole::Worker)
    })
    .await;
    assert_eq!(renew(&worker).await, NodeRole::Worker);
    host.write("alone-again").await.expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_leaves_hands_over_first() {
    let hosts = trio(ClusterSpec::default()).await;
    let old = leader(&hosts).await;
    let id = hosts[old].id();
    let ended = hosts[old].manager().clone();
    let request = LeaveManagerRequest { node_id: id.clone(), force: false };
    hosts[old].control().await.leave_manager(request).await.expect("left");
    assert_eq!(ended.ended().await, Ended::Removed);
    let other = &hosts[(old + 1) % 3];
    other.wait("two voters", |manager| manager.voters().len() == 2 && !is_voter(manager, &id)).await;
    other.write("without-it").await.expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_lost_its_disk_joins_as_a_new_member() {
    let mut hosts = trio(ClusterSpec::default()).await;
    let lost = (leader(&hosts).await + 1) % 3;
    let before = hosts[lost].node().manager_status.expect("a manager").raft_id;
    hosts[lost].kill().await;
    std::fs::remove_dir_all(hosts[lost].raft_dir()).expect("erased");
    let via = hosts[leader(&hosts).await].addr.clone();
    hosts[lost].start(Boot::Join { via: vec![via] }).await.expect("joined");
    let id = hosts[lost].id();
    hosts[lost].wait("it votes", |manager| is_voter(manager, &id)).await;
    assert_ne!(hosts[lost].node().manager_status.expect("a manager").raft_id, before);
    hosts[lost].wait("three voters", |manager| manager.voters().len() == 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_may_come_back_at_another_address() {
    let mut hosts = trio(ClusterSpec::default()).await;
    let moved = (leader(&hosts).await + 1) % 3;
    hosts[moved].kill().await;
    let elsewhere = Host::new(hosts[moved].identity.clone()).await.addr;
    hosts[moved].addr = elsewhere.clone();
    hosts[moved].restart().await;
    let id = hosts[moved].id();
    for host in &hosts {
        host.wait("the address is known", |manager| {
            let state = manager.state().borrow().clone();
            let status = state.node(&id).and_then(|node| node.manager_status.clone());
            status.is_some_and(|status| status.addr == elsewhere)
        })
        .await;
    }
    hosts[moved].write("from-elsewhere").await.expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_cannot_be_reached_is_not_let_in() {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let identity = enroll(&host, &host.cluster().root_ca.expect("root").manager_token).await;
    let channel = tls::connect(&host.addr, &identity).await.expect("connected");
    let request = rswarm_proto::wire::RaftJoinRequest { addr: "127.0.0.1:1".to_owned(), raft_id: 0 };
    let status =
        rswarm_proto::wire::raft_client::RaftClient::new(channel).join(request).await.expect_err("refused");
    assert!(status.message().contains("cannot reach the joining manager at `127.0.0.1:1`"), "{status:?}");
}
