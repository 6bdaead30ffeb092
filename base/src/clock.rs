//! The only reader of time. Decisions take a [`Timestamp`]; shells ask a [`Clock`] for it.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Nanoseconds since the Unix epoch, UTC. Zero means "never" and prints as Go's zero time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// "Never": what Docker prints as `0001-01-01T00:00:00Z`.
    pub const ZERO: Timestamp = Timestamp(0);

    /// The time of day now, for shells that own no [`Clock`]. Never called by pure code.
    #[must_use]
    pub fn now() -> Timestamp {
        SystemClock.now()
    }

    /// The machine's time of day, which may be set: for shells that live for months and write times that others
    /// compare with theirs, such as those of log lines.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "the one reader of time")]
    pub fn wall() -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX))
    }

    /// Whether this is "never".
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Whole seconds since the epoch.
    #[must_use]
    pub fn as_secs(self) -> i64 {
        self.0.div_euclid(1_000_000_000)
    }

    /// This time plus `duration`, saturating.
    #[must_use]
    pub fn after(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero when it is not after.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Parses RFC 3339 text, with or without a fraction. Go's zero time is [`Timestamp::ZERO`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Timestamp> {
        if text.starts_with("0001-01-01T00:00:00") {
            return Some(Timestamp::ZERO);
        }
        let parsed: jiff::Timestamp = text.parse().ok()?;
        i64::try_from(parsed.as_nanosecond()).ok().map(Timestamp)
    }

    /// RFC 3339 with exactly nine fractional digits, as Docker writes log timestamps.
    #[must_use]
    pub fn rfc3339_nano(self) -> String {
        if self.is_zero() {
            return GO_ZERO.to_owned();
        }
        let seconds = jiff::Timestamp::from_second(self.as_secs()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        format!("{}.{:09}Z", seconds.strftime("%Y-%m-%dT%H:%M:%S"), self.0.rem_euclid(1_000_000_000))
    }
}

const GO_ZERO: &str = "0001-01-01T00:00:00Z";

/// RFC 3339 with the fraction trimmed of trailing zeros, as Go's `time.RFC3339Nano` prints it.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_zero() {
            return f.write_str(GO_ZERO);
        }
        let full = self.rfc3339_nano();
        let trimmed = full.trim_end_matches('Z').trim_end_matches('0').trim_end_matches('.');
        write!(f, "{trimmed}Z")
    }
}

/// Where a shell gets the time from: the system's clock, or a test's.
pub trait Clock: Send + Sync + 'static {
    /// The time of day.
    fn now(&self) -> Timestamp;
}

/// The machine's clock, made monotonic within the process: it never goes back.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one reader of time")]
    fn now(&self) -> Timestamp {
        static START: std::sync::OnceLock<(SystemTime, Instant)> = std::sync::OnceLock::new();
        let (wall, started) = START.get_or_init(|| (SystemTime::now(), Instant::now()));
        let elapsed = wall.duration_since(UNIX_EPOCH).unwrap_or_default() + started.elapsed();
        Timestamp(i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX))
    }
}

/// A clock that a test moves by hand.
#[derive(Debug, Default)]
pub struct VirtualClock(AtomicI64);

impl VirtualClock {
    /// A clock that shows `start`.
    #[must_use]
    pub fn new(start: Timestamp) -> VirtualClock {
        VirtualClock(AtomicI64::new(start.0))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let now = self.now().after(by);
        self.0.store(now.0, Ordering::SeqCst);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_go_does() {
        assert_eq!(Timestamp::ZERO.to_string(), "0001-01-01T00:00:00Z");
        assert_eq!(Timestamp(1_700_000_000_500_000_000).to_string(), "2023-11-14T22:13:20.5Z");
        assert_eq!(Timestamp(1_700_000_000_000_000_000).to_string(), "2023-11-14T22:13:20Z");
        assert_eq!(Timestamp(1_700_000_000_000_000_007).rfc3339_nano(), "2023-11-14T22:13:20.000000007Z");
    }

    #[test]
    fn parses_what_it_prints() {
        for ns in [1_700_000_000_000_000_007, 1_700_000_000_500_000_000] {
            assert_eq!(Timestamp::parse(&Timestamp(ns).to_string()), Some(Timestamp(ns)));
        }
        assert_eq!(Timestamp::parse("0001-01-01T00:00:00Z"), Some(Timestamp::ZERO));
    }
}
