//! What tasks use, as their nodes say with heartbeats: nobody looks, nothing is sent and nothing is kept, but for some
//! time after somebody asked.

use std::collections::BTreeMap;
use std::time::Duration;

use rswarm_base::{Clock, SystemClock};
use rswarm_manager_core::State;
use rswarm_manager_core::state::node_state;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{NodeState, NodeUsage, TaskUsage, UsageResponse};
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::heartbeats::Heartbeats;

/// How long after a request nodes go on telling, and no less than the first answer takes: a table that is drawn again
/// and again costs one start.
const WANTED: Duration = Duration::from_secs(20);
/// How many heartbeat periods the first answer waits for nodes: one to be asked with, one to look, one to tell.
const PERIODS: u32 = 4;

/// What all tasks use. Waits until every node has told, but not for ever.
pub(crate) async fn gather(state: &State, heartbeats: &Heartbeats) -> Result<UsageResponse, Status> {
    let patience = state.heartbeat_period().saturating_mul(PERIODS);
    heartbeats.want_usage(SystemClock.now().after(WANTED.max(patience)));
    let deadline = Instant::now() + patience;
    loop {
        let next = heartbeats.next_told();
        let told = heartbeats.usage();
        let silent: Vec<String> =
            tellers(state).filter(|node_id| !told.contains_key(*node_id)).map(str::to_owned).collect();
        if silent.is_empty() || Instant::now() >= deadline {
            return Ok(UsageResponse { nodes: known(state, told), silent });
        }
        // In time or not, it is looked once more.
        let _ = timeout_at(deadline, next).await;
    }
}

/// The nodes that answer and run tasks.
fn tellers(state: &State) -> impl Iterator<Item = &str> {
    state.nodes_with_tasks().filter(|node_id| {
        let is_ready = state.node(node_id).is_some_and(|node| node_state(node) == NodeState::ReadyNode);
        is_ready && state.tasks_on_node(node_id).any(|task| task.observed() == TaskState::Running)
    })
}

/// What nodes said of tasks that are theirs.
fn known(state: &State, told: BTreeMap<String, Vec<TaskUsage>>) -> Vec<NodeUsage> {
    let nodes = told.into_iter().map(|(node_id, mut tasks)| {
        tasks.retain(|usage| state.task(&usage.task_id).is_some_and(|task| task.node_id == node_id));
        NodeUsage { node_id, tasks }
    });
    nodes.collect()
}

#[cfg(test)]
mod tests {
    use rswarm_base::Timestamp;

    use super::*;

    #[test]
    fn nothing_is_kept_once_nobody_asks() {
        let heartbeats = Heartbeats::default();
        heartbeats.want_usage(Timestamp(10));
        heartbeats.use_of("n1", &[TaskUsage::default()]);
        assert!(heartbeats.is_usage_wanted(Timestamp(9)));
        assert_eq!(heartbeats.usage().len(), 1);
        heartbeats.want_usage(Timestamp(5));
        assert!(!heartbeats.is_usage_wanted(Timestamp(10)), "an earlier end takes nothing away, nor adds");
        assert!(heartbeats.usage().is_empty());
    }

    #[test]
    fn no_node_is_heard_about_another_nodes_task() {
        let told = BTreeMap::from([(
            "n1".to_owned(),
            vec![TaskUsage { task_id: "t".to_owned(), ..TaskUsage::default() }],
        )]);
        assert!(known(&State::default(), told)[0].tasks.is_empty());
    }
}
