//! Which values can be at all, whatever the machine: refused by the field's name before anything is written.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork, LinuxPids, LinuxResources,
    LinuxThrottleDevice, LinuxWeightDevice,
};

use crate::failure::Failure;

/// Where the fields are in a configuration.
pub(super) const ROOT: &str = "linux.resources";
/// The kernel's bounds of a bandwidth period, and the least quota, in microseconds. kernel/sched/core.c
const PERIOD_US: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
/// The most processes that a 64-bit machine can have. `PID_MAX_LIMIT` of linux/threads.h
const PIDS_MAX: i64 = 4 << 20;
/// Documentation/admin-guide/cgroup-v1/blkio-controller.rst
const WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;
/// What podman writes for a swappiness that nobody asked for.
pub(super) const SWAPPINESS_UNSET: u64 = u64::MAX;
/// Bits of a device's numbers. linux/kdev_t.h
const MAJOR_MAX: i64 = (1 << 12) - 1;
const MINOR_MAX: i64 = (1 << 20) - 1;

/// A value that cannot be, as an error.
pub(super) fn refuse(field: &str, why: impl std::fmt::Display) -> Failure {
    Failure::invalid(format!("`{ROOT}.{field}`: {why}"))
}

/// Checks every value that is written into a file; device rules are checked where they are compiled.
pub(crate) fn check(resources: &LinuxResources) -> Result<(), Failure> {
    resources.memory().as_ref().map_or(Ok(()), memory)?;
    resources.cpu().as_ref().map_or(Ok(()), cpu)?;
    resources.pids().as_ref().map_or(Ok(()), pids)?;
    resources.block_io().as_ref().map_or(Ok(()), block_io)?;
    for (index, limit) in resources.hugepage_limits().iter().flatten().enumerate() {
        hugepages(index, limit)?;
    }
    resources.network().as_ref().map_or(Ok(()), network)?;
    for device in resources.rdma().iter().flat_map(|rdma| rdma.keys()) {
        let plain = !device.is_empty() && !device.contains(char::is_whitespace);
        ensure(plain, "rdma", || format!("`{device}` is not the name of a device"))?;
    }
    for (file, value) in resources.unified().iter().flatten() {
        unified(file, value)?;
    }
    Ok(())
}

fn ensure(holds: bool, field: &str, why: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(refuse(field, why())) }
}

fn memory(memory: &LinuxMemory) -> Result<(), Failure> {
    let amounts = [
        ("limit", memory.limit()),
        ("reservation", memory.reservation()),
        ("swap", memory.swap()),
        ("kernel", memory.kernel()),
        ("kernelTCP", memory.kernel_tcp()),
    ];
    for (name, amount) in amounts {
        ensure(amount.is_none_or(|bytes| bytes >= -1), &format!("memory.{name}"), || {
            format!("{} is not an amount of bytes, nor -1 for no limit", amount.unwrap_or_default())
        })?;
    }
    if let (Some(limit @ 1..), Some(swap @ 1..)) = (memory.limit(), memory.swap()) {
        ensure(swap >= limit, "memory.swap", || {
            format!("{swap} for memory and swap is less than the {limit} of memory.limit")
        })?;
    }
    let swappiness = memory.swappiness().filter(|value| *value != SWAPPINESS_UNSET);
    ensure(swappiness.is_none_or(|value| value <= 100), "memory.swappiness", || {
        format!("{} is not between 0 and 100", swappiness.unwrap_or_default())
    })
}

fn cpu(cpu: &LinuxCpu) -> Result<(), Failure> {
    let period = cpu.period().filter(|period| *period != 0);
    ensure(period.is_none_or(|us| PERIOD_US.contains(&us)), "cpu.period", || {
        format!("{} is not between 1000 and 1000000 microseconds", period.unwrap_or_default())
    })?;
    let quota = cpu.quota().filter(|quota| *quota != 0);
    ensure(quota.is_none_or(|us| us == -1 || us >= 1_000), "cpu.quota", || {
        format!("{} is neither -1 nor at least 1000 microseconds", quota.unwrap_or_default())
    })?;
    if let (Some(burst), Some(quota)) = (cpu.burst(), quota.and_then(|quota| u64::try_from(quota).ok())) {
        ensure(burst <= quota, "cpu.burst", || format!("{burst} is more than the quota of {quota}"))?;
    }
    ensure(cpu.idle().is_none_or(|idle| idle == 0 || idle == 1), "cpu.idle", || {
        format!("{} is neither 0 nor 1", cpu.idle().unwrap_or_default())
    })?;
    let runtime = cpu.realtime_runtime();
    ensure(runtime.is_none_or(|us| us >= -1), "cpu.realtimeRuntime", || {
        format!("{} is not a number of microseconds", runtime.unwrap_or_default())
    })?;
    let realtime = cpu.realtime_period().unwrap_or(0);
    ensure(realtime <= u64::from(u32::MAX), "cpu.realtimePeriod", || format!("{realtime} is too long"))?;
    for (name, list) in [("cpus", cpu.cpus()), ("mems", cpu.mems())] {
        let list = list.as_deref().unwrap_or_default();
        ensure(list.is_empty() || is_list(list), &format!("cpu.{name}"), || {
            format!("`{list}` is not a list of numbers such as `0-3,7`")
        })?;
    }
    Ok(())
}

/// cpuset(7), "List format".
fn is_list(list: &str) -> bool {
    let number = |text: &str| text.parse::<u16>().ok();
    list.trim().split(',').all(|part| match part.split_once('-') {
        None => number(part).is_some(),
        Some((first, last)) => {
            let last = last.split_once(':').map_or(last, |(last, _)| last);
            number(first).zip(number(last)).is_some_and(|(first, last)| first <= last)
        }
    })
}

fn pids(pids: &LinuxPids) -> Result<(), Failure> {
    let limit = pids.limit();
    ensure((-1..=PIDS_MAX).contains(&limit), "pids.limit", || {
        format!("{limit} is not a number of processes up to {PIDS_MAX}, nor -1 for no limit")
    })
}

fn block_io(block: &LinuxBlockIo) -> Result<(), Failure> {
    weight("blockIO.weight", block.weight())?;
    weight("blockIO.leafWeight", block.leaf_weight())?;
    for (index, device) in block.weight_device().iter().flatten().enumerate() {
        weight_device(&format!("blockIO.weightDevice[{index}]"), device)?;
    }
    throttles("blockIO.throttleReadBpsDevice", block.throttle_read_bps_device())?;
    throttles("blockIO.throttleWriteBpsDevice", block.throttle_write_bps_device())?;
    throttles("blockIO.throttleReadIOPSDevice", block.throttle_read_iops_device())?;
    throttles("blockIO.throttleWriteIOPSDevice", block.throttle_write_iops_device())
}

fn weight(field: &str, weight: Option<u16>) -> Result<(), Failure> {
    ensure(weight.is_none_or(|weight| weight == 0 || WEIGHTS.contains(&weight)), field, || {
        format!("{} is not between 10 and 1000", weight.unwrap_or_default())
    })
}

fn weight_device(field: &str, device: &LinuxWeightDevice) -> Result<(), Failure> {
    device_number(field, device.major(), device.minor())?;
    weight(&format!("{field}.weight"), device.weight())?;
    weight(&format!("{field}.leafWeight"), device.leaf_weight())
}

fn throttles(field: &str, devices: &Option<Vec<LinuxThrottleDevice>>) -> Result<(), Failure> {
    for (index, device) in devices.iter().flatten().enumerate() {
        device_number(&format!("{field}[{index}]"), device.major(), device.minor())?;
    }
    Ok(())
}

pub(super) fn device_number(field: &str, major: i64, minor: i64) -> Result<(), Failure> {
    let is_one = (0..=MAJOR_MAX).contains(&major) && (0..=MINOR_MAX).contains(&minor);
    ensure(is_one, field, || format!("there can be no device {major}:{minor}"))
}

fn hugepages(index: usize, limit: &LinuxHugepageLimit) -> Result<(), Failure> {
    let size = limit.page_size();
    ensure(is_page_size(size), &format!("hugepageLimits[{index}].pageSize"), || {
        format!("`{size}` is not a size such as `2MB`")
    })?;
    ensure(limit.limit() >= 0, &format!("hugepageLimits[{index}].limit"), || {
        format!("{} is not an amount of bytes", limit.limit())
    })
}

/// `^[1-9][0-9]*[KMG]B$`: what the kernel calls its files, so nothing else can be a part of a path.
fn is_page_size(size: &str) -> bool {
    let Some(number) = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit)) else {
        return false;
    };
    number.bytes().all(|digit| digit.is_ascii_digit()) && !number.is_empty() && !number.starts_with('0')
}

fn network(network: &LinuxNetwork) -> Result<(), Failure> {
    for (index, priority) in network.priorities().iter().flatten().enumerate() {
        let name = priority.name();
        let is_name =
            (1..16).contains(&name.len()) && !name.contains(|c: char| c.is_whitespace() || c == '/');
        ensure(is_name, &format!("network.priorities[{index}].name"), || {
            format!("`{name}` is not the name of an interface")
        })?;
    }
    Ok(())
}

/// Limits only: what moves, stops or kills processes is not a resource.
fn unified(file: &str, value: &str) -> Result<(), Failure> {
    const OF_THE_CORE: &[&str] = &["cgroup.max.depth", "cgroup.max.descendants", "cgroup.pressure"];
    let field = format!("unified[{file:?}]");
    let is_name = file.split_once('.').is_some_and(|(controller, rest)| {
        !rest.is_empty() && controller.bytes().all(|c| c.is_ascii_lowercase() || c == b'_')
    });
    let is_file = is_name && !file.starts_with('.') && !file.contains('/');
    ensure(is_file, &field, || "it is not of the form `controller.parameter`".to_owned())?;
    let may_be_set = !file.starts_with("cgroup.") || OF_THE_CORE.contains(&file);
    ensure(may_be_set, &field, || "it is not a limit".to_owned())?;
    ensure(!value.trim().is_empty(), &field, || "it has no value".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(json: serde_json::Value) -> String {
        let resources: LinuxResources = serde_json::from_value(json).expect("resources");
        check(&resources).expect_err("refused").message.replace('`', "")
    }

    #[test]
    fn a_value_out_of_range_is_refused_by_the_fields_name() {
        use serde_json::json;
        let throttle = json!([{"major": 8, "minor": 0, "rate": 1}, {"major": -1, "minor": 0, "rate": 1}]);
        let cases = [
            (json!({"memory": {"limit": -2}}), "memory.limit: -2"),
            (json!({"memory": {"reservation": -7}}), "memory.reservation: -7"),
            (json!({"memory": {"kernelTCP": -7}}), "memory.kernelTCP: -7"),
            (json!({"memory": {"limit": 10, "swap": 5}}), "memory.swap: 5 for memory and swap is less"),
            (json!({"memory": {"swappiness": 101}}), "memory.swappiness: 101"),
            (json!({"cpu": {"period": 999}}), "cpu.period: 999"),
            (json!({"cpu": {"quota": 999}}), "cpu.quota: 999"),
            (json!({"cpu": {"quota": -2}}), "cpu.quota: -2"),
            (json!({"cpu": {"quota": 5000, "burst": 6000}}), "cpu.burst: 6000"),
            (json!({"cpu": {"idle": 2}}), "cpu.idle: 2"),
            (json!({"cpu": {"cpus": "3-1"}}), "cpu.cpus: `3-1`"),
            (json!({"cpu": {"mems": "a"}}), "cpu.mems: `a`"),
            (json!({"cpu": {"realtimeRuntime": -2}}), "cpu.realtimeRuntime: -2"),
            (json!({"pids": {"limit": -2}}), "pids.limit: -2"),
            (json!({"pids": {"limit": 4_194_305}}), "pids.limit: 4194305"),
            (json!({"blockIO": {"weight": 9}}), "blockIO.weight: 9"),
            (json!({"blockIO": {"leafWeight": 1001}}), "blockIO.leafWeight: 1001"),
            (json!({"blockIO": {"throttleReadBpsDevice": throttle}}), "throttleReadBpsDevice[1]: there can"),
            (
                json!({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 5}]}}),
                "blockIO.weightDevice[0].weight: 5",
            ),
            (json!({"hugepageLimits": [{"pageSize": "../x", "limit": 1}]}), "hugepageLimits[0].pageSize"),
            (json!({"hugepageLimits": [{"pageSize": "2MB", "limit": -1}]}), "hugepageLimits[0].limit"),
            (
                json!({"network": {"priorities": [{"name": "a b", "priority": 1}]}}),
                "network.priorities[0].name",
            ),
            (json!({"rdma": {"": {"hcaHandles": 1}}}), "rdma: ``"),
            (json!({"unified": {"memory/x": "1"}}), "unified[\"memory/x\"]"),
            (json!({"unified": {"../memory.max": "1"}}), "unified[\"../memory.max\"]"),
            (json!({"unified": {"cgroup.procs": "1"}}), "it is not a limit"),
            (json!({"unified": {"memory.high": " "}}), "it has no value"),
        ];
        for (json, words) in cases {
            let said = refusal(json.clone());
            assert!(
                said.starts_with("linux.resources.") && said.contains(&words.replace('`', "")),
                "{json}: {said}"
            );
        }
    }

    #[test]
    fn values_at_the_edges_are_taken() {
        let resources = serde_json::json!({
            "memory": {"limit": -1, "swap": -1, "reservation": 0, "swappiness": u64::MAX},
            "cpu": {"period": 1000, "quota": 1000, "burst": 1000, "idle": 1, "cpus": "0-3,7,8-20:2", "mems": ""},
            "pids": {"limit": 4_194_304},
            "blockIO": {"weight": 10, "leafWeight": 1000},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "unified": {"cgroup.max.depth": "3", "memory.high": "max"},
        });
        assert_eq!(check(&serde_json::from_value(resources).expect("resources")), Ok(()));
    }
}
