//! The bodies of the control calls: what a user's request means as a transaction on the current state.
use crate::peer::Member;
use crate::state::{AnyObject, State};
use rswarm_base::{Classify, IdGen, Kind};
use rswarm_proto::wire::{
    CreateNetworkRequest, CreateServiceRequest, LeaveManagerRequest, Object, ObjectKind, RemoveRequest,
    Transaction, UpdateClusterRequest, UpdateNodeRequest, UpdateServiceRequest,
};

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// placeholder
    #[error("{0}")]
    Refused(String),
}
impl Classify for ControlError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}
/// A transaction to propose, and the id of the object that the reply shows once it is applied.
pub type Decision = Result<(Transaction, String), ControlError>;

/// One object by id, exact name, or unique id prefix, in this order.
pub fn get(_state: &State, _kind: ObjectKind, _reference: &str) -> Result<AnyObject, ControlError> {
    todo!()
}
/// All objects of a kind that users may see (those that are being deleted are not among them).
#[must_use]
pub fn list(_state: &State, _kind: ObjectKind) -> Vec<AnyObject> {
    todo!()
}
/// An object as a reply shows it: without the root's key and without registry credentials.
#[must_use]
pub fn shown(_object: &AnyObject) -> Object {
    todo!()
}
/// A new service.
pub fn create_service(_state: &State, _request: &CreateServiceRequest, _ids: &mut IdGen) -> Decision {
    todo!()
}
/// Another spec for a service, or its previous one again.
pub fn update_service(
    _state: &State,
    _request: &UpdateServiceRequest,
    _now: rswarm_base::Timestamp,
    _ids: &mut IdGen,
) -> Decision {
    todo!()
}
/// The end of a service.
pub fn remove_service(_state: &State, _request: &RemoveRequest, _ids: &mut IdGen) -> Decision {
    todo!()
}
/// A new network.
pub fn create_network(_state: &State, _request: &CreateNetworkRequest, _ids: &mut IdGen) -> Decision {
    todo!()
}
/// The end of a network.
pub fn remove_network(_state: &State, _request: &RemoveRequest, _ids: &mut IdGen) -> Decision {
    todo!()
}
/// Another role, availability, name or labels for a node. `members` is the raft group as the leader sees it.
pub fn update_node(
    _state: &State,
    _request: &UpdateNodeRequest,
    _members: &[Member],
    _ids: &mut IdGen,
) -> Decision {
    todo!()
}
/// The end of a node.
pub fn remove_node(_state: &State, _request: &RemoveRequest, _ids: &mut IdGen) -> Decision {
    todo!()
}
/// Fresh secrets, as the shell drew them, for the join tokens that are to be replaced: whole tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewTokens {
    /// For workers; must be given when the request asks to rotate theirs.
    pub worker: Option<String>,
    /// For managers; likewise.
    pub manager: Option<String>,
}
/// Another spec for the cluster, and new join tokens.
pub fn update_cluster(
    _state: &State,
    _request: &UpdateClusterRequest,
    _tokens: NewTokens,
    _ids: &mut IdGen,
) -> Decision {
    todo!()
}
/// A manager leaves the cluster: its desired role becomes worker. The shell removes it from raft.
pub fn leave_manager(
    _state: &State,
    _request: &LeaveManagerRequest,
    _members: &[Member],
    _ids: &mut IdGen,
) -> Decision {
    todo!()
}
/// Whether the raft group keeps its quorum without this member; the numbers otherwise.
pub fn check_member_removal(_members: &[Member], _raft_id: u64) -> Result<(), ControlError> {
    todo!()
}
