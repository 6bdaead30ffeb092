//! What happens in a cluster, as its users are told (`docker events`): from two states, what came, changed and went.
//!
//! In swarmkit's words (moby `daemon/events.go`). Tasks and the cluster itself are not told of. Somebody who looks less
//! often is told less: of an object that came and went between two looks, nothing.

use std::collections::BTreeMap;

use rswarm_proto::model::object::Stored;
use rswarm_proto::model::service::Mode;
use rswarm_proto::wire::update_status::State as Phase;
use rswarm_proto::wire::{Network, Node, NodeState, Service};

use crate::apply::noun;
use crate::state::{AnyObject, State, display_name};

/// Something that happened to an object of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The object's kind.
    pub kind: &'static str,
    /// `create`, `update` or `remove`.
    pub action: &'static str,
    /// The object's id.
    pub id: String,
    /// Its name and, of an update, what was and is: `replicas.old`, `replicas.new` and so on.
    pub attributes: BTreeMap<String, String>,
}

/// What happened between two states. Costs as much as what differs.
#[must_use]
pub fn announcements(before: &State, after: &State) -> Vec<Announcement> {
    after.changes_since(before).into_iter().filter_map(|(old, new)| announcement(old, new)).collect()
}

fn announcement(old: Option<AnyObject>, new: Option<AnyObject>) -> Option<Announcement> {
    // For users, what is being deleted has gone.
    let (old, new) = (old.filter(is_there), new.filter(is_there));
    let (action, object) = match (&old, &new) {
        (None, Some(new)) => ("create", new),
        (Some(_), Some(new)) => ("update", new),
        (Some(old), None) => ("remove", old),
        (None, None) => return None,
    };
    let (kind, id) = object.key();
    let mut attributes = Attributes::default();
    attributes.0.insert("name".to_owned(), name(object).to_owned());
    match (&old, &new) {
        (Some(AnyObject::Node(old)), Some(AnyObject::Node(new))) => node(old, new, &mut attributes),
        (Some(AnyObject::Service(old)), Some(AnyObject::Service(new))) => service(old, new, &mut attributes),
        _ => {}
    }
    Some(Announcement { kind: noun(kind), action, id: id.to_owned(), attributes: attributes.0 })
}

fn is_there(object: &AnyObject) -> bool {
    match object {
        AnyObject::Service(service) => !service.pending_delete,
        AnyObject::Network(network) => !network.pending_delete,
        _ => true,
    }
}

fn name(object: &AnyObject) -> &str {
    match object {
        AnyObject::Node(node) => display_name(node),
        AnyObject::Service(service) => service.name(),
        AnyObject::Network(network) => Network::name(network),
        AnyObject::Secret(secret) => secret.name(),
        AnyObject::Config(config) => config.name(),
        AnyObject::Cluster(_) | AnyObject::Task(_) => "",
    }
}

#[derive(Default)]
struct Attributes(BTreeMap<String, String>);

impl Attributes {
    /// What was and is, if it differs; what was not before has no `old`.
    fn changed(&mut self, what: &str, old: Option<String>, new: Option<String>) {
        if old == new {
            return;
        }
        self.0.extend(old.map(|old| (format!("{what}.old"), old)));
        self.0.extend(new.map(|new| (format!("{what}.new"), new)));
    }
}

fn node(old: &Node, new: &Node, attributes: &mut Attributes) {
    let availability =
        |node: &Node| node.spec.as_ref().map(|spec| spec.availability().as_str_name().to_ascii_lowercase());
    let role = |node: &Node| Some(node.role().as_str_name().to_ascii_lowercase());
    attributes.changed("availability", availability(old), availability(new));
    attributes.changed("role", role(old), role(new));
    attributes.changed("state", Some(state(old)), Some(state(new)));
}

/// As `node ls` shows it.
fn state(node: &Node) -> String {
    let state = match node.status.as_ref().map_or(NodeState::Unknown, |status| status.state()) {
        NodeState::Unknown => "unknown",
        NodeState::Down => "down",
        NodeState::ReadyNode | NodeState::Suspect => "ready",
    };
    state.to_owned()
}

fn service(old: &Service, new: &Service, attributes: &mut Attributes) {
    let image =
        |service: &Service| service.task_spec().container.as_ref().map(|container| container.image.clone());
    let replicas = |service: &Service| match service.spec.as_ref()?.mode_or_default() {
        Mode::Replicated(replicas) => Some(replicas.to_string()),
        _ => None,
    };
    let phase = |service: &Service| {
        let phase = service.update_status.as_ref().map(|status| status.state());
        phase.filter(|phase| *phase != Phase::Unknown).map(|phase| phase.as_str_name().to_ascii_lowercase())
    };
    attributes.changed("image", image(old), image(new));
    attributes.changed("replicas", replicas(old), replicas(new));
    if phase(new).is_some() {
        attributes.changed("updatestate", phase(old), phase(new));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::world::{World, set_image, spec};

    fn told(before: &State, world: &World) -> Vec<String> {
        let show = |news: Announcement| {
            let attributes: Vec<String> =
                news.attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("{} {} {}", news.kind, news.action, attributes.join(" "))
        };
        announcements(before, &world.state).into_iter().map(show).collect()
    }

    #[test]
    fn services_come_change_and_go() {
        let mut world = World::new(1);
        world.reconcile();
        let before = world.state.clone();
        let id = world.create(spec("web", 2));
        assert_eq!(told(&before, &world), ["service create name=web"]);
        world.run(Duration::from_secs(2));
        let before = world.state.clone();
        world.change(&id, |spec| set_image(spec, "web:2"));
        let image = world.service(&id).task_spec().container.clone().unwrap_or_default().image;
        assert_eq!(image, "web:2");
        let update = told(&before, &world);
        assert!(update[0].starts_with("service update image.new=web:2 image.old="), "{update:?}");
        let before = world.state.clone();
        world.remove_service(&id);
        assert_eq!(told(&before, &world)[0], "service remove name=web");
        let before = world.state.clone();
        world.run(Duration::from_secs(30));
        assert!(world.state.service(&id).is_none());
        assert!(told(&before, &world).iter().all(|line| !line.starts_with("service")), "it had gone before");
    }
}
