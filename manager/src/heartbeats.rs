//! When each node was last heard of: the one observation that is kept out of raft.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rswarm_base::Timestamp;

/// The last heartbeats, shared by those who hear them and the leader who judges by them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heartbeats {
    heard: Arc<Mutex<BTreeMap<String, Timestamp>>>,
}

impl Heartbeats {
    /// The node lives.
    pub(crate) fn beat(&self, node_id: &str, now: Timestamp) {
        let mut heard = self.heard.lock().expect("no holder panics");
        match heard.get_mut(node_id) {
            Some(last) => *last = now,
            None => drop(heard.insert(node_id.to_owned(), now)),
        }
    }

    /// All of them as of now.
    pub(crate) fn all(&self) -> BTreeMap<String, Timestamp> {
        self.heard.lock().expect("no holder panics").clone()
    }

    /// Forgets all: a new leader has heard nobody yet.
    pub(crate) fn clear(&self) {
        self.heard.lock().expect("no holder panics").clear();
    }

    /// Forgets nodes that are no longer listed.
    pub(crate) fn retain(&self, is_listed: impl Fn(&str) -> bool) {
        self.heard.lock().expect("no holder panics").retain(|node_id, _| is_listed(node_id));
    }
}
