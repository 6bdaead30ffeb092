//! Secrets and configs: new, relabelled, removed.

use rswarm_base::IdGen;
use rswarm_proto::wire::{
    Config, ContentSpec, CreateConfigRequest, CreateSecretRequest, ObjectKind, RemoveRequest, Secret,
    UpdateConfigRequest, UpdateSecretRequest,
};

use super::{ControlError, Decision, decided, read, valid};
use crate::content;
use crate::reconcile::Plan;
use crate::state::{AnyObject, State};
use crate::validate;

/// A new secret.
pub fn create_secret(state: &State, request: &CreateSecretRequest, ids: &mut IdGen) -> Decision {
    let spec = admitted(state, ObjectKind::Secret, request.spec.as_ref())?;
    let id = ids.cluster_id();
    let mut plan = Plan::default();
    plan.create(Secret { id: id.clone(), spec: Some(spec), meta: None });
    decided(plan, &id, ids)
}

/// A new config.
pub fn create_config(state: &State, request: &CreateConfigRequest, ids: &mut IdGen) -> Decision {
    let spec = admitted(state, ObjectKind::Config, request.spec.as_ref())?;
    let id = ids.cluster_id();
    let mut plan = Plan::default();
    plan.create(Config { id: id.clone(), spec: Some(spec), meta: None });
    decided(plan, &id, ids)
}

fn admitted(
    state: &State,
    kind: ObjectKind,
    spec: Option<&ContentSpec>,
) -> Result<ContentSpec, ControlError> {
    let spec = spec.ok_or(ControlError::Incomplete("a spec must be provided"))?;
    valid(validate::content(spec, kind))?;
    let name = spec.annotations.as_ref().map_or("", |annotations| annotations.name.as_str());
    let is_taken = match kind {
        ObjectKind::Secret => state.secret_named(name).is_some(),
        _ => state.config_named(name).is_some(),
    };
    if is_taken {
        return Err(ControlError::ContentExists { kind, name: name.to_owned() });
    }
    Ok(spec.clone())
}

/// Other labels for a secret.
pub fn update_secret(state: &State, request: &UpdateSecretRequest, ids: &mut IdGen) -> Decision {
    let AnyObject::Secret(stored) = read::get(state, ObjectKind::Secret, &request.id)? else {
        return Err(not_found(ObjectKind::Secret, &request.id));
    };
    super::check_version(stored.as_ref(), request.version)?;
    let spec = relabelled(stored.spec.as_ref(), request.spec.as_ref())?;
    let mut plan = Plan::default();
    plan.update(Secret { spec: Some(spec), ..Secret::clone(&stored) });
    decided(plan, &stored.id, ids)
}

/// Other labels for a config.
pub fn update_config(state: &State, request: &UpdateConfigRequest, ids: &mut IdGen) -> Decision {
    let AnyObject::Config(stored) = read::get(state, ObjectKind::Config, &request.id)? else {
        return Err(not_found(ObjectKind::Config, &request.id));
    };
    super::check_version(stored.as_ref(), request.version)?;
    let spec = relabelled(stored.spec.as_ref(), request.spec.as_ref())?;
    let mut plan = Plan::default();
    plan.update(Config { spec: Some(spec), ..Config::clone(&stored) });
    decided(plan, &stored.id, ids)
}

/// Data that is not given stays; data that is given must be the same, for a task may have been given it.
fn relabelled(
    stored: Option<&ContentSpec>,
    wanted: Option<&ContentSpec>,
) -> Result<ContentSpec, ControlError> {
    let wanted = wanted.cloned().ok_or(ControlError::Incomplete("a spec must be provided"))?;
    let mut spec = stored.cloned().unwrap_or_default();
    let (own, asked) = (spec.annotations.get_or_insert_default(), wanted.annotations.unwrap_or_default());
    if own.name != asked.name || !(wanted.data.is_empty() || wanted.data == spec.data) {
        return Err(ControlError::LabelsOnly);
    }
    own.labels = asked.labels;
    Ok(spec)
}

/// The end of a secret that no service uses.
pub fn remove_secret(state: &State, request: &RemoveRequest, ids: &mut IdGen) -> Decision {
    remove(state, ObjectKind::Secret, &request.id, ids)
}

/// The end of a config that no service uses.
pub fn remove_config(state: &State, request: &RemoveRequest, ids: &mut IdGen) -> Decision {
    remove(state, ObjectKind::Config, &request.id, ids)
}

fn remove(state: &State, kind: ObjectKind, reference: &str, ids: &mut IdGen) -> Decision {
    let object = read::get(state, kind, reference)?;
    if let Some(used) = content::in_use(state, &object) {
        return Err(ControlError::ContentInUse(used));
    }
    let (_, id) = object.key();
    let mut plan = Plan::default();
    plan.delete(kind, id);
    decided(plan, id, ids)
}

fn not_found(kind: ObjectKind, reference: &str) -> ControlError {
    ControlError::NotFound { kind, reference: reference.to_owned() }
}
