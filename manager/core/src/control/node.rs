//! Nodes: changed, removed, and managers that leave.

use rswarm_base::IdGen;
use rswarm_proto::wire::{
    Cluster, LeaveManagerRequest, Node, NodeRole, NodeState, ObjectKind, RemoveRequest, UpdateNodeRequest,
};

use super::read::find_node;
use super::{ControlError, Decision, check_version, decided, valid};
use crate::peer::Member;
use crate::reconcile::Plan;
use crate::state::{State, node_state};
use crate::validate;

/// Another role, availability, name or labels for a node. `members` is the raft group as the leader sees it.
/// A changed `desired_role` is carried out by the shell: membership first, then the certificate.
pub fn update_node(
    state: &State,
    request: &UpdateNodeRequest,
    members: &[Member],
    ids: &mut IdGen,
) -> Decision {
    let stored = find_node(state, &request.id)?;
    let spec = request.spec.clone().ok_or(ControlError::Incomplete("a node spec must be provided"))?;
    check_version(stored.as_ref(), request.version)?;
    valid(validate::node(&spec))?;
    let was_manager = desired_role(&stored) == NodeRole::Manager;
    if was_manager && spec.desired_role() == NodeRole::Worker {
        check_demotion(state, &stored, members)?;
    }
    let mut plan = Plan::default();
    plan.update(Node { spec: Some(spec), ..Node::clone(&stored) });
    decided(plan, &stored.id, ids)
}

fn desired_role(node: &Node) -> NodeRole {
    node.spec.as_ref().map_or(NodeRole::Worker, |spec| spec.desired_role())
}

fn check_demotion(state: &State, node: &Node, members: &[Member]) -> Result<(), ControlError> {
    let others =
        state.nodes().filter(|other| other.id != node.id && desired_role(other) == NodeRole::Manager);
    if others.count() == 0 {
        return Err(ControlError::LastManager);
    }
    match &node.manager_status {
        Some(status) => check_member_removal(members, status.raft_id),
        None => Ok(()),
    }
}

/// Whether the raft group keeps its quorum without this member; the numbers otherwise.
pub fn check_member_removal(members: &[Member], raft_id: u64) -> Result<(), ControlError> {
    let voters: Vec<&Member> = members.iter().filter(|member| !member.learner).collect();
    if !voters.iter().any(|member| member.id == raft_id) {
        return Ok(());
    }
    let left = voters.len() - 1;
    if left == 0 {
        return Err(ControlError::LastManager);
    }
    let reachable = voters.iter().filter(|member| member.id != raft_id && member.active).count();
    let needed = left / 2 + 1;
    if reachable < needed { Err(ControlError::QuorumLoss { left, reachable, needed }) } else { Ok(()) }
}

/// The end of a node. Its certificate is refused from now on.
pub fn remove_node(state: &State, request: &RemoveRequest, ids: &mut IdGen) -> Decision {
    let node = find_node(state, &request.id)?;
    let manages = desired_role(&node) == NodeRole::Manager || node.manager_status.is_some();
    if manages || node.role() == NodeRole::Manager {
        return Err(ControlError::IsManager(node.id.clone()));
    }
    let up = matches!(node_state(&node), NodeState::ReadyNode | NodeState::Suspect);
    if up && !request.force {
        return Err(ControlError::NodeUp(node.id.clone()));
    }
    let mut plan = Plan::default();
    plan.delete(ObjectKind::Node, &node.id);
    if let Some(cluster) = state.cluster() {
        let mut cluster = Cluster::clone(cluster);
        cluster.removed_nodes.push(node.id.clone());
        plan.update(cluster);
    }
    decided(plan, &node.id, ids)
}

/// A manager leaves the cluster: it is to be a worker, and the shell removes it from the raft group.
/// `force` leaves a group that loses its quorum thereby, but never one that would be left empty.
pub fn leave_manager(
    state: &State,
    request: &LeaveManagerRequest,
    members: &[Member],
    ids: &mut IdGen,
) -> Decision {
    let stored = find_node(state, &request.node_id)?;
    match check_demotion(state, &stored, members) {
        Err(ControlError::QuorumLoss { .. }) if request.force => {}
        checked => checked?,
    }
    let mut node = Node::clone(&stored);
    node.spec.get_or_insert_default().set_desired_role(NodeRole::Worker);
    let mut plan = Plan::default();
    plan.update(node);
    decided(plan, &stored.id, ids)
}
