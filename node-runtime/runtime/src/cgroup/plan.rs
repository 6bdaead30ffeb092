//! Limits as files to write: pure, one function for each version.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxResources,
    LinuxThrottleDevice,
};

use crate::failure::Failure;

/// One write. With version 1 the controller finds the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub controller: &'static str,
    pub file: String,
    pub value: String,
}

/// What a container may touch whatever its spec says.
// spec: oci-runtime config-linux.md#default-devices
pub(super) const DEFAULT_DEVICES: &[(char, Option<u32>, Option<u32>, &str)] = &[
    ('c', None, None, "m"),
    ('b', None, None, "m"),
    ('c', Some(1), Some(3), "rwm"),
    ('c', Some(1), Some(5), "rwm"),
    ('c', Some(1), Some(7), "rwm"),
    ('c', Some(1), Some(8), "rwm"),
    ('c', Some(1), Some(9), "rwm"),
    ('c', Some(5), Some(0), "rwm"),
    ('c', Some(5), Some(1), "rwm"),
    ('c', Some(5), Some(2), "rwm"),
    ('c', Some(136), None, "rwm"),
];

/// Collects writes.
struct Writes(Vec<Write>);

impl Writes {
    fn add(&mut self, controller: &'static str, file: impl Into<String>, value: impl ToString) {
        self.0.push(Write { controller, file: file.into(), value: value.to_string() });
    }

    fn maybe(&mut self, controller: &'static str, file: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.add(controller, file, value);
        }
    }
}

/// The writes for version 1, in order.
pub(super) fn v1(resources: &LinuxResources) -> Result<Vec<Write>, Failure> {
    refuse_unknown(resources)?;
    if resources.unified().as_ref().is_some_and(|unified| !unified.is_empty()) {
        return Err(Failure::invalid("resources.unified needs cgroup version 2"));
    }
    let mut writes = Writes(Vec::new());
    if let Some(rules) = resources.devices() {
        v1_devices(&mut writes, rules)?;
    }
    if let Some(memory) = resources.memory() {
        v1_memory(&mut writes, memory);
    }
    if let Some(cpu) = resources.cpu() {
        v1_cpu(&mut writes, cpu);
    }
    if let Some(pids) = resources.pids() {
        writes.add("pids", "pids.max", max_or(pids.limit()));
    }
    if let Some(block) = resources.block_io() {
        v1_block(&mut writes, block)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        writes.add("hugetlb", format!("hugetlb.{}.limit_in_bytes", limit.page_size()), limit.limit());
    }
    Ok(writes.0)
}

/// The writes for version 2, in order; devices are not files there.
pub(super) fn v2(resources: &LinuxResources) -> Result<Vec<Write>, Failure> {
    refuse_unknown(resources)?;
    let mut writes = Writes(Vec::new());
    if let Some(memory) = resources.memory() {
        v2_memory(&mut writes, memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        v2_cpu(&mut writes, cpu)?;
    }
    if let Some(pids) = resources.pids() {
        writes.add("pids", "pids.max", max_or(pids.limit()));
    }
    if let Some(block) = resources.block_io() {
        v2_block(&mut writes, block)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        writes.add("hugetlb", format!("hugetlb.{}.max", limit.page_size()), limit.limit());
    }
    for (file, value) in resources.unified().iter().flatten() {
        if file.contains('/') {
            return Err(Failure::invalid(format!("resources.unified: `{file}` is not a file name")));
        }
        writes.add("unified", file.clone(), value);
    }
    Ok(writes.0)
}

fn refuse_unknown(resources: &LinuxResources) -> Result<(), Failure> {
    let network = resources.network().as_ref();
    if network
        .is_some_and(|n| n.class_id().is_some() || n.priorities().as_ref().is_some_and(|p| !p.is_empty()))
    {
        return Err(Failure::invalid("not supported by this runtime: resources.network"));
    }
    if resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()) {
        return Err(Failure::invalid("not supported by this runtime: resources.rdma"));
    }
    Ok(())
}

fn max_or(limit: i64) -> String {
    if limit > 0 { limit.to_string() } else { "max".to_owned() }
}

// --- version 1

fn v1_memory(writes: &mut Writes, memory: &LinuxMemory) {
    let some = |value: Option<i64>| value.filter(|value| *value != 0);
    writes.maybe("memory", "memory.limit_in_bytes", some(memory.limit()));
    writes.maybe("memory", "memory.memsw.limit_in_bytes", some(memory.swap()));
    writes.maybe("memory", "memory.soft_limit_in_bytes", some(memory.reservation()));
    writes.maybe("memory", "memory.kmem.tcp.limit_in_bytes", some(memory.kernel_tcp()));
    writes.maybe("memory", "memory.swappiness", memory.swappiness().filter(|value| *value <= 100));
    if memory.disable_oom_killer() == Some(true) {
        writes.add("memory", "memory.oom_control", 1);
    }
}

fn v1_cpu(writes: &mut Writes, cpu: &LinuxCpu) {
    writes.maybe("cpu", "cpu.shares", cpu.shares().filter(|shares| *shares != 0));
    writes.maybe("cpu", "cpu.cfs_period_us", cpu.period().filter(|period| *period != 0));
    writes.maybe("cpu", "cpu.cfs_quota_us", cpu.quota().filter(|quota| *quota != 0));
    writes.maybe("cpu", "cpu.cfs_burst_us", cpu.burst());
    writes.maybe("cpu", "cpu.rt_period_us", cpu.realtime_period().filter(|period| *period != 0));
    writes.maybe("cpu", "cpu.rt_runtime_us", cpu.realtime_runtime().filter(|runtime| *runtime != 0));
    writes.maybe("cpu", "cpu.idle", cpu.idle());
    writes.maybe("cpuset", "cpuset.cpus", cpu.cpus().as_ref().filter(|cpus| !cpus.is_empty()));
    writes.maybe("cpuset", "cpuset.mems", cpu.mems().as_ref().filter(|mems| !mems.is_empty()));
}

fn v1_block(writes: &mut Writes, block: &LinuxBlockIo) -> Result<(), Failure> {
    if block.leaf_weight().is_some_and(|weight| weight != 0) {
        return Err(Failure::invalid("blockIO.leafWeight is not supported by current kernels"));
    }
    writes.maybe("blkio", "blkio.weight", block.weight().filter(|weight| *weight != 0));
    for device in block.weight_device().iter().flatten() {
        let weight = device.weight().unwrap_or(0);
        writes.add("blkio", "blkio.weight_device", format!("{}:{} {weight}", device.major(), device.minor()));
    }
    let mut throttle = |file: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        for device in devices.iter().flatten() {
            writes.add("blkio", file, format!("{}:{} {}", device.major(), device.minor(), device.rate()));
        }
    };
    throttle("blkio.throttle.read_bps_device", block.throttle_read_bps_device());
    throttle("blkio.throttle.write_bps_device", block.throttle_write_bps_device());
    throttle("blkio.throttle.read_iops_device", block.throttle_read_iops_device());
    throttle("blkio.throttle.write_iops_device", block.throttle_write_iops_device());
    Ok(())
}

/// The spec's rules in their order, with the defaults after a rule that denies all.
fn v1_devices(writes: &mut Writes, rules: &[LinuxDeviceCgroup]) -> Result<(), Failure> {
    for rule in rules {
        let file = if rule.allow() { "devices.allow" } else { "devices.deny" };
        if is_everything(rule) {
            writes.add("devices", file, "a");
            if !rule.allow() {
                for (typ, major, minor, access) in DEFAULT_DEVICES {
                    let part = |number: &Option<u32>| number.map_or("*".to_owned(), |n| n.to_string());
                    writes.add(
                        "devices",
                        "devices.allow",
                        format!("{typ} {}:{} {access}", part(major), part(minor)),
                    );
                }
            }
            continue;
        }
        let part = |number: Option<i64>| number.filter(|n| *n >= 0).map_or("*".to_owned(), |n| n.to_string());
        let access = access(rule)?;
        let number = format!("{}:{}", part(rule.major()), part(rule.minor()));
        for typ in device_types(rule)? {
            writes.add("devices", file, format!("{typ} {number} {access}"));
        }
    }
    Ok(())
}

pub(super) fn is_everything(rule: &LinuxDeviceCgroup) -> bool {
    let any = |number: Option<i64>| number.is_none_or(|number| number < 0);
    let full =
        rule.access().as_deref().is_none_or(|access| "rwm".chars().all(|letter| access.contains(letter)));
    matches!(rule.typ(), None | Some(LinuxDeviceType::A)) && any(rule.major()) && any(rule.minor()) && full
}

pub(super) fn access(rule: &LinuxDeviceCgroup) -> Result<&str, Failure> {
    let access = rule.access().as_deref().unwrap_or("rwm");
    let known = !access.is_empty() && access.chars().all(|letter| "rwm".contains(letter));
    known
        .then_some(access)
        .ok_or_else(|| Failure::invalid(format!("device access `{access}` is none of r, w, m")))
}

pub(super) fn device_types(rule: &LinuxDeviceCgroup) -> Result<&'static [char], Failure> {
    match rule.typ() {
        None | Some(LinuxDeviceType::A) => Ok(&['b', 'c']),
        Some(LinuxDeviceType::B) => Ok(&['b']),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Ok(&['c']),
        Some(LinuxDeviceType::P) => Err(Failure::invalid("a device rule cannot be about pipes")),
    }
}

// --- version 2

fn v2_memory(writes: &mut Writes, memory: &LinuxMemory) -> Result<(), Failure> {
    if memory.disable_oom_killer() == Some(true) {
        return Err(Failure::invalid("memory.disableOOMKiller needs cgroup version 1"));
    }
    if memory.swappiness().is_some_and(|value| value <= 100) {
        return Err(Failure::invalid("memory.swappiness needs cgroup version 1"));
    }
    let some = |value: Option<i64>| value.filter(|value| *value != 0);
    writes.maybe("memory", "memory.max", some(memory.limit()).map(max_or));
    writes.maybe("memory", "memory.low", some(memory.reservation()).map(max_or));
    // Version 1 counts memory and swap together, version 2 swap alone.
    match (some(memory.limit()), some(memory.swap())) {
        (_, Some(swap)) if swap < 0 => writes.add("memory", "memory.swap.max", "max"),
        (Some(limit), Some(swap)) if limit > 0 && swap >= limit => {
            writes.add("memory", "memory.swap.max", swap - limit);
        }
        (_, Some(swap)) => {
            return Err(Failure::invalid(format!("memory.swap of {swap} is less than memory.limit")));
        }
        (_, None) => {}
    }
    Ok(())
}

fn v2_cpu(writes: &mut Writes, cpu: &LinuxCpu) -> Result<(), Failure> {
    if cpu.realtime_runtime().is_some_and(|r| r != 0) || cpu.realtime_period().is_some_and(|p| p != 0) {
        return Err(Failure::invalid("cpu.realtimeRuntime and realtimePeriod need cgroup version 1"));
    }
    writes.maybe("cpu", "cpu.weight", cpu.shares().filter(|shares| *shares != 0).map(weight_of_shares));
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        writes.add(
            "cpu",
            "cpu.max",
            format!("{} {}", max_or(quota.unwrap_or(-1)), period.unwrap_or(100_000)),
        );
    }
    writes.maybe("cpu", "cpu.max.burst", cpu.burst());
    writes.maybe("cpu", "cpu.idle", cpu.idle());
    writes.maybe("cpuset", "cpuset.cpus", cpu.cpus().as_ref().filter(|cpus| !cpus.is_empty()));
    writes.maybe("cpuset", "cpuset.mems", cpu.mems().as_ref().filter(|mems| !mems.is_empty()));
    Ok(())
}

/// 2..262144 of version 1 on 1..10000 of version 2.
fn weight_of_shares(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

fn v2_block(writes: &mut Writes, block: &LinuxBlockIo) -> Result<(), Failure> {
    if block.leaf_weight().is_some_and(|weight| weight != 0) {
        return Err(Failure::invalid("blockIO.leafWeight needs cgroup version 1"));
    }
    // 10..1000 of version 1 on 1..10000 of version 2.
    let weight = |weight: u16| 1 + (u64::from(weight.clamp(10, 1000)) - 10) * 9_999 / 990;
    writes.maybe("io", "io.weight", block.weight().filter(|weight| *weight != 0).map(weight));
    for device in block.weight_device().iter().flatten() {
        let scaled = weight(device.weight().unwrap_or(0));
        writes.add("io", "io.weight", format!("{}:{} {scaled}", device.major(), device.minor()));
    }
    let mut throttle = |key: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        for device in devices.iter().flatten() {
            writes.add(
                "io",
                "io.max",
                format!("{}:{} {key}={}", device.major(), device.minor(), device.rate()),
            );
        }
    };
    throttle("rbps", block.throttle_read_bps_device());
    throttle("wbps", block.throttle_write_bps_device());
    throttle("riops", block.throttle_read_iops_device());
    throttle("wiops", block.throttle_write_iops_device());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(json: serde_json::Value) -> LinuxResources {
        serde_json::from_value(json).expect("resources")
    }

    fn lines(writes: Result<Vec<Write>, Failure>) -> Vec<String> {
        writes.expect("plan").into_iter().map(|w| format!("{} {}", w.file, w.value)).collect()
    }

    #[test]
    fn common_limits_in_both_versions() {
        let asked = resources(serde_json::json!({
            "memory": {"limit": 67_108_864, "swap": 134_217_728},
            "cpu": {"quota": 50_000, "period": 100_000, "shares": 1024, "cpus": "0"},
            "pids": {"limit": 10},
        }));
        assert_eq!(
            lines(v1(&asked)),
            [
                "memory.limit_in_bytes 67108864",
                "memory.memsw.limit_in_bytes 134217728",
                "cpu.shares 1024",
                "cpu.cfs_period_us 100000",
                "cpu.cfs_quota_us 50000",
                "cpuset.cpus 0",
                "pids.max 10"
            ]
        );
        assert_eq!(
            lines(v2(&asked)),
            [
                "memory.max 67108864",
                "memory.swap.max 67108864",
                "cpu.weight 39",
                "cpu.max 50000 100000",
                "cpuset.cpus 0",
                "pids.max 10"
            ]
        );
    }

    #[test]
    fn no_limit_is_written_as_the_kernel_says_it() {
        let asked =
            resources(serde_json::json!({"memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}}));
        assert_eq!(lines(v2(&asked)), ["memory.max max", "memory.swap.max max", "pids.max max"]);
        assert_eq!(
            lines(v1(&asked)),
            ["memory.limit_in_bytes -1", "memory.memsw.limit_in_bytes -1", "pids.max max"]
        );
    }

    #[test]
    fn denying_all_devices_leaves_the_default_ones() {
        let asked = resources(serde_json::json!({"devices": [
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
        ]}));
        let lines = lines(v1(&asked));
        assert_eq!(lines.first().map(String::as_str), Some("devices.deny a"));
        assert!(lines.contains(&"devices.allow c 1:3 rwm".to_owned()));
        assert!(lines.contains(&"devices.allow c 136:* rwm".to_owned()));
        assert_eq!(lines.last().map(String::as_str), Some("devices.allow c 10:229 rw"));
    }

    #[test]
    fn what_a_version_cannot_do_is_an_error() {
        let refused = |json| v2(&resources(json)).expect_err("refused").message;
        assert!(refused(serde_json::json!({"memory": {"disableOOMKiller": true}})).contains("version 1"));
        assert!(refused(serde_json::json!({"memory": {"limit": 10, "swap": 5}})).contains("less than"));
        let unified = resources(serde_json::json!({"unified": {"memory.high": "1"}}));
        assert!(v1(&unified).is_err());
    }
}
