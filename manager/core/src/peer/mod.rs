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

mod face;
mod log;
mod member;
mod recovery;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use raft::eraftpb::{ConfState, Entry, Message, MessageType, SnapshotMetadata};
use raft::{RawNode, ReadOnlyOption, Ready, SnapshotStatus, StateRole};
use rswarm_base::IdGen;

pub use self::face::{
    Body, Committed, Input, Member, MemberChange, Output, Persist, Read, Refused, RestoreError, Restored,
    Role,
};
use self::log::Log;
use self::member::{conf_change, decode_change};
pub use self::recovery::{bootstrap, bootstrap_at, bootstrap_index};
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
        // A voter that hears nobody asks for votes, and forgets its leader. A learner would believe in it for ever:
        // one that was removed while it could not hear of it would tell its agents what no longer holds.
        let is_alone = !raft.promotable() && raft.pass_election_timeout();
        let leader = (raft.leader_id != raft::INVALID_ID && !is_alone).then_some(raft.leader_id);
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
