//! What happens in a cluster, as its users are told (`docker events`): from two states, what came, changed and went.
//!
//! In swarmkit's words (moby `daemon/events.go`). Tasks and the cluster itself are not told of. Somebody who looks less
//! often is told less: of an object that came and went between two looks, nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

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

/// That another manager leads: of both, what they were and are.
#[must_use]
pub fn leadership(state: &State, old: &str, new: &str) -> Vec<Announcement> {
    let told = |id: &str, leads: bool| {
        if old == new {
            return None;
        }
        let node = state.node(id)?;
        Some(of_manager(node, "leader", (!leads).to_string(), leads.to_string()))
    };
    [told(old, false), told(new, true)].into_iter().flatten().collect()
}

/// Which managers became reachable or are not any more, as their leader has it: by raft id. Who came or left in between
/// is not told of.
#[must_use]
pub fn reachability(
    state: &State,
    before: &BTreeMap<u64, bool>,
    after: &BTreeMap<u64, bool>,
) -> Vec<Announcement> {
    let word = |is_reachable: bool| if is_reachable { "reachable" } else { "unreachable" }.to_owned();
    let told = |node: &Arc<Node>| {
        let raft_id = node.manager_status.as_ref()?.raft_id;
        let (old, new) = (*before.get(&raft_id)?, *after.get(&raft_id)?);
        (old != new).then(|| of_manager(node, "reachability", word(old), word(new)))
    };
    state.nodes().filter_map(told).collect()
}

fn of_manager(node: &Node, what: &str, old: String, new: String) -> Announcement {
    let mut attributes = Attributes::default();
    attributes.0.insert("name".to_owned(), display_name(node).to_owned());
    attributes.changed(what, Some(old), Some(new));
    Announcement { kind: "node", action: "update", id: node.id.clone(), attributes: attributes.0 }
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

    use rswarm_proto::wire::ManagerStatus;

    use super::*;
    use crate::author::Author;
    use crate::reconcile::Plan;
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
    fn managers_lead_and_are_reached() {
        let mut world = World::new(3);
        let ids: Vec<String> = world.state.nodes().map(|node| node.id.clone()).collect();
        let mut plan = Plan::default();
        for (id, raft_id) in ids.iter().zip(1..) {
            let mut node = Node::clone(world.state.node(id).expect("a node"));
            node.manager_status = Some(ManagerStatus { raft_id, ..ManagerStatus::default() });
            plan.update(node);
        }
        world.write(Author::Membership, plan.into_changes());
        let shown = |told: Vec<Announcement>| {
            told.into_iter().map(|news| (news.id, news.attributes.into_iter().collect())).collect()
        };
        let name = |id: &str| ("name".to_owned(), display_name(world.state.node(id).expect("it")).to_owned());
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let told: Vec<(String, Vec<_>)> = shown(leadership(&world.state, &ids[0], &ids[1]));
        let lost = vec![pair("leader.new", "false"), pair("leader.old", "true"), name(&ids[0])];
        let won = vec![pair("leader.new", "true"), pair("leader.old", "false"), name(&ids[1])];
        assert_eq!(told, [(ids[0].clone(), lost), (ids[1].clone(), won)]);

        let before = BTreeMap::from([(1, true), (2, true)]);
        let after = BTreeMap::from([(1, true), (2, false), (3, true)]);
        let told: Vec<(String, Vec<_>)> = shown(reachability(&world.state, &before, &after));
        let gone = vec![
            name(&ids[1]),
            pair("reachability.new", "unreachable"),
            pair("reachability.old", "reachable"),
        ];
        assert_eq!(told, [(ids[1].clone(), gone)]);
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
