//! One member of the raft group, without its disk, its network and its clock.
//!
//! The shell feeds it with [`Peer::handle`], then, as long as [`Peer::output`] yields something:
//! 1. sends `send_now`;
//! 2. writes `persist` (durably when `persist.sync`), snapshot first;
//! 3. sends `send`;
//! 4. applies `committed`, in order;
//! 5. calls [`Peer::advance`].
//!
//! Membership changes one member at a time: a new one starts as a learner and is promoted once caught up.
//! After a restart everything past the raft snapshot is committed and applied anew, membership included, so
//! that the snapshot's metadata, the hard state and the entries are all there is to store.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};

use protobuf::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType, HardState, Message,
    MessageType, Snapshot, SnapshotMetadata,
};
use raft::storage::GetEntriesContext;
use raft::{RaftState, RawNode, ReadOnlyOption, Ready, SnapshotStatus, StateRole, Storage, StorageError};
use rswarm_base::{Classify, IdGen, Kind};

pub use raft::eraftpb;

/// Bytes of entries in one append message: one message then takes well under a heartbeat on a slow link.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// Append messages on their way to one follower: covers a long, fast link.
const INFLIGHT_MAX: usize = 256;
/// Proposed bytes that are not committed yet: a leader without followers refuses rather than hoards.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
/// How far behind (in entries) a learner may be to count as caught up.
const CAUGHT_UP_ENTRIES: u64 = 100;
/// Raft index of the snapshot that a new cluster starts from. Above zero, so that a joining member, which
/// has no entries, must be sent a raft snapshot and with it the membership.
const BOOTSTRAP_INDEX: u64 = 1;

/// How a peer keeps time and who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Raft id: never zero, never used again after its member was removed.
    pub id: u64,
    /// Ticks without a leader until an election; each try waits one to two times as long.
    pub election_tick: usize,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_tick: usize,
    /// Where election timeouts and read markers come from: another one at every start.
    pub seed: u64,
}

impl Config {
    /// The defaults for ticks of 100 ms: elections after one to two seconds, heartbeats every 200 ms.
    #[must_use]
    pub fn new(id: u64, seed: u64) -> Config {
        Config { id, election_tick: 10, heartbeat_tick: 2, seed }
    }
}

/// What was found on disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Restored {
    /// Term, vote and commit index.
    pub hard_state: HardState,
    /// Index, term and membership of the latest raft snapshot; the state is restored from its data.
    pub snapshot: SnapshotMetadata,
    /// The entries after the snapshot, without a gap; older ones are ignored.
    pub entries: Vec<Entry>,
}

/// What happens to a peer.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Time passes.
    Tick,
    /// Another member's message arrived.
    Message(Box<Message>),
    /// Something to replicate; leaders only.
    Propose(Vec<u8>),
    /// A change of membership; leaders only, one at a time.
    ChangeMember(MemberChange),
    /// Asks from which index on a read is linearizable; answered by a [`Read`] of the same id.
    ReadIndex(u64),
    /// Hands leadership to another voter; leaders only.
    TransferLeader(u64),
    /// A message to this member could not be delivered.
    Unreachable(u64),
    /// A raft snapshot was delivered to this member, or could not be.
    SnapshotSent {
        /// The member.
        to: u64,
        /// Whether it has it.
        delivered: bool,
    },
    /// The state as of an applied index, after [`Output::snapshot_wanted`].
    Snapshot {
        /// The state's index.
        index: u64,
        /// The encoded state.
        data: Vec<u8>,
    },
}

/// One change of membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberChange {
    /// A new member that receives entries but does not vote.
    AddLearner(u64),
    /// The learner becomes a voter.
    Promote(u64),
    /// The member leaves.
    Remove(u64),
}

/// What a peer wants to be done: see the module's documentation for the order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Output {
    /// Messages that may leave at once.
    pub send_now: Vec<Message>,
    /// What must be on disk before `send` leaves and `committed` is applied.
    pub persist: Persist,
    /// Messages that tell others what `persist` holds.
    pub send: Vec<Message>,
    /// What is decided.
    pub committed: Vec<Committed>,
    /// Reads that are linearizable once their index is applied.
    pub reads: Vec<Read>,
    /// Who leads, when that changed.
    pub role: Option<Role>,
    /// A member needs a raft snapshot: answer with [`Input::Snapshot`] of the state as applied.
    pub snapshot_wanted: bool,
}

/// What goes to disk.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Persist {
    /// Replaces state and log up to its index; restore the state from its data.
    pub snapshot: Option<Snapshot>,
    /// To be appended; replace what is stored from the first one's index on.
    pub entries: Vec<Entry>,
    /// Replaces the stored one.
    pub hard_state: Option<HardState>,
    /// Whether it must have reached the disk before going on; otherwise only the commit index moved.
    pub sync: bool,
}

/// A committed entry.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed {
    /// Its raft index.
    pub index: u64,
    /// Its term.
    pub term: u64,
    /// What it holds.
    pub body: Body,
}

/// What a committed entry holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Nothing: a new leader's first entry.
    Empty,
    /// What was proposed.
    Data(Vec<u8>),
    /// A change of membership, which the peer has applied already.
    Members {
        /// The change.
        change: MemberChange,
        /// The membership since then.
        members: ConfState,
    },
}

/// The answer to a read request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// The request's id.
    pub id: u64,
    /// The index that must be applied before reading.
    pub index: u64,
}

/// A peer's place in the group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Role {
    /// The current term.
    pub term: u64,
    /// The leader, as far as known.
    pub leader: Option<u64>,
    /// Whether that is this peer.
    pub is_leader: bool,
    /// Whether this peer was removed from the group: it will never hear of anything again.
    pub removed: bool,
}

/// A member as this peer sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Raft id.
    pub id: u64,
    /// Whether it only receives.
    pub learner: bool,
    /// The last entry that it is known to have; known to leaders only.
    pub matched: u64,
    /// Whether it was heard of lately; the peer itself always is. Meaningful on leaders only.
    pub active: bool,
}

/// Why an input was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Only the leader can do this.
    #[error("this manager is not the leader")]
    NotLeader,
    /// Another membership change is not applied yet.
    #[error("another membership change is in progress")]
    Busy,
    /// Too much is on its way already, or leadership is being handed over.
    #[error("the proposal was dropped")]
    Dropped,
    /// A leader does not remove itself.
    #[error("the leader cannot remove itself; leadership must be transferred first")]
    SelfRemoval,
    /// No such member, or not one that this can be done to.
    #[error("raft member {0:x} does not exist or cannot be changed like this")]
    NoMember(u64),
    /// A snapshot of a state that was never applied, or is no longer in the log.
    #[error("no raft snapshot can be made of index {0}")]
    BadSnapshot(u64),
    /// raft-rs did not take it.
    #[error("raft refused: {0}")]
    Raft(String),
}

impl Classify for Refused {
    fn kind(&self) -> Kind {
        match self {
            Refused::NotLeader | Refused::Busy | Refused::Dropped => Kind::Unavailable,
            Refused::SelfRemoval | Refused::NoMember(_) => Kind::FailedPrecondition,
            Refused::BadSnapshot(_) | Refused::Raft(_) => Kind::Internal,
        }
    }
}

/// Stored data that no peer can start from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The entries do not follow the snapshot, or have a gap.
    #[error("the raft log has a gap before index {0}")]
    Gap(u64),
    /// The hard state speaks of entries that are not there.
    #[error("the raft log ends at {last}, but {commit} was committed")]
    Short {
        /// The last entry.
        last: u64,
        /// The stored commit index.
        commit: u64,
    },
    /// raft-rs refused the configuration.
    #[error("raft refused to start: {0}")]
    Raft(String),
}

/// What a new cluster's first manager writes to its disk before it starts its peer from it.
#[must_use]
pub fn bootstrap(id: u64, state: Vec<u8>) -> Persist {
    let mut snapshot = Snapshot::default();
    snapshot.set_data(state.into());
    let metadata = snapshot.mut_metadata();
    metadata.set_index(BOOTSTRAP_INDEX);
    metadata.set_term(1);
    metadata.mut_conf_state().set_voters(vec![id]);
    let mut hard_state = HardState::default();
    hard_state.set_term(1);
    hard_state.set_commit(BOOTSTRAP_INDEX);
    Persist { snapshot: Some(snapshot), entries: Vec::new(), hard_state: Some(hard_state), sync: true }
}

/// The raft index that the first state of a new cluster has.
#[must_use]
pub fn bootstrap_index() -> u64 {
    BOOTSTRAP_INDEX
}

impl Restored {
    /// Makes `id` the only member, for a cluster that has lost its quorum for good: the log is committed as
    /// far as this member has it, and all others are removed. Returns what must be persisted before the
    /// peer starts. The others must never come back with their old data.
    pub fn force_single(&mut self, id: u64) -> Persist {
        let members = self.final_members();
        let last = self.entries.last();
        let mut index = last.map_or(self.snapshot.get_index(), Entry::get_index);
        let term = last.map_or(self.snapshot.get_term(), Entry::get_term).max(self.hard_state.get_term());
        let mut changes = Vec::new();
        if !members.voters.contains(&id) {
            changes.push(MemberChange::Promote(id));
        }
        let others = members.voters.iter().chain(&members.learners).filter(|other| **other != id);
        changes.extend(others.map(|other| MemberChange::Remove(*other)));
        let mut appended = Vec::new();
        for change in changes {
            index += 1;
            let mut entry = Entry::default();
            entry.set_entry_type(EntryType::EntryConfChangeV2);
            entry.set_index(index);
            entry.set_term(term);
            entry.set_data(encode_change(change).into());
            appended.push(entry);
        }
        self.entries.extend(appended.iter().cloned());
        self.hard_state.set_term(term);
        self.hard_state.set_commit(index);
        let hard_state = Some(self.hard_state.clone());
        Persist { snapshot: None, entries: appended, hard_state, sync: true }
    }

    /// The membership once every entry of the log is applied.
    fn final_members(&self) -> ConfState {
        let mut members = self.snapshot.get_conf_state().clone();
        for entry in self.entries.iter().filter(|entry| entry.get_index() > self.snapshot.get_index()) {
            let Some(change) = decode_change(entry) else { continue };
            let id = change.id();
            members.voters.retain(|other| *other != id);
            members.learners.retain(|other| *other != id);
            match change {
                MemberChange::AddLearner(id) => members.learners.push(id),
                MemberChange::Promote(id) => members.voters.push(id),
                MemberChange::Remove(_) => {}
            }
        }
        members
    }
}

impl MemberChange {
    /// The member that it is about.
    #[must_use]
    pub fn id(self) -> u64 {
        match self {
            MemberChange::AddLearner(id) | MemberChange::Promote(id) | MemberChange::Remove(id) => id,
        }
    }
}

fn conf_change(change: MemberChange) -> ConfChangeV2 {
    let mut single = ConfChangeSingle::default();
    single.set_node_id(change.id());
    single.set_change_type(match change {
        MemberChange::AddLearner(_) => ConfChangeType::AddLearnerNode,
        MemberChange::Promote(_) => ConfChangeType::AddNode,
        MemberChange::Remove(_) => ConfChangeType::RemoveNode,
    });
    let mut conf_change = ConfChangeV2::default();
    conf_change.mut_changes().push(single);
    conf_change
}

fn encode_change(change: MemberChange) -> Vec<u8> {
    conf_change(change).write_to_bytes().expect("a message in memory always encodes")
}

fn decode_change(entry: &Entry) -> Option<MemberChange> {
    if entry.get_entry_type() != EntryType::EntryConfChangeV2 {
        return None;
    }
    let mut change = ConfChangeV2::default();
    change.merge_from_bytes(entry.get_data()).ok()?;
    let single = change.get_changes().first()?;
    Some(match single.get_change_type() {
        ConfChangeType::AddNode => MemberChange::Promote(single.node_id),
        ConfChangeType::AddLearnerNode => MemberChange::AddLearner(single.node_id),
        ConfChangeType::RemoveNode => MemberChange::Remove(single.node_id),
    })
}

/// One member of the raft group.
pub struct Peer {
    config: Config,
    raw: RawNode<Log>,
    random: IdGen,
    /// The output that was handed out and not advanced yet.
    handed_out: Option<Option<Ready>>,
    /// What raft had ready right after the last advance: comes first in the next output.
    light: Light,
    /// Read requests without an answer, by id, and how many ticks they are old.
    reads: BTreeMap<u64, u32>,
    /// Ticks so far, and at which of them each member was last heard of.
    ticks: u64,
    heard: BTreeMap<u64, u64>,
    /// The role that was last put out.
    role: Role,
    /// What the election timeout was drawn for, and its length: raft-rs would draw its own.
    timeout: (Option<(u64, StateRole)>, usize),
}

#[derive(Default)]
struct Light {
    messages: Vec<Message>,
    committed: Vec<Entry>,
    commit_moved: bool,
}

impl Light {
    fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.committed.is_empty() && !self.commit_moved
    }
}

impl Peer {
    /// A new member that knows nobody: it waits until the leader, which has added it as a learner, sends it
    /// a raft snapshot.
    pub fn join(config: Config) -> Result<Peer, RestoreError> {
        Peer::restore(config, Restored::default())
    }

    /// A member with what it had on disk. Committed entries after the snapshot come out anew.
    pub fn restore(config: Config, restored: Restored) -> Result<Peer, RestoreError> {
        let log = Log::restore(restored)?;
        let raft_config = raft::Config {
            id: config.id,
            election_tick: config.election_tick,
            heartbeat_tick: config.heartbeat_tick,
            applied: log.base.0,
            max_size_per_msg: MESSAGE_BYTES_MAX,
            max_inflight_msgs: INFLIGHT_MAX,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            ..raft::Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&raft_config, log, &logger)
            .map_err(|error| RestoreError::Raft(error.to_string()))?;
        let role = Role { term: raw.raft.term, ..Role::default() };
        let random = IdGen::seeded(u128::from(config.seed) << 64 | u128::from(config.id));
        let mut peer = Peer {
            config,
            raw,
            random,
            handed_out: None,
            light: Light::default(),
            reads: BTreeMap::new(),
            ticks: 0,
            heard: BTreeMap::new(),
            role,
            timeout: (None, 0),
        };
        peer.pin_election_timeout();
        Ok(peer)
    }

    /// Takes one input. Never called between [`Peer::output`] and [`Peer::advance`].
    ///
    /// # Panics
    /// When it is called there: raft-rs would lose messages.
    pub fn handle(&mut self, input: Input) -> Result<(), Refused> {
        assert!(self.handed_out.is_none(), "an output is waiting to be advanced");
        let result = match input {
            Input::Tick => {
                self.tick();
                Ok(())
            }
            Input::Message(message) => self.message(*message),
            Input::Propose(data) => {
                self.leader_only().and_then(|()| dropped(self.raw.propose(Vec::new(), data)))
            }
            Input::ChangeMember(change) => self.change_member(change),
            Input::ReadIndex(id) => {
                self.reads.insert(id, 0);
                self.raw.read_index(self.read_marker(id));
                Ok(())
            }
            Input::TransferLeader(to) => self.transfer(to),
            Input::Unreachable(id) => {
                self.raw.report_unreachable(id);
                Ok(())
            }
            Input::SnapshotSent { to, delivered } => {
                let status = if delivered { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
                self.raw.report_snapshot(to, status);
                Ok(())
            }
            Input::Snapshot { index, data } => self.raw.mut_store().offer(index, data),
        };
        self.pin_election_timeout();
        result
    }

    /// What is to be done now; `None` when there is nothing.
    ///
    /// # Panics
    /// When the output before was not advanced.
    pub fn output(&mut self) -> Option<Output> {
        assert!(self.handed_out.is_none(), "the output before was not advanced");
        let snapshot_wanted = self.raw.store().wanted.take();
        let ready = self.raw.has_ready().then(|| self.raw.ready());
        if ready.is_none() && self.light.is_empty() && !snapshot_wanted {
            return None;
        }
        let light = std::mem::take(&mut self.light);
        let hard_state = self.raw.raft.hard_state();
        let mut output = Output { snapshot_wanted, send_now: light.messages, ..Output::default() };
        let mut entries = light.committed;
        if light.commit_moved {
            output.persist.hard_state = Some(hard_state.clone());
        }
        let ready = ready.map(|ready| self.collect(ready, &mut output, &mut entries));
        if entries.iter().any(|entry| decode_change(entry).is_some()) {
            // Membership takes effect when it is applied, so a restart must not fall back behind it.
            output.persist.hard_state = Some(hard_state);
            output.persist.sync = true;
        }
        output.committed = entries.into_iter().map(|entry| self.committed(entry)).collect();
        output.role = self.role_change();
        self.handed_out = Some(ready);
        Some(output)
    }

    /// Moves what raft-rs has ready into the output and the in-memory log.
    fn collect(&mut self, mut ready: Ready, output: &mut Output, committed: &mut Vec<Entry>) -> Ready {
        output.send_now.extend(ready.take_messages());
        output.send = ready.take_persisted_messages();
        output.reads = self.answered(&mut ready);
        let log = self.raw.mut_store();
        if !ready.snapshot().is_empty() {
            let snapshot = ready.snapshot().clone();
            log.install(snapshot.get_metadata());
            output.persist.snapshot = Some(snapshot);
        }
        log.append(ready.entries());
        output.persist.entries = ready.entries().clone();
        if let Some(hard_state) = ready.hs() {
            output.persist.hard_state = Some(hard_state.clone());
        }
        output.persist.sync = ready.must_sync();
        committed.extend(ready.take_committed_entries());
        ready
    }

    /// Says that the last output was dealt with.
    ///
    /// # Panics
    /// When there is none.
    pub fn advance(&mut self) {
        match self.handed_out.take().expect("only after an output") {
            Some(ready) => {
                let mut light = self.raw.advance(ready);
                self.light = Light {
                    messages: light.take_messages(),
                    committed: light.take_committed_entries(),
                    commit_moved: light.commit_index().is_some(),
                };
            }
            None => self.raw.advance_apply(),
        }
        self.pin_election_timeout();
    }

    /// Forgets entries up to `index`, which a raft snapshot on disk covers. Entries that may still be
    /// needed are kept; returns the index that the log now starts after, for the log on disk to follow.
    pub fn compact(&mut self, index: u64) -> u64 {
        let applied = self.raw.raft.raft_log.applied();
        self.raw.mut_store().compact(index.min(applied))
    }

    /// This peer's place in the group.
    #[must_use]
    pub fn role(&self) -> Role {
        let raft = &self.raw.raft;
        let leader = (raft.leader_id != raft::INVALID_ID).then_some(raft.leader_id);
        let is_leader = raft.state == StateRole::Leader;
        Role { term: raft.term, leader, is_leader, removed: self.is_removed() }
    }

    /// Raft id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.config.id
    }

    /// The membership as of the last committed entry that was put out.
    #[must_use]
    pub fn conf_state(&self) -> ConfState {
        self.raw.raft.prs().conf().to_conf_state()
    }

    /// Index and membership that a raft snapshot of the state at `index` carries; `None` when that index
    /// was not put out yet or is compacted.
    #[must_use]
    pub fn snapshot_metadata(&self, index: u64) -> Option<SnapshotMetadata> {
        self.raw.store().metadata(index)
    }

    /// All members as this peer sees them, by raft id.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        let mut members: Vec<Member> =
            self.raw.raft.prs().iter().map(|(id, progress)| self.member(*id, progress.matched)).collect();
        members.sort_by_key(|member| member.id);
        members
    }

    /// Learners that have caught up and can be promoted.
    #[must_use]
    pub fn promotable(&self) -> Vec<u64> {
        let enough = self.raw.raft.raft_log.committed.saturating_sub(CAUGHT_UP_ENTRIES).max(1);
        let caught_up = |member: &Member| member.learner && member.active && member.matched >= enough;
        let is_leader = self.raw.raft.state == StateRole::Leader;
        self.members()
            .into_iter()
            .filter(|member| is_leader && caught_up(member))
            .map(|member| member.id)
            .collect()
    }

    /// Whether `id` is a member: messages of others are answered with "you were removed".
    #[must_use]
    pub fn is_member(&self, id: u64) -> bool {
        self.raw.raft.prs().get(id).is_some()
    }

    /// The last entry in the log.
    #[must_use]
    pub fn last_index(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    /// The last entry that is known to be committed.
    #[must_use]
    pub fn commit_index(&self) -> u64 {
        self.raw.raft.raft_log.committed
    }

    fn member(&self, id: u64, matched: u64) -> Member {
        let learner = self.raw.raft.prs().conf().learners().contains(&id);
        let patience = 2 * self.config.election_tick as u64;
        let heard = self.heard.get(&id).is_some_and(|tick| self.ticks - tick <= patience);
        Member { id, learner, matched, active: id == self.config.id || heard }
    }

    fn is_removed(&self) -> bool {
        // A joining member does not know the group yet; it was not removed from it.
        !self.is_member(self.config.id) && self.raw.raft.prs().iter().len() > 0
    }

    fn leader_only(&self) -> Result<(), Refused> {
        if self.raw.raft.state == StateRole::Leader { Ok(()) } else { Err(Refused::NotLeader) }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        self.raw.tick();
        // Lost questions are asked again: a read has no other way to notice.
        let again = self.config.heartbeat_tick as u32;
        let forget = 20 * self.config.election_tick as u32;
        self.reads.retain(|_, age| {
            *age += 1;
            *age < forget
        });
        let due: Vec<u64> =
            self.reads.iter().filter(|(_, age)| **age % again == 0).map(|(id, _)| *id).collect();
        for id in due {
            self.raw.read_index(self.read_marker(id));
        }
    }

    fn message(&mut self, message: Message) -> Result<(), Refused> {
        self.heard.insert(message.from, self.ticks);
        if message.get_msg_type() == MessageType::MsgPropose {
            // Proposals are made where the leader is; a forwarded one could be proposed twice.
            return Err(Refused::Dropped);
        }
        match self.raw.step(message) {
            // A straggler of a member that is gone, or of one that this peer does not know yet.
            Ok(()) | Err(raft::Error::StepPeerNotFound) => Ok(()),
            Err(error) => Err(Refused::Raft(error.to_string())),
        }
    }

    fn change_member(&mut self, change: MemberChange) -> Result<(), Refused> {
        self.leader_only()?;
        if self.raw.raft.has_pending_conf() {
            return Err(Refused::Busy);
        }
        let learner = self.raw.raft.prs().conf().learners().contains(&change.id());
        let fits = match change {
            MemberChange::AddLearner(id) => id != 0 && !self.is_member(id),
            MemberChange::Promote(_) => learner,
            MemberChange::Remove(id) => self.is_member(id),
        };
        if !fits {
            return Err(Refused::NoMember(change.id()));
        }
        if change == MemberChange::Remove(self.config.id) {
            return Err(Refused::SelfRemoval);
        }
        dropped(self.raw.propose_conf_change(Vec::new(), conf_change(change)))
    }

    fn transfer(&mut self, to: u64) -> Result<(), Refused> {
        self.leader_only()?;
        let voter = self.raw.raft.prs().conf().voters().contains(to);
        if !voter {
            return Err(Refused::NoMember(to));
        }
        self.raw.transfer_leader(to);
        Ok(())
    }

    /// Distinct among all members and starts of them, since the leader keeps the markers of all.
    fn read_marker(&self, id: u64) -> Vec<u8> {
        [self.config.id, self.config.seed, id].iter().flat_map(|part| part.to_le_bytes()).collect()
    }

    fn answered(&mut self, ready: &mut Ready) -> Vec<Read> {
        let ours = [self.config.id.to_le_bytes(), self.config.seed.to_le_bytes()].concat();
        let states = ready.take_read_states();
        let reads = states.into_iter().filter_map(|state| {
            let id = state.request_ctx.strip_prefix(ours.as_slice())?;
            let id = u64::from_le_bytes(id.try_into().ok()?);
            self.reads.remove(&id).map(|_| Read { id, index: state.index })
        });
        reads.collect()
    }

    fn committed(&mut self, entry: Entry) -> Committed {
        let (index, term) = (entry.get_index(), entry.get_term());
        let body = match decode_change(&entry) {
            Some(change) => self.apply_change(index, change),
            None if entry.get_data().is_empty() => Body::Empty,
            None => Body::Data(entry.get_data().to_vec()),
        };
        self.raw.mut_store().delivered = index;
        Committed { index, term, body }
    }

    fn apply_change(&mut self, index: u64, change: MemberChange) -> Body {
        match self.raw.apply_conf_change(&conf_change(change)) {
            Ok(members) => {
                self.raw.mut_store().confs.push((index, members.clone()));
                if change == MemberChange::Remove(self.config.id) && self.raw.raft.state == StateRole::Leader
                {
                    let term = self.raw.raft.term;
                    self.raw.raft.become_follower(term, raft::INVALID_ID);
                }
                Body::Members { change, members }
            }
            Err(error) => {
                // Every member refuses it alike, so that they still agree.
                tracing::error!(index, ?change, %error, "a committed membership change has no effect");
                Body::Empty
            }
        }
    }

    fn role_change(&mut self) -> Option<Role> {
        let role = self.role();
        (role != self.role).then(|| {
            self.role = role;
            role
        })
    }

    /// raft-rs draws election timeouts from the thread's random generator. They are drawn here instead, so
    /// that one seed gives one history.
    fn pin_election_timeout(&mut self) {
        let raft = &mut self.raw.raft;
        let drawn_for = Some((raft.term, raft.state));
        let campaigns = matches!(raft.state, StateRole::PreCandidate | StateRole::Candidate);
        let tried_again = campaigns && raft.election_elapsed == 0;
        if self.timeout.0 != drawn_for || tried_again {
            let spread = self.random.number() % self.config.election_tick as u64;
            self.timeout = (drawn_for, self.config.election_tick + spread as usize);
        }
        raft.set_randomized_election_timeout(self.timeout.1);
    }
}

fn dropped(result: raft::Result<()>) -> Result<(), Refused> {
    result.map_err(|error| match error {
        raft::Error::ProposalDropped => Refused::Dropped,
        error => Refused::Raft(error.to_string()),
    })
}

/// The log in memory: what raft-rs reads. The log on disk follows it.
struct Log {
    hard_state: HardState,
    /// Index and term that the log starts after.
    base: (u64, u64),
    entries: VecDeque<Entry>,
    /// Memberships and the index each holds from; the first is that of `base` or before.
    confs: Vec<(u64, ConfState)>,
    /// The last committed entry that was put out.
    delivered: u64,
    /// The latest raft snapshot that was made for a member that needed one.
    offered: Option<Snapshot>,
    /// Whether a member needs one that `offered` is not.
    wanted: Cell<bool>,
}

impl Log {
    fn restore(restored: Restored) -> Result<Log, RestoreError> {
        let base = (restored.snapshot.get_index(), restored.snapshot.get_term());
        let conf = restored.snapshot.get_conf_state().clone();
        let mut entries = restored.entries;
        entries.retain(|entry| entry.get_index() > base.0);
        for (offset, entry) in entries.iter().enumerate() {
            if entry.get_index() != base.0 + 1 + offset as u64 {
                return Err(RestoreError::Gap(entry.get_index()));
            }
        }
        let mut hard_state = restored.hard_state;
        let last = entries.last().map_or(base.0, Entry::get_index);
        if hard_state.get_commit() > last {
            return Err(RestoreError::Short { last, commit: hard_state.get_commit() });
        }
        // The snapshot may have reached the disk just before the hard state that goes with it.
        let commit = hard_state.get_commit().max(base.0);
        hard_state.set_commit(commit);
        let term = hard_state.get_term().max(base.1);
        hard_state.set_term(term);
        Ok(Log {
            hard_state,
            base,
            entries: entries.into(),
            confs: vec![(base.0, conf)],
            delivered: base.0,
            offered: None,
            wanted: Cell::new(false),
        })
    }

    fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.get_index() > self.base.0 && first.get_index() <= self.last() + 1,
            "the log has no gaps"
        );
        self.entries.truncate((first.get_index() - self.base.0 - 1) as usize);
        self.entries.extend(entries.iter().cloned());
    }

    fn install(&mut self, metadata: &SnapshotMetadata) {
        self.base = (metadata.get_index(), metadata.get_term());
        self.entries.clear();
        self.confs = vec![(metadata.get_index(), metadata.get_conf_state().clone())];
        self.delivered = metadata.get_index();
        self.offered = None;
    }

    fn compact(&mut self, index: u64) -> u64 {
        if index > self.base.0
            && let Ok(term) = self.term(index)
        {
            self.entries.drain(..(index - self.base.0) as usize);
            self.base = (index, term);
            let current = self.confs.iter().rposition(|(from, _)| *from <= index).unwrap_or(0);
            self.confs.drain(..current);
        }
        self.base.0
    }

    fn metadata(&self, index: u64) -> Option<SnapshotMetadata> {
        if index > self.delivered {
            return None;
        }
        let (_, conf) = self.confs.iter().rev().find(|(from, _)| *from <= index)?;
        let mut metadata = SnapshotMetadata::default();
        metadata.set_index(index);
        metadata.set_term(self.term(index).ok()?);
        metadata.set_conf_state(conf.clone());
        Some(metadata)
    }

    fn offer(&mut self, index: u64, data: Vec<u8>) -> Result<(), Refused> {
        let metadata = self.metadata(index).ok_or(Refused::BadSnapshot(index))?;
        let mut snapshot = Snapshot::default();
        snapshot.set_metadata(metadata);
        snapshot.set_data(data.into());
        self.offered = Some(snapshot);
        Ok(())
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf = self.confs.first().map_or_else(ConfState::default, |(_, conf)| conf.clone());
        Ok(RaftState::new(self.hard_state.clone(), conf))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.0 {
            return Err(StorageError::Compacted.into());
        }
        if high > self.last() + 1 {
            return Err(StorageError::Unavailable.into());
        }
        let (from, to) = ((low - self.base.0 - 1) as usize, (high - self.base.0 - 1) as usize);
        let mut entries: Vec<Entry> = self.entries.range(from..to).cloned().collect();
        raft::util::limit_size(&mut entries, max_size.into());
        Ok(entries)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        if index < self.base.0 {
            return Err(StorageError::Compacted.into());
        }
        let entry = self.entries.get((index - self.base.0 - 1) as usize);
        entry.map(Entry::get_term).ok_or_else(|| StorageError::Unavailable.into())
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// A member drops a snapshot whose membership does not hold it, without a word: none taken before it was
    /// added may be sent to it.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let fits = |snapshot: &&Snapshot| {
            let members = snapshot.get_metadata().get_conf_state();
            let index = snapshot.get_metadata().get_index();
            let knows_it = members.get_voters().contains(&to) || members.get_learners().contains(&to);
            knows_it && index >= request_index && index >= self.base.0
        };
        self.offered.as_ref().filter(fits).cloned().ok_or_else(|| {
            self.wanted.set(true);
            StorageError::SnapshotTemporarilyUnavailable.into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member with its disk.
    struct Node {
        peer: Peer,
        snapshot: Snapshot,
        entries: BTreeMap<u64, Entry>,
        hard_state: HardState,
        /// What was applied: all data, in order.
        log: Vec<Vec<u8>>,
        applied: u64,
        reads: Vec<Read>,
    }

    impl Node {
        fn new(id: u64, persist: Option<&Persist>) -> Node {
            let mut node = Node {
                peer: Peer::join(Config::new(id, id)).expect("a new peer"),
                snapshot: Snapshot::default(),
                entries: BTreeMap::new(),
                hard_state: HardState::default(),
                log: Vec::new(),
                applied: 0,
                reads: Vec::new(),
            };
            if let Some(persist) = persist {
                node.write(persist);
                node.restart();
            }
            node
        }

        fn restored(&self) -> Restored {
            Restored {
                hard_state: self.hard_state.clone(),
                snapshot: self.snapshot.get_metadata().clone(),
                entries: self.entries.values().cloned().collect(),
            }
        }

        fn restart(&mut self) {
            self.peer =
                Peer::restore(Config::new(self.peer.id(), 77), self.restored()).expect("what was written");
            self.load();
        }

        fn load(&mut self) {
            self.log = self.snapshot.get_data().iter().map(|byte| vec![*byte]).collect();
            self.applied = self.snapshot.get_metadata().index;
        }

        fn write(&mut self, persist: &Persist) {
            if let Some(snapshot) = &persist.snapshot {
                self.snapshot = snapshot.clone();
                self.entries.retain(|index, _| *index > snapshot.get_metadata().index);
                self.load();
            }
            if let Some(first) = persist.entries.first() {
                drop(self.entries.split_off(&first.index));
            }
            self.entries.extend(persist.entries.iter().map(|entry| (entry.index, entry.clone())));
            if let Some(hard_state) = &persist.hard_state {
                self.hard_state = hard_state.clone();
            }
        }

        fn pump(&mut self) -> Vec<Message> {
            let mut messages = Vec::new();
            while let Some(output) = self.peer.output() {
                messages.extend(output.send_now);
                self.write(&output.persist);
                messages.extend(output.send);
                for committed in output.committed {
                    assert_eq!(committed.index, self.applied + 1);
                    self.applied = committed.index;
                    if let Body::Data(data) = committed.body {
                        self.log.push(data);
                    }
                }
                self.reads.extend(output.reads);
                self.peer.advance();
                if output.snapshot_wanted {
                    let data = self.log.concat();
                    self.peer.handle(Input::Snapshot { index: self.applied, data }).expect("a fresh state");
                }
            }
            messages
        }

        /// A raft snapshot on disk, and nothing kept before it.
        fn compact(&mut self) {
            let mut snapshot = Snapshot::default();
            snapshot.set_metadata(self.peer.snapshot_metadata(self.applied).expect("an applied index"));
            snapshot.set_data(self.log.concat().into());
            self.snapshot = snapshot;
            assert_eq!(self.peer.compact(self.applied), self.applied);
            let applied = self.applied;
            self.entries.retain(|index, _| *index > applied);
        }
    }

    #[derive(Default)]
    struct Group {
        nodes: BTreeMap<u64, Node>,
        cut: Vec<u64>,
    }

    impl Group {
        /// A founder and `others` more, all voters.
        fn new(others: u64) -> Group {
            let mut group = Group::default();
            group.nodes.insert(1, Node::new(1, Some(&bootstrap(1, Vec::new()))));
            group.run(30);
            for id in 2..2 + others {
                group.join(id);
            }
            group
        }

        fn join(&mut self, id: u64) {
            self.nodes.insert(id, Node::new(id, None));
            self.leader().handle(Input::ChangeMember(MemberChange::AddLearner(id))).expect("added");
            self.run(10);
            assert_eq!(self.leader().promotable(), [id]);
            self.leader().handle(Input::ChangeMember(MemberChange::Promote(id))).expect("promoted");
            self.run(10);
        }

        fn run(&mut self, ticks: usize) {
            for _ in 0..ticks {
                let mut messages = VecDeque::new();
                for node in self.nodes.values_mut() {
                    node.peer.handle(Input::Tick).expect("time passes");
                    messages.extend(node.pump());
                }
                while let Some(message) = messages.pop_front() {
                    if self.cut.contains(&message.from) || self.cut.contains(&message.to) {
                        continue;
                    }
                    let (from, to) = (message.from, message.to);
                    let snapshot = message.get_msg_type() == MessageType::MsgSnapshot;
                    if let Some(node) = self.nodes.get_mut(&to) {
                        node.peer.handle(Input::Message(Box::new(message))).expect("a message");
                        messages.extend(node.pump());
                    }
                    if let Some(node) = self.nodes.get_mut(&from).filter(|_| snapshot) {
                        node.peer.handle(Input::SnapshotSent { to, delivered: true }).expect("told");
                        messages.extend(node.pump());
                    }
                }
            }
        }

        fn leader_id(&self) -> u64 {
            let leads = |node: &&Node| node.peer.role().is_leader && !self.cut.contains(&node.peer.id());
            self.nodes.values().find(leads).map(|node| node.peer.id()).expect("a leader")
        }

        fn leader(&mut self) -> &mut Peer {
            let id = self.leader_id();
            &mut self.nodes.get_mut(&id).expect("it leads").peer
        }

        fn propose(&mut self, byte: u8) {
            self.leader().handle(Input::Propose(vec![byte])).expect("proposed");
            self.run(4);
        }

        fn logs(&self) -> Vec<Vec<u8>> {
            self.nodes.values().map(|node| node.log.concat()).collect()
        }
    }

    #[test]
    fn members_join_as_learners_and_all_apply_the_same() {
        let mut group = Group::new(2);
        (1..5).for_each(|byte| group.propose(byte));
        assert_eq!(group.logs(), vec![vec![1, 2, 3, 4]; 3]);
        let members = group.leader().members();
        assert!(members.iter().all(|member| !member.learner && member.active));
    }

    #[test]
    fn a_joiner_gets_a_snapshot_that_knows_it() {
        let mut group = Group::new(1);
        (1..9).for_each(|byte| group.propose(byte));
        group.nodes.values_mut().for_each(Node::compact);
        group.join(3);
        group.propose(9);
        assert_eq!(group.nodes[&3].log.concat(), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert!(group.nodes[&3].snapshot.get_metadata().get_conf_state().get_learners().contains(&3));
    }

    #[test]
    fn a_restart_goes_on_from_disk() {
        let mut group = Group::new(2);
        (1..5).for_each(|byte| group.propose(byte));
        group.nodes.values_mut().for_each(Node::restart);
        group.run(40);
        group.propose(5);
        assert_eq!(group.logs(), vec![vec![1, 2, 3, 4, 5]; 3]);
        group.nodes.values_mut().for_each(Node::compact);
        group.nodes.values_mut().for_each(Node::restart);
        group.run(40);
        group.propose(6);
        assert_eq!(group.logs(), vec![vec![1, 2, 3, 4, 5, 6]; 3]);
    }

    #[test]
    fn a_lost_leader_is_replaced_and_what_it_alone_had_is_gone() {
        let mut group = Group::new(2);
        group.propose(1);
        let old = group.leader_id();
        group.cut.push(old);
        group
            .nodes
            .get_mut(&old)
            .expect("it led")
            .peer
            .handle(Input::Propose(vec![66]))
            .expect("it still leads");
        group.run(40);
        group.propose(2);
        group.cut.clear();
        group.run(20);
        assert_eq!(group.logs(), vec![vec![1, 2]; 3]);
    }

    #[test]
    fn followers_refuse_what_leaders_do() {
        let mut group = Group::new(1);
        let follower = 3 - group.leader_id();
        let peer = &mut group.nodes.get_mut(&follower).expect("a follower").peer;
        for input in [
            Input::Propose(vec![1]),
            Input::ChangeMember(MemberChange::AddLearner(9)),
            Input::TransferLeader(1),
        ] {
            assert_eq!(peer.handle(input), Err(Refused::NotLeader));
        }
    }

    #[test]
    fn membership_changes_one_at_a_time_and_sensibly() {
        let mut group = Group::new(1);
        let leader = group.leader_id();
        let mut change = |change: MemberChange| group.leader().handle(Input::ChangeMember(change));
        assert_eq!(change(MemberChange::Promote(9)), Err(Refused::NoMember(9)));
        assert_eq!(change(MemberChange::Remove(9)), Err(Refused::NoMember(9)));
        assert_eq!(change(MemberChange::AddLearner(1)), Err(Refused::NoMember(1)));
        assert_eq!(change(MemberChange::Remove(leader)), Err(Refused::SelfRemoval));
        assert_eq!(change(MemberChange::AddLearner(3)), Ok(()));
        assert_eq!(change(MemberChange::AddLearner(4)), Err(Refused::Busy));
    }

    #[test]
    fn leadership_is_handed_over_and_a_removed_member_knows() {
        let mut group = Group::new(2);
        let old = group.leader_id();
        let heir = (1..=3).find(|id| *id != old).expect("another");
        group.leader().handle(Input::TransferLeader(heir)).expect("a voter");
        group.run(5);
        assert_eq!(group.leader_id(), heir);
        group.leader().handle(Input::ChangeMember(MemberChange::Remove(old))).expect("a member");
        group.run(10);
        assert!(!group.leader().is_member(old));
        group.propose(7);
        assert_eq!(group.nodes[&heir].log.concat(), [7]);
    }

    #[test]
    fn reads_are_answered_on_leaders_and_followers() {
        let mut group = Group::new(2);
        group.propose(1);
        let ids: Vec<u64> = group.nodes.keys().copied().collect();
        for id in ids {
            let node = group.nodes.get_mut(&id).expect("a node");
            let applied = node.applied;
            node.peer.handle(Input::ReadIndex(40 + id)).expect("asked");
            group.run(6);
            let reads = &group.nodes[&id].reads;
            assert_eq!(reads.iter().map(|read| read.id).collect::<Vec<_>>(), [40 + id]);
            assert!(reads[0].index >= applied);
        }
    }

    #[test]
    fn a_leader_that_is_cut_off_answers_no_read_and_steps_down() {
        let mut group = Group::new(2);
        let old = group.leader_id();
        group.cut.push(old);
        group.nodes.get_mut(&old).expect("it leads").peer.handle(Input::ReadIndex(1)).expect("asked");
        group.run(40);
        let node = &group.nodes[&old];
        assert!(node.reads.is_empty() && !node.peer.role().is_leader);
    }

    #[test]
    fn one_survivor_can_go_on_alone() {
        let mut group = Group::new(2);
        (1..4).for_each(|byte| group.propose(byte));
        let mut survivor = group.nodes.remove(&2).expect("a member");
        let mut restored = survivor.restored();
        let persist = restored.force_single(2);
        survivor.write(&persist);
        survivor.restart();
        let mut alone = Group { nodes: [(2, survivor)].into(), cut: Vec::new() };
        alone.run(30);
        alone.propose(4);
        assert_eq!(alone.nodes[&2].log.concat(), [1, 2, 3, 4]);
        assert_eq!(alone.leader().conf_state().get_voters(), [2]);
        alone.join(9);
        assert_eq!(alone.nodes[&9].log.concat(), [1, 2, 3, 4]);
    }

    #[test]
    fn a_damaged_log_is_refused() {
        let entry = |index: u64| Entry { index, term: 1, ..Entry::default() };
        let gap = Restored { entries: vec![entry(1), entry(3)], ..Restored::default() };
        assert_eq!(Peer::restore(Config::new(1, 1), gap).err(), Some(RestoreError::Gap(3)));
        let mut short = Restored { entries: vec![entry(1)], ..Restored::default() };
        short.hard_state.set_commit(5);
        let refused = Peer::restore(Config::new(1, 1), short).err();
        assert_eq!(refused, Some(RestoreError::Short { last: 1, commit: 5 }));
    }
}
