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
        update_service_request::Rollback::Previous => roll_back(&mut service, now)?,
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

fn roll_back(service: &mut Service, now: Timestamp) -> Result<(), ControlError> {
    let missing = || ControlError::NoPreviousSpec(service.id.clone());
    let previous = service.previous_spec.take().ok_or_else(missing)?;
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
