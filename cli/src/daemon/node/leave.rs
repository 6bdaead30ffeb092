//! How a node leaves its cluster, and what a manager is told that should not.

use std::time::Duration;

use rswarm_api::ClusterError;
use rswarm_base::Kind;
use rswarm_proto::tls;
use rswarm_proto::wire::control_client::ControlClient;
use rswarm_proto::wire::{LeaveManagerRequest, ListRequest, Node as NodeObject, ObjectKind};
use tonic::transport::Channel;

use super::NodeActor;
use crate::daemon::address::Addresses;
use crate::daemon::membership::{Membership, clear};

/// How long a leaving manager tries to be removed from the members in good order.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

impl NodeActor {
    pub(super) async fn leave(&mut self, force: bool) -> Result<(), ClusterError> {
        if let Some(addresses) = self.locked.clone() {
            return self.leave_locked(&addresses, force).await;
        }
        let Some(membership) = &self.membership else { return Err(ClusterError::not_part_of_cluster()) };
        if membership.manager.is_some() {
            if !force {
                return Err(ClusterError::new(
                    Kind::Unavailable,
                    leave_refusal(&managers_of(membership).await),
                ));
            }
            leave_members(membership).await;
        }
        if let Some(membership) = self.membership.take() {
            self.publish();
            membership.leave().await;
        }
        self.wipe()
    }

    /// The others are not told: nobody here can speak for a locked manager.
    async fn leave_locked(&mut self, addresses: &Addresses, force: bool) -> Result<(), ClusterError> {
        if !force {
            return Err(ClusterError::leave_locked());
        }
        self.locked = None;
        let executor = self.executor(String::new(), addresses);
        clear(&executor, &self.config.paths).await;
        self.wipe()
    }

    fn wipe(&self) -> Result<(), ClusterError> {
        self.config.paths.wipe().map_err(|error| {
            ClusterError::new(Kind::Internal, "the cluster's files could not be removed").because(error)
        })
    }
}

/// A channel to the manager on this node, over its own port.
async fn own_manager(membership: &Membership) -> Result<Channel, tls::ConnectError> {
    tls::connect(&membership.addresses.local().to_string(), &membership.identity).await
}

/// The managers as this one sees them, itself included; empty when it cannot say in time.
async fn managers_of(membership: &Membership) -> Vec<NodeObject> {
    let list = async {
        let channel = own_manager(membership).await.ok()?;
        let request = ListRequest { kind: ObjectKind::Node.into() };
        let nodes = ControlClient::new(channel).list(request).await.ok()?.into_inner().objects;
        let nodes = nodes.into_iter().filter_map(|object| NodeObject::try_from(object).ok());
        Some(nodes.filter(|node| node.manager_status.is_some()).collect())
    };
    tokio::time::timeout(LEAVE_TIMEOUT, list).await.ok().flatten().unwrap_or_default()
}

/// Docker's words for a manager that would leave without force (moby `daemon/cluster/swarm.go`).
fn leave_refusal(managers: &[NodeObject]) -> String {
    let is_reachable =
        |node: &&NodeObject| node.manager_status.as_ref().is_some_and(|status| status.reachable);
    let reachable = managers.iter().filter(is_reachable).count().max(1);
    let total = managers.len().max(1);
    let mut text =
        "You are attempting to leave the swarm on a node that is participating as a manager. ".to_owned();
    if total == 1 {
        text.push_str("Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. ");
        return text;
    }
    if reachable - 1 < total - reachable + 2 {
        text.push_str(&format!(
            "Removing this node leaves {} managers out of {total}. Without a Raft quorum your swarm will be inaccessible. ",
            reachable - 1
        ));
    } else {
        text.push_str("Doing so may lose the consensus of your swarm. ");
    }
    text.push_str("The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message.");
    text
}

/// Takes this manager out of the members in good order, if the others can still agree; else just goes.
async fn leave_members(membership: &Membership) {
    let call = async {
        let channel = own_manager(membership).await.map_err(|error| error.to_string())?;
        let request = LeaveManagerRequest { node_id: membership.identity.subject().node_id, force: true };
        ControlClient::new(channel).leave_manager(request).await.map_err(|status| status.message().to_owned())
    };
    match tokio::time::timeout(LEAVE_TIMEOUT, call).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(error, "leaving without the other managers' consent"),
        Err(_) => tracing::warn!("leaving without the other managers: they did not answer in time"),
    }
}

#[cfg(test)]
mod tests {
    use rswarm_proto::wire::ManagerStatus;

    use super::*;

    fn manager(reachable: bool) -> NodeObject {
        let manager_status = Some(ManagerStatus { reachable, ..ManagerStatus::default() });
        NodeObject { manager_status, ..NodeObject::default() }
    }

    #[test]
    fn the_last_manager_is_told_what_it_would_erase() {
        assert!(leave_refusal(&[manager(true)]).contains("Removing the last manager erases"));
    }

    #[test]
    fn a_manager_whose_leaving_breaks_the_quorum_is_told_the_numbers() {
        let refused =
            |reachable: &[bool]| leave_refusal(&reachable.iter().copied().map(manager).collect::<Vec<_>>());
        assert!(refused(&[true, true]).contains("leaves 1 managers out of 2"));
        assert!(refused(&[true, false, true]).contains("leaves 1 managers out of 3"));
        assert!(refused(&[true; 3]).contains("Doing so may lose the consensus"));
    }
}
