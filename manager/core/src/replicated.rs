//! As many slots as a replicated service asks for: missing ones get a task, surplus ones lose theirs.

use std::collections::{BTreeMap, BTreeSet};

use rswarm_proto::model::service::Mode;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::Service;

use crate::author::Author;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::slot::{self, Place, Slot};
use crate::state::State;

/// New tasks in one plan: bounds the size of one proposal; the next pass makes the next ones.
pub const CREATES_MAX: usize = 1000;

/// Scales replicated services.
#[derive(Debug)]
pub struct Replicated;

impl Reconciler for Replicated {
    fn author(&self) -> Author {
        Author::Replicated
    }

    fn reconcile(&self, view: &State, env: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        let mut budget = CREATES_MAX;
        for service in view.services().filter(|service| !service.pending_delete) {
            let Some(Mode::Replicated(replicas)) = service.spec.as_ref().map(|spec| spec.mode_or_default())
            else {
                continue;
            };
            let slots = slot::occupied(view, service);
            match replicas.checked_sub(slots.len() as u64) {
                None => remove_surplus(slots, replicas as usize, &mut plan),
                Some(0) => {}
                Some(missing) => {
                    let missing = budget.min(usize::try_from(missing).unwrap_or(usize::MAX));
                    budget -= missing;
                    fill(view, service, &slots, missing, env, &mut plan);
                }
            }
        }
        plan
    }
}

/// New tasks in the lowest free slots.
fn fill(
    view: &State,
    service: &Service,
    slots: &[Slot<'_>],
    missing: usize,
    env: &mut Env<'_>,
    plan: &mut Plan,
) {
    let taken: BTreeSet<u64> = slots.iter().map(|slot| slot.latest().slot).collect();
    for slot in (1..).filter(|slot| !taken.contains(slot)).take(missing) {
        let place = Place { slot, node_id: String::new() };
        let mut task = slot::new_task(service, place, env.now, env.ids);
        // A slot that was given up may still hold a task that is on its way out.
        if view.tasks_of_slot(&service.id, slot).any(|task| !slot::is_stopped(view, task)) {
            task.desired_state = TaskState::Ready.into();
        }
        plan.create(task);
    }
}

/// Gives up slots until `keep` are left: those that do not run first, then those on the fullest nodes.
fn remove_surplus(slots: Vec<Slot<'_>>, keep: usize, plan: &mut Plan) {
    let mut on_node: BTreeMap<&str, usize> = BTreeMap::new();
    let mut ranked: Vec<(bool, usize, u64, &Slot<'_>)> = Vec::new();
    for slot in &slots {
        let running = slot.live().find(|task| task.observed() == TaskState::Running);
        let nth = running.map_or(0, |task| {
            let count = on_node.entry(&task.node_id).or_default();
            *count += 1;
            *count
        });
        ranked.push((running.is_none(), nth, slot.latest().slot, slot));
    }
    ranked.sort_by_key(|(idle, nth, slot, _)| (*idle, *nth, *slot));
    for (_, _, _, slot) in ranked.drain(keep.min(slots.len())..) {
        for task in slot.tasks.iter().filter(|task| task.desired() < TaskState::Remove) {
            plan.update(slot::desire(task, TaskState::Remove));
        }
    }
}
