//! Versions of secrets and configs on a world in memory.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rswarm_proto::model::content::Content as _;
use rswarm_proto::model::object::Stored;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::update_config::FailureAction;
use rswarm_proto::wire::update_status::State as Phase;
use rswarm_proto::wire::{
    Annotations, Batch, ContentSpec, CreateSecretRequest, CreateServiceRequest, FileReference, FileTarget,
    ObjectKind, RemoveRequest, Secret, ServiceSpec, Task, Transaction, UpdateConfig, UpdateSecretRequest,
    UpdateServiceRequest, update_service_request::Rollback,
};

use super::*;
use crate::author::Author;
use crate::content::{VERSIONS, versions};
use crate::state::State;
use crate::world::{World, spec};

const SECOND: i64 = 1_000_000_000;

fn content(data: &str) -> ContentSpec {
    let annotations = Some(Annotations { name: "key".to_owned(), ..Annotations::default() });
    ContentSpec { annotations, data: data.as_bytes().to_vec(), templating: String::new() }
}

/// A cluster with a secret, and its id.
fn with_secret() -> (World, String) {
    let mut world = World::new(3);
    let request = CreateSecretRequest { spec: Some(content("one")) };
    let id = world.control(|state, _, ids| create_secret(state, &request, ids)).expect("created");
    (world, id)
}

fn latest(world: &World) -> Arc<Secret> {
    world.state.secret_named("key").expect("the secret").clone()
}

fn asked(world: &World, spec: ContentSpec, new_version: bool) -> UpdateSecretRequest {
    let latest = latest(world);
    UpdateSecretRequest {
        id: latest.id.clone(),
        version: latest.meta().version,
        spec: Some(spec),
        new_version,
    }
}

fn renew(world: &mut World, data: &str) -> String {
    let request = asked(world, content(data), true);
    world.control(|state, _, ids| update_secret(state, &request, ids)).expect("a new version")
}

/// A service with the secret under this name, as `name` or `name@number`.
fn using(name: &str, replicas: u64, id: &str, called: &str) -> ServiceSpec {
    let mut spec = spec(name, replicas);
    let file = Some(FileTarget { name: "key".to_owned(), ..FileTarget::default() });
    let reference = FileReference { id: id.to_owned(), name: called.to_owned(), file };
    spec.task.get_or_insert_default().secrets.push(reference);
    spec.update = Some(UpdateConfig { parallelism: 1, monitor: 2 * SECOND, ..UpdateConfig::default() });
    spec
}

fn secret_of(task: &Task) -> String {
    task.spec.as_ref().expect("a spec").secrets[0].id.clone()
}

/// The versions that live tasks of a service have.
fn had(world: &World, service: &str) -> BTreeSet<String> {
    world.live(service).iter().map(|task| secret_of(task)).collect()
}

fn phase(world: &World, service: &str) -> Phase {
    world.service(service).update_status.as_ref().map_or(Phase::Unknown, |status| status.state())
}

fn exists(world: &World, id: &str) -> bool {
    world.state.secret(id).is_some()
}

#[test]
fn a_new_version_is_rolled_out_and_the_old_one_goes_when_nothing_needs_it() {
    let (mut world, one) = with_secret();
    let web = world.create(using("web", 3, &one, "key"));
    world.run(Duration::from_secs(2));
    let two = renew(&mut world, "two");
    assert_eq!((latest(&world).id.as_str(), latest(&world).number()), (two.as_str(), 2));
    // Slot by slot, as the service says.
    let mut mixed = 0;
    while phase(&world, &web) != Phase::Completed {
        world.step();
        assert!(world.running(&web) >= 2, "one at a time");
        mixed += usize::from(had(&world, &web).len() == 2);
        assert!(exists(&world, &one), "there is a way back to it");
    }
    assert!(mixed > 0);
    assert_eq!(had(&world, &web), [two.clone()].into());
    let told = versions(&world.state, latest(&world).as_ref());
    assert_eq!(
        told.iter().map(|version| (version.number, version.services.len())).collect::<Vec<_>>(),
        [(1, 0), (2, 1)]
    );
    // Another update, and nothing leads back to the first any more.
    let three = renew(&mut world, "three");
    world.run(Duration::from_secs(30));
    assert_eq!((had(&world, &web), phase(&world, &web)), ([three].into(), Phase::Completed));
    assert!(!exists(&world, &one) && exists(&world, &two));
    assert_eq!(
        State::restore(world.state.snapshot())
            .expect("restored")
            .content_versions(ObjectKind::Secret, "key")
            .len(),
        2
    );
    world.remove_service(&web);
    world.run(Duration::from_secs(5));
    assert!(!exists(&world, &two), "nobody is left to go back to it");
}

#[test]
fn a_failing_version_is_rolled_back_as_any_update_and_the_next_one_rolled_out() {
    let (mut world, one) = with_secret();
    let mut wanted = using("web", 2, &one, "key");
    wanted.update.get_or_insert_default().failure_action = FailureAction::Rollback.into();
    wanted.rollback = wanted.update;
    let web = world.create(wanted);
    world.run(Duration::from_secs(2));
    let two = renew(&mut world, "broken");
    let broken = loop {
        world.step();
        let tasks = world.live(&web);
        let is_new = |task: &&Arc<Task>| secret_of(task) == two && task.observed() == TaskState::Running;
        if let Some(task) = tasks.iter().find(is_new) {
            break task.id.clone();
        }
    };
    world.report(&broken, TaskState::Failed);
    world.run(Duration::from_secs(30));
    assert_eq!((had(&world, &web), phase(&world, &web)), ([one.clone()].into(), Phase::RollbackCompleted));
    // What users change otherwise leaves the version where it is; only the next one is rolled out.
    world.change(&web, |spec| spec.task.get_or_insert_default().force_update += 1);
    world.run(Duration::from_secs(30));
    assert_eq!(had(&world, &web), [one].into());
    let three = renew(&mut world, "three");
    world.run(Duration::from_secs(30));
    assert_eq!((had(&world, &web), phase(&world, &web)), ([three].into(), Phase::Completed));
}

#[test]
fn a_user_rolls_back_to_the_version_before() {
    let (mut world, one) = with_secret();
    let web = world.create(using("web", 2, &one, "key"));
    world.run(Duration::from_secs(2));
    renew(&mut world, "two");
    world.run(Duration::from_secs(30));
    let version = world.service(&web).meta().version;
    let back = UpdateServiceRequest {
        id: web.clone(),
        version,
        rollback: Rollback::Previous.into(),
        ..UpdateServiceRequest::default()
    };
    world.control(|state, now, ids| update_service(state, &back, now, ids)).expect("rolled back");
    world.run(Duration::from_secs(30));
    assert_eq!(had(&world, &web), [one].into());
}

#[test]
fn a_pinned_version_stays_and_so_does_a_paused_service() {
    let (mut world, one) = with_secret();
    let pinned = world.create(using("pinned", 1, &one, "key@1"));
    let web = world.create(using("web", 2, &one, "key"));
    world.run(Duration::from_secs(2));
    world.change(&web, |spec| spec.task.get_or_insert_default().force_update += 1);
    world.reconcile();
    let fresh = loop {
        world.step();
        let begun = world.service(&web).spec_version;
        let tasks = world.live(&web);
        let is_new = |task: &&Arc<Task>| task.spec_version == begun && task.observed() == TaskState::Running;
        if let Some(task) = tasks.iter().find(is_new) {
            break task.id.clone();
        }
    };
    world.report(&fresh, TaskState::Failed);
    world.run(Duration::from_secs(2));
    assert_eq!(phase(&world, &web), Phase::Paused);
    let two = renew(&mut world, "two");
    world.run(Duration::from_secs(10));
    assert_eq!(had(&world, &pinned), [one.clone()].into());
    assert_eq!((had(&world, &web), phase(&world, &web)), ([one].into(), Phase::Paused));
    assert_eq!(get(&world.state, ObjectKind::Secret, "key@2").expect("by number").key().1, two);
    // The same content again brings the service along, once it goes on.
    world.change(&web, |spec| spec.task.get_or_insert_default().force_update += 1);
    world.run(Duration::from_secs(30));
    assert_eq!(renew(&mut world, "two"), two);
    world.run(Duration::from_secs(30));
    assert_eq!((had(&world, &web), had(&world, &pinned).len()), ([two].into(), 1));
}

#[test]
fn docker_clients_make_versions_where_the_label_says_so() {
    let (mut world, one) = with_secret();
    let refused = asked(&world, content("two"), false);
    let error = world.control(|state, _, ids| update_secret(state, &refused, ids)).expect_err("refused");
    assert_eq!(error, ControlError::LabelsOnly);
    let labelled = |data: &str| {
        let mut spec = content(data);
        let labels = &mut spec.annotations.get_or_insert_default().labels;
        labels.insert(VERSIONS.to_owned(), "true".to_owned());
        spec
    };
    let same = asked(&world, labelled("one"), false);
    world.control(|state, _, ids| update_secret(state, &same, ids)).expect("labels alone");
    assert_eq!(latest(&world).id, one);
    let other = asked(&world, labelled("two"), false);
    world.control(|state, _, ids| update_secret(state, &other, ids)).expect("a new version");
    assert_eq!(latest(&world).number(), 2);
    world.reconcile();
    assert!(!exists(&world, &one), "nothing used it");
    assert_eq!(list(&world.state, ObjectKind::Secret).len(), 1);
}

#[test]
fn an_old_id_of_a_client_leads_to_the_latest_version_and_removal_takes_all() {
    let (mut world, one) = with_secret();
    let pinned = world.create(using("pinned", 1, &one, "key@1"));
    renew(&mut world, "two");
    let web = world.create(using("web", 1, &one, "key"));
    assert_eq!(world.service(&web).task_spec().secrets[0].id, latest(&world).id);
    let stale = UpdateSecretRequest { id: one.clone(), ..asked(&world, content("three"), true) };
    let version = world.state.secret(&one).expect("kept").meta().version;
    let stale = UpdateSecretRequest { version, ..stale };
    let error = world.control(|state, _, ids| update_secret(state, &stale, ids)).expect_err("refused");
    assert_eq!(error, ControlError::OutOfSequence);
    let remove = RemoveRequest { id: "key".to_owned(), force: false };
    let error = world.control(|state, _, ids| remove_secret(state, &remove, ids)).expect_err("in use");
    assert_eq!(error.to_string(), "secret 'key' is in use by the following services: pinned, web");
    world.remove_service(&pinned);
    world.remove_service(&web);
    world.control(|state, _, ids| remove_secret(state, &remove, ids)).expect("removed");
    assert_eq!(world.state.secrets().count(), 0);
    let again = CreateSecretRequest { spec: Some(content("new")) };
    world.control(|state, _, ids| create_secret(state, &again, ids)).expect("the name is free");
    assert_eq!(latest(&world).number(), 1);
}

#[test]
fn of_two_new_versions_at_once_one_must_decide_anew() {
    let (mut world, _) = with_secret();
    let first = asked(&world, content("two"), true);
    let second = asked(&world, content("other"), true);
    let mut ids = IdGen::seeded(9);
    let (a, _) = update_secret(&world.state, &first, &mut ids).expect("decided");
    let (b, _) = update_secret(&world.state, &second, &mut ids).expect("decided");
    let batch = Batch { now: 1, transactions: vec![a, b] };
    let applied = crate::apply(&world.state, 1000, batch);
    assert!(applied.results[0].1.is_ok());
    let rejected = applied.results[1].1.clone().expect_err("too late");
    assert!(matches!(rejected, crate::Rejected::Version { .. }), "{rejected}");
    // Neither may a reconciler write content.
    let mut plan = Plan::default();
    plan.create(Secret::new("x".to_owned(), content("x"), 2));
    let author = Author::Reap.name().to_owned();
    let batch =
        Batch { now: 1, transactions: vec![Transaction { id: 1, author, changes: plan.into_changes() }] };
    assert!(crate::apply(&world.state, 1000, batch).results[0].1.is_err());
    world.step();
}

#[test]
fn a_job_is_not_run_again_for_a_new_version() {
    let (mut world, one) = with_secret();
    let mut job = using("job", 1, &one, "key");
    job.update = None;
    let mode = rswarm_proto::wire::ReplicatedJob { max_concurrent: 1, total_completions: 1 };
    job.mode = Some(rswarm_proto::wire::service_spec::Mode::ReplicatedJob(mode));
    let restart = job.task.get_or_insert_default().restart.get_or_insert_default();
    restart.set_condition(rswarm_proto::wire::restart_policy::Condition::OnFailure);
    let id = world.create(job);
    world.run(Duration::from_secs(2));
    let task = world.live(&id)[0].id.clone();
    world.report(&task, TaskState::Complete);
    let two = renew(&mut world, "two");
    world.run(Duration::from_secs(10));
    assert_eq!(world.tasks(&id).len(), 1);
    assert_eq!(world.service(&id).task_spec().secrets[0].id, two, "the next run has it");
    let request = CreateServiceRequest { spec: Some(using("web", 1, &two, "key@9")) };
    let refused = world.control(|state, now, ids| create_service(state, &request, now, ids));
    assert_eq!(refused.expect_err("no such version").to_string(), "secret not found: key@9");
}
