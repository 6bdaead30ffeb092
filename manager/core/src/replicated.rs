//! As many slots as a replicated service asks for: missing ones get a task, surplus ones lose theirs.

use std::collections::{BTreeMap, BTreeSet};

use rswarm_proto::model::service::Mode;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::Service;

use crate::author::Author;
use crate::cohort::Cohort;
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
            let occupied = view.cohort(&service.id).map_or(0, Cohort::occupied);
            match replicas.checked_sub(occupied) {
                None => remove_surplus(slot::occupied(view, service), replicas as usize, &mut plan),
                Some(0) => {}
                Some(missing) => {
                    let missing = budget.min(usize::try_from(missing).unwrap_or(usize::MAX));
                    budget -= missing;
                    fill(view, service, missing, env, &mut plan);
                }
            }
        }
        plan
    }
}

/// New tasks in the lowest free slots.
fn fill(view: &State, service: &Service, missing: usize, env: &mut Env<'_>, plan: &mut Plan) {
    let (occupied, last) =
        view.cohort(&service.id).map_or((0, 0), |cohort| (cohort.occupied(), cohort.last_slot()));
    // Most services grow at their end.
    let (first, taken) = if occupied == last {
        (last + 1, BTreeSet::new())
    } else {
        (1, slot::occupied(view, service).iter().map(|slot| slot.latest().slot).collect())
    };
    for slot in (first..).filter(|slot| !taken.contains(slot)).take(missing) {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::world::{World, set_image, spec};
    use rswarm_proto::wire::service_spec;

    fn scale(world: &mut World, id: &str, replicas: u64) {
        let mode = service_spec::Mode::Replicated(rswarm_proto::wire::Replicated { replicas });
        world.change(id, |spec| spec.mode = Some(mode));
    }

    #[test]
    fn a_service_gets_its_replicas_in_slots_from_one() {
        let mut world = World::new(3);
        let id = world.create(spec("web", 4));
        world.run(Duration::from_secs(2));
        assert_eq!(world.running(&id), 4);
        let slots: Vec<u64> = world.live(&id).iter().map(|task| task.slot).collect();
        assert_eq!(slots, [1, 2, 3, 4]);
    }

    #[test]
    fn scaling_down_takes_idle_slots_first_and_leaves_an_even_spread() {
        let mut world = World::new(3);
        let id = world.create(spec("web", 9));
        world.run(Duration::from_secs(2));
        scale(&mut world, &id, 6);
        world.run(Duration::from_secs(2));
        assert_eq!(world.spread(&id).into_values().collect::<Vec<_>>(), [2, 2, 2]);
        let last = world.live(&id).last().expect("a task").clone();
        world.report(&last.id, TaskState::Failed);
        scale(&mut world, &id, 5);
        world.run(Duration::from_secs(3));
        assert!(world.live(&id).iter().all(|task| task.slot != last.slot), "the slot that did not run goes");
    }

    #[test]
    fn a_slot_that_was_given_up_is_the_next_one_to_be_used() {
        let mut world = World::new(3);
        let id = world.create(spec("web", 5));
        world.run(Duration::from_secs(2));
        scale(&mut world, &id, 2);
        world.run(Duration::from_secs(2));
        scale(&mut world, &id, 3);
        world.run(Duration::from_secs(2));
        let slots: Vec<u64> = world.live(&id).iter().map(|task| task.slot).collect();
        assert_eq!((slots.len(), slots.iter().max()), (3, Some(&3)));
    }

    #[test]
    fn a_reused_slot_waits_for_the_task_that_is_still_stopping_in_it() {
        let mut world = World::new(1);
        let id = world.create(spec("web", 1));
        world.run(Duration::from_secs(2));
        scale(&mut world, &id, 0);
        world.reconcile();
        scale(&mut world, &id, 1);
        world.reconcile();
        let waiting = world.live(&id);
        assert_eq!(waiting.iter().map(|task| task.desired()).collect::<Vec<_>>(), [TaskState::Ready]);
        world.run(Duration::from_secs(2));
        assert_eq!(world.running(&id), 1);
    }

    #[test]
    fn a_removed_service_frees_its_name_at_once_and_goes_when_its_tasks_have() {
        let mut world = World::new(2);
        let id = world.create(spec("web", 2));
        world.run(Duration::from_secs(2));
        world.remove_service(&id);
        let again = world.create(spec("web", 1));
        world.reconcile();
        assert!(world.state.service(&id).is_some(), "its tasks still stop");
        world.run(Duration::from_secs(2));
        assert!(world.state.service(&id).is_none());
        assert_eq!(world.tasks(&id).len(), 0);
        assert_eq!(world.running(&again), 1);
    }

    #[test]
    fn a_failing_service_keeps_no_more_than_its_history() {
        let mut world = World::new(2);
        let mut failing = spec("web", 1);
        set_image(&mut failing, crate::world::BROKEN);
        let id = world.create(failing);
        world.run(Duration::from_secs(30));
        assert_eq!(world.history(&id), [5]);
    }
}
