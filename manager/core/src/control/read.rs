//! Finding objects by what users call them, and showing them.

use std::collections::BTreeSet;
use std::sync::Arc;

use rswarm_proto::model::object::Stored;
use rswarm_proto::wire::{Network, Node, Object, ObjectKind, Service, ServiceSpec, Task, TaskState, object};

use super::ControlError;
use crate::state::{AnyObject, State};

/// One object by id, exact name, or unique id prefix, in this order; a task also by its container.
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
    let found = match kind {
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
        ObjectKind::Secret => state.secret_named(name).cloned().map(AnyObject::Secret),
        ObjectKind::Config => state.config_named(name).cloned().map(AnyObject::Config),
        ObjectKind::Task => return by_container(state, name),
    };
    Ok(found.or_else(|| version(state, kind, name)))
}

/// A task by its container, as `container:` and the beginning of that one's identifier, or `container:` and the name of
/// the slot (`web.1`; a global service's is the node's id), whose running task it is.
fn by_container(state: &State, reference: &str) -> Result<Option<AnyObject>, ControlError> {
    let Some(text) = reference.strip_prefix("container:").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let mut found: Vec<&Arc<Task>> = if text.contains('.') {
        running_in_slot(state, text).take(2).collect()
    } else {
        state.tasks().filter(|task| task.container_id().starts_with(text)).take(2).collect()
    };
    match (found.pop(), found.pop()) {
        (task, None) => Ok(task.cloned().map(AnyObject::Task)),
        (_, Some(_)) => {
            Err(ControlError::Ambiguous { kind: ObjectKind::Task, reference: reference.to_owned() })
        }
    }
}

fn running_in_slot<'a>(state: &'a State, name: &'a str) -> impl Iterator<Item = &'a Arc<Task>> {
    let service = name.rsplit_once('.').and_then(|(service, _)| state.service_named(service));
    let tasks = service.into_iter().flat_map(|service| state.tasks_of_service(&service.id));
    tasks.filter(move |task| {
        task.observed() == TaskState::Running && !task.container_id().is_empty() && task.slot_name() == name
    })
}

/// A secret or config by the name of a version, such as `key@2`; others have no such names.
fn version(state: &State, kind: ObjectKind, reference: &str) -> Option<AnyObject> {
    let (name, number) = reference.rsplit_once('@')?;
    state.content_version(kind, name, number.parse().ok()?)
}

/// All objects of a kind that users may see: neither those that are being deleted, nor old versions of secrets and
/// configs.
#[must_use]
pub fn list(state: &State, kind: ObjectKind) -> Vec<AnyObject> {
    let objects: Vec<AnyObject> = match kind {
        ObjectKind::Cluster => state.cluster().into_iter().cloned().map(AnyObject::Cluster).collect(),
        ObjectKind::Node => state.nodes().cloned().map(AnyObject::Node).collect(),
        ObjectKind::Service => state.services().cloned().map(AnyObject::Service).collect(),
        ObjectKind::Task => state.tasks().cloned().map(AnyObject::Task).collect(),
        ObjectKind::Network => state.networks().cloned().map(AnyObject::Network).collect(),
        ObjectKind::Secret => state.secrets().cloned().map(AnyObject::Secret).collect(),
        ObjectKind::Config => state.configs().cloned().map(AnyObject::Config).collect(),
    };
    let old: BTreeSet<(ObjectKind, &str)> = state.superseded().collect();
    objects.into_iter().filter(|object| is_visible(object) && !old.contains(&object.key())).collect()
}

fn is_visible(object: &AnyObject) -> bool {
    match object {
        AnyObject::Service(service) => !service.pending_delete,
        AnyObject::Network(network) => !network.pending_delete,
        AnyObject::Cluster(_)
        | AnyObject::Node(_)
        | AnyObject::Task(_)
        | AnyObject::Secret(_)
        | AnyObject::Config(_) => true,
    }
}

/// An object as a reply shows it: without the root's key, the unlock key, the encrypted networks' key, a secret's data and registry
/// credentials.
#[must_use]
pub fn shown(object: &AnyObject) -> Object {
    let mut shown = object.to_object();
    match &mut shown.object {
        Some(object::Object::Cluster(cluster)) => {
            if let Some(root) = &mut cluster.root_ca {
                root.key_pem.clear();
                if let Some(rotation) = &mut root.rotation {
                    rotation.key_pem.clear();
                }
            }
            cluster.unlock_key.clear();
            if let Some(tunnel) = &mut cluster.tunnel {
                tunnel.psk.clear();
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
        Some(object::Object::Secret(secret)) => {
            if let Some(spec) = &mut secret.spec {
                spec.data.clear();
            }
        }
        Some(object::Object::Node(_) | object::Object::Network(_) | object::Object::Config(_)) | None => {}
    }
    shown
}

fn forget_auth(spec: &mut ServiceSpec) {
    if let Some(auth) = registry_auth(spec) {
        auth.clear();
    }
}

pub(super) fn registry_auth(spec: &mut ServiceSpec) -> Option<&mut String> {
    Some(&mut spec.task.as_mut()?.container.as_mut()?.registry_auth)
}

pub(super) fn find_service(state: &State, reference: &str) -> Result<Arc<Service>, ControlError> {
    match get(state, ObjectKind::Service, reference)? {
        AnyObject::Service(service) => Ok(service),
        _ => Err(ControlError::NotFound { kind: ObjectKind::Service, reference: reference.to_owned() }),
    }
}

pub(super) fn find_node(state: &State, reference: &str) -> Result<Arc<Node>, ControlError> {
    match get(state, ObjectKind::Node, reference)? {
        AnyObject::Node(node) => Ok(node),
        _ => Err(ControlError::NotFound { kind: ObjectKind::Node, reference: reference.to_owned() }),
    }
}

pub(super) fn find_network(state: &State, reference: &str) -> Result<Arc<Network>, ControlError> {
    match get(state, ObjectKind::Network, reference)? {
        AnyObject::Network(network) => Ok(network),
        _ => Err(ControlError::NotFound { kind: ObjectKind::Network, reference: reference.to_owned() }),
    }
}
