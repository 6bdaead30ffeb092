//! The cluster's own spec and its join tokens.

use rswarm_base::IdGen;
use rswarm_proto::wire::{Cluster, ObjectKind, RootCa, UpdateClusterRequest};

use super::{ControlError, Decision, check_version, decided, valid};
use crate::reconcile::Plan;
use crate::state::State;
use crate::validate;

/// What chance and keys have to do with, as the shell made it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Fresh {
    /// A whole join token for workers; must be given when the request asks to rotate theirs.
    pub worker: Option<String>,
    /// For managers; likewise.
    pub manager: Option<String>,
    /// An unlock key; must be given when the request asks for another, or locks managers.
    pub unlock_key: Vec<u8>,
    /// The root, when the request changes it.
    pub root: Option<RootCa>,
}

/// Another spec for the cluster, new join tokens, another unlock key, another root.
pub fn update_cluster(
    state: &State,
    request: &UpdateClusterRequest,
    fresh: Fresh,
    ids: &mut IdGen,
) -> Decision {
    let missing = || ControlError::NotFound { kind: ObjectKind::Cluster, reference: "default".to_owned() };
    let stored = state.cluster().ok_or_else(missing)?;
    check_version(stored.as_ref(), request.version)?;
    let mut cluster = Cluster::clone(stored);
    if let Some(spec) = &request.spec {
        valid(validate::cluster(spec))?;
        let mut spec = spec.clone();
        // Docker's clients do not know it, and send the rest of what they were shown.
        if spec.tunnel_key_period == 0 {
            spec.tunnel_key_period = cluster.spec.as_ref().map_or(0, |spec| spec.tunnel_key_period);
        }
        cluster.spec = Some(spec);
    }
    let is_locked = cluster.spec.as_ref().is_some_and(|spec| spec.auto_lock);
    if !is_locked {
        cluster.unlock_key.clear();
    } else if request.rotate_unlock_key || cluster.unlock_key.is_empty() {
        if fresh.unlock_key.is_empty() {
            return Err(ControlError::Incomplete("a new unlock key must be provided"));
        }
        cluster.unlock_key = fresh.unlock_key;
    }
    if let Some(root) = fresh.root {
        cluster.root_ca = Some(root);
    }
    let root = cluster.root_ca.get_or_insert_default();
    for (rotate, new, token) in [
        (request.rotate_worker_token, fresh.worker, &mut root.worker_token),
        (request.rotate_manager_token, fresh.manager, &mut root.manager_token),
    ] {
        if rotate {
            *token = new.ok_or(ControlError::Incomplete("a new join token must be provided"))?;
        }
    }
    let mut plan = Plan::default();
    plan.update(cluster);
    decided(plan, &stored.id, ids)
}
