//! The node's membership of a cluster, as the API sees it: what the daemon implements.

use std::error::Error;
use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use rswarm_base::audit::Audit;
use rswarm_base::{Classify, Kind};
use rswarm_proto::wire;
use rswarm_proto::wire::logs_client::LogsClient;
use rswarm_proto::wire::task_containers_client::TaskContainersClient;
use tonic::transport::Channel;

pub use rswarm_proto::wire::NodeAvailability as Availability;

/// Where this node stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LocalState {
    /// Not in a cluster.
    #[default]
    Inactive,
    /// Joining, or waiting for a manager.
    Pending,
    /// In a cluster.
    Active,
    /// In a cluster, and something is wrong; see [`ClusterInfo::error`].
    Error,
    /// A manager whose store waits for the unlock key.
    Locked,
}

impl LocalState {
    /// Docker's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            LocalState::Inactive => "inactive",
            LocalState::Pending => "pending",
            LocalState::Active => "active",
            LocalState::Error => "error",
            LocalState::Locked => "locked",
        }
    }
}

/// A manager that this node knows of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteManager {
    /// Its node id.
    pub node_id: String,
    /// `ADDRESS:PORT`.
    pub addr: String,
}

/// This node's membership. Never waits for anyone.
#[derive(Debug, Clone, Default)]
pub struct ClusterInfo {
    /// This node's id; empty outside a cluster.
    pub node_id: String,
    /// The address that the others reach it at, without a port.
    pub node_addr: String,
    /// Where it stands.
    pub state: LocalState,
    /// Whether it is a manager that can serve control calls.
    pub control_available: bool,
    /// What is wrong; empty when nothing is.
    pub error: String,
    /// The cluster's id.
    pub cluster_id: String,
    /// The managers it knows.
    pub managers: Vec<RemoteManager>,
    /// UDP port of overlay traffic.
    pub data_path_port: u32,
    /// What the daemon was told that this node has, in a cluster or not.
    pub generic: Vec<wire::GenericResource>,
}

/// How a cluster is started.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InitRequest {
    /// `ADDRESS[:PORT]` or an interface's name.
    pub listen_addr: String,
    /// `ADDRESS[:PORT]` or an interface's name; empty: the only address there is.
    pub advertise_addr: String,
    /// Address or interface of overlay traffic; empty: as advertised.
    pub data_path_addr: String,
    /// UDP port of overlay traffic; 0 is 4789.
    pub data_path_port: u32,
    /// Start anew from this node's state, as the only manager.
    pub force_new_cluster: bool,
    /// Where networks get their subnets from; empty for the default.
    pub default_addr_pool: Vec<String>,
    /// Prefix length of those subnets; 0 is 24.
    pub subnet_size: u32,
    /// Settings, with defaults filled in.
    pub spec: wire::ClusterSpec,
    /// This node's own availability.
    pub availability: Availability,
}

/// How a node joins a cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JoinRequest {
    /// Managers to ask, `ADDRESS[:PORT]`.
    pub remote_addrs: Vec<String>,
    /// `SWMTKN-…`; says in which role.
    pub token: String,
    /// `ADDRESS[:PORT]` or an interface's name.
    pub listen_addr: String,
    /// `ADDRESS[:PORT]` or an interface's name; empty: the one that reaches the manager.
    pub advertise_addr: String,
    /// Address or interface of overlay traffic; empty: as advertised.
    pub data_path_addr: String,
    /// This node's own availability.
    pub availability: Availability,
}

/// How a cluster is brought back from a backup.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RestoreRequest {
    /// The backup, as [`ClusterNode::backup`] gave it.
    pub backup: Bytes,
    /// `SWMKEY-1-…`, when the backup is sealed; empty when it is not.
    pub unlock_key: String,
    /// `ADDRESS[:PORT]` or an interface's name.
    pub listen_addr: String,
    /// `ADDRESS[:PORT]` or an interface's name; empty: the only address there is.
    pub advertise_addr: String,
    /// Address or interface of overlay traffic; empty: as advertised.
    pub data_path_addr: String,
}

/// A membership call that failed, in the words that the client gets.
#[derive(Debug)]
pub struct ClusterError {
    /// What it means to the caller.
    pub kind: Kind,
    /// What failed; Docker's text where clients match on it.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Why.
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl ClusterError {
    /// A failure without a further cause.
    pub fn new(kind: Kind, message: impl Into<String>) -> ClusterError {
        ClusterError { kind, message: message.into(), hint: None, source: None }
    }

    /// The same with a remedy.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> ClusterError {
        self.hint = Some(hint.into());
        self
    }

    /// The same with its cause.
    #[must_use]
    pub fn because(mut self, source: impl Error + Send + Sync + 'static) -> ClusterError {
        self.source = Some(Box::new(source));
        self
    }

    /// Any classified error, with its kind, text, hint and causes.
    pub fn from_error<E: Classify + Send + Sync + 'static>(error: E) -> ClusterError {
        ClusterError {
            kind: error.kind(),
            message: rswarm_base::Chain(&error).to_string(),
            hint: Classify::hint(&error),
            source: None,
        }
    }

    /// A manager's call on a node outside any cluster.
    #[must_use]
    pub fn not_in_cluster() -> ClusterError {
        ClusterError::new(
            Kind::Unavailable,
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect \
             this node to swarm and try again.",
        )
    }

    /// A manager's call on a worker.
    #[must_use]
    pub fn not_a_manager() -> ClusterError {
        ClusterError::new(
            Kind::Unavailable,
            "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. \
             Please run this command on a manager node or promote the current node to a manager.",
        )
    }

    /// A call on a manager whose store is locked.
    #[must_use]
    pub fn locked() -> ClusterError {
        ClusterError::new(
            Kind::Unavailable,
            "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker swarm \
             unlock\" to unlock it.",
        )
    }

    /// `init` or `join` on a node that is in a cluster.
    #[must_use]
    pub fn already_in_cluster() -> ClusterError {
        ClusterError::new(
            Kind::Unavailable,
            "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and join \
             another one.",
        )
    }

    /// `unlock` of a manager that is not locked.
    #[must_use]
    pub fn not_locked() -> ClusterError {
        ClusterError::new(Kind::Conflict, "swarm is not locked")
    }

    /// `leave` without force of a locked manager.
    #[must_use]
    pub fn leave_locked() -> ClusterError {
        ClusterError::new(
            Kind::Unavailable,
            "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this message.",
        )
    }

    /// `leave` without force on a node outside any cluster.
    #[must_use]
    pub fn not_part_of_cluster() -> ClusterError {
        ClusterError::new(Kind::Unavailable, "This node is not part of a swarm")
    }

    /// The error of a control call on this node, by its state: the three texts above.
    #[must_use]
    pub fn no_control(state: LocalState) -> ClusterError {
        match state {
            LocalState::Inactive => ClusterError::not_in_cluster(),
            LocalState::Locked => ClusterError::locked(),
            LocalState::Pending | LocalState::Active | LocalState::Error => ClusterError::not_a_manager(),
        }
    }
}

impl fmt::Display for ClusterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ClusterError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

impl Classify for ClusterError {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn hint(&self) -> Option<String> {
        self.hint.clone()
    }
}

/// The node's side of the cluster.
#[async_trait]
pub trait ClusterNode: Send + Sync + 'static {
    /// Where the node stands. Never waits.
    fn info(&self) -> ClusterInfo;

    /// Where it is written down who made this node enter or leave a cluster.
    fn audit(&self) -> &Audit;

    /// Starts a cluster; returns this node's id.
    async fn init(&self, request: InitRequest) -> Result<String, ClusterError>;

    /// Joins a cluster.
    async fn join(&self, request: JoinRequest) -> Result<(), ClusterError>;

    /// Leaves the cluster. A manager leaves only with `force`.
    async fn leave(&self, force: bool) -> Result<(), ClusterError>;

    /// Unlocks this manager with `SWMKEY-1-…`.
    async fn unlock(&self, key: String) -> Result<(), ClusterError>;

    /// The state of the whole cluster as a file; on managers only, else [`ClusterError::no_control`].
    async fn backup(&self) -> Result<Bytes, ClusterError>;

    /// Starts the cluster of a backup anew, with this node as its only manager; returns the node's id.
    async fn restore(&self, request: RestoreRequest) -> Result<String, ClusterError>;

    /// The way to this node's manager and its control service; on managers only, else
    /// [`ClusterError::no_control`].
    async fn control(&self) -> Result<Channel, ClusterError>;

    /// A client of a manager's log service; on managers only, else [`ClusterError::no_control`].
    async fn logs(&self) -> Result<LogsClient<Channel>, ClusterError>;

    /// A client of a node's service for its tasks' containers; on managers only, else [`ClusterError::no_control`].
    async fn containers(
        &self,
        node_id: &str,
        addr: &str,
    ) -> Result<TaskContainersClient<Channel>, ClusterError>;
}
