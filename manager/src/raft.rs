//! The one task that owns the raft peer, the log and the state.
//!
//! Each round takes what has come in, then does what raft wants, in its order: send what may leave at once,
//! persist, send what tells others so, apply. While the disk works, proposals gather; the next round puts
//! them into one entry, and one write takes many entries.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use rswarm_base::{Chain, Clock, SystemClock, Timestamp};
use rswarm_manager_core::peer::eraftpb::{Message, SnapshotMetadata};
use rswarm_manager_core::peer::{Body, Committed, Input, MemberChange, Output, Persist, Read, Refused, Role};
use rswarm_manager_core::{AnyObject, Peer, State, apply};
use rswarm_proto::wire::{Batch, StateSnapshot, Transaction};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::Leader;
use crate::blocking::{blocking, gone};
use crate::metrics::Instruments;
use crate::store::{ProposeError, Status, StoreHandle};
use crate::transport::{Place, Transport};
use crate::wal::{Seed, SnapshotFiles, Wal, WalError};

/// Commands waiting for the task: as many as agents and users of a large cluster send in one disk write.
const COMMANDS_MAX: usize = 4096;
/// Commands taken in one round, so that ticks and raft's own work are never starved.
const ROUND_MAX: usize = 1024;
/// Bytes of transactions in one entry; a larger transaction has its entry to itself.
const ENTRY_BYTES_MAX: usize = 1 << 20;
/// The largest transaction: what one append message and the log's readers can take.
const TRANSACTION_BYTES_MAX: usize = 16 << 20;
/// More ticks than any sensible election timeout has.
const LONE_TICKS_MAX: usize = 10_000;
/// Raft snapshots happen every so many entries when the cluster's spec gives no number.
const SNAPSHOT_INTERVAL: u64 = 10_000;

/// What the task is told.
pub(crate) enum Command {
    /// A transaction to replicate.
    Propose {
        /// What.
        transaction: Transaction,
        /// Answered with the index that it was applied at.
        reply: oneshot::Sender<Result<u64, ProposeError>>,
    },
    /// Answered when the state has everything that was decided before.
    Read {
        /// Dropped when the manager stops.
        reply: oneshot::Sender<()>,
    },
    /// A change of the group.
    ChangeMember {
        /// What.
        change: MemberChange,
        /// Answered when it took effect.
        reply: oneshot::Sender<Result<(), ProposeError>>,
    },
    /// Another member says something.
    Message(Box<Message>),
    /// A member could not be reached.
    Unreachable(u64),
    /// How sending a raft snapshot ended.
    SnapshotSent {
        /// To whom.
        to: u64,
        /// Whether it arrived.
        delivered: bool,
    },
    /// Leadership goes to another.
    StepDown,
}

/// What the task starts with.
pub(crate) struct Start {
    /// The protocol, restored.
    pub peer: Peer,
    /// The log.
    pub wal: Wal,
    /// The state as of the latest raft snapshot.
    pub state: State,
    /// That snapshot's index.
    pub snapshot_index: u64,
    /// Where messages go.
    pub transport: Transport,
    /// The members that let this one in.
    pub seeds: Vec<Seed>,
    /// Time between ticks.
    pub tick: Duration,
}

/// How the task ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The group goes on without this member.
    Removed,
    /// It cannot go on. Its log is closed by the time this is heard of.
    Failed {
        /// Why.
        reason: String,
        /// Whether the same node may start again from its log, perhaps later: the disk was full, or could not
        /// be written. Else the log or what it holds is damaged, and stays so.
        passing: bool,
    },
}

/// The mailbox of a task that does not run yet.
pub(crate) fn mailbox() -> (mpsc::Sender<Command>, mpsc::Receiver<Command>) {
    mpsc::channel(COMMANDS_MAX)
}

/// The task.
pub(crate) struct Raft {
    peer: Peer,
    /// Gone while a disk write has it.
    wal: Option<Wal>,
    files: SnapshotFiles,
    state: Arc<State>,
    applied: u64,
    snapshot_index: u64,
    transport: Transport,
    seeds: Vec<Seed>,
    commands: mpsc::Receiver<Command>,
    /// Transactions that wait for the next entry.
    gathered: Vec<Transaction>,
    /// Who waits for a transaction, by its id.
    proposals: HashMap<u64, oneshot::Sender<Result<u64, ProposeError>>>,
    /// Who waits for a read: first for its index, then for that to be applied.
    asked: BTreeMap<u64, oneshot::Sender<()>>,
    reads: Vec<(u64, oneshot::Sender<()>)>,
    next_read: u64,
    /// Who waits for a membership change.
    changing: Option<(MemberChange, oneshot::Sender<Result<(), ProposeError>>)>,
    leading_since: Option<Timestamp>,
    /// Raft snapshots in the making.
    work: JoinSet<Work>,
    is_saving: bool,
    is_offering: bool,
    published_state: watch::Sender<Arc<State>>,
    published_status: watch::Sender<Arc<Status>>,
    tick: Duration,
    instruments: Instruments,
}

/// What a blocking job brings back.
enum Work {
    Saved(SnapshotMetadata, Result<(), WalError>),
    Encoded(u64, Vec<u8>),
}

/// Why the task cannot go on.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Wal(#[from] WalError),
    #[error("entry {index} of the raft log cannot be decoded")]
    Entry {
        index: u64,
        #[source]
        source: prost::DecodeError,
    },
    #[error(transparent)]
    State(#[from] StateError),
}

impl Failure {
    fn may_pass(&self) -> bool {
        match self {
            Failure::Wal(error) => error.may_pass(),
            Failure::Entry { .. } | Failure::State(_) => false,
        }
    }
}

/// Why a raft snapshot's data is no state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It is no message.
    #[error("the raft snapshot's data cannot be decoded")]
    Decode(#[from] prost::DecodeError),
    /// Its objects contradict one another.
    #[error("the raft snapshot holds no state: {0}")]
    Restore(String),
}

/// The state that a raft snapshot carries; empty data is the state before everything.
pub(crate) fn decode_state(data: &[u8]) -> Result<State, StateError> {
    let snapshot = StateSnapshot::decode(data)?;
    State::restore(snapshot).map_err(|error| StateError::Restore(error.to_string()))
}

/// A state as raft snapshots carry it.
pub(crate) fn encode_state(state: &State) -> Vec<u8> {
    state.snapshot().encode_to_vec()
}

impl Raft {
    /// The task, and the handle that everybody else has on it.
    pub(crate) fn new(
        start: Start,
        sender: mpsc::Sender<Command>,
        commands: mpsc::Receiver<Command>,
    ) -> (Raft, StoreHandle) {
        let state = Arc::new(start.state);
        let (published_state, state_watch) = watch::channel(state.clone());
        let (published_status, status_watch) = watch::channel(Arc::default());
        let instruments = Instruments { fsync: start.wal.fsync(), ..Instruments::default() };
        let store = StoreHandle {
            commands: sender,
            state: state_watch,
            status: status_watch,
            instruments: instruments.clone(),
        };
        let raft = Raft {
            peer: start.peer,
            files: start.wal.snapshot_files(),
            wal: Some(start.wal),
            state,
            applied: start.snapshot_index,
            snapshot_index: start.snapshot_index,
            transport: start.transport,
            seeds: start.seeds,
            commands,
            gathered: Vec::new(),
            proposals: HashMap::new(),
            asked: BTreeMap::new(),
            reads: Vec::new(),
            next_read: 0,
            changing: None,
            leading_since: None,
            work: JoinSet::new(),
            is_saving: false,
            is_offering: false,
            published_state,
            published_status,
            tick: start.tick,
            instruments,
        };
        (raft, store)
    }

    /// Runs until it is cancelled (then `None`) or cannot or need not go on.
    pub(crate) async fn run(mut self, cancel: CancellationToken) -> Option<Ended> {
        let ended = self.run_until(cancel).await;
        // The log may be opened again, or removed: nothing of this one may be written any more.
        self.work.shutdown().await;
        ended
    }

    async fn run_until(&mut self, cancel: CancellationToken) -> Option<Ended> {
        self.readdress();
        self.skip_first_election();
        let mut ticks = interval(self.tick);
        // After a stall, time goes on from where it is: a burst of ticks would only start elections.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = cancel.cancelled() => return None,
                _ = ticks.tick() => self.on_tick(),
                Some(done) = self.work.join_next() => {
                    let done = match done {
                        Ok(done) => done,
                        Err(error) => gone(error).await,
                    };
                    if let Err(failure) = self.on_work(done) {
                        return Some(failed(&failure));
                    }
                }
                Some(command) = self.commands.recv() => self.on_command(command),
            }
            for _ in 0..ROUND_MAX {
                let Ok(command) = self.commands.try_recv() else { break };
                self.on_command(command);
            }
            self.propose_gathered();
            if let Err(failure) = self.work_off().await {
                return Some(failed(&failure));
            }
            self.publish_status();
            if self.peer.role().removed {
                tracing::info!("this node is no longer a member of the raft group");
                return Some(Ended::Removed);
            }
        }
    }

    /// A lone voter has nobody to wait for: its time runs at once to where it leads.
    fn skip_first_election(&mut self) {
        let is_alone = self.peer.conf_state().get_voters() == [self.peer.id()];
        for _ in 0..LONE_TICKS_MAX {
            if !is_alone || self.peer.role().is_leader {
                return;
            }
            self.handle(Input::Tick);
        }
    }

    fn on_tick(&mut self) {
        self.handle(Input::Tick);
        self.asked.retain(|_, reply| !reply.is_closed());
        self.reads.retain(|(_, reply)| !reply.is_closed());
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Propose { transaction, reply } => self.on_propose(transaction, reply),
            Command::Read { reply } => {
                self.next_read += 1;
                self.asked.insert(self.next_read, reply);
                self.handle(Input::ReadIndex(self.next_read));
            }
            Command::ChangeMember { change, reply } => self.on_change(change, reply),
            Command::Message(message) if message.to == self.peer.id() => self.handle(Input::Message(message)),
            // For one that was here before: raft ids are not used twice.
            Command::Message(_) => {}
            Command::Unreachable(id) => self.handle(Input::Unreachable(id)),
            Command::SnapshotSent { to, delivered } => self.handle(Input::SnapshotSent { to, delivered }),
            Command::StepDown => self.on_step_down(),
        }
    }

    /// Inputs that nobody waits for: a refusal only tells that it came too late.
    fn handle(&mut self, input: Input) {
        if let Err(refused) = self.peer.handle(input) {
            tracing::debug!(%refused, "raft refused an input");
        }
    }

    fn on_propose(&mut self, transaction: Transaction, reply: oneshot::Sender<Result<u64, ProposeError>>) {
        if self.leading_since.is_none() {
            let _ = reply.send(Err(Refused::NotLeader.into()));
        } else if transaction.encoded_len() > TRANSACTION_BYTES_MAX
            || self.proposals.contains_key(&transaction.id)
        {
            let _ = reply.send(Err(Refused::Dropped.into()));
        } else {
            self.proposals.insert(transaction.id, reply);
            self.gathered.push(transaction);
        }
    }

    /// Puts what has gathered into as few entries as their limit allows.
    fn propose_gathered(&mut self) {
        let mut transactions = std::mem::take(&mut self.gathered).into_iter().peekable();
        while transactions.peek().is_some() {
            let mut batch = Batch { transactions: Vec::new(), now: SystemClock.now().0 };
            let mut bytes = 0;
            while let Some(next) = transactions.next_if(|next| {
                bytes += next.encoded_len();
                bytes <= ENTRY_BYTES_MAX || batch.transactions.is_empty()
            }) {
                batch.transactions.push(next);
            }
            if let Err(refused) = self.peer.handle(Input::Propose(batch.encode_to_vec())) {
                for transaction in batch.transactions {
                    self.answer(transaction.id, Err(refused.clone().into()));
                }
            }
        }
    }

    fn answer(&mut self, transaction: u64, result: Result<u64, ProposeError>) {
        if let Some(reply) = self.proposals.remove(&transaction) {
            // Who asked may have given up.
            let _ = reply.send(result);
        }
    }

    fn on_change(&mut self, change: MemberChange, reply: oneshot::Sender<Result<(), ProposeError>>) {
        let outcome = if self.changing.is_some() {
            Err(Refused::Busy)
        } else {
            self.peer.handle(Input::ChangeMember(change))
        };
        match outcome {
            Ok(()) => self.changing = Some((change, reply)),
            Err(refused) => drop(reply.send(Err(refused.into()))),
        }
    }

    fn on_step_down(&mut self) {
        let own = self.peer.id();
        let members = self.peer.members();
        let others = members.iter().filter(|member| member.id != own && !member.learner && member.active);
        if let Some(successor) = others.max_by_key(|member| member.matched) {
            self.handle(Input::TransferLeader(successor.id));
        }
    }

    /// Does what raft wants until it wants nothing more.
    async fn work_off(&mut self) -> Result<(), Failure> {
        while let Some(mut output) = self.peer.output() {
            self.transport.send(std::mem::take(&mut output.send_now));
            self.persist(std::mem::take(&mut output.persist)).await?;
            self.transport.send(std::mem::take(&mut output.send));
            self.take(output)?;
            self.peer.advance();
        }
        Ok(())
    }

    async fn persist(&mut self, persist: Persist) -> Result<(), Failure> {
        if persist == Persist::default() {
            return Ok(());
        }
        let mut wal = self.wal.take().expect("only this function takes it, and it puts it back");
        let job = move || {
            let written = wal.persist(&persist);
            let received = persist
                .snapshot
                .map(|snapshot| (snapshot.get_metadata().get_index(), decode_state(snapshot.get_data())));
            (wal, written, received)
        };
        let (wal, written, received) = blocking(job).await;
        self.wal = Some(wal);
        written?;
        if let Some((index, state)) = received {
            self.state = Arc::new(state?);
            self.applied = index;
            self.snapshot_index = self.applied;
            tracing::info!(index = self.applied, "the state was received as a raft snapshot");
            self.published_state.send_replace(self.state.clone());
            self.readdress();
        }
        Ok(())
    }

    /// What an output holds beside messages and writes.
    fn take(&mut self, output: Output) -> Result<(), Failure> {
        if let Some(role) = output.role {
            self.on_role(role);
        }
        for committed in output.committed {
            self.apply(committed)?;
        }
        for Read { id, index } in output.reads {
            if let Some(reply) = self.asked.remove(&id) {
                self.reads.push((index, reply));
            }
        }
        self.answer_reads();
        if output.snapshot_wanted {
            self.offer_snapshot();
        }
        self.save_snapshot_when_due();
        Ok(())
    }

    fn on_role(&mut self, role: Role) {
        tracing::info!(term = role.term, leader = ?role.leader, leads = role.is_leader, "raft role");
        // The first entry of its term makes a leader's state complete: see `apply`.
        self.leading_since = None;
        for (_, reply) in self.proposals.drain() {
            let _ = reply.send(Err(ProposeError::Lost));
        }
        if let Some((_, reply)) = self.changing.take() {
            let _ = reply.send(Err(ProposeError::Lost));
        }
    }

    fn apply(&mut self, committed: Committed) -> Result<(), Failure> {
        let Committed { index, term, body } = committed;
        match body {
            Body::Empty => {
                let role = self.peer.role();
                if role.is_leader && role.term == term {
                    self.leading_since.get_or_insert(SystemClock.now());
                    tracing::info!(term, "this manager leads");
                }
            }
            Body::Data(data) => {
                let timer = self.instruments.apply.timer();
                let batch =
                    Batch::decode(data.as_slice()).map_err(|source| Failure::Entry { index, source })?;
                let applied = apply(&self.state, index, batch);
                self.state = Arc::new(applied.state);
                timer.stop();
                // Whoever hears that something was applied must see it.
                self.published_state.send_replace(self.state.clone());
                if applied.events.iter().any(|event| matches!(event.after, Some(AnyObject::Node(_)))) {
                    self.readdress();
                }
                for (id, result) in applied.results {
                    self.answer(id, result.map(|()| index).map_err(ProposeError::from));
                }
            }
            Body::Members { change, members } => {
                tracing::info!(?change, voters = ?members.voters, learners = ?members.learners, "membership");
                // Whoever hears that it took effect must see it.
                self.publish_status();
                if let Some((_, reply)) = self.changing.take_if(|(wanted, _)| *wanted == change) {
                    let _ = reply.send(Ok(()));
                }
            }
        }
        self.applied = index;
        Ok(())
    }

    fn answer_reads(&mut self) {
        let applied = self.applied;
        for (_, reply) in self.reads.extract_if(.., |(index, _)| *index <= applied) {
            let _ = reply.send(());
        }
    }

    /// Tells the transport where the members are.
    fn readdress(&mut self) {
        let seeds = self
            .seeds
            .iter()
            .map(|seed| (seed.raft_id, Place { node_id: seed.node_id.clone(), addr: seed.addr.clone() }));
        let mut places: BTreeMap<u64, Place> = seeds.collect();
        for node in self.state.managers() {
            if let Some(manager) = &node.manager_status {
                let place = Place { node_id: node.id.clone(), addr: manager.addr.clone() };
                places.insert(manager.raft_id, place);
            }
        }
        self.transport.readdress(places);
    }

    fn publish_status(&mut self) {
        self.instruments.last_index.set(self.peer.last_index());
        self.instruments.commit_index.set(self.peer.commit_index());
        let role = self.peer.role();
        let place = role.leader.and_then(|leader| self.transport.place(leader));
        let status = Status {
            role,
            members: self.peer.members(),
            promotable: self.peer.promotable(),
            leader: place.map(|place| Leader { node_id: place.node_id.clone(), addr: place.addr.clone() }),
            leading_since: self.leading_since,
            raft_id: self.peer.id(),
            applied: self.applied,
        };
        self.published_status.send_if_modified(|published| {
            let is_new = **published != status;
            if is_new {
                *published = Arc::new(status);
            }
            is_new
        });
    }

    /// A member needs the state: encodes it elsewhere and hands it to raft.
    fn offer_snapshot(&mut self) {
        if self.is_offering {
            return;
        }
        self.is_offering = true;
        let (index, state) = (self.applied, self.state.clone());
        self.work.spawn_blocking(move || Work::Encoded(index, encode_state(&state)));
    }

    fn save_snapshot_when_due(&mut self) {
        let spec = self.state.cluster().and_then(|cluster| cluster.spec.as_ref());
        let interval = spec.map_or(0, |spec| spec.snapshot_interval);
        let interval = if interval == 0 { SNAPSHOT_INTERVAL } else { interval };
        if self.is_saving || self.applied < self.snapshot_index + interval {
            return;
        }
        let Some(metadata) = self.peer.snapshot_metadata(self.applied) else { return };
        self.is_saving = true;
        let (files, state) = (self.files.clone(), self.state.clone());
        let timer = self.instruments.snapshot.timer();
        self.work.spawn_blocking(move || {
            let written = files.write(&metadata, &encode_state(&state));
            timer.stop();
            Work::Saved(metadata, written)
        });
    }

    fn on_work(&mut self, work: Work) -> Result<(), Failure> {
        match work {
            Work::Encoded(index, data) => {
                self.is_offering = false;
                self.handle(Input::Snapshot { index, data });
                Ok(())
            }
            Work::Saved(metadata, written) => {
                self.is_saving = false;
                written?;
                self.compact(&metadata)
            }
        }
    }

    /// A raft snapshot is on disk: what it covers can go, but for what slow followers may still need.
    fn compact(&mut self, metadata: &SnapshotMetadata) -> Result<(), Failure> {
        let index = metadata.get_index();
        if index <= self.snapshot_index {
            return Ok(()); // one that was received meanwhile covers more
        }
        self.snapshot_index = index;
        let spec = self.state.cluster().and_then(|cluster| cluster.spec.as_ref());
        let keep = spec.map_or(0, |spec| spec.log_entries_for_slow_followers);
        let base = self.peer.compact(index.saturating_sub(keep));
        let wal = self.wal.as_mut().expect("no disk write is in progress between rounds");
        wal.compact(index, metadata.get_term(), base)?;
        tracing::info!(index, base, "raft snapshot saved");
        Ok(())
    }
}

fn failed(failure: &Failure) -> Ended {
    let (reason, passing) = (Chain(failure).to_string(), failure.may_pass());
    tracing::error!(error = %reason, passing, "the raft log cannot go on; this manager stops");
    Ended::Failed { reason, passing }
}
