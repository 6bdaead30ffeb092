//! Secrets and configs: new, relabelled, of another version, removed.

use std::sync::Arc;

use rswarm_base::IdGen;
use rswarm_proto::model::content::Content;
use rswarm_proto::wire::{
    Config, ContentSpec, CreateConfigRequest, CreateSecretRequest, ObjectKind, RemoveRequest, Secret,
    Service, ServiceSpec, UpdateConfigRequest, UpdateSecretRequest,
};

use super::{ControlError, Decision, decided, read, valid};
use crate::content::{self, Table};
use crate::reconcile::Plan;
use crate::state::State;
use crate::update as rollout;
use crate::validate;

/// A new secret.
pub fn create_secret(state: &State, request: &CreateSecretRequest, ids: &mut IdGen) -> Decision {
    create::<Secret>(state, request.spec.as_ref(), ids)
}

/// A new config.
pub fn create_config(state: &State, request: &CreateConfigRequest, ids: &mut IdGen) -> Decision {
    create::<Config>(state, request.spec.as_ref(), ids)
}

fn create<T: Table>(state: &State, spec: Option<&ContentSpec>, ids: &mut IdGen) -> Decision {
    let spec = spec.ok_or(ControlError::Incomplete("a spec must be provided"))?;
    valid(validate::content(spec, T::KIND))?;
    let name = name_of(spec);
    if T::latest(state, name).is_some() {
        return Err(ControlError::ContentExists { kind: T::KIND, name: name.to_owned() });
    }
    let id = ids.cluster_id();
    let mut plan = Plan::default();
    plan.create(T::new(id.clone(), spec.clone(), 1));
    decided(plan, &id, ids)
}

/// Other labels for a secret, or another version of it.
pub fn update_secret(state: &State, request: &UpdateSecretRequest, ids: &mut IdGen) -> Decision {
    let stored = find::<Secret>(state, &request.id)?;
    super::check_version(&stored, request.version)?;
    update(state, &stored, request.spec.as_ref(), request.new_version, ids)
}

/// Other labels for a config, or another version of it.
pub fn update_config(state: &State, request: &UpdateConfigRequest, ids: &mut IdGen) -> Decision {
    let stored = find::<Config>(state, &request.id)?;
    super::check_version(&stored, request.version)?;
    update(state, &stored, request.spec.as_ref(), request.new_version, ids)
}

fn update<T: Table>(
    state: &State,
    stored: &T,
    wanted: Option<&ContentSpec>,
    new_version: bool,
    ids: &mut IdGen,
) -> Decision {
    let wanted = wanted.ok_or(ControlError::Incomplete("a spec must be provided"))?;
    let spec = stored.spec().cloned().unwrap_or_default();
    if name_of(&spec) != name_of(wanted) {
        return Err(ControlError::LabelsOnly);
    }
    let other = !wanted.data.is_empty() && wanted.data != spec.data;
    let may_be_other = new_version || content::takes_versions(&spec) || content::takes_versions(wanted);
    if may_be_other && (new_version || other) {
        return renew(state, stored, wanted, new_version, ids);
    }
    if other {
        return Err(ControlError::LabelsOnly);
    }
    let mut plan = Plan::default();
    plan.update(relabelled(stored, wanted));
    decided(plan, stored.id(), ids)
}

/// The data stays: a task may have been given it.
fn relabelled<T: Content>(stored: &T, wanted: &ContentSpec) -> T {
    let mut spec = stored.spec().cloned().unwrap_or_default();
    let asked = wanted.annotations.clone().unwrap_or_default();
    spec.annotations.get_or_insert_default().labels = asked.labels;
    stored.with_spec(spec)
}

/// Another version, unless it is the same again, and if asked an update to it of every service that uses one before
/// it. Docker's clients update services themselves: what is written to them meanwhile would make that fail.
fn renew<T: Table>(
    state: &State,
    stored: &T,
    wanted: &ContentSpec,
    rolls_out: bool,
    ids: &mut IdGen,
) -> Decision {
    valid(validate::content(wanted, T::KIND))?;
    if T::latest(state, stored.name()).is_none_or(|latest| latest.id() != stored.id()) {
        return Err(ControlError::OutOfSequence);
    }
    let has = stored.spec().cloned().unwrap_or_default();
    let same = (&wanted.data, &wanted.templating) == (&has.data, &has.templating);
    let mut plan = Plan::default();
    let id = if same { stored.id().to_owned() } else { ids.cluster_id() };
    if same {
        plan.update(relabelled(stored, wanted));
    } else {
        plan.create(T::new(id.clone(), wanted.clone(), stored.number() + 1));
    }
    let follows =
        |service: &&Arc<Service>| rolls_out && !service.pending_delete && !rollout::is_paused(service);
    for service in state.services().filter(follows) {
        if let Some(spec) = respecified::<T>(state, service, stored.name(), &id) {
            let previous_spec = service.spec.clone();
            let spec = Some(spec);
            plan.update(Service { spec, previous_spec, update_status: None, ..Service::clone(service) });
        }
    }
    decided(plan, &id, ids)
}

/// The service's spec with this version in place of others of the name; `None` when there is none to replace. What
/// is called by its version stays.
fn respecified<T: Table>(state: &State, service: &Service, name: &str, id: &str) -> Option<ServiceSpec> {
    let follows =
        |other: &str| other != id && T::by_id(state, other).is_some_and(|version| version.name() == name);
    let mut spec = service.spec.clone()?;
    let references = content::references_mut(spec.task.as_mut()?, T::KIND);
    let mut outdated: Vec<_> =
        references.iter_mut().filter(|reference| reference.name == name && follows(&reference.id)).collect();
    outdated.iter_mut().for_each(|reference| id.clone_into(&mut reference.id));
    (!outdated.is_empty()).then_some(spec)
}

/// The end of a secret that no service uses.
pub fn remove_secret(state: &State, request: &RemoveRequest, ids: &mut IdGen) -> Decision {
    remove::<Secret>(state, &request.id, ids)
}

/// The end of a config that no service uses.
pub fn remove_config(state: &State, request: &RemoveRequest, ids: &mut IdGen) -> Decision {
    remove::<Config>(state, &request.id, ids)
}

/// Of the latest version: of all of them.
fn remove<T: Table>(state: &State, reference: &str, ids: &mut IdGen) -> Decision {
    let object = find::<T>(state, reference)?;
    let versions = state.content_versions(T::KIND, object.name());
    let is_latest = versions.last().is_some_and(|latest| *latest == object.id());
    let going = if is_latest { versions } else { vec![object.id()] };
    if let Some(used) = content::in_use(state, T::KIND, object.name(), &going) {
        return Err(ControlError::ContentInUse(used));
    }
    let mut plan = Plan::default();
    going.into_iter().for_each(|id| plan.delete(T::KIND, id));
    decided(plan, object.id(), ids)
}

fn find<T: Table>(state: &State, reference: &str) -> Result<T, ControlError> {
    let found = read::get(state, T::KIND, reference)?;
    T::by_id(state, found.key().1).map(|object| T::clone(object)).ok_or_else(|| not_found(T::KIND, reference))
}

fn name_of(spec: &ContentSpec) -> &str {
    spec.annotations.as_ref().map_or("", |annotations| annotations.name.as_str())
}

fn not_found(kind: ObjectKind, reference: &str) -> ControlError {
    ControlError::NotFound { kind, reference: reference.to_owned() }
}
