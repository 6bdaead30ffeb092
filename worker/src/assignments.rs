//! The set of things this node was told, and how a message changes it. Pure.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use rswarm_proto::wire::{
    AssignmentChange, Assignments, Network, NetworkEndpoint, NetworkNode, NetworkService, NetworkTable, Task,
    TunnelSecret, assignment_change, assignments::Kind,
};
use serde::{Deserialize, Serialize};

use crate::content::Content;

/// One cluster network as this node must have it: the object and the whole endpoint table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkView {
    /// The network object, with its subnets and VNI.
    pub network: Network,
    /// Version of the table.
    pub version: u64,
    /// Who is on the network, by task id.
    pub endpoints: BTreeMap<String, NetworkEndpoint>,
    /// The services with a virtual address in the network, by id.
    #[serde(default)]
    pub services: BTreeMap<String, NetworkService>,
    /// For the network of the routing mesh: its routers, this node among them, by node id.
    #[serde(default)]
    pub nodes: BTreeMap<String, NetworkNode>,
    /// For an encrypted network: what its nodes share.
    #[serde(default)]
    pub tunnel: Option<TunnelSecret>,
    /// UDP port of VXLAN in this cluster.
    #[serde(default)]
    pub data_path_port: u32,
}

/// Everything assigned to this node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AssignmentSet {
    /// The last message's sequence; empty before the first.
    pub sequence: String,
    /// Wanted tasks by id.
    pub tasks: BTreeMap<String, Task>,
    /// Wanted networks by id.
    pub networks: BTreeMap<String, NetworkView>,
    /// Secrets and configs that the tasks use.
    pub content: Content,
}

/// What a message changed, by id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// Tasks that are new or differ.
    pub tasks: BTreeSet<String>,
    /// Tasks that are no longer wanted at all.
    pub removed_tasks: BTreeSet<String>,
    /// Networks that are new or whose object or table differs.
    pub networks: BTreeSet<String>,
    /// Networks that are no longer wanted.
    pub removed_networks: BTreeSet<String>,
    /// Secrets that are new or differ.
    pub secrets: BTreeSet<String>,
    /// Secrets that no task uses any more.
    pub removed_secrets: BTreeSet<String>,
    /// Configs that are new or differ.
    pub configs: BTreeSet<String>,
    /// Configs that no task uses any more.
    pub removed_configs: BTreeSet<String>,
}

/// A message that does not follow the last one; the session must start over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    /// The message applies to another sequence than ours.
    #[error("assignment message applies to `{theirs}`, this node is at `{ours}`")]
    Sequence {
        /// What the message builds on.
        theirs: String,
        /// Where this node is.
        ours: String,
    },
    /// A delta for a table that this node does not have.
    #[error("delta for network `{0}`, whose table this node does not have")]
    Table(String),
}

impl AssignmentSet {
    /// Applies a message, or refuses it whole.
    ///
    /// # Errors
    /// [`Gap`] when it builds on something else than this set.
    pub fn apply(&mut self, message: &Assignments) -> Result<Changed, Gap> {
        let mut next = match message.kind() {
            Kind::Complete => AssignmentSet::default(),
            Kind::Incremental if message.from == self.sequence => self.clone(),
            Kind::Incremental => {
                return Err(Gap::Sequence { theirs: message.from.clone(), ours: self.sequence.clone() });
            }
        };
        for change in &message.changes {
            next.apply_change(change)?;
        }
        next.sequence.clone_from(&message.to);
        let changed = self.changed_to(&next);
        *self = next;
        Ok(changed)
    }

    fn apply_change(&mut self, change: &AssignmentChange) -> Result<(), Gap> {
        use assignment_change::Change;
        match &change.change {
            Some(Change::Task(task)) => {
                self.tasks.insert(task.id.clone(), Task::clone(task));
            }
            Some(Change::RemoveTask(id)) => {
                self.tasks.remove(id);
            }
            Some(Change::Network(table)) => self.apply_table(table)?,
            Some(Change::RemoveNetwork(id)) => {
                self.networks.remove(id);
            }
            Some(Change::Secret(secret)) => {
                self.content.secrets.insert(secret.id.clone(), Arc::from(secret.clone()));
            }
            Some(Change::RemoveSecret(id)) => {
                self.content.secrets.remove(id);
            }
            Some(Change::Config(config)) => {
                self.content.configs.insert(config.id.clone(), Arc::from(config.clone()));
            }
            Some(Change::RemoveConfig(id)) => {
                self.content.configs.remove(id);
            }
            // A newer manager may know kinds of assignment that this node does not.
            None => {}
        }
        Ok(())
    }

    fn apply_table(&mut self, table: &NetworkTable) -> Result<(), Gap> {
        let network = table.network.clone().unwrap_or_default();
        let known = match self.networks.remove(&network.id) {
            _ if table.snapshot => NetworkView::default(),
            Some(view) => view,
            None => return Err(Gap::Table(network.id)),
        };
        let view = NetworkView {
            version: table.version,
            endpoints: entries(known.endpoints, &table.endpoints, &table.removed, |entry| &entry.task_id),
            services: entries(known.services, &table.services, &table.removed_services, |entry| {
                &entry.service_id
            }),
            nodes: entries(known.nodes, &table.nodes, &table.removed_nodes, |entry| &entry.node_id),
            tunnel: table.tunnel.clone(),
            data_path_port: 0,
            network,
        };
        self.networks.insert(view.network.id.clone(), view);
        Ok(())
    }

    fn changed_to(&self, next: &AssignmentSet) -> Changed {
        Changed {
            tasks: differing(&self.tasks, &next.tasks),
            removed_tasks: missing(&self.tasks, &next.tasks),
            networks: differing(&self.networks, &next.networks),
            removed_networks: missing(&self.networks, &next.networks),
            secrets: differing(&self.content.secrets, &next.content.secrets),
            removed_secrets: missing(&self.content.secrets, &next.content.secrets),
            configs: differing(&self.content.configs, &next.content.configs),
            removed_configs: missing(&self.content.configs, &next.content.configs),
        }
    }
}

/// One part of a table after a message about it.
fn entries<T: Clone>(
    mut known: BTreeMap<String, T>,
    changed: &[T],
    removed: &[String],
    id: fn(&T) -> &String,
) -> BTreeMap<String, T> {
    known.retain(|id, _| !removed.contains(id));
    known.extend(changed.iter().map(|entry| (id(entry).clone(), entry.clone())));
    known
}

fn differing<T: PartialEq>(old: &BTreeMap<String, T>, new: &BTreeMap<String, T>) -> BTreeSet<String> {
    new.iter().filter(|(id, value)| old.get(*id) != Some(value)).map(|(id, _)| id.clone()).collect()
}

fn missing<T>(old: &BTreeMap<String, T>, new: &BTreeMap<String, T>) -> BTreeSet<String> {
    old.keys().filter(|id| !new.contains_key(*id)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use assignment_change::Change;

    use super::*;

    fn task(id: &str) -> AssignmentChange {
        AssignmentChange { change: Some(Change::Task(Box::new(Task { id: id.into(), ..Task::default() }))) }
    }

    fn table(id: &str, snapshot: bool, add: &[&str], removed: &[&str]) -> AssignmentChange {
        let endpoint = |id: &&str| NetworkEndpoint { task_id: (*id).into(), ..NetworkEndpoint::default() };
        let table = NetworkTable {
            network: Some(Network { id: id.into(), ..Network::default() }),
            version: 1,
            snapshot,
            endpoints: add.iter().map(endpoint).collect(),
            removed: removed.iter().map(|id| (*id).into()).collect(),
            ..NetworkTable::default()
        };
        AssignmentChange { change: Some(Change::Network(Box::new(table))) }
    }

    fn message(kind: Kind, from: &str, to: &str, changes: Vec<AssignmentChange>) -> Assignments {
        Assignments { kind: kind.into(), from: from.into(), to: to.into(), changes }
    }

    fn ids(set: &BTreeSet<String>) -> Vec<&str> {
        set.iter().map(String::as_str).collect()
    }

    #[test]
    fn a_complete_set_removes_what_it_does_not_name() {
        let mut set = AssignmentSet::default();
        set.apply(&message(Kind::Complete, "", "1", vec![task("a"), task("b")])).expect("first");
        let changed = set.apply(&message(Kind::Complete, "", "2", vec![task("b"), task("c")])).expect("next");
        assert_eq!((ids(&changed.tasks), ids(&changed.removed_tasks)), (vec!["c"], vec!["a"]));
    }

    #[test]
    fn a_gap_is_refused_and_changes_nothing() {
        let mut set = AssignmentSet::default();
        set.apply(&message(Kind::Complete, "", "1", vec![task("a")])).expect("first");
        let before = set.clone();
        let gap = set.apply(&message(Kind::Incremental, "7", "8", vec![task("b")])).expect_err("gap");
        assert_eq!(gap, Gap::Sequence { theirs: "7".into(), ours: "1".into() });
        set.apply(&message(Kind::Incremental, "1", "2", vec![table("n", false, &[], &[])]))
            .expect_err("no table");
        assert_eq!(set, before);
    }

    #[test]
    fn services_and_nodes_of_a_table_add_up_too() {
        let message = |kind, from: &str, to: &str, table: NetworkTable| {
            let network = Some(Network { id: "n".into(), ..Network::default() });
            let table = NetworkTable { network, ..table };
            message(kind, from, to, vec![AssignmentChange { change: Some(Change::Network(Box::new(table))) }])
        };
        let service = |id: &str| NetworkService { service_id: id.into(), ..NetworkService::default() };
        let node = |id: &str| NetworkNode { node_id: id.into(), ..NetworkNode::default() };
        let (services, nodes) = (vec![service("a"), service("b")], vec![node("x")]);
        let first = NetworkTable { snapshot: true, services, nodes, ..NetworkTable::default() };
        let delta = NetworkTable {
            services: vec![service("c")],
            removed_services: vec!["a".into()],
            nodes: vec![node("y")],
            removed_nodes: vec!["x".into()],
            ..NetworkTable::default()
        };
        let mut set = AssignmentSet::default();
        set.apply(&message(Kind::Complete, "", "1", first)).expect("first");
        set.apply(&message(Kind::Incremental, "1", "2", delta)).expect("delta");
        let view = &set.networks["n"];
        assert_eq!(view.services.keys().collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(view.nodes.keys().collect::<Vec<_>>(), ["y"]);
    }

    #[test]
    fn secrets_come_and_go_with_the_tasks_that_use_them() {
        let secret = |id: &str| rswarm_proto::wire::Secret { id: id.into(), ..Default::default() };
        let change = |change| AssignmentChange { change: Some(change) };
        let mut set = AssignmentSet::default();
        let first = vec![
            change(Change::Secret(Box::new(secret("a")))),
            change(Change::Secret(Box::new(secret("b")))),
        ];
        assert_eq!(
            ids(&set.apply(&message(Kind::Complete, "", "1", first)).expect("first").secrets),
            ["a", "b"]
        );
        let next = message(Kind::Incremental, "1", "1", vec![change(Change::RemoveSecret("a".into()))]);
        assert_eq!(ids(&set.apply(&next).expect("next").removed_secrets), ["a"]);
        let complete = set.apply(&message(Kind::Complete, "", "2", vec![])).expect("complete");
        assert_eq!(ids(&complete.removed_secrets), ["b"]);
    }

    #[test]
    fn table_deltas_add_up() {
        let mut set = AssignmentSet::default();
        set.apply(&message(Kind::Complete, "", "1", vec![table("n", true, &["a", "b"], &[])]))
            .expect("first");
        let delta = message(Kind::Incremental, "1", "2", vec![table("n", false, &["c"], &["a"])]);
        assert_eq!(ids(&set.apply(&delta).expect("delta").networks), vec!["n"]);
        assert_eq!(set.networks["n"].endpoints.keys().collect::<Vec<_>>(), vec!["b", "c"]);
    }
}
