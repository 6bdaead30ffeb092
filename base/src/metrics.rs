//! Figures for Prometheus: instruments that count while the daemon works, and the text that a scrape reads.
//!
//! There is no registry: each part owns its instruments, and writes them into an [`Exposition`] when it is asked. What
//! can be read off a state is written from it, and has no instrument.
//!
//! Source: Prometheus' text exposition format, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The media type of an [`Exposition`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Upper bounds of latencies, in seconds: the usual ones of Prometheus' clients, which dockerd's figures have.
pub const LATENCY: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Upper bounds of disk writes, in seconds, as etcd's and thereby swarmkit's figures have.
pub const DISK: &[f64] =
    &[0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192];
/// Sets of labels in one family of counters. Callers cannot choose labels freely; this is for mistakes.
const SERIES_MAX: usize = 512;

/// Something that is counted. Cloning gives another handle on the same count.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Counts one.
    pub fn one(&self) {
        self.add(1);
    }

    /// Counts some.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// How many there were.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A whole number that goes up and down. Cloning gives another handle on the same one.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// It is this now.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// What it is now.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of one family, told apart by `N` labels. Cloning gives another handle on the same counts.
#[derive(Debug, Clone)]
pub struct Counters<const N: usize> {
    names: [&'static str; N],
    counts: Arc<Mutex<BTreeMap<[String; N], u64>>>,
}

impl<const N: usize> Counters<N> {
    /// With these labels.
    #[must_use]
    pub fn new(names: [&'static str; N]) -> Counters<N> {
        Counters { names, counts: Arc::default() }
    }

    /// Counts one with these values of the labels. What would be one series too many is not counted.
    pub fn one(&self, values: [&str; N]) {
        let mut counts = self.counts.lock().expect("no holder panics");
        let key = values.map(str::to_owned);
        let has_room = counts.len() < SERIES_MAX;
        match counts.get_mut(&key) {
            Some(count) => *count += 1,
            None if has_room => drop(counts.insert(key, 1)),
            None => {}
        }
    }

    /// How many there were with these values.
    #[must_use]
    pub fn value(&self, values: [&str; N]) -> u64 {
        self.counts.lock().expect("no holder panics").get(&values.map(str::to_owned)).copied().unwrap_or(0)
    }

    /// Writes all of them.
    pub fn write(&self, name: &str, help: &str, out: &mut Exposition) {
        let counts = self.counts.lock().expect("no holder panics").clone();
        let mut family = out.family(name, help, "counter");
        for (values, count) in counts {
            let labels: Vec<(&str, &str)> =
                self.names.iter().copied().zip(values.iter().map(String::as_str)).collect();
            family.sample(&labels, count as f64);
        }
    }
}

/// How long something takes, as a distribution. Cloning gives another handle on the same one.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Buckets>);

#[derive(Debug)]
struct Buckets {
    bounds: &'static [f64],
    /// One for each bound, and one for what is beyond all of them.
    counts: Vec<AtomicU64>,
    nanoseconds: AtomicU64,
}

impl Histogram {
    /// With these upper bounds, in seconds and ascending.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Histogram {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram(Arc::new(Buckets { bounds, counts, nanoseconds: AtomicU64::new(0) }))
    }

    /// Notes that it took this long.
    pub fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.0.bounds.partition_point(|bound| *bound < seconds);
        self.0.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.0.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// Begins to take the time.
    pub fn timer(&self) -> Timer {
        Timer { histogram: self.clone(), started: Instant::now() }
    }

    /// How often it was noted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

/// Latencies, in the usual buckets.
impl Default for Histogram {
    fn default() -> Histogram {
        Histogram::new(LATENCY)
    }
}

/// A time that is being taken; dropped, it is not noted.
#[derive(Debug)]
#[must_use]
pub struct Timer {
    histogram: Histogram,
    started: Instant,
}

impl Timer {
    /// Notes how long it took.
    pub fn stop(self) {
        self.histogram.observe(self.started.elapsed());
    }
}

/// The text of a scrape.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// Begins a family: `kind` is `counter`, `gauge` or `histogram`. All its samples follow at once.
    pub fn family<'a>(&'a mut self, name: &'a str, help: &str, kind: &str) -> Family<'a> {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { name, text: &mut self.text }
    }

    /// A family of one value that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, help, "gauge").sample(&[], value);
    }

    /// A family of one value that only goes up.
    pub fn counter(&mut self, name: &str, help: &str, counter: &Counter) {
        self.family(name, help, "counter").sample(&[], counter.value() as f64);
    }

    /// A family of one distribution.
    pub fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.family(name, help, "histogram").distribution(&[], histogram);
    }

    /// The whole text.
    #[must_use]
    pub fn into_text(self) -> String {
        self.text
    }
}

/// Samples that share a name.
#[derive(Debug)]
pub struct Family<'a> {
    name: &'a str,
    text: &'a mut String,
}

impl Family<'_> {
    /// One value.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        self.line("", labels, value);
    }

    /// One distribution: the buckets, each with all below it, then sum and count.
    pub fn distribution(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let mut below = 0;
        let bounds = histogram.0.bounds.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&histogram.0.counts) {
            below += count.load(Ordering::Relaxed);
            let labels: Vec<_> = labels.iter().copied().chain([("le", bound.as_str())]).collect();
            self.line("_bucket", &labels, below as f64);
        }
        let sum = Duration::from_nanos(histogram.0.nanoseconds.load(Ordering::Relaxed));
        self.line("_sum", labels, sum.as_secs_f64());
        self.line("_count", labels, below as f64);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.text, "{}{suffix}", self.name);
        for (position, (name, value)) in labels.iter().enumerate() {
            let before = if position == 0 { '{' } else { ',' };
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{before}{name}=\"{value}\"");
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{after} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_written_as_prometheus_reads_it() {
        let histogram = Histogram::new(&[0.5, 1.0]);
        for millis in [500, 501, 4000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let mut out = Exposition::default();
        out.histogram("took_seconds", "How long.", &histogram);
        let wanted = "# HELP took_seconds How long.\n\
                      # TYPE took_seconds histogram\n\
                      took_seconds_bucket{le=\"0.5\"} 1\n\
                      took_seconds_bucket{le=\"1\"} 2\n\
                      took_seconds_bucket{le=\"+Inf\"} 3\n\
                      took_seconds_sum 5.001\n\
                      took_seconds_count 3\n";
        assert_eq!(out.into_text(), wanted);
    }

    #[test]
    fn labels_and_help_cannot_break_out_of_their_line() {
        let mut out = Exposition::default();
        let mut family = out.family("a", "one\\two\nthree", "gauge");
        family.sample(&[("name", "say \"\\\"\nagain"), ("kind", "x")], 0.25);
        let wanted = "# HELP a one\\\\two\\nthree\n# TYPE a gauge\n\
                      a{name=\"say \\\"\\\\\\\"\\nagain\",kind=\"x\"} 0.25\n";
        assert_eq!(out.into_text(), wanted);
    }

    #[test]
    fn counters_count_by_their_labels_and_no_more_of_them_than_there_may_be() {
        let counters = Counters::new(["code"]);
        counters.one(["ok"]);
        counters.one(["ok"]);
        for number in 0..SERIES_MAX {
            counters.one([number.to_string().as_str()]);
        }
        assert_eq!(counters.value(["ok"]), 2);
        assert_eq!(counters.value([(SERIES_MAX - 2).to_string().as_str()]), 1);
        assert_eq!(counters.value([(SERIES_MAX - 1).to_string().as_str()]), 0);
        let mut out = Exposition::default();
        counters.write("calls_total", "Calls.", &mut out);
        assert!(out.into_text().contains("\ncalls_total{code=\"ok\"} 2\n"));
    }

    #[test]
    fn a_time_is_noted_when_its_end_is() {
        let histogram = Histogram::default();
        drop(histogram.timer());
        assert_eq!(histogram.count(), 0);
        histogram.timer().stop();
        assert_eq!(histogram.count(), 1);
    }
}
