//! The world: one queue of events in virtual time, and everything that happens by chance in it.

mod faults;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prost::Message as _;
use rswarm_base::{IdGen, Timestamp};
use rswarm_manager_core::peer::{Input, bootstrap_index};
use rswarm_manager_core::{Author, State, apply};
use rswarm_proto::wire::{
    Annotations, Batch, Change, Cluster, ClusterSpec, Node, NodeAvailability, NodeDescription, NodeSpec,
    ObjectKind, Resources, RootCa, Service, Transaction, change,
};

use crate::agent::Agent;
use crate::checkers::Checkers;
use crate::contents;
use crate::manager::{Manager, Note, founded_at, hash};
use crate::net::{Address, Net, Packet, Payload};
use crate::roots::root;
use crate::workload::{self, Promise, Promises};

const TICK: Duration = Duration::from_millis(100);
/// How long a member waits for the end of a stream.
const IN_VAIN: Duration = Duration::from_secs(1);
/// Entries between comparisons of whole states: after a step that went two ways, they differ for long.
const STATE_EVERY: u64 = 64;
/// Seeds between those of a large cluster: most faults need few machines, and a small cluster is quickly run.
const LARGE_EVERY: u64 = 25;

#[derive(Debug)]
enum Event {
    ManagerTick(u64),
    AgentTick(String),
    Deliver(Packet),
    User,
    Fault,
}

/// How many machines there are.
#[derive(Debug, Clone, Copy)]
struct Size {
    managers: usize,
    nodes: usize,
}

impl Size {
    const SMALL: Size = Size { managers: 3, nodes: 4 };
    const LARGE: Size = Size { managers: 5, nodes: 20 };
}

/// A cluster, its machines and its users.
pub struct World {
    size: Size,
    had_disaster: bool,
    now: Timestamp,
    queue: BTreeMap<(Timestamp, u64), Event>,
    sequence: u64,
    random: IdGen,
    net: Net,
    managers: BTreeMap<u64, Manager>,
    /// Who shall be members.
    members: BTreeSet<u64>,
    next_manager: u64,
    agents: BTreeMap<String, Agent>,
    checkers: Checkers,
    promises: Promises,
    /// Requests of users without an answer, by transaction.
    pending: BTreeMap<u64, Promise>,
    /// The newest index at which a user's request was acknowledged.
    acknowledged: u64,
    /// Reads without an answer: what had been acknowledged when they were asked for.
    reads: BTreeMap<u64, u64>,
    /// The newest state that any manager has applied.
    newest: State,
    newest_index: u64,
    calm: bool,
    /// Crashes at an output, of a thousand.
    crash_chance: u64,
}

impl World {
    pub fn new(seed: u64) -> World {
        let size = if seed.is_multiple_of(LARGE_EVERY) { Size::LARGE } else { Size::SMALL };
        let managers = size.managers as u64;
        World {
            size,
            had_disaster: false,
            now: Timestamp(1_700_000_000_000_000_000),
            queue: BTreeMap::new(),
            sequence: 0,
            // The generator ignores one bit of its seed: neighbours must not share a history.
            random: IdGen::seeded(u128::from(seed) << 65 | u128::from(seed)),
            net: Net::default(),
            managers: BTreeMap::new(),
            members: (1..=managers).collect(),
            next_manager: managers + 1,
            agents: BTreeMap::new(),
            checkers: Checkers::default(),
            promises: Promises::default(),
            pending: BTreeMap::new(),
            acknowledged: 0,
            reads: BTreeMap::new(),
            newest: State::default(),
            newest_index: 0,
            calm: true,
            crash_chance: 0,
        }
    }

    /// One manager founds the cluster, the others join it as learners and are promoted.
    pub fn found_cluster(&mut self) {
        let state = first_state(self.size.nodes);
        for id in self.members.clone() {
            let mut manager = Manager::new(id, &mut self.random);
            if id == 1 {
                manager.disk = founded_at(id, bootstrap_index(), &state);
            }
            manager.start();
            self.managers.insert(id, manager);
            self.after(TICK, Event::ManagerTick(id));
        }
        for node in state.nodes() {
            let agent =
                Agent::new(&node.id, 1 + self.random.number() % self.size.managers as u64, &mut self.random);
            self.agents.insert(node.id.clone(), agent);
            self.after(TICK, Event::AgentTick(node.id.clone()));
        }
        self.run_until(Duration::from_secs(30), |world| world.has_group());
    }

    /// Users and faults at once.
    pub fn storm(&mut self, time: Duration) {
        self.calm = false;
        self.crash_chance = 1;
        self.net.loss = 20;
        self.after(TICK, Event::User);
        self.after(Duration::from_secs(3), Event::Fault);
        let end = self.now.after(time);
        while self.now < end {
            self.step();
        }
    }

    /// Everything works again, and nobody asks for what cannot be.
    pub fn heal(&mut self) {
        self.calm = true;
        self.crash_chance = 0;
        self.net.heal();
        self.managers.values_mut().filter(|manager| manager.running.is_none()).for_each(Manager::start);
        self.agents.values_mut().filter(|agent| !agent.is_up).for_each(Agent::restart);
        self.queue.retain(|_, event| !matches!(event, Event::User | Event::Fault));
        self.run_until(Duration::from_secs(30), World::has_group);
        self.mend();
    }

    /// Demands that the cluster comes to be as its users asked.
    pub fn settle(&mut self, time: Duration) {
        self.run_until(time, |world| world.trouble().is_none());
        for (id, kind) in &self.promises.exists {
            assert!(self.newest.get(*kind, id).is_some(), "{kind:?} {id} was acknowledged and is lost");
        }
        for (id, kind) in &self.promises.goes {
            assert!(
                self.newest.get(*kind, id).is_none(),
                "the removal of {kind:?} {id} was acknowledged and is lost"
            );
        }
    }

    /// What happened so far, in one number.
    pub fn fingerprint(&self) -> (i64, u64, u64) {
        (self.now.0, self.sequence, fingerprint(&self.newest))
    }

    fn run_until(&mut self, time: Duration, done: impl Fn(&World) -> bool) {
        let end = self.now.after(time);
        while !done(self) {
            assert!(self.now < end, "not there after {time:?}: {:?}; {}", self.trouble(), self.describe());
            // Looking costs more than acting: not at every event.
            (0..50).for_each(|_| self.step());
        }
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now.after(delay), self.sequence), event);
    }

    fn step(&mut self) {
        let ((at, _), event) = self.queue.pop_first().expect("ticks never end");
        self.now = at;
        match event {
            Event::ManagerTick(id) => self.tick_manager(id),
            Event::AgentTick(node) => self.tick_agent(&node),
            Event::Deliver(packet) => self.deliver(packet),
            Event::User => {
                self.use_it();
                let pause = Duration::from_millis(100 + self.random.number() % 600);
                self.after(pause, Event::User);
            }
            Event::Fault => {
                self.break_it();
                let pause = Duration::from_millis(300 + self.random.number() % 2000);
                self.after(pause, Event::Fault);
            }
        }
    }

    fn tick_manager(&mut self, id: u64) {
        let Some(manager) = self.managers.get_mut(&id) else { return };
        manager.handle(Input::Tick, self.now, self.crash_chance, &mut self.random);
        manager.lead(&self.members, self.now, self.crash_chance, &mut self.random);
        self.after_manager(id);
        self.after(TICK, Event::ManagerTick(id));
    }

    /// Sends what a manager has to send, and checks what it did.
    fn after_manager(&mut self, id: u64) {
        let Some(manager) = self.managers.get_mut(&id) else { return };
        let (packets, notes) = manager.take_out();
        if let Some(running) = &manager.running
            && running.applied > self.newest_index
        {
            contents::check(&self.newest, &running.state);
            self.newest = running.state.clone();
            self.newest_index = running.applied;
            self.checkers.committed(&self.newest);
        }
        packets.into_iter().for_each(|packet| self.send(packet));
        notes.into_iter().for_each(|note| self.note(id, note));
    }

    fn note(&mut self, id: u64, note: Note) {
        match note {
            Note::Leads { term } => self.checkers.leads(term, id),
            Note::Applied { index, entry } => {
                self.checkers.applied(id, index, entry);
                let running = self.managers.get(&id).and_then(|manager| manager.running.as_ref());
                if let Some(running) =
                    running.filter(|running| running.applied == index && index % STATE_EVERY == 0)
                {
                    self.checkers.state(id, index, fingerprint(&running.state));
                }
            }
            Note::Decided { id, index, result } => {
                if let Some(promise) = self.pending.remove(&id)
                    && result.is_ok()
                {
                    self.acknowledged = self.acknowledged.max(index);
                    self.promises.acknowledged(promise);
                }
            }
            Note::Read { id, index } => {
                if let Some(acknowledged) = self.reads.remove(&id) {
                    assert!(
                        index >= acknowledged,
                        "a read at {index} misses what was acknowledged at {acknowledged}"
                    );
                }
            }
            Note::Removed => drop(self.managers.remove(&id)),
        }
    }

    fn tick_agent(&mut self, node: &str) {
        let managers: Vec<u64> = self.members.iter().copied().collect();
        let Some(agent) = self.agents.get_mut(node) else { return };
        let mut report = None;
        if agent.is_up {
            agent.step(self.now, self.calm, &mut self.random);
            if self.random.number().is_multiple_of(3) {
                let payload = agent.report(&managers, self.now, &mut self.random);
                let to = Address::Manager(agent.manager);
                report = Some(Packet { from: Address::Agent(node.to_owned()), to, payload });
            }
        }
        if std::mem::take(&mut agent.changed) {
            self.checkers.containers(&self.agents, &self.newest);
        }
        report.into_iter().for_each(|packet| self.send(packet));
        self.after(TICK, Event::AgentTick(node.to_owned()));
    }

    fn send(&mut self, packet: Packet) {
        let latency = self.net.transit(&packet, &mut self.random);
        // The end of a stream is the sender's own to see: if not by the other's word, then by waiting for it in vain.
        let latency = latency.or_else(|| packet.payload.is_end().then_some(IN_VAIN));
        if let Some(latency) = latency {
            self.after(latency, Event::Deliver(packet));
        }
    }

    fn deliver(&mut self, packet: Packet) {
        match packet.to.clone() {
            Address::Agent(node) => {
                let Some(agent) = self.agents.get_mut(&node).filter(|agent| agent.is_up) else { return };
                if let (Address::Manager(from), Payload::Assign { index, root, message }) =
                    (&packet.from, &packet.payload)
                {
                    agent.assign(*from, *index, *root, message, self.now);
                }
            }
            Address::Manager(id) => {
                let Some(manager) = self.managers.get_mut(&id) else { return };
                match (&packet.from, packet.payload.is_end()) {
                    (Address::Manager(to), true) => {
                        let input = Input::SnapshotSent { to: *to, delivered: true };
                        manager.handle(input, self.now, self.crash_chance, &mut self.random);
                    }
                    _ => manager.receive(packet, self.now, self.crash_chance, &mut self.random),
                }
                self.after_manager(id);
            }
        }
    }

    // ---- users --------------------------------------------------------------------------------------

    fn leader(&self) -> Option<u64> {
        let leaders = self.managers.values().filter(|manager| manager.is_leader());
        let newest =
            leaders.max_by_key(|manager| manager.running.as_ref().map(|running| running.peer.role().term));
        newest.map(|manager| manager.id)
    }

    fn use_it(&mut self) {
        self.read();
        let Some(leader) = self.leader() else { return };
        let mut ids = IdGen::seeded(u128::from(self.random.number()) << 64);
        let Some(running) = self.managers[&leader].running.as_ref() else { return };
        let Some((decision, promise)) =
            workload::request(&running.state, self.now, &mut self.random, &mut ids)
        else {
            return;
        };
        let Ok((transaction, _)) = decision else { return };
        self.ask(leader, transaction, promise);
    }

    fn ask(&mut self, leader: u64, transaction: Transaction, promise: Promise) {
        self.promises.asked(&promise);
        self.pending.insert(transaction.id, promise);
        let manager = self.managers.get_mut(&leader).expect("a leader exists");
        manager.propose(transaction, self.now, &mut self.random);
        self.after_manager(leader);
    }

    /// A linearizable read at any manager.
    fn read(&mut self) {
        let ids: Vec<u64> = self.managers.keys().copied().collect();
        let at = ids[self.random.number() as usize % ids.len()];
        let read = self.random.number();
        self.reads.insert(read, self.acknowledged);
        let manager = self.managers.get_mut(&at).expect("it was listed");
        manager.handle(Input::ReadIndex(read), self.now, self.crash_chance, &mut self.random);
        self.after_manager(at);
    }

    /// The last requests of all users: what cannot run is replaced, and every node may be used.
    fn mend(&mut self) {
        let mut rounds = 0;
        while !self.is_mended() {
            rounds += 1;
            assert!(rounds < 200, "the cluster takes no writes: {}", self.describe());
            if let Some(leader) = self.leader() {
                for transaction in self.repairs(leader) {
                    self.ask(leader, transaction, Promise::Nothing);
                }
            }
            let end = self.now.after(Duration::from_millis(500));
            while self.now < end {
                self.step();
            }
        }
    }

    /// Every manager's place in the group, for the report of a failure.
    fn describe(&self) -> String {
        let managers = self.managers.values().filter_map(|manager| {
            let running = manager.running.as_ref()?;
            let (peer, members) = (&running.peer, running.peer.members());
            Some(format!(
                "\n{}: {:?} applied {} committed {} last {} members {members:?}",
                manager.id,
                peer.role(),
                running.applied,
                peer.commit_index(),
                peer.last_index(),
            ))
        });
        format!("wanted {:?}{}", self.members, managers.collect::<String>())
    }

    fn is_mended(&self) -> bool {
        let active = |node: &Node| {
            node.spec.as_ref().is_some_and(|spec| spec.availability() == NodeAvailability::Active)
        };
        self.newest.nodes().all(|node| active(node))
            && self.newest.services().all(|service| is_sound(service))
    }

    fn repairs(&mut self, leader: u64) -> Vec<Transaction> {
        let Some(running) = &self.managers[&leader].running else { return Vec::new() };
        let (state, mut ids) = (&running.state, IdGen::seeded(u128::from(self.random.number()) << 64));
        let nodes = state.nodes().map(|node| node.id.clone()).collect::<Vec<_>>();
        let nodes = nodes
            .iter()
            .map(|node| workload::set_availability(state, node, NodeAvailability::Active, &mut ids));
        let mut decisions: Vec<_> = nodes.collect();
        let broken = state.services().filter(|service| !is_sound(service));
        decisions.extend(broken.map(|service| workload::mend(state, service, self.now, &mut ids)));
        decisions
            .into_iter()
            .filter_map(|decision| decision.ok().map(|(transaction, _)| transaction))
            .collect()
    }
}

fn is_sound(service: &Service) -> bool {
    let task = service.spec.as_ref().and_then(|spec| spec.task.as_ref());
    let image = task.and_then(|task| task.container.as_ref()).map(|container| container.image.as_str());
    service.pending_delete || image == Some("web:9")
}

fn fingerprint(state: &State) -> u64 {
    hash(&state.snapshot().encode_to_vec())
}

/// The cluster and its nodes, as the founding manager writes them.
fn first_state(nodes: usize) -> State {
    let annotations = Some(Annotations { name: "default".to_owned(), ..Annotations::default() });
    let spec = ClusterSpec { annotations, ..ClusterSpec::default() };
    let cluster = Cluster {
        id: "cluster".to_owned(),
        spec: Some(spec),
        subnet_size: workload::SUBNET_SIZE,
        root_ca: Some(RootCa { certificate_pem: root(0).certificate_pem.clone(), ..RootCa::default() }),
        ..Cluster::default()
    };
    let resources = Some(Resources { nano_cpus: 4_000_000_000, memory: 8 << 30, pids: 0 });
    let nodes = (1..=nodes).map(|n| Node {
        id: format!("node{n}"),
        spec: Some(NodeSpec::default()),
        description: Some(NodeDescription {
            resources,
            tls: Some(root(0).info.clone()),
            ..NodeDescription::default()
        }),
        ..Node::default()
    });
    let objects = std::iter::once(cluster.into()).chain(nodes.map(Into::into));
    let create =
        |object| Change { action: change::Action::Create.into(), object: Some(object), ..Change::default() };
    let author = Author::Bootstrap.name().to_owned();
    let transaction = Transaction { id: 0, author, changes: objects.map(create).collect() };
    let batch = Batch { transactions: vec![transaction], now: 1 };
    let applied = apply(&State::default(), 1, batch);
    assert!(applied.results.iter().all(|(_, result)| result.is_ok()));
    assert!(applied.state.get(ObjectKind::Cluster, "cluster").is_some());
    applied.state
}
