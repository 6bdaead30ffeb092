//! Who may call: the caller's role by certificate, and that it was not removed from the cluster since.

use std::sync::Arc;

use rswarm_manager_core::State;
use rswarm_proto::tls::{Peer, require, require_expired_too};
use rswarm_proto::wire::NodeRole;
use tokio::sync::watch;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};

/// Set by a manager that passes a call on: for which node.
const CALLER: &str = "rswarm-caller";

/// Checks callers against the state.
#[derive(Clone)]
pub(crate) struct Guard {
    state: watch::Receiver<Arc<State>>,
}

impl Guard {
    /// By this state.
    pub(crate) fn new(state: watch::Receiver<Arc<State>>) -> Guard {
        Guard { state }
    }

    /// Managers only.
    pub(crate) fn manager<T>(&self, request: &Request<T>) -> Result<Peer, Status> {
        self.check(require(request, NodeRole::Manager)?)
    }

    /// Every node of the cluster.
    pub(crate) fn node<T>(&self, request: &Request<T>) -> Result<Peer, Status> {
        self.check(require(request, NodeRole::Worker)?)
    }

    /// The node that a call is about: the caller, or whom a manager that passes the call on says.
    pub(crate) fn on_behalf<T>(&self, request: &Request<T>, role: NodeRole) -> Result<String, Status> {
        let peer = self.check(require(request, role)?)?;
        let caller = request.metadata().get(CALLER).and_then(|caller| caller.to_str().ok());
        match caller {
            Some(caller) if peer.role == Some(NodeRole::Manager) => {
                self.check_listed(caller)?;
                Ok(caller.to_owned())
            }
            _ => Ok(peer.node_id),
        }
    }

    /// The same for a renewal, which an expired certificate is still good for.
    pub(crate) fn renewing<T>(&self, request: &Request<T>) -> Result<String, Status> {
        let peer = self.check(require_expired_too(request, NodeRole::Worker)?)?;
        if peer.expired { Ok(peer.node_id) } else { self.on_behalf(request, NodeRole::Worker) }
    }

    fn check(&self, peer: Peer) -> Result<Peer, Status> {
        let cluster_id = self.state.borrow().cluster().map(|cluster| cluster.id.clone());
        // A joining manager does not know its cluster yet, and its roots are the cluster's own.
        if cluster_id.is_some_and(|cluster_id| cluster_id != peer.cluster_id) {
            return Err(Status::permission_denied(format!("node {} is of another cluster", peer.node_id)));
        }
        self.check_listed(&peer.node_id)?;
        Ok(peer)
    }

    fn check_listed(&self, node_id: &str) -> Result<(), Status> {
        if is_removed(&self.state.borrow(), node_id) {
            return Err(removed(node_id));
        }
        Ok(())
    }
}

/// Whether the node was a member of the cluster and is not any more.
pub(crate) fn is_removed(state: &State, node_id: &str) -> bool {
    state.cluster().is_some_and(|cluster| cluster.removed_nodes.iter().any(|removed| removed == node_id))
}

/// What a removed node is told.
pub(crate) fn removed(node_id: &str) -> Status {
    Status::permission_denied(format!(
        "node {node_id} was removed from the cluster; its certificate is refused"
    ))
}

/// Names the node for which a call is passed on.
pub(crate) fn set_caller<T>(request: &mut Request<T>, node_id: &str) {
    let value = MetadataValue::try_from(node_id).expect("node ids come from certificates of our own making");
    request.metadata_mut().insert(CALLER, value);
}
