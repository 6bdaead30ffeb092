//! The latest status of every task, and which of them no manager has confirmed yet. Pure.

use std::collections::BTreeMap;

use rswarm_proto::wire::{StatusReport, TaskReport, TaskStatus};

/// Statuses per report; more go into the next one.
const REPORT_MAX: usize = 1000;

/// Remembers statuses until they are confirmed. A newer status of a task replaces an older one.
#[derive(Debug, Default)]
pub(crate) struct Reporter {
    sequence: u64,
    waiting: BTreeMap<String, TaskStatus>,
    sent: BTreeMap<String, (u64, TaskStatus)>,
}

impl Reporter {
    /// A task has a new status.
    pub(crate) fn put(&mut self, task_id: &str, status: TaskStatus) {
        self.sent.remove(task_id);
        self.waiting.insert(task_id.to_owned(), status);
    }

    /// A task is gone from this node; nobody asks for its status any more.
    pub(crate) fn forget(&mut self, task_id: &str) {
        self.sent.remove(task_id);
        self.waiting.remove(task_id);
    }

    /// Whether there is anything to say.
    pub(crate) fn has_news(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The next report to send, if there is anything to say.
    pub(crate) fn next_report(&mut self) -> Option<StatusReport> {
        if self.waiting.is_empty() {
            return None;
        }
        self.sequence += 1;
        let mut tasks = Vec::new();
        while tasks.len() < REPORT_MAX
            && let Some((task_id, status)) = self.waiting.pop_first()
        {
            self.sent.insert(task_id.clone(), (self.sequence, status.clone()));
            tasks.push(TaskReport { task_id, status: Some(status) });
        }
        Some(StatusReport { sequence: self.sequence, tasks })
    }

    /// A manager has stored all reports up to `sequence`.
    pub(crate) fn confirm(&mut self, sequence: u64) {
        self.sent.retain(|_, (sent, _)| *sent > sequence);
    }

    /// The session ended: what was sent may be lost.
    pub(crate) fn resend(&mut self) {
        for (task_id, (_, status)) in std::mem::take(&mut self.sent) {
            self.waiting.entry(task_id).or_insert(status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: i32) -> TaskStatus {
        TaskStatus { state, ..TaskStatus::default() }
    }

    #[test]
    fn what_is_not_confirmed_is_sent_again() {
        let mut reporter = Reporter::default();
        reporter.put("a", status(512));
        let first = reporter.next_report().expect("something to say");
        assert!(reporter.next_report().is_none());
        reporter.resend();
        assert_eq!(reporter.next_report().expect("again").tasks, first.tasks);
        reporter.confirm(2);
        reporter.resend();
        assert!(reporter.next_report().is_none());
    }

    #[test]
    fn a_newer_status_replaces_an_older_one_in_flight() {
        let mut reporter = Reporter::default();
        reporter.put("a", status(448));
        reporter.next_report();
        reporter.put("a", status(512));
        reporter.confirm(1);
        reporter.resend();
        let report = reporter.next_report().expect("the newer one");
        assert_eq!(report.tasks[0].status, Some(status(512)));
    }
}
