//! From `service create` to all tasks running, as agents say that answer at once.

use std::time::{Duration, Instant};

use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::ClusterSpec;

use crate::crowd::{Crowd, Way, service};
use crate::figure;
use crate::harness::Host;
use crate::process::{AGENT, MANAGER, cpu, resident};

/// When something is wrong.
const PATIENCE: Duration = Duration::from_secs(600);

pub async fn run(agents: usize, replicas: usize, way: Way) {
    let host = Host::bootstrap(ClusterSpec::default()).await;
    let _crowd = Crowd::gather(&host, agents, way).await;
    let (begin, index) = (Instant::now(), host.state().index());
    let (managers, others) = (cpu(MANAGER), cpu(AGENT));
    let created = host.control().await.create_service(service("web".to_owned(), replicas as u64)).await;
    let id = created.expect("created").into_inner().id;
    let running = || {
        let state = host.state();
        state.tasks_of_service(&id).filter(|task| task.observed() == TaskState::Running).count()
    };
    while running() < replicas {
        assert!(begin.elapsed() < PATIENCE, "{} of {replicas} run", running());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let goal = match way {
        Way::Tls => Duration::from_secs(10),
        Way::Inside => Duration::from_secs(60),
    };
    figure::within(&format!("{replicas} replicas run on {agents} agents after"), begin.elapsed(), goal);
    figure::below("resident memory, agents and manager", resident(), "MiB", 954.0);
    println!(
        "CPU: manager {:.2?}, agents {:.2?}; {} raft entries",
        cpu(MANAGER) - managers,
        cpu(AGENT) - others,
        host.state().index() - index
    );
}
