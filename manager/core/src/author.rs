//! Who may write which field. Each transaction names its author; `apply` lets it change nothing else, so
//! that two parts of the manager can never undo one another's work.

use rswarm_proto::model::content::Content;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{Cluster, Network, Node, Service, Task, TaskStatus};

use crate::state::AnyObject;

/// A part of the manager that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Author {
    /// The first write of a new cluster.
    Bootstrap,
    /// What users ask.
    Control,
    /// Containers of nodes' own that come onto networks.
    Attach,
    /// What agents report.
    Dispatcher,
    /// Certificates: new nodes, observed roles, root and tokens.
    Ca,
    /// Raft membership as seen by the leader.
    Membership,
    /// Task counts of replicated services.
    Replicated,
    /// One task per node.
    Global,
    /// Iterations of scheduled jobs.
    Cron,
    /// Tasks of jobs.
    Job,
    /// Replacements.
    Restart,
    /// Rolling updates.
    Update,
    /// Evictions.
    Enforce,
    /// Tasks that move while they serve.
    Relocate,
    /// Addresses.
    Allocate,
    /// Placement.
    Schedule,
    /// Tasks that nothing leads to any more.
    Drain,
    /// Keys and addresses of encrypted networks.
    Tunnels,
    /// Node states, and the pace of the heartbeats that they follow from.
    Liveness,
    /// Deletion of what has ended.
    Reap,
    /// A whole pass of the reconcilers, each of which was checked under its own name.
    Pass,
}

const NAMES: [(Author, &str); 21] = [
    (Author::Bootstrap, "bootstrap"),
    (Author::Control, "control"),
    (Author::Attach, "attach"),
    (Author::Dispatcher, "dispatcher"),
    (Author::Ca, "ca"),
    (Author::Membership, "membership"),
    (Author::Replicated, "replicated"),
    (Author::Global, "global"),
    (Author::Cron, "cron"),
    (Author::Job, "job"),
    (Author::Restart, "restart"),
    (Author::Update, "update"),
    (Author::Enforce, "enforce"),
    (Author::Relocate, "relocate"),
    (Author::Allocate, "allocate"),
    (Author::Schedule, "schedule"),
    (Author::Drain, "drain"),
    (Author::Tunnels, "tunnels"),
    (Author::Liveness, "liveness"),
    (Author::Reap, "reap"),
    (Author::Pass, "pass"),
];

/// The reconcilers, whose rights a pass has together.
const RECONCILERS: [Author; 14] = [
    Author::Replicated,
    Author::Global,
    Author::Cron,
    Author::Job,
    Author::Restart,
    Author::Update,
    Author::Enforce,
    Author::Relocate,
    Author::Allocate,
    Author::Schedule,
    Author::Drain,
    Author::Tunnels,
    Author::Liveness,
    Author::Reap,
];

impl Author {
    /// The name in a transaction.
    #[must_use]
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(author, _)| *author == self).map_or("", |(_, name)| name)
    }

    /// The author of this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Author> {
        NAMES.iter().find(|(_, candidate)| *candidate == name).map(|(author, _)| *author)
    }

    /// Which change this author may not make; `None` when all of it is allowed. `before` is what is
    /// stored now (nothing on a create), `after` what shall be (nothing on a delete).
    #[must_use]
    pub fn forbidden(self, before: Option<&AnyObject>, after: Option<&AnyObject>) -> Option<&'static str> {
        writes(before, after).into_iter().find(|write| !self.may(*write)).map(Write::name)
    }

    fn may(self, write: Write) -> bool {
        match self {
            Author::Pass => RECONCILERS.iter().any(|author| author.may(write)),
            author => write.writers().contains(&author),
        }
    }
}

/// One kind of write; the unit of permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Write {
    ClusterCreate,
    ClusterSpec,
    ClusterRoot,
    ClusterRemovedNodes,
    ClusterIngress,
    ClusterTunnel,
    ClusterUnlockKey,
    ClusterPace,
    NodeCreate,
    NodeDelete,
    NodeSpec,
    NodeDescription,
    NodeState,
    NodeAddress,
    NodeMembership,
    NodeRole,
    NodeMesh,
    NodeTunnel,
    ServiceCreate,
    ServiceDelete,
    ServiceSpec,
    ServicePendingDelete,
    ServiceEndpoint,
    ServiceUpdateStatus,
    ServiceJobStatus,
    TaskCreate,
    TaskDelete,
    TaskDesired,
    TaskNode,
    TaskAddresses,
    TaskPending,
    TaskAssigned,
    TaskOrphaned,
    TaskReason,
    TaskReported,
    TaskDrained,
    NetworkCreate,
    NetworkDelete,
    NetworkPendingDelete,
    NetworkAllocation,
    SecretOrConfig,
    SecretOrConfigDelete,
    /// A field that nobody changes once it is written.
    Never,
}

impl Write {
    fn writers(self) -> &'static [Author] {
        use Author::{
            Allocate, Attach, Bootstrap, Ca, Control, Cron, Dispatcher, Drain, Enforce, Global, Job,
            Liveness, Membership, Reap, Relocate, Replicated, Restart, Schedule, Tunnels, Update,
        };
        match self {
            Write::ClusterCreate => &[Bootstrap],
            Write::ClusterSpec | Write::ClusterRemovedNodes | Write::ClusterUnlockKey => &[Control],
            Write::ClusterRoot => &[Control, Ca],
            Write::NodeCreate => &[Bootstrap, Ca],
            Write::NodeDelete | Write::NodeSpec => &[Control],
            Write::NodeDescription | Write::NodeAddress => &[Dispatcher],
            Write::NodeState | Write::ClusterPace => &[Liveness],
            Write::NodeMembership => &[Membership],
            Write::NodeRole => &[Membership, Ca],
            Write::ServiceCreate | Write::ServicePendingDelete => &[Control],
            Write::ServiceJobStatus => &[Control, Cron],
            Write::ServiceSpec | Write::ServiceUpdateStatus => &[Control, Update],
            Write::ServiceEndpoint | Write::NetworkAllocation | Write::NodeMesh | Write::ClusterIngress => {
                &[Allocate]
            }
            Write::ServiceDelete | Write::TaskDelete | Write::NetworkDelete => &[Reap],
            Write::TaskCreate => &[Replicated, Global, Job, Restart, Update, Relocate, Attach],
            Write::TaskDesired => {
                &[Replicated, Global, Job, Restart, Update, Enforce, Relocate, Reap, Attach]
            }
            Write::TaskNode | Write::TaskAssigned => &[Schedule],
            Write::TaskAddresses | Write::TaskPending => &[Allocate],
            Write::TaskOrphaned => &[Liveness],
            Write::TaskReason => &[Allocate, Schedule, Enforce, Dispatcher],
            Write::TaskReported => &[Dispatcher],
            Write::TaskDrained => &[Drain],
            Write::ClusterTunnel | Write::NodeTunnel => &[Tunnels],
            // The ingress network is made with the cluster.
            Write::NetworkCreate => &[Control, Allocate],
            Write::NetworkPendingDelete | Write::SecretOrConfig => &[Control],
            // Reap: versions that nothing needs any more.
            Write::SecretOrConfigDelete => &[Control, Reap],
            Write::Never => &[],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Write::ClusterCreate => "cluster",
            Write::ClusterSpec => "cluster.spec",
            Write::ClusterRoot => "cluster.root_ca",
            Write::ClusterRemovedNodes => "cluster.removed_nodes",
            Write::ClusterIngress => "cluster.ingress_made",
            Write::ClusterTunnel => "cluster.tunnel",
            Write::ClusterUnlockKey => "cluster.unlock_key",
            Write::ClusterPace => "cluster.heartbeat_stretch",
            Write::NodeCreate | Write::NodeDelete => "node",
            Write::NodeSpec => "node.spec",
            Write::NodeDescription => "node.description",
            Write::NodeState => "node.status.state",
            Write::NodeAddress => "node.status.addr",
            Write::NodeMembership => "node.manager_status",
            Write::NodeRole => "node.role",
            Write::NodeMesh => "node.mesh",
            Write::NodeTunnel => "node.tunnel_number",
            Write::ServiceCreate | Write::ServiceDelete => "service",
            Write::ServiceSpec => "service.spec",
            Write::ServicePendingDelete => "service.pending_delete",
            Write::ServiceEndpoint => "service.endpoint",
            Write::ServiceUpdateStatus => "service.update_status",
            Write::ServiceJobStatus => "service.job_status",
            Write::TaskCreate | Write::TaskDelete => "task",
            Write::TaskDesired => "task.desired_state",
            Write::TaskNode => "task.node_id",
            Write::TaskAddresses => "task.networks",
            Write::TaskPending | Write::TaskAssigned | Write::TaskOrphaned | Write::TaskReported => {
                "task.status"
            }
            Write::TaskReason => "task.status.err",
            Write::TaskDrained => "task.drained",
            Write::NetworkCreate | Write::NetworkDelete => "network",
            Write::NetworkPendingDelete => "network.pending_delete",
            Write::NetworkAllocation => "network.ipam",
            Write::SecretOrConfig | Write::SecretOrConfigDelete => "secret or config",
            Write::Never => "a field that is never changed",
        }
    }
}

/// The writes that lead from one object to the other.
fn writes(before: Option<&AnyObject>, after: Option<&AnyObject>) -> Vec<Write> {
    match (before, after) {
        (None, None) => Vec::new(),
        (None, Some(after)) => vec![create(after)],
        (Some(before), None) => vec![delete(before)],
        (Some(AnyObject::Cluster(before)), Some(AnyObject::Cluster(after))) => cluster(before, after),
        (Some(AnyObject::Node(before)), Some(AnyObject::Node(after))) => node(before, after),
        (Some(AnyObject::Service(before)), Some(AnyObject::Service(after))) => service(before, after),
        (Some(AnyObject::Task(before)), Some(AnyObject::Task(after))) => task(before, after),
        (Some(AnyObject::Network(before)), Some(AnyObject::Network(after))) => network(before, after),
        (Some(AnyObject::Secret(before)), Some(AnyObject::Secret(after))) => {
            vec![relabelled(before.as_ref(), after.as_ref())]
        }
        (Some(AnyObject::Config(before)), Some(AnyObject::Config(after))) => {
            vec![relabelled(before.as_ref(), after.as_ref())]
        }
        (Some(_), Some(_)) => vec![Write::Never],
    }
}

fn create(object: &AnyObject) -> Write {
    match object {
        AnyObject::Cluster(_) => Write::ClusterCreate,
        AnyObject::Node(_) => Write::NodeCreate,
        AnyObject::Service(_) => Write::ServiceCreate,
        AnyObject::Task(_) => Write::TaskCreate,
        AnyObject::Network(_) => Write::NetworkCreate,
        AnyObject::Secret(_) | AnyObject::Config(_) => Write::SecretOrConfig,
    }
}

fn delete(object: &AnyObject) -> Write {
    match object {
        AnyObject::Cluster(_) => Write::Never,
        AnyObject::Node(_) => Write::NodeDelete,
        AnyObject::Service(_) => Write::ServiceDelete,
        AnyObject::Task(_) => Write::TaskDelete,
        AnyObject::Network(_) => Write::NetworkDelete,
        AnyObject::Secret(_) | AnyObject::Config(_) => Write::SecretOrConfigDelete,
    }
}

/// Those of `pairs` whose condition holds.
fn when<const N: usize>(pairs: [(bool, Write); N]) -> Vec<Write> {
    pairs.into_iter().filter_map(|(changed, write)| changed.then_some(write)).collect()
}

fn cluster(before: &Cluster, after: &Cluster) -> Vec<Write> {
    when([
        (before.spec != after.spec, Write::ClusterSpec),
        (before.root_ca != after.root_ca, Write::ClusterRoot),
        (before.unlock_key != after.unlock_key, Write::ClusterUnlockKey),
        (before.removed_nodes != after.removed_nodes, Write::ClusterRemovedNodes),
        (before.ingress_made != after.ingress_made, Write::ClusterIngress),
        (before.tunnel != after.tunnel, Write::ClusterTunnel),
        (before.heartbeat_stretch != after.heartbeat_stretch, Write::ClusterPace),
        (before.default_address_pool != after.default_address_pool, Write::Never),
        (before.subnet_size != after.subnet_size, Write::Never),
        (before.data_path_port != after.data_path_port, Write::Never),
    ])
}

fn node(before: &Node, after: &Node) -> Vec<Write> {
    let old = before.status.clone().unwrap_or_default();
    let new = after.status.clone().unwrap_or_default();
    let state =
        |status: &rswarm_proto::wire::NodeStatus| (status.state, status.message.clone(), status.changed_at);
    let address = |status: &rswarm_proto::wire::NodeStatus| {
        (status.addr.clone(), status.listen_addr.clone(), status.data_path_addr.clone())
    };
    when([
        (before.spec != after.spec, Write::NodeSpec),
        (before.description != after.description, Write::NodeDescription),
        (state(&old) != state(&new), Write::NodeState),
        (address(&old) != address(&new), Write::NodeAddress),
        (before.manager_status != after.manager_status, Write::NodeMembership),
        (before.role != after.role, Write::NodeRole),
        (before.mesh != after.mesh, Write::NodeMesh),
        (before.tunnel_number != after.tunnel_number, Write::NodeTunnel),
    ])
}

fn service(before: &Service, after: &Service) -> Vec<Write> {
    when([
        (before.spec != after.spec, Write::ServiceSpec),
        (before.previous_spec != after.previous_spec, Write::ServiceSpec),
        (before.pending_delete != after.pending_delete, Write::ServicePendingDelete),
        (before.endpoint != after.endpoint, Write::ServiceEndpoint),
        (before.update_status != after.update_status, Write::ServiceUpdateStatus),
        (before.job_status != after.job_status, Write::ServiceJobStatus),
    ])
}

fn task(before: &Task, after: &Task) -> Vec<Write> {
    let mut writes = when([
        (before.desired_state != after.desired_state, Write::TaskDesired),
        (before.node_id != after.node_id, Write::TaskNode),
        (before.generic != after.generic, Write::TaskNode),
        (before.networks != after.networks, Write::TaskAddresses),
        (before.ran_at != after.ran_at, Write::TaskReported),
        (before.drained != after.drained, Write::TaskDrained),
        (before.spec != after.spec, Write::Never),
        (before.spec_version != after.spec_version, Write::Never),
        (before.service_id != after.service_id, Write::Never),
        (before.slot != after.slot, Write::Never),
        (before.service_annotations != after.service_annotations, Write::Never),
        (before.endpoint != after.endpoint, Write::Never),
        (before.start_after != after.start_after, Write::Never),
        (before.replaces != after.replaces, Write::Never),
        (before.takes_over != after.takes_over, Write::Never),
        (before.job_iteration != after.job_iteration, Write::Never),
    ]);
    let old = before.status.clone().unwrap_or_default();
    let new = after.status.clone().unwrap_or_default();
    writes.extend(status(&old, &new));
    writes
}

fn status(before: &TaskStatus, after: &TaskStatus) -> Option<Write> {
    if before.state() != after.state() {
        return Some(match after.state() {
            TaskState::Pending => Write::TaskPending,
            TaskState::Assigned => Write::TaskAssigned,
            TaskState::Orphaned => Write::TaskOrphaned,
            TaskState::Remove => Write::Never,
            TaskState::New
            | TaskState::Accepted
            | TaskState::Preparing
            | TaskState::Ready
            | TaskState::Starting
            | TaskState::Running
            | TaskState::Draining
            | TaskState::Complete
            | TaskState::Shutdown
            | TaskState::Failed
            | TaskState::Rejected => Write::TaskReported,
        });
    }
    if before.container != after.container || before.ports != after.ports {
        return Some(Write::TaskReported);
    }
    (before != after).then_some(Write::TaskReason)
}

fn network(before: &Network, after: &Network) -> Vec<Write> {
    when([
        (before.spec != after.spec, Write::Never),
        (before.pending_delete != after.pending_delete, Write::NetworkPendingDelete),
        (before.ipam != after.ipam || before.vni != after.vni, Write::NetworkAllocation),
    ])
}

/// Of a secret or config, only labels ever change: whoever has read its content has read it for good.
fn relabelled<T: Content>(before: &T, after: &T) -> Write {
    let fixed = |object: &T| {
        let spec = object.spec().cloned().unwrap_or_default();
        (spec.annotations.map(|annotations| annotations.name), spec.data, spec.templating, object.number())
    };
    if fixed(before) == fixed(after) { Write::SecretOrConfig } else { Write::Never }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_author_has_a_name_of_its_own() {
        for (author, name) in NAMES {
            assert_eq!((author.name(), Author::parse(name)), (name, Some(author)));
        }
        assert_eq!(Author::parse(""), None);
    }

    #[test]
    fn a_pass_may_do_what_its_parts_may_and_no_more() {
        assert!(Author::Pass.may(Write::TaskCreate) && Author::Pass.may(Write::NodeState));
        assert!(!Author::Pass.may(Write::NodeSpec) && !Author::Pass.may(Write::TaskReported));
        assert!(!Author::Pass.may(Write::Never));
    }
}
