//! Version 2.
// Documentation/admin-guide/cgroup-v2.rst

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory};

use super::super::check::{SWAPPINESS_UNSET, refuse};
use super::{Planned, Writes, max_or, some, throttles};

const ONLY_V1: &str = "it needs cgroup version 1";

pub(super) fn memory(memory: &LinuxMemory) -> Planned {
    if memory.disable_oom_killer() == Some(true) {
        return Err(refuse("memory.disableOOMKiller", ONLY_V1));
    }
    if memory.swappiness().is_some_and(|value| value != SWAPPINESS_UNSET) {
        return Err(refuse("memory.swappiness", ONLY_V1));
    }
    if memory.use_hierarchy() == Some(false) {
        return Err(refuse("memory.useHierarchy", "cgroup version 2 is always hierarchical"));
    }
    if some(memory.kernel()).or(some(memory.kernel_tcp())).is_some() {
        tracing::warn!("limits of kernel memory are ignored: it is part of the memory limit");
    }
    let mut writes = Writes::of("memory");
    if let Some(swap) = swap_alone(some(memory.limit()), some(memory.swap()))? {
        // A kernel that does not count swap needs no leave to use it, and none to have none.
        let write = writes.add("memory.swap", "memory.swap.max", &swap);
        write.may_be_missing = swap == "max" || swap == "0";
    }
    writes.maybe("memory.limit", "memory.max", some(memory.limit()).map(max_or));
    writes.maybe("memory.reservation", "memory.low", some(memory.reservation()).map(max_or));
    Ok(writes)
}

/// Configurations count memory and swap together, as version 1 does; version 2 counts swap alone.
fn swap_alone(limit: Option<i64>, together: Option<i64>) -> Result<Option<String>, crate::failure::Failure> {
    match (limit, together) {
        (Some(-1), None) | (_, Some(-1)) => Ok(Some("max".to_owned())),
        (_, None) => Ok(None),
        (Some(limit), Some(together)) if limit > 0 && together >= limit => {
            Ok(Some((together - limit).to_string()))
        }
        (_, Some(_)) => {
            Err(refuse("memory.swap", "with cgroup version 2 it needs memory.limit, of which it is a part"))
        }
    }
}

pub(super) fn cpu(cpu: &LinuxCpu) -> Planned {
    if some(cpu.realtime_runtime()).is_some() {
        return Err(refuse("cpu.realtimeRuntime", ONLY_V1));
    }
    if cpu.realtime_period().is_some_and(|period| period != 0) {
        return Err(refuse("cpu.realtimePeriod", ONLY_V1));
    }
    let mut writes = Writes::of("cpu");
    let shares = cpu.shares().filter(|shares| *shares != 0);
    writes.maybe("cpu.shares", "cpu.weight", shares.map(weight_of_shares));
    let (quota, period) = (some(cpu.quota()), cpu.period().filter(|period| *period != 0));
    match (quota, period) {
        (Some(quota), Some(period)) => {
            writes.add("cpu.quota", "cpu.max", format!("{} {period}", max_or(quota)));
        }
        // The kernel keeps a period that is not written.
        (Some(quota), None) => {
            writes.add("cpu.quota", "cpu.max", max_or(quota));
        }
        (None, Some(period)) => {
            writes.add("cpu.period", "cpu.max", period).keeps_first_word = true;
        }
        (None, None) => {}
    }
    writes.maybe("cpu.burst", "cpu.max.burst", cpu.burst());
    writes.maybe("cpu.idle", "cpu.idle", cpu.idle());
    Ok(writes)
}

/// 2..262144 of version 1 on 1..10000 of version 2, with the defaults 1024 and 100 on each other: a parabola
/// through the three in logarithms, as runc (since 1.3.2) and crun (since 1.23) have it.
pub(super) fn weight_of_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    #[expect(clippy::cast_precision_loss, reason = "it is below 2^18")]
    let log = (shares as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is within 1 and 10000")]
    let weight = 10_f64.powf(exponent).ceil() as u64;
    weight.clamp(1, 10_000)
}

/// 10..1000 of version 1 on 1..10000 of version 2; BFQ has the old range.
fn weight_of_blkio(weight: u16) -> u64 {
    1 + (u64::from(weight) - 10) * 9_999 / 990
}

pub(super) fn block(block: &LinuxBlockIo) -> Planned {
    let leaf = |weight: Option<u16>| weight.is_some_and(|weight| weight != 0);
    let leaves = block.weight_device().iter().flatten().any(|device| leaf(device.leaf_weight()));
    if leaf(block.leaf_weight()) || leaves {
        return Err(refuse("blockIO.leafWeight", ONLY_V1));
    }
    let mut writes = Writes::of("io");
    if let Some(weight) = block.weight().filter(|weight| *weight != 0) {
        writes.add("blockIO.weight", "io.bfq.weight", weight).otherwise =
            Some(("io.weight".to_owned(), weight_of_blkio(weight).to_string()));
    }
    for (index, device) in block.weight_device().iter().flatten().enumerate() {
        let Some(weight) = device.weight().filter(|weight| *weight != 0) else { continue };
        let number = format!("{}:{}", device.major(), device.minor());
        let field = format!("blockIO.weightDevice[{index}]");
        writes.add(field, "io.bfq.weight", format!("{number} {weight}")).otherwise =
            Some(("io.weight".to_owned(), format!("{number} {}", weight_of_blkio(weight))));
    }
    for (name, _, key, devices) in throttles(block) {
        for (index, device) in devices.iter().flatten().enumerate() {
            // Zero takes a limit away in version 1, and is none in version 2.
            let rate = if device.rate() == 0 { "max".to_owned() } else { device.rate().to_string() };
            let value = format!("{}:{} {key}={rate}", device.major(), device.minor());
            writes.add(format!("blockIO.{name}[{index}]"), "io.max", value);
        }
    }
    Ok(writes)
}

/// See the plan for version 1.
pub(super) fn hugetlb(limits: &[LinuxHugepageLimit]) -> Writes {
    let mut writes = Writes::of("hugetlb");
    for (index, limit) in limits.iter().enumerate() {
        let (field, size) = (format!("hugepageLimits[{index}]"), limit.page_size());
        writes.add(field.clone(), format!("hugetlb.{size}.max"), limit.limit());
        writes.add(field, format!("hugetlb.{size}.rsvd.max"), limit.limit()).may_be_missing = true;
    }
    writes
}
