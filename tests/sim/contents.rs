//! Users of secrets and configs: they make them and further versions of them, have services use one, and remove them.
//! And what must hold of versions in every history.

use std::collections::BTreeSet;

use rswarm_base::IdGen;
use rswarm_manager_core::State;
use rswarm_manager_core::content::{held, of_task, references_mut};
use rswarm_manager_core::control::{self, Decision};
use rswarm_proto::model::content::Content as _;
use rswarm_proto::model::object::Stored;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{
    Annotations, ContentSpec, CreateConfigRequest, CreateSecretRequest, FileReference, FileTarget,
    ObjectKind, RemoveRequest, Service, ServiceSpec, Task, UpdateConfigRequest, UpdateSecretRequest,
};

use crate::workload::Promise;

/// Names of each kind: few, so that services share them.
const NAMES: [&str; 2] = ["one", "two"];

/// A secret or config of a random name: made if there is none, else of another version or, seldom, removed.
pub fn request(state: &State, random: &mut IdGen, ids: &mut IdGen) -> (Decision, Promise) {
    let (kind, name) = any(random);
    let Some(latest) = latest(state, kind, name) else {
        return (create(state, kind, spec(name, random), ids), Promise::Nothing);
    };
    if random.number().is_multiple_of(4) {
        let request = RemoveRequest { id: latest.clone(), force: false };
        let decision = match kind {
            ObjectKind::Secret => control::remove_secret(state, &request, ids),
            _ => control::remove_config(state, &request, ids),
        };
        return (decision, Promise::Goes(kind, latest));
    }
    (renew(state, kind, latest, spec(name, random), ids), Promise::Nothing)
}

/// Has a service use a secret or config, by its name or, for good, one of its versions; or no more.
pub fn use_any(state: &State, random: &mut IdGen, spec: &mut ServiceSpec) {
    let (kind, name) = any(random);
    let references = references_mut(spec.task.get_or_insert_default(), kind);
    references.retain(|reference| !reference.name.starts_with(name));
    let versions = state.content_versions(kind, name);
    let (choice, nth) = (random.number() % 4, random.number() as usize % versions.len().max(1));
    let chosen = if choice == 3 { versions.get(nth) } else { versions.last() };
    let Some(id) = chosen.filter(|_| choice > 0).map(|id| (*id).to_owned()) else { return };
    let called = if choice == 3 { format!("{name}@{}", number(state, kind, &id)) } else { name.to_owned() };
    let file = Some(FileTarget { name: name.to_owned(), ..FileTarget::default() });
    references.push(FileReference { id, name: called, file });
}

fn any(random: &mut IdGen) -> (ObjectKind, &'static str) {
    let kind = if random.number().is_multiple_of(2) { ObjectKind::Secret } else { ObjectKind::Config };
    (kind, NAMES[random.number() as usize % NAMES.len()])
}

fn latest(state: &State, kind: ObjectKind, name: &str) -> Option<String> {
    state.content_versions(kind, name).last().map(|id| (*id).to_owned())
}

fn number(state: &State, kind: ObjectKind, id: &str) -> u64 {
    let number = match kind {
        ObjectKind::Secret => state.secret(id).map(|secret| secret.number()),
        _ => state.config(id).map(|config| config.number()),
    };
    number.expect("a version that is listed")
}

fn spec(name: &str, random: &mut IdGen) -> ContentSpec {
    let annotations = Some(Annotations { name: name.to_owned(), ..Annotations::default() });
    ContentSpec { annotations, data: random.number().to_be_bytes().to_vec(), ..ContentSpec::default() }
}

fn create(state: &State, kind: ObjectKind, spec: ContentSpec, ids: &mut IdGen) -> Decision {
    let spec = Some(spec);
    match kind {
        ObjectKind::Secret => control::create_secret(state, &CreateSecretRequest { spec }, ids),
        _ => control::create_config(state, &CreateConfigRequest { spec }, ids),
    }
}

/// Services that call it by its bare name follow.
fn renew(state: &State, kind: ObjectKind, id: String, spec: ContentSpec, ids: &mut IdGen) -> Decision {
    let (spec, new_version) = (Some(spec), true);
    match kind {
        ObjectKind::Secret => {
            let version = state.secret(&id).expect("the latest").meta().version;
            control::update_secret(state, &UpdateSecretRequest { id, version, spec, new_version }, ids)
        }
        _ => {
            let version = state.config(&id).expect("the latest").meta().version;
            control::update_config(state, &UpdateConfigRequest { id, version, spec, new_version }, ids)
        }
    }
}

// ---- what must hold ---------------------------------------------------------------------------------

/// What one committed state must be after the one before it: every version that a service uses is there, and none was
/// taken away from who needs it because there is a newer one.
pub fn check(before: &State, after: &State) {
    for service in after.services().filter(|service| !service.pending_delete) {
        let used = service.spec.iter().filter_map(|spec| spec.task.as_ref()).flat_map(of_task);
        let missing: Vec<_> = used.filter(|id| !exists(after, id)).collect();
        assert!(missing.is_empty(), "service {} uses {missing:?}, which is gone", service.id);
    }
    let gone: Vec<&str> = before
        .superseded()
        .filter(|(kind, id)| is_forgotten(before, after, *kind, id))
        .map(|(_, id)| id)
        .collect();
    if gone.is_empty() {
        return;
    }
    let needed = needed(after);
    let missed: Vec<_> = gone.iter().filter(|id| needed.contains(*id)).collect();
    assert!(missed.is_empty(), "{missed:?} are needed still, and gone");
}

/// An old version that nothing needs and that is still there, in a cluster at rest.
pub fn leftover(state: &State) -> Option<&str> {
    let needed = needed(state);
    state.superseded().map(|(_, id)| id).find(|id| !needed.contains(id))
}

/// Whether all tasks of a service that are wanted have the versions that its spec names.
pub fn is_followed(state: &State, service: &Service) -> bool {
    let of = |spec| of_task(spec).map(str::to_owned).collect::<Vec<_>>();
    let wanted = service.spec.as_ref().and_then(|spec| spec.task.as_ref()).map(of);
    let mut live = state.tasks_of_service(&service.id).filter(|task| task.is_live());
    live.all(|task| task.spec.as_ref().map(of) == wanted)
}

/// Whether it went while a later version of its name stayed: users remove all versions at once.
fn is_forgotten(before: &State, after: &State, kind: ObjectKind, id: &str) -> bool {
    let name = match kind {
        ObjectKind::Secret => before.secret(id).map(|secret| secret.name()),
        _ => before.config(id).map(|config| config.name()),
    };
    let latest = name.and_then(|name| latest(before, kind, name));
    !exists(after, id) && latest.is_some_and(|latest| exists(after, &latest))
}

fn exists(state: &State, id: &str) -> bool {
    state.secret(id).is_some() || state.config(id).is_some()
}

/// What services have or would go back to, and what tasks have that run or may yet start.
fn needed(state: &State) -> BTreeSet<&str> {
    let runs = |task: &&std::sync::Arc<Task>| {
        let is_under_way = (TaskState::Assigned..=TaskState::Draining).contains(&task.observed());
        !task.observed().is_terminal() && (is_under_way || task.desired() <= TaskState::Running)
    };
    let services =
        state.services().filter(|service| !service.pending_delete).flat_map(|service| held(service));
    let tasks = state.tasks().filter(runs).filter_map(|task| task.spec.as_ref()).flat_map(of_task);
    services.chain(tasks).collect()
}
