//! Requests on a world in memory, and what users are told.

use std::sync::Arc;
use std::time::Duration;

use rswarm_base::{Classify, Kind};
use rswarm_proto::wire::{
    Annotations, Cluster, ClusterSpec, ContainerStatus, CreateNetworkRequest, CreateServiceRequest,
    EndpointSpec, FileReference, FileTarget, LeaveManagerRequest, NetworkSpec, NodeAvailability, NodeRole,
    NodeSpec, ObjectKind, PortConfig, RemoveRequest, RootCa, ServiceSpec, Task, TaskStatus,
    UpdateClusterRequest, UpdateNodeRequest, UpdateServiceRequest, object, port_config, service_spec,
    update_service_request, update_status,
};

use super::read::registry_auth;
use super::*;
use crate::author::Author;
use crate::peer::Member;
use crate::reconcile::Plan;
use crate::state::AnyObject;
use crate::world::{World, attach, port, publish, set_image, spec};

fn text<T>(result: Result<T, ControlError>) -> String {
    result.map_or_else(|error| error.to_string(), |_| "done".to_owned())
}

fn create(world: &mut World, spec: ServiceSpec) -> Result<String, ControlError> {
    let request = CreateServiceRequest { spec: Some(spec) };
    world.control(|state, now, ids| create_service(state, &request, now, ids))
}

fn update(world: &mut World, request: UpdateServiceRequest) -> Result<String, ControlError> {
    world.control(|state, now, ids| update_service(state, &request, now, ids))
}

fn published(mode: port_config::Mode) -> ServiceSpec {
    let protocol = "tcp".to_owned();
    let port =
        PortConfig { protocol, target: 80, published: 8080, mode: mode.into(), ..PortConfig::default() };
    let endpoint = EndpointSpec { ports: vec![port], ..EndpointSpec::default() };
    ServiceSpec { endpoint: Some(endpoint), ..spec("web", 1) }
}

#[test]
fn references_are_ids_names_or_unique_prefixes() {
    let mut world = World::new(11);
    let id = world.create(spec("web", 1));
    for reference in [id.as_str(), "web", &id[..9]] {
        assert_eq!(
            get(&world.state, ObjectKind::Service, reference).map(|found| found.key().1.to_owned()),
            Ok(id.clone())
        );
    }
    let node = |reference: &str| text(get(&world.state, ObjectKind::Node, reference));
    assert_eq!(node("n1"), "done", "an id, though also a prefix");
    assert_eq!(node("host-n3"), "done");
    assert_eq!(node("n"), "node n is ambiguous (2 matches found)");
    assert_eq!(node("x"), "node x not found");
    assert_eq!(node(""), "node  not found");
}

#[test]
fn a_task_is_found_by_its_container_too() {
    let mut world = World::new(1);
    let id = world.create(spec("web", 2));
    world.run(Duration::from_secs(2));
    let tasks = world.live(&id);
    let mut plan = Plan::default();
    for (task, container_id) in tasks.iter().zip(["ab01", "ab02"]) {
        let container =
            ContainerStatus { container_id: container_id.to_owned(), ..ContainerStatus::default() };
        let status = TaskStatus { container: Some(container), ..task.status.clone().unwrap_or_default() };
        plan.update(Task { status: Some(status), ..Task::clone(task) });
    }
    world.write(Author::Dispatcher, plan.into_changes());
    let found = |reference: &str| get(&world.state, ObjectKind::Task, reference);
    assert_eq!(found("container:ab02").map(|task| task.key().1.to_owned()), Ok(tasks[1].id.clone()));
    assert_eq!(text(found("container:ab")), "task container:ab is ambiguous (2 matches found)");
    assert_eq!(text(found("container:b")), "task container:b not found");
    assert_eq!(text(found("container:")), "task container: not found");
    assert_eq!(text(found("ab01")), "task ab01 not found");
    // What runs in a slot is found by the slot's name.
    assert_eq!(found(&format!("container:{}", tasks[0].slot_name())), found("container:ab01"));
    for nobodys in ["container:web.3", "container:db.1", "container:web."] {
        assert_eq!(text(found(nobodys)), format!("task {nobodys} not found"));
    }
}

#[test]
fn names_are_had_once() {
    let mut world = World::new(1);
    world.create(spec("web", 1));
    let error = create(&mut world, spec("web", 2)).expect_err("taken");
    assert_eq!(error.to_string(), "name conflicts with an existing object: service web already exists");
    assert_eq!(error.kind(), Kind::Conflict);
}

#[test]
fn a_service_that_needs_no_address_stays_as_its_creator_reads_it() {
    let mut world = World::new(1);
    let id = create(&mut world, spec("web", 1)).expect("created");
    let created = world.service(&id).meta().version;
    world.reconcile();
    assert_eq!(world.live(&id).len(), 1);
    assert_eq!(world.service(&id).meta().version, created);
}

#[test]
fn an_update_must_have_read_the_latest() {
    let mut world = World::new(1);
    let id = world.create(spec("web", 1));
    let read = world.service(&id);
    world.change(&id, |spec| set_image(spec, "web:2"));
    let version = read.meta().version;
    let stale =
        UpdateServiceRequest { id, version, spec: read.spec.clone(), ..UpdateServiceRequest::default() };
    assert_eq!(text(update(&mut world, stale)), "update out of sequence");
}

#[test]
fn mode_and_name_stay() {
    let mut world = World::new(1);
    let id = world.create(spec("web", 1));
    let attempt = |world: &mut World, change: fn(&mut ServiceSpec)| {
        let service = world.service(&id);
        let mut spec = service.spec.clone().unwrap_or_default();
        change(&mut spec);
        let (id, version) = (id.clone(), service.meta().version);
        text(update(world, UpdateServiceRequest { id, version, spec: Some(spec), ..Default::default() }))
    };
    let global = |spec: &mut ServiceSpec| {
        spec.mode = Some(service_spec::Mode::Global(rswarm_proto::wire::Global {}));
    };
    assert_eq!(attempt(&mut world, global), "service mode change is not allowed");
    let rename = |spec: &mut ServiceSpec| spec.annotations.get_or_insert_default().name = "api".to_owned();
    assert_eq!(attempt(&mut world, rename), "renaming services is not supported");
}

#[test]
fn a_manual_rollback_swaps_the_specs() {
    let mut world = World::new(1);
    let id = world.create(spec("web", 1));
    let back = |world: &mut World| {
        let mut request = UpdateServiceRequest { id: id.clone(), ..UpdateServiceRequest::default() };
        request.version = world.service(&id).meta().version;
        request.set_rollback(update_service_request::Rollback::Previous);
        text(update(world, request))
    };
    assert_eq!(back(&mut world), format!("service {id} does not have a previous spec"));
    let first = world.service(&id).spec.clone();
    world.change(&id, |spec| set_image(spec, "web:2"));
    let second = world.service(&id).spec.clone();
    assert_eq!(back(&mut world), "done");
    let service = world.service(&id);
    assert_eq!((&service.spec, &service.previous_spec), (&first, &second));
    let status = service.update_status.clone().expect("status");
    assert_eq!(status.state(), update_status::State::RollbackStarted);
    assert_eq!(status.message, "manually requested rollback");
    world.run(Duration::from_secs(10));
    let state = world.service(&id).update_status.as_ref().map(|status| status.state());
    assert!(matches!(state, Some(update_status::State::RollbackCompleted)));
}

#[test]
fn credentials_are_kept_and_never_shown() {
    let mut world = World::new(1);
    let mut web = spec("web", 1);
    *registry_auth(&mut web).expect("a container") = "hush-hush".to_owned();
    let id = world.create(web);
    world.change(&id, |spec| {
        registry_auth(spec).expect("a container").clear();
        set_image(spec, "web:2");
    });
    let mut stored = world.service(&id).spec.clone().expect("spec");
    assert_eq!(registry_auth(&mut stored).map(|auth| auth.clone()), Some("hush-hush".to_owned()));
    world.run(Duration::from_secs(2));
    for kind in [ObjectKind::Service, ObjectKind::Task] {
        for object in list(&world.state, kind) {
            assert!(!format!("{:?}", shown(&object)).contains("hush-hush"));
        }
    }
    let root_ca = Some(RootCa { key_pem: b"secret".to_vec(), ..RootCa::default() });
    let cluster = AnyObject::Cluster(Arc::new(Cluster { root_ca, ..Cluster::default() }));
    let Some(object::Object::Cluster(cluster)) = shown(&cluster).object else { panic!("a cluster") };
    assert_eq!(cluster.root_ca.map(|root| root.key_pem.len()), Some(0));
}

#[test]
fn a_published_port_is_one_services() {
    let mut world = World::new(1);
    world.reconcile();
    let id = create(&mut world, published(port_config::Mode::Ingress)).expect("created");
    let named = |name: &str, mode| ServiceSpec { annotations: spec(name, 1).annotations, ..published(mode) };
    let error = create(&mut world, named("api", port_config::Mode::Ingress)).expect_err("taken");
    assert_eq!(error.kind(), Kind::InvalidArgument);
    let taken = format!("port '8080' is already in use by service 'web' ({id}) as an ingress port");
    assert_eq!(error.to_string(), taken);
    assert_eq!(text(create(&mut world, named("api", port_config::Mode::Host))), taken);
    world.remove_service(&id);
    let host = create(&mut world, named("api", port_config::Mode::Host)).expect("free again");
    let taken = format!("port '8080' is already in use by service 'api' ({host}) as a host-published port");
    assert_eq!(text(create(&mut world, named("web2", port_config::Mode::Ingress))), taken);
    assert_eq!(text(create(&mut world, named("api2", port_config::Mode::Host))), "done", "on another node");
}

#[test]
fn all_that_is_wrong_is_told_at_once_and_how_to_mend_it() {
    let mut world = World::new(1);
    world.reconcile();
    let id = create(&mut world, published(port_config::Mode::Ingress)).expect("created");
    let mut wrong = published(port_config::Mode::Ingress);
    wrong.annotations = spec("a.b", 1).annotations;
    let file = Some(FileTarget { name: "key".to_owned(), ..FileTarget::default() });
    let reference = FileReference { id: "gone".to_owned(), name: "key".to_owned(), file };
    wrong.task.get_or_insert_default().secrets.push(reference);
    let error = create(&mut world, wrong).expect_err("wrong in three ways");
    assert_eq!(error.kind(), Kind::InvalidArgument);
    let taken = format!("port '8080' is already in use by service 'web' ({id}) as an ingress port");
    assert_eq!(
        error.to_string(),
        format!("name must be valid as a DNS name component; secret not found: key; {taken}")
    );
    assert_eq!(
        error.hint().as_deref(),
        Some(
            "use letters, digits, `-` and `_`, and begin and end with a letter or digit; `rswarm secret ls` shows what \
             there is, `rswarm secret create` makes one; publish another port, or remove it from service web"
        )
    );
}

#[test]
fn a_port_that_was_given_counts_as_taken() {
    let mut world = World::new(1);
    world.reconcile();
    let mut web = spec("web", 1);
    publish(&mut web, [port(0, 80)]);
    let id = world.create(web);
    world.reconcile();
    let mut api = spec("api", 1);
    publish(&mut api, [port(30_000, 80)]);
    let taken = format!("port '30000' is already in use by service 'web' ({id}) as an ingress port");
    assert_eq!(text(create(&mut world, api)), taken);
}

#[test]
fn a_changed_port_replaces_no_task() {
    let mut world = World::new(2);
    let mut web = spec("web", 2);
    publish(&mut web, [port(8080, 80)]);
    let id = world.create(web);
    world.run(Duration::from_secs(2));
    let tasks = |world: &World| world.live(&id).iter().map(|task| task.id.clone()).collect::<Vec<_>>();
    let before = tasks(&world);
    world.change(&id, |spec| publish(spec, [port(8081, 80), port(9090, 90)]));
    world.run(Duration::from_secs(2));
    assert_eq!(tasks(&world), before);
    let endpoint = world.service(&id).endpoint.clone().expect("endpoint");
    assert_eq!(endpoint.ports.iter().map(|port| port.published).collect::<Vec<_>>(), [8081, 9090]);
    // A place on the ingress network is the task's own: without any port it goes.
    world.change(&id, |spec| publish(spec, []));
    world.run(Duration::from_secs(30));
    assert!(world.live(&id).iter().all(|task| task.networks.is_empty()));
    assert!(tasks(&world).iter().all(|id| !before.contains(id)));
}

#[test]
fn the_ingress_network_is_one_and_stays_while_it_is_used() {
    let mut world = World::new(1);
    world.reconcile();
    let ingress = world.state.ingress_network().expect("ingress").id.clone();
    let make = |world: &mut World, name: &str, attachable: bool| {
        let annotations = Some(Annotations { name: name.to_owned(), ..Annotations::default() });
        let spec = NetworkSpec { annotations, attachable, ingress: true, ..NetworkSpec::default() };
        let request = CreateNetworkRequest { spec: Some(spec) };
        text(world.control(|state, _, ids| create_network(state, &request, ids)))
    };
    assert_eq!(make(&mut world, "mesh", false), format!("ingress network ({ingress}) is already present"));
    assert_eq!(make(&mut world, "mesh", true), "ingress network cannot be attachable");
    let mut on_it = spec("lost", 1);
    attach(&mut on_it, "ingress");
    let refused = "Service cannot be explicitly attached to the ingress network \"ingress\"";
    assert_eq!(text(create(&mut world, on_it)), refused);
    let id = create(&mut world, published(port_config::Mode::Ingress)).expect("created");
    let remove = |world: &mut World| {
        let request = RemoveRequest { id: "ingress".to_owned(), force: false };
        text(world.control(|state, _, ids| remove_network(state, &request, ids)))
    };
    let refused = format!("ingress network cannot be removed because service {id} depends on it");
    assert_eq!(remove(&mut world), refused);
    world.remove_service(&id);
    assert_eq!(remove(&mut world), "done");
    world.reconcile();
    let refused = "service needs ingress network, but no ingress network is present";
    assert_eq!(text(create(&mut world, published(port_config::Mode::Ingress))), refused);
    assert_eq!(make(&mut world, "mesh", false), "done");
    assert_eq!(text(create(&mut world, published(port_config::Mode::Ingress))), "done");
}

#[test]
fn networks_are_found_by_name_and_must_exist() {
    let mut world = World::new(1);
    let network = world.network("net");
    let mut web = spec("web", 1);
    attach(&mut web, "net");
    let id = world.create(web);
    assert_eq!(world.service(&id).task_spec().networks[0].target, network);
    let mut lost = spec("lost", 1);
    attach(&mut lost, "nowhere");
    assert_eq!(text(create(&mut world, lost)), "Networks: network nowhere not found");
}

fn member(id: u64, active: bool) -> Member {
    Member { id, learner: false, matched: 0, active }
}

/// A world whose first `managers` nodes are managers with raft ids from one.
fn managed(managers: u64) -> World {
    let mut world = World::new(4);
    for id in 1..=managers {
        world.change_node(&format!("n{id}"), Author::Membership, |node| {
            node.manager_status =
                Some(rswarm_proto::wire::ManagerStatus { raft_id: id, ..Default::default() });
            node.set_role(NodeRole::Manager);
        });
        world.change_node(&format!("n{id}"), Author::Control, |node| {
            node.spec.get_or_insert_default().set_desired_role(NodeRole::Manager);
        });
    }
    world
}

fn demote(world: &mut World, node: &str, members: &[Member]) -> String {
    let version = world.state.node(node).map(|node| node.meta().version).unwrap_or_default();
    let request = UpdateNodeRequest { id: node.to_owned(), version, spec: Some(NodeSpec::default()) };
    text(world.control(|state, _, ids| update_node(state, &request, members, ids)))
}

#[test]
fn the_last_manager_and_the_quorum_stay() {
    let mut world = managed(1);
    let refused = demote(&mut world, "n1", &[member(1, true)]);
    assert_eq!(refused, "attempting to demote the last manager of the swarm (1 of 1)");
    let mut world = managed(3);
    let refused = demote(&mut world, "n1", &[member(1, true), member(2, true), member(3, false)]);
    assert_eq!(
        refused,
        "can't remove member from the raft: this would result in a loss of quorum (1 of the 2 other managers are reachable, 2 are needed)"
    );
    let dead = demote(&mut world, "n3", &[member(1, true), member(2, true), member(3, false)]);
    assert_eq!(dead, "done", "one that does not answer can go");
}

#[test]
fn a_manager_leaves_by_force_but_not_the_last_one() {
    let mut world = managed(2);
    let leave = |world: &mut World, node: &str, force: bool| {
        let request = LeaveManagerRequest { node_id: node.to_owned(), force };
        let members = [member(1, true), member(2, false)];
        text(world.control(|state, _, ids| leave_manager(state, &request, &members, ids)))
    };
    assert!(leave(&mut world, "n1", false).contains("loss of quorum (0 of the 1 other managers"));
    assert_eq!(leave(&mut world, "n1", true), "done");
    assert!(leave(&mut world, "n2", true).starts_with("attempting to demote the last manager"));
}

#[test]
fn only_a_worker_that_is_down_is_removed_without_force() {
    let mut world = managed(1);
    world.reconcile();
    let remove = |world: &mut World, node: &str, force: bool| {
        let request = RemoveRequest { id: node.to_owned(), force };
        text(world.control(|state, _, ids| remove_node(state, &request, ids)))
    };
    assert_eq!(
        remove(&mut world, "n1", true),
        "node n1 is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal"
    );
    assert_eq!(remove(&mut world, "n2", false), "node n2 is not down and can't be removed");
    assert_eq!(remove(&mut world, "n2", true), "done");
    assert_eq!(
        world.state.cluster().map(|cluster| cluster.removed_nodes.clone()),
        Some(vec!["n2".to_owned()])
    );
    world.cut.insert("n3".to_owned());
    world.run(Duration::from_secs(8));
    assert_eq!(remove(&mut world, "n3", false), "done");
}

#[test]
fn tokens_are_rotated_one_by_one() {
    let mut world = World::new(1);
    let version = world.state.cluster().map(|cluster| cluster.meta().version).unwrap_or_default();
    let request =
        UpdateClusterRequest { version, rotate_worker_token: true, ..UpdateClusterRequest::default() };
    let none = world.control(|state, _, ids| update_cluster(state, &request, Fresh::default(), ids));
    assert_eq!(text(none), "a new join token must be provided");
    let tokens = Fresh { worker: Some("w2".to_owned()), manager: Some("m2".to_owned()), ..Fresh::default() };
    world.control(|state, _, ids| update_cluster(state, &request, tokens, ids)).expect("rotated");
    let root = world.state.cluster().and_then(|cluster| cluster.root_ca.clone()).expect("root");
    assert_eq!((root.worker_token.as_str(), root.manager_token.as_str()), ("w2", ""));
}

#[test]
fn a_node_keeps_what_its_update_does_not_name() {
    let mut world = World::new(1);
    let version = world.state.node("n1").map(|node| node.meta().version).unwrap_or_default();
    let mut spec = NodeSpec::default();
    spec.set_availability(NodeAvailability::Drain);
    let request = UpdateNodeRequest { id: "host-n1".to_owned(), version, spec: Some(spec) };
    world.control(|state, _, ids| update_node(state, &request, &[], ids)).expect("updated");
    let node = world.state.node("n1").expect("node");
    assert!(node.description.is_some() && node.status.is_some());
}

#[test]
fn locked_managers_have_a_key_that_no_read_shows() {
    let mut world = World::new(1);
    let spec = |world: &World, auto_lock| {
        let spec = world.state.cluster().expect("a cluster").spec.clone().expect("spec");
        Some(ClusterSpec { auto_lock, ..spec })
    };
    let update = |world: &mut World, auto_lock, rotate_unlock_key, fresh: &[u8]| {
        let version = world.state.cluster().expect("a cluster").meta().version;
        let spec = spec(world, auto_lock);
        let request = UpdateClusterRequest { version, spec, rotate_unlock_key, ..Default::default() };
        let fresh = Fresh { unlock_key: fresh.to_vec(), ..Fresh::default() };
        world.control(|state, _, ids| update_cluster(state, &request, fresh, ids)).map(drop)
    };
    let key = |world: &World| world.state.cluster().expect("a cluster").unlock_key.clone();
    update(&mut world, false, true, b"k0").expect("nothing is locked, so there is nothing to rotate");
    assert!(key(&world).is_empty());
    assert!(update(&mut world, true, false, b"").is_err(), "locking needs a key");
    update(&mut world, true, false, b"k1").expect("locked");
    assert_eq!(key(&world), b"k1");
    update(&mut world, true, false, b"k2").expect("nothing changes");
    assert_eq!(key(&world), b"k1");
    update(&mut world, true, true, b"k3").expect("rotated");
    assert_eq!(key(&world), b"k3");
    let shown = list(&world.state, ObjectKind::Cluster).iter().map(shown).next().expect("shown");
    let Some(object::Object::Cluster(cluster)) = shown.object else { panic!("no cluster") };
    assert!(cluster.unlock_key.is_empty());
    update(&mut world, false, false, b"").expect("unlocked");
    assert!(key(&world).is_empty());
}
