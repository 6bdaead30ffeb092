//! What a cluster must be once all is healed and has come to rest.

use std::collections::BTreeSet;
use std::sync::Arc;

use rswarm_manager_core::State;
use rswarm_manager_core::assign::{Table, Tables};
use rswarm_manager_core::state::node_state;
use rswarm_proto::model::service::Mode;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{NodeState, Service, update_status};
use rswarm_worker::assignments::NetworkView;

use super::World;
use crate::checkers::completed;
use crate::contents;

impl World {
    /// Whether there is a leader and all members vote.
    pub(super) fn has_group(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let Some(running) = &self.managers[&leader].running else { return false };
        let voters: BTreeSet<u64> =
            running.peer.members().iter().filter(|member| !member.learner).map(|member| member.id).collect();
        voters == self.members
    }

    /// What is not as it should be in a cluster at rest.
    pub(super) fn trouble(&self) -> Option<String> {
        let Some(leader) = self.leader() else { return Some("nobody leads".to_owned()) };
        let state = &self.managers[&leader].running.as_ref()?.state;
        if let Some(node) = state.nodes().find(|node| node_state(node) != NodeState::ReadyNode) {
            return Some(format!("node {} is not ready", node.id));
        }
        if let Some(network) = state.networks().find(|network| network.pending_delete) {
            return Some(format!("network {} is still there", network.id));
        }
        if state.cluster()?.root_ca.as_ref()?.rotation.is_some() {
            return Some("the root certificate is still being replaced".to_owned());
        }
        if let Some(version) = contents::leftover(state) {
            return Some(format!("version {version} is needed no more, and there"));
        }
        let service = state.services().find_map(|service| self.service_trouble(state, service));
        service.or_else(|| self.container_trouble(state))
    }

    fn service_trouble(&self, state: &State, service: &Service) -> Option<String> {
        if service.pending_delete {
            return Some(format!("service {} is still there", service.id));
        }
        let phase = service.update_status.as_ref().map(|status| status.state());
        let under_way = [update_status::State::Updating, update_status::State::RollbackStarted];
        if phase.is_some_and(|phase| under_way.contains(&phase)) {
            let status = &service.update_status;
            let tasks = state.tasks_of_service(&service.id).filter(|task| !task.observed().is_terminal());
            let tasks: Vec<_> = tasks
                .map(|task| (task.slot, task.observed(), task.desired(), task.start_after, task.ran_at))
                .collect();
            return Some(format!(
                "service {} is still being updated at {}: {status:?} {tasks:?}",
                service.id, self.now.0
            ));
        }
        let wanted = match service.spec.as_ref()?.mode_or_default() {
            Mode::Replicated(replicas) => replicas,
            Mode::Global => self.size.nodes as u64,
            Mode::ReplicatedJob { total, .. } => return unfinished(state, service, total),
            Mode::GlobalJob => return unfinished(state, service, self.size.nodes as u64),
        };
        if !contents::is_followed(state, service) {
            return Some(format!(
                "tasks of service {} have other secrets or configs than its spec",
                service.id
            ));
        }
        let live = state.tasks_of_service(&service.id).filter(|task| task.is_live());
        let states: Vec<_> = live.map(|task| (task.slot, task.observed(), task.desired())).collect();
        let running = states.iter().filter(|(_, observed, _)| *observed == TaskState::Running).count() as u64;
        let as_asked = running == wanted && states.len() as u64 == wanted;
        (!as_asked).then(|| format!("service {} should have {wanted} tasks and has {states:?}", service.id))
    }

    /// No container outlives its task, and every task that is said to run has one that does.
    fn container_trouble(&self, state: &State) -> Option<String> {
        let mut tables = Tables::new(state);
        for (node, agent) in &self.agents {
            let assigned = tables.assignments(node);
            let same = |view: &NetworkView, table: &Arc<Table>| {
                view.network.id == table.network.id
                    && view.endpoints == table.endpoints
                    && view.services == table.services
                    && view.nodes == table.nodes
            };
            if agent.tables().count() != assigned.networks.len()
                || !agent.tables().zip(assigned.networks.values()).all(|(view, table)| same(view, table))
            {
                return Some(format!("{node} has other tables than it was assigned"));
            }
            let content = agent.content();
            if !content.secrets.keys().eq(assigned.secrets.keys())
                || !content.configs.keys().eq(assigned.configs.keys())
            {
                return Some(format!("{node} has other secrets or configs than it was assigned"));
            }
            for (id, container) in agent.containers.iter().filter(|(_, container)| container.is_up()) {
                let wanted = state.task(id).is_some_and(|task| task.is_live() && task.node_id == *node);
                if !wanted {
                    return Some(format!(
                        "{} of task {id} is on {node} still",
                        container.status.state().name()
                    ));
                }
            }
            for task in state.tasks_on_node(node).filter(|task| task.observed() == TaskState::Running) {
                if !agent.containers.get(&task.id).is_some_and(|container| container.is_up()) {
                    return Some(format!("task {} is said to run on {node} and does not", task.id));
                }
            }
        }
        None
    }
}

/// What a job still has to complete, or runs beyond that.
fn unfinished(state: &State, service: &Service, total: u64) -> Option<String> {
    let done = completed(state, service);
    let live = state.tasks_of_service(&service.id).filter(|task| task.is_live()).count();
    (done.len() as u64 != total || live > 0)
        .then(|| format!("job {} has completed {done:?} of {total}, and {live} tasks are live", service.id))
}
