//! Containers of nodes' own on attachable networks: each is a task of its node that gets addresses like any other,
//! and ends when the node says so.

use rswarm_base::IdGen;
use rswarm_base::id::is_cluster_id;
use rswarm_proto::model::object::Stored;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{AttachRequest, Network, NetworkAttachmentConfig, Task, TaskSpec, TaskStatus};

use super::read::find_network;
use super::{ControlError, Decision, decided_as};
use crate::author::Author;
use crate::reconcile::Plan;
use crate::slot;
use crate::state::{State, address_of};

/// A place for a container of `node_id` on a network. Asked for again, it is the same place.
pub fn attach(state: &State, node_id: &str, request: &AttachRequest, ids: &mut IdGen) -> Decision {
    let attachment = request
        .attachment
        .clone()
        .filter(|_| is_cluster_id(&request.task_id))
        .ok_or(ControlError::Incomplete("an attachment needs a task id and a container"))?;
    let network = find_network(state, &request.network)?;
    let mut plan = Plan::default();
    if let Some(task) = state.task(&request.task_id) {
        let is_same = task.node_id == node_id && task.attachment() == Some(&attachment);
        let taken = ControlError::TaskTaken(task.id.clone());
        return if is_same { decided_as(Author::Attach, plan, &task.id, ids) } else { Err(taken) };
    }
    check(&network, request)?;
    let place = NetworkAttachmentConfig {
        target: network.id.clone(),
        addresses: request.addresses.clone(),
        ..NetworkAttachmentConfig::default()
    };
    plan.create(Task {
        id: request.task_id.clone(),
        spec: Some(TaskSpec { networks: vec![place], attachment: Some(attachment), ..TaskSpec::default() }),
        node_id: node_id.to_owned(),
        desired_state: TaskState::Running.into(),
        status: Some(TaskStatus { message: "created".to_owned(), ..TaskStatus::default() }),
        ..Task::default()
    });
    decided_as(Author::Attach, plan, &request.task_id, ids)
}

fn check(network: &Network, request: &AttachRequest) -> Result<(), ControlError> {
    let spec = network.spec.clone().unwrap_or_default();
    if !spec.attachable || spec.ingress {
        return Err(ControlError::NotAttachable(network.name().to_owned()));
    }
    let subnets: Vec<rswarm_base::ipam::Subnet> =
        network.ipam.iter().filter_map(|config| config.subnet.parse().ok()).collect();
    // A network that has no subnet yet is asked about its addresses when it has.
    let foreign = |text: &&String| {
        address_of(text).is_none_or(|address| {
            !subnets.is_empty() && !subnets.iter().any(|subnet| subnet.contains(address))
        })
    };
    match request.addresses.iter().find(foreign) {
        Some(address) => Err(ControlError::ForeignAddress(address.clone())),
        None => Ok(()),
    }
}

/// How far an attachment has come: `Ok(true)` once its node is told, or why it waits for an address.
///
/// # Errors
/// What it waits for.
pub fn admission(state: &State, task_id: &str) -> Result<bool, String> {
    let Some(task) = state.task(task_id) else { return Err("it was withdrawn".to_owned()) };
    let err = task.status.as_ref().map_or("", |status| status.err.as_str());
    match task.observed() {
        observed if observed >= TaskState::Assigned => Ok(true),
        _ if err.is_empty() => Ok(false),
        _ => Err(err.to_owned()),
    }
}

/// The end of an attachment that its node never heard of.
pub fn withdraw(state: &State, task_id: &str, ids: &mut IdGen) -> Decision {
    let mut plan = Plan::default();
    if let Some(task) = state.task(task_id).filter(|task| task.desired() < TaskState::Remove) {
        plan.update(slot::desire(task, TaskState::Remove));
    }
    decided_as(Author::Attach, plan, task_id, ids)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::assign::assignments;
    use crate::world::World;
    use rswarm_base::id::IdGen;
    use rswarm_proto::wire::{
        Annotations, Attachment, CreateNetworkRequest, NetworkSpec, NodeAvailability, RemoveRequest,
    };

    fn attachable(world: &mut World, name: &str, attachable: bool) -> String {
        let annotations = Some(Annotations { name: name.to_owned(), ..Annotations::default() });
        let spec = NetworkSpec { annotations, attachable, ..NetworkSpec::default() };
        let request = CreateNetworkRequest { spec: Some(spec) };
        let id = world
            .control(|state, _, ids| super::super::create_network(state, &request, ids))
            .expect("network");
        world.reconcile();
        id
    }

    fn request(task: &str, network: &str, addresses: &[&str]) -> AttachRequest {
        let names = vec!["db".to_owned()];
        AttachRequest {
            task_id: task.to_owned(),
            network: network.to_owned(),
            addresses: addresses.iter().map(|address| (*address).to_owned()).collect(),
            attachment: Some(Attachment { container_id: "c".repeat(64), names }),
        }
    }

    fn ask(world: &mut World, node: &str, request: &AttachRequest) -> Result<String, ControlError> {
        let asked = world.control(|state, _, ids| attach(state, node, request, ids));
        world.reconcile();
        asked
    }

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbb";

    #[test]
    fn a_container_gets_a_place_on_an_attachable_network_and_gives_it_back() {
        let mut world = World::new(2);
        let network = attachable(&mut world, "app", true);
        // Whatever else the node may take, its own containers are its own.
        world.change_node("n1", Author::Control, |node| {
            node.spec.get_or_insert_default().set_availability(NodeAvailability::Drain);
        });
        assert_eq!(ask(&mut world, "n1", &request(A, "app", &[])), Ok(A.to_owned()));
        assert_eq!(ask(&mut world, "n1", &request(A, "app", &[])), Ok(A.to_owned()), "asked twice");
        assert_eq!(admission(&world.state, A), Ok(true));
        let set = assignments(&world.state, "n1");
        let endpoint = &set.networks[&network].endpoints[A];
        assert_eq!(endpoint.addresses, ["10.0.1.2/24"]);
        assert_eq!((endpoint.names.as_slice(), endpoint.task_name.as_str()), (&["db".to_owned()][..], ""));
        assert!(set.tasks.contains_key(A) && assignments(&world.state, "n2").tasks.is_empty());
        let remove = RemoveRequest { id: network.clone(), force: false };
        let refused = world.control(|state, _, ids| super::super::remove_network(state, &remove, ids));
        assert_eq!(
            refused.expect_err("in use").to_string(),
            format!("network {network} is in use by task {A}")
        );
        world.run(Duration::from_secs(2));
        assert!(world.state.task(A).is_some_and(|task| task.is_live()), "a drained node keeps it");
        world.report(A, TaskState::Complete);
        world.reconcile();
        assert!(world.state.task(A).is_none(), "nothing is left of it");
        assert!(world.control(|state, _, ids| super::super::remove_network(state, &remove, ids)).is_ok());
    }

    #[test]
    fn what_cannot_be_attached_is_refused_in_dockers_words() {
        let mut world = World::new(1);
        attachable(&mut world, "app", true);
        attachable(&mut world, "closed", false);
        let check = |world: &mut World, network: &str, addresses: &[&str], wanted: &str| {
            let refused = ask(world, "n1", &request(A, network, addresses)).expect_err("refused");
            assert_eq!(refused.to_string(), wanted);
        };
        check(&mut world, "closed", &[], "network closed not manually attachable");
        check(&mut world, "none", &[], "network none not found");
        check(
            &mut world,
            "app",
            &["192.0.2.1"],
            "Invalid address 192.0.2.1: It does not belong to any of this network's subnets",
        );
    }

    #[test]
    fn an_address_is_one_containers_until_it_has_left() {
        let mut world = World::new(2);
        attachable(&mut world, "app", true);
        ask(&mut world, "n1", &request(A, "app", &["10.0.1.77"])).expect("free");
        ask(&mut world, "n2", &request(B, "app", &["10.0.1.77"])).expect("asked");
        assert_eq!(admission(&world.state, B), Err("address 10.0.1.77 is already in use".to_owned()));
        world.report(A, TaskState::Complete);
        world.reconcile();
        world.reconcile();
        assert_eq!(admission(&world.state, B), Ok(true));
        // Another node's word for it is no word.
        let other = ask(&mut world, "n1", &request(B, "app", &[]));
        assert_eq!(other, Err(ControlError::TaskTaken(B.to_owned())));
    }

    #[test]
    fn an_attachment_that_got_no_address_is_withdrawn() {
        let mut world = World::new(1);
        attachable(&mut world, "app", true);
        ask(&mut world, "n1", &request(A, "app", &["10.0.1.1"])).expect("asked");
        assert!(admission(&world.state, A).is_err(), "the gateway's address");
        let mut ids = IdGen::seeded(1);
        let withdrawn = withdraw(&world.state, A, &mut ids).expect("a plan").0;
        world.commit(vec![withdrawn]);
        world.reconcile();
        assert!(world.state.task(A).is_none());
    }
}
