//! Version 1.
// Documentation/admin-guide/cgroup-v1

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxNetwork};

use super::super::check::{SWAPPINESS_UNSET, refuse};
use super::{Planned, Writes, some, throttles};

/// What the kernel makes of other shares without a word. kernel/sched/sched.h
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

/// Limits of the kernel's own memory are left out: kernels since 5.4 count it within the whole, and runc does
/// not set them either.
pub(super) fn memory(memory: &LinuxMemory) -> Writes {
    let mut writes = Writes::of("memory");
    if some(memory.kernel()).or(some(memory.kernel_tcp())).is_some() {
        tracing::warn!("limits of kernel memory are ignored: it is part of the memory limit");
    }
    writes.maybe("memory.useHierarchy", "memory.use_hierarchy", memory.use_hierarchy().map(u8::from));
    writes.maybe("memory.limit", "memory.limit_in_bytes", some(memory.limit()));
    let swap = "memory.memsw.limit_in_bytes";
    match (some(memory.limit()), some(memory.swap())) {
        // Without a limit of memory there can be none of memory and swap.
        (Some(-1), None) => writes.add("memory.limit", swap, -1).may_be_missing = true,
        (_, Some(-1)) => writes.add("memory.swap", swap, -1).may_be_missing = true,
        (_, sum) => writes.maybe("memory.swap", swap, sum),
    }
    writes.maybe("memory.reservation", "memory.soft_limit_in_bytes", some(memory.reservation()));
    let swappiness = memory.swappiness().filter(|value| *value != SWAPPINESS_UNSET);
    writes.maybe("memory.swappiness", "memory.swappiness", swappiness);
    writes.maybe("memory.disableOOMKiller", "memory.oom_control", memory.disable_oom_killer().map(u8::from));
    writes
}

pub(super) fn cpu(cpu: &LinuxCpu) -> Planned {
    let mut writes = Writes::of("cpu");
    let shares = cpu.shares().filter(|shares| *shares != 0);
    if let Some(shares) = shares.filter(|shares| !SHARES.contains(shares)) {
        return Err(refuse("cpu.shares", format!("{shares} is not between 2 and 262144")));
    }
    writes.maybe("cpu.shares", "cpu.shares", shares);
    writes.maybe("cpu.period", "cpu.cfs_period_us", cpu.period().filter(|period| *period != 0));
    writes.maybe("cpu.quota", "cpu.cfs_quota_us", some(cpu.quota()));
    writes.maybe("cpu.burst", "cpu.cfs_burst_us", cpu.burst());
    writes.maybe("cpu.idle", "cpu.idle", cpu.idle());
    let period = cpu.realtime_period().filter(|period| *period != 0);
    writes.maybe("cpu.realtimePeriod", "cpu.rt_period_us", period);
    writes.maybe("cpu.realtimeRuntime", "cpu.rt_runtime_us", some(cpu.realtime_runtime()));
    Ok(writes)
}

/// Weights are CFQ's on kernels before 5.0, and BFQ's since.
pub(super) fn block(block: &LinuxBlockIo) -> Writes {
    let mut writes = Writes::of("blkio");
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        writes.add("blockIO.weight", "blkio.weight", weight).otherwise =
            Some(("blkio.bfq.weight".to_owned(), weight.to_string()));
    }
    let leaf = block.leaf_weight().filter(|weight| *weight != 0);
    writes.maybe("blockIO.leafWeight", "blkio.leaf_weight", leaf);
    for (index, device) in block.weight_device().iter().flatten().enumerate() {
        let field = format!("blockIO.weightDevice[{index}]");
        let value = |weight: u16| format!("{}:{} {weight}", device.major(), device.minor());
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            writes.add(field.clone(), "blkio.weight_device", value(weight)).otherwise =
                Some(("blkio.bfq.weight_device".to_owned(), value(weight)));
        }
        if let Some(weight) = device.leaf_weight().filter(|weight| *weight != 0) {
            writes.add(field, "blkio.leaf_weight_device", value(weight));
        }
    }
    for (name, file, _, devices) in throttles(block) {
        for (index, device) in devices.iter().flatten().enumerate() {
            let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            writes.add(format!("blockIO.{name}[{index}]"), file, value);
        }
    }
    writes
}

/// The reservation as well as the use, where the kernel counts reservations: since 5.7.
pub(super) fn hugetlb(limits: &[LinuxHugepageLimit]) -> Writes {
    let mut writes = Writes::of("hugetlb");
    for (index, limit) in limits.iter().enumerate() {
        let (field, size) = (format!("hugepageLimits[{index}]"), limit.page_size());
        writes.add(field.clone(), format!("hugetlb.{size}.limit_in_bytes"), limit.limit());
        writes.add(field, format!("hugetlb.{size}.rsvd.limit_in_bytes"), limit.limit()).may_be_missing = true;
    }
    writes
}

pub(super) fn network_class(network: &LinuxNetwork) -> Writes {
    let mut writes = Writes::of("net_cls");
    writes.maybe("network.classID", "net_cls.classid", network.class_id());
    writes
}

pub(super) fn network_priority(network: &LinuxNetwork) -> Writes {
    let mut writes = Writes::of("net_prio");
    for (index, priority) in network.priorities().iter().flatten().enumerate() {
        let value = format!("{} {}", priority.name(), priority.priority());
        writes.add(format!("network.priorities[{index}]"), "net_prio.ifpriomap", value);
    }
    writes
}
