//! The bodies of the control calls: what a user's request means as a transaction on the current state.
//! The shell proposes it and answers with the object it was about; `apply` has the last word.

use std::fmt;
use std::sync::Arc;

use rswarm_base::{Classify, IdGen, Kind, Timestamp};
use rswarm_proto::model::object::Stored;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{
    Cluster, CreateNetworkRequest, CreateServiceRequest, LeaveManagerRequest, Network, NetworkSpec, Node,
    NodeRole, NodeState, Object, ObjectKind, RemoveRequest, Service, ServiceSpec, Transaction,
    UpdateClusterRequest, UpdateNodeRequest, UpdateServiceRequest, UpdateStatus, object, port_config,
    service_spec, update_service_request, update_status,
};

use crate::allocate::NODE_NETWORKS;
use crate::apply::noun;
use crate::author::Author;
use crate::peer::Member;
use crate::reconcile::Plan;
use crate::state::{AnyObject, State, node_state};
use crate::validate::{self, Problem};

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The spec is wrong in these ways.
    #[error("{}", Joined(.0))]
    Invalid(Vec<Problem>),
    /// The request lacks what it needs.
    #[error("{0}")]
    Incomplete(&'static str),
    /// Nothing has this id, name or prefix.
    #[error("{} {reference} not found", noun(*.kind))]
    NotFound {
        /// What was looked for.
        kind: ObjectKind,
        /// How the user called it.
        reference: String,
    },
    /// Several objects have this name or prefix.
    #[error("{} {reference} is ambiguous (2 matches found)", noun(*.kind))]
    Ambiguous {
        /// What was looked for.
        kind: ObjectKind,
        /// How the user called it.
        reference: String,
    },
    /// The name is taken.
    #[error("name conflicts with an existing object: {} {name} already exists", noun(*.kind))]
    NameTaken {
        /// The kind of both.
        kind: ObjectKind,
        /// The name.
        name: String,
    },
    /// The object has changed since it was read.
    #[error("update out of sequence")]
    OutOfSequence,
    /// A published port belongs to another service.
    #[error("port '{port}' is already in use by service '{service}' ({id})")]
    PortTaken {
        /// The port.
        port: u32,
        /// The other service's name.
        service: String,
        /// The other service's id.
        id: String,
    },
    /// The routing mesh is not there yet.
    #[error("port {0} cannot be published in ingress mode: this is not supported yet")]
    IngressPort(u32),
    /// An ingress network was asked for.
    #[error("an ingress network is not supported yet")]
    IngressNetwork,
    /// A service keeps its mode.
    #[error("service mode change is not allowed")]
    ModeChange,
    /// A service keeps its name.
    #[error("renaming services is not supported")]
    Rename,
    /// There is nothing to roll back to.
    #[error("service {0} does not have a previous spec")]
    NoPreviousSpec(String),
    /// Something still uses the network.
    #[error("network {network} is in use by {user}")]
    NetworkInUse {
        /// The network's id.
        network: String,
        /// What uses it.
        user: String,
    },
    /// A manager must become a worker before it is removed.
    #[error(
        "node {0} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
    )]
    IsManager(String),
    /// The node still answers.
    #[error("node {0} is not down and can't be removed")]
    NodeUp(String),
    /// A cluster needs a manager.
    #[error("attempting to demote the last manager of the swarm (1 of 1)")]
    LastManager,
    /// Without this member, too few would be left that answer.
    #[error(
        "can't remove member from the raft: this would result in a loss of quorum ({reachable} of the {left} other managers are reachable, {needed} are needed)"
    )]
    QuorumLoss {
        /// Members that would be left.
        left: usize,
        /// Those of them that answer.
        reachable: usize,
        /// How many must answer.
        needed: usize,
    },
}

struct Joined<'a>(&'a [Problem]);

impl fmt::Display for Joined<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, problem) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "; " };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl Classify for ControlError {
    fn kind(&self) -> Kind {
        match self {
            ControlError::Invalid(_)
            | ControlError::Incomplete(_)
            | ControlError::Ambiguous { .. }
            | ControlError::ModeChange
            | ControlError::Rename
            | ControlError::PortTaken { .. } => Kind::InvalidArgument,
            ControlError::NotFound { .. } => Kind::NotFound,
            ControlError::NameTaken { .. } => Kind::Conflict,
            ControlError::IngressPort(_) | ControlError::IngressNetwork => Kind::NotImplemented,
            ControlError::OutOfSequence
            | ControlError::NoPreviousSpec(_)
            | ControlError::NetworkInUse { .. }
            | ControlError::IsManager(_)
            | ControlError::NodeUp(_)
            | ControlError::LastManager
            | ControlError::QuorumLoss { .. } => Kind::FailedPrecondition,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            ControlError::OutOfSequence => "read the object again and repeat the change on it".to_owned(),
            ControlError::IngressPort(port) => {
                format!(
                    "publish it on the nodes themselves: --publish mode=host,target={port},published={port}"
                )
            }
            ControlError::IsManager(node) => format!("run `rswarm node demote {node}` first"),
            ControlError::NodeUp(node) => {
                format!("stop the node or let it leave first, or run `rswarm node rm --force {node}`")
            }
            ControlError::LastManager => "promote another node first".to_owned(),
            ControlError::QuorumLoss { .. } => "bring the unreachable managers back first".to_owned(),
            ControlError::Ambiguous { .. } => "use the whole id".to_owned(),
            ControlError::Invalid(_)
            | ControlError::Incomplete(_)
            | ControlError::NotFound { .. }
            | ControlError::NameTaken { .. }
            | ControlError::PortTaken { .. }
            | ControlError::IngressNetwork
            | ControlError::ModeChange
            | ControlError::Rename
            | ControlError::NoPreviousSpec(_)
            | ControlError::NetworkInUse { .. } => return None,
        })
    }
}

/// A transaction to propose, and the id of the object that the reply shows once it is applied.
pub type Decision = Result<(Transaction, String), ControlError>;

fn decided(plan: Plan, id: &str, ids: &mut IdGen) -> Decision {
    let author = Author::Control.name().to_owned();
    Ok((Transaction { id: ids.number(), author, changes: plan.changes }, id.to_owned()))
}

fn valid(checked: Result<(), Vec<Problem>>) -> Result<(), ControlError> {
    checked.map_err(ControlError::Invalid)
}

fn check_version(object: &impl Stored, read: u64) -> Result<(), ControlError> {
    if object.meta().version == read { Ok(()) } else { Err(ControlError::OutOfSequence) }
}

// ---- reading ----------------------------------------------------------------------------------------

/// One object by id, exact name, or unique id prefix, in this order.
pub fn get(state: &State, kind: ObjectKind, reference: &str) -> Result<AnyObject, ControlError> {
    let not_found = || ControlError::NotFound { kind, reference: reference.to_owned() };
    if let Some(object) = state.get(kind, reference).filter(is_visible) {
        return Ok(object);
    }
    if let Some(object) = named(state, kind, reference)? {
        return Ok(object);
    }
    if reference.is_empty() {
        return Err(not_found());
    }
    let matches = state.ids_with_prefix(kind, reference);
    match matches.as_slice() {
        [id] => state.get(kind, id).filter(is_visible).ok_or_else(not_found),
        [] => Err(not_found()),
        _ => Err(ControlError::Ambiguous { kind, reference: reference.to_owned() }),
    }
}

fn named(state: &State, kind: ObjectKind, name: &str) -> Result<Option<AnyObject>, ControlError> {
    Ok(match kind {
        ObjectKind::Service => state.service_named(name).cloned().map(AnyObject::Service),
        ObjectKind::Network => state.network_named(name).cloned().map(AnyObject::Network),
        ObjectKind::Cluster => {
            state.cluster().filter(|cluster| cluster.name() == name).cloned().map(AnyObject::Cluster)
        }
        ObjectKind::Node => {
            let mut nodes = state.nodes_named(name);
            match (nodes.next(), nodes.next()) {
                (node, None) => node.cloned().map(AnyObject::Node),
                (_, Some(_)) => return Err(ControlError::Ambiguous { kind, reference: name.to_owned() }),
            }
        }
        ObjectKind::Task => None,
    })
}

/// All objects of a kind that users may see: those that are being deleted are not among them.
#[must_use]
pub fn list(state: &State, kind: ObjectKind) -> Vec<AnyObject> {
    let objects: Vec<AnyObject> = match kind {
        ObjectKind::Cluster => state.cluster().into_iter().cloned().map(AnyObject::Cluster).collect(),
        ObjectKind::Node => state.nodes().cloned().map(AnyObject::Node).collect(),
        ObjectKind::Service => state.services().cloned().map(AnyObject::Service).collect(),
        ObjectKind::Task => state.tasks().cloned().map(AnyObject::Task).collect(),
        ObjectKind::Network => state.networks().cloned().map(AnyObject::Network).collect(),
    };
    objects.into_iter().filter(is_visible).collect()
}

fn is_visible(object: &AnyObject) -> bool {
    match object {
        AnyObject::Service(service) => !service.pending_delete,
        AnyObject::Network(network) => !network.pending_delete,
        AnyObject::Cluster(_) | AnyObject::Node(_) | AnyObject::Task(_) => true,
    }
}

/// An object as a reply shows it: without the root's key and without registry credentials.
#[must_use]
pub fn shown(object: &AnyObject) -> Object {
    let mut shown = object.to_object();
    match &mut shown.object {
        Some(object::Object::Cluster(cluster)) => {
            if let Some(root) = &mut cluster.root_ca {
                root.key_pem.clear();
            }
        }
        Some(object::Object::Service(service)) => {
            let specs = [service.spec.as_mut(), service.previous_spec.as_mut()];
            specs.into_iter().flatten().for_each(forget_auth);
        }
        Some(object::Object::Task(task)) => {
            if let Some(container) = task.spec.as_mut().and_then(|spec| spec.container.as_mut()) {
                container.registry_auth.clear();
            }
        }
        Some(object::Object::Node(_) | object::Object::Network(_)) | None => {}
    }
    shown
}

fn forget_auth(spec: &mut ServiceSpec) {
    if let Some(auth) = registry_auth(spec) {
        auth.clear();
    }
}

fn registry_auth(spec: &mut ServiceSpec) -> Option<&mut String> {
    Some(&mut spec.task.as_mut()?.container.as_mut()?.registry_auth)
}

fn find_service(state: &State, reference: &str) -> Result<Arc<Service>, ControlError> {
    match get(state, ObjectKind::Service, reference)? {
        AnyObject::Service(service) => Ok(service),
        _ => Err(ControlError::NotFound { kind: ObjectKind::Service, reference: reference.to_owned() }),
    }
}

fn find_node(state: &State, reference: &str) -> Result<Arc<Node>, ControlError> {
    match get(state, ObjectKind::Node, reference)? {
        AnyObject::Node(node) => Ok(node),
        _ => Err(ControlError::NotFound { kind: ObjectKind::Node, reference: reference.to_owned() }),
    }
}

fn find_network(state: &State, reference: &str) -> Result<Arc<Network>, ControlError> {
    match get(state, ObjectKind::Network, reference)? {
        AnyObject::Network(network) => Ok(network),
        _ => Err(ControlError::NotFound { kind: ObjectKind::Network, reference: reference.to_owned() }),
    }
}

// ---- services ---------------------------------------------------------------------------------------

/// A new service.
pub fn create_service(state: &State, request: &CreateServiceRequest, ids: &mut IdGen) -> Decision {
    let spec = request.spec.clone().ok_or(ControlError::Incomplete("a service spec must be provided"))?;
    let spec = admitted(state, spec, "")?;
    let name = spec.annotations.as_ref().map_or("", |annotations| annotations.name.as_str());
    if state.service_named(name).is_some() {
        return Err(ControlError::NameTaken { kind: ObjectKind::Service, name: name.to_owned() });
    }
    let id = ids.cluster_id();
    let mut plan = Plan::default();
    plan.create(Service { id: id.clone(), spec: Some(spec), ..Service::default() });
    decided(plan, &id, ids)
}

/// The spec as it is stored, or why it cannot be. `own_id` is the service that it is for.
fn admitted(state: &State, mut spec: ServiceSpec, own_id: &str) -> Result<ServiceSpec, ControlError> {
    if spec.mode.is_none() {
        let replicated = rswarm_proto::wire::Replicated { replicas: 1 };
        spec.mode = Some(service_spec::Mode::Replicated(replicated));
    }
    for port in spec.endpoint.iter_mut().flat_map(|endpoint| &mut endpoint.ports) {
        if port.protocol.is_empty() {
            port.protocol = "tcp".to_owned();
        }
    }
    for config in spec.task.iter_mut().flat_map(|task| &mut task.networks) {
        // What cannot be resolved stays as it is, for `validate` to complain about with everything else.
        if !NODE_NETWORKS.contains(&config.target.as_str())
            && let Ok(network) = find_network(state, &config.target)
        {
            config.target.clone_from(&network.id);
        }
    }
    valid(validate::service(&spec, state))?;
    check_ports(state, &spec, own_id)?;
    Ok(spec)
}

/// Ports in ingress mode belong to the whole cluster; one in host mode may be had by many services, on
/// different nodes.
fn check_ports(state: &State, spec: &ServiceSpec, own_id: &str) -> Result<(), ControlError> {
    let ingress = |spec: &ServiceSpec| {
        let ports = spec.endpoint.as_ref().map(|endpoint| endpoint.ports.clone()).unwrap_or_default();
        ports.into_iter().filter(|port| port.mode() == port_config::Mode::Ingress).collect::<Vec<_>>()
    };
    let wanted = ingress(spec);
    for other in state.services().filter(|other| other.id != own_id && !other.pending_delete) {
        for taken in other.spec.as_ref().map(ingress).unwrap_or_default() {
            let same = |port: &&rswarm_proto::wire::PortConfig| {
                port.published != 0 && port.published == taken.published && port.protocol == taken.protocol
            };
            if let Some(port) = wanted.iter().find(same) {
                return Err(ControlError::PortTaken {
                    port: port.published,
                    service: other.name().to_owned(),
                    id: other.id.clone(),
                });
            }
        }
    }
    wanted.first().map_or(Ok(()), |port| Err(ControlError::IngressPort(port.target)))
}

/// Another spec for a service, or its previous one again.
pub fn update_service(
    state: &State,
    request: &UpdateServiceRequest,
    now: Timestamp,
    ids: &mut IdGen,
) -> Decision {
    let stored = find_service(state, &request.id)?;
    check_version(stored.as_ref(), request.version)?;
    let mut service = Service::clone(&stored);
    match request.rollback() {
        update_service_request::Rollback::Previous => roll_back(state, &mut service, now)?,
        update_service_request::Rollback::None => {
            let spec =
                request.spec.clone().ok_or(ControlError::Incomplete("a service spec must be provided"))?;
            respecify(state, &mut service, spec, request.registry_auth_from_previous)?;
        }
    }
    let mut plan = Plan::default();
    plan.update(service);
    decided(plan, &stored.id, ids)
}

fn roll_back(state: &State, service: &mut Service, now: Timestamp) -> Result<(), ControlError> {
    let missing = || ControlError::NoPreviousSpec(service.id.clone());
    let previous = service.previous_spec.take().ok_or_else(missing)?;
    valid(validate::service(&previous, state))?;
    check_ports(state, &previous, &service.id)?;
    service.previous_spec = service.spec.replace(previous);
    service.update_status = Some(UpdateStatus {
        state: update_status::State::RollbackStarted.into(),
        started_at: now.0,
        completed_at: 0,
        message: "manually requested rollback".to_owned(),
    });
    Ok(())
}

fn respecify(
    state: &State,
    service: &mut Service,
    mut spec: ServiceSpec,
    auth_from_previous: bool,
) -> Result<(), ControlError> {
    keep_auth(service, &mut spec, auth_from_previous);
    let spec = admitted(state, spec, &service.id)?;
    let old = service.spec.clone().unwrap_or_default();
    let mode = |spec: &ServiceSpec| spec.mode.as_ref().map(std::mem::discriminant);
    if mode(&spec) != mode(&old) {
        return Err(ControlError::ModeChange);
    }
    let name = |spec: &ServiceSpec| spec.annotations.as_ref().map(|annotations| annotations.name.clone());
    if name(&spec) != name(&old) {
        return Err(ControlError::Rename);
    }
    if spec != old {
        service.previous_spec = Some(old);
    }
    service.spec = Some(spec);
    // A paused update goes on, one that is under way begins anew.
    service.update_status = None;
    Ok(())
}

/// Without credentials of its own, the new spec keeps those that the service has, or had before.
fn keep_auth(service: &Service, spec: &mut ServiceSpec, from_previous: bool) {
    let source = if from_previous { service.previous_spec.clone() } else { service.spec.clone() };
    let kept = source.and_then(|mut source| registry_auth(&mut source).cloned()).unwrap_or_default();
    if let Some(auth) = registry_auth(spec)
        && auth.is_empty()
    {
        *auth = kept;
    }
}

/// The end of a service: it is gone for users at once, and deleted when its tasks have stopped.
pub fn remove_service(state: &State, request: &RemoveRequest, ids: &mut IdGen) -> Decision {
    let service = find_service(state, &request.id)?;
    let mut plan = Plan::default();
    plan.update(Service { pending_delete: true, ..Service::clone(&service) });
    decided(plan, &service.id, ids)
}

// ---- networks ---------------------------------------------------------------------------------------

/// A new network.
pub fn create_network(state: &State, request: &CreateNetworkRequest, ids: &mut IdGen) -> Decision {
    let spec = request.spec.clone().ok_or(ControlError::Incomplete("a network spec must be provided"))?;
    if spec.ingress {
        return Err(ControlError::IngressNetwork);
    }
    valid(validate::network(&spec, state))?;
    let name = spec.annotations.as_ref().map_or("", |annotations| annotations.name.as_str());
    if state.network_named(name).is_some() {
        return Err(ControlError::NameTaken { kind: ObjectKind::Network, name: name.to_owned() });
    }
    let driver = if spec.driver.is_empty() { "overlay".to_owned() } else { spec.driver.clone() };
    let spec = NetworkSpec { driver, ..spec };
    let id = ids.cluster_id();
    let mut plan = Plan::default();
    plan.create(Network { id: id.clone(), spec: Some(spec), ..Network::default() });
    decided(plan, &id, ids)
}

/// The end of a network: it is gone for users at once, and deleted when the last task has left it.
pub fn remove_network(state: &State, request: &RemoveRequest, ids: &mut IdGen) -> Decision {
    let network = find_network(state, &request.id)?;
    let in_use = |user: String| ControlError::NetworkInUse { network: network.id.clone(), user };
    if let Some(service) = state.services_on_network(&network.id).find(|service| !service.pending_delete) {
        return Err(in_use(format!("service {}", service.id)));
    }
    let is_user = |task: &&Arc<rswarm_proto::wire::Task>| {
        task.desired() <= TaskState::Running && task.observed() <= TaskState::Running
    };
    let tasks = state.tasks_on_network(&network.id).filter(is_user);
    // Tasks of a service that was just removed are on their way out.
    let mut tasks =
        tasks.filter(|task| state.service(&task.service_id).is_some_and(|service| !service.pending_delete));
    if let Some(task) = tasks.next() {
        return Err(in_use(format!("task {}", task.id)));
    }
    let mut plan = Plan::default();
    plan.update(Network { pending_delete: true, ..Network::clone(&network) });
    decided(plan, &network.id, ids)
}

// ---- nodes ------------------------------------------------------------------------------------------

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

// ---- cluster ----------------------------------------------------------------------------------------

/// Fresh join tokens, as the shell made them; whole tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewTokens {
    /// For workers; must be given when the request asks to rotate theirs.
    pub worker: Option<String>,
    /// For managers; likewise.
    pub manager: Option<String>,
}

/// Another spec for the cluster, and new join tokens.
pub fn update_cluster(
    state: &State,
    request: &UpdateClusterRequest,
    tokens: NewTokens,
    ids: &mut IdGen,
) -> Decision {
    let missing = || ControlError::NotFound { kind: ObjectKind::Cluster, reference: "default".to_owned() };
    let stored = state.cluster().ok_or_else(missing)?;
    check_version(stored.as_ref(), request.version)?;
    let mut cluster = Cluster::clone(stored);
    if let Some(spec) = &request.spec {
        valid(validate::cluster(spec))?;
        cluster.spec = Some(spec.clone());
    }
    let root = cluster.root_ca.get_or_insert_default();
    for (rotate, new, token) in [
        (request.rotate_worker_token, tokens.worker, &mut root.worker_token),
        (request.rotate_manager_token, tokens.manager, &mut root.manager_token),
    ] {
        if rotate {
            *token = new.ok_or(ControlError::Incomplete("a new join token must be provided"))?;
        }
    }
    let mut plan = Plan::default();
    plan.update(cluster);
    decided(plan, &stored.id, ids)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::world::{World, attach, set_image, spec};
    use rswarm_proto::wire::{EndpointSpec, NodeAvailability, NodeSpec, PortConfig, RootCa};

    fn text<T>(result: Result<T, ControlError>) -> String {
        result.map_or_else(|error| error.to_string(), |_| "done".to_owned())
    }

    fn create(world: &mut World, spec: ServiceSpec) -> Result<String, ControlError> {
        let request = CreateServiceRequest { spec: Some(spec) };
        world.control(|state, _, ids| create_service(state, &request, ids))
    }

    fn update(world: &mut World, request: UpdateServiceRequest) -> Result<String, ControlError> {
        world.control(|state, now, ids| update_service(state, &request, now, ids))
    }

    fn published(mode: port_config::Mode) -> ServiceSpec {
        let protocol = "tcp".to_owned();
        let port =
            PortConfig { protocol, target: 80, published: 8080, mode: mode.into(), ..PortConfig::default() };
        let endpoint = EndpointSpec { ports: vec![port], ..EndpointSpec::default() };
        ServiceSpec { endpoint: Some(endpoint), ..spec("web", 1) }
    }

    #[test]
    fn references_are_ids_names_or_unique_prefixes() {
        let mut world = World::new(11);
        let id = world.create(spec("web", 1));
        for reference in [id.as_str(), "web", &id[..9]] {
            assert_eq!(
                get(&world.state, ObjectKind::Service, reference).map(|found| found.key().1.to_owned()),
                Ok(id.clone())
            );
        }
        let node = |reference: &str| text(get(&world.state, ObjectKind::Node, reference));
        assert_eq!(node("n1"), "done", "an id, though also a prefix");
        assert_eq!(node("host-n3"), "done");
        assert_eq!(node("n"), "node n is ambiguous (2 matches found)");
        assert_eq!(node("x"), "node x not found");
        assert_eq!(node(""), "node  not found");
    }

    #[test]
    fn names_are_had_once() {
        let mut world = World::new(1);
        world.create(spec("web", 1));
        let error = create(&mut world, spec("web", 2)).expect_err("taken");
        assert_eq!(error.to_string(), "name conflicts with an existing object: service web already exists");
        assert_eq!(error.kind(), Kind::Conflict);
    }

    #[test]
    fn an_update_must_have_read_the_latest() {
        let mut world = World::new(1);
        let id = world.create(spec("web", 1));
        let read = world.service(&id);
        world.change(&id, |spec| set_image(spec, "web:2"));
        let version = read.meta().version;
        let stale =
            UpdateServiceRequest { id, version, spec: read.spec.clone(), ..UpdateServiceRequest::default() };
        assert_eq!(text(update(&mut world, stale)), "update out of sequence");
    }

    #[test]
    fn mode_and_name_stay() {
        let mut world = World::new(1);
        let id = world.create(spec("web", 1));
        let attempt = |world: &mut World, change: fn(&mut ServiceSpec)| {
            let service = world.service(&id);
            let mut spec = service.spec.clone().unwrap_or_default();
            change(&mut spec);
            let (id, version) = (id.clone(), service.meta().version);
            text(update(world, UpdateServiceRequest { id, version, spec: Some(spec), ..Default::default() }))
        };
        let global = |spec: &mut ServiceSpec| {
            spec.mode = Some(service_spec::Mode::Global(rswarm_proto::wire::Global {}));
        };
        assert_eq!(attempt(&mut world, global), "service mode change is not allowed");
        let rename =
            |spec: &mut ServiceSpec| spec.annotations.get_or_insert_default().name = "api".to_owned();
        assert_eq!(attempt(&mut world, rename), "renaming services is not supported");
    }

    #[test]
    fn a_manual_rollback_swaps_the_specs() {
        let mut world = World::new(1);
        let id = world.create(spec("web", 1));
        let back = |world: &mut World| {
            let mut request = UpdateServiceRequest { id: id.clone(), ..UpdateServiceRequest::default() };
            request.version = world.service(&id).meta().version;
            request.set_rollback(update_service_request::Rollback::Previous);
            text(update(world, request))
        };
        assert_eq!(back(&mut world), format!("service {id} does not have a previous spec"));
        let first = world.service(&id).spec.clone();
        world.change(&id, |spec| set_image(spec, "web:2"));
        let second = world.service(&id).spec.clone();
        assert_eq!(back(&mut world), "done");
        let service = world.service(&id);
        assert_eq!((&service.spec, &service.previous_spec), (&first, &second));
        let status = service.update_status.clone().expect("status");
        assert_eq!(status.state(), update_status::State::RollbackStarted);
        assert_eq!(status.message, "manually requested rollback");
        world.run(Duration::from_secs(10));
        let state = world.service(&id).update_status.as_ref().map(|status| status.state());
        assert!(matches!(state, Some(update_status::State::RollbackCompleted)));
    }

    #[test]
    fn credentials_are_kept_and_never_shown() {
        let mut world = World::new(1);
        let mut web = spec("web", 1);
        *registry_auth(&mut web).expect("a container") = "secret".to_owned();
        let id = world.create(web);
        world.change(&id, |spec| {
            registry_auth(spec).expect("a container").clear();
            set_image(spec, "web:2");
        });
        let mut stored = world.service(&id).spec.clone().expect("spec");
        assert_eq!(registry_auth(&mut stored).map(|auth| auth.clone()), Some("secret".to_owned()));
        world.run(Duration::from_secs(2));
        for kind in [ObjectKind::Service, ObjectKind::Task] {
            for object in list(&world.state, kind) {
                assert!(!format!("{:?}", shown(&object)).contains("secret"));
            }
        }
        let root_ca = Some(RootCa { key_pem: b"secret".to_vec(), ..RootCa::default() });
        let cluster = AnyObject::Cluster(Arc::new(Cluster { root_ca, ..Cluster::default() }));
        let Some(object::Object::Cluster(cluster)) = shown(&cluster).object else { panic!("a cluster") };
        assert_eq!(cluster.root_ca.map(|root| root.key_pem.len()), Some(0));
    }

    #[test]
    fn ingress_ports_are_refused_with_a_way_out() {
        let mut world = World::new(1);
        let error = create(&mut world, published(port_config::Mode::Ingress)).expect_err("refused");
        assert_eq!(error.kind(), Kind::NotImplemented);
        assert!(error.hint().is_some_and(|hint| hint.contains("mode=host")));
        assert_eq!(text(create(&mut world, published(port_config::Mode::Host))), "done");
    }

    #[test]
    fn an_ingress_port_of_another_service_is_taken() {
        let mut world = World::new(1);
        // As a cluster of a later version may have stored it.
        let other =
            ServiceSpec { annotations: spec("old", 1).annotations, ..published(port_config::Mode::Ingress) };
        let mut plan = Plan::default();
        plan.create(Service { id: "old-id".to_owned(), spec: Some(other), ..Service::default() });
        world.write(Author::Control, plan.changes);
        assert_eq!(
            text(create(&mut world, published(port_config::Mode::Ingress))),
            "port '8080' is already in use by service 'old' (old-id)"
        );
    }

    #[test]
    fn networks_are_found_by_name_and_must_exist() {
        let mut world = World::new(1);
        let network = world.network("net");
        let mut web = spec("web", 1);
        attach(&mut web, "net");
        let id = world.create(web);
        assert_eq!(world.service(&id).task_spec().networks[0].target, network);
        let mut lost = spec("lost", 1);
        attach(&mut lost, "nowhere");
        assert_eq!(text(create(&mut world, lost)), "Networks: network nowhere not found");
    }

    fn member(id: u64, active: bool) -> Member {
        Member { id, learner: false, matched: 0, active }
    }

    /// A world whose first `managers` nodes are managers with raft ids from one.
    fn managed(managers: u64) -> World {
        let mut world = World::new(4);
        for id in 1..=managers {
            world.change_node(&format!("n{id}"), Author::Membership, |node| {
                node.manager_status =
                    Some(rswarm_proto::wire::ManagerStatus { raft_id: id, ..Default::default() });
                node.set_role(NodeRole::Manager);
            });
            world.change_node(&format!("n{id}"), Author::Control, |node| {
                node.spec.get_or_insert_default().set_desired_role(NodeRole::Manager);
            });
        }
        world
    }

    fn demote(world: &mut World, node: &str, members: &[Member]) -> String {
        let version = world.state.node(node).map(|node| node.meta().version).unwrap_or_default();
        let request = UpdateNodeRequest { id: node.to_owned(), version, spec: Some(NodeSpec::default()) };
        text(world.control(|state, _, ids| update_node(state, &request, members, ids)))
    }

    #[test]
    fn the_last_manager_and_the_quorum_stay() {
        let mut world = managed(1);
        let refused = demote(&mut world, "n1", &[member(1, true)]);
        assert_eq!(refused, "attempting to demote the last manager of the swarm (1 of 1)");
        let mut world = managed(3);
        let refused = demote(&mut world, "n1", &[member(1, true), member(2, true), member(3, false)]);
        assert_eq!(
            refused,
            "can't remove member from the raft: this would result in a loss of quorum (1 of the 2 other managers are reachable, 2 are needed)"
        );
        let dead = demote(&mut world, "n3", &[member(1, true), member(2, true), member(3, false)]);
        assert_eq!(dead, "done", "one that does not answer can go");
    }

    #[test]
    fn a_manager_leaves_by_force_but_not_the_last_one() {
        let mut world = managed(2);
        let leave = |world: &mut World, node: &str, force: bool| {
            let request = LeaveManagerRequest { node_id: node.to_owned(), force };
            let members = [member(1, true), member(2, false)];
            text(world.control(|state, _, ids| leave_manager(state, &request, &members, ids)))
        };
        assert!(leave(&mut world, "n1", false).contains("loss of quorum (0 of the 1 other managers"));
        assert_eq!(leave(&mut world, "n1", true), "done");
        assert!(leave(&mut world, "n2", true).starts_with("attempting to demote the last manager"));
    }

    #[test]
    fn only_a_worker_that_is_down_is_removed_without_force() {
        let mut world = managed(1);
        world.reconcile();
        let remove = |world: &mut World, node: &str, force: bool| {
            let request = RemoveRequest { id: node.to_owned(), force };
            text(world.control(|state, _, ids| remove_node(state, &request, ids)))
        };
        assert_eq!(
            remove(&mut world, "n1", true),
            "node n1 is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
        );
        assert_eq!(remove(&mut world, "n2", false), "node n2 is not down and can't be removed");
        assert_eq!(remove(&mut world, "n2", true), "done");
        assert_eq!(
            world.state.cluster().map(|cluster| cluster.removed_nodes.clone()),
            Some(vec!["n2".to_owned()])
        );
        world.cut.insert("n3".to_owned());
        world.run(Duration::from_secs(8));
        assert_eq!(remove(&mut world, "n3", false), "done");
    }

    #[test]
    fn tokens_are_rotated_one_by_one() {
        let mut world = World::new(1);
        let version = world.state.cluster().map(|cluster| cluster.meta().version).unwrap_or_default();
        let request =
            UpdateClusterRequest { version, rotate_worker_token: true, ..UpdateClusterRequest::default() };
        let none = world.control(|state, _, ids| update_cluster(state, &request, NewTokens::default(), ids));
        assert_eq!(text(none), "a new join token must be provided");
        let tokens = NewTokens { worker: Some("w2".to_owned()), manager: Some("m2".to_owned()) };
        world.control(|state, _, ids| update_cluster(state, &request, tokens, ids)).expect("rotated");
        let root = world.state.cluster().and_then(|cluster| cluster.root_ca.clone()).expect("root");
        assert_eq!((root.worker_token.as_str(), root.manager_token.as_str()), ("w2", ""));
    }

    #[test]
    fn a_node_keeps_what_its_update_does_not_name() {
        let mut world = World::new(1);
        let version = world.state.node("n1").map(|node| node.meta().version).unwrap_or_default();
        let mut spec = NodeSpec::default();
        spec.set_availability(NodeAvailability::Drain);
        let request = UpdateNodeRequest { id: "host-n1".to_owned(), version, spec: Some(spec) };
        world.control(|state, _, ids| update_node(state, &request, &[], ids)).expect("updated");
        let node = world.state.node("n1").expect("node");
        assert!(node.description.is_some() && node.status.is_some());
    }
}
