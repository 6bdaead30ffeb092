//! Slots: the places that a service's tasks follow one another in. A replicated service has numbered ones,
//! a global service one on each node.
//!
//! The rule that the orchestrators share: a slot is *occupied* while it has a task that is not to be removed.
//! An occupied slot without a live task either gets a replacement or is done; [`verdict`] says which, from
//! the tasks that the slot still has and nothing else, so that a new leader decides what the old one would.

use std::sync::Arc;
use std::time::Duration;

use rswarm_base::{IdGen, Timestamp};
use rswarm_proto::model::object::Stored;
use rswarm_proto::model::service::RESTART_DELAY;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{
    Endpoint, EndpointSpec, Node, PortConfig, RestartPolicy, Service, Task, TaskSpec, TaskStatus,
    port_config, restart_policy::Condition,
};

use crate::constraint;
use crate::publish::needs_ingress;
use crate::state::State;

/// One slot and its tasks, oldest first; never empty.
#[derive(Debug, Clone)]
pub struct Slot<'a> {
    /// The tasks that it has had, as far as they are still stored.
    pub tasks: Vec<&'a Arc<Task>>,
}

/// Where a new task goes: a number for replicated services, a node for global ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Slot number; zero for global services.
    pub slot: u64,
    /// Node id; empty until scheduled for replicated services.
    pub node_id: String,
}

/// What becomes of a slot that has no live task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A new task, which starts after this time.
    Replace(Duration),
    /// Nothing: its last task has done what the restart policy allows.
    Done,
}

/// The occupied slots of a service, in order.
#[must_use]
pub fn occupied<'a>(view: &'a State, service: &Service) -> Vec<Slot<'a>> {
    let tasks: Vec<&Arc<Task>> = view.tasks_of_service(&service.id).collect();
    let is_same = |one: &&Arc<Task>, next: &&Arc<Task>| {
        one.slot == next.slot && (one.slot != 0 || one.node_id == next.node_id)
    };
    let slots = tasks.chunk_by(is_same);
    slots.map(|tasks| Slot::new(tasks.to_vec())).filter(Slot::is_occupied).collect()
}

/// Those of them in which something is to be done or awaited, in order: not those whose one live task is wanted to
/// run and runs, while all their other tasks are history.
pub fn restless<'a>(view: &'a State, service: &Service) -> impl Iterator<Item = Slot<'a>> {
    let cohort = view.cohort(&service.id).into_iter();
    let slots = cohort.flat_map(|cohort| cohort.restless().map(|seat| cohort.tasks_of(seat).collect()));
    slots.map(Slot::new).filter(Slot::is_occupied)
}

impl<'a> Slot<'a> {
    fn new(mut tasks: Vec<&'a Arc<Task>>) -> Slot<'a> {
        tasks.sort_by_key(|task| age(task));
        Slot { tasks }
    }

    /// The number and node that a successor gets.
    #[must_use]
    pub fn place(&self) -> Place {
        let latest = self.latest();
        let node_id = if latest.slot == 0 { latest.node_id.clone() } else { String::new() };
        Place { slot: latest.slot, node_id }
    }

    /// The task made last.
    ///
    /// # Panics
    /// Never: a slot has tasks.
    #[must_use]
    pub fn latest(&self) -> &'a Arc<Task> {
        self.tasks.last().expect("a slot has tasks")
    }

    /// The tasks that are wanted and have not ended, oldest first.
    pub fn live(&self) -> impl Iterator<Item = &'a Arc<Task>> + '_ {
        self.tasks.iter().copied().filter(|task| task.is_live())
    }

    /// Whether any task is live.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.live().next().is_some()
    }

    /// Of a job: whether a task of its iteration ran to completion here.
    #[must_use]
    pub fn is_complete(&self, service: &Service) -> bool {
        let iteration = service.job_iteration();
        let mut own = self.tasks.iter().filter(|task| task.job_iteration == iteration);
        own.any(|task| task.observed() == TaskState::Complete)
    }

    fn is_occupied(&self) -> bool {
        self.tasks.iter().any(|task| task.desired() < TaskState::Remove)
    }

    /// Whether every task but `except` has stopped, or is where nobody can tell.
    #[must_use]
    pub fn others_stopped(&self, view: &State, except: &str) -> bool {
        self.tasks
            .iter()
            .all(|task| task.id == except || task.desired() <= TaskState::Running || is_stopped(view, task))
    }
}

/// Whether a task that is not wanted holds nothing any more: it has ended, never came to a node, or its node
/// is lost (then nobody can tell, and waiting would not help).
#[must_use]
pub fn is_stopped(view: &State, task: &Task) -> bool {
    let never_started = task.observed() < TaskState::Assigned && task.desired() > TaskState::Running;
    task.observed().is_terminal() || never_started || view.is_node_lost(&task.node_id)
}

/// What tasks are sorted by to have the oldest first: the order in which they were made, whatever the clocks of
/// the leaders said that made them.
#[must_use]
pub fn age(task: &Task) -> (u64, i64, &str) {
    (task.created_version, task.meta().created_at, &task.id)
}

/// Whether the task ended because of what it is, not because a manager said so.
#[must_use]
pub fn ended_by_itself(task: &Task) -> bool {
    matches!(task.observed(), TaskState::Complete | TaskState::Failed | TaskState::Rejected)
}

/// The restart policy of a service; Docker's defaults when it has none.
#[must_use]
pub fn restart_policy(service: &Service) -> RestartPolicy {
    let task = service.spec.as_ref().and_then(|spec| spec.task.as_ref());
    task.and_then(|task| task.restart).unwrap_or_default()
}

/// What becomes of an occupied slot that has no live task.
#[must_use]
pub fn verdict(service: &Service, slot: &Slot<'_>) -> Verdict {
    let policy = restart_policy(service);
    let latest = slot.latest();
    let told = !ended_by_itself(latest);
    if service.is_job() {
        if latest.job_iteration != service.job_iteration() || slot.is_complete(service) {
            return Verdict::Done;
        }
        if told {
            // Nothing was wrong with it, and nothing is done yet.
            return Verdict::Replace(Duration::ZERO);
        }
    }
    match policy.condition() {
        Condition::None if told && latest.slot == 0 => return Verdict::Replace(Duration::ZERO),
        Condition::None => return Verdict::Done,
        Condition::OnFailure if latest.observed() == TaskState::Complete => return Verdict::Done,
        Condition::OnFailure | Condition::Any => {}
    }
    if told {
        return Verdict::Replace(Duration::ZERO);
    }
    if policy.max_attempts > 0 && attempts(slot, policy.window.unwrap_or_default()) >= policy.max_attempts {
        return Verdict::Done;
    }
    Verdict::Replace(restart_delay(service))
}

/// How long a replacement of a task that ended by itself waits.
#[must_use]
pub fn restart_delay(service: &Service) -> Duration {
    let delay = restart_policy(service).delay;
    delay.map_or(RESTART_DELAY, |ns| Duration::from_nanos(u64::try_from(ns).unwrap_or(0)))
}

/// How often the latest task's spec has been restarted in this slot, within the policy's window before its end.
fn attempts(slot: &Slot<'_>, window: i64) -> u64 {
    let latest = slot.latest();
    let ended = |task: &Task| task.status.as_ref().map_or(0, |status| status.timestamp);
    let from = if window > 0 { ended(latest).saturating_sub(window) } else { i64::MIN };
    let counts = |task: &&&Arc<Task>| {
        task.id != latest.id
            && task.spec_version == latest.spec_version
            && ended_by_itself(task)
            && ended(task) >= from
    };
    slot.tasks.iter().filter(counts).count() as u64
}

/// What a new task of the service would be, as far as it matters for where it may go.
#[must_use]
pub fn model(service: &Service) -> Task {
    new_task(service, Place { slot: 1, node_id: String::new() }, Timestamp::ZERO, &mut IdGen::seeded(0))
}

/// A task of the service as it is now, wanted to run at once.
#[must_use]
pub fn new_task(service: &Service, place: Place, now: Timestamp, ids: &mut IdGen) -> Task {
    let spec = service.spec.clone().unwrap_or_default();
    let endpoint = spec.endpoint.clone().unwrap_or_default();
    Task {
        id: ids.cluster_id(),
        spec: Some(service.task_spec()),
        spec_version: service.spec_version,
        service_id: service.id.clone(),
        slot: place.slot,
        node_id: place.node_id,
        service_annotations: spec.annotations,
        job_iteration: service.job_iteration(),
        desired_state: TaskState::Running.into(),
        status: Some(TaskStatus {
            state: TaskState::New.into(),
            timestamp: now.0,
            message: "created".to_owned(),
            ..TaskStatus::default()
        }),
        endpoint: Some(Endpoint {
            ports: endpoint.ports.clone(),
            spec: Some(endpoint),
            virtual_ips: Vec::new(),
        }),
        ..Task::default()
    }
}

/// The task that follows the slot's latest one: made ready at once, but started only after `delay` and once
/// all its predecessors have stopped.
#[must_use]
pub fn successor(
    service: &Service,
    slot: &Slot<'_>,
    delay: Duration,
    now: Timestamp,
    ids: &mut IdGen,
) -> Task {
    let start_after = if delay.is_zero() { 0 } else { now.after(delay).0 };
    Task {
        desired_state: TaskState::Ready.into(),
        start_after,
        replaces: slot.latest().id.clone(),
        ..new_task(service, slot.place(), now, ids)
    }
}

/// A copy with another desired state.
#[must_use]
pub fn desire(task: &Task, desired: TaskState) -> Task {
    Task { desired_state: desired.into(), ..task.clone() }
}

/// What is different between a task and what its service asks for: the same for all tasks of one version of the
/// service's spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outdated {
    /// Nothing that a task depends on.
    Nothing,
    /// Where it may run, and nothing else.
    Placement,
    /// What it is.
    Task,
}

/// How far a task is from what its service asks for.
#[must_use]
pub fn outdated(service: &Service, task: &Task) -> Outdated {
    if task.spec_version == service.spec_version {
        return Outdated::Nothing;
    }
    let has = task.endpoint.as_ref().and_then(|endpoint| endpoint.spec.as_ref());
    let wanted = service.spec.as_ref().and_then(|spec| spec.endpoint.as_ref());
    if publishes(has) != publishes(wanted) {
        return Outdated::Task;
    }
    let mut wanted = comparable(service.task_spec());
    let mut has = comparable(task.spec.clone().unwrap_or_default());
    if wanted == has {
        return Outdated::Nothing;
    }
    (wanted.placement, has.placement) = (None, None);
    if wanted == has { Outdated::Placement } else { Outdated::Task }
}

/// Whether the task no longer is what its service asks for, so that an update must replace it. Where only the
/// placement changed, a task that already sits well stays.
#[must_use]
pub fn is_dirty(view: &State, service: &Service, task: &Task) -> bool {
    is_replaced_for(outdated(service, task), view, service, task)
}

/// The same, when it is known already what is different.
#[must_use]
pub fn is_replaced_for(outdated: Outdated, view: &State, service: &Service, task: &Task) -> bool {
    let sits_well = || {
        let spec = service.spec.as_ref().and_then(|spec| spec.task.as_ref());
        let node = view.node(&task.node_id);
        node.is_some_and(|node| spec.is_none_or(|spec| sits_well(spec, node)))
    };
    match outdated {
        Outdated::Nothing => false,
        Outdated::Placement => !sits_well(),
        Outdated::Task => true,
    }
}

/// What a task has of its service's endpoint: ports of its own, and a place on the ingress network. Which ports
/// lead there is the nodes' affair alone.
fn publishes(endpoint: Option<&EndpointSpec>) -> (Vec<&PortConfig>, bool) {
    let ports = endpoint.map_or(&[][..], |endpoint| &endpoint.ports);
    let own = ports.iter().filter(|port| port.mode() == port_config::Mode::Host);
    (own.collect(), needs_ingress(endpoint))
}

/// Without what a running task does not depend on.
fn comparable(mut spec: TaskSpec) -> TaskSpec {
    if let Some(container) = &mut spec.container {
        container.registry_auth.clear();
    }
    spec
}

/// Whether the spec's placement allows this node.
#[must_use]
pub fn sits_well(spec: &TaskSpec, node: &Node) -> bool {
    spec.placement.as_ref().is_none_or(|placement| {
        constraint::all_match(&placement.constraints, node)
            && constraint::platform_fits(&placement.platforms, node)
    })
}

/// Whether the service runs once per node, as a global service or a global job.
#[must_use]
pub fn is_global(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| spec.mode_or_default().is_global())
}
