//! What would come of a request about a service: the same decision and the same passes, on a copy of the state in
//! which every node does at once as it is told, and time costs nothing. Nothing of it is written.

use std::collections::BTreeMap;
use std::sync::Arc;

use rswarm_base::{IdGen, Timestamp};
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{
    Batch, Forecast, ForecastTask, NodeState, NodeTaskReport, Service, Task, TaskReport, TaskStatus,
    Transaction, UpdateConfig, object,
};

use crate::apply::apply;
use crate::author::Author;
use crate::control::{ControlError, Decision};
use crate::drain::AppliedTables;
use crate::intake;
use crate::reconcile::{Env, Pass, pass};
use crate::slot;
use crate::state::{State, node_state};

/// Passes that are looked ahead at most. An update that is not through by then is told as far as it came.
const PASSES_MAX: usize = 2000;
/// Tasks that are looked at in all of them together: bounds the time on a large cluster.
const VISITS_MAX: usize = 2_000_000;
/// Passes in any case: enough for services to be placed.
const PASSES_MIN: usize = 50;
/// Passes in a row in which nothing comes of the time that goes by, after which nothing more is awaited. Heartbeats
/// alone make some: it is longer than moves for balance are apart.
const IDLE_MAX: usize = 25;

/// What would come of a decision about a service.
///
/// # Errors
/// The decision's own: nothing is foretold of what would be refused.
pub fn forecast(
    view: &State,
    decide: impl FnOnce(&State, &mut IdGen) -> Decision,
    now: Timestamp,
    mut ids: IdGen,
) -> Result<Forecast, ControlError> {
    let (transaction, id) = decide(view, &mut ids)?;
    let mut future = Future { state: view.clone(), now, ids };
    future.commit(vec![transaction.clone()]);
    let service = future.state.service(&id).map(|service| Service::clone(service));
    future.state = view.clone();
    future.commit(vec![hastened(transaction)]);
    let complete = future.unfold();
    let (tasks, unchanged) = differences(view, &future.state, &id);
    Ok(Forecast { service, tasks, unchanged, complete })
}

/// The same, but an update does not wait between slots, nor watch them: that changes when, not where. Passes that
/// only wait are not worth their time.
fn hastened(mut transaction: Transaction) -> Transaction {
    for object in transaction.changes.iter_mut().filter_map(|change| change.object.as_mut()) {
        let Some(object::Object::Service(service)) = &mut object.object else { continue };
        let Some(spec) = &mut service.spec else { continue };
        for config in [&mut spec.update, &mut spec.rollback] {
            let given = config.unwrap_or(UpdateConfig { parallelism: 1, ..UpdateConfig::default() });
            *config = Some(UpdateConfig { delay: 0, monitor: 1, ..given });
        }
    }
    transaction
}

/// The state as it might become.
struct Future {
    state: State,
    now: Timestamp,
    ids: IdGen,
}

impl Future {
    fn commit(&mut self, transactions: Vec<Transaction>) {
        let batch = Batch { transactions, now: self.now.0 };
        self.state = apply(&self.state, self.state.index() + 1, batch).state;
    }

    /// Lets time go on until nothing more comes of it. Says whether it came so far.
    fn unfold(&mut self) -> bool {
        let started = self.now;
        let passes = (VISITS_MAX / self.state.task_count().max(1)).clamp(PASSES_MIN, PASSES_MAX);
        let mut idle = 0;
        for _ in 0..passes {
            let Pass { transactions, wake_at } = self.pass(started);
            let decided = !transactions.is_empty();
            self.commit(transactions);
            let reports = self.reports();
            let reported = !reports.is_empty();
            let changes = intake::statuses(&self.state, &reports, self.now);
            self.commit(vec![Transaction { id: 0, author: Author::Dispatcher.name().to_owned(), changes }]);
            if decided || reported {
                idle = 0;
                continue;
            }
            idle += 1;
            match wake_at.filter(|_| idle < IDLE_MAX) {
                Some(at) => self.now = at.max(Timestamp(self.now.0 + 1)),
                None => return true,
            }
        }
        false
    }

    fn pass(&mut self, leader_since: Timestamp) -> Pass {
        // Who is up stays so.
        let up = self.state.nodes().filter(|node| node_state(node) != NodeState::Down);
        let heartbeats: BTreeMap<String, Timestamp> = up.map(|node| (node.id.clone(), self.now)).collect();
        let tables = AppliedTables::new();
        let state = self.state.clone();
        let (now, ids) = (self.now, &mut self.ids);
        pass(
            &state,
            &mut Env { now, ids, heartbeats: &heartbeats, tables: &tables, leader_since, secret: [0; 32] },
        )
    }

    /// What the nodes say once they have done what they were told.
    fn reports(&self) -> Vec<NodeTaskReport> {
        let state = &self.state;
        let cohorts = state.service_ids_with_tasks().filter_map(|id| state.cohort(id));
        // What is at rest does as it is told already.
        let restless = cohorts.flat_map(|cohort| cohort.restless().flat_map(|seat| cohort.tasks_of(seat)));
        let told = restless.filter(|task| !state.is_node_lost(&task.node_id));
        told.filter_map(|task| report(task, outcome(task)?)).collect()
    }
}

/// Where a task is once its node has done what it was told; nothing when it is there already.
fn outcome(task: &Task) -> Option<TaskState> {
    if task.observed() < TaskState::Assigned || task.observed().is_terminal() || task.is_attachment() {
        return None;
    }
    let outcome = match task.desired() {
        TaskState::Ready => TaskState::Ready,
        TaskState::Running => TaskState::Running,
        _ => TaskState::Shutdown,
    };
    (outcome > task.observed()).then_some(outcome)
}

fn report(task: &Task, state: TaskState) -> Option<NodeTaskReport> {
    let status = TaskStatus { state: state.into(), ..TaskStatus::default() };
    let report = TaskReport { task_id: task.id.clone(), status: Some(status) };
    Some(NodeTaskReport { node_id: task.node_id.clone(), report: Some(report) })
}

/// The slots that would have another task, or none, or one for the first time; and how many would stay as they are.
fn differences(now: &State, then: &State, service: &str) -> (Vec<ForecastTask>, u64) {
    let (before, after) = (serving(now, service), serving(then, service));
    let mut unchanged = 0;
    let mut tasks = Vec::new();
    let slots = before.keys().chain(after.keys().filter(|slot| !before.contains_key(*slot)));
    for slot in slots {
        let (old, new) = (before.get(slot).copied(), after.get(slot).copied());
        if old.map(|task| &task.id) == new.map(|task| &task.id) {
            unchanged += 1;
            continue;
        }
        let name = old.or(new).map(|task| task.slot_name()).unwrap_or_default();
        let node = |task: Option<&Arc<Task>>| task.map(|task| task.node_id.clone()).unwrap_or_default();
        let waits = new.filter(|task| task.observed() < TaskState::Assigned);
        let why = waits.and_then(|task| task.status.as_ref()).map(|status| status.err.clone());
        tasks.push(ForecastTask {
            name,
            replaces: old.map(|task| task.id.clone()).unwrap_or_default(),
            from_node: node(old),
            to_node: node(new),
            starts: new.is_some(),
            err: why.unwrap_or_default(),
        });
    }
    (tasks, unchanged)
}

/// The live task of each slot; of two, the one that stays.
fn serving<'a>(state: &'a State, service: &str) -> BTreeMap<(u64, String), &'a Arc<Task>> {
    let mut live: Vec<&Arc<Task>> = state.tasks_of_service(service).filter(|task| task.is_live()).collect();
    live.sort_by_key(|task| slot::age(task));
    let key = |task: &Task| (task.slot, if task.slot == 0 { task.node_id.clone() } else { String::new() });
    live.into_iter().map(|task| (key(task), task)).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control;
    use crate::world::{World, set_image, spec};
    use rswarm_proto::wire::{
        CreateServiceRequest, NodeAvailability, Placement, Replicated, ServiceSpec, service_spec,
        update_config,
    };

    fn updated(
        world: &World,
        id: &str,
        change: impl FnOnce(&mut ServiceSpec),
    ) -> Result<Forecast, ControlError> {
        let request = world.update_request(id, change);
        let decide =
            |state: &State, ids: &mut IdGen| control::update_service(state, &request, world.now, ids);
        forecast(&world.state, decide, world.now, world.ids.clone())
    }

    fn created(world: &World, spec: ServiceSpec) -> Result<Forecast, ControlError> {
        let request = CreateServiceRequest { spec: Some(spec) };
        let decide =
            |state: &State, ids: &mut IdGen| control::create_service(state, &request, world.now, ids);
        forecast(&world.state, decide, world.now, world.ids.clone())
    }

    fn places(world: &World, id: &str) -> BTreeMap<String, String> {
        world.live(id).iter().map(|task| (task.slot_name(), task.node_id.clone())).collect()
    }

    #[test]
    fn a_new_service_goes_where_it_was_foretold() {
        let mut world = World::new(3);
        let foretold = created(&world, spec("web", 5)).expect("a forecast");
        assert!(foretold.complete && foretold.unchanged == 0);
        let foretold: BTreeMap<String, String> =
            foretold.tasks.into_iter().map(|task| (task.name, task.to_node)).collect();
        let id = world.create(spec("web", 5));
        world.run(Duration::from_secs(2));
        assert_eq!(places(&world, &id), foretold);
    }

    #[test]
    fn an_update_replaces_what_was_foretold_and_nothing_was_written() {
        for order in [update_config::Order::StopFirst, update_config::Order::StartFirst] {
            let mut world = World::new(3);
            // An hour between the slots costs nothing.
            let config = UpdateConfig {
                parallelism: 1,
                delay: 3_600_000_000_000,
                order: order.into(),
                ..UpdateConfig::default()
            };
            let id = world.create(ServiceSpec { update: Some(config), ..spec("web", 4) });
            world.run(Duration::from_secs(2));
            let index = world.state.index();
            let foretold = updated(&world, &id, |spec| set_image(spec, "web:2")).expect("a forecast");
            assert_eq!((foretold.tasks.len(), foretold.unchanged, foretold.complete), (4, 0, true));
            assert!(foretold.tasks.iter().all(|task| !task.replaces.is_empty() && !task.to_node.is_empty()));
            assert_eq!(world.state.index(), index);
            let shown = foretold.service.and_then(|service| service.spec).unwrap_or_default();
            assert_eq!(shown.update, Some(config), "as it would be stored");
        }
    }

    #[test]
    fn what_tasks_do_not_depend_on_and_scaling_replace_nothing() {
        let mut world = World::new(3);
        let id = world.create(spec("web", 3));
        world.run(Duration::from_secs(2));
        let label = |spec: &mut ServiceSpec| {
            spec.annotations.get_or_insert_default().labels.insert("a".to_owned(), "b".to_owned());
        };
        let foretold = updated(&world, &id, label).expect("a forecast");
        assert_eq!((foretold.tasks.len(), foretold.unchanged), (0, 3));
        let scale = |replicas| {
            move |spec: &mut ServiceSpec| {
                spec.mode = Some(service_spec::Mode::Replicated(Replicated { replicas }));
            }
        };
        let foretold = updated(&world, &id, scale(4)).expect("a forecast");
        assert_eq!((foretold.tasks.len(), foretold.unchanged), (1, 3));
        assert!(foretold.tasks[0].starts && foretold.tasks[0].from_node.is_empty());
        let foretold = updated(&world, &id, scale(2)).expect("a forecast");
        assert_eq!((foretold.tasks.len(), foretold.unchanged), (1, 2));
        assert!(!foretold.tasks[0].starts);
    }

    #[test]
    fn moves_for_balance_are_foretold_and_a_stuck_update_is_not_waited_for() {
        let mut world = World::new(2);
        world.change_node("n2", Author::Control, |node| {
            node.spec.get_or_insert_default().set_availability(NodeAvailability::Drain);
        });
        let id = world.create(spec("web", 4));
        world.run(Duration::from_secs(2));
        world.change_node("n2", Author::Control, |node| {
            node.spec.get_or_insert_default().set_availability(NodeAvailability::Active);
        });
        let ask = |spec: &mut ServiceSpec| {
            let labels = &mut spec.annotations.get_or_insert_default().labels;
            labels.insert("rswarm.rebalance".to_owned(), "true".to_owned());
        };
        let foretold = updated(&world, &id, ask).expect("a forecast");
        assert_eq!((foretold.tasks.len(), foretold.unchanged, foretold.complete), (2, 2, true));
        assert!(foretold.tasks.iter().all(|task| task.to_node == "n2"));
        let nowhere = |spec: &mut ServiceSpec| {
            set_image(spec, "web:2");
            let constraints = vec!["node.id==n7".to_owned()];
            let placement = Placement { constraints, ..Placement::default() };
            spec.task.get_or_insert_default().placement = Some(placement);
        };
        let foretold = updated(&world, &id, nowhere).expect("a forecast");
        assert_eq!((foretold.tasks.len(), foretold.unchanged, foretold.complete), (1, 3, true));
    }

    #[test]
    fn what_would_wait_says_why_and_what_would_be_refused_is() {
        let mut world = World::new(2);
        world.change_node("n2", Author::Control, |node| {
            node.spec.get_or_insert_default().set_availability(NodeAvailability::Drain);
        });
        let mut nowhere = spec("web", 1);
        let constraints = vec!["node.id==n7".to_owned()];
        nowhere.task.get_or_insert_default().placement =
            Some(Placement { constraints, ..Placement::default() });
        let foretold = created(&world, nowhere).expect("a forecast");
        assert_eq!(
            foretold.tasks[0].err,
            "no suitable node (1 node not available for new tasks; scheduling constraints not satisfied on 1 node)"
        );
        let mut wrong = spec("web", 1);
        set_image(&mut wrong, "");
        assert!(matches!(created(&world, wrong), Err(ControlError::Invalid(_))));
    }
}
