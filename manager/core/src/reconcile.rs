//! What every part of the brain is: a function from state to the changes that bring it closer to what was
//! asked. [`pass`] runs them all, each on the result of those before it.

use std::collections::{BTreeMap, BTreeSet};

use rswarm_base::{IdGen, Timestamp};
use rswarm_proto::wire::{Batch, Change, Object, ObjectKind, Transaction, change};

use crate::apply::apply;
use crate::author::Author;
use crate::state::{AnyObject, State};

/// Changes that one transaction of a pass holds, as far as slots can be kept whole. Small enough that a
/// concurrent write costs little to redo, large enough that a big service needs few of them.
const CHANGES_PER_TRANSACTION: usize = 200;

/// A part of the brain.
pub trait Reconciler {
    /// Under which name its changes are proposed.
    fn author(&self) -> Author;

    /// Reads a snapshot, returns the writes that bring it closer to what was asked.
    /// Same view and env, same plan: no clock, no randomness, no memory of earlier calls.
    fn reconcile(&self, view: &State, env: &mut Env<'_>) -> Plan;
}

/// What a decision may depend on beside the state.
pub struct Env<'a> {
    /// The leader's time.
    pub now: Timestamp,
    /// Where ids of new tasks come from.
    pub ids: &'a mut IdGen,
    /// When each node was last heard of, by node id, as far as this leader knows. The one observation that
    /// is kept out of raft.
    pub heartbeats: &'a BTreeMap<String, Timestamp>,
    /// Since when this manager leads: before that it could not have heard anyone.
    pub leader_since: Timestamp,
}

/// What a reconciler wants to be done.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Plan {
    /// Proposed as one transaction; a stale version rejects it whole.
    pub changes: Vec<Change>,
    /// "Nothing to do until then": the leader sleeps, not the brain.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    /// A new object.
    pub fn create(&mut self, object: impl Into<Object>) {
        self.push(change::Action::Create, object.into());
    }

    /// An object as it should be; its version says when it was read.
    pub fn update(&mut self, object: impl Into<Object>) {
        self.push(change::Action::Update, object.into());
    }

    /// An object that goes.
    pub fn delete(&mut self, kind: ObjectKind, id: &str) {
        self.changes.push(deletion(kind, id));
    }

    /// Asks to be called again at `at` at the latest.
    pub fn wake(&mut self, at: Timestamp) {
        self.wake_at = earliest(self.wake_at, Some(at));
    }

    fn push(&mut self, action: change::Action, object: Object) {
        self.changes.push(Change { action: action.into(), object: Some(object), ..Change::default() });
    }
}

fn deletion(kind: ObjectKind, id: &str) -> Change {
    let action = change::Action::Delete.into();
    Change { action, kind: kind.into(), id: id.to_owned(), object: None }
}

fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The reconcilers in the order in which they see one another's results: who is alive, who must go, what is
/// missing, what it needs, where it runs, what is left over.
#[must_use]
pub fn all() -> Vec<Box<dyn Reconciler>> {
    vec![
        Box::new(crate::liveness::Liveness),
        Box::new(crate::enforce::Enforce),
        Box::new(crate::replicated::Replicated),
        Box::new(crate::global::Global),
        Box::new(crate::restart::Restart),
        Box::new(crate::update::Update),
        Box::new(crate::allocate::Allocate),
        Box::new(crate::schedule::Schedule),
        Box::new(crate::reap::Reap),
    ]
}

/// The result of one run of all reconcilers.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Pass {
    /// What to propose: independent of one another, so that one rejected for a concurrent write (and decided
    /// anew in the next pass) does not hold up the others. Their ids come from `Env::ids`.
    pub transactions: Vec<Transaction>,
    /// When to run the next pass if nothing happens before.
    pub wake_at: Option<Timestamp>,
}

/// Runs every reconciler on the result of those before it, and folds what they did into few transactions:
/// each object appears once, with the version that `view` has. The caller waits until they are applied
/// before it runs the next pass.
pub fn pass(view: &State, env: &mut Env<'_>) -> Pass {
    let mut draft = view.clone();
    let mut touched = BTreeSet::new();
    let mut wake_at = None;
    for reconciler in all() {
        let plan = reconciler.reconcile(&draft, env);
        wake_at = earliest(wake_at, plan.wake_at);
        if !plan.changes.is_empty() {
            draft = speculate(&draft, view.index() + 1, reconciler.author(), plan, env.now, &mut touched);
        }
    }
    Pass { transactions: fold(view, &draft, touched, env.ids), wake_at }
}

/// The state as it would be once `plan` was applied; as it is when the plan does not hold, which is a bug.
fn speculate(
    draft: &State,
    index: u64,
    author: Author,
    plan: Plan,
    now: Timestamp,
    touched: &mut BTreeSet<(ObjectKind, String)>,
) -> State {
    let transaction = Transaction { id: 0, author: author.name().to_owned(), changes: plan.changes };
    let applied = apply(draft, index, &Batch { transactions: vec![transaction], now: now.0 });
    if let Some((_, Err(rejected))) = applied.results.first() {
        debug_assert!(
            false,
            "a plan of `{}` contradicts the state it was made for: {rejected}",
            author.name()
        );
        tracing::error!(author = author.name(), %rejected, "a plan contradicts the state it was made for");
        return draft.clone();
    }
    let objects = applied.events.iter().filter_map(|event| event.after.as_ref().or(event.before.as_ref()));
    touched.extend(objects.map(|object| {
        let (kind, id) = object.key();
        (kind, id.to_owned())
    }));
    applied.state
}

/// Changes that must hold together.
type Group = (ObjectKind, String, u64, String);

fn fold(
    view: &State,
    draft: &State,
    touched: BTreeSet<(ObjectKind, String)>,
    ids: &mut IdGen,
) -> Vec<Transaction> {
    let mut groups: BTreeMap<Group, Vec<Change>> = BTreeMap::new();
    for (kind, id) in touched {
        let (before, after) = (view.get(kind, &id), draft.get(kind, &id));
        if let Some(change) = difference(before.as_ref(), after.as_ref())
            && let Some(object) = after.or(before)
        {
            groups.entry(group(&object)).or_default().push(change);
        }
    }
    let mut transactions: Vec<Transaction> = Vec::new();
    for changes in groups.into_values() {
        match transactions.last_mut() {
            Some(last) if last.changes.len() + changes.len() <= CHANGES_PER_TRANSACTION => {
                last.changes.extend(changes);
            }
            _ => transactions.push(Transaction {
                id: ids.number(),
                author: Author::Pass.name().to_owned(),
                changes,
            }),
        }
    }
    transactions
}

/// Tasks of one slot stay together: a task must never be shut down without its replacement, nor the other
/// way round. Everything else stands for itself.
fn group(object: &AnyObject) -> Group {
    match object {
        AnyObject::Task(task) if task.slot == 0 => {
            (ObjectKind::Task, task.service_id.clone(), 0, task.node_id.clone())
        }
        AnyObject::Task(task) => (ObjectKind::Task, task.service_id.clone(), task.slot, String::new()),
        AnyObject::Cluster(_) | AnyObject::Node(_) | AnyObject::Service(_) | AnyObject::Network(_) => {
            let (kind, id) = object.key();
            (kind, id.to_owned(), 0, String::new())
        }
    }
}

fn difference(before: Option<&AnyObject>, after: Option<&AnyObject>) -> Option<Change> {
    let (action, object) = match (before, after) {
        (None, None) => return None,
        (None, Some(after)) => (change::Action::Create, after.to_object()),
        (Some(before), Some(after)) => (change::Action::Update, with_version(after, before.version())),
        (Some(before), None) => {
            let (kind, id) = before.key();
            return Some(deletion(kind, id));
        }
    };
    Some(Change { action: action.into(), object: Some(object), ..Change::default() })
}

fn with_version(object: &AnyObject, version: u64) -> Object {
    use rswarm_proto::model::object::Stored;
    fn set<T: Stored>(object: &std::sync::Arc<T>, version: u64) -> Object {
        let mut object = T::clone(object);
        object.meta_mut().version = version;
        object.into()
    }
    match object {
        AnyObject::Cluster(object) => set(object, version),
        AnyObject::Node(object) => set(object, version),
        AnyObject::Service(object) => set(object, version),
        AnyObject::Task(object) => set(object, version),
        AnyObject::Network(object) => set(object, version),
    }
}
