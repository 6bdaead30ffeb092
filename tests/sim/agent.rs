//! A simulated node: the real rules of the agent ([`next_step`], [`AssignmentSet`]) over containers that take
//! their time and sometimes fail.

use std::collections::BTreeMap;
use std::time::Duration;

use rswarm_base::{IdGen, Timestamp};
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{Assignments, ContainerStatus, NodeTaskReport, Task, TaskReport, TaskStatus};
use rswarm_worker::assignments::{AssignmentSet, NetworkView};
use rswarm_worker::content::Content;
use rswarm_worker::step::{Step, next_step};

use crate::net::Payload;

/// Without an answer for this long, an agent tries another manager.
const PATIENCE: Duration = Duration::from_millis(1500);
/// The image whose container fails now and then while the storm lasts.
pub const FLAKY: &str = "flaky";
/// The image whose container never starts.
pub const BROKEN: &str = "broken";

/// What a node really has for one task.
#[derive(Debug, Clone)]
pub struct Container {
    /// The task as it was last assigned.
    pub task: Task,
    pub status: TaskStatus,
    /// When it will have stopped, once it was told to.
    stops_at: Option<Timestamp>,
}

impl Container {
    /// Whether a process runs, with the task's addresses.
    pub fn is_up(&self) -> bool {
        matches!(self.status.state(), TaskState::Starting | TaskState::Running | TaskState::Draining)
    }
}

/// A node and its agent.
pub struct Agent {
    pub node_id: String,
    pub containers: BTreeMap<String, Container>,
    set: AssignmentSet,
    /// Raft index of the newest set that was applied: an older one, of a manager that lags, is ignored.
    seen: u64,
    pub manager: u64,
    heard_at: Timestamp,
    pub is_up: bool,
    clock_skew: i64,
    /// Whether its containers have changed since they were looked at.
    pub changed: bool,
    /// Who signed its certificate, and who signs them now as far as it was told.
    root: usize,
    signer: usize,
}

impl Agent {
    pub fn new(node_id: &str, manager: u64, random: &mut IdGen) -> Agent {
        Agent {
            node_id: node_id.to_owned(),
            containers: BTreeMap::new(),
            set: AssignmentSet::default(),
            seen: 0,
            manager,
            heard_at: Timestamp::ZERO,
            is_up: true,
            clock_skew: (random.number() % 4_000_000_000) as i64 - 2_000_000_000,
            changed: false,
            root: 0,
            signer: 0,
        }
    }

    /// The agent ends and starts again. Its containers go on without it, and so does what it has on disk.
    pub fn restart(&mut self) {
        self.set = AssignmentSet::default();
        self.is_up = true;
    }

    /// The machine reboots: every process on it is gone.
    pub fn reboot(&mut self, now: Timestamp) {
        let clock = self.clock(now);
        for container in self.containers.values_mut().filter(|container| container.is_up()) {
            container.report(TaskState::Failed, clock);
        }
        self.changed = true;
        self.restart();
    }

    /// The networks that it was told of, with their tables.
    pub fn tables(&self) -> impl Iterator<Item = &NetworkView> {
        self.set.networks.values()
    }

    /// The secrets and configs that it has.
    pub fn content(&self) -> &Content {
        &self.set.content
    }

    /// Its clock is set.
    pub fn jump(&mut self, by: i64) {
        self.clock_skew += by;
    }

    fn clock(&self, now: Timestamp) -> Timestamp {
        Timestamp(now.0 + self.clock_skew)
    }

    pub fn report(&mut self, managers: &[u64], now: Timestamp, random: &mut IdGen) -> Payload {
        if now.since(self.heard_at) > PATIENCE && !managers.is_empty() {
            self.manager = managers[random.number() as usize % managers.len()];
            self.heard_at = now;
        }
        let statuses = self.containers.values().map(|container| NodeTaskReport {
            node_id: self.node_id.clone(),
            report: Some(TaskReport {
                task_id: container.task.id.clone(),
                status: Some(container.status.clone()),
            }),
        });
        let statuses = statuses.collect();
        Payload::Report {
            node_id: self.node_id.clone(),
            statuses,
            sequence: self.set.sequence.clone(),
            root: self.root,
        }
    }

    pub fn assign(&mut self, from: u64, index: u64, root: usize, message: &Assignments, now: Timestamp) {
        if from == self.manager {
            self.heard_at = now;
        }
        if index < self.seen {
            return;
        }
        if self.set.apply(message).is_err() {
            // The next report tells the sequence, and the manager starts over.
            self.set = AssignmentSet::default();
            return;
        }
        self.seen = index;
        self.signer = root;
        self.changed |= !message.changes.is_empty();
        for (id, task) in &self.set.tasks {
            match self.containers.get_mut(id) {
                Some(container) => container.task = task.clone(),
                None => {
                    let status = task.status.clone().unwrap_or_default();
                    let container = Container { task: task.clone(), status, stops_at: None };
                    self.containers.insert(id.clone(), container);
                }
            }
        }
    }

    /// Every task goes one step on, or takes its time.
    pub fn step(&mut self, now: Timestamp, calm: bool, random: &mut IdGen) {
        let clock = self.clock(now);
        if self.root != self.signer && random.number().is_multiple_of(10) {
            self.root = self.signer;
        }
        let has_set = !self.set.sequence.is_empty();
        let mut gone = Vec::new();
        for (id, container) in &mut self.containers {
            let wanted = self.set.tasks.contains_key(id) || !has_set;
            let desired = if wanted { container.task.desired() } else { TaskState::Remove };
            if calm || !random.number().is_multiple_of(3) {
                let before = container.status.state();
                container.go(desired, clock, now, calm, random);
                self.changed |= container.status.state() != before;
            }
            if !wanted && container.status.state().is_terminal() {
                gone.push(id.clone());
            }
        }
        gone.iter().for_each(|id| drop(self.containers.remove(id)));
    }
}

impl Container {
    fn report(&mut self, state: TaskState, clock: Timestamp) {
        if self.status.state().advance(state).is_none() {
            return;
        }
        let container_id = format!("c-{}", self.task.id);
        self.status = TaskStatus {
            state: state.into(),
            timestamp: clock.0,
            container: Some(ContainerStatus { container_id, ..ContainerStatus::default() }),
            ..TaskStatus::default()
        };
    }

    fn image(&self) -> &str {
        let container = self.task.spec.as_ref().and_then(|spec| spec.container.as_ref());
        container.map_or("", |container| &container.image)
    }

    fn go(&mut self, desired: TaskState, clock: Timestamp, now: Timestamp, calm: bool, random: &mut IdGen) {
        match next_step(self.status.state(), desired, self.task.drains()) {
            Step::Accept => self.report(TaskState::Accepted, clock),
            Step::Prepare if self.status.state() == TaskState::Accepted => {
                self.report(TaskState::Preparing, clock);
            }
            Step::Prepare => self.report(TaskState::Ready, clock),
            Step::Start if self.status.state() == TaskState::Ready => self.report(TaskState::Starting, clock),
            Step::Start if self.image() == BROKEN => self.report(TaskState::Failed, clock),
            Step::Start => self.report(TaskState::Running, clock),
            Step::Watch if !calm && self.image() == FLAKY && random.number().is_multiple_of(50) => {
                self.report(TaskState::Failed, clock);
            }
            Step::Watch if self.task.job_iteration.is_some() && random.number().is_multiple_of(10) => {
                self.report(TaskState::Complete, clock);
            }
            Step::Drain => self.report(TaskState::Draining, clock),
            Step::Stop if !self.is_up() => self.report(TaskState::Shutdown, clock),
            Step::Stop => {
                let slow = Duration::from_millis(random.number() % 2000);
                let stops_at = *self.stops_at.get_or_insert_with(|| now.after(slow));
                if now >= stops_at {
                    self.report(TaskState::Shutdown, clock);
                }
            }
            Step::Hold | Step::Watch | Step::Rest => {}
        }
    }
}
