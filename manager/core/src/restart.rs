//! Replacements: what has ended gets a successor as far as the restart policy allows, and what waits for its
//! predecessor is let go once that has stopped.

use std::time::Duration;

use rswarm_base::Timestamp;
use rswarm_proto::model::object::Stored;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{Service, Task};

use crate::author::Author;
use crate::global;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::slot::{self, Slot, Verdict};
use crate::state::State;

/// How much longer than its own stop grace a predecessor is waited for (swarmkit: one minute in all).
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(60);

/// Replaces ended tasks.
#[derive(Debug)]
pub struct Restart;

impl Reconciler for Restart {
    fn author(&self) -> Author {
        Author::Restart
    }

    fn reconcile(&self, view: &State, env: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        for service in view.services().filter(|service| !service.pending_delete) {
            for slot in slot::occupied(view, service) {
                retire_ended(&slot, &mut plan);
                if slot.is_live() {
                    start_waiting(view, &slot, env.now, &mut plan);
                } else {
                    replace(view, service, &slot, env, &mut plan);
                }
            }
        }
        plan
    }
}

/// What has ended is history, whatever comes next.
fn retire_ended(slot: &Slot<'_>, plan: &mut Plan) {
    let ended = slot
        .tasks
        .iter()
        .filter(|task| task.desired() <= TaskState::Running && task.observed().is_terminal());
    ended.for_each(|task| plan.update(slot::desire(task, TaskState::Shutdown)));
}

fn replace(view: &State, service: &Service, slot: &Slot<'_>, env: &mut Env<'_>, plan: &mut Plan) {
    let Verdict::Replace(delay) = slot::verdict(service, slot) else { return };
    if slot::is_global(service) {
        let node = view.node(&slot.latest().node_id);
        if !node.is_some_and(|node| global::is_eligible(service, node)) {
            return;
        }
    }
    let mut task = slot::successor(service, slot, delay, env.now, env.ids);
    if task.start_after == 0 && slot.others_stopped(view, "") {
        task.desired_state = TaskState::Running.into();
    } else if task.start_after != 0 {
        plan.wake(Timestamp(task.start_after));
    }
    plan.create(task);
}

/// Tasks that were made ready may start when their time has come and their predecessors have stopped.
fn start_waiting(view: &State, slot: &Slot<'_>, now: Timestamp, plan: &mut Plan) {
    for task in slot.live().filter(|task| task.desired() == TaskState::Ready) {
        if now.0 < task.start_after {
            plan.wake(Timestamp(task.start_after));
            continue;
        }
        let patience = patience_ends(slot, task);
        if slot.others_stopped(view, &task.id) || now >= patience {
            plan.update(slot::desire(task, TaskState::Running));
        } else {
            plan.wake(patience);
        }
    }
}

/// Until when a task waits for its predecessors.
fn patience_ends(slot: &Slot<'_>, task: &Task) -> Timestamp {
    let graces = slot.tasks.iter().filter_map(|task| task.spec.as_ref()).map(|spec| spec.stop_grace());
    let grace = graces.max().unwrap_or_default();
    Timestamp(task.meta().created_at.max(task.start_after)).after(grace + PREDECESSOR_PATIENCE)
}
