//! What the brain asks about tasks: by service, by node, by network, and what waits for something. All of it
//! follows from the tasks and nodes that are stored, and is kept change by change.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{Node, Task};

use crate::cohort::{Cohort, Id, seat};
use crate::schedule::Load;
use crate::slot::sits_well;
use crate::state::Table;

/// The indices.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct TaskIndices {
    pub(crate) by_service: OrdMap<Id, Arc<Cohort>>,
    pub(crate) by_node: OrdMap<Id, Table<Task>>,
    pub(crate) by_network: OrdMap<Id, Table<Task>>,
    /// Observed below *assigned*.
    pub(crate) unsettled: Table<Task>,
    /// To be deleted once they have stopped.
    pub(crate) removing: Table<Task>,
    /// Told to stop, and may still run.
    pub(crate) stopping: Table<Task>,
    /// By node.
    pub(crate) loads: OrdMap<Id, Arc<Load>>,
    /// Node and task, where the node is stored and not one that the task's placement allows.
    misplaced: OrdSet<(Id, Id)>,
}

impl TaskIndices {
    /// Puts `after` in the place of `before`, the task of the same id. `node` is the one that `after` is on.
    pub(crate) fn relink(
        &mut self,
        id: &Id,
        before: Option<&Arc<Task>>,
        after: Option<&Arc<Task>>,
        node: Option<&Arc<Node>>,
    ) {
        self.relink_service(id, before, after);
        relink_keyed(&mut self.by_node, id, before.and_then(node_of), after.and_then(node_of), after);
        self.relink_networks(id, before, after);
        relink_list(&mut self.unsettled, id, before, after, is_unsettled);
        relink_list(&mut self.removing, id, before, after, is_removing);
        relink_list(&mut self.stopping, id, before, after, is_stopping);
        self.reload(before, after);
        let place = |task: &Arc<Task>| task.node_id.clone();
        // What a task's placement says never changes.
        if before.map(place) != after.map(place) {
            if let Some(task) = before {
                self.misplaced.remove(&(Id::from(task.node_id.as_str()), id.clone()));
            }
            if let Some((task, node)) = after.zip(node) {
                self.judge(id, task, node);
            }
        }
    }

    /// A node is there that was not, or not so; `None` when it is gone.
    pub(crate) fn relink_node(&mut self, node_id: &str, node: Option<&Arc<Node>>) {
        let Some(tasks) = self.by_node.get(node_id).cloned() else { return };
        let key = Id::from(node_id);
        for (id, task) in &tasks {
            self.misplaced.remove(&(key.clone(), id.clone()));
            if let Some(node) = node {
                self.judge(id, task, node);
            }
        }
    }

    /// Whether a task is on the node that its placement does not allow there.
    pub(crate) fn has_misplaced(&self, node_id: &str) -> bool {
        let from = (Id::from(node_id), Id::from(""));
        self.misplaced.range(from..).next().is_some_and(|(node, _)| **node == *node_id)
    }

    fn judge(&mut self, id: &Id, task: &Task, node: &Node) {
        if task.spec.as_ref().is_some_and(|spec| !sits_well(spec, node)) {
            self.misplaced.insert((Id::from(node.id.as_str()), id.clone()));
        }
    }

    fn relink_service(&mut self, id: &Id, before: Option<&Arc<Task>>, after: Option<&Arc<Task>>) {
        let whose = |task: &Arc<Task>| (task.service_id.clone(), seat(task));
        match (before, after) {
            (Some(old), Some(new)) if whose(old) != whose(new) => {
                self.relink_service(id, before, None);
                self.relink_service(id, None, after);
            }
            _ => {
                let Some(task) = after.or(before) else { return };
                if !self.by_service.contains_key(task.service_id.as_str()) {
                    let service = Id::from(task.service_id.as_str());
                    self.by_service.insert(service, Arc::default());
                }
                let Some(cohort) = self.by_service.get_mut(task.service_id.as_str()) else { return };
                Arc::make_mut(cohort).relink(id, before.map(AsRef::as_ref), after);
                if cohort.is_empty() {
                    self.by_service.remove(task.service_id.as_str());
                }
            }
        }
    }

    fn relink_networks(&mut self, id: &Id, before: Option<&Arc<Task>>, after: Option<&Arc<Task>>) {
        for attachment in before.iter().flat_map(|task| &task.networks) {
            let network = attachment.network_id.as_str();
            let stays = |task: &Arc<Task>| task.networks.iter().any(|other| other.network_id == network);
            if !after.is_some_and(stays) {
                relink_keyed(&mut self.by_network, id, Some(network), None, None);
            }
        }
        for attachment in after.iter().flat_map(|task| &task.networks) {
            relink_keyed(&mut self.by_network, id, None, Some(&attachment.network_id), after);
        }
    }

    fn reload(&mut self, before: Option<&Arc<Task>>, after: Option<&Arc<Task>>) {
        if let (Some(before), Some(after)) = (before, after)
            && Load::is_same(before, after)
        {
            return;
        }
        if let Some((task, node)) = before.and_then(|task| Some((task, node_of(task)?)))
            && let Some(load) = self.loads.get_mut(node)
        {
            Arc::make_mut(load).remove(task);
            if load.is_empty() {
                self.loads.remove(node);
            }
        }
        if let Some((task, node)) = after.and_then(|task| Some((task, node_of(task)?))) {
            match self.loads.get_mut(node) {
                Some(load) => Arc::make_mut(load).add(task),
                None => {
                    let mut load = Load::default();
                    load.add(task);
                    if !load.is_empty() {
                        self.loads.insert(Id::from(node), Arc::new(load));
                    }
                }
            }
        }
    }
}

/// Puts a task under one key in the place of another.
fn relink_keyed(
    index: &mut OrdMap<Id, Table<Task>>,
    id: &Id,
    before: Option<&str>,
    after: Option<&str>,
    task: Option<&Arc<Task>>,
) {
    if let Some(key) = before.filter(|_| before != after)
        && let Some(tasks) = index.get_mut(key)
    {
        tasks.remove(id);
        if tasks.is_empty() {
            index.remove(key);
        }
    }
    if let Some((key, task)) = after.zip(task) {
        match index.get_mut(key) {
            Some(tasks) => drop(tasks.insert(id.clone(), task.clone())),
            None => drop(index.insert(Id::from(key), Table::unit(id.clone(), task.clone()))),
        }
    }
}

/// Puts a task on a list, or off it.
fn relink_list(
    list: &mut Table<Task>,
    id: &Id,
    before: Option<&Arc<Task>>,
    after: Option<&Arc<Task>>,
    belongs: impl Fn(&Task) -> bool,
) {
    match after.filter(|task| belongs(task)) {
        Some(task) => drop(list.insert(id.clone(), task.clone())),
        None if before.is_some_and(|task| belongs(task)) => drop(list.remove(id)),
        None => {}
    }
}

fn node_of(task: &Arc<Task>) -> Option<&str> {
    Some(task.node_id.as_str()).filter(|node| !node.is_empty())
}

fn is_unsettled(task: &Task) -> bool {
    task.observed() < TaskState::Assigned
}

fn is_removing(task: &Task) -> bool {
    task.desired() == TaskState::Remove
}

pub(crate) fn is_stopping(task: &Task) -> bool {
    let may_run = matches!(task.observed(), TaskState::Running | TaskState::Draining);
    may_run && task.desired() > TaskState::Running
}
