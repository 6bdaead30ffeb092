//! Services: names, modes and the defaults that Docker documents.

use std::time::Duration;

use crate::wire::{Service, ServiceSpec, TaskSpec, service_spec};

/// Restart delay when a spec gives none (swarmkit `api/defaults/service.go`).
pub const RESTART_DELAY: Duration = Duration::from_secs(5);
/// Time between the stop signal and the kill when a spec gives none.
pub const STOP_GRACE: Duration = Duration::from_secs(10);
/// How long an updated task is watched for failure when a spec says nothing.
pub const UPDATE_MONITOR: Duration = Duration::from_secs(5);

/// How a service spreads, parsed from its spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As many tasks as asked for.
    Replicated(u64),
    /// One task on every eligible node.
    Global,
    /// Tasks that run to completion, `total` in all, at most `concurrent` at a time.
    ReplicatedJob {
        /// At a time.
        concurrent: u64,
        /// In all.
        total: u64,
    },
    /// One task that runs to completion on every eligible node.
    GlobalJob,
}

impl Mode {
    /// Whether its tasks run to completion.
    #[must_use]
    pub fn is_job(self) -> bool {
        matches!(self, Mode::ReplicatedJob { .. } | Mode::GlobalJob)
    }

    /// Whether it has one task on each node.
    #[must_use]
    pub fn is_global(self) -> bool {
        matches!(self, Mode::Global | Mode::GlobalJob)
    }
}

impl ServiceSpec {
    /// The mode; a spec without one asks for a single replica.
    #[must_use]
    pub fn mode_or_default(&self) -> Mode {
        match &self.mode {
            Some(service_spec::Mode::Global(_)) => Mode::Global,
            Some(service_spec::Mode::Replicated(replicated)) => Mode::Replicated(replicated.replicas),
            Some(service_spec::Mode::ReplicatedJob(job)) => {
                Mode::ReplicatedJob { concurrent: job.max_concurrent, total: job.total_completions }
            }
            Some(service_spec::Mode::GlobalJob(_)) => Mode::GlobalJob,
            None => Mode::Replicated(1),
        }
    }
}

impl Service {
    /// Whether its tasks run to completion.
    #[must_use]
    pub fn is_job(&self) -> bool {
        self.spec.as_ref().is_some_and(|spec| spec.mode_or_default().is_job())
    }

    /// A job's iteration, which its tasks are of; other services and their tasks have none.
    #[must_use]
    pub fn job_iteration(&self) -> Option<u64> {
        self.is_job().then(|| self.job_status.map_or(0, |status| status.iteration))
    }

    /// The task spec; the default one when a stored service has none.
    #[must_use]
    pub fn task_spec(&self) -> TaskSpec {
        self.spec.as_ref().and_then(|spec| spec.task.clone()).unwrap_or_default()
    }
}

impl TaskSpec {
    /// Time between the stop signal and the kill.
    #[must_use]
    pub fn stop_grace(&self) -> Duration {
        let grace = self.container.as_ref().and_then(|container| container.stop_grace);
        grace.and_then(|ns| u64::try_from(ns).ok()).map_or(STOP_GRACE, Duration::from_nanos)
    }
}
