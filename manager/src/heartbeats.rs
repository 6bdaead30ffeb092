//! When each node was last heard of, which endpoint tables its kernel has, and what its tasks use while somebody wants
//! to know: the observations that are kept out of raft.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rswarm_base::{Clock, SystemClock, Timestamp};
use rswarm_manager_core::drain::AppliedTables;
use rswarm_proto::wire::TaskUsage;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::Instant;

/// How often it is looked whether this process runs.
const PULSE: Duration = Duration::from_millis(500);
/// A pulse that is this late tells that the process, or the machine, stood still, or that its clock was set.
const STANDSTILL: Duration = Duration::from_secs(2);

/// The last heartbeats, shared by those who hear them and the leader who judges by them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Heartbeats {
    heard: Arc<Mutex<Heard>>,
    /// Wakes who waits for nodes to tell what their tasks use.
    told: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Heard {
    /// The last heartbeat of each node.
    last: BTreeMap<String, Timestamp>,
    /// What each node acknowledged last.
    tables: AppliedTables,
    /// Since when heartbeats could be heard without a break.
    since: Timestamp,
    /// What each node said last that its tasks use.
    usage: BTreeMap<String, Vec<TaskUsage>>,
    /// Until when that is wanted.
    usage_until: Timestamp,
    /// When the clock was last compared with one that nobody sets.
    compared: Option<(Instant, Timestamp)>,
}

impl Heartbeats {
    /// The node lives.
    pub(crate) fn beat(&self, node_id: &str, now: Timestamp) {
        let heard = &mut self.heard.lock().expect("no holder panics").last;
        match heard.get_mut(node_id) {
            Some(last) => *last = now,
            None => drop(heard.insert(node_id.to_owned(), now)),
        }
    }

    /// The node has these tables in its kernel. Says whether that is news.
    pub(crate) fn applied(&self, node_id: &str, tables: &BTreeMap<String, u64>) -> bool {
        let heard = &mut self.heard.lock().expect("no holder panics").tables;
        let is_news = heard.get(node_id) != Some(tables);
        if is_news {
            heard.insert(node_id.to_owned(), tables.clone());
        }
        is_news
    }

    /// What all nodes have.
    pub(crate) fn tables(&self) -> AppliedTables {
        self.heard.lock().expect("no holder panics").tables.clone()
    }

    /// What one node has.
    pub(crate) fn tables_of(&self, node_id: &str) -> BTreeMap<String, u64> {
        self.heard.lock().expect("no holder panics").tables.get(node_id).cloned().unwrap_or_default()
    }

    /// Starts over when the clock was set since the last decision, which comes before the next pulse at times: by the
    /// new time, every node would have been silent for as long as the clock jumped.
    pub(crate) fn check_clock(&self, now: Timestamp) {
        let here = (Instant::now(), now);
        let before = self.heard.lock().expect("no holder panics").compared.replace(here);
        if before.is_some_and(|before| was_set(before, here)) {
            tracing::warn!("the clock was set; nodes are given time to be heard");
            self.restart(now);
        }
    }

    /// All heartbeats as of now, and since when there were any to hear.
    pub(crate) fn all(&self) -> (BTreeMap<String, Timestamp>, Timestamp) {
        let heard = self.heard.lock().expect("no holder panics");
        (heard.last.clone(), heard.since)
    }

    /// Forgets all: a new leader has heard nobody yet, nor has one that stood still.
    pub(crate) fn restart(&self, since: Timestamp) {
        let mut heard = self.heard.lock().expect("no holder panics");
        let usage_until = heard.usage_until;
        *heard = Heard { since, usage_until, ..Heard::default() };
    }

    /// Starts over whenever this process stood still: what nodes said meanwhile still waits to be heard, and
    /// some would seem silent while others are heard again. Never returns.
    pub(crate) async fn watch_pulse(&self) -> std::convert::Infallible {
        loop {
            let before = SystemClock.now();
            tokio::time::sleep(PULSE).await;
            let now = SystemClock.now();
            if now.since(before) > PULSE + STANDSTILL || now < before {
                tracing::warn!(
                    "this process stood still, or its clock was set; nodes are given time to be heard"
                );
                self.restart(now);
            }
        }
    }

    /// Forgets nodes that are no longer listed.
    pub(crate) fn retain(&self, is_listed: impl Fn(&str) -> bool) {
        let mut heard = self.heard.lock().expect("no holder panics");
        heard.last.retain(|node_id, _| is_listed(node_id));
        heard.tables.retain(|node_id, _| is_listed(node_id));
        heard.usage.retain(|node_id, _| is_listed(node_id));
    }

    /// Somebody wants to know until then what tasks use.
    pub(crate) fn want_usage(&self, until: Timestamp) {
        let mut heard = self.heard.lock().expect("no holder panics");
        heard.usage_until = heard.usage_until.max(until);
    }

    /// Whether somebody does. Once nobody does any more, nothing is kept of it.
    pub(crate) fn is_usage_wanted(&self, now: Timestamp) -> bool {
        let mut heard = self.heard.lock().expect("no holder panics");
        let is_wanted = now < heard.usage_until;
        if !is_wanted {
            heard.usage.clear();
        }
        is_wanted
    }

    /// What a node's tasks use.
    pub(crate) fn use_of(&self, node_id: &str, tasks: &[TaskUsage]) {
        let mut heard = self.heard.lock().expect("no holder panics");
        heard.usage.insert(node_id.to_owned(), tasks.to_vec());
        drop(heard);
        self.told.notify_waiters();
    }

    /// Resolves when the next node tells, counted from this call.
    pub(crate) fn next_told(&self) -> OwnedNotified {
        self.told.clone().notified_owned()
    }

    /// What all tasks use, as far as their nodes have said.
    pub(crate) fn usage(&self) -> BTreeMap<String, Vec<TaskUsage>> {
        self.heard.lock().expect("no holder panics").usage.clone()
    }
}

/// Whether the clock went another way between two looks than time did.
fn was_set(before: (Instant, Timestamp), after: (Instant, Timestamp)) -> bool {
    let passed = after.0.duration_since(before.0);
    after.1 < before.1 || after.1.since(before.1).abs_diff(passed) > STANDSTILL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_noticed_and_one_that_is_slewed_is_not() {
        let (begin, second) = (Instant::now(), Duration::from_secs(1));
        let at = |passed: Duration, shown: i64| (begin + passed, Timestamp(1_000_000_000_000 + shown));
        let check = |shown: i64| was_set(at(Duration::ZERO, 0), at(second, shown));
        assert_eq!([1_000_000_000, 900_000_000, 2_500_000_000].map(check), [false; 3]);
        assert_eq!([3_600_000_000_000, -1, -3_600_000_000_000].map(check), [true; 3]);
    }

    #[tokio::test]
    async fn after_a_standstill_nobody_has_been_heard() {
        let heartbeats = Heartbeats::default();
        heartbeats.restart(Timestamp(5));
        heartbeats.beat("n1", SystemClock.now());
        let watching = heartbeats.clone();
        let scope = rswarm_base::Scope::root("pulse");
        let token = scope.token();
        scope.spawn(async move {
            let _ = token.run_until_cancelled(watching.watch_pulse()).await;
        });
        // The pulse begins; then the only thread of this runtime stands still.
        tokio::task::yield_now().await;
        let before = SystemClock.now();
        std::thread::sleep(PULSE + STANDSTILL + PULSE);
        while heartbeats.all().1 < before {
            assert!(
                SystemClock.now().since(before) < Duration::from_secs(20),
                "the standstill is not noticed"
            );
            tokio::task::yield_now().await;
        }
        assert!(heartbeats.all().0.is_empty());
        scope.shutdown(STANDSTILL).await;
    }
}
