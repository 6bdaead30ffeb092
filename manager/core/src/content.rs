//! Secrets and configs as services use them: which a spec names, who uses one, and what is wrong with one.

use std::fmt;

use rswarm_proto::model::object::Stored;
use rswarm_proto::wire::{FileReference, ObjectKind, ServiceSpec, TaskSpec};

use crate::apply::noun;
use crate::state::{AnyObject, State};

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

/// What the spec names and there is not. A reference counts by its id, and its name must be that of the id.
#[must_use]
pub fn missing(state: &State, spec: Option<&ServiceSpec>) -> Option<ContentMissing> {
    let task = spec?.task.as_ref()?;
    [ObjectKind::Secret, ObjectKind::Config].into_iter().find_map(|kind| {
        let stands =
            |reference: &&FileReference| name_of(state, kind, &reference.id) == Some(&reference.name);
        let wanting = references(task, kind).iter().filter(|reference| !stands(reference));
        let names: Vec<String> = wanting.map(|reference| reference.name.clone()).collect();
        (!names.is_empty()).then_some(ContentMissing { kind, names })
    })
}

fn name_of<'s>(state: &'s State, kind: ObjectKind, id: &str) -> Option<&'s str> {
    match kind {
        ObjectKind::Secret => state.secret(id).map(|secret| secret.name()),
        _ => state.config(id).map(|config| config.name()),
    }
}

/// The services that use a secret or config; those that are being deleted use nothing more.
#[must_use]
pub fn in_use(state: &State, object: &AnyObject) -> Option<ContentInUse> {
    let (kind, id) = object.key();
    let uses = |spec: &TaskSpec| references(spec, kind).iter().any(|reference| reference.id == id);
    let mut services: Vec<String> = state
        .services()
        .filter(|service| !service.pending_delete)
        .filter(|service| service.spec.as_ref().and_then(|spec| spec.task.as_ref()).is_some_and(uses))
        .map(|service| service.name().to_owned())
        .collect();
    services.sort();
    let name = name_of(state, kind, id).unwrap_or_default().to_owned();
    (!services.is_empty()).then_some(ContentInUse { kind, name, services })
}
