//! How long nothing can be written when the leader of three dies.

use std::time::{Duration, Instant};

use rswarm_proto::wire::ClusterSpec;

use crate::figure;
use crate::harness::{self, Host, leader, trio};
use crate::process::median;

/// A call that takes longer is given up, and made again.
const CALL: Duration = Duration::from_secs(5);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(10);

pub async fn run(trials: usize) {
    let mut hosts = trio(ClusterSpec::default()).await;
    let mut times = Vec::new();
    for trial in 0..trials {
        let lost = leader(&hosts).await;
        let mut ways = Vec::new();
        for other in (0..hosts.len()).filter(|other| *other != lost) {
            ways.push(hosts[other].control().await);
        }
        hosts[lost].kill().await;
        let begin = Instant::now();
        for attempt in 0.. {
            let name = format!("net-{trial}-{attempt}");
            let call = harness::write(&mut ways[attempt % 2], &name);
            if let Ok(Ok(_)) = tokio::time::timeout(CALL, call).await {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        times.push(begin.elapsed());
        hosts[lost].restart().await;
        whole(&hosts, lost).await;
    }
    let what = format!("from the leader's death to the next write, {trials} trials");
    figure::within(&format!("{what}, median"), median(&mut times), Duration::from_millis(1500));
    figure::within(&format!("{what}, at most"), times[trials - 1], Duration::from_secs(3));
}

/// Waits until the manager that returned has what the others have: the next one dies after that.
async fn whole(hosts: &[Host], returned: usize) {
    let newest = || hosts.iter().map(|host| host.state().index()).max();
    let votes = |host: &Host| host.manager().voters().len() == 3;
    while !hosts.iter().all(votes) || Some(hosts[returned].state().index()) < newest() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
