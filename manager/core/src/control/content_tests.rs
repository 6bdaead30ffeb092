//! Secrets and configs on a world in memory.

use rswarm_proto::model::object::Stored;
use rswarm_proto::wire::{
    Annotations, ContentSpec, CreateConfigRequest, CreateSecretRequest, FileReference, FileTarget,
    ObjectKind, RemoveRequest, ServiceSpec, UpdateConfigRequest, UpdateSecretRequest, object,
};

use super::*;
use crate::assign::{assignments, is_content};
use crate::author::Author;
use crate::reconcile::Plan;
use crate::world::{World, set_image, spec};

fn text<T>(result: Result<T, ControlError>) -> String {
    result.map_or_else(|error| error.to_string(), |_| "done".to_owned())
}

fn content(name: &str, label: &str) -> Option<ContentSpec> {
    let labels = [("l".to_owned(), label.to_owned())].into();
    let annotations = Some(Annotations { name: name.to_owned(), labels });
    Some(ContentSpec { annotations, data: b"hush".to_vec(), templating: String::new() })
}

fn secret(world: &mut World, name: &str) -> Result<String, ControlError> {
    let request = CreateSecretRequest { spec: content(name, "") };
    world.control(|state, _, ids| create_secret(state, &request, ids))
}

fn config(world: &mut World, name: &str) -> Result<String, ControlError> {
    let request = CreateConfigRequest { spec: content(name, "") };
    world.control(|state, _, ids| create_config(state, &request, ids))
}

fn remove(world: &mut World, id: &str) -> Result<String, ControlError> {
    let request = RemoveRequest { id: id.to_owned(), force: false };
    world.control(|state, _, ids| match state.secret(&request.id) {
        Some(_) => remove_secret(state, &request, ids),
        None => remove_config(state, &request, ids),
    })
}

fn reference(id: &str, name: &str) -> FileReference {
    let file = Some(FileTarget { name: name.to_owned(), mode: 0o444, ..FileTarget::default() });
    FileReference { id: id.to_owned(), name: name.to_owned(), file }
}

fn with_secret(mut spec: ServiceSpec, id: &str, name: &str) -> ServiceSpec {
    spec.task.get_or_insert_default().secrets.push(reference(id, name));
    spec
}

#[test]
fn names_are_had_once_and_labels_alone_change() {
    let mut world = World::new(1);
    let id = secret(&mut world, "key").expect("created");
    assert_eq!(text(secret(&mut world, "key")), "secret key already exists");
    assert_eq!(text(config(&mut world, "key")), "done", "a config may be called like a secret");

    let update = |world: &mut World, version: u64, spec: Option<ContentSpec>| {
        let request = UpdateSecretRequest { id: id.clone(), version, spec, new_version: false };
        world.control(|state, _, ids| update_secret(state, &request, ids))
    };
    let version = world.state.secret(&id).expect("stored").meta().version;
    assert_eq!(text(update(&mut world, version - 1, content("key", "x"))), "update out of sequence");
    let other = content("key", "x").map(|spec| ContentSpec { data: b"loud".to_vec(), ..spec });
    assert_eq!(text(update(&mut world, version, other)), "only updates to Labels are allowed");
    assert_eq!(text(update(&mut world, version, content("lock", ""))), "only updates to Labels are allowed");
    let silent = content("key", "x").map(|spec| ContentSpec { data: Vec::new(), ..spec });
    assert_eq!(text(update(&mut world, version, silent)), "done");
    let stored = world.state.secret(&id).expect("stored").spec.clone().expect("a spec");
    assert_eq!(
        (stored.data, stored.annotations.expect("labels").labels["l"].clone()),
        (b"hush".to_vec(), "x".into())
    );

    let config = world.state.config_named("key").expect("stored").clone();
    let (id, version) = ("key".to_owned(), config.meta().version);
    let request = UpdateConfigRequest { id, version, spec: content("key", "y"), new_version: false };
    assert_eq!(text(world.control(|state, _, ids| update_config(state, &request, ids))), "done");
}

#[test]
fn a_reply_shows_a_configs_data_and_never_a_secrets() {
    let mut world = World::new(1);
    let (key, web) =
        (secret(&mut world, "key").expect("created"), config(&mut world, "web").expect("created"));
    let shown = |kind, id: &str| shown(&get(&world.state, kind, id).expect("stored")).object;
    let data = |object| match object {
        Some(object::Object::Secret(secret)) => secret.spec.expect("a spec").data,
        Some(object::Object::Config(config)) => config.spec.expect("a spec").data,
        _ => panic!("another kind"),
    };
    assert_eq!(data(shown(ObjectKind::Secret, &key)), b"");
    assert_eq!(data(shown(ObjectKind::Config, &web)), b"hush");
}

#[test]
fn what_a_service_uses_stays_until_it_goes() {
    let mut world = World::new(1);
    let id = secret(&mut world, "key").expect("created");
    let web = world.create(with_secret(spec("web", 1), &id, "key"));
    let api = world.create(with_secret(spec("api", 1), &id, "key"));
    assert_eq!(text(remove(&mut world, &id)), "secret 'key' is in use by the following services: api, web");
    world.remove_service(&api);
    assert_eq!(text(remove(&mut world, &id)), "secret 'key' is in use by the following service: web");
    world.remove_service(&web);
    assert_eq!(text(remove(&mut world, &id)), "done");

    let wanted = with_secret(with_secret(spec("web", 1), &id, "key"), "none", "other");
    let request = rswarm_proto::wire::CreateServiceRequest { spec: Some(wanted) };
    let refused = world.control(|state, now, ids| create_service(state, &request, now, ids));
    assert_eq!(text(refused), "secrets not found: key, other");
    let other = secret(&mut world, "other").expect("created");
    let request =
        rswarm_proto::wire::CreateServiceRequest { spec: Some(with_secret(spec("web", 1), &other, "alias")) };
    let refused = world.control(|state, now, ids| create_service(state, &request, now, ids));
    assert_eq!(text(refused), "secret not found: alias", "id and name must belong together");
}

#[test]
fn a_service_and_the_removal_of_its_secret_are_not_both_applied() {
    let mut world = World::new(1);
    let id = secret(&mut world, "key").expect("created");
    let service = rswarm_proto::wire::Service {
        id: "s".to_owned(),
        spec: Some(with_secret(spec("web", 1), &id, "key")),
        ..rswarm_proto::wire::Service::default()
    };
    let transaction = |changes| Transaction { id: 1, author: Author::Control.name().to_owned(), changes };
    let (mut create, mut delete) = (Plan::default(), Plan::default());
    create.create(service);
    delete.delete(ObjectKind::Secret, &id);
    for [first, second] in [[&create, &delete], [&delete, &create]] {
        let transactions =
            vec![transaction(first.clone().into_changes()), transaction(second.clone().into_changes())];
        let batch = rswarm_proto::wire::Batch { now: 1, transactions };
        let applied = crate::apply(&world.state, 1000, batch);
        assert_eq!((applied.results[0].1.is_ok(), applied.results[1].1.is_ok()), (true, false));
    }
}

#[test]
fn a_node_gets_the_secrets_of_its_tasks_while_they_have_not_ended() {
    let mut world = World::new(2);
    let (key, other) =
        (secret(&mut world, "key").expect("created"), secret(&mut world, "other").expect("made"));
    let mut wanted = with_secret(spec("web", 1), &key, "key");
    wanted
        .task
        .get_or_insert_default()
        .restart
        .get_or_insert_default()
        .set_condition(rswarm_proto::wire::restart_policy::Condition::None);
    let id = world.create(wanted);
    world.run(std::time::Duration::from_secs(2));
    let node = world.live(&id)[0].node_id.clone();
    let set = assignments(&world.state, &node);
    assert_eq!(set.secrets.keys().collect::<Vec<_>>(), [&key]);
    assert!(!set.secrets.contains_key(&other));
    let last = set.complete().pop().expect("changes");
    assert!(is_content(&last), "what may be large is last");
    let elsewhere = if node == "n1" { "n2" } else { "n1" };
    assert!(assignments(&world.state, elsewhere).secrets.is_empty());

    let task = world.live(&id)[0].id.clone();
    world.report(&task, rswarm_proto::model::task::TaskState::Complete);
    let after = assignments(&world.state, &node);
    assert!(after.secrets.is_empty() && after.tasks.contains_key(&task), "nothing is left that needs it");
    assert_eq!(set.diff(&after).len(), 2);
}

#[test]
fn no_update_rolls_back_to_a_secret_that_is_gone() {
    let mut world = World::new(1);
    let id = secret(&mut world, "key").expect("created");
    let web = world.create(with_secret(spec("web", 1), &id, "key"));
    world.run(std::time::Duration::from_secs(2));
    world.change(&web, |spec| {
        spec.task.get_or_insert_default().secrets.clear();
        set_image(spec, "web:2");
    });
    assert_eq!(text(remove(&mut world, &id)), "done");
    let request = rswarm_proto::wire::UpdateServiceRequest {
        id: web.clone(),
        version: world.service(&web).meta().version,
        rollback: rswarm_proto::wire::update_service_request::Rollback::Previous.into(),
        ..Default::default()
    };
    let refused = world.control(|state, now, ids| update_service(state, &request, now, ids));
    assert_eq!(text(refused), "secret not found: key");
}
