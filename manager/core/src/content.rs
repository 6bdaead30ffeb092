//! Secrets and configs as services use them: which a spec names, who uses one, and what is wrong with one.
//!
//! Their content never changes. Other content under the same name is another **version**, an object of its own. A
//! service refers to one version by its id, so its tasks are what they were when they were made; what it calls by the
//! bare name follows the latest version, by an update of the service, and what it calls `name@number` does not.

use std::fmt;
use std::sync::Arc;

use rswarm_proto::model::content::Content;
use rswarm_proto::model::object::Stored;
use rswarm_proto::wire::{
    Config, ContentSpec, ContentVersion, FileReference, ObjectKind, Secret, Service, ServiceSpec, TaskSpec,
};

use crate::apply::noun;
use crate::state::{AnyObject, State};

/// Label of a secret or config for clients that only know Docker's calls: an update with other data makes another
/// version where it would be refused.
pub const VERSIONS: &str = "rswarm.versions";

/// Secrets or configs as the state has them.
pub trait Table: Content + Into<AnyObject> {
    /// A version by its id.
    fn by_id<'s>(state: &'s State, id: &str) -> Option<&'s Arc<Self>>;
    /// What the bare name stands for.
    fn latest<'s>(state: &'s State, name: &str) -> Option<&'s Arc<Self>>;
}

impl Table for Secret {
    fn by_id<'s>(state: &'s State, id: &str) -> Option<&'s Arc<Secret>> {
        state.secret(id)
    }

    fn latest<'s>(state: &'s State, name: &str) -> Option<&'s Arc<Secret>> {
        state.secret_named(name)
    }
}

impl Table for Config {
    fn by_id<'s>(state: &'s State, id: &str) -> Option<&'s Arc<Config>> {
        state.config(id)
    }

    fn latest<'s>(state: &'s State, name: &str) -> Option<&'s Arc<Config>> {
        state.config_named(name)
    }
}

/// Secrets or configs that a spec names and that there are not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{} not found: {}", noun(*.kind), plural(.names), .names.join(", "))]
pub struct ContentMissing {
    /// Secrets or configs.
    pub kind: ObjectKind,
    /// What the spec calls them.
    pub names: Vec<String>,
}

/// A secret or config that services use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} '{name}' is in use by the following service{}: {}", noun(*.kind), plural(.services), .services.join(", "))]
pub struct ContentInUse {
    /// Whether it is a secret or a config.
    pub kind: ObjectKind,
    /// Its name.
    pub name: String,
    /// The names of those services.
    pub services: Vec<String>,
}

fn plural<T: fmt::Debug>(things: &[T]) -> &'static str {
    if things.len() == 1 { "" } else { "s" }
}

/// The secrets, or the configs, that a task's container gets.
#[must_use]
pub fn references(spec: &TaskSpec, kind: ObjectKind) -> &[FileReference] {
    if kind == ObjectKind::Secret { &spec.secrets } else { &spec.configs }
}

/// The same, to be changed.
pub fn references_mut(spec: &mut TaskSpec, kind: ObjectKind) -> &mut Vec<FileReference> {
    if kind == ObjectKind::Secret { &mut spec.secrets } else { &mut spec.configs }
}

/// Whether an update with other data is to make another version, by its label.
#[must_use]
pub fn takes_versions(spec: &ContentSpec) -> bool {
    let labels = spec.annotations.as_ref().map(|annotations| &annotations.labels);
    labels.and_then(|labels| labels.get(VERSIONS)).is_some_and(|value| value == "true")
}

/// What the spec names and there is not. A reference counts by its id, and its name must be that of the id, or of its
/// version.
#[must_use]
pub fn missing(state: &State, spec: Option<&ServiceSpec>) -> Vec<ContentMissing> {
    let Some(task) = spec.and_then(|spec| spec.task.as_ref()) else { return Vec::new() };
    let of_kind = |kind| {
        let stands = |reference: &&FileReference| match kind {
            ObjectKind::Secret => is_called::<Secret>(state, reference),
            _ => is_called::<Config>(state, reference),
        };
        let wanting = references(task, kind).iter().filter(|reference| !stands(reference));
        let names: Vec<String> = wanting.map(|reference| reference.name.clone()).collect();
        (!names.is_empty()).then_some(ContentMissing { kind, names })
    };
    [ObjectKind::Secret, ObjectKind::Config].into_iter().filter_map(of_kind).collect()
}

fn is_called<T: Table>(state: &State, reference: &FileReference) -> bool {
    T::by_id(state, &reference.id)
        .is_some_and(|version| version.name() == reference.name || version.version_name() == reference.name)
}

/// Leads what the spec calls by a bare name to the latest version. `own` is what the service has: a version that it
/// went back to, or that it has kept, stays until there is another.
pub fn follow(state: &State, spec: &mut ServiceSpec, own: Option<&ServiceSpec>) {
    follow_kind::<Secret>(state, spec, own);
    follow_kind::<Config>(state, spec, own);
}

fn follow_kind<T: Table>(state: &State, spec: &mut ServiceSpec, own: Option<&ServiceSpec>) {
    let own = own.and_then(|own| own.task.as_ref()).map_or(&[][..], |task| references(task, T::KIND));
    let Some(task) = &mut spec.task else { return };
    for reference in references_mut(task, T::KIND) {
        let is_kept = own.iter().any(|kept| (&kept.id, &kept.name) == (&reference.id, &reference.name));
        let version = T::by_id(state, &reference.id).filter(|version| version.name() == reference.name);
        if let Some(latest) = version.and_then(|version| T::latest(state, version.name()))
            && !is_kept
        {
            latest.id().clone_into(&mut reference.id);
        }
    }
}

/// The services that use any of these versions of a secret or config; those that are being deleted use nothing more.
#[must_use]
pub fn in_use(state: &State, kind: ObjectKind, name: &str, ids: &[&str]) -> Option<ContentInUse> {
    let services = users(state, kind, ids);
    (!services.is_empty()).then(|| ContentInUse { kind, name: name.to_owned(), services })
}

fn users(state: &State, kind: ObjectKind, ids: &[&str]) -> Vec<String> {
    let uses =
        |spec: &TaskSpec| references(spec, kind).iter().any(|reference| ids.contains(&reference.id.as_str()));
    let mut services: Vec<String> = state
        .services()
        .filter(|service| !service.pending_delete)
        .filter(|service| service.spec.as_ref().and_then(|spec| spec.task.as_ref()).is_some_and(uses))
        .map(|service| service.name().to_owned())
        .collect();
    services.sort();
    services
}

/// The versions of a secret or config and who uses them, the oldest first; for one that is not the latest, none.
#[must_use]
pub fn versions<T: Table>(state: &State, object: &T) -> Vec<ContentVersion> {
    if T::latest(state, object.name()).is_none_or(|latest| latest.id() != object.id()) {
        return Vec::new();
    }
    let ids = state.content_versions(T::KIND, object.name());
    let version = |id: &str| {
        let version = T::by_id(state, id)?;
        Some(ContentVersion {
            id: id.to_owned(),
            number: version.number(),
            created_at: version.meta().created_at,
            services: users(state, T::KIND, &[id]),
        })
    };
    ids.into_iter().filter_map(version).collect()
}

/// The ids of all secrets and configs that a service has, or would go back to.
pub fn held(service: &Service) -> impl Iterator<Item = &str> {
    let specs = service.spec.iter().chain(&service.previous_spec);
    specs.filter_map(|spec| spec.task.as_ref()).flat_map(of_task)
}

/// The ids of all secrets and configs of a task.
pub fn of_task(spec: &TaskSpec) -> impl Iterator<Item = &str> {
    spec.secrets.iter().chain(&spec.configs).map(|reference| reference.id.as_str())
}
