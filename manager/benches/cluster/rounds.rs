//! What is left in memory of services that were made and removed.

use std::time::{Duration, Instant};

use rswarm_proto::wire::{ClusterSpec, RemoveRequest};

use crate::crowd::{Crowd, Way, service};
use crate::figure;
use crate::harness::Host;
use crate::process::resident;

/// Agents that run the tasks.
const AGENTS: usize = 10;
/// Tasks of each service.
const REPLICAS: u64 = 3;
/// Names that services take in turn: a removed one keeps its own until its tasks have stopped.
const NAMES: usize = 100;

pub async fn run(rounds: usize) {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let _crowd = Crowd::gather(&host, AGENTS, Way::Tls).await;
    let mut control = host.control().await;
    let (begin, mut sizes) = (Instant::now(), Vec::new());
    for round in 1..=rounds {
        let request = service(format!("web{}", round % NAMES), REPLICAS);
        let id = control.create_service(request).await.expect("created").into_inner().id;
        control.remove_service(RemoveRequest { id, force: false }).await.expect("removed");
        if round.is_multiple_of(rounds.div_ceil(10)) {
            sizes.push(resident());
            let tasks = host.state().task_count();
            println!(
                "after {round} rounds, {:.1?}: {:.0} MiB resident, {tasks} tasks",
                begin.elapsed(),
                resident()
            );
        }
    }
    while host.state().task_count() + host.state().services().count() > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The log and its caches fill in the first rounds.
    let grown = resident() - sizes[sizes.len() / 2];
    figure::below("grown in the second half of the rounds", grown, "MiB", 16.0);
}
