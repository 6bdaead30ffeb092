//! What it costs that nothing happens.

use std::time::Duration;

use rswarm_proto::wire::ClusterSpec;

use crate::crowd::{Crowd, Way};
use crate::figure;
use crate::harness::Host;
use crate::process::{MANAGER, cpu, written};

/// How long is watched.
const WATCHED: Duration = Duration::from_secs(15);
/// What joining began comes to its end within this.
const SETTLING: Duration = Duration::from_secs(5);

pub async fn run(agents: usize) {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let _crowd = Crowd::gather(&host, agents, Way::Tls).await;
    tokio::time::sleep(SETTLING).await;
    println!("{} nodes beat every {:?}", host.state().node_count(), host.state().heartbeat_period());
    let (used, bytes, index) = (cpu(MANAGER), written(), host.state().index());
    tokio::time::sleep(WATCHED).await;
    let share = (cpu(MANAGER) - used).as_secs_f64() / WATCHED.as_secs_f64() * 100.0;
    figure::below(&format!("{agents} idle agents, of a core"), share, "%", 5.0);
    figure::below("written to disk", (written() - bytes) as f64, "bytes", 1.0);
    figure::below("raft entries", (host.state().index() - index) as f64, "entries", 1.0);
}
