//! A simulated manager: the real peer and brain over a disk that forgets what was not synced.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use protobuf::Message as _;
use rswarm_base::{IdGen, Timestamp};
use rswarm_manager_core::assign::{AssignmentSet, Tables};
use rswarm_manager_core::drain::AppliedTables;
use rswarm_manager_core::peer::eraftpb::{Entry, HardState, Message, MessageType, Snapshot};
use rswarm_manager_core::peer::{self, Body, Committed, Config, Input, MemberChange, Persist, Restored};
use rswarm_manager_core::rotation::renewed_by_all;
use rswarm_manager_core::state::node_state;
use rswarm_manager_core::{Author, Env, Peer, Plan, Rejected, State, apply, intake, pass};
use rswarm_proto::wire::{
    Assignments, Batch, Change, Cluster, NodeDescription, NodeHello, NodeState, NodeTaskReport, RootCa,
    StateSnapshot, Transaction, assignments,
};

use crate::net::{Address, Packet, Payload};
use crate::roots::{root, signer};

/// Entries between raft snapshots: few, so that snapshots are sent often.
const SNAPSHOT_EVERY: u64 = 60;
/// Entries kept for followers that lag a little.
const KEEP: u64 = 20;

/// Nodes acknowledge no endpoint tables here: a task that drains takes its time all the same.
static NO_TABLES: AppliedTables = AppliedTables::new();

/// What survives a crash.
#[derive(Debug, Default)]
pub struct Disk {
    snapshot: Option<Snapshot>,
    entries: BTreeMap<u64, Entry>,
    hard_state: HardState,
    /// Written, but not synced: a crash may lose it.
    unsynced: Option<HardState>,
}

impl Disk {
    pub fn write(&mut self, persist: &Persist) {
        if let Some(snapshot) = &persist.snapshot {
            self.entries.retain(|index, _| *index > snapshot.get_metadata().index);
            self.snapshot = Some(snapshot.clone());
        }
        if let Some(first) = persist.entries.first() {
            self.entries.split_off(&first.index);
            self.entries.extend(persist.entries.iter().map(|entry| (entry.index, entry.clone())));
        }
        match (&persist.hard_state, persist.sync) {
            (Some(hard_state), true) => {
                self.hard_state = hard_state.clone();
                self.unsynced = None;
            }
            (Some(hard_state), false) => self.unsynced = Some(hard_state.clone()),
            (None, true) => {
                if let Some(hard_state) = self.unsynced.take() {
                    self.hard_state = hard_state;
                }
            }
            (None, false) => {}
        }
    }

    fn crash(&mut self, random: &mut IdGen) {
        match self.unsynced.take() {
            Some(hard_state) if random.number().is_multiple_of(2) => self.hard_state = hard_state,
            _ => {}
        }
    }

    pub fn restored(&self) -> Restored {
        let snapshot =
            self.snapshot.as_ref().map(|snapshot| snapshot.get_metadata().clone()).unwrap_or_default();
        let entries = self.entries.values().filter(|entry| entry.index > snapshot.index).cloned().collect();
        Restored { hard_state: self.hard_state.clone(), snapshot, entries }
    }

    /// How far its log goes, as elections compare logs.
    pub fn position(&self) -> (u64, u64) {
        let snapshot = self.snapshot.as_ref().map(|snapshot| snapshot.get_metadata());
        let snapshot = snapshot.map_or((0, 0), |metadata| (metadata.term, metadata.index));
        self.entries.values().last().map_or(snapshot, |entry| (entry.term, entry.index).max(snapshot))
    }

    fn state(&self) -> State {
        let data = self.snapshot.as_ref().map(|snapshot| snapshot.get_data()).unwrap_or_default();
        let snapshot = StateSnapshot::decode(data).expect("a snapshot that was written is read");
        State::restore(snapshot).expect("a state that was stored is valid")
    }
}

/// What the world must know of what a manager did.
#[derive(Debug)]
pub enum Note {
    /// It became the leader of this term.
    Leads { term: u64 },
    /// It applied this entry; the hash of its data.
    Applied { index: u64, entry: u64 },
    /// A transaction was decided.
    Decided { id: u64, index: u64, result: Result<(), Rejected> },
    /// A read may be served as of this index.
    Read { id: u64, index: u64 },
    /// It was removed from the group.
    Removed,
}

/// One manager.
pub struct Manager {
    pub id: u64,
    pub disk: Disk,
    pub running: Option<Running>,
    clock_skew: i64,
    starts: u64,
}

/// What a crash takes.
pub struct Running {
    pub peer: Peer,
    pub state: State,
    pub applied: u64,
    snapshot_at: u64,
    heartbeats: BTreeMap<String, Timestamp>,
    pub leader_since: Option<Timestamp>,
    clock_was_set: bool,
    /// Transactions of the last pass that are not decided yet.
    outstanding: BTreeSet<u64>,
    wake_at: Option<Timestamp>,
    decided_on: Option<u64>,
    pub ids: IdGen,
    sessions: BTreeMap<String, (String, AssignmentSet)>,
    out: Vec<Packet>,
    pub notes: Vec<Note>,
}

impl Manager {
    pub fn new(id: u64, random: &mut IdGen) -> Manager {
        let clock_skew = (random.number() % 2_000_000_000) as i64 - 1_000_000_000;
        Manager { id, disk: Disk::default(), running: None, clock_skew, starts: 0 }
    }

    pub fn start(&mut self) {
        self.starts += 1;
        let seed = self.id << 32 | self.starts;
        let peer =
            Peer::restore(Config::new(self.id, seed), self.disk.restored()).expect("what was written starts");
        let applied = self.disk.snapshot.as_ref().map_or(0, |snapshot| snapshot.get_metadata().index);
        self.running = Some(Running {
            peer,
            state: self.disk.state(),
            applied,
            snapshot_at: applied,
            heartbeats: BTreeMap::new(),
            leader_since: None,
            clock_was_set: false,
            outstanding: BTreeSet::new(),
            wake_at: None,
            decided_on: None,
            ids: IdGen::seeded(u128::from(seed)),
            sessions: BTreeMap::new(),
            out: Vec::new(),
            notes: Vec::new(),
        });
    }

    pub fn crash(&mut self, random: &mut IdGen) {
        self.running = None;
        self.disk.crash(random);
    }

    /// Its clock is set. Whoever leads notices, and has heard nobody by the new time.
    pub fn jump(&mut self, by: i64) {
        self.clock_skew += by;
        if let Some(running) = &mut self.running {
            running.clock_was_set = true;
        }
    }

    fn clock(&self, now: Timestamp) -> Timestamp {
        Timestamp(now.0 + self.clock_skew)
    }

    pub fn is_leader(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.leader_since.is_some())
    }

    /// One input, and all that follows. `crash_chance`, of a thousand, for each output.
    pub fn handle(&mut self, input: Input, now: Timestamp, crash_chance: u64, random: &mut IdGen) {
        let Some(running) = &mut self.running else { return };
        // A refusal is an answer, not a failure: whoever asked tries again.
        let _ = running.peer.handle(input);
        self.pump(now, crash_chance, random);
    }

    fn pump(&mut self, now: Timestamp, crash_chance: u64, random: &mut IdGen) {
        let clock = self.clock(now);
        loop {
            let Some(running) = &mut self.running else { return };
            let Some(output) = running.peer.output() else { break };
            running.send(output.send_now);
            if random.number() % 1000 < crash_chance {
                return self.crash(random);
            }
            self.disk.write(&output.persist);
            if random.number() % 1000 < crash_chance {
                return self.crash(random);
            }
            running.send(output.send);
            if let Some(snapshot) = &output.persist.snapshot {
                running.state = self.disk.state();
                running.applied = snapshot.get_metadata().index;
                running.snapshot_at = running.applied;
            }
            output.committed.into_iter().for_each(|committed| running.apply(committed, clock));
            let reads = output.reads.into_iter().map(|read| Note::Read { id: read.id, index: read.index });
            running.notes.extend(reads);
            if let Some(role) = output.role {
                if !role.is_leader {
                    running.leader_since = None;
                }
                if role.removed {
                    running.notes.push(Note::Removed);
                }
            }
            running.peer.advance();
            if output.snapshot_wanted {
                let data = running.state.snapshot().encode_to_vec();
                let _ = running.peer.handle(Input::Snapshot { index: running.applied, data });
            }
        }
        self.compact();
    }

    fn compact(&mut self) {
        let Some(running) = &mut self.running else { return };
        if running.applied < running.snapshot_at + SNAPSHOT_EVERY {
            return;
        }
        let Some(metadata) = running.peer.snapshot_metadata(running.applied) else { return };
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(metadata);
        snapshot.set_data(running.state.snapshot().encode_to_vec().into());
        self.disk.snapshot = Some(snapshot);
        let first = running.peer.compact(running.applied - KEEP);
        self.disk.entries.retain(|index, _| *index > first);
        running.snapshot_at = running.applied;
    }

    /// What a leader does by itself: membership, and one pass of the reconcilers at a time.
    pub fn lead(&mut self, members: &BTreeSet<u64>, now: Timestamp, crash_chance: u64, random: &mut IdGen) {
        let clock = self.clock(now);
        let Some(running) = &mut self.running else { return };
        if std::mem::take(&mut running.clock_was_set) {
            running.heartbeats.clear();
            running.leader_since = running.leader_since.map(|_| clock);
        }
        let Some(since) = running.leader_since else { return };
        running.finish_rotation(clock);
        let change = running.member_change(members);
        if let Some(change) = change {
            let _ = running.peer.handle(Input::ChangeMember(change));
        }
        let due =
            running.decided_on != Some(running.applied) || running.wake_at.is_some_and(|at| at <= clock);
        if due && running.outstanding.is_empty() {
            let mut env = Env {
                now: clock,
                ids: &mut running.ids,
                heartbeats: &running.heartbeats,
                tables: &NO_TABLES,
                leader_since: since,
                secret: [u8::try_from(running.state.index() % 251).expect("below 251"); 32],
            };
            let decided = pass(&running.state, &mut env);
            running.wake_at = decided.wake_at;
            running.decided_on = Some(running.applied);
            running.outstanding = decided.transactions.iter().map(|transaction| transaction.id).collect();
            if !decided.transactions.is_empty() && !running.propose(decided.transactions, clock) {
                running.outstanding.clear();
                running.decided_on = None;
            }
        }
        self.pump(now, crash_chance, random);
    }

    /// Proposes a transaction of users or agents.
    pub fn propose(&mut self, transaction: Transaction, now: Timestamp, random: &mut IdGen) -> bool {
        let clock = self.clock(now);
        let Some(running) = self.running.as_mut().filter(|running| running.leader_since.is_some()) else {
            return false;
        };
        let proposed = running.propose(vec![transaction], clock);
        self.pump(now, 0, random);
        proposed
    }

    pub fn receive(&mut self, packet: Packet, now: Timestamp, crash_chance: u64, random: &mut IdGen) {
        let clock = self.clock(now);
        let Some(running) = &mut self.running else { return };
        match packet.payload {
            Payload::Raft(bytes) => {
                let mut message = Message::default();
                message.merge_from_bytes(&bytes).expect("what was sent is a message");
                self.handle(Input::Message(Box::new(message)), now, crash_chance, random);
            }
            Payload::Report { node_id, statuses, sequence, root } => {
                running.answer(&node_id, &sequence);
                running.take_in(node_id, statuses, root, clock);
                self.pump(now, crash_chance, random);
            }
            Payload::Relay { node_id, statuses, root } => {
                if running.leader_since.is_some() {
                    running.take_in(node_id, statuses, root, clock);
                    self.pump(now, crash_chance, random);
                }
            }
            Payload::Assign { .. } => {}
        }
    }

    pub fn take_out(&mut self) -> (Vec<Packet>, Vec<Note>) {
        let Some(running) = &mut self.running else { return Default::default() };
        (std::mem::take(&mut running.out), std::mem::take(&mut running.notes))
    }
}

impl Running {
    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            let (from, to) = (Address::Manager(self.peer.id()), Address::Manager(message.to));
            let bytes = message.write_to_bytes().expect("a message encodes");
            if message.get_msg_type() == MessageType::MsgSnapshot {
                // Sent on a stream of its own, whose end says that it arrived; a lost one is sent again.
                self.out.push(Packet {
                    from: to.clone(),
                    to: from.clone(),
                    payload: Payload::Raft(Vec::new()),
                });
            }
            self.out.push(Packet { from, to, payload: Payload::Raft(bytes) });
        }
    }

    fn apply(&mut self, committed: Committed, clock: Timestamp) {
        assert_eq!(committed.index, self.applied + 1, "entries come one after the other");
        self.applied = committed.index;
        let role = self.peer.role();
        let mut digest = committed.term;
        match committed.body {
            // The first entry of an own term: everything before it is applied, so leading begins.
            Body::Empty => {
                if role.is_leader && role.term == committed.term && self.leader_since.is_none() {
                    self.leader_since = Some(clock);
                    self.heartbeats.clear();
                    self.outstanding.clear();
                    self.decided_on = None;
                    self.notes.push(Note::Leads { term: role.term });
                }
            }
            Body::Members { change, .. } => digest = digest << 8 ^ change.id(),
            Body::Data(data) => {
                digest ^= hash(&data);
                let batch = Batch::decode(data.as_slice()).expect("what was proposed is a batch");
                let applied = apply(&self.state, committed.index, batch);
                self.state = applied.state;
                for (id, result) in applied.results {
                    self.outstanding.remove(&id);
                    self.notes.push(Note::Decided { id, index: committed.index, result });
                }
            }
        }
        self.notes.push(Note::Applied { index: committed.index, entry: digest });
    }

    fn propose(&mut self, transactions: Vec<Transaction>, clock: Timestamp) -> bool {
        let batch = Batch { transactions, now: clock.0 };
        self.peer.handle(Input::Propose(batch.encode_to_vec())).is_ok()
    }

    fn take_in(&mut self, node_id: String, statuses: Vec<NodeTaskReport>, root: usize, clock: Timestamp) {
        if self.leader_since.is_none() {
            if let Some(leader) = self.peer.role().leader {
                let (from, to) = (Address::Manager(self.peer.id()), Address::Manager(leader));
                self.out.push(Packet { from, to, payload: Payload::Relay { node_id, statuses, root } });
            }
            return;
        }
        let mut changes: Vec<Change> = intake::hellos(&self.state, &self.hello(&node_id, root));
        // A leader is woken by those who were away, as `Writer::write` does.
        if self.state.node(&node_id).is_none_or(|node| node_state(node) != NodeState::ReadyNode) {
            self.wake_at = Some(clock);
        }
        self.heartbeats.insert(node_id, clock);
        changes.extend(intake::statuses(&self.state, &statuses, clock));
        if !changes.is_empty() {
            let (id, author) = (self.ids.number(), Author::Dispatcher.name().to_owned());
            self.propose(vec![Transaction { id, author, changes }], clock);
        }
    }

    /// The description of a node with the certificate that it has now, when that is news.
    fn hello(&self, node_id: &str, issuer: usize) -> Vec<NodeHello> {
        let description = self.state.node(node_id).and_then(|node| node.description.as_ref());
        let outdated = description.filter(|description| description.tls.as_ref() != Some(&root(issuer).info));
        let renewed = outdated.map(|description| NodeHello {
            node_id: node_id.to_owned(),
            description: Some(NodeDescription {
                tls: Some(root(issuer).info.clone()),
                ..description.clone()
            }),
            ..NodeHello::default()
        });
        renewed.into_iter().collect()
    }

    /// Ends the replacement of the root certificate once the brain says that it may.
    fn finish_rotation(&mut self, clock: Timestamp) {
        let Some((rotation, cluster)) = renewed_by_all(&self.state).zip(self.state.cluster()) else { return };
        let root = RootCa { certificate_pem: rotation.certificate_pem.clone(), ..RootCa::default() };
        let cluster = Cluster { root_ca: Some(root), ..Cluster::clone(cluster) };
        let mut plan = Plan::default();
        plan.update(cluster);
        let (id, author) = (self.ids.number(), Author::Ca.name().to_owned());
        self.propose(vec![Transaction { id, author, changes: plan.into_changes() }], clock);
    }

    /// Tells a node what it is assigned, on top of what it has. A manager that knows no leader is silent, so
    /// that its agents look for another.
    fn answer(&mut self, node_id: &str, sequence: &str) {
        if self.peer.role().leader.is_none() || self.state.cluster().is_none() {
            return;
        }
        let next = Tables::new(&self.state).assignments(node_id);
        let to = format!("{}-{}", self.peer.id(), self.applied);
        let session = self.sessions.get(node_id).filter(|(sent, _)| sent == sequence && !sent.is_empty());
        let (kind, changes) = match session {
            Some((_, before)) => (assignments::Kind::Incremental, before.diff(&next)),
            None => (assignments::Kind::Complete, next.complete()),
        };
        let message = Assignments { kind: kind.into(), from: sequence.to_owned(), to: to.clone(), changes };
        self.sessions.insert(node_id.to_owned(), (to, next));
        let (from, to) = (Address::Manager(self.peer.id()), Address::Agent(node_id.to_owned()));
        self.out.push(Packet {
            from,
            to,
            payload: Payload::Assign { index: self.applied, root: signer(&self.state), message },
        });
    }

    /// The next step towards the wanted members.
    fn member_change(&mut self, wanted: &BTreeSet<u64>) -> Option<MemberChange> {
        if let Some(learner) = self.peer.promotable().first() {
            return Some(MemberChange::Promote(*learner));
        }
        let members = self.peer.members();
        let own_id = self.peer.id();
        if let Some(other) = members.iter().find(|other| !wanted.contains(&other.id) && other.id != own_id) {
            return Some(MemberChange::Remove(other.id));
        }
        let heir = members.iter().find(|other| !other.learner && other.id != own_id && other.active);
        if let Some(heir) = heir.filter(|_| !wanted.contains(&own_id)) {
            let _ = self.peer.handle(Input::TransferLeader(heir.id));
            return None;
        }
        let missing = wanted.iter().find(|id| members.iter().all(|member| member.id != **id));
        missing.map(|id| MemberChange::AddLearner(*id))
    }
}

/// What the first manager of a cluster starts from, be it new or from a backup.
pub fn founded_at(id: u64, index: u64, state: &State) -> Disk {
    let mut disk = Disk::default();
    let snapshot = StateSnapshot { index, ..state.snapshot() };
    disk.write(&peer::bootstrap_at(id, index, snapshot.encode_to_vec()));
    disk
}

/// Tells contents apart. Eight bytes at a time: this code is not optimised.
pub fn hash(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        u64::from_le_bytes(word)
    });
    words.fold(bytes.len() as u64, |hash, word| {
        (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
    })
}
