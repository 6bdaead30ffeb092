//! The cluster's own spec and its join tokens.

use rswarm_base::IdGen;
use rswarm_proto::wire::{Cluster, ObjectKind, UpdateClusterRequest};

use super::{ControlError, Decision, check_version, decided, valid};
use crate::reconcile::Plan;
use crate::state::State;
use crate::validate;

/// Fresh join tokens, as the shell made them; whole tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewTokens {
    /// For workers; must be given when the request asks to rotate theirs.
    pub worker: Option<String>,
    /// For managers; likewise.
    pub manager: Option<String>,
}

/// Another spec for the cluster, and new join tokens.
pub fn update_cluster(
    state: &State,
    request: &UpdateClusterRequest,
    tokens: NewTokens,
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
    let root = cluster.root_ca.get_or_insert_default();
    for (rotate, new, token) in [
        (request.rotate_worker_token, tokens.worker, &mut root.worker_token),
        (request.rotate_manager_token, tokens.manager, &mut root.manager_token),
    ] {
        if rotate {
            *token = new.ok_or(ControlError::Incomplete("a new join token must be provided"))?;
        }
    }
    let mut plan = Plan::default();
    plan.update(cluster);
    decided(plan, &stored.id, ids)
}
