//! The tasks of one service, and what they add up to. It is kept as tasks come and go, so that a pass finds out
//! that a service of a million tasks is as it should be without looking at each of them.

use std::sync::{Arc, LazyLock};

use imbl::{OrdMap, OrdSet};
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::Task;

/// The id of an object, as tables and indices share it.
pub(crate) type Id = Arc<str>;

/// Below all ids.
static LOWEST: LazyLock<Id> = LazyLock::new(|| Id::from(""));

/// One slot of a service: its number, or zero and the node that a global service has it on.
pub(crate) type Seat = (u64, Option<Id>);

/// Tasks of one service.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cohort {
    /// By seat, then id.
    tasks: OrdMap<(u64, Option<Id>, Id), Arc<Task>>,
    /// Slots with a task that is not to be removed.
    occupied: u64,
    /// Slots that are not at rest.
    restless: OrdSet<Seat>,
    /// Live tasks, by the version of the spec that they were made of.
    live: OrdSet<(u64, Id)>,
    /// How many slots keep so many tasks.
    sizes: OrdMap<u64, u64>,
}

/// What one slot's tasks say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facts {
    size: u64,
    is_occupied: bool,
    /// Exactly one task is live, wanted to run and runs, and all others have ended and are history.
    is_at_rest: bool,
}

impl Cohort {
    /// All tasks, slot by slot.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.tasks.values()
    }

    /// How many slots have a task that is not to be removed.
    #[must_use]
    pub fn occupied(&self) -> u64 {
        self.occupied
    }

    /// The highest number of a slot that has any task.
    #[must_use]
    pub fn last_slot(&self) -> u64 {
        self.tasks.get_max().map_or(0, |((slot, _, _), _)| *slot)
    }

    /// How many tasks the slot keeps that keeps most.
    #[must_use]
    pub fn largest_slot(&self) -> u64 {
        self.sizes.get_max().map_or(0, |(size, _)| *size)
    }

    /// The slots in which something is to be done or awaited: all but those whose one live task is wanted to run
    /// and runs, while all their other tasks are history.
    pub(crate) fn restless(&self) -> impl Iterator<Item = &Seat> {
        self.restless.iter()
    }

    /// The tasks of one slot, by id.
    pub(crate) fn tasks_of<'a>(&'a self, seat: &'a Seat) -> impl Iterator<Item = &'a Arc<Task>> {
        let (slot, node) = seat;
        let from = (*slot, node.clone(), LOWEST.clone());
        let is_there = move |other: &&(u64, Option<Id>, Id)| (other.0, &other.1) == (*slot, node);
        self.tasks.range(from..).take_while(move |(key, _)| is_there(key)).map(|(_, task)| task)
    }

    /// The tasks of the slot of this number, by node where they are a global service's, then id.
    pub fn tasks_of_slot(&self, slot: u64) -> impl Iterator<Item = &Arc<Task>> {
        let tasks = self.tasks.range((slot, None, LOWEST.clone())..);
        tasks.take_while(move |((other, _, _), _)| *other == slot).map(|(_, task)| task)
    }

    /// One live task's id for each version of the spec that live tasks were made of, oldest first.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &(u64, Id)> {
        let next = |from: u64| self.live.range((from, LOWEST.clone())..).next();
        std::iter::successors(next(0), move |(version, _)| next(version.checked_add(1)?))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Puts `after` in the place of `before`, which sat in the same slot.
    pub(crate) fn relink(&mut self, id: &Id, before: Option<&Task>, after: Option<&Arc<Task>>) {
        let Some(seat) = after.map(AsRef::as_ref).or(before).map(seat) else { return };
        let states = |task: &Task| (task.desired(), task.observed());
        let is_same = before.map(states) == after.map(|task| states(task));
        let old = (!is_same).then(|| self.facts(&seat));
        let key = (seat.0, seat.1.clone(), id.clone());
        match after {
            Some(task) => drop(self.tasks.insert(key, task.clone())),
            None => drop(self.tasks.remove(&key)),
        }
        if let Some(old) = old {
            self.count(seat, old);
        }
        let version = |task: &Task| task.is_live().then_some(task.spec_version);
        let (old, new) = (before.and_then(version), after.and_then(|task| version(task)));
        if old != new {
            old.into_iter().for_each(|version| drop(self.live.remove(&(version, id.clone()))));
            new.into_iter().for_each(|version| drop(self.live.insert((version, id.clone()))));
        }
    }

    fn facts(&self, seat: &Seat) -> Facts {
        let mut facts = Facts { size: 0, is_occupied: false, is_at_rest: false };
        let (mut serving, mut others) = (0, 0);
        for task in self.tasks_of(seat) {
            let (desired, observed) = (task.desired(), task.observed());
            facts.size += 1;
            facts.is_occupied |= desired < TaskState::Remove;
            let is_history = (TaskState::Complete..TaskState::Remove).contains(&desired)
                && observed.is_terminal()
                && observed != TaskState::Orphaned;
            if (desired, observed) == (TaskState::Running, TaskState::Running) {
                serving += 1;
            } else if !is_history {
                others += 1;
            }
        }
        facts.is_at_rest = (serving, others) == (1, 0);
        facts
    }

    /// Counts a slot anew that was like `old`.
    fn count(&mut self, seat: Seat, old: Facts) {
        let new = self.facts(&seat);
        self.occupied = self.occupied + u64::from(new.is_occupied) - u64::from(old.is_occupied);
        if new.size != old.size {
            if let Some(slots) = self.sizes.get_mut(&old.size) {
                *slots -= 1;
                if *slots == 0 {
                    self.sizes.remove(&old.size);
                }
            }
            if new.size > 0 {
                *self.sizes.entry(new.size).or_default() += 1;
            }
        }
        if new.is_at_rest || new.size == 0 {
            self.restless.remove(&seat);
        } else {
            self.restless.insert(seat);
        }
    }
}

/// The slot that a task is in.
pub(crate) fn seat(task: &Task) -> Seat {
    (task.slot, (task.slot == 0).then(|| Id::from(task.node_id.as_str())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rswarm_proto::wire::TaskStatus;

    fn task(id: &str, slot: u64, version: u64, desired: TaskState, observed: TaskState) -> Arc<Task> {
        Arc::new(Task {
            id: id.to_owned(),
            slot,
            spec_version: version,
            desired_state: desired.into(),
            status: Some(TaskStatus { state: observed.into(), ..TaskStatus::default() }),
            ..Task::default()
        })
    }

    fn put(cohort: &mut Cohort, before: Option<&Arc<Task>>, after: &Arc<Task>) {
        cohort.relink(&Id::from(after.id.as_str()), before.map(AsRef::as_ref), Some(after));
    }

    fn numbers(cohort: &Cohort) -> Vec<u64> {
        cohort.restless().map(|(slot, _)| *slot).collect()
    }

    #[test]
    fn a_slot_is_at_rest_with_one_running_task_and_history() {
        use TaskState::{Failed, New, Orphaned, Ready, Remove, Running, Shutdown};
        let running = task("c", 1, 1, Running, Running);
        for (other, is_at_rest) in [
            (task("a", 1, 1, Shutdown, Failed), true),
            (task("a", 1, 1, Shutdown, Running), false),
            (task("a", 1, 1, Running, Failed), false),
            (task("a", 1, 1, Ready, New), false),
            (task("a", 1, 1, Running, Running), false),
            (task("a", 1, 1, Remove, Shutdown), false),
            (task("a", 1, 1, Shutdown, Orphaned), false),
        ] {
            let mut cohort = Cohort::default();
            put(&mut cohort, None, &running);
            assert!(numbers(&cohort).is_empty());
            put(&mut cohort, None, &other);
            assert_eq!(numbers(&cohort).is_empty(), is_at_rest, "{other:?}");
            assert_eq!((cohort.occupied(), cohort.largest_slot()), (1, 2));
        }
    }

    #[test]
    fn it_is_empty_again_once_all_are_gone() {
        use TaskState::{New, Remove, Running};
        let mut cohort = Cohort::default();
        let (new, old) = (task("a", 2, 7, Running, New), task("b", 2, 3, Remove, Running));
        put(&mut cohort, None, &new);
        put(&mut cohort, None, &old);
        let runs = task("a", 2, 7, Running, Running);
        put(&mut cohort, Some(&new), &runs);
        assert_eq!((cohort.occupied(), cohort.last_slot(), numbers(&cohort)), (1, 2, vec![2]));
        assert_eq!(cohort.versions().map(|(version, _)| *version).collect::<Vec<_>>(), [7]);
        for gone in [&runs, &old] {
            cohort.relink(&Id::from(gone.id.as_str()), Some(gone), None);
        }
        assert_eq!(cohort, Cohort::default());
    }

    #[test]
    fn one_live_task_stands_for_each_version() {
        use TaskState::{Failed, Running};
        let mut cohort = Cohort::default();
        for (slot, version) in [(1, 5), (2, 5), (3, 9), (4, 9)] {
            put(&mut cohort, None, &task(&format!("t{slot}"), slot, version, Running, Running));
        }
        put(&mut cohort, None, &task("ended", 5, 11, Running, Failed));
        let versions: Vec<(u64, &str)> = cohort.versions().map(|(version, id)| (*version, &**id)).collect();
        assert_eq!(versions, [(5, "t1"), (9, "t3")]);
    }
}
