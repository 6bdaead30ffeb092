//! Tasks that move while they serve: off a node that is drained, or to one that is better ([`crate::rebalance`]). The successor is started beside the task that it
//! takes over from, on another node; the old one is told to stop once the new one runs, and is led nothing new
//! before it does ([`crate::drain`]). So a service of one replica does not go down.
//!
//! How many slots of a service move at once is its update's parallelism. What cannot move so is told to stop by
//! [`crate::enforce`]: at once where two tasks beside each other would be wrong, else when the node's deadline has
//! come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rswarm_base::{Timestamp, duration};
use rswarm_proto::model::service::Mode;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::restart_policy::Condition;
use rswarm_proto::wire::update_status::State as Phase;
use rswarm_proto::wire::{Node, NodeAvailability, Service, Takeover, Task};

use crate::author::Author;
use crate::filter;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::slot::{self, Slot, Verdict};
use crate::state::State;

/// Node label: how long its tasks may serve on while their successors are started elsewhere, from when it is
/// drained.
pub const DEADLINE: &str = "rswarm.drain.deadline";
/// Service label: whether its tasks leave a drained node after their successors run, or before these start.
pub const ORDER: &str = "rswarm.drain.order";
/// How long tasks may serve on when the node's label says nothing.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(10 * 60);

/// Moves tasks.
#[derive(Debug)]
pub struct Relocate;

impl Reconciler for Relocate {
    fn author(&self) -> Author {
        Author::Relocate
    }

    fn reconcile(&self, view: &State, env: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        let leaving = leaving(view, env);
        for service in view.services().filter(|service| !service.pending_delete && !service.is_job()) {
            let takes_over = |task: &Arc<Task>| task.takes_over() != Takeover::NoTakeover;
            if leaving.contains(service.id.as_str())
                || slot::restless(view, service).any(|slot| slot.live().any(takes_over))
            {
                relocate(view, service, env, &mut plan);
            }
        }
        plan
    }
}

/// The services that have tasks on drained nodes which serve on there.
fn leaving<'a>(view: &'a State, env: &Env<'_>) -> BTreeSet<&'a str> {
    let drained = view.nodes().filter(|node| is_drained(node));
    let tasks = drained.flat_map(|node| view.tasks_on_node(&node.id));
    let serving = tasks.filter(|task| task.is_live() && serves_on(view, task, env));
    serving.map(|task| task.service_id.as_str()).collect()
}

fn relocate(view: &State, service: &Arc<Service>, env: &mut Env<'_>, plan: &mut Plan) {
    let slots = slot::occupied(view, service);
    let mut under_way = slots.iter().filter(|slot| !settle(view, slot, plan)).count() as u64;
    let phase = service.update_status.as_ref().map_or(Phase::Unknown, |status| status.state());
    if matches!(phase, Phase::Updating | Phase::RollbackStarted) {
        // The update replaces these slots itself, or they follow when it is over.
        return;
    }
    for slot in slots {
        let mut live = slot.live();
        let (Some(task), None) = (live.next(), live.next()) else { continue };
        let is_leaving = slot.tasks.iter().any(|task| !task.is_live() && may_run(view, task));
        if is_leaving || !serves_on(view, task, env) || !is_time(service, &slot, task, env, plan) {
            continue;
        }
        if under_way >= parallelism(service) {
            return;
        }
        under_way += 1;
        let successor = slot::successor(service, &slot, Duration::ZERO, env.now, env.ids);
        plan.create(Task {
            desired_state: TaskState::Running.into(),
            takes_over: Takeover::DrainedNode.into(),
            replaces: task.id.clone(),
            ..successor
        });
    }
}

/// Whether a node may be running it: a third task beside two would be more than users asked for.
fn may_run(view: &State, task: &Task) -> bool {
    let state = task.observed();
    state >= TaskState::Assigned && !state.is_terminal() && !view.is_node_lost(&task.node_id)
}

/// Ends one of two tasks that are beside each other: the old one once the new one runs, the new one when the move
/// is no longer wanted. Says whether the slot is left with one.
fn settle(view: &State, slot: &Slot<'_>, plan: &mut Plan) -> bool {
    let mut live: Vec<&Arc<Task>> = slot.live().collect();
    let Some(newest) = live.pop().filter(|_| !live.is_empty()) else { return true };
    if newest.observed() == TaskState::Running && newest.takes_over() != Takeover::NoTakeover {
        live.into_iter().for_each(|old| plan.update(slot::desire(old, TaskState::Shutdown)));
        return true;
    }
    let is_wanted = match newest.takes_over() {
        Takeover::NoTakeover => true,
        // The node that was better has gone since, or takes no tasks any more.
        Takeover::BetterNode => view.node(&newest.node_id).is_some_and(|node| filter::takes_new_tasks(node)),
        Takeover::DrainedNode => live.iter().any(|old| view.node(&old.node_id).is_none_or(is_drained)),
    };
    if !is_wanted {
        plan.update(slot::desire(newest, TaskState::Shutdown));
    }
    !is_wanted
}

/// Whether the slot may get a successor now: one that failed there is tried again as the restart policy says.
fn is_time(service: &Service, slot: &Slot<'_>, task: &Task, env: &Env<'_>, plan: &mut Plan) -> bool {
    let latest = slot.latest();
    if latest.id == task.id {
        return true;
    }
    let Verdict::Replace(delay) = slot::verdict(service, slot) else { return false };
    let ended = latest.status.as_ref().map_or(0, |status| status.timestamp);
    let at = env.past(Timestamp(ended)).after(delay);
    if env.now < at {
        plan.wake(at);
    }
    env.now >= at
}

/// Slots of a service that may move at once.
#[must_use]
pub fn parallelism(service: &Service) -> u64 {
    let update = service.spec.as_ref().and_then(|spec| spec.update);
    match update.map_or(1, |update| update.parallelism) {
        0 => u64::MAX,
        parallelism => parallelism,
    }
}

/// Whether a task on a drained node serves until its successor runs.
#[must_use]
pub fn serves_on(view: &State, task: &Task, env: &Env<'_>) -> bool {
    let Some(node) = view.node(&task.node_id).filter(|node| is_drained(node)) else { return false };
    let service = view.service(&task.service_id).filter(|service| !service.pending_delete);
    task.observed() == TaskState::Running
        && env.now < deadline(node, env)
        && !view.is_node_lost(&node.id)
        && service.is_some_and(|service| is_movable(service))
}

fn is_drained(node: &Arc<Node>) -> bool {
    filter::availability(node) == NodeAvailability::Drain
}

/// Until when the tasks of a drained node may serve on.
#[must_use]
pub fn deadline(node: &Node, env: &Env<'_>) -> Timestamp {
    if node.drain_since == 0 {
        return Timestamp::ZERO;
    }
    let labels = node.spec.as_ref().and_then(|spec| spec.annotations.as_ref());
    let patience = labels.and_then(|annotations| annotations.labels.get(DEADLINE));
    let patience = patience.and_then(|text| duration::parse(text).ok()).unwrap_or(DEADLINE_DEFAULT);
    env.past(Timestamp(node.drain_since)).after(patience)
}

/// Whether two tasks of one slot may be beside each other: not those of a job, nor of a service that has one on
/// each node, nor where tasks are never replaced, nor where the service says otherwise.
pub(crate) fn is_movable(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    let labels = spec.annotations.as_ref().map(|annotations| &annotations.labels);
    matches!(spec.mode_or_default(), Mode::Replicated(_))
        && slot::restart_policy(service).condition() != Condition::None
        && labels.and_then(|labels| starts_first(labels).ok()).unwrap_or(true)
}

/// Whether successors start before tasks leave a drained node, as a service's labels say.
///
/// # Errors
/// The label's value says nothing known, and what it may say.
pub fn starts_first(labels: &BTreeMap<String, String>) -> Result<bool, String> {
    match labels.get(ORDER).map(String::as_str) {
        None | Some("start-first") => Ok(true),
        Some("stop-first") => Ok(false),
        Some(value) => Err(format!("invalid label {ORDER}={value}: want start-first or stop-first")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{BROKEN, World, set_image, spec};
    use rswarm_proto::wire::{RestartPolicy, ServiceSpec, UpdateConfig};

    fn set(world: &mut World, node: &str, availability: NodeAvailability) {
        world.change_node(node, Author::Control, |node| {
            node.spec.get_or_insert_default().set_availability(availability);
        });
        world.reconcile();
    }

    fn label_node(world: &mut World, node: &str, deadline: &str) {
        world.change_node(node, Author::Control, |node| {
            let annotations = node.spec.get_or_insert_default().annotations.get_or_insert_default();
            annotations.labels.insert(DEADLINE.to_owned(), deadline.to_owned());
        });
    }

    /// A running service on one node, which is then drained.
    fn drained(nodes: usize, spec: ServiceSpec) -> (World, String, String) {
        let mut world = World::new(nodes);
        let id = world.create(spec);
        world.run(Duration::from_secs(2));
        let node = world.live(&id)[0].node_id.clone();
        set(&mut world, &node, NodeAvailability::Drain);
        (world, id, node)
    }

    fn on(world: &World, id: &str, node: &str) -> usize {
        world.spread(id).get(node).copied().unwrap_or(0)
    }

    #[test]
    fn the_only_task_of_a_service_serves_until_its_successor_runs() {
        let (mut world, id, node) = drained(2, spec("web", 1));
        world.live_max.insert(id.clone(), 2);
        let old = world.live(&id)[0].id.clone();
        assert_eq!(world.live(&id).len(), 2, "the successor is beside it at once");
        while on(&world, &id, &node) > 0 {
            assert!(world.running(&id) >= 1);
            world.step();
        }
        world.run(Duration::from_secs(1));
        assert_eq!((world.running(&id), world.live(&id).len()), (1, 1));
        let new = &world.live(&id)[0];
        assert_eq!((&new.replaces, new.slot), (&old, 1));
    }

    #[test]
    fn as_many_move_at_once_as_an_update_would_touch() {
        let update = Some(UpdateConfig { parallelism: 2, ..UpdateConfig::default() });
        let (mut world, id, node) = drained(2, ServiceSpec { update, ..spec("web", 8) });
        world.live_max.insert(id.clone(), 10);
        assert_eq!((on(&world, &id, &node), world.live(&id).len()), (4, 10));
        while on(&world, &id, &node) > 0 {
            assert!(world.running(&id) >= 8);
            world.step();
        }
        world.run(Duration::from_secs(1));
        assert_eq!((world.running(&id), world.live(&id).len()), (8, 8));
    }

    #[test]
    fn when_no_other_node_takes_a_task_it_serves_until_the_deadline() {
        let mut world = World::new(1);
        let id = world.create(spec("web", 1));
        world.run(Duration::from_secs(2));
        label_node(&mut world, "n1", "30s");
        set(&mut world, "n1", NodeAvailability::Drain);
        world.run(Duration::from_secs(29));
        assert_eq!(world.running(&id), 1);
        let waits = world.live(&id).into_iter().find(|task| task.observed() == TaskState::Pending);
        let why = waits.and_then(|task| task.status.clone()).unwrap_or_default().err;
        assert_eq!(why, "no suitable node (1 node not available for new tasks)");
        world.run(Duration::from_secs(2));
        assert_eq!((world.running(&id), world.live(&id).len()), (0, 1), "its successor waits on");
        set(&mut world, "n1", NodeAvailability::Active);
        world.run(Duration::from_secs(2));
        assert_eq!((world.running(&id), world.live(&id).len()), (1, 1));
    }

    #[test]
    fn a_deadline_of_zero_stops_at_once() {
        let mut world = World::new(2);
        let id = world.create(spec("web", 1));
        world.run(Duration::from_secs(2));
        let node = world.live(&id)[0].node_id.clone();
        label_node(&mut world, &node, "0");
        set(&mut world, &node, NodeAvailability::Drain);
        assert_eq!((on(&world, &id, &node), world.running(&id)), (0, 0));
    }

    #[test]
    fn a_drain_that_is_taken_back_leaves_what_was_there() {
        let (mut world, id, node) = drained(2, spec("web", 1));
        let old = world.live(&id)[0].id.clone();
        set(&mut world, &node, NodeAvailability::Active);
        world.run(Duration::from_secs(2));
        let live: Vec<_> = world.live(&id).iter().map(|task| task.id.clone()).collect();
        assert_eq!(live, [old]);
    }

    #[test]
    fn a_successor_that_fails_is_tried_again_after_the_delay_and_the_old_task_serves() {
        let (mut world, id, node) = drained(2, spec("web", 1));
        for _ in 0..3 {
            let beside = |task: &Arc<Task>| task.takes_over() == Takeover::DrainedNode;
            let new = world.live(&id).into_iter().find(beside).expect("a successor");
            while world.state.task(&new.id).expect("task").observed() < TaskState::Starting {
                world.step();
            }
            world.report(&new.id, TaskState::Failed);
            world.reconcile();
            assert_eq!((world.running(&id), world.live(&id).len()), (1, 1), "not before the delay");
            world.run(Duration::from_millis(1100));
            assert_eq!(world.live(&id).len(), 2);
        }
        world.run(Duration::from_secs(2));
        assert_eq!((world.running(&id), on(&world, &id, &node)), (1, 0));
    }

    #[test]
    fn where_two_beside_each_other_would_be_wrong_the_old_task_goes_first() {
        let labels = [(ORDER.to_owned(), "stop-first".to_owned())];
        let mut labelled = spec("web", 1);
        labelled.annotations.get_or_insert_default().labels = labels.into();
        let (mut world, id, node) = drained(2, labelled);
        assert_eq!(on(&world, &id, &node), 0);
        world.run(Duration::from_secs(2));
        assert_eq!(world.running(&id), 1);

        let mut once = spec("once", 1);
        let policy = RestartPolicy { condition: Condition::None.into(), ..RestartPolicy::default() };
        once.task.get_or_insert_default().restart = Some(policy);
        let (mut world, id, _) = drained(2, once);
        world.run(Duration::from_secs(2));
        assert_eq!(world.live(&id).len(), 0, "what is never replaced does not move");
    }

    #[test]
    fn a_lost_node_is_not_waited_for() {
        let (mut world, id, node) = drained(3, spec("web", 1));
        world.cut.insert(node.clone());
        world.run(Duration::from_secs(15));
        assert_eq!((world.running(&id), on(&world, &id, &node)), (1, 0));
    }

    #[test]
    fn an_update_that_comes_in_between_makes_no_third_task() {
        let (mut world, id, _) = drained(3, spec("web", 2));
        world.live_max.insert(id.clone(), 3);
        world.change(&id, |spec| set_image(spec, "web:2"));
        world.run(Duration::from_secs(20));
        assert_eq!((world.running(&id), world.live(&id).len()), (2, 2));
        world.change(&id, |spec| set_image(spec, BROKEN));
        world.run(Duration::from_secs(20));
        world.change(&id, |spec| set_image(spec, "web:3"));
        world.run(Duration::from_secs(30));
        assert_eq!((world.running(&id), world.live(&id).len()), (2, 2));
    }
}
