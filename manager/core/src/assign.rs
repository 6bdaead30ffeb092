//! What each node must know: its tasks, and for every network that they are on, who else is on it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rswarm_proto::model::object::Stored;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::assignment_change::Change as Kind;
use rswarm_proto::wire::{
    AssignmentChange, Network, NetworkAttachment, NetworkEndpoint, NetworkTable, Node, Task,
};

use crate::state::State;

/// Everything that one node is assigned, as of one state.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AssignmentSet {
    /// Index of the state that it was computed from.
    pub version: u64,
    /// The node's tasks by id, ended ones too: they keep their container until they are reaped.
    pub tasks: BTreeMap<String, Arc<Task>>,
    /// The networks that live tasks of the node are on, by id.
    pub networks: BTreeMap<String, Arc<Table>>,
}

/// One network and the tasks on it, wherever they run.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// The network.
    pub network: Arc<Network>,
    /// Its endpoints by task id.
    pub endpoints: BTreeMap<String, NetworkEndpoint>,
}

/// The endpoint tables of one state, each computed once however many nodes ask for it.
pub struct Tables<'a> {
    state: &'a State,
    tables: BTreeMap<String, Arc<Table>>,
}

/// What `node_id` is assigned. For many nodes of one state, use [`Tables`].
#[must_use]
pub fn assignments(state: &State, node_id: &str) -> AssignmentSet {
    Tables::new(state).assignments(node_id)
}

impl<'a> Tables<'a> {
    /// Nothing computed yet.
    #[must_use]
    pub fn new(state: &'a State) -> Tables<'a> {
        Tables { state, tables: BTreeMap::new() }
    }

    /// What `node_id` is assigned.
    #[must_use]
    pub fn assignments(&mut self, node_id: &str) -> AssignmentSet {
        let mine = self.state.tasks_on_node(node_id).filter(|task| task.observed() >= TaskState::Assigned);
        let tasks: BTreeMap<String, Arc<Task>> = mine.map(|task| (task.id.clone(), task.clone())).collect();
        let wanted: BTreeSet<&str> = tasks
            .values()
            .filter(|task| !task.observed().is_terminal())
            .flat_map(|task| task.networks.iter().map(|attachment| attachment.network_id.as_str()))
            .collect();
        let networks = wanted.into_iter().filter_map(|id| Some((id.to_owned(), self.table(id)?))).collect();
        AssignmentSet { version: self.state.index(), tasks, networks }
    }

    fn table(&mut self, network_id: &str) -> Option<Arc<Table>> {
        if let Some(table) = self.tables.get(network_id) {
            return Some(table.clone());
        }
        // Networks of the node itself, such as `host`, are not stored and have no table.
        let network = self.state.network(network_id)?.clone();
        let endpoints = self
            .state
            .tasks_on_network(network_id)
            .filter(|task| is_present(task))
            .filter_map(|task| Some((task.id.clone(), endpoint(self.state, task, network_id)?)))
            .collect();
        let table = Arc::new(Table { network, endpoints });
        self.tables.insert(network_id.to_owned(), table.clone());
        Some(table)
    }
}

/// Whether a task may hold its addresses on its node.
fn is_present(task: &Task) -> bool {
    task.observed() >= TaskState::Assigned && !task.observed().is_terminal()
}

fn endpoint(state: &State, task: &Task, network_id: &str) -> Option<NetworkEndpoint> {
    let attachment: &NetworkAttachment =
        task.networks.iter().find(|attachment| attachment.network_id == network_id)?;
    let node = state.node(&task.node_id);
    let service = state.service(&task.service_id);
    let named = task.service_annotations.as_ref().map_or("", |annotations| annotations.name.as_str());
    let service_name = service.map_or(named, |service| service.name());
    let running = task.observed() == TaskState::Running && task.desired() <= TaskState::Running;
    Some(NetworkEndpoint {
        task_id: task.id.clone(),
        service_id: task.service_id.clone(),
        service_name: service_name.to_owned(),
        slot: task.slot,
        addresses: attachment.addresses.clone(),
        mac: attachment.mac.clone(),
        node_id: task.node_id.clone(),
        node_addr: node.map_or_else(String::new, |node| data_path_addr(node).to_owned()),
        aliases: attachment.aliases.clone(),
        ready: running && !state.is_node_lost(&task.node_id),
        task_name: task.slot_name(),
    })
}

/// Where a node's VXLAN traffic goes.
fn data_path_addr(node: &Node) -> &str {
    node.status.as_ref().map_or("", |status| {
        if status.data_path_addr.is_empty() { &status.addr } else { &status.data_path_addr }
    })
}

impl AssignmentSet {
    /// The changes that make this set out of nothing: for a new session.
    #[must_use]
    pub fn complete(&self) -> Vec<AssignmentChange> {
        AssignmentSet::default().diff(self)
    }

    /// The changes that make `next` out of this set, in an order that can be applied one by one: networks
    /// before the tasks on them, and gone after them.
    #[must_use]
    pub fn diff(&self, next: &AssignmentSet) -> Vec<AssignmentChange> {
        let mut changes = Vec::new();
        for (id, table) in &next.networks {
            match self.networks.get(id) {
                None => changes.push(Kind::Network(table.snapshot(next.version))),
                Some(before) if Arc::ptr_eq(before, table) || before == table => {}
                Some(before) => changes.push(Kind::Network(before.delta(table, next.version))),
            }
        }
        for (id, task) in &next.tasks {
            let before = self.tasks.get(id);
            if before.is_none_or(|before| !Arc::ptr_eq(before, task) && before != task) {
                changes.push(Kind::Task(Task::clone(task)));
            }
        }
        let gone = self.tasks.keys().filter(|id| !next.tasks.contains_key(*id));
        changes.extend(gone.map(|id| Kind::RemoveTask(id.clone())));
        let gone = self.networks.keys().filter(|id| !next.networks.contains_key(*id));
        changes.extend(gone.map(|id| Kind::RemoveNetwork(id.clone())));
        changes.into_iter().map(|change| AssignmentChange { change: Some(change) }).collect()
    }
}

impl Table {
    fn snapshot(&self, version: u64) -> NetworkTable {
        NetworkTable {
            network: Some(Network::clone(&self.network)),
            version,
            snapshot: true,
            endpoints: self.endpoints.values().cloned().collect(),
            removed: Vec::new(),
        }
    }

    fn delta(&self, next: &Table, version: u64) -> NetworkTable {
        let changed =
            next.endpoints.iter().filter(|(id, endpoint)| self.endpoints.get(*id) != Some(endpoint));
        let removed = self.endpoints.keys().filter(|id| !next.endpoints.contains_key(*id));
        NetworkTable {
            network: Some(Network::clone(&next.network)),
            version,
            snapshot: false,
            endpoints: changed.map(|(_, endpoint)| endpoint.clone()).collect(),
            removed: removed.cloned().collect(),
        }
    }
}
