//! What every part of the brain is: a function from state to the changes that bring it closer to what was
//! asked. [`pass`] runs them all, each on the result of those before it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::Message;
use rswarm_base::{IdGen, Timestamp};
use rswarm_proto::wire::{Change, ObjectKind, Transaction};

use crate::apply::{self, Event};
use crate::author::Author;
use crate::drain::AppliedTables;
use crate::edit::Edit;
use crate::state::{AnyObject, State};

/// Changes that one transaction of a pass holds, as far as slots can be kept whole. Small enough that a
/// concurrent write costs little to redo, large enough that a big service needs few of them.
const CHANGES_PER_TRANSACTION: usize = 200;
/// Encoded bytes of changes that one transaction of a pass holds, as far as slots can be kept whole: what the
/// raft log puts into one entry. Far below what it refuses, however large specs are.
const BYTES_PER_TRANSACTION: usize = 1 << 20;

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
    /// What the kernels of the nodes have of the endpoint tables, as far as this leader knows.
    pub tables: &'a AppliedTables,
    /// Since when this manager leads: before that it could not have heard anyone.
    pub leader_since: Timestamp,
    /// Bytes that nobody can guess, others in each pass.
    pub secret: [u8; 32],
}

impl Env<'_> {
    /// A stored time that a leader's clock gave, as this leader can reckon with it. What seems to lie ahead
    /// was told by another leader's clock, and happened before this one led.
    #[must_use]
    pub fn past(&self, at: Timestamp) -> Timestamp {
        if at > self.now { self.leader_since } else { at }
    }
}

/// What a reconciler wants to be done.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Plan {
    /// Proposed as one transaction; a stale version rejects it whole.
    pub edits: Vec<Edit>,
    /// "Nothing to do until then": the leader sleeps, not the brain.
    pub wake_at: Option<Timestamp>,
}

impl Plan {
    /// A new object.
    pub fn create(&mut self, object: impl Into<AnyObject>) {
        self.edits.push(Edit::Create(object.into()));
    }

    /// An object as it should be; its version says when it was read.
    pub fn update(&mut self, object: impl Into<AnyObject>) {
        self.edits.push(Edit::Update(object.into()));
    }

    /// An object that goes.
    pub fn delete(&mut self, kind: ObjectKind, id: &str) {
        self.edits.push(Edit::Delete(kind, id.to_owned()));
    }

    /// Asks to be called again at `at` at the latest.
    pub fn wake(&mut self, at: Timestamp) {
        self.wake_at = earliest(self.wake_at, Some(at));
    }

    /// As a transaction carries them.
    #[must_use]
    pub fn into_changes(self) -> Vec<Change> {
        self.edits.into_iter().map(Change::from).collect()
    }
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
        Box::new(crate::pace::Pace),
        Box::new(crate::liveness::Liveness),
        Box::new(crate::enforce::Enforce),
        Box::new(crate::relocate::Relocate),
        Box::new(crate::replicated::Replicated),
        Box::new(crate::cron::Crons),
        Box::new(crate::global::Global),
        Box::new(crate::job::Jobs),
        Box::new(crate::restart::Restart),
        Box::new(crate::update::Update),
        Box::new(crate::rebalance::Rebalance),
        Box::new(crate::allocate::Allocate),
        Box::new(crate::tunnel::Tunnels),
        Box::new(crate::schedule::Schedule),
        Box::new(crate::drain::Drain),
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
        if !plan.edits.is_empty() {
            draft = speculate(draft, view.index() + 1, reconciler.author(), plan, env.now, &mut touched);
        }
    }
    Pass { transactions: fold(view, &draft, touched, env.ids), wake_at }
}

/// The state as it would be once `plan` was applied; as it is when the plan does not hold, which is a bug.
fn speculate(
    mut draft: State,
    index: u64,
    author: Author,
    plan: Plan,
    now: Timestamp,
    touched: &mut BTreeSet<(ObjectKind, String)>,
) -> State {
    let mut events = Vec::with_capacity(plan.edits.len());
    if let Err(rejected) = apply::apply_edits(&mut draft, index, now.0, author, plan.edits, &mut events) {
        debug_assert!(
            false,
            "a plan of `{}` contradicts the state it was made for: {rejected}",
            author.name()
        );
        tracing::error!(author = author.name(), %rejected, "a plan contradicts the state it was made for");
    }
    touched.extend(events.iter().filter_map(Event::object).map(|object| {
        let (kind, id) = object.key();
        (kind, id.to_owned())
    }));
    draft
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
    let mut bytes = 0;
    for changes in groups.into_values() {
        let size: usize = changes.iter().map(Message::encoded_len).sum();
        match transactions.last_mut() {
            Some(last)
                if last.changes.len() + changes.len() <= CHANGES_PER_TRANSACTION
                    && bytes + size <= BYTES_PER_TRANSACTION =>
            {
                bytes += size;
                last.changes.extend(changes);
            }
            _ => {
                bytes = size;
                let (id, author) = (ids.number(), Author::Pass.name().to_owned());
                transactions.push(Transaction { id, author, changes });
            }
        }
    }
    transactions
}

/// Tasks of one slot stay together: a task must never be shut down without its replacement, nor the other
/// way round. So do the ingress network and the note that it was made. Everything else stands for itself.
fn group(object: &AnyObject) -> Group {
    match object {
        AnyObject::Task(task) if task.slot == 0 => {
            (ObjectKind::Task, task.service_id.clone(), 0, task.node_id.clone())
        }
        AnyObject::Task(task) => (ObjectKind::Task, task.service_id.clone(), task.slot, String::new()),
        AnyObject::Cluster(_) => (ObjectKind::Cluster, String::new(), 0, String::new()),
        AnyObject::Network(network) if network.spec.as_ref().is_some_and(|spec| spec.ingress) => {
            (ObjectKind::Cluster, String::new(), 0, String::new())
        }
        AnyObject::Node(_)
        | AnyObject::Service(_)
        | AnyObject::Network(_)
        | AnyObject::Secret(_)
        | AnyObject::Config(_) => {
            let (kind, id) = object.key();
            (kind, id.to_owned(), 0, String::new())
        }
    }
}

fn difference(before: Option<&AnyObject>, after: Option<&AnyObject>) -> Option<Change> {
    let edit = match (before, after) {
        (None, None) => return None,
        (None, Some(after)) => Edit::Create(after.clone()),
        (Some(before), Some(after)) => Edit::Update(with_version(after, before.version())),
        (Some(before), None) => {
            let (kind, id) = before.key();
            Edit::Delete(kind, id.to_owned())
        }
    };
    Some(edit.into())
}

fn with_version(object: &AnyObject, version: u64) -> AnyObject {
    use rswarm_proto::model::object::Stored;
    fn set<T: Stored + Into<AnyObject>>(object: &Arc<T>, version: u64) -> AnyObject {
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
        AnyObject::Secret(object) => set(object, version),
        AnyObject::Config(object) => set(object, version),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::apply::apply;
    use crate::world::{BROKEN, World, attach, port, publish, set_image, spec};
    use rswarm_proto::model::service::Mode;
    use rswarm_proto::model::task::TaskState;
    use rswarm_proto::wire::update_config::{FailureAction, Order};
    use rswarm_proto::wire::update_status::State as Phase;
    use rswarm_proto::wire::{
        Batch, Global, NodeAvailability, PortConfig, Replicated, Service, ServiceSpec, Takeover,
        UpdateConfig, port_config, service_spec,
    };

    const NODES: usize = 4;

    /// What can happen to a cluster.
    #[derive(Debug, Clone)]
    enum Happening {
        Create { replicas: u64, parallelism: u64, order: Order, action: FailureAction, global: bool },
        Scale { which: usize, replicas: u64 },
        Image { which: usize, version: u8 },
        Publish { which: usize, ports: Vec<u32>, host: bool },
        Remove { which: usize },
        Drain { node: usize },
        Activate { node: usize },
        Cut { node: usize },
        Return { node: usize },
        Fail { which: usize },
        Wait { steps: u8 },
    }

    fn happening() -> impl Strategy<Value = Happening> {
        let order = prop_oneof![Just(Order::StopFirst), Just(Order::StartFirst)];
        let action = prop_oneof![
            Just(FailureAction::Pause),
            Just(FailureAction::Continue),
            Just(FailureAction::Rollback)
        ];
        let node = || 0..NODES;
        let which = || 0..8usize;
        prop_oneof![
            2 => (0..6u64, 0..3u64, order, action, prop::bool::weighted(0.2)).prop_map(
                |(replicas, parallelism, order, action, global)| {
                    Happening::Create { replicas, parallelism, order, action, global }
                }
            ),
            2 => (which(), 0..7u64).prop_map(|(which, replicas)| Happening::Scale { which, replicas }),
            2 => (which(), 0..4u8).prop_map(|(which, version)| Happening::Image { which, version }),
            2 => (which(), prop::collection::vec(0..3u32, 0..3), prop::bool::weighted(0.2)).prop_map(
                |(which, ports, host)| Happening::Publish { which, ports, host }
            ),
            1 => which().prop_map(|which| Happening::Remove { which }),
            1 => node().prop_map(|node| Happening::Drain { node }),
            1 => node().prop_map(|node| Happening::Activate { node }),
            1 => node().prop_map(|node| Happening::Cut { node }),
            1 => node().prop_map(|node| Happening::Return { node }),
            2 => which().prop_map(|which| Happening::Fail { which }),
            4 => (1..70u8).prop_map(|steps| Happening::Wait { steps }),
        ]
    }

    fn node_id(node: usize) -> String {
        format!("n{}", node + 1)
    }

    /// The service that a number stands for, among those that are not being removed.
    fn nth(world: &World, which: usize) -> Option<String> {
        let services: Vec<_> = world.state.services().filter(|service| !service.pending_delete).collect();
        services.get(which % services.len().max(1)).map(|service| service.id.clone())
    }

    fn set_availability(world: &mut World, node: usize, availability: NodeAvailability) {
        world.change_node(&node_id(node), Author::Control, |node| {
            node.spec.get_or_insert_default().set_availability(availability);
        });
    }

    fn new_spec(name: String, happening: &Happening) -> Option<ServiceSpec> {
        let Happening::Create { replicas, parallelism, order, action, global } = happening else {
            return None;
        };
        let mut spec = spec(&name, *replicas);
        spec.update = Some(UpdateConfig {
            parallelism: *parallelism,
            monitor: 1_000_000_000,
            order: (*order).into(),
            failure_action: (*action).into(),
            ..UpdateConfig::default()
        });
        if *global {
            spec.mode = Some(service_spec::Mode::Global(Global {}));
        }
        attach(&mut spec, "net");
        Some(spec)
    }

    fn happen(world: &mut World, happening: &Happening) {
        match happening {
            Happening::Create { .. } => {
                let name = format!("web{}", world.ids.number());
                if let Some(spec) = new_spec(name, happening).filter(|_| world.state.services().count() < 5) {
                    world.create(spec);
                }
            }
            Happening::Scale { which, replicas } => {
                let Some(id) = nth(world, *which) else { return };
                if !crate::slot::is_global(&world.service(&id)) {
                    let replicated = Replicated { replicas: *replicas };
                    world.change(&id, |spec| spec.mode = Some(service_spec::Mode::Replicated(replicated)));
                }
            }
            Happening::Image { which, version } => {
                let Some(id) = nth(world, *which) else { return };
                let image = if *version == 0 { BROKEN.to_owned() } else { format!("web:{version}") };
                world.change(&id, |spec| set_image(spec, &image));
            }
            Happening::Publish { which, ports, host } => {
                let Some(id) = nth(world, *which) else { return };
                let mode = if *host { port_config::Mode::Host } else { port_config::Mode::Ingress };
                let ports = ports.iter().zip(80..).map(|(number, target)| {
                    // Zero asks for any.
                    let published = if *number == 0 { 0 } else { 8079 + number };
                    PortConfig { mode: mode.into(), ..port(published, target) }
                });
                // Taken by another service, or named twice.
                let _ = world.try_change(&id, |spec| publish(spec, ports));
            }
            Happening::Remove { which } => {
                if let Some(id) = nth(world, *which) {
                    world.remove_service(&id);
                }
            }
            Happening::Drain { node } => set_availability(world, *node, NodeAvailability::Drain),
            Happening::Activate { node } => set_availability(world, *node, NodeAvailability::Active),
            Happening::Cut { node } => drop(world.cut.insert(node_id(*node))),
            Happening::Return { node } => drop(world.cut.remove(&node_id(*node))),
            Happening::Fail { which } => {
                let running = |task: &&Arc<rswarm_proto::wire::Task>| {
                    task.observed() == TaskState::Running && !world.cut.contains(&task.node_id)
                };
                let running: Vec<_> =
                    world.state.tasks().filter(running).map(|task| task.id.clone()).collect();
                if let Some(id) = running.get(*which) {
                    world.report(&id.clone(), TaskState::Failed);
                }
            }
            Happening::Wait { steps } => (0..*steps).for_each(|_| {
                world.step();
                within_bounds(world);
            }),
        }
    }

    /// How many tasks a service may have at once: its replicas, and with start-first or when tasks move while they
    /// serve, those that take over.
    fn bound(world: &World, service: &Service) -> Option<u64> {
        let spec = service.spec.as_ref()?;
        let Mode::Replicated(replicas) = spec.mode_or_default() else { return None };
        let update = spec.update.unwrap_or_default();
        let moves = world.live(&service.id).iter().any(|task| task.takes_over() != Takeover::NoTakeover);
        let beside = match (update.order(), crate::relocate::parallelism(service)) {
            (Order::StopFirst, _) if !moves => 0,
            (Order::StopFirst | Order::StartFirst, parallelism) => parallelism.min(replicas),
        };
        Some(replicas + beside)
    }

    fn within_bounds(world: &World) {
        for service in world.state.services().filter(|service| !service.pending_delete) {
            let Some(bound) = bound(world, service) else { continue };
            let live = world.live(&service.id).len() as u64;
            assert!(live <= bound, "service {} has {live} live tasks, {bound} at most", service.id);
        }
    }

    fn converged(world: &World) {
        for service in world.state.services() {
            assert!(!service.pending_delete, "a removed service is gone");
            let wanted = match service.spec.as_ref().map(ServiceSpec::mode_or_default) {
                Some(Mode::Replicated(replicas)) => replicas as usize,
                _ => NODES,
            };
            let states: Vec<_> =
                world.live(&service.id).iter().map(|task| (task.slot, task.observed())).collect();
            assert_eq!((world.running(&service.id), states.len()), (wanted, wanted), "{states:?}");
            let phase = service.update_status.as_ref().map_or(Phase::Unknown, |status| status.state());
            assert!(!matches!(phase, Phase::Updating | Phase::RollbackStarted), "{phase:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

        /// Whatever happens, bounds hold on the way, and once nothing more happens, all is as asked.
        #[test]
        fn any_history_ends_well(history in prop::collection::vec(happening(), 1..40)) {
            let mut world = World::new(NODES);
            world.network("net");
            world.reconcile();
            history.iter().for_each(|happening| happen(&mut world, happening));
            world.cut.clear();
            (0..NODES).for_each(|node| set_availability(&mut world, node, NodeAvailability::Active));
            let services: Vec<String> = (0..8).filter_map(|which| nth(&world, which)).collect();
            services.iter().for_each(|id| world.change(id, |spec| {
                set_image(spec, "web:9");
                // One node has one task with such a port: there may be fewer nodes than replicas.
                let ports = spec.endpoint.iter().flat_map(|endpoint| endpoint.ports.clone());
                let on_ingress: Vec<_> = ports.filter(|port| port.mode() == port_config::Mode::Ingress).collect();
                publish(spec, on_ingress);
            }));
            world.run(Duration::from_secs(90));
            within_bounds(&world);
            converged(&world);
        }

        /// A reconciler that is asked again about its own result soon has nothing to add. The longest chain is
        /// `reap`'s: tasks told to go, deleted, and then their service.
        #[test]
        fn every_reconciler_comes_to_rest(history in prop::collection::vec(happening(), 1..25)) {
            let mut world = World::new(NODES);
            world.network("net");
            history.iter().for_each(|happening| happen(&mut world, happening));
            world.now = world.now.after(Duration::from_secs(3));
            for reconciler in all() {
                let mut state = world.state.clone();
                let mut left = usize::MAX;
                for _ in 0..4 {
                    let plan = reconciler.reconcile(&state, &mut world.env());
                    left = plan.edits.len();
                    let author = reconciler.author().name().to_owned();
                    let transaction = Transaction { id: 1, author, changes: plan.into_changes() };
                    let batch = Batch { transactions: vec![transaction], now: world.now.0 };
                    let applied = apply(&state, state.index() + 1, batch);
                    prop_assert_eq!(&applied.results[0].1, &Ok(()));
                    state = applied.state;
                }
                prop_assert_eq!(left, 0, "{:?} does not come to rest", reconciler.author());
            }
        }

        /// One view and one env give one plan.
        #[test]
        fn a_pass_is_a_function(history in prop::collection::vec(happening(), 1..15)) {
            let mut world = World::new(NODES);
            world.network("net");
            history.iter().for_each(|happening| happen(&mut world, happening));
            let (state, ids) = (world.state.clone(), world.ids.clone());
            let first = pass(&state, &mut world.env());
            world.ids = ids;
            prop_assert_eq!(first, pass(&state, &mut world.env()));
        }
    }

    #[test]
    fn one_pass_brings_a_new_service_to_its_nodes() {
        let mut world = World::new(3);
        world.network("net");
        let mut web = spec("web", 3);
        attach(&mut web, "net");
        let id = world.create(web);
        let state = world.state.clone();
        let result = pass(&state, &mut world.env());
        world.commit(result.transactions);
        assert_eq!(world.spread(&id).len(), 3);
        assert!(world.live(&id).iter().all(|task| task.observed() == TaskState::Assigned));
    }

    #[test]
    fn large_specs_make_more_transactions_not_larger_ones() {
        let mut world = World::new(3);
        let mut large = spec("web", 100);
        large.task.get_or_insert_default().container.get_or_insert_default().env = vec!["A=".repeat(100_000)];
        let id = world.create(large);
        let result = pass(&world.state.clone(), &mut world.env());
        assert!(result.transactions.iter().all(|transaction| transaction.encoded_len() < 2 << 20));
        world.commit(result.transactions);
        world.run(Duration::from_secs(2));
        assert_eq!(world.running(&id), 100);
    }

    #[test]
    fn a_slot_stays_in_one_transaction_and_a_conflict_costs_no_other() {
        let mut world = World::new(3);
        let id = world.create(spec("web", 500));
        world.reconcile();
        set_availability(&mut world, 0, NodeAvailability::Drain);
        let state = world.state.clone();
        let result = pass(&state, &mut world.env());
        assert!(result.transactions.len() > 1);
        let slots = result.transactions.iter().map(|transaction| {
            assert!(transaction.changes.len() <= CHANGES_PER_TRANSACTION);
            let objects = transaction.changes.iter().filter_map(|change| change.object.clone());
            let tasks = objects.filter_map(|object| rswarm_proto::wire::Task::try_from(object).ok());
            tasks.map(|task| task.slot).collect::<BTreeSet<_>>()
        });
        let slots: Vec<_> = slots.collect();
        assert!(slots.windows(2).all(|pair| pair[0].is_disjoint(&pair[1])));
        // A task reports in between: only its transaction is rejected, and the next pass makes up for it.
        let moved = world.tasks(&id).into_iter().find(|task| task.node_id == "n1").expect("a task");
        world.report(&moved.id, TaskState::Accepted);
        let batch = Batch { transactions: result.transactions, now: world.now.0 };
        let applied = apply(&world.state, world.state.index() + 1, batch);
        assert_eq!(applied.results.iter().filter(|(_, result)| result.is_err()).count(), 1);
        world.state = applied.state;
        world.run(Duration::from_secs(2));
        assert_eq!(world.running(&id), 500);
    }
}
