//! Writing, for [`crate::apply`] alone: each index follows its tables, change by change.

use std::sync::Arc;

use rswarm_proto::model::content::Content;
use rswarm_proto::model::object::Stored;
use rswarm_proto::wire::{Network, Node, ObjectKind, PortConfig, Service, Task, port_config};

use super::{AnyObject, State, display_name};
use crate::cohort::Id;
use crate::constraint;
use crate::publish::needs_ingress;

impl State {
    pub(crate) fn set_index(&mut self, index: u64) {
        self.index = index;
    }

    /// Stores `after` in place of `before`, which is what is stored now. Done the other way round, it is undone:
    /// indices follow from what is stored alone.
    pub(crate) fn replace(&mut self, before: Option<&AnyObject>, after: Option<AnyObject>) {
        match (before, after) {
            (_, Some(after)) => self.put(after),
            (Some(before), None) => {
                let (kind, id) = before.key();
                self.remove(kind, id);
            }
            (None, None) => {}
        }
    }

    /// Stores an object in place of the one with its id, if any.
    pub(crate) fn put(&mut self, object: AnyObject) {
        match object {
            AnyObject::Cluster(cluster) => {
                self.clusters.insert(Id::from(cluster.id.as_str()), cluster);
            }
            AnyObject::Node(node) => self.put_node(node),
            AnyObject::Service(service) => self.put_service(service),
            AnyObject::Task(task) => self.put_task(task),
            AnyObject::Network(network) => self.put_network(network),
            AnyObject::Secret(secret) => {
                self.link_content(secret.as_ref());
                self.secrets.insert(Id::from(secret.id.as_str()), secret);
            }
            AnyObject::Config(config) => {
                self.link_content(config.as_ref());
                self.configs.insert(Id::from(config.id.as_str()), config);
            }
        }
    }

    pub(crate) fn remove(&mut self, kind: ObjectKind, id: &str) {
        match kind {
            ObjectKind::Cluster => drop(self.clusters.remove(id)),
            ObjectKind::Node => {
                if let Some(node) = self.nodes.remove(id) {
                    self.node_names.remove(&(display_name(&node).to_owned(), node.id.clone()));
                    self.managers.remove(id);
                    self.task_indices.relink_node(id, None);
                }
            }
            ObjectKind::Service => {
                if let Some(service) = self.services.remove(id) {
                    self.unlink_service(&service);
                }
            }
            ObjectKind::Task => {
                if let Some(task) = self.tasks.remove(id) {
                    self.task_indices.relink(&Id::from(id), Some(&task), None, None);
                }
            }
            ObjectKind::Network => {
                if let Some(network) = self.networks.remove(id) {
                    self.unlink_network(&network);
                }
            }
            ObjectKind::Secret => {
                if let Some(secret) = self.secrets.remove(id) {
                    self.unlink_content(secret.as_ref());
                }
            }
            ObjectKind::Config => {
                if let Some(config) = self.configs.remove(id) {
                    self.unlink_content(config.as_ref());
                }
            }
        }
    }

    /// Names and numbers never change.
    fn link_content<T: Content>(&mut self, object: &T) {
        let key = (T::KIND, object.name().to_owned());
        let versions = self.contents.entry(key.clone()).or_default();
        versions.insert(object.number(), object.id().to_owned());
        if versions.len() > 1 {
            self.versioned.insert(key);
        }
    }

    fn unlink_content<T: Content>(&mut self, object: &T) {
        let key = (T::KIND, object.name().to_owned());
        let Some(versions) = self.contents.get_mut(&key) else { return };
        versions.remove(&object.number());
        let left = versions.len();
        if left == 0 {
            self.contents.remove(&key);
        }
        if left <= 1 {
            self.versioned.remove(&key);
        }
    }

    fn put_node(&mut self, node: Arc<Node>) {
        let id = Id::from(node.id.as_str());
        let old = self.nodes.insert(id.clone(), node.clone());
        if let Some(old) = old.as_ref().filter(|old| display_name(old) != display_name(&node)) {
            self.node_names.remove(&(display_name(old).to_owned(), old.id.clone()));
        }
        self.node_names.insert((display_name(&node).to_owned(), node.id.clone()));
        if node.manager_status.is_some() {
            self.managers.insert(id);
        } else {
            self.managers.remove(&id);
        }
        if !old.is_some_and(|old| constraint::is_same(&old, &node)) {
            self.task_indices.relink_node(&node.id, Some(&node));
        }
    }

    fn put_service(&mut self, service: Arc<Service>) {
        if let Some(old) = self.services.insert(Id::from(service.id.as_str()), service.clone()) {
            self.unlink_service(&old);
        }
        if !service.pending_delete {
            self.service_names.insert(service.name().to_owned(), service.id.clone());
        }
        for network in networks_of(&service) {
            self.services_by_network.insert((network.to_owned(), service.id.clone()));
        }
        if !service.pending_delete {
            let ports = ports_of(&service).filter(|port| port.published != 0);
            self.published.extend(ports.map(|port| published(&service, port)));
            if needs_ingress(service.spec.as_ref().and_then(|spec| spec.endpoint.as_ref())) {
                self.on_ingress.insert(service.id.clone());
            }
        }
    }

    fn unlink_service(&mut self, service: &Service) {
        if self.service_names.get(service.name()) == Some(&service.id) {
            self.service_names.remove(service.name());
        }
        for network in networks_of(service) {
            self.services_by_network.remove(&(network.to_owned(), service.id.clone()));
        }
        for port in ports_of(service) {
            self.published.remove(&published(service, port));
        }
        self.on_ingress.remove(&service.id);
    }

    fn put_network(&mut self, network: Arc<Network>) {
        if let Some(old) = self.networks.insert(Id::from(network.id.as_str()), network.clone()) {
            self.unlink_network(&old);
        }
        if !network.pending_delete {
            self.network_names.insert(network.name().to_owned(), network.id.clone());
            if network.spec.as_ref().is_some_and(|spec| spec.ingress) {
                self.ingress = Some(network.id.clone());
            }
        }
    }

    fn unlink_network(&mut self, network: &Network) {
        if self.network_names.get(network.name()) == Some(&network.id) {
            self.network_names.remove(network.name());
        }
        self.ingress.take_if(|id| *id == network.id);
    }

    fn put_task(&mut self, task: Arc<Task>) {
        let id = Id::from(task.id.as_str());
        let before = self.tasks.insert(id.clone(), task.clone());
        let node = self.nodes.get(task.node_id.as_str());
        self.task_indices.relink(&id, before.as_ref(), Some(&task), node);
    }
}

/// The ids of the networks that a service's spec names.
fn networks_of(service: &Service) -> impl Iterator<Item = &str> {
    let task = service.spec.as_ref().and_then(|spec| spec.task.as_ref());
    task.into_iter().flat_map(|task| task.networks.iter().map(|network| network.target.as_str()))
}

/// The ports of a service, as asked for and as given.
fn ports_of(service: &Service) -> impl Iterator<Item = &PortConfig> {
    let asked = service.spec.iter().flat_map(|spec| &spec.endpoint).flat_map(|endpoint| &endpoint.ports);
    asked.chain(service.endpoint.iter().flat_map(|endpoint| &endpoint.ports))
}

fn published(service: &Service, port: &PortConfig) -> (String, u32, bool, String) {
    (port.protocol.clone(), port.published, port.mode() == port_config::Mode::Ingress, service.id.clone())
}
