//! What goes into a peer and what comes out: plain values.

use raft::eraftpb::{ConfState, Entry, HardState, Message, Snapshot, SnapshotMetadata};
use rswarm_base::{Classify, Kind};

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

impl MemberChange {
    /// The member that it is about.
    #[must_use]
    pub fn id(self) -> u64 {
        match self {
            MemberChange::AddLearner(id) | MemberChange::Promote(id) | MemberChange::Remove(id) => id,
        }
    }
}
