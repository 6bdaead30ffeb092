//! What a task does next: a pure function of what is and what is wanted.

use rswarm_proto::model::task::TaskState;

/// The next thing to do for a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Say that this node took the task.
    Accept,
    /// Get the image, create the container.
    Prepare,
    /// Prepared, but not wanted to run yet: wait for the managers.
    Hold,
    /// Start the container.
    Start,
    /// Running: wait for its end.
    Watch,
    /// Wanted to end: say that it drains, so that everybody knows why it runs still.
    Drain,
    /// Wanted to end: stop the container, after its drain if it has one.
    Stop,
    /// Over; nothing more will happen.
    Rest,
}

/// Chooses the step. Every step can be repeated, so a daemon that starts again goes on from the stored state.
/// `drains` says whether others have ways to the task that must be closed first (`Task::drains`).
#[must_use]
pub fn next_step(observed: TaskState, desired: TaskState, drains: bool) -> Step {
    if observed.is_terminal() {
        return Step::Rest;
    }
    if desired.is_terminal() {
        return if drains && observed == TaskState::Running { Step::Drain } else { Step::Stop };
    }
    match observed {
        TaskState::New | TaskState::Pending | TaskState::Assigned => Step::Accept,
        TaskState::Accepted | TaskState::Preparing => Step::Prepare,
        TaskState::Ready if desired < TaskState::Running => Step::Hold,
        TaskState::Ready | TaskState::Starting => Step::Start,
        TaskState::Running | TaskState::Draining => Step::Watch,
        TaskState::Complete
        | TaskState::Shutdown
        | TaskState::Failed
        | TaskState::Rejected
        | TaskState::Remove
        | TaskState::Orphaned => Step::Rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_goes_straight_to_running_when_wanted() {
        let wanted = TaskState::Running;
        let steps = [TaskState::Assigned, TaskState::Accepted, TaskState::Ready, TaskState::Running]
            .map(|observed| next_step(observed, wanted, false));
        assert_eq!(steps, [Step::Accept, Step::Prepare, Step::Start, Step::Watch]);
    }

    #[test]
    fn a_task_told_to_shut_down_is_never_started() {
        for observed in [TaskState::Assigned, TaskState::Preparing, TaskState::Ready, TaskState::Starting] {
            assert_eq!(next_step(observed, TaskState::Shutdown, false), Step::Stop);
        }
    }

    #[test]
    fn a_prepared_task_waits_until_it_is_wanted_to_run() {
        assert_eq!(next_step(TaskState::Ready, TaskState::Ready, false), Step::Hold);
        assert_eq!(next_step(TaskState::Preparing, TaskState::Ready, false), Step::Prepare);
    }

    #[test]
    fn what_is_over_stays_over() {
        for observed in [TaskState::Complete, TaskState::Failed, TaskState::Rejected, TaskState::Shutdown] {
            assert_eq!(next_step(observed, TaskState::Running, false), Step::Rest);
            assert_eq!(next_step(observed, TaskState::Remove, false), Step::Rest);
        }
    }

    #[test]
    fn a_running_task_with_ways_to_it_drains_before_it_stops() {
        let told = TaskState::Shutdown;
        assert_eq!(next_step(TaskState::Running, told, true), Step::Drain);
        assert_eq!(next_step(TaskState::Running, told, false), Step::Stop);
        assert_eq!(next_step(TaskState::Draining, told, true), Step::Stop);
        assert_eq!(next_step(TaskState::Starting, told, true), Step::Stop, "nothing leads there yet");
        assert_eq!(next_step(TaskState::Failed, told, true), Step::Rest);
    }
}
