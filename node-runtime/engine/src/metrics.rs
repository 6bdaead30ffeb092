//! The engine's figures, under the names that dockerd has for them.

use rswarm_base::metrics::{Counter, Exposition, Histogram};

use crate::engine::EngineInfo;
use crate::events::Events;

/// What the parts of an engine count.
#[derive(Debug, Default)]
pub(crate) struct Instruments {
    /// Containers' file systems compared with their images.
    pub changes: Histogram,
    /// Images made of containers.
    pub commit: Histogram,
    /// Containers made.
    pub create: Histogram,
    /// Containers removed.
    pub delete: Histogram,
    /// Containers started.
    pub start: Histogram,
    /// Probes of health checks.
    pub probes: Counter,
    /// Those that failed.
    pub probes_failed: Counter,
}

impl Instruments {
    /// Writes them, with what `info` says and what there is of events.
    pub(crate) fn write(&self, info: &EngineInfo, events: &Events, out: &mut Exposition) {
        let help = "The number of seconds it takes to process each container action";
        let mut actions = out.family("engine_daemon_container_actions_seconds", help, "histogram");
        for (action, took) in [
            ("changes", &self.changes),
            ("commit", &self.commit),
            ("create", &self.create),
            ("delete", &self.delete),
            ("start", &self.start),
        ] {
            actions.distribution(&[("action", action)], took);
        }
        let help = "The count of containers in various states";
        let mut states = out.family("engine_daemon_container_states_containers", help, "gauge");
        for (state, count) in [("paused", info.paused), ("running", info.running), ("stopped", info.stopped)]
        {
            states.sample(&[("state", state)], count as f64);
        }
        out.gauge(
            "engine_daemon_engine_cpus_cpus",
            "The number of cpus that the host system of the engine has",
            info.cpus as f64,
        );
        out.gauge(
            "engine_daemon_engine_memory_bytes",
            "The number of bytes of memory that the host system of the engine has",
            info.memory as f64,
        );
        out.counter("engine_daemon_events_total", "The number of events logged", &events.count);
        out.gauge(
            "engine_daemon_events_subscribers_total",
            "The number of current subscribers to events",
            events.readers() as f64,
        );
        out.counter("engine_daemon_health_checks_total", "The total number of health checks", &self.probes);
        out.counter(
            "engine_daemon_health_checks_failed_total",
            "The total number of failed health checks",
            &self.probes_failed,
        );
    }
}

/// Takes the time of what succeeds, as dockerd does.
pub(crate) async fn timed<T, E>(took: &Histogram, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let timer = took.timer();
    let result = work.await;
    if result.is_ok() {
        timer.stop();
    }
    result
}
