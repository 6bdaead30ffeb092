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
    plan.changes
}

/// The task with the reported status, unless that tells nothing new.
fn advanced(task: &Task, reported: &TaskStatus, now: Timestamp) -> Option<Task> {
    // Below *accepted* and beyond *rejected*, states are the managers' to give.
    let reportable = (TaskState::Accepted..=TaskState::Rejected).contains(&reported.state());
    if !reportable || reported.state() < task.observed() {
        return None;
    }
    let mut status = reported.clone();
    // An agent whose clock is ahead must not make a task's history reach into the future.
    if status.timestamp <= 0 || status.timestamp > now.0 {
        status.timestamp = now.0;
    }
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
    plan.changes
}
