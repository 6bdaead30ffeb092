//! Evictions: a task must leave a node that was drained, is lost, or no longer has what the task needs.
//! The task is only told to stop; its replacement is `restart`'s business. On a drained node that is the last
//! resort: what can move while it serves is `relocate`'s. On a lost one a task may wait for its node's return.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rswarm_base::{Timestamp, duration};
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{Node, NodeAvailability, Task, TaskStatus};

use crate::author::Author;
use crate::filter;
use crate::generic::Claims;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::relocate;
use crate::schedule::Load;
use crate::slot;
use crate::state::State;

/// What stands on a task whose node no longer meets its constraints.
const NO_LONGER_FITS: &str = "assigned node no longer meets constraints";

/// Service label: how long a task waits for its node after that counts as down, before it is replaced elsewhere. A
/// node that is back by then has it still.
const GRACE: &str = "rswarm.node-loss.grace";

/// Tells tasks to leave nodes.
#[derive(Debug)]
pub struct Enforce;

impl Reconciler for Enforce {
    fn author(&self) -> Author {
        Author::Enforce
    }

    fn reconcile(&self, view: &State, env: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        // When no node is left, moving tasks would only stop them: they are taken on again as nodes return.
        let has_refuge = view.nodes().any(|node| filter::takes_new_tasks(node));
        for node_id in view.nodes_with_tasks() {
            // A container of the node's own is not the managers' to move.
            let is_ours = |task: &&Arc<Task>| task.is_live() && !task.is_attachment();
            let live = || view.tasks_on_node(node_id).filter(is_ours);
            match view.node(node_id) {
                None => live().for_each(|task| plan.update(slot::desire(task, TaskState::Shutdown))),
                Some(node) if filter::availability(node) == NodeAvailability::Drain => {
                    let (serving, leaving): (Vec<_>, Vec<_>) =
                        live().partition(|task| relocate::serves_on(view, task, env));
                    leaving.iter().for_each(|task| plan.update(slot::desire(task, TaskState::Shutdown)));
                    if !serving.is_empty() {
                        plan.wake(relocate::deadline(node, env));
                    }
                }
                // A global task has nowhere else to go: it waits for its node.
                Some(node) if view.is_node_lost(node_id) => {
                    let movable = live().filter(|task| has_refuge && task.slot != 0);
                    movable.for_each(|task| replace_or_wait(view, task, node, env, &mut plan));
                }
                Some(node)
                    if view.has_misplaced_tasks(node_id) || is_too_small(node, &view.load(node_id)) =>
                {
                    misfits(node, live().collect()).for_each(|task| plan.update(evicted(task)));
                }
                Some(_) => {}
            }
        }
        plan
    }
}

/// How long the tasks of a service with these labels wait for a lost node.
///
/// # Errors
/// The label that says no duration.
pub fn grace(labels: &BTreeMap<String, String>) -> Result<Duration, String> {
    let grace = labels.get(GRACE).map(|text| duration::parse(text));
    grace.transpose().map(Option::unwrap_or_default).map_err(|error| format!("label {GRACE}: {error}"))
}

/// Tells a task of a lost node to stop, once its service waits no longer.
fn replace_or_wait(view: &State, task: &Task, node: &Node, env: &Env<'_>, plan: &mut Plan) {
    let service = view.service(&task.service_id).and_then(|service| service.spec.as_ref());
    let labels = service.and_then(|spec| spec.annotations.as_ref()).map(|annotations| &annotations.labels);
    let grace = labels.and_then(|labels| grace(labels).ok()).unwrap_or_default();
    let lost_at = node.status.as_ref().map_or(0, |status| status.changed_at);
    let until = env.past(Timestamp(lost_at)).after(grace);
    if env.now >= until {
        plan.update(slot::desire(task, TaskState::Shutdown));
    } else {
        plan.wake(until);
    }
}

/// Whether the node has less than all of its tasks together were given, stopping ones too.
fn is_too_small(node: &Node, load: &Load) -> bool {
    let has = filter::capacity(node);
    load.nano_cpus > has.nano_cpus || load.memory > has.memory || !load.generic.is_had_by(node)
}

/// The tasks that the node can no longer have: its labels contradict their constraints, or it has become too
/// small for all of them, in which case the latest ones go.
fn misfits<'a>(node: &Node, mut tasks: Vec<&'a Arc<Task>>) -> impl Iterator<Item = &'a Arc<Task>> {
    tasks.sort_by_key(|task| slot::age(task));
    let has = filter::capacity(node);
    let (mut cpus, mut memory, mut generic) = (0i64, 0i64, Claims::default());
    tasks.retain(|task| {
        let reserved = filter::reservations(task);
        let too_much = (reserved.nano_cpus > 0 && cpus.saturating_add(reserved.nano_cpus) > has.nano_cpus)
            || (reserved.memory > 0 && memory.saturating_add(reserved.memory) > has.memory);
        let mut with_it = generic.clone();
        with_it.add(&task.generic);
        let too_much = too_much || !task.generic.is_empty() && !with_it.is_had_by(node);
        let misplaced = task.spec.as_ref().is_some_and(|spec| !slot::sits_well(spec, node));
        let leaves = (too_much || misplaced) && task.observed() >= TaskState::Assigned;
        if !leaves && task.observed() >= TaskState::Assigned {
            cpus += reserved.nano_cpus;
            memory += reserved.memory;
            generic = with_it;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{World, spec};
    use rswarm_proto::wire::{Placement, ResourceRequirements, Resources};

    #[test]
    fn a_drained_node_is_left_in_order() {
        let mut world = World::new(2);
        let mut web = spec("web", 4);
        let stop_first = (relocate::ORDER.to_owned(), "stop-first".to_owned());
        web.annotations.get_or_insert_default().labels.extend([stop_first]);
        let id = world.create(web);
        world.run(Duration::from_secs(2));
        world.change_node("n1", Author::Control, |node| {
            node.spec.get_or_insert_default().set_availability(NodeAvailability::Drain);
        });
        for _ in 0..30 {
            world.step();
            assert!(world.held_in_slots(&id).values().all(|held| *held <= 1));
        }
        assert_eq!(world.spread(&id), [("n2".to_owned(), 4)].into());
        assert_eq!(world.running(&id), 4);
    }

    #[test]
    fn a_task_waits_for_its_lost_node_as_long_as_its_service_says() {
        let mut world = World::new(3);
        let mut web = spec("web", 3);
        let patient = (GRACE.to_owned(), "20s".to_owned());
        web.annotations.get_or_insert_default().labels.extend([patient]);
        let id = world.create(web);
        world.run(Duration::from_secs(2));
        let tasks =
            |world: &World| -> Vec<String> { world.live(&id).iter().map(|task| task.id.clone()).collect() };
        let before = tasks(&world);
        world.cut.insert("n1".to_owned());
        world.run(Duration::from_secs(15));
        assert!(world.state.is_node_lost("n1"));
        assert_eq!(tasks(&world), before, "it waits");
        world.cut.clear();
        world.run(Duration::from_secs(2));
        assert!(!world.state.is_node_lost("n1"));
        assert_eq!((tasks(&world), world.running(&id)), (before, 3), "and goes on");

        world.cut.insert("n1".to_owned());
        world.run(Duration::from_secs(40));
        assert_eq!(world.running(&id), 3);
        assert!(!world.spread(&id).contains_key("n1"), "no longer than that");
        world.cut.clear();
        world.run(Duration::from_secs(2));
        assert!(world.held_in_slots(&id).values().all(|held| *held == 1));
    }

    #[test]
    fn a_task_leaves_a_node_whose_labels_no_longer_fit() {
        let mut world = World::new(2);
        for node in ["n1", "n2"] {
            world.change_node(node, Author::Control, |node| {
                let annotations = node.spec.get_or_insert_default().annotations.get_or_insert_default();
                annotations.labels.insert("disk".to_owned(), "ssd".to_owned());
            });
        }
        let mut web = spec("web", 2);
        let constraints = vec!["node.labels.disk==ssd".to_owned()];
        web.task.get_or_insert_default().placement = Some(Placement { constraints, ..Placement::default() });
        let id = world.create(web);
        world.run(Duration::from_secs(2));
        assert_eq!(world.spread(&id).len(), 2);
        world.change_node("n1", Author::Control, |node| {
            node.spec.get_or_insert_default().annotations.get_or_insert_default().labels.clear();
        });
        world.run(Duration::from_secs(2));
        assert_eq!(world.spread(&id), [("n2".to_owned(), 2)].into());
        let left = world.tasks(&id).into_iter().find(|task| task.node_id == "n1").expect("its history");
        assert_eq!(left.status.as_ref().map(|status| status.err.as_str()), Some(NO_LONGER_FITS));
    }

    #[test]
    fn a_node_that_shrinks_keeps_its_oldest_tasks() {
        let mut world = World::new(1);
        let mut web = spec("web", 2);
        let reservations = Some(Resources { memory: 4 << 30, ..Resources::default() });
        let requirements = ResourceRequirements { reservations, ..ResourceRequirements::default() };
        web.task.get_or_insert_default().resources = Some(requirements);
        let id = world.create(web);
        world.run(Duration::from_secs(2));
        assert_eq!(world.running(&id), 2);
        world.change_node("n1", Author::Dispatcher, |node| {
            let description = node.description.get_or_insert_default();
            description.resources.get_or_insert_default().memory = 6 << 30;
        });
        world.run(Duration::from_secs(2));
        assert_eq!(world.running(&id), 1);
    }
}
