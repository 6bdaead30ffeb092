//! The one way that state changes: a batch of transactions, applied in log order on every manager alike.
//!
//! All checks that need the newest state are here and run again on every manager: versions, names, who
//! writes what, and that no task moves back. A transaction holds as a whole or not at all.

use std::sync::Arc;

use rswarm_base::{Classify, Kind};
use rswarm_proto::model::object::Stored;
use rswarm_proto::wire::{Batch, Change, ObjectKind, Service, Task, Transaction, change};

use crate::author::Author;
use crate::state::{AnyObject, State};

/// What came of a batch.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The state after it; its index is the batch's, even when every transaction was rejected.
    pub state: State,
    /// One result per transaction, by its id, in order.
    pub results: Vec<(u64, Result<(), Rejected>)>,
    /// Every change that held, in order.
    pub events: Vec<Event>,
}

/// One object that changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// What was stored; nothing for a new object.
    pub before: Option<AnyObject>,
    /// What is stored now; nothing for a deleted object.
    pub after: Option<AnyObject>,
}

/// Why a transaction changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The object has been written since it was read.
    #[error("update out of sequence")]
    Version {
        /// The object's kind.
        kind: ObjectKind,
        /// The object's id.
        id: String,
        /// The version that the writer read.
        read: u64,
        /// The version that is stored.
        stored: u64,
    },
    /// An object of this id exists already.
    #[error("{} {id} already exists", noun(*.kind))]
    Exists {
        /// The object's kind.
        kind: ObjectKind,
        /// The object's id.
        id: String,
    },
    /// No object of this id exists.
    #[error("{} {id} not found", noun(*.kind))]
    Missing {
        /// The object's kind.
        kind: ObjectKind,
        /// The object's id.
        id: String,
    },
    /// Another object of the kind has the name.
    #[error("name conflicts with an existing object: {} {name} already exists", noun(*.kind))]
    NameTaken {
        /// The object's kind.
        kind: ObjectKind,
        /// The name.
        name: String,
    },
    /// The author may not write this.
    #[error("`{author}` may not write {field}")]
    Forbidden {
        /// Who tried.
        author: String,
        /// What it tried to write.
        field: &'static str,
    },
    /// The task would go back to a state that it has left.
    #[error("task {0} cannot move back")]
    MovedBack(String),
    /// A change without an object, or of an unknown kind or action.
    #[error("the change is malformed")]
    Malformed,
}

impl Classify for Rejected {
    fn kind(&self) -> Kind {
        match self {
            Rejected::Version { .. } => Kind::FailedPrecondition,
            Rejected::Exists { .. } | Rejected::NameTaken { .. } => Kind::Conflict,
            Rejected::Missing { .. } => Kind::NotFound,
            Rejected::Forbidden { .. } | Rejected::MovedBack(_) | Rejected::Malformed => Kind::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Rejected::Version { .. } => Some("read the object again and repeat the change on it".to_owned()),
            Rejected::Exists { .. }
            | Rejected::Missing { .. }
            | Rejected::NameTaken { .. }
            | Rejected::Forbidden { .. }
            | Rejected::MovedBack(_)
            | Rejected::Malformed => None,
        }
    }
}

/// What users call a kind of object.
#[must_use]
pub fn noun(kind: ObjectKind) -> &'static str {
    match kind {
        ObjectKind::Cluster => "cluster",
        ObjectKind::Node => "node",
        ObjectKind::Service => "service",
        ObjectKind::Task => "task",
        ObjectKind::Network => "network",
    }
}

/// The state after `batch`, which was committed at raft index `index`.
#[must_use]
pub fn apply(state: &State, index: u64, batch: &Batch) -> Applied {
    let mut applied = Applied { state: state.clone(), results: Vec::new(), events: Vec::new() };
    applied.state.set_index(index);
    for transaction in &batch.transactions {
        let mut draft = Draft { state: applied.state.clone(), index, now: batch.now, events: Vec::new() };
        let result = draft.transaction(transaction);
        if result.is_ok() {
            applied.state = draft.state;
            applied.events.append(&mut draft.events);
        }
        applied.results.push((transaction.id, result));
    }
    applied
}

/// One transaction in the making.
struct Draft {
    state: State,
    index: u64,
    now: i64,
    events: Vec<Event>,
}

impl Draft {
    fn transaction(&mut self, transaction: &Transaction) -> Result<(), Rejected> {
        let author = Author::parse(&transaction.author)
            .ok_or_else(|| Rejected::Forbidden { author: transaction.author.clone(), field: "anything" })?;
        transaction.changes.iter().try_for_each(|change| self.change(author, change))
    }

    fn change(&mut self, author: Author, change: &Change) -> Result<(), Rejected> {
        let action = change::Action::try_from(change.action).map_err(|_| Rejected::Malformed)?;
        let (before, after) = match action {
            change::Action::Create => (None, Some(self.created(object(change)?)?)),
            change::Action::Update => {
                let (before, after) = self.updated(object(change)?)?;
                (Some(before), Some(after))
            }
            change::Action::Delete => (Some(self.deleted(change)?), None),
        };
        if let Some(field) = author.forbidden(before.as_ref(), after.as_ref()) {
            return Err(Rejected::Forbidden { author: author.name().to_owned(), field });
        }
        match (&before, &after) {
            (_, Some(after)) => self.state.put(after.clone()),
            (Some(before), None) => {
                let (kind, id) = before.key();
                self.state.remove(kind, id);
            }
            (None, None) => {}
        }
        self.events.push(Event { before, after });
        Ok(())
    }

    fn created(&self, object: AnyObject) -> Result<AnyObject, Rejected> {
        let (kind, id) = object.key();
        if id.is_empty() {
            return Err(Rejected::Malformed);
        }
        if self.state.get(kind, id).is_some() {
            return Err(Rejected::Exists { kind, id: id.to_owned() });
        }
        self.check_name(&object)?;
        Ok(match object {
            AnyObject::Cluster(object) => AnyObject::Cluster(self.stamped(object, self.now)),
            AnyObject::Node(object) => AnyObject::Node(self.stamped(object, self.now)),
            AnyObject::Service(object) => {
                let mut object = self.stamped(object, self.now);
                Arc::make_mut(&mut object).spec_version = self.index;
                AnyObject::Service(object)
            }
            AnyObject::Task(object) => {
                let created_at = self.task_created_at(&object);
                AnyObject::Task(self.stamped(object, created_at))
            }
            AnyObject::Network(object) => AnyObject::Network(self.stamped(object, self.now)),
        })
    }

    /// After every other task of the slot, whatever the clocks of successive leaders say: the history of a
    /// slot is read by this order.
    fn task_created_at(&self, task: &Task) -> i64 {
        let slot = self.state.tasks_of_slot(&task.service_id, task.slot);
        let same_place = slot.filter(|other| task.slot != 0 || other.node_id == task.node_id);
        same_place.map(|other| other.meta().created_at + 1).max().map_or(self.now, |last| last.max(self.now))
    }

    fn updated(&self, object: AnyObject) -> Result<(AnyObject, AnyObject), Rejected> {
        let (kind, id) = object.key();
        let Some(before) = self.state.get(kind, id) else {
            return Err(Rejected::Missing { kind, id: id.to_owned() });
        };
        let (read, stored) = (object.version(), before.version());
        if read != stored {
            return Err(Rejected::Version { kind, id: id.to_owned(), read, stored });
        }
        self.check_name(&object)?;
        let after = match (&before, object) {
            (AnyObject::Task(before), AnyObject::Task(task)) => {
                if moves_back(before, &task) {
                    return Err(Rejected::MovedBack(task.id.clone()));
                }
                AnyObject::Task(self.stamped(task, before.meta().created_at))
            }
            (AnyObject::Service(before), AnyObject::Service(service)) => {
                let mut service = self.stamped(service, before.meta().created_at);
                self.set_spec_version(before, Arc::make_mut(&mut service));
                AnyObject::Service(service)
            }
            (AnyObject::Cluster(before), AnyObject::Cluster(object)) => {
                AnyObject::Cluster(self.stamped(object, before.meta().created_at))
            }
            (AnyObject::Node(before), AnyObject::Node(object)) => {
                AnyObject::Node(self.stamped(object, before.meta().created_at))
            }
            (AnyObject::Network(before), AnyObject::Network(object)) => {
                AnyObject::Network(self.stamped(object, before.meta().created_at))
            }
            _ => return Err(Rejected::Malformed),
        };
        Ok((before, after))
    }

    fn deleted(&self, change: &Change) -> Result<AnyObject, Rejected> {
        let kind = ObjectKind::try_from(change.kind).map_err(|_| Rejected::Malformed)?;
        self.state.get(kind, &change.id).ok_or_else(|| Rejected::Missing { kind, id: change.id.clone() })
    }

    /// Names of services and networks are unique among those that are not being deleted.
    fn check_name(&self, object: &AnyObject) -> Result<(), Rejected> {
        let (name, owner) = match object {
            AnyObject::Service(service) if !service.pending_delete => {
                (service.name(), self.state.service_named(service.name()).map(|other| other.id.as_str()))
            }
            AnyObject::Network(network) if !network.pending_delete => {
                (network.name(), self.state.network_named(network.name()).map(|other| other.id.as_str()))
            }
            AnyObject::Cluster(_)
            | AnyObject::Node(_)
            | AnyObject::Service(_)
            | AnyObject::Task(_)
            | AnyObject::Network(_) => return Ok(()),
        };
        let (kind, id) = object.key();
        match owner {
            Some(owner) if owner != id => Err(Rejected::NameTaken { kind, name: name.to_owned() }),
            _ => Ok(()),
        }
    }

    fn set_spec_version(&self, before: &Service, after: &mut Service) {
        let same_spec = before.spec == after.spec;
        after.spec_version = if same_spec { before.spec_version } else { self.index };
        after.previous_spec_version = match &after.previous_spec {
            None => 0,
            Some(_) if same_spec => before.previous_spec_version,
            Some(_) => before.spec_version,
        };
    }

    fn stamped<T: Stored>(&self, mut object: Arc<T>, created_at: i64) -> Arc<T> {
        let meta = Arc::make_mut(&mut object).meta_mut();
        meta.version = self.index;
        meta.created_at = created_at;
        meta.updated_at = self.now;
        object
    }
}

fn object(change: &Change) -> Result<AnyObject, Rejected> {
    change.object.clone().and_then(AnyObject::from_object).ok_or(Rejected::Malformed)
}

fn moves_back(before: &Task, after: &Task) -> bool {
    after.observed() < before.observed() || after.desired() < before.desired()
}
