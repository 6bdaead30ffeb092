//! Jobs with a schedule: labels of the service say when they run, so that docker's own clients can set them.
//!
//! A time that has come begins another iteration of the job ([`crate::job`]); the first one waits for the first time.
//! Which times have had their turn is kept with the service, so a new leader goes on where the old one was.

use std::collections::BTreeMap;
use std::time::Duration;

use rswarm_base::Timestamp;
use rswarm_base::schedule::{Schedule, ScheduleError};
use rswarm_proto::wire::{JobStatus, Service};

use crate::author::Author;
use crate::job;
use crate::reconcile::{Env, Plan, Reconciler};
use crate::state::State;

/// What all labels of a schedule begin with.
pub const PREFIX: &str = "rswarm.cron.";
/// When: five fields as in crontab(5), or `@hourly` and the like.
pub const SCHEDULE: &str = "rswarm.cron.schedule";
const ZONE: &str = "rswarm.cron.timezone";
const CONCURRENCY: &str = "rswarm.cron.concurrency";
const MISSED: &str = "rswarm.cron.missed";
const HISTORY: &str = "rswarm.cron.history";
/// Iterations whose tasks are kept beside the latest, when the labels say nothing.
const HISTORY_DEFAULT: u64 = 3;
/// A time that nobody saw for longer than this was missed.
const LATE: Duration = Duration::from_secs(60);

/// What a job's labels say of its runs.
#[derive(Debug, Clone)]
pub struct Cron {
    schedule: Schedule,
    /// Whether an iteration that is not finished makes room for the next; else the next does not take place.
    replaces: bool,
    /// Whether a time that passed while no manager looked is made up for, once.
    makes_up: bool,
    /// Iterations whose tasks are kept beside the latest.
    pub history: u64,
}

/// A label that cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    /// The schedule or its time zone.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// Another label's value.
    #[error("label {label}: `{value}` is not {wanted}")]
    Value {
        /// Which label.
        label: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        wanted: &'static str,
    },
    /// A label that is none of these.
    #[error("label {0} is not known: want schedule, timezone, concurrency, missed, history")]
    Unknown(String),
    /// There are others but no schedule.
    #[error("label {SCHEDULE} is missing")]
    Missing,
}

/// Reads the labels; `None` when there is no schedule.
pub fn parse(labels: &BTreeMap<String, String>) -> Result<Option<Cron>, CronError> {
    let mut own = labels.iter().filter(|(key, _)| key.starts_with(PREFIX)).peekable();
    if own.peek().is_none() {
        return Ok(None);
    }
    if let Some((key, _)) =
        own.find(|(key, _)| ![SCHEDULE, ZONE, CONCURRENCY, MISSED, HISTORY].contains(&key.as_str()))
    {
        return Err(CronError::Unknown(key.clone()));
    }
    let text = |label: &str| labels.get(label).map_or("", String::as_str);
    let wrong = |label, wanted| CronError::Value { label, value: text(label).to_owned(), wanted };
    if !labels.contains_key(SCHEDULE) {
        return Err(CronError::Missing);
    }
    Ok(Some(Cron {
        schedule: Schedule::parse(text(SCHEDULE), text(ZONE))?,
        replaces: match text(CONCURRENCY) {
            "" | "forbid" => false,
            "replace" => true,
            _ => return Err(wrong(CONCURRENCY, "forbid or replace")),
        },
        makes_up: match text(MISSED) {
            "" | "run-once" => true,
            "skip" => false,
            _ => return Err(wrong(MISSED, "run-once or skip")),
        },
        history: match text(HISTORY) {
            "" => HISTORY_DEFAULT,
            number => number.parse().map_err(|_| wrong(HISTORY, "a number"))?,
        },
    }))
}

/// The schedule of a stored job. What is stored was read before, so what cannot be read is no schedule.
#[must_use]
pub fn of(service: &Service) -> Option<Cron> {
    let annotations = service.spec.as_ref()?.annotations.as_ref()?;
    service.is_job().then(|| parse(&annotations.labels).ok().flatten()).flatten()
}

/// Whether the job waits for its first time.
#[must_use]
pub fn is_waiting(service: &Service) -> bool {
    service.job_iteration() == Some(0) && of(service).is_some()
}

/// Begins iterations.
#[derive(Debug)]
pub struct Crons;

impl Reconciler for Crons {
    fn author(&self) -> Author {
        Author::Cron
    }

    fn reconcile(&self, view: &State, env: &mut Env<'_>) -> Plan {
        let mut plan = Plan::default();
        for service in view.services().filter(|service| !service.pending_delete && service.is_job()) {
            let (Some(cron), Some(status)) = (of(service), service.job_status) else { continue };
            let Some(due) = cron.schedule.next_after(Timestamp(status.scheduled_until)) else { continue };
            if env.now < due {
                plan.wake(due);
                continue;
            }
            let missed = env.now.since(due) > LATE && !cron.makes_up;
            let runs = !missed && (cron.replaces || job::is_finished(view, service));
            let status = if runs {
                JobStatus {
                    iteration: status.iteration + 1,
                    last_execution: env.now.0,
                    scheduled_until: env.now.0,
                }
            } else {
                JobStatus { scheduled_until: env.now.0, ..status }
            };
            if let Some(next) = cron.schedule.next_after(env.now) {
                plan.wake(next);
            }
            plan.update(Service { job_status: Some(status), ..Service::clone(service) });
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::{World, spec};
    use rswarm_proto::model::task::TaskState;
    use rswarm_proto::wire::{ReplicatedJob, RestartPolicy, ServiceSpec, restart_policy, service_spec};

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| (format!("{PREFIX}{key}"), (*value).to_owned())).collect()
    }

    fn cron(pairs: &[(&str, &str)]) -> ServiceSpec {
        let mode = ReplicatedJob { max_concurrent: 1, total_completions: 1 };
        let mut spec =
            ServiceSpec { mode: Some(service_spec::Mode::ReplicatedJob(mode)), ..spec("backup", 0) };
        let policy =
            RestartPolicy { condition: restart_policy::Condition::None.into(), ..RestartPolicy::default() };
        spec.task.get_or_insert_default().restart = Some(policy);
        spec.annotations.get_or_insert_default().labels = labels(pairs);
        spec
    }

    fn iteration(world: &World, id: &str) -> u64 {
        world.service(id).job_status.expect("a job").iteration
    }

    fn end(world: &mut World, id: &str) {
        let live: Vec<String> = world.live(id).iter().map(|task| task.id.clone()).collect();
        live.iter().for_each(|task| world.report(task, TaskState::Complete));
    }

    const MINUTE: Duration = Duration::from_secs(60);

    /// Time passes in which nothing else happens, then what is due.
    fn pass_time(world: &mut World, time: Duration) {
        world.now = world.now.after(time);
        world.beat();
        world.run(Duration::from_secs(1));
    }

    #[test]
    fn a_scheduled_job_runs_when_its_time_has_come_and_keeps_some_history() {
        let mut world = World::new(2);
        let id = world.create(cron(&[("schedule", "*/2 * * * *"), ("history", "1")]));
        world.run(Duration::from_secs(1));
        assert_eq!((iteration(&world, &id), world.tasks(&id).len()), (0, 0), "it waits");
        for run in 1..=4 {
            pass_time(&mut world, 2 * MINUTE);
            assert_eq!((iteration(&world, &id), world.running(&id)), (run, 1));
            end(&mut world, &id);
        }
        world.run(Duration::from_secs(2));
        assert_eq!(world.tasks(&id).len(), 2, "the latest and the one before");
    }

    #[test]
    fn a_run_that_takes_too_long_costs_the_next_one_or_is_replaced() {
        for (concurrency, runs) in [("forbid", 1), ("replace", 3)] {
            let mut world = World::new(1);
            let id = world.create(cron(&[("schedule", "* * * * *"), ("concurrency", concurrency)]));
            (0..3).for_each(|_| pass_time(&mut world, MINUTE));
            assert_eq!(iteration(&world, &id), runs, "{concurrency}");
            world.run(Duration::from_secs(5));
            assert_eq!(world.running(&id), 1, "{concurrency}");
        }
    }

    #[test]
    fn what_was_missed_is_made_up_for_once_or_not_at_all() {
        for (missed, runs) in [("run-once", 1), ("skip", 0)] {
            let mut world = World::new(1);
            let id = world.create(cron(&[("schedule", "*/10 * * * *"), ("missed", missed)]));
            world.run(Duration::from_secs(1));
            // Nobody leads for an hour and five minutes.
            world.elect(world.now.after(65 * MINUTE));
            world.reconcile();
            assert_eq!(iteration(&world, &id), runs, "{missed}");
        }
    }

    #[test]
    fn a_change_runs_nothing_but_force_does() {
        let mut world = World::new(1);
        let id = world.create(cron(&[("schedule", "@yearly")]));
        world.change(&id, |spec| crate::world::set_image(spec, "web:2"));
        assert_eq!(iteration(&world, &id), 0);
        world.change(&id, |spec| spec.task.get_or_insert_default().force_update += 1);
        world.run(Duration::from_secs(2));
        assert_eq!((iteration(&world, &id), world.running(&id)), (1, 1));
    }

    #[test]
    fn labels_that_cannot_be_honoured_are_named() {
        let error =
            |pairs: &[(&str, &str)]| parse(&labels(pairs)).map(drop).expect_err("refused").to_string();
        let at = ("schedule", "@daily");
        assert!(error(&[at, ("concurrency", "allow")]).ends_with("`allow` is not forbid or replace"));
        assert!(error(&[at, ("missed", "all")]).ends_with("`all` is not run-once or skip"));
        assert!(error(&[at, ("history", "-1")]).ends_with("`-1` is not a number"));
        assert!(error(&[at, ("colour", "red")]).starts_with("label rswarm.cron.colour is not known"));
        assert_eq!(error(&[("history", "1")]), "label rswarm.cron.schedule is missing");
        assert_eq!(error(&[("schedule", "61 * * * *")]), "`61` is no minute");
        assert!(parse(&labels(&[])).expect("none").is_none());
    }
}
