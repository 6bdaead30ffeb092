//! Services: Docker's spec to the stored one and back, and the stored service as clients see it.

mod read;
mod show;

use std::collections::BTreeSet;

use rswarm_base::Kind;
use rswarm_proto::model::service as defaults;
use rswarm_proto::wire;

use crate::error::ApiError;
use crate::types;

pub(crate) use read::{network_targets, spec};
#[cfg(test)]
pub(crate) use show::spec_out;
pub(crate) use show::{forecast, service, task_out};

/// How many of a service's tasks run, should run, and are done.
pub(crate) fn status(
    service: &wire::Service,
    tasks: &[wire::Task],
    is_ready: impl Fn(&str) -> bool,
) -> types::ServiceStatus {
    let iteration = service.job_iteration();
    let own = || tasks.iter().filter(|task| task.service_id == service.id && task.job_iteration == iteration);
    let running = own().filter(|task| {
        task.observed() == wire::TaskState::Running
            && task.desired() == wire::TaskState::Running
            && is_ready(&task.node_id)
    });
    let desired = match service.spec.as_ref().map(wire::ServiceSpec::mode_or_default) {
        Some(defaults::Mode::Replicated(replicas)) => replicas,
        // As many as there are nodes to run one: those whose task should run.
        Some(defaults::Mode::ReplicatedJob { concurrent, .. }) => concurrent,
        Some(defaults::Mode::GlobalJob) => own().filter(|task| task.is_live()).count() as u64,
        Some(defaults::Mode::Global) | None => {
            own().filter(|task| task.desired() == wire::TaskState::Running).count() as u64
        }
    };
    // A slot counts once, even if a node that was given up completed its task as well.
    let complete = own().filter(|task| task.observed() == wire::TaskState::Complete);
    let slots: BTreeSet<(u64, &str)> = match iteration {
        Some(_) => {
            complete.map(|task| (task.slot, if task.slot == 0 { &*task.node_id } else { "" })).collect()
        }
        None => BTreeSet::new(),
    };
    let completed = slots.len() as u64;
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
