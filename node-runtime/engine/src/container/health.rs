//! Health checks: when to probe and what a probe means (pure), and the task that probes.

use std::sync::Arc;
use std::time::Duration;

use rswarm_base::Timestamp;
use rswarm_proto::model::container::ContainerSpec;
use rswarm_shim::client::Shim;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Container, Health, HealthStatus, Probe, Request, Status};
use crate::shared::Shared;
use crate::{exec, links};

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// Probes that are kept for `inspect`.
const LOG_LEN: usize = 5;

/// A health check, its defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Check {
    pub command: Vec<String>,
    pub interval: Duration,
    pub timeout: Duration,
    pub start_period: Duration,
    pub start_interval: Duration,
    pub retries: u32,
}

impl Check {
    /// The container's check; `None` when it has none. `shell` is the image's.
    pub(crate) fn of(spec: &ContainerSpec, shell: &[String]) -> Option<Check> {
        let health = spec.healthcheck.as_ref()?;
        let (kind, rest) = health.test.split_first()?;
        let command = match kind.as_str() {
            "CMD" if !rest.is_empty() => rest.to_vec(),
            "CMD-SHELL" => {
                let shell =
                    if shell.is_empty() { &["/bin/sh".to_owned(), "-c".to_owned()][..] } else { shell };
                shell.iter().chain(rest.first()).cloned().collect()
            }
            _ => return None,
        };
        let or = |nanos: i64, default: Duration| {
            u64::try_from(nanos).ok().filter(|nanos| *nanos > 0).map_or(default, Duration::from_nanos)
        };
        Some(Check {
            command,
            interval: or(health.interval, INTERVAL),
            timeout: or(health.timeout, TIMEOUT),
            start_period: or(health.start_period, Duration::ZERO),
            start_interval: or(health.start_interval, START_INTERVAL),
            retries: u32::try_from(health.retries).ok().filter(|retries| *retries > 0).unwrap_or(RETRIES),
        })
    }

    /// How long after a probe's end the next one begins.
    fn pause(&self, status: HealthStatus, since_start: Duration) -> Duration {
        let starting = status == HealthStatus::Starting && since_start < self.start_period;
        if starting { self.start_interval } else { self.interval }
    }

    /// What one more probe makes of a container's health. A failure within the start period does not count
    /// while nothing has succeeded yet.
    pub(crate) fn judge(&self, health: &Health, probe: Probe, started_at: Timestamp) -> Health {
        let mut next = health.clone();
        let failed = probe.exit_code != 0;
        let forgiven =
            health.status == HealthStatus::Starting && probe.start.since(started_at) < self.start_period;
        if !failed {
            next.status = HealthStatus::Healthy;
            next.failing_streak = 0;
        } else if !forgiven {
            next.failing_streak += 1;
            if next.failing_streak >= self.retries {
                next.status = HealthStatus::Unhealthy;
            }
        }
        next.log.push(probe);
        let surplus = next.log.len().saturating_sub(LOG_LEN);
        next.log.drain(..surplus);
        next
    }
}

/// Probes a running container until `cancel`; results go to its actor. A frozen container is left alone.
pub(crate) async fn probe_loop(
    shared: Arc<Shared>,
    check: Check,
    shim: Shim,
    state: watch::Receiver<Arc<Container>>,
    actor: mpsc::WeakSender<Request>,
    cancel: CancellationToken,
) {
    let probing = async {
        loop {
            let container = state.borrow().clone();
            let status = container.state.health.as_ref().map(|health| health.status).unwrap_or_default();
            let since_start = Timestamp::now().since(container.state.started_at);
            tokio::time::sleep(check.pause(status, since_start)).await;
            if state.borrow().state.status == Status::Paused {
                continue;
            }
            let probe = probe(&shared, &check, &shim, &container).await;
            let Some(actor) = actor.upgrade() else { return };
            if actor.send(Request::Probed(probe)).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = probing => {}
    }
}

/// One probe; one that takes too long is killed.
async fn probe(shared: &Shared, check: &Check, shim: &Shim, container: &Container) -> Probe {
    let start = Timestamp::now();
    let linked = links::environment(&shared.registry, container);
    let request = exec::internal_request(container, &linked, check.command.clone());
    let id = request.id.clone();
    for action in ["exec_create", "exec_start"] {
        shared.exec_event(container, action, &id, &check.command);
    }
    let (exit_code, output) = match tokio::time::timeout(check.timeout, exec::run(shim, request)).await {
        Ok(Ok(done)) => done,
        Ok(Err(error)) => (-1, rswarm_base::Chain(&error).to_string()),
        Err(_) => {
            // It may have ended in this very moment.
            let _ = shim.exec_kill(&id, crate::signal::KILL).await;
            (-1, format!("Health check exceeded timeout ({:?})", check.timeout))
        }
    };
    shared.instruments.probes.one();
    if exit_code != 0 {
        shared.instruments.probes_failed.one();
    }
    shared.exec_died(container, &id, exit_code);
    Probe { start, end: Timestamp::now(), exit_code, output }
}

#[cfg(test)]
mod tests {
    use rswarm_proto::model::container::Healthcheck;

    use super::*;

    fn check(test: &[&str], start_period: i64) -> Option<Check> {
        let test = test.iter().map(|word| (*word).to_owned()).collect();
        let healthcheck = Some(Healthcheck { test, start_period, retries: 2, ..Healthcheck::default() });
        Check::of(&ContainerSpec { healthcheck, ..ContainerSpec::default() }, &[])
    }

    fn probe(second: i64, exit_code: i32) -> Probe {
        Probe { start: Timestamp(second * 1_000_000_000), exit_code, ..Probe::default() }
    }

    #[test]
    fn tests_become_commands() {
        assert_eq!(check(&["CMD", "true"], 0).expect("check").command, ["true"]);
        assert_eq!(check(&["CMD-SHELL", "exit 0"], 0).expect("check").command, ["/bin/sh", "-c", "exit 0"]);
        assert!(check(&["NONE"], 0).is_none() && check(&[], 0).is_none() && check(&["CMD"], 0).is_none());
    }

    #[test]
    fn failures_count_after_the_start_period_or_a_success() {
        let check = check(&["CMD", "x"], 10_000_000_000).expect("check");
        let started = Timestamp::ZERO;
        let early = check.judge(&Health::default(), probe(3, 1), started);
        assert_eq!((early.status, early.failing_streak), (HealthStatus::Starting, 0));
        let well = check.judge(&early, probe(5, 0), started);
        assert_eq!(well.status, HealthStatus::Healthy);
        let once = check.judge(&well, probe(6, 1), started);
        assert_eq!((once.status, once.failing_streak), (HealthStatus::Healthy, 1));
        let twice = check.judge(&once, probe(7, 1), started);
        assert_eq!(twice.status, HealthStatus::Unhealthy);
        assert_eq!(check.judge(&twice, probe(8, 0), started).status, HealthStatus::Healthy);
    }

    #[test]
    fn only_the_last_probes_are_kept() {
        let check = check(&["CMD", "x"], 0).expect("check");
        let health =
            (0..9).fold(Health::default(), |health, n| check.judge(&health, probe(n, 0), Timestamp::ZERO));
        assert_eq!(health.log.len(), LOG_LEN);
        assert_eq!(health.log[0], probe(4, 0));
    }

    #[test]
    fn probes_are_frequent_while_it_starts() {
        let check = check(&["CMD", "x"], 10_000_000_000).expect("check");
        assert_eq!(check.pause(HealthStatus::Starting, Duration::from_secs(1)), START_INTERVAL);
        assert_eq!(check.pause(HealthStatus::Starting, Duration::from_secs(11)), INTERVAL);
        assert_eq!(check.pause(HealthStatus::Healthy, Duration::from_secs(1)), INTERVAL);
    }
}
