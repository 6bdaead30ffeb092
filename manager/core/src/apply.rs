//! The one way that state changes: a batch of transactions, applied in log order on every manager alike.
//!
//! All checks that need the newest state are here and run again on every manager: versions, names, who
//! writes what, and that no task moves back. A transaction holds as a whole or not at all.

mod checks;
mod rejected;

use std::sync::Arc;

use rswarm_proto::model::object::Stored;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::update_status::State as Phase;
use rswarm_proto::wire::{Batch, Change, NodeAvailability, ObjectKind, Service, Task, Transaction};

use crate::author::Author;
use crate::edit::Edit;
use crate::filter::availability;
use crate::state::{AnyObject, State};

pub use rejected::{Rejected, noun};

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

impl Event {
    /// The object that changed: as it is now, or as it was when it is gone.
    #[must_use]
    pub fn object(&self) -> Option<&AnyObject> {
        self.after.as_ref().or(self.before.as_ref())
    }
}

/// The state after `batch`, which was committed at raft index `index`.
#[must_use]
pub fn apply(state: &State, index: u64, batch: Batch) -> Applied {
    let mut applied = Applied { state: state.clone(), results: Vec::new(), events: Vec::new() };
    applied.state.set_index(index);
    for Transaction { id, author, changes } in batch.transactions {
        let result = edits(author, changes).and_then(|(author, edits)| {
            apply_edits(&mut applied.state, index, batch.now, author, edits, &mut applied.events)
        });
        applied.results.push((id, result));
    }
    applied
}

fn edits(author: String, changes: Vec<Change>) -> Result<(Author, Vec<Edit>), Rejected> {
    let Some(known) = Author::parse(&author) else {
        return Err(Rejected::Forbidden { author, field: "anything" });
    };
    let edits: Option<_> = changes.into_iter().map(Edit::from_change).collect();
    edits.map(|edits| (known, edits)).ok_or(Rejected::Malformed)
}

/// Makes all of the edits, and adds what changed to `events`; or none of them, when one does not hold.
///
/// What was done before that one is undone, rather than done on a copy: a copy, however cheap, would have every
/// transaction copy the paths of the maps that it writes to.
pub(crate) fn apply_edits(
    state: &mut State,
    index: u64,
    now: i64,
    author: Author,
    edits: Vec<Edit>,
    events: &mut Vec<Event>,
) -> Result<(), Rejected> {
    let begin = events.len();
    let mut draft = Draft { state, index, now, events };
    let done = edits.into_iter().try_for_each(|edit| draft.edit(author, edit));
    if done.is_err() {
        let undone = events.drain(begin..).rev();
        undone.for_each(|event| state.replace(event.after.as_ref(), event.before));
    }
    done
}

/// One transaction in the making.
struct Draft<'a> {
    state: &'a mut State,
    index: u64,
    now: i64,
    events: &'a mut Vec<Event>,
}

impl Draft<'_> {
    fn edit(&mut self, author: Author, edit: Edit) -> Result<(), Rejected> {
        let (before, after) = match edit {
            Edit::Create(object) => (None, Some(self.created(object)?)),
            Edit::Update(object) => {
                let (before, after) = self.updated(object)?;
                (Some(before), Some(after))
            }
            Edit::Delete(kind, id) => (Some(self.deleted(kind, id)?), None),
        };
        if let Some(field) = author.forbidden(before.as_ref(), after.as_ref()) {
            return Err(Rejected::Forbidden { author: author.name().to_owned(), field });
        }
        self.check_networks(before.as_ref(), after.as_ref())?;
        self.check_ingress(before.as_ref(), after.as_ref())?;
        self.check_content(before.as_ref(), after.as_ref())?;
        self.state.replace(before.as_ref(), after.clone());
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
                let mut object = self.stamped(object, self.now);
                Arc::make_mut(&mut object).created_version = self.index;
                AnyObject::Task(object)
            }
            AnyObject::Network(object) => AnyObject::Network(self.stamped(object, self.now)),
            AnyObject::Secret(object) => AnyObject::Secret(self.stamped(object, self.now)),
            AnyObject::Config(object) => AnyObject::Config(self.stamped(object, self.now)),
        })
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
                let mut task = self.stamped(task, before.meta().created_at);
                let written = Arc::make_mut(&mut task);
                written.created_version = before.created_version;
                let is_told =
                    before.desired() <= TaskState::Running && written.desired() > TaskState::Running;
                written.stop_version = if is_told { self.index } else { before.stop_version };
                AnyObject::Task(task)
            }
            (AnyObject::Service(before), AnyObject::Service(service)) => {
                let mut service = self.stamped(service, before.meta().created_at);
                self.set_spec_version(before, Arc::make_mut(&mut service));
                self.set_update_version(before, Arc::make_mut(&mut service));
                AnyObject::Service(service)
            }
            (AnyObject::Cluster(before), AnyObject::Cluster(object)) => {
                AnyObject::Cluster(self.stamped(object, before.meta().created_at))
            }
            (AnyObject::Node(before), AnyObject::Node(node)) => {
                let mut node = self.stamped(node, before.meta().created_at);
                let written = Arc::make_mut(&mut node);
                written.drain_since = match availability(written) {
                    NodeAvailability::Drain if availability(before) == NodeAvailability::Drain => {
                        before.drain_since
                    }
                    NodeAvailability::Drain => self.now,
                    NodeAvailability::Active | NodeAvailability::Pause => 0,
                };
                AnyObject::Node(node)
            }
            (AnyObject::Network(before), AnyObject::Network(object)) => {
                AnyObject::Network(self.stamped(object, before.meta().created_at))
            }
            (AnyObject::Secret(before), AnyObject::Secret(object)) => {
                AnyObject::Secret(self.stamped(object, before.meta().created_at))
            }
            (AnyObject::Config(before), AnyObject::Config(object)) => {
                AnyObject::Config(self.stamped(object, before.meta().created_at))
            }
            _ => return Err(Rejected::Malformed),
        };
        Ok((before, after))
    }

    fn deleted(&self, kind: ObjectKind, id: String) -> Result<AnyObject, Rejected> {
        self.state.get(kind, &id).ok_or(Rejected::Missing { kind, id })
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

    /// Tasks that an update makes are those made since it began, which only the log's order can tell: its times
    /// are those of different leaders' clocks.
    fn set_update_version(&self, before: &Service, after: &mut Service) {
        let begun = |service: &Service| {
            let status = service.update_status.as_ref();
            status
                .filter(|status| matches!(status.state(), Phase::Updating | Phase::RollbackStarted))
                .map(|status| (status.state, status.started_at))
        };
        let begins = begun(after).is_some() && begun(after) != begun(before);
        after.update_version = if begins { self.index } else { before.update_version };
    }

    fn stamped<T: Stored>(&self, mut object: Arc<T>, created_at: i64) -> Arc<T> {
        let meta = Arc::make_mut(&mut object).meta_mut();
        meta.version = self.index;
        meta.created_at = created_at;
        meta.updated_at = self.now;
        object
    }
}

fn moves_back(before: &Task, after: &Task) -> bool {
    after.observed() < before.observed() || after.desired() < before.desired()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::Plan;
    use crate::world::{World, attach, port, publish, spec};
    use rswarm_proto::wire::{Network, Node, NodeAvailability};

    fn transaction(id: u64, author: Author, plan: Plan) -> Transaction {
        Transaction { id, author: author.name().to_owned(), changes: plan.into_changes() }
    }

    fn create(service: &str, name: &str) -> Plan {
        let mut plan = Plan::default();
        plan.create(Service { id: service.to_owned(), spec: Some(spec(name, 1)), ..Service::default() });
        plan
    }

    fn apply_all(state: &State, transactions: Vec<Transaction>) -> Applied {
        apply(state, state.index() + 1, Batch { transactions, now: 5 })
    }

    /// What came of one transaction.
    fn outcome(state: &State, author: Author, plan: Plan) -> Result<(), Rejected> {
        apply_all(state, vec![transaction(1, author, plan)]).results.remove(0).1
    }

    #[test]
    fn objects_are_stamped() {
        let world = World::new(1);
        let applied = apply_all(&world.state, vec![transaction(9, Author::Control, create("s", "web"))]);
        assert_eq!(applied.results, [(9, Ok(()))]);
        let service = applied.state.service("s").expect("service");
        let meta = service.meta();
        assert_eq!((meta.version, meta.created_at, meta.updated_at), (applied.state.index(), 5, 5));
        assert_eq!(service.spec_version, applied.state.index());
        assert_eq!(applied.events.len(), 1);
        assert_eq!(applied.events[0].before, None);
    }

    #[test]
    fn a_stale_version_rejects_the_transaction_whole() {
        let mut world = World::new(2);
        world.change_node("n1", Author::Control, |node| {
            node.spec.get_or_insert_default().set_availability(NodeAvailability::Pause);
        });
        let mut plan = create("s", "web");
        let mut stale = Node::clone(world.state.node("n1").expect("node"));
        stale.meta_mut().version -= 1;
        plan.update(stale);
        let applied = apply_all(&world.state, vec![transaction(1, Author::Control, plan)]);
        assert!(matches!(applied.results[0].1, Err(Rejected::Version { kind: ObjectKind::Node, .. })));
        assert_eq!(
            applied.results[0].1.as_ref().map_err(ToString::to_string),
            Err("update out of sequence".into())
        );
        assert!(applied.state.service("s").is_none());
        assert_eq!((applied.events.len(), applied.state.index()), (0, world.state.index() + 1));
    }

    #[test]
    fn transactions_of_one_batch_see_each_other() {
        let world = World::new(1);
        let batch = vec![
            transaction(1, Author::Control, create("a", "web")),
            transaction(2, Author::Control, create("b", "web")),
            transaction(3, Author::Control, create("c", "api")),
        ];
        let applied = apply_all(&world.state, batch);
        let taken = Rejected::NameTaken { kind: ObjectKind::Service, name: "web".to_owned() };
        assert_eq!(taken.to_string(), "name conflicts with an existing object: service web already exists");
        assert_eq!(applied.results, [(1, Ok(())), (2, Err(taken)), (3, Ok(()))]);
    }

    #[test]
    fn nobody_writes_what_is_not_theirs() {
        let mut world = World::new(1);
        let id = world.create(spec("web", 1));
        world.reconcile();
        let task = world.tasks(&id)[0].clone();
        let desire = |state: TaskState| {
            let mut plan = Plan::default();
            plan.update(Task { desired_state: state.into(), ..Task::clone(&task) });
            plan
        };
        assert_eq!(outcome(&world.state, Author::Enforce, desire(TaskState::Shutdown)), Ok(()));
        for author in
            [Author::Dispatcher, Author::Allocate, Author::Schedule, Author::Control, Author::Liveness]
        {
            let refused = outcome(&world.state, author, desire(TaskState::Shutdown));
            let author = author.name().to_owned();
            assert_eq!(refused, Err(Rejected::Forbidden { author, field: "task.desired_state" }));
        }
        let mut plan = Plan::default();
        plan.delete(ObjectKind::Task, &task.id);
        assert!(matches!(outcome(&world.state, Author::Restart, plan), Err(Rejected::Forbidden { .. })));
        let mut anonymous = transaction(1, Author::Control, create("s", "api"));
        anonymous.author = "someone".to_owned();
        assert!(matches!(
            apply_all(&world.state, vec![anonymous]).results[0].1,
            Err(Rejected::Forbidden { .. })
        ));
    }

    #[test]
    fn a_task_never_moves_back() {
        let mut world = World::new(1);
        let id = world.create(spec("web", 1));
        world.run(std::time::Duration::from_secs(2));
        let task = world.live(&id)[0].clone();
        let mut back = Task::clone(&task);
        back.status.get_or_insert_default().set_state(TaskState::Starting);
        let mut plan = Plan::default();
        plan.update(back);
        let refused = outcome(&world.state, Author::Dispatcher, plan);
        assert_eq!(refused, Err(Rejected::MovedBack(task.id.clone())));
        let mut plan = Plan::default();
        plan.update(Task { desired_state: TaskState::Ready.into(), ..Task::clone(&task) });
        assert_eq!(outcome(&world.state, Author::Restart, plan), Err(Rejected::MovedBack(task.id.clone())));
    }

    #[test]
    fn the_spec_version_follows_the_spec_alone() {
        let mut world = World::new(1);
        let id = world.create(spec("web", 1));
        let first = world.service(&id).spec_version;
        world.reconcile();
        assert_eq!(world.service(&id).spec_version, first, "its endpoint was allocated");
        world.change(&id, |spec| crate::world::set_image(spec, "web:2"));
        let service = world.service(&id);
        assert_eq!((service.spec_version, service.previous_spec_version), (world.state.index(), first));
    }

    #[test]
    fn a_service_and_the_removal_of_its_network_do_not_pass_each_other() {
        let mut world = World::new(1);
        let network = world.network("net");
        let removal = |world: &World| {
            let mut plan = Plan::default();
            let stored = world.state.network(&network).expect("network");
            plan.update(Network { pending_delete: true, ..Network::clone(stored) });
            plan
        };
        let mut on_it = spec("web", 1);
        attach(&mut on_it, &network);
        let mut creation = Plan::default();
        creation.create(Service { id: "s".to_owned(), spec: Some(on_it), ..Service::default() });
        let both = |first: Plan, second: Plan| {
            let batch = vec![transaction(1, Author::Control, first), transaction(2, Author::Control, second)];
            apply_all(&world.state, batch).results.remove(1).1
        };
        assert_eq!(both(removal(&world), creation.clone()), Err(Rejected::NetworkGone(network.clone())));
        let in_use = Rejected::NetworkInUse { network: network.clone(), service: "s".to_owned() };
        assert_eq!(both(creation, removal(&world)), Err(in_use));
    }

    #[test]
    fn two_services_do_not_pass_each_other_to_one_port() {
        let mut world = World::new(1);
        world.reconcile();
        let on_port = |id: &str| {
            let mut spec = spec(id, 1);
            publish(&mut spec, [port(8080, 80)]);
            let mut plan = Plan::default();
            plan.create(Service { id: id.to_owned(), spec: Some(spec), ..Service::default() });
            plan
        };
        let ingress = world.state.ingress_network().expect("ingress").clone();
        let mut removal = Plan::default();
        removal.update(Network { pending_delete: true, ..Network::clone(&ingress) });
        let batch = |plans: Vec<Plan>| {
            let transactions = plans.into_iter().map(|plan| transaction(1, Author::Control, plan)).collect();
            apply_all(&world.state, transactions).results.remove(1).1.map_err(|rejected| rejected.to_string())
        };
        let taken = "port '8080' is already in use by service 'a' (a) as an ingress port";
        assert_eq!(batch(vec![on_port("a"), on_port("b")]), Err(taken.to_owned()));
        let needed = "ingress network cannot be removed because service a depends on it";
        assert_eq!(batch(vec![on_port("a"), removal.clone()]), Err(needed.to_owned()));
        let gone = "service needs ingress network, but no ingress network is present";
        assert_eq!(batch(vec![removal, on_port("a")]), Err(gone.to_owned()));
    }

    #[test]
    fn what_is_not_there_cannot_be_changed() {
        let world = World::new(1);
        let missing = |kind, id: &str| Err(Rejected::Missing { kind, id: id.to_owned() });
        let mut plan = Plan::default();
        plan.delete(ObjectKind::Task, "t");
        assert_eq!(outcome(&world.state, Author::Reap, plan), missing(ObjectKind::Task, "t"));
        let mut plan = Plan::default();
        plan.update(Node { id: "n7".to_owned(), ..Node::default() });
        assert_eq!(outcome(&world.state, Author::Control, plan), missing(ObjectKind::Node, "n7"));
        let mut plan = Plan::default();
        plan.create(crate::world::node("n1"));
        assert!(matches!(outcome(&world.state, Author::Ca, plan), Err(Rejected::Exists { .. })));
        let author = Author::Control.name().to_owned();
        let empty = Transaction { id: 1, author, changes: vec![Change::default()] };
        assert_eq!(apply_all(&world.state, vec![empty]).results, [(1, Err(Rejected::Malformed))]);
    }

    #[test]
    fn what_a_rejected_transaction_began_is_undone() {
        let mut world = World::new(2);
        world.network("net");
        let mut web = spec("web", 2);
        attach(&mut web, "net");
        publish(&mut web, [port(8080, 80)]);
        let id = world.create(web);
        world.run(std::time::Duration::from_secs(2));
        let mut service = Service::clone(&world.service(&id));
        service.pending_delete = true;
        let mut node = Node::clone(world.state.node("n1").expect("n1"));
        node.spec.get_or_insert_default().annotations.get_or_insert_default().name = "one".to_owned();
        let mut plan = Plan::default();
        plan.update(service);
        plan.update(node);
        plan.create(Service { id: "s".to_owned(), spec: Some(spec("web", 1)), ..Service::default() });
        plan.delete(ObjectKind::Node, "n2");
        plan.delete(ObjectKind::Node, "n3");
        let applied = apply_all(&world.state, vec![transaction(1, Author::Control, plan)]);
        assert_eq!(
            applied.results,
            [(1, Err(Rejected::Missing { kind: ObjectKind::Node, id: "n3".to_owned() }))]
        );
        assert!(applied.events.is_empty());
        let mut state = applied.state;
        state.set_index(world.state.index());
        assert_eq!(format!("{state:?}"), format!("{:?}", world.state));
    }

    #[test]
    fn the_history_of_a_slot_is_in_order_whatever_clocks_say() {
        let mut world = World::new(1);
        let id = world.create(spec("web", 1));
        world.run(std::time::Duration::from_secs(2));
        let old = world.live(&id)[0].clone();
        // The next leader's clock is an hour behind.
        world.now = rswarm_base::Timestamp(world.now.0 - 3_600_000_000_000);
        world.beat();
        world.report(&old.id, TaskState::Failed);
        world.reconcile();
        let new = world.live(&id)[0].clone();
        assert!(new.meta().created_at < old.meta().created_at);
        let slots = crate::slot::occupied(&world.state, &world.service(&id));
        let order: Vec<&str> = slots[0].tasks.iter().map(|task| task.id.as_str()).collect();
        assert_eq!(order, [old.id.as_str(), new.id.as_str()]);
    }
}
