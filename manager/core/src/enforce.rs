//! Evictions: a task must leave a node that was drained, is lost, or no longer has what the task needs.
//! The task is only told to stop; its replacement is `restart`'s business.

use std::sync::Arc;

use rswarm_proto::model::object::Stored;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{Node, NodeAvailability, Task, TaskStatus};

use crate::author::Author;
use crate::filter;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::slot;
use crate::state::State;

/// What stands on a task whose node no longer meets its constraints.
const NO_LONGER_FITS: &str = "assigned node no longer meets constraints";

/// Tells tasks to leave nodes.
#[derive(Debug)]
pub struct Enforce;

impl Reconciler for Enforce {
    fn author(&self) -> Author {
        Author::Enforce
    }

    fn reconcile(&self, view: &State, _env: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        // When no node is left, moving tasks would only stop them: they are taken on again as nodes return.
        let has_refuge = view.nodes().any(|node| filter::takes_new_tasks(node));
        for node_id in view.nodes_with_tasks() {
            let live = || view.tasks_on_node(node_id).filter(|task| task.is_live());
            match view.node(node_id) {
                None => live().for_each(|task| plan.update(slot::desire(task, TaskState::Shutdown))),
                Some(node) if filter::availability(node) == NodeAvailability::Drain => {
                    live().for_each(|task| plan.update(slot::desire(task, TaskState::Shutdown)));
                }
                // A global task has nowhere else to go: it waits for its node.
                Some(_) if view.is_node_lost(node_id) => live()
                    .filter(|task| has_refuge && task.slot != 0)
                    .for_each(|task| plan.update(slot::desire(task, TaskState::Shutdown))),
                Some(node) => {
                    misfits(node, live().collect()).for_each(|task| plan.update(evicted(task)));
                }
            }
        }
        plan
    }
}

/// The tasks that the node can no longer have: its labels contradict their constraints, or it has become too
/// small for all of them, in which case the latest ones go.
fn misfits<'a>(node: &Node, mut tasks: Vec<&'a Arc<Task>>) -> impl Iterator<Item = &'a Arc<Task>> {
    tasks.sort_by_key(|task| (task.meta().created_at, &task.id));
    let has = filter::capacity(node);
    let (mut cpus, mut memory) = (0i64, 0i64);
    tasks.retain(|task| {
        let reserved = filter::reservations(task);
        let too_much = (reserved.nano_cpus > 0 && cpus.saturating_add(reserved.nano_cpus) > has.nano_cpus)
            || (reserved.memory > 0 && memory.saturating_add(reserved.memory) > has.memory);
        let misplaced = task.spec.as_ref().is_some_and(|spec| !slot::sits_well(spec, node));
        let leaves = (too_much || misplaced) && task.observed() >= TaskState::Assigned;
        if !leaves && task.observed() >= TaskState::Assigned {
            cpus += reserved.nano_cpus;
            memory += reserved.memory;
        }
        leaves
    });
    tasks.into_iter()
}

/// Told to stop, with the reason on it. Its observed state stays the agent's to report: its container runs on
/// for a while, and its addresses are not free before it has ended.
fn evicted(task: &Task) -> Task {
    let status = TaskStatus { err: NO_LONGER_FITS.to_owned(), ..task.status.clone().unwrap_or_default() };
    Task { status: Some(status), ..slot::desire(task, TaskState::Shutdown) }
}
