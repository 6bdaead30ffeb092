//! Why a node cannot take a task; each filter explains itself in Docker's words.

use rswarm_proto::wire::{Node, NodeAvailability, NodeState, PortConfig, Resources, Task, port_config};

use crate::constraint;
use crate::generic;
use crate::schedule::Load;
use crate::state::node_state;

/// One reason to refuse a node, in the order in which they are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Filter {
    /// The node is up and takes new tasks.
    Ready,
    /// What the task reserves is free.
    Resources,
    /// The placement constraints hold.
    Constraints,
    /// The image runs there.
    Platform,
    /// The ports that the task publishes on its host are free.
    HostPort,
    /// The service has fewer tasks there than it allows per node.
    MaxReplicas,
}

/// All filters, in order.
pub const ALL: [Filter; 6] = [
    Filter::Ready,
    Filter::Resources,
    Filter::Constraints,
    Filter::Platform,
    Filter::HostPort,
    Filter::MaxReplicas,
];

/// The filters whose answer changes as tasks are placed.
pub const DYNAMIC: [Filter; 3] = [Filter::Resources, Filter::HostPort, Filter::MaxReplicas];

impl Filter {
    /// Whether the node can take the task, as far as this filter goes.
    #[must_use]
    pub fn admits(self, task: &Task, node: &Node, load: &Load) -> bool {
        let placement = task.spec.as_ref().and_then(|spec| spec.placement.as_ref());
        match self {
            Filter::Ready => takes_new_tasks(node),
            Filter::Resources => {
                resources_fit(&reservations(task), node, load)
                    && load.generic.choose(generic::reserved(task), node).is_some()
            }
            Filter::Constraints => {
                placement.is_none_or(|placement| constraint::all_match(&placement.constraints, node))
            }
            Filter::Platform => {
                placement.is_none_or(|placement| constraint::platform_fits(&placement.platforms, node))
            }
            Filter::HostPort => host_ports(task).all(|port| load.is_port_free(port)),
            Filter::MaxReplicas => {
                let max = placement.map_or(0, |placement| placement.max_replicas);
                max == 0 || load.of_service(&task.service_id) < max
            }
        }
    }

    /// What is said of `nodes` nodes that it refused.
    #[must_use]
    pub fn explain(self, nodes: usize) -> String {
        let on = if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") };
        match self {
            Filter::Ready => format!("{on} not available for new tasks"),
            Filter::Resources => format!("insufficient resources on {on}"),
            Filter::Constraints => format!("scheduling constraints not satisfied on {on}"),
            Filter::Platform => format!("unsupported platform on {on}"),
            Filter::HostPort => format!("host-mode port already in use on {on}"),
            Filter::MaxReplicas => "max replicas per node limit exceed".to_owned(),
        }
    }
}

/// The first filter that refuses the node.
#[must_use]
pub fn refusal(filters: &[Filter], task: &Task, node: &Node, load: &Load) -> Option<Filter> {
    filters.iter().copied().find(|filter| !filter.admits(task, node, load))
}

/// Whether the node is up and may get new tasks.
#[must_use]
pub fn takes_new_tasks(node: &Node) -> bool {
    node_state(node) == NodeState::ReadyNode && availability(node) == NodeAvailability::Active
}

/// What the operator allows the node to do.
#[must_use]
pub fn availability(node: &Node) -> NodeAvailability {
    node.spec.as_ref().map_or(NodeAvailability::Active, |spec| spec.availability())
}

/// What a task reserves; nothing when its spec says nothing.
#[must_use]
pub fn reservations(task: &Task) -> Resources {
    let requirements = task.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    requirements.and_then(|requirements| requirements.reservations).unwrap_or_default()
}

/// The ports that a task publishes on its host, fixed ones only.
pub fn host_ports(task: &Task) -> impl Iterator<Item = &PortConfig> {
    let ports = task.endpoint.as_ref().map_or(&[][..], |endpoint| &endpoint.ports);
    ports.iter().filter(|port| port.mode() == port_config::Mode::Host && port.published != 0)
}

fn resources_fit(wanted: &Resources, node: &Node, load: &Load) -> bool {
    let has = capacity(node);
    let fits = |wanted: i64, used: i64, has: i64| wanted <= 0 || used.saturating_add(wanted) <= has;
    fits(wanted.nano_cpus, load.nano_cpus, has.nano_cpus) && fits(wanted.memory, load.memory, has.memory)
}

/// What a node has to give.
#[must_use]
pub fn capacity(node: &Node) -> Resources {
    node.description.as_ref().and_then(|description| description.resources).unwrap_or_default()
}

/// All refusals together, the most frequent first: what stands on a task that no node can take.
#[must_use]
pub fn no_suitable_node(refusals: &[Filter]) -> String {
    let mut counts: Vec<(usize, Filter)> = ALL
        .into_iter()
        .map(|filter| (refusals.iter().filter(|refusal| **refusal == filter).count(), filter))
        .filter(|(count, _)| *count > 0)
        .collect();
    counts.sort_by_key(|(count, filter)| (std::cmp::Reverse(*count), *filter));
    let reasons: Vec<String> = counts.into_iter().map(|(count, filter)| filter.explain(count)).collect();
    match reasons.is_empty() {
        true => "no suitable node".to_owned(),
        false => format!("no suitable node ({})", reasons.join("; ")),
    }
}
