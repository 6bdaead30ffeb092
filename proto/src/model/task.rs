//! Tasks: one-shot units of work whose observed state only moves forward.

use crate::wire::{Attachment, Task, TaskStatus, endpoint_spec};

pub use crate::wire::TaskState;

impl TaskState {
    /// Moves forward, never back: a stale report is dropped here and nowhere else.
    #[must_use]
    pub fn advance(self, to: TaskState) -> Option<TaskState> {
        (to > self).then_some(to)
    }

    /// Whether the task has ended and holds nothing on its node any more.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self >= TaskState::Complete
    }

    /// The state's name as Docker's API and CLI print it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            TaskState::New => "new",
            TaskState::Pending => "pending",
            TaskState::Assigned => "assigned",
            TaskState::Accepted => "accepted",
            TaskState::Preparing => "preparing",
            TaskState::Ready => "ready",
            TaskState::Starting => "starting",
            TaskState::Running => "running",
            TaskState::Draining => "draining",
            TaskState::Complete => "complete",
            TaskState::Shutdown => "shutdown",
            TaskState::Failed => "failed",
            TaskState::Rejected => "rejected",
            TaskState::Remove => "remove",
            TaskState::Orphaned => "orphaned",
        }
    }
}

impl Task {
    /// What the agent (or a manager) last said; a task without a status is new.
    #[must_use]
    pub fn observed(&self) -> TaskState {
        self.status.as_ref().map_or(TaskState::New, TaskStatus::state)
    }

    /// What the managers want.
    #[must_use]
    pub fn desired(&self) -> TaskState {
        self.desired_state()
    }

    /// Whether the task is wanted to run and has not ended.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.desired() <= TaskState::Running && !self.observed().is_terminal()
    }

    /// Whether it is the place of a node's own container on a network, not a container to run.
    #[must_use]
    pub fn is_attachment(&self) -> bool {
        self.attachment().is_some()
    }

    /// The container that it gives a place on a network, when it is no container to run.
    #[must_use]
    pub fn attachment(&self) -> Option<&Attachment> {
        self.spec.as_ref()?.attachment.as_ref()
    }

    /// Whether others may have ways to it that must be closed before it stops: it is on a network of the cluster.
    #[must_use]
    pub fn drains(&self) -> bool {
        self.networks.iter().any(|attachment| !attachment.addresses.is_empty())
    }

    /// Whether its service's name leads to the task's own address, which clients then remember: there is no virtual
    /// one.
    #[must_use]
    pub fn is_found_by_address(&self) -> bool {
        let endpoint = self.endpoint.as_ref().and_then(|endpoint| endpoint.spec.as_ref());
        self.drains() && endpoint.is_some_and(|spec| spec.mode() == endpoint_spec::Mode::Dnsrr)
    }

    /// `SERVICE.SLOT`, or `SERVICE.NODE` for a global task: what users see in `service ps`.
    #[must_use]
    pub fn slot_name(&self) -> String {
        let service = self.service_annotations.as_ref().map_or("", |annotations| &annotations.name);
        if self.slot == 0 {
            format!("{service}.{}", self.node_id)
        } else {
            format!("{service}.{}", self.slot)
        }
    }

    /// `SERVICE.SLOT.TASK`: the name of the task's container.
    #[must_use]
    pub fn container_name(&self) -> String {
        format!("{}.{}", self.slot_name(), self.id)
    }

    /// The identifier of the task's container; empty while there is none.
    #[must_use]
    pub fn container_id(&self) -> &str {
        let container = self.status.as_ref().and_then(|status| status.container.as_ref());
        container.map_or("", |container| &container.container_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_report_never_moves_a_task_back() {
        assert_eq!(TaskState::Running.advance(TaskState::Starting), None);
        assert_eq!(TaskState::Running.advance(TaskState::Running), None);
        assert_eq!(TaskState::Starting.advance(TaskState::Running), Some(TaskState::Running));
    }
}
