//! What a running container uses: its cgroup's counters, its interfaces', and the machine's clock of processor time.

use std::collections::BTreeMap;
use std::fs;

use rswarm_base::Timestamp;
use rswarm_runtime::cgroup::Cgroup;

pub use rswarm_runtime::cgroup::{CpuStats, IoStats, MemoryStats, PidStats, Stats as CgroupStats};

use crate::container::Container;

/// One look at a container. Rates come from two.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// When.
    pub at: Timestamp,
    /// What its cgroup counted.
    pub cgroup: CgroupStats,
    /// Whether the counters are version 2's.
    pub unified: bool,
    /// By interface; without the loopback.
    pub networks: BTreeMap<String, NetworkStats>,
    /// Processor time that the machine has had in all, nanoseconds.
    pub system_cpu: u64,
    /// Its processors.
    pub online_cpus: u32,
}

/// What went through an interface since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetworkStats {
    /// Received.
    pub received: Traffic,
    /// Sent.
    pub sent: Traffic,
}

/// One direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Packets with errors.
    pub errors: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// Looks. Blocks.
pub(crate) fn sample(cgroup: &str, container: &Container) -> Result<Sample, String> {
    let cgroup = Cgroup::at(cgroup.as_ref()).map_err(|failure| failure.to_string())?;
    let stat = fs::read_to_string("/proc/stat").map_err(|error| error.to_string())?;
    let interfaces = match container.config.network_mode.as_str() {
        // The machine's own are none of the container's.
        "host" => String::new(),
        // Those of the process's namespace; gone when it is.
        _ => fs::read_to_string(format!("/proc/{}/net/dev", container.state.pid)).unwrap_or_default(),
    };
    let (system_cpu, online_cpus) = system_cpu(&stat);
    Ok(Sample {
        at: Timestamp::now(),
        unified: cgroup.only_unified().is_some(),
        cgroup: cgroup.stats().map_err(|error| error.to_string())?,
        networks: networks(&interfaces),
        system_cpu,
        online_cpus,
    })
}

/// All processor time in nanoseconds, and the number of processors.
// man: proc_stat(5); moby: stats/collector_unix.go, whose sum is that of the first seven fields
fn system_cpu(stat: &str) -> (u64, u32) {
    const FIELDS: usize = 7;
    const NANOS_PER_TICK: u64 = 10_000_000;
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let ticks: u64 =
        line.split_whitespace().take(FIELDS).map(|field| field.parse::<u64>().unwrap_or(0)).sum();
    let is_cpu = |line: &&str| {
        line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let cpus = stat.lines().filter(is_cpu).count();
    (ticks.saturating_mul(NANOS_PER_TICK), u32::try_from(cpus).unwrap_or(u32::MAX))
}

/// Reads `/proc/<pid>/net/dev`: two lines of titles, then `name: eight received, eight sent`.
// man: proc_pid_net(5)
fn networks(text: &str) -> BTreeMap<String, NetworkStats> {
    let interface = |line: &str| {
        let (name, fields) = line.split_once(':')?;
        let fields: Vec<u64> = fields.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        let traffic = |at: usize| {
            let field = |offset: usize| fields.get(at + offset).copied().unwrap_or_default();
            Traffic { bytes: field(0), packets: field(1), errors: field(2), dropped: field(3) }
        };
        Some((name.trim().to_owned(), NetworkStats { received: traffic(0), sent: traffic(8) }))
    };
    text.lines().skip(2).filter_map(interface).filter(|(name, _)| name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_the_sum_of_seven_fields() {
        let stat = "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3\ncpu1 1 2 3\nintr 5\ncpufoo 1\n";
        assert_eq!(system_cpu(stat), (280_000_000, 2));
    }

    #[test]
    fn interfaces_are_counted_but_the_loopback() {
        let text = "Inter-|   Receive                            |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes packets errs drop\n    \
                    lo: 9 9 0 0 0 0 0 0 9 9 0 0 0 0 0 0\n  eth0:1024 8 1 2 0 0 0 0 2048 16 3 4 0 0 0 0\n";
        let found = networks(text);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["eth0"]);
        assert_eq!(found["eth0"].received, Traffic { bytes: 1024, packets: 8, errors: 1, dropped: 2 });
        assert_eq!(found["eth0"].sent, Traffic { bytes: 2048, packets: 16, errors: 3, dropped: 4 });
    }
}
