//! Rolling updates: slot by slot, what no longer is as the service asks is replaced, the result watched, and
//! the update paused or rolled back when too much of it fails.
//!
//! No memory of earlier calls: which slots this update has touched, which of them failed and which are still
//! under way follows from the tasks and from where in the log the update began. It begins in a write of its own,
//! before it touches any slot.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rswarm_base::Timestamp;
use rswarm_proto::model::service::UPDATE_MONITOR;
use rswarm_proto::model::task::TaskState;
use rswarm_proto::wire::{
    Deployment, Service, ServiceSpec, Task, UpdateConfig, UpdateStatus,
    restart_policy::Condition,
    update_config::{FailureAction, Order},
    update_status::State as Phase,
};

use crate::author::Author;
use crate::cohort::Cohort;
use crate::content;
use crate::global;
use crate::publish;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::slot::{self, Outdated, Slot, Verdict};
use crate::state::State;

/// Slots that one plan begins to update, however many an update may touch at once: bounds one proposal.
const STARTS_MAX: usize = 500;

/// Carries out updates.
#[derive(Debug)]
pub struct Update;

impl Reconciler for Update {
    fn author(&self) -> Author {
        Author::Update
    }

    fn reconcile(&self, view: &State, env: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        // A job that changes begins anew; there is nothing to roll.
        for service in view.services().filter(|service| !service.pending_delete && !service.is_job()) {
            if !is_paused(service) {
                update(view, service, env, &mut plan);
            }
        }
        plan
    }
}

/// Whether its update, or the way back from it, waits for somebody to look at it.
#[must_use]
pub fn is_paused(service: &Service) -> bool {
    matches!(phase(service), Phase::Paused | Phase::RollbackPaused)
}

fn phase(service: &Service) -> Phase {
    service.update_status.as_ref().map_or(Phase::Unknown, |status| status.state())
}

fn update(view: &State, service: &Arc<Service>, env: &mut Env<'_>, plan: &mut Plan) {
    let under_way = matches!(phase(service), Phase::Updating | Phase::RollbackStarted);
    if !under_way && !may_be_outdated(view, service) {
        return;
    }
    let rollout = Rollout::new(view, service, env);
    if !under_way {
        if rollout.slots.iter().any(|slot| slot.progress == Progress::Outdated) {
            plan.update(rollout.begun());
        }
        return;
    }
    if let Some(failed) = rollout.intolerable_failure() {
        return plan.update(rollout.stop(failed));
    }
    let started = rollout.advance(env, plan);
    let settled = rollout.slots.iter().all(|slot| slot.progress.is_settled());
    if settled && !started {
        plan.update(rollout.completed());
    }
    rollout.wakes(plan);
}

/// Whether a slot of the service may have to be replaced. Most services are not being updated, and the answer is
/// in the few versions that their live tasks are of.
fn may_be_outdated(view: &State, service: &Service) -> bool {
    let differs = |task: &Arc<Task>| slot::outdated(service, task) != Outdated::Nothing;
    let versions = view.cohort(&service.id).into_iter().flat_map(Cohort::versions);
    versions.filter_map(|(_, id)| view.task(id)).any(differs)
        || slot::restless(view, service).any(|slot| !slot.is_live() && differs(slot.latest()))
}

/// What a task's failure means for its update, in words.
fn cause(failed: &Task) -> String {
    let status = failed.status.clone().unwrap_or_default();
    let why = if status.err.is_empty() { status.message } else { status.err };
    format!("task {} ({}) failed: {why}", failed.slot_name(), failed.id)
}

/// How far a service is on the way to its spec.
#[must_use]
pub fn deployment(view: &State, service: &Service) -> Deployment {
    let is_current = |task: &Arc<Task>| !slot::is_dirty(view, service, task);
    let since = service.update_version;
    let failed = |task: &&Arc<Task>| {
        is_current(task)
            && task.created_version >= since
            && slot::ended_by_itself(task)
            && task.observed() != TaskState::Complete
    };
    let slots = slot::occupied(view, service);
    let current = |slot: &Slot<'_>| slot.live().find(|task| is_current(task)).cloned();
    let updated: Vec<Arc<Task>> = slots.iter().filter_map(current).collect();
    let running = updated.iter().filter(|task| task.observed() == TaskState::Running);
    Deployment {
        cause: service.update_status.as_ref().map(|status| status.cause.clone()).unwrap_or_default(),
        total: slots.len() as u64,
        updated: updated.len() as u64,
        running: running.count() as u64,
        failed: slots.iter().filter(|slot| slot.tasks.iter().copied().any(|task| failed(&task))).count()
            as u64,
    }
}

/// How far an update has come in one slot.
#[derive(Debug, Clone, PartialEq)]
enum Progress {
    /// Still to be replaced.
    Outdated,
    /// Replaced, and not running yet; or the old task is still there beside it.
    UnderWay,
    /// Runs, but the next slot waits until then.
    Delay(Timestamp),
    /// Runs, and is watched until then.
    Watched(Timestamp),
    /// Failed under watch, in a way that the update tolerates.
    Failed,
    /// As asked.
    Settled,
}

impl Progress {
    fn is_settled(&self) -> bool {
        match self {
            Progress::Settled | Progress::Failed => true,
            Progress::Outdated | Progress::UnderWay | Progress::Delay(_) | Progress::Watched(_) => false,
        }
    }

    /// Whether it counts against the parallelism.
    fn is_busy(&self) -> bool {
        match self {
            Progress::UnderWay | Progress::Delay(_) => true,
            Progress::Outdated | Progress::Watched(_) | Progress::Failed | Progress::Settled => false,
        }
    }
}

/// One slot of a service that is being updated.
struct Updated<'a> {
    slot: Slot<'a>,
    progress: Progress,
    /// A task of the new spec that failed under watch.
    failed: Option<&'a Arc<Task>>,
    /// Whether this update made a task here, or still has to.
    touched: bool,
}

/// One update as it stands.
struct Rollout<'a> {
    view: &'a State,
    service: &'a Arc<Service>,
    config: UpdateConfig,
    is_rollback: bool,
    under_way: bool,
    started_at: Timestamp,
    now: Timestamp,
    leader_since: Timestamp,
    /// What is different about the tasks of each version of the spec.
    versions: BTreeMap<u64, Outdated>,
    slots: Vec<Updated<'a>>,
}

impl<'a> Rollout<'a> {
    fn new(view: &'a State, service: &'a Arc<Service>, env: &Env<'_>) -> Rollout<'a> {
        let (now, leader_since) = (env.now, env.leader_since);
        let is_rollback = phase(service) == Phase::RollbackStarted;
        let under_way = is_rollback || phase(service) == Phase::Updating;
        let started = service.update_status.as_ref().map_or(now.0, |status| status.started_at);
        let started_at = if under_way { Timestamp(started) } else { now };
        let config = config(service, is_rollback);
        let mut rollout = Rollout {
            view,
            service,
            config,
            is_rollback,
            under_way,
            started_at,
            now,
            leader_since,
            versions: BTreeMap::new(),
            slots: Vec::new(),
        };
        let slots = slot::occupied(view, service);
        for task in slots.iter().flat_map(|slot| &slot.tasks) {
            let outdated = || slot::outdated(service, task);
            rollout.versions.entry(task.spec_version).or_insert_with(outdated);
        }
        let slots = slots.into_iter().filter(|slot| rollout.is_reachable(slot));
        rollout.slots = slots.map(|slot| rollout.assess(slot)).collect();
        rollout
    }

    /// A global task on a node that takes no new tasks stays as it is.
    fn is_reachable(&self, slot: &Slot<'_>) -> bool {
        let node = || self.view.node(&slot.latest().node_id);
        !slot::is_global(self.service) || node().is_some_and(|node| global::is_eligible(self.service, node))
    }

    /// Whether a task is as the service asks.
    fn is_current(&self, task: &Task) -> bool {
        let outdated = self.versions.get(&task.spec_version).copied();
        let outdated = outdated.unwrap_or_else(|| slot::outdated(self.service, task));
        !slot::is_replaced_for(outdated, self.view, self.service, task)
    }

    fn assess(&self, slot: Slot<'a>) -> Updated<'a> {
        let is_current = |task: &Arc<Task>| self.is_current(task);
        let is_ours = |task: &Arc<Task>| {
            self.under_way && task.created_version >= self.service.update_version && is_current(task)
        };
        let touched = slot.tasks.iter().any(|task| is_ours(task));
        let failed = slot.tasks.iter().copied().find(|task| is_ours(task) && self.failed_under_watch(task));
        let current = slot.live().filter(|task| is_current(task)).last();
        let outdated = slot.live().any(|task| !is_current(task));
        let progress = match current {
            Some(task) => self.progress_of(task, touched, outdated, failed.is_some()),
            // The new task failed beside the old one, and the restart policy allows no other try.
            None if failed.is_some() && slot::verdict(self.service, &slot) == Verdict::Done => {
                Progress::Failed
            }
            None if outdated || !is_current(slot.latest()) => Progress::Outdated,
            None if failed.is_some() => Progress::Failed,
            None => Progress::Settled,
        };
        let touched = touched || progress == Progress::Outdated;
        Updated { slot, progress, failed, touched }
    }

    fn progress_of(&self, task: &Task, touched: bool, outdated: bool, failed: bool) -> Progress {
        if outdated {
            return Progress::UnderWay;
        }
        if failed {
            return Progress::Failed;
        }
        if !touched {
            return Progress::Settled;
        }
        if task.observed() < TaskState::Running {
            return Progress::UnderWay;
        }
        let ran_at = self.past(task.ran_at);
        let (next_at, settled_at) = (ran_at.after(self.delay()), ran_at.after(self.monitor()));
        match self.now {
            now if now < next_at => Progress::Delay(next_at),
            now if now < settled_at => Progress::Watched(settled_at),
            _ => Progress::Settled,
        }
    }

    /// See [`Env::past`].
    fn past(&self, at: i64) -> Timestamp {
        if at > self.now.0 { self.leader_since } else { Timestamp(at) }
    }

    /// Whether the task ended by itself before it had run as long as it is watched.
    fn failed_under_watch(&self, task: &Task) -> bool {
        let ended = task.status.as_ref().map_or(0, |status| status.timestamp);
        let early = task.ran_at == 0 || Timestamp(ended).since(Timestamp(task.ran_at)) <= self.monitor();
        let runs_on = slot::restart_policy(self.service).condition() == Condition::Any;
        let completed = task.observed() == TaskState::Complete;
        slot::ended_by_itself(task) && early && (!completed || runs_on)
    }

    fn delay(&self) -> Duration {
        nanos(self.config.delay)
    }

    /// Long enough to see a failure before the next slot is touched.
    fn monitor(&self) -> Duration {
        let monitor = if self.config.monitor > 0 { nanos(self.config.monitor) } else { UPDATE_MONITOR };
        if self.delay() >= monitor { self.delay() + Duration::from_secs(1) } else { monitor }
    }

    /// A failed task, when more failed than the update tolerates and it shall not go on regardless.
    fn intolerable_failure(&self) -> Option<&'a Arc<Task>> {
        let failed: Vec<&Arc<Task>> = self.slots.iter().filter_map(|slot| slot.failed).collect();
        let touched = self.slots.iter().filter(|slot| slot.touched).count();
        let ratio = failed.len() as f32 / touched.max(1) as f32;
        let goes_on = self.config.failure_action() == FailureAction::Continue;
        failed.first().copied().filter(|_| !goes_on && ratio > self.config.max_failure_ratio)
    }

    /// The service once its update is paused, or rolled back.
    fn stop(&self, failed: &Task) -> Service {
        let mut service = Service::clone(self.service);
        let possible = service.previous_spec.as_ref().is_none_or(|previous| self.can_return_to(previous));
        let back = self.config.failure_action() == FailureAction::Rollback && !self.is_rollback && possible;
        if let Some(previous) = service.previous_spec.take_if(|_| back) {
            service.spec = Some(previous);
            service.update_status = Some(UpdateStatus {
                state: Phase::RollbackStarted.into(),
                started_at: self.now.0,
                completed_at: 0,
                message: format!(
                    "update rolled back due to failure or early termination of task {}",
                    failed.id
                ),
                cause: cause(failed),
            });
            return service;
        }
        let phase = if self.is_rollback { Phase::RollbackPaused } else { Phase::Paused };
        let message = format!("update paused due to failure or early termination of task {}", failed.id);
        let mut service = self.with_status(phase, 0, message);
        service.update_status.get_or_insert_default().cause = cause(failed);
        service
    }

    /// There is no way back to a network, secret or config that has gone since, nor to a port that is another
    /// service's now.
    fn can_return_to(&self, previous: &ServiceSpec) -> bool {
        let lacks_ingress = publish::needs_ingress(previous.endpoint.as_ref()) && self.view.lacks_ingress();
        !lacks_ingress
            && self.view.missing_network(Some(previous)).is_none()
            && content::missing(self.view, Some(previous)).is_empty()
            && publish::spec_conflicts(self.view, previous, &self.service.id).next().is_none()
    }

    fn begun(&self) -> Service {
        self.with_status(Phase::Updating, 0, "update in progress".to_owned())
    }

    fn completed(&self) -> Service {
        let (phase, message) = match self.is_rollback {
            true => (Phase::RollbackCompleted, "rollback completed"),
            false => (Phase::Completed, "update completed"),
        };
        self.with_status(phase, self.now.0, message.to_owned())
    }

    fn with_status(&self, phase: Phase, completed_at: i64, message: String) -> Service {
        let started_at = self.started_at.0;
        // Why it went back is of interest still when it is back.
        let known = self.service.update_status.as_ref().filter(|_| self.is_rollback);
        let cause = known.map(|status| status.cause.clone()).unwrap_or_default();
        let status = UpdateStatus { state: phase.into(), started_at, completed_at, message, cause };
        Service { update_status: Some(status), ..Service::clone(self.service) }
    }

    /// Ends old tasks whose replacement runs, and begins with as many slots as may be under way. Says
    /// whether it began with any.
    fn advance(&self, env: &mut Env<'_>, plan: &mut Plan) -> bool {
        self.slots.iter().for_each(|updated| self.end_replaced(&updated.slot, plan));
        let busy = self.slots.iter().filter(|slot| slot.progress.is_busy()).count();
        let parallelism = match usize::try_from(self.config.parallelism) {
            Ok(0) | Err(_) => usize::MAX,
            Ok(parallelism) => parallelism,
        };
        let outdated = self.slots.iter().filter(|slot| slot.progress == Progress::Outdated);
        let (mut starts, waiting): (Vec<_>, Vec<_>) =
            outdated.partition(|updated| self.may_start(updated, plan));
        // Where an update that this one overtook has two tasks side by side, the next makes no third: these
        // slots come first, and as long as they wait no other one begins in their place.
        let is_doubled = |updated: &&Updated<'_>| updated.slot.live().nth(1).is_some();
        starts.sort_by_key(|updated| !is_doubled(updated));
        let busy = busy + waiting.iter().filter(|updated| is_doubled(updated)).count();
        starts.truncate(parallelism.saturating_sub(busy).min(STARTS_MAX));
        starts.iter().for_each(|updated| self.start(&updated.slot, env, plan));
        !starts.is_empty()
    }

    /// With start-first, the old task ends once the new one runs.
    fn end_replaced(&self, slot: &Slot<'_>, plan: &mut Plan) {
        let is_current = |task: &Arc<Task>| self.is_current(task);
        if slot.live().any(|task| is_current(task) && task.observed() == TaskState::Running) {
            let old = slot.live().filter(|task| !is_current(task));
            old.for_each(|task| plan.update(slot::desire(task, TaskState::Shutdown)));
        }
    }

    /// A slot whose new task failed beside the old one is tried again as the restart policy says.
    fn may_start(&self, updated: &Updated<'_>, plan: &mut Plan) -> bool {
        let Some(failed) = updated.failed else { return true };
        if updated.slot.latest().id != failed.id && !slot::ended_by_itself(updated.slot.latest()) {
            return true;
        }
        match slot::verdict(self.service, &updated.slot) {
            Verdict::Done => false,
            Verdict::Replace(delay) => {
                let ended = updated.slot.latest().status.as_ref().map_or(0, |status| status.timestamp);
                let at = self.past(ended).after(delay);
                if self.now < at {
                    plan.wake(at);
                }
                self.now >= at
            }
        }
    }

    fn start(&self, slot: &Slot<'_>, env: &mut Env<'_>, plan: &mut Plan) {
        let mut task = slot::successor(self.service, slot, Duration::ZERO, env.now, env.ids);
        // With start-first one old task stays beside the new one: that which serves, if any does.
        let start_first = self.config.order() == Order::StartFirst;
        let stays = slot.live().max_by_key(|task| task.observed()).filter(|_| start_first);
        let leave: Vec<_> =
            slot.live().filter(|task| stays.is_none_or(|stays| stays.id != task.id)).collect();
        if leave.is_empty() && slot.others_stopped(self.view, "") {
            task.desired_state = TaskState::Running.into();
        }
        leave.into_iter().for_each(|old| plan.update(slot::desire(old, TaskState::Shutdown)));
        plan.create(task);
    }

    fn wakes(&self, plan: &mut Plan) {
        for updated in &self.slots {
            match &updated.progress {
                Progress::Delay(at) | Progress::Watched(at) => plan.wake(*at),
                Progress::Outdated | Progress::UnderWay | Progress::Failed | Progress::Settled => {}
            }
        }
    }
}

/// The service's own settings, or Docker's defaults.
fn config(service: &Service, is_rollback: bool) -> UpdateConfig {
    let spec = service.spec.as_ref();
    let configured = spec.and_then(|spec| if is_rollback { spec.rollback } else { spec.update });
    configured.unwrap_or(UpdateConfig { parallelism: 1, ..UpdateConfig::default() })
}

fn nanos(ns: i64) -> Duration {
    Duration::from_nanos(u64::try_from(ns).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::world::{BROKEN, World, set_image, spec};
    use rswarm_proto::wire::ServiceSpec;

    const SECOND: i64 = 1_000_000_000;

    fn updating(replicas: u64, config: UpdateConfig) -> (World, String) {
        let mut world = World::new(3);
        let spec = ServiceSpec { update: Some(config), ..spec("web", replicas) };
        let id = world.create(spec);
        world.run(Duration::from_secs(2));
        assert_eq!(world.running(&id), replicas as usize);
        (world, id)
    }

    fn images(world: &World, id: &str) -> BTreeSet<String> {
        let image = |task: &Arc<Task>| task.spec.clone().and_then(|spec| spec.container).expect("spec").image;
        world.live(id).iter().map(image).collect()
    }

    fn config(parallelism: u64) -> UpdateConfig {
        UpdateConfig { parallelism, monitor: 2 * SECOND, ..UpdateConfig::default() }
    }

    #[test]
    fn stop_first_never_has_fewer_than_all_but_the_parallelism() {
        let (mut world, id) = updating(6, config(2));
        world.live_max.insert(id.clone(), 6);
        world.change(&id, |spec| set_image(spec, "web:2"));
        let mut least = usize::MAX;
        while phase(&world.service(&id)) != Phase::Completed {
            world.step();
            least = least.min(world.running(&id));
            assert!(world.held_in_slots(&id).values().all(|held| *held <= 1), "one task a slot");
        }
        assert_eq!(least, 4);
        assert_eq!(images(&world, &id), ["web:2".to_owned()].into());
    }

    #[test]
    fn start_first_never_has_fewer_than_all() {
        let (mut world, id) = updating(4, UpdateConfig { order: Order::StartFirst.into(), ..config(2) });
        world.live_max.insert(id.clone(), 6);
        world.change(&id, |spec| set_image(spec, "web:2"));
        while phase(&world.service(&id)) != Phase::Completed {
            world.step();
            assert!(world.running(&id) >= 4);
        }
        assert_eq!(images(&world, &id), ["web:2".to_owned()].into());
    }

    #[test]
    fn the_delay_lies_between_slots() {
        let (mut world, id) = updating(3, UpdateConfig { delay: 5 * SECOND, ..config(1) });
        let begin = world.now;
        world.change(&id, |spec| set_image(spec, "web:2"));
        while phase(&world.service(&id)) != Phase::Completed {
            world.step();
        }
        let took = world.now.since(begin);
        assert!(took > Duration::from_secs(15) && took < Duration::from_secs(25), "{took:?}");
    }

    #[test]
    fn a_failing_update_pauses_and_leaves_the_rest() {
        let (mut world, id) = updating(4, config(1));
        world.change(&id, |spec| set_image(spec, BROKEN));
        world.run(Duration::from_secs(10));
        let service = world.service(&id);
        assert_eq!(phase(&service), Phase::Paused);
        let message = service.update_status.as_ref().map(|status| status.message.clone()).unwrap_or_default();
        assert!(
            message.starts_with("update paused due to failure or early termination of task "),
            "{message}"
        );
        assert_eq!(world.running(&id), 3);
        world.change(&id, |spec| set_image(spec, "web:3"));
        world.run(Duration::from_secs(20));
        assert_eq!(phase(&world.service(&id)), Phase::Completed);
        assert_eq!((world.running(&id), images(&world, &id)), (4, ["web:3".to_owned()].into()));
    }

    #[test]
    fn a_failing_update_rolls_back() {
        let failure_action = FailureAction::Rollback.into();
        let (mut world, id) = updating(4, UpdateConfig { failure_action, ..config(1) });
        world.change(&id, |spec| set_image(spec, BROKEN));
        world.run(Duration::from_secs(30));
        let service = world.service(&id);
        assert_eq!(phase(&service), Phase::RollbackCompleted);
        assert_eq!(service.previous_spec, None);
        assert_eq!((world.running(&id), images(&world, &id)), (4, ["web:1".to_owned()].into()));
        let deployment = deployment(&world.state, &service);
        assert_eq!((deployment.total, deployment.updated, deployment.running), (4, 4, 4));
        assert!(deployment.cause.starts_with("task web."), "why it went back is still known: {deployment:?}");
        world.change(&id, |spec| set_image(spec, "web:3"));
        world.run(Duration::from_secs(20));
        assert_eq!(super::deployment(&world.state, &world.service(&id)).cause, "", "that was another update");
    }

    #[test]
    fn a_deployment_counts_what_is_there_already() {
        let (mut world, id) = updating(4, UpdateConfig { delay: 60 * SECOND, ..config(1) });
        world.change(&id, |spec| set_image(spec, "web:2"));
        world.run(Duration::from_secs(10));
        let deployment = deployment(&world.state, &world.service(&id));
        let counts = (deployment.total, deployment.updated, deployment.running, deployment.failed);
        assert_eq!(counts, (4, 1, 1, 0));
    }

    #[test]
    fn an_update_is_watched_across_leaders_whose_clocks_differ() {
        // The next leader's clock is an hour behind, or ahead, of the one that began the update.
        for skew in [-3600 * SECOND, 3600 * SECOND] {
            let failure_action = FailureAction::Rollback.into();
            let (mut world, id) = updating(4, UpdateConfig { failure_action, ..config(1) });
            world.change(&id, |spec| set_image(spec, BROKEN));
            world.reconcile();
            assert_eq!(phase(&world.service(&id)), Phase::Updating);
            world.elect(Timestamp(world.now.0 + skew));
            world.run(Duration::from_secs(30));
            assert_eq!(phase(&world.service(&id)), Phase::RollbackCompleted, "{skew}");
            assert_eq!((world.running(&id), images(&world, &id)), (4, ["web:1".to_owned()].into()));
        }
    }

    #[test]
    fn an_update_goes_on_under_a_leader_whose_clock_is_behind() {
        let (mut world, id) = updating(3, UpdateConfig { delay: SECOND, ..config(1) });
        world.change(&id, |spec| set_image(spec, "web:2"));
        world.run(Duration::from_secs(1));
        world.elect(Timestamp(world.now.0 - 3600 * SECOND));
        world.run(Duration::from_secs(20));
        assert_eq!(phase(&world.service(&id)), Phase::Completed);
    }

    #[test]
    fn a_late_failure_is_no_early_one_because_a_workers_clock_is_behind() {
        let (mut world, id) = updating(2, UpdateConfig { delay: 5 * SECOND, ..config(1) });
        world.change(&id, |spec| set_image(spec, "web:2"));
        let new = loop {
            world.step();
            let live = world.live(&id);
            let of_this = |task: &&Arc<Task>| task.spec_version == world.service(&id).spec_version;
            if let Some(new) = live.iter().find(of_this).filter(|task| task.observed() == TaskState::Running)
            {
                break new.id.clone();
            }
        };
        // The monitor is as long as the delay and a second.
        world.run(Duration::from_secs(7));
        assert_eq!(phase(&world.service(&id)), Phase::Updating);
        world.report_at(&new, TaskState::Failed, Timestamp(world.now.0 - 3600 * SECOND));
        world.run(Duration::from_secs(30));
        assert_eq!(phase(&world.service(&id)), Phase::Completed);
    }

    #[test]
    fn a_failing_rollback_pauses() {
        let failure_action = FailureAction::Rollback.into();
        let (mut world, id) = updating(2, UpdateConfig { failure_action, ..config(1) });
        // Both the new spec and the one before it fail: the second by the time it is rolled back to.
        world.change(&id, |spec| set_image(spec, BROKEN));
        world.reconcile();
        let mut service = Service::clone(&world.service(&id));
        set_image(service.previous_spec.get_or_insert_default(), BROKEN);
        service.previous_spec.get_or_insert_default().task.get_or_insert_default().force_update = 7;
        let mut plan = Plan::default();
        plan.update(service);
        world.write(Author::Control, plan.into_changes());
        world.run(Duration::from_secs(30));
        assert_eq!(phase(&world.service(&id)), Phase::RollbackPaused);
    }

    #[test]
    fn continue_goes_through_with_it() {
        let failure_action = FailureAction::Continue.into();
        let (mut world, id) = updating(3, UpdateConfig { failure_action, ..config(1) });
        world.change(&id, |spec| set_image(spec, BROKEN));
        world.run(Duration::from_secs(30));
        assert_eq!(phase(&world.service(&id)), Phase::Completed);
        assert_eq!(world.running(&id), 0);
    }

    #[test]
    fn a_ratio_of_failures_is_tolerated() {
        let (mut world, id) = updating(4, UpdateConfig { max_failure_ratio: 0.25, ..config(1) });
        world.change(&id, |spec| set_image(spec, "web:2"));
        world.reconcile();
        let new =
            world.live(&id).into_iter().find(|task| task.desired() == TaskState::Ready).expect("a new task");
        while world.state.task(&new.id).expect("task").observed() != TaskState::Running {
            world.step();
        }
        world.report(&new.id, TaskState::Failed);
        world.run(Duration::from_secs(30));
        assert_eq!(phase(&world.service(&id)), Phase::Completed);
        assert_eq!((world.running(&id), images(&world, &id)), (4, ["web:2".to_owned()].into()));
    }

    #[test]
    fn what_tasks_do_not_depend_on_updates_nothing() {
        let (mut world, id) = updating(2, config(1));
        let before: Vec<String> = world.live(&id).iter().map(|task| task.id.clone()).collect();
        world.change(&id, |spec| {
            spec.annotations.get_or_insert_default().labels.insert("a".to_owned(), "b".to_owned());
            let task = spec.task.get_or_insert_default();
            task.container.get_or_insert_default().registry_auth = "secret".to_owned();
            task.placement.get_or_insert_default().constraints = vec!["node.id!=n7".to_owned()];
        });
        world.run(Duration::from_secs(5));
        let after: Vec<String> = world.live(&id).iter().map(|task| task.id.clone()).collect();
        assert_eq!((before, phase(&world.service(&id))), (after, Phase::Unknown));
    }

    #[test]
    fn force_replaces_all() {
        let (mut world, id) = updating(3, config(0));
        let before: BTreeSet<String> = world.live(&id).iter().map(|task| task.id.clone()).collect();
        world.change(&id, |spec| spec.task.get_or_insert_default().force_update += 1);
        world.run(Duration::from_secs(10));
        assert_eq!(phase(&world.service(&id)), Phase::Completed);
        assert!(world.live(&id).iter().all(|task| !before.contains(&task.id)));
        assert_eq!(world.running(&id), 3);
    }

    #[test]
    fn a_slot_that_was_done_is_updated_too() {
        let mut world = World::new(1);
        let mut once = spec("once", 1);
        let restart = once.task.get_or_insert_default().restart.get_or_insert_default();
        restart.set_condition(Condition::None);
        let id = world.create(once);
        world.run(Duration::from_secs(2));
        world.report(&world.live(&id)[0].id.clone(), TaskState::Complete);
        world.run(Duration::from_secs(2));
        assert_eq!(world.live(&id).len(), 0);
        world.change(&id, |spec| set_image(spec, "web:2"));
        world.run(Duration::from_secs(8));
        assert_eq!(world.running(&id), 1);
    }
}
