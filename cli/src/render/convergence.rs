//! How far a service is from what was asked: docker's convergence view, as a function of what is observed.

use std::collections::BTreeMap;
use std::time::Duration;

use rswarm_api::types::{Node, Service, Task};
use rswarm_base::clock::Timestamp;

use crate::units::ellipsis;

/// More bars than this are not drawn: the overall line has to do.
const BARS_MAX: usize = 20;
/// A bar at its full length.
const BAR_WIDTH: usize = 50;
/// How long tasks have to stay up when the service's update configuration says nothing.
const MONITOR: Duration = Duration::from_secs(5);
/// The states on the way to running, in order; a bar's length is the place in this list.
const STATES: [&str; 9] =
    ["new", "allocated", "pending", "assigned", "accepted", "preparing", "ready", "starting", "running"];

/// What the view concludes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Look again.
    Waiting,
    /// As asked, and stable for the monitored time.
    Converged,
    /// It will not get there by itself.
    Failed(String),
}

/// One drawing of the view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// `overall progress: …`
    pub overall: String,
    /// One line per task, when there are few enough.
    pub tasks: Vec<String>,
    /// `verify: …`, `rollback: …`
    pub remarks: Vec<String>,
    /// Whether to go on.
    pub verdict: Verdict,
}

impl Frame {
    /// All its lines, top to bottom.
    pub fn lines(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.overall).chain(&self.tasks).chain(&self.remarks)
    }
}

/// Follows one service until it is as asked.
#[derive(Debug, Default)]
pub struct Convergence {
    /// Slots in the order in which they were first seen.
    places: BTreeMap<u64, usize>,
    converged_at: Option<Timestamp>,
    failed_while_verifying: bool,
}

/// How many tasks run of how many wanted, with a line for each.
struct Progress {
    running: usize,
    wanted: usize,
    unit: &'static str,
    lines: Vec<String>,
}

impl Convergence {
    /// What to show now. `tasks` are those of the service's current version.
    pub fn observe(&mut self, service: &Service, tasks: &[Task], nodes: &[Node], now: Timestamp) -> Frame {
        let progress = self.progress(service, tasks, nodes);
        let (state, message) = match &service.update_status {
            Some(status) => (status.state.as_str(), status.message.as_str()),
            None => ("", ""),
        };
        let cause = service.deployment.as_ref().map_or("", |deployment| deployment.cause.as_str());
        let rolling_back = state.starts_with("rollback");
        let overall = format!(
            "overall progress: {}{} out of {} {}",
            if rolling_back { "rolling back update: " } else { "" },
            progress.running,
            progress.wanted,
            progress.unit
        );
        let mut remarks = Vec::new();
        if rolling_back && !message.is_empty() {
            remarks.push(format!("rollback: {message}"));
        }
        let settled =
            progress.running >= progress.wanted && !matches!(state, "updating" | "rollback_started");
        let (verify, verdict) = self.verdict(service, settled, now);
        remarks.extend(verify);
        let verdict = match state {
            "paused" => Verdict::Failed(format!("service update paused: {message}")),
            "rollback_paused" => Verdict::Failed(format!("service rollback paused: {message}")),
            // What was asked for did not come to be, though the service is well.
            "rollback_completed" if verdict == Verdict::Converged && !cause.is_empty() => {
                Verdict::Failed(format!("service update rolled back: {cause}"))
            }
            _ => verdict,
        };
        let tasks = if progress.wanted > BARS_MAX { Vec::new() } else { progress.lines };
        Frame { overall, tasks, remarks, verdict }
    }

    fn verdict(&mut self, service: &Service, settled: bool, now: Timestamp) -> (Option<String>, Verdict) {
        if !settled {
            self.failed_while_verifying |= self.converged_at.take().is_some();
            let remark = self.failed_while_verifying.then(|| "verify: Detected task failure".to_owned());
            return (remark, Verdict::Waiting);
        }
        self.failed_while_verifying = false;
        let since = *self.converged_at.get_or_insert(now);
        match monitor(service).checked_sub(now.since(since)).filter(|left| !left.is_zero()) {
            None => (Some("verify: Service converged".into()), Verdict::Converged),
            Some(left) => {
                let seconds = left.as_secs_f64().ceil();
                let plural = if seconds == 1.0 { "" } else { "s" };
                let text =
                    format!("verify: Waiting {seconds} second{plural} to verify that tasks are stable...");
                (Some(text), Verdict::Waiting)
            }
        }
    }

    fn progress(&mut self, service: &Service, tasks: &[Task], nodes: &[Node]) -> Progress {
        match &service.spec.mode.replicated {
            Some(replicated) => {
                let wanted = usize::try_from(replicated.replicas.unwrap_or(1)).unwrap_or(usize::MAX);
                self.replicated(wanted, tasks, nodes)
            }
            None => global(tasks, nodes),
        }
    }

    fn replicated(&mut self, wanted: usize, tasks: &[Task], nodes: &[Node]) -> Progress {
        let slots = latest_by(tasks, |task| task.slot);
        self.places.retain(|slot, _| slots.contains_key(slot));
        let mut lines = BTreeMap::new();
        for (slot, task) in &slots {
            let free = (0..).find(|place| !self.places.values().any(|taken| taken == place)).unwrap_or(0);
            let place = *self.places.entry(*slot).or_insert(free);
            if place < wanted {
                lines.insert(place, task_line(&format!("{}/{wanted}", place + 1), task));
            }
        }
        for place in 0..wanted.min(BARS_MAX) {
            lines.entry(place).or_insert_with(|| format!("{}/{wanted}:", place + 1));
        }
        let running = slots.values().filter(|task| is_running(task, nodes)).count();
        Progress { running, wanted, unit: "tasks", lines: lines.into_values().collect() }
    }
}

fn global(tasks: &[Task], nodes: &[Node]) -> Progress {
    let placed = latest_by(tasks, |task| task.node_id.clone());
    let hostname = |id: &str| {
        let node = nodes.iter().find(|node| node.id == id);
        node.map_or_else(|| id.to_owned(), |node| node.description.hostname.clone())
    };
    let lines = placed.iter().map(|(node, task)| task_line(&ellipsis(&hostname(node), 12), task)).collect();
    let running = placed.values().filter(|task| is_running(task, nodes)).count();
    Progress { running, wanted: placed.len(), unit: "tasks", lines }
}

/// The task that stands for each slot or node: one that is wanted before one that is not, then the furthest.
fn latest_by<K: Ord>(tasks: &[Task], key: impl Fn(&Task) -> K) -> BTreeMap<K, &Task> {
    let rank =
        |task: &Task| (task.desired_state != "shutdown" && task.desired_state != "remove", place(task));
    let mut latest: BTreeMap<K, &Task> = BTreeMap::new();
    for task in tasks.iter().filter(|task| rank(task).0) {
        let kept = latest.entry(key(task)).or_insert(task);
        if rank(task) > rank(kept) {
            *kept = task;
        }
    }
    latest
}

/// How far on the way to running, counted from 1; 0 for a state that is not on it.
fn place(task: &Task) -> usize {
    STATES.iter().position(|state| *state == task.status.state).map_or(0, |at| at + 1)
}

fn is_running(task: &Task, nodes: &[Node]) -> bool {
    let down = nodes.iter().any(|node| node.id == task.node_id && node.status.state == "down");
    task.status.state == "running" && !down
}

fn task_line(name: &str, task: &Task) -> String {
    let failed = place(task) == 0 || (!task.status.err.is_empty() && task.status.state != "running");
    if failed && !task.status.err.is_empty() {
        return format!("{name}: {}", ellipsis(&task.status.err.replace('\n', " "), 80));
    }
    format!("{name}: {:<9} {}", task.status.state, bar(place(task), STATES.len()))
}

/// `[=====>     ]`
pub fn bar(current: usize, total: usize) -> String {
    let filled = (current * BAR_WIDTH).checked_div(total).unwrap_or(0).min(BAR_WIDTH);
    format!("[{}>{}]", "=".repeat(filled), " ".repeat(BAR_WIDTH - filled))
}

fn monitor(service: &Service) -> Duration {
    let set = service.spec.update_config.as_ref().map(|config| config.monitor).filter(|ns| *ns > 0);
    set.and_then(|ns| u64::try_from(ns).ok()).map_or(MONITOR, Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use rswarm_api::types::{ReplicatedService, UpdateStatus};

    use super::*;

    fn service(replicas: u64) -> Service {
        let mut service = Service::default();
        service.spec.mode.replicated = Some(ReplicatedService { replicas: Some(replicas) });
        service
    }

    fn task(slot: u64, state: &str) -> Task {
        let mut task = Task { slot, desired_state: "running".into(), ..Task::default() };
        task.status.state = state.into();
        task
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * 1_000_000_000)
    }

    fn text(frame: &Frame) -> String {
        frame.lines().map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn a_starting_service_shows_a_bar_per_task() {
        let tasks = [task(2, "running"), task(1, "preparing")];
        let frame = Convergence::default().observe(&service(3), &tasks, &[], at(1));
        assert_eq!(
            text(&frame),
            "overall progress: 1 out of 3 tasks\n\
             1/3: preparing [=================================>                 ]\n\
             2/3: running   [==================================================>]\n\
             3/3:\n"
        );
        assert_eq!(frame.verdict, Verdict::Waiting);
    }

    #[test]
    fn a_service_converges_after_the_monitored_time() {
        let mut view = Convergence::default();
        let tasks = [task(1, "running")];
        let remark = |frame: Frame| (frame.remarks.concat(), frame.verdict);
        let waiting = "verify: Waiting 5 seconds to verify that tasks are stable...";
        assert_eq!(remark(view.observe(&service(1), &tasks, &[], at(1))), (waiting.into(), Verdict::Waiting));
        let waiting = "verify: Waiting 1 second to verify that tasks are stable...";
        assert_eq!(remark(view.observe(&service(1), &tasks, &[], at(5))), (waiting.into(), Verdict::Waiting));
        let failed = [task(1, "failed")];
        assert_eq!(
            remark(view.observe(&service(1), &failed, &[], at(5))),
            ("verify: Detected task failure".into(), Verdict::Waiting)
        );
        view.observe(&service(1), &tasks, &[], at(6));
        assert_eq!(
            remark(view.observe(&service(1), &tasks, &[], at(11))),
            ("verify: Service converged".into(), Verdict::Converged)
        );
    }

    #[test]
    fn a_failing_task_shows_its_error_and_its_successor_replaces_it() {
        let mut broken = task(1, "rejected");
        broken.status.err = "No such image: web:latest".into();
        let frame = Convergence::default().observe(&service(1), &[broken.clone()], &[], at(1));
        assert_eq!(frame.tasks, ["1/1: No such image: web:latest"]);
        broken.desired_state = "shutdown".into();
        let frame = Convergence::default().observe(&service(1), &[broken, task(1, "starting")], &[], at(1));
        assert!(frame.tasks[0].starts_with("1/1: starting "), "{:?}", frame.tasks);
    }

    #[test]
    fn tasks_on_a_node_that_is_down_do_not_count() {
        let mut node = Node { id: "n".into(), ..Node::default() };
        node.status.state = "down".into();
        let mut lost = task(1, "running");
        lost.node_id = "n".into();
        let frame = Convergence::default().observe(&service(1), &[lost], &[node], at(1));
        assert_eq!(frame.overall, "overall progress: 0 out of 1 tasks");
    }

    #[test]
    fn a_paused_update_fails_with_its_reason() {
        let mut paused = service(1);
        let message = "update paused due to failure or early termination of task x".to_owned();
        paused.update_status =
            Some(UpdateStatus { state: "paused".into(), message, ..UpdateStatus::default() });
        let frame = Convergence::default().observe(&paused, &[], &[], at(1));
        assert_eq!(
            frame.verdict,
            Verdict::Failed(
                "service update paused: update paused due to failure or early termination of task x".into()
            )
        );
    }

    #[test]
    fn a_service_that_went_back_is_well_and_a_failure_all_the_same() {
        let mut back = service(1);
        let state = || "rollback_completed".to_owned();
        back.update_status = Some(UpdateStatus { state: state(), ..UpdateStatus::default() });
        let verdict = |back: &Service| {
            let mut view = Convergence::default();
            view.observe(back, &[task(1, "running")], &[], at(1));
            view.observe(back, &[task(1, "running")], &[], at(10)).verdict
        };
        assert_eq!(verdict(&back), Verdict::Converged, "asked for by hand");
        let cause = "task web.1 (x) failed: task: non-zero exit (3)".to_owned();
        back.deployment = Some(rswarm_api::types::Deployment { cause: cause.clone(), ..Default::default() });
        assert_eq!(verdict(&back), Verdict::Failed(format!("service update rolled back: {cause}")));
    }

    #[test]
    fn many_tasks_have_no_bars() {
        let tasks: Vec<Task> = (1..=30).map(|slot| task(slot, "running")).collect();
        let frame = Convergence::default().observe(&service(30), &tasks, &[], at(1));
        assert_eq!((frame.overall.as_str(), frame.tasks.len()), ("overall progress: 30 out of 30 tasks", 0));
    }
}
