//! The way to the replicated state: read it, propose to it, ask for its latest.

use std::sync::Arc;

use rswarm_base::{Classify, Kind, Timestamp};
use rswarm_manager_core::peer::{Member, MemberChange, Refused, Role};
use rswarm_manager_core::{Rejected, State};
use rswarm_proto::wire::Transaction;
use tokio::sync::{mpsc, oneshot, watch};

use crate::Leader;
use crate::metrics::Instruments;
use crate::raft::Command;

pub(crate) use rswarm_proto::status::NO_LEADER;

/// A handle on the raft group's state. Cloning gives another handle.
#[derive(Clone)]
pub(crate) struct StoreHandle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) state: watch::Receiver<Arc<State>>,
    pub(crate) status: watch::Receiver<Arc<Status>>,
    /// What is counted around the state.
    pub(crate) instruments: Instruments,
}

/// This manager's place in the group, as it knows it.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Status {
    /// Term, leader, and whether that is us.
    pub role: Role,
    /// The group; progress and liveness count on the leader only.
    pub members: Vec<Member>,
    /// Learners that can vote now.
    pub promotable: Vec<u64>,
    /// The leader's node and address, as far as the state names them.
    pub leader: Option<Leader>,
    /// Set while this manager leads and has applied everything that was decided before.
    pub leading_since: Option<Timestamp>,
    /// Our raft id.
    pub raft_id: u64,
    /// The last applied index.
    pub applied: u64,
}

impl Status {
    /// Whether this manager may decide.
    pub(crate) fn is_leading(&self) -> bool {
        self.leading_since.is_some()
    }
}

impl StoreHandle {
    /// The state as of now.
    pub(crate) fn state(&self) -> Arc<State> {
        self.state.borrow().clone()
    }

    /// Our place in the group as of now.
    pub(crate) fn status(&self) -> Arc<Status> {
        self.status.borrow().clone()
    }

    /// Proposes a transaction. Returns the index it was applied at; then [`StoreHandle::state`] has it.
    pub(crate) async fn propose(&self, transaction: Transaction) -> Result<u64, ProposeError> {
        let timer = self.instruments.transaction.timer();
        let (reply, answer) = oneshot::channel();
        let proposed = async {
            self.send(Command::Propose { transaction, reply }).await?;
            answer.await.map_err(|_| ProposeError::Lost)?
        };
        let result = proposed.await;
        self.instruments.proposed(&result);
        if result.is_ok() {
            timer.stop();
        }
        result
    }

    /// A state that holds everything that was acknowledged to anyone before this call.
    pub(crate) async fn read(&self) -> Result<Arc<State>, ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Read { reply }).await?;
        answer.await.map_err(|_| ProposeError::Stopped)?;
        Ok(self.state())
    }

    /// Changes the membership of the raft group; leaders only. Returns once it took effect here.
    pub(crate) async fn change_member(&self, change: MemberChange) -> Result<(), ProposeError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::ChangeMember { change, reply }).await?;
        answer.await.map_err(|_| ProposeError::Lost)?
    }

    /// Hands leadership to the most advanced other voter, when there is one.
    pub(crate) async fn step_down(&self) {
        // A manager that stopped leads no more.
        let _ = self.commands.send(Command::StepDown).await;
    }

    async fn send(&self, command: Command) -> Result<(), ProposeError> {
        self.commands.send(command).await.map_err(|_| ProposeError::Stopped)
    }
}

/// Why a proposal was not (or may not have been) applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProposeError {
    /// Applied to a state that it does not fit; nothing changed.
    #[error(transparent)]
    Rejected(#[from] Rejected),
    /// Never proposed.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Proposed, but leadership changed before it was decided.
    #[error("the leader changed while the request was in progress; it may or may not have taken effect")]
    Lost,
    /// The manager stops.
    #[error("this manager stops")]
    Stopped,
}

impl ProposeError {
    /// Whether nothing was changed because this manager does not lead: another may.
    pub(crate) fn is_not_leader(&self) -> bool {
        matches!(self, ProposeError::Refused(Refused::NotLeader))
    }
}

impl Classify for ProposeError {
    fn kind(&self) -> Kind {
        match self {
            ProposeError::Rejected(rejected) => rejected.kind(),
            ProposeError::Refused(refused) => refused.kind(),
            ProposeError::Lost | ProposeError::Stopped => Kind::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            ProposeError::Rejected(rejected) => rejected.hint(),
            ProposeError::Refused(refused) => refused.hint(),
            ProposeError::Lost => Some("look whether it took effect, then try again".to_owned()),
            ProposeError::Stopped => None,
        }
    }
}
