//! The body around the brain: raft on disk and on the wire, the leader's loop, and what managers serve.
//!
//! Is not: decisions. What a cluster should do next, what a request may change and what a node must know are
//! pure functions of `rswarm-manager-core`; here they get their clock, their disk and their sockets.
//! Start at [`Manager`], then `raft` (the one task that owns the log and the state), then `leader`.
#![forbid(unsafe_code)]

mod config;
mod found;
mod wal;

pub use config::{Boot, Founding, ManagerConfig, TICK};
pub use found::{ADDRESS_POOL, DATA_PATH_PORT, FoundError, NewCluster, SUBNET_SIZE, found};

use std::sync::Arc;

use rswarm_base::Scope;
use rswarm_manager_core::State;
use tokio::sync::watch;
use tonic::service::Routes;

/// Who leads, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// The leader's node.
    pub node_id: String,
    /// `HOST:PORT` of its gRPC server.
    pub addr: String,
}

/// A running manager. Cloning gives another handle on the same one.
#[derive(Clone)]
pub struct Manager {}

/// Why a manager does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {}

impl Manager {
    /// Starts the manager: opens or makes its log, becomes a member, serves nothing yet. Returns when the
    /// node's own state is readable; a leader may still be missing. All tasks live in `scope`.
    ///
    /// # Errors
    /// When the log is damaged or cannot be unlocked, or no manager lets the node in.
    pub async fn start(config: ManagerConfig, boot: Boot, scope: Scope) -> Result<Manager, StartError> {
        let _ = (config, boot, scope);
        todo!()
    }

    /// Raft, Ca, Dispatcher, Relay, Control and Logs, for the node's gRPC server
    /// ([`rswarm_proto::tls::serve`]). Add the worker's services to them with `add_service`.
    #[must_use]
    pub fn services(&self) -> Routes {
        todo!()
    }

    /// The replicated state as this manager has it, after each applied batch.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<Arc<State>> {
        todo!()
    }

    /// Who leads; `None` while nobody is known to.
    #[must_use]
    pub fn leader(&self) -> watch::Receiver<Option<Leader>> {
        todo!()
    }

    /// Resolves when the manager ended by itself, with the reason: its log failed (`Err`), or the cluster
    /// removed it from the managers (`Ok`).
    pub async fn ended(&self) -> Result<(), String> {
        todo!()
    }

    /// Hands over leadership, flushes the log and ends all tasks.
    pub async fn stop(self) {
        todo!()
    }
}
