//! Samples of a container as Docker's statistics. Pure.

use rswarm_base::Timestamp;
use rswarm_engine::container::Container;
use rswarm_engine::stats::{IoStats, MemoryStats, NetworkStats, Sample};

use crate::types;

/// One message: `sample`, and `before` to tell rates by. Without a sample, as for a container that does not run,
/// only the names are told.
pub(crate) fn stats(
    container: &Container,
    sample: Option<&Sample>,
    before: Option<&Sample>,
    machine_memory: u64,
) -> types::Stats {
    let names = types::Stats {
        name: format!("/{}", container.name),
        id: container.id.clone(),
        read: Timestamp::ZERO.to_string(),
        preread: Timestamp::ZERO.to_string(),
        ..types::Stats::default()
    };
    let Some(sample) = sample else { return names };
    types::Stats {
        read: sample.at.to_string(),
        preread: before.map_or(Timestamp::ZERO, |before| before.at).to_string(),
        pids_stats: pids(sample),
        blkio_stats: block_io(sample),
        cpu_stats: cpu(sample),
        precpu_stats: before.map(cpu).unwrap_or_default(),
        memory_stats: sample
            .cgroup
            .memory
            .as_ref()
            .map(|memory| self::memory(memory, sample.unified, machine_memory))
            .unwrap_or_default(),
        networks: sample.networks.iter().map(|(name, stats)| (name.clone(), network(*stats))).collect(),
        ..names
    }
}

fn cpu(sample: &Sample) -> types::CpuStats {
    let cpu = &sample.cgroup.cpu;
    types::CpuStats {
        cpu_usage: types::CpuUsage {
            total_usage: cpu.usage,
            percpu_usage: cpu.per_cpu.clone(),
            usage_in_kernelmode: cpu.system,
            usage_in_usermode: cpu.user,
        },
        system_cpu_usage: sample.system_cpu,
        online_cpus: sample.online_cpus,
        throttling_data: types::ThrottlingData {
            periods: cpu.periods,
            throttled_periods: cpu.throttled_periods,
            throttled_time: cpu.throttled_time,
        },
    }
}

/// No limit is the greatest number with version 2 and nothing with version 1, as containerd has it.
fn pids(sample: &Sample) -> types::PidsStats {
    let none = if sample.unified { u64::MAX } else { 0 };
    let pids = sample.cgroup.pids.as_ref();
    pids.map(|pids| types::PidsStats { current: pids.current, limit: pids.limit.unwrap_or(none) })
        .unwrap_or_default()
}

/// Nothing is limited to more than the machine has.
fn memory(memory: &MemoryStats, unified: bool, machine_memory: u64) -> types::MemoryStats {
    types::MemoryStats {
        usage: memory.usage,
        // Version 2's counter is younger than Docker's field for it.
        max_usage: if unified { 0 } else { memory.max_usage.unwrap_or_default() },
        stats: memory.detail.clone(),
        failcnt: if unified { 0 } else { memory.failures },
        limit: memory.limit.unwrap_or(u64::MAX).min(machine_memory),
    }
}

/// Lists that the version has no counters for are null with version 2, empty with version 1.
fn block_io(sample: &Sample) -> types::BlkioStats {
    let words = if sample.unified { ["read", "write"] } else { ["Read", "Write"] };
    let entries = |pair: fn(&IoStats) -> [u64; 2]| {
        let of_device = |device: &IoStats| {
            let values = words.into_iter().zip(pair(device));
            let (major, minor) = (device.major, device.minor);
            values
                .map(|(op, value)| types::BlkioStatEntry { major, minor, op: op.to_owned(), value })
                .collect::<Vec<_>>()
        };
        sample.cgroup.io.iter().flat_map(of_device).collect::<Vec<_>>()
    };
    let bytes = entries(|device| [device.read_bytes, device.write_bytes]);
    let operations = entries(|device| [device.read_operations, device.write_operations]);
    let other = || (!sample.unified).then(Vec::new);
    types::BlkioStats {
        io_service_bytes_recursive: (!sample.unified || !bytes.is_empty()).then_some(bytes),
        io_serviced_recursive: if sample.unified { None } else { Some(operations) },
        io_queue_recursive: other(),
        io_service_time_recursive: other(),
        io_wait_time_recursive: other(),
        io_merged_recursive: other(),
        io_time_recursive: other(),
        sectors_recursive: other(),
    }
}

fn network(stats: NetworkStats) -> types::NetworkStats {
    types::NetworkStats {
        rx_bytes: stats.received.bytes,
        rx_packets: stats.received.packets,
        rx_errors: stats.received.errors,
        rx_dropped: stats.received.dropped,
        tx_bytes: stats.sent.bytes,
        tx_packets: stats.sent.packets,
        tx_errors: stats.sent.errors,
        tx_dropped: stats.sent.dropped,
    }
}

#[cfg(test)]
mod tests {
    use rswarm_engine::stats::{CgroupStats, CpuStats, PidStats};

    use super::*;
    use crate::translate::inspect::tests::sample as container;

    fn sample(unified: bool) -> Sample {
        let memory = MemoryStats {
            usage: 4096,
            max_usage: Some(8192),
            detail: [("inactive_file".to_owned(), 1024)].into(),
            ..MemoryStats::default()
        };
        let cgroup = CgroupStats {
            cpu: CpuStats { usage: 30, user: 20, system: 10, ..CpuStats::default() },
            memory: Some(memory),
            pids: Some(PidStats { current: 2, limit: None }),
            io: vec![IoStats { major: 8, read_bytes: 1, write_bytes: 2, ..IoStats::default() }],
            ..CgroupStats::default()
        };
        Sample { cgroup, unified, system_cpu: 100, online_cpus: 2, at: Timestamp(1), ..Sample::default() }
    }

    fn json(unified: bool) -> serde_json::Value {
        let (first, second) = (sample(unified), sample(unified));
        serde_json::to_value(stats(&container(), Some(&second), Some(&first), 1 << 30)).expect("json")
    }

    #[test]
    fn version_2_has_its_own_shape() {
        let json = json(true);
        assert_eq!(
            (json["name"].as_str(), json["pids_stats"]["limit"].as_u64()),
            (Some("/web"), Some(u64::MAX))
        );
        assert_eq!(json["memory_stats"]["stats"]["inactive_file"], 1024);
        assert_eq!(
            (json["memory_stats"]["limit"].as_u64(), json["memory_stats"].get("max_usage")),
            (Some(1 << 30), None)
        );
        assert_eq!(json["blkio_stats"]["io_service_bytes_recursive"][1]["op"], "write");
        assert!(json["blkio_stats"]["io_serviced_recursive"].is_null());
        assert_eq!(json["precpu_stats"]["cpu_usage"]["usage_in_kernelmode"], 10);
        assert_eq!(json["cpu_stats"]["online_cpus"], 2);
        assert!(json["cpu_stats"]["cpu_usage"].get("percpu_usage").is_none());
    }

    #[test]
    fn version_1_has_its_own_shape() {
        let json = json(false);
        assert!(json["pids_stats"].get("limit").is_none());
        assert_eq!(json["memory_stats"]["max_usage"], 8192);
        assert_eq!(json["blkio_stats"]["io_service_bytes_recursive"][0]["op"], "Read");
        assert_eq!(json["blkio_stats"]["sectors_recursive"], serde_json::json!([]));
    }

    #[test]
    fn a_container_that_does_not_run_has_only_its_names() {
        let json = serde_json::to_value(stats(&container(), None, None, 1)).expect("json");
        assert_eq!(
            (json["name"].as_str(), json["read"].as_str()),
            (Some("/web"), Some("0001-01-01T00:00:00Z"))
        );
        assert_eq!(json["memory_stats"], serde_json::json!({}));
        assert!(json.get("networks").is_none());
    }
}
