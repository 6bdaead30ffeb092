//! Whether an exited container starts again, and when. Pure.

use std::time::Duration;

use crate::config::{RestartName, RestartPolicy};

/// The first delay; it doubles with each restart.
const DELAY_MIN: Duration = Duration::from_millis(100);
/// The longest delay.
const DELAY_MAX: Duration = Duration::from_secs(60);
/// A run of this length was a good one: the delays begin anew.
const GOOD_RUN: Duration = Duration::from_secs(10);

/// What is remembered from one exit to the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    delay: Option<Duration>,
    /// Restarts since the last start by hand.
    pub restarts: u32,
}

impl Backoff {
    /// What remains of it after a daemon restart: the count; the delays begin anew.
    pub(crate) fn resumed(restarts: u32) -> Backoff {
        Backoff { delay: None, restarts }
    }

    /// The delay before the next start of a container that exited by itself; `None` leaves it as it is.
    pub(crate) fn after_exit(
        &mut self,
        policy: RestartPolicy,
        exit_code: i32,
        ran_for: Duration,
    ) -> Option<Duration> {
        if !self.wants_restart(policy, exit_code) {
            return None;
        }
        let delay = match self.delay {
            Some(last) if ran_for < GOOD_RUN => (last * 2).min(DELAY_MAX),
            _ => DELAY_MIN,
        };
        self.delay = Some(delay);
        self.restarts += 1;
        Some(delay)
    }

    fn wants_restart(self, policy: RestartPolicy, exit_code: i32) -> bool {
        match policy.name {
            RestartName::No => false,
            RestartName::Always | RestartName::UnlessStopped => true,
            RestartName::OnFailure => exit_code != 0 && (policy.max == 0 || self.restarts < policy.max),
        }
    }
}

/// Whether a container that does not run is started when the daemon is. `was_running`: the daemon went
/// away while it ran or waited for its next start, and it has since exited with `exit_code`.
pub(crate) fn at_boot(
    policy: RestartPolicy,
    was_running: bool,
    stopped_by_hand: bool,
    started_before: bool,
    exit_code: i32,
    restarts: u32,
) -> bool {
    match policy.name {
        RestartName::No => false,
        RestartName::Always => started_before,
        RestartName::UnlessStopped => started_before && !stopped_by_hand,
        RestartName::OnFailure => {
            was_running && !stopped_by_hand && Backoff::resumed(restarts).wants_restart(policy, exit_code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: RestartName, max: u32) -> RestartPolicy {
        RestartPolicy { name, max }
    }

    const SHORT: Duration = Duration::from_millis(5);

    #[test]
    fn delays_double_up_to_a_minute_and_begin_anew_after_a_good_run() {
        let mut backoff = Backoff::default();
        let always = policy(RestartName::Always, 0);
        let mut delay = || backoff.after_exit(always, 0, SHORT).expect("restarts").as_millis();
        let first: Vec<u128> = (0..4).map(|_| delay()).collect();
        assert_eq!(first, [100, 200, 400, 800]);
        let late: Vec<u128> = (0..10).map(|_| delay()).collect();
        assert_eq!(late[9], 60_000);
        assert_eq!(backoff.after_exit(always, 0, GOOD_RUN), Some(DELAY_MIN));
    }

    #[test]
    fn on_failure_counts_failures_and_ignores_success() {
        let limited = policy(RestartName::OnFailure, 2);
        let mut backoff = Backoff::default();
        assert!(backoff.after_exit(limited, 1, SHORT).is_some());
        assert!(backoff.after_exit(limited, 1, SHORT).is_some());
        assert_eq!(backoff.after_exit(limited, 1, SHORT), None);
        assert_eq!(Backoff::default().after_exit(limited, 0, SHORT), None);
        let unlimited = policy(RestartName::OnFailure, 0);
        assert!((0..100).all(|_| backoff.after_exit(unlimited, 1, SHORT).is_some()));
    }

    #[test]
    fn no_policy_never_restarts() {
        assert_eq!(Backoff::default().after_exit(policy(RestartName::No, 0), 1, SHORT), None);
    }

    #[test]
    fn boot_starts_what_the_policy_says() {
        let start = |name, was_running, by_hand| at_boot(policy(name, 0), was_running, by_hand, true, 1, 0);
        assert!(start(RestartName::Always, false, true), "`always` even when stopped by hand");
        assert!(start(RestartName::UnlessStopped, false, false));
        assert!(!start(RestartName::UnlessStopped, false, true));
        assert!(start(RestartName::OnFailure, true, false));
        assert!(!start(RestartName::OnFailure, false, false), "it had ended for good before");
        assert!(!start(RestartName::No, true, false));
        assert!(!at_boot(policy(RestartName::Always, 0), false, false, false, 0, 0), "never started by hand");
    }
}
