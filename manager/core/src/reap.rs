//! Deletion of what has ended: removed tasks, history beyond its limit, services and networks whose removal was
//! asked for, once nothing depends on them, and old versions of secrets and configs.

use std::collections::BTreeSet;
use std::sync::Arc;

use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{ObjectKind, Service, Task};

use crate::author::Author;
use crate::cohort::Cohort;
use crate::content::{held, of_task};
use crate::reconcile::{Env, Plan, Reconciler};
use crate::slot::{self, Slot};
use crate::state::State;

/// Deletes.
#[derive(Debug)]
pub struct Reap;

impl Reconciler for Reap {
    fn author(&self) -> Author {
        Author::Reap
    }

    fn reconcile(&self, view: &State, _env: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        for task in view.tasks_to_remove().filter(|task| is_removable(view, task)) {
            plan.delete(ObjectKind::Task, &task.id);
        }
        for service in view.services() {
            if service.pending_delete {
                dissolve(view, service, &mut plan);
            } else {
                forget_history(view, service, &mut plan);
            }
        }
        forget_nodes(view, &mut plan);
        remove_strays(view, &mut plan);
        // Nothing comes after an attachment: it has no history worth keeping.
        for task in view.attachments().filter(|task| task.observed().is_terminal()) {
            plan.delete(ObjectKind::Task, &task.id);
        }
        for network in view.networks().filter(|network| network.pending_delete) {
            let in_use = view.tasks_on_network(&network.id).any(|task| !task.observed().is_terminal());
            if !in_use && view.services_on_network(&network.id).all(|service| service.pending_delete) {
                plan.delete(ObjectKind::Network, &network.id);
            }
        }
        forget_versions(view, &mut plan);
        plan
    }
}

/// Old versions of secrets and configs that no service has, nor would go back to, and no task that may still start.
fn forget_versions(view: &State, plan: &mut Plan) {
    let mut old: Vec<(ObjectKind, &str)> = view.superseded().collect();
    if old.is_empty() {
        return;
    }
    let held: BTreeSet<&str> =
        view.services().filter(|service| !service.pending_delete).flat_map(|service| held(service)).collect();
    old.retain(|(_, id)| !held.contains(id));
    // Seldom there: only while an update that another one overtook is under way.
    if !old.is_empty() {
        let may_start = |task: &&Arc<Task>| {
            !task.observed().is_terminal()
                && (task.observed() >= TaskState::Assigned || task.desired() <= TaskState::Running)
        };
        let tasks = view.tasks().filter(may_start).filter_map(|task| task.spec.as_ref());
        let held: BTreeSet<&str> = tasks.flat_map(of_task).collect();
        old.retain(|(_, id)| !held.contains(id));
    }
    old.into_iter().for_each(|(kind, id)| plan.delete(kind, id));
}

/// Whether nothing of the task is left anywhere.
fn is_removable(view: &State, task: &Task) -> bool {
    task.observed().is_terminal()
        || task.observed() < TaskState::Assigned
        || view.node(&task.node_id).is_none()
}

/// First its tasks are removed, then the service goes.
fn dissolve(view: &State, service: &Service, plan: &mut Plan) {
    let mut tasks = view.tasks_of_service(&service.id).peekable();
    if tasks.peek().is_none() {
        plan.delete(ObjectKind::Service, &service.id);
    }
    for task in tasks.filter(|task| task.desired() < TaskState::Remove) {
        plan.update(slot::desire(task, TaskState::Remove));
    }
}

fn forget_history(view: &State, service: &Service, plan: &mut Plan) {
    let attempts = usize::try_from(slot::restart_policy(service).max_attempts).unwrap_or(usize::MAX);
    let limit = match attempts {
        0 => view.task_history_limit(),
        // Attempts are counted by what is kept.
        attempts => Some(attempts.saturating_add(1)),
    };
    let forget = |slot: Slot<'_>, plan: &mut Plan| {
        if !is_without_node(view, slot.latest()) {
            excess(&slot, limit).for_each(|task| plan.delete(ObjectKind::Task, &task.id));
        }
    };
    let largest = view.cohort(&service.id).map_or(0, Cohort::largest_slot);
    if limit.is_some_and(|limit| largest > limit.max(1) as u64) {
        slot::occupied(view, service).into_iter().for_each(|slot| forget(slot, plan));
    } else {
        // Slots at rest have lost nothing with a node.
        slot::restless(view, service).for_each(|slot| forget(slot, plan));
    }
}

/// There is nothing more to become of the slots of global services on nodes that are no longer listed.
fn forget_nodes(view: &State, plan: &mut Plan) {
    let gone = view.nodes_with_tasks().filter(|id| view.node(id).is_none());
    for task in gone.flat_map(|id| view.tasks_on_node(id)) {
        let is_wanted = |service: &Arc<Service>| !service.pending_delete;
        if task.slot == 0
            && task.observed().is_terminal()
            && task.desired() < TaskState::Remove
            && view.service(&task.service_id).is_some_and(is_wanted)
        {
            plan.delete(ObjectKind::Task, &task.id);
        }
    }
}

/// Whether the task is a global service's on a node that is no longer listed.
fn is_without_node(view: &State, task: &Task) -> bool {
    task.slot == 0 && view.node(&task.node_id).is_none()
}

/// The oldest tasks of a slot beyond the limit, and those that a lost node took with it. The latest always
/// stays: it says what becomes of the slot.
fn excess<'a>(slot: &'a Slot<'_>, limit: Option<usize>) -> impl Iterator<Item = &'a Task> {
    let over = limit.map_or(0, |limit| slot.tasks.len().saturating_sub(limit.max(1)));
    let latest = slot.latest().id.as_str();
    let ended = |task: &&Task| {
        task.id != latest
            && (TaskState::Complete..TaskState::Remove).contains(&task.desired())
            && (task.observed().is_terminal() || task.observed() < TaskState::Assigned)
            // What a job has completed is counted by what is kept.
            && (task.job_iteration.is_none() || task.observed() != TaskState::Complete)
    };
    let tasks: Vec<&Task> = slot.tasks.iter().map(|task| task.as_ref()).filter(ended).collect();
    tasks.into_iter().enumerate().filter_map(move |(position, task)| {
        (position < over || task.observed() == TaskState::Orphaned).then_some(task)
    })
}

/// Tasks whose service is gone: a leader that lost its place may still have made some.
fn remove_strays(view: &State, plan: &mut Plan) {
    for service_id in view.service_ids_with_tasks().filter(|id| view.service(id).is_none()) {
        for task in view.tasks_of_service(service_id).filter(|task| task.desired() < TaskState::Remove) {
            plan.update(slot::desire(task, TaskState::Remove));
        }
    }
}
