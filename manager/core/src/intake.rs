//! What agents report, as changes: the only way that observed states of tasks and descriptions of nodes
//! get into the state. A follower passes on what its agents say; the leader takes it in here.

use std::collections::BTreeMap;

use rswarm_base::Timestamp;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{Change, NodeHello, NodeTaskReport, Task, TaskStatus};

use crate::reconcile::Plan;
use crate::state::State;

/// The changes that bring the stored statuses up to what agents report. Reports about a task of another
/// node, about one that is gone, or of a state that it has left already are dropped. Several reports about
/// one task become one change.
#[must_use]
pub fn statuses(state: &State, reports: &[NodeTaskReport], now: Timestamp) -> Vec<Change> {
    let mut changed: BTreeMap<&str, Task> = BTreeMap::new();
    for report in reports {
        let Some((id, status)) = report
            .report
            .as_ref()
            .and_then(|report| Some((report.task_id.as_str(), report.status.as_ref()?)))
        else {
            continue;
        };
        let Some(stored) = state.task(id).filter(|task| task.node_id == report.node_id) else { continue };
        let task = changed.get(id).unwrap_or(stored);
        if let Some(next) = advanced(task, status, now) {
            changed.insert(id, next);
        }
    }
    let mut plan = Plan::default();
    changed.into_values().for_each(|task| plan.update(task));
    plan.into_changes()
}

/// The task with the reported status, unless that tells nothing new.
fn advanced(task: &Task, reported: &TaskStatus, now: Timestamp) -> Option<Task> {
    // Below *accepted* and beyond *rejected*, states are the managers' to give.
    let reportable = (TaskState::Accepted..=TaskState::Rejected).contains(&reported.state());
    if !reportable || reported.state() < task.observed() {
        return None;
    }
    let mut status = reported.clone();
    // When the leader heard of it, by the clock that everything else about the task goes by: an agent's own may
    // be ahead or behind.
    status.timestamp = now.0;
    if let Some(before) = &task.status {
        if status.state == before.state {
            status.timestamp = before.timestamp;
        }
        if status.err.is_empty() && task.desired() > TaskState::Running {
            status.err.clone_from(&before.err);
        }
        if status.container.is_none() {
            status.container.clone_from(&before.container);
        }
    }
    if task.status.as_ref() == Some(&status) {
        return None;
    }
    let ran_at = if task.ran_at == 0 && status.state() == TaskState::Running { now.0 } else { task.ran_at };
    Some(Task { status: Some(status), ran_at, ..task.clone() })
}

/// The changes that store how nodes describe themselves and where they can be reached. Empty fields of the
/// status leave what is stored.
#[must_use]
pub fn hellos(state: &State, hellos: &[NodeHello]) -> Vec<Change> {
    let mut plan = Plan::default();
    let latest: BTreeMap<&str, &NodeHello> =
        hellos.iter().map(|hello| (hello.node_id.as_str(), hello)).collect();
    for hello in latest.into_values() {
        let Some(stored) = state.node(&hello.node_id) else { continue };
        let mut node = rswarm_proto::wire::Node::clone(stored);
        if let Some(description) = &hello.description {
            node.description = Some(description.clone());
        }
        if let Some(said) = &hello.status {
            let status = node.status.get_or_insert_default();
            for (stored, said) in [
                (&mut status.addr, &said.addr),
                (&mut status.listen_addr, &said.listen_addr),
                (&mut status.data_path_addr, &said.data_path_addr),
            ] {
                if !said.is_empty() {
                    stored.clone_from(said);
                }
            }
        }
        if node != **stored {
            plan.update(node);
        }
    }
    plan.into_changes()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Author;
    use crate::world::{World, spec};
    use rswarm_proto::wire::{NodeDescription, NodeStatus, TaskReport};

    fn report(node: &str, task: &str, state: TaskState, timestamp: i64) -> NodeTaskReport {
        let status = TaskStatus { state: state.into(), timestamp, ..TaskStatus::default() };
        let report = TaskReport { task_id: task.to_owned(), status: Some(status) };
        NodeTaskReport { node_id: node.to_owned(), report: Some(report) }
    }

    /// A world with one running task, its id and its node.
    fn running() -> (World, String, String) {
        let mut world = World::new(1);
        let id = world.create(spec("web", 1));
        world.run(Duration::from_secs(2));
        let task = world.live(&id)[0].clone();
        (world, task.id.clone(), task.node_id.clone())
    }

    #[test]
    fn only_the_tasks_own_node_is_heard_and_only_of_what_comes_next() {
        let (world, task, node) = running();
        let changes = |report: NodeTaskReport| statuses(&world.state, &[report], world.now).len();
        assert_eq!(changes(report(&node, &task, TaskState::Failed, 0)), 1);
        assert_eq!(changes(report("n9", &task, TaskState::Failed, 0)), 0, "another node");
        assert_eq!(changes(report(&node, "gone", TaskState::Failed, 0)), 0, "an unknown task");
        assert_eq!(changes(report(&node, &task, TaskState::Starting, 0)), 0, "back");
        assert_eq!(changes(report(&node, &task, TaskState::Running, 0)), 0, "nothing new");
        assert_eq!(changes(report(&node, &task, TaskState::Orphaned, 0)), 0, "not an agent's to say");
        assert_eq!(changes(NodeTaskReport { node_id: node.clone(), report: None }), 0);
    }

    #[test]
    fn many_reports_about_a_task_are_one_change() {
        let (mut world, task, node) = running();
        let reports = [
            report(&node, &task, TaskState::Running, 0),
            report(&node, &task, TaskState::Failed, world.now.0 - 7),
            report(&node, &task, TaskState::Running, 0),
        ];
        let changes = statuses(&world.state, &reports, world.now);
        assert_eq!(changes.len(), 1);
        world.write(Author::Dispatcher, changes);
        let stored = world.state.task(&task).expect("task");
        assert_eq!(stored.observed(), TaskState::Failed);
        assert_eq!(stored.status.as_ref().map(|status| status.timestamp), Some(world.now.0));
        assert!(stored.ran_at > 0 && stored.ran_at < world.now.0);
    }

    #[test]
    fn an_agents_clock_does_not_matter() {
        for skew in [3_600_000_000_000, -3_600_000_000_000] {
            let (mut world, task, node) = running();
            let skewed = report(&node, &task, TaskState::Failed, world.now.0 + skew);
            let changes = statuses(&world.state, &[skewed], world.now);
            world.write(Author::Dispatcher, changes);
            let status = world.state.task(&task).and_then(|task| task.status.clone()).expect("status");
            assert_eq!(status.timestamp, world.now.0);
        }
    }

    #[test]
    fn a_hello_stores_what_it_says_and_leaves_the_rest() {
        let mut world = World::new(2);
        let hello = NodeHello {
            node_id: "n1".to_owned(),
            description: Some(NodeDescription { hostname: "new".to_owned(), ..NodeDescription::default() }),
            status: Some(NodeStatus { listen_addr: "192.0.2.9:2377".to_owned(), ..NodeStatus::default() }),
        };
        let changes = hellos(&world.state, std::slice::from_ref(&hello));
        world.write(Author::Dispatcher, changes);
        let node = world.state.node("n1").expect("node").clone();
        let status = node.status.clone().expect("status");
        assert_eq!((status.addr.as_str(), status.listen_addr.as_str()), ("192.0.2.1", "192.0.2.9:2377"));
        assert_eq!(hellos(&world.state, &[hello]), [], "nothing new");
        let stranger = NodeHello { node_id: "n9".to_owned(), ..NodeHello::default() };
        assert_eq!(hellos(&world.state, &[stranger]), []);
    }
}
