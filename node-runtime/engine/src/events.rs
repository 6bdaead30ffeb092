//! What happened, for people and clients: a ring of the last events and a broadcast of new ones.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use rswarm_base::Timestamp;
use rswarm_base::metrics::Counter;
use tokio::sync::broadcast;

/// Events kept for a late reader, as dockerd keeps.
const RING: usize = 256;
/// How far a reader may fall behind before it loses events; dockerd's queue for a subscriber.
const QUEUE: usize = 1024;

/// Something that happened to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `container`, `image`, `network`, `volume`, `service`, `node`, ...
    pub kind: String,
    /// `create`, `start`, `die`, ... Some carry a value: `health_status: healthy`.
    pub action: String,
    /// The object's identifier.
    pub id: String,
    /// What more is known: name, image, labels, exit code, ...
    pub attributes: BTreeMap<String, String>,
    /// When.
    pub at: Timestamp,
    /// Whose event it is.
    pub scope: EventScope,
}

/// Whether an event is this machine's or the cluster's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventScope {
    /// This machine's.
    Local,
    /// The cluster's; published on managers.
    Swarm,
}

impl EventScope {
    /// Docker's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            EventScope::Local => "local",
            EventScope::Swarm => "swarm",
        }
    }
}

/// Past events and those to come, without a gap between them.
#[derive(Debug)]
pub struct Subscription {
    /// The last events, oldest first.
    pub backlog: Vec<Arc<Event>>,
    /// The events from now on. One that lags loses the oldest.
    pub live: broadcast::Receiver<Arc<Event>>,
}

/// The one place where events go. Cloning gives another handle.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    ring: Arc<Mutex<VecDeque<Arc<Event>>>>,
    live: broadcast::Sender<Arc<Event>>,
    /// How many there were.
    pub(crate) count: Counter,
}

impl Events {
    pub(crate) fn new() -> Events {
        Events { ring: Arc::default(), live: broadcast::channel(QUEUE).0, count: Counter::default() }
    }

    /// How many follow them.
    pub(crate) fn readers(&self) -> usize {
        self.live.receiver_count()
    }

    /// Keeps and announces an event; both under one lock, so that no subscriber misses or doubles it.
    pub(crate) fn publish(&self, event: Event) {
        let event = Arc::new(event);
        self.count.one();
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == RING {
            ring.pop_front();
        }
        ring.push_back(event.clone());
        // No reader is no failure.
        let _ = self.live.send(event);
    }

    /// [`Events::publish`] of something local that happens now.
    pub(crate) fn local(&self, kind: &str, action: &str, id: &str, attributes: BTreeMap<String, String>) {
        self.publish(Event {
            kind: kind.to_owned(),
            action: action.to_owned(),
            id: id.to_owned(),
            attributes,
            at: Timestamp::now(),
            scope: EventScope::Local,
        });
    }

    pub(crate) fn subscribe(&self) -> Subscription {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        Subscription { backlog: ring.iter().cloned().collect(), live: self.live.subscribe() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(events: &Events, n: usize) {
        events.local("container", "start", &n.to_string(), BTreeMap::new());
    }

    #[tokio::test]
    async fn a_reader_sees_the_last_events_and_then_new_ones_each_once() {
        let events = Events::new();
        for n in 0..RING + 10 {
            publish(&events, n);
        }
        let mut reader = events.subscribe();
        publish(&events, 999);
        assert_eq!(reader.backlog.len(), RING);
        assert_eq!(reader.backlog[0].id, "10");
        assert_eq!(reader.live.recv().await.expect("event").id, "999");
        assert!(reader.live.is_empty());
    }
}
