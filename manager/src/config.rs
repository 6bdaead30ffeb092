//! What a manager needs to start, and how it comes into being.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rswarm_base::audit::Audit;
use rswarm_manager_core::State;
use rswarm_proto::model::{Cluster, Node};
use rswarm_proto::tls::Identity;

use crate::calls::Calls;

/// Time between two raft ticks: elections take about ten of them, leader heartbeats two.
pub const TICK: Duration = Duration::from_millis(100);

/// What a manager is told by its daemon. Node and cluster are those of the identity's certificate.
#[derive(Debug, Clone)]
pub struct ManagerConfig {
    /// Who this node is; its certificate must be a manager's by the time the manager starts.
    pub identity: Arc<Identity>,
    /// Where log, raft snapshots and their key are kept (`<data-root>/swarm/raft`); made when missing.
    pub data_dir: PathBuf,
    /// `HOST:PORT` at which the other managers reach this node's gRPC server.
    pub advertise_addr: String,
    /// Time between raft ticks; [`TICK`] but for tests and wide networks.
    pub tick: Duration,
    /// Where control calls are written down.
    pub audit: Audit,
    /// What is counted of all calls.
    pub calls: Calls,
}

/// How a manager comes into being.
#[derive(Debug, Clone)]
pub enum Boot {
    /// The first manager of a new cluster.
    Bootstrap(Box<Founding>),
    /// Another manager of a cluster that runs: one of these managers lets it in. When `data_dir` already
    /// holds a log (the daemon stopped before it noted the success), this is [`Boot::Restart`].
    Join {
        /// `HOST:PORT` of managers, tried in turn.
        via: Vec<String>,
    },
    /// A manager that has been one before.
    Restart,
    /// The only manager left of a cluster that lost its quorum: it keeps all data and becomes the only member.
    /// The members it forgets must never be started with their old data again.
    ForceNewCluster,
    /// The first manager of a cluster that goes on from a backup.
    Restore(Box<Revival>),
}

/// The state that a cluster goes on from, and its new manager; made by [`Backup::revive`](crate::Backup::revive).
#[derive(Debug, Clone)]
pub struct Revival {
    pub(crate) state: State,
    pub(crate) node: Node,
}

/// The objects that a new cluster starts with; made by [`found`](crate::found).
#[derive(Debug, Clone)]
pub struct Founding {
    /// The cluster, with its root certificate and join tokens.
    pub cluster: Cluster,
    /// The first node.
    pub node: Node,
}
