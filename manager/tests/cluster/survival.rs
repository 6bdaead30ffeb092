//! Losing managers, and getting them back.

use crate::harness::{Host, PATIENCE, leader, trio};
use rswarm_manager::{Boot, Ended, StartError};
use rswarm_proto::status::REPLICA;
use rswarm_proto::wire::{ClusterSpec, ListRequest, ObjectKind};
use std::fs;
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_through_any_manager_is_on_all_of_them() {
    let hosts = trio(ClusterSpec::default()).await;
    for (position, host) in hosts.iter().enumerate() {
        host.write(&format!("net-{position}")).await.expect("written");
    }
    for host in &hosts {
        for position in 0..3 {
            let name = format!("net-{position}");
            host.wait("replicated", |manager| manager.state().borrow().network_named(&name).is_some()).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_and_catches_up_when_it_is_back() {
    let mut hosts = trio(ClusterSpec::default()).await;
    hosts[0].write("before").await.expect("written");
    let old = leader(&hosts).await;
    hosts[old].kill().await;
    let killed = Instant::now();
    let asked = (old + 1) % 3;
    // A client just asks again; each answer says clearly that nothing was done.
    while let Err(status) = hosts[asked].write("after").await {
        assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}");
        assert!(killed.elapsed() < Duration::from_secs(3), "no new leader: {}", status.message());
    }
    assert!(killed.elapsed() < Duration::from_secs(3), "took {:?}", killed.elapsed());
    hosts[old].restart().await;
    hosts[old].wait("caught up", |manager| manager.state().borrow().network_named("after").is_some()).await;
    assert!(hosts[old].has("before"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_cluster_comes_back_from_its_disks() {
    let mut hosts = trio(ClusterSpec::default()).await;
    hosts[1].write("kept").await.expect("written");
    for host in &mut hosts {
        host.kill().await;
    }
    for host in &mut hosts {
        host.restart().await;
    }
    leader(&hosts).await;
    for host in &hosts {
        host.wait("it is there", |manager| manager.state().borrow().network_named("kept").is_some()).await;
    }
    hosts[2].write("more").await.expect("written");
}

fn networks() -> ListRequest {
    ListRequest { kind: ObjectKind::Network.into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_calls_fail_soon_and_say_so() {
    let mut hosts = trio(ClusterSpec::default()).await;
    hosts[0].write("before").await.expect("written");
    hosts[1].kill().await;
    hosts[2].kill().await;
    hosts[0].wait("it noticed", |manager| manager.leader().borrow().is_none()).await;
    let asked = Instant::now();
    let status = hosts[0].write("lost").await.expect_err("no quorum");
    assert_eq!(status.code(), tonic::Code::Unavailable);
    assert!(status.message().starts_with("The swarm does not have a leader."), "{}", status.message());
    assert!(asked.elapsed() < Duration::from_secs(4));
    // What it knows can be read, and says what it is.
    let listed = hosts[0].control().await.list(networks()).await.expect("read");
    assert!(listed.metadata().contains_key(REPLICA), "unmarked");
    assert_eq!(listed.get_ref().objects.len(), 2, "ingress, and what was written");
    hosts[1].restart().await;
    leader(&hosts).await;
    hosts[0].write("again").await.expect("written");
    let listed = hosts[0].control().await.list(networks()).await.expect("read");
    assert!(!listed.metadata().contains_key(REPLICA), "marked though somebody leads");
    assert_eq!(listed.get_ref().objects.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_leader_hands_over() {
    let mut hosts = trio(ClusterSpec::default()).await;
    let old = leader(&hosts).await;
    let running = hosts[old].running.take().expect("runs");
    running.manager.clone().stop().await;
    let next = leader(&hosts).await;
    hosts[next].write("handed-over").await.expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lagging_or_new_member_gets_a_raft_snapshot() {
    let spec =
        ClusterSpec { snapshot_interval: 20, log_entries_for_slow_followers: 1, ..ClusterSpec::default() };
    let mut hosts = trio(spec).await;
    let lagging = (leader(&hosts).await + 1) % 3;
    hosts[lagging].kill().await;
    let writer = leader(&hosts).await;
    for number in 0..60 {
        hosts[writer].write(&format!("n{number}")).await.expect("written");
    }
    let has_snapshot = |host: &Host| {
        let files = fs::read_dir(host.raft_dir()).expect("dir");
        let names = files.map(|file| file.expect("file").file_name().to_string_lossy().into_owned());
        names.filter_map(|name| name.strip_prefix("snapshot-")?.parse::<u64>().ok()).max().unwrap_or(0)
    };
    hosts[writer].wait("a raft snapshot was saved", |_| has_snapshot(&hosts[writer]) > 40).await;
    hosts[lagging].restart().await;
    hosts[lagging].wait("caught up", |manager| manager.state().borrow().network_named("n59").is_some()).await;
    assert!(has_snapshot(&hosts[lagging]) > 20, "it came by raft snapshot");
    let joined = Host::join(&hosts[writer]).await;
    joined.wait("caught up", |manager| manager.state().borrow().network_named("n0").is_some()).await;
    // And all of it still comes back from the disk.
    hosts[writer].kill().await;
    hosts[writer].restart().await;
    assert!(hosts[writer].has("n0") && hosts[writer].has("n59"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_stops_the_manager_with_file_and_offset() {
    let mut host = Host::bootstrap(ClusterSpec::default()).await;
    host.write("x").await.expect("written");
    host.kill().await;
    let path = host.raft_dir().join("log-0000000000000001");
    let mut bytes = fs::read(&path).expect("log");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&path, bytes).expect("write");
    let error = host.start(Boot::Restart).await.expect_err("refused");
    let text = error.to_string();
    assert!(matches!(error, StartError::Wal(_)), "{text}");
    assert!(text.contains("log-0000000000000001") && text.contains("damaged at offset"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_survivor_can_begin_anew_with_everything_it_has() {
    let mut hosts = trio(ClusterSpec::default()).await;
    hosts[0].write("kept").await.expect("written");
    hosts[2].wait("replicated", |manager| manager.state().borrow().network_named("kept").is_some()).await;
    for host in &mut hosts {
        host.kill().await;
    }
    let survivor = &mut hosts[2];
    survivor.start(Boot::ForceNewCluster).await.expect("started");
    survivor.wait("it leads alone", |manager| manager.is_leading() && manager.voters().len() == 1).await;
    assert!(survivor.has("kept"));
    survivor.write("more").await.expect("written");
    let managers = |state: &rswarm_manager_core::State| {
        state.nodes().filter(|node| node.manager_status.is_some()).count()
    };
    survivor.wait("the others are forgotten", |manager| managers(&manager.state().borrow()) == 1).await;
    survivor.kill().await;
    survivor.restart().await;
    survivor.wait("it leads again", |manager| manager.is_leading()).await;
    let again = Host::join(survivor).await;
    again.wait("caught up", |manager| manager.state().borrow().network_named("more").is_some()).await;
    let _ = PATIENCE;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manager_that_a_full_disk_stopped_goes_on_when_there_is_room() {
    let spec = ClusterSpec { snapshot_interval: 10, ..ClusterSpec::default() };
    let mut host = Host::bootstrap(spec).await;
    // Where the next raft snapshots are written before they get their names, nothing fits.
    for index in 0..200 {
        let name = format!(".snapshot-{index:016}.{}.tmp", std::process::id());
        std::os::unix::fs::symlink("/dev/full", host.raft_dir().join(name)).expect("linked");
    }
    let manager = host.manager().clone();
    let mut written = Vec::new();
    let writes = async {
        for number in 0.. {
            let name = format!("n{number}");
            if host.write(&name).await.is_ok() {
                written.push(name);
            }
        }
    };
    let ended = async {
        tokio::select! {
            ended = manager.ended() => ended,
            () = writes => unreachable!("it goes on for ever"),
        }
    };
    let ended = tokio::time::timeout(PATIENCE, ended).await.expect("it stops");
    let Ended::Failed { reason, passing } = ended else { panic!("{ended:?}") };
    assert!(passing && reason.contains("No space left on device"), "{reason}");
    host.kill().await;
    // Starting removes what unfinished writes left, and with it the cause.
    host.restart().await;
    for name in &written {
        assert!(host.has(name), "{name} was acknowledged");
    }
    host.wait("it leads", |manager| manager.is_leading()).await;
    host.write("after").await.expect("written");
}
