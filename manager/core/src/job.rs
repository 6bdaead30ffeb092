//! Jobs: tasks that run to completion, each slot once in an iteration.
//!
//! A replicated job has the slots from 1 to its total completions; here they get their tasks, as many at a time as
//! may be. A global job's slots are nodes ([`crate::global`]). Either way, what has failed is tried again by
//! [`crate::restart`], and a slot is done with the first task that completes. Every change of a job begins another
//! iteration, as does each time of its schedule ([`crate::cron`]); what is left of earlier ones is removed here.

use std::collections::BTreeMap;

use rswarm_proto::model::service::Mode;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::Service;

use crate::author::Author;
use crate::cron;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::replicated::CREATES_MAX;
use crate::slot::{self, Place, Slot, Verdict};
use crate::state::State;

/// Runs jobs.
#[derive(Debug)]
pub struct Jobs;

impl Reconciler for Jobs {
    fn author(&self) -> Author {
        Author::Job
    }

    fn reconcile(&self, view: &State, env: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        let mut budget = CREATES_MAX;
        let jobs = view.services().filter(|service| !service.pending_delete && service.is_job());
        for service in jobs.filter(|service| !cron::is_waiting(service)) {
            let slots = slot::occupied(view, service);
            remove_surplus(service, &slots, &mut plan);
            if let Some(Mode::ReplicatedJob { concurrent, total }) =
                service.spec.as_ref().map(|spec| spec.mode_or_default())
            {
                let free = free_slots(service, &slots, concurrent, total, budget);
                budget -= free.len();
                free.into_iter().for_each(|slot| create(view, service, slot, env, &mut plan));
            }
        }
        plan
    }
}

/// The lowest slots that have not had their turn, as many as may run beside those that are under way.
fn free_slots(service: &Service, slots: &[Slot<'_>], concurrent: u64, total: u64, budget: usize) -> Vec<u64> {
    let own: BTreeMap<u64, bool> = slots
        .iter()
        .filter(|slot| slot.latest().job_iteration == service.job_iteration())
        .map(|slot| (slot.latest().slot, is_under_way(service, slot)))
        .collect();
    let under_way = own.values().filter(|under_way| **under_way).count() as u64;
    if own.len() as u64 >= total {
        return Vec::new();
    }
    let more = usize::try_from(concurrent.saturating_sub(under_way)).unwrap_or(usize::MAX);
    (1..=total).filter(|slot| !own.contains_key(slot)).take(more.min(budget)).collect()
}

/// Whether nothing of the job's iteration runs, or will.
#[must_use]
pub fn is_finished(view: &State, service: &Service) -> bool {
    if cron::is_waiting(service) {
        return true;
    }
    let slots = slot::occupied(view, service);
    let own = || slots.iter().filter(|slot| slot.latest().job_iteration == service.job_iteration());
    let total = match service.spec.as_ref().map(|spec| spec.mode_or_default()) {
        Some(Mode::ReplicatedJob { concurrent, total }) if concurrent > 0 => total,
        _ => 0,
    };
    own().count() as u64 >= total && !own().any(|slot| is_under_way(service, slot))
}

/// Whether the slot runs, or will again. One that failed for good is not waited for.
fn is_under_way(service: &Service, slot: &Slot<'_>) -> bool {
    !slot.is_complete(service) && (slot.is_live() || slot::verdict(service, slot) != Verdict::Done)
}

fn create(view: &State, service: &Service, slot: u64, env: &mut Env<'_>, plan: &mut Plan) {
    let place = Place { slot, node_id: String::new() };
    let mut task = slot::new_task(service, place, env.now, env.ids);
    // A task of an earlier iteration may be on its way out.
    if view.tasks_of_slot(&service.id, slot).any(|task| !slot::is_stopped(view, task)) {
        task.desired_state = TaskState::Ready.into();
    }
    plan.create(task);
}

/// Tasks of earlier iterations, and those that run still in a slot that is complete: a node that was given up may
/// have completed its task all the same.
fn remove_surplus(service: &Service, slots: &[Slot<'_>], plan: &mut Plan) {
    let history = cron::of(service).map_or(0, |cron| cron.history);
    let kept_from = service.job_iteration().unwrap_or(0).saturating_sub(history);
    for slot in slots {
        let complete = slot.is_complete(service);
        for task in slot.tasks.iter().filter(|task| task.desired() < TaskState::Remove) {
            let kept = task.job_iteration.is_some_and(|iteration| iteration >= kept_from);
            let outdated = task.job_iteration != service.job_iteration() && (task.is_live() || !kept);
            if outdated || complete && task.is_live() {
                plan.update(slot::desire(task, TaskState::Remove));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::world::{World, node, set_image, spec};
    use rswarm_proto::wire::restart_policy::Condition;
    use rswarm_proto::wire::{
        GlobalJob, NodeAvailability, ReplicatedJob, RestartPolicy, ServiceSpec, service_spec,
    };

    fn job(concurrent: u64, total: u64) -> ServiceSpec {
        let mode = ReplicatedJob { max_concurrent: concurrent, total_completions: total };
        with_mode(service_spec::Mode::ReplicatedJob(mode))
    }

    fn with_mode(mode: service_spec::Mode) -> ServiceSpec {
        let mut spec = ServiceSpec { mode: Some(mode), ..spec("job", 0) };
        let policy = RestartPolicy { delay: Some(100_000_000), max_attempts: 2, ..RestartPolicy::default() };
        spec.task.get_or_insert_default().restart = Some(policy);
        spec
    }

    /// Slots of the job's iteration that are complete.
    fn completed(world: &World, id: &str) -> usize {
        let service = world.service(id);
        slot::occupied(&world.state, &service).iter().filter(|slot| slot.is_complete(&service)).count()
    }

    /// Ends what runs like this, until nothing runs any more; says how many ran at a time at most.
    fn run_to_the_end(world: &mut World, id: &str, end: TaskState) -> usize {
        let mut most = 0;
        for _ in 0..30 {
            world.run(Duration::from_secs(1));
            let running: Vec<String> = world.live(id).iter().map(|task| task.id.clone()).collect();
            most = most.max(running.len());
            running.iter().for_each(|task| world.report(task, end));
        }
        most
    }

    #[test]
    fn a_job_completes_every_slot_once_and_no_more_run_than_may() {
        let mut world = World::new(3);
        let id = world.create(job(2, 5));
        assert_eq!(run_to_the_end(&mut world, &id, TaskState::Complete), 2);
        let mut slots: Vec<u64> = world.tasks(&id).iter().map(|task| task.slot).collect();
        slots.sort_unstable();
        assert_eq!((slots, completed(&world, &id)), (vec![1, 2, 3, 4, 5], 5));
    }

    #[test]
    fn what_fails_is_tried_again_as_often_as_the_policy_allows() {
        for (condition, tries) in [(Condition::Any, 3), (Condition::OnFailure, 3), (Condition::None, 1)] {
            let mut world = World::new(2);
            let mut spec = job(1, 2);
            let policy = spec.task.get_or_insert_default().restart.get_or_insert_default();
            policy.set_condition(condition);
            let id = world.create(spec);
            assert_eq!(run_to_the_end(&mut world, &id, TaskState::Failed), 1);
            assert_eq!(world.tasks(&id).len(), 2 * tries, "{condition:?}");
            assert_eq!(completed(&world, &id), 0);
        }
    }

    #[test]
    fn every_change_runs_the_job_again() {
        let mut world = World::new(3);
        let id = world.create(job(5, 5));
        run_to_the_end(&mut world, &id, TaskState::Complete);
        let first: Vec<String> = world.tasks(&id).iter().map(|task| task.id.clone()).collect();
        world.change(&id, |spec| spec.task.get_or_insert_default().force_update += 1);
        assert_eq!(world.service(&id).job_status.map(|status| status.iteration), Some(1));
        run_to_the_end(&mut world, &id, TaskState::Complete);
        assert_eq!((completed(&world, &id), world.tasks(&id).len()), (5, 5));
        assert!(
            world.tasks(&id).iter().all(|task| !first.contains(&task.id) && task.job_iteration == Some(1))
        );
    }

    #[test]
    fn a_task_that_is_under_way_is_stopped_before_its_slot_runs_again() {
        let mut world = World::new(1);
        let id = world.create(job(1, 1));
        world.run(Duration::from_secs(2));
        let old = world.live(&id)[0].id.clone();
        world.change(&id, |spec| set_image(spec, "web:2"));
        world.reconcile();
        let new = world.live(&id).iter().find(|task| task.id != old).expect("its successor").clone();
        assert_eq!((new.desired(), new.slot), (TaskState::Ready, 1));
        assert_eq!(world.state.task(&old).expect("still there").desired(), TaskState::Remove);
        world.run(Duration::from_secs(3));
        assert_eq!(world.running(&id), 1);
    }

    #[test]
    fn a_node_that_is_lost_costs_another_try_and_no_completion() {
        let mut world = World::new(2);
        let id = world.create(job(2, 2));
        world.run(Duration::from_secs(2));
        let lost = world.live(&id)[0].clone();
        world.change_node(&lost.node_id, Author::Control, |node| {
            node.spec.get_or_insert_default().set_availability(NodeAvailability::Drain);
        });
        world.run(Duration::from_secs(3));
        assert_eq!(world.running(&id), 2, "{:?}", world.tasks(&id));
        run_to_the_end(&mut world, &id, TaskState::Complete);
        assert_eq!(completed(&world, &id), 2);
    }

    #[test]
    fn a_global_job_completes_once_on_every_node_also_on_a_new_one() {
        let mut world = World::new(3);
        let id = world.create(with_mode(service_spec::Mode::GlobalJob(GlobalJob {})));
        assert_eq!(run_to_the_end(&mut world, &id, TaskState::Complete), 3);
        let mut plan = Plan::default();
        plan.create(node("n9"));
        world.write(Author::Ca, plan.into_changes());
        assert_eq!(run_to_the_end(&mut world, &id, TaskState::Complete), 1);
        assert_eq!((completed(&world, &id), world.tasks(&id).len()), (4, 4));
        world.change(&id, |spec| spec.task.get_or_insert_default().force_update += 1);
        run_to_the_end(&mut world, &id, TaskState::Complete);
        assert_eq!((completed(&world, &id), world.tasks(&id).len()), (4, 4), "once more everywhere");
    }
}
