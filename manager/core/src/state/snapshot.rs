//! The state as raft's snapshots carry it: all objects and no index.

use rswarm_proto::wire::{ObjectKind, StateSnapshot};

use super::{AnyObject, State};

/// A raft snapshot that holds no valid state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// An object message without an object.
    #[error("object {0} of the raft snapshot is empty")]
    Empty(usize),
    /// Two objects of one kind with one id.
    #[error("the raft snapshot holds {0:?} `{1}` twice")]
    Duplicate(ObjectKind, String),
}

impl State {
    /// All objects, in one order on every manager.
    #[must_use]
    pub fn snapshot(&self) -> StateSnapshot {
        let objects = self.objects().map(|object| object.to_object()).collect();
        StateSnapshot { index: self.index, objects }
    }

    fn objects(&self) -> impl Iterator<Item = AnyObject> {
        let clusters = self.clusters.values().cloned().map(AnyObject::Cluster);
        let nodes = self.nodes.values().cloned().map(AnyObject::Node);
        let services = self.services.values().cloned().map(AnyObject::Service);
        let tasks = self.tasks.values().cloned().map(AnyObject::Task);
        let networks = self.networks.values().cloned().map(AnyObject::Network);
        let secrets = self.secrets.values().cloned().map(AnyObject::Secret);
        let configs = self.configs.values().cloned().map(AnyObject::Config);
        clusters.chain(nodes).chain(services).chain(tasks).chain(networks).chain(secrets).chain(configs)
    }

    /// The state that [`State::snapshot`] was taken of, indices and all.
    pub fn restore(snapshot: StateSnapshot) -> Result<State, RestoreError> {
        let mut state = State { index: snapshot.index, ..State::default() };
        for (position, object) in snapshot.objects.into_iter().enumerate() {
            let object = AnyObject::from_object(object).ok_or(RestoreError::Empty(position))?;
            let (kind, id) = object.key();
            if state.get(kind, id).is_some() {
                return Err(RestoreError::Duplicate(kind, id.to_owned()));
            }
            state.put(object);
        }
        Ok(state)
    }
}

#[cfg(test)]
impl State {
    /// Whether each index is what it would be if it were made of the tables now.
    pub(crate) fn is_as_recomputed(&self) -> bool {
        let new = State::restore(self.snapshot()).expect("it was stored");
        new.task_indices == self.task_indices
            && new.managers == self.managers
            && new.service_names == self.service_names
            && new.network_names == self.network_names
            && new.node_names == self.node_names
            && new.services_by_network == self.services_by_network
            && new.on_ingress == self.on_ingress
            && new.published == self.published
            && new.ingress == self.ingress
    }
}
