//! The manager as its daemon sees it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rswarm_base::metrics::Exposition;
use rswarm_base::{Clock, Scope, SystemClock};
use rswarm_manager_core::State;
use rswarm_proto::tls::{Credentials, Identity, UnlockKey};
use tokio::sync::watch;
use tonic::service::Routes;

use crate::backup::Backup;
use crate::blocking::blocking;
use crate::ca;
use crate::calls::Calls;
use crate::config::{Boot, ManagerConfig};
use crate::forward::propose_status;
use crate::raft::Ended;
use crate::start::{self, StartError};
use crate::store::{NO_LEADER, StoreHandle};

/// How long leadership may take to go to another when this manager stops.
const HANDOVER: Duration = Duration::from_secs(1);
/// A backup's read that takes longer has no quorum behind it.
const READ_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the tasks may take to end.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Who leads, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// The leader's node.
    pub node_id: String,
    /// `HOST:PORT` of its gRPC server.
    pub addr: String,
}

/// What the managers' keys are locked with; `None` when they are not.
pub type Lock = Option<UnlockKey>;

/// A running manager. Cloning gives another handle on the same one.
#[derive(Clone)]
pub struct Manager {
    pub(crate) store: StoreHandle,
    pub(crate) routes: Routes,
    pub(crate) calls: Calls,
    pub(crate) leader: watch::Receiver<Option<Leader>>,
    pub(crate) reachable: watch::Receiver<Option<BTreeMap<u64, bool>>>,
    pub(crate) lock: watch::Receiver<Option<Lock>>,
    pub(crate) ended: watch::Receiver<Option<Ended>>,
    pub(crate) scope: Scope,
}

impl Manager {
    /// Starts the manager: opens or makes its log and becomes a member; what its log holds can be read when
    /// this returns. Serve [`Manager::services`] at once, or nobody can reach it; a node that joins gets its
    /// state only then. All tasks live in a child of `scope`; cancelling that stops the manager at once.
    ///
    /// With [`Boot::Join`], the node's gRPC port must be bound before: the leader checks that it can be reached.
    ///
    /// # Errors
    /// When the log is damaged or cannot be unlocked, or no manager lets the node in.
    pub async fn start(config: ManagerConfig, boot: Boot, scope: Scope) -> Result<Manager, StartError> {
        start::start(config, boot, scope.child("manager")).await
    }

    /// Raft, Ca, Dispatcher, Relay, Control and Logs, for the node's gRPC server ([`rswarm_proto::tls::serve`]), with
    /// what `add` adds to them: the worker's services. All calls are counted, and callers looked at before messages.
    #[must_use]
    pub fn services(&self, add: impl FnOnce(Routes) -> Routes) -> Routes {
        self.calls.counting(add(self.routes.clone()))
    }

    /// Writes this manager's figures: raft, the state, dispatcher.
    pub fn metrics(&self, out: &mut Exposition) {
        self.store.instruments.write(&self.store.status(), &self.store.state(), out);
    }

    /// The replicated state as this manager has it, after each applied batch.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<Arc<State>> {
        self.store.state.clone()
    }

    /// A new certificate for this manager over its key, signed by the root in its own state: for one that has
    /// expired, since a group of such managers cannot even elect a leader.
    ///
    /// # Errors
    /// When the state has no root, or does not know this node as a manager.
    pub fn renew_own(&self, identity: &Identity) -> Result<Credentials, tonic::Status> {
        ca::renew_own(&self.store.state(), identity)
    }

    /// The whole state as a file, for [`Backup::decode`]: it holds all that was acknowledged before this call. While
    /// managers are locked, it is sealed with the unlock key.
    ///
    /// # Errors
    /// Without a quorum, which could tell.
    pub async fn backup(&self) -> Result<Vec<u8>, tonic::Status> {
        let state = match tokio::time::timeout(READ_TIMEOUT, self.store.read()).await {
            Ok(read) => read.map_err(|error| propose_status(&error))?,
            Err(_) => return Err(tonic::Status::unavailable(NO_LEADER)),
        };
        let key = state.cluster().and_then(|cluster| UnlockKey::from_bytes(&cluster.unlock_key));
        Ok(blocking(move || Backup::encode(&state, SystemClock.now(), key.as_ref())).await)
    }

    /// Who leads; `None` while nobody is known to.
    #[must_use]
    pub fn leader(&self) -> watch::Receiver<Option<Leader>> {
        self.leader.clone()
    }

    /// Which managers the leader hears of, by raft id; `None` where this manager does not lead: others do not know.
    #[must_use]
    pub fn reachable(&self) -> watch::Receiver<Option<BTreeMap<u64, bool>>> {
        self.reachable.clone()
    }

    /// What this manager's own key shall be locked with on its disk, as far as its state says; `None` until it has one.
    #[must_use]
    pub fn lock(&self) -> watch::Receiver<Option<Lock>> {
        self.lock.clone()
    }

    /// Whether this manager leads and has applied all that was decided before.
    #[must_use]
    pub fn is_leading(&self) -> bool {
        self.store.status().is_leading()
    }

    /// This manager's id in the raft group.
    #[must_use]
    pub fn raft_id(&self) -> u64 {
        self.store.status().raft_id
    }

    /// The nodes that vote in the raft group, as far as this manager knows.
    #[must_use]
    pub fn voters(&self) -> Vec<String> {
        let (state, status) = (self.store.state(), self.store.status());
        let votes = |id: u64| status.members.iter().any(|member| member.id == id && !member.learner);
        let managers = state
            .nodes()
            .filter(|node| node.manager_status.as_ref().is_some_and(|manager| votes(manager.raft_id)));
        managers.map(|node| node.id.clone()).collect()
    }

    /// Resolves when the manager ends by itself, with the reason; never when it is stopped.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        // The guard must be gone before the wait that never ends.
        let found = ended.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
        match found {
            Some(ended) => ended,
            None => std::future::pending().await,
        }
    }

    /// Hands over leadership, ends all tasks and waits for them. What was acknowledged is on disk already.
    pub async fn stop(self) {
        if self.store.status().role.is_leader {
            self.store.step_down().await;
            let mut status = self.store.status.clone();
            // Nobody may be there to take over; then there is nothing to wait for.
            let _ = tokio::time::timeout(HANDOVER, status.wait_for(|status| !status.role.is_leader)).await;
        }
        self.scope.shutdown(SHUTDOWN).await;
    }
}
