//! Services: Docker's spec to the stored one and back, and the stored service as clients see it.

mod read;
mod show;

use rswarm_base::Kind;
use rswarm_proto::model::service as defaults;
use rswarm_proto::wire;

use crate::error::ApiError;
use crate::types;

pub(crate) use read::{network_targets, spec};
#[cfg(test)]
pub(crate) use show::spec_out;
pub(crate) use show::{service, task_out};

/// How many of a service's tasks run, should run, and are done.
pub(crate) fn status(
    service: &wire::Service,
    tasks: &[wire::Task],
    is_ready: impl Fn(&str) -> bool,
) -> types::ServiceStatus {
    let own = || tasks.iter().filter(|task| task.service_id == service.id);
    let running = own().filter(|task| {
        task.observed() == wire::TaskState::Running
            && task.desired() == wire::TaskState::Running
            && is_ready(&task.node_id)
    });
    let desired = match service.spec.as_ref().map(wire::ServiceSpec::mode_or_default) {
        Some(defaults::Mode::Replicated(replicas)) => replicas,
        // As many as there are nodes to run one: those whose task should run.
        Some(defaults::Mode::Global) | None => {
            own().filter(|task| task.desired() == wire::TaskState::Running).count() as u64
        }
    };
    let completed = own().filter(|task| task.observed() == wire::TaskState::Complete).count() as u64;
    types::ServiceStatus {
        running_tasks: running.count() as u64,
        desired_tasks: desired,
        completed_tasks: completed,
    }
}

/// Docker's text for a service that there is not.
pub(crate) fn not_found(reference: &str) -> ApiError {
    ApiError::new(Kind::NotFound, format!("service {reference} not found"))
}

#[cfg(test)]
mod tests;
