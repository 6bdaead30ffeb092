//! Networks: new and removed.

use std::sync::Arc;

use rswarm_base::IdGen;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{CreateNetworkRequest, Network, NetworkSpec, ObjectKind, RemoveRequest, Task};

use super::read::find_network;
use super::{ControlError, Decision, decided, valid};
use crate::publish::IngressError;
use crate::reconcile::Plan;
use crate::state::State;
use crate::validate;

/// A new network.
pub fn create_network(state: &State, request: &CreateNetworkRequest, ids: &mut IdGen) -> Decision {
    let spec = request.spec.clone().ok_or(ControlError::Incomplete("a network spec must be provided"))?;
    valid(validate::network(&spec, state))?;
    if let Some(ingress) = state.ingress_network().filter(|_| spec.ingress) {
        return Err(IngressError::Present(ingress.id.clone()).into());
    }
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
    let is_ingress = network.spec.as_ref().is_some_and(|spec| spec.ingress);
    if let Some(service) = state.services_on_ingress().next().filter(|_| is_ingress) {
        return Err(IngressError::InUse(service.id.clone()).into());
    }
    let in_use = |user: String| ControlError::NetworkInUse { network: network.id.clone(), user };
    if let Some(service) = state.services_on_network(&network.id).find(|service| !service.pending_delete) {
        return Err(in_use(format!("service {}", service.id)));
    }
    let is_user =
        |task: &&Arc<Task>| task.desired() <= TaskState::Running && task.observed() <= TaskState::Running;
    let tasks = state.tasks_on_network(&network.id).filter(is_user);
    // Tasks of a service that was just removed are on their way out.
    let stays = |task: &Task| {
        task.is_attachment() || state.service(&task.service_id).is_some_and(|service| !service.pending_delete)
    };
    let mut tasks = tasks.filter(|task| stays(task));
    if let Some(task) = tasks.next() {
        return Err(in_use(format!("task {}", task.id)));
    }
    let mut plan = Plan::default();
    plan.update(Network { pending_delete: true, ..Network::clone(&network) });
    decided(plan, &network.id, ids)
}
