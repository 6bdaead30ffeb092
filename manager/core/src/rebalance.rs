//! Services that ask for it move to nodes that joined or came back: one task at a time, the successor first
//! ([`crate::relocate`] ends the old one), and only as long as each move makes the spread more even.
//!
//! Off unless a service has the label `rswarm.rebalance=true`: a move costs the connections that a task has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rswarm_base::{Timestamp, duration};
use rswarm_proto::model::object::Stored;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::update_status::State as Phase;
use rswarm_proto::wire::{Node, Service, Takeover, Task};

use crate::author::Author;
use crate::filter;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::relocate;
use crate::schedule::label_value;
use crate::slot;
use crate::state::State;

/// Service label: whether its tasks move for balance.
const REBALANCE: &str = "rswarm.rebalance";
/// Service label: the time between two moves.
const INTERVAL: &str = "rswarm.rebalance.interval";
const INTERVAL_DEFAULT: Duration = Duration::from_secs(30);
/// Tasks of all services together that move for balance at once: they cost the nodes pulls and starts.
const MOVES_MAX: usize = 4;

/// Moves tasks for balance.
#[derive(Debug)]
pub struct Rebalance;

impl Reconciler for Rebalance {
    fn author(&self) -> Author {
        Author::Relocate
    }

    fn reconcile(&self, view: &State, env: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        let asking: Vec<(&Arc<Service>, Duration)> = view
            .services()
            .filter(|service| !service.pending_delete && relocate::is_movable(service))
            .filter_map(|service| Some((service, wish(labels(service)?).ok()??)))
            .collect();
        let moving = |service: &Arc<Service>| {
            let own = view.tasks_of_service(&service.id).filter(|task| task.is_live());
            own.filter(|task| {
                task.takes_over() == Takeover::BetterNode && task.observed() < TaskState::Running
            })
            .count()
        };
        let mut moves: usize = asking.iter().map(|(service, _)| moving(service)).sum();
        for (service, interval) in asking {
            if moves >= MOVES_MAX {
                break;
            }
            if is_due(view, service, interval, env, &mut plan)
                && let Some((task, node)) = best_move(view, service)
            {
                plan.create(successor(view, service, task, node, env));
                moves += 1;
            }
        }
        plan
    }
}

fn labels(service: &Service) -> Option<&BTreeMap<String, String>> {
    service.spec.as_ref()?.annotations.as_ref().map(|annotations| &annotations.labels)
}

/// The time between moves, when a service with these labels wants any.
///
/// # Errors
/// The label that says nothing known, and what it may say.
pub fn wish(labels: &BTreeMap<String, String>) -> Result<Option<Duration>, String> {
    let interval = match labels.get(INTERVAL).map(|text| duration::parse(text)) {
        None => INTERVAL_DEFAULT,
        Some(Ok(interval)) => interval,
        Some(Err(error)) => return Err(format!("label {INTERVAL}: {error}")),
    };
    match labels.get(REBALANCE).map(String::as_str) {
        Some("true") => Ok(Some(interval)),
        None | Some("false") => Ok(None),
        Some(value) => Err(format!("invalid label {REBALANCE}={value}: want true or false")),
    }
}

/// Whether the service may move a task now: all of its tasks run, one for each slot, nothing of it is being updated,
/// and the last move is long enough ago.
fn is_due(view: &State, service: &Arc<Service>, interval: Duration, env: &Env<'_>, plan: &mut Plan) -> bool {
    let phase = service.update_status.as_ref().map_or(Phase::Unknown, |status| status.state());
    let slots = slot::occupied(view, service);
    let is_quiet = |slot: &slot::Slot<'_>| {
        let mut live = slot.live();
        matches!((live.next(), live.next()), (Some(task), None) if task.observed() == TaskState::Running)
    };
    if matches!(phase, Phase::Updating | Phase::RollbackStarted) || !slots.iter().all(is_quiet) {
        return false;
    }
    let moved =
        slots.iter().flat_map(|slot| &slot.tasks).filter(|task| task.takes_over() == Takeover::BetterNode);
    let last = moved.map(|task| env.past(Timestamp(task.meta().created_at))).max();
    let due = last.map_or(Timestamp::ZERO, |last| last.after(interval));
    if env.now < due {
        plan.wake(due);
    }
    env.now >= due
}

/// The task whose move makes the spread more even, and where to; the lightest node, the fullest one's task.
fn best_move<'a>(view: &'a State, service: &Service) -> Option<(&'a Arc<Task>, &'a Arc<Node>)> {
    let tasks: Vec<&Arc<Task>> = view.tasks_of_service(&service.id).filter(|task| task.is_live()).collect();
    let model = slot::model(service);
    let spread = model.spec.as_ref().and_then(|spec| spec.placement.as_ref()).map_or(&[][..], |p| &p.spread);
    let counts = Counts::new(view, &tasks, spread);
    let load = |node: &Node| view.load(&node.id);
    let targets =
        view.nodes().filter(|node| filter::refusal(&filter::ALL, &model, node, &load(node)).is_none());
    let target = targets.min_by_key(|node| (counts.of(node), load(node).tasks, node.id.clone()))?;
    let sources = tasks.into_iter().filter_map(|task| Some((task, view.node(&task.node_id)?)));
    let (task, source) = sources.max_by_key(|(task, node)| (counts.of(node), slot::age(task)))?;
    counts.improves(source, target).then_some((task, target))
}

/// How many tasks of a service are in each part of the cluster that it is to be spread over, and on each node.
struct Counts<'a> {
    spread: &'a [String],
    of: BTreeMap<Vec<String>, u64>,
}

impl<'a> Counts<'a> {
    fn new(view: &State, tasks: &[&Arc<Task>], spread: &'a [String]) -> Counts<'a> {
        let mut counts = Counts { spread, of: BTreeMap::new() };
        for node in tasks.iter().filter_map(|task| view.node(&task.node_id)) {
            let path = counts.path(node);
            for depth in 1..=path.len() {
                *counts.of.entry(path[..depth].to_vec()).or_default() += 1;
            }
        }
        counts
    }

    /// The values of the spread labels, outermost first, and the node.
    fn path(&self, node: &Node) -> Vec<String> {
        let labels = self.spread.iter().map(|label| label_value(label, node).to_owned());
        labels.chain([node.id.clone()]).collect()
    }

    /// The tasks around a node: in its outermost part, in the next one …, on the node itself.
    fn of(&self, node: &Node) -> Vec<u64> {
        let path = self.path(node);
        (1..=path.len()).map(|depth| self.of.get(&path[..depth]).copied().unwrap_or(0)).collect()
    }

    /// Whether a task's move evens out the outermost parts that differ. By one it would only trade places.
    fn improves(&self, from: &Node, to: &Node) -> bool {
        let (source, target) = (self.path(from), self.path(to));
        let differs = source.iter().zip(&target).position(|(source, target)| source != target);
        differs.is_some_and(|depth| self.of(from)[depth] >= self.of(to)[depth] + 2)
    }
}

fn successor(view: &State, service: &Service, task: &Arc<Task>, node: &Node, env: &mut Env<'_>) -> Task {
    let tasks = view.tasks_of_slot(&service.id, task.slot).collect();
    let slot = slot::Slot { tasks };
    Task {
        desired_state: TaskState::Running.into(),
        takes_over: Takeover::BetterNode.into(),
        replaces: task.id.clone(),
        node_id: node.id.clone(),
        ..slot::successor(service, &slot, Duration::ZERO, env.now, env.ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{World, node, set_image, spec};
    use rswarm_proto::wire::{NodeAvailability, Placement, ServiceSpec};

    fn asking(replicas: u64) -> ServiceSpec {
        let mut spec = spec("web", replicas);
        spec.annotations.get_or_insert_default().labels.insert(REBALANCE.to_owned(), "true".to_owned());
        spec
    }

    fn set(world: &mut World, node: &str, availability: NodeAvailability) {
        world.change_node(node, Author::Control, |node| {
            node.spec.get_or_insert_default().set_availability(availability);
        });
    }

    fn join(world: &mut World, id: &str) {
        let mut plan = Plan::default();
        plan.create(node(id));
        world.write(Author::Ca, plan.into_changes());
    }

    fn counts(world: &World, id: &str) -> Vec<usize> {
        world.spread(id).into_values().collect()
    }

    #[test]
    fn a_node_that_joins_gets_its_share_one_task_at_a_time() {
        let mut world = World::new(2);
        let id = world.create(asking(6));
        world.run(Duration::from_secs(2));
        world.live_max.insert(id.clone(), 7);
        join(&mut world, "n3");
        world.run(Duration::from_secs(3));
        assert_eq!(counts(&world, &id), [3, 2, 1], "one moved, and the next waits");
        assert_eq!(world.running(&id), 6);
        for _ in 0..350 {
            world.step();
            assert!(world.running(&id) >= 6);
        }
        assert_eq!(counts(&world, &id), [2, 2, 2]);
        let settled: Vec<_> = world.live(&id).iter().map(|task| task.id.clone()).collect();
        world.run(Duration::from_secs(90));
        assert_eq!(settled, world.live(&id).iter().map(|task| task.id.clone()).collect::<Vec<_>>());
    }

    #[test]
    fn nobody_moves_who_did_not_ask() {
        let mut world = World::new(2);
        let id = world.create(spec("web", 6));
        world.run(Duration::from_secs(2));
        join(&mut world, "n3");
        world.run(Duration::from_secs(60));
        assert_eq!(counts(&world, &id), [3, 3]);
    }

    #[test]
    fn parts_that_it_is_spread_over_come_before_nodes() {
        let mut world = World::new(3);
        let zone = |world: &mut World, node: &str, zone: &str| {
            world.change_node(node, Author::Control, |node| {
                let annotations = node.spec.get_or_insert_default().annotations.get_or_insert_default();
                annotations.labels.insert("zone".to_owned(), zone.to_owned());
            });
        };
        for (node, name) in [("n1", "a"), ("n2", "a"), ("n3", "b")] {
            zone(&mut world, node, name);
        }
        set(&mut world, "n3", NodeAvailability::Pause);
        let mut web = asking(4);
        let spread = vec!["node.labels.zone".to_owned()];
        web.task.get_or_insert_default().placement = Some(Placement { spread, ..Placement::default() });
        let id = world.create(web);
        world.run(Duration::from_secs(2));
        assert_eq!(counts(&world, &id), [2, 2]);
        set(&mut world, "n3", NodeAvailability::Active);
        world.run(Duration::from_secs(90));
        assert_eq!(counts(&world, &id), [1, 1, 2]);
    }

    #[test]
    fn a_target_that_goes_away_again_is_given_up() {
        let mut world = World::new(1);
        let id = world.create(asking(2));
        world.run(Duration::from_secs(2));
        join(&mut world, "n2");
        while world.live(&id).len() < 3 {
            world.step();
        }
        set(&mut world, "n2", NodeAvailability::Drain);
        world.run(Duration::from_secs(3));
        assert_eq!((counts(&world, &id), world.running(&id)), (vec![2], 2));
    }

    #[test]
    fn an_update_comes_first() {
        let mut world = World::new(2);
        let id = world.create(asking(4));
        world.run(Duration::from_secs(2));
        world.change(&id, |spec| set_image(spec, "web:2"));
        join(&mut world, "n3");
        world.live_max.insert(id.clone(), 4);
        world.run(Duration::from_secs(5));
        world.live_max.clear();
        world.run(Duration::from_secs(120));
        assert_eq!((world.running(&id), world.spread(&id).len()), (4, 3));
    }
}
