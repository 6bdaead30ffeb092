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
            for slot in slot::restless(view, service) {
                retire_ended(&slot, &mut plan);
                if slot.is_live() {
                    start_waiting(view, service, &slot, env, &mut plan);
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
fn start_waiting(view: &State, service: &Service, slot: &Slot<'_>, env: &Env<'_>, plan: &mut Plan) {
    for task in slot.live().filter(|task| task.desired() == TaskState::Ready) {
        let start_at = start_at(service, task, env);
        if env.now < start_at {
            plan.wake(start_at);
            continue;
        }
        let patience = patience_ends(slot, task, env);
        if slot.others_stopped(view, &task.id) || env.now >= patience {
            plan.update(slot::desire(task, TaskState::Running));
        } else {
            plan.wake(patience);
        }
    }
}

/// When a task may start. The clock of the leader that made it may have been ahead: the delay is never
/// waited for longer than once more.
fn start_at(service: &Service, task: &Task, env: &Env<'_>) -> Timestamp {
    let made_at = env.past(Timestamp(task.meta().created_at));
    Timestamp(task.start_after).min(made_at.after(slot::restart_delay(service)))
}

/// Until when a task waits for its predecessors. While nobody led, nobody could tell them to stop.
fn patience_ends(slot: &Slot<'_>, task: &Task, env: &Env<'_>) -> Timestamp {
    let graces = slot.tasks.iter().filter_map(|task| task.spec.as_ref()).map(|spec| spec.stop_grace());
    let grace = graces.max().unwrap_or_default();
    let made_at = env.past(Timestamp(task.meta().created_at));
    let started_at = env.past(Timestamp(task.start_after));
    made_at.max(started_at).max(env.leader_since).after(grace + PREDECESSOR_PATIENCE)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::world::{BROKEN, STEP, World, set_image, spec};
    use rswarm_proto::wire::{RestartPolicy, ServiceSpec, restart_policy::Condition};

    fn policy(condition: Condition, max_attempts: u64) -> ServiceSpec {
        let mut spec = spec("web", 1);
        let delay = Some(1_000_000_000);
        let policy = RestartPolicy { condition: condition.into(), delay, max_attempts, window: None };
        spec.task.get_or_insert_default().restart = Some(policy);
        spec
    }

    /// Runs a service of one, ends its task like this, and says how many tasks it has had then.
    fn tasks_after(spec: ServiceSpec, end: TaskState) -> usize {
        let mut world = World::new(2);
        let id = world.create(spec);
        world.run(Duration::from_secs(2));
        world.report(&world.live(&id)[0].id.clone(), end);
        world.run(Duration::from_secs(5));
        world.tasks(&id).len()
    }

    #[test]
    fn the_condition_decides_what_is_restarted() {
        use TaskState::{Complete, Failed};
        for (condition, end, tasks) in [
            (Condition::Any, Failed, 2),
            (Condition::Any, Complete, 2),
            (Condition::OnFailure, Failed, 2),
            (Condition::OnFailure, Complete, 1),
            (Condition::None, Failed, 1),
            (Condition::None, Complete, 1),
        ] {
            assert_eq!(tasks_after(policy(condition, 0), end), tasks, "{condition:?} {end:?}");
        }
    }

    #[test]
    fn a_replacement_starts_after_the_delay() {
        let mut world = World::new(1);
        let id = world.create(policy(Condition::Any, 0));
        world.run(Duration::from_secs(2));
        world.report(&world.live(&id)[0].id.clone(), TaskState::Failed);
        let failed_at = world.now;
        world.reconcile();
        let waiting = world.live(&id);
        assert_eq!(waiting.len(), 1);
        assert_eq!(waiting[0].desired(), TaskState::Ready);
        assert_eq!(waiting[0].start_after, failed_at.after(Duration::from_secs(1)).0);
        while world.live(&id)[0].desired() == TaskState::Ready {
            world.step();
        }
        let waited = world.now.since(failed_at);
        assert!(waited >= Duration::from_secs(1) && waited <= Duration::from_secs(1) + STEP, "{waited:?}");
    }

    #[test]
    fn a_leader_whose_clock_is_behind_waits_no_longer_than_the_delay() {
        let mut world = World::new(1);
        let id = world.create(policy(Condition::Any, 0));
        world.run(Duration::from_secs(2));
        world.report(&world.live(&id)[0].id.clone(), TaskState::Failed);
        world.reconcile();
        assert_eq!(world.live(&id)[0].desired(), TaskState::Ready);
        // The next leader's clock is an hour behind.
        world.elect(Timestamp(world.now.0 - 3_600_000_000_000));
        world.run(Duration::from_millis(1200));
        assert_eq!(world.live(&id)[0].desired(), TaskState::Running);
    }

    #[test]
    fn attempts_are_limited_and_counted_by_history() {
        let mut world = World::new(2);
        let mut failing = policy(Condition::Any, 3);
        set_image(&mut failing, BROKEN);
        let id = world.create(failing);
        world.run(Duration::from_secs(60));
        // The first one and three more.
        assert_eq!(world.tasks(&id).len(), 4);
        assert_eq!(world.live(&id).len(), 0);
    }

    #[test]
    fn attempts_outside_the_window_do_not_count() {
        let mut world = World::new(2);
        let mut spec = policy(Condition::Any, 1);
        let task = spec.task.get_or_insert_default();
        task.restart.get_or_insert_default().window = Some(20_000_000_000);
        let id = world.create(spec);
        for _ in 0..3 {
            world.run(Duration::from_secs(30));
            assert_eq!(world.running(&id), 1);
            world.report(&world.live(&id)[0].id.clone(), TaskState::Failed);
        }
        world.run(Duration::from_secs(2));
        assert_eq!(world.running(&id), 1);
        world.report(&world.live(&id)[0].id.clone(), TaskState::Failed);
        world.run(Duration::from_secs(5));
        assert_eq!(world.live(&id).len(), 0, "twice within the window is once too often");
    }

    #[test]
    fn a_replacement_of_a_stopping_task_waits_for_it_but_not_forever() {
        let mut world = World::new(2);
        let mut web = spec("web", 1);
        let stop_first = (crate::relocate::ORDER.to_owned(), "stop-first".to_owned());
        web.annotations.get_or_insert_default().labels.extend([stop_first]);
        let id = world.create(web);
        world.run(Duration::from_secs(2));
        let old = world.live(&id)[0].clone();
        world.change_node(&old.node_id, Author::Control, |node| {
            node.spec.get_or_insert_default().set_availability(rswarm_proto::wire::NodeAvailability::Drain);
        });
        world.reconcile();
        assert_eq!(world.live(&id)[0].desired(), TaskState::Ready);
        // The old task's node beats on, but its container does not stop.
        let beat_only = |world: &mut World| {
            world.now = world.now.after(STEP);
            world.beat();
            world.reconcile();
        };
        (0..600).for_each(|_| beat_only(&mut world));
        assert_eq!(world.live(&id)[0].desired(), TaskState::Ready, "a minute is within the stop grace");
        (0..150).for_each(|_| beat_only(&mut world));
        assert_eq!(world.live(&id)[0].desired(), TaskState::Running);
    }
}
